"""Number of the demo model's objects in a picture, and whether the largest is the prompt's subject."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.metric import Column, Shown
from vitrail.metrics.judge_features import ByJudge, detections, load_judge

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class Objects(ByJudge):
    """Counts of the demo model's judge: share of pictures with one object, objects per picture, share of right objects.

    The judge detects the demo model's drawn objects only; use ``repetition`` for other models.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column(name="one", better="up", lowest=0.0, highest=1.0, is_whole=True),
        Column(name="count", lowest=0.0, is_whole=True),
        Column(name="named", better="up", lowest=0.0, highest=1.0, is_whole=True),
    )

    def look(self, shown: Shown) -> Tensor:
        """Return the number of objects, and 1 if the largest is the prompt's subject, Float32[Tensor, "2"].

        The second value is nan if the prompt names no known object.
        """
        import torch

        found = detections(shown)
        subject = subject_of(shown.prompt, load_judge(str(shown.picture.device)).config.classes)
        largest = max(found, key=lambda each: each.size).name if found else None
        named = math.nan if subject is None else float(largest == subject)
        return torch.tensor([float(len(found)), named], dtype=torch.float32, device="cpu")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return the share of pictures with one object, the mean count, and the share of right subjects where known."""
        count, named = features.unbind(1)
        return (count == 1).float().mean().item(), count.mean().item(), named.nanmean().item()


def subject_of(prompt: str, names: Sequence[str]) -> str | None:
    """Return the first known object that a prompt names in whole words; None if it names none.

    Args:
        prompt: The prompt, in any case.
        names: The judge's class names, with "-" between words.
    """
    longest_first = sorted(names, key=len, reverse=True)
    pattern = r"\b(" + "|".join(re.escape(name.replace("-", " ")) for name in longest_first) + r")\b"
    found = re.search(pattern, " ".join(prompt.lower().split()))
    return found[1].replace(" ", "-") if found else None
