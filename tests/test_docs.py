"""Docs cannot drift: the reference is made from the code, links lead somewhere, code blocks run."""

import re
from pathlib import Path

import pytest

from build_reference import PAGE, reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_reference_is_what_the_code_says():
    assert PAGE.read_text() == reference(), "run: python tools/build_reference.py"


def test_every_option_is_explained():
    bare = [line for line in reference().splitlines() if re.fullmatch(r" *- `\w+` \([^:]*\)", line)]
    assert not bare


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_compile(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        compile(block, str(page), "exec")


def test_methods_in_the_readme_exist(names):
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in names.names("methods"))
