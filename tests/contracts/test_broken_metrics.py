"""Metrics, features and references that are wrong in one way each, and the check that catches them."""

import pytest
import torch
from attrs import evolve, field, frozen

from vitrail import testing
from vitrail.core.method.metric import Column
from vitrail.errors import ConfigError, ShapeError
from vitrail.testing import make_shown


@frozen
class Broken:
    how: str = ""
    kept: list = field(factory=list, eq=False, repr=False)


@frozen
class BrokenMetric(Broken):
    """The mean brightness."""

    @property
    def columns(self):
        names = ("mean", "mean") if self.how == "one name twice" else ("mean", "most")
        return () if self.how == "no columns" else tuple(Column(name=name, lowest=0, highest=1) for name in names)

    @property
    def extractor(self):
        return self

    @property
    def needs_reference(self):
        return self.how == "goes without a reference"

    def look(self, shown):
        mean = shown.picture.mean()
        match self.how:
            case "sees at random":
                return mean + torch.rand(())
            case "sees by the default dtype":
                return mean * torch.tensor(0.1).float()
            case "sees in the default dtype":
                return torch.tensor(float(mean))
            case "remembers":
                self.kept.append(1)
                return mean + len(self.kept)
            case "shapes":
                return shown.picture[0, 0]
            case "whole numbers":
                return (255 * mean).long()
            case "numbers":
                return float(mean)
        return mean

    def gather(self, looked, reference):
        mean, most = float(looked.mean()), float(looked.max())
        match self.how:
            case "one number":
                return (mean,)
            case "tensors":
                return looked.mean(), looked.max()
            case "nan":
                return mean, float("nan")
            case "beyond its ends":
                return mean, 1 + most
            case "order":
                return mean, float(looked[0])
            case "numbers by the default dtype":
                return mean, float(most * torch.tensor(0.1))
            case "numbers at random":
                self.kept.append(1)
                return mean, most / len(self.kept)
        return mean, most


METRICS = [
    ("no columns", r"must have `columns` that are a tuple of one Column or more, got \(\)"),
    ("one name twice", "names of their own"),
    ("sees at random", "must see the same"),
    (
        "sees by the default dtype",
        r"what its extractor sees changes with torch.set_default_dtype\(torch.bfloat16\)",
    ),
    (
        "sees in the default dtype",
        "tensor of float32 on the cpu, got float64",
    ),
    ("remembers", "must see the same again"),
    ("shapes", "one shape for pictures of any size"),
    ("whole numbers", "tensor of float32 on the cpu, got int64"),
    ("numbers", "tensor of float32 on the cpu, got a float"),
    ("one number", "must return a number for each of 2 columns from `gather`, got 1"),
    ("tensors", "must return a tuple of floats from `gather`, got float32"),
    ("nan", "most is nan for 3 pictures"),
    ("beyond its ends", r"returned most = 1.*, outside of \[0, 1\]"),
    ("order", "the order of the pictures must not count"),
    ("numbers by the default dtype", "what it makes of the pictures changes with torch.set_default_dtype"),
    ("numbers at random", "the same pictures must give the same numbers"),
    ("goes without a reference", "must refuse, and say so"),
]


@pytest.mark.parametrize(("how", "told"), METRICS)
def test_metrics(how, told):
    with pytest.raises((AssertionError, ShapeError), match=told):
        testing.check_metric(BrokenMetric(how))


def test_a_sound_metric_passes():
    testing.check_metric(BrokenMetric())

    @frozen
    class Comparing(BrokenMetric):
        needs_reference = True

        def gather(self, looked, reference):
            if reference is None:
                raise ConfigError("it needs a reference set")
            return float(reference.mean()), float(looked.max())

    testing.check_metric(Comparing())


@frozen
class BrokenFeatures(Broken):
    """Means of colours."""

    @property
    def digest(self):
        return object() if self.how == "digest" else "none"

    def extract(self, pictures):
        found = pictures.mean((2, 3))
        match self.how:
            case "batch":
                return found - found.mean(0, keepdim=True)
            case "float64":
                return found.double()
            case "shape":
                return pictures.mean((1, 2, 3))
            case "graph":
                return found.clone().requires_grad_()
            case "default dtype":
                return found * torch.tensor(0.1).float()
            case "blind":
                return torch.ones_like(found)
        return found

    def probabilities(self, pictures):
        shares = pictures.mean((2, 3)).softmax(1)
        if self.how == "default dtype of classes":
            return torch.tensor(shares.tolist())
        return 2 * shares if self.how == "sums" else shares


FEATURES = [
    ("batch", "Tensor-likes are not close"),
    ("float64", r"must return float32 \(2, dim\) from `extract`, got float64"),
    ("shape", r"must return float32 \(2, dim\) from `extract`, got float32 \(2,\)"),
    ("graph", "without a graph"),
    ("default dtype", r"extract changes with torch.set_default_dtype\(torch.bfloat16\)"),
    ("default dtype of classes", r"probabilities changes with torch.set_default_dtype\(torch.float64\)"),
    ("blind", "unlike pictures look alike"),
    ("sums", "probabilities from 0 on that add up to 1"),
    ("digest", "the same files must have the same digest"),
]


@pytest.mark.parametrize(("how", "told"), FEATURES)
def test_features(how, told):
    with pytest.raises((AssertionError, ShapeError), match=told):
        testing.check_features(BrokenFeatures(how))


@frozen
class BrokenReferences(Broken):
    """Smooth pictures."""

    @property
    def digest(self):
        return "" if self.how == "no digest" else "smooth"

    def pictures(self, height, width):
        for shown in make_shown():
            picture = torch.nn.functional.interpolate(shown.picture[None], (height, width), mode="bilinear")[0]
            match self.how:
                case "size":
                    picture = picture[..., 1:]
                case "range":
                    picture = 2 * picture - 1
                case "random":
                    picture = (0.9 * picture + 0.1 * torch.rand_like(picture)).clamp(0, 1)
                case "float64":
                    picture = picture.double()
                case "one":
                    picture = torch.ones_like(picture)
            yield evolve(shown, picture=picture)


REFERENCES = [
    ("no digest", "stands for the pictures"),
    ("size", r"must yield pictures of float32 \(3, 64, 64\), got float32 \(3, 64, 63\)"),
    ("range", r"must yield pictures in \[0, 1\]"),
    ("random", "always the same pictures"),
    ("float64", r"must yield pictures of float32 \(3, 64, 64\), got float64"),
    ("one", "must not be one"),
]


@pytest.mark.parametrize(("how", "told"), REFERENCES)
def test_references(how, told):
    with pytest.raises((AssertionError, ShapeError), match=told):
        testing.check_references(BrokenReferences(how))


def test_sound_ones_pass():
    testing.check_features(BrokenFeatures())
    testing.check_references(BrokenReferences())
