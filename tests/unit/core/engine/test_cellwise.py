"""A scheduler's step done in parts is the step of the whole canvas, bit for bit, whatever the parts and their order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers import READ, new_scheduler
from vitrail.core.engine.cellwise import CellwiseCanvas
from vitrail.core.engine.rank_comparison import digest_of
from vitrail.core.geometry.views import Span, View
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.core.schedule.streams import Streams
from vitrail.errors import VitrailError

SHAPE = (1, 4, 5, 6)
STREAMS = Streams(3)


def output_of(latents, index):
    """What a network would say of each cell, from that cell alone."""
    return torch.sin(latents) * 0.5 + STREAMS.normal(SHAPE, "output", index)


def generator(index):
    return STREAMS.generator("step-noise", index)


def stepper_of(name, steps=6):
    try:
        return Stepper(new_scheduler(name), steps)
    except VitrailError as error:
        pytest.skip(f"not served: {error}")


def whole(stepper, latents, count):
    for index in range(count):
        stepper.scale(latents, index)
        latents = stepper.step(output_of(latents, index), index, latents, generator(index))
    return latents


def in_parts(stepper, latents, count, draw):
    """Do steps on random cells that may do them, up to two steps apart; the last one as a whole."""
    canvas, digests = CellwiseCanvas(stepper, latents), {}
    while int(canvas.done.min()) < count:
        least = int(canvas.done.min())
        steps = sorted({step for step in canvas.done.flatten().tolist() if step <= least + 1 and step < count - 1})
        if not steps:
            cells, step = canvas.ready(count - 1, []), count - 1
            assert bool(cells.all())
        else:
            step = steps[draw() % len(steps)]
            cells = canvas.ready(step, [])
            cells &= torch.tensor([draw() % 3 > 0 for _ in range(cells.numel())]).view(cells.shape) | (draw() % 4 == 0)
            if not bool(cells.any()):
                continue
        output = torch.where(cells, output_of(canvas.latents, step), torch.full(SHAPE, float("nan")))
        canvas.scale(step, step, canvas.latents)
        made = canvas.advance(step, step, output, cells, generator(step))
        digests[step] = digests.get(step, 0) + digest_of(made)
    return canvas, digests


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))  # some schedules have values that are none
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("name", READ)
def test_every_scheduler_steps_in_parts_as_on_the_whole(name):
    latents = STREAMS.normal(SHAPE, "latents")
    count = len(stepper_of(name).timesteps)

    @settings(max_examples=4)
    @given(seed=st.integers(0, 2**16))
    def law(seed):
        draws = iter(torch.randint(0, 12, (40000,), generator=torch.Generator().manual_seed(seed)).tolist())
        expected, own = stepper_of(name), stepper_of(name)
        end = whole(expected, latents, count)
        canvas, _ = in_parts(own, latents, count, lambda: next(draws))
        assert torch.equal(canvas.latents, end)
        left, right = expected.state(), own.state()
        assert left.keys() == right.keys()
        assert [key for key in left if not equal(left[key], right[key])] == []

    law()


def test_digests_of_parts_add_up_to_that_of_the_step():
    name, latents = "UniPCMultistepScheduler", STREAMS.normal(SHAPE, "latents")
    first = stepper_of(name)
    first.scale(latents, 0)
    after = first.step(output_of(latents, 0), 0, latents, generator(0))
    draws = iter([1, 5, 2, 7, 3, 4] * 9999)
    _, digests = in_parts(stepper_of(name), latents, 4, lambda: next(draws))
    assert int(digests[0]) == int(digest_of(after))


def test_cells_wait_for_the_views_that_write_them_and_for_no_others():
    canvas = CellwiseCanvas(stepper_of("DDIMScheduler"), torch.zeros(SHAPE))
    late = [View(Span(0, 4, context=(0, 1)), Span(0, 3)), View(Span(4, 1), Span(5, 1))]
    ready = canvas.ready(0, late)
    expected = torch.ones(5, 6, dtype=torch.bool)
    expected[:3, :3] = expected[4, 5] = False
    assert torch.equal(ready, expected)
    assert not bool(canvas.ready(1, []).any())
