"""Noise-damped guidance: one more row, seen by another network, and classifier-free guidance where that is the same."""

from typing import ClassVar

import pytest
import torch
from attrs import evolve, field, frozen

from tiny import NATIVE, in_double
from tiny_families import FAMILIES
from vitrail.backbones.rectification.dilated_convolution import DilatedConvolution
from vitrail.core.engine.guidance_context import Branches, GuidanceContext
from vitrail.core.engine.micro_batches import combine_branches
from vitrail.core.method.composition import Composition
from vitrail.core.method.stage import Stage
from vitrail.errors import ConfigError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.guidance.noise_damped import NoiseDamped
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.patching.whole import Whole
from vitrail.plugins.patching.windows import Windows
from vitrail.sampling.sampler import Sampler
from vitrail.testing import make_step

CALL = {"num_inference_steps": 4, "height": 16 * NATIVE, "width": 20 * NATIVE, "guidance_scale": 3.0}
SITES = {"sites": ["mid_block", "up_blocks.0"]}


@frozen(kw_only=True, eq=False)
class Keep:
    """Asks for a damped branch and notes what it saw."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[str] = "branches"
    seen: list = field(factory=list)

    def init(self):
        return None

    def branches(self, step):
        return ("damped",)

    def guide(self, step, subject, scene, state):
        self.seen.append(subject)
        return subject, state


def run(pipe, *rectification, guidance=(), patching=None, **options):
    stage = Stage(
        patching=patching or Whole(),
        fusion=Average(),
        masking=NoMask(),
        guidance=guidance,
        rectification=rectification,
    )
    return Sampler.from_pipeline(pipe, Composition(stages=[stage]))("a fox", output_type="latent", **CALL | options)


def subject(rescale=0.0, **rows):
    made = {name: torch.full((1, 1, 4, 2, 2), value) for name, value in rows.items()}
    return Branches(made, 3.0, made["uncond"], made["uncond"], rescale)


def test_guidance_goes_from_where_the_damped_branch_stands():
    step, given = make_step(0), subject(uncond=1.0, cond=2.0, damped=10.0)
    combined = NoiseDamped().guide(step, given, GuidanceContext(), None)[0].combined
    assert torch.equal(combined, torch.full_like(combined, 10 + 3 * (2 - 1)))


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_rows_that_agree_are_classifier_free_guidance(rescale):
    generator = torch.Generator().manual_seed(0)
    uncond, cond = torch.randn(2, 5, 1, 4, 3, 3, generator=generator)
    given = Branches({"uncond": uncond, "cond": cond, "damped": uncond}, 3.0, uncond, uncond, rescale)
    combined = NoiseDamped().guide(make_step(0), given, GuidanceContext(), None)[0].combined
    assert torch.equal(combined, combine_branches(torch.stack([uncond, cond], 1), 3.0, rescale))


@pytest.mark.parametrize(("family", "rescale"), [("sd", 0.0), ("sd2", 0.7), ("sdxl", 0.0)])
def test_one_network_for_all_branches_is_classifier_free_guidance(family, rescale):
    pipe, windows = in_double(FAMILIES[family]()), Windows(overlap=0.5)
    for patching, rectification in ((Whole(), [DilatedConvolution(**SITES)]), (windows, [])):
        call = {"patching": patching, "guidance_rescale": rescale, "num_inference_steps": 2}
        plain = run(pipe, *rectification, **call)
        ours = run(pipe, *rectification, guidance=[NoiseDamped()], **call)
        torch.testing.assert_close(ours.latents, plain.latents, rtol=1e-4, atol=1e-3)
        assert 2 * ours.report.model_calls == 3 * plain.report.model_calls


def test_it_is_another_picture_where_the_networks_differ(pipe):
    full = DilatedConvolution(**SITES, branches=["uncond", "cond"])
    plain = run(pipe, full).latents
    ours = run(pipe, full, guidance=[NoiseDamped()]).latents
    assert (ours - plain).abs().max() > 1e-2
    assert torch.equal(plain, run(pipe, DilatedConvolution(**SITES)).latents)


def test_rows_see_the_changes_of_their_branch(pipe):
    """The damped row is the unconditional one of a network with the damped changes alone."""
    pipe = in_double(pipe)
    full = DilatedConvolution(**SITES, branches=["uncond", "cond"])
    less = DilatedConvolution(sites=["mid_block"], dilations=[3], branches=["damped"])
    seen = {}
    for name, rectification in (
        ("apart", [full, less]),
        ("full", [evolve(full, branches=())]),
        ("less", [evolve(less, branches=())]),
    ):
        keep = Keep()
        run(pipe, *rectification, guidance=[keep], num_inference_steps=1)
        (seen[name],) = (each.rows for each in keep.seen)
    torch.testing.assert_close(seen["apart"]["uncond"], seen["full"]["uncond"])
    torch.testing.assert_close(seen["apart"]["cond"], seen["full"]["cond"])
    torch.testing.assert_close(seen["apart"]["damped"], seen["less"]["uncond"])
    assert (seen["less"]["uncond"] - seen["full"]["uncond"]).abs().max() > 1e-3


def test_a_change_for_a_branch_that_is_not_there_is_its_absence(pipe):
    only = DilatedConvolution(**SITES, branches=["damped"])
    assert torch.equal(run(pipe, only).latents, run(pipe).latents)
    alone, acting = {"guidance_scale": 1.0}, DilatedConvolution(**SITES)
    for branch, expected in (("uncond", run(pipe, **alone)), ("cond", run(pipe, acting, **alone))):
        one = run(pipe, evolve(acting, branches=[branch]), **alone)
        assert torch.equal(one.latents, expected.latents)


def test_it_rests_after_its_share_of_the_steps(pipe):
    full = DilatedConvolution(**SITES, branches=["uncond", "cond"])
    plain, half = run(pipe, full), run(pipe, full, guidance=[NoiseDamped(until=0.5)])
    assert (plain.report.model_calls, half.report.model_calls) == (8, 8 + 2)
    assert [NoiseDamped(until=0.7).branches(make_step(k)) for k in (0, 6, 7)] == [("damped",), ("damped",), ()]
    off = run(pipe, full, guidance=[NoiseDamped(until=0.0)])
    assert torch.equal(off.latents, plain.latents) and not torch.equal(half.latents, plain.latents)


def test_it_needs_guidance(pipe):
    with pytest.raises(ConfigError, match=r"NoiseDamped combines both branches"):
        run(pipe, guidance=[NoiseDamped()], guidance_scale=1.0)
