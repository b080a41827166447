"""Spans, views and canvases, in latent cells."""
