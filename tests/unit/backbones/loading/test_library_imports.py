"""What is imported later is imported when it is used, and is the same."""

import subprocess
import sys

import pytest
from diffusers import EulerDiscreteScheduler

from vitrail.backbones.loading.library_imports import LaterAttribute, LaterModule, scipy_later

SCRIPT = """
import sys
from vitrail.backbones.loading.library_imports import Subpackages, list_models_once, scipy_later
with scipy_later():
    list_models_once()
    import transformers
    assert type(transformers.models) is Subpackages
    assert transformers.models.clip.CLIPTextConfig is transformers.CLIPTextConfig
    assert not hasattr(transformers.models, "no_such_model")
    from diffusers import EulerDiscreteScheduler, LMSDiscreteScheduler
later = EulerDiscreteScheduler(use_beta_sigmas=True)
linear = LMSDiscreteScheduler()
assert not {"scipy.stats", "scipy.optimize"} & set(sys.modules)
later.set_timesteps(4)
linear.set_timesteps(4)
assert "scipy.stats" in sys.modules
print(later.sigmas.tolist(), [linear.get_lms_coefficient(2, 2, order) for order in (0, 1)])
"""


def test_schedulers_find_scipy_when_they_use_it():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from diffusers import LMSDiscreteScheduler

    plain, linear = EulerDiscreteScheduler(use_beta_sigmas=True), LMSDiscreteScheduler()
    plain.set_timesteps(4)
    linear.set_timesteps(4)
    coefficients = [linear.get_lms_coefficient(2, 2, order) for order in (0, 1)]
    assert done.stdout.strip() == f"{plain.sigmas.tolist()} {coefficients}"


def test_only_who_is_named_imports_later(monkeypatch):
    monkeypatch.delitem(sys.modules, "scipy.stats", raising=False)
    named, other = ({"__name__": name} for name in ("diffusers.schedulers.probe", "diffusers.probe"))
    with scipy_later():
        exec("import scipy.stats as a\nfrom scipy.stats import norm", named)
        exec("from scipy.stats import norm", other)
    assert isinstance(named["norm"], LaterAttribute)
    assert not isinstance(other["norm"], LaterAttribute)
    assert named["norm"].cdf(0.0) == other["norm"].cdf(0.0) == 0.5
    assert named["a"].norm.cdf(0.0) == 0.5


def test_an_attribute_is_called_and_asked():
    assert LaterModule("math").sqrt(4) == 2
    assert LaterModule("os").path.join("a", "b")
    with pytest.raises(AttributeError):
        _ = LaterModule("math").__path__
