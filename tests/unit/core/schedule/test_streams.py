"""Randomness: a function of (seed, name, index) and of nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.core.schedule.streams import SCHEME, Streams

SEEDS = st.integers(0, 2**63 - 1)
NAMES = st.sampled_from(["initial-latents", "permutation", "jitter", "step-noise"])
INDICES = st.lists(st.integers(0, 1000), max_size=2)


@given(seed=SEEDS, name=NAMES, index=INDICES, others=st.lists(st.tuples(NAMES, INDICES), max_size=4))
def test_a_draw_does_not_depend_on_other_draws(seed, name, index, others):
    alone = Streams(seed).normal((5,), name, *index)
    streams = Streams(seed)
    for other, at in others:
        streams.uniform((3,), other, *at)
    torch.manual_seed(1)
    assert torch.equal(streams.normal((5,), name, *index), alone)


@given(seed=SEEDS, name=NAMES, index=st.integers(0, 1000))
def test_another_seed_name_or_index_gives_other_numbers(seed, name, index):
    here = Streams(seed).normal((8,), name, index)
    others = [
        Streams(seed ^ 1).normal((8,), name, index),
        Streams(seed).normal((8,), name + "-2", index),
        Streams(seed).normal((8,), name, index + 1),
        Streams(seed).normal((8,), name, index, 0),
        Streams(seed).normal((8,), name),
    ]
    assert not any(torch.equal(here, other) for other in others)


@given(seed=SEEDS)
def test_the_global_generator_is_left_alone(seed):
    before = torch.get_rng_state()
    streams = Streams(seed)
    streams.normal((4,), "a")
    streams.uniform((4,), "b")
    torch.randn(3, generator=streams.generator("c"))
    assert torch.equal(torch.get_rng_state(), before)


@given(seed=SEEDS)
def test_numbers_are_spread_as_they_should_be(seed):
    normal, uniform = Streams(seed).normal((4096,), "a"), Streams(seed).uniform((4096,), "a")
    assert normal.device.type == uniform.device.type == "cpu"
    assert normal.dtype == uniform.dtype == torch.float32
    assert abs(float(normal.mean())) < 0.1
    assert abs(float(normal.std()) - 1) < 0.1
    assert 0 <= float(uniform.min()) < 0.05
    assert 0.95 < float(uniform.max()) < 1


@given(seed=SEEDS)
def test_steps_are_independent_of_each_other(seed):
    draws = torch.stack([Streams(seed).normal((4096,), "step-noise", i) for i in range(4)])
    assert (torch.corrcoef(draws) - torch.eye(4)).abs().max() < 0.1


def test_the_scheme_is_numbered():
    """A change here makes every picture another one: then ``SCHEME`` must change, too."""
    assert SCHEME == 1
    assert Streams(7).normal((3,), "initial-latents").tolist() == pytest.approx(
        [-1.112393, 0.041183, -1.896873], abs=1e-5
    )
