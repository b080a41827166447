"""Experiments: a grid of pictures from one file, measured and told; imports nothing heavy."""
