"""What ranks that are processes run: importable, since it is sent to them by name."""

import torch

from tiny import tiny_pipeline
from toy import sample, toy_sampler
from vitrail.methods import load_method
from vitrail.sampler import Sampler, Spread

CALL = {"height": 136, "width": 200, "num_inference_steps": 2, "output_type": "pt", "row_batch": 2, "seed": 3}


def everything(names, stages, communicator=None):
    """Pictures of a tiny network by method, and latents of the analytic backbone by composition, on this rank."""
    torch.set_num_threads(1)
    return every_method(names, communicator) | every_toy(stages, communicator)


def every_method(names, communicator):
    pipe = tiny_pipeline()
    spread = Spread(communicator=communicator)
    samplers = {name: Sampler.from_pipeline(pipe, load_method(name)) for name in names}
    return {name: sampler("a fox", spread=spread, **CALL).images[0] for name, sampler in samplers.items()}


def every_toy(stages, communicator):
    spread = Spread(communicator=communicator)
    return {f"toy {name}": sample(toy_sampler(*each), row_batch=2, spread=spread) for name, each in stages.items()}
