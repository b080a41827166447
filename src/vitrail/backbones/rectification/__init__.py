"""Temporary changes inside a network, made by hooks on its modules and undone when a forward is over."""
