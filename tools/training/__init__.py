"""Training of the demo model: data pool, three stages, one resumable loop."""
