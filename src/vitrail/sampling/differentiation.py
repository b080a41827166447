"""What a method that differentiates needs of a model: checks, the objects that do it, and no inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrail.core.engine.forwards import Forwards
    from vitrail.core.engine.gradients import ViewGradients
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.method.composition import Composition

NEED = "gradients"


def check_gradients(composition: Composition, backbone: Backbone) -> None:
    """Refuse networks that cannot be differentiated, before anything is computed."""
    if NEED not in composition.needs:
        return
    backbone.check_gradients()


def gradients_of(plan: RunPlan, forwards: Forwards, backbone: Backbone) -> ViewGradients | None:
    """What differentiates the views of a run; None if its method does not."""
    if NEED not in plan.composition.needs:
        return None
    from vitrail.backbones.vae.perceptual import load_distance
    from vitrail.core.engine.gradients import ViewGradients

    return ViewGradients(plan, forwards, backbone.decoder, lambda weights: load_distance(weights, backbone.device))


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
