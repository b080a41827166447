"""What a broken file is answered with, and that files, Python data and the way back agree."""

import copy
import json
import re

import attrs
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from broken_files import BAD_TOML, BAD_YAML
from vitrail.cli.check import check_file
from vitrail.core.config.files import read_file
from vitrail.core.config.loader import Loader
from vitrail.core.config.overrides import override
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.cascade import Cascade, Enter, Finish
from vitrail.core.method.composition import Composition
from vitrail.core.method.members import combines_branches
from vitrail.core.method.stage import Repeat, SharedPrompt, Stage, ViewGroup
from vitrail.errors import ConfigError, VitrailError, nearest
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.patching.whole import Whole
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import load_method

REGISTRY = build_registry()
LOADER = Loader(REGISTRY)
FILES = [
    pytest.param(f"bad.{suffix}", *case, id=f"{suffix}: {name}")
    for suffix, cases in (("toml", BAD_TOML), ("yaml", BAD_YAML))
    for name, case in cases.items()
]


def complaint(function, *args):
    """The one message, after checks that hold for every message."""
    with pytest.raises(VitrailError) as caught:
        function(*args)
    text = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert not re.search(r"Traceback|<class|object at 0x|Attribute|unicode string|\bNone\b|\bTrue\b|\bFalse\b", text)
    return text


@pytest.mark.parametrize(("name", "text", "expected"), FILES)
def test_broken_file_is_answered_with_every_problem(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text)
    told = complaint(check_file, path, ())
    assert [part for part in expected if part not in told] == [], told


def test_unreadable_files(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b'prompt = "caf\xe9"')
    (tmp_path / "folder.toml").mkdir()
    for name, expected in {
        "missing.toml": "cannot be read: No such file",
        "latin.toml": "is not UTF-8 text; byte 13 is 0xe9",
        "folder.toml": "is a folder; a .toml, .yaml or .yml file is expected",
        "run.json": "a .toml, .yaml or .yml file is expected",
    }.items():
        assert expected in complaint(check_file, tmp_path / name, ())


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("stages.0.guidance.0.scale", "write path=value, e.g. stages.0.guidance.0.scale=2"),
        ("=3", "write path=value"),
        ("stages..until=1", "write path=value"),
        ("stages.2.until=1", "stages is a list of 2, counted from 0; got '2'"),
        ("stages.-1.until=1", "stages is a list of 2, counted from 0; got '-1'"),
        ("stages.first.until=1", "got 'first'"),
        ("stages.0.guidance.1=sync", "set it as a whole: stages.0.guidance=[...]"),
        ("stages.0.patchng.key=auto", "there is no stages.0.patchng (did you mean 'patching'?)"),
        ("stages.0.until.x=1", "stages.0.until is 0.5, which has no parts"),
        (
            "stages.0.patching.kye=auto",
            "$.stages[0].patching: patching 'lattice' has no key 'kye' (did you mean 'key'?)",
        ),
        ("stages.0.fusion=gausian", "$.stages[0].fusion: no fusion named 'gausian' (did you mean 'gaussian'?)"),
        ("stages.1.patching.jitter=True", "$.stages[1].patching.jitter: expected true or false, got the text"),
        ("stages.0.until=0.2\nx = 3", "$.stages[0].until: expected a number, got the text"),
        ("seed=3", "$: a method has no key 'seed'; known: cascade, finish, stages"),
    ],
)
def test_broken_assignment(assignment, expected):
    told = complaint(load_method, "asg", [assignment]) if "True" not in assignment else None
    if told is None:
        with pytest.raises(ConfigError, match="expected true or false") as caught:
            load_method("asg", [assignment])
        told = str(caught.value)
    assert expected in told


def test_every_broken_assignment_is_told():
    told = complaint(load_method, "asg", ["a.b=1", "stages.9.until=1"])
    assert "--set 'a.b=1'" in told and "--set 'stages.9.until=1'" in told


def test_assignments_reach_every_level():
    changed = load_method(
        "asg",
        [
            "stages.0.until=0.25",
            "stages.0.guidance.0.scale=3",
            "stages.0.masking.clip=0.1",  # the short form of a strategy grows into a table
            "stages.0.fusion.type=scatter",
            'stages.1.fusion={type = "gaussian", std = 0.2}',
            "stages.1.patching=whole",
        ],
    )
    first, second = changed.stages
    assert (first.until, first.guidance[0].scale, first.masking.clip) == (0.25, 3.0, 0.1)
    assert second.fusion.std == 0.2
    assert LOADER.unstructure(second.patching) == {"type": "whole"}


def test_assignments_leave_the_data_alone():
    data = {"stages": [{"patching": "windows"}]}
    before = copy.deepcopy(data)
    assert override(data, ["stages.0.patching.size=8"])["stages"][0]["patching"] == {"type": "windows", "size": 8}
    assert data == before


@pytest.mark.parametrize("name", REGISTRY.names("methods"))
def test_every_method_goes_to_data_and_back(name):
    composition = load_method(name)
    data = json.loads(json.dumps(LOADER.unstructure(composition)))
    assert LOADER.structure(data, Composition, "dumped") == composition


# Values for the types that fields have; a new type of field joins here.
shares = st.floats(0, 0.49)


def values(kind):
    """Values of a field's type, within the ranges that most fields share."""
    text = str(kind)
    if "Literal" in text or kind in ("Form", "Ramp", "Tail"):
        return None
    simple = {"bool": st.booleans(), "float": st.floats(0.01, 0.49), "int": st.integers(1, 4)}
    if text in simple:
        return simple[text]
    return {
        "int | None": st.none() | st.integers(1, 64),
        "tuple[int, ...]": st.lists(st.integers(-3, 3), max_size=3).map(tuple),
    }.get(text)


RELATED = {("attentive", "until"), ("patch-content-aware", "halvings")}  # bounded by another option, so not drawn


def strategies_of(slot):
    """Instances of everything registered in a slot, with drawn options."""
    kinds = []
    for entry in REGISTRY.entries(slot):
        free = [f for f in attrs.fields(entry.value) if (entry.name, f.name) not in RELATED]
        drawn = {f.name: values(f.type) for f in free}
        kinds.append(st.builds(entry.value, **{name: value for name, value in drawn.items() if value is not None}))
    return st.one_of(kinds)


ramps = st.sampled_from(["constant", "cosine", "linear"])
families = st.builds(
    ViewGroup, patching=strategies_of("patching"), fusion=strategies_of("fusion"), weight=shares, ramp=ramps
)
stages = st.builds(
    Stage,
    patching=strategies_of("patching"),
    fusion=strategies_of("fusion"),
    masking=strategies_of("masking"),
    guidance=st.lists(strategies_of("guidance"), max_size=3).filter(
        lambda drawn: sum(map(combines_branches, drawn)) < 2
    ),
    prompting=strategies_of("prompting"),
    remember=st.booleans(),
    repeat=st.none() | st.builds(Repeat, times=st.integers(0, 3), guidance_factor=st.floats(0.1, 2)),
    extra_views=st.lists(families, max_size=2),
    until=st.floats(0, 1),
)


cascades = st.builds(Cascade, spacing=st.sampled_from(["side", "area", "ratio"]), count=st.none() | st.integers(1, 4))
upscalers = strategies_of("upscaler")
enters = st.builds(
    Enter,
    resize=st.just("pixels"),
    strength=st.lists(st.floats(0.1, 1), min_size=1, max_size=3),
    upscaler=st.none() | upscalers,
)
finishes = st.builds(Finish, upscaler=upscalers, factor=st.floats(1.1, 8))


def sound(stage, is_first_size):
    """A stage without what it would have to ignore."""
    unfit = {"inputs"} if hasattr(stage.patching, "prepare") else set()
    guidance = [g for g in stage.guidance if g.point not in unfit]
    guidance = [g for g in guidance if not (is_first_size and getattr(g, "follows_start", False))]
    parts = not getattr(stage.patching, "shows_whole", False)
    guidance = [g for g in guidance if not (parts and getattr(g, "interpolates_key", False))]
    readers = {g.point for g in guidance if getattr(g, "reads_mask", False)}
    blind = any(getattr(g, "views_branches", ()) for g in guidance)  # views do not see the prompt
    kept = readers == ({"canvas"} if getattr(stage.masking, "recalls", False) else {"views"}) or not guidance
    return attrs.evolve(
        stage,
        guidance=guidance,
        masking=stage.masking if kept and not blind else NoMask(),
        prompting=SharedPrompt() if blind else stage.prompting,
        remember=stage.remember and not (blind or parts),
    )


@st.composite
def groups(draw, is_first_size):
    """Stages that are done at one size."""
    drawn = sorted(draw(st.lists(stages, min_size=1, max_size=3)), key=lambda stage: stage.until)
    return [sound(stage, is_first_size) for stage in [*drawn[:-1], attrs.evolve(drawn[-1], until=1.0)]]


@st.composite
def compositions(draw):
    first, *others = draw(groups(True))
    seeing = [guidance for guidance in first.guidance if not getattr(guidance, "views_branches", ())]
    first = attrs.evolve(
        first, remember=True, guidance=seeing, patching=Whole(), masking=NoMask(), prompting=SharedPrompt()
    )
    drawn, cascade = [first, *others], None
    if draw(st.booleans()):
        begin, *further = draw(groups(False))
        cascade, drawn = draw(cascades), [*drawn, attrs.evolve(begin, enter=draw(enters)), *further]
    return Composition(stages=drawn, cascade=cascade, finish=draw(st.none() | finishes))


@given(compositions())
def test_dump_then_load_is_the_identity(composition):
    data = LOADER.unstructure(composition)
    assert LOADER.structure(data, Composition, "dumped") == composition
    assert LOADER.structure(json.loads(json.dumps(data)), Composition, "as JSON") == composition
    assert LOADER.structure(yaml.safe_load(yaml.safe_dump(data)), Composition, "as YAML") == composition


@given(compositions(), st.data())
def test_a_key_that_is_not_there_is_named_wherever_it_stands(composition, data):
    tables = LOADER.unstructure(composition)
    spots = [tables, *tables["stages"], *(stage[slot] for stage in tables["stages"] for slot in ("patching", "fusion"))]
    data.draw(st.sampled_from(spots))["nonsense"] = 1
    with pytest.raises(ConfigError, match="has no key 'nonsense'"):
        LOADER.structure(tables, Composition, "mutated")


NAMES = st.text(min_size=1).filter(str.strip)


@given(st.builds(RunConfig, prompt=st.text(), seed=st.integers(0, 2**63 - 1), scheduler=st.none() | NAMES))
def test_run_goes_to_data_and_back(config):
    assert LOADER.structure(json.loads(json.dumps(attrs.asdict(config))), RunConfig, "dumped") == config


def test_toml_yaml_and_python_agree(tmp_path):
    (tmp_path / "a.toml").write_text(
        '[[stages]]\nuntil = 0.5\npatching = { type = "lattice", key = "auto" }\n'
        'guidance = [{ type = "async", scale = 2 }]\n'
        'masking = "up-block-attention"\nfusion = "scatter"\n'
        '[[stages]]\npatching = { type = "windows", overlap = 0.5, jitter = true }\nfusion = { type = "average" }\n'
    )
    (tmp_path / "a.yml").write_text(
        "stages:\n- until: 0.5\n  patching: {type: lattice, key: auto}\n  guidance:\n  - {type: async, scale: 2.0}\n"
        "  masking: {type: up-block-attention}\n  fusion: scatter\n"
        "- patching: {type: windows, overlap: 0.5, jitter: true}\n  fusion: average\n"
    )
    get = REGISTRY.get
    python = Composition(
        stages=[
            Stage(
                until=0.5,
                patching=get("patching", "lattice")(key="auto"),
                guidance=[get("guidance", "async")(scale=2.0)],
                masking=get("masking", "up-block-attention")(),
                fusion=get("fusion", "scatter")(),
            ),
            Stage(
                patching=get("patching", "windows")(overlap=0.5, jitter=True),
                masking=get("masking", "none")(),
                fusion=get("fusion", "average")(),
            ),
        ]
    )
    assert load_method(tmp_path / "a.toml") == load_method(str(tmp_path / "a.yml")) == python


def test_an_unregistered_strategy_cannot_be_written():
    class Mine(REGISTRY.get("fusion", "average")):
        """Not registered."""

    stage = evolve_first(load_method("direct"), fusion=Mine())
    with pytest.raises(ConfigError, match="Mine is not registered as fusion, so it cannot be written"):
        LOADER.unstructure(stage)


def evolve_first(composition, **changes):
    return attrs.evolve(composition, stages=[attrs.evolve(composition.stages[0], **changes), *composition.stages[1:]])


def test_yaml_is_safe_and_strict_at_every_level(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &x {b: 1}\nc: {<<: *x, d: 2}\n")
    assert read_file(path)["c"] == {"b": 1, "d": 2}
    path.write_text("a:\n- {b: 1, b: 2}\n")
    with pytest.raises(ConfigError, match="key 'b' is given twice"):
        read_file(path)


def test_nearest_names():
    known = ["num_inference_steps", "up-block-attention", "seed"]
    assert nearest("steps", known).startswith(" (did you mean 'num_inference_steps'?)")
    assert nearest("UpBlock", known).startswith(" (did you mean 'up-block-attention'?)")
    assert nearest("a", known).startswith("; known: ")
    assert nearest("", []) == "; known: none"
