"""What a run is made of, besides its method: the same words in Python, in a file and on the command line."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.fields import share

Dtype = Literal["float32", "bfloat16", "float16"]
Wrap = Literal["none", "x", "y", "xy"]
Memory = Literal["auto", "fixed"]
MIN_SIZE = 64  # pixels
ROW_BATCH = 4  # rows a forward on a CPU, where more are not faster


@frozen(kw_only=True)
class RunConfig:
    """A run as data; with the method's tables it is the recipe that a picture carries."""

    prompt: str  # one sentence
    height: int = field(default=512, validator=v.ge(MIN_SIZE))  # pixels
    width: int = field(default=512, validator=v.ge(MIN_SIZE))  # pixels
    method: str = "asg-plus"  # a registered method or a TOML or YAML file
    model: str = "demo"  # a registered model, a diffusers folder, a .safetensors file or a hub id
    model_config: str | None = None  # what a single file is read as: a shipped family or a diffusers folder
    variant: str | None = None  # of the weight files, e.g. fp16
    revision: str | None = None  # of a hub id
    dtype: Dtype = "float32"  # of the networks
    seed: int = field(default=0, validator=v.and_(v.ge(0), v.lt(2**63)))  # of all randomness
    num_inference_steps: int = field(default=30, validator=v.ge(1))  # sampling steps
    guidance_scale: float = field(default=3.0, validator=v.ge(1.0))  # 1.0 switches classifier-free guidance off
    guidance_rescale: float = field(default=0.0, validator=share)  # of the prediction to the text's contrast
    negative_prompt: str = ""  # what the picture should not show
    image: str | None = None  # a picture to start from, enlarged to the size
    strength: float = field(default=0.8, validator=share)  # with an image: the share of steps that change it
    wrap: Wrap = "none"  # axes on which the picture goes on from one edge to the other
    scheduler: str | None = None  # a diffusers class; the model's own if unset
    num_images: int = field(default=1, validator=v.ge(1))  # picture i has seed + i
    row_batch: int | None = field(
        default=None, validator=v.optional(v.ge(1))
    )  # rows (view x CFG branch) a forward; what ranks share; chosen by the memory if unset
    memory: Memory = "auto"  # auto cuts a forward that does not fit; fixed refuses
