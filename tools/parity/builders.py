"""How what a file of the authors defines becomes a pipeline that can be called; one function for each ``build``."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import diffusers
import yaml
from attrs import frozen
from torch import nn

from .checkout import Checkout, RefusedError
from .entries import Entry
from .models import Model, with_scheduler


@frozen(eq=False)
class Made:
    """A pipeline of the authors.

    Attributes:
        call: What is called for a picture.
        network: Its denoising network.
        vae: Its autoencoder.
    """

    call: Callable[..., Any]
    network: nn.Module
    vae: nn.Module


@frozen(eq=False)
class Source:
    """What a pipeline is made of.

    Attributes:
        module: The imported file.
        checkout: The checkout.
        model: The model.
        scheduler: Class of the scheduler; None for the model's own.
        scratch: An empty folder.
    """

    module: ModuleType
    checkout: Checkout
    model: Model
    scheduler: str | None
    scratch: Path

    def pipeline(self) -> Any:
        """Return diffusers' own pipeline of the model, with the scheduler."""
        return with_scheduler(self.model.pipeline(), self.scheduler)


def made(entry: Entry, source: Source) -> Made:
    """Return the pipeline of an entry."""
    if entry.variables:
        source.module.args = SimpleNamespace(**entry.variables)  # type: ignore[attr-defined]  # of their command line
    return BUILDERS[entry.build](entry, source)


def _components(entry: Entry, source: Source) -> Made:
    """Build a class like diffusers' pipelines, of a model's components."""
    pipe, cls = source.pipeline(), getattr(source.module, entry.name)
    wanted = inspect.signature(cls.__init__).parameters
    options = {"requires_safety_checker": False, "add_watermarker": False}
    every = {**pipe.components, **options}
    built = cls(**{name: value for name, value in every.items() if name in wanted})
    if isinstance(built, diffusers.DiffusionPipeline):
        built.set_progress_bar_config(disable=True)
    return _whole(entry, built)


def _folder(entry: Entry, source: Source) -> Made:
    """Build a class that reads a model's parts from a folder, and takes a device and the folder's name."""
    pipe, scratch = source.pipeline(), source.scratch / "model"
    folder = source.model.folder(scratch)
    if folder == scratch:
        pipe.scheduler.save_pretrained(folder / "scheduler")
    return _whole(entry, getattr(source.module, entry.name)(device=pipe.device, hf_key=str(folder)))


def _applied(entry: Entry, source: Source) -> Made:
    """Call a function with diffusers' own pipeline, which it changes."""
    pipe = source.pipeline()
    getattr(source.module, entry.name)(pipe)
    return _whole(entry, pipe)


def _scalecrafter(entry: Entry, source: Source) -> Made:
    """Let ScaleCrafter's function make a call of diffusers' pipeline, with one of its files of settings."""
    path = source.checkout.root / entry.config
    if not path.is_file():
        raise RefusedError(f"{source.checkout.root} has no {entry.config}, the settings that the entry is for")
    settings, pipe, module = yaml.safe_load(path.read_text(encoding="utf-8")), source.pipeline(), source.module
    if settings["num_inference_steps"] != entry.steps or settings["disperse_transform"] is not None:
        raise RefusedError(f"{path}: is not what the entry is for, {entry.steps} steps without dispersed kernels")
    if entry.method == "scalecrafter":  # the damped method leaves FreeU to the user
        module.register_free_upblock2d(pipe, b1=1.1, b2=1.2, s1=0.6, s2=0.4)
        module.register_free_crossattn_upblock2d(pipe, b1=1.1, b2=1.2, s1=0.6, s2=0.4)

    def dilations(name: str) -> dict[str, float]:
        listed = settings[name]
        return module.read_dilate_settings(str(source.checkout.root / listed)) if listed is not None else {}

    call = getattr(module, entry.name)(
        pipe,
        ndcfg_tau=settings["ndcfg_tau"],
        dilate_tau=settings["dilate_tau"],
        inflate_tau=0,
        dilate_settings=dilations("dilate_settings"),
        inflate_settings=[],
        ndcfg_dilate_settings=dilations("ndcfg_dilate_settings"),
        progressive=settings["progressive"],
    )
    return Made(call, pipe.unet, pipe.vae)


def _whole(entry: Entry, pipe: Any) -> Made:
    return Made(getattr(pipe, entry.calls) if entry.calls else pipe, pipe.unet, pipe.vae)


BUILDERS = {"components": _components, "folder": _folder, "applied": _applied, "scalecrafter": _scalecrafter}
