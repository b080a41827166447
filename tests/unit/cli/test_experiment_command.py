"""What a report says made its pictures: the command of all shards; what is refused without loading the model."""

import pytest
from PIL import Image

from vitrail.cli.check import check_file
from vitrail.cli.run import _command
from vitrail.errors import ConfigError

TYPED = {
    "a program": (["/usr/bin/vitrail", "run", "a.toml"], "vitrail run a.toml"),
    "a share": (["vitrail", "run", "--shard", "0/2", "a b.toml"], "vitrail run 'a b.toml'"),
    "a share in one word": (["vitrail", "run", "a.toml", "--shard=1/2"], "vitrail run a.toml"),
    "something else": (["pytest", "tests"], ""),
}


@pytest.mark.parametrize(("words", "said"), TYPED.values(), ids=TYPED)
def test_the_command_of_all_shards(words, said):
    assert _command(words) == said


@pytest.mark.parametrize(
    "table",
    [
        '[run]\nimage = "start.png"\n',
        '[[axes]]\nname = "of"\noption = "image"\nvalues = ["start.png"]\n',
    ],
)
def test_a_picture_to_start_from_is_looked_at_by_a_check_as_by_a_run(tmp_path, table):
    file = tmp_path / "e.toml"
    file.write_text('scenes = 1\nsizes = [64]\nmethods = ["direct"]\n' + table)
    with pytest.raises(ConfigError, match=r"start\.png': no such file"):
        check_file(file, ())
    (tmp_path / "start.png").write_text("no picture")
    with pytest.raises(ConfigError, match=r"start\.png': cannot be read as a picture: it is none"):
        check_file(file, ())
    Image.new("RGB", (8, 8)).save(tmp_path / "start.png")
    check_file(file, ())
