"""A method beside a pipeline from elsewhere: equal, different from one step on, or with other draws.

The pipelines are diffusers' own panorama pipeline, which is MultiDiffusion, and one of jittered windows; they lie in
files of a git checkout, as authors' pipelines do.
"""

import json
import re
import subprocess
import sys

import pytest
from diffusers import DDIMScheduler

from tiny import in_double, small_unet, tiny_pipeline
from tiny_families import SCALED
from tools.parity.__main__ import main
from tools.parity.checkout import Checkout
from tools.parity.entries import Entry
from tools.parity.feeding import DrawsDifferError
from tools.parity.ours import compare
from tools.parity.recordings import Recording
from tools.parity.theirs import Wish, record

INITIAL = [{"stream": "initial-latents"}]
TOLERANCE = 2e-5
PANORAMA = """
from diffusers import StableDiffusionPanoramaPipeline


class Panorama(StableDiffusionPanoramaPipeline):
    pass
"""
JITTERED = '''
import random

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline


class Jittered(StableDiffusionPipeline):
    moves_after = None

    def starts(self, cells, window):
        return range(0, cells - window + 1, window // 2)

    def noise(self, shape, generator, dtype):
        return torch.randn(shape, generator=generator, dtype=dtype)

    @torch.no_grad()
    def __call__(self, prompt, height, width, num_inference_steps, guidance_scale, generator):
        texts = torch.cat(self.encode_prompt(prompt, "cpu", 1, True)[::-1])
        window, sides = self.unet.config.sample_size, (height // 8, width // 8)
        reach = window // 8
        x = self.noise((1, 4, *sides), generator, texts.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        for number, t in enumerate(self.scheduler.timesteps):
            padded = F.pad(x, (reach,) * 4)
            total, count = torch.zeros_like(padded), torch.zeros_like(padded)
            for top in self.starts(sides[0], window):
                for left in self.starts(sides[1], window):
                    right = left + reach + self.drawn(left, sides[1] - window, reach)
                    down = top + reach + self.drawn(top, sides[0] - window, reach)
                    place = (..., slice(down, down + window), slice(right, right + window))
                    rows = torch.cat([padded[place]] * 2)
                    none, some = self.unet(rows, t, encoder_hidden_states=texts).sample.chunk(2)
                    total[place] += none + guidance_scale * (some - none)
                    count[place] += 1
            inner = (..., slice(reach, reach + sides[0]), slice(reach, reach + sides[1]))
            x = self.scheduler.step(total[inner] / count[inner], t, x).prev_sample
            if number == self.moves_after:
                x = x + 0.01
        image = self.vae.decode(x / self.vae.config.scaling_factor).sample
        return [self.image_processor.postprocess(image)[0]]

    def drawn(self, start, last, reach):
        return random.randint(-reach if start < last else 0, reach if start > 0 else 0)


class Whole:
    """A folder's model, as some authors load it."""

    def __init__(self, device, hf_key=None):
        self.pipe = Jittered.from_pretrained(hf_key)
        self.unet, self.vae = self.pipe.unet, self.pipe.vae

    def draw(self, prompts, height, width):
        return self.pipe(prompts, height, width, 2, 5.0, None)[0]


class Moved(Jittered):
    moves_after = 1


class Halves(Jittered):
    def noise(self, shape, generator, dtype):
        half = (*shape[:3], shape[3] // 2)
        return torch.cat([torch.randn(half, generator=generator, dtype=dtype) for _ in range(2)], dim=3)


class Restless(Jittered):
    def noise(self, shape, generator, dtype):
        torch.rand(3)
        return super().noise(shape, generator, dtype)


class Farther(Jittered):
    def drawn(self, start, last, reach):
        drawn = random.randint(-reach, reach)
        return min(max(drawn, -reach if start < last else 0), reach if start > 0 else 0)
'''
METHOD = """
[[stages]]
patching = { type = "windows", overlap = 0.5, jitter = true, border = "leave", tail = "shift" }
fusion = "average"
"""
CALL = {
    "prompt": "$prompt",
    "height": "$height",
    "width": "$width",
    "num_inference_steps": "$steps",
    "guidance_scale": "$guidance",
    "generator": "$generator",
}


class Small:
    """In double precision, since networks make much of how they round."""

    def __init__(self, unet=None):
        self.unet = unet

    def pipeline(self):
        pipe = tiny_pipeline(DDIMScheduler(**SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1))
        pipe.unet = self.unet or pipe.unet
        return in_double(pipe)


def entry(name, file, method, size, **options):
    return Entry(
        method=str(method),
        file=f"code/{file}",
        package_root="code",
        name=name,
        build="components",
        call=CALL,
        size=size,
        steps=3,
        **options,
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    root = tmp_path_factory.mktemp("authors")
    (root / "code").mkdir()
    (root / "code/panorama.py").write_text(PANORAMA)
    (root / "code/jittered.py").write_text(JITTERED)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    return Checkout(root)


def outcome(checkout, name, tmp_path, **options):
    """Of a pipeline of jittered windows."""
    method = tmp_path / "jittered.toml"
    method.write_text(METHOD)
    streams = [{"stream": "initial-latents", "at": "noise"}, {"stream": "jitter", "form": "shifts"}]
    made = entry(name, "jittered.py", method, (2, 2.5), streams=streams, **options)
    return compare(made, record(made, checkout, Small(), Wish()), Small(), TOLERANCE)


def test_the_same_draws_give_the_same_picture(checkout, tmp_path):
    """Of MultiDiffusion, which diffusers have as a pipeline; the recording goes through a file."""
    panorama, small = (
        entry("Panorama", "panorama.py", "multidiffusion", (1, 1.125), streams=INITIAL),
        Small(small_unet()),
    )
    made = record(panorama, checkout, small, Wish(steps=2))
    made.write(tmp_path / "kept.pt")
    kept = Recording.read(tmp_path / "kept.pt")
    result = compare(panorama, kept, small, TOLERANCE)
    difference = result.comparison
    assert difference.is_equal and difference.first == "" and difference.latents > 0
    assert difference.counts == (2, 2) and difference.rows == (8, 8) and difference.deviation > 0.1
    assert result.given == ("initial-latents",)
    head = ["git", "-C", str(checkout.root), "rev-parse", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout
    assert commit.startswith(kept.commit) and len(kept.commit) == 12
    assert "panorama" not in sys.modules and str(checkout.root / "code") not in sys.path


def test_jitter_that_was_drawn_window_by_window_moves_the_same_windows(checkout, tmp_path):
    result = outcome(checkout, "Jittered", tmp_path)
    assert result.comparison.is_equal and result.comparison.first == ""
    assert result.comparison.rows == (72, 72)  # 12 windows, with and without text, in 3 steps
    assert result.given == ("initial-latents", "jitter 0", "jitter 1", "jitter 2")


def test_a_difference_is_told_at_the_first_step_that_sees_it(checkout, tmp_path):
    """The latents are moved after the second step, which the third one sees."""
    difference = outcome(checkout, "Moved", tmp_path).comparison
    assert not difference.is_equal and 0.005 < difference.latents < 0.05
    assert difference.first.startswith("step 3 ") and difference.first.endswith(": latents by 0.01")
    assert [bool(step.above(TOLERANCE)) for step in difference.steps] == [False, False, True]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "Halves",
            "'initial-latents' (shape (1, 4, 16, 20)): the authors' code drew another shape, draw 1: torch.randn, "
            "normal, of shape (1, 4, 16, 10), at code/jittered.py:",
        ),
        ("Restless", "only the authors' code has draw 1: torch.rand, uniform, of shape (3,), at code/jittered.py:"),
        (
            "Farther",
            "'jitter' 0 (shape (2, 3, 4)): window 0 of 4 along an axis does not move like that: draw 2: random.randi",
        ),
    ],
)
def test_other_draws_are_named_instead_of_compared(checkout, tmp_path, name, told):
    with pytest.raises(DrawsDifferError, match=re.escape(told)):
        outcome(checkout, name, tmp_path)


def test_foreign_code_runs_only_when_that_is_said(tmp_path, capsys):
    ran = tmp_path / "ran"
    (tmp_path / "panorama.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass MultiDiffusion: pass\n")
    asked = ["--authors", str(tmp_path), "--method", "multidiffusion", "--json", str(tmp_path / "told.json")]
    assert main(asked) == 2 and not ran.exists()
    assert "not Vitrail's code" in capsys.readouterr().out
    (told,) = json.loads((tmp_path / "told.json").read_text())
    assert told["result"] == "not compared" and "--run-foreign-code" in told["refused"]


def test_what_is_not_there_is_said(tmp_path, capsys):
    (tmp_path / "other.py").touch()
    asked = ["--authors", str(tmp_path), "--run-foreign-code", "--method"]
    assert main([*asked, "demofusion"]) == 2
    out = capsys.readouterr().out
    assert "has no pipeline_demofusion_sdxl.py, which should define DemoFusionSDXLPipeline" in out and "other.py" in out
    (tmp_path / "pipeline_demofusion_sdxl.py").write_text("class Renamed: pass\n")
    assert main([*asked, "demofusion"]) == 2
    assert "defines no DemoFusionSDXLPipeline, but Renamed" in capsys.readouterr().out
    assert main([*asked, "asg"]) == 2
    assert "published no code" in capsys.readouterr().err


ENTRY = """
["{method}"]
file = "code/jittered.py"
package_root = "code"
name = "Whole"
build = "folder"
calls = "draw"
family = "sd"
native = 8
size = [2, 2]
steps = 2
call = {{ prompts = "$prompt", height = "$height", width = "$width" }}
streams = [{{ stream = "initial-latents" }}, {{ stream = "jitter", form = "shifts" }}]
"""


def test_the_command_line_records_here_and_compares_there(checkout, tmp_path, capsys):
    """A pipeline that loads a model from a folder, by an entry of the user's own, in two calls."""
    method, own, kept, told = (tmp_path / name for name in ("jittered.toml", "own.toml", "kept.pt", "told.json"))
    method.write_text(METHOD)
    own.write_text(ENTRY.format(method=method))
    asked = ["--entry", str(own), "--method", str(method)]
    authors = ["--authors", str(checkout.root), "--run-foreign-code", "--record", str(kept)]
    assert main([*asked, *authors]) == 0
    assert main([*asked, "--recorded", str(kept), "--json", str(told)]) == 0
    assert "| equal |" in capsys.readouterr().out
    (made,) = json.loads(told.read_text())
    assert made["result"] == "equal" and made["given"] == ["initial-latents", "jitter 0", "jitter 1"]
    assert made["comparison"]["latents"] <= 5e-5 and len(made["draws"]) == 1 + 2 * 9 * 2
