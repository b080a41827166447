"""Guidance by the picture of the size before: what it moves, where, and what it leaves."""

import pytest
import torch
import torch.nn.functional as F
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from vitrail.core.engine.guidance_context import GuidanceContext, Start
from vitrail.core.geometry.views import Canvas
from vitrail.core.schedule.streams import Streams
from vitrail.plugins.guidance.anchored import Anchored, coarse
from vitrail.testing import PREDICTION_TYPES, make_prediction, make_step

SHAPE = (1, 4, 10, 13)
FLAT = Canvas(10, 13, 8)
KINDS = st.sampled_from(PREDICTION_TYPES)


def subject_at(kind="epsilon", index=2):
    return make_prediction(SHAPE, make_step(index, prediction_type=kind))


def scene(mask=None):
    clean, noise = (Streams(5).normal(SHAPE, name) for name in ("clean", "noise"))
    return GuidanceContext(mask=mask, start=Start(clean, noise), canvas=FLAT)


def guided(around, subject, **options):
    return Anchored(**options).guide(subject.step, subject, around, None)[0]


@given(KINDS, st.integers(1, 4))
def test_nothing_to_do_changes_no_bit(kind, block):
    subject = subject_at(kind)
    assert guided(scene(), subject, scale=0.0, block=block) is subject
    assert guided(GuidanceContext(), subject, block=block) is subject
    masked = guided(scene(torch.zeros(1, 1, *SHAPE[-2:])), subject, block=block)
    assert torch.equal(masked.model_output, subject.model_output)


@given(KINDS)
def test_full_weight_on_single_cells_is_the_grown_picture(kind):
    subject, around = subject_at(kind), scene()
    full = guided(around, subject, ramp="constant", block=1)
    torch.testing.assert_close(full.clean, around.start.clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("block", [2, 3, 5])
def test_what_differs_by_fine_detail_alone_stays(block):
    """Where the difference sums to nothing in every block, there is nothing coarse to follow."""
    difference = torch.zeros(SHAPE)
    height, width = (block * (side // block) for side in SHAPE[-2:])
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    once = ((rows % block == 0) & (cols % block == 0)).float() - ((rows % block == 1) & (cols % block == 0)).float()
    difference[..., :height, :width] = once
    assert coarse(difference, block, FLAT).abs().max() < 1e-6
    assert coarse(torch.full(SHAPE, 3.0), block, FLAT).sub(3).abs().max() < 1e-6


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_it_is_the_means_of_blocks_with_lines_between_them(block):
    own = Streams(1).normal(SHAPE, "own")
    means = F.avg_pool2d(own, block, ceil_mode=True, count_include_pad=False)
    assert torch.equal(coarse(own, block, FLAT), F.interpolate(means, SHAPE[-2:], mode="bilinear"))


@pytest.mark.parametrize(("wrap", "meets"), [("x", (False, True)), ("y", (True, False)), ("xy", (True, True))])
def test_where_edges_meet_a_rolled_picture_has_a_rolled_coarse_part(wrap, meets):
    own, edged = Streams(1).normal((1, 4, 12, 15), "own").double(), Canvas(12, 15, 8)
    rolls = tuple(roll * one for roll, one in zip((3, 6), meets, strict=True))
    ring = evolve(edged, wrap=wrap)
    rolled = coarse(own.roll(rolls, (-2, -1)), 3, ring)
    torch.testing.assert_close(rolled, coarse(own, 3, ring).roll(rolls, (-2, -1)))
    assert (coarse(own, 3, ring) - coarse(own, 3, edged)).abs().max() > 0.01
    torch.testing.assert_close(coarse(own, 3, ring)[..., 2:-2, 2:-2], coarse(own, 3, edged)[..., 2:-2, 2:-2])


@pytest.mark.parametrize("wrap", ["none", "xy"])
def test_guidance_goes_by_the_edges_of_its_canvas(wrap):
    subject, around = subject_at(), scene()
    canvas = evolve(FLAT, wrap=wrap)
    moved = guided(evolve(around, canvas=canvas), subject, ramp="constant").clean - subject.clean
    expected = coarse(around.start.clean - subject.clean, 2, canvas)
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)


def test_it_acts_where_the_mask_is_and_a_little_elsewhere():
    mask = torch.zeros(1, 1, *SHAPE[-2:])
    mask[..., :6] = 1.0
    subject, around = subject_at(), scene(mask)
    whole = guided(evolve(around, mask=None), subject, ramp="constant").clean - subject.clean
    moved = guided(around, subject, ramp="constant", elsewhere=0.25).clean - subject.clean
    torch.testing.assert_close(moved, whole * (0.25 + 0.75 * mask), rtol=1e-3, atol=1e-4)


def test_it_fades_over_the_stage():
    moves = []
    for index in range(6):
        subject = make_prediction(SHAPE, make_step(2, stage_step=index, stage_num_steps=6))
        moves.append((guided(scene(), subject).clean - subject.clean).abs().mean().item())
    assert moves == sorted(moves, reverse=True) and moves[-1] < 0.2 * moves[0]
