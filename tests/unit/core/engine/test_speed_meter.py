"""Measured speeds: one vector for all ranks, deaf to noise, and new when a rank has become another."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from vitrail.comm.trace.recording import Recorder
from vitrail.core.config.log import EVENTS
from vitrail.core.engine.speed_meter import ALIKE, RECENT, SpeedMeter, agreed_speeds
from vitrail.core.method.micro_batch import MicroBatch
from vitrail.core.schedule.step import Step

MEASURED = st.lists(st.integers(1, 10**9), min_size=1, max_size=6)


def rows_of(count, capture=()):
    return MicroBatch(torch.zeros(count, 4, 8, 8), ["cond"] * count, [None] * count, capture)


def step_of(index):
    place = {"index": index, "num_steps": 50, "stage": 0, "stage_step": index, "stage_num_steps": 50}
    return Step(timestep=1.0, alpha=1.0, sigma=1.0, prediction_type="epsilon", **place)


def told(*rates):
    """A rank that has measured these rows per second, after one forward that warmed it up."""
    meter = SpeedMeter.among(3)
    for rate in (1e-3, *rates):
        meter.tell(rows_of(2), 2 / rate)
    return meter


@given(measured=MEASURED, factor=st.integers(2, 100))
def test_speeds_are_shares_of_the_fastest_in_the_order_of_what_was_measured(measured, factor):
    speeds, fastest = agreed_speeds(measured), max(measured)
    assert speeds == agreed_speeds([factor * speed for speed in measured])
    assert max(speeds) == 1.0 and min(speeds) > 0
    assert [speed for _, speed in sorted(zip(measured, speeds, strict=True))] == sorted(speeds)
    assert all(abs(s - m / fastest) <= 1 - ALIKE + 0.05 for m, s in zip(measured, speeds, strict=True))


@given(fastest=st.integers(1000, 10**9), shares=st.lists(st.floats(0.91, 1.0), min_size=1, max_size=6))
def test_ranks_that_differ_by_less_than_a_tenth_are_equal(fastest, shares):
    assert set(agreed_speeds([fastest, *(round(fastest * share) for share in shares)])) == {1.0}


@pytest.mark.parametrize(
    ("measured", "speeds"),
    [
        ((100, 100, 50), (1.0, 1.0, 0.5)),
        ((100, 97, 52), (1.0, 1.0, 0.5)),
        ((300, 101, 99), (1.0, 0.35, 0.35)),
        ((100, 0, 50), (1.0, 1.0, 0.5)),
        ((10**6, 1), (1.0, 0.05)),
        ((0, 0), (1.0, 1.0)),
    ],
)
def test_speeds_are_rounded_and_one_that_is_not_known_counts_as_the_fastest(measured, speeds):
    assert agreed_speeds(measured) == speeds


def test_the_first_forward_and_those_with_attention_maps_do_not_count():
    meter = SpeedMeter.among(2)
    meter.tell(rows_of(2), 1.0)
    assert meter.own() == 0
    meter.tell(rows_of(2, capture=(0,)), 1.0)
    assert meter.own() == 0
    meter.tell(rows_of(2), 0.5)
    assert meter.own() == 1000 * 2 * 64 / 0.5
    meter.tell(rows_of(2), 0.5, workers=3)
    assert meter.own() == 1000 * 3 * 2 * 64 / 0.5


def test_a_rank_that_is_held_up_once_is_as_fast_as_before_and_one_that_has_become_slow_is_not():
    once, slower = told(10, 10, 1), told(10, *[5] * RECENT)
    assert once.own() == told(10).own() == 2 * slower.own()


@given(measured=st.lists(st.lists(st.integers(0, 1000), min_size=3, max_size=3), min_size=1, max_size=5))
def test_ranks_that_are_told_the_same_numbers_agree_whatever_each_has_measured(measured):
    meters = [told(*range(1, 2 + 5 * rank)) for rank in range(3)]
    for index, numbers in enumerate(measured):
        for rank, meter in enumerate(meters):
            meter.agree(step_of(index), numbers, Recorder(rank, float))
    assert len({(meter.agreed, meter.notes, meter.is_due(step_of(20))) for meter in meters}) == 1


def test_an_agreement_holds_until_a_speed_differs_by_more_than_a_quarter_and_each_is_told():
    meter, trace = SpeedMeter.among(3), Recorder(2, float)
    with capture_logs() as logs:
        for index, measured in enumerate([(0, 0, 0), (90, 0, 81), (90, 100, 50), (90, 100, 60), (90, 100, 80)]):
            meter.agree(step_of(index), measured, trace)
    assert [each["event"] for each in logs] == ["speeds.agreed"] * 3 and "speeds.agreed" in EVENTS
    assert [(each["step"], each["speeds"]) for each in logs] == [
        (1, [1.0, 1.0, 1.0]),
        (2, [1.0, 1.0, 0.5]),
        (4, [1.0, 1.0, 0.8]),
    ]
    assert [count.value for count in trace.counts] == [1.0, 0.5, 0.8]
    assert meter.notes[-1] == "speeds of the ranks from step 5 on, as measured: 1, 1, 0.8"


def test_numbers_are_due_after_the_first_step_until_there_are_some_then_every_eighth():
    """Whatever step a run begins or goes on with."""
    meter, due = SpeedMeter.among(2), []
    for index in range(5, 25):
        if meter.is_due(step_of(index)):
            due.append(index)
            meter.agree(step_of(index), (0, 0) if index == 6 else (5, 5), Recorder(0, float))
    assert due == [6, 7, 15, 23]
