"""Every method on every family of models: it runs, on any number of ranks, or is refused for what is lacking."""

import functools
from pathlib import Path

import pytest
import torch

import measure_parity
from methods import KINDS, METHODS
from tiny_families import CONTRACTED
from vitrail.cli.listing import model_lines
from vitrail.comm import InProcess
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.attention_maps import kind_of
from vitrail.errors import CapabilityError
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread

CALL = {"height": 72, "width": 136, "num_inference_steps": 2, "output_type": "latent", "row_batch": 2, "seed": 3}
OFTEN = ("sd3",)  # methods meet the U-Net of ``sd`` and ranks in ``test_ranks``; the others share a network's kind


@functools.cache
def pipeline(family):
    return measure_parity.quiet(CONTRACTED[family]())


def offers_of(family):
    backbone = {"sd2": "sd", "sd3-t5": "sd3", "sd3.5": "sd3"}.get(family, family)
    return build_registry().get("backbones", backbone).offers


SERVED = [
    pytest.param(method, family, marks=[] if family in OFTEN and method in KINDS else pytest.mark.thorough)
    for method in METHODS
    for family in CONTRACTED
    if load_method(method).needs <= offers_of(family)
]
REFUSED = [
    (method, family) for method in METHODS for family in CONTRACTED if load_method(method).needs - offers_of(family)
]


@pytest.mark.parametrize(("method", "family"), SERVED)
def test_a_served_method_gives_the_same_picture_on_any_number_of_ranks(method, family):
    sampler = Sampler.from_pipeline(pipeline(family), load_method(method))

    def program(communicator):
        own = Sampler(sampler.backbone, sampler.composition, model="pipeline")
        return own("a fox", spread=Spread(communicator=communicator), **CALL).latents

    with torch.inference_mode():
        alone = sampler("a fox", **CALL).latents
        assert bool(alone.isfinite().all())
        assert all(torch.equal(found, alone) for found in InProcess(timeout=600).run(3, program))


@pytest.mark.parametrize(("method", "family"), REFUSED)
def test_a_refused_method_names_what_the_network_lacks(method, family):
    lacking = sorted(load_method(method).needs - offers_of(family))
    with pytest.raises(CapabilityError) as refused:
        Sampler.from_pipeline(pipeline(family), load_method(method))
    assert all(f"needs {need!r}" in str(refused.value) for need in lacking)


@pytest.mark.parametrize(("family", "own"), [("sd", "up-block-attention"), ("sd3", "joint-attention")])
def test_attention_is_the_attention_that_the_network_has(family, own):
    by = {
        name: Sampler.from_pipeline(pipeline(family), load_method("asg", [f"stages.0.masking.type={name}"]))
        for name in ("attention", own, "none")
    }
    latents = {name: sampler("a fox", **CALL).latents for name, sampler in by.items()}
    assert torch.equal(latents["attention"], latents[own])
    assert not torch.equal(latents["attention"], latents["none"])


@pytest.mark.parametrize(("family", "wrong", "right"), [("sd", "blocks", "layers"), ("sd3", "layers", "blocks")])
def test_blocks_that_the_network_does_not_have_are_not_ignored(family, wrong, right):
    def adopt(*names):
        changes = [f"stages.0.masking.{name}=[0]" for name in names]
        return Sampler.from_pipeline(pipeline(family), load_method("asg", changes))

    with pytest.raises(CapabilityError, match=rf"stages\.0\.masking: '{wrong}' are .*; name its '{right}'"):
        adopt(wrong)
    assert adopt(right) and adopt(wrong, right), "a method for both families may name both"


@pytest.mark.parametrize(("family", "kind"), [("sd", "cross"), ("sdxl", "cross"), ("sd3", "joint"), ("sd3.5", "joint")])
def test_the_plan_says_which_attention_a_mask_is_of(family, kind):
    plan = Sampler.from_pipeline(pipeline(family), "asg").plan(RunConfig(prompt="a fox", height=128, width=128))
    assert f"PromptAttention ({kind} attention)" in plan.stages[0].strategies
    assert "attention)" not in plan.stages[1].strategies
    assert kind_of(offers_of(family)) == kind


@pytest.mark.parametrize("method", ["asg", "asg-plus"])
def test_a_network_without_any_attention_to_words_is_refused_with_what_would_do(method):
    offers = offers_of("sd") - {"attention-maps", "cross-attention-maps"}
    told = r"stages\.0\.masking: PromptAttention needs 'attention-maps'; none or pfsa would do"
    with pytest.raises(CapabilityError, match=told):
        load_method(method).check(offers, "model 'x'", build_registry())


def test_the_table_of_the_readme_is_the_listing():
    readme = Path(__file__).parents[2] / "README.md"
    assert "\n".join(model_lines(build_registry())) in readme.read_text()
