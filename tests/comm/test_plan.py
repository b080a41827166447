"""Level 0: the plan is a pure function that gives every unit to one rank, evenly, the awaited one first."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.comm.partition import assign, in_order, rounds
from vitrail.core.engine.exchange import whole_views
from vitrail.core.method.micro_batch import MicroBatch
from vitrail.errors import ConfigError

COSTS = st.lists(st.sampled_from([1.0, 2.0, 3.0]), max_size=20)
SPEEDS = st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=9)


def ends(costs, speeds, owners):
    return [sum(c for c, o in zip(costs, owners, strict=True) if o == rank) / s for rank, s in enumerate(speeds)]


@given(costs=COSTS, speeds=SPEEDS, data=st.data())
def test_every_unit_has_one_owner_and_no_rank_could_take_over_to_advantage(costs, speeds, data):
    first = data.draw(st.none() | st.integers(0, len(costs) - 1)) if costs else None
    owners = assign(costs, speeds, first)
    assert len(owners) == len(costs) and all(0 <= owner < len(speeds) for owner in owners)
    assert owners == assign(costs, [2 * speed for speed in speeds], first)
    loads = ends(costs, speeds, owners)
    for rank, load in enumerate(loads):  # else its last unit would have gone elsewhere
        own = [unit for unit in in_order(len(costs), first) if owners[unit] == rank]
        for other, its in enumerate(loads):
            if own and other != rank:
                assert load <= its + costs[own[-1]] / speeds[other] + 1e-9


@given(units=st.integers(0, 40), ranks=st.integers(1, 9))
def test_equal_units_on_equal_ranks_are_dealt_out_evenly(units, ranks):
    owners = assign([2.0] * units, [1.0] * ranks)
    counts = [owners.count(rank) for rank in range(ranks)]
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)  # ranks that are too many are the last


@given(costs=COSTS, speeds=SPEEDS, data=st.data())
def test_o5_rounds_are_one_order_for_all_ranks_with_the_awaited_unit_at_the_beginning(costs, speeds, data):
    first = data.draw(st.integers(0, len(costs) - 1)) if costs else None
    owners = assign(costs, speeds, first)
    turns = rounds(owners, len(speeds), first)
    assert sorted(unit for turn in turns for unit in turn) == list(range(len(costs)))
    for turn in turns:
        assert len({owners[unit] for unit in turn}) == len(turn)
    for rank in range(len(speeds)):  # what a rank computes in turn is what it was given, in order
        own = [unit for turn in turns for unit in turn if owners[unit] == rank]
        assert own == [unit for unit in in_order(len(costs), first) if owners[unit] == rank]
    if costs:
        assert first in turns[0]


@given(
    views=st.integers(1, 12),
    branches=st.integers(1, 2),
    row_batch=st.integers(1, 9),
    ranks=st.integers(1, 5),
    data=st.data(),
)
def test_no_view_is_divided_where_each_rank_keeps_its_own(views, branches, row_batch, ranks, data):
    key = data.draw(st.integers(0, views - 1))
    rows = [view for view in range(views) for _ in range(branches)]
    batches = [
        MicroBatch(torch.zeros(len(part), 1), ["cond"] * len(part), part)
        for part in (rows[begin : begin + row_batch] for begin in range(0, len(rows), row_batch))
    ]
    owners = whole_views(batches, [1.0] * ranks, branches, key)
    owner_of = {}
    for owner, batch in zip(owners, batches, strict=True):
        for view in batch.views:
            assert owner_of.setdefault(view, owner) == owner
    assert owner_of[key] == 0


@pytest.mark.parametrize("speeds", [[], [1.0, 0.0], [-1.0], [float("nan")], [float("inf")]])
def test_speeds_that_are_none_are_refused(speeds):
    with pytest.raises(ConfigError, match="must be positive numbers"):
        assign([1.0], speeds)
