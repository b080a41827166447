"""Code of a network, shape by shape, and what the compiler cannot do as one message."""

import threading

import pytest
import torch
from torch._dynamo.utils import counters

from vitrail.backbones import compiled_code
from vitrail.backbones.compiled_code import CompiledCode
from vitrail.core.engine.memory_backoff import is_out_of_memory
from vitrail.errors import CapabilityError

SHAPES = range(1, 13)  # more than torch makes code of by itself


@pytest.fixture(autouse=True)
def _traced_alone(monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(compiled_code, "BACKEND", "eager")


def rows(count):
    return torch.ones(count, 3, dtype=torch.float32, device="cpu")


class Twice(torch.nn.Module):
    def forward(self, values):
        return (values + values,)


class Asks(torch.nn.Module):
    """Takes one of two ways by what the values are, which no single graph can."""

    def forward(self, values):
        return (values + values,) if values.sum() > 0 else (values,)


class Full(torch.nn.Module):
    def forward(self, values):
        raise torch.OutOfMemoryError("out of memory")


def test_one_graph_for_every_shape_however_many():
    code, network = CompiledCode(), Twice()
    for _ in range(2):
        for count in SHAPES:
            assert torch.equal(code.of(network)(rows(count))[0], 2 * rows(count))
    assert counters["stats"]["unique_graphs"] == len(SHAPES)
    assert network._compiled_call_impl is None and "forward" not in vars(network)


def test_another_network_has_code_of_its_own():
    code, twice, linear = CompiledCode(), Twice(), torch.nn.Linear(3, 3, dtype=torch.float32, device="cpu")
    assert torch.equal(code.of(twice)(rows(2))[0], 2 * rows(2))
    torch.testing.assert_close(code.of(linear)(rows(2)), linear(rows(2)))
    assert torch.equal(code.of(twice)(rows(2))[0], 2 * rows(2))


def test_what_is_no_single_graph_is_one_message():
    with pytest.raises(CapabilityError, match=r"torch\.compile cannot make code of the network: .*leave compile out"):
        CompiledCode().of(Asks())(rows(2))


def test_shortage_of_memory_is_not_blamed_on_the_compiler():
    with pytest.raises(RuntimeError) as found:
        CompiledCode().of(Full())(rows(2))
    assert is_out_of_memory(found.value)


def test_no_code_is_made_while_hooks_are_on_the_network():
    code, network, done = CompiledCode(), Twice(), threading.Event()

    def run():
        code.of(network)(rows(2))
        done.set()

    code.of(network)(rows(3))
    with code.without_making():
        thread = threading.Thread(target=run)
        thread.start()
        other = threading.Thread(target=code.of(network), args=(rows(3),))
        other.start()
        other.join()  # of a shape that there is code for: it does not wait
        assert not done.is_set()
    thread.join()
    assert done.is_set()
