"""Models on the hub: index first, parts when loaded; cache, offline mode and token are huggingface_hub's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vitrail.backbones.loading.folder import INDEX, UNUSED
from vitrail.errors import ModelError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def fetch_index(model: str, revision: str | None, where: str) -> Path:
    """Return the cache folder with the model's index, downloaded if needed.

    Args:
        model: ``org/name``.
        revision: A branch, tag or commit; the default branch if None.
        where: Beginning of the error.

    Raises:
        ModelError: If it cannot be fetched, with the reason, the cache and the command that downloads the model.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, INDEX, revision=revision)).parent
    except Exception as error:
        raise ModelError(_explanation(error, INDEX, model, revision, where)) from error


def fetch_parts(pipeline: Any, location: str, revision: str | None, variant: str | None, where: str) -> Path:
    """Return the cache folder with all parts of a model that are loaded; downloads missing ones, unless offline.

    Args:
        pipeline: The diffusers class.
        location: ``org/name``.
        revision: As for ``fetch_index``.
        variant: Variant of the weight files; the plain ones if None.
        where: Beginning of the error.

    Raises:
        ModelError: As ``fetch_index``.
    """
    if is_offline():
        return fetch_index(location, revision, where)
    unused = dict.fromkeys(UNUSED)
    try:
        found = pipeline.download(location, revision=revision, variant=variant, use_safetensors=True, **unused)
    except Exception as error:
        raise ModelError(_explanation(error, "a part", location, revision, where)) from error
    return Path(found)


def is_offline() -> bool:
    """Whether huggingface_hub is configured not to use the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def remedy(model: str, revision: str | None) -> str:
    """Return the end of an error about missing files of a model."""
    return f"; {_command(model, revision)} gets what is missing"


def _command(model: str, revision: str | None) -> str:
    return f"`hf download {model}" + (f" --revision {revision}`" if revision else "`")


def _explanation(error: Exception, what: str, model: str, revision: str | None, where: str) -> str:
    """Return why a model could not be fetched, and what to do."""
    from huggingface_hub import constants, errors

    download = _command(model, revision)
    cache = f"the cache {constants.HF_HUB_CACHE}"
    offline = "HF_HUB_OFFLINE is set" if is_offline() else "the hub is out of reach"
    searched = f"{where}no folder {model!r} here, so {what} of the hub's {model} was looked for in {cache}"
    reasons: tuple[tuple[Any, str], ...] = (
        (
            errors.GatedRepoError,
            f"access is asked for on the model's page first; then `hf auth login` and {download}",
        ),
        (errors.RevisionNotFoundError, f"the hub has no revision {revision!r} of it"),
        (errors.RepositoryNotFoundError, "the hub has no such model, or it is private: `hf auth login`"),
        (
            (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled),
            f"it is not there, and {offline}; where there is a network: {download}",
        ),
        (
            errors.EntryNotFoundError,
            "the hub's model has no such file, so it is not in diffusers' layout; download its .safetensors file and "
            "give the path",
        ),
    )
    for kind, reason in reasons:
        if isinstance(error, kind):
            return f"{searched}: {reason}"
    return f"{searched} and on the hub: {str(error).strip()}"
