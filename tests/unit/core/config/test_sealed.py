"""Any damage to a file of tensors is refused: no bit of it can be wrong without a word."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vitrail.core.config.sealed import TEXT, load_sealed, save_sealed
from vitrail.errors import ConfigError

TENSORS = {
    "a": torch.linspace(-1, 1, 12).view(3, 4),
    "b": torch.tensor(math.nan),
    "c": torch.zeros(0, 2, dtype=torch.float16),
    "d": torch.arange(6).view(2, 3).T,
    "e": torch.tensor([True, False]),
    "f": torch.ones(3, dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("sealed") / "a.safetensors"
    save_sealed(path, TENSORS, "text ✓")
    return path


def same_bits(one, other):
    bits = [each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other)]
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(*bits)


@pytest.mark.parametrize("is_shorter", [False, True])
def test_a_file_that_is_replaced_while_it_is_read_is_read_as_one_version(tmp_path, monkeypatch, is_shorter):
    path, real = tmp_path / "a.safetensors", safetensors.safe_open
    save_sealed(path, {"a": torch.zeros(3)}, "first")

    @contextlib.contextmanager
    def replaced(name, framework):
        """What the library does when the file is replaced between its header and its tensors."""
        with real(name, framework) as file:
            header = file.metadata()
        if header[TEXT] == "first":
            save_sealed(path, {"a": torch.ones(3)}, "second")
            if is_shorter:
                raise RuntimeError("file <run.ckpt> size <1> is smaller than the required mapping size <2>")
        with real(name, framework) as file:
            yield SimpleNamespace(metadata=lambda: header, keys=file.keys, get_tensor=file.get_tensor)

    monkeypatch.setattr(safetensors, "safe_open", replaced)
    tensors, text = load_sealed(path, "a test")
    assert text == "second" and torch.equal(tensors["a"], torch.ones(3))


def test_what_was_written_is_read_bit_for_bit(whole):
    tensors, text = load_sealed(whole, "a test")
    assert text == "text ✓" and tensors.keys() == TENSORS.keys()
    assert all(same_bits(tensors[name], value) for name, value in TENSORS.items())


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_flipped_bit_is_refused_or_changes_nothing(whole, tmp_path, data):
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    try:
        tensors, text = load_sealed(damaged, "a test")
    except ConfigError:
        return
    assert text == "text ✓" and all(same_bits(tensors[name], value) for name, value in TENSORS.items())


@given(cut=st.floats(0, 1, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_was_cut_off_is_refused(whole, tmp_path, cut):
    content = whole.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(cut * len(content))])
    with pytest.raises(ConfigError, match="is not a test, or is damaged"):
        load_sealed(tmp_path / "cut", "a test")


def test_foreign_files_and_other_formats_are_told_apart(whole, tmp_path, monkeypatch):
    save_file({"a": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(ConfigError, match="it has no digest"):
        load_sealed(tmp_path / "foreign", "a test")
    with pytest.raises(ConfigError, match="No such file"):
        load_sealed(tmp_path / "missing", "a test")
    monkeypatch.setattr("vitrail.core.config.sealed.FORMAT", "2")
    with pytest.raises(ConfigError, match="is a test in format '1', this version reads '2'"):
        load_sealed(whole, "a test")
