"""Hostile and absurd files and command lines: each is answered clearly, soon and in little memory.

    python tools/fuzz.py --configs 5000 --command-lines 2000 --seed 1

Files are drawn from the schema of configurations and command lines from the parser, so that what is new in either is
drawn at once; a corpus of past findings goes first. A case fails on an exception that came through, on more than ten
seconds or a gibibyte, and on an answer without a reason. Findings of a kind are told once, with a case that shows it.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from attrs import define, field
from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzzing import command_lines, configs, workers
from fuzzing.cases import Case, Outcome
from fuzzing.corpus import CORPUS

EVERY = 100  # cases, after which it says how far it is


@define
class Tally:
    """What came of many cases.

    Attributes:
        count: Of cases.
        codes: Exit codes with their counts.
        findings: What was wrong, with the first case that shows it.
        slowest: Seconds, and the case.
        largest: Mebibytes, and the case.
    """

    count: int = 0
    codes: Counter = field(factory=Counter)
    findings: dict[str, Case] = field(factory=dict)
    slowest: tuple[float, Case | None] = (0.0, None)
    largest: tuple[float, Case | None] = (0.0, None)

    def add(self, case: Case, outcome: Outcome, wrong: str = "") -> None:
        """One more."""
        self.count += 1
        self.codes[outcome.code] += 1
        if outcome.seconds > self.slowest[0]:
            self.slowest = outcome.seconds, case
        if outcome.mebibytes > self.largest[0]:
            self.largest = outcome.mebibytes, case
        if self.count % EVERY == 0:
            sys.stderr.write(f"{self.count} cases, {len(self.findings)} kinds of findings\n")
        finding = outcome.finding or wrong
        if finding and finding not in self.findings:
            self.findings[finding] = case
            sys.stdout.write(f"FINDING {finding}\n  {case}\n")
            sys.stdout.flush()

    def lines(self, name: str) -> list[str]:
        """For the terminal."""
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items(), key=str))
        told = [f"{name}: {self.count} cases, {len(self.findings)} kinds of findings; exit codes {codes}"]
        for what, unit, (most, case) in (("slowest", "s", self.slowest), ("most memory", "MiB", self.largest)):
            told.append(f"  {what} {most:.2f} {unit}: {str(case).splitlines()[0][:200]}")
        return told


def answers(case: Case, part: str, outcome: Outcome) -> str:
    """What is wrong with the answer to a case of the corpus, "" if nothing is."""
    told = outcome.finding
    if not told and part not in outcome.err + outcome.out:
        told = f"{part!r} is not in the answer {(outcome.err or outcome.out)[-300:]!r}"
    return told


def drawn(cases: object, count: int, number: int, add: Callable[[Case], None]) -> None:
    """Have as many cases drawn, by a seed."""

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def draw(case: Case) -> None:
        add(case)

    draw()


def main() -> None:
    """Corpus, files and command lines."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--configs", type=int, default=200, help="files to draw")
    asked.add_argument("--command-lines", type=int, default=100, help="command lines to draw")
    asked.add_argument("--seed", type=int, default=0, help="of all chance")
    asked.add_argument("--no-corpus", action="store_true", help="leave past findings out")
    options = asked.parse_args()
    begin = time.monotonic()
    workers.warm_up()
    every = {}
    if not options.no_corpus:
        every["corpus"] = tally = Tally()
        for name, (case, part) in CORPUS.items():
            outcome = workers.run(case)
            wrong = answers(case, part, outcome)
            tally.add(case, outcome, wrong and f"{name}: {wrong}")
    for name, cases, count in (
        ("configs", configs.cases(), options.configs),
        ("command lines", command_lines.cases(), options.command_lines),
    ):
        every[name] = tally = Tally()
        if count:
            drawn(cases, count, options.seed, lambda case, tally=tally: tally.add(case, workers.run(case)))
    for name, tally in every.items():
        sys.stdout.write("\n".join(tally.lines(name)) + "\n")
    sys.stdout.write(f"{time.monotonic() - begin:.0f} s; folders were under {Path(tempfile.gettempdir())}\n")
    raise SystemExit(1 if any(tally.findings for tally in every.values()) else 0)


if __name__ == "__main__":
    main()
