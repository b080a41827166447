"""Strategies of configuration files with the command that reads them: valid, nearly valid and hostile."""

import copy
import json
from typing import Any

import yaml
from hypothesis import strategies as st

from fuzzing import hostile, schema
from fuzzing.cases import Case
from fuzzing.toml_writer import toml_of

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d494844520000000100000001080200000090775"
    "3de0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)
AROUND = {  # other files in the folder
    "mine.toml": b'[[stages]]\npatching = "windows"\nfusion = "average"\n',
    "mine.yaml": b"stages:\n- {patching: whole, fusion: average}\n",
    "base.toml": b'scenes = 1\nsizes = [64]\nmethods = ["direct"]\n',
    "prompts.txt": b"a fox\n# nothing\n\na rocket\n",
    "picture.png": PNG,
    "taken.bin": b"\x00\x01",
    "taken.png": b"something precious",
    "folder.toml/inside.txt": b"",
}
KINDS = {"run": schema.runs, "method": schema.methods, "experiment": schema.experiments}


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in nested data."""
    parts = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    found = []
    for key, value in parts:
        found += [(*path, key), *places(value, (*path, key))]
    return found


@st.composite
def changed(draw: st.DrawFn, table: dict[str, Any]) -> dict[str, Any]:
    """Draw changes of a table: hostile values, misspelt, missing or additional keys."""
    table = copy.deepcopy(table)
    values = hostile.values.map(copy.deepcopy)  # some are of one list, and the next change may be to it
    for _ in range(draw(st.integers(1, 3))):
        known = places(table)
        if not known:
            break
        *path, key = draw(st.sampled_from(known))
        home: Any = table
        for part in path:
            home = home[part]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "misspell", "add"])):
            case "replace":
                home[key] = draw(values)
            case "remove":
                del home[key]
            case "misspell" if isinstance(home, dict):
                home[str(key)[:-1] + "x"] = home.pop(key)
            case "add" if isinstance(home, dict):
                home[draw(hostile.words)] = draw(values)
            case "add":
                home.insert(key, draw(values))
    return table


def written(table: dict[str, Any], suffix: str) -> bytes:
    """Return the bytes of a table as a TOML or YAML file."""
    if suffix == ".toml":
        return toml_of(table).encode("utf-8", "replace")
    try:
        return yaml.safe_dump(table, allow_unicode=True, sort_keys=False).encode("utf-8", "replace")
    except yaml.YAMLError:
        return json.dumps(table, default=str).encode()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a file and a command line that reads it."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    table, suffix = draw(KINDS[kind]()), draw(st.sampled_from([".toml", ".yaml"]))
    how = draw(st.sampled_from(["as drawn", "changed", "changed", "damaged"]))
    if how == "changed":
        table = draw(changed(table))
    content = written(table, suffix)
    if how == "damaged":
        content = draw(hostile.damaged(content))
    name = f"e{suffix}"
    sets = draw(st.lists(assignments(), max_size=2)) if draw(st.integers(0, 4)) == 0 else []
    words = [*draw(st.sampled_from(commands(kind, name))), *(word for each in sets for word in ("--set", each))]
    return Case(words=words, files={**AROUND, name: content})


def commands(kind: str, name: str) -> list[list[str]]:
    """Return command lines that read a file without sampling."""
    check = ["check", name]
    return {
        "run": [check, check, ["sample", "--config", name, "--dry-run"]],
        "method": [check, check, ["sample", "a fox", "--method", name, "--size", "160", "--steps", "4", "--dry-run"]],
        "experiment": [check, check, ["run", name, "--dry-run"]],
    }[kind]


def assignments() -> st.SearchStrategy[str]:
    """Return a strategy of values of ``--set``, with existing and other paths."""
    paths = st.sampled_from(
        [
            "stages.0.until",
            "stages.0.patching",
            "stages.0.guidance.0.scale",
            "seeds",
            "sizes",
            "run.seed",
            "stages",
            "x.y",
            "",
        ]
    )
    longer = st.builds(
        lambda path, more: path + more,
        paths,
        st.sampled_from([".9" * 40, ".type" * 400, ".0", ".-1", "." + "9" * 5000]),
    )
    texts = hostile.words | st.sampled_from(
        ["[-1]", "[" * 3000, "9" * 5000, "0x" + "f" * 5000, "[]", "{}", "a" + ".a" * 2000, "1e400"]
    )
    return (
        st.sampled_from(schema.SETS)
        | st.builds(lambda path, text: f"{path}={text}", paths | longer, texts)
        | hostile.words
    )
