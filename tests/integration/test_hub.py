"""A hub id is loaded from the hub or its cache, and what cannot be had is told: asked of a hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_families import tiny_sd

SUPPORT = Path(__file__).parents[1] / "support"
PROGRAM = """
import hashlib, json, sys
from vitrail.backbones.loading.model_loader import load_pipeline
from vitrail.backbones.loading.source import ModelOptions, find_model
from vitrail.sampling.discovery import registry
from vitrail.errors import ModelError

def digest(pipe):
    values = [value.numpy().tobytes() for part in ("unet", "vae", "text_encoder")
              for value in getattr(pipe, part).state_dict().values()]
    return hashlib.sha256(b"".join(values)).hexdigest()

for asked in sys.argv[1:]:
    options = json.loads(asked)
    try:
        source = find_model(options.pop("model"), registry(), ModelOptions(**options)).source
        print(json.dumps(["loaded", digest(load_pipeline(source, "cpu"))]), flush=True)
    except ModelError as error:
        print(json.dumps(["refused", str(error)]), flush=True)
"""
CACHED = "snapshots/" + "c" * 40


class Hub:
    """A hub with tiny models, and a cache of its own."""

    def __init__(self, root):
        self.root, self.home = root, root / "home"
        pipe = tiny_sd()
        pipe.save_pretrained(root / "org" / "tiny")
        pipe.save_pretrained(root / "org" / "half", variant="fp16")
        add_safety_checker(root / "org" / "tiny")
        (root / "org" / "files").mkdir()
        command = [sys.executable, SUPPORT / "tiny_hub.py"]
        self.server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        self.port = self.server.stdout.readline().strip()

    def ask(self, *models, offline=False, home=None):
        """What a process is told of each model: loaded with a digest, or refused with a message."""
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_HOME": str(home or self.home),
            "HF_HUB_OFFLINE": "1" if offline else "0",
        }
        asked = [json.dumps({"model": model} if isinstance(model, str) else model) for model in models]
        command = [sys.executable, "-c", PROGRAM, *asked]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]

    def cached(self, name):
        """Files of a model in the cache."""
        snapshot = self.home / "hub" / f"models--org--{name}" / CACHED
        return {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()}


def add_safety_checker(folder):
    """A part that nobody loads."""
    (folder / "safety_checker").mkdir()
    for name, copy in (("config.json", "config.json"), ("diffusion_pytorch_model.safetensors", "model.safetensors")):
        shutil.copy(folder / "unet" / name, folder / "safety_checker" / copy)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    hub = Hub(tmp_path_factory.mktemp("hub"))
    yield hub
    hub.server.kill()
    hub.server.wait()
    hub.server.stdout.close()


@pytest.fixture(scope="module")
def online(hub):
    """What is told of several models when the hub answers."""
    half, other = {"model": "org/half", "variant": "fp16"}, {"model": "org/tiny", "revision": "v2"}
    unfit = {"model": "org/tiny", "variant": "fp16"}
    names = ("tiny", "half", "revision", "variant", "none", "gated", "files")
    asked = ("org/tiny", half, other, unfit, "org/none", "org/gated", "org/files")
    return dict(zip(names, hub.ask(*asked), strict=True))


def test_what_is_needed_is_fetched_and_nothing_else(hub, online):
    assert online["tiny"][0] == online["half"][0] == "loaded"
    assert online["tiny"][1] == online["half"][1]
    files = hub.cached("tiny")
    assert {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"} < files
    assert not any(name.startswith("safety_checker") for name in files)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.cached("half")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("revision", "the hub has no revision 'v2' of it"),
        ("variant", "variant=fp16"),
        ("none", "no such model, or it is private: `hf auth login`"),
        ("gated", "access is asked for on the model's page first; then `hf auth login` and `hf download org/gated`"),
        ("files", "it is not in diffusers' layout; download its .safetensors file and give the path"),
    ],
)
def test_what_the_hub_refuses_is_told(hub, online, name, words):
    kind, text = online[name]
    assert kind == "refused" and words in text
    assert f"in the cache {hub.home / 'hub'}" in text and "no folder 'org/" in text


@pytest.mark.thorough
def test_without_a_network_the_cache_serves(hub, online, tmp_path):
    """What is in it, what is in it in part, and what is not."""
    shutil.copytree(hub.home, tmp_path / "home", symlinks=True)
    shutil.rmtree(tmp_path / "home" / "hub" / "models--org--half" / CACHED / "vae")
    half, old = {"model": "org/half", "variant": "fp16"}, {"model": "org/tiny", "revision": "v2"}
    told = hub.ask("org/tiny", half, old, "org/none", offline=True, home=tmp_path / "home")
    assert told[0] == online["tiny"]
    assert told[1][0] == "refused" and "`hf download org/half` gets what is missing" in told[1][1]
    assert "vae: no folder" in told[1][1]
    assert "it is not there, and HF_HUB_OFFLINE is set" in told[2][1]
    assert "`hf download org/tiny --revision v2`" in told[2][1]
    assert f"in the cache {tmp_path / 'home' / 'hub'}" in told[3][1] and "`hf download org/none`" in told[3][1]


@pytest.mark.thorough
def test_a_snapshot_put_into_the_cache_serves(hub, online, tmp_path):
    """As `hf download` leaves it: a reference that names a commit, and the commit's files."""
    model = tmp_path / "hub" / "models--me--mine"
    shutil.copytree(hub.root / "org" / "tiny", model / "snapshots" / ("d" * 40))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("d" * 40)
    assert hub.ask("me/mine", offline=True, home=tmp_path) == [online["tiny"]]


@pytest.mark.slow
def test_a_hub_out_of_reach_is_told(hub, tmp_path):
    """The hub's library tries for half a minute."""
    port, hub.port = hub.port, 9
    try:
        ((kind, text),) = hub.ask("org/tiny", home=tmp_path)
    finally:
        hub.port = port
    assert kind == "refused" and "the hub is out of reach" in text and "`hf download org/tiny`" in text
