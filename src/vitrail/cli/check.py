"""``vitrail check``: validate the file of a method, a run or an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.arguments import FIELDS, prepare
from vitrail.cli.console import console, say
from vitrail.cli.options import Sets
from vitrail.core.config.files import read_file
from vitrail.core.config.paths import expanded
from vitrail.errors import ConfigError, nearest
from vitrail.experiments.spec.experiment_file import MARKS, load_experiment
from vitrail.sampling.discovery import registered_name
from vitrail.sampling.methods import load_method


def check(
    file: Annotated[Path, typer.Argument(help="A method, a run or an experiment, as TOML or YAML.")],
    sets: Sets = None,
) -> None:
    """Check a file; loads no model."""
    check_file(file, sets or ())


def check_file(file: Path, sets: Sequence[str]) -> None:
    """Validate the file of a method, a run or an experiment, without loading a model.

    Args:
        file: TOML or YAML file.
        sets: Overrides of the method or the experiment.

    Raises:
        VitrailError: Naming every problem.
    """
    file = expanded(file)
    table = read_file(file)
    if table.keys() & set(MARKS):
        say(console(), f"{file}: sound, {_check_experiment(file, sets)}")
        return
    if "stages" in table:
        composition = load_method(file, sets)
        composition.check_files(registered_name)
        count = len(composition.stages)
        what = f"a method of {count} stage{'s' if count > 1 else ''}"
    elif table.keys() & {*FIELDS, "size"}:
        run, composition = prepare({}, None, file, sets)
        what = f"a run of {run.width}x{run.height} pixels with method {run.method} and model {run.model}"
    else:
        hints = "; ".join(
            f"it has {str(key)!r}{nearest(str(key), ('stages', *FIELDS)).partition(';')[0]}" for key in table
        )
        raise ConfigError(
            f"{file}: is no method, which has 'stages', no run, which has a 'prompt', and no "
            f"experiment, which has 'methods'; {hints}"
        )
    composition.attention_request()
    say(console(), f"{file}: sound, {what}")


def _check_experiment(file: Path, sets: Sequence[str]) -> str:
    """Validate an experiment with its methods and model, and summarise it."""
    from vitrail.cli.run import check

    experiment, _ = load_experiment(file, sets)
    check(experiment, file.parent)
    rows = f"{len(experiment.methods)} methods, {len(experiment.axes)} axes and {len(experiment.sizes)} sizes"
    return f"an experiment of {rows} on model {experiment.model}"
