"""What a report says made its pictures: the command of all shards."""

import pytest

from vitrail.cli.run import _command

TYPED = {
    "a program": (["/usr/bin/vitrail", "run", "a.toml"], "vitrail run a.toml"),
    "a share": (["vitrail", "run", "--shard", "0/2", "a b.toml"], "vitrail run 'a b.toml'"),
    "a share in one word": (["vitrail", "run", "a.toml", "--shard=1/2"], "vitrail run a.toml"),
    "something else": (["pytest", "tests"], ""),
}


@pytest.mark.parametrize(("words", "said"), TYPED.values(), ids=TYPED)
def test_the_command_of_all_shards(words, said):
    assert _command(words) == said
