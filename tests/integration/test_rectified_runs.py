"""Rectification in a run: chosen in a method file, refused in time, the same as diffusers' own, alike on ranks."""

import subprocess
import sys

import diffusers
import pytest
import torch
import yaml
from structlog.testing import capture_logs

from command_line import vitrail
from tiny import NATIVE
from tiny_families import FAMILIES
from vitrail.backbones.adapters import StableDiffusion3
from vitrail.backbones.rectification.attention_scale import AttentionScale
from vitrail.backbones.rectification.freeu import FreeU
from vitrail.comm import InProcess
from vitrail.core.config.loader import Loader
from vitrail.core.method.composition import Composition
from vitrail.core.method.stage import Stage
from vitrail.errors import CapabilityError, ConfigError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.fusion.scatter import Scatter
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.patching.lattice import Lattice
from vitrail.plugins.patching.whole import Whole
from vitrail.plugins.patching.windows import Windows
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

METHOD = """
[[stages]]
patching = "whole"
fusion = "average"
rectification = [
  { type = "freeu", sites = ["up_blocks.0", "up_blocks.1"], b = [1.3, 1.4], s = [0.9, 0.2] },
  { type = "attention-scale", until = 0.6 },
]
"""
CALL = {"num_inference_steps": 5, "height": 16 * NATIVE, "width": 16 * NATIVE}
FREEU = FreeU(b=[1.3, 1.4], s=[0.9, 0.2])


def stages(*rectification, patching=None, until=1.0):
    return Stage(
        patching=patching or Whole(), fusion=Average(), masking=NoMask(), rectification=rectification, until=until
    )


def sample(pipe, *each, **options):
    return Sampler.from_pipeline(pipe, Composition(stages=each))(
        "a fox", output_type="latent", **CALL, **options
    ).latents


@pytest.fixture(scope="module", params=["sd", "sd2", "sdxl"])
def unets(request):
    """A pipeline of each family that has a U-Net."""
    return FAMILIES[request.param]()


@pytest.fixture
def file(tmp_path):
    """A method file with some text replaced."""

    def write(*replaced):
        text = METHOD
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "method.toml").write_text(text)
        return tmp_path / "method.toml"

    return write


def test_freeu_is_the_pipelines_own(unets):
    noise = torch.randn(1, 4, 2 * NATIVE, 2 * NATIVE, generator=torch.Generator().manual_seed(1))
    ours = sample(unets, stages(FREEU), latents=noise, guidance_scale=5.0)
    unets.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    theirs = unets("a fox", latents=noise, output_type="latent", guidance_scale=5.0, **CALL).images
    unets.disable_freeu()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, sample(unets, stages(), latents=noise, guidance_scale=5.0))


def test_neutral_values_and_windows_of_the_training_size_are_its_absence(unets):
    windows = Windows(overlap=0.5)
    plain = sample(unets, stages(patching=windows))
    assert torch.equal(sample(unets, stages(AttentionScale(), patching=windows)), plain)
    assert torch.equal(sample(unets, stages(FreeU(b=[1, 1], s=[1, 1]), patching=windows)), plain)
    assert not torch.equal(sample(unets, stages(FREEU, patching=windows)), plain)


def test_attn_sf_is_direct_at_the_training_size_and_another_picture_above(pipe):
    def latents(method, side):
        call = CALL | {"height": side * NATIVE, "width": side * NATIVE, "output_type": "latent"}
        return Sampler.from_pipeline(pipe, method)("a fox", **call).latents

    assert torch.equal(latents("attn-sf", 8), latents("direct", 8))
    assert not torch.equal(latents("attn-sf", 16), latents("direct", 16))


@pytest.mark.parametrize("strategy", [AttentionScale, FreeU])
def test_a_range_of_steps_is_a_stage(pipe, strategy):
    ranged = sample(pipe, stages(strategy(until=0.4)))
    assert torch.equal(ranged, sample(pipe, stages(strategy(), until=0.4), stages()))
    assert torch.equal(sample(pipe, stages(strategy(until=0.4), until=0.4), stages(strategy(until=0.4))), ranged)
    late = sample(pipe, stages(strategy(start=0.4)))
    assert torch.equal(late, sample(pipe, stages(until=0.4), stages(strategy())))
    assert not torch.equal(ranged, late)


def test_pipeline_is_left_as_it_was_found(unets):
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks), m.forward) for m in unets.unet.modules()]
    processors = dict(unets.unet.attn_processors)
    sample(unets, stages(FREEU, AttentionScale()))
    assert [(dict(m._forward_hooks), dict(m._forward_pre_hooks), m.forward) for m in unets.unet.modules()] == hooks
    assert unets.unet.attn_processors == processors


def test_ranks_that_are_threads_share_the_network(pipe):
    """Relaying ranks stand at different steps, so that one may be rectified while the other is not."""
    lattice = Stage(
        patching=Lattice(interaction="none"), fusion=Scatter(), masking=NoMask(), rectification=[FreeU(until=0.5)]
    )
    sampler = Sampler.from_pipeline(pipe, Composition(stages=[lattice]))
    call = {"output_type": "latent", "row_batch": 1, **CALL}
    alone = sampler("a fox", **call).latents

    def program(communicator):
        return sampler.again()("a fox", spread=Spread(communicator=communicator), **call).latents

    for world_size in (2, 3):
        assert all(torch.equal(each, alone) for each in InProcess(timeout=600).run(world_size, program))


# in files


def test_a_method_file_names_it(file, names):
    (stage,) = load_method(file()).stages
    assert stage.rectification == (FREEU, AttentionScale(until=0.6))
    assert [slot for slot, _ in stage.strategies()].count("rectification") == 2


def test_it_goes_into_a_recipe_and_back(pipe, file, tmp_path):
    composition = load_method(file())
    result = Sampler.from_pipeline(pipe, composition)("a fox", output_type="latent", **CALL)
    method = result.recipes[0].method
    assert method["stages"][0]["rectification"][1] == {
        "type": "attention-scale",
        "sites": [],
        "start": 0.0,
        "until": 0.6,
    }
    loader = Loader(build_registry())
    assert loader.structure(method, Composition, "recipe") == composition
    (tmp_path / "method.yaml").write_text(yaml.safe_dump(method))
    assert load_method(tmp_path / "method.yaml") == composition


def test_methods_lists_it(monkeypatch, capsys):
    out = vitrail(monkeypatch, capsys, "methods").out
    assert "rectification: changes inside the network" in out
    assert 'sites = ["up_blocks.0", "up_blocks.1"], b = [1.1, 1.2]' in " ".join(out.split())


@pytest.mark.parametrize(
    ("replaced", "told"),
    [
        (('"freeu"', '"freu"'), "no rectification named 'freu' (did you mean 'freeu'?)"),
        (("until = 0.6", "untl = 0.6"), "rectification 'attention-scale' has no key 'untl' (did you mean 'until'?)"),
        (("[1.3, 1.4]", "[1.3]"), "'b' and 's' need a value for each of the 2 sites, got 1 and 2"),
        (('"up_blocks.0"', '"upblocks.0"'), "the site 'upblocks.0' begins with no part of a network (did you mean"),
        (("until = 0.6", "start = 0.5, until = 0.2"), "'until' must be more than 'start' (0.5) and at most 1, got 0.2"),
    ],
)
def test_check_finds_what_is_wrong_in_the_file(file, replaced, told):
    with pytest.raises(ConfigError) as error:
        load_method(file(replaced))
    assert told in str(error.value)
    assert "$.stages[0].rectification[" in str(error.value)


def test_check_loads_nothing_heavy(file):
    code = "import sys; from vitrail.cli.app import main; main()"
    probe = f"import sys, atexit; atexit.register(lambda: print('loaded:', 'torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", probe, "check", str(file())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sound, a method of 1 stage" in done.stdout
    assert "loaded: False" in done.stdout


# in time


def test_a_site_that_is_not_there_is_refused_before_any_call(pipe, file):
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    method = file(('"up_blocks.1"', '"up_blocks.7"'), ("until = 0.6", 'sites = ["down_blocks.1"]'))
    with pytest.raises(ConfigError) as error:
        Sampler.from_pipeline(pipe, method)("a fox", **CALL)
    handle.remove()
    first, second = str(error.value).splitlines()
    assert first.startswith("stages.0.rectification.0: there is no residual block with a skip at 'up_blocks.7'")
    assert second.startswith("stages.0.rectification.1: there is no self-attention at 'down_blocks.1'")
    assert not calls


def test_sample_tells_of_a_site(monkeypatch, capsys, folder, file):
    method = file(('"up_blocks.1"', '"up_blocks.7"'))
    answer = vitrail(monkeypatch, capsys, "sample", "a fox", "--model", folder, "--method", method)
    assert answer.code == 2
    told = "stages.0.rectification.0: there is no residual block with a skip at 'up_blocks.7' (did you mean 'up_blocks."
    assert told in " ".join(answer.err.split())


def test_a_transformer_is_refused_by_what_it_lacks(file):
    with pytest.raises(CapabilityError) as error:
        load_method(file()).check(StableDiffusion3.offers, "model 'sd3'")
    assert "stages.0.rectification.0: FreeU needs 'unet-skips'" in str(error.value)
    assert "stages.0.rectification.1: AttentionScale needs 'self-attention'" in str(error.value)


def test_a_network_that_is_compiled_meanwhile_is_refused(pipe):
    sampler, network = Sampler.from_pipeline(pipe, Composition(stages=[stages(FREEU)])), pipe.unet
    pipe.unet = torch.compile(network, backend="eager")
    try:
        with pytest.raises(CapabilityError, match=r"freeu changes modules inside a network that torch.com"):
            sampler("a fox", output_type="latent", **CALL)
    finally:
        pipe.unet = network


def test_a_network_without_a_mid_block_is_damped_without_it_and_that_is_said():
    pipe = FAMILIES["sd"]()
    torch.manual_seed(4)
    options = {"mid_block_type": None, "block_out_channels": (32, 32), "layers_per_block": 1}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")}
    blocks |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    widths = {"cross_attention_dim": 32, "attention_head_dim": 4, "sample_size": 8}
    pipe.unet = diffusers.UNet2DConditionModel(**options, **blocks, **widths).eval()
    with capture_logs() as events:
        sampler = Sampler.from_pipeline(pipe, "scalecrafter-damped")
    told = [event["sites"] for event in events if event["event"] == "rectification.left_out"]
    assert told == [["down_blocks.2", "down_blocks.3", "mid_block"], ["mid_block"]]
    call = {"height": 128, "width": 128, "num_inference_steps": 2, "output_type": "latent"}
    assert sampler("a fox", **call).latents.isfinite().all()
