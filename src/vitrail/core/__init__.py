"""The engine: imports torch, never diffusers, and no strategy."""
