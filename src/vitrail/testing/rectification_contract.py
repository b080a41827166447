"""Contract check of a rectification strategy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitrail.core.engine.exchange import Exchange
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.members import OptionalRectification
from vitrail.core.method.micro_batch import MicroBatch
from vitrail.core.method.protocols import Forward
from vitrail.core.method.returned_values import check_context
from vitrail.core.schedule.step import Step
from vitrail.core.schedule.streams import Streams
from vitrail.testing.contract import check_repeats, contract, instance_of, surroundings
from vitrail.testing.steps_to_visit import make_step, make_steps
from vitrail.testing.traces import Traces

Ask = Callable[[Any], Tensor]


class InTheMiddleError(Exception):
    """Raised inside of a rectification's context, to check its cleanup."""


def check_rectification(rectification: Any, network: torch.nn.Module, ask: Ask, native_size: int = 8) -> None:
    """Check that a rectification acts inside its context only, and leaves no hooks, attributes, forwards or weights.

    It must clean up after an exception as well, must not act in forwards of other threads, which may be other ranks,
    and must give finite outputs at both ends of the schedule. Equal arguments must give equal outputs, see
    ``check_repeats``.

    Args:
        rectification: A class, built with its defaults, or an instance.
        network: A network that it applies to; left unchanged.
        ask: Runs the network on a fixed input and returns the output, Float32[Tensor, "batch channels h w"].
        native_size: The network's training size in latent cells; the views' sides are twice that.

    Raises:
        AssertionError: Naming the broken rule.
    """
    strategy = instance_of("rectification", rectification)
    assert strategy.needs, "it changes something inside a network, so it needs something of it"
    strategy.check(network)
    before, plain = Traces.of(network), _asked(network, ask)
    acts = False
    for step in (*make_steps("v_prediction"), *make_steps("epsilon")):
        with _applied(strategy, network, step, native_size):
            acting = _asked(network, ask)
            assert torch.equal(_in_a_thread(network, ask), plain), "it acts in the forward of another thread"
        acts = acts or not torch.equal(acting, plain)
        assert bool(acting.isfinite().all()), f"not finite at step {step.index} of {step.num_steps}"
        assert torch.equal(_asked(network, ask), plain), "it acts after its context has ended"
        before.check(network)
        more = OptionalRectification.of(strategy).further_rows(step, "cond", (2 * native_size) ** 2, native_size**2)
        assert type(more) is int and more >= 0, f"further_rows must be a whole number of rows, got {more!r}"
    assert acts, "it changes nothing at the first steps of a run"
    try:
        with _applied(strategy, network, make_step(), native_size):
            raise InTheMiddleError
    except InTheMiddleError:
        pass
    assert torch.equal(_asked(network, ask), plain), "it acts on after an exception"
    before.check(network)

    def play(one: Any, exchange: Exchange) -> list[Tensor]:
        answers = []
        for step in (make_step(), make_step(prediction_type="v_prediction", end="only")):
            with _applied(one, network, step, native_size):
                answers.append(_asked(network, ask))
        return answers

    check_repeats(strategy, play, [dtype for dtype in (torch.float64, torch.bfloat16) if _stands(network, ask, dtype)])


def _stands(network: torch.nn.Module, ask: Ask, dtype: torch.dtype) -> bool:
    """Return whether the network's own output is independent of the default dtype."""
    plain = _asked(network, ask)
    try:
        with surroundings(0, dtype):
            other = _asked(network, ask)
    except RuntimeError:
        return False
    return other.dtype == plain.dtype and torch.equal(other, plain)


def _applied(strategy: Any, network: torch.nn.Module, step: Step, native_size: int) -> Any:
    """Return the checked context of one ``apply``."""
    side = 2 * native_size
    cells = torch.zeros(1, 4, side, side, dtype=torch.float32, device="cpu")
    rows = MicroBatch(cells, branches=["cond"], views=[View(Span(0, side), Span(0, side))])
    forward = Forward(network=network, step=step, rows=rows, native_size=native_size, streams=Streams(0))
    with contract():
        return check_context(StrategyCall("rectification", strategy, step), strategy.apply(forward))


def _asked(network: torch.nn.Module, ask: Ask) -> Tensor:
    with torch.no_grad():
        return ask(network)


def _in_a_thread(network: torch.nn.Module, ask: Ask) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(_asked(network, ask)))
    thread.start()
    thread.join()
    return found[0]
