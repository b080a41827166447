"""Joint attention: the share of a cell's attention, among all cells and words, that goes to words."""

import pytest
import torch

from captures import SIZE, Scores, captured, forward, tiny_transformer
from vitrail.backbones.attention.joint_attention_maps import capture_joint_maps, check_blocks
from vitrail.errors import CapabilityError

VARIANTS = {
    "3": {},
    "3.5 large": {"qk_norm": "rms_norm"},
    "3.5 medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1, 2)},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("size", [SIZE, (4, 12)])
@pytest.mark.parametrize(("layers", "over"), [((), "mean"), ((0, -1), "max")])
def test_joint_maps_are_the_softmax_of_what_the_processors_had(options, size, layers, over, monkeypatch):
    transformer = tiny_transformer(**options)
    for name, weight in transformer.named_parameters():
        if "norm_q" in name or "norm_k" in name or "norm_added" in name:
            torch.nn.init.normal_(weight, 1, 0.5)
    cells, text = size[0] * size[1] // 4, 24
    scores = Scores(monkeypatch)
    forward(transformer, size)
    scores.calls = [call for call in scores.calls if call[1].shape[2] == cells + text]
    assert len(scores.calls) == 4
    scores.calls = [scores.calls[i] for i in check_blocks(transformer, layers)]
    expected = scores.maps(lambda *_: True, lambda *_: cells, over, size)
    torch.testing.assert_close(captured(transformer, layers, over, size), expected, rtol=1e-5, atol=1e-7)
    assert expected.std() > 0


def test_a_cell_shares_its_attention_among_all_cells_and_all_words():
    transformer = tiny_transformer()
    with capture_joint_maps(transformer, (), [0], range(24)) as maps:
        forward(transformer)
    paid_to_text = maps.mean(SIZE) * 24
    assert paid_to_text.min() > 0 and paid_to_text.max() < 1


@pytest.mark.parametrize(
    ("blocks", "layers", "chosen"),
    [
        (4, (), [2, 3]),
        (5, (), [2, 3, 4]),
        (1, (), [0]),
        (4, (-1,), [3]),
        (4, (3, 0, -4), [0, 3]),
    ],
)
def test_blocks_are_counted_from_either_end(blocks, layers, chosen):
    assert check_blocks(tiny_transformer(num_layers=blocks), layers) == chosen


def test_blocks_that_do_not_exist_are_refused(pipe):
    with pytest.raises(CapabilityError, match=r"layers \[4, -5\] do not exist; this network has 4 blocks"):
        check_blocks(tiny_transformer(), (0, 4, -5))
    with pytest.raises(CapabilityError, match="UNet2DConditionModel has no blocks with joint attention"):
        check_blocks(pipe.unet, ())
