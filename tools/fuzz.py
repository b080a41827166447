"""Fuzz the command line with hostile files and arguments: each must get a clear answer, fast and in little memory.

    python tools/fuzz.py --configs 5000 --command-lines 2000 --seed 1

Files are drawn from the schema of configurations and command lines from the parser, so that new fields and options are
covered without changes here; a corpus of past findings runs first. A case fails on an uncaught exception, on more than
ten seconds or a gibibyte, and on an error without a reason. Each kind of finding is reported once, with an example.
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

EVERY = 100  # cases between two progress reports


@define
class Tally:
    """Outcomes of many cases.

    Attributes:
        count: Number of cases.
        codes: Number of cases by exit code.
        findings: Descriptions of faults, with the first case of each.
        slowest: Longest time in seconds, and its case.
        largest: Largest memory in MiB, and its case.
    """

    count: int = 0
    codes: Counter = field(factory=Counter)
    findings: dict[str, Case] = field(factory=dict)
    slowest: tuple[float, Case | None] = (0.0, None)
    largest: tuple[float, Case | None] = (0.0, None)

    def add(self, case: Case, outcome: Outcome, wrong: str = "") -> None:
        """Add a case.

        Args:
            case: The case.
            outcome: Its outcome.
            wrong: Description of a fault that the outcome itself does not show.
        """
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
        """Return the summary as lines of text."""
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items(), key=str))
        told = [f"{name}: {self.count} cases, {len(self.findings)} kinds of findings; exit codes {codes}"]
        for what, unit, (most, case) in (("slowest", "s", self.slowest), ("most memory", "MiB", self.largest)):
            told.append(f"  {what} {most:.2f} {unit}: {str(case).splitlines()[0][:200]}")
        return told


def answers(case: Case, part: str, outcome: Outcome) -> str:
    """Describe what is wrong with the answer to a case of the corpus; "" if nothing is.

    Args:
        case: The case.
        part: Text that the answer must contain.
        outcome: Its outcome.
    """
    told = outcome.finding
    if not told and part not in outcome.err + outcome.out:
        told = f"{part!r} is not in the answer {(outcome.err or outcome.out)[-300:]!r}"
    return told


def drawn(cases: object, count: int, number: int, add: Callable[[Case], None]) -> None:
    """Draw cases.

    Args:
        cases: Hypothesis strategy of cases.
        count: Number of cases.
        number: Seed.
        add: Called with each case.
    """

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
    """Run the corpus, drawn files and drawn command lines, and print a summary; the exit code is 1 after findings."""
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
