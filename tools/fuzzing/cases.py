"""Cases of the fuzzer: files with a command line, and their outcomes."""

from attrs import field, frozen

SECONDS, MEBIBYTES = 10, 1024  # limits of a case in CPU time and memory
LONGEST_ANSWER = 20_000  # maximum length of an error message in characters
CODES = (0, 1, 2, 130)  # expected exit codes
SHORTAGE = ("out of memory", "MemoryError")  # signs of exceeded memory in messages


@frozen
class Case:
    """One command line in a folder of its own.

    Attributes:
        words: Arguments of ``vitrail``.
        files: Contents of the working folder's files by name.
    """

    words: tuple[str, ...] = field(converter=tuple)
    files: dict[str, bytes] = field(factory=dict)

    def __str__(self) -> str:
        own = {name: content for name, content in self.files.items() if any(name in word for word in self.words)}
        shown = {name: content if len(content) < 2000 else content[:200] + b"..." for name, content in own.items()}
        return f"vitrail {' '.join(map(repr, self.words))[:2000]}\n  files: {shown}"


@frozen
class Outcome:
    """Outcome of a case.

    Attributes:
        code: Exit code; None if the process was killed or died.
        out: Text on stdout.
        err: Text on stderr.
        trace: Traceback of an uncaught exception; "" if there was none.
        seconds: CPU time.
        mebibytes: Peak memory in MiB, above that before the case.
        was_ended: Whether it was killed because it took too long.
    """

    code: int | None
    out: str = ""
    err: str = ""
    trace: str = ""
    seconds: float = 0.0
    mebibytes: float = 0.0
    was_ended: bool = False

    @property
    def finding(self) -> str:
        """Description of the fault in one line; "" if there is none."""
        if self.trace:
            return f"traceback: {self.trace.strip().splitlines()[-1][:200]} ({_place(self.trace)})"
        if self.code is None:
            return "hang: it was ended" if self.was_ended else "crash: the process died"
        if self.seconds >= SECONDS:
            return f"slow: {self.seconds:.1f} s"
        if self.mebibytes >= MEBIBYTES or any(sign in self.err for sign in SHORTAGE):
            return f"memory: {self.mebibytes:.0f} MiB"
        if "Traceback (most recent call last)" in self.err:
            return "traceback on the terminal"
        if self.code not in CODES:
            return f"exit code {self.code}"
        if self.code and self.code != 130 and not (self.err.strip() or "failed" in self.out):
            return f"exit code {self.code} without a word"
        if len(self.err) > LONGEST_ANSWER:
            return f"message of {len(self.err)} characters"
        if self.code == 2 and self.err.rstrip().endswith(":") and self.err.count("\n") == 1:
            return f"no reason: {self.err.strip()[-100:]}"
        return ""


def _place(trace: str) -> str:
    """Return the innermost line of Vitrail in a traceback."""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ") and "vitrail" in line]
    return lines[-1].rpartition("/vitrail/")[2] if lines else "outside"
