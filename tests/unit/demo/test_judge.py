"""The judge counts and names what was drawn, at every size."""

import copy
from pathlib import Path

import pytest
import torch
from attrs import evolve
from torch import Generator

from vitrail.demo.backgrounds import BACKGROUNDS
from vitrail.demo.judge import Judge, keep_best
from vitrail.demo.scenes import OBJECTS, Placement, Scene, render
from vitrail.errors import ModelError, ShapeError

THREE = (
    Placement("fox", 0.4, 0.3, 0.3),
    Placement("red-apple", 0.2, 0.75, 0.3),
    Placement("rocket", 0.3, 0.6, 0.75),
)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def picture(background: str, placements: tuple[Placement, ...], side: int) -> torch.Tensor:
    return render(Scene(background, placements), side, side, Generator().manual_seed(3))


def test_classes_are_the_objects_of_the_scenes(judge: Judge) -> None:
    assert judge.config.classes == OBJECTS


@pytest.mark.parametrize("side", [128, 256, 512])
def test_every_object_is_found_where_it_was_drawn(judge: Judge, side: int) -> None:
    found = {d.name: d for d in judge.detect(picture("meadow", THREE, side))}
    assert sorted(found) == sorted(p.name for p in THREE)
    for placement in THREE:
        detection = found[placement.name]
        length = placement.size * side
        assert detection.size == pytest.approx(length, rel=0.2)
        assert detection.center_y == pytest.approx(placement.center_y * side, abs=0.1 * length)
        assert detection.center_x == pytest.approx(placement.center_x * side, abs=0.1 * length)


@pytest.mark.parametrize("size", [0.1, 0.3, 0.6, 1.0, 1.3])
def test_one_object_counts_once_at_any_size(judge: Judge, size: float) -> None:
    found = judge.detect(picture("beach", (Placement("panda", size, 0.5, 0.5),), 128))
    assert [d.name for d in found] == ["panda"]


def test_every_class_is_told_apart(judge: Judge) -> None:
    spots = [Placement(name, 0.22, 0.14 + i // 4 * 0.24, 0.14 + i % 4 * 0.24) for i, name in enumerate(OBJECTS)]
    assert sorted(d.name for d in judge.detect(picture("snow", tuple(spots), 192))) == list(OBJECTS)


def test_equal_objects_are_counted_each(judge: Judge) -> None:
    spots = tuple(Placement("cat", 0.2, y, x) for y in (0.2, 0.5, 0.8) for x in (0.2, 0.5, 0.8))
    assert [d.name for d in judge.detect(picture("table", spots, 128))] == ["cat"] * 9


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_bare_background_holds_nothing(judge: Judge, background: str) -> None:
    assert judge.detect(picture(background, (), 128)) == ()


def test_a_wide_picture_is_judged_as_well(judge: Judge) -> None:
    wide = torch.cat([picture("sky", THREE[:1], 128), picture("sky", THREE[2:], 128)], dim=2)
    assert sorted(d.name for d in judge.detect(wide)) == ["fox", "rocket"]


def test_detections_come_surest_first_and_above_the_threshold(judge: Judge) -> None:
    scores = [d.score for d in judge.detect(picture("night", THREE, 128))]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > judge.config.threshold


@pytest.mark.parametrize("side", [128, 200])
def test_features_are_one_finite_row_a_picture(judge: Judge, side: int) -> None:
    pictures = torch.stack([picture("beach", THREE, side), picture("night", (), side)])
    features = judge.features(pictures)
    assert features.shape == (2, 2 * judge.config.num_features)
    assert features.isfinite().all()
    exact, pictures = evolve(judge, network=copy.deepcopy(judge.network).double()), pictures.double()
    torch.testing.assert_close(exact.features(pictures)[1:], exact.features(pictures[1:]))


def test_suppression_keeps_one_of_equals_and_all_that_are_apart() -> None:
    score, size = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([10.0, 12.0, 10.0])
    center = torch.tensor([20.0, 21.0, 40.0])
    assert keep_best(score, size, center, torch.zeros(3)) == [0, 2]
    assert keep_best(score[:0], size[:0], center[:0], center[:0]) == []


def test_a_part_of_an_object_is_not_counted() -> None:
    score, size = torch.tensor([0.9, 0.6]), torch.tensor([100.0, 12.0])
    assert keep_best(score, size, torch.tensor([60.0, 15.0]), torch.tensor([60.0, 40.0])) == [0]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        Judge.load(tmp_path)


def test_a_picture_of_another_shape_is_refused(judge: Judge) -> None:
    with pytest.raises(ShapeError, match=r"\(1, 3, 8, 8\)"):
        judge.detect(torch.zeros(1, 3, 8, 8))
