"""``vitrail doctor``: what is installed here, as a text for bug reports.

Libraries with native code are imported in a process of their own, which may fail or be killed: a broken torch is a line
of the text. Nothing of it names the user or a folder above the home folder's.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from attrs import field, frozen

from vitrail.cli.console import console, say
from vitrail.errors import first_line

if TYPE_CHECKING:
    from vitrail.core.config.registry import Registry

DEVELOPERS = ("data", "docs", "lint", "test")  # extras that nobody needs to make a picture
BESIDE = ("huggingface_hub", "numpy", "tokenizers", "torchvision", "xformers")  # not asked for, and often the cause
PROBES = ("torch", "transformers:CLIPTextModel", "diffusers:StableDiffusionXLPipeline")  # in the order of need
SETTINGS = re.compile(
    r"VITRAIL_\w+|(CUDA|HIP|ZE|PYTORCH)_\w+|OMP_NUM_THREADS|MKL_NUM_THREADS|WORLD_SIZE|(LOCAL_)?RANK"
    r"|HF_(HOME|HUB_CACHE|HUB_OFFLINE)|TRANSFORMERS_OFFLINE|SLURM_NTASKS"
)  # environment variables that change what a run does
SECRET = re.compile(r"\w*(TOKEN|SECRET)")  # of which only the name is shown
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(>=(?P<least>[\d.]+))?(; *extra *== *['\"](?P<extra>[\w-]+)['\"])?")
HOMES = re.compile(r"(/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s'\":;,]+")
PROBE_LIMIT_S = 300  # a cold import from a network drive takes long
PROBE = "from vitrail.cli.doctor import probe; probe()"
MARK = "vitrail-doctor "  # begins the lines that the process means
GIB = 2**30


@frozen
class Requirement:
    """A library that Vitrail, or an extra of it, asks for.

    Attributes:
        name: Name of the distribution.
        least: Oldest version that is served; "" for any.
        extra: The extra that asks for it; "" for Vitrail itself.
        version: The version that is installed; None if it is not.
    """

    name: str
    least: str
    extra: str
    version: str | None

    @property
    def complaint(self) -> str:
        """What is wrong; "" if nothing is."""
        if self.version is None:
            return "missing"
        return f"too old, {self.least} or newer is needed" if _parts(self.version) < _parts(self.least) else ""


@frozen
class Probed:
    """What the process that imports libraries found out.

    Attributes:
        broken: Module -> the error of its import.
        devices: One line each.
        comm: Name of a communicator backend -> why it cannot start here; "" if it can.
    """

    broken: dict[str, str] = field(factory=dict)
    devices: list[str] = field(factory=list)
    comm: dict[str, str] = field(factory=dict)


def doctor() -> None:
    """Show versions, devices, plugins and models, for a bug report; exit 1 if something that a run needs is broken."""
    from vitrail.sampling.discovery import installed

    names, found, asked = installed(), probed(), requirements()
    problems = list(complaints(asked, found, names))
    lines = [*_of_python(), *_of_libraries(asked), *_of_devices(found, names)]
    lines += [*_of_plugins(names), *_of_models(names), *_of_settings(os.environ)]
    lines += ["", *(problems or ["Nothing that a run needs is missing."])]
    say(console(), map(without_homes, lines))
    if problems:
        raise typer.Exit(1)


def without_homes(line: str) -> str:
    """Shorten home folders to ``~``, the user's own first and others by their usual places."""
    own = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    for home in {own, os.path.realpath(own)} - {"~", os.sep}:
        line = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", line)
    return HOMES.sub("~", line)


def requirements(lines: Iterable[str] | None = None) -> list[Requirement]:
    """Return what Vitrail asks for, with the versions that are installed.

    Args:
        lines: Requirements as in a wheel's metadata; those of the installed Vitrail if None, which are none if it runs
            from a folder of sources that was never installed.
    """
    if lines is None:
        lines = metadata.requires("vitrail") or () if _version("vitrail") else ()
    matches = [match for line in lines if (match := REQUIREMENT.match(line))]
    return [
        Requirement(each["name"], each["least"] or "", each["extra"] or "", _version(each["name"])) for each in matches
    ]


def complaints(asked: Iterable[Requirement], found: Probed, names: Registry) -> Iterator[str]:
    """Yield one line for everything that keeps runs from working, with the remedy.

    Args:
        asked: Requirements, those of extras included, which are nobody's problem.
        found: What imports said.
        names: The registry, with the plugins that failed.
    """
    if _version("vitrail") is None:
        yield "Broken: Vitrail is not installed, only found: pip install -e . in its folder"
    for each in asked:
        if not each.extra and each.complaint:
            wanted = f"{each.name}>={each.least}" if each.least else each.name
            yield f"Broken: {each.name} is {each.complaint}: pip install '{wanted}'"
    for module, error in found.broken.items():
        yield f"Broken: {module} cannot be imported: {error}; install it anew, with what the error names"
    for failure in names.failures:
        if failure.stops:
            yield f"Broken: plugin {failure.plugin}: {failure.error}"


def probed(limit: float = PROBE_LIMIT_S) -> Probed:
    """Import the libraries in another process, and return what it found before it ended, however it did.

    Args:
        limit: Seconds until the process is killed.
    """
    found, told, ended = Probed(), "", ""
    try:
        done = subprocess.run([sys.executable, "-P", "-c", PROBE], capture_output=True, timeout=limit, check=False)
        told, code = done.stdout.decode(errors="replace"), done.returncode
        if code:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            ended = _signal(-code) if code < 0 else f"the process ended with code {code}: {last}"
    except subprocess.TimeoutExpired as error:
        told, ended = (error.stdout or b"").decode(errors="replace"), f"not done after {limit:g} s"
    begun = ""
    for line in told.splitlines():
        if line.startswith(MARK):
            message = json.loads(line.removeprefix(MARK))
            begun = message.get("begun", begun)
            found.broken.update(message.get("broken", {}))
            found.devices.extend(message.get("devices", []))
            found.comm.update(message.get("comm", {}))
    if ended:
        found.broken[begun or "Python"] = ended
    return found


def probe() -> None:
    """Import what a run imports and print what is there, a line of JSON for each; the other process's whole task."""
    for name in PROBES:
        module = name.partition(":")[0]
        _print(begun=module)
        try:
            pkgutil.resolve_name(name)
        except BaseException as error:  # also what ends a process
            _print(broken={module: f"{type(error).__name__}: {first_line(str(error))}"})
            continue
        if module == "torch":
            _print(begun="torch's devices")
            _print(devices=list(_devices()), comm=dict(_comm()))


def _devices() -> Iterator[str]:
    """Yield the CPU and every accelerator with their memory."""
    import torch

    from vitrail.backbones.memory.free_memory import free_bytes

    kinds, places = torch.accelerator, [torch.device("cpu")]
    if kinds.is_available() and (kind := kinds.current_accelerator()) is not None:
        places += [torch.device(kind.type, index) for index in range(kinds.device_count())]
    for place in places:
        free = free_bytes(place)
        room = "free memory unknown" if free is None else f"{free / GIB:.1f} GiB free"
        yield f"{place}: {_kind_of(place)}, {room}"


def _kind_of(place: object) -> str:
    """Return what a device is: threads of the CPU, or the name and memory of those accelerators that tell them."""
    import torch

    if not isinstance(place, torch.device) or place.type not in ("cpu", "cuda", "xpu"):
        return "accelerator"
    if place.type == "cpu":
        return f"{torch.get_num_threads()} threads on {os.cpu_count()} processors"
    facts = torch.get_device_module(place).get_device_properties(place)
    return f"{facts.name}, {facts.total_memory / GIB:.1f} GiB"


def _comm() -> Iterator[tuple[str, str]]:
    """Yield for the backends of torch.distributed why they cannot start; "" if they can."""
    import torch
    from torch import distributed

    if not distributed.is_available():
        yield from (("gloo", "this torch has no torch.distributed"), ("nccl", "this torch has no torch.distributed"))
        return
    yield "gloo", "" if distributed.is_gloo_available() else "this torch was built without gloo"
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if device is not None and device.type == "cuda" else 0
    reason = "" if distributed.is_nccl_available() else "this torch was built without NCCL"
    yield "nccl", reason or ("" if count else "there is no CUDA device")


def _of_python() -> Iterator[str]:
    inside = "in a virtual environment" if sys.prefix != sys.base_prefix else "in no virtual environment"
    yield f"Vitrail {_version('vitrail') or 'not installed'}, from {Path(__file__).parents[1]}"
    yield f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}, {inside}"


def _of_libraries(asked: Iterable[Requirement]) -> Iterator[str]:
    """Yield the libraries, and for each extra what is missing."""
    asked = list(asked)
    yield from ("", "Libraries")
    for each in asked:
        if not each.extra:
            yield f"  {each.name} {each.version or ''}".rstrip() + (f"  {each.complaint}" if each.complaint else "")
    present = ((name, _version(name)) for name in BESIDE)
    yield f"  besides: {', '.join(f'{name} {version}' for name, version in present if version) or 'none'}"
    yield from ("", "Extras")
    for extra in dict.fromkeys(each.extra for each in asked if each.extra and each.extra not in DEVELOPERS):
        parts = [each for each in asked if each.extra == extra]
        wrong = ", ".join(f"{each.name} {each.complaint}" for each in parts if each.complaint)
        there = ", ".join(f"{each.name} {each.version}" for each in parts)
        yield f"  {extra}: {wrong}: pip install 'vitrail[{extra}]'" if wrong else f"  {extra}: {there}"


def _of_devices(found: Probed, names: Registry) -> Iterator[str]:
    yield from ("", "Devices", *(f"  {line}" for line in found.devices or ["unknown, without torch"]), "", "Ranks")
    for entry in names.entries("comm"):
        known = not found.devices and entry.name in ("gloo", "nccl")
        reason = "unknown, without torch" if known else found.comm.get(entry.name, "")
        yield f"  {entry.name}: {reason or 'can start'}"


def _of_plugins(names: Registry) -> Iterator[str]:
    yield from ("", "Plugins")
    yield from (f"  {plugin}, from {source}" for plugin, source in names.plugins.items())
    for each in names.failures:
        state = "refused" if each.stops else "cannot be loaded"
        yield f"  {each.plugin}, from {each.distribution}: {state}: {first_line(each.error)}"


def _of_models(names: Registry) -> Iterator[str]:
    """Yield the registered models and those in the hub's cache that are in diffusers' layout, with their class."""
    yield from ("", "Models")
    yield from (f"  {entry.name}, from plugin {entry.plugin}" for entry in names.entries("models"))
    try:
        cache = Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)
    except Exception as error:
        yield f"  the hub's cache is unknown: {type(error).__name__}: {first_line(str(error))}"
        return
    found = {index.parents[2].name: index for index in sorted(cache.glob("models--*/snapshots/*/model_index.json"))}
    for folder, index in found.items():
        yield f"  {folder.removeprefix('models--').replace('--', '/')}, {_pipeline_of(index)}, in the hub's cache"
    yield f"  hub's cache: {cache}{'' if cache.is_dir() else ', which is not there'}"


def _pipeline_of(index: Path) -> str:
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return "with a damaged model_index.json"


def _of_settings(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the environment variables that change what a run does; of a secret, that it is set."""
    names = [name for name in sorted(environment) if SETTINGS.fullmatch(name)]
    told = [f"  {name} is set" if SECRET.fullmatch(name) else f"  {name}={environment[name]}" for name in names]
    yield from ("", "Environment", *(told or ["  nothing that a run looks at"]))


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _parts(version: str) -> tuple[int, ...]:
    """Return the release of a version as numbers, e.g. (2, 13, 0) of "2.13.0+cpu"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _signal(number: int) -> str:
    try:
        return f"the process was ended by {signal.Signals(number).name}"
    except ValueError:
        return f"the process was ended by signal {number}"


def _print(**message: object) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(message)}\n")
    sys.stdout.flush()
