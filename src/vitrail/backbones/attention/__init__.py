"""Attention of networks: maps for masks, and caches of features."""
