"""Cache of extracted features in an experiment's folder: one file per feature extractor, one tensor per picture."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.core.config.atomic import replacing
from vitrail.core.config.sealed import read_tensors
from vitrail.errors import ConfigError
from vitrail.sampling.recipe import digest_of

if TYPE_CHECKING:
    from torch import Tensor

LOOKED = "looked"  # subfolder of an experiment's folder
PAUSE_S = 30.0  # between two writes: the work that is lost if a report is killed


def bring(source: Path, target: Path) -> None:
    """Copy cached features from one folder of an experiment to another that has its pictures.

    Args:
        source: The folder to copy from.
        target: A folder of the same experiment; features that it already has are kept.

    Raises:
        ConfigError: If a cache file cannot be read.
    """
    if source.resolve() == target.resolve():
        return
    for file in sorted((source / LOOKED).glob("*.safetensors")):
        theirs = FeatureCache(source, _key_in(file))
        ours = FeatureCache(target, _key_in(file))
        for name in theirs.names:
            if name not in ours:
                ours.add(name, theirs[name])
        if theirs.is_complete:
            ours.finish()
        else:
            ours.keep()


class FeatureCache:
    """Features of one extractor by the pictures' names, written atomically at intervals of ``PAUSE_S``.

    Args:
        folder: The experiment's folder.
        key: Identifies the extractor and its weights, and the reference set if the pictures are from one.

    Raises:
        ConfigError: If the cache file cannot be read.
    """

    def __init__(self, folder: Path, key: str):
        self._path, self._key = folder / LOOKED / f"{digest_of(key)}.safetensors", key
        self._kept, self._complete = time.monotonic(), False
        self._seen: dict[str, Tensor] = {}
        self._changed = False
        if self._path.exists():
            self._read()

    def __contains__(self, name: str) -> bool:
        return name in self._seen

    def __getitem__(self, name: str) -> Tensor:
        return self._seen[name]

    @property
    def names(self) -> list[str]:
        """Names of the cached pictures, sorted."""
        return sorted(self._seen)

    @property
    def is_complete(self) -> bool:
        """Whether all pictures of a set of unknown length have been added, see ``finish``."""
        return self._complete

    def add(self, name: str, seen: Tensor) -> None:
        """Add the features of a picture, Float32[Tensor, "..."]; writes the file if ``PAUSE_S`` have passed."""
        self._seen[name] = seen.detach().clone().contiguous()
        self._changed = True
        if time.monotonic() - self._kept > PAUSE_S:
            self.keep()

    def finish(self) -> None:
        """Mark the set as complete and write the file."""
        self._complete = self._changed = True
        self.keep()

    def keep(self) -> None:
        """Write the file if anything was added since the last write."""
        from safetensors.torch import save_file

        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as part:
                save_file(self._seen, part, {"eye": self._key, "complete": str(self._complete)})
        self._changed, self._kept = False, time.monotonic()

    def _read(self) -> None:
        with _told(self._path):
            tensors, metadata = read_tensors(self._path)
        self._seen = {name: tensor.clone() for name, tensor in tensors.items()}
        self._complete = metadata.get("complete") == "True"


def _key_in(path: Path) -> str:
    from safetensors import safe_open

    with _told(path), safe_open(path, framework="pt") as file:
        return str((file.metadata() or {}).get("eye", ""))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn errors of a file into one that names it and the remedy."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConfigError(f"{path}: cannot be read; delete it to look again: {error}") from error
