"""Training of the demo model and its judge: drawn data, one resumable loop, settings in ``settings.toml``."""
