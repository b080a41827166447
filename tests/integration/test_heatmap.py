"""Heat maps: what a mask source saw is recorded as it was, and drawn; what cannot be drawn is refused at once."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from command_line import vitrail
from often import every
from tiny_families import FAMILIES
from vitrail.core.method.composition import Composition
from vitrail.core.method.hookspecs import hookimpl
from vitrail.core.method.stage import Stage
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.masking.joint_attention import JointAttention
from vitrail.plugins.masking.up_block_attention import UpBlockAttention
from vitrail.plugins.patching.whole import Whole
from vitrail.sampling.heatmap_figure import overlaid
from vitrail.sampling.mask_recorder import MaskRecorder, read_shares
from vitrail.sampling.sampler import Sampler

CALL = {"height": 64, "width": 64, "num_inference_steps": 4}
MASKINGS = {"sd": UpBlockAttention, "sdxl": UpBlockAttention, "sd3": JointAttention}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every family as a diffusers folder."""
    root = tmp_path_factory.mktemp("models")
    for name in MASKINGS:
        FAMILIES[name]().save_pretrained(root / name)
    return root


def sampler_of(folder, masking, plugins=()):
    composition = Composition(stages=[Stage(patching=Whole(), fusion=Average(), masking=masking)])
    return Sampler.from_pretrained(str(folder), composition, plugins=plugins)


class Answers:
    """Every answer of the mask source and what it was given."""

    def __init__(self):
        self.seen = []

    @hookimpl(wrapper=True)
    def vitrail_mask(self, step, key, predicted, state):
        answer = yield
        self.seen.append((predicted, key, answer[0]))
        return answer


@pytest.mark.parametrize("family", MASKINGS)
def test_what_is_recorded_is_what_the_run_saw_and_the_run_is_the_same(family, folders):
    first = sampler_of(folders / family, MASKINGS[family]())
    plain = first("a fox", **CALL, output_type="latent").latents
    recorder, answers = MaskRecorder((0.5, 1.0), True), Answers()
    recorded = first.again([("recorder", recorder), ("answers", answers)])("a fox", **CALL, output_type="latent")
    assert torch.equal(recorded.latents, plain)
    assert [moment.step for moment in recorder.moments] == [2, 4]
    for moment in recorder.moments:
        predicted, key, mask = answers.seen[moment.step - 1]
        assert torch.equal(moment.mask, mask)
        assert torch.equal(moment.clean, key.clean)
        assert moment.layers.keys() == predicted.layers.keys()
        layers = torch.stack(list(moment.layers.values()))
        torch.testing.assert_close(layers.mean(0), predicted.attention)  # as many attention layers in each block
        assert layers.flatten(1).std(1).min() > 0
    torch.testing.assert_close(recorder.moments[-1].clean, plain, rtol=1e-3, atol=1e-4)


def test_the_words_of_a_mask_choose_its_tokens(folders):
    maps = {}
    for words in ((), ("fox",), ("on",), ("fox", "on")):
        recorder = MaskRecorder((1.0,), True)
        sampler = sampler_of(folders / "sd", UpBlockAttention(words=words), [("recorder", recorder)])
        sampler("a fox on", **CALL, output_type="latent")
        maps[words] = torch.stack(list(recorder.moments[0].layers.values()))
    assert torch.equal(maps[()], maps[("fox",)])  # the others are stop words
    assert not torch.equal(maps[("fox",)], maps[("on",)])
    weights = torch.tensor([1.0, 2.0]) / 3  # "on" has two tokens in this vocabulary
    both = weights[0] * maps[("fox",)] + weights[1] * maps[("on",)]
    torch.testing.assert_close(maps[("fox", "on")], both)


def test_the_largest_of_the_tokens_is_no_less_than_their_mean(folders):
    maps = {}
    for tokens in ("mean", "max"):
        recorder = MaskRecorder((1.0,), True)
        masking = UpBlockAttention(words=("fox", "on"), tokens=tokens)
        sampler_of(folders / "sd", masking, [("recorder", recorder)])("a fox on", **CALL, output_type="latent")
        maps[tokens] = torch.stack(list(recorder.moments[0].layers.values()))
    assert (maps["max"] >= maps["mean"]).all() and (maps["max"] > maps["mean"]).any()


@pytest.mark.parametrize(
    ("family", "words", "told"),
    every(
        2,
        [
            ("sd", [], "attention after step 1, 2, 4 of 4"),
            ("sdxl", ["--words", "fox", "--at", "0.6"], "attention after step 2 of 4"),
            ("sd3", ["--set", "stages.0.masking.blocks=[0,-1]"], "attention after step 1, 2, 4 of 4"),
            ("sd3", ["--masking", "pfsa", "--size", "96x64"], "pfsa after step 1, 2, 4 of 4"),
        ],
    ),
)
def test_a_heat_map_is_drawn(family, words, told, folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "heat.png"
    line = ["heatmap", "a fox", "--model", folders / family, "--steps", 4, "-o", out, *words]
    answer = vitrail(monkeypatch, capsys, *line)
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == f"{out}: {told}"
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert min(picture.shape[:2]) > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    assert sorted(tmp_path.iterdir()) == [out]


REFUSED = {
    "no map": (["--masking", "none"], "--masking none makes no map; choose one of attention"),
    "unserved": (
        ["--masking", "joint-attention"],
        "needs 'joint-attention-maps'; attention, none, pfsa or up-",
    ),
    "words of pfsa": (["--masking", "pfsa", "--words", "fox"], "masking 'pfsa' has no key 'words'"),
    "share": (["--at", "0.5,1.5"], "--at '0.5,1.5': write shares of the steps"),
    "no share": (["--at", "half"], "--at 'half': write shares of the steps"),
    "suffix": (["-o", "heat.jpg"], "--output heat.jpg: a heat map is drawn as .png, .svg, .pdf"),
    "folder": (["-o", "nowhere/heat.png"], "--output nowhere/heat.png: there is no folder nowhere"),
    "steps": (["--steps", 0], "vitrail heatmap:\n  --num-inference-steps: must be >= 1"),
    "model": (["--model", "dmo"], "did you mean 'demo'?"),
}


@pytest.mark.parametrize(("words", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_drawn_is_refused_before_a_model_is_loaded(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    answer = vitrail(monkeypatch, capsys, "heatmap", "a fox", *words)
    assert answer.code == 2 and told in answer.err
    assert not answer.out and not list(tmp_path.iterdir())


def test_every_problem_is_told_at_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "heat.png").touch()
    answer = vitrail(monkeypatch, capsys, "heatmap", "a fox", "-o", tmp_path / "heat.png", "--steps", 0)
    assert "exists; give another name, or --force" in answer.err and "must be >= 1" in answer.err


def test_without_matplotlib_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    answer = vitrail(monkeypatch, capsys, "heatmap", "a fox")
    assert answer.code == 2 and "pip install 'vitrail[plot]'" in answer.err


@pytest.mark.parametrize(
    ("prompt", "words", "told"),
    [
        ("a fox", ["--words", "cat"], "'cat' is not in it. Its words: a, fox"),
        ("a", [], "the prompt has no word that counts"),
    ],
)
def test_words_that_are_not_there_end_it_before_the_first_step(
    prompt, words, told, folders, tmp_path, monkeypatch, capsys
):
    line = ["heatmap", prompt, "--model", folders / "sd", "-o", tmp_path / "heat.png", *words]
    answer = vitrail(monkeypatch, capsys, *line)
    assert answer.code == 2 and told in answer.err
    assert "step" not in answer.out and not list(tmp_path.iterdir())


@given(shares=st.lists(st.floats(0.001, 1), min_size=1, max_size=5))
def test_shares_are_read_as_they_are_written(shares):
    assert read_shares(",".join(map(str, shares))) == tuple(shares)


@given(low=st.floats(-1, 1), spread=st.floats(0.001, 5))
def test_colours_follow_the_map_and_leave_the_rest_grey(low, spread):
    picture = Image.fromarray(np.full((16, 16, 3), (30, 90, 200), np.uint8))
    heat = np.full((16, 16), low, np.float32)
    heat[:, 8:] += spread
    drawn = np.asarray(overlaid(picture, heat, stretch=True)).astype(int)
    grey = np.asarray(overlaid(picture, None, stretch=True)).astype(int)
    assert (drawn[:, :8] == grey[:, :8]).all() and np.ptp(grey[0, 0]) == 0
    red, _, blue = drawn[0, 15]
    assert red > blue
