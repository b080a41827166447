"""Upscalers in a run: what finishes a picture, what enters a size, ranks, files, edges that meet, and bad answers."""

import functools
import json
import os
import re
from typing import ClassVar

import pytest
import torch
from attrs import evolve, field, frozen
from PIL import Image

from command_line import vitrail
from rrdb_files import random_weights, write
from tiny_families import tiny_sd
from vitrail import Sampler, hookimpl
from vitrail.comm import InProcess
from vitrail.comm.backends.in_process import solo
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.exchange import Exchange
from vitrail.core.engine.resize import sharpened
from vitrail.core.engine.upscaling import upscaled
from vitrail.core.method.calls import StrategyCall
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError, DecodeError
from vitrail.plugins.upscaler.lanczos import Lanczos, lanczos
from vitrail.plugins.upscaler.rrdbnet import RRDBNet
from vitrail.sampling.discovery import installed
from vitrail.sampling.kept_latents import save_latents
from vitrail.sampling.methods import composition_of
from vitrail.sampling.recipe import save_picture
from vitrail.sampling.sampler import Spread

WHOLE = {"patching": "whole", "fusion": "average"}
CALL = {"height": 150, "width": 101, "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt", "seed": 3}
RUN = RunConfig(prompt="a fox", height=150, width=101, num_inference_steps=2)


@pytest.fixture
def rrdbnet(tmp_path):
    return {"type": "rrdbnet", "file": write(tmp_path / "net.safetensors")}


def finished(upscaler, **options):
    return {"stages": [WHOLE], "finish": {"upscaler": upscaler, **options}}


def entered(upscaler, **options):
    enter = {"resize": "pixels", "strength": [0.5], "upscaler": upscaler, **options}
    return {"cascade": {"count": 1}, "stages": [WHOLE, WHOLE | {"enter": enter, "guidance": ["wavelet"]}]}


# ---------------------------------------------------------------- what is computed


def test_a_finished_picture_is_the_small_one_enlarged(pipe):
    call = CALL | {"width": 150}
    whole = Sampler.from_pipeline(pipe, "direct-upscaled")("a fox", **call)
    small = Sampler.from_pipeline(pipe, "direct")("a fox", **call | {"height": 64, "width": 64})
    assert torch.equal(whole.latents, small.latents)
    assert torch.equal(whole.images[0], lanczos(small.images[0][None], (150, 150))[0])
    assert (whole.report.upscalings, small.report.upscalings) == (1, 0)


def test_with_a_factor_any_method_is_finished(pipe, rrdbnet):
    method = finished(rrdbnet, factor=1.5) | {"stages": [{"patching": "windows", "fusion": "average"}]}
    sampler, config = Sampler.from_pipeline(pipe, method), RunConfig(prompt="a", height=192, width=160)
    plan = sampler.plan(config)
    (upscaling,) = plan.upscalings
    assert (upscaling.before, upscaling.after, upscaling.cost.passes) == ((128, 112), (192, 160), 1)
    assert plan.canvas.picture == (128, 112) and plan.cost.upscalings == 1


def test_a_picture_of_the_training_size_is_not_enlarged(pipe):
    call = CALL | {"height": 64, "width": 64}
    alone, finish = (Sampler.from_pipeline(pipe, name)("a fox", **call) for name in ("direct", "direct-upscaled"))
    assert torch.equal(alone.images[0], finish.images[0]) and finish.report.upscalings == 0


class Probe:
    """Keeps what every step left, and what the second size began with."""

    def __init__(self):
        self.latents, self.start = {}, None

    @hookimpl
    def vitrail_step_end(self, step, latents):
        self.latents[step.index] = latents

    @hookimpl(wrapper=True)
    def vitrail_guide(self, scene):
        self.start = scene.start
        return (yield)


def test_the_plan_counts_what_continues_a_picture_whose_edges_meet(pipe, rrdbnet):
    sampler = Sampler.from_pipeline(pipe, entered(rrdbnet))
    costs = {}
    for wrap in ("none", "x", "xy"):
        (upscaling,) = sampler.plan(evolve(RUN, height=128, width=128, wrap=wrap)).upscalings
        assert (upscaling.before, upscaling.after) == ((64, 64), (128, 128))
        costs[wrap] = upscaling.cost.peak_bytes
    assert costs["none"] < costs["x"] < costs["xy"]


def test_a_size_is_entered_by_the_decoded_picture_enlarged_then_sharpened(pipe, rrdbnet):
    probe = Probe()
    sampler = Sampler.from_pipeline(pipe, entered(rrdbnet, sharpen=0.5), plugins=[("probe", probe)])
    engine, report = sampler.engine(RUN, 0), sampler.run(RUN).report
    with torch.inference_mode():
        small = engine.guidance.vae.decode(probe.latents[1], engine.plan.phases[0].canvas)
        larger = RRDBNet(file=rrdbnet["file"]).upscale(small, (150, 101))
        assert torch.equal(probe.start.picture, sharpened(larger, 0.5, engine.plan.canvas))
    cost = sampler.plan(RUN).cost
    assert (report.upscalings, report.vae_decodes) == (cost.upscalings, cost.decodes)
    assert cost.upscalings == 1


@pytest.mark.parametrize("make", [finished, entered])
def test_one_of_three_ranks_asks_and_all_have_its_answer(pipe, monkeypatch, make):
    names = installed()
    monkeypatch.setattr(names, "_entries", dict(names._entries))
    names.add("upscaler", "fickle", Fickle)
    ASKED.clear()
    sampler = Sampler.from_pipeline(pipe, make("fickle"))

    def program(communicator):
        return sampler.again()("a fox", spread=Spread(communicator=communicator), **CALL).images[0]

    with torch.inference_mode():
        first, *others = InProcess(timeout=600).run(3, program)
    assert all(torch.equal(first, other) for other in others) and len(ASKED) == 1


ASKED = []


@frozen(kw_only=True)
class Fickle:
    """Another picture at each call, so that ranks would differ if each asked."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def upscale(self, picture, size):
        ASKED.append(size)
        return lanczos(picture, size) / len(ASKED)


@pytest.mark.parametrize("make", [finished, entered])
def test_ranks_have_the_picture_of_one(pipe, rrdbnet, make):
    sampler = Sampler.from_pipeline(pipe, make(rrdbnet))
    alone = sampler("a fox", **CALL).images[0]

    def program(communicator):
        return sampler.again()("a fox", spread=Spread(communicator=communicator), **CALL).images[0]

    with torch.inference_mode():
        assert all(torch.equal(image, alone) for image in InProcess(timeout=600).run(3, program))


def test_a_stopped_run_shows_what_is_there_at_the_wanted_size(pipe):
    def stop(sampler, index, timestep, state):
        sampler.interrupt()

    result = Sampler.from_pipeline(pipe, "direct-upscaled")("a fox", callback_on_step_end=stop, **CALL)
    assert result.report.interrupted and result.images[0].shape == (3, 150, 101)


# ---------------------------------------------------------------- edges that meet


@pytest.mark.parametrize("size", [(40, 60), (33, 50)])
@pytest.mark.parametrize("make", [Lanczos, lambda: RRDBNet(file=write("net.pth", random_weights(blocks=1)))])
def test_across_edges_that_meet_a_turned_picture_is_turned(tmp_path, monkeypatch, size, make):
    """The picture is narrower than what the network sees, so it is continued more than once around."""
    monkeypatch.chdir(tmp_path)
    asked, alone = StrategyCall("upscaler", make()), Exchange.among(solo())
    picture = Streams(1).uniform((1, 3, 10, 20), "picture")
    turned = upscaled(asked, picture.roll((2, 4), (-2, -1)), size, "xy", alone)
    straight = upscaled(asked, picture, size, "xy", alone)
    if size == (40, 60):  # whole pixels
        torch.testing.assert_close(turned, straight.roll((8, 12), (-2, -1)), rtol=1e-5, atol=1e-5)
        flat = upscaled(asked, picture, size, "none", alone)
        assert (flat - straight).abs().max() > 1e-3
    assert turned.shape[-2:] == size


# ---------------------------------------------------------------- files


METHOD = """
finish = { upscaler = { type = "rrdbnet", file = "net.pth", tile = 64 } }
[[stages]]
patching = "whole"
fusion = "average"
"""
EXPERIMENT = """
model = "m"
prompts = ["a fox"]
sizes = ["128"]
run = { num_inference_steps = 1 }
methods = ["methods/up.toml", "direct", { method = "direct-upscaled", label = "own", set = [
    'finish.upscaler={ type = "rrdbnet", file = "methods/net.pth" }',
] }]
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """In a folder above that of the method and its weights, so nothing is found by chance."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e/methods").mkdir(parents=True)
    (tmp_path / "e/methods/up.toml").write_text(METHOD)
    (tmp_path / "e/e.toml").write_text(EXPERIMENT)
    write(tmp_path / "e/methods/net.pth")
    tiny_sd().save_pretrained(tmp_path / "e/m")
    return functools.partial(vitrail, monkeypatch, capsys)


SAMPLE = ["sample", "a fox", "--size", "128", "--steps", "1", "-m", "e/methods/up.toml", "--model", "e/m"]


def test_a_missing_file_is_told_before_anything_is_loaded(run, tmp_path):
    assert run("check", "e/methods/up.toml").code == 0 and run("check", "e/e.toml").code == 0
    (tmp_path / "e/methods/net.pth").unlink()
    for words in (["check", "e/methods/up.toml"], ["check", "e/e.toml"], SAMPLE, ["run", "e/e.toml"]):
        answer = run(*words)
        assert answer.code == 2, words
        assert "finish.upscaler: file: 'e/methods/net.pth' cannot be read: No such file" in answer.err
        assert "loading" not in answer.out
    bare = run(*SAMPLE[:6], "-m", "direct-upscaled", "--model", "e/m", "--set", "finish.upscaler=rrdbnet")
    assert bare.code == 2 and "finish.upscaler: file: rrdbnet has no weights of its own" in bare.err


def test_a_changed_file_makes_its_cells_anew_and_its_folder_does_not(run, tmp_path, monkeypatch):
    assert "0 of 3 cells are done" in run("run", "e/e.toml", "-o", "out").out
    assert "3 of 3 cells are done" in run("run", "e/e.toml", "-o", "out").out
    monkeypatch.chdir(tmp_path / "e")
    assert "3 of 3 cells are done" in run("run", "e.toml", "-o", "../out").out
    write(tmp_path / "e/methods/net.pth", random_weights(seed=1))
    assert "1 of 3 cells are done" in run("run", "e.toml", "-o", "../out").out


def test_a_picture_is_made_again_with_the_file_it_was_made_with(run, tmp_path):
    made = run(*SAMPLE, "-o", "a.png")
    assert made.code == 0, made
    assert re.search(r"upscaling 64x64 to 128x128: RRDBNet, 1 pass of its network, about 0\.\d\d GB", made.out)
    with Image.open("a.png") as picture:
        assert picture.size == (128, 128)
        assert list(json.loads(picture.text["vitrail.run"])["files"]) == ["finish.upscaler"]
    replay = ["replay", "a.png", "--model", "e/m"]
    assert run(*replay, "-o", "b.png").code == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()
    write(tmp_path / "e/methods/net.pth", random_weights(seed=1))
    changed = run(*replay, "-o", "c.png")
    assert changed.code == 2 and "finish.upscaler: RRDBNet reads a file that has changed" in changed.err
    other = run(*replay, "--set", f"finish.upscaler.file={write('other.safetensors')}", "-o", "d.png")
    assert other.code == 0, other
    assert Image.open("a.png").tobytes() == Image.open("d.png").tobytes()


def test_kept_latents_are_decoded_and_enlarged(run, tmp_path):
    assert run(*SAMPLE, "-o", "a.png").code == 0
    sampler = Sampler.from_pretrained("e/m", "e/methods/up.toml")
    result = sampler("a fox", height=128, width=128, num_inference_steps=1, output_type="latent")
    save_latents(result.latents, result.recipes[0], tmp_path / "a.latents.safetensors")
    decode = ["decode", "a.latents.safetensors", "--model", "e/m"]
    assert run(*decode, "-o", "b.png").code == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()
    (tmp_path / "e/methods/net.pth").rename("kept.pth")
    write(tmp_path / "e/methods/net.pth", random_weights(seed=1))
    changed = run(*decode, "-o", "c.png")
    assert changed.code == 2 and "finish.upscaler: RRDBNet reads a file that has changed" in changed.err
    elsewhere = ["--set", "finish.upscaler.file=moved.pth"]
    for words, told in (
        (elsewhere, "'moved.pth' cannot be read: No such file or directory; say where it is now by --set finish"),
        (["--set", "finish.upscaler=lanczos"], "has changed since the latents were sampled"),
        (["--set", "stages.0.fusion=average"], "only finish.upscaler... can be set"),
    ):
        refused = run(*decode, *words, "-o", "c.png")
        assert refused.code == 2 and told in refused.err, refused
    (tmp_path / "kept.pth").rename("moved.pth")
    assert run(*decode, *elsewhere, "-o", "c.png").code == 0
    assert Image.open("a.png").tobytes() == Image.open("c.png").tobytes()
    assert run("replay", "c.png", "--model", "e/m", "-o", "d.png").code == 0, "the recipe does not tell where it is"


@pytest.mark.parametrize("change", [[], ["--set", "finish.upscaler.tile=32"]])
def test_a_file_that_a_recipe_chooses_is_not_parsed_if_it_is_not_that_of_the_picture(
    run, tmp_path, monkeypatch, change
):
    sampler = Sampler.from_pretrained("e/m", "e/methods/up.toml")
    result = sampler("a fox", height=128, width=128, num_inference_steps=1, output_type="latent")
    recipe = result.recipes[0]
    save_latents(result.latents, recipe, tmp_path / "a.latents.safetensors")
    picture = Image.new("RGB", (128, 128))
    save_picture(picture, recipe, tmp_path / "a.png")
    save_picture(picture, evolve(recipe, files={}), tmp_path / "silent.png")
    (tmp_path / "e/methods/net.pth").write_bytes(b"private")
    os.utime("e/methods/net.pth", (0, 0))  # also if it claims to be as old as time
    parsed = []
    monkeypatch.setattr(RRDBNet, "check", lambda self: parsed.append(self))
    asked = [["replay", "a.png", *change]]
    if not change:
        asked += [["replay", "silent.png"], ["decode", "a.latents.safetensors"]]
    for words in asked:
        answer = run(*words, "--model", "e/m")
        assert answer.code == 2 and "finish.upscaler: RRDBNet reads a file" in answer.err, (words, answer)
    assert not parsed


# ---------------------------------------------------------------- what is refused


@frozen(kw_only=True)
class Bad:
    """Wrong in the way that it is told."""

    needs: ClassVar[frozenset[str]] = frozenset()
    how: str = field(default="")

    def upscale(self, picture, size):
        larger = lanczos(picture, size)
        return {
            "size": larger[..., 1:],
            "type": larger.double(),
            "range": larger + 1,
            "not finite": larger * float("nan"),
            "nothing": None,
        }[self.how]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("size", "must return the picture as float32 (1, 3, 150, 101) on cpu, got float32 (1, 3, 150, 100) on cpu"),
        ("type", "got float64 (1, 3, 150, 101) on cpu"),
        ("range", "must return values in [0, 1], got "),
        ("not finite", "must return values in [0, 1], got 45450 others of 45450"),
        ("nothing", "got nothing"),
    ],
)
def test_a_wrong_answer_is_refused_and_the_latents_are_kept(pipe, monkeypatch, how, told):
    names = installed()
    monkeypatch.setattr(names, "_entries", dict(names._entries))
    names.add("upscaler", "bad", Bad)
    with pytest.raises(DecodeError, match=re.escape(told)) as refused:
        Sampler.from_pipeline(pipe, finished({"type": "bad", "how": how}))("a fox", **CALL)
    assert "upscaler 'bad' (Bad)" in str(refused.value) and refused.value.latents.shape == (1, 4, 10, 7)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (entered("lanczos", resize="latents", sharpen=0.0), "'upscaler' works on pixels; set resize"),
        (entered("lanczos") | {"finish": {"upscaler": "lanczos"}}, "'finish' without a factor samples at the training"),
        (finished("lanczos", factor=1.0), "$.finish.factor: must be > 1"),
        (
            finished("lanczos", factor=2.0, base="side"),
            "'base' is about the training size, which 'factor'",
        ),
        (finished("lanzos"), "$.finish.upscaler: no upscaler named 'lanzos' (did you mean 'lanczos'?)"),
        (finished("lanczos", uspcaler=1), "$.finish: 'finish' has no key 'uspcaler' (did you mean 'upscaler'?)"),
        ({"stages": [WHOLE], "finish": {}}, "$.finish.upscaler: is missing"),
        (finished({"type": "rrdbnet", "tile": 1}), "$.finish.upscaler.tile: must be >= 16, got 1"),
    ],
)
def test_a_method_that_would_ignore_something_is_refused(method, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        composition_of(method)
