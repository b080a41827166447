"""Benchmarks and tools measure what is there: the functions and files that they name exist."""

import ast
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")])
DOTTED = re.compile(r"vitrail(\.\w+){2,}")
NEEDS_MORE = {"draw_sprites.py"}  # imports what only its own extra installs


def names_in(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return sorted(text for text in texts if DOTTED.fullmatch(text))


NAMED = [(path.name, name) for path in SCRIPTS for name in names_in(path)]


@pytest.mark.parametrize(("script", "name"), NAMED)
def test_a_name_in_a_script_is_one_of_the_package(script, name):
    pkgutil.resolve_name(name)


def test_there_are_such_names():
    assert {"overhead.py", "backbones.py"} <= {script for script, _ in NAMED}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_imports_and_its_files_are_there(path, monkeypatch):
    if path.name in NEEDS_MORE:
        pytest.skip("needs the extra `data`")
    monkeypatch.syspath_prepend(str(path.parent))
    known = set(sys.modules)
    try:
        module = importlib.import_module(path.stem)
        files = {name: value for name, value in vars(module).items() if isinstance(value, Path) and name.isupper()}
        inside = {name: value for name, value in files.items() if value.is_relative_to(ROOT)}
        missing = {name: str(value) for name, value in inside.items() if not value.exists()}
        assert not missing
    finally:
        for name in set(sys.modules) - known:
            if not name.startswith(("vitrail", "torch", "diffusers", "transformers", "PIL", "numpy")):
                del sys.modules[name]
