"""Meters of single pictures rise with what is planted, and with nothing else."""

import itertools
import math

import pytest
import torch
from attrs import evolve
from torch import Generator

from vitrail.core.method.metric import Shown
from vitrail.demo.scenes import OBJECTS, Placement, Scene, render
from vitrail.errors import ConfigError
from vitrail.metrics.colour_shift import ColourShift
from vitrail.metrics.objects import Objects, subject_of
from vitrail.metrics.renders import DemoRenders
from vitrail.metrics.repetition import Repetition, sides_of_tiles, starts
from vitrail.metrics.seams import FAINT, Seams
from vitrail.metrics.sharpness import Sharpness

FIELD = ("meadow", "snow", "night", "bricks")


def shown(picture, prompt="", native_size=128, **borders):
    return Shown(picture=picture, prompt=prompt, native_size=native_size, **borders)


def drawn(spots, side=256, background="snow", name="fox"):
    """Equal objects: (size, y, x)."""
    scene = Scene(background, [Placement(name, *spot) for spot in spots])
    return shown(render(scene, side, side, Generator().manual_seed(3)), scene.caption)


FOUR = [(0.4, y, x) for y in (0.25, 0.75) for x in (0.25, 0.75)]
ONE = [(0.7, 0.5, 0.5)]

# ---------------------------------------------------------------- objects


def test_objects_are_counted_and_named():
    features = torch.stack([Objects().look(each) for each in (drawn(ONE), drawn(FOUR), drawn([]))])
    assert features[:, 0].tolist() == [1, 4, 0]
    assert features[:2, 1].tolist() == [1, 1] and features[2].isnan().tolist() == [False, True]
    assert Objects().gather(features, None) == pytest.approx((1 / 3, 5 / 3, 1.0))
    wrong = Objects().look(evolve(drawn(ONE), prompt="a red apple on a snow field"))
    assert wrong.tolist() == [1, 0]
    missing = Objects().look(evolve(drawn([]), prompt="a fox"))
    assert missing.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("A Red  Apple on a table", "red-apple"),
        ("a photo of a cat, a dog behind it", "cat"),
        ("a catalogue", None),
        ("a snow field", None),
        ("", None),
    ],
)
def test_the_subject_is_the_first_object_that_is_spoken_of(prompt, subject):
    assert subject_of(prompt, OBJECTS) == subject


def test_every_object_is_found_in_its_own_caption():
    assert [subject_of(Scene("beach", [Placement(name, 0.5, 0.5, 0.5)]).caption, OBJECTS) for name in OBJECTS] == [
        *OBJECTS
    ]


# ---------------------------------------------------------------- sharpness


def test_sharpness_is_the_closed_form_of_a_wave():
    """A plane wave's Laplacian is itself times 4 - 2 cos a - 2 cos b, up to the mean of its size."""
    rows, columns = torch.meshgrid(torch.arange(300.0), torch.arange(300.0), indexing="ij")
    for a, b in ((0.1, 0.3), (1.0, 0.0)):
        wave = (a * rows + b * columns).sin()
        found = Sharpness().look(shown((0.5 + 0.25 * wave).expand(3, -1, -1)))
        factor = 4 - 2 * math.cos(a) - 2 * math.cos(b)
        assert found.item() == pytest.approx(255 * 0.25 * factor * wave[1:-1, 1:-1].abs().mean().item(), rel=1e-3)


def test_boxes_tell_objects_from_background():
    boxes = Sharpness(boxes="judge")
    plain = torch.full((3, 256, 256), 0.75)
    scene = drawn(ONE, background="snow")
    assert boxes.look(shown(plain)).isnan().tolist() == [False, True]
    noisy = scene.picture.clone()
    noisy[:, :20] += 0.1 * torch.rand(3, 20, 256, generator=Generator().manual_seed(0))
    before, after = boxes.look(scene), boxes.look(shown(noisy))
    assert after[0] > 1.2 * before[0] and after[1] == pytest.approx(before[1].item(), rel=0.05)
    assert boxes.gather(torch.stack([before, torch.tensor([1.0, math.nan])]), None)[1] == pytest.approx(
        before[1].item()
    )


# ---------------------------------------------------------------- colour


def test_colour_shift_is_the_shift():
    pictures = torch.rand(4, 3, 40, 50, generator=Generator().manual_seed(0)) / 2
    metric = ColourShift()
    true = torch.stack([metric.look(shown(each)) for each in pictures])
    moved = torch.stack(
        [metric.look(shown(each + torch.tensor([3.0, 0, -3]).view(3, 1, 1) / 255)) for each in pictures]
    )
    assert metric.gather(true, true) == pytest.approx((0, 0), abs=1e-4)
    assert metric.gather(moved, true) == pytest.approx((math.sqrt(6), 0), abs=1e-3)
    stretched = torch.stack([metric.look(shown(1.5 * each)) for each in pictures])
    assert metric.gather(stretched, true)[1] == pytest.approx(0.5 * true[:, 3].mean().item(), rel=1e-4)
    assert metric.gather(true[[0, 0, 1, 1, 2, 2, 3, 3]], true) == pytest.approx((0, 0), abs=1e-4)


# ---------------------------------------------------------------- seams


@pytest.fixture(scope="module")
def true():
    return [evolve(each, native_size=64) for each in DemoRenders(count=24, seed=3).pictures(192, 128)]


def seamed(each, step):
    """Every second block of 64 pixels is lighter."""
    picture = each.picture.clone()
    picture[:, 64:128] += step / 255
    picture[:, :, 64:] += step / 255
    return evolve(each, picture=picture, rows=(64, 128), columns=(64,))


def gathered(metric, pictures):
    return metric.gather(torch.stack([metric.look(each) for each in pictures]), None)[0]


@pytest.mark.parametrize("width", [1, 2])
def test_seams_rise_with_the_step(true, width):
    metric = Seams(width=width)
    found = [gathered(metric, [seamed(each, step) for each in true]) for step in (0, 1, 2, 4, 8, 16)]
    assert found == sorted(found)
    assert 0.75 < found[0] < 1.25
    assert found[-1] > 2.5


def test_seams_of_a_step_in_a_flat_picture_are_the_closed_form():
    flat = seamed(shown(torch.full((3, 192, 128), 0.5)), 4)
    assert Seams().look(flat).item() == pytest.approx(math.log((4 / 255 + FAINT) / FAINT), rel=1e-4)


def test_seams_are_looked_for_where_the_borders_are(true):
    elsewhere = [evolve(seamed(each, 16), rows=(30,), columns=(30,)) for each in true]
    assert gathered(Seams(), elsewhere) < 1.3
    nowhere = [evolve(seamed(each, 16), rows=(), columns=()) for each in true]
    assert math.isnan(gathered(Seams(), nowhere))
    assert gathered(Seams(grid=True), nowhere) == gathered(Seams(), [seamed(each, 16) for each in true])


def test_seams_know_no_orientation_and_no_borders_at_edges(true):
    each = seamed(true[0], 4)
    turned = evolve(each, picture=each.picture.mT, rows=each.columns, columns=each.rows)
    assert Seams().look(turned).item() == pytest.approx(Seams().look(each).item(), abs=1e-5)
    assert Seams().look(evolve(each, rows=(0, 64, 128, 192, 400))).item() == Seams().look(each).item()


# ---------------------------------------------------------------- repetition


@pytest.mark.parametrize("background", FIELD)
def test_repetition_rises_with_copies_and_not_with_the_background(background):
    nothing, one, four = (Repetition().look(drawn(spots, background=background)) for spots in ([], ONE, FOUR))
    assert nothing[0] < 0.05
    assert four[0] > one[0] + 0.2 and four[1] > one[1]
    assert four[1] < four[0] <= 1


def test_different_objects_do_not_repeat():
    spots = [Placement(name, *spot) for name, spot in zip(("fox", "rocket", "pizza", "frog"), FOUR, strict=True)]
    picture = render(Scene("snow", spots), 256, 256, Generator().manual_seed(3))
    assert Repetition().look(shown(picture))[0] < 0.5 * Repetition().look(drawn(FOUR))[0]


def test_pictures_of_one_tile_say_nothing():
    features = torch.stack(
        [Repetition().look(drawn(spots, side=side)) for spots, side in ((ONE, 128), (ONE, 250), (FOUR, 256))]
    )
    assert features[:2].isnan().all()
    assert Repetition().gather(features, None) == pytest.approx(tuple(features[2].tolist()))


@pytest.mark.parametrize(
    ("side", "longer", "sides"),
    [
        (128, 255, []),
        (128, 256, [128]),
        (128, 257, [128]),
        (128, 384, [128, 192]),
        (128, 512, [128, 256]),
        (64, 600, [64, 128, 256, 300]),
    ],
)
def test_tiles_grow_to_half_the_picture(side, longer, sides):
    assert sides_of_tiles(side, longer) == sides


@pytest.mark.parametrize(("length", "side"), [(128, 128), (100, 128), (129, 128), (256, 128), (333, 100), (1000, 64)])
def test_tiles_cover_and_overlap_by_half(length, side):
    found = starts(length, side)
    assert found[0] == 0 and found[-1] == max(0, length - side)
    assert all(0 < after - before <= side / 2 + 1 for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("metric", [Repetition(), Seams(grid=True)], ids=lambda metric: type(metric).__name__)
def test_a_picture_of_no_known_model_is_refused_where_its_training_size_counts(metric):
    shown = Shown(picture=torch.zeros(3, 64, 64), prompt="", native_size=0)
    with pytest.raises(ConfigError, match="has no training size: "):
        metric.look(shown)
