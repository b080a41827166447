"""A CLIP tokenizer whose vocabulary is the words of the demo captions and all single bytes."""

import json
from itertools import pairwise
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from vitrail.demo.backgrounds import BACKGROUNDS
from vitrail.demo.scenes import OBJECTS

MAX_LENGTH = 16  # tokens
START, END = "<|startoftext|>", "<|endoftext|>"


def caption_words() -> list[str]:
    """Return the words of all captions, in alphabetical order."""
    phrases = [b.phrase + " " + b.alone for b in BACKGROUNDS.values()]
    text = " ".join([*phrases, *(name.replace("-", " ") for name in OBJECTS), "a an the one of and photo picture"])
    return sorted(set(text.split()))


def pieces_of(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Encode one word by byte-pair merges in CLIP's form, where the last piece ends in ``</w>``.

    Args:
        word: A word of single-byte characters.
        ranks: Order of each merge.
    """
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        found = min(pairwise(pieces), key=lambda pair: ranks.get(pair, len(ranks)))
        if found not in ranks:
            break
        at = next(i for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) == found)
        pieces[at : at + 2] = ["".join(found)]
    return pieces


def build_merges(words: list[str]) -> list[tuple[str, str]]:
    """Return merges by which each word becomes a single token."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        while len(pieces := pieces_of(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    return list(ranks)


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write ``vocab.json`` and ``merges.txt`` to a folder and load them as a CLIP tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    merges = build_merges(caption_words())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    options = {"model_max_length": MAX_LENGTH, "pad_token": END, "bos_token": START, "eos_token": END, "unk_token": END}
    return CLIPTokenizer.from_pretrained(folder, **options)
