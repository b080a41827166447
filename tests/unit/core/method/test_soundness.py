"""Methods put together in Python: what cannot work is refused there, all of it at once, with its place."""

from typing import ClassVar

import attrs
import pytest

from tiny import tiny_pipeline
from vitrail import Composition, Sampler, Stage, ViewGroup
from vitrail.core.method.attention_maps import AttentionRequest
from vitrail.core.method.cascade import Cascade
from vitrail.errors import CapabilityError, CompositionError, ConfigError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.guidance.skip_residual import SkipResidual
from vitrail.plugins.guidance.structure import SyncGuidance
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.masking.pfsa import ParameterFreeAttention
from vitrail.plugins.patching.whole import Whole
from vitrail.plugins.patching.windows import Windows
from vitrail.sampling.methods import composition_of

TABLE = {"stages": [{"patching": "windows", "fusion": "average"}]}


def stage(**changes):
    return Stage(**{"patching": Windows(), "fusion": Average(), "masking": NoMask()} | changes)


@attrs.frozen
class Sideways:
    """A guidance whose point is misspelt."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[str] = "cavnas"

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        return subject, state


class Plain:
    """A fusion that is no attrs class."""

    needs = frozenset()

    def fuse(self, step, views, prediction, latents):
        return latents


@attrs.frozen
class Asks:
    """A mask source that wants maps and does not declare the need."""

    needs: ClassVar[frozenset[str]] = frozenset()
    asked: object = AttentionRequest(kind="joint")

    @property
    def request(self):
        return self.asked

    def init(self):
        return None

    def mask(self, step, key, predicted, state):
        return None, state


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"guidance": [Sideways()]}, r"guidance\.0: Sideways\.point must be one of .*did you mean 'canvas'"),
        ({"patching": "windows"}, "patching: expected a patching strategy, got the text 'windows'"),
        ({"fusion": None}, "fusion: expected a fusion strategy, got nothing"),
        ({"masking": {"type": "pfsa"}}, "masking: expected a masking strategy, got a table"),
        ({"patching": NoMask()}, "patching: NoMask lacks granularity, patch; it is a masking"),
        ({"masking": Windows()}, r"masking: Windows lacks request, init, mask; it is a patching"),
        ({"patching": Windows}, r"patching: Windows is a class; give an instance, Windows\(\.\.\.\)"),
        ({"fusion": Plain()}, "fusion: Plain must be a frozen attrs class"),
        ({"guidance": SyncGuidance()}, r"guidance: expected a list, got a SyncGuidance; put \[ \] around it"),
        ({"guidance": "sync"}, r"guidance: expected a list, got the text 'sync'"),
        ({"guidance": ["sync"]}, r"guidance\.0: expected a guidance strategy, got the text 'sync'"),
        ({"extra_views": [Windows()]}, r"extra_views\.0: expected a ViewGroup, got a Windows"),
        (
            {"extra_views": [ViewGroup(patching=Average(), fusion=Average())]},
            r"extra_views\.0\.patching: Average lacks .*it is a fusion",
        ),
        ({"enter": {"resize": "pixels"}}, "enter: expected an Enter, got a table"),
        ({"masking": Asks()}, "masking: Asks requests attention maps; declare the need 'joint-attention-maps'"),
        ({"masking": Asks("joint")}, "masking: Asks.request must be an AttentionRequest or None, got the text 'joint'"),
        ({"masking": Asks(True)}, "masking: Asks.request must be an AttentionRequest or None, got a bool"),
    ],
)
def test_what_does_not_belong_is_refused_with_its_place(changes, told):
    with pytest.raises(CompositionError, match=rf"(?s)stages\.1\.{told}"):
        Composition(stages=[stage(until=0.5), stage(**changes)])


def test_all_problems_are_one_message():
    with pytest.raises(CompositionError) as caught:
        Composition(stages=[stage(patching="windows"), stage(masking=Windows(), guidance=[Sideways()])], cascade="side")
    told = str(caught.value)
    for path in ("cascade: ", "stages.0.patching: ", "stages.1.masking: ", "stages.1.guidance.0: "):
        assert f"\n  {path}" in told
    assert told.count("\n") == 4


@pytest.mark.parametrize("stages", [stage(), "asg", {"patching": "whole"}])
def test_stages_are_a_list_of_stages(stages):
    with pytest.raises(CompositionError, match="stages: expected a list of stages"):
        Composition(stages=stages)
    with pytest.raises(CompositionError, match=r"stages\.0: expected a Stage, got a table"):
        Composition(stages=[TABLE["stages"][0]])


def test_lists_may_be_any_iterable():
    assert stage(guidance=iter([SyncGuidance()])).guidance == (SyncGuidance(),)


def test_a_method_may_be_a_table_as_in_a_file():
    made = composition_of(TABLE)
    assert made == Composition(stages=[stage()])
    assert composition_of(made) is made
    assert Sampler.from_pipeline(tiny_pipeline(), TABLE).composition == made
    with pytest.raises(ConfigError, match=r"(?s)method=\{\.\.\.\}.*stages\[0\].*did you mean 'fusion'"):
        composition_of({"stages": [{"patching": "windows", "fusoin": "average"}]})


@pytest.mark.parametrize("method", [stage(), [stage()], 7, None])
def test_what_is_no_method_is_refused(method):
    with pytest.raises(ConfigError, match="expected a name, a file, a table or a Composition"):
        composition_of(method)


@attrs.frozen
class Needy(Sideways):
    """A guidance that needs what no model offers."""

    needs: ClassVar[frozenset[str]] = frozenset({"vea"})
    point: ClassVar[str] = "canvas"


def test_an_unknown_need_is_told_with_the_nearest_need_and_no_other_strategies(names):
    composition = Composition(stages=[stage(guidance=[SyncGuidance(), Needy()])])
    with pytest.raises(CapabilityError) as caught:
        composition.check(frozenset({"vae"}), "model 'x'", names)
    assert "stages.0.guidance.1: Needy needs 'vea', which no model offers (did you mean 'vae'?)" in str(caught.value)
    assert "would do" not in str(caught.value)


def test_sound_methods_stay_sound():
    grown = stage(patching=Whole(), masking=ParameterFreeAttention(), guidance=[SyncGuidance()])
    assert [place.path for place in Composition(stages=[grown]).places()][-1] == "stages.0.guidance.0"
    with pytest.raises(ValueError, match="'cascade' and stages with 'enter' need each other"):
        Composition(stages=[stage()], cascade=Cascade())
    with pytest.raises(ValueError, match="SkipResidual follows the picture of the size before"):
        Composition(stages=[stage(guidance=[SkipResidual()])])
