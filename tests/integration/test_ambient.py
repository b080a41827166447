"""What a process has set around a run reaches no picture: default type and device, modes, seeds, print options."""

import contextlib
import functools
import locale

import pytest
import torch

from methods import METHODS
from metric_files import write_clip, write_inception
from often import every
from schedulers import READ, new_scheduler
from tiny import tiny_pipeline
from tiny_families import FAMILIES
from vitrail.core.geometry.views import Canvas
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.core.schedule.streams import Streams
from vitrail.metrics.judge_features import load_judge
from vitrail.metrics.renders import DemoRenders
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.sampler import Sampler

REGISTRY = build_registry()
CALL = {"height": 136, "width": 128, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "pt", "seed": 2}


@contextlib.contextmanager
def default_type():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64, "a run must leave the default type as it was"
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
        assert torch.get_default_device().type == "meta", "a run must leave the default device as it was"
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def odds_and_ends():
    """Deterministic algorithms, other seeds, other print options, another way to write numbers."""
    kept, state = locale.setlocale(locale.LC_NUMERIC), torch.get_rng_state()
    known = [name for name in ("de_DE.UTF-8", "fr_FR.UTF-8") if _has_locale(name)]
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(77)
    torch.set_printoptions(precision=1, sci_mode=True, threshold=1)
    if known:
        locale.setlocale(locale.LC_NUMERIC, known[0])
    try:
        yield
    finally:
        locale.setlocale(locale.LC_NUMERIC, kept)
        torch.set_printoptions(profile="default")
        torch.use_deterministic_algorithms(False)
        torch.set_rng_state(state)


def _has_locale(name):
    try:
        locale.setlocale(locale.LC_NUMERIC, name)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_NUMERIC, "C")
    return True


STATES = {
    "float64": default_type,
    "default device": default_device,
    "device context": lambda: torch.device("meta"),
    "odds and ends": odds_and_ends,
    "no grad": torch.no_grad,
    "inference mode": torch.inference_mode,
}
DEFAULTS = ("float64", "default device")


@pytest.fixture(scope="module")
def model():
    return tiny_pipeline()


def run(pipe, method, **call):
    return Sampler.from_pipeline(pipe, method)("a fox", **(CALL | call))


def assert_same(result, plain):
    assert result.latents.dtype == torch.float32 and torch.equal(result.latents, plain.latents)
    assert result.images[0].dtype == torch.float32 and torch.equal(result.images[0], plain.images[0])


@pytest.mark.parametrize("method", every(3, METHODS))
def test_the_picture_of_every_method_is_the_same(model, method):
    plain = run(model, method)
    for state in DEFAULTS:
        with STATES[state]():
            assert_same(run(model, method), plain)


@pytest.mark.parametrize("state", [state for state in STATES if state not in DEFAULTS])
@pytest.mark.parametrize("method", ["asg-plus", "demofusion"])
def test_the_picture_is_the_same_in_every_other_state(model, method, state):
    plain = run(model, method)
    with STATES[state]():
        assert_same(run(model, method), plain)


@pytest.mark.parametrize("state", DEFAULTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_picture_of_every_family_is_the_same(family, state):
    pipe = FAMILIES[family]()
    image = torch.rand((1, 3, 128, 128), generator=torch.Generator().manual_seed(1))
    plain = run(pipe, "multidiffusion", image=image, strength=0.7)
    with STATES[state]():
        assert_same(run(pipe, "multidiffusion", image=image, strength=0.7), plain)


@pytest.mark.parametrize("state", DEFAULTS)
def test_freeu_and_hidden_masks_are_the_same(model, state):
    """What libraries make inside a forward without naming its type."""
    pipe = tiny_pipeline()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    plain = run(pipe, "multidiffusion")
    with STATES[state]():
        assert_same(run(pipe, "multidiffusion"), plain)


@pytest.mark.parametrize("state", DEFAULTS)
@pytest.mark.parametrize("name", READ)
def test_every_scheduler_steps_alike(name, state):
    assert all(map(torch.equal, stepped(name, contextlib.nullcontext), stepped(name, STATES[state])))


def stepped(name, state):
    """The canvas after every call of a scheduler that was made outside of the state."""
    scheduler, latents, found = new_scheduler(name), Streams(0).normal((1, 4, 8, 8), "start"), []
    with state():
        stepper = Stepper(scheduler, 4)
        latents = latents * stepper.init_noise_sigma
        for index in range(len(stepper.timesteps)):
            output = 0.3 * stepper.scale(latents, index)
            latents = stepper.step(output, index, latents, Streams(1).generator("noise", index))
            found.append(latents)
        if hasattr(scheduler, "add_noise") or hasattr(scheduler, "scale_noise"):
            found.append(stepper.noised(latents, output, 1))
    return found


@pytest.mark.parametrize("state", DEFAULTS)
def test_the_demo_model_is_loaded_and_sampled_alike(state):
    call = {"height": 128, "width": 192, "num_inference_steps": 2, "output_type": "pt"}
    plain = Sampler.from_pretrained("demo", "asg", device="cpu")("a fox on a beach", **call)
    with STATES[state]():
        assert_same(Sampler.from_pretrained("demo", "asg", device="cpu")("a fox on a beach", **call), plain)


@pytest.mark.parametrize("state", DEFAULTS)
def test_streams_draw_float32_on_the_cpu(state):
    plain = [Streams(3).normal((4, 5), "a", 1), Streams(3).uniform((4, 5), "b")]
    with STATES[state]():
        drawn = [Streams(3).normal((4, 5), "a", 1), Streams(3).uniform((4, 5), "b")]
    assert all(each.dtype == torch.float32 and each.device.type == "cpu" for each in drawn)
    assert all(map(torch.equal, drawn, plain))


# ---------------------------------------------------------------- autocast


@pytest.mark.parametrize("method", every(3, ["asg-plus", "direct", "demofusion"]))
def test_autocast_counts_in_the_network_and_leaves_the_canvas_in_float32(model, method):
    plain = run(model, method)
    with torch.autocast("cpu", torch.bfloat16):
        result, again = run(model, method), run(model, method)
        with STATES["float64"](), torch.inference_mode():
            assert_same(run(model, method), result)
    assert_same(again, result)
    assert not torch.equal(result.latents, plain.latents)
    assert bool(result.images[0].isfinite().all())


# ---------------------------------------------------------------- metrics and the judge


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    clip = write_clip(folder / "clip")
    return {
        "inception": {"weights": write_inception(folder / "inception.safetensors")},
        "clip": {"folder": clip, "classes": ("a fox", "o")},
        "clip-score": {"folder": clip},
    }


@functools.cache
def shown():
    (picture,) = DemoRenders(count=1).pictures(128, 150)
    return picture


def looked(name, files):
    """What a metric sees of a picture, with all that it loads loaded anew."""
    from vitrail.metrics import clip, inception
    from vitrail.metrics import judge_features as demo_judge

    for cached in (load_judge, inception.load_inception, clip.load_clip):
        cached.cache_clear()
    demo_judge._detected.clear()
    metric = REGISTRY.get("metrics", name)(**files.get(name, {}))
    return metric.extractor.look(shown())


@pytest.mark.parametrize("name", REGISTRY.names("metrics"))
def test_every_metric_looks_alike(name, files):
    plain = looked(name, files)
    for state in DEFAULTS:
        with STATES[state]():
            found = looked(name, files)
        assert found.dtype == plain.dtype
        torch.testing.assert_close(found, plain, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", REGISTRY.names("metrics"))
def test_every_metric_sums_up_alike(name, files):
    metric = REGISTRY.get("metrics", name)(**files.get(name, {}))
    seen = torch.stack([metric.extractor.look(one) for one in DemoRenders(count=4).pictures(128, 150)])
    reference = torch.stack([metric.extractor.look(one) for one in DemoRenders(count=3, seed=1).pictures(128, 150)])
    plain = metric.gather(seen, reference)
    for state in DEFAULTS:
        with STATES[state]():
            assert metric.gather(seen, reference) == pytest.approx(plain, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("name", ["demo-judge", "inception", "clip"])
def test_every_network_of_metrics_extracts_alike(name, files):
    features = REGISTRY.get("features", name)(**files.get(name, {}))
    plain = features.extract(shown().picture[None]), features.probabilities(shown().picture[None])
    for state in DEFAULTS:
        looked("objects", files)
        with STATES[state]():
            found = features.extract(shown().picture[None]), features.probabilities(shown().picture[None])
        assert all(map(torch.equal, found, plain))


@pytest.mark.parametrize("state", DEFAULTS)
def test_references_are_drawn_alike(state):
    plain = [one.picture for one in DemoRenders(count=7).pictures(64, 96)]
    with STATES[state]():
        drawn = [one.picture for one in DemoRenders(count=7).pictures(64, 96)]
    assert all(map(torch.equal, drawn, plain))


def test_patchings_draw_alike():
    canvas = Canvas(24, 24, 8)
    for entry in REGISTRY.entries("patching"):
        patched = [_patches(entry.value, canvas)]
        for state in DEFAULTS:
            with STATES[state]():
                patched.append(_patches(entry.value, canvas))
        assert all(views == patched[0][0] for views, _ in patched)
        orders = [order for _, order in patched]
        assert all(order is None for order in orders) or all(torch.equal(order, orders[0]) for order in orders)


def _patches(patching, canvas):
    from vitrail.testing import make_step

    patches = patching().patch(make_step(2), canvas, 4, Streams(5))
    return patches.views, patches.permutation
