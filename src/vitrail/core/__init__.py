"""The engine: knows torch, never diffusers, and imports no strategy."""
