"""A plan from headers and configurations is the plan of the loaded model, or there is none and the model is loaded."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file, save_file

from command_line import vitrail
from original_format import save_single_file
from tiny_families import FAMILIES
from vitrail.backbones.loading.source import find_model
from vitrail.backbones.loading.unloaded import WeightsNeededError
from vitrail.backbones.memory.forecast import forecast
from vitrail.core.config.run_config import RunConfig
from vitrail.sampling.discovery import registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.result import Plan
from vitrail.sampling.sampler import Sampler

SIDE = 160


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One folder and one single file of each family, written when asked for."""
    made = {}

    def of(family):
        if family not in made:
            home, pipe = tmp_path_factory.mktemp(family), FAMILIES[family]()
            pipe.save_pretrained(home / "model")
            made[family] = home / "model", save_single_file(pipe, home / "model.safetensors")
        return made[family]

    return of


def run_of(model, **options):
    sides = {"width": SIDE, "height": SIDE, "num_inference_steps": 4}
    return RunConfig(prompt="a fox", model=str(model), **{**sides, **options})


def told(sampler, run, unloaded=0):
    """What is printed of a plan, but for the memory that happens to be free."""
    plan = sampler.run_plan(run, run.seed)
    outlook = forecast(plan, sampler.backbone, 1, None, unloaded)
    return Plan.of(plan, sampler.backbone), outlook.rows, outlook.need_bytes


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_needs_no_weights(models, family, kind, dtype):
    folder, file = models(family)
    run = run_of(folder, dtype=dtype) if kind == "folder" else run_of(file, dtype=dtype, model_config=str(folder))
    composition = load_method("direct" if family == "sd3" else "accdiffusion")
    planner, unloaded = Sampler.planner(run, composition)
    assert {p.device.type for p in planner.backbone.network.parameters()} == {"meta"}
    loaded = Sampler.of(run, composition)
    assert told(planner, run, unloaded) == told(loaded, run)
    assert planner.backbone.defaults == loaded.backbone.defaults
    held = {n: p for n, p in loaded.backbone.pipeline.components.items() if isinstance(p, torch.nn.Module)}
    held = {n: sum(t.numel() * t.element_size() for t in p.parameters()) for n, p in held.items()}
    rest = sum(count for name, count in held.items() if name not in ("unet", "transformer"))
    assert unloaded == pytest.approx(rest, rel=0.05)


def narrowed(part):
    """Weights of another width than the configuration says."""
    weights = load_file(part)
    name = next(name for name, tensor in weights.items() if tensor.ndim > 1)
    save_file(weights | {name: weights[name][:-1].contiguous()}, part, metadata={"format": "pt"})


def lacking(part):
    weights = load_file(part)
    save_file(dict(list(weights.items())[:-1]), part, metadata={"format": "pt"})


def changed(part, **settings):
    part.write_text(json.dumps(json.loads(part.read_text()) | settings))


DAMAGES = {
    "shape of the network": ("unet/diffusion_pytorch_model.safetensors", narrowed, {}),
    "tensors of the network": ("unet/diffusion_pytorch_model.safetensors", lacking, {}),
    "tensors of the VAE": ("vae/diffusion_pytorch_model.safetensors", lacking, {}),
    "words of the text encoder": ("text_encoder/config.json", changed, {"vocab_size": 99}),
    "layers of the text encoder": ("text_encoder/config.json", changed, {"num_hidden_layers": 3}),
    "class of the text encoder": ("model_index.json", changed, {"text_encoder": ["transformers", "BertModel"]}),
    "class of the scheduler": ("model_index.json", changed, {"scheduler": ["diffusers", "NoScheduler"]}),
    "what the pipeline changes": ("scheduler/scheduler_config.json", changed, {"steps_offset": 0}),
}


@pytest.fixture
def damaged(models, tmp_path):
    return shutil.copytree(models("sd")[0], tmp_path / "model")


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_headers_do_not_tell_needs_the_weights(damaged, damage):
    file, change, settings = DAMAGES[damage]
    change(damaged / file, **settings)
    with pytest.raises(WeightsNeededError):
        Sampler.planner(run_of(damaged), load_method("direct"))


@pytest.mark.parametrize("damage", ["shape of the network", "class of the scheduler"])
def test_a_dry_run_refuses_with_the_words_of_loading(damaged, damage, monkeypatch, capsys):
    file, change, settings = DAMAGES[damage]
    change(damaged / file, **settings)
    command = ["sample", "a fox", "--model", damaged, "--size", 128, "--output", damaged / "fox.png"]
    dry, wet = (vitrail(monkeypatch, capsys, *command, *more) for more in (["--dry-run"], []))
    assert dry.code == wet.code == 2
    assert dry.err == wet.err != ""


def test_a_process_of_its_own_starts_again_to_load(damaged, monkeypatch, capsys):
    narrowed(damaged / "unet/diffusion_pytorch_model.safetensors")
    command = ["sample", "a fox", "--model", str(damaged), "--size", "128", "--dry-run"]
    here = vitrail(monkeypatch, capsys, *command)
    done = subprocess.run([sys.executable, "-m", "vitrail", *command], cwd=damaged, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (here.code, here.err)
    assert done.stdout == here.out == f"loading model {damaged}\n"


@pytest.mark.thorough
def test_a_scheduler_that_needs_a_hidden_package_needs_the_weights(damaged):
    """The process that hid it starts again, and tells the plan."""
    command = ["sample", "a fox", "--model", str(damaged), "--scheduler", "LMSDiscreteScheduler", "--dry-run"]
    done = subprocess.run([sys.executable, "-m", "vitrail", *command], cwd=damaged, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and " evaluations of the network" in done.stdout


def test_a_hub_model_needs_the_weights(models, monkeypatch):
    spec = find_model(str(models("sd")[0]), registry())
    with pytest.raises(WeightsNeededError):
        type(spec)(source=evolve(spec.source, kind="hub")).without_weights()
