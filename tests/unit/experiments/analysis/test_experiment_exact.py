"""The exact test of differences of whole numbers: against the binomial, against counting, and its false alarms."""

import itertools
import math

import pytest
import torch
from scipy import stats
from test_experiment_statistics import SHARE, Mean, of

from vitrail.core.method.metric import Column
from vitrail.core.schedule.streams import Streams
from vitrail.experiments.analysis.resampling import Drawing, draws
from vitrail.experiments.analysis.statistics import LEVEL, Sample, chance, difference


@pytest.mark.parametrize(("more", "less", "alike"), [(3, 0, 3), (6, 0, 0), (7, 1, 2), (20, 9, 0), (4, 4, 1), (0, 5, 9)])
def test_of_shares_it_is_the_sign_test(more, less, alike):
    differences = [1] * more + [-1] * less + [0] * alike
    assert chance(differences) == pytest.approx(stats.binomtest(more, more + less).pvalue)
    assert chance([-each for each in differences]) == chance(differences[::-1]) == chance(differences)


@pytest.mark.parametrize("differences", [[3, -1, 0, 2, 2], [1, 1, -2], [5], [4, 4, -1, 2, 0, -3, 1]])
def test_of_counts_it_counts_all_signs(differences):
    signs = list(itertools.product((-1, 1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(sign, differences, strict=True))) for sign in signs]
    assert chance(differences) == sum(each >= abs(sum(differences)) for each in sums) / len(signs)


def test_without_differences_all_is_chance():
    assert chance([]) == chance([0, 0, 0]) == 1.0


def test_differences_of_a_cluster_have_one_sign():
    assert chance([1, 1, 1, 1], "aabb") == chance([2, 2]) == 0.5
    assert chance([1, -1, 3], "aab") == chance([3]) == 1.0
    assert chance([1, 2, 3], "abc") == chance([1, 2, 3])


def shares_of(one, two, drawing=None):
    first, second = (of(Mean(), torch.tensor(each, dtype=torch.float32)[:, None]) for each in (one, two))
    return first.less(second)


def test_three_of_six_pairs_exclude_zero_and_tell_nothing():
    less = shares_of([1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 0])
    plain, share = difference(less, 0, Column(name="plain")), difference(less, 0, SHARE)
    assert plain.excludes(0.0) and plain.is_sure and plain.chance is None
    assert share.excludes(0.0) and not share.is_sure
    assert share.chance == 0.25


def test_pairs_that_all_differ_alike_are_no_proof_if_they_are_few():
    """Their interval has no length, so the bootstrap alone is sure of three."""
    assert not difference(shares_of([1] * 5, [0] * 5), 0, SHARE).is_sure  # 2 in 32
    assert difference(shares_of([1] * 6, [0] * 6), 0, SHARE).is_sure  # 2 in 64


def false_alarms(count, often, cases=600, copies=1):
    """Shares of cases in which two rows of one distribution are told apart, with the exact test and without it."""
    generator = Streams(11).generator("binary", count)
    one, two = (torch.rand(2, count, cases, generator=generator) < often).double().repeat_interleave(copies, dim=1)
    drawing = Drawing([str(number // copies) for number in range(copies * count)])
    features, drawn = one - two, torch.stack(list(drawing.draws(200)))
    less = Sample(value=features.mean(dim=0), resampled=features[drawn].mean(dim=1), alone=features, drawing=drawing)
    found = [difference(less, index, SHARE) for index in range(cases)]
    return tuple(sum(each) / cases for each in zip(*((f.is_sure, f.excludes(0.0)) for f in found), strict=True))


@pytest.mark.parametrize(("count", "often", "copies"), [(6, 0.5, 1), (10, 0.2, 1), (24, 0.9, 1), (8, 0.5, 3)])
def test_equal_shares_are_told_apart_no_more_often_than_the_level_says(count, often, copies):
    noise = 3 * math.sqrt(LEVEL * (1 - LEVEL) / 600)
    tested, _ = false_alarms(count, often, copies=copies)
    assert tested <= 1 - LEVEL + noise


def test_without_the_test_there_would_be_too_many_false_alarms():
    noise = 3 * math.sqrt(LEVEL * (1 - LEVEL) / 600)
    tested, plain = false_alarms(10, 0.5)
    assert plain > 1 - LEVEL + noise > tested


def test_what_differs_is_told_apart():
    generator = Streams(12).generator("binary")
    one, two = (torch.rand(2, 40, 1, generator=generator) < torch.tensor([0.9, 0.3])[:, None, None]).double()
    value, drawn = one - two, draws(40, 200)
    drawing = Drawing.of_each(40)
    less = Sample(value=value.mean(dim=0), resampled=value[drawn].mean(dim=1), alone=value, drawing=drawing)
    assert difference(less, 0, SHARE).is_sure
