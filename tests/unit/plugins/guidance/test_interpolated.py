"""``interpolated``: a view follows the key view at its own places, so the canvas is the key view enlarged."""

import pytest
import torch

from vitrail.core.config.loader import Loader
from vitrail.core.engine.guidance_context import GuidanceContext
from vitrail.core.geometry.views import Canvas, Patches
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError, ShapeError
from vitrail.plugins.guidance.interpolated import Interpolated, at_places
from vitrail.plugins.patching.lattice import lattice_views
from vitrail.plugins.patching.windows import Windows
from vitrail.sampling.discovery import registry
from vitrail.testing import make_prediction, make_step

DOWN, RIGHT, SIDE = 4, 3, 8


def canvas(wrap="none"):
    return Canvas(DOWN * SIDE, RIGHT * SIDE, SIDE, wrap=wrap)


def interleaved(views, values):
    """The canvas whose views have these values, Float32[Tensor, "batch channels height width"]."""
    whole = values.new_zeros(*values.shape[1:3], DOWN * SIDE, RIGHT * SIDE)
    for view, own in zip(views, values, strict=True):
        view.write(whole, own)
    return whole


def test_what_rises_evenly_is_read_exactly_at_every_cell():
    views = lattice_views(canvas(), DOWN, RIGHT)
    y, x = torch.meshgrid(torch.arange(DOWN * SIDE), torch.arange(RIGHT * SIDE), indexing="ij")
    slope = (2.0 * y - 0.5 * x + 1)[None, None]
    read = interleaved(views, at_places(views[0].read(slope), views, 0))
    inside = (..., slice(DOWN * (SIDE - 1) + 1), slice(RIGHT * (SIDE - 1) + 1))
    torch.testing.assert_close(read[inside], slope[inside])


def test_beyond_its_last_cell_the_key_view_goes_on():
    views, key = lattice_views(canvas(), DOWN, RIGHT), torch.randn(2, 3, SIDE, SIDE)
    read = interleaved(views, at_places(key, views, 0))
    last = read[..., DOWN * (SIDE - 1) :, RIGHT * (SIDE - 1) :]
    assert torch.equal(last, key[..., -1:, -1:].expand_as(last))


@pytest.mark.parametrize("axis", [-2, -1])
def test_where_ends_meet_no_place_is_special(axis):
    views, key = lattice_views(canvas("xy"), DOWN, RIGHT), torch.randn(1, 4, SIDE, SIDE)
    assert torch.equal(at_places(key.roll(3, axis), views, 0), at_places(key, views, 0).roll(3, axis))


def test_reading_back_from_any_view_is_reading_between_the_others():
    """Whichever view is the key: what rises evenly is read exactly before its cells, too."""
    views = lattice_views(canvas(), DOWN, RIGHT)
    slope = torch.arange(float(DOWN * SIDE))[None, None, :, None].expand(1, 1, -1, RIGHT * SIDE).contiguous()
    for key in (1, 5, len(views) - 1):
        read = interleaved(views, at_places(views[key].read(slope), views, key))
        inside = (..., slice(DOWN, DOWN * (SIDE - 1)), slice(None))
        torch.testing.assert_close(read[inside], slope[inside])


def guided(strategy, mask=None, where=None):
    where = where or canvas()
    step = make_step(2)
    views = lattice_views(where, DOWN, RIGHT)
    subject = make_prediction((len(views), 1, 4, SIDE, SIDE), step)
    scene = GuidanceContext(point="views", key=0, mask=mask, patches=Patches(views), canvas=where)
    return views, subject, strategy.guide(step, subject, scene, None)[0]


def test_at_full_weight_every_view_shows_the_key_view():
    views, subject, moved = guided(Interpolated())
    torch.testing.assert_close(moved.clean, at_places(subject.clean[0], views, 0), rtol=1e-4, atol=1e-4)
    assert torch.equal(moved.clean[0], subject.clean[0])


def test_it_acts_where_the_mask_is_between_the_cells_as_well():
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., :4, :] = 1
    views, subject, moved = guided(Interpolated(scale=2.0), mask)
    changed = interleaved(views, (moved.clean - subject.clean).abs()).amax(dim=(0, 1, 3)) > 1e-6
    first_without = DOWN * 4
    assert changed[: first_without - DOWN].all() and not changed[first_without:].any()


@pytest.mark.parametrize("strategy", [Interpolated(scale=0.0), Interpolated()])
def test_it_changes_no_bit_where_it_is_off(strategy):
    mask = torch.zeros(1, 1, SIDE, SIDE) if strategy.scale else None
    _, subject, moved = guided(strategy, mask)
    torch.testing.assert_close(moved.clean, subject.clean, rtol=0, atol=1e-6)
    assert strategy.scale or moved is subject


def test_windows_are_refused_with_the_way_out():
    tables = {"stages": [{"patching": "windows", "guidance": ["interpolated"], "fusion": "average"}]}
    with pytest.raises(ConfigError, match=r"stages\.0: Interpolated reads the key view between its cells.*\"sync\""):
        Loader(registry()).structure(tables, Composition, "test")
    windows = Windows().patch(make_step(), Canvas(32, 32, 16), 4, None).views
    with pytest.raises(ShapeError, match="does not lie between the cells"):
        at_places(torch.zeros(1, 4, 16, 16), windows, 0)


def test_the_canvas_is_the_key_view_enlarged():
    """Corner cells aligned: each of the key's cells stays where it is, and midpoints are means."""
    views, subject, moved = guided(Interpolated())
    clean = interleaved(views, moved.clean)
    key = subject.clean[0]
    torch.testing.assert_close(clean[..., ::DOWN, ::RIGHT], key, rtol=1e-4, atol=1e-4)
    half = (key[..., :-1, :] + key[..., 1:, :]) / 2
    torch.testing.assert_close(clean[..., DOWN // 2 : -DOWN : DOWN, ::RIGHT], half, rtol=1e-4, atol=1e-4)
