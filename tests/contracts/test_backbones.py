"""The laws of every backbone, over every family and the analytic one; and backbones that are wrong in one way each."""

import functools

import pytest
import torch
from attrs import evolve

from tiny_families import CONTRACTED
from toy import toy_sampler
from vitrail import testing
from vitrail.sampling.sampler import Sampler


@functools.cache
def backbone(family):
    """With its own networks, built once."""
    if family == "analytic":
        return toy_sampler().backbone
    return Sampler.from_pipeline(CONTRACTED[family](), "direct").backbone


@pytest.mark.parametrize("family", [*CONTRACTED, "analytic"])
def test_backbone(family):
    testing.check_backbone(backbone(family))


class Broken:
    """A backbone in front of a sound one."""

    def __init__(self, how, sound):
        self._how, self._sound, self._calls = how, sound, 0

    def __getattr__(self, name):
        return getattr(self._sound, name)

    @property
    def native_size(self):
        return 8.0 if self._how == "facts" else self._sound.native_size

    def new_scheduler(self, name=None):
        if self._how != "one scheduler":
            return self._sound.new_scheduler(name)
        self._calls = self._calls or self._sound.new_scheduler()
        return self._calls

    def first_step(self, num_steps, strength):
        return 1 if self._how == "strength" else self._sound.first_step(num_steps, strength)

    def fingerprint(self):
        return object() if self._how == "fingerprint" else self._sound.fingerprint()

    def words(self, inputs):
        return "a fox" if self._how == "words" else self._sound.words(inputs)

    def predict(self, rows, step, timestep, conditioning):
        if self._how == "in place":
            rows.model_input.mul_(2)
        answer = self._sound.predict(rows, step, timestep, conditioning)
        output = answer.model_output
        match self._how:
            case "rows look at each other":
                output = output + output.mean(0, keepdim=True)
            case "rows have places":
                output = output * torch.arange(1, len(output) + 1).view(-1, 1, 1, 1)
            case "memory":
                self._calls += 1
                output = output + 1e-7 * self._calls
            case "global randomness":
                output = output + 1e-6 * torch.randn_like(output)
            case "ambient dtype":
                output = output * torch.tensor(0.1).float()
            case "float64":
                output = output.double()
            case "shape":
                output = output[..., 1:]
            case "not finite":
                output = output / 0
            case "hook":
                self._sound.network.register_forward_hook(lambda *arguments: None)
            case "map":
                return evolve(answer, attention=2 * torch.ones(1, 1, *output.shape[-2:]))
            case "ambient map" if answer.attention is not None:
                return evolve(answer, attention=answer.attention * torch.tensor(0.1).float())
            case "no map":
                return evolve(answer, attention=None)
        return evolve(answer, model_output=output)

    def decode(self, latents, exchange, wrap, backs_off, streams):
        picture = self._sound.decode(latents, exchange, wrap, backs_off, streams)
        match self._how:
            case "decodes beyond":
                return 2 * picture + 0.1
            case "decodes at random":
                return (picture + 0.01 * torch.rand_like(picture)).clamp(0, 1)
            case "decodes by the default dtype":
                return picture * torch.tensor(0.1).float()
            case "decodes another size":
                return picture[..., 1:]
        return picture

    def encode(self, picture, noise):
        encoded = self._sound.encode(picture, noise)
        match self._how:
            case "encodes at random":
                return encoded + torch.randn_like(encoded)
            case "encodes by the default dtype":
                return encoded * torch.tensor(0.1).float()
            case "encodes another size":
                return encoded[..., 1:]
        return encoded


BROKEN = [
    ("facts", "native_size must be a whole number above 0, got 8.0"),
    ("one scheduler", "a scheduler of its own"),
    ("strength", "a strength of 1 leaves no step out"),
    ("fingerprint", "same fingerprint"),
    ("words", "words are a tuple of texts"),
    ("in place", "must not write into its input"),
    ("rows look at each other", "must not depend on the rows beside it"),
    ("rows have places", "must not depend on the rows beside it|must not depend on its place"),
    ("memory", "the same rows must be predicted the same again"),
    ("global randomness", "the same rows must be predicted the same again"),
    ("ambient dtype", r"a prediction changes with torch.set_default_dtype\(torch.bfloat16\)"),
    ("ambient map", r"a prediction changes with torch.set_default_dtype\(torch"),
    ("float64", "expected float32"),
    ("shape", "expected float32"),
    ("not finite", "must be finite"),
    ("hook", "hooks, or modules, are left"),
    ("map", r"an attention map lies in \[0, 1\]"),
    ("no map", "must come with its attention map"),
    ("decodes beyond", r"lies in \[0, 1\]"),
    ("decodes at random", "same latents must decode to the same picture"),
    ("decodes by the default dtype", "a decoded picture changes with torch.set_default_dtype"),
    ("encodes by the default dtype", "what the encoder gives changes with torch.set_default_dtype"),
    ("decodes another size", r"expected float32 \(1, 3, 64, 64\)"),
    ("encodes at random", "the encoder must give its mean"),
    ("encodes another size", "expected latents of"),
]


@pytest.mark.parametrize(("how", "told"), BROKEN)
def test_a_broken_one_is_caught(how, told):
    sound = Sampler.from_pipeline(CONTRACTED["sd"](), "direct").backbone if how == "hook" else backbone("sd")
    with pytest.raises(AssertionError, match=told):
        testing.check_backbone(Broken(how, sound))


def test_a_sound_one_passes_through_the_same_front():
    testing.check_backbone(Broken("", backbone("sd")))
