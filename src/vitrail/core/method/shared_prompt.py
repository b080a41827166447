"""The prompting of a stage that says nothing about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

if TYPE_CHECKING:
    from vitrail.core.engine.guidance_context import Memory
    from vitrail.core.geometry.views import Canvas, View
    from vitrail.core.schedule.step import Step


@frozen
class Shared:
    """The prompt, for every view."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def request(self) -> None:
        """No maps."""
        return None

    def texts(
        self,
        step: Step,
        prompt: str,
        negative_prompt: str | None,
        views: Sequence[View],
        canvas: Canvas,
        memory: Memory | None,
    ) -> tuple[()]:
        """None of their own."""
        return ()
