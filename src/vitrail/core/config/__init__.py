"""Files and settings: reading, validating, overriding, registering, writing."""
