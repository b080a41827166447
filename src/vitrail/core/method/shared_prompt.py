"""The default prompting: the run's prompt for every view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

if TYPE_CHECKING:
    from vitrail.core.geometry.views import Canvas, View
    from vitrail.core.method.attention_maps import KeptMaps
    from vitrail.core.schedule.step import Step


@frozen
class SharedPrompt:
    """Give every view the run's prompt."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def request(self) -> None:
        """None: it needs no attention maps."""
        return None

    def texts(
        self,
        step: Step,
        prompt: str,
        negative_prompt: str | None,
        views: Sequence[View],
        canvas: Canvas,
        memory: KeptMaps | None,
    ) -> tuple[()]:
        """Return (): no view has a text of its own. For the arguments see ``Prompting.texts``."""
        return ()
