"""The same picture, bit for bit, whatever the number of threads that torch was given, and of ranks."""

import functools

import pytest
import torch

from often import THOROUGH
from rank_programs import demo_latents
from vitrail.comm.backends.gloo import Gloo
from vitrail.comm.backends.in_process import InProcess

DEMO = ("asg-plus", "asg-cascade")


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def alone(threads, **options):
    torch.set_num_threads(threads)
    found = demo_latents(**options)
    assert torch.get_num_threads() == threads
    return found


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        pytest.param("asg-plus", 2, marks=pytest.mark.thorough),
        ("asg-cascade", 2),
        *(pytest.param(m, 30, marks=pytest.mark.slow) for m in DEMO),
    ],
)
def test_the_picture_knows_neither_threads_nor_ranks(method, steps):
    options = {"method": method, "steps": steps}
    expected, picture = alone(1, **options)
    for threads in (2, 4) if THOROUGH else (2,):
        for one, other in zip(alone(threads, **options), (expected, picture), strict=True):
            assert torch.equal(one, other), threads
    torch.set_num_threads(2)
    program = functools.partial(demo_latents, **options)
    for world_size in (2, 3) if THOROUGH else (3,):
        for found in InProcess(timeout=300).run(world_size, lambda c: program(communicator=c)):
            assert torch.equal(found[0], expected) and torch.equal(found[1], picture), world_size
    processes = functools.partial(demo_latents, threads=2, **options)
    for found in Gloo(timeout=300).run(3, processes) if THOROUGH else ():
        assert torch.equal(found[0], expected) and torch.equal(found[1], picture)


@pytest.mark.thorough
def test_without_one_thread_an_operator_it_would_know_them(monkeypatch):
    """Else the law above would hold of anything."""
    monkeypatch.setattr("vitrail.core.engine.cpu_threads.SMALL", 0)
    options = {"method": "direct", "steps": 2}
    assert not torch.equal(alone(1, **options)[0], alone(2, **options)[0])
