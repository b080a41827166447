"""Distances between sets: closed forms, independent computations, and what must make them larger."""

import math
import os

import numpy as np
import pytest
import scipy.linalg
import torch
from attrs import evolve

from vitrail.core.method.metric import Shown
from vitrail.errors import ConfigError
from vitrail.experiments.analysis.measurement import key_of
from vitrail.metrics.crops import CropFeatures, places
from vitrail.metrics.fid import Fid, condensed, distance, frechet, moments
from vitrail.metrics.inception import Inception
from vitrail.metrics.inception_score import InceptionScore
from vitrail.metrics.judge_features import DemoJudge
from vitrail.metrics.kid import Kid, discrepancy, within
from vitrail.metrics.objects import Objects
from vitrail.metrics.reference_sets import Remembered
from vitrail.metrics.renders import DemoRenders
from vitrail.metrics.seams import Seams
from vitrail.metrics.sharpness import Sharpness


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(count, dim, seed, stretch=1.0):
    """A set with covariances between the dimensions, away from the middle."""
    return normal(count, dim, seed=seed) @ (torch.eye(dim) + 0.3 * normal(dim, dim, seed=99)) * stretch + 0.5


def frechet_by_scipy(one, other):
    one, other = one.double().numpy(), other.double().numpy()
    covariances = [np.atleast_2d(np.cov(each, rowvar=False)) for each in (one, other)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    shift = ((one.mean(0) - other.mean(0)) ** 2).sum()
    return shift + np.trace(covariances[0] + covariances[1] - 2 * root.real)


@pytest.mark.parametrize(("count", "others", "dim"), [(60, 90, 5), (200, 64, 12)])
def test_fid_is_that_of_scipy(count, others, dim):
    one, other = features(count, dim, 1), features(others, dim, 2, stretch=1.5)
    assert frechet(one, other) == pytest.approx(frechet_by_scipy(one, other), rel=1e-8)


@pytest.mark.parametrize(("count", "others"), [(7, 30), (30, 7), (3, 3)])
def test_fid_of_fewer_pictures_than_features_is_the_nuclear_norms(count, others):
    """Tr (A'A B'B)^(1/2) is the sum of the singular values of A B', which needs no basis."""
    one, other = features(count, 50, 1).double(), features(others, 50, 2).double()
    left, right = ((each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (one, other))
    both = left.square().sum() + right.square().sum() - 2 * torch.linalg.svdvals(left @ right.T).sum()
    wanted = (one.mean(0) - other.mean(0)).square().sum() + both
    assert frechet(one, other) == pytest.approx(wanted.item(), rel=1e-6)


def test_fid_of_shifted_and_stretched_sets_is_the_closed_form():
    one = features(40, 6, 1).double()
    shift = normal(6, seed=3).double()
    assert frechet(one, one + shift) == pytest.approx(shift.square().sum().item(), rel=1e-6)
    middle, variance = one.mean(0), one.var(0).sum().item()
    assert frechet(one, middle + 3 * (one - middle)) == pytest.approx(4 * variance, rel=1e-6)
    assert frechet(one, one) == pytest.approx(0, abs=1e-5)


def test_fid_of_one_picture_again_and_again_is_what_is_left():
    other = features(20, 8, 2).double()
    point = features(1, 8, 4).double()
    wanted = (other.mean(0) - point[0]).square().sum() + other.var(0).sum()
    assert frechet(point.expand(5, 8), other) == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("count", [12, 13, 400])
def test_a_condensed_set_has_the_same_moments_and_distances(count):
    found = moments(features(count, 6, 1))
    few = condensed(found)
    assert len(few.rows) == min(count, 12)
    torch.testing.assert_close(few.rows.mean(dim=0), torch.zeros(6).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(few.rows.T.cov(), found.rows.T.cov())
    torch.testing.assert_close(few.total, few.rows.T.cov().trace())
    for others in (4, 40):
        other = moments(features(others, 6, 2, stretch=1.5))
        assert distance(few, other) == pytest.approx(distance(found, other), rel=1e-7)


@pytest.mark.parametrize("metric", [Fid(), Kid()])
def test_what_is_remembered_of_a_reference_changes_nothing(metric):
    """The same reference again and again, another one between, and one that lies where a forgotten one lay."""

    def plain(one, other):
        return frechet(one[:, 0], other[:, 0]) if isinstance(metric, Fid) else 1000 * discrepancy(one, other)

    seen = features(9, 6, 1)[:, None]
    true = [features(count, 6, seed)[:, None] for count, seed in ((40, 2), (7, 3))]
    for reference in (true[0], true[0], true[1], true[0], *(features(30, 6, seed)[:, None] for seed in range(4, 9))):
        assert metric.gather(seen, reference)[0] == pytest.approx(plain(seen, reference), rel=1e-7)


def test_a_function_of_a_tensor_is_computed_once_and_forgotten_with_it():
    calls = []
    total = Remembered(lambda tensor: calls.append(len(tensor)) or float(tensor.sum()))
    one, other = torch.ones(3), torch.ones(5)
    assert [total(one), total(other), total(one), total(one)] == [3, 5, 3, 3]
    assert calls == [3, 5]
    assert len(total._known) == 2
    del one
    assert len(total._known) == 1
    assert within(other[:, None, None]) == 8.0


def kid_by_hand(one, other):
    def kernel(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    def within(each):
        return np.mean([kernel(x, y) for i, x in enumerate(each) for j, y in enumerate(each) if i != j])

    one, other = one.double(), other.double()
    return within(one) + within(other) - 2 * np.mean([kernel(x, y) for x in one for y in other])


@pytest.mark.parametrize(("count", "others"), [(5, 5), (6, 11)])
def test_kid_is_the_unbiased_estimate_over_all_pairs(count, others):
    one, other = features(count, 7, 1), features(others, 7, 2, stretch=1.5)
    assert discrepancy(one[:, None], other[:, None]) == pytest.approx(kid_by_hand(one, other), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kid_is_that_of_torchmetrics_with_one_subset_of_everything():
    from torchmetrics.image.kid import KernelInceptionDistance

    one, other = features(9, 7, 1).double(), features(9, 7, 2, stretch=1.5).double()
    meter = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=9)
    meter.update(one, real=False)
    meter.update(other, real=True)
    assert discrepancy(one[:, None], other[:, None]) == pytest.approx(meter.compute()[0].item(), rel=1e-9)


def test_kid_of_equal_distributions_is_around_zero():
    found = [
        discrepancy(normal(20, 8, seed=2 * i)[:, None], normal(20, 8, seed=2 * i + 1)[:, None]) for i in range(200)
    ]
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found)) < 3 * error
    assert min(found) < 0 < max(found)


def test_kid_of_crops_that_are_alike_in_a_picture_is_not_biased_by_it():
    def crops(seed):
        pictures, own = normal(6, 8, seed=seed), normal(18, 8, seed=1000 + seed).view(6, 3, 8)
        return pictures[:, None] + 0.1 * own

    found = [discrepancy(crops(2 * i), crops(2 * i + 1)) for i in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5


def test_inception_score_of_sure_and_unsure_sets():
    sure, unsure = torch.eye(4)[:, None], torch.full((6, 1, 4), 0.25)
    assert InceptionScore().gather(sure, None) == pytest.approx((4.0,))
    assert InceptionScore().gather(unsure, None) == pytest.approx((1.0,))
    assert InceptionScore().gather(torch.eye(4)[[1, 1, 1], None], None) == pytest.approx((1.0,))


def test_inception_score_is_its_formula_and_leaves_the_random_state_alone():
    features = normal(8, 3, 5).softmax(dim=-1)
    p = features.flatten(0, 1).double()
    divergence = (p * (p.log() - p.mean(0).log())).sum(1)
    state = torch.get_rng_state()
    assert InceptionScore().gather(features, None)[0] == pytest.approx(divergence.mean().exp().item(), rel=1e-7)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("metric", [Fid(), Kid(), InceptionScore()])
def test_one_picture_is_no_set(metric):
    features, true = torch.rand(5, 2, 4), torch.rand(5, 2, 4)
    assert math.isnan(metric.gather(features[:1], true)[0])
    assert not math.isnan(metric.gather(features[:2], true)[0])


def test_metrics_with_equal_options_share_what_was_seen():
    assert Fid(crops=3).extractor == Kid(crops=3).extractor
    assert repr(Fid(crops=3).extractor) == repr(Kid(crops=3).extractor)
    others = [Fid(), Fid(crops=3, seed=1), Fid(crops=3, crop_size=32), InceptionScore(crops=3), Fid(crops=3)]
    assert len({repr(each.extractor) for each in others}) == len(others)


def test_eyes_know_the_weights_that_they_look_with(tmp_path):
    file = tmp_path / "weights.safetensors"
    extractor = Fid(features=Inception(weights=str(file))).extractor
    digests = []
    for content in (b"one", b"other", b"one"):
        file.write_bytes(content)
        os.utime(file, ns=(len(digests) + 1, len(digests) + 1))
        digests.append(extractor.digest)
        assert key_of(extractor) == f"{extractor!r} with {extractor.digest}"
    assert digests[0] == digests[2] != digests[1]
    assert Fid().extractor.digest == DemoJudge().digest == Objects().digest == Sharpness(boxes="judge").digest
    assert len(Fid().extractor.digest) == 64
    assert Sharpness().digest == ""
    assert key_of(Seams()) == repr(Seams())


def test_columns_tell_crops():
    assert [m.columns[0].name for m in (Fid(), Kid(crops=1), InceptionScore(crops=2))] == ["FID", "KID_c", "IS_c"]


@pytest.mark.parametrize(("height", "width", "side"), [(128, 128, 128), (128, 200, 64), (301, 129, 77)])
def test_crops_lie_inside_and_reach_everywhere(height, width, side):
    found = places(height, width, side, 2000, seed=0)
    assert found[:10] == places(height, width, side, 10, seed=0)
    assert all(0 <= y <= height - side and 0 <= x <= width - side for y, x in found)
    free = height - side
    assert min(y for y, _ in found) <= 0.02 * free and max(y for y, _ in found) >= 0.98 * free
    if free:
        assert found != places(height, width, side, 2000, seed=1)


def test_a_crop_that_does_not_fit_is_told():
    shown = Shown(picture=torch.zeros(3, 40, 90), prompt="", native_size=64)
    with pytest.raises(ConfigError, match="64 pixels does not fit in a picture of 40x90"):
        Fid(crops=2).extractor.look(shown)
    with pytest.raises(ConfigError, match="set crop_size"):
        Fid(crops=2).extractor.look(evolve(shown, native_size=0))
    assert Fid(crops=2, crop_size=40).extractor.look(evolve(shown, native_size=0)).shape == (2, 256)


class Ramp:
    """Features that tell what part was seen."""

    def extract(self, pictures):
        return pictures[:, 0, 0, :2]


def test_the_eye_sees_the_crops_that_were_drawn():
    columns = torch.arange(90.0).expand(3, 40, 90)
    extractor = CropFeatures(features=Ramp(), crops=4, crop_size=16, seed=2, kind="extract")
    found = extractor.look(Shown(picture=columns, prompt="", native_size=64))
    assert found.shape == (4, 2)
    assert found[:, 0].tolist() == [x for _, x in places(40, 90, 16, 4, seed=2)]
    assert torch.equal(
        evolve(extractor, crops=0).look(Shown(picture=columns, prompt="", native_size=64)), torch.tensor([[0.0, 1.0]])
    )


@pytest.fixture(scope="module")
def renders():
    return [shown.picture for shown in DemoRenders(count=48).pictures(64, 64)]


def blurred(pictures, width):
    kernel = torch.ones(3, 1, width, width) / width**2
    return [torch.nn.functional.conv2d(p[None], kernel, padding=width // 2, groups=3)[0] for p in pictures]


def test_blur_and_copies_make_sets_of_true_pictures_worse(renders):
    judge = DemoJudge()
    true, own = (judge.extract(torch.stack(half))[:, None] for half in (renders[::2], renders[1::2]))
    blur = [judge.extract(torch.stack(blurred(renders[1::2], width)))[:, None] for width in (3, 7)]
    copies = [own[[i % few for i in range(len(own))]] for few in (10, 3)]
    for worse in (blur, copies):
        rising = [Fid().gather(each, true)[0] for each in (own, *worse)]
        assert rising == sorted(rising)
        assert Kid().gather(worse[-1], true)[0] > Kid().gather(own, true)[0]
    assert Fid().gather(true, true)[0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("metric", [Fid(), Kid(), InceptionScore()])
def test_without_torchmetrics_the_extra_is_named(metric, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "torchmetrics":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    with pytest.raises(ConfigError, match=r'pip install "vitrail\[metrics\]"'):
        metric.gather(torch.rand(3, 1, 4), torch.rand(3, 1, 4))
