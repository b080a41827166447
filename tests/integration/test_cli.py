"""The command line as a stranger meets it: what is refused and how, what is made, and what Ctrl-C leaves."""

import json
import signal
import time

import numpy as np
import pytest
import structlog
from PIL import Image

from command_line import fresh_answers, start, vitrail, wait_for
from vitrail.sampling.recipe import read_recipe

METHOD = '[[stages]]\npatching = { type = "windows", jitter = true }\nfusion = "average"\n'
FILES = {
    "bad.toml": '[[stages]]\npatching = "window"\nfusion = "averge"\n',
    "broken.toml": "[[stages]\n",
    "neither.toml": "stage = 3\n",
    "run.toml": 'prompt = "a fox"\nwidht = 512\nseed = -1.5\nmethod = "asgg"\n',
    "mine.toml": METHOD,
    "good-run.yaml": "prompt: a fox\nsize: 128x96\nmethod: mine.toml\nmodel: stub\n",
    "notes.txt": "hello",
    "notes.png": "hello",
    "taken.png": "something precious",
    "stub/model_index.json": '{"_class_name": "StableDiffusionPipeline"}',
    "flux/model_index.json": '{"_class_name": "FluxPipeline"}',
    "list/model_index.json": "[]",
    "hollow/readme.txt": "",
}
FOX = ["sample", "a fox", "--model", "stub"]
BAD = {
    "no prompt": (["sample", "--model", "stub"], ["no prompt; write one, e.g. "]),
    "size is nonsense": ([*FOX, "--size", "big"], ["--size: 'big' is no number of pixels; write 512, or 768x512"]),
    "size has no height": ([*FOX, "--size", "512x"], ["--size: '512x' is no number of pixels"]),
    "size is small": ([*FOX, "--size", "32"], ["--width: must be >= 64, got 32", "--height: must be >= 64, got 32"]),
    "size and height": ([*FOX, "--size", "512", "--height", "300"], ["either the size or width and height, not both"]),
    "seed is negative": ([*FOX, "--seed", "-5"], ["--seed: must be >= 0, got -5"]),
    "seed is a text": ([*FOX, "--seed", "x"], ["Invalid value for '--seed'"]),
    "no steps": ([*FOX, "--steps", "0"], ["--num-inference-steps: must be >= 1, got 0"]),
    "guidance below 1": (
        [*FOX, "--guidance-scale", "0.5"],
        ["--guidance-scale: must be >= 1, where 1 switches guidance off, got 0.5"],
    ),
    "guidance is no number": ([*FOX, "--guidance-scale", "nan"], ["expected a finite number, got nan"]),
    "no ranks": ([*FOX, "--ranks", "0"], ["--ranks must be 1 or more, got 0"]),
    "unknown comm": ([*FOX, "--ranks", "2", "--comm", "glo"], ["no comm named 'glo' (did you mean 'gloo'?)"]),
    "speeds are words": ([*FOX, "--ranks", "2", "--speeds", "fast,slow"], ["--speeds 'fast,slow': write a number for"]),
    "speed of nothing": ([*FOX, "--ranks", "2", "--speeds", "1,0"], ["--speeds '1,0': speeds are positive numbers"]),
    "speeds are too few": ([*FOX, "--ranks", "3", "--speeds", "1,2"], ["--speeds gives 2 numbers for 3 ranks"]),
    "speeds without a measure": (
        [*FOX, "--ranks", "2", "--speeds", "auto", "--exchange", "dataflow"],
        ["--speeds auto with --exchange dataflow: a dataflow is planned for all steps", "e.g. --speeds 1,1,0.5, or"],
    ),
    "unknown exchange": ([*FOX, "--exchange", "flow"], ["--exchange must be one of barrier, dataflow, got 'flow'"]),
    "no time": ([*FOX, "--ranks", "2", "--timeout", "0"], ["--timeout must be more than 0 seconds and at most"]),
    "checkpoint nowhere": ([*FOX, "--checkpoint", "no/run.ckpt"], ["--checkpoint no/run.ckpt: the folder no does not"]),
    "checkpoint never": ([*FOX, "--checkpoint-every", "0"], ["--checkpoint-every must be 1 or more, got 0"]),
    "trace nowhere": ([*FOX, "--trace", "no/trace.json"], ["--trace no/trace.json: the folder no does not exist"]),
    "trace of nothing": (["timeline", "no.json"], ["no.json"]),
    "too few labels": (["timeline", "a.json", "b.json", "--label", "sync"], ["1 labels for 2 traces"]),
    "no images": ([*FOX, "--num-images", "0"], ["--num-images: must be >= 1, got 0"]),
    "unknown method": ([*FOX, "--method", "asgg"], ["no method named 'asgg' (did you mean 'asg'?); known: acc"]),
    "method file missing": ([*FOX, "-m", "no.toml"], ["no.toml: cannot be read: No such file or directory"]),
    "method file is wrong": (
        [*FOX, "-m", "bad.toml"],
        ["$.stages[0].patching: no patching named 'window'", "$.stages[0].fusion: no fusion named 'averge'"],
    ),
    "unknown model": (["sample", "a fox", "--model", "dem"], ["no model or folder 'dem' (did you mean 'demo'?)"]),
    "folder without a model": (["sample", "a fox", "--model", "hollow"], ["model_index.json is missing in hollow"]),
    "another kind of model": (["sample", "a fox", "--model", "flux"], ["no adapter for 'FluxPipeline'; known:"]),
    "broken model index": (["sample", "a fox", "--model", "list"], ["model_index.json is not a diffusers model index"]),
    "unknown scheduler": (
        [*FOX, "--scheduler", "Euler"],
        ["no scheduler named 'Euler' (did you mean 'EulerDiscreteScheduler'?)"],
    ),
    "a scheduler without eta": (
        [*FOX, "--scheduler", "EulerDiscreteScheduler", "--eta", "1"],
        [
            "eta: the step of EulerDiscreteScheduler takes no such option",
            "it takes s_churn, s_tmin",
            "DDIMScheduler and",
        ],
    ),
    "eta is large": ([*FOX, "--eta", "2"], ["--eta: must be <= 1.0, got 2.0"]),
    "solver argument without a number": (
        [*FOX, "--solver-arg", "s_churn"],
        ["--solver-arg 's_churn': write NAME=NUMBER"],
    ),
    "eta as a step option": ([*FOX, "--solver-arg", "eta=1"], ["'eta' has a field of its own; write eta = 1"]),
    "--set a misspelt key": (
        [*FOX, "--method", "asg", "--set", "stages.0.guidance.0.scal=2"],
        ["$.stages[0].guidance[0]: guidance 'async' has no key 'scal' (did you mean 'scale'?)"],
    ),
    "--set without a value": ([*FOX, "--set", "scale"], ["--set 'scale': write path=value, e.g. stages.0"]),
    "unknown dtype": ([*FOX, "--dtype", "float63"], ["--dtype: got the text 'float63' (did you mean 'float32'?)"]),
    "output exists": ([*FOX, "-o", "taken.png"], ["taken.png: exists; give another name, or --force"]),
    "output is no PNG": ([*FOX, "-o", "fox.jpg"], ["--output fox.jpg: only .png files are written"]),
    "output in no folder": ([*FOX, "-o", "no/fox.png"], ["--output no/fox.png: the folder no does not exist"]),
    "config missing": ([*FOX, "--config", "no.toml"], ["no.toml: cannot be read"]),
    "config broken": ([*FOX, "--config", "broken.toml"], ["broken.toml, line 1, column 9: Expected ']]'"]),
    "config has many problems": (
        ["sample", "--config", "run.toml", "--model", "dem", "--scheduler", "DIM", "--size", "x"],
        [
            "$.seed: expected a whole number, got -1.5",
            "$: a run has no key 'widht' (did you mean 'width'?)",
            "no method named 'asgg'",
            "no model or folder 'dem'",
            "no scheduler named 'DIM'",
            "--size: 'x' is no number of pixels",
        ],
    ),
    "authors of no method": (["methods", "--authors"], ["--authors: name a method, e.g. vitrail methods demofusion"]),
    "authors of plain sampling": (
        ["methods", "direct", "--authors"],
        ["'direct' was not compared with an authors' code"],
    ),
    "methods of no such name": (["methods", "asgg"], ["no method named 'asgg' (did you mean 'asg'?)"]),
    "nothing": ([], ["Usage: vitrail", "sample", "methods"]),
    "misspelt command": (["sampel", "a fox"], ["No such command 'sampel'", "'sample'"]),
    "unknown option": ([*FOX, "--sise", "512"], ["No such option: --sise", "--size"]),
    "prompt without quotes": (["sample", "a", "fox"], ["unexpected extra argument", "fox"]),
    "option without a value": ([*FOX, "--size"], ["'--size' requires an argument"]),
    "check a missing file": (["check", "no.toml"], ["no.toml: cannot be read"]),
    "check a picture": (["check", "notes.png"], ["notes.png: a .toml, .yaml or .yml file is expected"]),
    "check neither method nor run": (["check", "neither.toml"], ["it has 'stage' (did you mean 'stages'?)"]),
    "check with --set": (["check", "mine.toml", "--set", "stages.0.until=0.5"], ["of a size must be 1.0, got [0.5]"]),
    "replay a missing file": (["replay", "no.png"], ["no.png: cannot be read as a picture: No such file"]),
    "replay no picture": (["replay", "notes.png"], ["notes.png: cannot be read as a picture: it is none, or cut off"]),
}
FINE = {
    "help": (["--help"], ["sample", "serve", "replay", "methods", "plugins", "check", "doctor"]),
    "help of a command": (["sample", "--help"], ["--size", "--seed", "--dry-run"]),
    "version": (["--version"], ["vitrail "]),
    "methods": (["methods"], ["asg-plus", "multidiffusion", "up-block-attention", "overlap = 0.5, jitter = false"]),
    "a method": (["methods", "asg"], ["patching = { type = ", "[[stages]]  # detail"]),
    "a method beside its authors' code": (
        ["methods", "demofusion", "--authors"],
        ["PRIS-CV/DemoFusion at 5024487", "0.62 of the final", '--set "stages.1.scale_batch=16"', "By design"],
    ),
    "plugins": (["plugins"], ["builtin, from vitrail", "lattice, whole, windows"]),
    "check a method": (["check", "mine.toml"], ["mine.toml: sound, a method of 1 stage\n"]),
    "check a run": (["check", "good-run.yaml"], ["sound, a run of 128x96 pixels with method mine.toml and model stub"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with good and bad files."""
    root = tmp_path_factory.mktemp("place")
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module")
def answers(place):
    """Every command line that needs no model, answered by one process."""
    lines = BAD | FINE
    return dict(zip(lines, fresh_answers(place, [words for words, _ in lines.values()]), strict=True))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs a command line in this process and an empty folder; logging is put back."""
    monkeypatch.chdir(tmp_path)
    yield lambda *words: vitrail(monkeypatch, capsys, *words)
    structlog.reset_defaults()


@pytest.mark.parametrize("name", BAD)
def test_mistake_is_answered_before_torch_is_imported(place, answers, name):
    answer = answers[name]
    assert [part for part in BAD[name][1] if part not in answer.err] == [], answer.err
    assert (answer.code, answer.out, list(answer.heavy)) == (2, "", []), answer
    assert answer.err.startswith(("Error: ", "Usage: ")) and "Traceback" not in answer.err
    assert max(map(len, answer.err.splitlines())) < 400  # the list of the methods' names is the longest
    assert {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} == set(FILES)


@pytest.mark.parametrize("name", FINE)
def test_what_needs_no_model_imports_no_torch(answers, name):
    answer = answers[name]
    assert [part for part in FINE[name][1] if part not in answer.out] == [], answer.out
    assert (answer.code, answer.err, list(answer.heavy)) == (0, "", [])
    assert max(map(len, answer.out.splitlines())) <= 100
    assert all(line == line.rstrip() for line in answer.out.splitlines())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--steps", "2000"], "num_inference_steps must be at most 1000 with EulerDiscreteScheduler, got 2000"),
        (["--device", "cud"], "no device 'cud' here: "),
        (["--set", "stages.0.masking.layers=[7]"], "layers [7] do not exist; this network has 1 up blocks"),
        (["--scheduler", "FlowMatchEulerDiscreteScheduler"], "the model predicts 'epsilon', but FlowMatch"),
    ],
)
def test_mistake_that_only_the_model_shows(run, folder, monkeypatch, words, expected):
    from diffusers import UNet2DConditionModel

    def never(*args, **kwargs):
        raise AssertionError("the network was called")

    monkeypatch.setattr(UNet2DConditionModel, "forward", never)
    answer = run(
        "sample", "a fox", "--model", folder, "--size", 128, "--set", "stages.0.masking.type=up-block-attention", *words
    )
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert expected in answer.err


def test_broken_weights_are_the_models_fault(run, folder, tmp_path):
    import shutil

    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 64)
    answer = run("sample", "a fox", "--model", broken)
    assert answer.code == 2 and "loading" not in answer.out
    assert f"Error: model '{broken}' cannot be loaded: unet: " in answer.err


def test_sample_and_replay(run, folder, tmp_path):
    made = run("sample", "a fox", "--model", folder, "--size", "150x200", "--steps", 4, "--seed", 5, "-o", "fox.png")
    assert (made.code, made.err) == (0, "")
    lines = made.out.splitlines()
    assert lines[0] == f"loading model {folder}"
    assert lines[1].startswith("150x200 pixels, 20x27 latent cells") and lines[1].endswith("method asg-plus, seed 5")
    assert lines[2].startswith("  stage 1: steps 1 to 3, ") and lines[3].startswith("  stage 2: steps 4 to 4, ")
    assert "step 2/4, stage 1/2, about " in made.out and "step 4/4, stage 2/2, decoding" in made.out
    assert "fox.png: 150x200, seed 5" in lines
    assert lines[-1] == f"again: vitrail replay fox.png --model {folder}"
    again = run("replay", "fox.png", "--model", folder, "-o", "again.png")
    assert again.code == 0
    first, second = (np.asarray(Image.open(name)) for name in ("fox.png", "again.png"))
    assert first.shape == (200, 150, 3) and np.array_equal(first, second)
    changed = run("replay", "fox.png", "--model", folder, "-o", "other.png", "--set", "stages.0.guidance.0.scale=0")
    assert changed.code == 0 and not np.array_equal(first, np.asarray(Image.open("other.png")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.png", "fox.png", "other.png"]


def test_replay_without_the_model_says_what_to_give(run, folder):
    assert run("sample", "a", "--model", folder, "--size", 64, "--steps", 1, "-m", "direct", "-o", "a.png").code == 0
    answer = run("replay", "a.png")
    assert answer.code == 2
    assert "a.png: made with the model 'tiny', which is not here; give its --model" in answer.err


def test_config_file_and_flags(run, folder, tmp_path):
    text = f"prompt: a red fox\nsize: 128x64\nnum_inference_steps: 2\nseed: 3\nmodel: {folder}\nmethod: direct\n"
    (tmp_path / "run.yaml").write_text(text)
    answer = run("sample", "--config", "run.yaml", "--seed", 4, "--set", "stages.0.fusion=gaussian")
    assert answer.code == 0
    recipe = read_recipe(tmp_path / "a-red-fox-4.png")
    assert (recipe.run["prompt"], recipe.run["width"], recipe.run["height"]) == ("a red fox", 128, 64)
    assert recipe.method["stages"][0]["fusion"]["type"] == "gaussian"


def test_outputs_are_never_overwritten_unasked(run, folder, tmp_path):
    words = ["sample", "a fox", "--model", folder, "--size", 64, "--steps", 1, "--method", "direct"]
    assert [run(*words).code, run(*words).code] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-fox-0-2.png", "a-fox-0.png"]
    before = (tmp_path / "a-fox-0.png").stat().st_mtime_ns
    assert run(*words, "-o", "a-fox-0.png").code == 2
    assert (tmp_path / "a-fox-0.png").stat().st_mtime_ns == before
    assert run(*words, "-o", "a-fox-0.png", "--force").code == 0
    assert (tmp_path / "a-fox-0.png").stat().st_mtime_ns != before


def test_several_pictures_and_a_drawn_seed(run, folder, tmp_path):
    words = ["--model", folder, "--size", 64, "--steps", 2, "--method", "direct", "--num-images", 2]
    answer = run("sample", "a fox", *words, "--seed", "-1", "-o", "fox [bold].png")
    assert answer.code == 0 and "picture 2/2, step 2/2, stage 1/1, decoding" in answer.out
    seeds = [read_recipe(tmp_path / f"fox [bold]-{i}.png").run["seed"] for i in range(2)]
    assert seeds[1] == seeds[0] + 1 and f"fox [bold]-0.png: 64x64, seed {seeds[0]}" in answer.out
    assert "vitrail replay 'fox [bold]-0.png'" in answer.out


def test_dry_run_costs_no_model_call(run, folder, tmp_path, monkeypatch):
    from vitrail.sampling.sampler import Sampler

    monkeypatch.delattr(Sampler, "run")
    answer = run("sample", "a fox", "--model", folder, "--size", 256, "--dry-run", "--num-images", 3)
    assert answer.code == 0
    assert any(line.endswith(" evaluations of the network for 3 pictures") for line in answer.out.splitlines())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ranks", "line"), [(3, "  speeds: measured on the first step"), (1, "  --speeds auto: one rank does all the work")]
)
def test_the_plan_tells_that_speeds_are_measured(run, folder, ranks, line):
    command = ["sample", "a fox", "--model", folder, "--size", 256, "--dry-run", "--ranks", ranks, "--speeds", "auto"]
    answer = run(*command)
    assert answer.code == 0 and any(each.rstrip() == line for each in answer.out.splitlines())


LONG = ["sample", "a fox", "--steps", 900, "--size", 256, "-o", "fox.png"]


def test_ctrl_c_stops_at_the_next_step_and_keeps_what_is_there(tmp_path, folder):
    process = start(tmp_path, *LONG, "--model", folder, "--verbose")
    wait_for(process, "step 2/900")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130
    events = [json.loads(line)["event"] for line in err.splitlines()]  # JSON lines, since it is no terminal
    assert {"run.started", "step.finished", "run.interrupted"} < set(events) and events[-1] == "run.finished"
    assert events.count("step.finished") < 900
    assert "stopping at the next step; Ctrl-C again stops at once" in out
    assert "fox.partial.png: what was predicted after " in out
    assert out.splitlines()[-1] == "stopped early: no picture is complete"
    assert [path.name for path in tmp_path.iterdir()] == ["fox.partial.png"]
    assert read_recipe(tmp_path / "fox.partial.png").run["width"] == 256


@pytest.mark.thorough
def test_ctrl_c_twice_stops_at_once(tmp_path, folder):
    slow = ["--method", "multidiffusion", "--row-batch", 1]
    process = start(tmp_path, *LONG, *slow, "--model", folder)
    wait_for(process, "step 2/900")
    process.send_signal(signal.SIGINT)
    wait_for(process, "stopping at the next step")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (130, "Stopped at once; the picture in work is lost.\n"), out
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_loading(tmp_path, folder):
    process = start(tmp_path, *LONG, "--model", folder)
    wait_for(process, "loading model")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out, err) == (130, "", "Stopped; nothing was written.\n")
