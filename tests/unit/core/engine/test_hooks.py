"""Plugins of one run: what is refused before it, what may be wrapped, what an error says."""

from types import SimpleNamespace

import attrs
import pytest
import torch

from toy import composition, sample, toy_sampler
from vitrail import hookimpl
from vitrail.core.engine.hooks import CompositionHooks, Hooks
from vitrail.core.method.calls import unnamed
from vitrail.core.method.hookspecs import EXCLUSIVE
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CompositionError, RegistrationError, ShapeError
from vitrail.sampling.sampler import Sampler

SMALL = {"size": 16, "steps": 3}


def stages(*plugins):
    answers = CompositionHooks(
        composition({"patching": "whole", "fusion": "average"}),
        SimpleNamespace(predict=None, named=unnamed),
        4,
        Streams(0),
    )
    return Hooks(answers, plugins)


def plugin_of(hook, function, **options):
    return type("Plugin", (), {hook: hookimpl(**options)(function)})()


def wrapper_of(hook, change):
    """A wrapper that hands on ``change(answer)``."""

    def wrapped(self):
        return change((yield))

    return plugin_of(hook, wrapped, wrapper=True)


class Watch:
    """Notes every observer call."""

    def __init__(self):
        self.calls = []

    @hookimpl
    def vitrail_run_start(self, num_steps, model_calls):
        self.calls.append(("run_start", num_steps, model_calls))

    @hookimpl
    def vitrail_step_end(self, step):
        self.calls.append(("step_end", step.index))

    @hookimpl
    def vitrail_run_end(self, latents):
        self.calls.append(("run_end", tuple(latents.shape)))


def keyword_only(self, *, step):
    raise AssertionError


@pytest.mark.parametrize(
    ("plugin", "wrong"),
    [
        (plugin_of("vitrail_guid", lambda self, step: None), "vitrail_guid'"),
        (plugin_of("vitrail_step_end", lambda self, stp: None), "stp"),
        (plugin_of("vitrail_step_end", lambda self, stp=None: None), "'stp', which is never passed"),
        (plugin_of("vitrail_step_end", lambda self, **anything: None), "'anything', which is never passed"),
        (plugin_of("vitrail_step_end", keyword_only), "'step', which is never passed"),
        (object(), "implements no hook"),
        (Watch, r"class Watch.*forgotten the `\(\)`"),
    ],
    ids=["hook", "argument", "argument-with-default", "kwargs", "keyword-only", "no-hook", "class"],
)
def test_mistakes_are_refused_with_the_plugin_named(plugin, wrong):
    with pytest.raises(RegistrationError, match=rf"(?s)plugin 'mine'.*{wrong}"):
        stages(("mine", plugin))


def test_an_argument_of_the_hook_may_have_a_default():
    seen = []
    plugin = plugin_of("vitrail_step_end", lambda self, step=None: seen.append(step))
    sample(toy_sampler(plugins=[("mine", plugin)]), **SMALL)
    assert [step.index for step in seen] == [0, 1, 2]


@pytest.mark.parametrize(("hook", "steps"), [("vitrail_run_start", 0), ("vitrail_step_end", 1), ("vitrail_run_end", 3)])
def test_what_an_observer_returns_is_refused_since_nothing_would_come_of_it(hook, steps):
    watch, plugin = Watch(), plugin_of(hook, lambda self: torch.zeros(1, 4, 8, 8))
    with pytest.raises(ShapeError, match=rf"{hook}.* of .*mine must return nothing, got float32 \(1, 4, 8, 8\)"):
        sample(toy_sampler(plugins=[("watch", watch), ("mine", plugin)]), **SMALL)
    assert sum(name == "step_end" for name, *_ in watch.calls) == steps


def test_one_name_twice_and_one_plugin_twice_are_refused():
    one = Watch()
    for plugins in ((("mine", Watch()), ("mine", Watch())), (("mine", one), ("other", one))):
        with pytest.raises(RegistrationError, match="already"):
            stages(*plugins)


def test_equal_plugins_are_refused_and_not_mistaken_for_one():
    @attrs.frozen
    class Equal:
        @hookimpl
        def vitrail_step_end(self, step):
            pass

    with pytest.raises(RegistrationError, match="'second'"):
        stages(("first", Equal()), ("second", Equal()))


@pytest.mark.parametrize("hook", EXCLUSIVE)
def test_a_second_answer_to_an_exclusive_stage_names_both(hook):
    with pytest.raises(CompositionError, match=f"plugin 'rogue' answers {hook}, which plugin 'composition' answers"):
        stages(("rogue", plugin_of(hook, lambda self: None)))


def test_wrappers_that_hand_on_what_they_received_change_no_bit(pipe):
    call = {"height": 128, "width": 96, "num_inference_steps": 4, "output_type": "latent"}
    plain = Sampler.from_pipeline(pipe, "asg")("a fox", **call).latents
    for order in (EXCLUSIVE, EXCLUSIVE[::-1]):
        plugins = [(hook, wrapper_of(hook, lambda answer: answer)) for hook in order]
        wrapped = Sampler.from_pipeline(pipe, "asg", plugins=[*plugins, ("watch", Watch())])("a fox", **call).latents
        assert torch.equal(wrapped, plain)


@pytest.mark.parametrize("hook", EXCLUSIVE)
def test_a_wrapper_that_returns_nothing_is_told(hook):
    sampler = toy_sampler(plugins=[("forgetful", wrapper_of(hook, lambda answer: None))])
    with pytest.raises(ShapeError, match=rf"at step 1 of 3 must give .*got nothing; {hook} is wrapped by forgetful"):
        sample(sampler, **SMALL)


@pytest.mark.parametrize(
    ("hook", "change", "told"),
    [
        (
            "vitrail_fuse",
            lambda fused: fused[..., :-1],
            r"must return the canvas as .*\(1, 4, 16, 16\).*, got .*\(1, 4, 16, 15\)",
        ),
        ("vitrail_guide", lambda pair: (pair[0].clean, pair[1]), "received a Prediction and returned a Tensor"),
        ("vitrail_guide", lambda pair: (*pair, None), r"must give \(subject, state\), got a tuple of 3"),
        ("vitrail_mask", lambda pair: pair[:1], r"must give \(mask, state\), got a tuple of 1"),
    ],
)
def test_another_shape_or_kind_is_told(hook, change, told):
    with pytest.raises(ShapeError, match=told):
        sample(toy_sampler(plugins=[("bender", wrapper_of(hook, change))]), **SMALL)


@pytest.mark.parametrize("hook", [*EXCLUSIVE, "vitrail_step_end"])
def test_an_exception_in_a_plugin_says_where_and_when(hook):
    def fail(self, step):
        if step.index == 1:
            raise KeyError("mine")
        if hook in EXCLUSIVE:
            return (yield)
        return None

    def observe(self, step):
        next(fail(self, step), None)

    wrapped = hook in EXCLUSIVE
    plugin = plugin_of(hook, fail if wrapped else observe, wrapper=wrapped)
    with pytest.raises(KeyError, match="mine") as caught:
        sample(toy_sampler(plugins=[("shaky", plugin)]), steps=4)
    (note,) = caught.value.__notes__
    assert hook in note
    assert "at step 2 of 4" in note
    assert "shaky" in note


def test_observers_see_the_run_in_order():
    watch = Watch()
    sampler = toy_sampler(plugins=[("watch", watch)])
    sample(sampler, **SMALL)
    ((_, num_steps, model_calls), *steps, end) = watch.calls
    assert num_steps == 3
    assert model_calls > 3
    assert steps == [("step_end", i) for i in range(3)]
    assert end == ("run_end", (1, 4, 16, 16))


def test_a_run_that_raised_has_no_end():
    def fail(self, step):
        raise KeyError

    watch = Watch()
    sampler = toy_sampler(plugins=[("watch", watch), ("shaky", plugin_of("vitrail_step_end", fail))])
    with pytest.raises(KeyError):
        sample(sampler, **SMALL)
    assert watch.calls[-1][0] != "run_end"


def test_two_runs_do_not_see_each_other_even_within_one_another():
    outer, inner = Watch(), Watch()
    other = toy_sampler(plugins=[("watch", inner)])
    alone = sample(toy_sampler(), **SMALL)

    def nested(sampler, index, timestep, state):
        sample(other, size=16, steps=2, seed=9)

    assert torch.equal(sample(toy_sampler(plugins=[("watch", outer)]), callback_on_step_end=nested, **SMALL), alone)
    assert [call[0] for call in outer.calls] == ["run_start", *["step_end"] * 3, "run_end"]
    assert [call[0] for call in inner.calls] == ["run_start", *["step_end"] * 2, "run_end"] * 3
