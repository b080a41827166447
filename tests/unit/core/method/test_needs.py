"""Needs are what a strategy gets: nothing that it has not declared, and no model that does not offer it."""

from typing import ClassVar

import pytest
from attrs import field, frozen

from tiny import tiny_pipeline
from vitrail import Composition, Sampler, Stage
from vitrail.core.engine.guidance_context import GuidanceContext
from vitrail.errors import CapabilityError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.patching.whole import Whole
from vitrail.testing import check_guidance

CALL = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}


@frozen
class Touches:
    """A guidance that looks at a member of its scene, whatever it has declared."""

    point: ClassVar[str] = "canvas"
    member: str = "vae"
    needs: frozenset[str] = field(default=frozenset())

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        assert getattr(scene, self.member) is not None
        return subject, state


@frozen
class Undeclared:
    """The same as a class that could be registered."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[str] = "canvas"

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        scene.vae.decode(subject.clean, scene.canvas)
        return subject, state


def composed(*guidance):
    return Composition(stages=[Stage(patching=Whole(), fusion=Average(), masking=NoMask(), guidance=guidance)])


@pytest.mark.parametrize("member", ["vae", "gradients"])
def test_what_is_not_declared_is_not_given(member):
    sampler = Sampler.from_pipeline(tiny_pipeline(), composed(Touches(member=member)))
    with pytest.raises(CapabilityError, match=rf"Touches looks at '{member}'.*frozenset\({{\"{member}\"}}\)"):
        sampler("a fox", **CALL)
    declared = composed(Touches(member=member, needs=frozenset({member})))
    assert Sampler.from_pipeline(tiny_pipeline(), declared)("a fox", **CALL).report.steps == 1


@pytest.mark.parametrize("member", ["vae", "gradients"])
def test_what_is_declared_and_not_offered_is_refused_before_anything_runs(member, names):
    composition = composed(Touches(member=member, needs=frozenset({member})))
    with pytest.raises(CapabilityError, match=rf"stages\.0\.guidance\.0: Touches needs '{member}'"):
        composition.check(frozenset({"attention-maps"}), "model 'x'", names)


def test_one_guidance_does_not_get_what_another_declares():
    both = composed(Touches(needs=frozenset({"vae"})), Touches())
    with pytest.raises(CapabilityError, match="Touches looks at 'vae'"):
        Sampler.from_pipeline(tiny_pipeline(), both)("a fox", **CALL)


def test_the_contract_check_finds_it():
    with pytest.raises(CapabilityError, match="Undeclared looks at 'vae'"):
        check_guidance(Undeclared)


def test_a_scene_that_is_made_by_hand_gives_what_it_is_given():
    vae = object()
    assert GuidanceContext(vae=vae).vae is vae
    assert GuidanceContext().gradients is None
