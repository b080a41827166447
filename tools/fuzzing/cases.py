"""A case: files, a command line, and what became of it."""

from attrs import field, frozen

SECONDS, MEBIBYTES = 10, 1024  # of a processor's time, and of memory, that a case may take
LONGEST_ANSWER = 20_000  # characters on the terminal that still can be read
CODES = (0, 1, 2, 130)
SHORTAGE = ("out of memory", "MemoryError")


@frozen
class Case:
    """One command line in a folder of its own.

    Attributes:
        words: After ``vitrail``.
        files: Contents by name, of the folder that is the working one.
    """

    words: tuple[str, ...] = field(converter=tuple)
    files: dict[str, bytes] = field(factory=dict)

    def __str__(self) -> str:
        own = {name: content for name, content in self.files.items() if any(name in word for word in self.words)}
        shown = {name: content if len(content) < 2000 else content[:200] + b"..." for name, content in own.items()}
        return f"vitrail {' '.join(map(repr, self.words))[:2000]}\n  files: {shown}"


@frozen
class Outcome:
    """What became of a case.

    Attributes:
        code: Of the exit; None if it did not end by itself.
        out: What it printed.
        err: What it complained.
        trace: Of an exception that came through, "" if none did.
        seconds: Of a processor's time.
        mebibytes: Of memory, beside what the process had before.
        was_ended: Whether it took too long.
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
        """What is wrong with it, in a line; "" if nothing is."""
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
    """The innermost line of Vitrail in a trace."""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ") and "vitrail" in line]
    return lines[-1].rpartition("/vitrail/")[2] if lines else "outside"
