"""How the demo model and its judge are made: drawn data, one resumable loop, every knob in ``settings.toml``."""
