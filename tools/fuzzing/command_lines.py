"""Strategies of command lines, from the parser itself: every command and option, with valid and hostile values.

New commands and options are drawn without changes here. Commands that would sample for long get options to plan only,
or to sample the smallest picture.
"""

from typing import Any

import typer
from hypothesis import strategies as st

from fuzzing import hostile
from fuzzing.cases import Case
from fuzzing.configs import AROUND, assignments
from fuzzing.schema import KNOWN

EXPERIMENT = b'scenes = 2\nsizes = [64]\nmethods = ["direct", "multidiffusion"]\n[run]\nnum_inference_steps = 1\n'
FILES = {
    **AROUND,
    "e.toml": EXPERIMENT,
    "r.yaml": b"prompt: a fox\nsize: 64x96\nmethod: mine.toml\nnum_inference_steps: 2\n",
    "trace.json": b'{"traceEvents": [{"ph": "X", "pid": 0}]}',
}
WORDS = {  # values of options whose type is no guide
    **KNOWN,
    "prompt": ("a fox", "", " ", "\x00", "\x1b[31m", "x" * 5000, "-", "--"),
    "config": ("r.yaml", "e.toml", "mine.toml", "no.toml", "folder.toml", "/dev/zero"),
    "file": (
        "e.toml",
        "r.yaml",
        "mine.toml",
        "mine.yaml",
        "base.toml",
        "no.toml",
        "prompts.txt",
        "/dev/zero",
        "picture.png",
    ),
    "picture": ("picture.png", "taken.png", "no.png", "/dev/zero", "folder.toml"),
    "folders": (".", "no", "folder.toml", "/dev/null"),
    "traces": ("trace.json", "no.json", "picture.png", "/dev/zero"),
    "methods": ("direct", "direct,direct", ",", "direct,no", "mine.toml"),
    "wrap": ("none", "x", "xy", "yx"),
    "memory": ("auto", "fixed", "more"),
    "dtype": ("float32", "bfloat16", "float64", "int8"),
    "device": ("cpu", "meta", "cuda", "cuda:99", "cpu:1", "xla", "tpu", "cuda:-1", ""),
    "scheduler": (*KNOWN["scheduler"], "ScoreSdeVeScheduler", "RePaintScheduler", "CMStochasticIterativeScheduler"),
    "speeds": ("1", "1,1", "1,0.5", "nan", "inf,1", ",", "-1", "auto"),
    "shard": ("0/1", "0/2", "1/1", "2/1", "a/b", "/", "0/0", "9" * 5000 + "/1", "0/" + "9" * 5000),
    "executor": ("here", "elsewhere"),
    "masking": (*KNOWN["masking"], ""),
    "at": (*KNOWN["at"], "0.25,1.0", "1e-300", ","),
    "words": ("fox", "", "cat"),
    "plugin": ("os:path", "no_module:X", "os", ":", "os:sep.x", "json:JSONDecoder", "x" * 300 + ":y"),
    "baseline": ("direct", "no"),
    "model_config": ("sd-2.1", "no", "."),
    "variant": ("fp16", ""),
    "revision": ("main", ""),
    "label": ("a", ""),
    "output": (
        "x.png",
        "x.jpg",
        "taken.png",
        "no/x.png",
        ".",
        "",
        f"{hostile.LONG}.png",
        "~nobody-here/x.png",
        "~/x.png",
    ),
    "checkpoint": ("c.ckpt", "picture.png", ".", "", hostile.LONG, "no/c"),
    "trace": ("t.json", "/", "", ".", "no/t.json", hostile.LONG),
    "out": ("o", "o/p", "taken.png", "taken.png/x", hostile.LONG, ""),
}
WRITTEN = ("output", "out", "checkpoint", "trace")  # options that write files, with values inside of the folder only
INTEGERS = ("0", "1", "2", "-1", "64", "99999", "1000000000", "9" * 30, "9" * 5000, "1.5", "x", "", "32768")
REALS = ("0", "1", "0.5", "-1", "nan", "inf", "1e308", "1e400", "x", "3")
UNASKED = {
    "doctor",  # takes nothing, and imports all libraries in a process without a worker's limits
    "serve",  # runs until it is stopped
}
TINY = {  # options that make each command short; they come last, so they override earlier ones
    "sample": ["--size", "64", "--steps", "1", "--num-images", "1", "--method", "direct", "--model", "demo"],
    "heatmap": ["--size", "64", "--steps", "1", "--model", "demo"],
    "compare": ["--size", "64", "--steps", "1", "--methods", "direct", "--model", "demo"],
    "run": ["--dry-run"],
    "report": [],
}


def parser() -> Any:
    """Return the parser of the command line, with its commands by name."""
    from vitrail.cli import app as cli

    return typer.main.get_command(cli.app)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a command with some of its options."""
    group = parser()
    name = draw(st.sampled_from(sorted(group.commands.keys() - UNASKED) + ["sample"] * 4 + ["run"] * 2))
    parameters = group.commands[name].params
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    options = [p for p in parameters if p.param_type_name == "option" and p.name != "help"]
    chosen = draw(st.lists(st.sampled_from(options), max_size=4, unique_by=lambda p: p.name)) if options else []
    words = [name]
    for argument in arguments:
        count = draw(st.integers(0, 2)) if argument.nargs == -1 else draw(st.sampled_from([1, 1, 1, 1, 1, 0, 2]))
        value = _value(argument, hostile_share=6).filter(
            lambda word: word != "--"
        )  # the ends would be no options after it
        words += [draw(value) for _ in range(count)]
    for option in chosen:
        words += draw(_given(option))
    return Case(words=[*words, *draw(_ends(name))], files=FILES)


@st.composite
def _given(draw: st.DrawFn, option: Any) -> list[str]:
    flags = [*option.opts, *option.secondary_opts]
    if option.is_flag:
        return [draw(st.sampled_from(flags))]
    times = draw(st.integers(1, 2)) if option.multiple else 1
    return [word for _ in range(times) for word in (draw(st.sampled_from(option.opts)), draw(_value(option)))]


def _value(parameter: Any, hostile_share: int = 4) -> st.SearchStrategy[str]:
    """Return a strategy of a parameter's values: mostly valid ones, or any text."""
    name, kind = str(parameter.name), _kind(parameter)
    if name == "sets":
        return assignments()
    if name in WORDS:
        known = st.sampled_from(WORDS[name])
    elif "int" in kind:
        known = st.sampled_from(INTEGERS)
    elif "float" in kind:
        known = st.sampled_from(REALS)
    else:
        known = hostile.words
    return known if name in WRITTEN else st.one_of([known] * hostile_share + [hostile.words])


def _kind(parameter: Any) -> str:
    """Return the type of a parameter as text, for any version of typer."""
    descriptor = getattr(parameter, "type_descriptor", None)
    return str(parameter.type if descriptor is None else descriptor.annotation).lower()


@st.composite
def _ends(draw: st.DrawFn, name: str) -> list[str]:
    """Draw options that keep a command short: planning only, or sampling the smallest picture."""
    if name == "sample" and draw(st.integers(0, 5)):
        return ["--dry-run"]
    if name == "sample":
        ranks = draw(
            st.sampled_from([[], [], ["--ranks", "2", "--comm", "in-process"], ["--ranks", "2", "--comm", "simulated"]])
        )
        return [*TINY[name], *(ranks or ["--ranks", "1"])]
    if name in ("replay", "decode"):
        return []
    return TINY.get(name, [])
