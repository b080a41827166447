"""Settings of the documentation site, ``make docs``.

The pages are plain Markdown, which also reads well where the repository is hosted. What only a site needs is added
while they are read: the table of contents, addresses of files outside of this folder, and in ``reference/api.md`` the
docstrings of the objects that are listed there.
"""

import os
import re
import tomllib
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Homepage"]

project, author = "Vitrail", PROJECT["authors"][0]["name"]
release = version = PROJECT["version"]
copyright = author  # noqa: A001 - the name that is read
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write code in single backticks, too
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
html_theme = "furo"
html_title = "Vitrail"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
html_show_copyright = html_show_sphinx = False
html_show_search_summary = False  # it fetches pages, which a browser refuses to one that was opened as a file

CONTENTS = {  # caption -> pages, in order; ``*`` stands for those that no other line has
    "Start": ("tutorial", "command-line", "gallery/index"),
    "How to": (
        "how-to/models",
        "how-to/your-pipeline",
        "how-to/diffusers",
        "how-to/ranks",
        "how-to/memory",
        "how-to/previews",
        "how-to/serve",
        "how-to/fewer-rows",
        "how-to/regions",
        "how-to/wrap",
        "how-to/cascades",
        "how-to/upscalers",
        "how-to/rectification",
        "how-to/attention-maps",
        "how-to/auxiliary-guidance",
        "how-to/experiments",
        "how-to/metrics",
        "how-to/parity-switches",
        "how-to/authors-code",
    ),
    "Write": (
        "how-to/write-a-strategy",
        "how-to/write-a-patching",
        "how-to/write-a-guidance",
        "how-to/write-a-masking",
        "how-to/write-a-fusion",
        "how-to/write-a-prompting",
        "how-to/write-a-rectification",
        "how-to/write-an-upscaler",
        "how-to/write-a-metric",
        "how-to/write-a-transport",
    ),
    "Explanation": (
        "explanation/engine",
        "explanation/communication",
        "explanation/asg-cascade",
        "explanation/published-methods",
    ),
    "Reference": ("reference", "reference/api", "reference/judge"),
    "Results": ("results/methods", "results/costs", "results/*"),
}
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(#[^)\s]*)?(?=\))")
LISTED = re.compile(r"^- `([\w.]+)`.*$", re.M)  # an object of the list in reference/api.md
SHAPE = re.compile(r"(?<!`)\b((?:Float|Int|UInt|Bool)\d*\[[^\]]*\])")  # jaxtyping's notation, whose stars are no markup


def contents() -> str:
    """The table of contents, as directives at the end of the first page."""
    blocks = []
    for caption, pages in CONTENTS.items():
        glob = ":glob:\n" if any("*" in page for page in pages) else ""
        blocks.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n{glob}\n" + "\n".join(pages) + "\n```")
    return "\n\n".join(blocks)


def with_addresses(docname: str, text: str) -> str:
    """Turn links to files that are no part of the site into addresses in the repository; MyST warns of dead ones."""

    def address(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        if re.match(r"\w+:", target):
            return link[0]
        path = Path(os.path.normpath((DOCS / docname).parent / target))
        if not path.exists() or (path.is_file() and path.is_relative_to(DOCS)):
            return link[0]
        kind = "tree" if path.is_dir() else "blob"
        return f"{REPOSITORY}/{kind}/main/{path.relative_to(ROOT).as_posix()}{anchor}"

    return LINK.sub(address, text)


def documented(match: re.Match[str]) -> str:
    """A listed object as a directive that shows its docstring."""
    import importlib
    import inspect

    module, _, name = match[1].rpartition(".")
    kind = "autoclass" if inspect.isclass(getattr(importlib.import_module(module), name)) else "autofunction"
    members = "   :members:\n   :special-members: __call__\n" if kind == "autoclass" else ""
    return f"```{{eval-rst}}\n.. {kind}:: {match[1]}\n{members}```\n"


def read(app: object, docname: str, source: list[str]) -> None:
    """Add to a page what only the site needs."""
    text = with_addresses(docname, source[0])
    if docname == "index":
        text += f"\n\n{contents()}\n"
    if docname == "reference/api":
        text = LISTED.sub(documented, text)
    source[0] = text


def docstring(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Mark shapes as code."""
    lines[:] = [SHAPE.sub(r"``\1``", line) for line in lines]


def setup(app: object) -> dict[str, bool]:
    """Connect the above; called by Sphinx."""
    app.connect("source-read", read)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", docstring, priority=400)  # type: ignore[attr-defined]
    return {"parallel_read_safe": True}
