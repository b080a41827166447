"""Every registered method, for tests that go over all of them."""

import pytest

from vitrail.sampling.discovery import build_registry

METHODS = build_registry().names("methods")
COSTLY = ("accdiffusion", "syncdiffusion")  # which take longer than the others together
EACH = [pytest.param(name, marks=pytest.mark.thorough) if name in COSTLY else name for name in METHODS]
