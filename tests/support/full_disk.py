"""A disk that takes no more."""

import resource
from contextlib import contextmanager


@contextmanager
def no_file_larger_than(size):
    """The system's limit on a process's files, in bytes: to whoever writes it is as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
