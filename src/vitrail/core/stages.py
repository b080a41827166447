"""The typed face of a run's hooks: the engine calls these methods and nothing of pluggy's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from vitrail.core.hookspecs import EXCLUSIVE, PROJECT, StageSpecs, attach, hookimpl
from vitrail.errors import CompositionError, ShapeError, VitrailError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.composition import Composition, Stage
    from vitrail.core.prediction import Prediction
    from vitrail.core.protocols import Guidance, Patching, Predicted, Rows
    from vitrail.core.scene import Scene
    from vitrail.core.step import Step
    from vitrail.core.streams import Streams
    from vitrail.core.views import Canvas, Patches, View

T = TypeVar("T")


class Answers:
    """The composition's answer to every exclusive stage, registered as the plugin ``composition``."""

    def __init__(
        self, composition: Composition, predict: Callable[[Step, Rows], Predicted], channels: int, streams: Streams
    ):
        self._stages, self._predict = composition.stages, predict
        self._channels, self._streams = channels, streams

    def _patching(self, stage: Stage, family: int) -> Patching:
        return stage.patching if family == 0 else stage.also[family - 1].patching

    @hookimpl
    def vitrail_patch(self, step: Step, canvas: Canvas, family: int) -> Patches:
        patching = self._patching(self._stages[step.stage], family)
        return patching.patch(step, canvas, self._channels, self._streams)

    @hookimpl
    def vitrail_predict(self, step: Step, rows: Rows) -> Predicted:
        return self._predict(step, rows)

    @hookimpl
    def vitrail_mask(self, step: Step, key: Prediction, predicted: Predicted, state: Any) -> tuple[Tensor | None, Any]:
        return self._stages[step.stage].masking.mask(step, key, predicted, state)

    @hookimpl
    def vitrail_guide(self, step: Step, guidance: Guidance, subject: Any, scene: Scene, state: Any) -> tuple[Any, Any]:
        return guidance.guide(step, subject, scene, state)

    @hookimpl
    def vitrail_fuse(
        self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor, family: int
    ) -> Tensor:
        stage = self._stages[step.stage]
        fusion = stage.fusion if family == 0 else stage.also[family - 1].fusion
        return fusion.fuse(step, views, prediction, latents)


class Stages:
    """One run's hooks: the composition's answers, wrapped and observed by the given plugins."""

    def __init__(self, answers: Answers, plugins: Iterable[tuple[str, object]] = ()):
        self._answers = answers
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(StageSpecs)
        for name, plugin in (("composition", answers), *plugins):
            attach(self._manager, name, plugin)
        for hook in EXCLUSIVE:
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if implementation.plugin is not answers and not (implementation.wrapper or implementation.hookwrapper):
                    raise CompositionError(
                        f"plugin {implementation.plugin_name!r} answers {hook}, which plugin 'composition' answers "
                        "already: register a strategy and choose it in the config, or make the hook a wrapper "
                        "(@hookimpl(wrapper=True))"
                    )

    @property
    def watches_canvas(self) -> bool:
        """Whether a plugin sees tensors of the whole canvas at every step."""
        if any(self._others(hook) for hook in ("vitrail_mask", "vitrail_guide", "vitrail_fuse")):
            return True
        seen = (set(i.argnames) | set(i.kwargnames) for i in self._others("vitrail_step_end"))
        return any({"latents", "prediction"} & names for names in seen)

    @property
    def watches_forwards(self) -> bool:
        """Whether a plugin wraps or observes single forwards, and so may expect one after another."""
        return bool(self._others("vitrail_predict"))

    def _others(self, hook: str) -> list[pluggy.HookImpl]:
        """Implementations of a hook that are not the composition's."""
        return [i for i in getattr(self._manager.hook, hook).get_hookimpls() if i.plugin is not self._answers]

    def _call(self, hook: str, step: Step | None, **arguments: Any) -> Any:
        try:
            return getattr(self._manager.hook, hook)(**arguments, **({} if step is None else {"step": step}))
        except VitrailError:
            raise
        except Exception as error:
            plugins = ", ".join(i.plugin_name for i in getattr(self._manager.hook, hook).get_hookimpls())
            error.add_note(f"in {hook}" + (f" at step {step.index}" if step else "") + f"; plugins: {plugins}")
            raise

    def _answer(self, hook: str, step: Step, kind: type[T], **arguments: Any) -> T:
        result = self._call(hook, step, **arguments)
        if not isinstance(result, kind):
            wrappers = [i.plugin_name for i in getattr(self._manager.hook, hook).get_hookimpls() if i.wrapper]
            raise ShapeError(
                f"{hook} at step {step.index} must give a {kind.__name__}, got {type(result).__name__}; "
                f"a wrapper must return what it received (wrappers: {', '.join(wrappers) or 'none'})"
            )
        return result

    def _pair(self, hook: str, step: Step, meaning: str, **arguments: Any) -> tuple[Any, Any]:
        pair = self._answer(hook, step, tuple, **arguments)
        if len(pair) != 2:
            raise ShapeError(f"{hook} at step {step.index} must give {meaning}, got a tuple of {len(pair)}")
        return pair

    def run_start(self, num_steps: int, canvas: Canvas, model_calls: int) -> None:
        """Tell observers the plan."""
        self._call("vitrail_run_start", None, num_steps=num_steps, canvas=canvas, model_calls=model_calls)

    def patch(self, step: Step, canvas: Canvas, family: int) -> Patches:
        """Views of one family."""
        from vitrail.core.views import Patches

        return self._answer("vitrail_patch", step, Patches, canvas=canvas, family=family)

    def predict(self, step: Step, rows: Rows) -> Predicted:
        """One forward of the network."""
        from vitrail.core.protocols import Predicted

        return self._answer("vitrail_predict", step, Predicted, rows=rows)

    def mask(self, step: Step, key: Prediction, predicted: Predicted, state: Any) -> tuple[Tensor | None, Any]:
        """The mask and the masking's new state."""
        return self._pair("vitrail_mask", step, "(mask, state)", key=key, predicted=predicted, state=state)

    def guide(self, step: Step, guidance: Guidance, subject: T, scene: Scene, state: Any) -> tuple[T, Any]:
        """The corrected subject and the guidance's new state."""
        arguments = {"guidance": guidance, "subject": subject, "scene": scene, "state": state}
        guided, state = self._pair("vitrail_guide", step, "(subject, state)", **arguments)
        if type(guided) is not type(subject):
            raise ShapeError(
                f"{type(guidance).__name__} at step {step.index} received a {type(subject).__name__} and returned a "
                f"{type(guided).__name__}; guidance at point {guidance.point!r} must return what it receives"
            )
        return guided, state

    def fuse(self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor, family: int) -> Tensor:
        """The canvas's network output, of the canvas's shape."""
        import torch

        arguments = {"views": views, "prediction": prediction, "latents": latents, "family": family}
        fused = self._answer("vitrail_fuse", step, torch.Tensor, **arguments)
        if fused.shape != latents.shape:
            raise ShapeError(
                f"fusion at step {step.index} must return {tuple(latents.shape)}, got {tuple(fused.shape)}"
            )
        return fused

    def step_end(self, step: Step, latents: Tensor, prediction: Prediction) -> None:
        """Tell observers the new canvas."""
        self._call("vitrail_step_end", step, latents=latents, prediction=prediction)

    def run_end(self, latents: Tensor) -> None:
        """Tell observers that the run is done."""
        self._call("vitrail_run_end", None, latents=latents)
