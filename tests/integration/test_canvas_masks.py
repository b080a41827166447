"""Masks of the whole canvas: every view has its own cut, guidance of the canvas the whole."""

from typing import ClassVar

import pytest
import torch
from attrs import evolve, frozen
from PIL import Image

from file_mask import FileMask, Shift
from tiny import NATIVE, in_double
from vitrail import Composition, Sampler, Stage, hookimpl
from vitrail.core.geometry.views import Canvas
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.fusion.scatter import Scatter
from vitrail.plugins.guidance.structure import AsyncGuidance, SyncGuidance
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.masking.pfsa import ParameterFreeAttention
from vitrail.plugins.patching.lattice import Lattice
from vitrail.plugins.patching.whole import Whole
from vitrail.plugins.patching.windows import Windows
from vitrail.testing import make_prediction, make_step

CALL = {"height": 128, "width": 96, "num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "latent", "seed": 4}
CELLS = (128 // 8, 96 // 8)
VIEWS = {
    "whole": (Whole(), Average()),
    "windows": (Windows(overlap=0.5), Average()),
    "lattice": (Lattice(), Scatter()),
}


class Masks:
    """Notes what every mask is asked for and what guidance is given."""

    def __init__(self):
        self.asked, self.given = [], []

    @hookimpl(wrapper=True)
    def vitrail_mask(self, predicted):
        mask, state = yield
        self.asked.append((predicted.view, predicted.canvas, predicted.inner, mask))
        return mask, state

    @hookimpl(wrapper=True)
    def vitrail_guide(self, guidance, scene):
        self.given.append((guidance.point, scene.mask, scene.patches))
        return (yield)


@pytest.fixture
def picture(tmp_path):
    """White on the left, and a white spot: no view is like another."""
    grey = Image.new("L", (CELLS[1], CELLS[0]), 0)
    grey.paste(255, (0, 0, 4, CELLS[0]))
    grey.paste(128, (7, 10, 9, 12))
    grey.save(tmp_path / "mask.png")
    return str(tmp_path / "mask.png")


@frozen(kw_only=True)
class OnCanvas(Shift):
    """The same, of the canvas."""

    point: ClassVar[str] = "canvas"


def run(pipe, views, masking, *guidance, **call):
    patching, fusion = VIEWS[views]
    stage = Stage(patching=patching, fusion=fusion, masking=masking, guidance=guidance)
    seen = Masks()
    sampler = Sampler.from_pipeline(pipe, Composition(stages=[stage]), plugins=[("seen", seen)])
    return seen, sampler("a fox", **CALL | call).latents


@pytest.mark.parametrize("views", VIEWS)
def test_each_view_gets_its_own_cut_of_the_canvas(pipe, picture, views):
    seen, _ = run(pipe, views, FileMask(path=picture), Shift())
    assert len(seen.asked) == CALL["num_inference_steps"], "it is asked once a step"
    for (view, canvas, inner, mask), (_, given, patches) in zip(seen.asked, seen.given, strict=True):
        assert view.shape == (canvas.height, canvas.width) == tuple(mask.shape[-2:])
        assert inner == canvas.inner == CELLS
        assert torch.equal(given, torch.stack([each.read(mask) for each in patches.views]))
        put = torch.zeros(canvas.height, canvas.width)
        for number, each in enumerate(patches.views):
            each.write(put, given[number, 0, 0])
        assert torch.equal(put, mask[0, 0]), "together the cuts are the mask"


@pytest.mark.parametrize("views", ["windows", "lattice"])
def test_guidance_of_views_by_a_cut_is_guidance_of_the_canvas_by_the_mask(pipe, picture, views):
    """Moving clean latents is linear and fusion is a mean, so where it is moved alike it comes out alike."""
    pipe = in_double(pipe)
    _, by_views = run(pipe, views, FileMask(path=picture), Shift())
    seen, by_canvas = run(pipe, views, FileMask(path=picture), OnCanvas())
    torch.testing.assert_close(by_views, by_canvas, rtol=1e-3, atol=1e-3)
    assert len(seen.asked) == CALL["num_inference_steps"]
    assert all(torch.equal(given, mask) for (*_, mask), (_, given, _) in zip(seen.asked, seen.given, strict=True))


def test_a_mask_of_the_key_view_is_told_which_view_that_is(pipe):
    seen, _ = run(pipe, "windows", ParameterFreeAttention(), SyncGuidance())
    for (view, canvas, _, mask), (_, given, patches) in zip(seen.asked, seen.given, strict=True):
        assert view == patches.views[patches.key]
        assert isinstance(canvas, Canvas) and view.shape == (NATIVE, NATIVE)
        assert torch.equal(mask, given) and given.ndim == 4


@pytest.mark.parametrize("guidance", [SyncGuidance(scale=0.7), AsyncGuidance(scale=0.7)])
@pytest.mark.parametrize("views", ["windows", "lattice"])
def test_structure_guidance_stays_out_of_where_the_mask_is_black(pipe, tmp_path, views, guidance):
    grey = Image.new("L", (CELLS[1], CELLS[0]), 0)
    grey.save(tmp_path / "black.png")
    grey.paste(255, (0, 0, *grey.size))
    grey.save(tmp_path / "white.png")
    _, black = run(pipe, views, FileMask(path=str(tmp_path / "black.png")), guidance)
    _, white = run(pipe, views, FileMask(path=str(tmp_path / "white.png")), guidance)
    _, off = run(pipe, views, NoMask(), evolve(guidance, scale=0.0))
    _, everywhere = run(pipe, views, NoMask(), guidance)
    assert torch.equal(black, off)
    assert torch.equal(white, everywhere)
    assert not torch.equal(black, white)


def test_every_view_is_corrected_by_its_own_mask():
    subject = make_prediction((3, 1, 4, 6, 6), make_step(2))
    masks = torch.stack([torch.full((1, 1, 6, 6), share) for share in (1.0, 0.0, 0.5)])
    from vitrail.core.engine.guidance_context import GuidanceContext

    guided, _ = SyncGuidance().guide(subject.step, subject, GuidanceContext(key=0, mask=masks), None)
    key = subject.clean[0]
    torch.testing.assert_close(guided.clean[0], key)
    torch.testing.assert_close(guided.clean[1], subject.clean[1])
    torch.testing.assert_close(guided.clean[2], (subject.clean[2] + key) / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ranks", [3])
def test_it_is_the_same_picture_on_several_ranks(pipe, picture, ranks):
    from vitrail.comm.backends.in_process import InProcess
    from vitrail.sampling.sampler import Spread

    stage = Stage(patching=Lattice(), fusion=Scatter(), masking=FileMask(path=picture), guidance=[AsyncGuidance()])
    sampler = Sampler.from_pipeline(pipe, Composition(stages=[stage]))
    alone = sampler("a fox", **CALL).latents

    def program(communicator):
        return sampler.again()("a fox", spread=Spread(communicator=communicator), **CALL).latents

    for latents in InProcess().run(ranks, program):
        assert torch.equal(latents, alone)
