"""What a picture carries: enough to make it again, text that other tools read, and nothing of whose it is."""

import json
import re
import shutil

import attrs
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vitrail.cli.replay import replayed
from vitrail.core.config.loader import Loader
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError, OutputError
from vitrail.sampling.discovery import registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.recipe import KEY, Recipe, digest_of, read_recipe, save_picture, sealed_text
from vitrail.sampling.sampler import Sampler

GREY = Image.new("RGB", (32, 16), "grey")


def recipe_of(**fields):
    config = RunConfig(**({"prompt": "a fox", "method": "asg", "seed": 7} | fields))
    return Recipe.of(config, load_method("asg"))


def chunks(path):
    """Every text of a PNG, decompressed."""
    with Image.open(path) as image:
        image.load()
        return dict(image.text)


def saved_with(tmp_path, text, key=KEY):
    info = PngInfo()
    info.add_itxt(key, text, zip=True)
    GREY.save(tmp_path / "a.png", pnginfo=info)
    return tmp_path / "a.png"


def test_parameters_are_in_the_form_that_other_tools_read(tmp_path):
    recipe = recipe_of(negative_prompt="blur", width=96, height=64, num_inference_steps=12, guidance_scale=4.5)
    save_picture(GREY, recipe, tmp_path / "a.png")
    prompt, negative, last = chunks(tmp_path / "a.png")["parameters"].split("\n")
    assert (prompt, negative) == ("a fox", "Negative prompt: blur")
    pairs = dict(re.findall(r"([A-Z][\w ]*): ([^,]+)(?:, |$)", last))
    version = pairs.pop("Version")
    assert version.startswith("vitrail ")
    assert pairs == {
        "Steps": "12",
        "Sampler": "model default",
        "CFG scale": "4.5",
        "Seed": "7",
        "Size": "96x64",
        "Model": "demo",
        "Method": "asg",
    }
    assert "Negative prompt" not in recipe_of().parameters()


def test_texts_do_not_look_like_those_of_another_tool(tmp_path):
    save_picture(GREY, recipe_of(prompt="狐狸 🦊 café"), tmp_path / "a.png")
    texts = chunks(tmp_path / "a.png")
    assert set(texts) == {"parameters", KEY}  # `prompt` and `workflow` would be read as a graph
    assert texts["parameters"].startswith("狐狸 🦊 café\n")
    assert read_recipe(tmp_path / "a.png").run["prompt"] == "狐狸 🦊 café"


def test_recipe_goes_through_a_file_and_makes_the_same_run(tmp_path):
    recipe = recipe_of(scheduler="DDIMScheduler", num_images=1)
    save_picture(GREY, recipe, tmp_path / "a.png")
    again = read_recipe(tmp_path / "a.png")
    assert again == recipe and again.digest == recipe.digest and len(recipe.digest) == 12
    loader = Loader(registry())
    assert loader.structure(again.method, Composition, "again") == load_method("asg")
    expected = RunConfig(prompt="a fox", method="asg", seed=7, scheduler="DDIMScheduler")
    assert loader.structure(again.run, RunConfig, "again") == expected
    assert recipe.digest != recipe_of(scheduler="DDIMScheduler", row_batch=3).digest
    assert digest_of("a") == digest_of("a") != digest_of("b")


def test_picture_names_neither_folder_nor_user(folder, tmp_path, monkeypatch):
    home = tmp_path / "home" / "ada-lovelace"
    shutil.copytree(folder, home / "models" / "tiny")
    method = home / "experiments" / "mine.toml"
    method.parent.mkdir()
    method.write_text('[[stages]]\npatching = "whole"\nfusion = "average"\n')
    monkeypatch.chdir(home)
    for model, named in ((home / "models" / "tiny", method), ("models/tiny/../tiny", "experiments/mine.toml")):
        sampler = Sampler.from_pretrained(str(model), named)
        config = RunConfig(prompt="a fox", width=64, height=64, num_inference_steps=1, method=str(named))
        result = sampler.run(config)
        save_picture(result.images[0], result.recipes[0], home / "a.png")
        texts = chunks(home / "a.png")
        for secret in ("ada", "home", "experiments", "models", tmp_path.name, "/", "\\\\"):
            assert not [key for key, text in texts.items() if secret in text], (secret, texts)
        run = json.loads(texts[KEY])["run"]
        assert (run["model"], run["method"]) == ("tiny", "mine")


def test_pixels_are_kept(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (16, 8, 3), dtype=np.uint8)
    save_picture(Image.fromarray(pixels), recipe_of(), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_a_file_that_cannot_be_completed_leaves_nothing(tmp_path, monkeypatch):
    before = Image.Image.save

    def full_disk(image, target, **options):
        before(image, target, **options)
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OutputError, match="No space"):
        save_picture(GREY, recipe_of(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_foreign_and_broken_pictures_are_refused(tmp_path):
    path = tmp_path / "a.png"
    GREY.save(path)
    with pytest.raises(ConfigError, match=r"a\.png: carries no recipe; only PNG files that vitrail wrote do"):
        read_recipe(path)
    save_picture(GREY, recipe_of(), path)
    whole = path.read_bytes()
    for cut in (10, 40, len(whole) - 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match=r"a\.png: cannot be read as a picture: "):
            read_recipe(path)
    GREY.save(path, format="JPEG")
    with pytest.raises(ConfigError, match="carries no recipe"):
        read_recipe(path)
    with pytest.raises(ConfigError, match="cannot be read as a picture: it is no regular file"):
        read_recipe(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "{}", '{"run": 3, "method": null, "versions": {}}', '{"run": {}}'])
def test_broken_recipe_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"a\.png: its recipe is broken: "):
        read_recipe(saved_with(tmp_path, text))


@pytest.mark.parametrize("change", [("a fox", "a box"), ('"seed": 7', '"seed": 8'), ('"seal": "', '"seal": "0')])
def test_a_text_that_is_not_what_was_written_is_refused(tmp_path, change):
    text = sealed_text(recipe_of())
    assert read_recipe(saved_with(tmp_path, text)) == recipe_of()
    respaced = json.dumps(json.loads(text), indent=1, sort_keys=True)  # which says the same
    assert read_recipe(saved_with(tmp_path, respaced)) == recipe_of()
    assert change[0] in text
    with pytest.raises(ConfigError, match=r"a\.png: its recipe is broken: it is not what was written"):
        read_recipe(saved_with(tmp_path, text.replace(*change)))


def test_a_recipe_from_before_there_were_seals_is_read(tmp_path):
    unsealed = json.loads(sealed_text(recipe_of()))
    del unsealed["seal"]
    assert read_recipe(saved_with(tmp_path, json.dumps(unsealed))) == recipe_of()


def test_the_recipe_of_a_picture_above_pillows_limit_is_read(tmp_path, monkeypatch):
    save_picture(GREY, recipe_of(), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.width * GREY.height // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    assert read_recipe(tmp_path / "a.png") == recipe_of()


def test_recipe_with_wrong_values_tells_all(tmp_path):
    run = {"prompt": "a", "seed": -1, "siez": 3}
    method = {"stages": [{"patching": "windos", "fusion": "average"}]}
    path = saved_with(tmp_path, json.dumps({"run": run, "method": method, "versions": {}}))
    with pytest.raises(ConfigError) as caught:
        replayed(path, (), {})
    for part in ("$.seed: must be >= 0", "no key 'siez'", "$.stages[0].patching: no patching named 'windos'"):
        assert part in str(caught.value)


def test_method_that_cannot_be_written_is_said_on_replay(tmp_path):
    save_picture(GREY, attrs.evolve(recipe_of(), method=None), tmp_path / "a.png")
    with pytest.raises(ConfigError, match="used a strategy that no plugin registers"):
        replayed(tmp_path / "a.png", (), {})


def test_other_versions_are_told():
    recipe = recipe_of()
    assert recipe.changes() == []
    older = attrs.evolve(recipe, versions=recipe.versions | {"torch": "2.0.0", "streams": "0"})
    told = older.changes()
    assert len(told) == 2 and told[0].startswith("note: made with torch 2.0.0, here is 2.")
