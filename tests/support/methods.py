"""Registered methods, for tests that go over all of them."""

from often import often
from vitrail.sampling.discovery import build_registry

METHODS = build_registry().names("methods")
KINDS = (  # one of every kind: whole, windows, lattice, moving, grown by latents and by pixels, rectified, asking
    # (with a copy of rows in their forward; sizes that hand over)
    "direct",
    "mixture-of-diffusers",
    "asg",
    "asg-plus",
    "spotdiffusion",
    "demofusion",
    "asg-cascade",
    "hidiffusion",
    "fouriscale",
    "megafusion",
    "upsample-guidance",
)
EACH = often(METHODS, lambda method: method in KINDS)
