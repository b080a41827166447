"""What a run is made of, besides its method: the same words in Python, in a file and on the command line."""

from __future__ import annotations

import re
from typing import Any, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import share

Dtype = Literal["float32", "bfloat16", "float16"]
Wrap = Literal["none", "x", "y", "xy"]
KeptMaps = Literal["auto", "fixed"]
MIN_SIZE, MAX_SIZE = 64, 2**16  # pixels of a side
MAX_STEPS, MAX_IMAGES, MAX_ROWS = 10_000, 10_000, 2**16
LARGEST_SEED = 2**63 - 1
PIXELS = re.compile(r"([0-9]{1,18})(?:x([0-9]{1,18}))?")  # of a size as people write it: 512, or 768x512
ROW_BATCH = 4  # rows a forward on a CPU, where more are not faster


def _said(instance: object, attribute: Any, value: str | None) -> None:
    """An option that is given says something; unset, it is left out."""
    if value is not None and not value.strip():
        raise ValueError(f"'{attribute.name}' must be left out or say something: ''")


def _guided(instance: object, attribute: Any, value: float) -> None:
    """Pipelines of diffusers take 0 for no guidance."""
    if not value >= 1:
        raise ValueError(f"'{attribute.name}' must be >= 1, where 1 switches guidance off: {value:g}")


side = v.and_(v.ge(MIN_SIZE), v.le(MAX_SIZE))


@frozen(kw_only=True)
class RunConfig:
    """A run as data; with the method's tables it is the recipe that a picture carries."""

    prompt: str  # one sentence
    height: int = field(default=512, validator=side)  # pixels
    width: int = field(default=512, validator=side)  # pixels
    method: str = field(default="asg-plus", validator=_said)  # a registered method or a TOML or YAML file
    model: str = field(
        default="demo", validator=_said
    )  # a registered model, a diffusers folder, a .safetensors file or a hub id
    model_config: str | None = field(
        default=None, validator=_said
    )  # what a single file is read as: a shipped family or a diffusers folder
    variant: str | None = field(default=None, validator=_said)  # of the weight files, e.g. fp16
    revision: str | None = field(default=None, validator=_said)  # of a hub id
    dtype: Dtype = "float32"  # of the networks
    seed: int = field(default=0, validator=v.and_(v.ge(0), v.le(LARGEST_SEED)))  # of all randomness
    num_inference_steps: int = field(default=30, validator=v.and_(v.ge(1), v.le(MAX_STEPS)))  # sampling steps
    guidance_scale: float = field(default=3.0, validator=_guided)  # 1.0 switches classifier-free guidance off
    guidance_rescale: float = field(default=0.0, validator=share)  # of the prediction to the text's contrast
    negative_prompt: str | None = None  # what the picture should not show; "" is the empty text, unset the model's own
    image: str | None = field(default=None, validator=_said)  # a picture to start from, enlarged to the size
    strength: float = field(default=0.8, validator=share)  # with an image: the share of steps that change it
    wrap: Wrap = "none"  # axes on which the picture goes on from one edge to the other
    scheduler: str | None = field(default=None, validator=_said)  # a diffusers class; the model's own if unset
    num_images: int = field(default=1, validator=v.and_(v.ge(1), v.le(MAX_IMAGES)))  # picture i has seed + i
    row_batch: int | None = field(
        default=None, validator=v.optional(v.and_(v.ge(1), v.le(MAX_ROWS)))
    )  # rows (view x CFG branch) a forward; what ranks share; chosen by the memory if unset
    memory: KeptMaps = "auto"  # auto cuts a forward that does not fit; fixed refuses

    def __attrs_post_init__(self) -> None:
        if self.seed + self.num_images - 1 > LARGEST_SEED:
            raise ValueError(f"'seed' and 'num_images': the last picture's seed must be <= {LARGEST_SEED}")
