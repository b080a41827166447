"""Look-up of a model's name or folder and of the adapter that can load it, without importing torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol, TypedDict, cast

from attrs import frozen

from vitrail.backbones.loading.folder import PICKLED, PICKLES, check_folder, read_index
from vitrail.backbones.loading.hub import HUB_ID, fetch_index, is_offline, remedy
from vitrail.backbones.loading.single_file import config_of
from vitrail.core.config.paths import expanded
from vitrail.core.config.registry import Registry
from vitrail.core.config.run_config import Dtype, RunConfig
from vitrail.core.config.safetensors_header import read_header
from vitrail.core.config.text_files import read_json
from vitrail.core.method.backbone import Backbone, BackboneSpec
from vitrail.core.schedule.step_options import numbers_of, refuse_unknown_options
from vitrail.errors import ConfigError, ModelError, nearest, shortened

SERVES = "EulerDiscreteScheduler"
UNFIT = {  # unsupported schedulers of diffusers, by reason; others are detected when created
    "is of models of another kind": (
        *("Amused", "BlockRefinement", "ConsistencyDecoder", "DiscreteDDIM", "EntropyBound", "Helios", "HeliosDMD"),
        *("MiniMaxH3", "Piflow", "RFD4Proteina", "SCM", "UnCLIP", "VQDiffusion"),
    ),
    "does not show what a step's noise is, or scales the network's output itself": (
        *("CMStochasticIterative", "CosineDPMSolverMultistep", "DDPMWuerstchen", "EDMDPMSolverMultistep", "EDMEuler"),
        "IPNDM",
    ),
    "steps from more than a prediction, a timestep and latents": ("CogVideoXDPM", "RePaint", "ScoreSdeVe"),
}
SUITS = "vitrail.json"  # file in a model's folder
SUITABLE = {"height", "width", "guidance_scale", "num_inference_steps", "scheduler"}
Kind = Literal["folder", "file", "hub"]
CLASS = re.compile(r"^class (\w+Scheduler)\b", re.MULTILINE)
VARIANT = re.compile(r"\w(\w|[.-](?=\w)){0,63}")  # part of a file's name


class ModelFields(TypedDict):
    """``ModelOptions`` under the names of a run's settings."""

    dtype: Dtype
    variant: str | None
    revision: str | None
    model_config: str | None


@frozen(kw_only=True)
class ModelOptions:
    """How to read a model's files.

    Attributes:
        dtype: Type of the networks.
        variant: Variant of the weight files, e.g. ``fp16``.
        revision: Revision of a hub id.
        config: How to read a single file: as a shipped family or with a diffusers folder's configurations.
    """

    dtype: Dtype = "float32"
    variant: str | None = None
    revision: str | None = None
    config: str | None = None

    @classmethod
    def of(cls, run: RunConfig) -> ModelOptions:
        """Return the options that a run gives."""
        return cls(dtype=run.dtype, variant=run.variant, revision=run.revision, config=run.model_config)

    def as_fields(self) -> ModelFields:
        """Return the options as fields of a run."""
        return {"dtype": self.dtype, "variant": self.variant, "revision": self.revision, "model_config": self.config}


@frozen(kw_only=True)
class ModelSource:
    """Location of a model's weights, which are not loaded yet.

    Attributes:
        name: The model as the user named it.
        kind: A diffusers folder, one ``.safetensors`` file, or a hub id.
        location: The folder, the file or the id.
        pipeline: The diffusers class that loads it.
        options: How to read its files.
        config: For a single file, the folder with the configuration of its parts.
        suits: Fields of a run that the model's folder declares to suit it.
    """

    name: str
    kind: Kind
    location: str
    pipeline: str
    options: ModelOptions = ModelOptions()
    config: Path | None = None
    suits: Mapping[str, object] = {}


class AdapterClass(Protocol):
    """A class that is registered under ``backbones``."""

    @property
    def pipelines(self) -> tuple[str, ...]:
        """Names of the diffusers pipeline classes that it serves."""

    @property
    def offers(self) -> frozenset[str]:
        """Names of the capabilities of its backbones, which strategies may need."""

    def __call__(self, *, source: ModelSource) -> BackboneSpec:
        """Return the spec of a model, found but not loaded."""

    def adopt(self, pipe: object) -> Backbone:
        """Return a backbone of a loaded pipeline."""


def find_model(model: str, registry: Registry, options: ModelOptions | None = None) -> BackboneSpec:
    """Return the spec of a model, found but not loaded.

    Args:
        model: A registered name such as ``demo``, a folder in diffusers' layout, a ``.safetensors`` file or a hub id.
        registry: Has the names and adapters.
        options: How to read its files.

    Returns:
        An instance of the adapter class that supports its pipeline, with the source; ``load`` makes a backbone of it.

    Raises:
        ModelError: If it does not exist, files are missing or unfit, or no adapter supports its pipeline.
        ConfigError: If an option cannot be meant.
    """
    where = f"model {model!r}: "
    kind, location = _place(model, registry)
    options = options or ModelOptions()
    if options.variant is not None and not VARIANT.fullmatch(options.variant):
        said = shortened(repr(options.variant))
        raise ConfigError(f"{where}{said} is no variant of weight files, which is one word such as fp16")
    _refuse_useless(kind, options, where)
    config = None
    if kind == "file":
        pipeline, config = config_of(read_header(Path(location)), options.config, where)
    else:
        folder = fetch_index(location, options.revision, where) if kind == "hub" else Path(location)
        index = read_index(folder, where)
        pipeline = index["_class_name"]
    adapter = adapter_of(pipeline, registry, where)
    if kind == "folder":
        check_folder(folder, index, options.variant, model)
    elif kind == "hub" and is_offline():
        check_folder(folder, index, options.variant, model, remedy(location, options.revision))
    suits = _suits(Path(location), where) if kind == "folder" else {}
    source = ModelSource(
        name=model, kind=kind, location=location, pipeline=pipeline, options=options, config=config, suits=suits
    )
    return adapter(source=source)


def _suits(folder: Path, where: str) -> dict[str, object]:
    """Read the fields of a run that suit a folder's model, from ``vitrail.json``."""
    file = folder / SUITS
    if not file.is_file():
        return {}
    table = read_json(file, kind=ModelError, where=where)
    unknown = sorted(set(table) - SUITABLE) if isinstance(table, dict) else ["a list"]
    if unknown:
        raise ModelError(f"{where}{file} has {', '.join(unknown)}; it may have {', '.join(sorted(SUITABLE))}")
    return dict(table)


def _place(model: str, registry: Registry) -> tuple[Kind, str]:
    """Resolve a name: a registered one first, then an existing path, then the hub."""
    names = registry.names("models")
    if model in names:
        return "folder", str(registry.path("models", model))
    try:
        return _found(model, expanded(model), names)
    except (ConfigError, OSError) as error:
        raise ModelError(f"model {shortened(model)!r}: {getattr(error, 'strerror', None) or error}") from error


def _found(model: str, path: Path, names: list[str]) -> tuple[Kind, str]:
    """Resolve a path, or else a hub id."""
    if path.is_dir():
        return "folder", str(path)
    if path.suffix in PICKLES:
        raise ModelError(f"model {model!r}: {PICKLED}; convert it, see docs/how-to/models.md")
    if path.is_file() and path.suffix == ".safetensors":
        return "file", str(path)
    if path.is_file():
        raise ModelError(f"model {model!r} is a file, but no .safetensors file; give one, or a diffusers folder")
    if path.suffix == ".safetensors":
        raise ModelError(f"model {model!r}: no such file in {Path.cwd()}")
    if HUB_ID.fullmatch(model):
        return "hub", model
    raise ModelError(
        f"no model or folder {shortened(model, 100)!r}{nearest(model, names)}, a diffusers folder, a .safetensors "
        "file, or a hub id `org/name`"
    )


def kind_of(model: str, registry: Registry) -> Kind:
    """Return whether a name is of a folder, a single file or a hub model; raises as ``find_model`` does."""
    return _place(model, registry)[0]


def _refuse_useless(kind: Kind, options: ModelOptions, where: str) -> None:
    """Refuse options that have no effect for this kind of model."""
    useless = {
        "revision": (options.revision, kind != "hub", "is of a hub id"),
        "variant": (options.variant, kind == "file", "names files of a folder or of a hub id"),
        "model_config": (options.config, kind != "file", "tells what a single file is read as"),
    }
    wrong = [
        f"{name} {what}" for name, (value, is_useless, what) in useless.items() if value is not None and is_useless
    ]
    if wrong:
        what = {"folder": "a folder", "file": "a single file", "hub": "a hub id"}[kind]
        raise ModelError(f"{where}{'; '.join(wrong)}, and this is {what}; leave it out")


def adapter_of(pipeline: str, registry: Registry, where: str = "") -> AdapterClass:
    """Return the adapter class that supports a diffusers pipeline class.

    Args:
        pipeline: Name of the class.
        registry: Has the adapters.
        where: Beginning of the error.

    Raises:
        ModelError: With the nearest name, if there is none.
    """
    known = {name: cls for cls in _adapters(registry) for name in cls.pipelines}
    if pipeline not in known:
        hint = nearest(pipeline, known).partition("; known")[0]
        served = "\n  ".join(", ".join(cls.pipelines) for cls in _adapters(registry))
        raise ModelError(f"{where}no adapter for {pipeline!r}{hint}; known:\n  {served}")
    return known[pipeline]


def _adapters(registry: Registry) -> list[AdapterClass]:
    return [cast("AdapterClass", entry.value) for entry in registry.entries("backbones")]


def check_scheduler(name: str | None, options: Mapping[str, float] | None = None) -> None:
    """Refuse a scheduler that diffusers does not have or that cannot sample here; None is the model's own.

    Args:
        name: Name of its class.
        options: Numbers that its step is to take, by name; those of the model's own are checked when it is loaded.

    Raises:
        ConfigError: With the nearest name, or the reason.
    """
    if name is not None and name not in _scheduler_names():
        hint, _, every = nearest(name, _scheduler_names()).partition(";")
        raise ConfigError(f"no scheduler named {shortened(name, 60)!r}{hint or every}")
    if name is not None and "Inverse" in name:
        plain = name.replace("Inverse", "")
        raise ConfigError(f"scheduler {name!r} goes from a picture to noise, which is no sampling; use {plain!r}")
    why = next(
        (why for why, names in UNFIT.items() if name is not None and name.removesuffix("Scheduler") in names), ""
    )
    if why:
        raise ConfigError(f"scheduler {name!r} {why}, so no picture can be sampled with it; e.g. {SERVES!r} serves")
    if name is not None and options:
        refuse_unknown_options(name, _step_numbers(name), options)


@functools.cache
def _scheduler_names() -> frozenset[str]:
    """Read the names of schedulers from diffusers' sources, since importing it takes seconds."""
    return frozenset(name for text in _scheduler_texts() for name in CLASS.findall(text))


@functools.cache
def _scheduler_texts() -> tuple[str, ...]:
    spec = importlib.util.find_spec("diffusers")
    assert spec is not None
    assert spec.origin is not None
    files = (Path(spec.origin).parent / "schedulers").glob("scheduling_*.py")
    return tuple(file.read_text(encoding="utf-8") for file in files)


def _step_numbers(name: str) -> list[str]:
    """Read which numbers a scheduler's step takes from diffusers' sources, see ``numbers_of``."""
    text = next(text for text in _scheduler_texts() if name in CLASS.findall(text))
    classes = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name)
    steps = (node for node in next(classes).body if isinstance(node, ast.FunctionDef) and node.name == "step")
    return numbers_of(next(steps))
