"""An experiment's folder: what was planned, JSON lines of what was done, pictures. Folders merge by copying."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from vitrail.core.config.atomic import replacing, write_errors, write_text
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.text_files import read_json
from vitrail.errors import ConfigError, OutputError
from vitrail.experiments.spec.cells import Cell
from vitrail.sampling.input_digests import content_digest

PLAN = "experiment.json"
LARGEST_PLAN = 2**29  # bytes


@frozen(kw_only=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: Its address.
        error: What went wrong, or None.
        seconds: Of the loop over the steps and of decoding; what happens once, such as loading, is left out.
        engine_s: Of the loop over the steps.
        decode_s: Of the VAE at the end.
        model_calls: Rows that the network saw, on all ranks.
        critical_calls: Rows that the busiest rank saw.
        predicted_calls: What the plan said.
        vae_decodes: Pictures that the VAE decoded.
        vae_encodes: And encoded.
        peak_bytes: Most memory that the process had beside what it had before, or None if nobody looked.
        native_size: Pixels: the model's training size.
        rows: Pixel rows at which views of the last stage begin or end.
        columns: Pixel columns, as above.
        machine: Where it ran: processor, cores, system, threads, device.
        versions: Of Vitrail and the libraries that shape pixels.
        commit: Of the Vitrail that sampled, if it was a checkout; empty in lines of before it was noted.
        finished: When, in UTC.
    """

    cell: str
    error: str | None = None
    seconds: float = 0.0
    engine_s: float = 0.0
    decode_s: float = 0.0
    model_calls: int = 0
    critical_calls: int = 0
    predicted_calls: int = 0
    vae_decodes: int = 0
    vae_encodes: int = 0
    peak_bytes: int | None = None
    native_size: int = 0
    rows: tuple[int, ...] = field(default=(), converter=as_tuple)
    columns: tuple[int, ...] = field(default=(), converter=as_tuple)
    machine: str = ""
    versions: dict[str, str] = field(factory=dict)
    commit: str = ""
    finished: str = ""


@frozen(kw_only=True)
class ExperimentPlan:
    """What an experiment's folder is of.

    Attributes:
        experiment: Its file as plain tables.
        cells: All of them, whoever samples them.
        command: What was typed, for a report to tell.
    """

    experiment: dict[str, Any]
    cells: tuple[Cell, ...] = field(converter=as_tuple)
    command: str = ""


@frozen
class Folder:
    """Where an experiment lies.

    Attributes:
        path: The folder.
    """

    path: Path

    def make(self) -> None:
        """See that it is there.

        Raises:
            ConfigError: If it cannot be.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {self.path}: there can be no such folder: {error.strerror}") from error
        if not os.access(self.path, os.W_OK):
            raise ConfigError(f"--out {self.path}: cannot be written to")

    def write_plan(self, plan: ExperimentPlan) -> None:
        """Keep what was planned; shards of one experiment write the same."""
        self.make()
        write_text(self.path / PLAN, json.dumps(attrs.asdict(plan), ensure_ascii=False, indent=1))

    def plan(self) -> ExperimentPlan:
        """What was planned.

        Raises:
            ConfigError: If the folder is no experiment's.
        """
        file = self.path / PLAN
        if not file.exists():
            raise ConfigError(f"{self.path}: no experiment's folder, since it has no {PLAN}")
        try:
            table = read_json(file, LARGEST_PLAN)
            return ExperimentPlan(**{**table, "cells": [Cell(**cell) for cell in table["cells"]]})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from error

    def append(self, outcome: Outcome, shard: str) -> None:
        """Add a line to the file of one shard, which one process alone writes; a line that was cut off stays alone."""
        line = json.dumps(attrs.asdict(outcome), ensure_ascii=False)
        path = self.path / f"cells-{shard}.jsonl"
        with write_errors(path), path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = "\n" + line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def outcomes(self) -> dict[str, Outcome]:
        """By address, from every shard's lines: what was done counts more than what failed, later more than earlier.

        A line that was cut off by a crash tells nothing, so its cell is not done.
        """
        found: dict[str, Outcome] = {}
        for file in sorted(self.path.glob("cells-*.jsonl")):
            for outcome in _read(file):
                known = found.get(outcome.cell)
                if known is None or known.error is not None or outcome.error is None:
                    found[outcome.cell] = outcome
        return found

    def is_done(self, cell: Cell, outcomes: dict[str, Outcome]) -> bool:
        """Whether a cell's picture is there and its line says so."""
        outcome = outcomes.get(cell.address)
        return outcome is not None and outcome.error is None and (self.path / cell.picture).exists()


@contextmanager
def refusing_full(folder: Path) -> Iterator[None]:
    """A folder that takes no more ends the work, with one clear error; what was done is kept.

    Raises:
        ConfigError: In place of the system's error.
    """
    try:
        yield
    except OutputError as error:
        raise ConfigError(f"{error}; mend that, and the same command goes on from what {folder} has") from error


def _read(file: Path) -> Iterable[Outcome]:
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        try:
            table = json.loads(line)
        except ValueError:
            continue
        try:
            yield Outcome(**table)
        except TypeError as error:
            raise ConfigError(f"{file}, line {number}: another version's line: {error}") from error


def merge(folders: Sequence[Path], into: Path) -> Folder:
    """Copy several folders' lines and pictures into one, which may exist or be one of them; the plan is the first's.

    Lines keep a file for each folder that they came from, so more folders may be merged later, or the same again.

    Raises:
        ConfigError: If a folder is no experiment's, or if one, or what is merged into, is of another experiment than
            the first.
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
    """The copy is there when it is whole."""
    import shutil

    with replacing(place) as part:
        shutil.copyfile(file, part)


def same_plan(folders: Sequence[Folder]) -> ExperimentPlan:
    """The plan of folders that hold one experiment.

    Raises:
        ConfigError: If a folder is no experiment's, or of another experiment than the first.
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
