"""A run's store as a ``torch.distributed`` store, for the process groups of the ranks."""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from vitrail.comm.backends.key_store import Words

PAUSE_S = 2e-3


def torch_store(words: Words, is_over: Callable[[], bool] = lambda: False) -> Store:
    """Wrap keys of the run's store as a torch store.

    Args:
        words: Keys of the run's store.
        is_over: Whether waiting was abandoned; torch's waits then raise TimeoutError.
    """
    made: Store = _store_class()(words, is_over)
    return made


@functools.cache
def _store_class() -> Any:
    from torch.distributed import Store  # type: ignore[attr-defined]

    class RunStore(Store):
        """A torch store over ``Words``; its methods are called from torch's own threads, too."""

        def __init__(self, words: Words, is_over: Callable[[], bool]):
            super().__init__()
            self._words, self._is_over = words, is_over

        def clone(self) -> Store:
            return self

        def set(self, key: str, value: bytes | str) -> None:
            self._words.set(key, value)

        def get(self, key: str) -> bytes:
            while True:
                found = self._words.get(key)
                if found is not None:
                    return found
                self._pause(key)

        def check(self, keys: list[str]) -> bool:
            return all(answer is not None for answer in self._words.ask([self._words.getting(key) for key in keys]))

        def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
            end = None if timeout is None else time.monotonic() + timeout.total_seconds()
            while not self.check(keys):
                if end is not None and time.monotonic() > end:
                    raise TimeoutError(f"no answer of another rank ({', '.join(keys)})")
                self._pause(keys[0])

        def add(self, key: str, amount: int) -> int:
            return self._words.add(key, amount)

        def compare_set(self, key: str, expected: bytes | str, value: bytes | str) -> bytes:
            texts = [each.encode() if isinstance(each, str) else each for each in (expected, value)]
            return self._words.swap(key, *texts)

        def delete_key(self, key: str) -> bool:
            return self._words.drop(key)

        def _pause(self, key: str) -> None:
            if self._is_over():
                raise TimeoutError(f"no answer of another rank ({key})")
            time.sleep(PAUSE_S)

    return RunStore
