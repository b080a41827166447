"""A VAE runs in the type it needs and stays as it was; what does not fit in memory is cut finer, on all ranks alike."""

import copy
import functools
import threading

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers import AutoencoderTiny
from structlog.testing import capture_logs

from tiny import NATIVE
from tiny_families import FAMILIES, tiny_vae
from vitrail.backbones.vae import strip_ops
from vitrail.backbones.vae.decoding import check_wrap, decode, encode
from vitrail.backbones.vae.strip_ops import Alone
from vitrail.backbones.vae.strips import scaled
from vitrail.comm import InProcess
from vitrail.core.engine.exchange import Exchange
from vitrail.errors import CapabilityError, OutOfMemory, PredictionError, ShapeError

HEIGHTS = pytest.mark.parametrize("height", [NATIVE, 3 * NATIVE])  # whole, and in strips


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latents_of(vae, height=NATIVE, width=5):
    return noise(1, vae.config.latent_channels, height, width) * vae.config.scaling_factor


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return tiny_vae(scaling_factor=0.5, force_upcast=False)


@pytest.fixture
def exact(vae):
    """In double precision, for laws that hold to rounding; pictures are float32 all the same."""
    return vae.double()


close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-6)  # a few of the last bits of a picture


@pytest.fixture
def overflowing():
    """In half precision its first layer leaves the range of float16; the norms after it do not mind in float32."""
    torch.manual_seed(0)
    vae = tiny_vae(scaling_factor=0.5, force_upcast=False)
    for part in (vae.encoder, vae.decoder):
        part.conv_in.weight.data *= 2e5
    return vae


def half(vae, **config):
    other = copy.deepcopy(vae).half()
    other.register_to_config(**config)
    return other


def state(vae):
    """All that somebody could find changed."""
    bits = {name: value if value.is_meta else value.clone() for name, value in vae.state_dict().items()}
    names = {name: sorted(vars(module)) for name, module in vae.named_modules()}
    kinds = {name: (parameter.dtype, parameter.is_meta) for name, parameter in vae.named_parameters()}
    return bits, names, kinds


def same(before, after):
    bits = all(value.is_meta or torch.equal(value, after[0][name]) for name, value in before[0].items())
    return bits and before[1:] == after[1:]


def events(logs):
    return [entry["event"] for entry in logs]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_that_of_the_pipeline(family):
    pipe = FAMILIES[family]()
    options = {"prompt": "a fox", "num_inference_steps": 2, "height": 64, "width": 64}
    kept = pipe(generator=torch.Generator().manual_seed(0), output_type="latent", **options).images
    expected = pipe(generator=torch.Generator().manual_seed(0), output_type="pt", **options).images
    assert torch.equal(decode(pipe.vae, kept, NATIVE, Alone()), expected.float())


@HEIGHTS
def test_a_vae_that_overflows_in_half_precision_runs_in_float32_and_stays_as_it_was(vae, height):
    low = half(vae, force_upcast=True)
    before, latents = state(low), latents_of(vae, height)
    found = decode(low, latents, NATIVE, Alone())
    assert torch.equal(found, decode(copy.deepcopy(low).float(), latents, NATIVE, Alone()))
    assert same(before, state(low))
    assert not torch.equal(found, decode(half(vae), latents, NATIVE, Alone()))
    encoded = encode(low, noise(1, 3, 64, 40).clamp(-1, 1))
    assert torch.equal(encoded, encode(copy.deepcopy(low).float(), noise(1, 3, 64, 40).clamp(-1, 1)))
    assert same(before, state(low))


@HEIGHTS
@pytest.mark.parametrize("wrap", ["none", "x"])
def test_what_is_not_finite_is_worked_out_again_in_float32(overflowing, height, wrap):
    low, latents = half(overflowing), latents_of(overflowing, height)
    before = state(low)
    with capture_logs() as logs:
        found = decode(low, latents, NATIVE, Alone(), wrap)
    assert [entry for entry in logs if entry["event"] == "vae.overflowed"] == [
        {"event": "vae.overflowed", "log_level": "warning", "what": "the decoded picture", "dtype": "float16"}
    ]
    assert torch.equal(found, decode(copy.deepcopy(low).float(), latents, NATIVE, Alone(), wrap))
    assert same(before, state(low))


def test_an_encoder_that_overflows_is_run_again_in_float32(overflowing):
    low, picture = half(overflowing), noise(1, 3, 40, 64)
    with capture_logs() as logs:
        found = encode(low, picture, noise(1, 4, 5, 8))
    assert events(logs) == ["vae.overflowed"]
    assert torch.equal(found, encode(copy.deepcopy(low).float(), picture, noise(1, 4, 5, 8)))


def test_ranks_work_it_out_again_together(overflowing):
    low, latents = half(overflowing), latents_of(overflowing, 3 * NATIVE)
    alone = decode(low, latents, NATIVE, Alone())
    pictures = InProcess().run(3, lambda communicator: decode(low, latents, NATIVE, Exchange.among(communicator)))
    assert all(torch.equal(picture, alone) for picture in pictures)


@HEIGHTS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_vae_that_is_not_finite_in_float32_either_is_told(vae, dtype, height):
    vae.decoder.conv_norm_out.weight.data[0] = torch.nan
    vae.encoder.conv_out.bias.data[0] = torch.inf
    broken = vae.to(dtype)
    with pytest.raises(PredictionError, match="the decoded picture is not finite, in float32 either"):
        decode(broken, latents_of(vae, height), NATIVE, Alone())
    with pytest.raises(PredictionError, match="the encoded picture is not finite"):
        encode(broken, noise(1, 3, 64, 64))
    assert broken.dtype == dtype


@pytest.mark.parametrize("force_upcast", [True, False])
@HEIGHTS
def test_weights_that_lie_elsewhere_between_calls(overflowing, force_upcast, height):
    low, latents = half(overflowing, force_upcast=force_upcast), latents_of(overflowing, height)
    expected = decode(copy.deepcopy(low).float(), latents, 99, Alone())
    moved = copy.deepcopy(low)
    cpu_offload(moved, torch.device("cpu"), offload_buffers=True)
    before = state(moved)
    assert all(parameter.is_meta for parameter in moved.parameters())
    assert torch.equal(decode(moved, latents, NATIVE, Alone()), expected)
    assert same(before, state(moved))
    assert torch.equal(encode(moved, noise(1, 3, 40, 64)), encode(low, noise(1, 3, 40, 64)))
    assert same(before, state(moved))
    with pytest.raises(CapabilityError, match=r"wrap needs .* the vae has a replaced method"):
        decode(moved, latents, NATIVE, Alone(), "x")
    moved.decode = None  # an error on the way
    with pytest.raises(TypeError):
        decode(moved, latents, NATIVE, Alone())
    del moved.decode
    assert same(before, state(moved))


def test_ranks_that_are_threads_take_turns_with_weights_that_lie_elsewhere(overflowing):
    low, latents = half(overflowing), latents_of(overflowing)
    expected = decode(low, latents, NATIVE, Alone())
    cpu_offload(low, torch.device("cpu"), offload_buffers=True)
    pictures = InProcess().run(3, lambda communicator: decode(low, latents, NATIVE, Exchange.among(communicator)))
    assert all(torch.equal(picture, expected) for picture in pictures)


@pytest.mark.parametrize("force_upcast", [True, False])
def test_a_vae_that_waits_elsewhere_keeps_its_hook(vae, force_upcast):
    """Whole instead of in strips, so as far from what is exact as strips are."""
    low, latents = half(vae, force_upcast=force_upcast), latents_of(vae, 3 * NATIVE)
    exact = decode(copy.deepcopy(low).double(), latents, NATIVE, Alone())
    strips = decode(copy.deepcopy(low).float() if force_upcast else low, latents, NATIVE, Alone())
    cpu_offload_with_hook(low, torch.device("cpu"))
    before = state(low)
    rounding, error = ((each - exact).abs().mean() for each in (strips, decode(low, latents, NATIVE, Alone())))
    assert error < 2 * rounding
    assert same(before, state(low)) and low._hf_hook is not None
    remove_hook_from_module(low)


def test_other_vaes_decode_whole_on_every_rank():
    torch.manual_seed(0)
    other = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval()
    latents = noise(1, 4, 3 * NATIVE, 5)
    with torch.no_grad():
        expected = (other.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    with capture_logs() as logs:
        pictures = InProcess().run(2, lambda communicator: decode(other, latents, NATIVE, Exchange.among(communicator)))
    assert all(torch.equal(picture, expected) for picture in pictures)
    assert events(logs) == ["decode.replicated"] * 2 and "AutoencoderTiny" in logs[0]["reason"]
    for call in (lambda: check_wrap(other), lambda: decode(other, latents, NATIVE, Alone(), "xy")):
        with pytest.raises(CapabilityError, match="the vae is of class AutoencoderTiny"):
            call()
    picture = noise(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encode(other, picture, noise(1, 4, 8, 8)), other.encode(picture).latents)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoded_picture_is_that_of_the_vae(family):
    vae = FAMILIES[family]().vae
    picture, shift = noise(1, 3, 64, 40).clamp(-1, 1), vae.config.shift_factor or 0.0
    with torch.no_grad():
        posterior = vae.encode(picture).latent_dist
    expected = (posterior.mode() - shift) * vae.config.scaling_factor
    assert torch.equal(encode(vae, picture), expected)
    drawn = posterior.sample(torch.Generator().manual_seed(7))
    random = noise(1, vae.config.latent_channels, 8, 5, seed=7)
    assert torch.equal(encode(vae, picture, random), (drawn - shift) * vae.config.scaling_factor)
    with pytest.raises(ShapeError, match=r"latents' shape \(1, \d+, 8, 5\), got \(1, \d+, 5, 8\)"):
        encode(vae, picture, random.mT)


@pytest.mark.parametrize("options", [{}, {"latents_mean": (0.1, -0.2, 0.3, 0.4), "latents_std": (0.5, 1.5, 2.0, 1.0)}])
def test_the_decoder_gets_what_the_encoder_gave(options):
    vae = tiny_vae(scaling_factor=0.4, **options)
    picture = noise(1, 3, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        expected = vae.encode(picture).latent_dist.mean
        torch.testing.assert_close(scaled(vae, encode(vae, picture)), expected)


class Allocator:
    """Refuses convolutions of more rows than a limit, on some ranks."""

    def __init__(self, limit, error, only=None):
        self.limit, self.error, self.only, self.rank = limit, error, only, threading.local()
        self.convolve = strip_ops._conv_rows

    def __call__(self, padded, conv, around):
        here = self.only is None or getattr(self.rank, "number", 0) == self.only
        if here and padded.shape[2] > self.limit:
            raise self.error
        return self.convolve(padded, conv, around)


ERRORS = [
    torch.OutOfMemoryError("out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]


def strips_seen(logs):
    return [entry["rows"] for entry in logs if entry["event"] == "decode.short"]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("wrap", ["none", "xy"])
def test_strips_that_do_not_fit_are_halved(exact, monkeypatch, error, wrap):
    latents, native = latents_of(exact, 8 * NATIVE), 4 * NATIVE
    expected = decode(exact, latents, native, Alone(), wrap)
    monkeypatch.setattr(strip_ops, "_conv_rows", Allocator(8 * 8 + 2, error))
    with capture_logs() as logs:
        found = decode(exact, latents, native, Alone(), wrap)
    assert [entry for entry in logs if entry["event"] == "decode.short"] == [
        {"event": "decode.short", "log_level": "warning", "rows": 8, "reason": str(error)}
    ]
    close(found, expected)


@pytest.mark.parametrize("only", [None, 0, 2])
def test_all_ranks_halve_their_strips_if_one_must(exact, monkeypatch, only):
    latents, native = latents_of(exact, 8 * NATIVE), 4 * NATIVE  # 16 rows a strip
    expected = decode(exact, latents, native, Alone())
    allocator = Allocator(8 * 4 + 2, ERRORS[0], only)
    monkeypatch.setattr(strip_ops, "_conv_rows", allocator)

    def program(communicator):
        allocator.rank.number = communicator.rank
        return decode(exact, latents, native, Exchange.among(communicator))

    with capture_logs() as logs:
        pictures = InProcess().run(3, program)
    assert sorted(strips_seen(logs), reverse=True) == [8, 8, 8, 4, 4, 4]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    close(pictures[0], expected)


def test_a_single_strip_that_does_not_fit_is_cut(exact, monkeypatch):
    latents = latents_of(exact, 2 * NATIVE)
    expected = decode(exact, latents, 2 * NATIVE, Alone())
    real, seen = type(exact.decoder.conv_out).forward, []

    def forward(conv, hidden):
        if conv is exact.decoder.conv_out:
            seen.append(hidden.shape[2])
            raise ERRORS[0]
        return real(conv, hidden)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)
    close(decode(exact, latents, 2 * NATIVE, Alone()), expected)
    assert seen == [8 * 2 * NATIVE]


@pytest.mark.parametrize("backs_off", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_when_nothing_helps_it_is_told(vae, monkeypatch, backs_off, count):
    latents = latents_of(vae, 4 * NATIVE)
    monkeypatch.setattr(strip_ops, "_conv_rows", Allocator(8, ERRORS[1]))
    rows = 4
    with pytest.raises(OutOfMemory, match=rf"decoding strips of {rows} latent rows: .*allocate memory"):
        InProcess().run(count, lambda c: decode(vae, latents, NATIVE, Exchange.among(c), backs_off=backs_off))


def test_a_vae_that_cannot_be_cut_and_does_not_fit_is_told(vae, monkeypatch):
    vae.enable_tiling()
    monkeypatch.setattr(type(vae), "_decode", lambda *_, **__: (_ for _ in ()).throw(ERRORS[0]))
    with pytest.raises(OutOfMemory, match="decoding the whole picture: out of memory; try a smaller picture"):
        decode(vae, latents_of(vae), NATIVE, Alone())


def test_other_errors_are_not_taken_for_a_shortage(vae, monkeypatch):
    monkeypatch.setattr(strip_ops, "_conv_rows", Allocator(8, RuntimeError("no kernel image is available")))
    with pytest.raises(RuntimeError, match="no kernel image"):
        decode(vae, latents_of(vae, 4 * NATIVE), NATIVE, Alone())


def test_a_vae_that_was_cast_for_a_while_can_still_be_trained(monkeypatch):
    vae = tiny_vae(force_upcast=True).half()
    monkeypatch.setattr(vae, "decode", functools.partial(vae.decode))
    with torch.inference_mode():
        decode(vae, torch.zeros(1, 4, 8, 8), 8, Alone())
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.float16}
    assert not any(parameter.is_inference() for parameter in vae.parameters())
