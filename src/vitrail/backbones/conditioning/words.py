"""Content tokens of a prompt: whole words, as the tokenizer marks their beginnings or ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.attention_maps import AttentionRequest
from vitrail.errors import ConfigError

END, BEGIN = "</w>", "▁"  # CLIP marks a word's last piece, T5 its first
T5_TOKENS = 256  # read by diffusers' pipelines by default


@frozen
class Word:
    """A word or punctuation mark of a prompt.

    Attributes:
        text: The text in lower case.
        positions: Positions of its tokens.
    """

    text: str
    positions: tuple[int, ...] = field(converter=as_tuple)

    @property
    def is_sign(self) -> bool:
        """Whether it has no letter or digit."""
        return _is_sign(self.text)


def words_of(pipe: Any, prompt: str) -> list[Word]:
    """Return the words of a prompt that the first text encoder reads, without punctuation; repeated words each time."""
    tokenizer = pipe.tokenizer
    converted = pipe.maybe_convert_prompt(prompt, tokenizer) if hasattr(pipe, "maybe_convert_prompt") else prompt
    tokens = tokenizer(converted, truncation=True, max_length=_most(tokenizer)).input_ids
    return [word for word in read_words(tokenizer, tokens) if not word.is_sign]


def content_tokens(pipe: Any, prompt: str, request: AttentionRequest | None) -> tuple[int, ...]:
    """Return the positions of the content tokens in the text that a pipeline's network receives.

    Special tokens, punctuation and ``skip_words`` are not content; requested ``words`` always are.

    Args:
        pipe: The pipeline. Positions are those of its first tokenizer, which a second one shares; those of a third, T5,
            follow.
        prompt: The prompt, with words of textual inversion, which stand for several tokens.
        request: What counts as content; None for every word, or none without a tokenizer.

    Raises:
        ConfigError: If a requested word is not in the prompt, or beyond what the network reads, or there is no T5.
    """
    if request is None and pipe.tokenizer is None:
        return ()
    request = request or AttentionRequest()
    positions = _content(pipe, pipe.tokenizer, prompt, request, 0)
    third = getattr(pipe, "tokenizer_3", None) if request.t5 else None
    if request.t5 and (third is None or getattr(pipe, "text_encoder_3", None) is None):
        raise ConfigError("t5 = true: this model has no T5 encoder; leave the option out")
    if third is not None:
        positions += _content(pipe, third, prompt, request, pipe.tokenizer.model_max_length)
    return tuple(positions)


def _content(pipe: Any, tokenizer: Any, prompt: str, request: AttentionRequest, first: int) -> list[int]:
    def words_of(text: str, **options: Any) -> list[Word]:
        converted = pipe.maybe_convert_prompt(text, tokenizer) if hasattr(pipe, "maybe_convert_prompt") else text
        return read_words(tokenizer, tokenizer(converted, **options).input_ids)

    most = _most(tokenizer)
    read = words_of(prompt, truncation=True, max_length=most)
    if not request.words:
        chosen = [word for word in read if not word.is_sign and word.text not in request.skip_words]
        return [first + position for word in chosen for position in word.positions]
    found, missing = [], []
    for phrase in request.words:
        places = find_phrase(read, words_of(phrase))
        found += places
        if not places:
            missing.append((phrase, bool(find_phrase(words_of(prompt), words_of(phrase)))))
    if missing and not request.skip_missing:
        raise ConfigError(_missing_words(missing, read, most))
    return sorted({first + position for position in found})


def _most(tokenizer: Any) -> int:
    """Return the maximum number of tokens that are encoded; a T5 tokenizer may have no limit of its own."""
    return min(int(tokenizer.model_max_length), T5_TOKENS)


def _missing_words(missing: Sequence[tuple[str, bool]], read: Sequence[Word], most: int) -> str:
    """Return the error text for requested words that were not found."""
    lines = [
        f"{phrase!r} lies beyond the {most} tokens that the network reads" if later else f"{phrase!r} is not in it"
        for phrase, later in missing
    ]
    known = ", ".join(dict.fromkeys(word.text for word in read if not word.is_sign)) or "none"
    return f"the words of the masking must be words of the prompt: {'; '.join(lines)}. Its words: {known}"


def read_words(tokenizer: Any, tokens: Sequence[int]) -> list[Word]:
    """Return the words of a tokenized text, without special tokens.

    Args:
        tokenizer: A tokenizer of CLIP or T5.
        tokens: Token ids, special tokens included.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(tokens))
    marks_ends = any(piece.endswith(END) for piece in pieces)
    special, whole = set(tokenizer.all_special_ids), set(tokenizer.get_added_vocab().values())
    groups: list[list[int]] = []
    for i, token in enumerate(tokens):
        if token in special:
            continue
        alone = token in whole or i == 0 or tokens[i - 1] in whole | special
        if alone or not groups or _begins(pieces[i - 1], pieces[i], marks_ends):
            groups.append([])
        groups[-1].append(i)
    return [Word(tokenizer.decode([tokens[i] for i in group]).strip().lower(), group) for group in groups]


def _begins(before: str, piece: str, marks_ends: bool) -> bool:
    """Whether a word begins with this piece; T5 does not mark punctuation, so each mark stands alone."""
    if marks_ends:
        return before.endswith(END)
    return piece.startswith(BEGIN) or _is_sign(before) or _is_sign(piece)


def _is_sign(text: str) -> bool:
    return not any(letter.isalnum() for letter in text)


def find_phrase(words: Sequence[Word], phrase: Sequence[Word]) -> list[int]:
    """Return the positions of every occurrence of a phrase, word by word."""
    wanted = [word.text for word in phrase]
    found = []
    for begin in range(len(words) - len(wanted) + 1):
        part = words[begin : begin + len(wanted)]
        if wanted and [word.text for word in part] == wanted:
            found += [position for word in part for position in word.positions]
    return found
