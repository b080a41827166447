"""Features of FID's Inception network, from a local weight file."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.file_digests import digest_of_files
from vitrail.core.config.paths import expanded
from vitrail.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.metrics.inception_network import InceptionNetwork

FILE = "pt_inception-2015-12-05-6726825d.pth"
COUNTER = "num_batches_tracked"  # a counter of batch norm for training; weight files may omit it


@frozen(kw_only=True)
class Inception:
    """FID's Inception v3: 2048 pooled features; class logits without the last bias, as in the published score."""

    path_options: ClassVar[tuple[str, ...]] = ("weights",)
    weights: str = field(validator=v.min_len(1))  # pt_inception-2015-12-05-6726825d.pth, or the same as .safetensors

    @property
    def digest(self) -> str:
        """SHA-256 digest of the weight file, in hexadecimal."""
        return digest_of_files([expanded(self.weights)])

    def extract(self, pictures: Tensor) -> Tensor:
        """Return features, Float32[Tensor, "batch 2048"], of Float32[Tensor, "batch 3 Height Width"] in [0, 1].

        Raises:
            ModelError: If the file is missing or of another network.
        """
        import torch

        with torch.no_grad():
            found: Tensor = load_inception(self.weights, str(pictures.device), self.digest)(pictures.float())
        return found

    def probabilities(self, pictures: Tensor) -> Tensor:
        """Return the softmax of the logits without bias, Float32[Tensor, "batch 1008"].

        Raises:
            ModelError: If the file is missing or of another network.
        """
        import torch

        features = self.extract(pictures)
        with torch.no_grad():
            network = load_inception(self.weights, str(pictures.device), self.digest)
            return network.logits(features).softmax(dim=1)


@functools.cache
def load_inception(weights: str, device: str, digest: str = "") -> InceptionNetwork:
    """Load the network of a file to a device; calls with equal arguments return the same network.

    Args:
        weights: The file, as ``.pth`` or ``.safetensors``.
        device: A torch device, e.g. "cpu".
        digest: Digest of the file; part of the cache key, so that a changed file is loaded again.

    Raises:
        ModelError: If the file is missing or of another network.
    """
    import torch

    from vitrail.metrics.inception_network import InceptionNetwork

    with torch.device("meta"):  # skip random initialisation, the weights are assigned below
        network = InceptionNetwork()
    found, wanted = _read(expanded(weights)), network.state_dict()
    _check(weights, found, {name: tuple(each.shape) for name, each in wanted.items()})
    counters = {name: torch.zeros((), dtype=torch.int64, device="cpu") for name in wanted if name.endswith(COUNTER)}
    learned = {name: found[name].float() for name in wanted if name not in counters}
    network.load_state_dict(learned | counters, assign=True)
    return network.eval().requires_grad_(False).to(device)


def _read(path: Path) -> dict[str, Any]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"{path} is missing: features 'inception' want the public weight file {FILE} of FID")
    try:
        read = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as weights: {error}; get {FILE} again") from error
    if not isinstance(read, dict):
        raise ModelError(f"{path} holds no table of tensors; take {FILE}")
    return read


def _check(weights: str, found: dict[str, Any], wanted: dict[str, tuple[int, ...]]) -> None:
    wrong = []
    for name, shape in wanted.items():
        if name not in found:
            wrong += [] if name.endswith(COUNTER) else [f"{name} is missing"]
        elif tuple(getattr(found[name], "shape", ())) != shape:
            wrong.append(f"{name} is {tuple(getattr(found[name], 'shape', ()))} and should be {shape}")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(f"{weights} has not FID's Inception weights: {'; '.join(wrong[:3])}{more}; take {FILE}")
