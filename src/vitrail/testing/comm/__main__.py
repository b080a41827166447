"""``python -m vitrail.testing.comm MODULE:CLASS``: every law, or one of them, or one program again."""

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
    """The class at MODULE:CLASS, from the folder one is in, too."""
    module, _, name = address.partition(":")
    if not name:
        raise SystemExit(f"expected MODULE:CLASS, got {address!r}")
    sys.path.insert(0, str(Path.cwd()))
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return cast("Callable[..., Backend]", found)


def bench_at(address: str, examples: int = 0, timeout: float = 0.0) -> Bench:
    """What to try the laws of the backend at MODULE:CLASS on."""
    bench = bench_of(find(address), examples, timeout)
    if isinstance(bench, OnBackend):  # as it was found, which may be another place than where it was made
        bench.name, bench.address = address.rpartition(":")[2], address
    return bench


def chosen(words: Sequence[str]) -> list[Law]:
    """The laws whose ids begin with one of these words; all of them if there are none."""
    for word in words:
        if not any(each.startswith(word) for each in LAWS):
            raise SystemExit(f"no law {word!r}{nearest(word, LAWS)}")
    return [each for name, each in LAWS.items() if not words or any(map(name.startswith, words))]


def tried(law: Law, bench: Bench, options: argparse.Namespace) -> bool | None:
    """Try a law and say how it went; None if it is about something else."""
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
    """0 if every law holds, else 1."""
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
