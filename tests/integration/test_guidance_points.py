"""Where guidance acts: what it is given at each point, what it may ask, and that doing nothing changes no bit."""

from typing import ClassVar

import pytest
import torch
from attrs import evolve, field, frozen

from tiny import in_double
from vitrail.core.engine.micro_batches import combine_branches
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.cascade import Cascade, Enter
from vitrail.core.method.composition import Composition
from vitrail.core.method.stage import Stage
from vitrail.errors import ConfigError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.patching.whole import Whole
from vitrail.plugins.patching.windows import Windows
from vitrail.sampling.sampler import Sampler

CALL = {"height": 96, "width": 128, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}


@frozen(kw_only=True, eq=False)
class Watch:
    """Hands its subject on, and notes what it saw."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: str = "canvas"
    seen: list = field(factory=list)
    change: object = staticmethod(lambda step, subject, scene: subject)

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        self.seen.append((step, subject, scene))
        return self.change(step, subject, scene), state


def composition(watch, patching=None, cascade=None, **enter):
    kept = {"fusion": Average(), "masking": NoMask()}
    stages = [Stage(patching=patching or Whole(), guidance=[watch] if watch else [], **kept)]
    if cascade is not None:
        stages.append(evolve(stages[0], enter=Enter(**enter)))
    return Composition(stages=stages, cascade=cascade)


def latents(pipe, *given, call=CALL, **options):
    return Sampler.from_pipeline(pipe, composition(*given, **options))("a fox", **call).latents


@pytest.mark.parametrize("point", ["before", "inputs", "branches", "views", "canvas", "after"])
def test_doing_nothing_at_a_point_changes_no_bit(pipe, point):
    watch = Watch(point=point)
    assert torch.equal(latents(pipe, watch), latents(pipe, None))
    assert len(watch.seen) == 3


def test_branches_come_apart_as_they_are_combined(pipe):
    def again(step, subject, scene):
        rows = torch.stack([subject.rows["uncond"], subject.rows["cond"]], dim=1)
        assert torch.equal(subject.combined, combine_branches(rows, subject.guidance_scale))
        assert not torch.equal(subject.rows["uncond"], subject.rows["cond"])
        return evolve(subject, combined=subject.rows["cond"])

    pipe = in_double(pipe)
    only_cond = latents(pipe, Watch(point="branches", change=again), Windows(overlap=0.5))
    off = latents(pipe, None, Windows(overlap=0.5), call=CALL | {"guidance_scale": 1.0})
    torch.testing.assert_close(only_cond, off)


def test_branches_that_are_not_there_cannot_be_combined(pipe):
    with pytest.raises(ConfigError, match="guidance_scale of 1 switches off"):
        latents(pipe, Watch(point="branches"), call=CALL | {"guidance_scale": 1.0})


def test_what_a_views_latents_become_is_what_the_canvas_becomes(pipe):
    """The canvas is fused from the changed views, and they are what the network sees."""
    moved = Watch(point="inputs", change=lambda step, views, scene: views + 0.1)
    as_canvas = Watch(point="before", change=lambda step, canvas, scene: canvas + 0.1)
    pipe, windows = in_double(pipe), Windows(overlap=0.5)
    torch.testing.assert_close(latents(pipe, moved, windows), latents(pipe, as_canvas, windows))


def test_asking_about_the_canvas_gives_its_prediction(pipe):
    def ask(step, prediction, scene):
        scaled = prediction.latents / (step.sigma**2 + 1) ** 0.5
        view = View(Span(0, scene.canvas.height), Span(0, scene.canvas.width))
        torch.testing.assert_close(scene.ask(step, scaled, view), prediction.model_output)
        return prediction

    watch = Watch(point="canvas", change=ask)
    latents(in_double(pipe), watch)
    assert watch.seen


def test_a_further_size_begins_with_the_grown_picture_and_noise(pipe):
    watch = Watch(point="before")
    latents(pipe, watch, cascade=Cascade(), resize="latents")
    firsts = [each for each in watch.seen if each[0].phase == 1]
    step, subject, scene = firsts[0]
    torch.testing.assert_close(subject, scene.start.noised(step), rtol=1e-5, atol=1e-4)
    assert all(scene.start is None for step, _, scene in watch.seen if step.phase == 0)
    assert len({id(scene.start) for _, _, scene in firsts}) == 1
    assert scene.start.clean.shape[-2:] == (scene.canvas.height, scene.canvas.width)


def test_a_result_is_renormalised_to_the_first_one(pipe):
    seen = []
    made = composition(None, cascade=Cascade(), resize="latents", renormalise=True)
    call = CALL | {"callback_on_step_end": lambda s, i, t, k: seen.append(k["latents"].clone())}
    final = Sampler.from_pipeline(pipe, made)("a fox", **call).latents
    torch.testing.assert_close(final.mean(), seen[2].mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(final.std(), seen[2].std(), rtol=1e-4, atol=1e-5)
