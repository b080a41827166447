"""Contract checks of strategies, one a slot; classes are built with their defaults unless an instance is given."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from vitrail.core.assembly import permute_views, restore_order
from vitrail.core.members import OptionalGuidance
from vitrail.core.prediction import Prediction
from vitrail.core.protocols import Predicted
from vitrail.core.registry import Registry
from vitrail.core.run_config import Wrap
from vitrail.core.scene import Branches, Memory, Scene, Start, subject_tensor
from vitrail.core.step import Step
from vitrail.core.streams import Streams
from vitrail.core.views import Canvas, Patches, Span, View
from vitrail.errors import CoverageError

CHANNELS = 4
CELL = 4  # pixels of a latent cell's side
WRAPS: tuple[Wrap, ...] = ("none", "x", "y", "xy")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


def make_step(index: int = 0, num_steps: int = 10, prediction_type: Any = "epsilon", **changes: Any) -> Step:
    """A step in the middle of nowhere, for tests of a strategy alone."""
    sigma, after = 0.9 - 0.08 * index, max(0.0, 0.82 - 0.08 * index)
    is_flow = prediction_type == "flow_prediction"
    defaults: dict[str, Any] = {
        "index": index,
        "num_steps": num_steps,
        "timestep": 900.0 - 80 * index,
        "alpha": 1 - sigma if is_flow else (1 - sigma**2) ** 0.5,
        "sigma": sigma,
        "next_alpha": 1 - after if is_flow else (1 - after**2) ** 0.5,
        "next_sigma": after,
        "stage": 0,
        "stage_step": index,
        "stage_num_steps": num_steps,
        "prediction_type": prediction_type,
    }
    return Step(**(defaults | changes))


def make_prediction(shape: tuple[int, ...], step: Step, seed: int = 0) -> Prediction:
    """A record of random latents and a random output, each Float32[Tensor, "*shape"]."""
    streams = Streams(seed)
    return Prediction(streams.normal(shape, "latents"), streams.normal(shape, "output"), step)


def check_patching(patching: Any) -> None:
    """Views lie on the canvas and cover it, whether or not its ends meet.

    What is read from a canvas and put back is the canvas; a permutation is one; the same seed gives the same views.

    A patching that names a ``views`` field other than "all" may leave the rest to its fusion.
    """
    strategy = _instance("patching", patching)
    for height, width in ((8, 8), (16, 16), (17, 31), (40, 24), (64, 48)):
        for wrap in WRAPS:
            canvas = _fitting(strategy, Canvas(height, width, 16, wrap=wrap))
            for index in (0, 3):
                _check_patches(strategy, make_step(index), canvas)


def _fitting(strategy: Any, canvas: Canvas) -> Canvas:
    """The canvas with sides that the patching can live with: padded, or another picture where its ends meet."""
    down, right = strategy.granularity(canvas)
    assert down >= 1 and right >= 1, f"granularity must be positive, got {(down, right)}"
    if canvas.wraps("y"):
        canvas = evolve(canvas, height=canvas.height + -canvas.height % down)
    if canvas.wraps("x"):
        canvas = evolve(canvas, width=canvas.width + -canvas.width % right)
    return canvas.padded(down, right)


def _check_patches(strategy: Any, step: Step, canvas: Canvas) -> None:
    patches = strategy.patch(step, canvas, CHANNELS, Streams(1))
    check_cover(patches.views, canvas.height, canvas.width)
    for view in patches.views:
        inside = _lies_on(view.vertical, canvas.height, canvas.wraps("y"))
        inside = inside and _lies_on(view.horizontal, canvas.width, canvas.wraps("x"))
        assert inside, f"{view} leaves the canvas of {canvas.height}x{canvas.width} with wrap {canvas.wrap!r}"
        assert view.turned.shape == view.shape, "a turned view has the same cells"
    picture = Streams(3).normal((1, CHANNELS, canvas.height, canvas.width), "canvas")
    total, seen = torch.zeros_like(picture), torch.zeros_like(picture)
    for view in patches.views:
        view.add_to(total, view.read(picture))
        view.add_to(seen, torch.ones(1, CHANNELS, *view.shape))
    torch.testing.assert_close(total / seen, picture, rtol=1e-5, atol=1e-5)
    if patches.permutation is not None:
        sample = Streams(2).normal((len(patches.views), 1, CHANNELS, *patches.views[0].shape), "sample")
        back = restore_order(permute_views(sample, patches), patches)
        assert torch.equal(back, sample), "permute then un-permute must be the identity"
    again = strategy.patch(step, canvas, CHANNELS, Streams(1))
    turns = [(view, view.turn) for view in patches.views]
    assert [(view, view.turn) for view in again.views] == turns, "the same seed must give the same views"


def _lies_on(span: Span, length: int, wraps: bool) -> bool:
    """Whether a span keeps to an axis, or goes across its ends where they meet."""
    last = span.start + (span.count - 1) * span.step
    return span.start >= 0 and (last < length or (wraps and span.length == length))


def check_fusion(fusion: Any) -> None:
    """Views cut from one canvas prediction fuse back to it: weights sum to one, no cell is left out."""
    strategy = _instance("fusion", fusion)
    step = make_step()
    canvas = make_prediction((1, CHANNELS, 16, 16), step)
    flat = canvas.model_output[..., :1, :1].expand_as(canvas.model_output).contiguous()
    plain = [View(Span(y, 8, 2), Span(x, 8, 2)) for y in range(2) for x in range(2)]
    moved = [View(Span(y, 8, 2, 16), Span(x, 8, 2, 16)) for y in (6, 7) for x in (10, 11)]  # across the ends
    for views in (plain, moved):
        cut = Prediction(_cut(canvas.latents, views), _cut(flat, views), step)
        try:
            fused = strategy.fuse(step, views, cut, canvas.latents)
            expected = flat
        except ValueError:  # a fusion of one view only
            one = Prediction(cut.latents[:1], cut.model_output[:1], step)
            fused = strategy.fuse(step, views[:1], one, canvas.latents)
            clean = one.clean[0].repeat_interleave(2, -1).repeat_interleave(2, -2)
            clean = clean.roll((views[0].vertical.start, views[0].horizontal.start), (-2, -1))
            expected = Prediction(canvas.latents, fused, step).with_clean(clean).model_output
        assert fused.shape == canvas.latents.shape, f"expected {tuple(canvas.latents.shape)}, got {tuple(fused.shape)}"
        torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-4)


class _Cells:
    """Views that show their own cells, so that the way to another picture is their difference."""

    def picture(self, step: Step, latents: Tensor, view: View) -> Tensor:
        """The cells."""
        return latents

    def of_distance(
        self, step: Step, latents: Tensor, views: Sequence[View], picture: Tensor, weights: str | None
    ) -> Tensor:
        """Of half the square distance."""
        return latents - picture


class _Blocks:
    """A VAE whose pictures are the first three channels in blocks of pixels."""

    def decode(self, latents: Tensor, canvas: Canvas) -> Tensor:
        """In [0, 1], without padding."""
        height, width = canvas.inner
        picture = latents[:, :3, :height, :width].repeat_interleave(canvas.cell, -2).repeat_interleave(canvas.cell, -1)
        return (picture / 2 + 0.5).clamp(0, 1)

    def encode(self, picture: Tensor, canvas: Canvas) -> Tensor:
        """The means of the blocks, and the mean of those."""
        cells = torch.nn.functional.avg_pool2d(picture, canvas.cell)
        return torch.cat([cells, cells.mean(1, keepdim=True)], dim=1)


def _scene(step: Step, guidance: Any) -> Scene:
    """Of a canvas of twice the training size; what is asked of the network is answered with the question."""
    point = guidance.point
    of_views = point in ("inputs", "branches", "views")
    side, native = (16, 8) if of_views else (8, 4)
    canvas, streams = Canvas(side, side, native, cell=CELL), Streams(5)
    clean, noise = (streams.normal((1, CHANNELS, side, side), name) for name in ("clean", "noise"))
    picture = 2 * streams.uniform((1, 3, side * CELL, side * CELL), "picture") - 1
    return Scene(
        mask=Streams(3).uniform((1, 1, 8, 8), "mask") if point in ("views", "canvas") else None,
        patches=Patches([View(Span(y, 8, 2), Span(x, 8, 2)) for y in range(2) for x in range(2)]) if of_views else None,
        canvas=canvas,
        streams=Streams(4),
        start=Start(clean, noise, picture) if step.phase else None,
        vae=_Blocks(),
        ask=lambda asked, model_input, view, sizes=None: model_input,
        step_at=lambda alpha, sigma: evolve(step, alpha=alpha, sigma=sigma),
        gradients=_Cells(),
        needs=frozenset(guidance.needs),
        guidance=type(guidance).__name__,
    )


def check_guidance(guidance: Any) -> None:
    """Returns what it receives in kind and shape, finite, and does not write into its input or what lies around it.

    It is asked at the first size and, with the grown picture that this began with, at a further one. A guidance that
    says it follows that picture must then do something.
    """
    strategy, acts = _instance("guidance", guidance), False
    for prediction_type, phase in itertools.product(PREDICTION_TYPES, (0, 1)):
        state = strategy.init()
        for index in range(3):
            step = make_step(index, prediction_type=prediction_type, phase=phase)
            state, same = _check_guided(strategy, step, state)
            acts = acts or not same
        assert strategy.init() is None or strategy.init() is not state, "state must start anew in every run"
    assert acts or not OptionalGuidance.of(strategy).follows_start, (
        "it changes nothing where it has a picture to follow"
    )


def _check_guided(strategy: Any, step: Step, state: Any) -> tuple[Any, bool]:
    """The state after one step, and whether the subject is still what it was."""
    subject, scene = _subject(strategy, step, seed=step.index), _scene(step, strategy)
    before, around = subject_tensor(subject).clone(), [tensor.clone() for tensor in _around(scene)]
    guided, state = strategy.guide(step, subject, scene, state)
    after = subject_tensor(guided)
    assert type(guided) is type(subject), f"expected a {type(subject).__name__}, got {type(guided).__name__}"
    assert after.shape == before.shape, "the shape must stay"
    assert bool(after.isfinite().all()), f"not finite at step {step.index} of size {step.phase}, {step.prediction_type}"
    assert torch.equal(subject_tensor(subject), before), "guidance must not write into its input"
    assert all(map(torch.equal, _around(scene), around)), "guidance must not write into the scene"
    return state, torch.equal(after, before)


def _around(scene: Scene) -> list[Tensor]:
    """The tensors of a scene."""
    start = [] if scene.start is None else [scene.start.clean, scene.start.noise, scene.start.picture]
    return [tensor for tensor in (scene.mask, *start) if tensor is not None]


def check_masking(masking: Any) -> None:
    """A mask lies in [0, 1] and has the key view's cells, or is None for everywhere."""
    strategy = _instance("masking", masking)
    state = strategy.init()
    for index in range(3):
        step = make_step(index)
        key = make_prediction((1, CHANNELS, 8, 8), step, seed=index)
        attention = Streams(index).uniform((1, 1, 8, 8), "attention")
        canvas, whole = Canvas(8, 8, 8), View(Span(0, 8), Span(0, 8))
        predicted = Predicted(key.model_output[None], attention, view=whole, canvas=canvas, inner=(8, 8))
        mask, state = strategy.mask(step, key, predicted, state)
        if mask is not None:
            assert mask.shape == (1, 1, 8, 8), f"expected (1, 1, 8, 8), got {tuple(mask.shape)}"
            assert float(mask.min()) >= 0 and float(mask.max()) <= 1, "a mask lies in [0, 1]"


def check_prompting(prompting: Any) -> None:
    """A text for each view or for none, with and without remembered maps, and the same again for the same maps."""
    strategy = _instance("prompting", prompting)
    canvas = Canvas(24, 32, 16)
    views = [View(Span(y, 16), Span(x, 16)) for y in (0, 8) for x in (0, 16)]
    memory = Memory(("fox", "snow"), Streams(0).uniform((1, 2, 16, 16), "maps"))
    for known in (None, memory):
        texts = strategy.texts("a fox in the snow", views, canvas, known)
        assert texts == strategy.texts("a fox in the snow", views, canvas, known), "texts must not change by themselves"
        assert len(texts) in (0, len(views)), f"expected a text for each of {len(views)} views or none, got {texts}"
        assert all(text is None or isinstance(text, str) for text in texts)
    assert strategy.request is None or strategy.request.each, "what is remembered is kept word by word"


def check_cover(views: Sequence[View], height: int, width: int) -> None:
    """Refuse a set of views that leaves a cell of the canvas out.

    Raises:
        CoverageError: With the first uncovered cell.
    """
    covered = [bytearray(width) for _ in range(height)]
    for piece in (piece for view in views for piece in view.pieces):
        mark = bytes([1]) * len(range(width)[piece.cols])
        for y in range(height)[piece.rows]:
            covered[y][piece.cols] = mark
    for y, row in enumerate(covered):
        if 0 in row:
            raise CoverageError(f"latent cell ({y}, {row.index(0)}) of {height}x{width} lies in no view")


def _instance(slot: str, strategy: Any) -> Any:
    """The strategy, after the checks that registration makes."""
    cls = strategy if isinstance(strategy, type) else type(strategy)
    Registry().add(slot, "under-test", cls)
    return strategy() if isinstance(strategy, type) else strategy


def _cut(canvas: Tensor, views: list[View]) -> Tensor:
    return torch.stack([view.read(canvas) for view in views])


def _subject(guidance: Any, step: Step, seed: int) -> Any:
    """What a guidance at its point receives, of four views where it is about views."""
    lead = (4, 1) if guidance.point in ("inputs", "branches", "views") else (1,)
    made = make_prediction((*lead, CHANNELS, 8, 8), step, seed)
    if guidance.point == "branches":
        wanted = OptionalGuidance.of(guidance).branches(step)
        shape, streams = made.latents.shape, Streams(seed)
        rows = {branch: streams.normal(shape, branch) for branch in ("uncond", "cond", *wanted)}
        return Branches(rows, 2.0, made.model_output, made.latents)
    return made.latents if guidance.point in ("before", "inputs", "after") else made
