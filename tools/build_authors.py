"""Write docs/results/authors.md from src/vitrail/plugins/authors.toml.

Usage: python tools/build_authors.py

The test suite fails if the page is not up to date.
"""

from pathlib import Path

from vitrail.sampling.authors_code import AuthorsCode, authors_codes

PAGE = Path(__file__).parents[1] / "docs/results/authors.md"
HEAD = """# Parity with the authors' code

How near each method is to the code that its authors published, which was run beside it: unmodified but for imports and
random draws, on tiny random Stable Diffusion (XL) networks in float32, with the same noise. "Equal" is to what two
releases of diffusers differ by, 5e-5 on latents of a deviation of 4.6. The network was asked for equally many rows
everywhere. Differences were measured before the switches below existed, with what they do emulated.

Made from `src/vitrail/plugins/authors.toml` by `python tools/build_authors.py`; `vitrail methods NAME --authors` prints
a method's part. [How to set the switches, and what they do](../how-to/parity-switches.md);
[how to measure it again with a checkout of your own](../how-to/authors-code.md).

| method | equal | largest difference known |
|---|---|---|
"""


def part(name: str, entry: AuthorsCode) -> list[str]:
    """Return the lines of a method."""
    code = f"Code: {entry.code}." if entry.code else "No code of the authors is public."
    nearest = ["", "Nearest to it:", "", "```sh", *entry.command(name), "```"]
    differs = ["", "By design:", "", *(f"- {line}." for line in entry.differs)]
    return ["", f"## {name}", "", code, *(nearest if entry.command(name) else []), *differs]


def page() -> str:
    """Return the text of the page."""
    entries = authors_codes()
    rows = [f"| `{name}` | {entry.equal} | {entry.largest} |" for name, entry in entries.items()]
    parts = [line for name, entry in entries.items() for line in part(name, entry)]
    return HEAD + "\n".join([*rows, *parts]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
