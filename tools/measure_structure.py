"""Measure the structure of the package: sizes, root modules, import cycles, chains, duplicate names, frames of a step.

    python tools/measure_structure.py            the numbers
    python tools/measure_structure.py --verbose  and what they count

All imports count: at the top, in a function, under ``TYPE_CHECKING``.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import vitrail

ROOT = Path(vitrail.__file__).parent
SHORT = 50  # lines, below which a file counts as short

Graph = dict[str, set[str]]


def modules() -> dict[str, ast.Module]:
    """Parse all modules: name to syntax tree."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def import_graph(trees: dict[str, ast.Module]) -> Graph:
    """Map each module to the modules of the package that it imports; a package is its ``__init__``."""
    graph: Graph = {}
    for module, tree in trees.items():
        graph[module] = set()
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                target = name if name in trees else name.rpartition(".")[0]
                if target in trees and target != module:
                    graph[module].add(target)
    return graph


def components(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components, dependencies first (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = []
            while not component or component[-1] != node:
                component.append(stack.pop())
            found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def longest_chain(graph: Graph) -> list[str]:
    """Return the longest chain of imports; a cycle counts as one link."""
    home = {node: number for number, group in enumerate(components(graph)) for node in group}
    groups = components(graph)
    best: list[list[str]] = []
    for number, group in enumerate(groups):
        targets = {home[target] for node in group for target in graph[node]} - {number}
        tail: list[str] = max((best[target] for target in targets), key=len, default=[])
        best.append([group[0], *tail])
    return max(best, key=len)


def folder_graph(graph: Graph) -> Graph:
    """Return the graph between the folders of the package's root; a module in the root counts as a folder."""
    folders: Graph = defaultdict(set)
    for module, targets in graph.items():
        mine = [*module.split("."), ""][1]
        folders[mine] |= {[*target.split("."), ""][1] for target in targets} - {mine, ""}
    return {folder: folders[folder] for folder in folders} | {
        target: folders.get(target, set()) for targets in folders.values() for target in targets
    }


def functions(trees: dict[str, ast.Module]) -> list[int]:
    """Return the number of lines of every function's body, without its docstring."""
    lengths = []
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lengths.append(body[-1].end_lineno - body[0].lineno + 1 if body else 0)  # type: ignore[operator]
    return lengths


def defined_twice(trees: dict[str, ast.Module]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return class names, and last parts of module names, that occur more than once, with their modules."""
    classes, names = defaultdict(list), defaultdict(list)
    for module, tree in trees.items():
        names[module.rpartition(".")[2]].append(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(module)
    twice = [{name: where for name, where in each.items() if len(where) > 1} for each in (classes, names)]
    return twice[0], twice[1]


def frames_of_a_step() -> list[str]:
    """Return the package's frames between ``Engine.step`` and the network's forward."""
    import torch

    from vitrail import Sampler

    torch.set_num_threads(1)  # so that the forward runs in the thread of the step
    found: list[list[str]] = []
    sampler = Sampler.from_pretrained("demo", method="multidiffusion")
    network: Any = type(sampler.backbone.network)
    forward = network.forward

    def watched(*arguments: Any, **named: Any) -> Any:
        frame, stack = sys._getframe(1), []
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT):
                stack.append(f"{path.relative_to(ROOT).with_suffix('')}:{frame.f_code.co_qualname}")
                if frame.f_code.co_qualname == "Engine.step":
                    found.append(stack[:-1][::-1])
                    break
            frame = frame.f_back  # type: ignore[assignment]
        return forward(*arguments, **named)

    network.forward = watched
    try:
        sampler("a fox", height=256, width=256, num_inference_steps=2)
    finally:
        network.forward = forward
    return max(found, key=len)


def percentile(values: list[int], share: float) -> int:
    """Return the quantile of a list at a share in [0, 1]."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def report(verbose: bool) -> Iterator[str]:
    """Yield the lines of the table, with details if ``verbose``."""
    trees = modules()
    graph = import_graph(trees)
    paths = sorted(ROOT.rglob("*.py"))
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]
    lengths = functions(trees)
    short = [path for path, count in zip(paths, lines, strict=True) if count < SHORT and path.name != "__init__.py"]
    loose = sorted(path.stem for path in ROOT.glob("*.py"))
    circles = [group for group in components(graph) if len(group) > 1]
    chain, folders = longest_chain(graph), longest_chain(folder_graph(graph))
    classes, names = defined_twice(trees)
    frames = frames_of_a_step()

    def row(name: str, value: object, details: Callable[[], list[str]]) -> Iterator[str]:
        yield f"{name:<44}{value}"
        if verbose:
            yield from (f"    {line}" for line in details())

    yield from row("files, lines", f"{len(paths)}, {sum(lines)}", list)
    yield from row(
        "file: median, 90th percentile, most",
        f"{statistics.median(lines):g}, {percentile(lines, 0.9)}, {max(lines)}",
        list,
    )
    body = f"{statistics.median(lengths):g}, {percentile(lengths, 0.9)}, {max(lengths)}"
    yield from row("function body: median, 90th percentile, most", body, list)
    yield from row(f"files under {SHORT} lines", len(short), lambda: [str(path.relative_to(ROOT)) for path in short])
    yield from row("modules in the root", len(loose), lambda: loose)
    yield from row("circles, lazy imports included", len(circles), lambda: [" - ".join(group) for group in circles])
    yield from row("longest chain of modules", len(chain), lambda: chain)
    yield from row("longest chain of folders", len(folders), lambda: folders)
    yield from row("class names used twice", len(classes), lambda: [f"{k}: {', '.join(v)}" for k, v in classes.items()])
    yield from row("module names used twice", len(names), lambda: [f"{k}: {', '.join(v)}" for k, v in names.items()])
    yield from row("frames from Engine.step to the network", len(frames), lambda: frames)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbose", action="store_true", help="list what each number counts")
    for line in report(parser.parse_args().verbose):
        print(line)
