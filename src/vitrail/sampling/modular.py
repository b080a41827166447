"""Compositions in diffusers' modular pipelines."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from vitrail.backbones.loading.source import ModelOptions, adapter_of
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.composition import Composition
from vitrail.core.method.inputs import Extras
from vitrail.sampling.discovery import registered_name, registry
from vitrail.sampling.methods import composition_of
from vitrail.sampling.sampler import Sampler

if TYPE_CHECKING:
    from vitrail.backbones.sample_block import SampleBlock

NOT_OF_A_BLOCK = {"self", "options", "return_dict", "spread", "method", "model", *ModelOptions().as_fields()}


def block_of(
    method: str | Path | Mapping[str, object] | Composition = "asg-plus",
    pipeline: str | type = "StableDiffusionXLPipeline",
    *,
    plugins: Iterable[tuple[str, object]] = (),
) -> SampleBlock:
    """Return a composition as a block of diffusers' modular pipelines, which samples with their networks.

    ``block.init_pipeline("folder")`` is a pipeline of this block alone; it also stands among others, after one that
    encodes the text, say. Its pictures are those that ``Sampler.from_pipeline`` makes of the same parts.

    Args:
        method: A registered name, a TOML or YAML file, a table as in one, or a composition.
        pipeline: The diffusers pipeline whose parts it uses, as a class or by its name.
        plugins: (name, plugin) pairs that wrap or observe the hooks.

    Raises:
        VitrailError: If no adapter supports the pipeline, or the method does not fit it.
    """
    from vitrail.backbones.sample_block import SampleBlock, pipeline_class_of

    name = pipeline if isinstance(pipeline, str) else pipeline.__name__
    composition, adapter = composition_of(method), adapter_of(name, registry())
    composition.check(adapter.offers, f"pipeline {name!r}", registry())
    composition.check_files(registered_name)
    kind = pipeline_class_of(pipeline) if isinstance(pipeline, str) else pipeline
    named, kept = method if isinstance(method, (str, Path)) else composition, tuple(plugins)

    def sample(pipe: object, given: Mapping[str, object]) -> Mapping[str, object]:
        """Sample; a negative prompt whose embeddings a block before has made stays in the pipeline's state."""
        sampler, encoded = Sampler.around(pipe, composition, named, kept), "negative_prompt_embeds" in given
        asked = {name: value for name, value in given.items() if not (encoded and name == "negative_prompt")}
        made = sampler(**asked)  # type: ignore[call-overload]  # the words are checked by the call
        return {"images": made.images, "latents": made.latents, "recipes": made.recipes}

    words = {*inspect.signature(Sampler.__call__).parameters, *attrs.fields_dict(RunConfig), *attrs.fields_dict(Extras)}
    return SampleBlock(kind, sorted(words - NOT_OF_A_BLOCK), sample, f"Samples large pictures by {composition!r}.")
