"""A run that ended at any step goes on from its checkpoint, on any number of ranks, and gives the same bytes."""

import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ranks import APART, STAGES, on_ranks

from often import every
from schedulers import new_scheduler
from toy import ASG, DETAIL, STRUCTURE, sample, toy_sampler
from vitrail import hookimpl
from vitrail.comm import InProcess
from vitrail.core.engine.state_file import NotStateError, load_state, pack, save_state, unpack
from vitrail.errors import ConfigError
from vitrail.plugins.guidance.structure import AsyncGuidance
from vitrail.sampling.methods import composition_of
from vitrail.sampling.sampler import Spread

STEPS = 7


class PowerCutError(Exception):
    """Ends a run from outside."""


def cut(path, stages, at, world_size, **options):
    """Run until something ends it before a step; every rank at the same one."""

    def program(communicator):
        spread = Spread(communicator=communicator, checkpoint=path, checkpoint_every=1)
        sampler = toy_sampler(*stages, plugins=(("ender", Ender(at)),), **options)
        return sample(sampler, steps=STEPS, row_batch=2, spread=spread)

    with pytest.raises(PowerCutError):
        InProcess(timeout=600).run(world_size, program)


class Ender:
    """An observer that sees no canvas, so that ranks may go apart."""

    def __init__(self, at):
        self.at = at

    @hookimpl
    def vitrail_step_end(self, step):
        if step.index == self.at:
            raise PowerCutError


@pytest.mark.parametrize("stages", every(2, STAGES))
@pytest.mark.parametrize(
    ("before", "after"), [(1, 3), *(pytest.param(*each, marks=pytest.mark.thorough) for each in ((3, 1), (2, 5)))]
)
def test_f7_a_run_goes_on_where_it_ended(tmp_path, stages, before, after):
    path = tmp_path / "run.ckpt"
    whole = sample(toy_sampler(*STAGES[stages]), steps=STEPS, row_batch=2)
    for at in (1, 2, 5):
        path.unlink(missing_ok=True)
        cut(path, STAGES[stages], at, before)
        spread = {"checkpoint": path, "checkpoint_every": 1}
        for latents in on_ranks(
            InProcess(timeout=600), after, lambda: toy_sampler(*STAGES[stages]), spread, steps=STEPS, row_batch=2
        ):
            assert torch.equal(latents, whole), at


@pytest.mark.parametrize(
    "name",
    [
        "EulerAncestralDiscreteScheduler",
        "UniPCMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "LMSDiscreteScheduler",
        "HeunDiscreteScheduler",
        "PNDMScheduler",
        "KDPM2DiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "DEISMultistepScheduler",
    ],
)
@pytest.mark.parametrize("before", every(2, [2, 1]))
def test_what_a_scheduler_remembers_is_kept(tmp_path, name, before):
    def make():
        return toy_sampler(APART, DETAIL, scheduler=new_scheduler(name))

    whole = sample(make(), steps=STEPS, row_batch=2)
    path = tmp_path / "run.ckpt"
    cut(path, (APART, DETAIL), 2, before, scheduler=new_scheduler(name))
    spread = Spread(checkpoint=path)
    assert torch.equal(sample(make(), steps=STEPS, row_batch=2, spread=spread), whole)


def test_pictures_that_are_done_are_not_done_again(tmp_path):
    calls = []

    class Counter(Ender):
        @hookimpl
        def vitrail_step_end(self, step):
            calls.append(step.index)
            if len(calls) == STEPS + 4:
                raise PowerCutError

    def go(plugins, path):
        spread = Spread(checkpoint=path, checkpoint_every=2)
        return sample(toy_sampler(*ASG, plugins=plugins), steps=STEPS, num_images=2, spread=spread)

    whole = go((), None)
    with pytest.raises(PowerCutError):
        go((("counter", Counter(0)),), tmp_path / "run.ckpt")
    calls.clear()
    assert torch.equal(go((("counter", Counter(0)),), tmp_path / "run.ckpt"), whole)
    assert calls == [2, 3, 4, 5, 6]  # the second picture was written after two steps


def test_another_run_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "run.ckpt"
    sample(toy_sampler(*ASG), spread=Spread(checkpoint=path, checkpoint_every=1))
    with pytest.raises(ConfigError, match=r"belongs to another run \(run.seed 0 there, 5 here\)"):
        sample(toy_sampler(*ASG), seed=5, spread=Spread(checkpoint=path))
    other = {**STRUCTURE, "until": 0.25}
    with pytest.raises(ConfigError, match=r"method.stages.0.until 0.5 there, 0.25 here"):
        sample(toy_sampler(other, DETAIL), spread=Spread(checkpoint=path))
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="is not a checkpoint"):
        sample(toy_sampler(*ASG), spread=Spread(checkpoint=path))
    with pytest.raises(ConfigError, match="does not exist"):
        sample(toy_sampler(*ASG), spread=Spread(checkpoint=tmp_path / "none" / "run.ckpt"))


ANY = {"finished": [], "current": None}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        *({"recipe": recipe, **ANY} for recipe in (3, "[", "3", "{}", '{"run": []}', '{"run": {"row_batch": "x"}}')),
        {"recipe": '{"run": {"row_batch": 0}}', **ANY},
        {"recipe": '{"run": {}}', "finished": [torch.zeros(3)], "current": None},
        {"recipe": '{"run": {}}', "finished": [], "current": {}},
    ],
)
def test_a_whole_file_of_something_else_is_refused_before_any_of_it_is_used(tmp_path, content):
    save_state(tmp_path / "run.ckpt", content)
    for row_batch in (None, 2):
        with pytest.raises(ConfigError, match="is not a checkpoint of a run of this version"):
            sample(toy_sampler(*ASG), spread=Spread(checkpoint=tmp_path / "run.ckpt"), row_batch=row_batch)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
LEAVES |= st.integers(0, 3).map(lambda n: torch.arange(n, dtype=torch.float16))
VALUES = st.recursive(LEAVES, lambda v: st.lists(v) | st.tuples(v, v) | st.dictionaries(st.text(), v), max_leaves=8)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b and type(a) is type(b)


@given(value=VALUES)
@settings(max_examples=40)
def test_state_comes_back_as_it_was(value, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "state"
    save_state(path, value)
    assert same(load_state(path), value)
    assert not list(path.parent.glob("*.part"))


def test_state_may_hold_attrs_classes_and_nothing_that_is_code():
    assert unpack(pack(AsyncGuidance(scale=2.0), []), []) == AsyncGuidance(scale=2.0)
    with pytest.raises(NotStateError, match="function cannot be kept"):
        pack(same, [])
    with pytest.raises(ConfigError, match="no loaded plugin has"):
        unpack({"kind": "attrs", "value": "antigravity:fly", "fields": {"kind": "dict", "value": {}}}, [])


MADE = []


@frozen
class Memory:
    """State of a strategy of this module."""

    seen: int = 0

    def __attrs_post_init__(self):
        MADE.append(self.seen)


def test_a_file_makes_objects_of_the_runs_strategies_and_of_no_other_package(tmp_path):
    path = tmp_path / "state"
    save_state(path, {"mine": Memory(3), "ours": AsyncGuidance(scale=2.0)})
    MADE.clear()
    assert load_state(path, {__name__}) == {"mine": Memory(3), "ours": AsyncGuidance(scale=2.0)}
    MADE.clear()
    for others in ((), {"elsewhere"}, {__name__[:-1]}):
        with pytest.raises(ConfigError, match=f"holds a {__name__}:Memory, which is not of this run's strategies"):
            load_state(path, others)
    assert not MADE


def test_the_packages_of_a_run_are_those_of_its_strategies():
    @frozen
    class Own(AsyncGuidance):
        pass

    windows = {"patching": {"type": "windows"}, "fusion": {"type": "average"}}
    plain = composition_of({"stages": [windows]})
    assert plain.packages == frozenset()
    assert evolve(plain, stages=[evolve(plain.stages[0], guidance=[Own()])]).packages == {__name__.partition(".")[0]}
