"""Guidances: what changes a prediction."""
