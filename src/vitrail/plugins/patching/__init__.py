"""Patchings: how a canvas is cut into views."""
