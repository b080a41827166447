"""Docs cannot drift: the reference is made from the code, links lead somewhere, code blocks run."""

import ast
import importlib.util
import json
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import build_authors
import build_notebook
import vitrail
from build_reference import PAGE, reference
from vitrail.core.config.loader import Loader
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.composition import Composition
from vitrail.sampling.authors_code import authors_codes
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import load_method, summary
from vitrail.testing import check_guidance

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_reference_is_what_the_code_says():
    assert PAGE.read_text() == reference(), "run: python tools/build_reference.py"


def test_the_page_of_authors_is_what_the_entries_say(names):
    """Every method of a paper has one, and what it says can be given."""
    assert build_authors.PAGE.read_text() == build_authors.page(), "run: python tools/build_authors.py"
    entries, methods = authors_codes(), names.entries("methods")
    of_papers = {entry.name for entry in methods if "arxiv.org" in summary(names.path("methods", entry.name))}
    assert of_papers == set(entries)
    for name, entry in entries.items():
        assert not entry.set or load_method(name, entry.set) != load_method(name)
        Loader(names).structure({"prompt": "", **entry.run}, RunConfig, name)
        assert entry.equal and entry.largest and entry.differs


def test_every_option_is_explained():
    bare = [line for line in reference().splitlines() if re.fullmatch(r" *- `\w+` \([^:]*\)", line)]
    assert not bare


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_first_picture_is_of_one_method_wherever_it_is_shown():
    """What a newcomer runs first: `make demo`, the README's code, and the example with its file."""
    readme = (ROOT / "README.md").read_text()
    (demo,) = re.findall(r"^demo:.*\n\t.* --method (\S+)", (ROOT / "Makefile").read_text(), re.M)
    code = re.findall(r"```python\n(.*?)```", readme, re.S)[0]
    shown = {
        "make demo": demo,
        "README": re.search(r'from_pretrained\("demo", method="([^"]+)"\)', code)[1],
        "fox.py": re.search(r'method="([^"]+)"', (ROOT / "examples/fox.py").read_text())[1],
        "fox.toml": tomllib.loads((ROOT / "examples/fox.toml").read_text())["method"],
    }
    assert set(shown.values()) == {demo}, shown
    load_method(demo)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_compile(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        compile(block, str(page), "exec")


def test_the_api_page_has_every_public_name_and_no_other_than_there_are():
    listed = re.findall(r"^- `([\w.]+)`", (ROOT / "docs/reference/api.md").read_text(), re.M)
    homes = {f"{vitrail._HOMES[name]}.{name}" for name in vitrail._HOMES}
    assert homes | {"vitrail.errors.VitrailError"} <= set(listed)
    assert len(set(listed)) == len(listed)
    assert all(pkgutil.resolve_name(name).__doc__ for name in listed)


def test_every_page_is_in_the_contents_of_the_site():
    text, docs = (ROOT / "docs/conf.py").read_text(), ROOT / "docs"
    pages = {path.relative_to(docs).with_suffix("").as_posix() for path in docs.rglob("*.md")} - {"index"}
    assert [page for page in pages if f'"{page}"' not in text and not page.startswith("results/")] == []


def test_methods_in_the_readme_exist(names):
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in names.names("methods"))


STEPS = re.compile(r"`([\w./-]+\.py)` \(`(\w+)`\)")  # a file, and what to read there
PATHS = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if STEPS.search(line)]


def declared(path):
    """What a file has at its top."""
    for node in ast.parse((ROOT / path).read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        yield from (getattr(each, "name", getattr(each, "id", None)) for each in targets)


def test_the_paths_of_a_contributor_are_all_there():
    found = {line.split("|")[1].strip() for line in PATHS}
    assert found == {"mask source", "upscaler", "backbone family", "transport", "metric"}


@pytest.mark.parametrize("line", PATHS, ids=lambda line: line.split("|")[1].strip())
def test_a_path_of_a_contributor_leads_there_by_three_files(line):
    _, _, files, check, _ = (part.strip() for part in line.split("|"))
    steps = STEPS.findall(files)
    assert 1 <= len(steps) <= 3
    assert len(steps) == files.count(".py`"), "say what to read in each file"
    for path, name in steps:
        assert name in declared(path), f"{path} has no {name}"
    tests, modules = re.findall(r"pytest (\S+)", check), re.findall(r"python -m (\S+)", check)
    assert tests or modules
    assert all((ROOT / each).is_file() for each in tests)
    assert all(importlib.util.find_spec(each) for each in modules)


def run_page(path, folder, monkeypatch):
    """Run the Python of a page in one process, in an empty folder."""
    monkeypatch.chdir(folder)
    space = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
        exec(compile(block, str(path), "exec"), space)
    return space


def test_the_strategy_of_the_readme_keeps_its_contract_and_registers(names):
    (block,) = re.findall(r"```python\n([^`]*?def vitrail_register.*?)```", (ROOT / "README.md").read_text(), re.S)
    space, registry = {"__name__": "readme"}, build_registry()
    exec(compile(block, "README.md", "exec"), space)
    space["vitrail_register"](registry)
    assert set(registry.names("guidance")) - set(names.names("guidance")) == {"clip-clean"}
    check_guidance(space["ClipClean"])
    stage = {"patching": "windows", "fusion": "average", "guidance": ["clip-clean"]}
    Loader(registry).structure({"stages": [stage]}, Composition, "README.md")


def test_the_page_on_diffusers_runs(tmp_path, monkeypatch):
    run_page(ROOT / "docs/how-to/diffusers.md", tmp_path, monkeypatch)
    assert (tmp_path / "fox.png").exists()


def test_the_notebook_is_what_its_page_says():
    page = build_notebook.PAGE.read_text()
    assert build_notebook.NOTEBOOK.read_text() == build_notebook.notebook(page), "run: python tools/build_notebook.py"
    read = json.loads(build_notebook.NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in read if cell["cell_type"] == "code"]
    assert code == [block.strip() for block in re.findall(r"```python\n(.*?)```", page, re.S)]
    assert all(cell["outputs"] == [] for cell in read if cell["cell_type"] == "code")


@pytest.mark.thorough
def test_the_notebook_runs_in_a_kernel_and_shows_its_pictures(tmp_path):
    done = build_notebook.execute(build_notebook.NOTEBOOK.read_text(), tmp_path)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "the same picture: True" in printed
