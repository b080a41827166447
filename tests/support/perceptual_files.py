"""A small random file of LPIPS's weights in its VGG16 form: the names of the published files, fewer channels."""

import torch
from safetensors.torch import save_file

from vitrail.core.method.lpips import BLOCKS

WIDTHS = (4, 6, 8, 8, 8)  # of the blocks; 64, 128, 256, 512, 512 in the published one


def random_weights(seed=0):
    generator, channels, weights = torch.Generator().manual_seed(seed), 3, {}
    for number, (block, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
        for conv in block:
            weights[f"features.{conv}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) / 3
            weights[f"features.{conv}.bias"] = torch.randn(width, generator=generator) / 10
            channels = width
        weights[f"lin{number}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return weights


def write(path, **changes):
    """The file with some tensors changed, or left out where they are None."""
    weights = {**random_weights(), **changes}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path)
    return str(path)
