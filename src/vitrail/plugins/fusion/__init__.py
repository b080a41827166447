"""Fusions: how overlapping predictions become one."""
