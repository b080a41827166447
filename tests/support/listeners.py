"""A listener for experiments whose progress nobody wants to hear."""

from contextlib import nullcontext


class Silent:
    def count(self, name, total):
        return nullcontext(self)

    def step(self):
        """Drop it."""
