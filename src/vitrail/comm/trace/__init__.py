"""Traces: the timed events of every rank, and models of what a run costs."""
