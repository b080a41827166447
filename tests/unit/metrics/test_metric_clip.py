"""CLIP from a folder agrees with transformers' own way, and refuses what it cannot do."""

import json

import pytest
import torch
from PIL import Image

from metric_files import save_picture, write_clip
from vitrail.core.method.metric import Shown
from vitrail.errors import ConfigError, ModelError
from vitrail.metrics.clip import Clip, load_clip, middle
from vitrail.metrics.clip_score import ClipScore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def picture(height=90, width=120, seed=0):
    coarse = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return (255 * smooth).round() / 255


def shown(prompt, **size):
    return Shown(picture=picture(**size), prompt=prompt, native_size=64)


def by_transformers(folder, path, text):
    """The whole model in one call, pictures by Pillow."""
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(Image.open(path), return_tensors="pt")["pixel_values"]
    tokens = CLIPTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    with torch.no_grad():
        out = CLIPModel.from_pretrained(folder).eval()(**tokens, pixel_values=pixels)
    return out.image_embeds[0], out.text_embeds[0]


@pytest.mark.parametrize(("height", "width"), [(90, 120), (131, 64)])
def test_pictures_and_texts_are_embedded_as_by_transformers(folder, tmp_path, height, width):
    path = save_picture(picture(height, width), tmp_path / "picture.png")
    image, text = by_transformers(folder, path, "fox on a box")
    found = Clip(folder=folder).extract(picture(height, width)[None])[0]
    assert torch.dot(found / found.norm(), image) > 0.9999
    own = load_clip(folder, "cpu").of_text("fox on a box")
    torch.testing.assert_close(own / own.norm(), text)
    score = ClipScore(folder=folder).look(shown("fox on a box", height=height, width=width))
    assert score.item() == pytest.approx(max(0, 100 * torch.dot(image, text).item()), abs=0.2)


def test_scores_are_at_least_zero_and_differ_by_prompt(folder):
    metric = ClipScore(folder=folder)
    features = torch.stack([metric.look(shown(prompt)) for prompt in ("fox", "a b c", "zebra q", "x y", " ")])
    assert features[-1].isnan().all()
    assert (features[:-1] >= 0).all() and len(set(features[:-1, 0].tolist())) > 1
    assert metric.gather(features, None) == pytest.approx((features[:-1].mean().item(),))


def test_a_long_prompt_is_cut_and_no_error(folder):
    long = load_clip(folder, "cpu").of_text("fox " * 50)
    assert torch.equal(long, load_clip(folder, "cpu").of_text("fox " * 60))


def test_classes_of_texts_are_those_of_the_model(folder):
    features = Clip(folder=folder, classes=("fox", "a b c", "x"))
    pictures = torch.stack([picture(seed=1), picture(seed=2)])
    network = load_clip(folder, "cpu")
    unit = torch.nn.functional.normalize
    texts = torch.stack([network.of_text(text) for text in features.classes])
    wanted = (network.sharpness * unit(features.extract(pictures)) @ unit(texts).T).softmax(1)
    torch.testing.assert_close(features.probabilities(pictures), wanted)
    with pytest.raises(ConfigError, match="`classes`"):
        Clip(folder=folder).probabilities(pictures)


def test_the_middle_is_square_and_in_range():
    found = middle(torch.rand(1, 3, 50, 131, generator=torch.Generator().manual_seed(0)).round(), 32)
    assert found.shape == (1, 3, 32, 32)
    assert found.min() >= 0 and found.max() <= 1
    whole = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(middle(whole, 32), whole[..., 16:48])


def test_the_folder_says_how_pictures_are_scaled(folder, tmp_path):
    other = write_clip(tmp_path / "clip")
    (tmp_path / "clip/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    pictures = picture()[None]
    own, changed = Clip(folder=folder).extract(pictures), Clip(folder=other).extract(pictures)
    mean, std = (
        torch.tensor(each).view(1, 3, 1, 1) for each in (load_clip(folder, "cpu").mean, load_clip(folder, "cpu").std)
    )
    assert not torch.allclose(own, changed)
    torch.testing.assert_close(
        load_clip(folder, "cpu").of_pictures((2 * middle(pictures, 32) - 1) * std + mean), changed
    )


def test_a_folder_with_other_weights_is_read_anew(tmp_path):
    clip, pictures = Clip(folder=write_clip(tmp_path)), picture()[None]
    before = clip.digest, clip.extract(pictures)
    write_clip(tmp_path, seed=1)
    assert clip.digest != before[0]
    assert ClipScore(folder=clip.folder).digest == clip.digest
    assert not torch.allclose(clip.extract(pictures), before[1])


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config.json is missing: give the folder of a CLIPModel"):
        Clip(folder=str(tmp_path)).extract(torch.zeros(1, 3, 32, 32))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="no CLIPModel but 'bert'"):
        ClipScore(folder=str(tmp_path)).look(shown("fox"))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        Clip(folder=str(tmp_path)).extract(torch.zeros(1, 3, 32, 32))
