"""Upscalers: what enlarges a picture, in pixels."""
