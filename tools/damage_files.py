"""Damage files at random places and use them by the command line: each is refused in one message or works unchanged.

Usage: PYTHONPATH=tests/support python tools/damage_files.py [--count 500] [--seed 0] [--only 17]

Tiny networks and their results: a checkpoint, saved latents, a picture with its recipe and a recipe with damaged text;
a model as a folder and as one file; pictures to start from. A damaged copy is given to the command that reads it, in
this process, with limits of time and memory. Files with a digest (the first four) must be refused with one error or
give the same pixels; a model or a foreign picture has none and may give other pixels. Nothing may end in a Python
traceback, exceed the limits or run a program. Prints one line for each case that does, and a table; the exit code is 1
if there was one.
"""

import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from attrs import frozen
from PIL import Image, PngImagePlugin

from damages import DAMAGES, Damage

SECONDS, BYTES = 60, 3 * 2**30  # limits of one use
SIZE = ("--size", "128")
SAMPLE = ("sample", "a fox", *SIZE, "--steps", "3", "--row-batch", "2", "-m")
QUICK = ("sample", "a fox", "--size", "64", "--steps", "2", "-m", "direct")
FORMATS = ("png", "jpg", "webp", "tiff", "gif", "bmp")
RUNNING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect")


class TooLongError(BaseException):
    """A use exceeded the time limit."""


@frozen
class Kind:
    """Files of one kind.

    Attributes:
        name: Name in the table.
        files: Files of the corpus that may be damaged.
        words: Arguments of the command that uses them, in their folder; ``{}`` is the damaged file.
        whole: Picture that must result; "" if others are allowed.
    """

    name: str
    files: tuple[str, ...]
    words: tuple[str, ...]
    whole: str = ""


@frozen
class Use:
    """Outcome of a command.

    Attributes:
        code: Exit code; None if it raised.
        said: Its output to stderr.
        error: The exception that it raised.
        ran: Programs that it started, classes that a pickle named, and addresses that it connected to.
    """

    code: int | None
    said: str
    error: BaseException | None = None
    ran: tuple[str, ...] = ()

    def fault(self) -> str:
        """Describe what is wrong with the outcome; "" if nothing is."""
        if self.error is not None:
            return f"{type(self.error).__name__}: {self.error}"
        if self.ran:
            return f"ran {', '.join(self.ran)}"
        if self.code and (not self.said.startswith("Error: ") or "\nError: " in self.said):
            return f"ended with {self.code} and said {self.said!r}"
        return f"said {self.said!r}" if not self.code and self.said else ""


@frozen
class Case:
    """One damaged file and its outcome: "refused", "same", "other" or a description of the fault."""

    number: int
    kind: str
    file: str
    damage: str
    outcome: str
    trace: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether the outcome is a fault."""
        return self.outcome not in ("refused", "same", "other")


_ran: list[str] = []  # audited events since the last use began


def _note(event: str, arguments: tuple) -> None:
    if event in RUNNING:
        _ran.append(f"{event} {arguments[:2]}")


def use(words: list[str]) -> Use:
    """Run a command line in this process and working folder, with limits of time and memory."""
    from vitrail.cli import app as cli

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv, code, caught = ["vitrail", *words], None, None
    _ran.clear()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), bounded():
            cli.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:  # a panic in Rust is not an Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        caught = error
    finally:
        sys.argv = before
    return Use(code, err.getvalue(), caught, tuple(_ran))


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Limit a block's time, and its memory beyond that in use.

    Raises:
        TooLongError: After ``SECONDS``.
    """

    def ring(*_: object) -> None:
        raise TooLongError(f"more than {SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, memory[1]))
    left, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)  # rest of a timer that was set before
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left)
        resource.setrlimit(resource.RLIMIT_AS, memory)


@frozen
class Corpus:
    """Undamaged files of every kind in a folder.

    Attributes:
        folder: The folder.
        kinds: Kinds of files and the commands that use them.
    """

    folder: Path
    kinds: tuple[Kind, ...]

    @classmethod
    def make(cls, folder: Path) -> "Corpus":
        """Build a tiny model, sample with it, and check that every undamaged file works.

        Raises:
            SystemExit: If one does not.
        """
        from original_format import save_single_file
        from tiny import tiny_pipeline

        pipe = tiny_pipeline()
        pipe.save_pretrained(folder / "model")
        (folder / "model/vitrail.json").write_text('{"height": 64, "num_inference_steps": 2}')
        save_single_file(pipe, folder / "model.safetensors")
        for suffix in FORMATS:
            _draw(folder / f"start.{suffix}")
        with contextlib.chdir(folder):
            _make_results()
        made = cls(folder, _kinds(folder))
        for kind in made.kinds:
            outcome = made.outcome_of(kind, kind.files[0])[0]
            if outcome not in ("same", "other"):
                raise SystemExit(f"a whole {kind.name} is no good: {outcome}")
        return made

    def case(self, number: int, seed: int = 0, trace: bool = False) -> Case:
        """Damage a file at random and use it.

        Args:
            number: Number of the case, which with the seed determines the file and the damage.
            seed: Seed of all cases.
            trace: Whether to keep the traceback of an error.
        """
        chance = Random(f"{seed} {number}")
        kind = self.kinds[number % len(self.kinds)]
        file, damage = chance.choice(kind.files), chance.choice(DAMAGES)
        outcome, done = self.outcome_of(kind, file, lambda path: self._damage(path, kind, damage, chance))
        lines = traceback.format_exception(done.error) if trace and done.error else [done.said]
        return Case(number, kind.name, file, damage.__name__, outcome, "".join(lines))

    def outcome_of(self, kind: Kind, file: str, spoil: Callable[[Path], None] | None = None) -> tuple[str, Use]:
        """Use a file in a copy of the corpus.

        Args:
            kind: Kind of the file.
            file: Path of the file in the corpus.
            spoil: Damages the file; None uses it undamaged.
        """
        with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
            shutil.copytree(self.folder, name, dirs_exist_ok=True, copy_function=os.link)
            if spoil is not None:
                spoil(Path(file))
            done = use([word.format(file) for word in kind.words])
            return self.outcome(kind, done), done

    def _damage(self, file: Path, kind: Kind, damage: Damage, chance: Random) -> None:
        other = (self.folder / chance.choice(chance.choice(self.kinds).files)).read_bytes()
        if kind.name == "recipe's text":
            with Image.open(file) as image:
                text = image.info["vitrail.run"].encode()
                info = PngImagePlugin.PngInfo()
                info.add_itxt("vitrail.run", damage(text, other, chance).decode(errors="replace")[:900_000])
                image.load()
            file.unlink()
            image.save(file, pnginfo=info)
            return
        data = damage(file.read_bytes(), other, chance)
        file.unlink()  # a hard link to the undamaged file
        file.write_bytes(data)

    def outcome(self, kind: Kind, done: Use) -> str:
        """Classify a use in the working folder: "refused", "same", "other" or a description of the fault."""
        if fault := done.fault():
            return fault
        if done.code:
            return "refused"
        if not Path("out.png").exists():
            return "no picture, and no error"
        same = kind.whole and _pixels(Path("out.png")) == _pixels(self.folder / kind.whole)
        Path("out.png").unlink()
        return "same" if same else "silently wrong" if kind.whole else "other"


def _kinds(folder: Path) -> tuple[Kind, ...]:
    parts = tuple(str(file.relative_to(folder)) for file in sorted((folder / "model").rglob("*")) if file.is_file())
    model, out = ("--model", "model"), ("-o", "out.png")
    go_on = (*SAMPLE, "demofusion", *model, "--checkpoint", "{}", *out)
    return (
        Kind("checkpoint", ("run.ckpt",), go_on, "grown.png"),
        Kind("model folder", parts, (*QUICK, *model, *out)),
        Kind("latents", ("fox.latents.safetensors",), ("decode", "{}", *model, *out), "fox.png"),
        Kind("picture", tuple(f"start.{each}" for each in FORMATS), (*QUICK, *model, "--image", "{}", *out)),
        Kind("recipe", ("fox.png",), ("replay", "{}", *model, *out), "fox.png"),
        Kind("model file", ("model.safetensors",), (*QUICK, "--model", "{}", "--model-config", "model", *out)),
        Kind("recipe's text", ("fox.png",), ("replay", "{}", *model, *out), "fox.png"),
    )


def _draw(file: Path) -> None:
    """Write a picture with metadata, as far as its format has any."""
    image = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "a fox"  # orientation, description
    more = {"exif": exif} if file.suffix in (".png", ".jpg", ".webp") else {}
    image.save(file, **more)


def _make_results() -> None:
    """Write a checkpoint, saved latents, a picture with its recipe, and the pictures that must result from them."""
    from vitrail.cli import arguments
    from vitrail.sampling.kept_latents import save_latents
    from vitrail.sampling.recipe import save_picture
    from vitrail.sampling.sampler import Sampler, Spread

    given = {"prompt": "a fox", "model": "model", "num_inference_steps": 3, "row_batch": 2}

    def sampled(method: str, stop: int | None = None, spread: Spread | None = None) -> Sampler:
        run, composition = arguments.prepare({**given, "method": method}, "128")
        sampler = Sampler.of(run, composition)

        def watch(_: object, index: int, *__: object) -> dict:
            if index == stop:
                sampler.interrupt()
            return {}

        return sampler.run(run, watch, spread=spread)

    fox, grown = sampled("multidiffusion"), sampled("demofusion")
    save_picture(fox.images[0], fox.recipes[0], Path("fox.png"))
    save_latents(fox.latents, fox.recipes[0], Path("fox.latents.safetensors"))
    save_picture(grown.images[0], grown.recipes[0], Path("grown.png"))
    sampled("demofusion", stop=4, spread=Spread(checkpoint=Path("run.ckpt")))


def _pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def main(
    count: Annotated[int, typer.Option(help="Cases.")] = 500,
    seed: Annotated[int, typer.Option(help="Of places and damages.")] = 0,
    only: Annotated[int | None, typer.Option(help="The number of one case, with Python's trace.")] = None,
) -> None:
    """Print the faults and the table; the exit code is 1 if there are faults."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.addaudithook(_note)
    table: dict[str, Counter] = {}
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        corpus = Corpus.make(Path(name))
        for number in range(count) if only is None else [only]:
            case = corpus.case(number, seed, trace=only is not None)
            column = "fault" if case.is_fault else case.outcome
            table.setdefault(case.kind, Counter()).update([column])
            if case.is_fault or only is not None:
                faults += case.is_fault
                print(f"{number}: {case.file}: {case.damage}: {case.outcome[:400]}\n{case.trace}", flush=True)
    columns = ("refused", "same", "other", "fault")
    print(f"| {' | '.join(('kind', 'cases', *columns))} |\n|---|{'--:|' * (len(columns) + 1)}")
    for kind, found in table.items():
        print(f"| {kind} | {found.total()} | {' | '.join(str(found[column]) for column in columns)} |")
    raise SystemExit(faults > 0)


if __name__ == "__main__":
    typer.run(main)
