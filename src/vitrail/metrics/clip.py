"""CLIP from a folder that the user has: features of pictures, and how well a picture fits a text.

The folder is one of a ``CLIPModel`` as transformers writes it: ``config.json``, weights, the tokenizer's files and,
if it is there, ``preprocessor_config.json``. Nothing is fetched. Pictures are resized and cropped as tensors, which
needs no torchvision and agrees with transformers' own way to the rounding of 8-bit pictures.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """CLIP's picture embeddings, as they leave the projection: their length is kept.

    Square parts from the middle are seen, as CLIP is used everywhere; take crops for the rest of a long picture.
    """

    folder: str = field(validator=v.min_len(1))  # of a CLIPModel in transformers' format
    classes: tuple[str, ...] = field(
        default=(), converter=as_tuple
    )  # texts that pictures are told apart by; the last should say that nothing is there

    @property
    def digest(self) -> str:
        """Of the folder's files."""
        return digest_of_clip(self.folder)

    def extract(self, pictures: Tensor) -> Tensor:
        """Embeddings, Float32[Tensor, "batch dim"], of Float32[Tensor, "batch 3 Height Width"] in [0, 1].

        Raises:
            ModelError: If the folder holds no such model.
        """
        return load_clip(self.folder, str(pictures.device), self.digest).of_pictures(pictures)

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Of the texts in ``classes``, as CLIP tells them apart, Float32[Tensor, "batch classes"].

        Raises:
            ConfigError: If there are less than two.
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
    """A loaded model with what it wants of pictures and texts."""

    model: Any
    tokenizer: Any
    side: int  # pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def sharpness(self) -> float:
        """What CLIP multiplies cosines by before a softmax; 100 in the published models."""
        return float(self.model.logit_scale.exp())

    @plain_defaults()
    def of_pictures(self, pictures: Tensor) -> Tensor:
        """Projected embeddings, Float32[Tensor, "batch dim"]."""
        import torch

        shown = middle(pictures.float(), self.side)
        mean, std = (shown.new_tensor(each).view(1, 3, 1, 1) for each in (self.mean, self.std))
        with torch.no_grad():
            seen = self.model.vision_model(pixel_values=(shown - mean) / std)
            embedded: Tensor = self.model.visual_projection(seen.pooler_output)
        return embedded

    @plain_defaults()
    def of_text(self, text: str) -> Tensor:
        """The projected embedding, Float32[Tensor, "dim"]; a text that is too long is cut."""
        import torch

        tokens = self.tokenizer([text], truncation=True, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            seen = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            embedded: Tensor = self.model.text_projection(seen.pooler_output)
        return embedded[0]


def middle(pictures: Tensor, side: int) -> Tensor:
    """The middle square at a size: the shorter side is resized to it, bicubic with antialias.

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
    """Stands for what a folder's files hold, by name; those of folders in it are left out."""
    path = expanded(folder)
    return digest_of_files(sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [])


@functools.cache
@plain_defaults()
def load_clip(folder: str, device: str, digest: str = "") -> ClipNetwork:
    """The model of a folder on a device, loaded once.

    Args:
        folder: Of a CLIPModel.
        device: A torch device.
        digest: Of what the folder holds; with another one it is loaded anew.

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
    """Cosine of two embeddings, Float32[Tensor, "dim"]; nan if one has no length."""
    import torch

    lengths = float(one.norm() * other.norm())
    return float(torch.dot(one, other)) / lengths if lengths else math.nan
