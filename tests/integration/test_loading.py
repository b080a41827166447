"""Folders, single files and hub ids become the same pipelines, bit for bit, without a network."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from original_format import save_single_file
from tiny_families import FAMILIES, tiny_sd3, tiny_sdxl, tiny_t5
from vitrail.backbones.loading.model_loader import load_pipeline
from vitrail.backbones.loading.source import ModelOptions, ModelSource
from vitrail.errors import ModelError

PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def original(family):
    return FAMILIES[family]()


@pytest.fixture(scope="module")
def tiny_folder(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("folder") / "model"
    original.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tiny_file(original, tmp_path_factory):
    return save_single_file(original, tmp_path_factory.mktemp("file") / "model.safetensors")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a model that is here needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def source_of(pipe, path, config=None, **options):
    kind = "folder" if path.is_dir() else "file"
    pipeline = type(pipe).__name__
    options = ModelOptions(**options)
    return ModelSource(name=path.name, kind=kind, location=str(path), pipeline=pipeline, options=options, config=config)


def latents(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "abc fox",
        negative_prompt="fo",
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=3.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images


def states(pipe):
    found = {name: getattr(pipe, name, None) for name in PARTS}
    return {name: part.state_dict() for name, part in found.items() if part is not None}


def assert_equal(one, other):
    assert states(one).keys() == states(other).keys()
    for name, state in states(one).items():
        assert state.keys() == states(other)[name].keys()
        assert all(torch.equal(value, states(other)[name][key]) for key, value in state.items()), name
    assert torch.equal(latents(one), latents(other))


def test_a_folder_gives_the_pipeline_that_was_saved(original, tiny_folder):
    assert_equal(load_pipeline(source_of(original, tiny_folder)), original)


def test_a_single_file_gives_the_pipeline_of_the_folder(original, tiny_folder, tiny_file):
    assert_equal(load_pipeline(source_of(original, tiny_file, config=tiny_folder)), original)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_every_network_has_the_dtype_that_was_asked_for(original, tiny_folder, tiny_file, name):
    for source in (
        source_of(original, tiny_folder, dtype=name),
        source_of(original, tiny_file, config=tiny_folder, dtype=name),
    ):
        for state in states(load_pipeline(source)).values():
            assert {value.dtype for value in state.values() if value.is_floating_point()} == {getattr(torch, name)}


# ---------------------------------------------------------------------- T5


@pytest.fixture(scope="module")
def with_t5(tmp_path_factory):
    """Stable Diffusion 3 with T5: the pipeline, its folder, its single file."""
    path, pipe = tmp_path_factory.mktemp("t5"), tiny_t5()
    pipe.save_pretrained(path / "folder")
    return pipe, path / "folder", save_single_file(pipe, path / "model.safetensors")


def test_t5_comes_from_a_folder_and_from_a_file_with_that_folder_as_configuration(with_t5):
    pipe, folder, file = with_t5
    assert_equal(load_pipeline(source_of(pipe, folder)), pipe)
    assert_equal(load_pipeline(source_of(pipe, file, config=folder)), pipe)


def test_t5_that_was_taken_out_of_the_folder_is_left_out(with_t5, tmp_path):
    pipe, folder, _ = with_t5
    shutil.copytree(folder, tmp_path / "folder")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(tmp_path / "folder" / part)
    assert_equal(load_pipeline(source_of(pipe, tmp_path / "folder")), tiny_sd3())


def test_t5_of_a_file_that_cannot_be_used_is_told(with_t5, tmp_path, caplog):
    pipe, _, file = with_t5
    tiny_sd3().save_pretrained(tmp_path)
    assert_equal(load_pipeline(source_of(pipe, file, config=tmp_path)), tiny_sd3())
    assert "model.part_left_out" in caplog.text and "text_encoder_3" in caplog.text


def test_a_configuration_with_t5_serves_a_file_without(with_t5, tmp_path):
    pipe, folder, _ = with_t5
    file = save_single_file(tiny_sd3(), tmp_path / "model.safetensors")
    assert load_pipeline(source_of(pipe, file, config=folder)).text_encoder_3 is None


# ---------------------------------------------------------------------- files that do not fit


def test_weights_that_a_file_does_not_give_are_refused(tiny_folder, tiny_file, original, tmp_path):
    """Diffusers alone would leave them as they were drawn."""
    state = load_file(tiny_file)
    lost = next(name for name in state if name.endswith("attn.out_proj.weight"))
    file = tmp_path / "m.safetensors"
    save_file({name: value for name, value in state.items() if name != lost}, file)
    with pytest.raises(ModelError, match=r"no values for 1 weights.*text_encoder.*out_proj.weight the first"):
        load_pipeline(source_of(original, file, config=tiny_folder))


def test_a_configuration_of_other_shapes_is_refused(tiny_folder, tiny_file, original, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "folder")
    config = tmp_path / "folder" / "vae" / "config.json"
    config.write_text(config.read_text().replace('"latent_channels": ', '"latent_channels": 1'))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_pipeline(source_of(original, tiny_file, config=tmp_path / "folder"))


def test_velocity_and_zero_terminal_snr_are_read_from_markers(tmp_path):
    pipe = tiny_sdxl()
    pipe.save_pretrained(tmp_path / "folder")
    file = save_single_file(pipe, tmp_path / "m.safetensors", v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    loaded = load_pipeline(source_of(pipe, file, config=tmp_path / "folder"))
    config = loaded.scheduler.config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    loaded.scheduler.set_timesteps(10)
    assert loaded.scheduler.timesteps[0] == 999 and loaded.scheduler.alphas_cumprod[-1] < 1e-6


# ---------------------------------------------------------------------- a process that lacks things

PROGRAM = """
import sys
sys.modules["accelerate"] = sys.modules["peft"] = None  # as if they were not installed
import socket
def refuse(*_):
    raise AssertionError("a model that is here needs no network")
socket.socket.connect = refuse
from test_loading import digest
from vitrail.backbones.loading.model_loader import load_pipeline
from vitrail.backbones.loading.source import ModelOptions, find_model
from vitrail.sampling.discovery import registry
for model, config in zip(sys.argv[1::2], sys.argv[2::2]):
    source = find_model(model, registry(), ModelOptions(config=config or None)).source
    print("digest:", digest(load_pipeline(source, "cpu")))
"""


def digest(pipe):
    values = [value.numpy().tobytes() for state in states(pipe).values() for value in state.values()]
    return hashlib.sha256(b"".join(values)).hexdigest()


@pytest.mark.thorough
def test_neither_a_network_nor_accelerate_is_needed(with_t5, tmp_path):
    t5, t5_folder, _ = with_t5
    xl, xl_folder = tiny_sdxl(), tmp_path / "folder"
    xl.save_pretrained(xl_folder)
    file = save_single_file(xl, tmp_path / "m.safetensors")
    models = ["demo", "", t5_folder, "", xl_folder, "", file, xl_folder]
    here = os.pathsep.join(str(path) for path in (Path(__file__).parent, Path(__file__).parents[1] / "support"))
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"PYTHONPATH": here}
    command = [sys.executable, "-c", PROGRAM, *map(str, models)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accelerate" not in done.stderr
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("digest:")]
    assert found[1:] == [digest(t5), digest(xl), digest(xl)]
