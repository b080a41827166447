"""Loads, cost models and recorders for laws about traces and predictions."""

import random

from attrs import evolve
from hypothesis import strategies as st

from simulated_load import simulate
from vitrail.comm.trace.cost_model import CostModel
from vitrail.comm.trace.recording import LANES, Recorder
from vitrail.comm.trace.speedup_model import RunLoad, StageLoad

CELLS = 64  # small messages

costs = st.builds(
    CostModel,
    row_s=st.sampled_from([0.05, 0.1]),
    launch_s=st.sampled_from([0.0, 0.02]),
    cells=st.just(CELLS),
    mask_share=st.sampled_from([0.0, 0.3]),
    latency_s=st.sampled_from([0.0, 1e-3, 0.6]),
    bandwidth=st.sampled_from([1e5, 1e9]),
    tile_s=st.just(0.1),
    serial_s=st.just(0.5),
    jitter=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 3),
    speeds=st.sampled_from([(), (1.0, 0.7)]),
)
stages = st.builds(
    StageLoad,
    steps=st.integers(0, 8),
    views=st.integers(1, 6),
    branches=st.sampled_from([1, 2]),
    cells=st.just(CELLS),
    masked=st.sampled_from(["none", "key", "all"]),
    exchange=st.sampled_from(["gather", "channel"]),
    lag=st.integers(0, 1),
    max_staleness=st.integers(1, 3),
).flatmap(lambda stage: st.integers(0, stage.views - 1).map(lambda key: evolve(stage, key=key)))
flowing = st.builds(
    lambda steps, grid, branches: StageLoad(
        steps=steps, views=grid[0] * grid[1], grid=grid, branches=branches, cells=CELLS, exchange="dataflow"
    ),
    st.integers(0, 6),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([1, 2]),
)
flows = st.builds(
    RunLoad,
    stages=st.lists(flowing | stages, min_size=1, max_size=2).map(tuple),
    row_batch=st.integers(1, 4),
    tiles=st.integers(0, 3),
    tile_bytes=st.just(1000),
)
loads = st.builds(
    RunLoad,
    stages=st.lists(stages, min_size=1, max_size=2).map(tuple),
    row_batch=st.integers(1, 4),
    tiles=st.integers(0, 5),
    tile_bytes=st.just(1000),
)
world_sizes = st.sampled_from([1, 2, 3, 5, 8])


def traces(load, cost, world_size):
    """The recorders of a simulated run that nothing befalls."""
    outcome = simulate(load, cost, world_size)
    assert not outcome.errors
    return outcome.traces


def computed_until(recorders):
    """When the last rank has computed its last; the goodbye comes later."""
    return max((span.end for r in recorders for span in r.spans if span.lane == "compute"), default=0.0)


def relayed(exchange="channel", steps=4, **options):
    """A small run of two stages."""
    first = StageLoad(steps=steps, views=4, cells=CELLS, exchange=exchange, masked="key")
    return RunLoad(stages=(first, StageLoad(steps=2, views=9, cells=CELLS)), **options)


def random_recorder(rank, seed):
    """Spans anywhere, also across lanes, but in order within a lane."""
    draw, recorder = random.Random(seed), Recorder(rank, float)
    for lane in LANES:
        now = draw.random()
        for number in range(draw.randrange(6)):
            begin, end = now + draw.random(), 0.0
            recorder.clock = iter([begin, end := begin + draw.random()]).__next__
            with recorder.span(lane, f"{lane} {number}", step=number, stage=0):
                pass
            now = end
    recorder.clock = lambda: 1.0
    recorder.count("staleness", draw.randrange(3))
    return recorder
