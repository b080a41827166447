"""Send signals to real runs on several ranks, and check that they end soon, name the culprit and leave nothing behind.

    python tools/inject_failures.py --count 40 --seed 0

Each injection samples a small picture with the demo model, on two or three ranks, and sends one signal to one process
in one phase. A run may fail without a picture, or succeed with the bytes of an undisturbed run's picture. Seconds count
from the signal to the end of the last process; a stopped rank is noticed after --timeout, which is subtracted. A first
Ctrl-C is no fault: it stops after a whole step, which before the first one comes after the loading, so it may take
longer than a fault. torchrun gives a stopped rank 30 seconds to end by itself, which are subtracted, too. Needs Linux
and an installed Vitrail.
"""

import argparse
import collections
import contextlib
import math
import os
import random
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from attrs import define, field, frozen

from processes import MARK, kill_all, listeners, processes, ranks, shared_memory, still_listening

PHASES = ("startup", "joining", "step", "decode", "write", "launcher", "torchrun")
SIGNALS = ("KILL", "STOP", "TERM", "INT")
TIMEOUT_S, TORCHRUN_S = 4.0, 20.0  # --timeout of the runs; under torchrun ranks may load for as long as others wait
TORCHRUNS_S = 30.0  # that torchrun gives a rank to end by itself
LOADING_S = 15.0  # maximum time that ranks load before they wait for a stopped one, on a busy machine
LIMIT_S = 2.0  # maximum time from a fault until all processes have ended
STOPPED_EARLY = 130  # exit code of a run that Ctrl-C stopped after a whole step
PATIENCE_S = 300.0  # maximum wait for a phase to begin or a run to end
CONTINUED_S = 1.5  # after which a stopped launcher is continued
SIZE, STEPS = 192, 8
SAMPLE = ["sample", "a fox on a snow field", "--size", SIZE, "--steps", STEPS, "--method", "multidiffusion"]
SAMPLE += ["--row-batch", 1, "-o", "fox.png"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]
MOMENT = {"startup": 1.5, "joining": 0.6, "step": 0.1, "decode": 0.1, "write": 0.02, "launcher": 6.0, "torchrun": 8.0}


@frozen
class Injection:
    """A signal to send.

    Attributes:
        phase: Phase of the run, one of ``PHASES``.
        signal: Name of the signal, one of ``SIGNALS``.
        world: Number of ranks.
        victim: The rank that receives it; -1 for the process that started the ranks.
        later: Seconds after the beginning of the phase.
        step: Step of the phase "step".
    """

    phase: str
    signal: str
    world: int
    victim: int
    later: float
    step: int


@frozen
class Found:
    """Outcome of a run."""

    code: int | None  # exit code; None if it did not end
    seconds: float
    told: str
    is_sound: bool  # whether there is no picture, or the right one
    is_named: bool | None  # whether the output names the culprit; None where there is none to name
    left: tuple[str, ...]

    @property
    def is_wrong(self) -> bool:
        """Whether it hung, made a wrong picture, named nobody, left something behind or ended late."""
        is_late = self.code not in (0, STOPPED_EARLY) and self.seconds > LIMIT_S
        return self.code is None or not self.is_sound or self.is_named is False or bool(self.left) or is_late


@define
class Run:
    """A running command with its output, processes and ports."""

    folder: Path
    world: int
    under_torchrun: bool = False
    mark: str = field(factory=lambda: secrets.token_hex(8))
    process: subprocess.Popen = None
    said: list = field(factory=list)
    gave_up: float = math.nan  # moment of the first message of an error
    ports: set = field(factory=set)
    pids: set = field(factory=set)
    _threads: list = field(factory=list)

    @property
    def timeout(self):
        """Seconds that the run's ranks wait for each other."""
        return TORCHRUN_S if self.under_torchrun else TIMEOUT_S

    def start(self):
        """Start the command and threads that read its output."""
        words = ["-m", "vitrail", *SAMPLE, "--timeout", self.timeout]
        if self.under_torchrun:
            words = [*TORCHRUN, f"--nproc-per-node={self.world}", *words]
        elif self.world > 1:
            words += ["--ranks", self.world]
        (self.folder / "temporary").mkdir()
        more = {MARK: self.mark, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.folder / "temporary")}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=self.folder,
            env={**os.environ, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for stream in (self.process.stdout, self.process.stderr):
            self._threads.append(threading.Thread(target=self._listen, args=(stream,), daemon=True))
            self._threads[-1].start()
        return self

    def _listen(self, stream):
        for line in stream:
            self.said.append(line)
            if "Error:" in line and math.isnan(self.gave_up):
                self.gave_up = time.monotonic()

    def text(self):
        """Return the output so far."""
        return "".join(self.said)

    def look(self):
        """Record the processes of the run and the ports on which they listen."""
        living = processes(self.mark)
        self.pids |= set(living)
        self.ports |= {each.port for each in listeners(living)}
        return living

    def wait(self, happened):
        """Wait for a condition, and return whether it became true before the run ended."""
        limit = time.monotonic() + PATIENCE_S
        while not happened():
            if self.process.poll() is not None or time.monotonic() > limit:
                return False
            time.sleep(0.002)
        return True

    def end(self):
        """Wait until every process has ended, and kill those that do not; return whether all ended by themselves."""
        limit = time.monotonic() + PATIENCE_S
        while self.process.poll() is None or processes(self.mark):
            if time.monotonic() > limit:
                kill_all(self.mark)
                self.process.wait()
                return False
            time.sleep(0.01)
        for thread in self._threads:
            thread.join(5)
        return True


def arrive(run, injection):
    """Wait for the moment of an injection, and return whether its phase has begun."""
    begun = {
        "startup": lambda: len(ranks(run.mark)) == injection.world,
        "joining": lambda: "evaluations of the network" in run.text(),
        "step": lambda: f"step {injection.step}/" in run.text() or ", decoding" in run.text(),
        "decode": lambda: ", decoding" in run.text(),
        "write": lambda: any(run.folder.glob(".vitrail-*")),
        "launcher": lambda: len(ranks(run.mark)) == injection.world,
        "torchrun": lambda: len(ranks(run.mark)) == injection.world,
    }[injection.phase]
    has_come = run.wait(begun)
    time.sleep(injection.later)
    return has_come


def inject(injection, whole):
    """Run once and send one signal; return the outcome. ``whole`` is the undisturbed picture as bytes."""
    with tempfile.TemporaryDirectory() as name:
        run = Run(Path(name), injection.world, injection.phase == "torchrun").start()
        try:
            arrive(run, injection)
            run.look()
            victim = run.process.pid if injection.victim < 0 else ranks(run.mark).get(injection.victim)
            begin = time.monotonic()
            if victim is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, getattr(signal, f"SIG{injection.signal}"))
            if injection.victim < 0 and injection.signal == "STOP":
                time.sleep(CONTINUED_S)
                begin = time.monotonic()
                os.kill(victim, signal.SIGCONT)
            has_ended = run.end()
            return judged(injection, run, begin, has_ended, whole)
        finally:
            kill_all(run.mark)


def judged(injection, run, begin, has_ended, whole):
    """Evaluate a run that has just ended.

    Args:
        injection: The signal that was sent.
        run: The run.
        begin: Moment of the signal.
        has_ended: Whether all processes ended by themselves.
        whole: Bytes of the undisturbed picture.
    """
    seconds = time.monotonic() - begin
    code, told, picture = run.process.returncode, run.text(), run.folder / "fox.png"
    made = picture.read_bytes() if picture.exists() else None
    may_be_whole = injection.victim == -1 or code == STOPPED_EARLY  # as a write that had begun is finished
    is_sound = made == whole if code == 0 else made is None or (may_be_whole and made == whole)
    waits = injection.signal == "STOP" and injection.victim >= 0 and code != 0
    is_named = None
    if injection.victim >= 0 and code != 0 and (injection.signal, injection.victim) != ("INT", 0):
        is_named = f"rank {injection.victim}" in told or f"rank      : {injection.victim} " in told
    usual = {"fox.png", "fox.partial.png", "temporary"}
    left = [path.name for path in run.folder.iterdir() if path.name not in usual and "latents" not in path.name]
    kept = (path.name for path in (run.folder / "temporary").iterdir())
    left += [
        f"temporary/{name}" for name in kept if not name.startswith(("torchinductor_", "torchelastic_"))
    ]  # torch's
    left += [f"port {port}" for port in still_listening(run.ports)]
    left += [f"shared memory {name}" for name in shared_memory(run.pids)]
    left += [] if has_ended else ["processes"]
    return Found(
        code if has_ended else None,
        max(0.0, seconds - allowed(run, begin)) if waits else seconds,
        told,
        is_sound,
        is_named,
        tuple(left),
    )


def allowed(run, begin):
    """Return the seconds after which a run with a stopped rank has to end.

    The other ranks wait from when they have loaded; under torchrun nobody measures that from outside, so what counts is
    when they give up, and the time that torchrun then gives the stopped one.
    """
    if not run.under_torchrun:
        return run.timeout
    waited = run.timeout if math.isnan(run.gave_up) else max(run.timeout, run.gave_up - begin)
    return min(waited, run.timeout + LOADING_S) + TORCHRUNS_S


def draw(chance, count):
    """Yield injections, cycling through all pairs of a phase and a signal in random order."""
    kinds = [(phase, name) for name in SIGNALS for phase in PHASES]
    chance.shuffle(kinds)
    for number in range(count):
        phase, name = kinds[number % len(kinds)]
        world = chance.choice([2, 2, 3])
        victim = chance.randrange(world)
        if phase == "launcher" or (phase == "torchrun" and number % 2):
            victim = -1
        if phase == "write":
            victim = chance.choice([0, 1])
        yield Injection(phase, name, world, victim, chance.uniform(0, MOMENT[phase]), chance.randrange(2, STEPS))


def table(found):
    """Yield the lines of a Markdown table with one row per phase and signal."""
    names = (
        "phase",
        "signal",
        "runs",
        "failed",
        "went on",
        "hung",
        "median s",
        "worst s",
        "named",
        "left over",
        "sound",
    )
    yield f"| {' | '.join(names)} |"
    yield f"|---|---|{'--:|' * (len(names) - 2)}"
    for (phase, name), row in sorted(found.items(), key=lambda each: (PHASES.index(each[0][0]), each[0][1])):
        seconds = [each.seconds for each in row if each.code != 0] or [math.nan]  # until a run fails
        named = [each.is_named for each in row if each.is_named is not None]
        ends = [sum(bool(each.code) for each in row), sum(each.code == 0 for each in row)]
        cells = [phase, name, len(row), *ends, len(row) - sum(ends)]
        cells += [f"{statistics.median(seconds):.2f}", f"{max(seconds):.2f}"]
        cells += [f"{sum(named)} of {len(named)}", sum(bool(each.left) for each in row)]
        cells += [sum(each.is_sound for each in row)]
        yield "| " + " | ".join(map(str, cells)) + " |"


def undisturbed():
    """Return the bytes of an undisturbed run's picture."""
    with tempfile.TemporaryDirectory() as name:
        run = Run(Path(name), 1).start()
        run.process.wait()
        run.end()
        assert run.process.returncode == 0, run.text()
        return (Path(name) / "fox.png").read_bytes()


def main():
    """Run the injections, and print suspicious runs and the table; the exit code is 1 if any was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--count", type=int, default=28)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--phase", choices=PHASES, help="only this one")
    parser.add_argument("--signal", choices=SIGNALS, help="only this one")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no injection after so long")
    parser.add_argument("--verbose", action="store_true", help="what each run said")
    options = parser.parse_args()
    found, begin, whole = collections.defaultdict(list), time.monotonic(), undisturbed()
    drawn = draw(random.Random(options.seed), 10**6)
    chosen = (each for each in drawn if options.phase in (None, each.phase) and options.signal in (None, each.signal))
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C prints the table of the runs so far
        for injection, _ in zip(chosen, range(options.count), strict=False):
            if time.monotonic() - begin > 60 * options.minutes:
                break
            one = inject(injection, whole)
            found[injection.phase, injection.signal].append(one)
            if options.verbose or one.is_wrong:
                print(f"{injection}: {one.seconds:.2f} s, code {one.code}, left {list(one.left)}", flush=True)
                print("".join(f"    {line}\n" for line in one.told.splitlines()[-12:]), end="", flush=True)
    print("\n".join(table(found)))
    every = [one for group in found.values() for one in group]
    wrong = sum(one.is_wrong for one in every)
    print(f"{len(every)} injections in {time.monotonic() - begin:.0f} s, {wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
