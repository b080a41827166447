"""Programs that cannot run in other processes are refused in this one, with what to do."""

import subprocess
import sys

import pytest

from vitrail.comm import Gloo
from vitrail.errors import CommError

SCRIPT = """
from vitrail.comm import Gloo
from beside import rank_of

def program(communicator):
    return rank_of(communicator)

{guard}print(Gloo(timeout=60).run(2, program))
"""


LIBRARIES = ("fractions.py", "pickle.py", "tempfile.py")  # that a starting process imports


def python(folder, script, stdin=False):
    """What a script says, from a file or the standard input; a module lies beside it, others where it is called."""
    home = folder if stdin else folder / "home"
    home.mkdir(exist_ok=True)
    file = home / "script.py"
    file.write_text(script, encoding="utf-8")
    (home / "beside.py").write_text("def rank_of(communicator):\n    return communicator.rank\n")
    for name in () if stdin else LIBRARIES:  # Python itself finds those beside what it reads from there
        (folder / name).write_text("raise SystemExit('what lies in the current folder was taken for a library')\n")
    words = [sys.executable, "-"] if stdin else [sys.executable, str(file)]
    text = script if stdin else None
    return subprocess.run(words, input=text, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_a_function_that_has_no_name_elsewhere_is_refused():
    def inner(communicator):
        return communicator.rank

    for program in (lambda communicator: 0, inner):
        with pytest.raises(CommError, match=r"cannot be sent to other processes .* a function that a module defines"):
            Gloo(timeout=60).run(2, program)


def test_a_script_without_a_main_guard_is_told_of_it(tmp_path):
    told = python(tmp_path, SCRIPT.format(guard=""))
    assert told.returncode != 0 and 'put the call below if __name__ == "__main__":' in told.stderr
    guarded = python(tmp_path, SCRIPT.format(guard='if __name__ == "__main__": '))
    assert guarded.stdout == "[0, 1]\n"


def test_a_script_from_the_standard_input_is_told_to_be_a_file(tmp_path):
    told = python(tmp_path, SCRIPT.format(guard=""), stdin=True)
    assert told.returncode != 0 and "'<stdin>' is no file; write the script to one" in told.stderr
