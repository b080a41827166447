"""A wheel is what the repository says: built from the source archive alone, whole, and it runs where no source is."""

import os
import re
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser

import pytest
import yaml

import build_wheel
import vitrail

ROOT = build_wheel.ROOT
LACKING = build_wheel.lacking()
MOST_MB = 40  # the demo model and its judge are 35 MB of it
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

needs_backend = pytest.mark.skipif(bool(LACKING), reason=f"missing: {LACKING}")


def test_the_version_has_one_source():
    """The metadata, which command line, recipes and reports read, has it from pyproject.toml; no file repeats it."""
    assert vitrail.__version__ == PROJECT["version"]
    assert "version:" not in (ROOT / "CITATION.cff").read_text().replace("cff-version:", "")


def test_the_readme_names_the_extras_that_there_are():
    text = (ROOT / "README.md").read_text()
    extras = PROJECT["optional-dependencies"].keys() - {"data", "docs", "lint", "test"}
    assert [extra for extra in extras if f"| `{extra}` |" not in text] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source archive and the wheel that was built from it."""
    scratch = tmp_path_factory.mktemp("built")
    for name in ("copy", "unpacked", "dist"):
        (scratch / name).mkdir()
    source = build_wheel.archive(scratch / "dist", scratch / "copy")
    return source, build_wheel.wheel(source, scratch / "dist", scratch / "unpacked")


@pytest.mark.thorough
@needs_backend
def test_the_archive_holds_the_repository(built):
    with tarfile.open(built[0]) as packed:
        names = {each.name.partition("/")[2] for each in packed if each.isfile()}
    assert names - {"PKG-INFO", "setup.cfg", "src/vitrail.egg-info/SOURCES.txt"} == set(build_wheel.files())


@pytest.mark.thorough
@needs_backend
def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as packed:
        names, about = set(packed.namelist()), f"vitrail-{PROJECT['version']}.dist-info/"
        metadata = Parser().parsestr(packed.read(about + "METADATA").decode())
        scripts = packed.read(about + "entry_points.txt").decode()
    package = {name for name in names if not name.startswith(about)}
    assert package == {name.removeprefix("src/") for name in build_wheel.files() if name.startswith("src/vitrail/")}
    assert {"vitrail/py.typed", "vitrail/plugins/methods/asg.toml", "vitrail/demo/judge/judge.safetensors"} <= package
    assert "vitrail/demo/model/unet/diffusion_pytorch_model.safetensors" in package
    assert {about + "licenses/LICENSE", about + "licenses/NOTICE"} <= names
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Version"] == PROJECT["version"]
    assert {each.partition(",")[0] for each in metadata.get_all("Project-URL")} == set(PROJECT["urls"])
    assert "vitrail = vitrail.__main__:main" in scripts
    assert built[1].stat().st_size < MOST_MB * 1e6


@pytest.fixture(scope="module")
def program(built, tmp_path_factory):
    """Runs a program of the wheel's environment, in an empty folder; the libraries are those of the tests."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    install = ["install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check", built[1]]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    (libraries,) = (place / "venv").glob("lib/python*/site-packages")
    (libraries / "libraries.pth").write_text("\n".join(site.getsitepackages()))
    (place / "elsewhere").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def program(name, *words):
        command = [place / "venv" / "bin" / name, *words]
        done = subprocess.run(command, cwd=place / "elsewhere", env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return program


@pytest.mark.thorough
@needs_backend
def test_the_wheel_runs_where_no_source_is(program):
    assert str(ROOT) not in program("python", "-c", "import vitrail; print(vitrail.__file__, vitrail.__version__)")
    assert "asg-cascade" in program("vitrail", "methods") and "[[stages]]" in program("vitrail", "methods", "asg")
    words = ["a fox on a snow field", "--size", "256", "--method", "asg-cascade", "--dry-run"]
    assert "256x256" in program("vitrail", "sample", *words)


def test_the_workflow_calls_targets_that_there_are():
    """And nothing else, so that what fails there can be run here."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    targets = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split())
    called = set()
    for job in jobs.values():
        for command in filter(None, (step.get("run") for step in job["steps"])):
            name = command.removeprefix("make ")
            called |= set(job["strategy"]["matrix"]["target"]) if "matrix.target" in name else {name}
    assert called == {"lint", "types", "test", "oldest", "docs", "wheel"}
    assert called <= targets
    assert called == set(re.findall(r"\bmake (\w+)$", (ROOT / ".ci/run").read_text(), re.M))
    assert f">={jobs['test']['strategy']['matrix']['python'][0]}" == PROJECT["requires-python"]
