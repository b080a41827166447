"""Rectifications: temporary changes inside a network, made by hooks and undone after a forward."""
