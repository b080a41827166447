"""The static page of a report: nothing in it can run or load but its own, and all that it shows lies beside it."""

import base64
import hashlib
import json
import math
import os
import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from drawn_page import EVIL, EVIL_PAIR, drawn_page
from vitrail.errors import ConfigError
from vitrail.experiments.report.page import (
    PARTS,
    SCRIPTS,
    STYLES,
    Page,
    PagePicture,
    PagePlot,
    PageTable,
    data_block,
    render,
    write_page,
)
from vitrail.experiments.report.page_pictures import LARGEST, prepare, write_tiles
from vitrail.pictures.tiles import THUMB, TILE, VIEWER, levels_of

REPOSITORY = Path(__file__).parents[4]


class Parts(HTMLParser):
    """Elements of a page with their text."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag):
        self.elements.append(("", {}, ""))

    def handle_data(self, data):
        if self.elements:
            tag, attributes, text = self.elements[-1]
            self.elements[-1] = tag, attributes, text + data

    def of(self, tag):
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]


def noise(height, width, seed=0):
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


def same(one, other):
    return one.size == other.size and one.convert("RGB").tobytes() == other.convert("RGB").tobytes()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page in a folder of its own: the page, its file, its text."""
    folder = tmp_path_factory.mktemp("site")
    page = drawn_page(folder, large=False)
    out = write_page(page, folder / "report.html")
    return page, out, out.read_text(encoding="utf-8")


def data_of(text):
    blocks = [inner for attributes, inner in Parts(text).of("script") if attributes.get("type") == "application/json"]
    assert len(blocks) == 1
    return json.loads(blocks[0])


def test_no_text_can_leave_its_place(site):
    page, _, text = site
    parts = Parts(text)
    assert len(parts.of("script")) == 2 and not parts.of("b") and not parts.of("i")
    assert parts.of("title")[0][1] == parts.of("h1")[0][1] == page.title
    prompts = {picture["pair"]: picture["prompt"] for picture in data_of(text)["pictures"]}
    assert prompts[EVIL_PAIR] == EVIL


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_data_come_back_from_a_script(data):
    block = data_block(data)
    assert not set("<>&") & set(block) and block.isascii()
    assert json.loads(block) == data


def test_numbers_that_json_has_no_word_for():
    block = data_block({"a": [math.nan, math.inf, -math.inf, 0.5]})
    assert json.loads(block) == {"a": [None, "inf", "-inf", 0.5]}


def test_the_page_is_one_file_and_loads_nothing_from_elsewhere(site):
    _, out, text = site
    parts = Parts(text)
    assert [p.name for p in out.parent.iterdir() if p.is_file()] == ["report.html"]
    assert not re.search(r"https?:|\bwss?:|[\"'`(=]\s*//", text), "an address of a server"
    addresses = [each[name] for _, each, _ in parts.elements for name in ("src", "href") if name in each]
    assert {address for address in addresses if not address.startswith("#")} == {"data:,"}
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|import\s*\(|@import|url\(", text)


def test_only_its_own_script_and_style_may_run(site):
    parts = Parts(site[2])
    (policy,) = [each["content"] for each, _ in parts.of("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    for kind, (_, text) in (("style", parts.of("style")[0]), ("script", parts.of("script")[-1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert not any(name == "style" or name.startswith("on") for _, each, _ in parts.elements for name in each)


def test_scripts_put_text_in_as_text():
    for name in SCRIPTS:
        code = name.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", code), name
        assert "</script" not in code and "<!--" not in code, name


def test_every_part_is_used_short_and_shipped():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["vitrail"]
    found = sorted([*PARTS.iterdir(), *VIEWER.iterdir()])
    assert found == sorted((PARTS / "page.html", *STYLES, *SCRIPTS))
    for path in found:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 200
        within = path.relative_to(REPOSITORY / "src/vitrail").as_posix()
        assert any(fnmatch(within, pattern) for pattern in patterns)


def test_all_that_the_page_shows_lies_beside_it(site):
    page, out, text = site
    data = data_of(text)
    shown = [picture["shown"] for picture in data["pictures"]]
    addresses = [each[name] for each in shown if each for name in ("url", "thumb")]
    addresses += [plot["url"] for plot in data["plots"]]
    assert len(addresses) == 2 * sum(picture.file is not None for picture in page.pictures) + 1
    assert all((out.parent / unquote(address)).is_file() for address in addresses)
    assert not any(set(address) & set(" #?:") for address in addresses), "a browser would read another address"
    assert [picture["error"] is None for picture in data["pictures"]] == [each is not None for each in shown]


def test_small_copies_have_the_shape_of_the_picture(tmp_path):
    for height, width in ((300, 1000), (1000, 300), (384, 384), (5, 900), (128, 96)):
        noise(height, width).save(tmp_path / "a.png")
        os.utime(tmp_path / "a.png")
        prepared = prepare(tmp_path, "a.png", "files")
        scale = min(1, THUMB / max(height, width))
        assert (prepared.height, prepared.width) == (height, width)
        assert all(abs(a - b * scale) <= 1 for a, b in zip(prepared.thumb_size, (height, width), strict=True))
        with Image.open(tmp_path / prepared.thumb) as small:
            assert small.format == "WEBP" and (small.height, small.width) == prepared.thumb_size
        assert prepared.tiles is None


@pytest.mark.parametrize(("height", "width"), [(1100, 1300), (512, 512), (513, 512), (1, 1025), (1024, 700)])
def test_tiles_are_the_picture(tmp_path, height, width):
    image = noise(height, width)
    write_tiles(image, tmp_path / "tiles")
    levels = levels_of(height, width)
    assert max(levels[-1]) <= TILE and (len(levels) == 1 or max(levels[-2]) > TILE)
    expected = image
    for level, (high, wide) in enumerate(levels):
        expected = expected.reduce(2) if level else expected
        joined, covered = Image.new("RGB", (wide, high)), 0
        for path in (tmp_path / "tiles" / str(level)).iterdir():
            row, column = map(int, path.stem.split("_"))
            with Image.open(path) as tile:
                assert tile.width == min(TILE, wide - TILE * column) and tile.height == min(TILE, high - TILE * row)
                joined.paste(tile, (TILE * column, TILE * row))
                covered += tile.width * tile.height
        assert covered == high * wide
        assert same(joined, expected) if level == 0 else joined.size == expected.size
    assert sorted(int(path.name) for path in (tmp_path / "tiles").iterdir()) == list(range(len(levels)))


def test_coarse_tiles_are_the_picture_made_small(tmp_path):
    """With loss, so of a smooth picture: each level is within some grey levels of what it stands for."""
    ramp = Image.linear_gradient("L").resize((1500, 900)).convert("RGB")
    write_tiles(ramp, tmp_path / "tiles")
    with Image.open(tmp_path / "tiles/2/0_0.webp") as tile:
        wanted = ramp.resize(tile.size, Image.Resampling.BOX)
        worst = max(abs(a - b) for a, b in zip(tile.tobytes(), wanted.tobytes(), strict=True))
    assert worst <= 6


def test_only_large_pictures_have_tiles(tmp_path):
    for width in (LARGEST, LARGEST + 1):
        noise(8, width).save(tmp_path / f"{width}.png")
    assert prepare(tmp_path, f"{LARGEST}.png", "files").tiles is None
    tiles = prepare(tmp_path, f"{LARGEST + 1}.png", "files").tiles
    assert tiles.side == TILE and tiles.levels == levels_of(8, LARGEST + 1)
    assert len(list((tmp_path / tiles.url / "0").iterdir())) == math.ceil((LARGEST + 1) / TILE)


def test_copies_are_made_once_and_again_for_a_newer_picture(tmp_path):
    path = tmp_path / "a.png"
    noise(16, LARGEST + 8).save(path)
    first = prepare(tmp_path, "a.png", "files")
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "files").rglob("*.webp")}
    assert prepare(tmp_path, "a.png", "files") == first
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "files").rglob("*.webp")} == made
    noise(8, 8, seed=1).save(path)
    os.utime(path, ns=(2 * max(made.values()),) * 2)
    assert prepare(tmp_path, "a.png", "files").thumb_size == (8, 8)


def test_a_page_written_again_is_the_same(site):
    page, out, text = site
    assert write_page(page, out).read_text(encoding="utf-8") == text
    assert not list(out.parent.rglob("*.part"))


def test_a_page_may_be_almost_empty():
    assert data_of(render(Page(title=""), {}))["pictures"] == []


def test_what_lies_elsewhere_is_refused(site, tmp_path):
    page, out, _ = site
    for file in ("../a.png", "/tmp/a.png", "a/../../b.png"):
        with pytest.raises(ConfigError, match="own folder"):
            write_page(evolve(page, plots=[PagePlot(title="p", file=file)]), out)
    with pytest.raises(ConfigError, match=r"not there: no\.png"):
        write_page(evolve(page, plots=[PagePlot(title="p", file="no.png")]), out)
    (tmp_path / "a.png").write_text("no picture")
    picture = evolve(page.pictures[0], file="a.png")
    with pytest.raises(ConfigError, match=r"a\.png: cannot be read as a picture"):
        write_page(evolve(page, pictures=[picture], plots=[]), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_contradicts_itself_is_refused():
    cell = PagePicture(row="a", method="a", size=(8, 8), pair=0, prompt="", seed=0, file="a.png")
    assert Page(title="", rows=["a"], sizes=[(8, 8)], pictures=[cell]).files() == ["a.png"]
    with pytest.raises(ValueError, match="two pictures"):
        Page(title="", rows=["a"], sizes=[(8, 8)], pictures=[cell, cell])
    with pytest.raises(ValueError, match="no row 'a'"):
        Page(title="", rows=["b"], sizes=[(8, 8)], pictures=[cell])
    with pytest.raises(ValueError, match="no size"):
        Page(title="", rows=["a"], sizes=[(8, 9)], pictures=[cell])
    for file, error in ((None, None), ("a.png", "broken")):
        with pytest.raises(ValueError, match="either a file or an error"):
            evolve(cell, file=file, error=error)
    with pytest.raises(ValueError, match="2 columns"):
        PageTable(title="t", header=["a", "b"], rows=[["1"]])
