"""Features and detections of the judge that ships with the demo model."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from attrs import frozen

from vitrail.core.config.file_digests import digest_of_files
from vitrail.core.method.metric import FeatureExtractor, Shown

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.demo.judge import Detection, Judge

SEEN = 64  # pixels: shorter side at which objects of 0.3 to 0.75 of it are in the judge's band


@frozen(kw_only=True)
class DemoJudge:
    """The demo model's judge: 256 features, half of the picture at a small scale and half at full size."""

    @property
    def digest(self) -> str:
        """SHA-256 digest of the judge's files, in hexadecimal."""
        return digest_of_judge()

    def extract(self, pictures: Tensor) -> Tensor:
        """Pooled features, Float32[Tensor, "batch 256"], of Float32[Tensor, "batch 3 Height Width"] in [0, 1]."""
        import torch

        with torch.no_grad():
            return load_judge(str(pictures.device)).features(pictures.float())

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Return the probabilities of the judge's classes, in its order, and last that of no object.

        A class's logit is the maximum of its heat map over the picture at a small scale; that of no object is 0, where
        the detector's score is one half. Softmax over all of them.

        Args:
            pictures: Float32[Tensor, "batch 3 Height Width"] in [0, 1].

        Returns:
            Float32[Tensor, "batch classes+1"].
        """
        import torch

        judge, scale = load_judge(str(pictures.device)), SEEN / min(pictures.shape[-2:])
        with torch.no_grad():
            logits = judge.network(framed(pictures.float(), scale)).heat.amax(dim=(2, 3))
        return torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1).softmax(dim=1)


JUDGE = DemoJudge()


def framed(pictures: Tensor, scale: float) -> Tensor:
    """Resize pictures by a factor and pad them with grey, to sides that are multiples of the judge's stride.

    Takes and returns Float32[Tensor, "batch 3 Height Width"] in [0, 1].
    """
    import torch.nn.functional as F

    from vitrail.demo.judge import PAD, STRIDE

    size = [max(STRIDE, round(side * scale)) for side in pictures.shape[-2:]]
    resized = F.interpolate(pictures, size=size, mode="bilinear", antialias=True)
    bottom, right = (PAD + -side % STRIDE for side in size)
    return F.pad(resized, (PAD, right, PAD, bottom), value=0.5)


@frozen(kw_only=True)
class ByJudge(ABC):
    """A metric that looks at one picture with the judge, and is its own feature extractor."""

    needs_reference: ClassVar[bool] = False

    @property
    def extractor(self) -> FeatureExtractor:
        """The metric itself."""
        return self

    @property
    def digest(self) -> str:
        """SHA-256 digest of the judge's files, in hexadecimal."""
        return digest_of_judge()

    @abstractmethod
    def look(self, shown: Shown) -> Tensor:
        """See ``FeatureExtractor.look``."""


_detected: WeakKeyDictionary[Shown, tuple[Detection, ...]] = WeakKeyDictionary()


def detections(shown: Shown) -> tuple[Detection, ...]:
    """Return the judge's detections in a picture; cached, since several metrics use them."""
    if shown not in _detected:
        _detected[shown] = load_judge(str(shown.picture.device)).detect(shown.picture.float())
    return _detected[shown]


def digest_of_judge() -> str:
    """Return the SHA-256 digest of the judge's weights and settings, in hexadecimal."""
    from vitrail.demo.judge import WEIGHTS

    return digest_of_files(WEIGHTS / name for name in ("config.json", "judge.safetensors"))


@functools.cache
def load_judge(device: str) -> Judge:
    """Load the judge to a device, once per device."""
    from vitrail.demo.judge import Judge

    judge = Judge.load()
    judge.network.to(device)
    return judge
