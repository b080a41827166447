"""Specification of an experiment: from its file to its cells."""
