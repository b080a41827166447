"""The laws of every registered rectification."""

import contextlib
import threading

import attrs
import pytest
import torch

from rectified import forward
from tiny import tiny_unet
from vitrail import testing
from vitrail.sampling.discovery import build_registry

ENTRIES = [pytest.param(entry.value, id=entry.name) for entry in build_registry().entries("rectification")]


@pytest.fixture(scope="module")
def unet():
    return tiny_unet().eval()


@torch.inference_mode()
def ask(unet):
    ramp = torch.linspace(-1, 1, 4 * 256).view(1, 4, 16, 16)
    return unet(ramp, torch.tensor(5), torch.linspace(-1, 1, 96).view(1, 3, 32))[0]


@pytest.mark.parametrize("cls", ENTRIES)
def test_it_is_frozen_keyword_only_and_documented(cls):
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(")
    assert all(field.kw_only for field in attrs.fields(cls))
    assert cls() == cls()
    assert hash(cls()) == hash(cls())
    assert cls.check.__doc__ and cls.apply.__doc__
    assert cls.needs


@pytest.mark.parametrize("cls", ENTRIES)
def test_rectification(cls, unet):
    testing.check_rectification(cls, unet, ask)


@pytest.mark.parametrize("cls", ENTRIES)
def test_it_has_a_range_of_steps(cls, unet):
    with cls(until=0.2).apply(forward(unet, 2)):
        late = ask(unet)
    assert torch.equal(late, ask(unet))


# ---------------------------------------------------------------- rectifications that are wrong in one way each


@attrs.frozen
class Broken:
    """Scales what the first convolution gives."""

    needs = frozenset({"convolutions"})
    how: str = ""
    kept: list = attrs.field(factory=list, eq=False, repr=False)

    def check(self, network):
        """Any will do."""

    def further_rows(self, step, branch, cells, native_cells):
        """None in truth."""
        return -1 if self.how == "fewer rows" else 0

    @contextlib.contextmanager
    def _scaled(self, module, factor):
        owner = threading.get_ident()

        def scale(module, args, output):
            mine = self.how == "all threads" or threading.get_ident() == owner
            return output * factor if mine else output

        handle = module.register_forward_hook(scale)
        if self.how == "attributes":
            module.touched = True
        if self.how == "weights":
            module.weight.data.mul_(1.001)
        if self.how == "after an exception":
            yield
            handle.remove()
            return
        try:
            yield
        finally:
            if self.how != "hooks":
                handle.remove()

    def apply(self, forward):
        """The context."""
        factor = 1.1
        if self.how == "nothing":
            return None
        if self.how == "idle":
            return contextlib.nullcontext()
        if self.how == "not finite":
            factor = float("nan")
        if self.how == "noisy end":
            factor = 1 / forward.step.alpha
        if self.how == "global randomness":
            factor = float(torch.rand(()))
        if self.how == "state on itself":
            self.kept.append(1)
            factor = len(self.kept)
        return self._scaled(forward.network.conv_in, factor)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("nothing", "must return a context manager, got nothing"),
        ("idle", "it changes nothing at the first steps"),
        ("not finite", "not finite at step 0"),
        ("all threads", "it acts in the forward of another thread"),
        ("hooks", "it acts after its context has ended"),
        ("after an exception", "it acts on after an exception"),
        ("attributes", "attributes are left on the network's modules"),
        ("weights", "another thread|after its context has ended|weights are changed"),
        ("fewer rows", "further_rows must be a whole number"),
        ("global randomness", "global random state"),
        ("state on itself", "keeps something on itself"),
    ],
)
def test_a_broken_one_is_caught(how, told):
    network = tiny_unet().eval()
    with pytest.raises(AssertionError, match=told):
        testing.check_rectification(Broken(how), network, ask)


def test_the_ends_of_schedules_are_visited(unet):
    with pytest.raises(ZeroDivisionError):
        testing.check_rectification(Broken("noisy end"), tiny_unet().eval(), ask)
    testing.check_rectification(Broken(), unet, ask)
