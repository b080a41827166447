"""CLIP from a local folder: picture features, and similarity of a picture and a text.

The folder holds a ``CLIPModel`` as transformers saves it: ``config.json``, weights, the tokenizer's files and,
optionally, ``preprocessor_config.json``. Nothing is downloaded. Pictures are resized and cropped as tensors, which
needs no torchvision and agrees with transformers' preprocessing up to the rounding to 8 bits.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.ambient import plain_defaults
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.file_digests import digest_of_files
from vitrail.core.config.paths import expanded
from vitrail.core.config.text_files import read_json
from vitrail.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # as CLIP was trained


@frozen(kw_only=True)
class Clip:
    """CLIP's projected picture embeddings, not normalised.

    Pictures are cropped to the centre square, as CLIP's preprocessing does; use crops to cover more of a long picture.
    """

    path_options: ClassVar[tuple[str, ...]] = ("folder",)
    folder: str = field(validator=v.min_len(1))  # folder of a CLIPModel in transformers' format
    classes: tuple[str, ...] = field(
        default=(), converter=as_tuple
    )  # texts that pictures are classified by; the last one should describe a picture of nothing

    @property
    def digest(self) -> str:
        """SHA-256 digest of the folder's files, in hexadecimal."""
        return digest_of_clip(self.folder)

    def extract(self, pictures: Tensor) -> Tensor:
        """Return embeddings, Float32[Tensor, "batch dim"], of Float32[Tensor, "batch 3 Height Width"] in [0, 1].

        Raises:
            ModelError: If the folder holds no such model.
        """
        return load_clip(self.folder, str(pictures.device), self.digest).of_pictures(pictures)

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Return the zero-shot class probabilities of the texts in ``classes``, Float32[Tensor, "batch classes"].

        Raises:
            ConfigError: If ``classes`` has fewer than two texts.
            ModelError: If the folder holds no such model.
        """
        if len(self.classes) < 2:
            raise ConfigError(
                "CLIP knows no classes of its own: give features 'clip' two texts or more as `classes`, the last one "
                "for pictures that show none of the others, or choose features 'inception' or 'demo-judge'"
            )
        import torch

        network = load_clip(self.folder, str(pictures.device), self.digest)
        texts = torch.stack([network.of_text(text) for text in self.classes])
        shown = network.of_pictures(pictures)
        cosines: Tensor = (shown / shown.norm(dim=1, keepdim=True)) @ (texts / texts.norm(dim=1, keepdim=True)).T
        return (network.sharpness * cosines).softmax(dim=1)


@frozen(eq=False)
class ClipNetwork:
    """A loaded CLIP model with its tokenizer and picture preprocessing.

    Attributes:
        model: The ``CLIPModel``.
        tokenizer: The ``CLIPTokenizer``.
        side: Height and width of the network's input in pixels.
        mean: Mean of red, green and blue in [0, 1], subtracted from pictures.
        std: Standard deviation of red, green and blue that pictures are divided by.
    """

    model: Any
    tokenizer: Any
    side: int  # pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def sharpness(self) -> float:
        """Factor of the cosines before a softmax, CLIP's ``exp(logit_scale)``; 100 in the published models."""
        return float(self.model.logit_scale.exp())

    @plain_defaults()
    def of_pictures(self, pictures: Tensor) -> Tensor:
        """Projected embeddings, Float32[Tensor, "batch dim"], of Float[Tensor, "batch 3 Height Width"] in [0, 1]."""
        import torch

        shown = middle(pictures.float(), self.side)
        mean, std = (shown.new_tensor(each).view(1, 3, 1, 1) for each in (self.mean, self.std))
        with torch.no_grad():
            seen = self.model.vision_model(pixel_values=(shown - mean) / std)
            embedded: Tensor = self.model.visual_projection(seen.pooler_output)
        return embedded

    @plain_defaults()
    def of_text(self, text: str) -> Tensor:
        """Projected embedding of a text, Float32[Tensor, "dim"]; tokens beyond the model's maximum are cut off."""
        import torch

        tokens = self.tokenizer([text], truncation=True, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            seen = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            embedded: Tensor = self.model.text_projection(seen.pooler_output)
        return embedded[0]


def middle(pictures: Tensor, side: int) -> Tensor:
    """Resize the shorter side, bicubic with antialiasing, and crop the centre square.

    Args:
        pictures: Float32[Tensor, "batch 3 Height Width"] in [0, 1].
        side: Pixels.

    Returns:
        Float32[Tensor, "batch 3 side side"] in [0, 1].
    """
    import torch.nn.functional as F

    height, width = pictures.shape[-2:]
    shorter = min(height, width)
    size = (side * height // shorter, side * width // shorter)
    resized = F.interpolate(pictures, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return resized[..., top : top + side, left : left + side]


def digest_of_clip(folder: str) -> str:
    """Return the SHA-256 digest of a folder's files in order of their names; subfolders are ignored."""
    path = expanded(folder)
    return digest_of_files(sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [])


@functools.cache
@plain_defaults()
def load_clip(folder: str, device: str, digest: str = "") -> ClipNetwork:
    """Load the model of a folder to a device; calls with equal arguments return the same network.

    Args:
        folder: Folder of a ``CLIPModel`` in transformers' format.
        device: A torch device, e.g. "cpu".
        digest: Digest of the folder's files; part of the cache key, so that changed files are loaded again.

    Raises:
        ModelError: If the folder holds no such model.
    """
    from transformers import CLIPModel, CLIPTokenizer

    path = expanded(folder)
    config = _json(path / "config.json")
    if config.get("model_type") != "clip":
        raise ModelError(f"{folder} holds no CLIPModel but {config.get('model_type', 'something else')!r}")
    try:
        model = CLIPModel.from_pretrained(path, local_files_only=True).eval().requires_grad_(False).float()
        tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"CLIP cannot be loaded from {folder}: {error}") from error
    wanted = _json(path / "preprocessor_config.json") if (path / "preprocessor_config.json").exists() else {}
    return ClipNetwork(
        model=model.to(device),
        tokenizer=_limited(tokenizer, model.config.text_config.max_position_embeddings),
        side=model.config.vision_config.image_size,
        mean=tuple(wanted.get("image_mean", MEAN)),
        std=tuple(wanted.get("image_std", STD)),
    )


def _limited(tokenizer: Any, most: int) -> Any:
    tokenizer.model_max_length = min(tokenizer.model_max_length, most)
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ModelError(
            f"{path} is missing: give the folder of a CLIPModel in transformers' format, with its tokenizer"
        )
    read = read_json(path, kind=ModelError)
    if not isinstance(read, dict):
        raise ModelError(f"{path} holds no table")
    return read


def similarity(one: Tensor, other: Tensor) -> float:
    """Return the cosine of two embeddings, Float32[Tensor, "dim"]; nan if one is zero."""
    import torch

    lengths = float(one.norm() * other.norm())
    return float(torch.dot(one, other)) / lengths if lengths else math.nan
