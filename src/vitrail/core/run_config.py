"""What a run is made of, besides its method: the same words in Python, in a file and on the command line."""

from __future__ import annotations

from attrs import field, frozen
from attrs import validators as v

MIN_SIZE = 64  # pixels


@frozen(kw_only=True)
class RunConfig:
    """A run as data; with the method's tables it is the recipe that a picture carries."""

    prompt: str  # one sentence
    height: int = field(default=512, validator=v.ge(MIN_SIZE))  # pixels
    width: int = field(default=512, validator=v.ge(MIN_SIZE))  # pixels
    method: str = "asg-plus"  # a registered method or a TOML or YAML file
    model: str = "demo"  # a registered model or a diffusers folder
    seed: int = field(default=0, validator=v.and_(v.ge(0), v.lt(2**63)))  # of all randomness
    num_inference_steps: int = field(default=30, validator=v.ge(1))  # sampling steps
    guidance_scale: float = field(default=3.0, validator=v.ge(1.0))  # 1.0 switches classifier-free guidance off
    negative_prompt: str = ""  # what the picture should not show
    scheduler: str | None = None  # a diffusers class; the model's own if unset
    num_images: int = field(default=1, validator=v.ge(1))  # picture i has seed + i
    row_batch: int = field(default=4, validator=v.ge(1))  # rows (view x CFG branch) a forward; what ranks share
