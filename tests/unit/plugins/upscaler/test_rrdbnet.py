"""RRDBNet from files: each published naming is one function, tiles are the whole, and no file is trusted."""

import io
import pickle
import re
import zipfile

import pytest
import torch
import torch.nn.functional as F

from rrdb_files import NAMINGS, delta_weights, random_weights, write
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError, ModelError, VitrailError
from vitrail.plugins.upscaler.lanczos import lanczos
from vitrail.plugins.upscaler.rrdb_forward import forward
from vitrail.plugins.upscaler.rrdb_weights import layout_in, load
from vitrail.plugins.upscaler.rrdbnet import RRDBNet


def drawn(height, width, count=1):
    return Streams(3).uniform((count, 3, height, width), "picture")


def by_hand(picture, weights, doublings=2, shuffle=1):
    """The network as the ESRGAN paper draws it, by the names of Real-ESRGAN's files."""

    def conv(name, x):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def act(x):
        return torch.where(x > 0, x, 0.2 * x)

    x = conv("conv_first", F.pixel_unshuffle(picture, shuffle))
    trunk = x
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("body."))
    for block in range(blocks):
        inside = trunk
        for rdb in ("rdb1", "rdb2", "rdb3"):
            seen = [inside]
            for number in range(1, 5):
                seen.append(act(conv(f"body.{block}.{rdb}.conv{number}", torch.cat(seen, 1))))
            inside = inside + 0.2 * conv(f"body.{block}.{rdb}.conv5", torch.cat(seen, 1))
        trunk = trunk + 0.2 * inside
    x = x + conv("conv_body", trunk)
    for number in range(1, doublings + 1):
        x = act(conv(f"conv_up{number}", x.repeat_interleave(2, -1).repeat_interleave(2, -2)))
    return conv("conv_last", act(conv("conv_hr", x)))


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize(("end", "wrapper"), [("safetensors", None), ("pth", None), ("pth", "params_ema")])
def test_each_published_naming_is_the_same_function(tmp_path, naming, end, wrapper):
    file = write(tmp_path / f"net.{end}", random_weights(naming), wrapper)
    picture = drawn(9, 13)
    made = RRDBNet(file=file).upscale(picture, (36, 52))
    expected = by_hand(picture, random_weights()).clamp(0, 1)
    assert expected.std() > 0.01 and (expected > 0).float().mean() > 0.2, "the random network shows nothing"
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("naming", "doublings", "shuffle"),
    [("real-esrgan", 2, 2), ("bsrgan", 1, 1), ("esrgan", 1, 1), ("real-esrgan", 3, 2)],
)
def test_other_factors_are_told_by_the_file(tmp_path, naming, doublings, shuffle):
    """BSRGAN x2 and old x2 have one doubling, Real-ESRGAN x2 shuffles pixels into channels."""
    file = write(tmp_path / "net.pth", random_weights(naming, 0, 2, doublings, shuffle))
    picture, factor = drawn(6, 10), 2**doublings // shuffle
    made = RRDBNet(file=file).upscale(picture, (6 * factor, 10 * factor))
    expected = by_hand(picture, random_weights("real-esrgan", 0, 2, doublings, shuffle), doublings, shuffle).clamp(0, 1)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    odd = RRDBNet(file=file).upscale(picture[..., :5, :9], (5 * factor, 9 * factor))
    padded = by_hand(
        F.pad(picture[..., :5, :9], (0, -9 % shuffle, 0, -5 % shuffle), mode="replicate"),
        random_weights("real-esrgan", 0, 2, doublings, shuffle),
        doublings,
        shuffle,
    )
    torch.testing.assert_close(odd, padded[..., : 5 * factor, : 9 * factor].clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_files_of_before_torch_wrote_archives_are_read(tmp_path):
    """As the first ESRGAN's is."""
    torch.save(random_weights("esrgan"), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    picture = drawn(5, 4)
    made = RRDBNet(file=str(tmp_path / "old.pth")).upscale(picture, (20, 16))
    assert torch.equal(made, RRDBNet(file=write(tmp_path / "new.pth")).upscale(picture, (20, 16)))


def test_averaged_weights_are_preferred_as_real_esrgan_does(tmp_path):
    file = tmp_path / "net.pth"
    torch.save({"params": random_weights(seed=1), "params_ema": random_weights(seed=0)}, file)
    picture = drawn(5, 4)
    made = RRDBNet(file=str(file)).upscale(picture, (20, 16))
    assert torch.equal(made, RRDBNet(file=write(tmp_path / "ema.pth")).upscale(picture, (20, 16)))


@pytest.mark.parametrize("naming", NAMINGS)
def test_deltas_without_residuals_are_nearest_neighbours(tmp_path, naming):
    upscaler, picture = RRDBNet(file=write(tmp_path / "net.pth", delta_weights(naming))), drawn(7, 5, 2)
    larger = picture.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert torch.equal(upscaler.upscale(picture, (28, 20)), larger)
    again = larger.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert torch.equal(upscaler.upscale(picture, (112, 80)), again)
    torch.testing.assert_close(upscaler.upscale(picture, (17, 20)), lanczos(larger, (17, 20)))
    assert torch.equal(upscaler.upscale(picture, (7, 5)), picture)


def test_shuffled_deltas_are_the_identity_of_what_has_two_by_two_pixels_of_one_colour(tmp_path):
    upscaler = RRDBNet(file=write(tmp_path / "net.pth", shuffled_deltas()))
    coarse = drawn(4, 6).repeat_interleave(2, -1).repeat_interleave(2, -2)
    expected = coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.equal(upscaler.upscale(coarse, (16, 24)), expected)


def shuffled_deltas():
    """Deltas that read the first pixel of each two by two, which pixel_unshuffle puts at channels 0, 4 and 8."""
    weights = delta_weights(shuffle=2)
    weights["conv_first.weight"].zero_()
    for colour in range(3):
        weights["conv_first.weight"][colour, 4 * colour, 1, 1] = 1.0
    return weights


@pytest.mark.parametrize(("doublings", "shuffle"), [(2, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("size", [(70, 3), (41, 90)])
def test_tiles_are_the_whole(tmp_path, doublings, shuffle, size):
    """In double precision to its rounding, so a halo that lacks a pixel would show."""
    file = write(tmp_path / "net.pth", random_weights("real-esrgan", 0, 2, doublings, shuffle))
    layout = layout_in(file)
    weights = {name: each.double() for name, each in load(file, torch.device("cpu")).items()}
    picture = drawn(*size).double()
    whole = forward(picture, layout, weights, 10**6)
    for tile in (16, 33):
        torch.testing.assert_close(forward(picture, layout, weights, tile), whole, rtol=1e-12, atol=1e-12)


def test_what_is_too_small_is_enlarged_again_and_what_is_too_large_shrinks(tmp_path):
    upscaler = RRDBNet(file=write(tmp_path / "net.pth"))
    picture = drawn(3, 4)
    once = upscaler.upscale(picture, (12, 16))
    assert torch.equal(upscaler.upscale(picture, (11, 9)), lanczos(once, (11, 9)))
    twice = upscaler.upscale(once, (48, 64))
    assert torch.equal(upscaler.upscale(picture, (13, 2)), lanczos(twice, (13, 2)))
    passes = [upscaler.cost((3, 4), size).passes for size in ((3, 4), (12, 16), (11, 9), (13, 2))]
    assert passes == [0, 1, 1, 2]


def test_memory_follows_the_tile_and_the_picture(tmp_path):
    file = write(tmp_path / "net.pth")
    small, large = (RRDBNet(file=file, tile=tile).cost((400, 400), (1600, 1600)).peak_bytes for tile in (16, 400))
    assert 16 * 3 * 4 * 400**2 < small < large
    assert large < RRDBNet(file=file).cost((800, 400), (3200, 1600)).peak_bytes


class Evil:
    """Writes a file when a pickle of it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def cut(weights, *names, **changes):
    return {name: each for name, each in weights.items() if name not in names} | changes


def broken(tmp_path):
    """Name, file and what is said of it."""
    good = random_weights()
    yield "of nothing", tmp_path / "nothing.pth", "cannot be read: No such file"
    yield "folder", tmp_path, "no regular file"
    for name, content, told in (
        ("text.pth", b"<html>not found</html>", "broken"),
        ("empty.pth", b"", "broken"),
        ("zip.pth", b"PK\x03\x04" + bytes(64), "broken"),
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("net.png", b"", "no .pth, .pt, .ckpt, .bin or .safetensors"),
    ):
        (tmp_path / name).write_bytes(content)
        yield name, tmp_path / name, told
    write(tmp_path / "whole.pth")
    for end in ("pth", "safetensors"):
        content = (tmp_path / write(tmp_path / f"whole.{end}").rpartition("/")[2]).read_bytes()
        (tmp_path / f"cut.{end}").write_bytes(content[: len(content) // 2])
        yield f"cut {end}", tmp_path / f"cut.{end}", "broken"
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "packed.pth", "w", 8) as packed:
        for entry in whole.namelist():
            packed.writestr(entry, whole.read(entry))
    yield "packed", tmp_path / "packed.pth", "its parts are compressed"
    evil = tmp_path / "evil.pth"
    torch.save(good | {"more": Evil(str(tmp_path / "written"))}, evil)
    yield "code", evil, "holds more than tensors, which could run code and is not read"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(str(tmp_path / "written"))))
    yield "a bare pickle with code", tmp_path / "plain.pth", "broken"
    for name, content, told in (
        ("list", [1, 2], "holds no table"),
        ("numbers", {"conv_body.weight": 3}, "is no tensor of floats"),
        ("whole numbers", {name: each.long() for name, each in good.items()}, "is no tensor of floats"),
        ("nothing in it", {}, "none"),
        ("another network", {"layers.0.weight": torch.zeros(2)}, "named layers.0.weight"),
        ("one is missing", cut(good, "body.1.rdb2.conv3.bias"), "it lacks body.1.rdb2.conv3.bias"),
        ("a block is missing", {n: t for n, t in good.items() if ".0." not in n}, "it lacks body.0.rdb1.conv1.bias"),
        ("one too many", cut(good, more=torch.zeros(2)), "has, beside those of an RRDBNet, more"),
        ("a shape", cut(good, **{"conv_hr.weight": torch.zeros(6, 6, 1, 1)}), "conv_hr.weight is (6, 6, 1, 1)"),
        ("a vector", cut(good, **{"conv_first.weight": torch.zeros(6)}), "its first convolution is (6,)"),
        ("grey", cut(good, **{"conv_first.weight": torch.zeros(6, 1, 3, 3)}), "takes 1 channels"),
        (
            "no doubling",
            cut(good, *(f"conv_up{n}.{k}" for n in (1, 2) for k in ("weight", "bias"))),
            "enlarges a picture by 1",
        ),
        ("not finite", cut(good, **{"conv_hr.bias": torch.full((6,), torch.nan)}), "values that are not finite"),
        ("expanded", cut(good, **{"conv_hr.weight": torch.zeros(1).expand(6, 6, 3, 3)}), "claims more values"),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
        yield name, tmp_path / f"{name}.pth", told


def test_no_other_file_is_taken(tmp_path):
    seen = []
    for name, path, told in broken(tmp_path):
        with pytest.raises(VitrailError, match=r"^file: ") as refused:
            RRDBNet(file=str(path)).check()
        assert told in str(refused.value), (name, str(refused.value))
        assert len(str(refused.value)) < 800 and "safe_globals" not in str(refused.value), name
        seen.append(name)
    assert len(seen) > 20 and not (tmp_path / "written").exists()


class Call:
    """Calls a function when a pickle of it is loaded."""

    def __init__(self, called, *arguments):
        self.parts = called, arguments

    def __reduce__(self):
        return self.parts


def greedy(tmp_path):
    """A file of a few bytes for each way of asking for a gigabyte, and what is said of it; torch loads the most."""
    for name, asked, told in (
        ("bytes", Call(bytearray, 2**30), "more than tensors, which could run code and is not read: GLOBAL"),
        ("tensor", Call(torch.Tensor, 2**14, 2**14), "more than tensors, which could run code and is not read: GLOBAL"),
        ("meta", torch.zeros(2**14, 2**14, device="meta"), "more than tensors"),
    ):
        for is_archive in (True, False):
            path = tmp_path / f"{name}-{is_archive}.pth"
            torch.save({"a": asked}, path, _use_new_zipfile_serialization=is_archive, pickle_protocol=2)
            yield path, told
    honest = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, honest, _use_new_zipfile_serialization=False)
    head = honest.getvalue().rpartition(b"\x80\x02]")[0]  # without the keys of storages and the values
    thousand, more = (pickle.dumps(count, 2)[2:-1] for count in (1000, 2**28))
    path = tmp_path / "storage.pth"
    path.write_bytes(head.replace(thousand, more) + pickle.dumps([], 2))
    yield path, "its tensors claim more values than the file has"


def test_no_file_takes_more_memory_than_it_has(tmp_path, monkeypatch):
    loaded = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *words, **more: loaded.append(words) or real(*words, **more))
    for path, told in greedy(tmp_path):
        assert path.stat().st_size < 5000
        with pytest.raises(ModelError, match=r"^file: ") as refused:
            RRDBNet(file=str(path)).check()
        assert told in str(refused.value), (path.name, str(refused.value))
    assert len(loaded) == 1, "only what is found by its values is loaded"


@pytest.mark.parametrize("is_archive", [True, False])
def test_parameters_and_either_format_are_read(tmp_path, is_archive):
    weights = {name: torch.nn.Parameter(each) for name, each in random_weights().items()}
    torch.save(weights, tmp_path / "net.pth", _use_new_zipfile_serialization=is_archive)
    read = load(str(tmp_path / "net.pth"), torch.device("cpu"))
    assert torch.equal(read["hr.weight"], weights["conv_hr.weight"])


def test_an_archive_with_a_record_under_two_names_is_refused(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "net.pth") as whole, zipfile.ZipFile(tmp_path / "letters.pth", "w") as other:
        for entry in whole.namelist():
            other.writestr(entry.replace("data/0", "data/a"), whole.read(entry))
    with pytest.raises(ModelError, match="its storages are not numbered"):
        RRDBNet(file=str(tmp_path / "letters.pth")).check()


def test_a_file_that_changes_is_read_again(tmp_path):
    upscaler = RRDBNet(file=write(tmp_path / "net.pth"))
    upscaler.check()
    first = upscaler.digest()
    torch.save([], tmp_path / "net.pth")
    with pytest.raises(ModelError, match="holds no table"):
        upscaler.check()
    assert upscaler.digest() != first


def test_without_a_file_it_says_which_one_it_wants():
    for ask in (RRDBNet().check, lambda: RRDBNet().upscale(drawn(2, 2), (8, 8)), lambda: RRDBNet().reach):
        with pytest.raises(ConfigError, match=re.escape('{ type = "rrdbnet", file = "BSRGAN.pth" }')):
            ask()
    assert RRDBNet().digest() == ""
