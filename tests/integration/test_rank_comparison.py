"""Ranks that drift apart end the run, and the message names where it began; sound strategies are never accused."""

import re
import threading
from typing import ClassVar

import pytest
import torch
from attrs import evolve, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ranks import APART, STAGES

from often import every
from toy import DETAIL, composition, sample, toy_sampler
from vitrail.comm import Gloo, InProcess
from vitrail.core.engine.rank_comparison import digest_of
from vitrail.errors import CommAborted, DriftError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.guidance.structure import SyncGuidance
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.patching.windows import Windows
from vitrail.sampling.sampler import Sampler, Spread

RANKS = InProcess(timeout=600)
STEPS, FIRST = 5, 2  # steps of a run, and the first that goes wrong


def rank():
    """As rank-dependent code would find it out: by the thread."""
    name = threading.current_thread().name
    return int(name.removeprefix("rank-")) if name.startswith("rank-") else 0


def by_randomness(tensor, kept):
    torch.manual_seed(rank())  # processes of their own would have states of their own
    return tensor + 1e-6 * torch.randn_like(tensor)


def by_rank(tensor, kept):
    return tensor + 1e-6 * rank()


def by_order(tensor, kept):
    """The same values elsewhere."""
    return tensor.roll(rank(), -1)


def by_state(tensor, kept):
    kept.append(1)
    return tensor + 1e-6 * len(kept)


DRIFTS = {"randn_like": by_randomness, "rank": by_rank, "order": by_order, "state on self": by_state}


@frozen
class Drifting:
    """Any strategy that goes its own way on every rank, from a step on."""

    needs: ClassVar[frozenset[str]] = frozenset()
    how: str
    kept: list = field(factory=list, eq=False, repr=False)

    def _moved(self, step, tensor):
        return DRIFTS[self.how](tensor, self.kept) if step.index >= FIRST else tensor


@frozen
class DriftingGuidance(Drifting):
    point: str = "canvas"

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        if isinstance(subject, torch.Tensor):
            return self._moved(step, subject), state
        if self.point == "branches":
            return evolve(subject, combined=self._moved(step, subject.combined)), state
        return evolve(subject, model_output=self._moved(step, subject.model_output)), state


@frozen
class DriftingFusion(Drifting):
    def fuse(self, step, views, prediction, latents):
        return self._moved(step, Average().fuse(step, views, prediction, latents))


@frozen
class DriftingMasking(Drifting):
    request: ClassVar[None] = None

    def init(self):
        return None

    def mask(self, step, key, predicted, state):
        ramp = torch.linspace(0.1, 0.5, key.latents.shape[-1]).expand_as(key.latents[:, :1])
        return self._moved(step, ramp), state


@frozen
class DriftingPatching(Drifting):
    """Other views on every rank: another number of rows, too."""

    def granularity(self, canvas):
        return 1, 1

    def patch(self, step, canvas, channels, streams):
        odd = step.index >= FIRST and rank() > 0
        return Windows(overlap=0.5, jitter=odd).patch(step, canvas, channels, streams)


@frozen
class DriftingPrompting(Drifting):
    request: ClassVar[None] = None

    def texts(self, step, prompt, negative_prompt, views, canvas, memory):
        return (f"a fox {rank()}",) * len(views)


def with_parts(stages, **parts):
    """A toy sampler whose first stage has other strategies."""
    made = composition(*stages)
    changed = evolve(made, stages=[evolve(made.stages[0], **parts), *made.stages[1:]])
    return Sampler(toy_sampler(*stages).backbone, changed, model="analytic")


def end(count, make, **call):
    """How a run on several ranks ended."""
    shared = {}

    def program(communicator):
        own = make(shared.setdefault(communicator.rank, make))
        return sample(own, steps=STEPS, row_batch=2, spread=Spread(communicator=communicator), **call)

    return RANKS.attempt(count, program)


def accused(outcome, count):
    """The one message of all ranks."""
    assert not outcome.results, "a picture came out"
    assert set(outcome.errors) == set(range(count))
    assert all(isinstance(error, (DriftError, CommAborted)) for error in outcome.errors.values())
    told = [str(error) for error in outcome.errors.values() if isinstance(error, DriftError)]
    assert told and len(set(told)) == 1
    for error in outcome.errors.values():
        assert told[0].partition(". ")[0] in str(error)  # also on ranks that another one told of it
    return told[0]


def state_apart(make):
    """Instances of their own that have seen unlike much, as processes have that began at other times."""

    def made(_):
        sampler = make()
        for stage in sampler.composition.stages:
            for _, strategy in stage.strategies():
                if isinstance(strategy, Drifting):
                    strategy.kept.extend([1] * rank())
        return sampler

    return made


POINTS = ["before", "inputs", "branches", "views", "canvas", "after"]


@pytest.mark.parametrize(("how", "point"), [("rank", point) for point in POINTS] + [(how, "canvas") for how in DRIFTS])
def test_guidance_that_drifts_is_named_where_it_first_did(how, point):
    make = state_apart(lambda: with_parts([DETAIL], guidance=[DriftingGuidance(how, point=point)]))
    told = accused(end(3, make, guidance_scale=2.0), 3)
    assert told.startswith("ranks differ at step 3 of 5 (stage 1) in what came from guidance DriftingGuidance: rank")
    assert "draw random numbers from the run's streams" in told


@pytest.mark.parametrize(("slot", "how"), [("fusion", "rank"), ("masking", "randn_like"), ("masking", "state on self")])
def test_other_slots_too(slot, how):
    parts = {"fusion": {"fusion": DriftingFusion(how)}, "masking": {"masking": DriftingMasking(how)}}[slot]
    told = accused(end(3, state_apart(lambda: with_parts([DETAIL], **parts))), 3)
    assert f"at step 3 of 5 (stage 1) in what came from {slot} Drifting{slot.title()}: rank" in told


def test_views_that_differ_are_named_before_ranks_share_out_their_rows():
    told = accused(end(3, lambda _: with_parts([DETAIL], patching=DriftingPatching("rank"))), 3)
    assert "at step 3 of 5 (stage 1) in what came from patching DriftingPatching: rank 0 against ranks 1, 2" in told


def test_texts_that_differ_are_named():
    told = accused(end(2, lambda _: with_parts([DETAIL], prompting=DriftingPrompting("rank"))), 2)
    assert "at step 1 of 5 (stage 1) in what came from prompting DriftingPrompting: rank 0 against rank 1" in told


@pytest.mark.parametrize("count", [2, 3, 4])
def test_sides_are_named(count):
    told = accused(end(count, lambda _: with_parts([DETAIL], guidance=[DriftingGuidance("rank")])), count)
    assert " against ".join(f"rank {number}" for number in range(count)) in told


def test_the_last_step_is_compared_too():
    """Before the picture is decoded."""

    @frozen
    class Late(DriftingGuidance):
        def _moved(self, step, tensor):
            return tensor + rank() if step.index == STEPS - 1 else tensor

    told = accused(end(3, lambda _: with_parts([DETAIL], guidance=[Late("rank", point="after")])), 3)
    assert "at step 5 of 5 (stage 1) in what came from guidance Late" in told


def test_guidance_that_drifts_is_named_also_where_a_callback_looks_on():
    """Callbacks are held against each other, too, and would be blamed for what they were shown."""

    def make(_):
        return with_parts([DETAIL], guidance=[DriftingGuidance("rank")])

    told = accused(end(3, make, callback_on_step_end=lambda caller, index, timestep, state: {}), 3)
    assert "at step 3 of 5 (stage 1) in what came from guidance DriftingGuidance" in told


def test_what_drifts_is_not_written_to_a_checkpoint(tmp_path):
    path = tmp_path / "run.ckpt"

    def program(communicator):
        spread = Spread(communicator=communicator, checkpoint=path, checkpoint_every=FIRST + 1)
        sample(with_parts([DETAIL], guidance=[DriftingGuidance("rank")]), steps=STEPS, spread=spread)

    with pytest.raises(DriftError, match=r"step 3 of 5 \(stage 1\)"):
        RANKS.run(3, program)
    assert not path.exists()


@pytest.mark.parametrize("count", [2, 3])
def test_a_stage_where_ranks_go_apart_is_compared_before_and_after(count):
    """Views that differ would be put together to another canvas; what comes after sees it."""
    late = {**DETAIL, "guidance": []}

    def make(_):
        made = composition(APART, late)
        guidance = [DriftingGuidance("rank", point="after")]
        changed = evolve(made, stages=[made.stages[0], evolve(made.stages[1], guidance=guidance)])
        return Sampler(toy_sampler(APART, late).backbone, changed, model="analytic")

    told = accused(end(count, make), count)
    assert re.search(r"at step [34] of 5 \(stage 2\) in what came from guidance DriftingGuidance", told)

    def first(_):
        made = composition({**late, "until": 0.6}, {k: v for k, v in APART.items() if k != "until"})
        guidance = [DriftingGuidance("rank", point="after")]
        changed = evolve(made, stages=[evolve(made.stages[0], guidance=guidance), made.stages[1]])
        return Sampler(toy_sampler(APART, late).backbone, changed, model="analytic")

    assert "at step 3 of 5 (stage 1) in what came from guidance" in accused(end(count, first), count)


# ---------------------------------------------------------------- sound strategies


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("count", every(2, [3, 1, 4, 2]))
def test_sound_strategies_are_never_accused(tmp_path, stages, count):
    path = tmp_path / "run.ckpt"

    def program(communicator):
        torch.manual_seed(communicator.rank)  # nobody looks at it
        spread = Spread(communicator=communicator, checkpoint=path, checkpoint_every=2)
        return sample(toy_sampler(*STAGES[stages]), steps=STEPS, row_batch=2, guidance_scale=2.0, spread=spread)

    results = RANKS.run(count, program)
    assert all(torch.equal(result, results[0]) for result in results)


class Unseeded(DriftingGuidance):
    """As a plugin author writes it."""

    def _moved(self, step, tensor):
        return tensor + 1e-6 * torch.randn_like(tensor)


def unseeded(communicator):
    guidance = [Unseeded("randn_like", point="canvas")]
    return sample(with_parts([DETAIL], guidance=guidance), steps=STEPS, spread=Spread(communicator=communicator))


@pytest.mark.thorough
def test_processes_are_held_to_it_too():
    with pytest.raises(DriftError, match="in what came from guidance Unseeded"):
        Gloo(timeout=600).run(2, unseeded)


def test_messages_of_a_rank_to_others_are_no_drift():
    def program(communicator):
        parts = {"guidance": [SyncGuidance(scale=0.3)], "masking": NoMask()}
        return sample(with_parts([APART, DETAIL], **parts), steps=STEPS, spread=Spread(communicator=communicator))

    assert all(result.isfinite().all() for result in RANKS.run(3, program))


# ---------------------------------------------------------------- the digest

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(shape=SHAPES, seed=st.integers(0, 2**31), where=st.floats(0, 0.999))
@settings(max_examples=100)
def test_a_digest_sees_one_bit(shape, seed, where):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    other = tensor.clone().contiguous()
    other.view(torch.int32).flatten()[int(where * tensor.numel())] ^= 1
    assert digest_of(tensor) == digest_of(tensor.clone())
    assert digest_of(tensor) != digest_of(other)


@pytest.mark.parametrize("axis", [-1, -2, 0])
@pytest.mark.parametrize("shape", [(8, 8), (4, 8, 8), (3, 1, 4, 8, 8)])
def test_a_digest_knows_where_values_stand(shape, axis):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert digest_of(tensor.roll(1, axis)) != digest_of(tensor)
    assert digest_of(tensor.flip(axis)) != digest_of(tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_a_digest_takes_any_type(dtype):
    tensor = (torch.arange(32).view(2, 4, 4) % 2).to(dtype)
    assert digest_of(tensor) == digest_of(tensor.clone()) != digest_of(1 - tensor.int())


def test_a_digest_does_not_hang_on_strides():
    tensor = torch.randn(2, 4, 8, 8)
    assert digest_of(tensor.transpose(-1, -2)) == digest_of(tensor.transpose(-1, -2).contiguous())
