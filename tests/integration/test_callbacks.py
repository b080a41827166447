"""diffusers' callback contract: the same callback does the same here as in the plain pipeline, or is refused."""

import pytest
import torch
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SD3CFGCutoffCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
    SDXLControlnetCFGCutoffCallback,
)

from adapters import build, control_network, controlled, hint
from parity import CALL, SIDE, TEXTS, differ, noise, ours, plain, theirs, wrap
from tiny_families import FAMILIES
from vitrail.comm import InProcess
from vitrail.errors import CommAborted, ConfigError, ProtocolError
from vitrail.sampling.sampler import Sampler, Spread

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

CUTOFFS = {"sd": SDCFGCutoffCallback, "sdxl": SDXLCFGCutoffCallback, "sd3": SD3CFGCutoffCallback}
STEPS = {"num_inference_steps": 4}


@pytest.mark.parametrize("when", [{"cutoff_step_ratio": 0.5}, {"cutoff_step_ratio": None, "cutoff_step_index": 0}])
@pytest.mark.parametrize("family", TEXTS)
def test_guidance_is_cut_off_as_in_the_plain_pipeline(family, when):
    pipe, sampler = plain(family), wrap(plain(family))
    made = ours(sampler, pipe, callback_on_step_end=CUTOFFS[family](**when), **STEPS)
    assert torch.equal(made, theirs(pipe, callback_on_step_end=CUTOFFS[family](**when), **STEPS))
    assert not torch.equal(made, ours(sampler, pipe, **STEPS))


def test_guidance_is_cut_off_with_a_control_network():
    pipe = FAMILIES["sdxl"]()
    pipe, given = controlled(pipe, control_network(pipe.unet)), hint(SIDE, SIDE)
    call = STEPS | {"callback_on_step_end": SDXLControlnetCFGCutoffCallback(cutoff_step_ratio=0.5)}
    made = ours(wrap(pipe), pipe, control_image=given, **call)
    assert torch.equal(made, theirs(pipe, image=given, **call))


def test_an_ip_adapter_is_cut_off_and_counts_again_in_the_next_run():
    pipe, more = build("sd", "ip-adapter")
    sampler = wrap(pipe)
    before = ours(sampler, pipe, **more, **STEPS)
    call = STEPS | more | {"callback_on_step_end": IPAdapterScaleCutoffCallback(cutoff_step_ratio=0.5)}
    made = ours(sampler, pipe, **call)
    assert torch.equal(ours(sampler, pipe, **more, **STEPS), before)
    assert torch.equal(made, theirs(pipe, **call))
    assert differ(made, before)


class Fade(PipelineCallback):
    """Weakens the latents after every step."""

    tensor_inputs = ("latents",)

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        return callback_kwargs | {"latents": 0.5 * callback_kwargs["latents"]}


def test_several_callbacks_in_one():
    pipe = plain("sdxl")
    both = MultiPipelineCallbacks([SDXLCFGCutoffCallback(cutoff_step_ratio=0.25), Fade()])
    made = ours(wrap(pipe), pipe, callback_on_step_end=both, **STEPS)
    assert torch.equal(made, theirs(pipe, callback_on_step_end=both, **STEPS))


@pytest.mark.parametrize("family", TEXTS)
def test_a_scale_that_is_set_counts_from_the_next_step_on(family):
    def weaken(pipe, index, timestep, tensors):
        if index == 1:
            pipe._guidance_scale = 2.0
        return tensors

    pipe, sampler = plain(family), wrap(plain(family))
    made = ours(sampler, pipe, callback_on_step_end=weaken, **STEPS)
    assert torch.equal(made, theirs(pipe, callback_on_step_end=weaken, **STEPS))
    assert differ(made, ours(sampler, pipe, **STEPS))


READ = ("num_timesteps", "guidance_scale", "do_classifier_free_guidance", "clip_skip")
READ += tuple(f"_{name}" for name in ("num_timesteps", "guidance_scale", "interrupt", "clip_skip"))


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize("family", TEXTS)
def test_a_callback_reads_what_it_reads_in_the_plain_pipeline(family, guidance_scale):
    seen = {"ours": [], "theirs": []}
    pipe = plain(family)
    names = [name for name in wrap(pipe).backbone.callback_inputs if guidance_scale > 1 or "negative" not in name]

    def look(where):
        def callback(run, index, timestep, tensors):
            told = [getattr(run, name) for name in READ] + [bool(run.interrupt), run.vae is pipe.vae]
            sigmas = [float(sigma) for sigma in run.scheduler.sigmas]
            seen[where].append((index, float(timestep), told, sigmas, {k: v.clone() for k, v in tensors.items()}))
            return tensors

        return callback

    call = STEPS | {"guidance_scale": guidance_scale, "callback_on_step_end_tensor_inputs": names}
    ours(wrap(pipe), pipe, callback_on_step_end=look("ours"), **call)
    theirs(pipe, callback_on_step_end=look("theirs"), **call)
    assert len(seen["ours"]) == 4
    for mine, own in zip(seen["ours"], seen["theirs"], strict=True):
        assert mine[:4] == own[:4] and mine[4].keys() == own[4].keys() == set(names)
        assert all(torch.equal(mine[4][name], own[4][name]) for name in names)


def test_steps_are_counted_from_the_picture_that_a_run_starts_from():
    seen = []

    def look(run, index, timestep, tensors):
        seen.append((index, run.num_timesteps))

    pipe = plain("sd")
    wrap(pipe)("a fox", image=noise(pipe), strength=0.5, callback_on_step_end=look, **(CALL | STEPS))
    assert seen == [(0, 2), (1, 2)]


def test_interrupt_is_set_as_in_diffusers_and_asked_for_as_here():
    pipe = plain("sd")

    def stop(run, index, timestep, tensors):
        if index == 1:
            run._interrupt = True
            assert run.interrupt and run._interrupt

    result = wrap(pipe)("a fox", callback_on_step_end=stop, **(CALL | STEPS))
    assert result.report.interrupted and result.report.steps == 2


def test_every_picture_begins_with_the_runs_own_guidance():
    pipe = plain("sd")

    def cut(run, index, timestep, tensors):
        if index == 1:
            run._guidance_scale = 0.0

    sampler, call = wrap(pipe), CALL | STEPS | {"callback_on_step_end": cut}
    both = sampler("a fox", seed=4, num_images=2, **call)
    apart = [sampler("a fox", seed=seed, **call).latents for seed in (4, 5)]
    assert torch.equal(both.latents, torch.cat(apart))
    assert both.recipes[0].given == {"callback_on_step_end": "changed the run"}
    assert sampler("a fox", **(call | {"callback_on_step_end": lambda *step: None})).recipes[0].given == {}


def test_a_windowed_run_without_its_second_branch_costs_half():
    pipe = plain("sd")
    call = CALL | STEPS | {"height": 2 * SIDE, "callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.5)}
    result = wrap(pipe, "multidiffusion")("a fox", **call)
    whole = wrap(pipe, "multidiffusion")("a fox", **(call | {"callback_on_step_end": None}))
    assert 8 * result.report.model_calls == 7 * whole.report.model_calls  # the cut-off is after the third of four steps


# ---------------------------------------------------------------- what is refused


def setting(name, value):
    return lambda run, index, timestep, tensors: setattr(run, name, value)


def returning(**changed):
    return lambda run, index, timestep, tensors: tensors | {name: make(tensors) for name, make in changed.items()}


def writing(run, index, timestep, tensors):
    tensors["prompt_embeds"].mul_(0)


PROMPT = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}


@pytest.mark.parametrize(
    ("callback", "call", "told"),
    [
        (setting("_guidence_scale", 1.0), {}, "did you mean '_guidance_scale'?"),
        (setting("guidance_scale", 1.0), {}, "set '_guidance_scale', as for a diffusers pipeline"),
        (setting("_clip_skip", 1), {}, "a callback set '_clip_skip', and nothing would come of it"),
        (setting("_guidance_scale", "high"), {}, "which is no number"),
        (setting("_guidance_scale", float("nan")), {}, "which is not finite"),
        (setting("_guidance_rescale", 2.0), {}, "it is a share, from 0 to 1"),
        (setting("_guidance_scale", 3.0), {"guidance_scale": 1.0}, "the run began without guidance"),
        (returning(prompt_embeds=lambda given: 0), {}, "returned 'prompt_embeds', which would be ignored"),
        (returning(prompt_embeds=lambda given: given["prompt_embeds"] * 2), PROMPT, "changed 'prompt_embeds'"),
        (returning(prompt_embeds=lambda given: given["prompt_embeds"][-1:]), PROMPT, "changed 'prompt_embeds'"),
        (writing, PROMPT, "changed 'prompt_embeds'"),
        (returning(latents=lambda given: given["latents"][..., :4]), {}, "returned latents of torch.float32"),
        (returning(latents=lambda given: 0), {}, "returned latents of int"),
        (lambda *step: [], {}, "must return a dict of tensors or None, got list"),
        (lambda *step: None, {"callback_on_step_end_tensor_inputs": ["prompt_embed"]}, "did you mean 'prompt_embeds'?"),
        (None, {"callback_on_step_end_tensor_inputs": ["latents"]}, "needs a callback_on_step_end"),
        (Fade(), PROMPT, "Fade declares itself what it receives, tensor_inputs = ['latents'], so the list of the call"),
    ],
)
def test_what_a_run_would_ignore_is_refused(callback, call, told):
    with pytest.raises(ConfigError) as caught:
        ours(wrap(plain("sd")), plain("sd"), callback_on_step_end=callback, **call)
    assert told in str(caught.value)


def test_a_callback_that_declares_its_tensors_may_be_given_the_same_list():
    call = {"callback_on_step_end": Fade(), **STEPS}
    made, again = (
        ours(wrap(plain("sd")), plain("sd"), **call, **more)
        for more in ({}, {"callback_on_step_end_tensor_inputs": ["latents"]})
    )
    assert torch.equal(made, again)


def test_an_empty_list_of_tensors_is_none_of_them():
    seen = []
    call = {"callback_on_step_end_tensor_inputs": [], "callback_on_step_end": lambda *step: seen.append(step[3])}
    ours(wrap(plain("sd")), plain("sd"), **call)
    assert seen == [{}] * 3


def test_a_checkpoint_does_not_go_with_guidance_that_changes(tmp_path):
    call = CALL | {"callback_on_step_end": setting("_guidance_scale", 0.0), "spread": Spread(checkpoint=tmp_path / "c")}
    with pytest.raises(ConfigError, match="which a checkpoint does not keep"):
        wrap(plain("sd"))("a fox", **call)


def test_a_guidance_of_the_branches_keeps_both():
    call = CALL | {"callback_on_step_end": setting("_guidance_scale", 0.0)}
    with pytest.raises(ConfigError, match="of the method combines its branches"):
        wrap(plain("sd"), "scalecrafter-damped")("a fox", **call)


# ---------------------------------------------------------------- ranks


def on_ranks(callback_of):
    """Final latents by rank, with a callback of each."""
    backbone = wrap(plain("sd"), "multidiffusion").backbone

    def program(communicator):
        sampler = Sampler(backbone, wrap(plain("sd"), "multidiffusion").composition, model="pipeline")
        spread, callback = Spread(communicator=communicator), callback_of(communicator.rank)
        call = CALL | {"height": 2 * SIDE, "callback_on_step_end": callback}
        return sampler("a fox", spread=spread, **call).latents

    with torch.inference_mode():
        return InProcess(timeout=600).run(2, program)


def test_callbacks_that_act_alike_give_the_picture_of_one_rank():
    cut = setting("_guidance_scale", 0.0)
    alone = wrap(plain("sd"), "multidiffusion")("a fox", **(CALL | {"height": 2 * SIDE, "callback_on_step_end": cut}))
    assert all(torch.equal(each, alone.latents) for each in on_ranks(lambda rank: cut))


@pytest.mark.parametrize(
    ("callback_of", "told"),
    [
        (lambda rank: setting("_guidance_scale", 0.0 if rank else 5.0), "what callbacks set as _guidance_scale"),
        (lambda rank: setting("_interrupt", bool(rank)), "what callbacks set as _interrupt"),
        (
            lambda rank: returning(latents=lambda given: given["latents"] * (1 + rank)),
            "the latents that callbacks left",
        ),
        (lambda rank: None if rank else lambda *step: None, "callback: "),
    ],
)
def test_callbacks_that_differ_end_the_run(callback_of, told):
    with pytest.raises((CommAborted, ProtocolError), match=told):
        on_ranks(callback_of)
