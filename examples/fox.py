"""The run of fox.toml in Python; the picture carries the same recipe."""

from pathlib import Path

from vitrail import Sampler
from vitrail.sampling.recipe import save_picture

sampler = Sampler.from_pretrained("demo", method="asg-cascade")
result = sampler("a fox on a snow field", height=256, width=256, seed=7, num_inference_steps=12)
save_picture(result.images[0], result.recipes[0], Path("fox.png"))
