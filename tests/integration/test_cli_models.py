"""``vitrail sample`` on a checkpoint of every family, as a folder and as a single file, with sockets blocked."""

import functools
import json
import socket

import pytest
from PIL import Image

from command_line import vitrail
from original_format import save_single_file
from tiny_families import FAMILIES

METHODS = {"sd": "asg", "sd2": "multidiffusion", "sdxl": "asg", "sd3": "cutdiffusion"}
WORDS = ["a fox", "--size", "128", "--steps", "2", "--guidance-scale", "3", "--seed", "3"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a model that is here needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return functools.partial(vitrail, monkeypatch, capsys)


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoints(request, tmp_path_factory):
    """The family, its folder and its file."""
    folder = tmp_path_factory.mktemp(request.param)
    pipe = FAMILIES[request.param]()
    pipe.save_pretrained(folder / "model")
    return request.param, folder / "model", save_single_file(pipe, folder / "model.safetensors")


def test_sample_and_replay_from_folder_and_file(checkpoints, run, tmp_path):
    family, folder, file = checkpoints
    method = ["--method", METHODS[family]]
    one = run("sample", *WORDS, *method, "--model", str(folder), "-o", "folder.png")
    assert one.code == 0, one
    other = run("sample", *WORDS, *method, "--model", str(file), "--model-config", str(folder), "-o", "file.png")
    assert other.code == 0, other
    first, second = (Image.open(tmp_path / f"{name}.png") for name in ("folder", "file"))
    assert first.size == (128, 128) and first.tobytes() == second.tobytes()
    recipe = json.loads(second.text["vitrail.run"])["run"]
    assert recipe["model"] == "model.safetensors" and recipe["model_config"] == "model"
    again = run("replay", "file.png", "--model", str(file), "--model-config", str(folder), "-o", "again.png")
    assert again.code == 0, again
    assert Image.open(tmp_path / "again.png").tobytes() == first.tobytes()


def test_picture_to_picture(checkpoints, run, tmp_path):
    _, folder, _ = checkpoints
    Image.new("RGB", (40, 40), (200, 30, 30)).save("start.png")
    words = [*WORDS, "--method", "multidiffusion", "--model", str(folder), "--image", "start.png"]
    one = run("sample", *words, "--strength", "0.5", "-o", "one.png")
    assert one.code == 0, one
    assert "1 steps with" in one.out + one.err
    recipe = json.loads(Image.open("one.png").text["vitrail.run"])["run"]
    assert recipe["image"] == "start.png" and recipe["strength"] == 0.5
    gone = run("sample", *words, "--strength", "0", "-o", "two.png")
    assert gone.code == 2 and "strength 0 of 2 steps leaves no step to do" in gone.err
    missing = run("sample", *words[:-1], "nowhere.png", "-o", "three.png")
    assert missing.code == 2 and "image 'nowhere.png': no such file" in missing.err
