"""What ranks that are processes of their own hand back: all of it, by value, or an error that names who did not."""

import os

import pytest
import torch

from vitrail.comm import Gloo
from vitrail.errors import CommAborted


def tensors(communicator):
    """More than a pipe holds, from a process that ends at once."""
    return {"mine": torch.full((2**17,), float(communicator.rank)), "views": [torch.arange(4)[1:]]}


def silent(communicator):
    if communicator.rank == 1:
        os._exit(0)
    return communicator.rank


@pytest.mark.parametrize("world", [1, 3])
def test_tensors_come_from_every_rank_and_outlive_it(world):
    found = Gloo(timeout=30).run(world, tensors)
    assert len(found) == world
    for rank, each in enumerate(found):
        assert torch.equal(each["mine"], torch.full((2**17,), float(rank)))
        assert torch.equal(each["views"][0], torch.tensor([1, 2, 3]))


def test_a_rank_that_gives_nothing_is_named():
    with pytest.raises(CommAborted, match="1"):
        Gloo(timeout=30).run(2, silent)
