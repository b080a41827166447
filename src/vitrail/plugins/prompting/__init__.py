"""Promptings: which text a view is asked with."""
