"""What users type and bring, in the encodings and places that they have: read, or refused in one line."""

import codecs
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from structlog.testing import capture_logs

from command_line import start, vitrail
from often import every
from toy import sample, toy_sampler
from vitrail import Composition, Stage, hookimpl
from vitrail.backbones.loading.model_loader import find_device
from vitrail.cli.arguments import prepare
from vitrail.core.config.files import read_file
from vitrail.core.method.inputs import Extras
from vitrail.errors import ConfigError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.guidance.structure import SyncGuidance
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.patching.windows import Windows
from vitrail.sampling.input_digests import given_digests
from vitrail.sampling.sampler import Sampler

SMALL = ["sample", "a fox", "--size", "64", "--steps", "1", "--method", "direct"]
TOML = 'prompt = "a fox in snow: füchse"\nmethod = "direct"\n'


def run(folder, *words, **environment):
    """The program itself, with what the environment says besides."""
    return subprocess.run(
        [sys.executable, "-m", "vitrail", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        check=False,
    )


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_a_mark_at_the_beginning_of_a_file_is_no_content(tmp_path, suffix):
    file, text = tmp_path / f"run{suffix}", TOML if suffix == ".toml" else TOML.replace(" =", ":")
    text = text.replace("snow:", "snow,")
    file.write_bytes(codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode())
    assert read_file(file) == {"prompt": "a fox in snow, füchse", "method": "direct"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_in_another_encoding_is_refused_by_its_name(tmp_path, encoding):
    file = tmp_path / "run.toml"
    file.write_bytes((("" if encoding == "utf-16" else "\ufeff") + TOML).encode(encoding))
    with pytest.raises(ConfigError, match="is UTF-16 text; save it as UTF-8"):
        read_file(file)


def test_the_picture_of_a_file_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "runs" / "x.png")
    file = tmp_path / "runs" / "run.toml"
    file.write_text(TOML + 'image = "x.png"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert prepare({}, None, file)[0].image == str(tmp_path / "runs" / "x.png")
    with pytest.raises(ConfigError, match="no such file"):
        prepare({"image": "x.png"}, None, file)  # a flag's is found from here
    monkeypatch.setenv("HOME", str(tmp_path / "runs"))
    file.write_text(TOML + 'image = "~/x.png"\n', encoding="utf-8")
    assert prepare({}, None, file)[0].image == str(tmp_path / "runs" / "x.png")
    assert prepare({"image": "~/x.png"}, None, file)[0].image == "~/x.png"


# ---------------------------------------------------------------- terminals


def test_a_terminal_without_the_signs_shows_others(tmp_path):
    done = run(tmp_path, "methods", PYTHONIOENCODING="cp932")
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    done = run(tmp_path, "sample", "a fox: f\u00fcchse", "--method", "f\u00fcchs", PYTHONIOENCODING="cp932")
    assert done.returncode == 2 and b"Traceback" not in done.stderr and b"no method named 'f?chs'" in done.stderr


def test_a_prompt_that_is_no_text_is_refused(tmp_path):
    done = run(tmp_path, "sample", b"a \xff fox", PYTHONUTF8="1")
    assert done.returncode == 2 and b"expected text in UTF-8" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.thorough
def test_a_reader_that_goes_away_does_not_take_the_picture_along(tmp_path):
    process = start(tmp_path, *SMALL, "-o", "fox.png")
    process.stdout.close()
    with process:
        told = process.stderr.read()
    assert process.returncode == 0 and "Traceback" not in told
    with Image.open(tmp_path / "fox.png") as picture:
        assert picture.size == (64, 64)


@pytest.mark.parametrize("closed", every(3, ["<&- >&- 2>&-", ">&-", "2>&-"]))
def test_a_closed_stream_is_no_reason_to_stop(tmp_path, closed):
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$0" -m vitrail "$@" {closed}', sys.executable, *SMALL, "-o", "fox.png"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    with Image.open(tmp_path / "fox.png") as picture:
        picture.load()


@pytest.mark.parametrize("length", [256, 4000])
def test_a_name_that_is_too_long_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, capsys, length):
    monkeypatch.chdir(tmp_path)
    answer = vitrail(monkeypatch, capsys, *SMALL, "-o", "x" * (length - 4) + ".png")
    assert answer.code == 2 and "a name in it may have 255 bytes" in answer.err
    assert "loading" not in answer.out


# ---------------------------------------------------------------- one line each


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "npu:0"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name):
    with pytest.raises(ConfigError) as caught:
        find_device(name)
    told = str(caught.value)
    assert told.startswith(f"no device {name!r} here: ") and "\n" not in told and len(told) < 220


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"image": np.zeros((8, 8, 3), np.uint8), "strength": 0.0}, "strength 0 of 4 steps"),
        ({"latents": torch.zeros(1, 4, 8, 16)}, r"latents must be \(1, 4, 16, 16\) for this canvas"),
        ({"image": torch.zeros(1, 4, 8, 16)}, r"floats of \(1, 4, 8, 16\) may be .* latents of another canvas"),
    ],
    ids=["strength", "latents", "image"],
)
def test_a_refusal_is_told_once(given, told):
    """By the exception, and before anybody is told that a run has started."""
    begun = []

    class Watch:
        @hookimpl
        def vitrail_run_start(self, num_steps):
            begun.append(num_steps)

    sampler = toy_sampler(plugins=[("watch", Watch())])
    with capture_logs() as events, pytest.raises(ConfigError, match=told):
        sample(sampler, **given)
    assert not {"run.started", "run.failed"} & {event["event"] for event in events} and not begun
    sample(sampler)
    assert len(begun) == 1


def test_numbers_of_numpy_make_the_same_picture(pipe):
    sampler = Sampler.from_pipeline(pipe, "direct")
    call = {"height": 64, "width": 64, "num_inference_steps": 1, "seed": 3, "guidance_scale": 2.0}
    typed = {"height": np.int64(64), "width": np.uint16(64), "num_inference_steps": np.int32(1), "seed": np.int64(3)}
    plain, other = (sampler("a fox", **c) for c in (call, typed | {"guidance_scale": np.float32(2.0)}))
    assert (plain.latents == other.latents).all() and plain.recipes[0] == other.recipes[0]


@pytest.mark.parametrize("share", [np.float32, np.float64, np.float16])
def test_numbers_of_numpy_in_a_method_that_is_put_together_are_written_as_numbers(pipe, share):
    def made(number):
        guidance = [SyncGuidance(scale=number(0.5))]
        stage = Stage(patching=Windows(overlap=number(0.5)), fusion=Average(), masking=NoMask(), guidance=guidance)
        call = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}
        return Sampler.from_pipeline(pipe, Composition(stages=[stage]))("a fox", **call)

    plain, other = made(float), made(share)
    assert (plain.latents == other.latents).all()
    assert other.recipes[0].digest == plain.recipes[0].digest and other.recipes[0] == plain.recipes[0]
    assert type(other.recipes[0].method["stages"][0]["patching"]["overlap"]) is float


def test_numbers_of_numpy_beside_the_plain_options_are_numbers(pipe):
    def made(share):
        call = {"height": 64, "width": 64, "num_inference_steps": 1, "guidance_scale": 2.0, "output_type": "latent"}
        sampler = Sampler.from_pipeline(pipe, "direct")
        return sampler("a fox", cross_attention_kwargs={"scale": share(0.5)}, **call)

    plain, other = made(float), made(np.float32)
    assert (plain.latents == other.latents).all() and plain.recipes[0] == other.recipes[0]
    for numbers in ({"clip_skip": 1}, {"controlnet_conditioning_scale": [0.5, 1.0]}, {"control_guidance_end": 0.5}):
        typed = {k: [np.float64(x) for x in v] if isinstance(v, list) else np.array(v)[()] for k, v in numbers.items()}
        assert given_digests(Extras(**typed), None) == given_digests(Extras(**numbers), None)
