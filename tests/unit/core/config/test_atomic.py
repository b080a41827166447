"""Files are whole or not there: whatever ends the writing, what stood there before stays and nothing is left beside."""

import ast
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vitrail
from full_disk import no_file_larger_than
from vitrail.core.config import atomic
from vitrail.core.config.atomic import count_written, in_work, replacing, replacing_folder, write_text
from vitrail.errors import OutputError

WRITES = {"write_text", "write_bytes", "savefig", "save", "save_file"}
ELSEWHERE = {  # functions that are given the first file's name, or write to memory
    "page_pictures.py": {"_save"},
    "pyramid.py": {"_webp"},
    "step_watch.py": {"_png"},
}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_with_usual_permissions_and_nothing_beside(tmp_path):
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("whole")
        assert in_work() and names(tmp_path) == [part.name]
        assert part.suffix == ".txt"
    (tmp_path / "b.txt").write_text("usual")
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode
    assert names(tmp_path) == ["a.txt", "b.txt"] and not in_work()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError])
@pytest.mark.parametrize("write", [replacing, replacing_folder])
def test_whatever_ends_the_writing_leaves_what_was_there(tmp_path, error, write):
    path = tmp_path / "kept"
    path.mkdir() if write is replacing_folder else path.write_text("kept")
    before = count_written()

    def half():
        with write(path) as part:
            (part / "half" if part.is_dir() else part).write_text("half")
            raise error

    with pytest.raises(OutputError if error is OSError else error):
        half()
    assert names(tmp_path) == ["kept"] and count_written() == before and not in_work()
    assert list(path.iterdir()) == [] if path.is_dir() else path.read_text() == "kept"


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link"])
def test_a_folder_is_replaced_by_a_whole_one_and_nothing_lies_beside(tmp_path, kind):
    path = tmp_path / "a"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine").write_text("mine")
    path.mkdir() if kind == "folder" else path.symlink_to(tmp_path / ("other" if kind == "link" else "nowhere"))
    with replacing_folder(path) as part:
        (part / "new").write_text("new")
    assert names(path) == ["new"] and not path.is_symlink()
    assert names(tmp_path) == ["a", "other"] and names(tmp_path / "other") == ["mine"]


def test_a_folder_whose_move_fails_is_put_back(tmp_path, monkeypatch):
    path, real = tmp_path / "a", Path.replace
    path.mkdir()
    (path / "old").write_text("old")

    def replace(self, target):
        if target == path and any(each.name == "new" for each in self.iterdir()):
            raise OSError(errno.EIO, "no luck")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OutputError, match="no luck"), replacing_folder(path) as part:
        (part / "new").write_text("new")
    assert names(path) == ["old"] and names(tmp_path) == ["a"]


def test_a_symlink_is_replaced_and_what_it_points_to_is_left_alone(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "link").read_text() == "new" and not (tmp_path / "link").is_symlink()


def test_a_pipe_is_neither_followed_nor_replaced(tmp_path):
    """As a device is not, which root could replace."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe: cannot be written: it is no regular file"):
        write_text(tmp_path / "pipe", "new")
    assert (tmp_path / "pipe").is_fifo() and names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("dangling", [False, True])
def test_what_appears_during_the_writing_is_not_overwritten_unless_that_is_allowed(tmp_path, dangling):
    path = tmp_path / "picture"

    def late():
        with replacing(path, overwrite=False) as part:
            part.write_text("ours")
            path.symlink_to(tmp_path / "nowhere") if dangling else path.write_text("theirs")

    with pytest.raises(OutputError, match="picture: cannot be written: it exists by now"):
        late()
    assert names(tmp_path) == ["picture"] and (dangling or path.read_text() == "theirs")
    with replacing(path) as part:
        part.write_text("ours")
    assert path.read_text() == "ours" and not path.is_symlink()
    with replacing(tmp_path / "other", overwrite=False) as part:
        part.write_text("new")
    assert names(tmp_path) == ["other", "picture"]


@pytest.mark.parametrize("kind", ["text", "picture", "tensors"])
def test_a_disk_that_takes_no_more_is_one_error_whichever_library_writes(tmp_path, kind):
    noise = torch.randint(256, (64, 64, 3), dtype=torch.uint8)
    write = {
        "text": lambda part: part.write_text("x" * 10_000),
        "picture": lambda part: Image.fromarray(noise.numpy()).save(part),
        "tensors": lambda part: save_file({"noise": noise}, part),
    }[kind]

    def fill():
        with replacing(tmp_path / "a.png") as part:
            write(part)

    with no_file_larger_than(4096), pytest.raises(OutputError, match=r"a\.png: cannot be written: .*File too large"):
        fill()
    assert names(tmp_path) == []


def test_names_of_any_length_that_the_system_takes(tmp_path):
    for name in ("n" * 251 + ".txt", "é" * 127, "a." + "s" * 253):
        write_text(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name
    with pytest.raises(OutputError, match="File name too long"):
        write_text(tmp_path / ("n" * 256), "")
    with pytest.raises(OutputError, match="No such file or directory"):
        write_text(tmp_path / "away" / "a.txt", "")


def test_a_kill_leaves_the_former_file_whole(tmp_path):
    (tmp_path / "a.txt").write_text("former")
    code = (
        "import os, signal, sys; from pathlib import Path; from vitrail.core.config.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "a.txt"])
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text() == "former"
    assert [name for name in names(tmp_path) if not name.startswith(".vitrail-")] == ["a.txt"]


def test_the_packages_files_are_all_written_whole():
    """No call that writes a file stands outside of a block that replaces it."""
    found = []
    for module in sorted(Path(vitrail.__file__).parent.rglob("*.py")):
        if module.name != "atomic.py" and "testing" not in module.parts:  # tests write what they like
            found += [f"{module.name}:{line}" for line in loose_writes(module)]
    assert found == []


def loose_writes(module):
    """Lines of calls that write, outside of ``with replacing...``."""
    tree = ast.parse(module.read_text())
    safe = set()
    for node in ast.walk(tree):
        into = isinstance(node, ast.With) and any("replacing" in ast.unparse(item.context_expr) for item in node.items)
        given = isinstance(node, ast.FunctionDef) and node.name in ELSEWHERE.get(module.name, ())
        if into or given:
            safe |= {id(each) for each in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in safe:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in WRITES and not (isinstance(node.func, ast.Name) and name == "write_text"):
                yield node.lineno


def test_a_launcher_finds_what_a_dead_process_had_begun(tmp_path, monkeypatch):
    monkeypatch.setenv(atomic.OWNER, "0123")
    (tmp_path / ".vitrail-4567-8.part.png").touch()  # another run's
    with atomic.replacing(tmp_path / "fox.png") as part, atomic.replacing_folder(tmp_path / "foxes") as parts:
        assert {each.name for each in tmp_path.glob(".vitrail-0123-*")} == {part.name, parts.name}
        atomic.discard_of("0123", [tmp_path, tmp_path, tmp_path / "nowhere"])
        assert not part.exists() and not parts.exists()
        part.touch()
        parts.mkdir()
    assert {each.name for each in tmp_path.iterdir()} == {".vitrail-4567-8.part.png", "fox.png", "foxes"}
    monkeypatch.delenv(atomic.OWNER)
    with atomic.replacing(tmp_path / "owl.png"):
        assert not list(tmp_path.glob(".vitrail--*"))  # a name of nobody has no part for it


def test_before_an_end_by_force_nothing_half_written_is_left(tmp_path):
    with atomic.replacing(tmp_path / "fox.png") as part, atomic.replacing_folder(tmp_path / "foxes") as parts:
        atomic.discard()
        assert list(tmp_path.iterdir()) == []
        part.touch()
        parts.mkdir()
