"""Reference sets: the same pictures for the same digest, and nothing made up."""

import attrs
import pytest
import torch
from PIL import Image

from metric_files import save_picture
from vitrail.demo.backgrounds import BACKGROUNDS
from vitrail.demo.judge import Judge
from vitrail.demo.scenes import OBJECTS
from vitrail.errors import ConfigError
from vitrail.metrics.objects import subject_of
from vitrail.metrics.picture_folder import PictureFolder, files_of, fitted
from vitrail.metrics.renders import SCHEME, DemoRenders


def noise(height, width, seed=0):
    return (255 * torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))).round() / 255


def test_renders_show_one_object_and_say_which():
    judge = Judge.load()
    for each in DemoRenders(count=6, seed=1).pictures(128, 192):
        found = judge.detect(each.picture)
        assert [d.name for d in found] == [subject_of(each.prompt, judge.config.classes)]
        assert 0.35 < found[0].size / 128 < 1.0
        assert each.native_size == 128


def test_renders_take_objects_and_backgrounds_in_turn():
    pairs = len(OBJECTS) * len(BACKGROUNDS)
    captions = [each.prompt for each in DemoRenders(count=pairs).pictures(16, 16)]
    assert len(set(captions)) == pairs
    assert {subject_of(text, OBJECTS) for text in captions[: len(OBJECTS)]} == set(OBJECTS)


def test_a_larger_set_begins_with_the_smaller_one():
    few, many = (DemoRenders(count=count).pictures(32, 48) for count in (2, 4))
    assert all(torch.equal(one.picture, other.picture) for one, other in zip(few, many, strict=False))


DRAWN = {  # by the scheme that a digest names: caption, means of the colours, and of their steps from column to column
    1: [
        ("an astronaut in a meadow", (0.50865, 0.68928, 0.55637), (0.03649, 0.03078, 0.01873)),
        ("a frog on a snow field", (0.77778, 0.85260, 0.82195), (0.01017, 0.00858, 0.00971)),
        ("a rabbit in a blue sky", (0.51636, 0.71513, 0.89570), (0.01015, 0.00664, 0.00698)),
    ]
}


def test_renders_that_are_drawn_otherwise_need_another_scheme():
    """What was seen in them is kept by their digest, which cannot know how they are drawn."""
    for shown, (prompt, colours, edges) in zip(DemoRenders(count=3).pictures(96, 160), DRAWN[SCHEME], strict=True):
        assert shown.prompt == prompt
        assert shown.picture.mean(dim=(1, 2)).tolist() == pytest.approx(colours, abs=2e-5)
        assert shown.picture.diff(dim=2).abs().mean(dim=(1, 2)).tolist() == pytest.approx(edges, abs=2e-5)


def test_digests_of_renders_follow_every_field():
    plain = DemoRenders()
    changed = [
        attrs.evolve(plain, **{field.name: getattr(plain, field.name) + 1}) for field in attrs.fields(DemoRenders)
    ]
    assert len({each.digest for each in (plain, *changed)}) == 1 + len(changed)


def test_a_folder_is_read_by_name_and_cut_in_the_middle(tmp_path):
    first, second = noise(40, 60, 1), noise(50, 30, 2)
    save_picture(second, tmp_path / "b.PNG")
    save_picture(first, tmp_path / "a.png")
    (tmp_path / "c.txt").write_text("no picture")
    found = [each.picture for each in PictureFolder(path=str(tmp_path)).pictures(40, 30)]
    assert torch.equal(found[0], first[:, :, 15:45])
    assert torch.equal(found[1], second[:, 5:45])


def test_pictures_are_resized_whole():
    picture = noise(80, 120)
    half = fitted(picture, 40, 60)
    assert half.shape == (3, 40, 60)
    assert half.mean() == pytest.approx(picture.mean().item(), abs=0.01)
    flat = fitted(torch.full((3, 77, 91), 0.25), 40, 20)
    torch.testing.assert_close(flat, torch.full((3, 40, 20), 0.25))


def test_small_pictures_are_told_unless_they_may_grow(tmp_path):
    save_picture(noise(40, 60), tmp_path / "a.webp")
    with pytest.raises(ConfigError, match=r"has 40x60 pixels, 64x64 are wanted; .*grow = true"):
        next(PictureFolder(path=str(tmp_path)).pictures(64, 64))
    assert next(PictureFolder(path=str(tmp_path), grow=True).pictures(64, 64)).picture.shape == (3, 64, 64)


def test_pictures_are_turned_upright(tmp_path):
    """Orientation 6 says that the picture is to be turned clockwise by a quarter."""
    sound = noise(40, 60)
    file = save_picture(sound.rot90(1, (1, 2)), tmp_path / "a.png")
    with Image.open(file) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(file, exif=exif)
    assert torch.equal(next(PictureFolder(path=str(tmp_path)).pictures(40, 60)).picture, sound)


def test_a_picture_is_read_as_everywhere_else(tmp_path):
    """By the range of its mode, on the ground where it is transparent, and by no other program."""
    levels = torch.arange(200, dtype=torch.uint8)[None].repeat(8, 1).numpy()
    deep = tmp_path / "deep.png"
    Image.fromarray(levels.astype("uint16") * 257).save(deep)
    Image.new("RGBA", (200, 8), (0, 0, 0, 0)).save(tmp_path / "hidden.png")
    grey, ground = [each.picture for each in PictureFolder(path=str(tmp_path)).pictures(8, 200)]
    assert torch.equal(grey, torch.from_numpy(levels).float().expand(3, -1, -1) / 255)
    assert ground.eq(1).all()
    Image.new("RGB", (20, 20)).save(deep, format="EPS")
    with pytest.raises(ConfigError, match=r"reference folder: .*deep\.png': is EPS, which a program draws"):
        next(PictureFolder(path=str(tmp_path)).pictures(8, 8))


def test_a_picture_that_is_too_large_to_be_trusted_is_told(tmp_path, monkeypatch):
    save_picture(noise(40, 60), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 60 // 2 - 1)
    with pytest.raises(ConfigError, match=r"a\.png': is too large to be read; make it smaller"):
        next(PictureFolder(path=str(tmp_path)).pictures(32, 32))


def test_a_digest_follows_contents_and_not_names(tmp_path):
    folder = PictureFolder(path=str(tmp_path))
    save_picture(noise(40, 60, 1), tmp_path / "a.png")
    save_picture(noise(40, 60, 2), tmp_path / "b.png")
    before = folder.digest
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert folder.digest == before
    save_picture(noise(40, 60, 3), tmp_path / "c.png")
    assert folder.digest != before
    assert attrs.evolve(folder, grow=True).digest != folder.digest


def test_empty_missing_and_broken_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no \.png"):
        _ = PictureFolder(path=str(tmp_path)).digest
    with pytest.raises(ConfigError, match="is no folder"):
        next(PictureFolder(path=str(tmp_path / "none")).pictures(32, 32))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"a\.png': cannot be read as a picture"):
        next(PictureFolder(path=str(tmp_path)).pictures(32, 32))


def test_a_folder_that_is_named_like_a_picture_is_none(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ConfigError, match="has no"):
        files_of(str(tmp_path))
