"""A run with a compiled network: the same picture to rounding, as many graphs as planned, and refusals before it."""

import os
import subprocess
import sys

import pytest
import torch
from attrs import evolve
from diffusers import FirstBlockCacheConfig, apply_first_block_cache
from torch._dynamo.utils import counters

from adapters import findings, with_control, with_lora
from methods import EACH, METHODS
from often import often
from parity import CALL, SIDE
from tiny import in_double, one_block_unet, tiny_pipeline
from tiny_families import FAMILIES, tiny_sd3
from toy import toy_sampler
from vitrail import hookimpl
from vitrail.backbones import compiled_code
from vitrail.backbones.loading.turns import is_plain
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.compiling import MOST_GRAPHS, check_graphs, graphs_of
from vitrail.errors import CapabilityError
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

LARGE = CALL | {"height": 2 * SIDE, "row_batch": 4}
TEXT = "a fox"


@pytest.fixture(autouse=True)
def _traced_alone(monkeypatch):
    """Run the graphs by torch's own operators: the same graphs, without the time that generating code takes."""
    torch._dynamo.reset()
    counters.clear()
    compiled_code.check_compiler.cache_clear()
    monkeypatch.setattr(compiled_code, "BACKEND", "eager")
    yield
    compiled_code.check_compiler.cache_clear()


def small():
    """A pipeline whose network is traced quickly, in double precision."""
    pipe = tiny_pipeline()
    pipe.unet = one_block_unet()
    return in_double(pipe)


def config(**options):
    given = {name: value for name, value in LARGE.items() if name != "output_type"}
    return RunConfig(prompt=TEXT, **(given | {"compile": True} | options))


def planned(sampler, run):
    return graphs_of(sampler.run_plan(evolve(run, compile=False), 0), run.row_batch)


def made():
    """Graphs of the network since the test began, without the sum that tries the compiler."""
    return counters["stats"]["unique_graphs"] - 1


class Forwards:
    """Shapes of the forwards that capture no attention."""

    def __init__(self):
        self.shapes = set()

    @hookimpl(wrapper=True)
    def vitrail_predict(self, rows):
        if not rows.capture:
            self.shapes.add((len(rows.views), *rows.views[0].shape))
        return (yield)


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("row_batch", often([1, 3, 4], lambda rows: rows == 3))
@pytest.mark.parametrize("method", EACH)
def test_the_plan_knows_the_shapes_of_all_forwards(pipe, method, row_batch):
    seen = Forwards()
    sampler = Sampler.from_pipeline(pipe, load_method(method), plugins=[("seen", seen)])
    run = config(compile=False, width=136, height=200, num_inference_steps=4, row_batch=row_batch)
    graphs = planned(sampler, run)
    sampler.run(run, output_type="latent")
    assert set(graphs.shapes) <= seen.shapes
    assert len(seen.shapes - set(graphs.shapes)) <= graphs.beside


@pytest.mark.parametrize("method", ["multidiffusion", "asg"])
def test_regions_are_planned(pipe, method):
    seen = Forwards()
    sampler = Sampler.from_pipeline(pipe, method, plugins=[("seen", seen)])
    run = config(compile=False, row_batch=3, regions=[{"prompt": "fox", "box": [0.0, 0.0, 1.0, 0.5]}])
    graphs = planned(sampler, run)
    sampler.run(run, output_type="latent")
    assert set(graphs.shapes) == seen.shapes


def test_too_many_graphs_are_refused(pipe):
    plan = Sampler.from_pipeline(pipe, "multidiffusion").run_plan(config(compile=False), 0)
    few = check_graphs(plan, 4)
    assert 0 < len(few.shapes) <= MOST_GRAPHS

    sides = range(8, 9 + MOST_GRAPHS)
    windows = [{"patching": {"type": "windows", "size": side}, "fusion": "average"} for side in sides]
    stages = [stage | {"until": number / len(windows)} for number, stage in enumerate(windows, 1)]
    long = config(compile=False, height=640, width=640, num_inference_steps=len(stages))
    many = Sampler.from_pipeline(pipe, {"stages": stages}).run_plan(long, 0)
    with pytest.raises(CapabilityError, match=rf"(?s){MOST_GRAPHS} at most .* or leave compile out"):
        check_graphs(many, 4)


# ---------------------------------------------------------------- the run


@pytest.mark.parametrize("method", ["multidiffusion", "asg"])
def test_a_compiled_run_gives_the_same_picture_and_the_planned_graphs(method):
    pipe = small()
    sampler = Sampler.from_pipeline(pipe, method)
    before = findings(pipe)
    plain = sampler(TEXT, **LARGE)
    compiled = sampler(TEXT, compile=True, **LARGE)
    graphs = planned(sampler, config())
    torch.testing.assert_close(compiled.latents, plain.latents)
    assert made() == len(graphs.shapes) and graphs.captures == (method == "asg")
    assert findings(pipe).keys() == before.keys() and is_plain(pipe.unet), "the user's pipeline is not compiled"
    again = sampler(TEXT, compile=True, **LARGE)
    assert torch.equal(again.latents, compiled.latents) and made() == len(graphs.shapes), "compiled once"
    assert torch.equal(sampler(TEXT, **LARGE).latents, plain.latents), "the network is as it was"


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_compiled(family):
    pipe = in_double(FAMILIES[family]())
    sampler = Sampler.from_pipeline(pipe, "asg")
    plain, compiled = sampler(TEXT, **LARGE), sampler(TEXT, compile=True, **LARGE)
    torch.testing.assert_close(compiled.latents, plain.latents)
    assert made() == len(planned(sampler, config()).shapes)


@pytest.mark.thorough
def test_generated_code_gives_the_same_picture(monkeypatch):
    monkeypatch.setattr(compiled_code, "BACKEND", "inductor")
    sampler = Sampler.from_pipeline(small(), "multidiffusion")
    plain, compiled = sampler(TEXT, **LARGE), sampler(TEXT, compile=True, **LARGE)
    torch.testing.assert_close(compiled.latents, plain.latents)
    assert made() == len(planned(sampler, config()).shapes)


def test_the_recipe_has_the_option_only_if_it_is_on(pipe):
    sampler = Sampler.from_pipeline(pipe, "direct")
    assert "compile" not in sampler(TEXT, **CALL).recipes[0].run
    assert "compile" not in RunConfig(prompt=TEXT, compile=False).as_table()
    assert config().as_table()["compile"] is True


# ---------------------------------------------------------------- refusals


def refused(sampler, match, **options):
    """Refused before the first forward, with what to do."""
    seen = Forwards()
    with pytest.raises(CapabilityError, match=match) as found:
        sampler.again([("seen", seen)])(TEXT, compile=True, **(CALL | options))
    assert "leave compile out" in str(found.value) and not seen.shapes


@pytest.mark.parametrize("method", [name for name in METHODS if any(s.rectification for s in load_method(name).stages)])
def test_a_method_that_changes_the_network_is_refused(pipe, method):
    refused(Sampler.from_pipeline(pipe, method), r"stages\.\d\.rectification\.\d: \w+ changes the network")


def test_a_method_that_differentiates_is_refused(pipe):
    method = load_method("syncdiffusion")
    refused(Sampler.from_pipeline(pipe, method), r"stages\.0\.guidance\.0: \w+ differentiates")


def test_a_model_without_a_network_to_compile_is_refused():
    with pytest.raises(CapabilityError, match=r"(?s)'analytic' does not offer 'compile'.*leave compile out"):
        toy_sampler()(TEXT, compile=True, **CALL)


def test_networks_that_are_not_plain_are_refused():
    cached = tiny_sd3()
    apply_first_block_cache(cached.transformer, FirstBlockCacheConfig(threshold=0.3))
    refused(Sampler.from_pipeline(cached, "direct"), "remembers earlier forwards .* switch the cache off")
    offloaded = tiny_pipeline()
    offloaded.enable_group_offload("cpu", "cpu", offload_type="leaf_level")
    refused(Sampler.from_pipeline(offloaded, "direct"), "has hooks, such as those of offloaded weights")
    adapted, _ = with_lora(tiny_pipeline())
    refused(Sampler.from_pipeline(adapted, "direct"), "of peft; undo that .*fuse_lora")
    compiled = tiny_pipeline()
    compiled.unet.compile(backend="eager")
    refused(Sampler.from_pipeline(compiled, "direct"), "it is compiled already")
    compiled.unet = torch.compile(tiny_pipeline().unet, backend="eager")
    refused(Sampler.from_pipeline(compiled, "direct"), "it is compiled already")


def test_a_hint_is_refused():
    pipe, call = with_control(tiny_pipeline())
    refused(Sampler.from_pipeline(pipe, "direct"), "what control_image adds is not the same", **call)


def test_a_machine_without_a_compiler_is_told_before_a_model_is_loaded(tmp_path):
    words = ["sample", TEXT, "--size", "128", "--method", "direct", "--compile", "--dry-run"]
    env = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "vitrail", *words], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "torch.compile does not work here" in done.stderr and "g++" in done.stderr
    assert "loading" not in done.stdout
