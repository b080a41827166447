"""The bootstrap: against closed forms, for pairs, for prompts, and where there is nothing to say."""

import math

import pytest
import torch
from attrs import evolve, frozen
from scipy import stats

from vitrail.core.method.metric import Column
from vitrail.core.schedule.streams import Streams
from vitrail.experiments.analysis.ranking import best_of, rank
from vitrail.experiments.analysis.resampling import Drawing, draws
from vitrail.experiments.analysis.statistics import Estimate, Sample, difference, sample, widening


@frozen
class Mean:
    def gather(self, features, reference):
        return tuple(features.mean(dim=0).tolist())


@frozen
class Variance:
    def gather(self, features, reference):
        return (features.var(correction=0).item(),)


SHARE = Column(name="share", better="up", lowest=0.0, highest=1.0, is_whole=True)


def normal(count, *index, columns=1):
    return Streams(7).normal((count, columns), "test", *index).double()


def of(metric, features, resamples=400):
    return sample(metric, features, None, resamples)


@pytest.mark.parametrize("count", [3, 4, 8, 32, 200])
def test_widening_is_that_of_student(count):
    exact = stats.t.ppf(0.975, count - 1) / stats.norm.ppf(0.975) * math.sqrt(count / (count - 1))
    assert widening(count) == pytest.approx(exact, rel=0.02 if count < 4 else 0.005)


@pytest.mark.parametrize("count", [8, 50])
def test_interval_of_a_mean_is_about_students(count):
    features = normal(count)
    (found,) = of(Mean(), features, resamples=4000).estimates()
    exact = stats.t.ppf(0.975, count - 1) * features.std().item() / math.sqrt(count)
    assert found.half_width == pytest.approx(exact, rel=0.06)
    assert found.value == pytest.approx(features.mean().item())


def test_intervals_of_eight_pictures_hold_the_truth_as_often_as_they_say():
    """Plain percentile intervals do in about 90 of 100 cases; three standard errors are allowed."""
    features, drawn = normal(8, 1, columns=1000), draws(8, 400)
    value, resampled = features.mean(dim=0), features[drawn].mean(dim=1)
    found = Sample(value=value, resampled=resampled, alone=features, drawing=Drawing.of_each(8)).estimates()
    held = [0 if each.excludes(0.0) else 1 for each in found]
    assert abs(sum(held) / 1000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 1000)


def test_an_interval_lies_around_its_number_where_resampling_is_biased():
    """The variance of a resampled set of 5 is 4/5 of it in the mean, so plain percentiles lie too low."""
    features = normal(5)
    found = of(Variance(), features, resamples=4000)
    assert found.resampled.mean().item() == pytest.approx(0.8 * found.value.item(), rel=0.05)
    torch.testing.assert_close(found.centred.mean(dim=0), found.value)
    (estimate,) = found.estimates()
    assert estimate.low < estimate.value < estimate.high


def test_draws_are_the_same_every_time_and_for_every_set():
    assert torch.equal(draws(12, 5), draws(12, 5))
    assert torch.equal(draws(12, 5), draws(12, 9)[:5])
    assert not torch.equal(draws(12, 5)[0], draws(12, 5)[1])
    assert draws(12, 50).unique().tolist() == list(range(12))


def test_a_constant_difference_is_certain_though_the_numbers_are_not():
    one = normal(10)
    two = one + 0.1
    first, second = of(Mean(), one), of(Mean(), two)
    assert first.estimates()[0].overlaps(second.estimates()[0])
    (difference,) = second.less(first).estimates()
    assert difference.excludes(0.0)
    assert difference.half_width < 1e-12
    assert difference.value == pytest.approx(0.1)


def test_differences_change_sign_with_the_order_and_are_none_of_a_set_from_itself():
    one, two = of(Mean(), normal(10)), of(Mean(), normal(10, 1))
    (there,), (back,) = one.less(two).estimates(), two.less(one).estimates()
    assert there.value == -back.value
    assert there.half_width == pytest.approx(back.half_width, rel=0.1)
    (nothing,) = one.less(one).estimates()
    assert (nothing.value, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    assert not nothing.excludes(0.0)


def test_rounding_is_no_difference():
    one = normal(10) + 100
    (difference,) = of(Mean(), one).less(of(Mean(), one + 1e-5)).estimates()
    assert difference.value == 0.0
    assert not difference.excludes(0.0)


@pytest.mark.parametrize(("count", "resamples"), [(1, 100), (2, 100), (9, 0)])
def test_without_draws_or_pictures_there_is_no_interval(count, resamples):
    (found,) = of(Mean(), normal(count), resamples).estimates()
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.excludes(0.0)
    assert found.count == count


def test_a_column_without_a_number_leaves_the_others_theirs():
    features = normal(6, columns=2)
    features[:, 0] = math.nan
    silent, told = of(Mean(), features).estimates()
    assert math.isnan(silent.value)
    assert math.isnan(silent.low)
    assert told.low < told.value < told.high


def ranked(rows, better="up"):
    column = Column(name="score", better=better)
    return rank({name: of(Mean(), each) for name, each in rows.items()}, 0, column, (64, 64))


def test_tiers_part_rows_only_where_all_are_told_apart():
    base = normal(20)
    rows = {"low": base, "high": base + 1.0, "higher": base + 1.0 + 0.01 * normal(20, 1)}
    assert ranked(rows).tiers == (("high", "higher"), ("low",)) or ranked(rows).tiers == (("higher", "high"), ("low",))
    assert ranked(rows, "down").tiers[0] == ("low",)
    bridge = base + 0.5 + 3 * normal(20, 2)
    assert len(ranked({**rows, "anything": bridge - bridge.mean() + base.mean() + 0.5}).tiers) == 1


def test_shares_of_two_rows_are_one_together():
    rows = {"a": normal(12), "b": normal(12, 1), "c": normal(12)}
    shares = ranked(rows).better
    assert len(shares) == 6
    assert all(shares[one, two] + shares[two, one] == pytest.approx(1.0) for one, two in shares)
    assert shares["a", "c"] == 0.5
    assert ranked(rows, "down").better["a", "b"] == pytest.approx(shares["b", "a"])


def estimate(value, half):
    return Estimate(value=value, low=value - half, high=value + half, count=8)


def test_every_row_that_may_be_the_best_is_one_of_the_best():
    several = [estimate(1.0, 0.1), estimate(2.0, 0.5), estimate(1.8, 0.4), Estimate(value=math.nan)]
    up, down, neither = (Column(name="score", better=better) for better in ("up", "down", "none"))
    assert best_of(several, up) == [False, True, True, False]
    assert best_of(several, down) == [True, False, False, False]
    assert best_of(several, neither) == [False] * 4
    assert best_of(several[:1], up) == [False]
    assert best_of([*several[:2], Estimate(value=0.0)], up) == [False, True, True]  # it may be anything
    assert best_of([Estimate(value=1.0), Estimate(value=2.0), Estimate(value=2.0)], up) == [False] * 3


def test_what_needs_equal_numbers_has_no_best_among_unequal_ones():
    column = Column(name="FID", better="down", needs_equal_counts=True)
    several = [estimate(1.0, 0.1), estimate(2.0, 0.5), Estimate(value=math.nan)]
    assert best_of(several, column) == [True, False, False]
    fewer = [several[0], evolve(several[1], count=7), several[2]]
    assert best_of(fewer, column) == [False] * 3
    assert best_of(fewer, evolve(column, needs_equal_counts=False)) == [True, False, False]


def test_intervals_end_where_a_columns_values_do():
    features = torch.tensor([[1.0], [1], [1], [1], [1], [0]])
    (free,), (share,) = of(Mean(), features).estimates(), of(Mean(), features).estimates([SHARE])
    assert free.high > 1 > free.value
    assert (share.low, share.high, share.value) == (free.low, 1.0, free.value)
    (below,) = of(Mean(), -features).estimates([SHARE])  # a number that rounding puts outside keeps its interval
    assert below.low == below.value < 0 < below.high + 1


def test_a_difference_of_shares_ends_at_one():
    assert (SHARE.of_differences.lowest, SHARE.of_differences.highest) == (-1.0, 1.0)
    one, none = torch.ones(6, 1), torch.tensor([[0.0], [0], [0], [0], [0], [1]])
    found = difference(of(Mean(), one).less(of(Mean(), none)), 0, SHARE)
    assert found.low < found.value < found.high == 1.0
    length = Column(name="length", lowest=0.0)
    assert (length.of_differences.lowest, length.of_differences.highest) == (-math.inf, math.inf)


def test_a_tie_of_shares_counts_half():
    """Of two pairs that differ, one either way, draws tie as often as there are equally many of both."""
    one, two = (torch.tensor(each)[:, None] for each in ([1.0, 0, 1, 1, 0, 0, 1, 1], [0.0, 1, 1, 1, 0, 0, 1, 1]))
    drawn = draws(8, 400)
    up, down = (drawn == 0).sum(dim=1), (drawn == 1).sum(dim=1)
    exact = ((up > down).double() + 0.5 * (up == down).double()).mean().item()
    assert (up == down).double().mean() > 0.2
    shares = ranked({"a": one, "b": two}).better
    assert shares == {("a", "b"): pytest.approx(exact), ("b", "a"): pytest.approx(1 - exact)}


def test_prompts_are_drawn_with_all_their_pictures():
    drawing = Drawing(["fox", "box", "fox", "owl", "box", "fox"])
    assert drawing.clusters == ((0, 2, 5), (1, 4), (3,))
    assert drawing.cluster_of() == [0, 1, 0, 2, 1, 0]
    for drawn in drawing.draws(20):
        counts = drawn.bincount(minlength=6)
        assert counts[0] == counts[2] == counts[5] and counts[1] == counts[4]
        assert counts[[0, 1, 3]].sum() == 3
    each = Drawing(["fox", "box", "owl"])
    assert [drawn.tolist() for drawn in each.draws(5)] == draws(3, 5).tolist()


def test_equal_pictures_of_a_prompt_tell_as_much_as_one():
    """Four copies of eight pictures are no 32 pictures: the interval is that of the eight."""
    features = normal(8)
    (few,) = of(Mean(), features).estimates()
    copies = sample(Mean(), features.repeat(4, 1), None, 400, Drawing([str(number % 8) for number in range(32)]))
    (many,) = copies.estimates()
    assert (many.low, many.high) == (pytest.approx(few.low), pytest.approx(few.high))
    assert (many.count, many.prompts, few.count, few.prompts) == (32, 8, 8, 8)
    (wrong,) = of(Mean(), features.repeat(4, 1)).estimates()
    assert wrong.half_width < 0.6 * many.half_width


def test_intervals_of_pictures_of_prompts_hold_the_truth_as_often_as_they_say():
    """A prompt's four pictures have half of their variance in common; pictures by themselves hold it in 80 of 100."""
    prompts = Drawing([str(number // 4) for number in range(48)])
    features = normal(12, 5, columns=1000).repeat_interleave(4, dim=0) + normal(48, 6, columns=1000)
    held = []
    for drawing in (prompts, Drawing.of_each(48)):
        resampled = torch.stack([features[drawn].mean(dim=0) for drawn in drawing.draws(400)])
        found = Sample(value=features.mean(dim=0), resampled=resampled, alone=features, drawing=drawing).estimates()
        held.append(sum(not each.excludes(0.0) for each in found) / 1000)
    assert abs(held[0] - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 1000)
    assert held[1] < 0.85


def test_two_prompts_are_not_drawn_and_their_pictures_are():
    drawing = Drawing(["fox", "box", "fox", "box"])
    assert drawing.clusters == ((0,), (1,), (2,), (3,))
    assert drawing.kinds == 2
