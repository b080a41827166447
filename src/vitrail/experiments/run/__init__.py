"""Execution of an experiment: sampling its cells into a folder."""
