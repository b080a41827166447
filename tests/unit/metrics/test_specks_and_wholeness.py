"""Stray pieces and whole objects: what is planted is seen, and what is sound is not."""

import math

import pytest
import torch

from plant_damage import draw, missing, mixed, soft, specks
from vitrail.core.method.metric import Shown
from vitrail.core.schedule.streams import Streams
from vitrail.demo.backgrounds import BACKGROUNDS
from vitrail.demo.scenes import Placement, Scene
from vitrail.metrics.foreground import background_of, pieces, unlikeness
from vitrail.metrics.specks import Specks
from vitrail.metrics.sprite_match import match_of
from vitrail.metrics.wholeness import Wholeness

SIDE = 192
NEAR_THE_CORNER = Placement("fox", 0.5, 0.35, 0.35)


def chance(*index):
    return Streams(5).generator("test", *index)


def drawn(background="table", placement=NEAR_THE_CORNER, side=SIDE):
    return draw(Scene(background, (placement,)), side, chance(0))


def shown(picture, caption):
    return Shown(picture=picture, prompt=caption, native_size=128)


def strays(picture, caption):
    return float(Specks().look(shown(picture, caption)))


def wholeness(picture, caption):
    return Wholeness().look(shown(picture, caption)).tolist()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_differ_from_their_kind_nowhere(background):
    picture = BACKGROUNDS[background].draw(SIDE, SIDE, chance(1)).clamp(0, 1)
    assert not pieces(unlikeness(shown(picture, BACKGROUNDS[background].alone)))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_sound_picture_has_no_specks_and_a_whole_object(background):
    each = drawn(background)
    assert strays(each.picture, each.scene.caption) == 0
    whole, edges = wholeness(each.picture, each.scene.caption)
    assert whole > 0.8 and edges < 0.25


@pytest.mark.parametrize("background", ["table", "night", "bricks"])
@pytest.mark.parametrize("count", [1, 3])
def test_specks_are_counted(background, count):
    each = drawn(background)
    picture, spots = each.picture, [(0.85, 0.15), (0.85, 0.5), (0.2, 0.85)]
    for y, x in spots[:count]:
        rows, columns = (slice(round(c * SIDE) - 5, round(c * SIDE) + 5) for c in (y, x))
        picture = picture.clone()
        picture[:, rows, columns] = torch.tensor([0.1, 0.9, 0.3]).view(3, 1, 1)
    assert strays(picture, each.scene.caption) == count


def test_a_planted_piece_lies_beside_the_object():
    each = drawn()
    changed = (specks(each, 0.06, chance(2)) - each.picture).abs().amax(dim=0) > 0
    assert changed.any() and not (changed & (each.opacity > 0)).any()
    assert torch.equal(specks(each, 0.0, chance(2)), each.picture)


def test_the_more_is_missing_the_less_is_whole():
    each = drawn()
    found = [wholeness(missing(each, share, chance(3)), each.scene.caption)[0] for share in (0.0, 0.15, 0.3)]
    assert found == sorted(found, reverse=True) and len(set(found)) == 3


def test_a_foreign_part_is_none_of_the_object():
    each = drawn()
    sound, wrong = (wholeness(mixed(each, share, chance(4)), each.scene.caption)[0] for share in (0.0, 0.4))
    assert wrong < sound


def test_the_softer_the_further_from_the_true_edges():
    each = drawn()
    found = [wholeness(soft(each, width, chance(5)), each.scene.caption)[1] for width in (0.0, 0.004, 0.012)]
    assert found == sorted(found) and len(set(found)) == 3


def test_the_place_is_that_of_the_drawing():
    each = drawn()
    match = match_of(shown(each.picture, each.scene.caption))
    assert match.name == "fox"
    assert match.size == pytest.approx(0.5 * SIDE, rel=0.1)
    assert (match.center_y, match.center_x) == pytest.approx((0.35 * SIDE, 0.35 * SIDE), abs=0.04 * SIDE)


def test_what_lies_outside_the_drawn_world_is_not_judged():
    picture = drawn().picture
    assert math.isnan(strays(picture, "a fox in a canyon"))
    assert all(map(math.isnan, wholeness(picture, "a canyon on a beach")))


def test_an_object_that_is_not_there_is_not_whole():
    bare = drawn().bare
    whole, edges = wholeness(bare, "a fox on a wooden table")
    assert whole == 0 and math.isnan(edges)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a fox under a night  sky", "night"),
        ("A Night Sky", "night"),
        ("a fox in a blue sky", "sky"),
        ("a skyscraper", None),
        ("", None),
    ],
)
def test_the_background_is_read_from_the_prompt(prompt, name):
    assert background_of(prompt) == name


def test_pieces_are_connected_at_corners_and_have_a_sure_cell():
    distance = torch.zeros(9, 12)
    distance[1, 1:5] = distance[2, 5] = distance[3, 6] = 0.15  # a bar and its diagonal
    distance[3, 6] = 0.3
    distance[7, 8:11] = 0.15  # fair, and never sure
    distance[6, 0] = 0.9
    found = pieces(distance)
    assert [int(piece.sum()) for piece in found] == [6, 1]
    assert found[0][1, 1] and found[0][3, 6] and found[1][6, 0]


def test_a_snake_is_one_piece():
    distance = torch.zeros(31, 31)
    distance[::2] = 1
    distance[1::4, -1] = distance[3::4, 0] = 1
    (piece,) = pieces(distance)
    assert torch.equal(piece, distance > 0)
    assert len(pieces(distance.T)) == 1
