"""Experiments: grids of pictures defined by a file, their metrics and reports. Imports neither torch nor PIL."""
