"""A process that has planned has its libraries back, and one that had them before keeps them."""

import subprocess
import sys

import diffusers
import torch
import transformers

from vitrail.backbones.loading.library_imports import UNPLANNED, for_plans

SCRIPT = """
import sys
from vitrail.backbones.loading.library_imports import UNPLANNED, for_plans
with for_plans():
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
    assert sys.modules["scipy"] is None
assert not {"torch._dynamo", *UNPLANNED} & set(sys.modules)
import scipy.stats, torch, transformers
torch.compile(torch.nn.Identity())
assert torch._dynamo.__file__ and transformers.CLIPTokenizer
"""


def test_what_was_hidden_can_be_imported_afterwards():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_imported_already_stays():
    before = {name: sys.modules.get(name) for name in ("diffusers", "torch._dynamo", *UNPLANNED)}
    with for_plans():
        assert {name: sys.modules.get(name) for name in before} == before
    assert before["diffusers"] is diffusers and before["transformers"] is transformers and torch._dynamo is not None
