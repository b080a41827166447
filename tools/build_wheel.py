"""Build the source archive from a clean copy of the repository's files, and the wheel from the archive alone.

Usage: python tools/build_wheel.py --out dist

A file that the archive lacks is missing in the wheel, too, and nothing of the working folder gets into either. Needs
setuptools, which torch brings along, and no network.
"""

import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[1]
BACKEND = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
OLDEST = 77  # setuptools that knows licences as expressions
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def lacking():
    """What is missing to build; "" if nothing is."""
    try:
        import setuptools
    except ImportError:
        return f"setuptools, {OLDEST} or newer"
    if int(setuptools.__version__.partition(".")[0]) < OLDEST:
        return f"setuptools {OLDEST} or newer, {setuptools.__version__} is installed"
    return "" if (ROOT / ".git").exists() else "the repository, whose list of files says what belongs in"


def files():
    """Return the repository's files, new ones that are not ignored included, relative to its root."""
    command = [shutil.which("git"), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def archive(out, scratch):
    """Build the source archive.

    Args:
        out: Folder of the archive.
        scratch: Empty folder for the copy.
    """
    for name in files():
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, scratch / name)
    _call("build_sdist", out, scratch)
    return out / f"vitrail-{VERSION}.tar.gz"


def wheel(source, out, scratch):
    """Build the wheel.

    Args:
        source: The source archive.
        out: Folder of the wheel.
        scratch: Empty folder to unpack in.
    """
    with tarfile.open(source) as packed:
        packed.extractall(scratch, filter="data")
    _call("build_wheel", out, scratch / f"vitrail-{VERSION}")
    return out / f"vitrail-{VERSION}-py3-none-any.whl"


def _call(hook, out, folder):
    done = subprocess.run(
        [sys.executable, "-P", "-c", BACKEND, hook, str(out.resolve())], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{hook}: {done.stdout}{done.stderr}")


def main(out: Annotated[Path, typer.Option(help="Folder of archive and wheel.")] = Path("dist")) -> None:
    """Build both, and tell their sizes."""
    import tempfile

    if lack := lacking():
        raise SystemExit(f"missing: {lack}")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as copied, tempfile.TemporaryDirectory() as unpacked:
        source = archive(out, Path(copied))
        for built in (source, wheel(source, out, Path(unpacked))):
            print(f"{built}: {built.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
