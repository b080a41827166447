"""Small pictures of what is predicted during a run: what they show, and that the run does not change with them."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from command_line import vitrail
from schedulers import new_scheduler
from tiny import NATIVE
from tiny_families import FAMILIES
from vitrail.comm import InProcess
from vitrail.errors import ConfigError
from vitrail.sampling.previews import PreviewFile, is_preview, reduced
from vitrail.sampling.sampler import Sampler, Spread

CALL = {"height": 104, "width": 152, "num_inference_steps": 4, "output_type": "pt", "seed": 3}
SCHEDULERS = {
    "epsilon": ("sd", lambda: new_scheduler("DDIMScheduler")),
    "v_prediction": ("sd", lambda: new_scheduler("EulerDiscreteScheduler", prediction_type="v_prediction")),
    "flow_prediction": ("sd3", None),
}


class Kept:
    """A callback that keeps every preview."""

    def __init__(self):
        self.pictures = []

    def __call__(self, run, step, timestep, tensors):
        self.pictures.append(run.preview())


def pipeline_of(kind):
    family, scheduler = SCHEDULERS[kind]
    pipe = FAMILIES[family]()
    if scheduler is not None:
        pipe.scheduler = scheduler()
    return pipe


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_picture_keeps_its_bits_and_shows_itself_small_meanwhile(kind):
    sampler, kept = Sampler.from_pipeline(pipeline_of(kind), "multidiffusion"), Kept()
    plain = sampler("a fox", **CALL)
    shown = sampler("a fox", callback_on_step_end=kept, **CALL)
    assert torch.equal(shown.images[0], plain.images[0])
    assert shown.recipes == plain.recipes and shown.report.vae_decodes == plain.report.vae_decodes == 1
    assert len(kept.pictures) == 4
    for picture in kept.pictures:
        assert picture.width * picture.height <= (8 * NATIVE) ** 2
        assert picture.width / picture.height == pytest.approx(152 / 104, rel=1 / 4)  # of whole cells, so about


def test_at_the_training_size_it_is_the_predicted_picture_itself(pipe):
    """After the last step of a scheduler that ends without noise that is the picture."""
    pipe.scheduler = new_scheduler("EulerDiscreteScheduler")
    kept, side = Kept(), 8 * NATIVE
    call = CALL | {"height": side, "width": side, "output_type": "pil", "callback_on_step_end": kept}
    result = Sampler.from_pipeline(pipe, "direct")("a fox", **call)
    worst = max(abs(a - b) for a, b in zip(kept.pictures[-1].tobytes(), result.images[0].tobytes(), strict=True))
    assert worst <= 1


def test_a_growing_picture_shows_every_size(pipe):
    sampler, kept = Sampler.from_pipeline(pipe, "asg-cascade"), Kept()
    call = CALL | {"height": 128, "width": 128}
    plain = sampler("a fox", **call)
    assert torch.equal(sampler("a fox", callback_on_step_end=kept, **call).images[0], plain.images[0])
    assert len(kept.pictures) == plain.report.steps
    assert {picture.size for picture in kept.pictures} == {(64, 64)}


@pytest.mark.parametrize("method", ["multidiffusion", "asg"])
def test_one_rank_may_ask_alone_and_all_have_the_picture_of_one(pipe, method):
    sampler, kept, call = Sampler.from_pipeline(pipe, method), Kept(), CALL | {"height": 128, "width": 128}
    alone = sampler("a fox", **call).images[0]

    def program(communicator):
        own = Sampler(sampler.backbone, sampler.composition, model="pipeline")
        asks = kept if communicator.rank == 0 else lambda *step: None
        return own("a fox", spread=Spread(communicator=communicator), callback_on_step_end=asks, **call).images[0]

    with torch.inference_mode():
        assert all(torch.equal(each, alone) for each in InProcess(timeout=600).run(2, program))
    assert len(kept.pictures) == 4


def test_a_preview_is_no_longer_there_after_its_callback(pipe):
    runs = []
    Sampler.from_pipeline(pipe, "direct")("a fox", callback_on_step_end=lambda run, *step: runs.append(run), **CALL)
    with pytest.raises(ConfigError, match="called after its callback"):
        runs[0].preview()


@given(st.integers(1, 1024), st.integers(1, 1024), st.sampled_from([8, 16, 64, 128]))
def test_a_preview_has_the_cells_of_a_training_picture_at_most(height, width, native):
    size = reduced((height, width), native)
    assert min(size) >= 1 and math.prod(size) <= native**2
    assert size == (height, width) if height * width <= native**2 else size < (height, width)


def test_a_decoder_gives_one_preview_for_equal_latents(pipe):
    """It draws from no stream of the run: whoever asks twice gets the same."""
    seen = []

    def twice(run, *step):
        seen.append((run.preview().tobytes(), run.preview().tobytes()))

    Sampler.from_pipeline(pipe, "direct")("a fox", callback_on_step_end=twice, **CALL)
    assert all(one == other for one, other in seen)


# ---------------------------------------------------------------- the command line

FOX = ("sample", "a fox", "--size", "96x80", "--steps", "4", "-m", "multidiffusion", "-o", "fox.png")


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    return lambda *words: vitrail(monkeypatch, capsys, *FOX, *words, "--model", folder)


def pixels(path):
    with Image.open(path) as image:
        return image.size, image.convert("RGB").tobytes()


def test_the_file_is_written_as_the_run_goes_and_the_picture_is_the_same(run, monkeypatch):
    from vitrail.sampling import previews

    written, save = [], previews.save_preview

    def watched(image, path):
        save(image, path)
        written.append((str(path), is_preview(path)))

    monkeypatch.setattr(previews, "save_preview", watched)
    assert run().code == 0
    whole = pixels("fox.png")
    assert run("--force", "--preview", "now.png", "--preview-every", "3").code == 0
    assert written == [("now.png", True)] * 2  # after the first step and the fourth
    assert pixels("fox.png") == whole and not is_preview(Path("fox.png"))
    assert not list(Path().glob(".vitrail-*"))


def test_ranks_that_are_threads_write_one_file(run):
    assert run().code == 0
    whole = pixels("fox.png")
    assert run("--force", "--preview", "now.png", "--ranks", "2", "--comm", "in-process").code == 0
    assert pixels("fox.png") == whole and is_preview(Path("now.png"))


def test_a_preview_that_cannot_be_written_is_one_warning(run, monkeypatch, caplog):
    Path("away").mkdir()
    call = PreviewFile.__call__

    def gone(self, *step):
        if Path("away").exists():
            Path("away").rmdir()
        call(self, *step)

    monkeypatch.setattr(PreviewFile, "__call__", gone)
    assert run("--preview", "away/now.png", "--preview-every", "1").code == 0 and Path("fox.png").exists()
    assert [record.message.count("preview.not_written") for record in caplog.records] == [1]


def test_a_preview_that_a_library_cannot_decode_is_one_warning(run, monkeypatch, caplog):
    from vitrail.sampling import called_steps

    def broken(*given):
        raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(called_steps, "preview", broken)
    assert run("--preview", "now.png", "--preview-every", "1").code == 0 and Path("fox.png").exists()
    assert [record.message.count("preview.not_written") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--preview", "fox.png"], "writes this file, too"),
        (["--preview", "now.png", "--trace", "now.png"], "writes this file, too"),
        (["--preview", "now.jpg"], "only .png files are written"),
        (["--preview", "away/now.png"], "the folder away does not exist"),
        (["--preview", "now.png", "--preview-every", "0"], "--preview-every must be 1 or more"),
        (["--preview", "photo.png"], "exists and is no preview"),
        (["--preview", "photo.png", "--force", "--image", "photo.png"], "--image reads this file"),
    ],
)
def test_a_preview_that_would_cost_another_file_is_refused(run, words, told):
    Image.new("RGB", (96, 80)).save("photo.png")
    before = Path("photo.png").read_bytes()
    answer = run(*words)
    assert answer.code == 2 and told in answer.err
    assert Path("photo.png").read_bytes() == before and not Path("fox.png").exists()
