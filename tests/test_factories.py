"""Where the package makes a tensor it names type and device, so that what the process has set reaches no picture."""

import ast
from pathlib import Path

import pytest

import vitrail

ROOT = Path(vitrail.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
TYPED = {  # what takes its type and its device from the process, if none are named
    "arange",
    "as_tensor",
    "asarray",
    "bartlett_window",
    "blackman_window",
    "empty",
    "empty_permuted",
    "empty_strided",
    "eye",
    "fftfreq",
    "full",
    "hamming_window",
    "hann_window",
    "kaiser_window",
    "linspace",
    "logspace",
    "normal",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "range",
    "rfftfreq",
    "scalar_tensor",
    "sparse_coo_tensor",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
}
FROM_TYPE = {"FloatTensor", "DoubleTensor", "HalfTensor", "LongTensor", "IntTensor", "BoolTensor", "Tensor"}


def name_of(node):
    """The dotted name that is called, "" if it is another expression."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def faults(source):
    """(line, what is wrong) of every tensor that is made of what the process has set."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.fft"):
            yield from ((node.lineno, f"import torch, not {n.name}") for n in node.names if n.name in TYPED)
        if not isinstance(node, ast.Call):
            continue
        module, _, name = name_of(node.func).rpartition(".")
        if module not in ("torch", "torch.fft"):
            continue
        lacking = sorted({"dtype", "device"} - {keyword.arg for keyword in node.keywords})
        if name in TYPED and lacking:
            yield node.lineno, f"{name} without {' and '.join(lacking)}"
        elif name in FROM_TYPE:
            yield node.lineno, f"{name}: use torch.tensor"
        elif name == "Generator" and not (node.args or node.keywords):
            yield node.lineno, "Generator without device"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_tensor_is_made_with_type_and_device(path):
    assert not list(faults(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "line",
    [
        "torch.zeros(3)",
        "torch.zeros(3, dtype=torch.float32)",
        "torch.arange(3, device=x.device)",
        "torch.randn(3, generator=g, dtype=torch.float32)",
        "torch.fft.fftfreq(3)",
        "torch.Generator()",
        "torch.Tensor([1.0])",
        "from torch import zeros",
        "x = [torch.as_tensor(y, dtype=torch.int64)]",
    ],
)
def test_the_rule_sees(line):
    assert len(list(faults(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "x.new_zeros(3)",
        "torch.zeros_like(x)",
        "torch.zeros(3, dtype=x.dtype, device=x.device)",
        "torch.frombuffer(b, dtype=torch.uint8)",
        "torch.Generator('cpu')",
        "from torch import Tensor, nn",
        "numpy.zeros(3)",
    ],
)
def test_the_rule_lets_through(line):
    assert not list(faults(line))
