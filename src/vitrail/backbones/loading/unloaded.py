"""A pipeline whose weights stay in their files, for plans: configurations, headers and networks without values.

It says nothing of its own: where its files are not just what is expected, it declines, and the model is to be loaded,
which then tells what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from attrs import frozen

from vitrail.backbones.loading.folder import STEMS, T5, left_out, parts_of, read_index, weight_files
from vitrail.backbones.loading.model_loader import find_device
from vitrail.backbones.loading.single_file import CONFIGS, NETWORK, PARTS, T5_WEIGHTS, VAE, scheduler_changes
from vitrail.core.config.safetensors_header import Header, read_header
from vitrail.core.config.text_files import read_json

if TYPE_CHECKING:
    import torch

    from vitrail.backbones.loading.source import ModelSource

NETWORKS = {"UNet2DConditionModel", "SD3Transformer2DModel", "AutoencoderKL"}
ENCODERS = {  # class -> names of the setting for width and of the table of its words
    "CLIPTextModel": ("hidden_size", "embeddings.token_embedding.weight"),
    "CLIPTextModelWithProjection": ("hidden_size", "embeddings.token_embedding.weight"),
    "T5EncoderModel": ("d_model", "shared.weight"),
}
TOKENIZERS = {"CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast"}
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))  # one of them is needed
LAYER = re.compile(r"(?:layers|block)\.(\d+)\.")
OF_PIPELINE = {"force_zeros_for_empty_prompt", "requires_aesthetics_score"}  # settings of the index that are asked for


class WeightsNeededError(Exception):
    """What a model would do cannot be told from headers and configurations alone."""


class PreTrainedModel:
    """A text encoder that is not loaded, under the name of its base class in transformers."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = SimpleNamespace(**config)


class PreTrainedTokenizerBase:
    """A tokenizer that is not loaded, under the name of its base class in transformers."""


@frozen(eq=False, slots=False)
class UnloadedPipeline:
    """The parts of a pipeline under their names, as attributes; networks are on torch's ``meta`` device.

    Attributes:
        components: The parts by name; None for one that is left out.
        config: The pipeline's settings.
        device: Device on which it would run.
        vae_scale_factor: Side of a latent cell in pixels.
        unloaded_bytes: Bytes of the weights besides those of the denoising network.
    """

    components: Mapping[str, Any]
    config: Mapping[str, Any]
    device: torch.device
    vae_scale_factor: int
    unloaded_bytes: int

    def __getattr__(self, name: str) -> Any:
        """Return a part.

        Raises:
            AttributeError: If there is no part of the name.
        """
        if name.startswith("__") or name not in self.components:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return self.components[name]

    @property
    def _execution_device(self) -> torch.device:
        return self.device


def unloaded_pipeline(source: ModelSource, device: str | None = None) -> UnloadedPipeline:
    """Return a model's pipeline without its weights.

    Args:
        source: Location of the weights.
        device: As in ``load_pipeline``.

    Raises:
        ConfigError: If the device cannot be used.
        WeightsNeededError: For a hub model, a part of an uncommon class, and files that do not fit each other.
    """
    place = find_device(device)
    if source.kind == "hub" or source.pipeline not in PARTS:
        raise WeightsNeededError(source.name)
    try:
        return _pipeline(source, place)
    except Exception as error:  # whatever it is, loading will meet it, too, and has the words for it
        raise WeightsNeededError(source.name) from error


def _pipeline(source: ModelSource, place: torch.device) -> UnloadedPipeline:
    home = Path(source.location) if source.config is None else source.config
    index = read_index(home, "")
    single = None if source.config is None else read_header(Path(source.location))
    skipped = left_out(home, index)
    if single is not None and not single.has(T5_WEIGHTS):
        skipped = T5
    network = "transformer" if source.pipeline == "StableDiffusion3Pipeline" else "unet"
    parts: dict[str, Any] = {}
    sizes: dict[str, int] = {}  # bytes by part
    for name, (library, kind) in parts_of(index).items():
        if name in skipped:
            parts[name] = None
        elif library not in STEMS or kind is None:
            raise WeightsNeededError(f"{name} is of {library}")
        else:
            header = None if single is not None else _header(home / name, STEMS[library], source, kind)
            parts[name], sizes[name] = _part(home / name, kind, header, source)
    if single is not None:
        sizes["text encoders"] = _beside(single, source)
        _check_single(single, source, parts[network])
        scheduler = parts["scheduler"]
        parts["scheduler"] = type(scheduler).from_config(scheduler.config, **scheduler_changes(single))
    if source.pipeline == "StableDiffusionPipeline":
        _refuse_outdated(parts)
    settings = {name: value for name, value in index.items() if name in OF_PIPELINE}
    if "text_encoder_2" in parts and network == "unet" and "force_zeros_for_empty_prompt" not in settings:
        raise WeightsNeededError("the index does not say what an empty prompt is")
    named: type[UnloadedPipeline] = type(source.pipeline, (UnloadedPipeline,), {})  # messages name the class
    return named(
        components={"controlnet": None, "image_encoder": None, "feature_extractor": None, **parts},
        config=settings,
        device=place,
        vae_scale_factor=2 ** (len(parts["vae"].config.block_out_channels) - 1),
        unloaded_bytes=sum(size for name, size in sizes.items() if name != network),
    )


def _header(part: Path, stem: str, source: ModelSource, kind: str) -> Header | None:
    """Return names and shapes in a part's files of weights, of all shards; None for a part without weights."""
    if kind not in NETWORKS and kind not in ENCODERS:
        return None
    files = weight_files(part, stem, source.options.variant) or weight_files(part, stem, None)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= read_header(file).shapes
    return Header(part, shapes)


def _part(place: Path, kind: str, header: Header | None, source: ModelSource) -> tuple[Any, int]:
    """Return a part without weights, and the bytes of its weights.

    Args:
        place: Folder of its configuration.
        kind: Name of its class.
        header: Names and shapes of its weights; None for a part of a single file, and one without weights.
        source: Gives the dtype.
    """
    import diffusers
    import torch

    dtype: torch.dtype = getattr(torch, source.options.dtype)
    if kind in TOKENIZERS:
        is_shipped = source.config is not None and source.config.parent == CONFIGS  # they share a vocabulary
        if not is_shipped and not any(all((place / file).is_file() for file in files) for files in VOCABULARIES):
            raise WeightsNeededError(f"{place} has no vocabulary that is known here")
        return type(kind, (PreTrainedTokenizerBase,), {})(), 0
    if kind.endswith("Scheduler"):
        return getattr(diffusers, kind).from_pretrained(str(place), local_files_only=True), 0
    config = read_json(place / "config.json")
    if kind in ENCODERS:
        width, table = ENCODERS[kind]
        if header is not None:
            _check_encoder(header, config, width, table)
        values = header.values("") if header is not None else 0
        return type(kind, (PreTrainedModel,), {})(config), values * dtype.itemsize
    if kind not in NETWORKS:
        raise WeightsNeededError(f"{kind} is not known here")
    cls: Any = getattr(diffusers, kind)
    with torch.device("meta"):
        network = cls.from_config(config)
    torch.nn.Module.to(network, dtype).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if header is not None and shapes != dict(header.shapes):
        raise WeightsNeededError(f"the weights in {place} are not those of its configuration")
    return network, sum(tensor.numel() for tensor in network.parameters()) * dtype.itemsize


def _check_encoder(header: Header, config: Mapping[str, Any], width: str, table: str) -> None:
    """Decline a text encoder whose weights have another number of layers or of words than its configuration."""
    layers = {int(number) for name in header.shapes for number in LAYER.findall(name)}
    count = config.get("num_hidden_layers", config.get("num_layers"))
    words = [shape for name, shape in header.shapes.items() if name.endswith(table)]
    if layers != set(range(int(count or 0))) or words != [(config["vocab_size"], config[width])]:
        raise WeightsNeededError(f"the weights in {header.path} are not those of its configuration")


def _beside(header: Header, source: ModelSource) -> int:
    """Return the bytes of what a single file holds besides network and VAE."""
    import torch

    dtype: torch.dtype = getattr(torch, source.options.dtype)
    return (header.values("") - sum(header.values(begin) for begin in (NETWORK, *VAE))) * dtype.itemsize


def _check_single(header: Header, source: ModelSource, network: Any) -> None:
    """Decline a single file whose network has another number of values than its configuration."""
    values = sum(tensor.numel() for tensor in network.state_dict().values())
    if header.values(NETWORK) != values:
        raise WeightsNeededError(f"the network in {source.location} is not that of its configuration")


def _refuse_outdated(parts: Mapping[str, Any]) -> None:
    """Decline configurations that the pipeline of Stable Diffusion 1 and 2 would change when it is made."""
    scheduler, unet = parts["scheduler"].config, parts["unet"].config
    small = isinstance(unet.sample_size, int) and unet.sample_size < 64 and "_diffusers_version" in unet
    old = small and tuple(int(part) for part in re.findall(r"\d+", str(unet["_diffusers_version"]))[:2]) < (0, 9)
    if scheduler.get("steps_offset", 1) != 1 or scheduler.get("clip_sample", False) is True or old:
        raise WeightsNeededError("the pipeline changes its configuration")
