"""Word maps that a stage remembers, and the masks that are made of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny import NATIVE
from tiny_families import FAMILIES
from vitrail.core.config.loader import Loader
from vitrail.core.engine.resize import inside
from vitrail.core.geometry.views import Canvas
from vitrail.core.method.attention_maps import KeptMaps
from vitrail.core.method.composition import Composition
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError, PredictionError
from vitrail.plugins.masking.remembered_attention import RememberedAttention
from vitrail.plugins.patching.lattice import lattice_views
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.sampler import Sampler
from vitrail.testing import make_prediction, make_step

WHOLE = {"patching": "whole", "fusion": "average"}
REMEMBERED = {"enter": {}, "masking": "remembered-attention", "guidance": ["sync"]}


def memory(*words, side=8):
    return KeptMaps(words, Streams(3).uniform((1, len(words), side, side), "maps"))


def mask_of(strategy, remembered, side=8):
    step = make_step(2)
    key = make_prediction((1, 4, side, side), step)
    return strategy.mask(step, key, ModelOutput(key.model_output, memory=remembered), None)[0]


class Seen:
    """Notes what stages remember."""

    def __init__(self):
        self.memories, self.attention = [], []

    from vitrail.core.method.hookspecs import hookimpl

    @hookimpl(wrapper=True)
    def vitrail_mask(self, predicted):
        self.memories.append(predicted.memory)
        self.attention.append(predicted.attention)
        return (yield)


def run(pipe, *stages, cascade=None, prompt="a fox", **call):
    table = {"stages": list(stages)} | ({} if cascade is None else {"cascade": cascade})
    seen = Seen()
    made = Loader(build_registry()).structure(table, Composition, "test")
    sampler = Sampler.from_pipeline(pipe, made, plugins=[("seen", seen)])
    options = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "latent", "guidance_scale": 2.0}
    return seen, sampler(prompt, **(options | call)).latents


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_the_mean_over_steps_of_every_words_map(family):
    """Of single-token words the mean is the content's map, so the remembered maps average to the captured ones."""
    masking = {"type": "attention", "skip_stop_words": False}
    remembers = WHOLE | {"remember": True, "masking": masking, "until": 0.75}
    seen, _ = run(
        FAMILIES[family](),
        remembers,
        WHOLE | {"masking": "remembered-attention"},
        prompt="a b c",
        num_inference_steps=4,
    )
    memory = seen.memories[-1]
    assert memory.words == ("a", "b", "c") and memory.steps == 3
    captured = torch.stack(seen.attention[:3]).mean(0)
    torch.testing.assert_close(memory.maps.mean(1, keepdim=True), captured, rtol=1e-4, atol=1e-6)


@given(seed=st.integers(0, 2**32), split=st.integers(1, 4))
def test_words_count_within_their_text(seed, split):
    """Where regions have texts of their own, a text of many words weighs no more than one of few."""
    maps = Streams(seed).normal((1, 5, 4, 6), "maps").abs()
    words, texts = tuple("abcde"), (0,) * split + (1,) * (5 - split)
    one, two = KeptMaps(words, maps), KeptMaps(words, maps, texts=texts)
    torch.testing.assert_close(one.heat(range(5), "mean"), maps.mean(1, keepdim=True))
    parts = maps[:, :split].mean(1, keepdim=True) + maps[:, split:].mean(1, keepdim=True)
    torch.testing.assert_close(two.heat(range(5), "mean"), parts)
    assert torch.equal(two.heat(range(split), "max"), maps[:, :split].amax(1, keepdim=True))
    with pytest.raises(PredictionError, match="the words whose maps are kept were a, b"):
        one.seen(KeptMaps(words[:4], maps[:, :4]))


def test_what_is_remembered_does_not_reach_the_picture(pipe):
    assert torch.equal(run(pipe, WHOLE | {"remember": True})[1], run(pipe, WHOLE)[1])


def test_a_later_size_has_the_maps_of_the_first(pipe):
    lattice = WHOLE | REMEMBERED | {"patching": {"type": "lattice"}, "fusion": "scatter"}
    seen, _ = run(pipe, WHOLE | {"remember": True}, lattice, cascade={}, height=128, width=128)
    assert seen.memories[:3] == [None] * 3, "maps are for mask sources that say they want them"
    later = [each for each in seen.memories[3:] if each.steps == 3]
    assert len(later) == 3 and len({id(each) for each in later}) == 1
    assert later[-1].maps.shape == (1, 2, NATIVE, NATIVE)


def test_a_stage_that_wants_maps_needs_one_that_remembers():
    stages = [WHOLE, WHOLE | REMEMBERED]
    with pytest.raises(ConfigError, match="no earlier stage has 'remember = true'"):
        Loader(build_registry()).structure({"cascade": {}, "stages": stages}, Composition, "test")


@pytest.mark.parametrize("edge", ["soft", "binary"])
def test_stop_words_do_not_count_and_neither_do_unnamed_ones(edge):
    with_stop, without = memory("fox", "a"), None
    without = KeptMaps(("fox",), with_stop.maps[:, :1])
    strategy = RememberedAttention(edge=edge)
    assert torch.equal(mask_of(strategy, with_stop), mask_of(strategy, without))
    two = memory("fox", "snow")
    named = mask_of(RememberedAttention(edge=edge, words="snow"), two)
    assert torch.equal(named, mask_of(strategy, KeptMaps(("snow",), two.maps[:, 1:])))


def test_a_planted_object_is_found_and_a_speck_is_not():
    maps = torch.zeros(1, 1, 32, 32)
    maps[..., 8:20, 10:22] = 1.0
    maps[..., 28, 28] = 1.0
    mask = mask_of(RememberedAttention(edge="binary"), KeptMaps(("fox",), maps), side=32)
    wanted = maps.clone()
    wanted[..., 28, 28] = 0
    assert torch.equal(mask, wanted)


def test_a_mask_has_the_size_of_the_view():
    mask = mask_of(RememberedAttention(), memory("fox"), side=12)
    assert mask.shape == (1, 1, 12, 12) and mask.min() >= 0 and mask.max() <= 1


def test_the_padding_is_no_part_of_the_map_and_repeats_its_edge():
    step, remembered = make_step(2), memory("fox")
    key = make_prediction((1, 4, 12, 10), step)
    strategy = RememberedAttention()
    padded = strategy.mask(step, key, ModelOutput(key.model_output, memory=remembered, inner=(9, 10)), None)[0]
    inner = make_prediction((1, 4, 9, 10), step)
    alone = strategy.mask(step, inner, ModelOutput(inner.model_output, memory=remembered), None)[0]
    assert torch.equal(padded[..., :9, :], alone)
    assert torch.equal(padded[..., 9:, :], alone[..., -1:, :].expand(-1, -1, 3, -1))
    assert not torch.equal(padded, mask_of(strategy, remembered, side=12)[..., :10])


@given(height=st.integers(5, 40), width=st.integers(5, 40), down=st.integers(1, 4), right=st.integers(1, 4))
def test_what_of_a_view_is_no_padding(height, width, down, right):
    canvas = Canvas(height, width, 8).padded(down, right)
    real = torch.zeros(canvas.height, canvas.width)
    real[:height, :width] = 1
    for view in lattice_views(canvas, down, right):
        rows, cols = inside(view, canvas)
        seen = view.read(real)
        assert seen[:rows, :cols].all() and seen.sum() == rows * cols


def test_maps_of_a_padded_canvas_are_remembered_without_the_padding(pipe):
    """72 x 200 pixels are 9 x 25 cells, and 27 columns for the three strided views of the second stage."""
    whole = WHOLE | {"remember": True, "until": 0.5}
    lattice = {"patching": "lattice", "fusion": "scatter", "masking": "remembered-attention", "guidance": ["sync"]}
    seen, latents = run(pipe, whole, lattice, height=72, width=200)
    assert latents.shape[-2:] == (9, 27)
    assert {tuple(each.maps.shape) for each in seen.memories if each is not None} == {(1, 2, 9, 25)}


def test_words_that_are_not_in_the_prompt_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'fox'"):
        mask_of(RememberedAttention(words="foxx"), memory("fox", "snow"))


def test_without_content_guidance_acts_everywhere():
    assert mask_of(RememberedAttention(), memory("a", "the")) is None
    assert mask_of(RememberedAttention(), None) is None
