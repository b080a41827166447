"""Attention in windows is attention to each window on its own, rolled there and back."""

import itertools

import pytest
import torch

from rectified import BUILD, ask, changed, exact, forward
from tiny import NATIVE
from vitrail.backbones.rectification.attention_scale import AttentionScale, self_attentions
from vitrail.backbones.rectification.window_attention import SHIFTS, WindowAttention, parted, rejoined
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError

close = torch.testing.assert_close  # in double precision
SIZES = [(1, 1), (2, 5), (7, 4), (8, 8), (13, 18)]


@pytest.fixture(params=BUILD)
def unet(request):
    return exact(request.param)


def drawn(index, number):
    generator = Streams(0).generator("window-shift", index, number)
    return int(torch.randint(SHIFTS, (), generator=generator))


# windows


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("windows", [1, 2, 3])
def test_what_is_parted_is_rejoined(size, windows):
    features = torch.randn(2, *size, 3, generator=torch.Generator().manual_seed(0)).double()
    for shift in range(SHIFTS):
        parts = parted(features, windows, shift)
        sides = [-(-side // windows) for side in size]
        assert parts.shape == (2 * windows**2, *sides, 3)
        close(rejoined(parts, *size, windows, shift), features)


def test_windows_lie_a_quarter_further_at_each_shift():
    rows = torch.arange(16.0).view(1, 16, 1, 1).expand(1, 16, 16, 1)
    for shift in range(SHIFTS):
        first = parted(rows, 2, shift)[0, :, 0, 0]
        assert first.tolist() == [float((row + 2 * shift) % 16) for row in range(8)]


def test_sides_that_do_not_part_evenly_overlap():
    rows = torch.arange(5.0).view(1, 5, 1, 1)
    parts = parted(rows, 2, 0)
    assert parts[:, :, 0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [2, 3, 4], [2, 3, 4]]
    parts[2:] += 1
    assert rejoined(parts, 5, 1, 2, 0).flatten().tolist() == [0, 1, 2.5, 4, 5]


# in a network


def test_one_window_is_no_change(unet):
    assert torch.equal(changed(unet, WindowAttention(windows=1)), ask(unet))


def test_nothing_happens_in_views_of_the_training_size(unet):
    for height, width in ((NATIVE, NATIVE), (4, 2 * NATIVE), (5, 7)):
        assert torch.equal(changed(unet, WindowAttention(), height=height, width=width), ask(unet, height, width))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (13, 18), (10, 11)])
def test_a_layer_attends_within_each_window(unet, height, width):
    numbered = [(number, layer) for number, layer in enumerate(self_attentions(unet)) if layer.name.startswith("up_")]
    number, layer = numbered[-1]
    seen = []
    handle = layer.attention.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    try:
        changed(unet, WindowAttention(sites=[layer.name]), 3, height=height, width=width)
    finally:
        handle.remove()
    (given,) = [args for args, _ in seen]
    (answer,) = [output for _, output in seen]
    for _ in range(layer.halvings):
        height, width = (height + 1) // 2, (width + 1) // 2
    down, right = (drawn(3, number) * (-(-side // 2) // 4) for side in (height, width))
    inner = rejoined(given.view(4, -(-height // 2), -(-width // 2), -1), height, width, 2, drawn(3, number))
    rolled = inner.roll((-down, -right), (1, 2))[0]
    total, count = torch.zeros_like(rolled), torch.zeros(height, width, 1)
    for rows in (slice(0, -(-height // 2)), slice(height // 2, height)):
        for cols in (slice(0, -(-width // 2)), slice(width // 2, width)):
            window = rolled[rows, cols]
            with torch.inference_mode():
                total[rows, cols] += layer.attention(window.flatten(0, 1)[None]).view(window.shape)
            count[rows, cols] += 1
    close(answer[0], (total / count).roll((down, right), (0, 1)).flatten(0, 1))


def test_shifts_are_drawn_for_each_step_and_layer_and_do_not_depend_on_rows():
    unet = exact("deep")
    assert len({drawn(step, layer) for step in range(5) for layer in range(4)}) == SHIFTS
    one = [layer.name for layer in self_attentions(unet)][1]
    chosen, answers = [WindowAttention(sites=[one]), WindowAttention()], {}
    for index in range(6):
        answers.setdefault(drawn(index, 1), []).append(changed(unet, chosen[0], index))
    assert len(answers) > 1 and any(len(each) > 1 for each in answers.values())
    firsts = [each[0] for each in answers.values()]
    assert all(torch.equal(answer, each[0]) for each in answers.values() for answer in each)
    assert not any(torch.equal(first, second) for first, second in itertools.pairwise(firsts))


def test_without_sites_it_acts_where_resolution_is_highest():
    """Of a U-Net as SDXL's the second level of three; of the tiny one the deepest, with the middle."""
    blocks = {
        "sd": ["down_blocks.0", "up_blocks.1"],
        "sdxl": ["down_blocks.1", "mid_block", "up_blocks.0"],
        "deep": ["down_blocks.1", "up_blocks.1"],
    }
    for name, sites in blocks.items():
        assert torch.equal(changed(exact(name), WindowAttention()), changed(exact(name), WindowAttention(sites=sites)))


def test_windows_of_the_training_size_have_the_entropy_of_training():
    """Attention is then not scaled, since a window has as many tokens as a layer had in training."""
    unet = exact("sd")
    sites = ["down_blocks.0", "up_blocks.1"]
    windows, scale = WindowAttention(sites=sites), AttentionScale(sites=sites)
    with windows.apply(forward(unet)), scale.apply(forward(unet)):
        both = ask(unet)
    assert torch.equal(both, changed(unet, windows))
    assert not torch.equal(changed(unet, scale), ask(unet))


def test_sites_without_self_attention_are_refused():
    with pytest.raises(CapabilityError, match=r"no self-attention at 'down_blocks.0'"):
        WindowAttention(sites=["down_blocks.0"]).check(exact("deep"))
    with pytest.raises(ValueError, match="must be >= 1"):
        WindowAttention(windows=0)
