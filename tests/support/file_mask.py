"""A mask of the whole canvas that is read from a picture: a strategy with a file, as a plugin would have it."""

from pathlib import Path
from typing import ClassVar

import torch
from attrs import field, frozen
from PIL import Image

from vitrail.core.config.file_digests import digest_of_files
from vitrail.errors import ConfigError


@frozen(kw_only=True)
class FileMask:
    """Guidance acts where a grey picture is white."""

    needs: ClassVar[frozenset[str]] = frozenset()
    knows_whole: ClassVar[bool] = True
    path_options: ClassVar[tuple[str, ...]] = ("path",)
    path: str = field()  # a grey picture

    @property
    def request(self):
        return None

    def check(self):
        if not Path(self.path).is_file():
            raise ConfigError(f"path: {self.path!r} is not there")

    def digest(self):
        return digest_of_files([Path(self.path)])

    def init(self):
        return None

    def mask(self, step, key, predicted, state):
        height, width = predicted.view.shape
        grey = Image.open(self.path).convert("L").resize((width, height), Image.Resampling.NEAREST)
        mask = torch.tensor(list(grey.tobytes()), dtype=torch.float32).view(1, 1, height, width) / 255
        return mask, state


@frozen(kw_only=True)
class Shift:
    """Move the clean latents of every view by one where the mask is."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[str] = "views"
    reads_mask: ClassVar[bool] = True

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        return subject.move_clean(scene.mask * torch.ones_like(subject.clean)), state
