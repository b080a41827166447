"""The pictures that one call asks for: texts and seeds, in the order of diffusers' batch."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import SupportsIndex, cast

from attrs import evolve, frozen

from vitrail.core.config.loader import Loader
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.inputs import Extras
from vitrail.errors import ConfigError
from vitrail.sampling.generator_seeds import DrawnSeeds, drawn_seeds


@frozen(kw_only=True)
class PictureCall:
    """What is asked of one picture, where the pictures of a call differ.

    Attributes:
        prompt: Its text.
        negative_prompt: As in ``RunConfig``.
        seed: Of its randomness.
    """

    prompt: str
    negative_prompt: str | None
    seed: int

    def of(self, config: RunConfig) -> RunConfig:
        """Return the run of this picture alone."""
        return evolve(config, prompt=self.prompt, negative_prompt=self.negative_prompt, seed=self.seed, num_images=1)


def in_sequence(config: RunConfig) -> tuple[PictureCall, ...]:
    """Return the pictures of a run's one prompt; picture i has ``seed + i``."""
    return tuple(
        PictureCall(prompt=config.prompt, negative_prompt=config.negative_prompt, seed=config.seed + number)
        for number in range(config.num_images)
    )


def texts_of(prompt: object, negative_prompt: object) -> list[dict[str, object]]:
    """Return the texts of each prompt, as fields of a run.

    Args:
        prompt: A text or a list of them.
        negative_prompt: One for all, or a list with one per prompt.

    Raises:
        ConfigError: For a list without an entry, or of another length than the prompts.
    """
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    if not prompts:
        raise ConfigError("prompt: an empty list asks for no picture")
    if not isinstance(negative_prompt, (list, tuple)):
        return [{"prompt": one, "negative_prompt": negative_prompt} for one in prompts]
    if len(negative_prompt) != len(prompts):
        raise ConfigError(
            f"negative_prompt: a list of {len(negative_prompt)} for {len(prompts)} prompt{'s' * (len(prompts) > 1)}; "
            "give one per prompt, or one text for all"
        )
    return [{"prompt": one, "negative_prompt": other} for one, other in zip(prompts, negative_prompt, strict=True)]


def given_once(options: Mapping[str, object], fields: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a run from a call's options and its named arguments.

    Raises:
        ConfigError: For the number of pictures under both of its names.
    """
    if "num_images" in options and "num_images" in fields:
        raise ConfigError("num_images and num_images_per_prompt are the same; give one of them")
    return {**options, **fields}


def pictures_of(
    loader: Loader, table: Mapping[str, object], texts: Sequence[Mapping[str, object]], generator: object = None
) -> tuple[RunConfig, tuple[PictureCall, ...], DrawnSeeds | None]:
    """Return the run of a call and its pictures: those of the first prompt, then those of the next one.

    Args:
        loader: Checks the fields.
        table: The other fields of the run; ``num_images`` are those of each prompt.
        texts: As ``texts_of`` returns them.
        generator: What the seeds are drawn from, or None; see ``drawn_seeds``, which is returned last.

    Raises:
        ConfigError: For fields that a run does not have, values that it does not take, or a seed beside a generator.
    """
    if generator is not None and "seed" in table:
        raise ConfigError("seed and generator both say where randomness comes from; give one of them")
    each, where = table.get("num_images", 1), "sampler(...)"
    many = _times(each, len(texts))
    runs = [
        loader.structure({**table, **text, "num_images": many}, RunConfig, f"{where}, prompt {n}" if n else where)
        for n, text in enumerate(texts)
    ]
    drawn = None if generator is None else drawn_seeds(generator, runs[0].num_images)
    config = runs[0] if drawn is None else evolve(runs[0], seed=drawn.seeds[0])
    rows = [run for run in runs for _ in range(config.num_images // len(runs))]
    seeds = range(config.seed, config.seed + config.num_images) if drawn is None else drawn.seeds
    pictures = [
        PictureCall(prompt=run.prompt, negative_prompt=run.negative_prompt, seed=seed)
        for run, seed in zip(rows, seeds, strict=True)
    ]
    return config, tuple(pictures), drawn


def _times(each: object, prompts: int) -> object:
    """Return the pictures of all prompts; a number that is not whole stays as it is, for the loader to refuse."""
    if isinstance(each, bool):
        return each
    try:
        return operator.index(cast(SupportsIndex, each)) * prompts
    except TypeError:  # also of a tensor of floats, which has an ``__index__`` all the same
        return each


def refuse_shared(pictures: Sequence[PictureCall], extras: Extras) -> None:
    """Refuse latents of one picture and embeddings of one text beside several.

    Raises:
        ConfigError: Naming them.
    """
    if len(pictures) > 1 and extras.latents is not None:
        raise ConfigError(f"latents are of one picture, and {len(pictures)} are asked for; make a call for each")
    texts = {(picture.prompt, picture.negative_prompt) for picture in pictures}
    embeds = [name for name in extras.given() if name.endswith("prompt_embeds")]
    if len(texts) > 1 and embeds:
        raise ConfigError(f"{embeds[0]} are of one prompt, and {len(texts)} are given; make a call for each")
