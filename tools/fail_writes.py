"""Provoke failures of writing a picture, and recover with the command that the error message names.

Usage: python tools/fail_writes.py [NAME ...]

A full disk, a removed folder, a mount that becomes read-only, a limit on the size of files (RLIMIT_FSIZE), names of 255
bytes and more, two runs with one output, a closed output or one without a reader, and a character that the terminal
cannot show. Every drill runs the program, prints its messages and the files that it kept, runs the command that it
names, and compares pixels and recipe with an undisturbed run. Mounts need root; without it, drills that need them are
reported as left out. The exit code is 1 if a picture was lost.
"""

import contextlib
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from attrs import evolve, frozen
from PIL import Image

from vitrail.sampling.recipe import read_recipe

FOX = ("sample", "a fox on a snow field", "--size", "128", "--steps", "2", "-m", "direct")
SMALL = 12_000  # bytes: more than the latents need, less than the picture
PLANNED = "evaluations of the network"  # printed after all checks, before the first step
GO_ON = re.compile(r"go on with `vitrail (.+)`")
AGAIN = re.compile(r"^again: vitrail (.+)$", re.MULTILINE)


class LeftOutError(Exception):
    """A drill is impossible on this machine."""


@frozen
class Said:
    """Outcome of a run: exit code and output."""

    code: int
    text: str

    def command(self, pattern: re.Pattern = GO_ON) -> list[str]:
        """Return the words of the command that the output names, parsed by a shell."""
        found = pattern.search(self.text)
        assert found, f"no command is named: {self.text}"
        script = 'for word in "$@"; do printf "%s\\0" "$word"; done'
        read = subprocess.run(
            ["bash", "-c", f"set -- {found[1]}; {script}"], capture_output=True, check=True, cwd="/", text=True
        )
        return read.stdout.split("\0")[:-1]


@frozen(kw_only=True)
class Surroundings:
    """Unusual conditions of the program's process.

    Attributes:
        variables: Environment variables.
        largest_file: Limit on the size of files in bytes.
        redirections: Redirections in a shell's syntax.
    """

    variables: tuple[tuple[str, str], ...] = ()
    largest_file: int | None = None
    redirections: str = ""

    def start(self, *words: str) -> subprocess.Popen:
        """Start the program in the working folder."""

        def limit() -> None:
            if self.largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest_file, self.largest_file))

        program = shlex.join([sys.executable, "-m", "vitrail", *words])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(Path("temporary").absolute())}
        return subprocess.Popen(
            ["bash", "-c", f"set -o pipefail; {program} {self.redirections}"],
            env={**environment, **dict(self.variables)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=limit,
        )

    def run(self, *words: str, then: Callable[[], None] | None = None) -> Said:
        """Run the program to its end.

        Args:
            words: Arguments of the command.
            then: Called after the run's checks, before it writes anything.
        """
        process, said = self.start(*words), ""
        for line in process.stdout:
            said += line
            if PLANNED in line and then is not None:
                then()
        return Said(process.wait(), said)


PLAIN = Surroundings()


@contextlib.contextmanager
def mounted(kib: int) -> Iterator[Path]:
    """Mount a file system of ``kib`` KiB and yield its folder.

    Raises:
        LeftOutError: If mounting is not permitted.
    """
    place = Path("disk").absolute()
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise LeftOutError(f"no mount: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@frozen
class Drills:
    """The drills; each runs in an empty folder and returns a description, or raises AssertionError.

    Attributes:
        whole: Picture of an undisturbed run.
    """

    whole: Path

    def same(self, path: str | Path) -> None:
        """Assert that a picture has the pixels and the recipe of the undisturbed one."""
        with Image.open(path) as one, Image.open(self.whole) as other:
            assert one.tobytes() == other.tobytes(), f"{path}: other pixels"
        assert read_recipe(Path(path)) == read_recipe(self.whole), f"{path}: another recipe"

    def finish(self, said: Said, kept: Path, path: Path | None = None) -> str:
        """Run the command that a failed run names, and compare its picture.

        Args:
            said: Outcome of the failed run.
            kept: Latents that must exist.
            path: Path of the resulting picture; the one in the command if None.
        """
        assert said.code == 1, said
        assert "Traceback" not in said.text, said.text
        assert kept.exists(), f"no {kept}: {said.text}"
        words = said.command()
        done = PLAIN.run(*words)
        assert done.code == 0, done.text
        self.same(path or words[words.index("-o") + 1])
        return f"{told(said)}\n  kept {kept.name}; `vitrail {shlex.join(words)}` made the same picture"

    def full_disk(self) -> str:
        """Fill the disk so that the latents fit but not the picture, and then so that neither fits."""
        with mounted(kib=SMALL // 1024) as disk:
            said = PLAIN.run(*FOX, "-o", f"{disk}/fox.png")
            assert "No space left on device" in said.text, said.text
            assert [each.name for each in disk.iterdir()] == ["fox.latents.safetensors"], list(disk.iterdir())
            kept = disk / "fox.latents.safetensors"
            words = said.command()
            out = str(Path("fox.png").absolute())
            done = PLAIN.run(*(out if word == f"{disk}/fox.png" else word for word in words))  # the disk is still full
            assert done.code == 0, done.text
            self.same(out)
            seen = f"{told(said)}\n  kept {kept.name}; with another -o, `vitrail decode` made the same picture"
        shutil.rmtree("disk")
        with mounted(kib=4) as disk:
            said = PLAIN.run(*FOX, "-o", f"{disk}/fox.png", then=lambda: fill(disk))
            (disk / "filled").unlink()
            subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
            return f"{seen}\n  {self.finish(said, Path('temporary/fox.latents.safetensors'))}"

    def folder_removed(self) -> str:
        """Remove the output folder while the run samples, and restore it before recovering."""
        Path("away").mkdir()
        said = PLAIN.run(*FOX, "-o", "away/fox.png", then=lambda: shutil.rmtree("away"))
        Path("away").mkdir()
        return self.finish(said, Path("temporary/fox.latents.safetensors"), Path("away/fox.png"))

    def mount_read_only(self) -> str:
        """Make the mount read-only while the run samples."""
        with mounted(kib=1024) as disk:
            read_only = ["mount", "-o", "remount,ro", str(disk)]
            said = PLAIN.run(*FOX, "-o", f"{disk}/fox.png", then=lambda: subprocess.run(read_only, check=True))
            assert "Read-only file system" in said.text, said.text
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            return self.finish(said, Path("temporary/fox.latents.safetensors"))

    def size_limit(self) -> str:
        """Limit the size of files below that of the picture."""
        said = Surroundings(largest_file=SMALL).run(*FOX, "-o", "fox.png")
        assert "File too large" in said.text, said.text
        return self.finish(said, Path("fox.latents.safetensors"))

    def long_name(self) -> str:
        """Use a name of 255 bytes, which works, also if only latents fit; 256 bytes must be refused at the start."""
        name = "n" * 251 + ".png"
        said = PLAIN.run(*FOX, "-o", name)
        assert said.code == 0, said.text
        self.same(name)
        Path(name).unlink()
        limited = Surroundings(largest_file=SMALL).run(*FOX, "-o", name)
        (kept,) = Path().glob("*.latents.safetensors")
        seen = self.finish(limited, kept)
        refused = PLAIN.run(*FOX, "-o", "n" + name)
        assert refused.code == 2, refused
        assert "a name in it may have 255 bytes" in refused.text, refused.text
        return f"{seen}\n  256 bytes: {told(refused)[:160]}"

    def one_output(self) -> str:
        """Start two runs with one output name that is free at the start of both."""
        both = [PLAIN.start(*FOX, "-o", "fox.png") for _ in range(2)]
        ends = [Said(code=process.wait(), text=process.stdout.read()) for process in both]
        assert sorted(each.code for each in ends) == [0, 1], ends
        self.same("fox.png")
        (said,) = (each for each in ends if each.code)
        seen = self.finish(said, Path("fox.latents.safetensors"))
        self.same("fox.png")
        return seen

    def closed_output(self) -> str:
        """Close stdout, stderr or both, or end the reader of a pipe."""
        for number, way in enumerate((">&-", "2>&-", ">&- 2>&-", "| head -n 1")):
            done = Surroundings(redirections=way).run(*FOX, "-o", f"{number}.png")
            assert done.code == 0, f"{way}: {done}"
            assert "Traceback" not in done.text, f"{way}: {done}"
            self.same(f"{number}.png")
        return "the pictures were made"

    def unknown_character(self) -> str:
        """Use a file name that an ASCII terminal cannot show; the named commands must work."""
        ascii_only = Surroundings(variables=(("PYTHONIOENCODING", "ascii"),))
        done = ascii_only.run(*FOX, "-o", "狐.png")
        assert done.code == 0, done.text
        self.same("狐.png")
        again = PLAIN.run(*done.command(AGAIN), "-o", "again.png")
        assert again.code == 0, f"{told(done)}\n{again.text}"
        self.same("again.png")
        Path("狐.png").unlink()
        limited = evolve(ascii_only, largest_file=SMALL).run(*FOX, "-o", "狐.png")
        return self.finish(limited, Path("狐.latents.safetensors"), Path("狐.png"))


def fill(disk: Path) -> None:
    """Fill a disk completely."""
    with contextlib.suppress(OSError), (disk / "filled").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def told(said: Said) -> str:
    """Return the lines of a run's output on the error and on how to continue."""
    return "\n  ".join(line for line in said.text.splitlines() if "cannot be" in line or "go on with" in line)


NAMES = [name for name in vars(Drills) if not name.startswith("_") and name not in ("same", "finish", "whole")]


def main(names: Annotated[list[str] | None, typer.Argument(help="Of drills; all if none.")] = None) -> None:
    """Run the drills and print their outcomes; the exit code is 1 if one failed."""
    wrong = 0
    with tempfile.TemporaryDirectory() as base, contextlib.chdir(base):
        Path("temporary").mkdir()
        done = PLAIN.run(*FOX, "-o", "whole.png")
        assert done.code == 0, done.text
        drills = Drills(Path("whole.png").absolute())
        for name in names or NAMES:
            folder = Path(base) / name
            (folder / "temporary").mkdir(parents=True)
            with contextlib.chdir(folder):
                try:
                    seen = f"done\n  {getattr(drills, name)()}"
                except LeftOutError as error:
                    seen = f"left out: {error}"
                except (AssertionError, ValueError) as error:
                    wrong, seen = wrong + 1, f"WRONG: {error}"
            print(f"{name}: {seen}", flush=True)
    print(f"{len(names or NAMES)} drills, {wrong} wrong")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    typer.run(main)
