"""Strictest modes on, third-party plugins off, Hypothesis profiles by VITRAIL_PROFILE (fast, ci, long)."""

import gc
import os

os.environ.setdefault("VITRAIL_DISABLE_PLUGINS", "all")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny networks, and ranks that would take the cores from each other

import pytest
from hypothesis import HealthCheck, settings

from command_line import end_all
from tiny import tiny_pipeline
from vitrail.core.engine.cpu_threads import one_thread
from vitrail.sampling.discovery import build_registry

PROFILE = os.environ.get("VITRAIL_PROFILE", "fast")
for name, examples in (("fast", 25), ("ci", 50), ("long", 1000)):
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        derandomize=name != "long",
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(PROFILE)


def pytest_collection_finish():
    """Take the libraries' objects out of every later garbage collection, which would visit millions of them."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    skipped = {"fast": {"slow": "long", "thorough": "ci and long"}, "ci": {"slow": "long"}, "long": {}}[PROFILE]
    for item in items:
        for mark in skipped.keys() & set(item.keywords):
            item.add_marker(pytest.mark.skip(reason=f"{mark}: runs in the profile {skipped[mark]}"))


@pytest.fixture(autouse=True)
def _nothing_outlives_its_test():
    yield
    end_all()


@pytest.fixture
def one_thread_per_operator():
    """Have a plain pipeline, which is compared bit for bit, compute its operators as Vitrail does a small network's."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def names():
    """A registry of the built-ins."""
    return build_registry()


@pytest.fixture(scope="session")
def pipe():
    """A real Stable Diffusion pipeline, tiny and random, built from config."""
    return tiny_pipeline()


@pytest.fixture(scope="session")
def folder(pipe, tmp_path_factory):
    """The same pipeline as a diffusers folder."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    pipe.save_pretrained(path)
    return path
