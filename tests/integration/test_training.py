"""Training goes on from its checkpoint as if it had never stopped, for every stage, at tiny settings."""

import json

import pytest
import torch

from training import settings as knobs
from training.autoencoder import AutoencoderTask, edge_psnr, psnr
from training.denoiser import DenoiserTask
from training.detector import JudgeTask
from training.loop import Budget, train
from training.page import write_page

CPU = torch.device("cpu")
LOOP = ("loop.num_steps=3", "loop.log_every=1", "loop.measure_every=2", "loop.cooldown_steps=2")
TINY = {
    "autoencoder": ("batch=1", "crop=16", "pool=3", "measured=1"),
    "judge": ("batch=2", "pool=8", "measured=4", "vae=''"),
    "denoiser": ("batch=2", "pool=3", "measured=1"),
}


def tiny(stage):
    """A fresh task of a stage and how it is optimised."""
    settings = getattr(knobs.load(changes=tuple(f"{stage}.{c}" for c in (*TINY[stage], *LOOP))), stage)
    if stage == "autoencoder":
        return AutoencoderTask(settings), settings.loop
    return {"judge": JudgeTask, "denoiser": DenoiserTask}[stage](settings, CPU), settings.loop


def trained(stage, folder, stop_after=None):
    """Train up to the end, or until so many steps were asked about; the step and the checkpoint."""
    task, loop = tiny(stage)
    asked = iter(range(1, 100))
    stopped = (lambda: False) if stop_after is None else (lambda: next(asked) >= stop_after)
    step = train(task, loop, Budget(folder=folder, device=CPU, precision="float32"), stopped)
    return step, torch.load(folder / "state.pt", weights_only=True)


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=pytest.mark.thorough) if s == "denoiser" else s for s in sorted(TINY)]
)
def test_a_run_that_was_stopped_takes_the_same_steps_as_one_left_alone(stage, tmp_path):
    whole = trained(stage, tmp_path / "whole")
    assert trained(stage, tmp_path / "parts", stop_after=2)[0] == 2
    parts = trained(stage, tmp_path / "parts")
    assert whole[0] == parts[0] == 3
    for kind in ("module", "average"):
        for name, value in whole[1][kind].items():
            assert torch.equal(value, parts[1][kind][name]), (kind, name)
    lines = [json.loads(line) for line in (tmp_path / "parts/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert list((tmp_path / "parts/samples").glob("*.png")) or stage == "judge"
    assert any((tmp_path / "parts/weights").iterdir())


def test_minutes_end_a_run_and_its_checkpoint_stays(tmp_path):
    task, loop = tiny("judge")
    times = iter(range(0, 10_000, 40))  # forty seconds a look
    budget = Budget(folder=tmp_path, device=CPU, minutes=1, precision="float32", clock=lambda: next(times))
    assert 0 < train(task, loop, budget) < 3
    assert (tmp_path / "state.pt").exists()


def test_a_measured_precision_leaves_the_weights_as_they_were(tmp_path):
    measured, plain = tmp_path / "measured", tmp_path / "plain"
    for folder, precision in ((measured, "measured"), (plain, "float32")):
        task, loop = tiny("judge")
        assert train(task, loop, Budget(folder=folder, device=CPU, precision=precision), lambda: True) == 1
    first = json.loads((measured / "log.jsonl").read_text().splitlines()[0])
    if first["dtype"] == "torch.float32":
        states = [torch.load(folder / "state.pt", weights_only=True)["module"] for folder in (measured, plain)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_psnr_of_a_known_error():
    truth = torch.zeros(2, 3, 8, 8)
    truth[..., 4:] = 1
    assert psnr(truth * 0.9, truth) == pytest.approx(-10 * torch.tensor(0.005).log10().item(), abs=1e-4)
    blurred = truth.clone()
    blurred[..., 3] = 0.5
    assert edge_psnr(blurred, truth) == pytest.approx(-10 * torch.tensor(0.25).log10().item(), abs=1e-4)


def test_the_page_shows_every_stage_that_has_a_log(tmp_path):
    trained("autoencoder", tmp_path / "autoencoder")
    page = write_page(tmp_path).read_text()
    assert "autoencoder" in page
    assert "judge" not in page
    assert (tmp_path / "autoencoder/curves.png").exists()
