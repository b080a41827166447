"""Contract check of a loaded backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitrail.comm.backends.in_process import solo
from vitrail.core.engine.exchange import Exchange
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.attention_maps import NEEDS_OF_KINDS, AttentionRequest
from vitrail.core.method.inputs import Inputs
from vitrail.core.method.micro_batch import Branch, MicroBatch, ModelOutput, SizeConditioning
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.core.schedule.streams import Streams
from vitrail.testing.contract import DTYPES, dtype_message, same, surroundings
from vitrail.testing.traces import Traces

if TYPE_CHECKING:
    from vitrail.core.method.backbone import Backbone

STEPS = 4  # of the schedule
ROUNDING = 1e-4  # tolerance for float32 outputs of unit size


def check_backbone(backbone: Backbone, prompt: str = "a fox") -> None:
    """Check that predictions are independent per row and reproducible, and latents and pictures have the right form.

    Results must not depend on the global random state, the default dtype or earlier calls, and the network must be left
    unchanged. Attention maps, where the backbone offers them, are those of the captured row, in [0, 1].

    Args:
        backbone: A loaded backbone in float32; a tiny one suffices.
        prompt: Any prompt that its tokenizer accepts.

    Raises:
        AssertionError: Naming the broken rule.
    """
    _check_facts(backbone)
    _check_schedulers(backbone)
    network = backbone.network
    before = None if network is None else Traces.of(network)
    with torch.inference_mode():
        _check_rows(backbone, prompt)
        _check_pictures(backbone)
    assert backbone.fingerprint() == backbone.fingerprint(), "the same weights must have the same fingerprint"
    backbone.release()
    if network is not None and before is not None:
        assert backbone.network is network, "`network` must be the same module again"
        before.check(network)


def _check_facts(backbone: Backbone) -> None:
    for name in ("latent_channels", "vae_scale_factor", "native_size"):
        value = getattr(backbone, name)
        assert isinstance(value, int) and value > 0, f"{name} must be a whole number above 0, got {value!r}"
    assert backbone.max_view is None or backbone.max_view > 0, f"max_view must be None or above 0: {backbone.max_view}"
    assert isinstance(backbone.offers, frozenset), f"offers must be a frozenset, got {type(backbone.offers).__name__}"
    named = backbone.callback_inputs
    assert "latents" in named, f"callback_inputs must name latents, which every run has, got {named!r}"
    kept = [backbone.first_step(10, strength) for strength in (1.0, 0.8, 0.3)]
    assert kept[0] == 0, f"a strength of 1 leaves no step out, got {kept[0]}"
    assert kept == sorted(kept) and kept[-1] < 10, f"a smaller strength leaves more steps out, and not all: {kept}"


def _check_schedulers(backbone: Backbone) -> None:
    one, other = backbone.new_scheduler(), backbone.new_scheduler()
    assert one is not other, "every run needs a scheduler of its own"
    side = backbone.native_size
    first = Stepper(one, STEPS, backbone.timestep_options(one, side, side))
    Stepper(other, STEPS + 1, backbone.timestep_options(other, side, side))
    assert len(first.timesteps) == len(one.timesteps), "to set one scheduler must not set another"


def _check_rows(backbone: Backbone, prompt: str) -> None:
    """Check predictions of two views with both guidance branches, in several micro-batches and orders of rows."""
    side, factor = backbone.native_size, backbone.vae_scale_factor
    scheduler = backbone.new_scheduler()
    stepper = Stepper(scheduler, STEPS, backbone.timestep_options(scheduler, side, side))
    step = stepper.schedule.steps([STEPS])[0]
    inputs = Inputs(
        prompt=prompt,
        negative_prompt="",
        guided=True,
        height=2 * side * factor,
        width=side * factor,
        num_steps=len(stepper.timesteps),
        sizes=[SizeConditioning()],
    )
    backbone.check_inputs(inputs)
    words = backbone.words(inputs)
    assert isinstance(words, tuple) and all(isinstance(word, str) for word in words), "words are a tuple of texts"
    request = _request(backbone)
    if request is not None:
        backbone.check_attention(request)
    rows = _rows(backbone, request is not None, len(words))

    def predict(asked: MicroBatch, seed: int, dtype: torch.dtype = torch.float32) -> ModelOutput:
        with surroundings(seed, dtype):
            conditioning = backbone.condition(inputs, request)
            answer = backbone.predict(asked, step, stepper.timestep(step), conditioning)
        assert isinstance(answer, ModelOutput), f"predict must return a ModelOutput, got {type(answer).__name__}"
        return answer

    given = rows.model_input.clone()
    whole = predict(rows, 0)
    output = whole.model_output
    assert torch.equal(rows.model_input, given), "predict must not write into its input"
    message = f"expected float32 {tuple(given.shape)}, got {output.dtype} {tuple(output.shape)}"
    assert output.shape == given.shape and output.dtype == torch.float32, message
    assert bool(output.isfinite().all()), "a prediction of unit noise must be finite"
    _check_maps(whole, request, len(words))
    alone = [predict(part, 1).model_output for part in rows.cut(1)]
    close(torch.cat(alone), output, "a row must not depend on the rows beside it")
    back = list(reversed(range(len(rows.views))))
    close(predict(rows.pick(back), 2).model_output.flip(0), output, "a row must not depend on its place")
    again = predict(rows, 3).model_output
    assert torch.equal(again, output), "the same rows must be predicted the same again: no memory, no global randomness"
    for dtype in DTYPES:
        other = predict(rows, 0, dtype)
        same((output, whole.attention), (other.model_output, other.attention), dtype_message("a prediction", dtype))


def _rows(backbone: Backbone, capture: bool, words: int) -> MicroBatch:
    side, channels = backbone.native_size, backbone.latent_channels
    branches: list[Branch] = ["uncond", "cond", "uncond", "cond"]
    views = [View(Span(top, side), Span(0, side)) for top in (0, 0, side, side)]
    cells = Streams(0).normal((2, channels, side, side), "rows").to(backbone.device)
    return MicroBatch(cells.repeat_interleave(2, 0), branches, views, capture=[1] if capture else [], words=words)


def _request(backbone: Backbone) -> AttentionRequest | None:
    """Request the attention maps that the backbone offers, of every word; None if it offers none."""
    kinds = sorted(kind for kind, need in NEEDS_OF_KINDS.items() if kind != "text" and need in backbone.offers)
    given = NEEDS_OF_KINDS["text"] in backbone.offers
    assert given or not kinds, f"a backbone that offers {kinds} maps offers {NEEDS_OF_KINDS['text']!r}, too"
    return AttentionRequest(each=True) if given else None


def _check_maps(answer: ModelOutput, request: AttentionRequest | None, words: int) -> None:
    """Check that there is one map for the captured row, and one of every word."""
    if request is None or not answer.has_content:
        return
    shape = (1, 1, *answer.model_output.shape[-2:])
    assert answer.attention is not None, "a captured row must come with its attention map"
    assert answer.attention.shape == shape, f"expected a map of {shape}, got {tuple(answer.attention.shape)}"
    within = bool(answer.attention.min() >= 0) and bool(answer.attention.max() <= 1 + ROUNDING)
    assert within, "an attention map lies in [0, 1]"
    if words:
        assert answer.words is not None, "a captured row must come with the map of every word"
        each, wanted = tuple(answer.words.shape), (1, words, *shape[2:])
        assert each == wanted, f"expected maps of the words of {wanted}, got {each}"


def _check_pictures(backbone: Backbone) -> None:
    """Check decoding to pictures and encoding back to latents."""
    side, channels = backbone.native_size, backbone.latent_channels
    pixels = side * backbone.vae_scale_factor
    exchange = Exchange.among(solo())
    latents = Streams(1).normal((1, channels, side, side), "latents").to(backbone.device)

    def decode(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        with surroundings(seed, dtype):
            return backbone.decode(latents, exchange, "none", True, Streams(0))

    def encode(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        with surroundings(seed, dtype):
            return backbone.encode(2 * picture - 1, None)

    picture = decode(0)
    message = f"expected float32 (1, 3, {pixels}, {pixels}), got {picture.dtype} {tuple(picture.shape)}"
    assert picture.shape == (1, 3, pixels, pixels) and picture.dtype == torch.float32, message
    assert bool(picture.min() >= 0) and bool(picture.max() <= 1), "a decoded picture lies in [0, 1]"
    assert torch.equal(decode(1), picture), "the same latents must decode to the same picture: no global randomness"
    encoded = encode(0)
    assert encoded.shape == latents.shape, f"expected latents of {tuple(latents.shape)}, got {tuple(encoded.shape)}"
    assert encoded.dtype == torch.float32, f"expected latents in float32, got {encoded.dtype}"
    assert torch.equal(encoded, encode(1)), "without noise the encoder must give its mean, the same again"
    for dtype in DTYPES:
        same(picture, decode(0, dtype), dtype_message("a decoded picture", dtype))
        same(encoded, encode(0, dtype), dtype_message("what the encoder gives", dtype))
    (image,) = backbone.to_pil(picture)
    assert image.size == (pixels, pixels), f"expected a picture of {pixels} pixels a side, got {image.size}"


def close(found: Tensor, expected: Tensor, otherwise: str) -> None:
    """Assert that two predictions are equal up to rounding.

    Args:
        found: The prediction, Float32[Tensor, "rows channels h w"].
        expected: The expected one, of the same shape.
        otherwise: The error message.

    Raises:
        AssertionError: If they differ by more than ``ROUNDING``, relative to values above 1.
    """
    size = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= ROUNDING * size, otherwise
