"""Settings of a run besides its method, named alike in Python, in files and on the command line."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import attrs
from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_declared, is_written, later, not_blank, share
from vitrail.core.config.region import Region, as_regions

Dtype = Literal["float32", "bfloat16", "float16"]
Wrap = Literal["none", "x", "y", "xy"]
KeptMaps = Literal["auto", "fixed"]
MIN_SIZE, MAX_SIZE = 64, 2**16  # side, pixels
MAX_STEPS, MAX_IMAGES, MAX_ROWS = 10_000, 10_000, 2**16
LARGEST_SEED = 2**63 - 1
PIXELS = re.compile(r"([0-9]{1,18})(?:x([0-9]{1,18}))?")  # a size as text: 512, or 768x512
ROW_BATCH = 4  # rows per forward on a CPU, where more are not faster


def _guided(instance: object, attribute: Any, value: float) -> None:
    """Refuse a guidance scale below 1, since diffusers' pipelines take 0 for no guidance."""
    if not value >= 1:
        raise ValueError(f"'{attribute.name}' must be >= 1, where 1 switches guidance off: {value:g}")


def _numbers(instance: object, attribute: Any, options: dict[str, float]) -> None:
    """Refuse options of a scheduler's step that are no numbers, or that have a field of their own."""
    odd = {name: value for name, value in options.items() if not math.isfinite(value)}
    if odd:
        raise ValueError(f"'{attribute.name}' wants finite numbers by name, got {odd}")
    if "eta" in options:
        raise ValueError(f"'{attribute.name}': 'eta' has a field of its own; write eta = {options['eta']:g}")


side = v.and_(v.ge(MIN_SIZE), v.le(MAX_SIZE))


@frozen(kw_only=True)
class RunConfig:
    """The settings of a run; with the method's tables they are the recipe that a picture carries."""

    prompt: str  # text of the picture
    height: int = field(default=512, validator=side)  # pixels
    width: int = field(default=512, validator=side)  # pixels
    method: str = field(default="asg-plus", validator=not_blank)  # a registered method or a TOML or YAML file
    model: str = field(
        default="demo", validator=not_blank
    )  # a registered model, a diffusers folder, a .safetensors file or a hub id
    model_config: str | None = field(
        default=None, validator=not_blank
    )  # how to read a single file: as a shipped family or with a diffusers folder's configs
    variant: str | None = field(default=None, validator=not_blank)  # of the weight files, e.g. fp16
    revision: str | None = field(default=None, validator=not_blank)  # of a hub id
    dtype: Dtype = "float32"  # of the networks
    seed: int = field(default=0, validator=v.and_(v.ge(0), v.le(LARGEST_SEED)))  # of all randomness
    num_inference_steps: int = field(default=30, validator=v.and_(v.ge(1), v.le(MAX_STEPS)))  # sampling steps
    guidance_scale: float = field(default=3.0, validator=_guided)  # 1.0 switches classifier-free guidance off
    guidance_rescale: float = field(default=0.0, validator=share)  # share of guidance's contrast that is undone
    negative_prompt: str | None = None  # what to avoid; "" is the empty text, unset the model's own
    regions: tuple[Region, ...] = later(
        default=(), converter=as_regions
    )  # parts of the picture with prompts of their own; `prompt` is that of the rest
    image: str | None = field(default=None, validator=not_blank)  # a picture to start from, resized to the size
    strength: float = field(default=0.8, validator=share)  # with an image: share of the steps that are done
    wrap: Wrap = "none"  # axes on which opposite edges of the picture meet
    scheduler: str | None = field(default=None, validator=not_blank)  # a diffusers class; the model's own if unset
    eta: float | None = later(default=None, validator=v.optional(share))  # share of DDPM's noise in DDIM's steps, as
    # far as the scheduler takes it; its own default if unset, which is 0 for DDIM
    solver_args: dict[str, float] = later(factory=dict, validator=_numbers)  # other numbers that the scheduler's
    # step takes by name, e.g. s_churn
    num_images: int = field(default=1, validator=v.and_(v.ge(1), v.le(MAX_IMAGES)))  # picture i has seed + i
    row_batch: int | None = field(
        default=None, validator=v.optional(v.and_(v.ge(1), v.le(MAX_ROWS)))
    )  # rows (view x CFG branch) per forward, the unit shared between ranks; by free memory if unset
    memory: KeptMaps = "auto"  # auto splits a forward that does not fit; fixed raises
    compile: bool = later(default=False)  # run the denoising network as torch.compile makes it; other last bits

    def __attrs_post_init__(self) -> None:
        if self.seed + self.num_images - 1 > LARGEST_SEED:
            raise ValueError(f"'seed' and 'num_images': the last picture's seed must be <= {LARGEST_SEED}")

    @property
    def scheduler_step(self) -> dict[str, float]:
        """The given options of the scheduler's step, by name."""
        return {**({} if self.eta is None else {"eta": self.eta}), **self.solver_args}

    def as_table(self) -> dict[str, Any]:
        """Return what is written of the settings, as plain data; ``RunConfig(**table)`` reads it."""
        return attrs.asdict(self, filter=is_written, value_serializer=_listed)


def _listed(_: object, attribute: attrs.Attribute[Any] | None, value: object) -> object:
    value = value if attribute is None else as_declared(attribute, value)  # None: an entry of a list
    return list(value) if isinstance(value, tuple) else value
