"""Who may import whom, and what a command that only reads must not load."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitrail
from measure_structure import components, import_graph, modules
from vitrail import plugins
from vitrail.core.config.registry import Registry

ROOT = Path(vitrail.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
MAY_IMPORT = {  # the house from the ground up: a folder may import those named here, and itself
    "errors": set(),
    "comm": {"errors"},
    "core": {"comm", "errors"},
    "demo": {"core", "errors"},
    "pictures": {"core", "errors"},
    "testing": {"core", "comm", "errors"},
    "plugins": {"core", "errors"},
    "backbones": {"core", "comm", "demo", "errors"},
    "sampling": {"backbones", "plugins", "pictures", "core", "comm", "errors"},
    "metrics": {"pictures", "core", "demo", "errors"},
    "experiments": {
        "sampling",
        "metrics",
        "pictures",
        "backbones",
        "core",
        "comm",
        "demo",
        "errors",
    },  # a model for many cells; scenes
    "serve": {"sampling", "pictures", "backbones", "core", "errors"},
    "cli": {
        "serve",
        "experiments",
        "metrics",
        "sampling",
        "pictures",
        "backbones",
        "plugins",
        "demo",
        "core",
        "comm",
        "errors",
    },
    "__init__": {"sampling", "core", "errors"},
    "__main__": {"cli"},
}
OUTSIDE = {  # part -> other packages that it may import
    "core": {"attrs", "cattrs", "pluggy", "safetensors", "structlog", "torch", "yaml", "PIL"},
    "plugins": {"attrs", "pywt", "safetensors", "torch"},
    "comm": {"attrs", "pluggy", "torch"},
    "metrics": {"attrs", "PIL", "safetensors", "torch", "transformers"},
}
HEAVY = ("torch", "diffusers", "transformers")


def imports(path):
    """(dotted name, line) of every import in a file, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def found(parts):
    return [
        (path, name.split("."), f"{path.relative_to(ROOT)}:{line} imports {name}")
        for path in MODULES
        if part_of(path) in parts
        for name, line in imports(path)
    ]


def test_the_root_is_bare():
    assert {part_of(path) for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_folder_imports_only_what_is_below_it(part):
    allowed = MAY_IMPORT[part] | {part}
    wrong = [
        told
        for _, names, told in found({part})
        if names[0] == "vitrail" and (len(names) < 2 or names[1] not in allowed)
    ]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    """Imports in functions and under ``TYPE_CHECKING`` count."""
    circles = [group for group in components(import_graph(modules())) if len(group) > 1]
    assert not circles


def test_a_strategy_lies_in_the_file_of_its_name():
    registry = Registry()
    plugins.vitrail_register(registry)
    shared = {"average": "averages", "gaussian": "averages", "sync": "structure", "async": "structure"}
    for slot in ("patching", "guidance", "masking", "fusion", "prompting", "upscaler"):
        for name in set(registry.names(slot)) - {"shared"}:  # a stage's default, which core knows
            file = shared.get(name, name.replace("-", "_"))
            assert registry.get(slot, name).__module__ == f"vitrail.plugins.{slot}.{file}"


def test_a_circle_would_be_seen():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert sorted(components(graph), key=len) == [["d"], ["a", "b", "c"]]


@pytest.mark.parametrize("part", OUTSIDE)
def test_a_part_knows_few_packages(part):
    known = OUTSIDE[part] | {"vitrail"} | sys.stdlib_module_names
    assert not [told for _, names, told in found({part}) if names[0] not in known]


def test_only_backbones_and_one_metric_know_diffusers_and_transformers():
    others = {part_of(path) for path in MODULES} - {"backbones"}
    wrong = [(path.name, told) for path, names, told in found(others) if names[0] in ("diffusers", "transformers")]
    assert {name for name, _ in wrong} <= {"clip.py"}, wrong


def test_only_the_laws_of_communication_know_pytest_and_hypothesis():
    names = {(path, names[0]) for path, names, _ in found({part_of(path) for path in MODULES})}
    knowing = {path.relative_to(ROOT).parts[:2] for path, name in names if name in ("pytest", "hypothesis")}
    assert knowing == {("testing", "comm")}


def test_the_rules_see_something():
    """They would hold of an empty folder, too."""
    assert any(names[0] == "diffusers" for _, names, _ in found({"backbones"}))
    assert {part_of(path) for path in MODULES} >= set(MAY_IMPORT)
    assert len([1 for _, names, _ in found({"core"}) if names[:2] == ["vitrail", "core"]]) > 20


SEAM = {  # where a run and a backbone meet -> which names of a file are looked at, classes left out
    "core/method/*.py": (".*", "Guidance|Masking"),  # only a strategy knows its own state, and its point its subject
    "core/engine/*.py": (".*", ""),
    "core/schedule/noise_schedule.py": ("[A-Z]", ""),
    "sampling/sampler.py": (".*", ""),
    "sampling/builder.py": (".*", ""),
    "sampling/session.py": (".*", ""),
    "sampling/start_latents.py": (".*", ""),
    "sampling/called_steps.py": (".*", ""),
    "sampling/callbacks.py": (".*", ""),
    "sampling/call_options.py": (".*", ""),
    "sampling/pixels.py": (".*", ""),
    "sampling/differentiation.py": (".*", ""),
    "pictures/picture_reader.py": ("[^_]", ""),
    "backbones/adapters.py": (".*", ""),
    "backbones/analytic.py": (".*", ""),
    "backbones/*_backbone.py": ("[^_]", ""),
    "backbones/*_family.py": ("[^_]", ""),
    "backbones/conditioning/encoded.py": (".*", ""),
    "backbones/loading/source.py": (".*", ""),
    "backbones/rectification/*.py": ("check$|apply$", ""),
    "testing/backbone_contract.py": (".*", ""),
}
FILES = {"checkpoint.py", "state_file.py"}  # of the engine: what a file holds, which no backbone sees
UNTYPED = {"pipe", "processor"}  # diffusers' own objects, which have no types


def names_any(node):
    """Whether a piece of code speaks of ``Any``, also in an annotation that is a text."""
    return any(
        (isinstance(part, ast.Name) and part.id == "Any")
        or (isinstance(part, ast.Attribute) and part.attr == "Any")
        or (
            isinstance(part, ast.Constant)
            and isinstance(part.value, str)
            and re.search(r"\bAny\b(?=[],| )]|$)", part.value)
        )
        for part in ast.walk(node)
    )


def annotations(body, wanted, inside=""):
    """(name, annotation) of what a class or a file declares: fields, parameters and results."""
    for node in body:
        name = getattr(node, "name", "") or getattr(getattr(node, "target", None), "id", "")
        if isinstance(node, ast.ClassDef):
            yield from annotations(node.body, wanted, f"{inside}{name}.")
        elif not re.match(wanted, name) and name not in ("__init__", "__call__"):
            continue
        elif isinstance(node, ast.AnnAssign):
            yield f"{inside}{name}", node.annotation
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            own = node.args
            every = [*own.posonlyargs, *own.args, *own.kwonlyargs, *filter(None, (own.vararg, own.kwarg))]
            known = [(each.arg, each.annotation) for each in every if each.arg not in UNTYPED]
            for place, annotation in (*known, ("result", node.returns)):
                if annotation is not None:
                    yield f"{inside}{name}({place})", annotation


def found_any(text, wanted=".*", left_out=""):
    """Where a file says ``Any``: in all of it, or in what is looked at."""
    body = [n for n in ast.parse(text).body if not (isinstance(n, ast.ClassDef) and re.fullmatch(left_out, n.name))]
    told = [name for name, annotation in annotations(body, wanted) if names_any(annotation)]
    if wanted == ".*":
        code = (part for node in body for part in ast.walk(node))
        told += [f"line {part.lineno}" for part in code if isinstance(part, ast.Name) and part.id == "Any"]
    return told


@pytest.mark.parametrize("pattern", SEAM)
def test_no_type_is_left_open_between_a_run_and_a_backbone(pattern):
    paths = [path for path in sorted(ROOT.glob(pattern)) if path.name not in FILES]
    assert paths, f"nothing is at {pattern}: change the table"
    wrong = [
        f"{path.relative_to(ROOT)}: {told}" for path in paths for told in found_any(path.read_text(), *SEAM[pattern])
    ]
    assert not wrong, "write the protocol, the class, a type variable or `object`"


def test_an_open_type_would_be_seen():
    text = """
from typing import Any
Alias = dict[str, Any]
class Backbone:
    network: "Any"
    def predict(self, pipe: Any, *rows: list[Any], more: "dict[str, Any] | None") -> Any: pass
    def _own(self, given: Any): pass
class Guidance:
    state: Any
"""
    public = ["Backbone.network", "Backbone.predict(more)", "Backbone.predict(rows)", "Backbone.predict(result)"]
    assert sorted(found_any(text, "[^_]", "Guidance")) == sorted(public)
    assert {"Backbone._own(given)", "line 3"} <= set(found_any(text, ".*", "Guidance"))
    assert found_any(text) != found_any(text, ".*", "Guidance")


@pytest.mark.parametrize("part", ["core", "plugins"])
def test_no_device_is_written_down(part):
    for path in (path for path in MODULES if part_of(path) == part):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literal = node.value.partition(":")[0]
                assert literal not in ("cuda", "mps", "xpu"), f"{path.relative_to(ROOT)}:{node.lineno}"


PROBE = """
import sys
if len(sys.argv) > 1:
    from vitrail.cli.app import main
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
else:
    import vitrail
print("loaded:", *sorted({"torch", "diffusers", "transformers"} & set(sys.modules)))
"""
METHOD = """
[[stages]]
patching = { type = "windows", overlap = 0.5 }
guidance = ["sync"]
masking = "up-block-attention"
fusion = "average"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A method, and a run of it on a model of which nothing but the index is there."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "method.toml").write_text(METHOD)
    model = folder / "model"
    model.mkdir()
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    run = f'prompt = "a fox"\nmethod = "{folder / "method.toml"}"\nmodel = "{model}"\nscheduler = "DDIMScheduler"\n'
    (folder / "run.toml").write_text(run)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["--help"],
        ["sample", "--help"],
        ["methods"],
        ["plugins"],
        ["check", "method.toml"],
        ["check", "run.toml"],
        ["run", "--help"],
        ["report", "--help"],
        ["compare", "--help"],
        ["serve", "--help"],
    ],
    ids=lambda command: " ".join(command) or "import",
)
def test_reading_commands_load_nothing_heavy(command, files):
    environment = {k: v for k, v in os.environ.items() if k != "VITRAIL_DISABLE_PLUGINS"}  # installed plugins, too
    arguments = [sys.executable, "-c", PROBE, *command]
    done = subprocess.run(arguments, cwd=files, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


OWN = """
import gc, sys
from vitrail.__main__ import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
assert gc.isenabled() and gc.get_freeze_count() > 100_000, "what was imported is looked through again and again"
print("loaded:", *sorted(sys.modules))
"""
UNUSED = (  # modules that a plan must not import, as they take long and serve nothing in it
    *("accelerate", "diffusers.pipelines", "peft", "scipy.stats", "torch._dynamo"),
    *("torch.distributed.fsdp", "torch.distributed.tensor", "transformers"),
)


def test_a_plan_loads_only_what_it_uses(tmp_path):
    command = [sys.executable, "-c", OWN, "sample", "a fox", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"loaded:", "torch", "diffusers"} <= loaded
    assert not loaded & set(UNUSED)
