"""Content tokens: whole words of the prompt, wherever the tokenizer puts them."""

import pytest
import torch
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Tokenizer

from tiny import tiny_pipeline, tiny_tokenizer
from vitrail.backbones.conditioning.words import content_tokens, read_words
from vitrail.core.method.attention_maps import AttentionRequest
from vitrail.errors import ConfigError
from vitrail.plugins.masking.heat_maps import STOP_WORDS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLIP = tiny_tokenizer()
T5 = T5Tokenizer(
    vocab=[
        *(("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0), ("▁fox", -2.0), ("es", -3.0), ("▁snow", -2.0)),
        *((sign, -9.0) for sign in (*LETTERS, ",", "-")),
    ],
    extra_ids=0,
)


@frozen
class Tokenizers:
    """What of a pipeline says where words are."""

    tokenizer: object
    tokenizer_3: object = None
    text_encoder_3: object = None


@pytest.mark.parametrize(
    ("prompt", "skip", "content"),
    [
        ("a fox", STOP_WORDS, (2,)),
        ("a fox", frozenset(), (1, 2)),
        ("of a", STOP_WORDS, ()),  # "of" has two tokens in this vocabulary
        ("of a", frozenset({"o", "f"}), (1, 2, 3)),
        ("a", STOP_WORDS, ()),
        ("", frozenset(), ()),
        (", !", frozenset(), ()),
    ],
)
def test_markers_stop_words_and_signs_are_no_content(prompt, skip, content):
    assert content_tokens(Tokenizers(CLIP), prompt, AttentionRequest(skip_words=skip)) == content


def test_without_a_request_every_word_counts():
    assert content_tokens(Tokenizers(CLIP), "a fox", None) == (1, 2)


@pytest.mark.parametrize(
    ("prompt", "words", "content"),
    [
        ("a fox on a fox", ("fox",), (2, 6)),
        ("a fox on a box", ("box",), (6, 7, 8)),
        ("a fox on a box", ("A Fox",), (1, 2)),
        ("a fox on a box", ("on", "fox"), (2, 3, 4)),  # stop words count if they are asked for
        ("axe a fox", ("a",), (4,)),  # not the letter at the beginning of "axe"
        ("fo fox", ("fo",), (1, 2)),
    ],
)
def test_only_the_words_that_are_asked_for_count(prompt, words, content):
    request = AttentionRequest(words=words, skip_words=STOP_WORDS)
    assert content_tokens(Tokenizers(CLIP), prompt, request) == content


@given(words=st.lists(st.sampled_from(["fox", "ox", "f", "box", "a"]), min_size=1, max_size=4), data=st.data())
def test_words_are_found_where_the_tokens_of_the_prompt_before_them_end(words, data):
    chosen = data.draw(st.integers(0, len(words) - 1))
    lengths = [len(CLIP(word).input_ids) - 2 for word in words]
    begins = [1 + sum(lengths[:i]) for i in range(len(words))]
    expected = [
        begins[i] + token
        for i, word in enumerate(words)
        if word == words[chosen]
        for token in range(lengths[i])
        if begins[i] + token < 15
    ]
    request = AttentionRequest(words=(words[chosen],))
    assert content_tokens(Tokenizers(CLIP), " ".join(words), request) == tuple(expected)


def test_words_that_are_not_there_are_told_with_those_that_are():
    with pytest.raises(ConfigError) as caught:
        content_tokens(Tokenizers(CLIP), "a fox on a box", AttentionRequest(words=("ox", "fox", "cat box")))
    assert str(caught.value) == (
        "the words of the masking must be words of the prompt: 'ox' is not in it; 'cat box' is not in it. "
        "Its words: a, fox, on, box"
    )


def test_words_beyond_what_the_network_reads_are_told():
    with pytest.raises(ConfigError, match="'fox' lies beyond the 16 tokens that the network reads"):
        content_tokens(Tokenizers(CLIP), "abcdefghijklmno fox", AttentionRequest(words=("fox",)))


def test_the_vectors_of_a_learnt_word_count_as_one_word():
    pipe = tiny_pipeline()
    pipe.load_textual_inversion({"<toy>": torch.zeros(3, 32)})
    find = lambda words: content_tokens(pipe, "a <toy> fox", AttentionRequest(words=words))  # noqa: E731
    assert find(("<toy>",)) == (2, 3, 4)
    assert find(("fox",)) == (5,)
    assert content_tokens(pipe, "a <toy> fox", AttentionRequest(skip_words=STOP_WORDS)) == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("fox, foxes snow-a", ["fox", ",", "foxes", "snow", "-", "a"]),
        ("box", ["box"]),
        ("", []),
    ],
)
def test_t5_marks_beginnings(prompt, words):
    tokens = T5(prompt).input_ids
    found = [word for word in read_words(T5, tokens) if word.text]
    assert [word.text for word in found] == words
    assert "".join(T5.decode([tokens[i] for i in word.positions]).strip() for word in found) == "".join(words)


def test_t5_follows_clip():
    pipe, request = Tokenizers(CLIP, T5, object()), AttentionRequest(kind="joint", words=("fox",))
    assert content_tokens(pipe, "a fox, foxes", request) == (2,)
    with_t5 = AttentionRequest(kind="joint", words=("fox",), t5=True)
    fox = next(word for word in read_words(T5, T5("a fox, foxes").input_ids) if word.text == "fox")
    beyond = [16 + position for position in fox.positions]
    assert content_tokens(pipe, "a fox, foxes", with_t5) == (2, *beyond)


def test_t5_that_is_not_there_is_refused():
    for pipe in (Tokenizers(CLIP), Tokenizers(CLIP, T5)):
        with pytest.raises(ConfigError, match="this model has no T5 encoder"):
            content_tokens(pipe, "a fox", AttentionRequest(kind="joint", t5=True))
