"""Entry point of the command line; maps errors to messages and exit codes."""

from __future__ import annotations

from typing import Annotated, Any, NoReturn

import typer

from vitrail.cli.check import check
from vitrail.cli.compare import compare
from vitrail.cli.console import prepare_streams, tell
from vitrail.cli.decode import decode
from vitrail.cli.doctor import doctor
from vitrail.cli.heatmap import heatmap
from vitrail.cli.listing import methods, plugins
from vitrail.cli.replay import replay
from vitrail.cli.report import report
from vitrail.cli.run import run
from vitrail.cli.sample import sample
from vitrail.cli.serve import serve
from vitrail.cli.signals import INTERRUPTED, UNTOLD, ended_at_once
from vitrail.cli.timeline import timeline
from vitrail.comm.lifeline import hold
from vitrail.core.config import atomic
from vitrail.core.engine.memory_backoff import REMEDIES, is_out_of_memory
from vitrail.errors import Interrupted, VitrailError, first_line

app = typer.Typer(
    name="vitrail",
    help="Sample large pictures from diffusion models that were trained on small ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


COMMANDS = (sample, serve, replay, decode, heatmap, timeline, methods, plugins, check, run, report, compare, doctor)
for command in COMMANDS:
    app.command()(command)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Sample large pictures from diffusion models that were trained on small ones."""
    if version:
        from importlib import metadata

        typer.echo(f"vitrail {metadata.version('vitrail')}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line and exit: 0 success, 1 a bug or a failed run, 2 invalid input, 130 interrupted.

    Raises:
        SystemExit: With the exit code.
    """
    prepare_streams()
    try:
        with ended_at_once():
            hold(atomic.discard)
            code: Any = app(standalone_mode=False)
    except VitrailError as error:
        from vitrail.cli.ranks import end_rank, teller

        code = INTERRUPTED if isinstance(error, Interrupted) else 2 if isinstance(error, ValueError) else 1
        who = teller(error)
        if who == "me":
            tell(f"Error: {error}")
        end_rank(UNTOLD if who == "launcher" else code)
    except Exception as error:
        _report(error)
    raise SystemExit(code if isinstance(code, int) else 0)


def _report(error: Exception) -> NoReturn:
    """Report usage errors as typer does and errors of memory in one line; re-raise anything else as a bug."""
    show = getattr(error, "show", None)
    if show is not None:
        show()
        raise SystemExit(getattr(error, "exit_code", 2))
    if _is_shortage(error):
        reason = first_line(str(error)) or type(error).__name__
        tell(f"Error: out of memory: {reason}; free some, or try {REMEDIES}")
        raise SystemExit(1)
    if type(error).__name__ == "Abort":  # how typer passes KeyboardInterrupt on
        tell("Stopped; files that were complete are kept.")
        raise SystemExit(INTERRUPTED)
    raise error


def _is_shortage(error: Exception) -> bool:
    """Return whether memory ran out; torch's errors are only recognised if torch can be imported."""
    if isinstance(error, MemoryError):
        return True
    try:
        return is_out_of_memory(error)
    except ImportError:
        return False


__all__ = ["app", "main"]
