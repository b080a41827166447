"""Loading of a diffusers pipeline from a model's source onto a device."""

from __future__ import annotations

import importlib.util
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.backbones.loading.folder import T5, UNUSED, check_folder, left_out, read_index
from vitrail.backbones.loading.hub import fetch_parts, remedy
from vitrail.backbones.loading.single_file import CONFIGS, T5_WEIGHTS, scheduler_changes
from vitrail.backbones.loading.weights import align, check_filled
from vitrail.core.config.ambient import plain_defaults
from vitrail.core.config.log import logger
from vitrail.core.config.safetensors_header import read_header
from vitrail.core.engine.memory_backoff import REMEDIES, is_out_of_memory
from vitrail.errors import ConfigError, ModelError, OutOfMemory, shortened

if TYPE_CHECKING:
    import torch

    from vitrail.backbones.loading.source import ModelSource

REASON = 120  # characters quoted of torch's message about a device
CLIP_VOCABULARY = CONFIGS / "clip-tokenizer"  # shared by all shipped families


@plain_defaults()
def load_pipeline(source: ModelSource, device: str | None = None) -> Any:
    """Load the weights, from safetensors only, without parts that text to image does not need.

    Args:
        source: Location of the weights.
        device: A torch device; by default the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: If the device cannot be used.
        ModelError: If a part of the pipeline is missing or broken.
        OutOfMemory: If memory ran out.
    """
    import diffusers

    place = find_device(device)
    pipeline = getattr(diffusers, source.pipeline)
    load = _from_file if source.kind == "file" else _from_folder
    try:
        pipe = load(pipeline, source)
        pipe = pipe.to(place)
    except ModelError:
        raise
    except Exception as error:  # diffusers, transformers and safetensors raise many types
        what, reason = f"model {source.name!r} cannot be loaded", str(error).strip() or type(error).__name__
        if is_out_of_memory(error):
            raise OutOfMemory(f"{what}: out of memory: {reason}; free some, or try {REMEDIES}") from error
        raise ModelError(f"{what}: {reason}") from error
    align(pipe)
    return pipe


def _from_folder(pipeline: Any, source: ModelSource) -> Any:
    is_hub = source.kind == "hub"
    folder = Path(source.location)
    if is_hub:
        options = source.options
        where = f"model {source.name!r}: "
        folder = fetch_parts(pipeline, source.location, options.revision, options.variant, where)
    index = read_index(folder, f"model {source.name!r}: ")
    ending = remedy(source.location, source.options.revision) if is_hub else ""
    check_folder(folder, index, source.options.variant, source.name, ending)
    return pipeline.from_pretrained(
        str(folder),
        variant=source.options.variant,
        use_safetensors=True,
        local_files_only=True,
        low_cpu_mem_usage=importlib.util.find_spec("accelerate") is not None,
        **_dtype(source),
        **_without(pipeline, left_out(folder, index)),
    )


def _from_file(pipeline: Any, source: ModelSource) -> Any:
    assert source.config is not None
    header = read_header(Path(source.location))
    index = read_index(source.config, f"model {source.name!r}: ")
    skipped = left_out(source.config, index)
    if skipped and header.has(T5_WEIGHTS):
        reason = "the file holds T5, but its tokenizer does not ship; give a folder that has it as model_config"
        logger().warning("model.part_left_out", model=source.name, part=T5[0], reason=reason)
    pipe = pipeline.from_single_file(
        source.location,
        config=str(source.config),
        local_files_only=True,
        **_dtype(source),
        **_without(pipeline, skipped if header.has(T5_WEIGHTS) else T5),
        **shipped_tokenizers(source.config),
    )
    if getattr(pipe, T5[0], None) is not None:
        pipe.text_encoder_3.eval().tie_weights()  # it is left in training mode, its embeddings untied
    check_filled(pipe, source)
    changes = scheduler_changes(header)
    if changes:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)
    return pipe


def _dtype(source: ModelSource) -> dict[str, torch.dtype]:
    """Return the dtype argument, whose name changed in diffusers 0.40."""
    import diffusers
    import torch

    version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
    return {"dtype" if version >= (0, 40) else "torch_dtype": getattr(torch, source.options.dtype)}


def _without(pipeline: Any, skipped: tuple[str, ...]) -> dict[str, Any]:
    """Return arguments of a pipeline class that leave out parts."""
    known = inspect.signature(pipeline.__init__).parameters
    parts: dict[str, Any] = {name: None for name in (*UNUSED, *skipped) if name in known}
    return parts | ({"requires_safety_checker": False} if "requires_safety_checker" in known else {})


def shipped_tokenizers(config: Path) -> dict[str, Any]:
    """Return the tokenizers of a shipped family, which share a vocabulary and differ in padding.

    Args:
        config: The family's folder; {} for any other folder.
    """
    from transformers import CLIPTokenizer

    files = sorted(config.glob("tokenizer*/tokenizer_config.json")) if config.parent == CONFIGS else []
    options = {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    return {name: CLIPTokenizer.from_pretrained(CLIP_VOCABULARY, **each) for name, each in options.items()}


def find_device(name: str | None) -> torch.device:
    """Return the named device, or the default one, after trying to use it.

    Raises:
        ConfigError: If torch does not know it or cannot use it here.
    """
    import torch

    try:
        wanted = torch.device(default_device() if name is None else name)
    except (RuntimeError, ValueError, OverflowError) as error:  # the message may list all known devices
        raise ConfigError(
            f"no device {shortened(str(name), 60)!r} here: torch knows no such name; {default_device()!r} can be used"
        ) from error
    if wanted.type == "meta":
        raise ConfigError(f"device {name!r} holds shapes and no values; {default_device()!r} can be used")
    try:
        return torch.empty(0, dtype=torch.uint8, device=wanted).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0][:REASON]
        raise ConfigError(f"no device {name!r} here: {reason}; {default_device()!r} can be used") from error


def default_device() -> str:
    """Return the type of the accelerator if torch finds one, else "cpu"."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else "cpu"
