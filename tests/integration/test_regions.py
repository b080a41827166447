"""Regions of a run: what they are equal to, and that they cost what the plan says."""

import json

import pytest
import torch
from attrs import evolve
from PIL import Image

from command_line import vitrail
from often import every
from tiny_families import FAMILIES
from toy import DETAIL, FACTOR, STRUCTURE, coloured_sampler, sample
from vitrail import Region, RunConfig, Sampler, hookimpl, load_method
from vitrail.comm.backends.simulated import Simulated
from vitrail.errors import CapabilityError, ConfigError
from vitrail.experiments.run.cell_run import Worker
from vitrail.experiments.spec.cells import cells_of
from vitrail.experiments.spec.experiment_file import load_experiment
from vitrail.sampling.recipe import Recipe
from vitrail.sampling.sampler import Spread

CALL = {"height": 128, "width": 128, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
LEFT, RIGHT, ALL = [0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 1]
TWO = [
    {"box": LEFT, "prompt": "a fox", "bootstrap": 0.5},
    {"box": [0.375, 0.25, 1, 0.75], "prompt": "cat", "negative_prompt": "dog", "weight": 2, "feather": 0.2},
]
METHODS = [
    "direct",
    "multidiffusion",
    "spotdiffusion",
    "mixture-of-diffusers",
    "asg-plus",
    "asg-limit",
    "upsample-guidance",
    "demofusion",
]
GROWING = ["accdiffusion", "asg-cascade"]
WHOLE = {"patching": "whole", "fusion": "average"}
WINDOWS = {"patching": {"type": "windows", "overlap": 0.5}, "fusion": "gaussian"}
STAGES = {
    "whole": (WHOLE,),
    "windows": (WINDOWS,),
    "jitter": (DETAIL,),
    "lattice": (STRUCTURE | {"masking": "none"}, DETAIL),
}


def latents(pipe, method, regions, prompt="ab", *sets, **call):
    return Sampler.from_pipeline(pipe, load_method(method, sets))(prompt, regions=regions, **(CALL | call)).latents


@pytest.mark.parametrize("method", METHODS + GROWING)
def test_one_region_over_everything_with_the_prompt_is_no_region(pipe, method):
    plain = latents(pipe, method, [], "a fox")
    assert torch.equal(latents(pipe, method, [{"box": ALL, "prompt": "a fox"}], "a fox"), plain)


@pytest.mark.parametrize("method", METHODS)
def test_a_region_over_everything_is_its_own_prompt_also_for_masks_of_words(pipe, method):
    prompted = latents(pipe, method, [], "a fox", negative_prompt="dog")
    region = {"box": ALL, "prompt": "a fox", "negative_prompt": "dog"}
    assert torch.equal(latents(pipe, method, [region], "of the"), prompted)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_so_with_every_family_and_an_empty_text_is_a_text(family):
    pipe, call = FAMILIES[family](), {"num_inference_steps": 1}
    for prompt in ("a fox", ""):
        plain = latents(pipe, "multidiffusion", [], prompt, negative_prompt="", **call)
        region = {"box": ALL, "prompt": prompt, "negative_prompt": ""}
        assert torch.equal(latents(pipe, "multidiffusion", [region], "cat", negative_prompt="dog", **call), plain)


@pytest.mark.parametrize("method", every(3, METHODS + GROWING))
def test_rows_are_foreseen_and_the_order_of_regions_says_nothing(pipe, method):
    sampler = Sampler.from_pipeline(pipe, method)
    made, turned = (sampler("ab", regions=regions, **CALL) for regions in (TWO, TWO[::-1]))
    assert torch.equal(made.latents, turned.latents)
    assert not torch.equal(made.latents, sampler("ab", **CALL).latents)
    options = {name: value for name, value in CALL.items() if name != "output_type"}
    cost = sampler.plan(RunConfig(prompt="ab", regions=TWO, **options)).cost
    assert (cost.model_calls, cost.encodes) == (made.report.model_calls, made.report.vae_encodes)


@pytest.mark.parametrize("method", ["asg-plus", pytest.param("accdiffusion", marks=pytest.mark.thorough)])
def test_the_picture_is_the_same_on_three_ranks(pipe, method):
    call = {"regions": TWO, **CALL, "row_batch": 3, "num_inference_steps": 2}
    sampler = Sampler.from_pipeline(pipe, method)
    alone = sampler("a fox", **call).latents

    def program(communicator):
        own = Sampler(sampler.backbone, sampler.composition, model="pipeline")
        return own("a fox", spread=Spread(communicator=communicator), **call).latents

    for each in Simulated(timeout=600).run(3, program):
        assert torch.equal(each, alone)


@pytest.mark.parametrize("stages", STAGES)
def test_every_cell_is_what_its_own_prompt_draws(stages):
    """Of a denoiser that predicts cell by cell: so no view, permutation or colour outside changes another cell."""
    sampler, call = coloured_sampler(*STAGES[stages]), {"guidance_scale": 2.0, "seed": 3}
    alone = {text: drawn_by(sampler, text, **call) for text in ("field", "fox", "cat")}
    boxes = {"fox": [0, 0, 0.5, 0.5], "cat": [0.75, 0.25, 1, 1]}
    made = drawn_by(sampler, "field", regions=[{"box": b, "prompt": t} for t, b in boxes.items()], **call)
    wanted = alone["field"].clone()
    wanted[..., :8, :8], wanted[..., 4:, 12:] = alone["fox"][..., :8, :8], alone["cat"][..., 4:, 12:]
    assert torch.equal(made, wanted)
    assert len({each.sum().item() for each in alone.values()}) == 3


def drawn_by(sampler, prompt, size=16, **options):
    call = {"height": FACTOR * size, "width": FACTOR * size, "num_inference_steps": 4, "output_type": "latent"}
    return sampler(prompt, **(call | options)).latents


def test_mirrored_boxes_mirror_the_picture():
    sampler = coloured_sampler(WINDOWS | {"fusion": "average"})
    noise = torch.linspace(-1, 1, 4 * 16 * 16).view(1, 4, 16, 16)
    boxes = [0, 0.25, 0.375, 0.75], [0.5, 0, 0.75, 1]
    mirrored = [[1 - right, top, 1 - left, bottom] for left, top, right, bottom in boxes]

    def drawn(noise, boxes):
        regions = [{"box": box, "prompt": text, "feather": 0.25} for box, text in zip(boxes, "ab", strict=True)]
        return drawn_by(sampler, "field", latents=noise, regions=regions)

    made, turned = drawn(noise, boxes), drawn(noise.flip(-1), mirrored)
    assert torch.equal(made.flip(-1), turned)


class Shown:
    """The inputs of every row by step, view and prompt."""

    def __init__(self):
        self.rows = {}

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step, rows):
        for number, (text, _) in enumerate(rows.asked_with):
            self.rows[step.index, rows.views[number], text] = rows.pick([number]).model_input
        return (yield)


def test_at_the_first_steps_a_region_sees_a_plain_colour_outside_of_itself_and_its_own_cells():
    shown, region = Shown(), {"box": LEFT, "prompt": "fox", "bootstrap": 0.5}
    result = coloured_sampler(WHOLE, plugins=[("shown", shown)])(
        "field", height=128, width=128, num_inference_steps=4, output_type="latent", regions=[region], guidance_scale=1
    )
    assert result.report.vae_encodes == 8
    for step in range(4):
        (mine,) = (value for (at, _, text), value in shown.rows.items() if at == step and text == "fox")
        (rest,) = (value for (at, _, text), value in shown.rows.items() if at == step and text is None)
        assert torch.equal(mine[..., :8], rest[..., :8])
        assert torch.equal(mine[..., 8:], rest[..., 8:]) == (step >= 2)


def test_what_cannot_be_asked_is_refused_before_any_forward(pipe):
    sampler = Sampler.from_pipeline(pipe, "asg-limit")
    with pytest.raises(ConfigError, match=r"regions\.1: its box holds the centre of none"):
        sampler("a", regions=[TWO[0], {"box": [0, 0, 0.01, 0.01], "prompt": "b"}], **CALL)
    with pytest.raises(ConfigError, match=r"regions\.0: lies outside of every view of stage 1"):
        sampler("a", regions=[{"box": [1 / 16, 1 / 16, 2 / 16, 2 / 16], "prompt": "b"}], **CALL)
    embeds = {"prompt_embeds": torch.zeros(1, 16, 32), "negative_prompt_embeds": torch.zeros(1, 16, 32)}
    with pytest.raises(ConfigError, match="regions have texts of their own, which needs a prompt"):
        sampler("a", regions=TWO, **embeds, **CALL)
    seeing = coloured_sampler(WHOLE)
    blind = Sampler(evolve(seeing.backbone, offers=frozenset()), seeing.composition, model="m")
    with pytest.raises(CapabilityError, match=r"regions\.0\.bootstrap needs 'vae'.*set bootstrap = 0"):
        sample(blind, regions=TWO)


def test_regions_may_be_given_as_objects(pipe):
    objects = [Region(**each) for each in TWO]
    assert torch.equal(latents(pipe, "direct", objects), latents(pipe, "direct", TWO))


@pytest.fixture
def folder_of_run(folder, tmp_path, monkeypatch):
    """A run with a mask beside it, in another folder than the working one."""
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path)
    mask = Image.new("L", (16, 8), 0)
    mask.paste(255, (0, 0, 8, 8))
    mask.save(tmp_path / "files" / "left.png")
    (tmp_path / "files" / "run.toml").write_text(
        f'prompt = "ab"\nmethod = "multidiffusion"\nmodel = "{folder}"\nnum_inference_steps = 1\nsize = 96\n'
        '[[regions]]\nmask = "left.png"\nprompt = "a fox"\n'
    )
    return tmp_path


def test_a_mask_beside_the_file_of_a_run_is_replayed_by_its_content(folder_of_run, folder, monkeypatch, capsys):
    def command(*words):
        return vitrail(monkeypatch, capsys, *words)

    assert command("check", "files/run.toml").code == 0
    made = command("sample", "--config", "files/run.toml", "-o", "a.png")
    assert made.code == 0, made.err
    assert "4 views a step, asked 8 times for 1 region" in " ".join(made.out.split())
    assert "--region-mask 0=files/left.png" in made.out
    recipe = json.loads(Image.open("a.png").text["vitrail.run"])
    assert recipe["run"]["regions"][0]["mask"] == "left.png" and "regions.0.mask" in recipe["given"]
    box = command("sample", "ab", "--region", "0,0,0.5,1: a fox", "--config", "files/run.toml", "-o", "b.png")
    assert box.code == 0, box.err
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()
    again = ["replay", "a.png", "--model", folder, "-o"]
    assert "give its --region-mask" in command(*again, "c.png").err
    found = command(*again, "c.png", "--region-mask", "0=files/left.png")
    assert found.code == 0, found.err
    assert Image.open("a.png").tobytes() == Image.open("c.png").tobytes()
    Image.new("L", (16, 8), 255).save("files/left.png")
    changed = command(*again, "d.png", "--region-mask", "0=files/left.png")
    assert changed.code == 2 and "is not the mask that region 0 was made with" in changed.err
    assert "regions with a mask are 0" in command(*again, "d.png", "--region-mask", "left.png").err
    (folder_of_run / "files" / "left.png").unlink()
    gone = command("check", "files/run.toml")
    assert gone.code == 2 and "regions.0.mask" in gone.err and "no such file" in gone.err
    assert 'write "left,top,right,bottom: prompt"' in command("sample", "ab", "--region", "fox").err


def test_a_run_without_regions_has_the_recipe_that_it_had():
    recipe = Recipe.of(RunConfig(prompt="a"), load_method("direct"))
    assert "regions" not in recipe.run


def test_an_experiment_resolves_masks_and_addresses_them_by_content(folder_of_run, folder):
    files = folder_of_run / "files"
    Image.open(files / "left.png").save(files / "same.png")
    Image.new("L", (16, 8), 255).save(files / "other.png")
    settings = "".join(
        f'{{ name = "{name}", run = {{ regions = [{{ mask = "{name}.png", prompt = "a fox" }}] }} }}, '
        for name in ("left", "same", "other")
    )
    (files / "e.toml").write_text(
        f'model = "{folder}"\nprompts = ["ab"]\nsizes = [64]\nmethods = ["direct"]\n'
        f'run = {{ num_inference_steps = 1 }}\n[[axes]]\nname = "mask"\nsettings = [{settings} {{ name = "none" }}]\n'
    )
    experiment, _ = load_experiment(files / "e.toml")
    model = Worker.load(RunConfig(prompt="", model=str(folder))).model()
    left, same, other, none = cells_of(experiment, model, folder_of_run)
    assert left.config().regions[0].mask == str(files / "left.png") and none.config().regions == ()
    assert left.address == same.address and len({left.address, other.address, none.address}) == 3
