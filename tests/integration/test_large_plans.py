"""A plan counts views and does not lay them out, so that it takes no longer for a large picture."""

import pytest
from attrs import evolve

from toy import DETAIL, FACTOR, STRUCTURE, toy_sampler
from vitrail import hookimpl
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.hooks import Hooks

DILATED = {"patching": "dilated", "fusion": "average"}
WHOLE = {"patching": "whole", "fusion": "average"}


def config(cells):
    return RunConfig(prompt="a", height=FACTOR * cells, width=FACTOR * cells, num_inference_steps=4, guidance_scale=1.0)


@pytest.mark.parametrize(
    "stage", [STRUCTURE | {"until": 1.0}, DETAIL, DILATED, WHOLE], ids=lambda s: str(s["patching"])
)
def test_no_views_are_laid_out_for_a_plan(monkeypatch, stage):
    sampler = toy_sampler(stage)
    small = sampler.plan(config(32))

    def never(*args):
        raise AssertionError("views were laid out")

    monkeypatch.setattr(Hooks, "patch", never)
    assert sampler.plan(config(32)) == small
    assert sampler.plan(config(4096)).model_calls >= small.model_calls


class OneMore:
    """Shows one view twice."""

    @hookimpl(wrapper=True)
    def vitrail_patch(self):
        patches = yield
        return evolve(patches, views=[*patches.views, patches.views[0]])


def test_a_plugin_that_changes_the_views_changes_the_plan():
    plain, more = toy_sampler(DETAIL), toy_sampler(DETAIL, plugins=[("one more", OneMore())])
    assert more.plan(config(32)).model_calls == plain.plan(config(32)).model_calls + 4
