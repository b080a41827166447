"""Mask sources: where a guidance acts."""
