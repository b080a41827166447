"""What is checked of a communicator backend when it is registered, and that its errors travel."""

import pickle
from typing import ClassVar

import pytest
from attrs import field, frozen

from vitrail.core.config.registry import Registry
from vitrail.errors import CommAborted, RegistrationError


@frozen(kw_only=True)
class Fits:
    """A backend that does nothing."""

    timeout: float = 1.0
    checksums: bool = False

    def run(self, world_size, program, run_id="run"):
        return []


@frozen(kw_only=True)
class NoTimeout:
    checksums: bool = False

    def run(self, world_size, program, run_id="run"):
        return []


@frozen(kw_only=True)
class NoOptions:
    host: ClassVar[str] = "x"

    def run(self, world_size, program, run_id="run"):
        return []


@frozen(kw_only=True)
class NoDefault(Fits):
    host: str = field()


@frozen(kw_only=True)
class NoRunId(Fits):
    def run(self, world_size, program):
        return []


@frozen(kw_only=True)
class WantsMore(Fits):
    def run(self, world_size, program, run_id, host):
        return []


@frozen(kw_only=True)
class JoinsAlone(Fits):
    def join(self, run_id="run"):
        return None


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (NoTimeout, "NoTimeout lacks the field timeout"),
        (NoOptions, "NoOptions lacks the fields timeout, checksums"),
        (NoDefault, "NoDefault must have a default for host"),
        (NoRunId, r"NoRunId\.run must take \(world_size, program, run_id='run'\)"),
        (
            WantsMore,
            r"WantsMore\.run must take \(world_size, program, run_id='run'\): missing a required argument: 'run_id'",
        ),
        (JoinsAlone, r"JoinsAlone\.join must take \(environment, run_id='run'\)"),
    ],
)
def test_a_class_that_cannot_be_a_backend_is_refused_when_it_is_registered(cls, told):
    with pytest.raises(RegistrationError, match=f"comm 'mine': {told}"):
        Registry().add("comm", "mine", cls)


def test_one_that_can_is_taken():
    registry = Registry()
    registry.add("comm", "mine", Fits)
    assert registry.get("comm", "mine") is Fits


def test_an_abort_comes_out_of_another_process_as_it_went_in():
    error = pickle.loads(pickle.dumps(CommAborted(3, "because")))
    assert type(error) is CommAborted
    assert (error.culprit, error.reason, str(error)) == (3, "because", "rank 3 ended the run: because")
