"""``vitrail serve``: a page on this machine to sample pictures with a model that stays loaded."""

from __future__ import annotations

import errno
import importlib.util
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from vitrail.backbones.loading.model_errors import model_blamed
from vitrail.cli.console import console, say
from vitrail.cli.options import Device, Dtype, ModelConfig, Revision, Variant, Verbose, configure_logging
from vitrail.cli.signals import INTERRUPTED, held, raising
from vitrail.core.config import atomic
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from vitrail.serve.studio import Studio

VARIABLE = "VITRAIL_TOKEN"  # environment variable
LOOPBACK, PORT = "127.0.0.1", 7860
CONNECTIONS = 64  # at once


def serve(
    model: Annotated[str, typer.Option(help="`demo`, a diffusers folder, a .safetensors file or a hub id.")] = "demo",
    method: Annotated[str, typer.Option("--method", "-m", help="Name of the method that is chosen at first.")] = (
        "asg-plus"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on; other than this machine's own it needs --token.")] = (
        LOOPBACK
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = PORT,
    token: Annotated[
        str | None,
        typer.Option(
            envvar=VARIABLE,
            help="What visitors must know, 16 characters or more. Other users of the machine can read command lines: "
            "better set the variable.",
        ),
    ] = None,
    model_config: ModelConfig = None,
    variant: Variant = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    verbose: Verbose = False,
) -> None:
    """A page on this machine: type a sentence, watch, look."""
    _check_installed()
    configure_logging(verbose)
    _check_visitors(host, token)
    from vitrail.sampling.discovery import registry

    registry().path("methods", method)  # refused by its name, before anything is loaded
    options = {"variant": variant, "revision": revision, "config": model_config, "dtype": dtype}
    with _bound(host, port) as listener:
        _serve(listener, host, token, model, method, {k: v for k, v in options.items() if v is not None}, device)


def _check_installed() -> None:
    """Refuse to begin without the libraries of the extra ``ui``."""
    lacking = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if lacking:
        raise ConfigError(f"vitrail serve needs {' and '.join(lacking)}: pip install 'vitrail[ui]'")


def _check_visitors(host: str, token: str | None) -> None:
    """Refuse to listen for others than this machine without a token, and a token that can be guessed."""
    from vitrail.serve.guard import LEAST_TOKEN, is_loopback

    if token is None and VARIABLE in os.environ:
        raise ConfigError(f"{VARIABLE} is set but empty, so it would guard nothing: give it a value, or unset it")
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: others than this machine could make pictures with it; set {VARIABLE} to {LEAST_TOKEN} "
            f"characters or more, or listen on {LOOPBACK}"
        )
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isalnum()):
        raise ConfigError(
            f"--token or {VARIABLE}: give {LEAST_TOKEN} letters and digits or more, e.g. from `openssl rand -hex 16`"
        )


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address: a port that is taken is told, or taken, before the model loads.

    Raises:
        ConfigError: If the address cannot be had.
    """
    if not 0 <= port < 2**16:
        raise ConfigError(f"--port {port}: ports are numbers from 0 to {2**16 - 1}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()  # until then another program could take the port
        except OSError:
            listener.close()
            raise
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        remedy = "another program listens there; give another --port, or 0 for a free one" if taken else str(error)
        raise ConfigError(f"--host {host} --port {port}: {remedy}") from error
    return listener


def _serve(
    listener: socket.socket,
    host: str,
    token: str | None,
    model: str,
    method: str,
    options: dict[str, str],
    device: str | None,
) -> None:
    """Load the model and answer until a signal comes.

    Args:
        listener: Socket with its address.
        host: The address as it was given.
        token: What visitors must know; None for nothing.
        model: Name of the model.
        method: Name of the method that is chosen at first.
        options: How the model is loaded.
        device: A torch device; None for the default.
    """
    import uvicorn

    out = console()
    say(out, f"loading model {model}")
    from vitrail.backbones.loading.source import ModelOptions, find_model
    from vitrail.backbones.pipeline_backbone import quiet_libraries
    from vitrail.sampling.discovery import registry
    from vitrail.serve.guard import is_loopback, own_hosts
    from vitrail.serve.studio import Studio
    from vitrail.serve.web import application

    quiet_libraries()
    chosen = ModelOptions(**options)  # type: ignore[arg-type]
    with model_blamed(model, "cannot be served with"):
        studio = Studio(find_model(model, registry(), chosen).load(device), model, chosen)
    port = listener.getsockname()[1]
    app = application(studio, method, own_hosts(host, port) if is_loopback(host) else None, token)
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="off",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    shown = f"[{host}]" if ":" in host else host
    say(out, f"http://{shown}:{port}/{'' if token is None else f'?token={quote(token)}'}")
    say(out, "Ctrl-C ends it; pictures that were not saved are lost then")
    with _closing(studio, out), raising():
        uvicorn.Server(settings).run(sockets=[listener])


@contextmanager
def _closing(studio: Studio, out: Console) -> Iterator[None]:
    """Close a studio after the block, which a signal ends.

    A picture in work is left after its step; at a second signal the process ends at once, since a thread that computes
    cannot be ended otherwise.

    Args:
        studio: The model and its pictures.
        out: Where to tell of it.

    Raises:
        SystemExit: 130 if a signal ended the block.
    """
    interrupted = False
    try:
        try:
            yield
        except KeyboardInterrupt:
            interrupted = True
        finally:
            with raising():
                if studio.is_busy:
                    say(out, "stopping after the step in work; Ctrl-C again ends at once")
                studio.close()
    except KeyboardInterrupt:
        with held():
            studio.remove_files()
            atomic.discard()
            say(out, "stopped at once")
            os._exit(INTERRUPTED)
    if interrupted:
        say(out, "stopped")
        raise SystemExit(INTERRUPTED)
