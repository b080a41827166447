"""The table of contents of a run: every hook that a plugin may implement.

Registration happens once per process. The hooks of a step are called once per step (``vitrail_predict`` once per
micro-batch, ``vitrail_guide`` once per guidance). An *exclusive* hook is implemented by the composition alone; plugins
may wrap it (``hookimpl(wrapper=True)``) and must return a value of the same kind. Observers return nothing. Hook
arguments carry no defaults, since pluggy would never fill a misspelt one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

from vitrail.errors import RegistrationError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.config.registry import Registry
    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.geometry.views import Canvas, Patches, View
    from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
    from vitrail.core.method.protocols import Guidance
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step

PROJECT = "vitrail"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

EXCLUSIVE = ("vitrail_patch", "vitrail_predict", "vitrail_mask", "vitrail_guide", "vitrail_fuse")


class RegistrationSpecs:
    """Hooks that are called once per process."""

    @hookspec
    def vitrail_register(self, registry: Registry) -> None:
        """Add named classes, methods and models. Called once per installed plugin.

        Args:
            registry: ``registry.add(slot, name, cls)``, ``registry.add_file(slot, name, path)``.
        """


class StageSpecs:
    """Hooks that are called in every run, in this order in every step."""

    # ------------------------------------------------------------------ the run

    @hookspec
    def vitrail_run_start(self, num_steps: int, canvas: Canvas, model_calls: int) -> None:
        """Observer: the plan is made, nothing expensive has run.

        Args:
            num_steps: Scheduler calls of the whole run.
            canvas: The canvas, padding included.
            model_calls: Number of rows that the networks will see.
        """

    # ------------------------------------------------------------------ one step

    @hookspec(firstresult=True)
    def vitrail_patch(self, step: Step, canvas: Canvas, group: int) -> Patches | None:
        """Exclusive: the views of one group.

        Args:
            step: Position of the run.
            canvas: The canvas, padding included.
            group: Number of the view group; 0 is the stage's own patching.
        """

    @hookspec(firstresult=True)
    def vitrail_predict(self, step: Step, rows: MicroBatch) -> ModelOutput | None:
        """Exclusive: one forward of the network for a micro-batch of rows, on the rank that computes it."""

    @hookspec(firstresult=True)
    def vitrail_mask(
        self, step: Step, key: Prediction, predicted: ModelOutput, state: object
    ) -> tuple[Tensor | None, object] | None:
        """Exclusive: where guidance acts, and the masking's new state.

        Args:
            step: Position of the run.
            key: Prediction of the key view.
            predicted: Model output of the key view, and the view to mask.
            state: The masking's state after the step before.

        Returns:
            Float32[Tensor, "batch 1 h w"] in [0, 1], or None for everywhere; and the new state.
        """

    @hookspec(firstresult=True)
    def vitrail_guide(
        self, step: Step, guidance: Guidance, subject: object, scene: GuidanceContext, state: object
    ) -> tuple[object, object] | None:
        """Exclusive: one guidance of the stage corrects its subject.

        Args:
            step: Position of the run.
            guidance: The strategy.
            subject: Latents, branches or a prediction, see ``Guidance.point``.
            scene: Read-only context: mask, key view, canvas, streams, callbacks to the network.
            state: The guidance's state after the step before.

        Returns:
            The corrected subject and the new state.
        """

    @hookspec(firstresult=True)
    def vitrail_fuse(
        self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor, group: int
    ) -> Tensor | None:
        """Exclusive: the network output of the canvas from those of the views.

        Args:
            step: Position of the run.
            views: In canonical order.
            prediction: Of the views, Float32[Tensor, "views batch channels h w"].
            latents: The canvas, Float32[Tensor, "batch channels height width"].
            group: Number of the view group; 0 is the stage's own patching.

        Returns:
            Float32[Tensor, "batch channels height width"].
        """

    @hookspec
    def vitrail_step_end(self, step: Step, latents: Tensor, prediction: Prediction) -> None:
        """Observer: one step is done.

        Args:
            step: The step.
            latents: The canvas after the scheduler's step, Float32[Tensor, "batch channels height width"].
            prediction: The canvas's prediction that led there.
        """

    # ------------------------------------------------------------------ the end

    @hookspec
    def vitrail_run_end(self, latents: Tensor) -> None:
        """Observer: the final latents, before decoding; not called if the run raised."""


def attach(manager: pluggy.PluginManager, name: str, plugin: object) -> None:
    """Register a plugin, and refuse what pluggy would silently accept.

    Args:
        manager: A manager with the hook specifications.
        name: Name of the plugin, for messages.
        plugin: An instance with hook implementations.

    Raises:
        RegistrationError: Naming the plugin, if it is a class, is registered already, has no hook, or if a hook's name
            or one of its arguments is unknown.
    """
    if isinstance(plugin, type):
        raise RegistrationError(
            f"plugin {name!r} is the class {plugin.__name__}: pass an instance; have you forgotten the `()`?"
        )
    try:
        manager.register(plugin, name)
    except (pluggy.PluginValidationError, ValueError) as error:
        raise RegistrationError(f"plugin {name!r}: {error}") from error
    try:
        _check_hooks(manager, name, plugin)
    except RegistrationError:
        manager.unregister(plugin)  # else its error would be raised again for the next plugin
        raise


def _check_hooks(manager: pluggy.PluginManager, name: str, plugin: object) -> None:
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise RegistrationError(f"plugin {name!r}: {error}") from error
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        raise RegistrationError(f"plugin {name!r} implements no hook; decorate its functions with @vitrail.hookimpl")
    for caller in callers:
        known = caller.spec.argnames if caller.spec else ()
        for implementation in (i for i in caller.get_hookimpls() if i.plugin is plugin):
            filled = {*implementation.argnames, *(set(implementation.kwargnames) & set(known))}
            never = [a for a in inspect.signature(implementation.function).parameters if a not in filled]
            if never:
                raise RegistrationError(
                    f"plugin {name!r}: {caller.name} takes {', '.join(map(repr, never))}, which is never passed; "
                    f"the hook passes, by position, {', '.join(known)}"
                )


def stage_hooks(manager: pluggy.PluginManager, plugin: object) -> list[str]:
    """Return the names of the hooks of a run that an attached plugin implements."""
    return [caller.name for caller in manager.get_hookcallers(plugin) or () if caller.name in vars(StageSpecs)]


def wraps(plugin: object) -> bool:
    """Whether a plugin wraps an exclusive hook, so that it may change the picture; pure observers do not."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(StageSpecs)
    manager.register(plugin)
    return any(hook in EXCLUSIVE for hook in stage_hooks(manager, plugin))


def answers(manager: pluggy.PluginManager, plugin: object) -> list[str]:
    """Return the exclusive hooks that a plugin implements instead of wrapping."""
    return [
        hook
        for hook in EXCLUSIVE
        for implementation in getattr(manager.hook, hook).get_hookimpls()
        if implementation.plugin is plugin and not (implementation.wrapper or implementation.hookwrapper)
    ]


def exclusive_answer(name: str, hook: str) -> str:
    """Return the error text for a plugin that implements an exclusive hook."""
    return (
        f"plugin {name!r} answers {hook}, which plugin 'composition' answers already: register a strategy and choose "
        "it in the config, or make the hook a wrapper (@hookimpl(wrapper=True))"
    )
