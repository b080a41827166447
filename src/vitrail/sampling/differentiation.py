"""Differentiation through a model: checks, the objects that compute gradients, and the autograd mode of a run."""

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
    """Refuse networks that cannot be differentiated, if the method needs gradients."""
    if NEED not in composition.needs:
        return
    backbone.check_gradients()


def gradients_of(plan: RunPlan, forwards: Forwards, backbone: Backbone) -> ViewGradients | None:
    """Return the gradients of a run's views; None if its method needs none.

    Args:
        plan: What the run will do.
        forwards: This rank's calls of the network.
        backbone: Gives the decoder and the device.
    """
    if NEED not in plan.composition.needs:
        return None
    from vitrail.backbones.vae.perceptual import load_distance
    from vitrail.core.engine.gradients import ViewGradients

    return ViewGradients(plan, forwards, backbone.decoder, lambda weights: load_distance(weights, backbone.device))


@contextmanager
def without_graph(composition: Composition) -> Iterator[None]:
    """Run a block in inference mode, or without gradients if the method differentiates.

    Tensors made in inference mode cannot take part in autograd, so a method that differentiates runs under ``no_grad``,
    and only what it requests is recorded.
    """
    import torch

    if NEED in composition.needs:
        with torch.inference_mode(False), torch.no_grad():
            yield
    else:
        with torch.inference_mode():
            yield
