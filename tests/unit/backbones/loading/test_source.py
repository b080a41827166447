"""What a model's name stands for is found, or refused with what, where and what to do, before anything heavy loads."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from original_format import hollow_file
from vitrail.backbones.loading.single_file import scheduler_changes
from vitrail.backbones.loading.source import ModelOptions, find_model
from vitrail.core.config.safetensors_header import read_header
from vitrail.errors import ConfigError, ModelError

UNET = "model.diffusion_model.input_blocks.0.0.weight"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FILES = {
    "scheduler": ["scheduler_config.json"],
    "text_encoder": ["config.json", "model.safetensors"],
    "tokenizer": ["tokenizer_config.json"],
    "unet": ["config.json", "diffusion_pytorch_model.safetensors"],
    "vae": ["config.json", "diffusion_pytorch_model.safetensors"],
}
SD3 = {
    "_class_name": "StableDiffusion3Pipeline",
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
}


def write_folder(path, index=INDEX, files=FILES):
    """A folder that has every file of a model and no weights in them."""
    path.mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps(index))
    for part, names in files.items():
        (path / part).mkdir()
        for name in names:
            fill(path / part / name)
    return path


def fill(file):
    hollow_file(file, {"weight": (2, 2)}) if file.suffix == ".safetensors" else file.write_text("{}")


@pytest.fixture
def whole(tmp_path):
    return write_folder(tmp_path / "model")


@pytest.fixture
def told(names):
    """The message with which a model is refused."""

    def refuse(model, **options):
        with pytest.raises(ModelError) as caught:
            find_model(str(model), names, ModelOptions(**options))
        return str(caught.value)

    return refuse


# ---------------------------------------------------------------------- names


def test_a_registered_name_a_folder_and_a_file_are_found(names, whole):
    demo = find_model("demo", names).source
    assert (demo.name, demo.kind, demo.pipeline) == ("demo", "folder", "StableDiffusionPipeline")
    folder = find_model(str(whole), names, ModelOptions(dtype="bfloat16")).source
    assert (folder.kind, folder.location, folder.options.dtype) == ("folder", str(whole), "bfloat16")
    assert folder.config is None


def test_a_name_of_nothing_is_told_with_the_nearest_and_the_kinds(told):
    text = told("dmeo")
    assert "did you mean 'demo'?" in text
    assert all(kind in text for kind in ("diffusers folder", ".safetensors file", "hub id `org/name`"))
    assert "models/none.safetensors" in told("models/none.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".pkl"])
def test_pickles_are_refused_with_the_reason_and_the_remedy(told, tmp_path, suffix):
    (tmp_path / f"m{suffix}").write_bytes(b"x")
    text = told(tmp_path / f"m{suffix}")
    assert "a pickle can run any code" in text and "convert it, see docs/how-to/models.md" in text


def test_another_file_is_refused(told, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "no .safetensors file" in told(tmp_path / "model.gguf")


def test_options_that_would_do_nothing_are_refused(told, whole, tmp_path):
    text = told(whole, revision="main", config="sdxl")
    assert "revision is of a hub id" in text and "model_config tells what a single file is read as" in text
    file = hollow_file(tmp_path / "m.safetensors", {})
    assert "variant names files of a folder" in told(file, variant="fp16")
    assert "model_config" in told("org/name", config="sdxl")


# ---------------------------------------------------------------------- folders


def test_an_index_that_is_none_is_refused(told, whole):
    index = whole / "model_index.json"
    index.write_text("[")
    assert "not a diffusers model index" in told(whole)
    index.write_text("{}")
    assert "names no pipeline class" in told(whole)
    index.write_text('{"_class_name": "StableDiffusionPipelin"}')
    assert "no adapter for 'StableDiffusionPipelin' (did you mean 'StableDiffusionPipeline'?)" in told(whole)
    index.unlink()
    assert "model_index.json is missing" in told(whole)


def test_all_that_is_missing_is_told_at_once(told, whole):
    (whole / "unet" / "diffusion_pytorch_model.safetensors").rename(whole / "unet" / "diffusion_pytorch_model.bin")
    (whole / "vae" / "config.json").unlink()
    (whole / "tokenizer" / "tokenizer_config.json").unlink()
    (whole / "tokenizer").rmdir()
    (whole / "scheduler" / "scheduler_config.json").unlink()
    text = told(whole)
    assert f"unet: no diffusion_pytorch_model.safetensors in {whole / 'unet'}, but diffusion_pytorch_model.bin" in text
    assert f"vae: no config.json in {whole / 'vae'}" in text
    assert f"tokenizer: no folder {whole / 'tokenizer'}" in text
    assert "scheduler: no scheduler_config.json" in text
    assert "text_encoder" not in text and "safety_checker" not in text


def test_a_part_that_is_null_is_told(told, tmp_path):
    text = told(write_folder(tmp_path / "m", INDEX | {"text_encoder": [None, None]}))
    assert "text_encoder: null in the index" in text


def test_a_broken_weight_file_is_told_with_its_part(told, whole):
    file = whole / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert f"unet: {file} is broken" in told(whole)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    assert f"unet: {file} is a Git LFS pointer" in told(whole)


def test_a_variant_is_looked_for_in_every_part(told, names, whole):
    text = told(whole, variant="fp16")
    assert "no part has files of the variant 'fp16'; variants there: none" in text
    fill(whole / "vae" / "diffusion_pytorch_model.bf16.safetensors")
    assert "variants there: bf16" in told(whole, variant="fp16")
    find_model(str(whole), names, ModelOptions(variant="bf16"))


@pytest.mark.parametrize("variant", ["", "x" * 300, "../../other", "fp16/..", "fp16\n", ".", "a..b"])
def test_a_variant_that_is_no_word_is_refused(names, whole, variant):
    with pytest.raises(ConfigError, match="is no variant of weight files"):
        find_model(str(whole), names, ModelOptions(variant=variant))


def test_a_folder_of_one_variant_tells_which_if_the_plain_files_are_asked_for(told, names, whole):
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (whole / part / f"{stem}.safetensors").rename(whole / part / f"{stem}.fp16.safetensors")
    find_model(str(whole), names, ModelOptions(variant="fp16"))
    assert "unet: no diffusion_pytorch_model.safetensors in" in told(whole)
    assert "variants there: fp16" in told(whole)


@pytest.mark.parametrize("tag", ["", ".fp16"])
def test_every_shard_must_be_there(told, names, whole, tag):
    part, stem = whole / "unet", "diffusion_pytorch_model"
    (part / f"{stem}.safetensors").unlink()
    shards = [f"{stem}{tag}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (part / f"{stem}.safetensors.index{tag}.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})
    )
    fill(part / shards[0])
    options = {"variant": tag[1:] or None}
    assert f"unet: {part / shards[1]} cannot be read" in told(whole, **options)
    fill(part / shards[1])
    find_model(str(whole), names, ModelOptions(**options))


@pytest.mark.parametrize("index", [SD3, SD3 | {"text_encoder_3": [None, None]}])
def test_stable_diffusion_3_can_do_without_t5(names, tmp_path, index):
    find_model(str(write_folder(tmp_path / "m", index, {})), names)


# ---------------------------------------------------------------------- single files

SD = {
    UNET: (8, 4, 3, 3),
    "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (8,),
}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"lora_unet_down_blocks_0.lora_up.weight": (4, 4)}, "a LoRA: load it into the pipeline"),
        ({"unet.down_blocks.0.to_q.lora_A.weight": (4, 4)}, "a LoRA: load it into the pipeline"),
        ({"emb_params": (1, 768)}, "a textual-inversion embedding"),
        ({"clip_l": (1, 768), "clip_g": (1, 1280)}, "a textual-inversion embedding"),
        ({"control_model.input_blocks.0.0.weight": (4, 4, 3, 3)}, "a ControlNet"),
        (SD | {"model.diffusion_model.a.scaled_fp8": (0,)}, "quantised weights"),
        (SD | {"model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight": (4,)}, "a video model"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (4,)}, "a Flux model"),
        ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (4,)}, "a Flux model"),
        (SD | {"conditioner.embedders.0.model.ln_final.weight": (4,)}, "the SDXL refiner"),
        (SD | {UNET: (8, 9, 3, 3)}, "an inpainting model (9 input channels)"),
        (SD | {UNET: (8, 8, 3, 3)}, "a picture-editing model (8 input channels)"),
        (SD | {UNET: (8, 7, 3, 3)}, "an upscaling model (7 input channels)"),
        (SD | {UNET: (8, 5, 3, 3)}, "a depth-to-image model (5 input channels)"),
        ({"first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)}, "a VAE alone"),
        ({"decoder.up.0.block.0.norm1.weight": (8,)}, "a VAE alone"),
        ({"down_blocks.0.resnets.0.norm1.weight": (8,)}, "one part of a diffusers folder"),
        ({"text_model.final_layer_norm.weight": (8,)}, "one part of a diffusers folder"),
        ({"joint_blocks.0.x_block.attn.qkv.weight": (8,)}, "a denoising network alone"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (8,)}, "no vae (first_stage_model.*)"),
        (
            {k: v for k, v in SD.items() if "cond" not in k},
            "holds no text_encoder (cond_stage_model.transformer.text_model.*)",
        ),
        (SD | {"noise_augmentor.betas": (4,)}, "an image-variation model"),
        (SD | {"edm_mean": (4,)}, "a Playground model"),
        ({"a": (1,), "b": (1,)}, "no layout that is known here; it begins with a, b"),
        ({}, "no layout that is known here; it begins with nothing"),
        (SD, "its network has 288 values"),
    ],
)
def test_what_is_no_whole_model_is_named(told, tmp_path, shapes, words):
    assert words in told(hollow_file(tmp_path / "m.safetensors", shapes))


def test_the_configuration_is_checked_against_the_file(told, names, tmp_path):
    file = hollow_file(tmp_path / "m.safetensors", SD)
    assert (
        "its network has 288 values, which is none of the StableDiffusionPipeline known here (sd-1.5: 859,520,964"
        in told(file)
    )
    assert "which is none of" in told(file, config="sdxl")
    assert "no model_config 'sd15' (did you mean 'sd-1.5'?)" in told(file, config="sd15")
    other = write_folder(tmp_path / "other", INDEX | {"_class_name": "StableDiffusionXLPipeline"}, {})
    assert "the file is for StableDiffusionPipeline, but model_config" in told(file, config=str(other))
    folder = write_folder(tmp_path / "folder", INDEX, {})
    source = find_model(str(file), names, ModelOptions(config=str(folder))).source
    assert (source.kind, source.pipeline, source.config) == ("file", "StableDiffusionPipeline", folder)


def test_markers_of_velocity_and_zero_terminal_snr_change_the_scheduler(tmp_path):
    def changes(*marks):
        file = hollow_file(tmp_path / "m.safetensors", SD | dict.fromkeys(marks, (0,)))
        return scheduler_changes(read_header(file))

    assert changes() == {}
    assert changes("v_pred") == {"prediction_type": "v_prediction"}
    assert changes("v_pred", "ztsnr")["rescale_betas_zero_snr"] is True


# ---------------------------------------------------------------------- files that are broken


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return hollow_file(tmp_path_factory.mktemp("good") / "m.safetensors", SD).read_bytes()


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    return tmp_path_factory.mktemp("bad") / "m.safetensors"


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_refused(good, bad, share):
    bad.write_bytes(good[: int(len(good) * share)])
    with pytest.raises(ModelError, match="broken"):
        read_header(bad)


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused_in_words(bad, data):
    bad.write_bytes(data)
    with pytest.raises(ModelError):
        read_header(bad)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b"PK\x03\x04" + bytes(60), "a pickled checkpoint"),
        (b"\x80\x02}q\x00" + bytes(60), "a pickled checkpoint"),
        (b"GGUF" + bytes(60), "a GGUF file"),
        ((10**9).to_bytes(8, "little") + b"{" + bytes(60), "broken"),
    ],
)
def test_a_file_that_is_something_else_is_named(told, bad, data, words):
    bad.write_bytes(data)
    assert words in told(bad)


def test_more_bytes_than_the_header_tells_of_are_refused(good, bad):
    bad.write_bytes(good + b"x")
    with pytest.raises(ModelError, match=f"{len(good) + 1} bytes, and its header tells of {len(good)}"):
        read_header(bad)


# ---------------------------------------------------------------------- nothing heavy

PROBE = """
import sys
from vitrail.backbones.loading.source import ModelOptions, find_model
from vitrail.sampling.discovery import registry
from vitrail.errors import ConfigError, ModelError
for model, config in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        find_model(model, registry(), ModelOptions(config=config or None))
    except ModelError as error:
        print(error)
assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
"""


def test_finding_a_model_of_any_kind_loads_nothing_heavy(whole, tmp_path):
    file = hollow_file(tmp_path / "m.safetensors", SD)
    models = ["demo", "", whole, "", file, whole, "nobody/nothing", ""]
    done = subprocess.run([sys.executable, "-c", PROBE, *map(str, models)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and "HF_HUB_OFFLINE is set" in done.stdout
