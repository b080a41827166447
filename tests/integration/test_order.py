"""No result depends on the order in which a patching names its views."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods import EACH
from toy import DETAIL, STRUCTURE, sample, toy_sampler
from vitrail import hookimpl
from vitrail.core.geometry.views import Patches
from vitrail.sampling.sampler import Sampler

MOSAIC = {**STRUCTURE, "patching": {"type": "lattice", "interaction": "element", "key": "extra"}}


class Shuffle:
    """Names the views in another order at every step, with permutation and key to match."""

    def __init__(self, order):
        self.order = order  # number of views -> a permutation of them

    @hookimpl(wrapper=True)
    def vitrail_patch(self):
        patches = yield
        order = self.order(len(patches.views))
        place = torch.empty(len(order), dtype=torch.long)
        place[order] = torch.arange(len(order))
        permutation = patches.permutation
        if permutation is not None:
            permutation = place[permutation[order]]
        views = [patches.views[i] for i in order]
        return Patches(views, permutation, int(place[patches.key]), patches.clean_key)


class Record:
    """Keeps what the network was asked."""

    def __init__(self):
        self.batches = []

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step, rows):
        self.batches.append((step.index, rows))
        return (yield)


def backwards(count):
    return list(range(count))[::-1]


@pytest.mark.parametrize("method", EACH)
def test_reversed_views_change_no_bit(pipe, method):
    call = {"height": 160, "width": 128, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    plain = Sampler.from_pipeline(pipe, method)("a fox", **call).latents
    plugins = [("shuffle", Shuffle(backwards))]
    assert torch.equal(Sampler.from_pipeline(pipe, method, plugins=plugins)("a fox", **call).latents, plain)


@given(seed=st.integers(0, 2**32), row_batch=st.integers(1, 9))
@settings(max_examples=10)
def test_any_order_at_every_step_changes_no_bit(seed, row_batch):
    generator = torch.Generator().manual_seed(seed)
    shuffle = Shuffle(lambda count: torch.randperm(count, generator=generator).tolist())
    call = {"size": 24, "steps": 4, "row_batch": row_batch}
    for structure in (STRUCTURE, MOSAIC):
        shuffled = sample(toy_sampler(structure, DETAIL, plugins=[("shuffle", shuffle)]), **call)
        assert torch.equal(shuffled, sample(toy_sampler(structure, DETAIL), **call))


@pytest.mark.parametrize("row_batch", [1, 3, 8])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_network_sees_canonical_micro_batches(row_batch, guidance_scale):
    def batches(order):
        record = Record()
        plugins = [("shuffle", Shuffle(order)), ("record", record)]
        sampler = toy_sampler(MOSAIC, DETAIL, plugins=plugins)
        sample(sampler, size=24, steps=4, row_batch=row_batch, guidance_scale=guidance_scale)
        return record.batches

    forwards, reverse = batches(lambda count: list(range(count))), batches(backwards)
    for (step, rows), (_, other) in zip(forwards, reverse, strict=True):
        assert 0 < len(rows.views) <= row_batch
        assert len(rows.views) == len(rows.branches) == len(rows.model_input), step
        assert (rows.views, rows.branches, rows.capture) == (other.views, other.branches, other.capture)
        assert torch.equal(rows.model_input, other.model_input)
    branches = ("cond",) if guidance_scale == 1.0 else ("uncond", "cond")
    for index in range(4):
        views = [view for step, rows in forwards if step == index for view in rows.views]
        said = [branch for step, rows in forwards if step == index for branch in rows.branches]
        once = views[:: len(branches)]
        if index < 2:  # the clean key view comes last
            *once, key = once
            assert key == once[0]
        assert once == sorted(once)
        assert said == list(branches) * (len(said) // len(branches))
