"""Hold a method of Vitrail against its authors' own code, in a checkout that you have.

    python -m tools.parity --authors PATH --method demofusion --run-foreign-code

from the root of the repository. The authors' pipeline is run on a tiny random model (or on --model), what it draws at
random is recorded and given to Vitrail's run with the switches of docs/results/authors.md, and the largest differences
of the latents and of the picture are printed, with the first step at which the network was asked something else. If the
two do not draw alike, that is said instead.

The code in the checkout is not Vitrail's. It runs with your rights, and only with --run-foreign-code; without it, it is
only looked for. Exit code: 0 equal, 1 something differs, 2 not compared.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .checkout import Checkout, RefusedError
from .entries import Entry, entries, entry_of
from .feeding import DrawsDifferError
from .models import FolderModel, Model, TinyModel
from .recordings import Recording
from .reporting import Line, text_of
from .theirs import Wish, record

TOLERANCE = 5e-5  # what two releases of diffusers differ by on latents of a deviation of 4.6


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    asked = argparse.ArgumentParser(
        prog="python -m tools.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--authors", type=Path, metavar="PATH", help="checkout of the authors' repository")
    asked.add_argument(
        "--method", action="append", default=[], metavar="NAME", help="method to compare; may be repeated"
    )
    asked.add_argument("--run-foreign-code", action="store_true", help="run the code in the checkout")
    asked.add_argument("--list", action="store_true", help="list what is looked for, by method")
    asked.add_argument(
        "--entry", type=Path, metavar="FILE", help="entries of your own, a TOML file as tools/parity/entries.toml"
    )
    asked.add_argument(
        "--model", type=Path, metavar="FOLDER", help="a model in diffusers' layout; by default a tiny random one"
    )
    asked.add_argument("--write-model", type=Path, metavar="FOLDER", help="write the tiny model of the method and end")
    asked.add_argument("--record", type=Path, metavar="FILE", help="run the authors' code alone, and keep what it did")
    asked.add_argument(
        "--recorded", type=Path, metavar="FILE", help="compare with what --record kept; runs no foreign code"
    )
    asked.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    asked.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    asked.add_argument("--prompt", default=Wish().prompt, help="text of the picture (default: %(default)s)")
    asked.add_argument("--height", type=int, help="pixels (default: by the entry)")
    asked.add_argument("--width", type=int, help="pixels (default: by the entry)")
    asked.add_argument("--steps", type=int, help="number of steps (default: by the entry)")
    asked.add_argument("--seed", type=int, default=0, help="of the authors' generators (default: %(default)s)")
    asked.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="difference that is none (default: %(default)g)"
    )
    return asked


def model_of(entry: Entry, options: argparse.Namespace) -> Model:
    """Return the model that both sides get."""
    if options.model is not None:
        return FolderModel(options.model.resolve(), entry.family, options.device)
    return TinyModel(entry.family, entry.native, options.device)


def allowed(entry: Entry, options: argparse.Namespace) -> Checkout:
    """Return the checkout, if its code may be run.

    Raises:
        RefusedError: If it is not there, or the user did not say that it may run.
    """
    if options.authors is None:
        raise RefusedError("give the checkout of the authors' repository as --authors, or a recording as --recorded")
    checkout = Checkout(options.authors.resolve())
    checkout.check(entry.file, entry.name)
    if entry.device and options.device.partition(":")[0] != entry.device:
        raise RefusedError(f"the authors' code runs on {entry.device} alone; give --device {entry.device}")
    if not options.run_foreign_code:
        raise RefusedError(
            f"nothing was run: {checkout.root / entry.file} defines {entry.name} (commit {checkout.commit}), which is "
            "not Vitrail's code and would run with your rights; add --run-foreign-code to run it"
        )
    return checkout


def line_of(entry: Entry, options: argparse.Namespace) -> Line:
    """Compare one method."""
    from .ours import compare  # not with --record, since it needs libraries of today

    recording = None
    try:
        model = model_of(entry, options)
        if options.recorded is not None:
            recording = Recording.read(options.recorded)
            if recording.method != entry.method:
                raise RefusedError(f"{options.recorded}: is a recording of {recording.method}, not of {entry.method}")
        else:
            wish = Wish(**{name: getattr(options, name) for name in ("prompt", "height", "width", "steps", "seed")})
            recording = record(entry, allowed(entry, options), model, wish)
        return Line(entry=entry, recording=recording, outcome=compare(entry, recording, model, options.tolerance))
    except RefusedError as error:
        return Line(entry=entry, recording=recording, refused=str(error))
    except DrawsDifferError as error:
        return Line(entry=entry, recording=recording, draws=tuple(error.problems))


def listing(every: dict[str, Entry]) -> str:
    """Return what is looked for, a line for each method."""
    lines = [f"{e.method}: {e.name} in {e.file}, written from commit {e.seen or 'unknown'}" for e in every.values()]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    options = parser().parse_args(words)
    try:
        every = entries() | (entries(options.entry) if options.entry else {})
        if options.list:
            sys.stdout.write(listing(every))
            return 0
        if not options.method:
            raise RefusedError("give a method as --method; --list lists those that there are entries for")
        chosen = [entry_of(name, every) for name in options.method]
        if len(chosen) > 1 and (options.record or options.recorded or options.write_model):
            raise RefusedError("--record, --recorded and --write-model are for one method; give one --method")
        if options.write_model is not None:
            TinyModel(chosen[0].family, chosen[0].native).folder(options.write_model)
            return 0
        if options.record is not None:
            wish = Wish(**{name: getattr(options, name) for name in ("prompt", "height", "width", "steps", "seed")})
            record(chosen[0], allowed(chosen[0], options), model_of(chosen[0], options), wish).write(options.record)
            return 0
    except RefusedError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    lines = [line_of(entry, options) for entry in chosen]
    sys.stdout.write(text_of(lines))
    if options.json is not None:
        options.json.write_text(json.dumps([line.table for line in lines], indent=2) + "\n", encoding="utf-8")
    results = {line.result for line in lines}
    return 2 if "not compared" in results else 0 if results == {"equal"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
