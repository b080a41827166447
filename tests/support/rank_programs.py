"""What ranks that are processes run: importable, since it is sent to them by name."""

import functools

import torch

from tiny import tiny_pipeline
from toy import sample, toy_sampler
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread

CALL = {"height": 136, "width": 200, "num_inference_steps": 3, "output_type": "pt", "row_batch": 2, "seed": 3}


def everything(names, stages, communicator=None):
    """Pictures of a tiny network by method, and latents of the analytic backbone by composition, on this rank."""
    torch.set_num_threads(1)
    return every_method(names, communicator) | every_toy(stages, communicator)


def every_method(names, communicator):
    pipe = tiny_pipeline()
    spread = Spread(communicator=communicator)
    samplers = {name: Sampler.from_pipeline(pipe, load_method(name)) for name in names}
    return {name: sampler("a fox", spread=spread, **CALL).images[0] for name, sampler in samplers.items()}


def every_toy(stages, communicator, **options):
    spread = Spread(communicator=communicator, **options)
    return {f"toy {name}": sample(toy_sampler(*each), row_batch=2, spread=spread) for name, each in stages.items()}


@functools.cache
def demo(method):
    """The model that ships, loaded once a process; ranks that are threads cannot load at once."""
    return Sampler.from_pretrained("demo", load_method(method))


def demo_latents(communicator=None, *, method, steps, threads=None):
    """Latents and picture of the model that ships, of 256 pixels, on this rank; with so many threads, if given."""
    if threads is not None:
        torch.set_num_threads(threads)
    sampler = demo(method).again()
    call = {"height": 256, "width": 256, "num_inference_steps": steps, "seed": 7, "output_type": "pt"}
    result = sampler("a fox on a snow field", spread=Spread(communicator=communicator), **call)
    return result.latents, result.images[0]
