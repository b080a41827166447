"""Tiny random weights of an RRDBNet under each of the published namings, and files of them."""

import torch
from safetensors.torch import save_file

BLOCKS, FEATURES, GROWTH = 2, 6, 3


def convs(blocks=BLOCKS, doublings=2, shuffle=1, features=FEATURES, growth=GROWTH):
    """(outputs, inputs) of every convolution in the order of the network."""
    found = {"first": (features, 3 * shuffle**2)}
    for block in range(blocks):
        for residual in (1, 2, 3):
            for conv in range(1, 6):
                found[block, residual, conv] = (features if conv == 5 else growth, features + (conv - 1) * growth)
    ups = {f"up{number}": (features, features) for number in range(1, doublings + 1)}
    return found | {"trunk": (features, features)} | ups | {"hr": (features, features), "last": (3, features)}


def real_esrgan(name, blocks=BLOCKS, doublings=2):
    if isinstance(name, tuple):
        return "body.{}.rdb{}.conv{}".format(*name)
    named = {"first": "conv_first", "trunk": "conv_body", "hr": "conv_hr", "last": "conv_last"}
    return named.get(name) or name.replace("up", "conv_up")


def bsrgan(name, blocks=BLOCKS, doublings=2):
    if isinstance(name, tuple):
        return "RRDB_trunk.{}.RDB{}.conv{}".format(*name)
    named = {"first": "conv_first", "trunk": "trunk_conv", "hr": "HRconv", "last": "conv_last"}
    return named.get(name) or name.replace("up", "upconv")


def esrgan(name, blocks=BLOCKS, doublings=2):
    if isinstance(name, tuple):
        return "model.1.sub.{}.RDB{}.conv{}.0".format(*name)
    tail = {1: {"up1": 3, "hr": 5, "last": 7}, 2: {"up1": 3, "up2": 6, "hr": 8, "last": 10}}[doublings]
    return f"model.1.sub.{blocks}" if name == "trunk" else f"model.{({'first': 0} | tail)[name]}"


NAMINGS = {"real-esrgan": real_esrgan, "bsrgan": bsrgan, "esrgan": esrgan}


def random_weights(naming="real-esrgan", seed=0, blocks=BLOCKS, doublings=2, shuffle=1):
    """A state dict; equal seeds have equal values under every naming."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, (outputs, inputs) in convs(blocks, doublings, shuffle).items():
        place = NAMINGS[naming](name, blocks, doublings)
        weights[f"{place}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) / (9 * inputs) ** 0.5
        weights[f"{place}.bias"] = torch.randn(outputs, generator=generator) / 10
    weights[f"{NAMINGS[naming]('last', blocks, doublings)}.bias"] += 0.5
    return weights


def delta_weights(naming="real-esrgan", doublings=2, shuffle=1):
    """Every convolution hands on what is in its middle, channel by channel, and the residual branches are 0."""
    weights = {name: torch.zeros_like(each) for name, each in random_weights(naming, 0, 1, doublings, shuffle).items()}
    for name in ("first", *(f"up{number}" for number in range(1, doublings + 1)), "hr", "last"):
        middle = weights[f"{NAMINGS[naming](name, 1, doublings)}.weight"][:, :, 1, 1]
        middle[:3, :3] = torch.eye(3)
    return weights


def write(path, weights=None, wrapper=None):
    """A .safetensors or .pth file, by the name's ending."""
    weights = random_weights() if weights is None else weights
    if str(path).endswith(".safetensors"):
        save_file(weights, path)
    else:
        torch.save({wrapper: weights} if wrapper else weights, path)
    return str(path)
