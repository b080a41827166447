"""What a strategy of any slot may not return: told by slot, class and step, before anything is done with it."""

import re
from contextlib import ExitStack
from typing import ClassVar

import pytest
import torch
from attrs import evolve, frozen
from test_strategies import REGISTRY

from toy import composition, sample, toy_sampler
from vitrail import hookimpl
from vitrail.comm import InProcess
from vitrail.comm.backends.in_process import solo
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.exchange import Exchange
from vitrail.core.engine.guidance_context import Branches
from vitrail.core.engine.network import Network
from vitrail.core.engine.upscaling import upscaled
from vitrail.core.geometry.views import Canvas, Patches, Span, View
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.cascade import Finish
from vitrail.core.method.cost import Cost
from vitrail.core.method.micro_batch import MicroBatch
from vitrail.core.method.returned_values import check_patches
from vitrail.core.method.stage import SharedPrompt
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ShapeError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.guidance.structure import SyncGuidance
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.patching.lattice import Lattice
from vitrail.plugins.patching.windows import Windows
from vitrail.plugins.upscaler.lanczos import Lanczos
from vitrail.sampling.discovery import installed, registered_name
from vitrail.sampling.sampler import Sampler, Spread
from vitrail.testing import make_step

WINDOWS = {"patching": {"type": "windows", "overlap": 0.5}, "fusion": "average"}
CHECKED = ("patching", "masking", "guidance", "fusion", "prompting", "upscaler")  # slots whose `check` is of files
AFTER = 2  # steps that are done as they should be


@frozen
class Answering:
    """Any strategy; its answer is changed from a step on."""

    needs: ClassVar[frozenset[str]] = frozenset()
    change: object

    def _changed(self, step, answer):
        return answer if step.index < AFTER else self.change(answer)


@frozen
class OddPatching(Answering):
    def granularity(self, canvas):
        return 1, 1

    def patch(self, step, canvas, channels, streams):
        return self._changed(step, Windows(overlap=0.5).patch(step, canvas, channels, streams))


@frozen
class OddLattice(Answering):
    shows_whole: ClassVar[bool] = True

    def granularity(self, canvas):
        return Lattice().granularity(canvas)

    def patch(self, step, canvas, channels, streams):
        return self._changed(step, Lattice().patch(step, canvas, channels, streams))


@frozen
class OddPreparing(OddPatching):
    def patch(self, step, canvas, channels, streams):
        return Windows(overlap=0.5).patch(step, canvas, channels, streams)

    def prepare(self, step, model_input, canvas):
        return self._changed(step, model_input)


@frozen
class OddMasking(Answering):
    request: ClassVar[None] = None

    def init(self):
        return None

    def mask(self, step, key, predicted, state):
        return self._changed(step, (torch.ones_like(key.latents[:, :1]), state))


@frozen
class OddGuidance(Answering):
    point: str

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        return self._changed(step, (subject, state))


@frozen
class OddCost(OddGuidance):
    """Says how much it asks of networks."""

    of_canvas: object = Cost()
    of_views: object = Cost()

    def cost(self, step, canvas, branches):
        return self.of_canvas

    def cost_of_views(self, step, outline, branches):
        return self.of_views


@frozen
class OddFusion(Answering):
    def fuse(self, step, views, prediction, latents):
        return self._changed(step, Average().fuse(step, views, prediction, latents))


@frozen
class OddPrompting(Answering):
    request: ClassVar[None] = None

    def texts(self, step, prompt, negative_prompt, views, canvas, memory):
        return self.change(("a fox",) * len(views))


@frozen
class OddMessages(Answering):
    """Structure guidance by messages, so that ranks go apart."""

    point: ClassVar[str] = "views"
    which: str

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        return SyncGuidance().guide(step, subject, scene, state)

    def lag(self, step):
        return self._changed(step, 0) if self.which == "lag" else 0

    def tell(self, step, subject, key, mask):
        told = SyncGuidance().tell(step, subject, key, mask)
        return self._changed(step, told) if self.which == "tell" else told

    def follow(self, step, subject, key, message):
        followed = SyncGuidance().follow(step, subject, key, message)
        return self._changed(step, followed) if self.which == "follow" else followed


def sampler_with(stage=WINDOWS, **parts):
    """A toy sampler whose stage has other strategies."""
    made = composition(stage)
    changed = evolve(made, stages=[evolve(made.stages[0], **parts)])
    return Sampler(toy_sampler(stage).backbone, changed, model="analytic")


def complaint(function, *args, **kwargs):
    with pytest.raises(ShapeError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def moved(patches, **change):
    first = patches.views[0]
    return evolve(patches, views=[evolve(first, vertical=evolve(first.vertical, **change)), *patches.views[1:]])


PATCHINGS = [
    (lambda p: None, "must give a Patches, got nothing"),
    (lambda p: list(p.views), "must give a Patches, got a list"),
    (lambda p: moved(p, start=12), r"returned a view that leaves the canvas of 16x16 latent cells: View\(.*start=12"),
    (lambda p: moved(p, start=-1), "returned a view that leaves the canvas"),
    (lambda p: Patches(p.views[:-1]), r"leave out latent cell \(12, 12\) of a canvas of 16x16; together they must"),
    (lambda p: Patches([*p.views, p.views[0]]), "returned 10 views, but 9 at step 1 of the same stage"),
    (lambda p: evolve(p, permutation=torch.zeros(9, 1, 1, 8, 8)), "must return a permutation as int64"),
    (lambda p: evolve(p, permutation=torch.zeros(9, 1, 1, 8, 9).long()), "must return a permutation as int64"),
    (
        lambda p: evolve(p, permutation=torch.zeros(9, 1, 3, 8, 8).long()),
        "must return a permutation for 1 or 4 channel",
    ),
    (lambda p: evolve(p, permutation=torch.zeros(9, 1, 1, 8, 8).long()), "a permutation that takes a view twice"),
]


@pytest.mark.parametrize(("change", "told"), PATCHINGS)
def test_patching(change, told):
    found = complaint(sample, sampler_with(patching=OddPatching(change)))
    assert found.startswith("patching OddPatching at step 3 of 4"), found
    assert re.search(told, found), found


def test_views_of_the_whole_picture_may_leave_cells_to_a_fusion_that_fills_them():
    plain = sample(toy_sampler({"patching": {"type": "lattice", "views": "key"}, "fusion": "broadcast"}))
    assert plain.isfinite().all()
    told = complaint(sample, sampler_with(patching=OddPatching(lambda p: Patches(p.views[:1]))))
    assert "leave out latent cell" in told


def test_a_granularity_is_two_whole_numbers():
    @frozen
    class Odd(OddPatching):
        def granularity(self, canvas):
            return self.change

    for wrong in (None, 2, (0, 1), (1.5, 1), (1, 1, 1)):
        told = complaint(sample, sampler_with(patching=Odd(wrong)))
        assert told.startswith("patching Odd must return a granularity of (height, width)") and repr(wrong) in told


SHAPES = [
    (lambda t: t.double(), "got float64 ("),
    (lambda t: t.half(), "got float16 ("),
    (lambda t: t[..., :-1], "got float32"),
    (lambda t: t.to("meta"), "on meta"),
    (lambda t: t.numpy(), "got a ndarray"),
]


@pytest.mark.parametrize(("change", "told"), SHAPES)
def test_what_views_are_read_from(change, told):
    found = complaint(sample, sampler_with(patching=OddPreparing(change)))
    assert found.startswith("patching OddPreparing at step 3 of 4 must return the canvas that its views are read from")
    assert told in found


@pytest.mark.parametrize(("change", "told"), SHAPES)
@pytest.mark.parametrize("point", ["before", "inputs", "branches", "views", "canvas", "after"])
def test_guidance(point, change, told):
    def of_subject(pair):
        subject, state = pair
        if isinstance(subject, torch.Tensor):
            return change(subject), state
        if isinstance(subject, Branches):
            return evolve(subject, combined=change(subject.combined)), state
        return evolve(subject, model_output=change(subject.model_output)), state

    sampler = sampler_with(guidance=[OddGuidance(of_subject, point)])
    found = complaint(sample, sampler, guidance_scale=2.0)
    assert found.startswith("guidance OddGuidance at step 3 of 4"), found
    if point in ("before", "inputs", "after") and "ndarray" in told:
        assert "received a Tensor and returned a ndarray; guidance at point" in found
    else:
        assert told in found, found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda pair: None, "must give a tuple, got nothing"),
        (lambda pair: pair[0], "must give a tuple, got a Prediction"),
        (lambda pair: (*pair, 1), "must give (subject, state), got a tuple of 3"),
        (
            lambda pair: (pair[0].clean, pair[1]),
            "received a Prediction and returned a Tensor; guidance at point 'canvas'",
        ),
        (lambda pair: (evolve(pair[0], latents=pair[0].latents.double()), None), "with the latents as float32"),
    ],
)
def test_guidance_of_the_canvas(change, told):
    found = complaint(sample, sampler_with(guidance=[OddGuidance(change, "canvas")]))
    assert found.startswith("guidance OddGuidance at step 3 of 4") and told in found, found


MASKS = [
    (lambda m: m.double(), "must return the mask as float32 (1, 1, 8, 8) on cpu, got float64"),
    (lambda m: m[0], "got float32 (1, 8, 8)"),
    (lambda m: m.expand(-1, 4, -1, -1), "got float32 (1, 4, 8, 8)"),
    (lambda m: 1.0, "got a float"),
    (lambda m: 1.01 * m, "returned a mask that does not lie in [0, 1]: 64 values"),
    (lambda m: -0.01 * m, "returned a mask that does not lie in [0, 1]: 64 values"),
    (lambda m: m * float("nan"), "returned a mask that does not lie in [0, 1]: 64 values"),
    (lambda m: m.index_fill(-1, torch.tensor([3]), 2.0), "returned a mask that does not lie in [0, 1]: 8 values"),
]
APART = {"patching": {"type": "lattice", "interaction": "none"}, "guidance": ["sync"], "fusion": "scatter"}


@pytest.mark.parametrize(("change", "told"), MASKS)
def test_masking(change, told):
    sampler = sampler_with(APART, masking=OddMasking(lambda pair: (change(pair[0]), pair[1])))
    found = complaint(sample, sampler)
    assert found.startswith("masking OddMasking at step 3 of 4") and told in found, found


def test_masking_that_forgets_its_state():
    found = complaint(sample, sampler_with(APART, masking=OddMasking(lambda pair: pair[0])))
    assert found.startswith("masking OddMasking at step 3 of 4 must give a tuple, got float32 (1, 1, 8, 8)")


@pytest.mark.parametrize(("change", "told"), [*SHAPES, (lambda t: t[:, :1], "got float32 (1, 1, 16, 16)")])
def test_fusion(change, told):
    found = complaint(sample, sampler_with(fusion=OddFusion(change)))
    assert found.startswith("fusion OddFusion at step 3 of 4")
    assert told in found, found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda texts: "a fox", "got a str; a lone text would be taken apart into letters"),
        (lambda texts: list(texts), "got a list"),
        (lambda texts: None, "got nothing"),
        (lambda texts: texts[:-1], "must return a text for each of 9 views, or (), got 8"),
        (lambda texts: (*texts, "one more"), "got 10"),
        (lambda texts: (*texts[:-1], 3), "must return texts or None for the prompt, got a int among them"),
    ],
)
def test_prompting(change, told):
    found = complaint(sample, sampler_with(prompting=OddPrompting(change)))
    assert found.startswith("prompting OddPrompting at step 1 of 4") and told in found, found


def test_a_nine_letter_text_for_nine_views_is_refused_too():
    assert "letters" in complaint(sample, sampler_with(prompting=OddPrompting(lambda texts: "nine char")))


@pytest.mark.parametrize("which", ["tell", "follow"])
def test_messages_between_ranks(which):
    def change(answer):
        return answer.double() if which == "tell" else evolve(answer, model_output=answer.model_output.double())

    def program(communicator):
        sampler = sampler_with(APART, guidance=[OddMessages(change, which)], masking=NoMask())
        sample(sampler, spread=Spread(communicator=communicator), row_batch=1)

    found = complaint(InProcess(timeout=600).run, 2, program)
    assert found.startswith("guidance OddMessages at step 3 of 4 must return"), found
    assert "got float64" in found


@pytest.mark.parametrize("age", [2, -1, 0.5, True])
def test_the_age_of_a_message_is_that_of_a_step_or_of_the_one_before(age):
    """Another one would be waited for until the timeout."""
    guidance = OddMessages(lambda lag: age, "lag")

    def program(communicator):
        sampler = sampler_with(APART, guidance=[guidance], masking=NoMask())
        sample(sampler, spread=Spread(communicator=communicator), row_batch=1)

    found = complaint(InProcess(timeout=600).run, 2, program)
    assert found.startswith("guidance OddMessages at step 3 of 4 must return 0, 1 or None from `lag`"), found
    assert found.endswith(f"got {age!r}")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (None, "must return a Cost from `{}`, got nothing"),
        (2.0, "must return a Cost from `{}`, got a float"),
        (Cost(rows={64: float("inf")}), "must return a Cost of whole numbers from `{}`, "),
        (Cost(rows={64: -2}), "no count below 0, got Cost(rows={{64: -2}}"),
        (Cost(decodes=True), "of whole numbers from `{}`, "),
        (Cost(encodes=torch.tensor(1)), "of whole numbers from `{}`, "),
    ],
    ids=str,
)
@pytest.mark.parametrize(("member", "given"), [("cost", "of_canvas"), ("cost_of_views", "of_views")])
def test_costs_are_refused_before_a_run(wrong, told, member, given):
    guidance = OddCost(point="canvas", change=lambda pair: pair, **{given: wrong})
    sampler = sampler_with(guidance=[guidance])
    run = RunConfig(prompt="", height=64, width=64, num_inference_steps=4)
    for asked in (sampler.plan, sampler.run):
        found = complaint(asked, run)
        assert found.startswith("guidance OddCost at step 1 of 4 must return a Cost"), found
        assert told.format(member) in found


def test_rectification():
    @frozen
    class Odd:
        needs: ClassVar[frozenset[str]] = frozenset({"convolutions"})

        def check(self, network):
            pass

        def apply(self, forward):
            return None

    rows = MicroBatch(torch.zeros(1, 4, 8, 8), ["cond"], [View(Span(0, 8), Span(0, 8))])
    backbone = toy_sampler().backbone
    network = Network(backbone, None, (), None, Streams(0))
    told = complaint(network._rectify, ExitStack(), make_step(4), Odd(), rows)
    assert told.startswith("rectification Odd at step 5 of 10 must return a context manager, got nothing")


def test_a_wrapped_network_gives_an_output_of_the_rows_shape():
    class Odd:
        @hookimpl(wrapper=True)
        def vitrail_predict(self):
            answer = yield
            return evolve(answer, model_output=answer.model_output[..., 1:])

    told = complaint(sample, toy_sampler(WINDOWS, plugins=[("odd", Odd())]))
    assert "vitrail_predict at step 1 of 4 must give an output of (" in told


# ---------------------------------------------------------------- whose an exception is


def fail(answer):
    raise KeyError("mine")


@pytest.mark.parametrize(
    ("slot", "parts"),
    [
        ("patching OddPatching", {"patching": OddPatching(fail)}),
        ("patching OddPreparing", {"patching": OddPreparing(fail)}),
        ("masking OddMasking", {"masking": OddMasking(fail)}),
        ("guidance OddGuidance", {"guidance": [OddGuidance(fail, "canvas")]}),
        ("fusion OddFusion", {"fusion": OddFusion(fail)}),
        ("prompting OddPrompting", {"prompting": OddPrompting(fail)}),
    ],
)
def test_an_exception_says_which_strategy_raised_it_and_when(slot, parts):
    with pytest.raises(KeyError, match="mine") as caught:
        sample(sampler_with(**parts))
    (note,) = caught.value.__notes__
    step = 1 if slot.startswith("prompting") else 3
    assert note == f"raised by {slot} at step {step} of 4"


RUN = RunConfig(prompt="", height=128, width=128, num_inference_steps=4)
BEFORE_A_RUN = {  # slot, member -> step in the note, and what calls the member
    ("masking", "init"): (1, lambda sampler: sampler.run(RUN)),
    ("guidance", "init"): (1, lambda sampler: sampler.run(RUN)),
    ("patching", "granularity"): (None, lambda sampler: sampler.plan(RUN)),
    ("patching", "needs_background"): (1, lambda sampler: sampler.plan(RUN)),
    ("guidance", "needs_background"): (1, lambda sampler: sampler.plan(RUN)),
    ("guidance", "branches"): (1, lambda sampler: sampler.plan(RUN)),
    ("rectification", "further_rows"): (1, lambda sampler: sampler.plan(RUN)),
    ("rectification", "check"): (None, lambda sampler: Sampler(sampler.backbone, sampler.composition, model="toy")),
    ("upscaler", "cost"): (None, lambda sampler: sampler.plan(RUN)),
    ("upscaler", "reach"): (None, lambda sampler: sampler.plan(RUN)),
    **{(slot, "check"): (None, lambda sampler: sampler.run(RUN)) for slot in CHECKED},
    **{(slot, "digest"): (None, lambda sampler: sampler.run(RUN)) for slot in (*CHECKED, "rectification")},
}


@pytest.mark.parametrize(("slot", "member"), BEFORE_A_RUN, ids=map("-".join, BEFORE_A_RUN))
def test_an_exception_of_any_member_says_whose_it_is(slot, member, monkeypatch):
    """Also where it is called once, before the first step: the slot, the registered name, the class and the step."""
    step, call = BEFORE_A_RUN[slot, member]
    strategy = registered(slot, monkeypatch, **{member: failing})
    with pytest.raises(KeyError, match="mine") as caught:
        call(sampler_of(slot, strategy))
    when = "" if step is None else f" at step {step} of 4"
    assert caught.value.__notes__ == [f"raised by {slot} 'mine' (Mine){when}"]


@pytest.mark.parametrize(
    ("slot", "member", "wrong", "told"),
    [
        ("patching", "needs_background", None, "must return True or False from `needs_background`, got nothing"),
        ("guidance", "needs_background", 1, "must return True or False from `needs_background`, got a int"),
        ("rectification", "further_rows", -1, "must return a whole number from 0 on from `further_rows`, got -1"),
        ("rectification", "further_rows", 0.5, "must return a whole number from 0 on from `further_rows`, got 0.5"),
        ("masking", "digest", None, "must return a text from `digest`, got nothing"),
        ("rectification", "digest", b"x", "must return a text from `digest`, got a bytes"),
    ],
)
def test_what_is_asked_before_a_run_is_checked(slot, member, wrong, told, monkeypatch):
    strategy = registered(slot, monkeypatch, **{member: lambda self, *arguments: wrong})
    found = complaint(sampler_of(slot, strategy).run, RUN)
    assert found.startswith(f"{slot} 'mine' (Mine)") and found.endswith(told), found


def test_an_exception_of_a_rectification_or_an_upscaler_says_whose_it_is(monkeypatch):
    rows = MicroBatch(torch.zeros(1, 4, 8, 8), ["cond"], [View(Span(0, 8), Span(0, 8))])
    network = Network(toy_sampler().backbone, None, (), None, Streams(0), registered_name)
    rectification = registered("rectification", monkeypatch, apply=failing)
    with pytest.raises(KeyError, match="mine") as caught:
        network._rectify(ExitStack(), make_step(4), rectification, rows)
    assert caught.value.__notes__ == ["raised by rectification 'mine' (Mine) at step 5 of 10"]
    asked = StrategyCall("upscaler", registered("upscaler", monkeypatch, upscale=failing), named=registered_name)
    with pytest.raises(KeyError, match="mine") as caught:
        upscaled(asked, torch.zeros(1, 3, 8, 8), (16, 16), "none", Exchange.among(solo()))
    assert caught.value.__notes__ == ["raised by upscaler 'mine' (Mine)"]


def failing(self, *arguments):
    raise KeyError("mine")


SOUND = {  # slot -> a sound strategy
    "patching": Windows,
    "masking": NoMask,
    "guidance": SyncGuidance,
    "fusion": Average,
    "prompting": SharedPrompt,
    "upscaler": Lanczos,
}


def registered(slot, monkeypatch, **members):
    """A sound strategy but for some members, registered as 'mine'."""
    if slot == "rectification":
        base, body = object, {"needs": frozenset(), "check": lambda self, network: None, "apply": lambda self, f: None}
    else:
        base, body = SOUND[slot], {}
    if "branches" in members:
        body |= {"point": "branches", "guide": lambda self, step, subject, scene, state: (subject, state)}
    if "reach" in members:
        members = {"reach": property(members["reach"])}
    cls = frozen(type("Mine", (base,), {**body, **members, "__annotations__": {}}))
    monkeypatch.setattr(installed(), "_entries", dict(installed()._entries))
    installed()._entries.pop((slot, "mine"), None)
    installed().add(slot, "mine", cls)
    return cls()


def sampler_of(slot, strategy):
    """A toy sampler with this strategy."""
    if slot == "upscaler":
        made = composition(WINDOWS)
        finished = evolve(made, finish=Finish(upscaler=strategy, factor=2.0))
        return Sampler(toy_sampler(WINDOWS).backbone, finished, model="analytic")
    return sampler_with(**{slot: [strategy] if slot in ("guidance", "rectification") else strategy})


def test_a_registered_strategy_is_told_by_its_name(monkeypatch):
    monkeypatch.setattr(Average, "fuse", lambda *arguments: 1)
    assert complaint(sample, toy_sampler(WINDOWS)).startswith(
        "fusion 'average' (Average) at step 1 of 4 must give a Tensor, got"
    )


@pytest.mark.parametrize("name", [entry.name for entry in REGISTRY.entries("patching")])
@pytest.mark.parametrize("wrap", ["none", "x", "y", "xy"])
def test_sound_patchings_are_never_accused(name, wrap):
    sampler = toy_sampler({"patching": name, "fusion": "average"})
    for height, width in ((64, 64), (128, 128), (192, 384)):
        run = RunConfig(prompt="", height=height, width=width, num_inference_steps=5, wrap=wrap)
        engine = sampler.engine(run, 0)
        assert all(engine.plan.patches(step)[0].views for step in engine.plan.steps())


def test_a_view_may_go_across_ends_only_where_they_meet():
    across = Patches([View(Span(12, 8, 1, 16), Span(0, 16)), View(Span(4, 8, 1, 16), Span(0, 16))])
    asked = StrategyCall("patching", Windows())
    check_patches(asked, across, Canvas(16, 16, 8, wrap="y"), False)
    for wrap in ("none", "x"):
        assert "leaves the canvas" in complaint(check_patches, asked, across, Canvas(16, 16, 8, wrap=wrap), False)
