"""Validation of a model folder in diffusers' layout by file names and headers alone; light to import."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitrail.backbones.loading.part_configs import config_problems
from vitrail.core.config.safetensors_header import read_header
from vitrail.core.config.text_files import LARGEST_RECORD, read_json
from vitrail.errors import ConfigError, ModelError

INDEX = "model_index.json"
UNUSED = ("feature_extractor", "image_encoder", "safety_checker")  # not needed for text to image
T5 = ("text_encoder_3", "tokenizer_3")  # optional parts of Stable Diffusion 3
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
CONFIGS = {"Scheduler": "scheduler_config.json", "Tokenizer": "tokenizer_config.json"}  # by part of the class name
LONGEST_NAME = 100  # characters of a part's name; real ones have about twenty
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
PICKLED = "a pickle can run any code when it is read, so only .safetensors files are"

Index = Mapping[str, Any]


def read_index(folder: Path, where: str) -> Index:
    """Read ``model_index.json``.

    Args:
        folder: Folder of the model.
        where: Beginning of the error.

    Raises:
        ModelError: If it does not exist or names no diffusers pipeline.
    """
    file = folder / INDEX
    if not file.exists():
        raise ModelError(
            f"{where}{INDEX} is missing in {folder}; give the folder that `pipeline.save_pretrained(folder)` wrote"
        )
    try:
        index = read_json(file)
    except ConfigError as error:
        raise ModelError(f"{where}{file} is not a diffusers model index: {error}") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ModelError(f"{where}{file} is not a diffusers model index: it names no pipeline class of diffusers")
    return index


def parts_of(index: Index) -> dict[str, tuple[str | None, str | None]]:
    """Return (library, class) of the listed parts that are loaded, by name."""
    pairs = {name: pair for name, pair in index.items() if isinstance(pair, list) and len(pair) == 2}
    return {
        name: (pair[0], pair[1])
        for name, pair in pairs.items()
        if name not in UNUSED and all(each is None or isinstance(each, str) for each in pair)
    }


def left_out(folder: Path, index: Index) -> tuple[str, ...]:
    """Return T5's parts if Stable Diffusion 3 is to run without them: null in the index, or missing in the folder."""
    listed = parts_of(index)
    lacking = [name for name in T5 if name in listed and (listed[name][0] is None or not (folder / name).is_dir())]
    return T5 if lacking else ()


def check_folder(folder: Path, index: Index, variant: str | None, model: str, remedy: str = "") -> None:
    """Refuse a folder in which files are missing or broken, before anything is loaded.

    A part without files of the variant is read from its plain files, as diffusers does, if some part has them.

    Args:
        folder: Folder of the model.
        index: Its model index.
        variant: Variant of the weight files.
        model: The model as the user named it.
        remedy: End of the error: how to get missing files.

    Raises:
        ModelError: Listing every problem.
    """
    skipped = left_out(folder, index)
    wanted = {name: pair for name, pair in parts_of(index).items() if name not in skipped}
    problems = [
        f"{name[:LONGEST_NAME]}: {problem}"
        for name, (library, kind) in wanted.items()
        for problem in _part_problems(folder / name, library, kind or "", variant)
    ]
    models = [
        (folder / name, STEMS[library or ""]) for name, (library, kind) in wanted.items() if _is_model(library, kind)
    ]
    if variant is not None and models and not any(weight_files(part, stem, variant) for part, stem in models):
        there = sorted({found for part, stem in models for found in _variants(part, stem)})
        problems.append(f"no part has files of the variant {variant!r}; variants there: {', '.join(there) or 'none'}")
    if problems:
        separator = "\n  " if len(problems) > 1 else " "
        raise ModelError(separator.join([f"model {model!r} cannot be loaded:", *problems]) + remedy)


def _is_model(library: str | None, kind: str | None) -> bool:
    return library in STEMS and not any(word in (kind or "") for word in CONFIGS)


def _part_problems(part: Path, library: str | None, kind: str, variant: str | None) -> Iterator[str]:
    if library is None:
        yield "null in the index, but the pipeline needs it"
        return
    if len(part.name) > LONGEST_NAME:
        yield "is no name of a part"
        return
    if not part.is_dir():
        yield f"no folder {part}"
        return
    config = next((file for word, file in CONFIGS.items() if word in kind), "config.json")
    if not (part / config).is_file():
        yield f"no {config} in {part}"
    elif not _is_model(library, kind):
        yield from config_problems(part / config)
    if _is_model(library, kind):
        yield from _weight_problems(part, STEMS[library], variant)


def _weight_problems(part: Path, stem: str, variant: str | None) -> Iterator[str]:
    files, tensors = weight_files(part, stem, variant) or weight_files(part, stem, None), []
    for file in files:
        try:
            tensors.append(len(read_header(file).shapes))
        except ModelError as error:
            yield str(error)
    if files:
        if len(tensors) == len(files) and (part / "config.json").is_file():
            yield from config_problems(part / "config.json", sum(tensors))
        return
    names = [f"{stem}.{variant}.safetensors"] if variant else []
    yield f"no {' or '.join([*names, f'{stem}.safetensors'])} in {part}{_instead(part, stem)}"


def _instead(part: Path, stem: str) -> str:
    there = _variants(part, stem)
    if there:
        return f"; variants there: {', '.join(there)}"
    pickled = sorted(file.name for file in part.iterdir() if file.suffix in PICKLES)
    if pickled:
        return f", but {', '.join(pickled)}: {PICKLED}; load it once with diffusers and save it as safetensors"
    return ""


def weight_files(part: Path, stem: str, variant: str | None) -> list[Path]:
    """Return the files of a part's weights, whole or in shards; listed shards may be missing."""
    tag = f".{variant}" if variant else ""
    whole = part / f"{stem}{tag}.safetensors"
    if whole.is_file():
        return [whole]
    try:
        shards = read_json(part / f"{stem}.safetensors.index{tag}.json", LARGEST_RECORD)["weight_map"]
        return [part / name for name in sorted(set(shards.values()))]
    except (ConfigError, KeyError, TypeError, AttributeError):
        return []


def _variants(part: Path, stem: str) -> list[str]:
    pattern = re.compile(rf"{stem}\.(\w+?)(-\d+-of-\d+)?\.safetensors")
    names = [file.name for file in part.iterdir()] if part.is_dir() else []
    return sorted({found[1] for found in map(pattern.fullmatch, names) if found})
