"""How views become the canvas: the weights of a geometry, worked out once and without waiting for a device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.core.engine.micro_batches import gather_views, permute_views, restore_order
from vitrail.core.geometry.views import Canvas, Patches, Span, View
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CoverageError
from vitrail.plugins.fusion import averages as fusion
from vitrail.plugins.fusion.averages import Average, Gaussian
from vitrail.plugins.fusion.scatter import Scatter
from vitrail.plugins.patching.lattice import Lattice
from vitrail.plugins.patching.windows import Windows
from vitrail.testing import make_step

STEP = make_step()
CANVAS = Canvas(24, 20, 8)
FUSIONS = [Average(), Gaussian(std=0.2), Gaussian(std=0.02)]


def windows(overlap=0.5):
    return Windows(overlap=overlap).patch(STEP, CANVAS, 4, Streams(0)).canonical().views


def predicted(views, canvas=CANVAS, seed=0, device="cpu"):
    shape = (len(views), 1, 4, *views[0].shape)
    output = Streams(seed).normal(shape, "output").to(device)
    return Prediction(output, output, STEP), Streams(seed).normal((1, 4, canvas.height, canvas.width), "c").to(device)


def by_definition(strategy, views, output, latents):
    """Sum of weighted views over the sum of weights, one view after the other on the canvas's own device."""
    height, width = views[0].shape
    weight = latents.new_ones(height, width)
    if isinstance(strategy, Gaussian):
        columns, rows = (latents.new_tensor(fusion._bell(count, strategy.std)) for count in (height, width))
        weight = columns[:, None] * rows
    total, weights = torch.zeros_like(latents), latents.new_zeros(latents.shape[-2:])
    for view, one in zip(views, output, strict=True):
        view.add_to(total, one * weight)
        view.add_to(weights, weight)
    return total / weights


@pytest.mark.parametrize("strategy", FUSIONS, ids=repr)
@given(seed=st.integers(0, 99))
@settings(max_examples=5)
def test_a_mean_is_that_of_its_definition_whatever_was_fused_before(strategy, seed):
    for views in (
        windows(),
        windows()[:-1] + windows()[-1:],
        Windows(overlap=0.25).patch(STEP, CANVAS, 4, Streams(0)).views,
    ):
        prediction, latents = predicted(views, seed=seed)
        fused = strategy.fuse(STEP, views, prediction, latents)
        assert torch.equal(fused, by_definition(strategy, views, prediction.model_output, latents))


@pytest.mark.parametrize("strategy", FUSIONS, ids=repr)
def test_weights_are_worked_out_once_a_geometry(strategy):
    views = windows()
    prediction, latents = predicted(views)
    strategy.fuse(STEP, views, prediction, latents)
    before = fusion._weights_of.cache_info()
    for seed in (1, 2):
        strategy.fuse(STEP, list(views), predicted(views, seed=seed)[0], latents.clone())
    after = fusion._weights_of.cache_info()
    assert after.misses == before.misses and after.hits == before.hits + 2


@pytest.mark.parametrize("strategy", [*FUSIONS, Scatter()], ids=repr)
def test_fusion_does_not_wait_for_the_device(strategy):
    """A tensor of the meta device has no values that anybody could wait for."""
    lattice = isinstance(strategy, Scatter)
    patching = Lattice() if lattice else Windows(overlap=0.5)
    canvas = Canvas(24, 16, 8)
    views = patching.patch(STEP, canvas, 4, Streams(0)).canonical().views
    prediction, latents = predicted(views, canvas, device="meta")
    fused = strategy.fuse(STEP, views, prediction, latents)
    assert fused.device.type == "meta" and fused.shape == latents.shape


def test_weights_serve_runs_of_every_mode():
    views = windows()
    fusion._weights_of.cache_clear()
    prediction, latents = predicted(views)
    with torch.inference_mode():
        first = Gaussian().fuse(STEP, views, prediction, latents)
    output = prediction.model_output.clone().requires_grad_()
    second = Gaussian().fuse(STEP, views, Prediction(output, output, STEP), latents)
    second.sum().backward()
    assert torch.equal(first, second) and float(output.grad.sum()) > 0


@pytest.mark.parametrize("strategy", FUSIONS, ids=repr)
def test_a_cell_in_no_view_is_refused_every_time(strategy):
    views = [View(Span(0, 8), Span(0, 8)), View(Span(8, 8), Span(8, 8))]
    prediction, _ = predicted(views)
    latents = torch.zeros(1, 4, 16, 16)
    for _ in range(2):
        with pytest.raises(CoverageError, match="128 latent cells lie in no view"):
            strategy.fuse(STEP, views, prediction, latents)


def test_a_permutation_goes_to_where_the_views_are():
    """It is drawn on the CPU, whatever the canvas's device."""
    patches = Lattice(interaction="element", key="extra").patch(STEP, Canvas(16, 16, 8), 4, Streams(0)).canonical()
    assert isinstance(patches, Patches) and patches.permutation is not None
    latents = torch.empty(1, 4, 16, 16, device="meta")
    shown = permute_views(gather_views(latents, patches.views), patches)
    assert shown.device.type == "meta"
    assert restore_order(shown, patches).device.type == "meta"
