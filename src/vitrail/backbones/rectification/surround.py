"""A stage's rectifications around the calls of a backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from vitrail.core.protocols import Forward
from vitrail.errors import CapabilityError, Problems

if TYPE_CHECKING:
    from vitrail.core.composition import Composition
    from vitrail.core.protocols import Rectification, Rows
    from vitrail.core.step import Step


def check_rectifications(composition: Composition, backbone: Any) -> None:
    """Refuse what the network cannot take, before it is called.

    Raises:
        VitrailError: With every rectification that does not fit, and where it stands in the method.
    """
    problems = Problems()
    for index, stage in enumerate(composition.stages):
        for number, rectification in enumerate(stage.rectification):
            with problems.collect():
                try:
                    rectification.check(backbone.network)
                except CapabilityError as error:
                    raise CapabilityError(f"stages.{index}.rectification.{number}: {error}") from error
    problems.tell()


@contextmanager
def rectified(rectifications: Sequence[Rectification], backbone: Any, step: Step, rows: Rows) -> Iterator[None]:
    """All of them in force, entered in their order; without any, the network is not even looked at."""
    with ExitStack() as stack:
        for rectification in rectifications:
            forward = Forward(network=backbone.network, step=step, rows=rows, native_size=backbone.native_size)
            stack.enter_context(rectification.apply(forward))
        yield
