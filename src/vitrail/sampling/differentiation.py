"""What a method that differentiates needs of a model: checks, the objects that do it, and no inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrail.core.engine.gradients import Gradients
    from vitrail.core.engine.layout import Layout
    from vitrail.core.engine.predictor import Predictor
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.method.composition import Composition

NEED = "gradients"


def check_gradients(composition: Composition, backbone: Backbone) -> None:
    """Refuse networks that cannot be differentiated, before anything is computed."""
    if NEED not in composition.needs:
        return
    backbone.check_gradients()


def gradients_of(layout: Layout, predictor: Predictor, backbone: Backbone) -> Gradients | None:
    """What differentiates the views of a run; None if its method does not."""
    if NEED not in layout.composition.needs:
        return None
    from vitrail.backbones.vae.perceptual import load_distance
    from vitrail.core.engine.gradients import Gradients

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
