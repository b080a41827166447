"""What an author of a plugin tests: the contract of each slot, and one law of each class."""

import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from vitrail_example import Center, ClampClean, Colourfulness, PictureMask, Probe

from vitrail.core.engine.guidance_context import GuidanceContext
from vitrail.core.geometry.views import Canvas, Span, View
from vitrail.core.method.metric import Shown
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.core.schedule.prediction import Prediction
from vitrail.errors import ConfigError
from vitrail.testing import check_guidance, check_masking, make_prediction, make_step


def test_contracts():
    check_guidance(ClampClean)
    check_masking(Center)
    check_masking(Center(radius=2.0))


def test_clamping_at_the_full_quantile_changes_no_bit():
    subject = make_prediction((1, 4, 8, 8), make_step(3))
    guided, _ = ClampClean(quantile=1.0).guide(subject.step, subject, GuidanceContext(), None)
    assert torch.equal(guided.model_output, subject.model_output)


def test_clamping_leaves_no_outlier_and_nothing_else_moved():
    subject = make_prediction((1, 4, 16, 16), make_step(3))
    guided, _ = ClampClean(quantile=0.9).guide(subject.step, subject, GuidanceContext(), None)
    limit = subject.clean.abs().flatten(2).quantile(0.9, dim=2)[..., None, None]
    inside = subject.clean.abs() <= limit
    assert (guided.clean.abs() <= limit + 1e-5).all()
    torch.testing.assert_close(guided.clean[inside], subject.clean[inside])


def test_center_is_one_in_the_middle_and_falls_towards_every_border():
    key = make_prediction((2, 4, 9, 15), make_step(0))
    wanted = ModelOutput(key.model_output, view=View(Span(0, 9), Span(0, 15)), canvas=Canvas(9, 15, 8), inner=(9, 15))
    mask, _ = Center(radius=0.7).mask(key.step, key, wanted, None)
    assert mask[0, 0, 4, 7] == 1
    assert mask[0, 0, 0, 0] == 0
    assert torch.equal(mask, mask.flip(-1))
    assert torch.equal(mask, mask.flip(-2))
    assert (mask[..., 7:].diff(dim=-1) <= 0).all()


def test_a_picture_is_a_mask_and_a_missing_one_is_told():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        Image.new("L", (4, 4), 255).save(path)
        check_masking(PictureMask(path=str(path)))
        white = PictureMask(path=str(path)).digest()
        Image.new("L", (4, 4), 0).save(path)
        assert PictureMask(path=str(path)).digest() != white
        path.unlink()
        with pytest.raises(ConfigError, match=r"path: image .*no such file"):
            PictureMask(path=str(path)).check()


def test_a_mask_of_sixteen_bits_below_home_is_as_grey_as_one_of_eight():
    def mask_of(path):
        source, key = PictureMask(path=path), make_prediction((1, 4, 8, 8), make_step(0))
        view = View(Span(0, 8), Span(0, 8))
        source.check()
        wanted = ModelOutput(key.model_output, view=view, canvas=Canvas(8, 8, 8), inner=(8, 8))
        return source.digest(), source.mask(key.step, key, wanted, source.init())[0]

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", folder)
        patch.setenv("USERPROFILE", folder)
        Image.new("L", (4, 4), 77).save(Path(folder) / "eight.png")
        Image.new("I;16", (4, 4), 77 * 257).save(Path(folder) / "sixteen.png")
        (eight, shallow), (sixteen, deep) = mask_of("~/eight.png"), mask_of("~/sixteen.png")
    assert eight != sixteen
    assert torch.equal(shallow, deep)
    assert shallow.unique().item() == pytest.approx(77 / 255)


def test_probe_counts_steps_and_tells_sharp_from_flat():
    probe, step = Probe(), make_step(0, prediction_type="sample")
    flat, noise = torch.ones(1, 4, 8, 8), make_prediction((1, 4, 8, 8), step).model_output
    for output in (flat, noise):
        probe.vitrail_step_end(Prediction(flat, output, step))
    assert probe.steps == 2
    assert probe.sharpness[0] == 0 < probe.sharpness[1]


def test_colour_counts_and_grey_does_not():
    def of(*colour):
        picture = torch.tensor(colour).view(3, 1, 1).expand(3, 8, 8)
        metric = Colourfulness()
        return metric.gather(metric.look(Shown(picture=picture, prompt="", native_size=8))[None], None)[0]

    assert of(0.5, 0.5, 0.5) == 0
    assert 0 < of(0.6, 0.5, 0.5) < of(1.0, 0.0, 0.0)
