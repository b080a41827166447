"""Files that cannot be written: one message, and what was computed is kept, with the command that goes on."""

import contextlib
import functools
import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from test_kept_latents import pixels

from command_line import vitrail
from full_disk import no_file_larger_than
from vitrail.backbones.pipeline_backbone import PipelineBackbone
from vitrail.sampling.recipe import read_recipe

FOX = ("sample", "a fox", "--size", "96x80", "--steps", "3", "-m", "multidiffusion")
ROOM = 10_000  # bytes: more than the latents take, less than the picture


@pytest.fixture(autouse=True)
def _terminal():
    """Heed a closed terminal, also where the tests themselves were started so that they do not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """``vitrail`` in a folder of its own, whose temporary files go to another."""
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def call(*words):
        model = ("--model", folder) if words[0] == "sample" else ()
        return vitrail(monkeypatch, capsys, *words, *model)

    call.folder = folder
    return call


@pytest.fixture
def before(monkeypatch):
    """Have something happen once before a method of the backbone is called for the n-th time."""

    def plant(name, act, call=1):
        method, calls = getattr(PipelineBackbone, name), iter(range(1, 10_000))

        @functools.wraps(method)
        def planted(*arguments, **named):
            if next(calls) == call:
                act()
            return method(*arguments, **named)

        monkeypatch.setattr(PipelineBackbone, name, planted)

    return plant


def goes_on(run, told, output="fox.png"):
    """Run the command that was told, and compare with an undisturbed run."""
    again = re.search(r"latents are kept; go on with `vitrail (.+)`", told.out)
    assert again, told.out
    Path(output).parent.mkdir(exist_ok=True)
    Path(output).unlink(missing_ok=True)
    assert run(*again[1].split()).code == 0
    assert run(*FOX, "-o", "whole.png").code == 0
    assert pixels(output) == pixels("whole.png")
    assert read_recipe(Path(output)).run == read_recipe(Path("whole.png")).run


def leftovers():
    return [path.name for path in Path().rglob("*") if ".part" in path.name]


def test_a_picture_for_which_there_is_no_room_is_kept_as_latents_beside(run):
    with no_file_larger_than(ROOM):
        told = run(*FOX, "-o", "fox.png")
    assert told.code == 1
    assert told.err.strip() == "Error: fox.png: cannot be written: File too large"
    assert Path("fox.latents.safetensors").exists() and not Path("fox.png").exists() and not leftovers()
    goes_on(run, told)


def test_a_folder_that_is_gone_leaves_the_latents_in_the_temporary_one(run, before):
    Path("away").mkdir()
    before("decode", lambda: shutil.rmtree("away"))
    told = run(*FOX, "-o", "away/fox.png")
    assert told.code == 1 and "away/fox.png: cannot be written: No such file" in told.err
    assert (Path(tempfile.gettempdir()) / "fox.latents.safetensors").exists()
    goes_on(run, told, "away/fox.png")


def test_of_two_runs_with_one_output_the_second_overwrites_nothing(run, before):
    before("decode", lambda: Path("fox.png").write_text("theirs"))
    Path("fox-2.png").write_text("of before")
    told = run(*FOX, "-o", "fox.png")
    assert told.code == 1 and "fox.png: cannot be written: it exists by now; another run may have" in told.err
    goes_on(run, told, "fox-3.png")
    assert Path("fox.png").read_text() == "theirs" and Path("fox-2.png").read_text() == "of before"


def test_every_picture_that_can_be_written_is(run, before):
    before("decode", lambda: Path("fox-0.png").mkdir())
    told = run(*FOX, "-o", "fox.png", "--num-images", "2")
    assert told.code == 1 and "fox-0.png" in told.err
    assert Path("fox-1.png").is_file() and Path("fox-0.latents.safetensors").exists()


def test_a_trace_that_cannot_be_written_is_a_warning(run, before):
    Path("away").mkdir()
    before("decode", lambda: shutil.rmtree("away"))
    told = run(*FOX, "-o", "fox.png", "--trace", "away/trace.json")
    assert told.code == 0 and Path("fox.png").exists()
    assert "no trace: away/trace.json: cannot be written: No such file" in told.out


def test_a_checkpoint_that_cannot_be_written_is_one_warning(run, before, caplog):
    Path("away").mkdir()
    before("predict", lambda: shutil.rmtree("away"))
    told = run(*FOX, "-o", "fox.png", "--checkpoint", "away/run", "--checkpoint-every", "1")
    assert told.code == 0 and Path("fox.png").exists()
    assert [record.message.count("checkpoint.not_written") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("option", "path", "told"),
    [
        ("-o", "n" * 252 + ".png", "a name in it may have 255 bytes"),
        ("-o", "away/fox.png", "the folder away does not exist"),
        ("--trace", "/", "is a folder; name a file in it"),
        ("--trace", "", "is a folder; name a file in it"),
        ("--checkpoint", "c" * 300, "a name in it may have 255 bytes"),
        ("--checkpoint", ".", "is a folder; name a file in it"),
        ("--trace", "/dev/null", "is no regular file, and would be replaced by one"),
    ],
)
def test_what_cannot_be_a_file_is_refused_before_anything_is_loaded(run, before, option, path, told):
    def loaded():
        raise AssertionError("the network was asked")

    before("predict", loaded)
    answer = run(*FOX, option, path)
    assert answer.code == 2 and told in answer.err
    assert option in answer.err or "--output" in answer.err
    assert answer.err.count(told) == 1 and answer.err.count("--") == 1  # said once


@pytest.mark.parametrize(
    "words",
    [
        ("-o", "fox.png", "--trace", "fox.png"),
        ("-o", "fox.png", "--trace", "../here/fox.png"),
        ("-o", "fox.png", "--checkpoint", "fox.png"),
        ("-o", "fox.png", "--num-images", "2", "--trace", "fox-1.png"),
        ("-o", "fox.png", "--checkpoint", "run", "--trace", "./run"),
    ],
)
def test_two_options_that_name_one_file_are_refused_as_one_would_lose_it(run, words):
    told = run(*FOX, *words)
    assert told.code == 2 and " writes this file, too; name another" in told.err
    assert list(Path().iterdir()) == []


def test_a_picture_that_appears_while_latents_are_decoded_is_not_overwritten(run, before):
    with no_file_larger_than(ROOM):
        run(*FOX, "-o", "fox.png")
    words = ("decode", "fox.latents.safetensors", "-o", "fox.png", "--model", run.folder)
    before("to_pil", lambda: Path("fox.png").write_text("theirs"))
    told = run(*words)
    assert told.code == 1 and "fox.png: cannot be written: it exists by now" in told.err
    assert Path("fox.png").read_text() == "theirs"
    assert run(*words, "--force").code == 0 and Path("fox.png").read_bytes()[1:4] == b"PNG"


def test_a_name_as_long_as_the_system_takes_can_be_written(run):
    name = "n" * 251 + ".png"
    assert run(*FOX, "-o", name).code == 0
    assert Path(name).exists() and not leftovers()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_writing_waits_until_all_is_written(run, before, number):
    before("to_pil", lambda: None)
    from vitrail.cli import rendering

    save = rendering.save_picture
    once = iter([number])

    def disturbed(*arguments, **named):
        for each in once:
            os.kill(os.getpid(), each)
        save(*arguments, **named)

    rendering.save_picture = disturbed
    try:
        told = run(*FOX, "-o", "fox.png", "--num-images", "2")
    finally:
        rendering.save_picture = save
    assert told.code == 130
    assert Path("fox-0.png").exists() and Path("fox-1.png").exists() and not leftovers()
    assert "nothing was written" not in told.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_at_once_keeps_the_pictures_that_were_whole(run, before, number):
    def twice():
        os.kill(os.getpid(), number)
        while signal.getsignal(number) is not signal.default_int_handler:  # another thread hears of the first meanwhile
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    told = run(*FOX, "-o", "one.png")
    calls = int(re.search(r"with (\d+) evaluations", told.out)[1])
    before("predict", twice, calls + 1)  # in the second picture, as each forward has one row or more
    with contextlib.suppress(KeyboardInterrupt):
        told = run(*FOX, "-o", "fox.png", "--num-images", "2", "--row-batch", "1")
    assert told.code == 130 and "1 whole picture had yet to be decoded" in told.err
    assert [path.name for path in Path().glob("fox*")] == ["fox-0.latents.safetensors"]
