"""Every scheduler of diffusers drives a whole run, the stochastic and multistep ones too."""

import pytest
import torch

from schedulers import READ, STOCHASTIC, new_scheduler
from toy import ASG, DETAIL, NATIVE, VARIANCE, sample, smooth_templates, toy_sampler

WHOLE = {"patching": "whole", "fusion": "average"}
TEMPLATES = smooth_templates(4, NATIVE)


def run(name, *stages, kind="epsilon", templates=None, **options):
    scheduler = new_scheduler(name, prediction_type=kind)
    return sample(toy_sampler(*stages, scheduler=scheduler, templates=templates), **({"steps": 8} | options))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", READ)
def test_a_guided_run_of_two_stages_ends_in_a_picture(name, kind):
    final = run(name, kind=kind, size=3 * NATIVE)
    assert final.shape == (1, 4, 24, 24)
    assert 0.3 < float(final.std()) < 2.0  # the prior has unit size


@pytest.mark.parametrize("name", READ)
def test_plain_sampling_ends_in_a_template(name):
    """The detail of the prior is all that may lie between them."""
    final = run(name, WHOLE, size=NATIVE, steps=12)
    assert float((final - TEMPLATES).square().mean((1, 2, 3)).min()) < 4 * VARIANCE  # they are at 1.5 from each other


@pytest.mark.parametrize("name", READ)
def test_a_run_repeats_itself_and_hangs_on_its_seed_alone(name):
    first = run(name, seed=5)
    torch.manual_seed(99)
    assert torch.equal(run(name, seed=5), first)
    assert not torch.equal(run(name, seed=6), first)


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_step_noise_does_not_depend_on_micro_batches(name):
    for stages in (ASG, (DETAIL,)):
        wide = run(name, *stages, row_batch=64)
        for row_batch in (1, 3):
            torch.testing.assert_close(run(name, *stages, row_batch=row_batch), wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", ["average", "gaussian"])
@pytest.mark.parametrize("name", READ)
def test_windows_over_a_network_that_ignores_neighbours_are_plain_sampling(name, fusion):
    """With one step on the canvas. Views that were stepped apart would average their step noise away."""
    each_cell_alone = torch.tensor([1.0, -1.0, 0.5, 2.0]).view(1, 4, 1, 1)
    windows = {"patching": {"type": "windows", "overlap": 0.75, "jitter": True}, "fusion": fusion}
    plain = run(name, WHOLE, templates=each_cell_alone)
    torch.testing.assert_close(run(name, windows, templates=each_cell_alone), plain, rtol=1e-3, atol=1e-3)
