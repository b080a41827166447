"""Write docs/tutorial.ipynb from docs/tutorial.md: a code cell for each block of Python, the text between as cells.

Usage: python tools/build_notebook.py [--execute FILE]

The page is what people read and change; the test suite fails if the notebook is not up to date. It is kept without
outputs: they are pictures whose bits depend on the machine, so each run would change the file and no reader of a change
could tell why. ``--execute`` writes a copy with them, and says how long it took.
"""

import argparse
import json
import re
import time
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/tutorial.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
CODE = re.compile(r"^```python\n(.*?)^```\n", re.M | re.S)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def cells(page: str) -> list[tuple[str, str]]:
    """Kind and source of the cells of a page, in order."""
    found, place = [], 0
    for block in CODE.finditer(page):
        found += [("markdown", page[place : block.start()].strip()), ("code", block[1].strip())]
        place = block.end()
    return [(kind, source) for kind, source in (*found, ("markdown", page[place:].strip())) if source]


def notebook(page: str) -> str:
    """The notebook's file, in version 4.5 of its format."""
    made = []
    for number, (kind, source) in enumerate(cells(page)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    whole = {"cells": made, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def execute(text: str, folder: Path, timeout: int = 600) -> object:
    """Run a notebook in a kernel of its own.

    Args:
        text: The file.
        folder: Where the kernel works.
        timeout: Of a cell, seconds.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    read = nbformat.reads(text, as_version=4)
    nbformat.validate(read)
    return NotebookClient(read, timeout=timeout, resources={"metadata": {"path": str(folder)}}).execute()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--execute", type=Path, metavar="FILE", help="write a copy with outputs there instead")
    options = parser.parse_args()
    text = notebook(PAGE.read_text(encoding="utf-8"))
    if options.execute is None:
        NOTEBOOK.write_text(text, encoding="utf-8")
    else:
        import nbformat

        begin = time.perf_counter()
        nbformat.write(execute(text, options.execute.resolve().parent), options.execute)
        print(f"executed in {time.perf_counter() - begin:.0f} s")
