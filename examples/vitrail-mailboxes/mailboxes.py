"""A communicator backend in one file: ranks are threads that write letters to each other.

They share nothing but letter boxes and a verdict, so that sockets in their place make it a backend of processes.

    python -m vitrail.testing.comm mailboxes:Mailboxes    # in this folder: tries the laws of communication on it
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, defaultdict

import torch
from attrs import define, field, frozen
from attrs import validators as v

from vitrail.comm import TIMEOUT_S, RankCommunicator, first_cause, guarded, odd_one_out

SLICE_S = 0.5  # a wait looks around this often


@define
class Tray:
    """What has come to a rank of one operation."""

    headers: dict = field(factory=dict)  # by rank
    parts: dict = field(factory=dict)  # by index
    is_released: bool = False


class Office:
    """What the ranks of a run share: a box for each, and the verdict, which only one may write."""

    def __init__(self, world_size):
        self.boxes = [queue.SimpleQueue() for _ in range(world_size)]
        self.verdict, self._lock = None, threading.Lock()

    def send(self, letter):
        for box in self.boxes:
            box.put(letter)

    def revoke(self, abort):
        with self._lock:
            self.verdict = self.verdict or abort
        self.send(None)  # wakes all


class LetterPosting:
    """An operation as one rank sees it."""

    def __init__(self, transport, key, header, needed):
        self._transport, self._key, self._header, self._needed = transport, key, header, needed

    def _tray(self):
        """With what is in the box by now."""
        self._transport.sort()
        return self._transport.trays[self._key]

    def conflict(self):
        transport = self._transport
        return odd_one_out(self._tray().headers | {transport.rank: self._header}, transport.rank)

    def missing(self):
        headers = self._tray().headers
        return [rank for rank in self._needed if rank not in headers]

    def is_complete(self):
        return not self.missing()

    def is_taken(self):
        return len(self._tray().headers) == self._transport.world_size

    def part(self, index):
        return self._tray().parts[index]

    def release(self):
        self._tray().is_released = True
        self._transport.clear(self._key)


class LetterTransport:
    """One rank's end: what has come to its box."""

    backend = "mailboxes"

    def __init__(self, office, rank):
        self._office, self._box = office, office.boxes[rank]
        self.rank, self.world_size, self.device = rank, len(office.boxes), torch.device("cpu")
        self.trays, self._posted, self._notes = defaultdict(Tray), Counter(), {}

    def sort(self):
        """Put what is in the box where it belongs."""
        while True:
            try:
                self._take(self._box.get_nowait())
            except queue.Empty:
                return

    def _take(self, letter):
        if letter is None:
            return
        source, key, header, parts = letter
        if key is None:
            self._notes[source] = header
            return
        self._posted[source] += 1
        tray = self.trays[key]
        tray.headers[source] = header
        tray.parts.update(parts)
        self.clear(key)

    def clear(self, key):
        """Throw away what this rank reads no more, once everything of it has come."""
        if self.trays[key].is_released and len(self.trays[key].headers) == self.world_size:
            del self.trays[key]

    def clock(self):
        return time.monotonic()

    def open(self, domain):
        pass

    def post(self, domain, seq, header, parts, mine, witness):
        self._office.send((self.rank, (domain, seq), header, dict(mine)))
        needed = range(self.world_size) if witness == "all" else sorted({part.src for part in parts})
        return LetterPosting(self, (domain, seq), header, needed)

    def wait(self, ready, deadline):
        while not ready() and self._office.verdict is None:
            left = SLICE_S if deadline is None else min(SLICE_S, deadline - time.monotonic())
            if left <= 0:
                return
            try:
                self._take(self._box.get(timeout=left))
            except queue.Empty:
                continue

    def abort(self, abort):
        self._office.revoke(abort)

    def aborted(self):
        return self._office.verdict

    def note(self, text):
        self._office.send((self.rank, None, text, {}))

    def behind(self):
        self.sort()
        least = min(range(self.world_size), key=lambda rank: (self._posted[rank], rank != self.rank))
        return least, self._notes.get(least, "")

    def shut(self, domains):
        for key in [key for key in self.trays if key[0] in domains]:
            del self.trays[key]

    def close(self):
        pass


@frozen(kw_only=True)
class Mailboxes:
    """Ranks as threads that write letters to each other."""

    timeout: float = field(default=TIMEOUT_S, validator=v.gt(0))  # seconds of one wait
    checksums: bool = False  # check the bytes of every message

    def run(self, world_size, program, run_id="run"):
        office, results, errors = Office(world_size), {}, {}

        def rank_main(rank):
            try:
                transport = LetterTransport(office, rank)
                communicator = RankCommunicator(transport, run_id, timeout=self.timeout, checksums=self.checksums)
                results[rank] = guarded(communicator, program)
            except BaseException as error:
                errors[rank] = error

        threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise first_cause(errors, office.verdict)
        return [results[rank] for rank in range(world_size)]
