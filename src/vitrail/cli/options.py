"""Command-line options shared by several commands, and configuration of logging."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.core.config.paths import expanded_or_none
from vitrail.errors import ConfigError


def _path(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Expand a path option; errors name the option."""
    try:
        return expanded_or_none(value)
    except ConfigError as error:
        raise ConfigError(f"{max(param.opts, key=len)} {error}") from error


Method = Annotated[str | None, typer.Option("--method", "-m", help="A method's name or a TOML or YAML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the method, e.g. stages.0.guidance.0.scale=2. Repeatable."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", callback=_path, help="PNG file; named after the prompt if not given."),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output file.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every event to the terminal.")]
Device = Annotated[str | None, typer.Option(help="A torch device; the accelerator if there is one, else the CPU.")]
Dtype = Annotated[str | None, typer.Option(help="Of the networks: float32, bfloat16 or float16.")]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="Run the network as torch.compile makes it; other last bits."),
]
Image = Annotated[str | None, typer.Option(help="A picture to start from, enlarged to the size.")]
ModelConfig = Annotated[str | None, typer.Option(help="What a single file is read as: a family or a diffusers folder.")]
Variant = Annotated[str | None, typer.Option(help="Of the weight files, e.g. fp16.")]
Revision = Annotated[str | None, typer.Option(help="Of a model on the hub.")]
Ranks = Annotated[int | None, typer.Option(help="Processes that share the work; the picture stays the same.")]
Comm = Annotated[str | None, typer.Option(help="How ranks talk: gloo, nccl, in-process; gloo or nccl by the device.")]
Timeout = Annotated[float, typer.Option(help="Seconds that a rank waits for another before the run ends.")]
Speeds = Annotated[str | None, typer.Option(help="Relative speeds of the ranks, e.g. 1,1,0.5; auto measures them.")]
Exchange = Annotated[
    str,
    typer.Option(help="What ranks wait for: barrier, all views; dataflow, those that overlap, where it will do."),
]
Checkpoint = Annotated[
    Path | None, typer.Option(callback=_path, help="File to write as the run goes, and to go on from.")
]
Every = Annotated[int, typer.Option("--checkpoint-every", help="Steps between two writes of the checkpoint.")]
Plugin = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="MODULE:OBJECT with hooks that watch or wrap the run. Repeatable."),
]
Trace = Annotated[Path | None, typer.Option(callback=_path, help="JSON file for what every rank did when.")]
Preview = Annotated[
    Path | None, typer.Option(callback=_path, help="PNG file for small pictures of what is predicted as the run goes.")
]
PreviewEvery = Annotated[
    int, typer.Option("--preview-every", help="Steps between two previews, from the first step on.")
]


class _Stderr(logging.StreamHandler[Any]):
    """Handler that writes to the current ``sys.stderr``, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(verbose: bool) -> None:
    """Log warnings and errors to stderr, or every event if ``verbose``."""
    import structlog

    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[_Stderr()])
    logging.getLogger("vitrail").setLevel(logging.DEBUG if verbose else logging.WARNING)
    console = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer(colors=True) if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            renderer,
        ]
    )
