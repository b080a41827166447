"""What a method that differentiates needs of a model: checks, the objects that do it, and no inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vitrail.errors import ModelError, Problems

if TYPE_CHECKING:
    from vitrail.core.composition import Composition
    from vitrail.core.gradients import Gradients
    from vitrail.core.layout import Layout
    from vitrail.core.predictor import Predictor

NEED = "gradients"


def check_gradients(composition: Composition, backbone: Any) -> None:
    """Refuse networks that cannot be differentiated and files of other weights, before anything is computed.

    Raises:
        VitrailError: With every file that does not fit, and where it stands in the method.
    """
    if NEED not in composition.needs:
        return
    from vitrail.backbones.perceptual import check_weights

    backbone.check_gradients()
    problems = Problems()
    for index, stage in enumerate(composition.stages):
        for number, guidance in enumerate(stage.guidance):
            weights = getattr(guidance, "weights", None) if NEED in guidance.needs else None
            with problems.collect():
                try:
                    if weights is not None:
                        check_weights(weights)
                except ModelError as error:
                    raise ModelError(f"stages.{index}.guidance.{number}.weights: {error}") from error
    problems.tell()


def gradients_of(layout: Layout, predictor: Predictor, backbone: Any) -> Gradients | None:
    """What differentiates the views of a run; None if its method does not."""
    if NEED not in layout.composition.needs:
        return None
    from vitrail.backbones.perceptual import load_distance
    from vitrail.core.gradients import Gradients

    return Gradients(layout, predictor, backbone.decoder, lambda weights: load_distance(weights, backbone.device))


@contextmanager
def without_graph(composition: Composition) -> Iterator[None]:
    """Inference mode, for the time of a run.

    A method that differentiates has it off, since what is made there can be part of no graph; then nothing is recorded
    but what the method asks for.
    """
    import torch

    if NEED in composition.needs:
        with torch.inference_mode(False), torch.no_grad():
            yield
    else:
        with torch.inference_mode():
            yield
