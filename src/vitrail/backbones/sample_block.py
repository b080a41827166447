"""A whole run as a block of diffusers' modular pipelines.

A block, and no guider: a guider combines the branches of one prediction of one view, and sees no canvas, no other view,
no mask and no scheduler, which is what the strategies here are about.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers.modular_pipelines import ComponentSpec, ConfigSpec, InputParam, ModularPipelineBlocks, OutputParam

from vitrail.errors import ConfigError, ModelError

LEFT_OUT = ("safety_checker", "requires_safety_checker")  # a run does not check pictures
OF_TEXT = ("text_encoder", "tokenizer")  # parts that may be missing, where embeddings are given or a model has no T5
OUTPUTS = {
    "images": "The pictures, as output_type says.",
    "latents": "Their latents, as sampled.",
    "recipes": "One per picture; each makes it again.",
}


class SampleBlock(ModularPipelineBlocks):  # type: ignore[misc]  # diffusers is not typed
    """From prompts or embeddings to latents and pictures, with the networks of a modular pipeline.

    Its components and configurations are those of a pipeline class, so it loads from the same folders.
    """

    def __init__(
        self,
        pipeline_class: type,
        words: Sequence[str],
        sample: Callable[[object, Mapping[str, object]], Mapping[str, object]],
        description: str,
    ):
        """Describe a block.

        Args:
            pipeline_class: The diffusers pipeline that has the same parts.
            words: Names of what a call may give.
            sample: Called with such a pipeline and the given words by name; returns the outputs by name.
            description: Shown by ``block.doc``.
        """
        super().__init__()
        self._pipeline_class, self._words, self._sample, self._description = pipeline_class, words, sample, description
        parameters = inspect.signature(pipeline_class).parameters.values()
        hints = typing.get_type_hints(pipeline_class.__init__)  # type: ignore[misc]  # of this very class
        known = [each for each in parameters if each.name in hints and each.name not in LEFT_OUT]
        self._parts = {each.name: _class_of(hints[each.name]) for each in known if not _is_switch(hints[each.name])}
        self._switches = {each.name: each.default for each in known if hints[each.name] is bool}
        optional = getattr(pipeline_class, "_optional_components", ())
        self._required = [name for name in self._parts if name not in optional and not name.startswith(OF_TEXT)]

    @property
    def description(self) -> str:
        """What the block does, for people."""
        return self._description

    @property
    def expected_components(self) -> list[Any]:
        """The parts of the pipeline class, to be loaded or given."""
        return [ComponentSpec(name, kind) for name, kind in self._parts.items()]

    @property
    def expected_configs(self) -> list[Any]:
        """The switches of the pipeline class, such as whether an empty prompt is zeros."""
        return [ConfigSpec(name=name, default=default) for name, default in self._switches.items()]

    @property
    def inputs(self) -> list[Any]:
        """The words of a sampler's call; None stands for its default."""
        return [InputParam(name, required=name == "prompt") for name in self._words]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """What later blocks may read."""
        return [OutputParam(name, description=text) for name, text in OUTPUTS.items()]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Sample; called by the modular pipeline.

        Raises:
            ModelError: If a part is not loaded.
            VitrailError: As a sampler's call does.
        """
        block_state = self.get_block_state(state)
        given = {name: value for name in self._words if (value := getattr(block_state, name, None)) is not None}
        for name, value in self._sample(self._pipeline_of(components), given).items():
            setattr(block_state, name, value)
        self.set_block_state(state, block_state)
        return components, state

    def _pipeline_of(self, components: Any) -> object:
        """Return a pipeline around the parts as they are now."""
        parts = {name: getattr(components, name, None) for name in self._parts}
        missing = [name for name in self._required if parts[name] is None]
        if missing:
            raise ModelError(
                f"the modular pipeline has no {', '.join(missing)}; call its load_components(), or give them to "
                "update_components()"
            )
        switches = {name: components.config[name] for name in self._switches}
        left_out = {name: None for name in LEFT_OUT if name in inspect.signature(self._pipeline_class).parameters}
        if "requires_safety_checker" in left_out:
            switches["requires_safety_checker"] = False
        return self._pipeline_class(**{**left_out, **parts, **switches})


def pipeline_class_of(name: str) -> type:
    """Return the diffusers class of a name.

    Raises:
        ConfigError: If it has none, which is then an adapter's own class.
    """
    import diffusers

    found = getattr(diffusers, name, None)
    if found is None:
        raise ConfigError(f"diffusers has no class {name!r}; give the class itself")
    return found  # type: ignore[no-any-return]


def _class_of(hint: Any) -> type:
    """Return the class of a part; of several the first one, since a specification has one."""
    while typing.get_args(hint):
        hint = typing.get_args(hint)[0]
    return hint  # type: ignore[no-any-return]


def _is_switch(hint: Any) -> bool:
    return hint is bool or bool in typing.get_args(hint)
