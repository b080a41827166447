"""One thread an operator for the time of a run, and forwards side by side."""

import contextvars
import threading

import pytest
import torch
from torch import nn

from vitrail.backbones.loading.turns import is_plain
from vitrail.core.engine.cpu_threads import one_thread, threads_in_bits, threads_of
from vitrail.core.engine.parallel import begun


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_one_thread_inside_and_what_there_was_afterwards_also_after_an_error():
    def fail():
        with one_thread() as found:
            assert (found, torch.get_num_threads(), in_a_thread(torch.get_num_threads)) == (3, 1, 1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == in_a_thread(torch.get_num_threads) == 3


def test_runs_that_overlap_leave_what_there_was_in_whatever_order_they_end():
    for first_ends_first in (True, False):
        inside, go = threading.Event(), threading.Event()
        seen = []

        def other(inside=inside, go=go, seen=seen):
            with one_thread() as found:
                inside.set()
                go.wait(60)
                seen.append((found, torch.get_num_threads()))

        thread = threading.Thread(target=other)
        with one_thread():
            thread.start()
            inside.wait(60)
            if not first_ends_first:
                go.set()
                thread.join()
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        go.set()
        thread.join()
        assert seen == [(3, 1)]
        assert in_a_thread(torch.get_num_threads) == torch.get_num_threads() == 3


class Model:
    def __init__(self, network, device="cpu"):
        self.network, self.device = network, torch.device(device)


def test_a_large_network_and_one_elsewhere_keep_their_threads(monkeypatch):
    for model in (Model(nn.Linear(2, 2)), Model(None)):
        with threads_of(model) as found:
            assert (found, torch.get_num_threads()) == (3, 1)
    with threads_of(Model(nn.Linear(2, 2), "meta")) as found:
        assert (found, torch.get_num_threads()) == (1, 3)
    assert threads_in_bits(Model(nn.Linear(2, 2))) is threads_in_bits(Model(None)) is None
    monkeypatch.setattr("vitrail.core.engine.cpu_threads.SMALL", 6)
    with threads_of(Model(nn.Linear(2, 2))) as found:
        assert (found, torch.get_num_threads()) == (1, 3)
    assert threads_in_bits(Model(nn.Linear(2, 2))) == 3
    assert threads_in_bits(Model(nn.Linear(2, 2), "meta")) is threads_in_bits(Model(None)) is None


def test_answers_side_by_side_come_in_order_in_the_caller_s_mode():
    context, meet = contextvars.ContextVar("context"), threading.Barrier(2, timeout=600)
    context.set("mine")

    def compute(item):
        meet.wait()  # two at once, or never
        return item, context.get(), torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    for mode, told in ((torch.inference_mode, (True, False)), (torch.no_grad, (False, False))):
        with mode(), begun(compute, range(6), 2) as asked:
            assert [ask() for ask in asked] == [(item, "mine", 1, *told) for item in range(6)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_where_its_answer_is_asked_for_and_the_rest_is_dropped(workers):
    done = []

    def compute(item):
        if item == 1:
            raise KeyError(item)
        done.append(item)
        return item

    def ask():
        with begun(compute, range(100), workers) as asked:
            assert asked[0]() == 0
            asked[1]()

    with pytest.raises(KeyError):
        ask()
    assert len(done) < 100 and not [t for t in threading.enumerate() if t.name.startswith("forward")]


def test_alone_nothing_is_computed_before_it_is_asked_for():
    with begun(lambda item: pytest.fail("computed"), range(3), 1):
        pass


def test_a_network_with_hooks_or_layers_of_others_is_not_plain():
    def plain(change=lambda network: None):
        network = nn.Sequential(nn.Linear(2, 2))
        change(network)
        return is_plain(network)

    assert plain()
    assert not plain(lambda network: network[0].register_forward_hook(lambda *_: None))
    assert not plain(lambda network: network[0].register_forward_pre_hook(lambda *_: None))
    assert not plain(lambda network: setattr(network[0], "forward", network[0].forward))
    assert not plain(lambda network: network.append(type("Own", (nn.Module,), {"__module__": "theirs"})()))
