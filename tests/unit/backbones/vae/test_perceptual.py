"""Perceptual distances: what every distance does, LPIPS as its authors define it, and files of other weights."""

import re
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from perceptual_files import WIDTHS, random_weights, write
from vitrail.backbones.vae.perceptual import load_distance
from vitrail.core.method.lpips import BLOCKS, check_weights
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ModelError, ShapeError

POOLS = (4, 9, 16, 23)  # torchvision's numbers, between the convolutions and the activations behind them


def pictures(count=2, height=40, width=56, name="picture"):
    return Streams(0).uniform((count, 3, height, width), name) * 2 - 1


@pytest.fixture(params=["judge", "lpips"])
def distance(request, tmp_path):
    return load_distance(None if request.param == "judge" else write(tmp_path / "lpips.safetensors"))


def between(distance, first, second):
    return distance.between(distance.features(first), distance.features(second))


def test_a_picture_is_near_to_itself_and_as_far_from_another_as_that_from_it(distance):
    first, second = pictures(), pictures(name="other")
    assert torch.equal(between(distance, first, first), torch.zeros(2))
    there, back = between(distance, first, second), between(distance, second, first)
    assert torch.equal(there, back) and bool((there > 0).all()) and there.shape == (2,)


def test_a_little_noise_is_a_smaller_distance_than_much(distance):
    first, noise = pictures(), pictures(name="noise")
    little, much = (between(distance, first, first + amount * noise) for amount in (0.02, 0.5))
    assert bool((little < much).all())


def test_a_picture_without_any_detail_has_a_gradient(distance):
    black = torch.zeros(1, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(between(distance, black, pictures(1, 32, 32)).sum(), black)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def vgg16():
    """torchvision's stack from its own numbers, with fewer channels."""
    layers, channels = [], 3
    for block, width in zip(BLOCKS, WIDTHS, strict=True):
        for _ in block:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    network = nn.Module()
    network.features = nn.Sequential(*layers)
    assert all(isinstance(network.features[number], nn.MaxPool2d) for number in POOLS)
    return network


def test_lpips_is_what_its_authors_define(tmp_path):
    weights, network = random_weights(), vgg16()
    network.load_state_dict({name: each for name, each in weights.items() if name.startswith("features")})
    first, second = pictures(), pictures(name="other")
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    expected, ends = torch.zeros(2), [block[-1] + 1 for block in BLOCKS]  # relu1_2 and so on
    with torch.no_grad():
        for number, end in enumerate(ends):
            a, b = (network.features[: end + 1]((each - shift) / scale) for each in (first, second))
            a, b = (each / (each.square().sum(1, keepdim=True).sqrt() + 1e-10) for each in (a, b))
            weighted = nn.functional.conv2d((a - b).square(), weights[f"lin{number}.model.1.weight"])
            expected += weighted.mean((1, 2, 3))
    found = between(load_distance(write(tmp_path / "lpips.safetensors")), first, second)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def lpips_module():
    """LPIPS as the package ``lpips`` (0.1.4) builds it: VGG16 in slices, every head under two names."""
    module, layers = nn.Module(), list(vgg16().features)
    module.net, module.lins = nn.Module(), nn.ModuleList()
    for number, (first, end) in enumerate(zip((0, *POOLS), (*POOLS, 30), strict=True)):
        parts = {str(at): layers[at] for at in range(first, end)}
        module.net.add_module(f"slice{number + 1}", nn.Sequential(OrderedDict(parts)))
        head = nn.Module()
        head.model = nn.Sequential(nn.Dropout(), nn.Conv2d(WIDTHS[number], 1, 1, bias=False))
        module.add_module(f"lin{number}", head)
        module.lins.append(head)
    return module


def test_the_module_of_lpips_saved_as_it_is_gives_the_same_distance(tmp_path):
    """Its heads are shared tensors, of which ``save_model`` keeps one name; either will do."""
    module, weights = lpips_module(), random_weights()
    with torch.no_grad():
        for number, block in enumerate(BLOCKS):
            head = f"lin{number}.model.1.weight"
            module.get_parameter(head).copy_(weights[head])
            for name in (f"{conv}.{kind}" for conv in block for kind in ("weight", "bias")):
                module.get_parameter(f"net.slice{number + 1}.{name}").copy_(weights[f"features.{name}"])
    with pytest.raises(RuntimeError, match="share memory"):
        save_file(module.state_dict(), tmp_path / "shared.safetensors")
    save_model(module, str(tmp_path / "module.safetensors"))
    named = {name: each for name, each in module.state_dict().items() if not re.match(r"lin\d", name)}
    save_file(named, tmp_path / "lins.safetensors")
    first, second = pictures(), pictures(name="other")
    expected = between(load_distance(write(tmp_path / "published.safetensors")), first, second)
    for name in ("module", "lins"):
        found = between(load_distance(str(tmp_path / f"{name}.safetensors")), first, second)
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lin3.model.1.weight": None}, "it has no lin3.model.1.weight;"),
        ({f"features.{n}.bias": None for n in (0, 2, 5, 7)}, "features.5.bias and 1 more"),
        ({"features.5.weight": torch.zeros(6, 5, 3, 3)}, r"features.5.weight is \(6, 5, 3, 3\) and should be \(6, 4"),
        ({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, r"lin0.model.1.weight is .* should be \(1, 4, 1, 1\)"),
        ({"features.0.bias": torch.zeros(())}, "features.0.weight is"),
    ],
)
def test_other_weights_are_refused_by_name(tmp_path, changes, told):
    with pytest.raises(ModelError, match=told):
        check_weights(write(tmp_path / "lpips.safetensors", **changes))


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "text.safetensors").write_text("<html>")
    for name, told in (("none.safetensors", "cannot be read"), ("text.safetensors", "a web page")):
        with pytest.raises(ModelError, match=told):
            check_weights(str(tmp_path / name))


def test_tensors_besides_do_not_matter(tmp_path):
    check_weights(write(tmp_path / "lpips.safetensors", **{"classifier.0.weight": torch.zeros(2)}))


def test_a_picture_too_small_for_four_poolings_is_refused(tmp_path):
    with pytest.raises(ShapeError, match="16 pixels"):
        load_distance(write(tmp_path / "lpips.safetensors")).features(pictures(1, 8, 32))
