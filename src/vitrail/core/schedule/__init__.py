"""Steps, noise schedules, predictions and the streams of random numbers."""
