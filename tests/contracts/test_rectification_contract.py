"""The laws of every registered rectification."""

import attrs
import pytest
import torch

from rectified import forward
from tiny import tiny_unet
from vitrail.discovery import build_registry

ENTRIES = [pytest.param(entry.value, id=entry.name) for entry in build_registry().entries("rectification")]


@pytest.fixture(scope="module")
def unet():
    return tiny_unet().eval()


@torch.inference_mode()
def ask(unet):
    ramp = torch.linspace(-1, 1, 4 * 256).view(1, 4, 16, 16)
    return unet(ramp, torch.tensor(5), torch.linspace(-1, 1, 96).view(1, 3, 32))[0]


def apply(strategy, unet, index=0):
    return strategy.apply(forward(unet, index))


@pytest.mark.parametrize("cls", ENTRIES)
def test_it_is_frozen_keyword_only_and_documented(cls):
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(")
    assert all(field.kw_only for field in attrs.fields(cls))
    assert cls() == cls()
    assert hash(cls()) == hash(cls())
    assert cls.check.__doc__ and cls.apply.__doc__
    assert cls.needs


@pytest.mark.parametrize("cls", ENTRIES)
def test_it_acts_inside_its_context_and_leaves_nothing(cls, unet):
    cls().check(unet)
    plain = ask(unet)
    with apply(cls(), unet):
        acting = ask(unet)
    assert not torch.equal(acting, plain)
    assert torch.equal(ask(unet), plain)


@pytest.mark.parametrize("cls", ENTRIES)
def test_it_has_a_range_of_steps(cls, unet):
    with apply(cls(until=0.2), unet, index=2):
        late = ask(unet)
    assert torch.equal(late, ask(unet))
