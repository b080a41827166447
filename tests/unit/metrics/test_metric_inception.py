"""FID's Inception: the shapes of the public file, its own resize, and refusals."""

import pytest
import torch
import torch.nn.functional as F

from metric_files import inception_weights, write_inception
from vitrail.errors import ModelError
from vitrail.metrics.inception import Inception, load_inception
from vitrail.metrics.inception_network import InceptionNetwork, _pool, resized_as_tensorflow_did


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_inception(tmp_path_factory.mktemp("inception") / "inception.safetensors")


@pytest.fixture(scope="module")
def shapes():
    with torch.device("meta"):
        return {name: tuple(each.shape) for name, each in InceptionNetwork().state_dict().items()}


def test_it_has_the_tensors_of_the_published_network(shapes):
    """94 convolutions of four statistics each, and one layer; 23,834,568 weights with 1000 classes."""
    counted = {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    assert len(counted) == 94 * 5 + 2
    trained = [shape for name, shape in counted.items() if ".running_" not in name]
    assert sum(torch.Size(shape).numel() for shape in trained) == 23_834_568 + 8 * 2049
    assert counted["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert counted["Mixed_5b.branch5x5_2.conv.weight"] == (64, 48, 5, 5)
    assert counted["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert counted["Mixed_7a.branch7x7x3_2.conv.weight"] == (192, 192, 1, 7)
    assert counted["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)
    assert counted["fc.weight"] == (1008, 2048)


def test_all_weights_reach_the_features(file):
    network = load_inception.__wrapped__(file, "cpu").requires_grad_(True)
    features = network(torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(0)))
    assert features.shape == (1, 2048)
    (features.square().sum() + network.logits(features).square().sum()).backward()
    for name, parameter in network.named_parameters():
        if name != "fc.bias":  # published scores leave it out
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("count", [32, 150, 299, 512])
def test_the_resize_of_a_ramp_is_a_ramp_from_the_first_pixel_on(count):
    ramp = torch.arange(count, dtype=torch.float64).expand(1, 1, count, count)
    found = resized_as_tensorflow_did(ramp, 299)
    wanted = (torch.arange(299, dtype=torch.float64) * count / 299).clamp(max=count - 1)
    torch.testing.assert_close(found[0, 0], wanted.expand(299, 299))
    torch.testing.assert_close(resized_as_tensorflow_did(ramp.mT, 299), found.mT)


def test_the_resize_keeps_pictures_of_its_size_and_is_not_that_of_pixel_middles():
    picture = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized_as_tensorflow_did(picture, 299), picture)
    small = picture[..., :64, :64]
    assert not torch.allclose(
        resized_as_tensorflow_did(small, 299), F.interpolate(small, size=(299, 299), mode="bilinear")
    )


def test_poolings_keep_what_is_constant():
    plane = torch.full((1, 2, 5, 5), 3.0)
    for pool in ("mean", "max"):
        assert torch.equal(_pool(plane, pool), plane)  # padding is no part of a mean
    assert _pool(plane, "halve").shape[-2:] == (2, 2)


def test_a_pth_file_gives_the_same_as_safetensors(file, tmp_path):
    torch.save({name: each.half() for name, each in inception_weights().items()}, tmp_path / "inception.pth")
    pictures = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    own, other = (Inception(weights=str(path)) for path in (file, tmp_path / "inception.pth"))
    assert torch.equal(own.extract(pictures), other.extract(pictures))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"is missing.*pt_inception-2015-12-05"):
        Inception(weights=str(tmp_path / "none.pth")).extract(torch.zeros(1, 3, 32, 32))
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        Inception(weights=str(tmp_path / "page.pth")).extract(torch.zeros(1, 3, 32, 32))
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"Conv2d_1a_3x3.conv.weight is missing.*more; take"):
        Inception(weights=str(tmp_path / "other.pth")).extract(torch.zeros(1, 3, 32, 32))


def test_a_classifier_of_1000_classes_is_refused(tmp_path):
    path = write_inception(tmp_path / "classes.safetensors", **{"fc.weight": torch.zeros(1000, 2048)})
    with pytest.raises(ModelError, match=r"fc.weight is \(1000, 2048\) and should be \(1008, 2048\)"):
        Inception(weights=path).probabilities(torch.zeros(1, 3, 32, 32))
