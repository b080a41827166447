"""How many objects of the demo model a picture shows, and whether they are those it was to show."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.metric import Column, FeatureExtractor, Shown
from vitrail.metrics.judge_features import detections, digest_of_judge, load_judge

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class Objects:
    """What the demo model's judge counts: pictures with exactly one object, objects, and the right object.

    Knows the demo model's drawn objects and nothing else; see ``repetition`` for other models.
    """

    needs_reference: ClassVar[bool] = False
    columns: ClassVar[tuple[Column, ...]] = (
        Column(name="one", better="up", lowest=0.0, highest=1.0, is_whole=True),
        Column(name="count", lowest=0.0, is_whole=True),
        Column(name="named", better="up", lowest=0.0, highest=1.0, is_whole=True),
    )

    @property
    def extractor(self) -> FeatureExtractor:
        """Itself."""
        return self

    @property
    def digest(self) -> str:
        """Of the judge."""
        return digest_of_judge()

    def look(self, shown: Shown) -> Tensor:
        """How many objects there are, and whether the largest is the prompt's; Float32[Tensor, "2"]."""
        import torch

        found = detections(shown)
        subject = subject_of(shown.prompt, load_judge(str(shown.picture.device)).config.classes)
        largest = max(found, key=lambda each: each.size).name if found else None
        named = math.nan if subject is None else float(largest == subject)
        return torch.tensor([float(len(found)), named], dtype=torch.float32, device="cpu")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Share with exactly one object, mean count, and the share named right of those that have a subject."""
        count, named = features.unbind(1)
        return (count == 1).float().mean().item(), count.mean().item(), named.nanmean().item()


def subject_of(prompt: str, names: Sequence[str]) -> str | None:
    """The first of the objects that a prompt speaks of, by whole words; None if it speaks of none.

    Args:
        prompt: As given to the model.
        names: As the judge writes them, with "-" between words.
    """
    longest_first = sorted(names, key=len, reverse=True)
    pattern = r"\b(" + "|".join(re.escape(name.replace("-", " ")) for name in longest_first) + r")\b"
    found = re.search(pattern, " ".join(prompt.lower().split()))
    return found[1].replace(" ", "-") if found else None
