"""What every rank did and when, and what that costs."""
