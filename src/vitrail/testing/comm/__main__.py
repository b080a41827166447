"""``python -m vitrail.testing.comm MODULE:CLASS``: check all laws or some of them, or replay one program."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from vitrail.comm import Backend
from vitrail.errors import nearest
from vitrail.testing.comm import LAWS, Bench, Law, LawBroken, OnBackend, bench_of


def find(address: str) -> Callable[..., Backend]:
    """Import the backend class at MODULE:CLASS, with the current folder on the import path.

    Raises:
        SystemExit: If the address has another form.
    """
    module, _, name = address.partition(":")
    if not name:
        raise SystemExit(f"expected MODULE:CLASS, got {address!r}")
    sys.path.insert(0, str(Path.cwd()))
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return cast("Callable[..., Backend]", found)


def bench_at(address: str, examples: int = 0, timeout: float = 0.0) -> Bench:
    """Return the bench for the backend at MODULE:CLASS.

    Args:
        address: MODULE:CLASS.
        examples: Programs per law; 0 for the default.
        timeout: Seconds of one wait; 0 for the default.
    """
    bench = bench_of(find(address), examples, timeout)
    if isinstance(bench, OnBackend):  # the given address, which may differ from the module that defines the class
        bench.name, bench.address = address.rpartition(":")[2], address
    return bench


def chosen(words: Sequence[str]) -> list[Law]:
    """Return the laws whose ids begin with one of the words; all laws if there are no words.

    Raises:
        SystemExit: If a word is the beginning of no id.
    """
    for word in words:
        if not any(each.startswith(word) for each in LAWS):
            raise SystemExit(f"no law {word!r}{nearest(word, LAWS)}")
    return [each for name, each in LAWS.items() if not words or any(map(name.startswith, words))]


def tried(law: Law, bench: Bench, options: argparse.Namespace) -> bool | None:
    """Check a law and print the outcome.

    Args:
        law: The law.
        bench: The bench of the backend.
        options: The parsed command line.

    Returns:
        Whether the law holds; None if it does not apply to the backend's kind of ranks.
    """
    if bench.kind not in law.kinds:
        print(f"  skipped  {law.id:<20} is about {' and '.join(law.kinds)}")  # noqa: T201
        return None
    begin = time.monotonic()
    try:
        count = law.check(bench, examples=options.examples, seed=options.seed, replay=options.replay)
    except LawBroken as broken:
        print(f"  BROKEN   {law.id}\n\n{broken}\n")  # noqa: T201
        return False
    seconds = time.monotonic() - begin
    print(f"  holds    {law.id:<20} {law.statement} ({count} programs, {seconds:.1f} s)")  # noqa: T201
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0 if every law holds, else 1."""
    parser = argparse.ArgumentParser("python -m vitrail.testing.comm", description="Try the laws on a backend.")
    parser.add_argument("backend", metavar="MODULE:CLASS", help="as it is registered in the slot comm")
    parser.add_argument("--law", action="append", default=[], help="one law, by its id or the beginning of it")
    parser.add_argument("--examples", type=int, default=0, help="programs that each law tries")
    parser.add_argument("--timeout", type=float, default=0.0, help="seconds of one wait")
    parser.add_argument("--seed", type=int, default=None, help="of what is drawn")
    parser.add_argument("--replay", default="", help="the end of a message's last line: that program again")
    options = parser.parse_args(arguments)
    bench = bench_at(options.backend, options.examples, options.timeout)
    print(f"{bench.name}: ranks are {bench.kind}")  # noqa: T201
    went_well = [tried(law, bench, options) for law in chosen(options.law)]
    held, broken, skipped = (went_well.count(how) for how in (True, False, None))
    print(f"{held} laws hold, {broken} are broken, {skipped} are about something else")  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
