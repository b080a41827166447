"""Damaged files of every kind, used as a user would: refused in one message, or what they were; a few of many."""

import pytest

from command_line import vitrail
from damage_files import Corpus, Kind, Use
from damages import DAMAGES
from tiny import tiny_pipeline
from vitrail.backbones.loading.model_errors import is_inside_a_model
from vitrail.plugins.patching.windows import Windows

CASES = 14  # two of every kind


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.make(tmp_path_factory.mktemp("corpus"))


@pytest.mark.thorough
def test_no_damage_is_silent_or_ends_in_a_trace(corpus):
    cases = [corpus.case(number) for number in range(CASES)]
    assert [case for case in cases if case.is_fault] == []
    assert {case.kind for case in cases} == {kind.name for kind in corpus.kinds}
    assert {"refused", "same"} <= {case.outcome for case in cases}


def test_what_must_not_be_is_seen(corpus, tmp_path, monkeypatch):
    """Else the law above would hold of anything."""
    monkeypatch.chdir(tmp_path)
    kind = Kind("latents", ("x",), (), "fox.png")
    (tmp_path / "out.png").write_bytes((corpus.folder / "grown.png").read_bytes())
    assert corpus.outcome(kind, Use(0, "")) == "silently wrong"
    assert corpus.outcome(kind, Use(0, "")) == "no picture, and no error"
    assert corpus.outcome(kind, Use(2, "Error: no")) == "refused"
    for told in ("", "Traceback", "Error: one\nError: two", "warning\nError: one"):
        assert "ended with 2" in corpus.outcome(kind, Use(2, told))
    assert corpus.outcome(kind, Use(None, "", KeyError("x"))) == "KeyError: 'x'"
    assert corpus.outcome(kind, Use(0, "", None, ("os.system",))) == "ran os.system"
    assert len({damage.__name__ for damage in DAMAGES}) == 9


def test_an_error_from_inside_a_model_is_one_of_the_model_and_others_keep_their_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pipe = tiny_pipeline()
    pipe.tokenizer.add_tokens(["zebra"])  # which the text encoder has no row for
    pipe.save_pretrained("model")
    capsys.readouterr()  # of the saving
    words = ("sample", "a zebra", "--size", "64", "--steps", "2", "-m", "multidiffusion", "-o", "out.png", "--model")
    told = vitrail(monkeypatch, capsys, *words, "model")
    assert told.code == 2
    assert told.err.startswith("Error: model 'model' cannot be sampled with: IndexError: index out of range")
    assert "get them again" in told.err and told.err.count("Error: ") == 2  # the second is torch's
    tiny_pipeline().save_pretrained("sound")

    def broken(*_):
        raise RuntimeError("a bug in a strategy")

    monkeypatch.setattr(Windows, "patch", broken)
    with pytest.raises(RuntimeError, match="a bug in a strategy") as caught:
        vitrail(monkeypatch, capsys, *words, "sound")
    assert not is_inside_a_model(caught.value)
