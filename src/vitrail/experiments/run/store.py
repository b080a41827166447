"""An experiment's folder: its plan, outcomes as JSON lines, pictures. Folders of one experiment can be merged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.atomic import replacing, write_errors, write_text
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.text_files import read_json
from vitrail.errors import ConfigError, OutputError
from vitrail.experiments.spec.cells import Cell
from vitrail.sampling.input_digests import content_digest

PLAN = "experiment.json"
LARGEST_PLAN = 2**29  # maximum size of a plan's file in bytes
is_text, is_table = v.instance_of(str), v.instance_of(dict)
is_whole, is_number = v.instance_of(int), v.instance_of((int, float))


@frozen(kw_only=True)
class Outcome:
    """Result of running a cell.

    Attributes:
        cell: Address of the cell.
        error: The error message, or None.
        seconds: Duration of the loop over the steps and of decoding, without one-time work such as loading.
        engine_s: Duration of the loop over the steps in seconds.
        decode_s: Duration of the VAE's decoding at the end in seconds.
        model_calls: Rows that the network evaluated, on all ranks.
        critical_calls: Rows that the busiest rank evaluated.
        predicted_calls: Rows that the plan predicted.
        vae_decodes: Number of pictures that the VAE decoded.
        vae_encodes: Number of pictures that the VAE encoded.
        peak_bytes: Peak memory of the process in bytes, above that before; None if it was not measured.
        native_size: The model's training size in pixels.
        rows: Pixel rows at which views of the last step begin or end.
        columns: Pixel columns at which views of the last step begin or end.
        machine: Processor, cores, system, threads and device of the process.
        versions: Versions of Vitrail and of the libraries that determine pixels.
        commit: Commit of the Vitrail that sampled; empty if it was not a checkout, and in older files.
        finished: Time of the end, UTC in ISO 8601.
    """

    cell: str = field(validator=is_text)
    error: str | None = field(default=None, validator=v.optional(is_text))
    seconds: float = field(default=0.0, validator=is_number)
    engine_s: float = field(default=0.0, validator=is_number)
    decode_s: float = field(default=0.0, validator=is_number)
    model_calls: int = field(default=0, validator=is_whole)
    critical_calls: int = field(default=0, validator=is_whole)
    predicted_calls: int = field(default=0, validator=is_whole)
    vae_decodes: int = field(default=0, validator=is_whole)
    vae_encodes: int = field(default=0, validator=is_whole)
    peak_bytes: int | None = field(default=None, validator=v.optional(is_whole))
    native_size: int = field(default=0, validator=is_whole)
    rows: tuple[int, ...] = field(default=(), converter=as_tuple, validator=v.deep_iterable(is_whole))
    columns: tuple[int, ...] = field(default=(), converter=as_tuple, validator=v.deep_iterable(is_whole))
    machine: str = field(default="", validator=is_text)
    versions: dict[str, str] = field(factory=dict, validator=is_table)
    commit: str = field(default="", validator=is_text)
    finished: str = field(default="", validator=is_text)


@frozen(kw_only=True)
class ExperimentPlan:
    """Plan of an experiment, as its folder stores it.

    Attributes:
        experiment: The experiment's file as plain tables.
        cells: All cells, of every shard.
        command: The command line, for reports.
    """

    experiment: dict[str, Any] = field(validator=is_table)
    cells: tuple[Cell, ...] = field(converter=as_tuple)
    command: str = ""


@frozen
class Folder:
    """Folder of an experiment.

    Attributes:
        path: Path of the folder.
    """

    path: Path

    def make(self) -> None:
        """Create the folder if it is missing.

        Raises:
            ConfigError: If it cannot be created or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {self.path}: there can be no such folder: {error.strerror}") from error
        if not os.access(self.path, os.W_OK):
            raise ConfigError(f"--out {self.path}: cannot be written to")

    def write_plan(self, plan: ExperimentPlan) -> None:
        """Write the plan; shards of one experiment write equal plans."""
        self.make()
        write_text(self.path / PLAN, json.dumps(attrs.asdict(plan), ensure_ascii=False, indent=1))

    def plan(self) -> ExperimentPlan:
        """Read the plan.

        Raises:
            ConfigError: If the folder has none, or it cannot be read.
        """
        file = self.path / PLAN
        if not file.exists():
            raise ConfigError(f"{self.path}: no experiment's folder, since it has no {PLAN}")
        try:
            table = read_json(file, LARGEST_PLAN)
            return ExperimentPlan(**{**table, "cells": [Cell(**cell) for cell in table["cells"]]})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"{file}: cannot be read: {error.args[0]}") from error

    def append(self, outcome: Outcome, shard: str) -> None:
        """Append an outcome to the file of a shard, and sync it to the disk.

        One process writes the file of a shard. If its last line was cut off by a crash, a new line is begun.

        Raises:
            OutputError: If the file cannot be written.
        """
        line = json.dumps(attrs.asdict(outcome), ensure_ascii=False)
        path = self.path / f"cells-{shard}.jsonl"
        with write_errors(path), path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = "\n" + line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def outcomes(self) -> dict[str, Outcome]:
        """Read the outcomes of all shards, by the cells' addresses.

        Of several outcomes of a cell a success replaces a failure, and otherwise the last one in order of file names
        and lines is taken. A line that was cut off by a crash is skipped.

        Raises:
            ConfigError: If a line has fields that this version does not know.
        """
        found: dict[str, Outcome] = {}
        for file in sorted(self.path.glob("cells-*.jsonl")):
            for outcome in _read(file):
                known = found.get(outcome.cell)
                if known is None or known.error is not None or outcome.error is None:
                    found[outcome.cell] = outcome
        return found

    def is_done(self, cell: Cell, outcomes: dict[str, Outcome]) -> bool:
        """Return whether a cell has an outcome without error and its picture file exists."""
        outcome = outcomes.get(cell.address)
        return outcome is not None and outcome.error is None and (self.path / cell.picture).exists()


@contextmanager
def refusing_full(folder: Path) -> Iterator[None]:
    """Turn an error of writing in the block into one that says how to continue; finished cells are kept.

    Raises:
        OutputError: In place of another.
    """
    try:
        yield
    except OutputError as error:
        reason = f"{error.reason}; mend that, and the same command goes on from what {folder} has"
        raise OutputError(error.path, reason) from error


def _read(file: Path) -> Iterable[Outcome]:
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        try:
            table = json.loads(line)
        except ValueError:
            continue
        try:
            yield Outcome(**table)
        except TypeError as error:
            raise ConfigError(f"{file}, line {number}: another version's line: {error.args[0]}") from error


def merge(folders: Sequence[Path], into: Path) -> Folder:
    """Copy the outcomes and pictures of several folders into one, which may exist or be one of them.

    The plan is that of the first folder. Outcomes are kept in one file per source folder, so that more folders, or the
    same ones again, can be merged later.

    Args:
        folders: Folders of one experiment.
        into: The target folder.

    Raises:
        ConfigError: If a folder is not an experiment's, or one of them or the target is of another experiment.
        OutputError: If a file cannot be written.
    """
    target, read = Folder(into), [Folder(folder) for folder in folders]
    plan = same_plan([*read, *([target] if (into / PLAN).exists() else [])])
    target.write_plan(plan)
    for folder in folders:
        if folder.resolve() == into.resolve():
            continue
        origin = content_digest(str(folder.resolve()))
        for file in sorted(folder.glob("cells-*.jsonl")):
            _copy(file, into / f"cells-{origin}-{file.name.removeprefix('cells-')}")
        for picture in sorted(folder.glob("pictures/*/*.png")):
            place = into / picture.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                _copy(picture, place)
    return target


def _copy(file: Path, place: Path) -> None:
    """Copy a file atomically."""
    import shutil

    with replacing(place) as part:
        shutil.copyfile(file, part)


def same_plan(folders: Sequence[Folder]) -> ExperimentPlan:
    """Return the plan of the first folder, after checking that all have the same cells.

    Raises:
        ConfigError: If a folder is not an experiment's, or has other cells than the first.
    """
    plans = [folder.plan() for folder in folders]
    for folder, plan in zip(folders, plans, strict=True):
        one, two = ({cell.address: cell for cell in each.cells} for each in (plans[0], plan))
        odd = [cell for address, cell in {**one, **two}.items() if (address in one) != (address in two)]
        if odd:
            raise ConfigError(
                f"{folders[0].path} and {folder.path}: not of the same experiment, {len(odd)} cells are in one alone, "
                f"such as {odd[0].row!r}, prompt {odd[0].run['prompt']!r}; folders go together if their experiment, "
                "its model's weights and the version of Vitrail are the same"
            )
    return plans[0]
