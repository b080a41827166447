"""Weights of an RRDBNet from a file: read as tensors alone, checked whole before a run, and loaded for a pass.

A ``.safetensors`` file holds nothing else. A ``.pth`` is a pickle, which could run code; it is read by torch's
weights-only loader, which builds tensors and plain tables and refuses all else, after ``state_dict_pickle`` has looked
through it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.core.config.paths import expanded, refuse_irregular
from vitrail.core.config.safetensors_header import read_header
from vitrail.errors import ModelError, shortened
from vitrail.plugins.upscaler.rrdb_layout import KINDS, Layout, layout_of
from vitrail.plugins.upscaler.state_dict_pickle import check_pickle

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PICKLES = (".pth", ".pt", ".ckpt", ".bin")
WRAPPERS = ("params_ema", "params")  # tables of a training framework that hold the weights; of two the averaged ones
KEPT = 16  # files whose layout is remembered


def layout_in(file: str) -> Layout:
    """Return the layout of a file that holds an RRDBNet; a file is read again only if it changed.

    Raises:
        ModelError: If it is missing, broken, holds more than tensors, values that are not finite, or another network.
    """
    path = expanded(file)
    try:
        refuse_irregular(path)
        found = path.stat()
    except OSError as error:
        raise ModelError(f"file: {file!r} cannot be read: {error.strerror}") from error
    return _layout(path, found.st_size, found.st_mtime_ns)


def load(file: str, device: torch.device) -> dict[str, Tensor]:
    """Return the weights of a file by our names, with ``.weight`` and ``.bias``, float32 on a device.

    Raises:
        ModelError: As ``layout_in``.
    """
    path = expanded(file)
    found = _read(path)
    layout = _checked(path, found)
    pairs = [(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in layout.names.items() for kind in KINDS]
    return {ours: found[theirs].float().to(device) for ours, theirs in pairs}


@functools.lru_cache(maxsize=KEPT)
def _layout(path: Path, size: int, changed: int) -> Layout:
    return _checked(path, _read(path))


def _checked(path: Path, tensors: Mapping[str, Tensor]) -> Layout:
    """Return the layout of tensors, after a look at each."""
    layout = layout_of({name: tuple(tensor.shape) for name, tensor in tensors.items()}, f"file: {path}")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"file: {path} is broken: {name} has values that are not finite; get it again")
    return layout


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by their names in it, on the CPU.

    Raises:
        ModelError: If it cannot be read as tensors of floats.
    """
    import torch

    suffix = path.suffix.lower()
    if suffix not in (".safetensors", *PICKLES):
        raise ModelError(f"file: {path} is no {', '.join(PICKLES)} or .safetensors; those hold weights")
    found = unwrapped(_from_safetensors(path) if suffix == ".safetensors" else _from_pickle(path), path)
    for name, tensor in found.items():
        if not (isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()):
            raise ModelError(f"file: {path}: {shortened(name, 60)!r} is no tensor of floats, so this is no RRDBNet")
        if tensor.device.type != "cpu":
            raise ModelError(f"file: {path} is broken: {shortened(name, 60)!r} has no values; get it again")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # a copy would be larger
            raise ModelError(f"file: {path} is broken: {shortened(name, 60)!r} claims more values than the file has")
    storages = [tensor.untyped_storage() for tensor in found.values()]
    if sum({each.data_ptr(): each.nbytes() for each in storages}.values()) > path.stat().st_size:
        raise ModelError(f"file: {path} is broken: its tensors claim more values than the file has")
    return found


def unwrapped(found: object, path: Path) -> dict[str, Tensor]:
    """Return the table of tensors in what a file holds, out of the table of a training framework if it is in one.

    Raises:
        ModelError: If there is no such table.
    """
    if isinstance(found, Mapping):
        found = next((found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)), found)
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ModelError(f"file: {path} holds no table of named tensors, so this is no RRDBNet")
    return dict(found)


def _from_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read_header(path)
        return load_file(path, device="cpu")
    except ModelError as error:
        raise ModelError(f"file: {error}") from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"file: {path} is broken: {shortened(str(error))}; get it again") from error


def _from_pickle(path: Path) -> object:
    import pickle

    import torch

    try:
        check_pickle(path)
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"file: {path} is broken or holds more than tensors, which could run code and is not read: "
            f"{_reason(error)}; get it again, or convert it to .safetensors"
        ) from error
    except Exception as error:  # torch raises many types for a broken file
        raise ModelError(f"file: {path} is broken or no file of torch: {_reason(error)}; get it again") from error


def _reason(error: Exception) -> str:
    """Return what torch said in one line; its advice to read the file without the check is left out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    told = told.rpartition("WeightsUnpickler error: ")[2].partition(" Please use")[0]
    return shortened(told or type(error).__name__)
