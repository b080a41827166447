"""Contract check of a prompting strategy."""

from __future__ import annotations

import itertools
from typing import Any

from vitrail.core.engine.exchange import Exchange
from vitrail.core.geometry.views import Canvas, Span, View
from vitrail.core.method.attention_maps import KeptMaps
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.returned_values import check_texts
from vitrail.core.schedule.streams import Streams
from vitrail.testing.contract import check_repeats, contract, instance_of
from vitrail.testing.steps_to_visit import make_steps

PROMPT, NEGATIVE = "a fox in the snow", "grey"
CANVAS = Canvas(24, 32, 16)
VIEWS = tuple(View(Span(y, 16), Span(x, 16)) for y in (0, 8) for x in (0, 16))


def check_prompting(prompting: Any) -> None:
    """Check that texts are a tuple with one text per view, or empty, with and without kept maps and negative prompt.

    The check covers the first steps and both ends of the schedule. Equal arguments must give equal texts, see
    ``check_repeats``.

    Args:
        prompting: A class, built with its defaults, or an instance.

    Raises:
        AssertionError: Naming the broken rule.
    """
    strategy = instance_of("prompting", prompting)
    _play(strategy)
    assert strategy.request is None or strategy.request.each, "what is remembered is kept word by word"
    check_repeats(strategy, _play)


def _play(strategy: Any, exchange: Exchange | None = None) -> Any:
    memory = KeptMaps(("fox", "snow"), Streams(0).uniform((1, 2, 16, 16), "maps"))
    every = []
    asked = itertools.product(make_steps("v_prediction"), (None, NEGATIVE), (VIEWS, VIEWS[:1]), (None, memory))
    for step, negative, views, known in asked:
        texts = strategy.texts(step, PROMPT, negative, views, CANVAS, known)
        with contract():
            check_texts(StrategyCall("prompting", strategy), texts, len(views))
        again = strategy.texts(step, PROMPT, negative, views, CANVAS, known)
        assert texts == again, "texts must not change by themselves"
        every.append(texts)
    return every
