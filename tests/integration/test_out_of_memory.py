"""Runs that meet the end of memory: the picture stays, no other rank is disturbed, and it is told."""

import pytest
import torch
from test_ranks import APART

from command_line import vitrail
from often import every
from tiny import in_double
from tiny_families import FAMILIES
from toy import ASG, DETAIL, sample, toy_sampler
from vitrail import hookimpl
from vitrail.backbones.loading import model_errors
from vitrail.backbones.memory.footprint import LiveBytes
from vitrail.backbones.pipeline_backbone import PipelineBackbone
from vitrail.comm import InProcess, Simulated
from vitrail.errors import OutOfMemory
from vitrail.sampling.sampler import Sampler, Spread

CALL = {"height": 128, "width": 96, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
FOX = ("sample", "a fox", "--size", "96x80", "--steps", "2", "-m", "multidiffusion")
RANKS = InProcess(timeout=600)


class Tight:
    """Room for so many rows on one rank, or on all; whoever asks for more is refused as the accelerator refuses."""

    def __init__(self, most):
        self.most, self.seen = most, []

    @hookimpl(wrapper=True)
    def vitrail_predict(self, rows):
        if len(rows.views) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        answer = yield
        self.seen.append(len(rows.views))
        return answer


class Maps:
    """Keeps the attention that masks are made of."""

    def __init__(self):
        self.maps = []

    @hookimpl(wrapper=True)
    def vitrail_mask(self, predicted):
        self.maps.append(predicted.attention)
        return (yield)


def on_ranks(make, count, plugins=lambda rank: (), backend=RANKS, **call):
    """Results by rank of a toy run; every rank has a sampler of its own."""

    def program(communicator):
        own = toy_sampler(*make, plugins=plugins(communicator.rank))
        return sample(own, row_batch=4, guidance_scale=2.0, spread=Spread(communicator=communicator), **call)

    with torch.inference_mode():
        return backend.run(count, program)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most", every(2, [3, 1]))
def test_a_run_short_of_memory_makes_the_picture_of_one_that_is_not(family, most):
    pipe, tight = in_double(FAMILIES[family]()), Tight(most)
    plain = Sampler.from_pipeline(pipe, "multidiffusion")
    wide, narrow = (plain("a fox", row_batch=rows, **CALL).latents for rows in (4, most))
    result = Sampler.from_pipeline(pipe, "multidiffusion", plugins=[("tight", tight)])("a fox", row_batch=4, **CALL)
    for other in (wide, narrow):
        torch.testing.assert_close(result.latents, other)
    assert max(tight.seen) <= most
    assert result.report.notes[0] == "forwards of 2 rows instead of 4: out of memory at step 1"
    assert result.recipes[0].run["row_batch"] == 4


@pytest.mark.parametrize("most", [1, 2, 3])
def test_bit_for_bit_where_the_network_treats_each_row_alone(most):
    whole = sample(toy_sampler(*ASG), row_batch=4, guidance_scale=2.0)
    tight = Tight(most)
    assert torch.equal(
        sample(toy_sampler(*ASG, plugins=[("tight", tight)]), row_batch=4, guidance_scale=2.0, num_images=1), whole
    )


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_captured_map_survives_the_cut(pipe, most):
    """The map of the content words, which the mask is made of, comes from a row in the middle of a micro-batch."""
    pipe, kept = in_double(pipe), {}
    for name, plugins in {"wide": [], "cut": [("tight", Tight(most))]}.items():
        maps = Maps()
        sampler = Sampler.from_pipeline(pipe, "asg", plugins=[*plugins, ("maps", maps)])
        sampler("a fox", row_batch=8, **CALL)
        kept[name] = maps.maps
    wide, cut = ([each for each in kept[name] if each is not None] for name in ("wide", "cut"))
    assert len(wide) > 1
    for ours, theirs in zip(cut, wide, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_was_learnt_holds_for_all_pictures(pipe):
    tight = Tight(2)
    sampler = Sampler.from_pipeline(pipe, "multidiffusion", plugins=[("tight", tight)])
    result = sampler("a fox", row_batch=4, num_images=3, **CALL)
    assert len(result.report.notes) == 1 and len(result.latents) == 3


def test_fixed_memory_refuses_instead(pipe):
    sampler = Sampler.from_pipeline(pipe, "multidiffusion", plugins=[("tight", Tight(2))])
    with pytest.raises(OutOfMemory, match=r"step 1, in a forward of 4 rows of 8x8 .*20.00 GiB.*--row-batch"):
        sampler("a fox", row_batch=4, memory="fixed", **CALL)
    assert sampler("a fox", row_batch=2, memory="fixed", **CALL).report.notes == ()


@pytest.mark.parametrize("backend", [RANKS, Simulated(timeout=600)], ids=["in-process", "simulated"])
@pytest.mark.parametrize("stages", [ASG, (APART, DETAIL)], ids=["exchange", "apart"])
def test_a_rank_short_of_memory_disturbs_no_other(stages, backend):
    alone = sample(toy_sampler(*stages), row_batch=4, guidance_scale=2.0)
    for latents in on_ranks(stages, 3, lambda rank: [("tight", Tight(1 if rank == 1 else 99))], backend):
        assert torch.equal(latents, alone)


def test_every_rank_is_told_whose_memory_was_short():
    def program(communicator):
        plugins = [("tight", Tight(2 if communicator.rank == 1 else 99))]
        call = {"height": 128, "width": 128, "num_inference_steps": 3, "guidance_scale": 2.0, "row_batch": 4}
        sampler = toy_sampler(*ASG, plugins=plugins)
        return sampler("", output_type="latent", spread=Spread(communicator=communicator), **call).report.notes

    with torch.inference_mode():
        assert RANKS.run(2, program) == [("rank 1: forwards of 2 rows instead of 4: out of memory at step 1",)] * 2


def test_ranks_agree_on_the_smallest_number(monkeypatch, pipe):
    sampler = Sampler.from_pipeline(pipe, "multidiffusion")
    free = iter([10**9, 200_000, 10**9])
    monkeypatch.setattr("vitrail.backbones.memory.forecast.free_bytes", lambda device: next(free))

    def program(communicator):
        return sampler.again()("a fox", spread=Spread(communicator=communicator), **CALL).recipes[0].run["row_batch"]

    with torch.inference_mode():
        assert RANKS.run(3, program) == [1, 1, 1]


def test_the_number_that_was_chosen_is_in_the_recipe_and_stays_when_a_run_goes_on(monkeypatch, pipe, tmp_path):
    sampler = Sampler.from_pipeline(pipe, "multidiffusion")
    whole = sampler("a fox", **CALL)
    assert whole.recipes[0].run["row_batch"] == 4
    spread = Spread(checkpoint=tmp_path / "run.ckpt", checkpoint_every=1)
    sampler("a fox", spread=spread, callback_on_step_end=lambda caller, index, *_: caller.interrupt(), **CALL)
    monkeypatch.setattr("vitrail.backbones.memory.forecast.free_bytes", lambda device: 9)
    assert sampler("a fox", **CALL).recipes[0].run["row_batch"] == 1
    resumed = sampler("a fox", spread=spread, memory="fixed", **CALL)
    assert resumed.recipes[0].run["row_batch"] == 4
    assert torch.equal(resumed.latents, whole.latents)


class Meter:
    """The most that a forward held above the level at its entry; the first, which encodes the text, left out."""

    def __init__(self):
        self.peaks = []

    @hookimpl(wrapper=True)
    def vitrail_predict(self):
        with LiveBytes() as live:
            answer = yield
        self.peaks.append(live.peak)
        return answer

    @property
    def peak(self):
        return max(self.peaks[1:])


@pytest.mark.parametrize("method", ["multidiffusion", "asg"])
@pytest.mark.parametrize("row_batch", [1, 2])
def test_what_the_network_takes_does_not_grow_with_the_canvas(pipe, method, row_batch):
    peaks = []
    for side in (64, 128):
        meter = Meter()
        sampler = Sampler.from_pipeline(pipe, method, plugins=[("meter", meter)])
        sampler("a fox", row_batch=row_batch, **CALL | {"height": side, "width": side, "num_inference_steps": 2})
        peaks.append(meter.peak)
    assert max(peaks) <= 1.02 * min(peaks)


def test_the_command_line_tells_of_forwards_that_were_cut(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = PipelineBackbone.predict

    def predict(backbone, rows, *rest):
        if len(rows.views) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(backbone, rows, *rest)

    monkeypatch.setattr(PipelineBackbone, "predict", predict)
    told = vitrail(monkeypatch, capsys, *FOX, "--model", folder, "-o", "fox.png")
    assert told.code == 0, told.err
    assert "4 rows a forward: about " in told.out
    assert "\nforwards of 2 rows instead of 4: out of memory at step 1\n" in told.out
    told = vitrail(monkeypatch, capsys, *FOX, "--model", folder, "-o", "fixed.png", "--memory", "fixed")
    assert told.code == 1 and 'memory is "fixed"' in told.err
    told = vitrail(monkeypatch, capsys, *FOX, "--model", folder, "--memory", "all")
    assert told.code == 2 and "--memory" in told.err


@pytest.mark.parametrize(
    "message",
    [
        "could not create a primitive",
        "Failed to import a module because of the following error:\nx.so: failed to map segment from shared object",
    ],
)
def test_memory_that_runs_out_inside_a_model_is_no_fault_of_its_files(monkeypatch, message):
    monkeypatch.setattr(model_errors, "is_inside_a_model", lambda error: True)
    with pytest.raises(RuntimeError) as caught, model_errors.model_blamed("demo", "cannot be loaded"):
        raise RuntimeError(message)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("message", "shown"), [("a\nb", ": a"), ("because of:\n  a\nb", ": because of: a"), ("of:", ": of:"), ("", "")]
)
def test_an_error_of_a_library_is_quoted_with_its_reason(message, shown):
    assert model_errors.first_line_of(RuntimeError(message)) == f"RuntimeError{shown}"
