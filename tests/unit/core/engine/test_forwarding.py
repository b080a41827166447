"""A micro-batch in parts, and what happens to one that does not fit in memory."""

import errno
import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from vitrail.core.config.log import EVENTS
from vitrail.core.engine.memory_backoff import MemoryBackoff, is_out_of_memory
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
from vitrail.core.schedule.step import Step
from vitrail.errors import CommAborted, OutOfMemory

STEP = Step(
    index=2,
    num_steps=9,
    timestep=5.0,
    alpha=0.8,
    sigma=0.6,
    stage=0,
    stage_step=2,
    stage_num_steps=9,
    prediction_type="epsilon",
)


def micro_batch(count, batch=1, capture=()):
    views = [View(Span(0, 4), Span(i // 2, 4)) for i in range(count)]
    latents = torch.arange(count * batch * 16.0).view(count * batch, 1, 4, 4)
    return MicroBatch(latents, [("uncond", "cond")[i % 2] for i in range(count)], views, capture)


def square(rows):
    """A network that works on each row alone, and looks at the captured one."""
    batch = len(rows.model_input) // len(rows.views)
    parts = rows.model_input.split(batch)
    maps = [parts[i].mean(1, keepdim=True) for i in rows.capture]
    return ModelOutput(rows.model_input**2, torch.cat(maps) if maps else None)


class Tight:
    """A network with memory for so many rows; notes what it was asked, and whether the failed call is forgotten."""

    def __init__(self, most, refusal=torch.OutOfMemoryError):
        self.most, self.refusal, self.asked, self.left = most, refusal, [], None

    def __call__(self, rows):
        assert self.left is None or self.left() is None, "what a failed forward computed is still there"
        self.asked.append(len(rows.views))
        if len(rows.views) > self.most:
            activations = torch.zeros(1000)
            self.left = weakref.ref(activations)
            raise self.refusal(f"out of memory: {len(activations)}")
        return square(rows)


# ---------------------------------------------------------------- a micro-batch in parts


@given(count=st.integers(1, 9), size=st.integers(1, 10), batch=st.integers(1, 2), data=st.data())
def test_parts_of_a_micro_batch_say_together_what_it_says(count, size, batch, data):
    rows = micro_batch(count, batch, data.draw(st.lists(st.integers(0, count - 1), max_size=1)))
    parts = rows.cut(size)
    assert all(len(part.views) <= size for part in parts)
    assert tuple(view for part in parts for view in part.views) == rows.views
    assert tuple(branch for part in parts for branch in part.branches) == rows.branches
    whole, joined = square(rows), ModelOutput.join([square(part) for part in parts])
    assert torch.equal(joined.model_output, whole.model_output)
    assert (joined.attention is None) == (whole.attention is None)
    assert joined.attention is None or torch.equal(joined.attention, whole.attention)


def test_a_prompt_without_content_has_none_in_any_part():
    parts = [ModelOutput(torch.zeros(1, 1, 2, 2)), ModelOutput(torch.zeros(1, 1, 2, 2), None, False)]
    assert not ModelOutput.join(parts).has_content
    assert ModelOutput.join(parts[:1]).has_content


# ---------------------------------------------------------------- out of memory


@pytest.mark.parametrize(("count", "most", "asked"), [(4, 4, [4]), (4, 2, [4, 2, 2]), (5, 1, [5, 3, 2, 1, 1, 1, 1, 1])])
def test_a_forward_that_does_not_fit_is_halved_until_it_does(count, most, asked):
    rows, network, backoff = micro_batch(count, 2, [count - 1]), Tight(most), MemoryBackoff()
    with capture_logs() as logs:
        answer = backoff.forward(network, STEP, rows)
    assert network.asked == asked
    assert torch.equal(answer.model_output, square(rows).model_output)
    assert torch.equal(answer.attention, square(rows).attention)
    assert len(backoff.notes) == len(logs) == len([each for each in asked if each > most])
    assert all(log["event"] == "memory.short" and log["event"] in EVENTS for log in logs)


def test_the_smaller_limit_is_remembered_and_told():
    network, backoff = Tight(2), MemoryBackoff()
    for _ in range(3):
        backoff.forward(network, STEP, micro_batch(4))
    assert network.asked == [4, 2, 2, 2, 2, 2, 2]
    assert backoff.notes == ("forwards of 2 rows instead of 4: out of memory at step 3",)


def test_one_row_that_does_not_fit_ends_the_run_with_what_to_do():
    with pytest.raises(
        OutOfMemory, match=r"at step 3, in a forward of 1 row of 4x4 latent cells: out.*; try a smaller"
    ):
        MemoryBackoff().forward(Tight(0), STEP, micro_batch(3))


def test_fixed_memory_is_never_divided():
    network = Tight(2)
    with pytest.raises(OutOfMemory, match=r'a forward of 3 rows.*memory is "fixed".*--row-batch') as caught:
        MemoryBackoff(allowed=False).forward(network, STEP, micro_batch(3))
    assert network.asked == [3]
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_the_failed_forward_is_forgotten_though_its_frames_form_a_cycle():
    """Plugins' frames keep the error that keeps the frames; only a collection of cycles would free them."""
    network = Tight(1)

    def kept(rows):
        error = None
        try:
            return network(rows)
        except torch.OutOfMemoryError as raised:
            error = raised
        raise error

    gc.disable()
    try:
        MemoryBackoff().forward(kept, STEP, micro_batch(4))
    finally:
        gc.enable()
    assert network.asked == [4, 2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "error", [ValueError("out of memory"), RuntimeError("shapes"), CommAborted(1, "out of memory")]
)
def test_any_other_error_is_passed_on(error):
    def fail(rows):
        raise error

    backoff = MemoryBackoff()
    with pytest.raises(type(error)) as caught:
        backoff.forward(fail, STEP, micro_batch(4))
    assert caught.value is error and backoff.limit is None


def test_what_allocators_say_is_understood():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    said = ["MPS backend out of memory (MPS allocated: 8 GB)", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"]
    said += ["could not create a primitive", "std::bad_alloc"]
    assert all(is_out_of_memory(RuntimeError(text)) for text in said)
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("mat1 and mat2 shapes"))
