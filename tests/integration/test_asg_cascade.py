"""What makes ``asg-cascade`` itself: the coarse part follows the picture so far, fully where a remembered word is."""

import pytest
import torch
import torch.nn.functional as F
from attrs import evolve

from vitrail import hookimpl
from vitrail.core.config.run_config import RunConfig
from vitrail.plugins.guidance.anchored import coarse
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

WORDS, SCALE, ELSEWHERE = ("a", "red", "fox"), 0.8, 0.5


class Planted:
    """Puts a map of its own in place of what the network saw of every word, and keeps what guidance got and gave."""

    def __init__(self, maps):
        self.maps, self.seen = maps, []

    @hookimpl(wrapper=True)
    def vitrail_predict(self, rows):
        answer = yield
        if answer.words is None:
            return answer
        return evolve(answer, words=F.interpolate(self.maps, answer.words.shape[-2:]))

    @hookimpl(wrapper=True)
    def vitrail_guide(self, subject, scene):
        guided = yield
        self.seen.append((subject, guided[0], scene))
        return guided


def planted():
    """A fox in the upper left quarter, less one row; Float32[Tensor, "1 3 8 8"]."""
    maps = torch.zeros(1, len(WORDS), 8, 8)
    maps[..., :3, :4] = 1
    return maps


def guided(pipe, *sets, height=128, width=128):
    plugin = Planted(planted())
    sampler = Sampler.from_pipeline(pipe, load_method("asg-cascade", sets), plugins=[("planted", plugin)])
    config = RunConfig(prompt="a red fox", height=height, width=width, num_inference_steps=10, guidance_scale=2.0)
    sampler.run(config, output_type="latent")
    return plugin.seen


def test_the_mask_is_the_remembered_map_at_the_size_of_the_canvas(pipe):
    seen = guided(pipe)
    assert len(seen) == 2  # the strength of the last size is a fifth
    for _, _, scene in seen:
        expected = F.interpolate(planted()[:, :1], (16, 16), mode="bilinear")
        torch.testing.assert_close(scene.mask, expected)
        assert scene.mask.min() == 0 and scene.mask.max() == 1


def test_inside_it_moves_fully_and_elsewhere_by_its_share(pipe):
    for before, after, scene in guided(pipe):
        moved = after.clean - before.clean
        whole = SCALE * coarse(scene.start.clean - before.clean, 2, scene.canvas)
        inside, outside = (scene.mask == value for value in (1.0, 0.0))
        assert inside.sum() > 20 and outside.sum() > 100 and whole.abs().mean() > 1e-3
        for place, share in ((inside, 1.0), (outside, ELSEWHERE)):
            ratio = (moved * place).abs().sum() / (whole * place).abs().sum()
            assert float(ratio) == pytest.approx(share, rel=1e-3)
        weight = ELSEWHERE + (1 - ELSEWHERE) * scene.mask
        torch.testing.assert_close(moved, weight * whole, rtol=1e-3, atol=1e-4)


def test_without_a_mask_it_moves_everywhere_alike(pipe):
    for before, after, scene in guided(pipe, "stages.1.masking=none"):
        assert scene.mask is None
        whole = SCALE * coarse(scene.start.clean - before.clean, 2, scene.canvas)
        torch.testing.assert_close(after.clean - before.clean, whole, rtol=1e-3, atol=1e-4)


def test_where_the_canvas_is_padded_the_mask_is_that_of_the_picture(pipe):
    """Dilated views beside the windows, whose stride is 3, take 17 x 25 cells to 18 x 27; the first size has 7 x 10."""
    dilated = "stages.1.extra_views=[{patching='dilated',fusion='scatter',weight=0.5}]"
    *_, (_, _, scene) = guided(pipe, dilated, height=136, width=200)
    assert scene.start.picture.shape[-2:] == (136, 200)
    assert (scene.canvas.height, scene.canvas.width) == (18, 27) and scene.canvas.inner == (17, 25)
    seen = F.interpolate(planted()[:, :1], (7, 10))
    inner = F.interpolate(seen, (17, 25), mode="bilinear")
    torch.testing.assert_close(scene.mask[..., :17, :25], inner)
    assert torch.equal(scene.mask[..., 17:, :], scene.mask[..., 16:17, :])
    assert torch.equal(scene.mask[..., 25:], scene.mask[..., 24:25].expand(-1, -1, -1, 2))


def test_asg_fast_is_asg_cascade_without_guidance_after_the_first_size():
    assert load_method("asg-fast") == load_method("asg-cascade", ["stages.1.guidance_interval=[0.0, 0.0]"])


@pytest.mark.parametrize("side", [2, 3, 4])
@pytest.mark.parametrize("num_steps", [12, 30])
def test_asg_fast_asks_less_than_two_fifths_of_what_asg_plus_asks(pipe, side, num_steps):
    native = 64
    run = RunConfig(prompt="a fox", height=side * native, width=side * native, num_inference_steps=num_steps)
    fast, slow = (Sampler.from_pipeline(pipe, name).plan(run).model_calls for name in ("asg-fast", "asg-plus"))
    assert fast <= 0.4 * slow
