"""Recognition of the model in one ``.safetensors`` file by names and shapes in its header; light to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen

from vitrail.backbones.loading.folder import read_index
from vitrail.core.config.paths import expanded
from vitrail.core.config.safetensors_header import Header
from vitrail.errors import ModelError, nearest

CONFIGS = Path(__file__).parent / "configs"
NETWORK = "model.diffusion_model."
VAE = ("first_stage_model.", "vae.")
T5_WEIGHTS = "text_encoders.t5xxl."
PARTS: dict[str, dict[str, tuple[str, ...]]] = {  # pipeline class -> part -> prefixes of its tensor names
    "StableDiffusion3Pipeline": {
        "transformer": (NETWORK + "joint_blocks.",),
        "vae": VAE,
        "text_encoder": ("text_encoders.clip_l.transformer.text_model.",),
        "text_encoder_2": ("text_encoders.clip_g.transformer.text_model.",),
    },
    "StableDiffusionXLPipeline": {
        "unet": (NETWORK + "label_emb.",),
        "vae": VAE,
        "text_encoder": ("conditioner.embedders.0.transformer.text_model.",),
        "text_encoder_2": ("conditioner.embedders.1.model.",),
    },
    "StableDiffusionPipeline": {
        "unet": (NETWORK + "input_blocks.",),
        "vae": VAE,
        "text_encoder": ("cond_stage_model.transformer.text_model.", "cond_stage_model.model."),
    },
}


@frozen
class CheckpointFamily:
    """A released architecture whose configuration ships in ``configs``.

    Attributes:
        pipeline: The diffusers class that loads it.
        values: Number of values in the denoising network, which distinguishes architectures.
    """

    pipeline: str
    values: int


FAMILIES = {
    "sd-1.5": CheckpointFamily("StableDiffusionPipeline", 859_520_964),
    "sd-2.1": CheckpointFamily("StableDiffusionPipeline", 865_910_724),  # velocity, 768 pixels
    "sd-2.1-base": CheckpointFamily("StableDiffusionPipeline", 865_910_724),  # noise, 512 pixels
    "sdxl": CheckpointFamily("StableDiffusionXLPipeline", 2_567_463_684),
    "sd3": CheckpointFamily("StableDiffusion3Pipeline", 2_084_951_104),
    "sd3.5-medium": CheckpointFamily("StableDiffusion3Pipeline", 2_469_663_936),
    "sd3.5-large": CheckpointFamily("StableDiffusion3Pipeline", 8_146_280_768),
}
CHANNELS = {
    5: "a depth-to-image model",
    7: "an upscaling model",
    8: "a picture-editing model",
    9: "an inpainting model",
}
PLAIN = "a text-to-image checkpoint is needed"
REFUSED: tuple[tuple[Callable[[Header], object], str], ...] = (  # the first match is reported
    (
        lambda header: header.holds(".lora_", "lora_unet", "lora_te", ".lora.", ".hada_w", ".lokr_w"),
        "a LoRA: load it into the pipeline of its model with `pipe.load_lora_weights(file)`, and give that "
        "to `Sampler.from_pipeline`",
    ),
    (
        lambda header: header.shapes.keys() and header.shapes.keys() <= {"emb_params", "clip_l", "clip_g"},
        "a textual-inversion embedding: load it with `pipe.load_textual_inversion(file)`, and give the pipeline "
        "to `Sampler.from_pipeline`",
    ),
    (
        lambda header: header.has("control_model.", "controlnet_", "input_hint_block."),
        "a ControlNet: give a pipeline that has it to `Sampler.from_pipeline`",
    ),
    (
        lambda header: header.holds("scaled_fp8", ".quant_state.", ".quant_map"),
        "quantised weights, which are not read; take the float16 or bfloat16 file of the model",
    ),
    (lambda header: header.holds(".time_stack.", ".time_mixer."), f"a video model; {PLAIN}"),
    (lambda header: header.holds("double_blocks.0."), f"a Flux model, for which there is no adapter; {PLAIN}"),
    (
        lambda header: header.has("conditioner.embedders.0.model.") and not header.has("conditioner.embedders.1."),
        f"the SDXL refiner, which works on pictures of SDXL; {PLAIN}",
    ),
    (lambda header: header.has("noise_augmentor."), f"an image-variation model; {PLAIN}"),
    (lambda header: header.has("edm_mean"), f"a Playground model, trained with other noise; {PLAIN}"),
    (lambda header: _channels(header) in CHANNELS, ""),
    (
        lambda header: header.has("encoder.down.", "decoder.up.") or (header.has(*VAE) and not header.has(NETWORK)),
        f"a VAE alone; {PLAIN}",
    ),
    (
        lambda header: header.has("down_blocks.", "transformer_blocks.", "encoder.down_blocks.", "text_model."),
        "one part of a diffusers folder: give the folder that has model_index.json",
    ),
    (
        lambda header: header.has("joint_blocks.", "input_blocks."),
        f"a denoising network alone, without text encoders and VAE; {PLAIN}",
    ),
)


def _channels(header: Header) -> int:
    shape = header.shapes.get(NETWORK + "input_blocks.0.0.weight", ())
    return shape[1] if len(shape) == 4 else 0


def pipeline_of(header: Header, where: str) -> str:
    """Return the diffusers class that a single file is for.

    Raises:
        ModelError: If the file is not a whole text-to-image model, with what it is and what to do.
    """
    for holds, what in REFUSED:
        if holds(header):
            what = what or f"{CHANNELS[_channels(header)]} ({_channels(header)} input channels); {PLAIN}"
            raise ModelError(f"{where}the file holds {what}")
    for pipeline, parts in PARTS.items():
        if header.has(*next(iter(parts.values()))):
            lacking = [f"{part} ({begin[0]}*)" for part, begin in parts.items() if not header.has(*begin)]
            if lacking:
                raise ModelError(
                    f"{where}the file is for {pipeline}, but holds no {', no '.join(lacking)}; take the file "
                    "that has everything, or a diffusers folder"
                )
            return pipeline
    some = ", ".join(sorted(header.shapes)[:3])
    raise ModelError(f"{where}the file has no layout that is known here; it begins with {some or 'nothing'}")


def config_of(header: Header, wanted: str | None, where: str) -> tuple[str, Path]:
    """Return the pipeline class of a single file and the folder with the configuration of its parts.

    Args:
        header: Header of the file.
        wanted: A shipped family, a diffusers folder, or None to recognise the weights.
        where: Beginning of the error.

    Raises:
        ModelError: If the file is unfit, its architecture is unknown, or not the one that was requested.
    """
    pipeline, values = pipeline_of(header, where), header.values(NETWORK)
    if wanted is not None and wanted not in FAMILIES:
        return pipeline, _given_folder(pipeline, wanted, where)
    fitting = [name for name, family in FAMILIES.items() if family == CheckpointFamily(pipeline, values)]
    names = [name for name, family in FAMILIES.items() if family.pipeline == pipeline]
    facts = f"{where}its network has {values:,} values"
    if not fitting:
        known = "; ".join(f"{name}: {FAMILIES[name].values:,}" for name in names)
        raise ModelError(
            f"{facts}, which is none of the {pipeline} known here ({known}); "
            "give `model_config`, a diffusers folder with its configuration"
        )
    if wanted is not None and wanted not in fitting:
        raise ModelError(
            f"{facts}, so it is {' or '.join(fitting)}, not {wanted}; leave `model_config` out or change it"
        )
    if wanted is None and len(fitting) > 1:
        raise ModelError(
            f"{facts}: Stable Diffusion 2; its weights do not tell whether they predict velocity (768 pixels) or "
            "noise (512 pixels): give `model_config`, sd-2.1 or sd-2.1-base"
        )
    return pipeline, CONFIGS / (wanted or fitting[0])


def _given_folder(pipeline: str, wanted: str, where: str) -> Path:
    folder = expanded(wanted)
    if not folder.is_dir():
        raise ModelError(f"{where}no model_config {wanted!r}{nearest(wanted, FAMILIES)}, or a diffusers folder")
    found = read_index(folder, f"{where}model_config: ")["_class_name"]
    if found != pipeline:
        raise ModelError(f"{where}the file is for {pipeline}, but model_config {wanted!r} is for {found}")
    return folder


def scheduler_changes(header: Header) -> dict[str, Any]:
    """Return scheduler settings that marker tensors of the file imply.

    ``v_pred`` marks velocity prediction and ``ztsnr`` zero terminal signal-to-noise ratio (Lin et al., 2023, secs. 3.1
    and 3.3: the schedule is rescaled, and sampling begins at its last step).
    """
    changes: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in header.shapes else {}
    if "ztsnr" in header.shapes:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return changes
