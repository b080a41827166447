"""The public face: the call, its callbacks and outputs, and what it leaves behind."""

import threading

import pytest
import torch
from structlog.testing import capture_logs

from toy import toy_sampler
from vitrail import hookimpl
from vitrail.core.config.log import EVENTS
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import CapabilityError, ConfigError, ModelError
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

CALL = {"height": 96, "width": 64, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
SHAPE = (1, 4, 12, 8)


@pytest.fixture
def sampler(pipe):
    return Sampler.from_pipeline(pipe, "multidiffusion")


def latents(sampler, **call):
    return sampler("a fox", **(CALL | call)).latents


# ---------------------------------------------------------------- callbacks


def test_callback_is_called_as_diffusers_calls_it(pipe):
    calls = {"ours": [], "theirs": []}

    def note(where):
        def callback(caller, index, timestep, kwargs):
            calls[where].append((index, float(timestep), tuple(kwargs["latents"].shape), sorted(kwargs)))
            return kwargs

        return callback

    call = {"height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    Sampler.from_pipeline(pipe, "direct")("a fox", callback_on_step_end=note("ours"), **call)
    pipe("a fox", callback_on_step_end=note("theirs"), **call)
    assert calls["ours"] == calls["theirs"] and len(calls["ours"]) == 3


def test_callback_may_return_nothing(sampler):
    seen = []
    plain = latents(sampler)
    for answer in (None, {}):
        given = latents(sampler, callback_on_step_end=lambda *call, answer=answer: seen.append(call[0]) or answer)
        assert torch.equal(given, plain)
    assert len(seen) == 8 and all(caller.sampler is sampler for caller in seen)


def test_callback_may_replace_the_latents(sampler):
    def silence(caller, index, timestep, kwargs):
        return {"latents": torch.zeros_like(kwargs["latents"])} if index == 3 else {}

    assert not latents(sampler, callback_on_step_end=silence).any()
    early = latents(sampler, callback_on_step_end=lambda c, i, t, k: {"latents": k["latents"] * (0.5 if i == 0 else 1)})
    assert not torch.equal(early, latents(sampler))


def test_error_in_a_callback_is_passed_on(sampler):
    def fail(*call):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        latents(sampler, callback_on_step_end=fail)
    assert torch.equal(latents(sampler), latents(sampler))


# ---------------------------------------------------------------- interrupts


def stop_at(index):
    return lambda caller, i, timestep, kwargs: caller.interrupt() if i == index else None


def test_interrupt_keeps_what_is_there(sampler):
    predictions = []

    class Watch:
        from vitrail import hookimpl

        @hookimpl
        def vitrail_step_end(self, prediction):
            predictions.append(prediction.clean)

    watched = Sampler(sampler.backbone, sampler.composition, model="pipeline", plugins=[("watch", Watch())])
    with capture_logs() as events:
        result = watched("a fox", callback_on_step_end=stop_at(1), **(CALL | {"output_type": "pil"}))
    assert result.report.interrupted and result.report.steps == 2 and len(predictions) == 2
    assert torch.equal(result.latents, predictions[1])
    assert [image.size for image in result.images] == [(64, 96)]
    assert {"event": "run.interrupted", "step": 2, "log_level": "info"}.items() <= find(
        events, "run.interrupted"
    ).items()
    assert not sampler("a fox", **CALL).report.interrupted


def test_interrupt_at_the_last_step_is_too_late_to_matter(sampler):
    result = sampler("a fox", callback_on_step_end=stop_at(3), **CALL)
    assert not result.report.interrupted and torch.equal(result.latents, latents(sampler))


def test_interrupt_among_several_pictures(sampler):
    count = []

    def stop(caller, index, timestep, kwargs):
        count.append(index)
        if len(count) == 6:
            caller.interrupt()

    result = sampler("a fox", num_images=3, callback_on_step_end=stop, **CALL)
    assert result.report.interrupted and result.report.steps == 6
    assert len(result.latents) == len(result.recipes) == 2
    assert torch.equal(result.latents[:1], latents(sampler))


@pytest.mark.parametrize("from_thread", [False, True], ids=["here", "another thread"])
def test_interrupt_before_a_call_stops_that_call_and_no_other(sampler, from_thread):
    plain = latents(sampler)
    if from_thread:
        other = threading.Thread(target=sampler.interrupt)
        other.start()
        other.join()
    else:
        sampler.interrupt()
        sampler.interrupt()
    result = sampler("a fox", **CALL)
    assert result.report.interrupted and result.report.steps == 0 and result.report.model_calls == 0
    result = sampler("a fox", **CALL)
    assert not result.report.interrupted and torch.equal(result.latents, plain)


def test_interrupt_stops_every_run_at_work_and_none_that_comes_later(sampler):
    reached, go_on, results = threading.Barrier(3), threading.Event(), []

    def wait(caller, index, timestep, kwargs):
        if index == 0:
            reached.wait(60)
            go_on.wait(60)

    def run():
        results.append(sampler("a fox", callback_on_step_end=wait, **CALL))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    reached.wait(60)
    sampler.interrupt()
    go_on.set()
    for thread in threads:
        thread.join()
    assert [(one.report.interrupted, one.report.steps) for one in results] == [(True, 1)] * 2
    assert not sampler("a fox", **CALL).report.interrupted


def test_interrupt_outlives_a_call_that_was_refused_before_it_began(sampler):
    sampler.interrupt()
    with pytest.raises(ConfigError):
        sampler("a fox", **(CALL | {"height": 32}))
    assert sampler("a fox", **CALL).report.interrupted
    assert not sampler("a fox", **CALL).report.interrupted


def test_a_callback_may_interrupt_as_with_diffusers(sampler):
    def stop(pipeline, index, timestep, kwargs):
        pipeline._interrupt = index == 1
        return kwargs

    result = sampler("a fox", callback_on_step_end=stop, **CALL)
    assert result.report.interrupted and result.report.steps == 2


# ---------------------------------------------------------------- what goes in and comes out


def test_output_types(sampler):
    made = {kind: sampler("a fox", **(CALL | {"output_type": kind})) for kind in ("pil", "pt", "latent")}
    assert made["pil"].images[0].size == (64, 96)
    (picture,) = made["pt"].images
    assert picture.shape == (3, 96, 64) and picture.dtype == torch.float32
    assert float(picture.min()) >= 0 and float(picture.max()) <= 1
    assert made["latent"].images is made["latent"].latents and made["latent"].latents.shape == SHAPE
    assert made["latent"].report.vae_decodes == 0 and made["pt"].report.vae_decodes == 1
    assert torch.equal(made["pil"].latents, made["pt"].latents)
    with pytest.raises(ConfigError, match="output_type must be pil, np, pt or latent, got 'file'"):
        sampler("a fox", **(CALL | {"output_type": "file"}))


def test_pictures_have_the_asked_size_whatever_the_canvas(sampler):
    result = sampler("a fox", height=101, width=67, num_inference_steps=1)
    assert result.images[0].size == (67, 101)


def test_latents_of_the_users_own(sampler):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    kept = noise.clone()
    first, second = latents(sampler, latents=noise), latents(sampler, latents=noise, seed=9)
    assert torch.equal(first, second) and torch.equal(noise, kept)
    assert not torch.equal(first, latents(sampler))
    with pytest.raises(ConfigError, match=r"latents must be \(1, 4, 12, 8\) for this canvas, got \(1, 4, 8, 12\)"):
        latents(sampler, latents=noise.transpose(2, 3))


TYPES = [torch.float16, torch.bfloat16, torch.float64]


class Types:
    """Notes the types of what a step shows."""

    def __init__(self):
        self.seen = set()

    @hookimpl
    def vitrail_step_end(self, latents, prediction):
        self.seen |= {latents.dtype, prediction.latents.dtype, prediction.model_output.dtype}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("how", ["latents", "image", "image and latents"])
def test_the_canvas_is_float32_whatever_type_it_is_given_in(sampler, how, dtype):
    brought = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)).to(dtype)
    types = Types()
    watched = Sampler(sampler.backbone, sampler.composition, model="pipeline", plugins=[("types", types)])
    wide, given = (dict.fromkeys(how.split(" and "), value) for value in (brought.float(), brought))
    strength = {"strength": 0.5} if "image" in how else {}
    found = latents(watched, **given, **strength)
    assert types.seen == {torch.float32} and found.dtype == torch.float32
    assert torch.equal(found, latents(sampler, **wide, **strength))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_latents_of_a_callback_are_taken_over_in_float32(sampler, dtype):
    def cast(to):
        return lambda caller, i, timestep, kwargs: {"latents": kwargs["latents"].to(dtype).to(to)}

    types = Types()
    watched = Sampler(sampler.backbone, sampler.composition, model="pipeline", plugins=[("types", types)])
    found = latents(watched, callback_on_step_end=cast(dtype))
    assert types.seen == {torch.float32} and found.dtype == torch.float32
    assert torch.equal(found, latents(sampler, callback_on_step_end=cast(torch.float32)))


def test_latents_of_a_callback_must_fit_the_canvas(sampler):
    with pytest.raises(
        ConfigError, match=r"callback_on_step_end returned latents of torch.float32 \(1, 4, 12, 4\); they must be"
    ):
        latents(sampler, callback_on_step_end=lambda c, i, t, kwargs: {"latents": kwargs["latents"][..., :4]})


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"guidance_scal": 3.0}, "a run has no key 'guidance_scal' (did you mean 'guidance_scale'?)"),
        ({"steps": 3}, "a run has no key 'steps' (did you mean 'num_inference_steps'?)"),
        ({"height": 32}, "$.height: must be >= 64, got 32"),
        ({"seed": 1.0}, "$.seed: expected a whole number, got 1.0"),
        ({"method": "asg"}, "method belong"),
        ({"scheduler": "Euler"}, "no scheduler named 'Euler' (did you mean 'EulerDiscreteScheduler'?)"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be at most 1000"),
    ],
)
def test_wrong_options_are_refused_before_the_first_step(sampler, option, expected):
    with pytest.raises(ConfigError) as caught:
        latents(sampler, callback_on_step_end=lambda *call: pytest.fail("a step was done"), **option)
    assert expected in str(caught.value)


def test_only_pipelines_that_are_known_are_taken(pipe):
    class KandinskyPipeline:
        """Another class."""

    with pytest.raises(ModelError, match=r"(?s)no adapter for 'KandinskyPipeline'; known:.*StableDiffusionPipeline"):
        Sampler.from_pipeline(KandinskyPipeline(), "direct")
    with pytest.raises(ModelError, match="no adapter for 'str'"):
        Sampler.from_pipeline("a/folder", "direct")
    with pytest.raises(ConfigError, match="no method named 'dirct' \\(did you mean 'direct'\\?\\)"):
        Sampler.from_pipeline(pipe, "dirct")


def test_method_that_the_model_cannot_serve_is_refused():
    with pytest.raises(CapabilityError, match="PromptAttention needs 'attention-maps'"):
        Sampler(toy_sampler().backbone, load_method("asg"), model="analytic")


# ---------------------------------------------------------------- no hidden state


def test_seed_alone_decides(sampler):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = latents(sampler, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(latents(sampler, seed=5), first)
    assert not torch.equal(latents(sampler, seed=6), first)


@pytest.mark.parametrize("method", ["asg-plus", "multidiffusion"])
def test_sampler_used_again_gives_the_same_picture(pipe, method):
    sampler = Sampler.from_pipeline(pipe, method)
    first = latents(sampler)
    sampler("the", height=64, width=128, num_inference_steps=2, seed=8, scheduler="DDIMScheduler")
    sampler("a", callback_on_step_end=stop_at(0), **CALL)
    assert torch.equal(latents(sampler), first)
    assert torch.equal(latents(Sampler.from_pipeline(pipe, method)), first)


def test_plan_changes_nothing(sampler):
    first = latents(sampler)
    plan = sampler.plan(RunConfig(prompt="a fox", height=96, width=64, num_inference_steps=4))
    assert sum(stage.num_steps for stage in plan.stages) == 4
    assert torch.equal(latents(sampler), first)


# ---------------------------------------------------------------- events and report


def find(events, name):
    (found,) = [event for event in events if event["event"] == name]
    return found


def documented(name):
    """Keys that the list of events promises."""
    return set(EVENTS[name].partition(": ")[2].split(", "))


def test_events_have_the_documented_keys(sampler):
    with capture_logs() as events:
        result = sampler("a fox", **CALL)
    names = [event["event"] for event in events]
    assert set(names) <= set(EVENTS)
    assert names[-6:] == ["run.started", *["step.finished"] * 4, "run.finished"]
    for event in events:
        assert documented(event["event"]) <= set(event), event
        assert all(isinstance(value, (str, int, float, bool, list, tuple)) for value in event.values()), event
    started, finished = find(events, "run.started"), find(events, "run.finished")
    assert started["run_id"] == finished["run_id"]
    assert (started["seed"], started["height"], started["width"], started["num_inference_steps"]) == (0, 96, 64, 4)
    assert [event["step"] for event in events if event["event"] == "step.finished"] == [0, 1, 2, 3]
    assert sum(event["rows"] for event in events if event["event"] == "step.finished") == started["model_calls"]
    assert finished["model_calls"] == result.report.model_calls == started["model_calls"]


def test_report_adds_pictures_up(sampler):
    one, two = (sampler("a fox", num_images=n, **CALL).report for n in (1, 2))
    assert (one.steps, two.steps) == (4, 8) and two.model_calls == 2 * one.model_calls
    assert 0 < one.predict_s <= one.engine_s and one.decode_s >= 0 and not one.interrupted


@pytest.mark.parametrize("method", ["direct", "multidiffusion"])
def test_a_recipe_names_the_method_that_made_the_picture(pipe, method):
    sampler = Sampler.from_pipeline(pipe, method)
    for each in (sampler, sampler.again()):
        recipe = each("a fox", **(CALL | {"output_type": "latent"})).recipes[0]
        assert recipe.run["method"] == method and f"Method: {method}," in recipe.parameters()
