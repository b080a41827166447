"""Compare a checkout of an authors' repository with Vitrail's method: ``python -m tools.parity --help``."""
