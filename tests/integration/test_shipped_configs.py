"""The configurations that ship are those of the released models: known sizes, known tokens."""

import inspect
import json
from types import SimpleNamespace

import diffusers
import pytest
import torch
import transformers

from original_format import hollow_file, original_state
from vitrail.backbones.loading.model_loader import shipped_tokenizers
from vitrail.backbones.loading.single_file import CONFIGS, FAMILIES
from vitrail.backbones.loading.source import ModelOptions, find_model
from vitrail.errors import ModelError

VAE, VAE_16 = 83_653_863, 83_819_683  # of 4 and 16 channels
CLIP_L, OPEN_CLIP_H, OPEN_CLIP_G = 123_060_480, 340_387_840, 694_659_840
PROJECTION = 768 * 768
SIZES = {  # parameters, as published or counted in the released files
    "sd-1.5": {"unet": 859_520_964, "vae": VAE, "text_encoder": CLIP_L},
    "sd-2.1": {"unet": 865_910_724, "vae": VAE, "text_encoder": OPEN_CLIP_H},
    "sd-2.1-base": {"unet": 865_910_724, "vae": VAE, "text_encoder": OPEN_CLIP_H},
    "sdxl": {"unet": 2_567_463_684, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": OPEN_CLIP_G},
    "sd3": {"transformer": 2_028_328_000},
    "sd3.5-medium": {"transformer": 2_243_171_520},
    "sd3.5-large": {"transformer": 8_056_627_520},
}
for family in ("sd3", "sd3.5-medium", "sd3.5-large"):
    SIZES[family] |= {"vae": VAE_16, "text_encoder": CLIP_L + PROJECTION, "text_encoder_2": OPEN_CLIP_G}
FLAGS = {"requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker"}
CAT = [49406, 320, 1125, 539, 320, 2368, 49407]  # a photo of a cat
SCHEDULES = {  # prediction type, or shift
    "sd-1.5": "epsilon",
    "sd-2.1": "v_prediction",
    "sd-2.1-base": "epsilon",
    "sdxl": "epsilon",
    "sd3": 3.0,
    "sd3.5-medium": 3.0,
    "sd3.5-large": 3.0,
}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def networks(name):
    """Every network of a family, without values."""
    index = json.loads((CONFIGS / name / "model_index.json").read_text())
    result = {}
    with torch.device("meta"):
        for part in SIZES[name]:
            library, kind = index[part]
            folder = CONFIGS / name / part
            if library == "diffusers":
                cls = getattr(diffusers, kind)
                result[part] = cls.from_config(cls.load_config(folder))
            else:
                result[part] = getattr(transformers, kind)(transformers.CLIPTextConfig.from_pretrained(folder))
    return result


def test_every_network_has_as_many_parameters_as_the_released_one(name, networks):
    assert {part: sum(value.numel() for value in net.parameters()) for part, net in networks.items()} == SIZES[name]


def test_a_file_of_these_shapes_is_recognised(name, networks, names, tmp_path):
    pipe = type(FAMILIES[name].pipeline, (SimpleNamespace,), {})(**networks)
    shapes = {key: tuple(value.shape) for key, value in original_state(pipe).items()}
    file = hollow_file(tmp_path / "m.safetensors", shapes)
    if name.startswith("sd-2.1"):
        with pytest.raises(ModelError, match=r"its weights do not tell .* give `model_config`, sd-2.1 or sd-2.1-base"):
            find_model(str(file), names)
        source = find_model(str(file), names, ModelOptions(config=name)).source
    else:
        source = find_model(str(file), names).source
        with pytest.raises(ModelError, match=f"so it is {name}, not|which is none of"):
            find_model(str(file), names, ModelOptions(config="sd-2.1"))
    assert (source.pipeline, source.config) == (FAMILIES[name].pipeline, CONFIGS / name)


def test_every_tokenizer_gives_the_tokens_of_clip_and_pads_as_the_release_does(name):
    tokenizers = shipped_tokenizers(CONFIGS / name)
    assert set(tokenizers) == {part.replace("text_encoder", "tokenizer") for part in SIZES[name] if "text" in part}
    pads = {"tokenizer": 0 if name.startswith("sd-2.1") else 49407, "tokenizer_2": 0}
    for part, tokenizer in tokenizers.items():
        tokens = tokenizer("a photo of a cat", padding="max_length", truncation=True).input_ids
        assert tokens == CAT + [pads[part]] * (77 - len(CAT)), part
        assert len(tokenizer) == 49408
        assert tokenizer("Ünïcødé 日本 don't").input_ids[-3:] == [847, 713, 49407]


def test_every_scheduler_steps_as_the_release_does(name):
    index = json.loads((CONFIGS / name / "model_index.json").read_text())
    cls = getattr(diffusers, index["scheduler"][1])
    config = cls.from_config(cls.load_config(CONFIGS / name / "scheduler")).config
    assert SCHEDULES[name] in (config.get("prediction_type"), config.get("shift"))
    assert "beta_start" not in config or (config.beta_start, config.beta_end) == (0.00085, 0.012)


def test_every_folder_is_complete(name):
    index = json.loads((CONFIGS / name / "model_index.json").read_text())
    assert index["_class_name"] == FAMILIES[name].pipeline
    parts = {part for part, pair in index.items() if isinstance(pair, list) and pair[0]}
    assert parts == {path.name for path in (CONFIGS / name).iterdir() if path.is_dir()}
    wanted = set(inspect.signature(getattr(diffusers, index["_class_name"])).parameters) - FLAGS
    assert wanted <= set(index)
