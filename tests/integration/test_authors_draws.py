"""Draws of authors' code, made into numbers from which Vitrail makes what that code made of them."""

import itertools
from pathlib import Path

import attrs
import pytest
import torch
from diffusers import UNet2DConditionModel

from tools.parity.draws import Draw, Place
from tools.parity.entries import Setting, entries
from tools.parity.feeding import Feeder, Rule
from tools.parity.forms import FORMS, lattice, permutations, quarters
from tools.parity.models import TinyModel
from tools.parity.ours import sampled
from vitrail.backbones import loading
from vitrail.core.geometry.views import Canvas
from vitrail.core.schedule.streams import Streams
from vitrail.plugins.patching.lattice import exchange_order, lattice_views
from vitrail.sampling.authors_code import authors_codes

CONFIGS = Path(loading.__file__).parent / "configs"
STEPS, NATIVE, FACTOR = 4, 8, 8
QUICK = ("hidiffusion",)  # the cheapest; the others in the profile ci
METHODS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in entries()]


def drawing(values):
    numbers = itertools.count(1)
    drawn = iter([Draw(next(numbers), "torch.any", "any", value, Place("a.py", 1, "a")) for value in values])
    return lambda kind: next(drawn)


def test_permutations_that_were_drawn_cell_by_cell_are_the_order_of_the_views():
    views, inner = 6, (4, 2, 3)
    orders = [torch.randperm(views, generator=torch.Generator().manual_seed(i)) for i in range(4 * 2 * 3)]
    order = exchange_order(permutations(drawing(orders), (views, 1, *inner), 1))
    assert torch.equal(order[:, 0].movedim(0, -1).reshape(-1, views), torch.stack(orders))


def test_a_canvas_has_the_views_that_were_drawn():
    canvas = Canvas(16, 24, 8)
    views = [Streams(number).normal((1, 4, 8, 8), "view") for number in range(6)]
    whole = lattice(drawing(views), (1, 4, 16, 24), 1)
    assert all(torch.equal(view.read(whole), own) for view, own in zip(lattice_views(canvas, 2, 3), views, strict=True))


def test_a_uniform_number_falls_into_its_quarter():
    drawn = [0.0, 0.25, 0.2501, 0.5, 0.7, 0.9999]
    assert [int(quarters(drawing([torch.tensor([each])]), (), 1)) for each in drawn] == [0, 0, 1, 1, 2, 3]


class Asked(Feeder):
    """Lets streams draw as ever, and keeps their names."""

    def answer(self, stream, index, ordinal, asked):
        self.given.append(stream)
        return asked


@pytest.mark.parametrize("name", METHODS)
def test_an_entry_has_a_rule_for_every_stream_that_its_method_draws(name):
    """At the switches of the table of authors' codes, on the model that it is compared on, but smaller."""
    entry = entries()[name]
    switches = authors_codes()[name].set if entry.set is None else entry.set
    entry = attrs.evolve(entry, set=[each for each in switches if "lpips" not in each])
    height, width = (max(64, int(NATIVE * share) * FACTOR) for share in entry.size)
    setting = Setting(
        prompt="a fox",
        height=height,
        width=width,
        native=NATIVE,
        factor=FACTOR,
        steps=STEPS,
        guidance=entry.guidance,
        eta=0.0,
        generator=None,
    )
    feeder = Asked([], entry.streams)
    seen, result = sampled(entry, setting, TinyModel(entry.family, NATIVE).pipeline(), feeder)
    assert set(feeder.given) == {rule.stream for rule in entry.streams}
    assert torch.isfinite(result.latents).all() and seen.moments and all(rule.form in FORMS for rule in entry.streams)
    call = {key: setting.filled(value) for key, value in entry.call.items()}
    assert not [value for value in call.values() if isinstance(value, str) and "$" in value]


@pytest.mark.thorough
@pytest.mark.parametrize(("family", "config"), [("sd", "sd-1.5"), ("sdxl", "sdxl")])
def test_a_tiny_model_has_the_layers_of_the_real_one(family, config):
    """Some authors' code looks for them by name."""
    with torch.device("meta"):
        real = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / config / "unet"))
    tiny = TinyModel(family, NATIVE).pipeline().unet
    assert [name for name, _ in tiny.named_modules()] == [name for name, _ in real.named_modules()]


def test_every_method_that_was_held_against_its_authors_code_has_an_entry():
    published = {name: known for name, known in authors_codes().items() if known.code}
    compared = {name for name, known in published.items() if not known.equal.startswith("not compared")}
    assert compared <= set(entries()) <= set(published)


def test_a_stream_gets_the_same_numbers_again_and_draws_once():
    values = [Streams(0).normal((2, 2), "a"), Streams(1).normal((2, 2), "a")]
    feeder = Feeder(
        [Draw(i, "torch.randn", "normal", value, Place("a.py", i, "f")) for i, value in enumerate(values)],
        (Rule(stream="noise"),),
    )
    first, again, next_one = (feeder.answer("noise", index, 0, torch.zeros(2, 2)) for index in ((0,), (0,), (1,)))
    assert torch.equal(first, again) and torch.equal(first, values[0]) and torch.equal(next_one, values[1])
    feeder.check_all_used()
