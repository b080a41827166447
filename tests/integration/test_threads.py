"""The same picture, bit for bit, whatever the number of threads that torch was given, and of ranks."""

import functools

import pytest
import torch

from often import THOROUGH
from rank_programs import demo_latents
from tiny_families import tiny_sd
from vitrail.comm.backends.gloo import Gloo
from vitrail.comm.backends.in_process import InProcess
from vitrail.errors import ConfigError, ProtocolError
from vitrail.sampling.sampler import Sampler, Spread

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


def of_large_network(monkeypatch):
    """A sampler whose network counts as large, so that it has the threads of the process."""
    monkeypatch.setattr("vitrail.core.engine.cpu_threads.SMALL", 0)
    return Sampler.from_pipeline(tiny_sd(), "direct")


CALL = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}


def test_ranks_with_unlike_threads_an_operator_are_refused(monkeypatch):
    sampler = of_large_network(monkeypatch)

    def program(communicator, unlike):
        torch.get_num_threads()  # a thread's first question takes over what another thread set last
        torch.set_num_threads(1 + unlike * communicator.rank)
        return sampler("a fox", **CALL, spread=Spread(communicator=communicator)).latents

    with pytest.raises(ProtocolError, match=r"threads an operator \(OMP_NUM_THREADS\)"):
        InProcess(timeout=300).run(2, functools.partial(program, unlike=1))
    one, other = InProcess(timeout=300).run(2, functools.partial(program, unlike=0))
    assert torch.equal(one, other)


def test_a_checkpoint_goes_on_with_the_same_threads_an_operator_alone(monkeypatch, tmp_path):
    sampler = of_large_network(monkeypatch)
    call = CALL | {"spread": Spread(checkpoint=tmp_path / "run.ckpt", checkpoint_every=1)}
    torch.set_num_threads(1)
    stopped = sampler("a fox", **call, callback_on_step_end=lambda sampler, *step: sampler.interrupt() or {})
    assert stopped.report.interrupted
    torch.set_num_threads(2)
    with pytest.raises(ConfigError, match=r"belongs to another run \(OMP_NUM_THREADS"):
        sampler("a fox", **call)
    torch.set_num_threads(1)
    assert not sampler("a fox", **call).report.interrupted


@pytest.mark.thorough
def test_without_one_thread_an_operator_it_would_know_them(monkeypatch):
    """Else the law above would hold of anything."""
    monkeypatch.setattr("vitrail.core.engine.cpu_threads.SMALL", 0)
    options = {"method": "direct", "steps": 2}
    assert not torch.equal(alone(1, **options)[0], alone(2, **options)[0])
