"""Texts of a view's own: which words a window keeps, and that the network gets them."""

import pytest
import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from tiny_families import FAMILIES
from vitrail import hookimpl
from vitrail.comm import InProcess
from vitrail.core.config.loader import Loader
from vitrail.core.geometry.views import Canvas, Span, View
from vitrail.core.method.attention_maps import KeptMaps
from vitrail.core.method.composition import Composition
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError, ConfigError
from vitrail.plugins.patching.windows import Windows
from vitrail.plugins.prompting.patch_content_aware import PatchContentAware, on_canvas, opened
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread
from vitrail.testing import make_step

WORDS = ("a", "red", "fox")
CALL = {"height": 128, "width": 128, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}


def halves(height=32, width=32):
    """One word at the left, one at the right, one at the top; Float32[Tensor, "1 3 height width"]."""
    maps = torch.zeros(1, 3, height, width)
    maps[:, 0, :, : width // 2] = maps[:, 1, :, width // 2 :] = maps[:, 2, : height // 2] = 1
    return KeptMaps(WORDS, maps)


def texts_of(prompting, prompt, views, canvas, memory):
    """At some step, without a negative text."""
    return prompting.texts(make_step(1), prompt, None, views, canvas, memory)


def quarters(canvas):
    """The four quarters of a canvas, row-major."""
    height, width = canvas.height // 2, canvas.width // 2
    return [View(Span(y, height), Span(x, width)) for y in (0, height) for x in (0, width)]


@pytest.mark.parametrize("side", [8, 32, 128])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 128), (30, 50), (256, 256)])
def test_a_window_keeps_the_words_that_are_seen_there(side, height, width):
    canvas = Canvas(height, width, 16)
    texts = texts_of(PatchContentAware(), "a red fox", quarters(canvas), canvas, halves(side, side))
    assert texts == ("a fox", "red fox", "a", "red")


@pytest.mark.parametrize("size", [(32, 32), (43, 20)])
@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_maps_are_read_at_the_cells_of_their_layers(size, halvings):
    """Enlarged to the nearest cell and read at so many halvings they are the maps of the layers themselves."""
    small = tuple(-(-side // 2**halvings) for side in size)
    coarse = Streams(0).uniform((1, 3, *small), "maps")
    coarse = F.avg_pool2d(coarse, 5, 1, 2, count_include_pad=False)
    grown = F.interpolate(coarse, size, mode="nearest-exact")
    canvas = Canvas(2 * size[0], 2 * size[1], 16)
    views = Windows(size=16).patch(make_step(0), canvas, 4, Streams(0)).views
    given, own = KeptMaps(WORDS, grown), KeptMaps(WORDS, coarse)
    texts = texts_of(PatchContentAware(halvings=halvings), "a red fox", views, canvas, given)
    assert texts == texts_of(PatchContentAware(), "a red fox", views, canvas, own)
    assert len(set(texts)) > 2


def test_texts_of_halved_maps_are_the_same_on_three_ranks_and_transformers_refuse_them():
    sets = ["stages.1.prompting.layers=[]", "stages.1.prompting.halvings=1"]
    sampler = Sampler.from_pipeline(FAMILIES["sdxl"](), load_method("accdiffusion", sets))
    alone = sampler("a red fox", **CALL).latents

    def program(communicator):
        return sampler.again()("a red fox", spread=Spread(communicator=communicator), **CALL).latents

    assert all(torch.equal(each, alone) for each in InProcess(timeout=600).run(3, program))
    usual = Sampler.from_pipeline(FAMILIES["sdxl"](), load_method("accdiffusion"))
    assert sampler.composition.attention_request() != usual.composition.attention_request()
    with pytest.raises(ConfigError, match="leave 'layers' and 'blocks' out"):
        load_method("accdiffusion", ["stages.1.prompting.halvings=1"])
    with pytest.raises(CapabilityError, match="all have the same cells"):
        Sampler.from_pipeline(FAMILIES["sd3"](), load_method("accdiffusion", sets))


def test_padding_repeats_the_edge_and_is_no_part_of_the_map():
    canvas = Canvas(10, 10, 16).padded(8, 8)
    grown = on_canvas(halves().maps[0], canvas)
    assert grown.shape == (3, 16, 16)
    assert torch.equal(grown[0, :, :5], torch.ones(16, 5)) and not grown[0, :, 5:].any()
    assert torch.equal(grown[1, :, 5:], torch.ones(16, 11))


def test_the_threshold_is_a_share_of_the_window():
    canvas, view = Canvas(10, 10, 10), [View(Span(0, 10), Span(0, 10))]
    maps = torch.zeros(1, 2, 10, 10)
    maps[:, 0, :, :3] = maps[:, 1, :3] = 1
    maps[:, 1, 0, 0] = 0
    kept = texts_of(PatchContentAware(threshold=0.3, opening=0), "a b", view, canvas, KeptMaps(("a", "b"), maps))
    assert kept == ("a",)  # 30 cells of 100, and 29


def test_all_words_are_the_prompt_and_no_word_is_an_empty_text():
    canvas = Canvas(16, 16, 16)
    views = quarters(canvas)
    assert texts_of(PatchContentAware(threshold=0), "A red fox!", views, canvas, halves()) == (None,) * 4
    flat = KeptMaps(WORDS, torch.ones(1, 3, 8, 8))  # nothing is above its own mean
    assert texts_of(PatchContentAware(), "A red fox!", views, canvas, flat) == ("",) * 4
    assert texts_of(PatchContentAware(), "A red fox!", views, canvas, None) == ()


@given(seed=st.integers(0, 99), reach=st.integers(0, 3), side=st.integers(4, 20))
def test_an_opening_erodes_and_dilates_so_many_times(seed, reach, side):
    masks = (Streams(seed).uniform((2, side, side + 1), "mask") > 0.3).float()
    slow = masks
    for _ in range(reach):
        slow = 1 - F.max_pool2d(1 - slow, 3, 1, 1)
    for _ in range(reach):
        slow = F.max_pool2d(slow, 3, 1, 1)
    assert torch.equal(opened(masks, reach), slow)
    assert (opened(masks, reach) <= masks).all()
    assert torch.equal(opened(opened(masks, reach), reach), opened(masks, reach))


def test_an_opening_takes_specks_away_at_any_scale_of_the_map():
    """As two erosions of a map of 32 cells: what is less than five of them wide goes, what lies on an edge stays."""
    for scale in (1, 2, 4):
        masks = torch.zeros(4, 32, 32)
        masks[0, 10:14, 10:20] = masks[1, 10:15, 10:15] = masks[2, :3, 10:20] = masks[3, :2, 10:20] = 1
        masks = masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        reach = int(PatchContentAware().opening * masks.shape[-1])
        assert reach == 2 * scale
        left = opened(masks, reach)
        assert not left[0].any() and torch.equal(left[1:3], masks[1:3]) and not left[3].any()


@given(height=st.integers(4, 60), width=st.integers(4, 60), wrap=st.sampled_from(["none", "x", "y", "xy"]))
def test_any_canvas_has_a_text_for_every_window(height, width, wrap):
    canvas = Canvas(height, width, 8, wrap=wrap)
    views = Windows(jitter=True).patch(make_step(1), canvas, 4, Streams(0)).views
    memory = KeptMaps(WORDS, Streams(1).uniform((1, 3, 8, 5), "maps"))
    texts = texts_of(PatchContentAware(), "a red fox", views, canvas, memory)
    assert len(texts) == len(views)
    assert all(text is None or set(text.split()) < set(WORDS) for text in texts)


class Planted:
    """Puts maps in place of what the network saw, and notes the texts of the rows of later sizes."""

    def __init__(self, maps):
        self.maps, self.texts = maps, {}

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step, rows):
        answer = yield
        for view, text in zip(rows.views, rows.texts, strict=False):
            self.texts.setdefault((step.index, view), text)
        return answer if answer.words is None else evolve(answer, words=self.maps)


def latents(pipe, method, *sets, prompt="a red fox", plugins=(), **call):
    sampler = Sampler.from_pipeline(pipe, load_method(method, sets), plugins=plugins)
    return sampler(prompt, **(CALL | call)).latents


def test_the_network_gets_the_text_of_each_window(pipe):
    everywhere, planted = Planted(torch.ones(1, 3, 8, 8)), Planted(halves(8, 8).maps)
    bare = ["stages.1.guidance=[]", "stages.1.extra_views=[]"]
    seen = latents(pipe, "accdiffusion", *bare, plugins=[("planted", planted)])
    assert {"a fox", "red fox", "a", "red"} <= set(planted.texts.values())
    assert {index for index, _ in planted.texts} == {3, 4, 5}
    assert len({view for _, view in planted.texts}) == 9  # the windows keep their places
    empty = latents(pipe, "accdiffusion", *bare, plugins=[("planted", everywhere)])
    assert set(everywhere.texts.values()) == {""}
    unprompted = latents(pipe, "accdiffusion", *bare, "stages.1.prompting=shared", prompt="")
    assert not torch.equal(seen, empty)
    assert not torch.equal(empty, unprompted)  # the first size had its prompt


def test_dilated_views_have_the_whole_prompt_whatever_the_windows_have(pipe):
    """AccDiffusion, sec. 3.2: the windows' words are theirs alone. No word fills 0.6 of the whole picture."""

    class Texts:
        """The texts of every row of a later size, by how far its view's cells lie apart."""

        def __init__(self):
            self.by_stride = {}

        @hookimpl(wrapper=True)
        def vitrail_predict(self, step, rows):
            for number, view in enumerate(rows.views if step.phase else ()):
                text = rows.texts[number] if rows.texts else None
                self.by_stride.setdefault(view.vertical.step, []).append(text)
            return (yield)

    seen, planted = Texts(), Planted(halves(8, 8).maps)
    latents(pipe, "accdiffusion", "stages.1.prompting.threshold=0.6", plugins=[("planted", planted), ("texts", seen)])
    assert set(seen.by_stride) == {1, 2}
    assert {"a fox", "red fox", "a", "red"} <= set(seen.by_stride[1])
    assert len(seen.by_stride[2]) == 3 * 4 * 2 and set(seen.by_stride[2]) == {None}  # steps, views, branches


def test_windows_with_all_words_have_the_prompt(pipe):
    kept = latents(pipe, "accdiffusion", "stages.1.prompting.threshold=0")
    assert torch.equal(kept, latents(pipe, "accdiffusion", "stages.1.prompting=shared"))
    assert not torch.equal(kept, latents(pipe, "accdiffusion", "stages.1.prompting.threshold=1"))


@frozen
class Fixed:
    """One text for all views, or every second one."""

    needs = frozenset()
    text: str = "fox"
    every: int = 1

    @property
    def request(self):
        """No maps."""

    def texts(self, step, prompt, negative_prompt, views, canvas, memory):
        """The text."""
        return tuple(None if number % self.every else self.text for number in range(len(views)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_in_all_windows_is_the_prompt(family):
    pipe, registry = FAMILIES[family](), build_registry()
    registry.add("prompting", "fixed", Fixed)

    def picture(prompting, prompt):
        stage = {"patching": "windows", "fusion": "average", "prompting": prompting}
        method = Loader(registry).structure({"stages": [stage]}, Composition, "test")
        return Sampler.from_pipeline(pipe, method)(prompt, **(CALL | {"num_inference_steps": 2})).latents

    prompted = picture("shared", "a red fox")
    assert torch.equal(picture("fixed", "a red fox"), picture("shared", "fox"))
    assert not torch.equal(picture("fixed", "a red fox"), prompted)
    same_tokens = {"type": "fixed", "text": "A RED FOX", "every": 2}
    assert torch.equal(picture(same_tokens, "a red fox"), prompted)


def test_nothing_to_recall_and_no_prompt_are_refused(pipe):
    with pytest.raises(ConfigError, match=r"no earlier stage has 'remember = true'"):
        load_method("accdiffusion", ["stages.0.remember=false"])
    embeds = torch.zeros(1, 16, 32)
    with pytest.raises(ConfigError, match="needs a prompt"):
        latents(pipe, "accdiffusion", prompt="", prompt_embeds=embeds, negative_prompt_embeds=embeds)


def test_a_prompt_without_words_has_nothing_to_remember(pipe):
    shared = latents(pipe, "accdiffusion", "stages.1.prompting=shared", prompt="")
    assert torch.equal(latents(pipe, "accdiffusion", prompt=""), shared)


@pytest.mark.parametrize("negative", [None, "", "grey"])
def test_a_prompting_is_told_the_step_and_both_texts(pipe, negative):
    asked = []

    @frozen
    class Listener(Fixed):
        def texts(self, step, prompt, negative_prompt, views, canvas, memory):
            asked.append((step.index, prompt, negative_prompt))
            return super().texts(step, prompt, negative_prompt, views, canvas, memory)

    registry = build_registry()
    registry.add("prompting", "listener", Listener)
    stage = {"patching": "whole", "fusion": "average", "prompting": "listener"}
    method = Loader(registry).structure({"stages": [stage]}, Composition, "test")
    Sampler.from_pipeline(pipe, method)("a red fox", negative_prompt=negative, **CALL)
    assert asked == [(index, "a red fox", negative) for index in range(3)]
