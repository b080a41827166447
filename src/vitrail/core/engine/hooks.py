"""Typed calls of a run's hooks and strategies, with validation of what they return.

Every returned value is checked against its slot's contract (``returned_values``), so that an error names the strategy
that returned it; an exception of a strategy gets a note that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import pluggy
from attrs import evolve

from vitrail.core.method import returned_values as returned
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.hookspecs import (
    PROJECT,
    RegistrationSpecs,
    StageSpecs,
    answers,
    attach,
    exclusive_answer,
    hookimpl,
    stage_hooks,
)
from vitrail.core.method.members import OptionalGuidance, OptionalPatching, has_own
from vitrail.errors import CompositionError, RegistrationError, ShapeError, VitrailError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext, Subject
    from vitrail.core.engine.network import Network
    from vitrail.core.engine.nonfinite import NonFiniteSearch
    from vitrail.core.geometry.views import Canvas, Outline, Patches, View
    from vitrail.core.method.attention_maps import KeptMaps
    from vitrail.core.method.composition import Composition
    from vitrail.core.method.cost import Cost
    from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
    from vitrail.core.method.protocols import Fusion, Guidance, MessageGuidance, Patching
    from vitrail.core.method.stage import Stage
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

T = TypeVar("T")


class CompositionHooks:
    """The composition's implementation of every exclusive hook, registered as the plugin ``composition``."""

    def __init__(
        self,
        composition: Composition,
        network: Network,
        channels: int,
        streams: Streams,
    ):
        self.composition, self.network, self.channels, self._streams = composition, network, channels, streams

    def asked(self, slot: str, step: Step, strategy: object) -> StrategyCall:
        """Return a call of a strategy, for messages.

        Args:
            slot: Slot that the strategy fills.
            step: Position of the run.
            strategy: The strategy that is called.
        """
        return StrategyCall(slot, strategy, step, self.network.named)

    def stage(self, step: Step) -> Stage:
        """Return the stage of a step."""
        return self.composition.stages[step.stage]

    def patching(self, step: Step, group: int) -> Patching:
        """Return the patching of a view group; 0 is the main one."""
        stage = self.stage(step)
        return stage.patching if group == 0 else stage.extra_views[group - 1].patching

    def fusion(self, step: Step, group: int) -> Fusion:
        """Return the fusion of a view group; 0 is the main one."""
        stage = self.stage(step)
        return stage.fusion if group == 0 else stage.extra_views[group - 1].fusion

    @hookimpl
    def vitrail_patch(self, step: Step, canvas: Canvas, group: int) -> Patches:
        patching = self.patching(step, group)
        with self.asked("patching", step, patching).noted():
            return patching.patch(step, canvas, self.channels, self._streams)

    @hookimpl
    def vitrail_predict(self, step: Step, rows: MicroBatch) -> ModelOutput:
        return self.network.predict(step, rows)

    @hookimpl
    def vitrail_mask(
        self, step: Step, key: Prediction, predicted: ModelOutput, state: object
    ) -> tuple[Tensor | None, object]:
        masking = self.stage(step).masking
        with self.asked("masking", step, masking).noted():
            return masking.mask(step, key, predicted, state)

    @hookimpl
    def vitrail_guide(
        self, step: Step, guidance: Guidance, subject: object, scene: GuidanceContext, state: object
    ) -> tuple[object, object]:
        with self.asked("guidance", step, guidance).noted():
            return guidance.guide(step, subject, scene, state)

    @hookimpl
    def vitrail_fuse(
        self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor, group: int
    ) -> Tensor:
        fusion = self.fusion(step, group)
        with self.asked("fusion", step, fusion).noted():
            return fusion.fuse(step, views, prediction, latents)


class Hooks:
    """The hooks of one run: the composition's, wrapped and observed by the given plugins, with checked results."""

    def __init__(self, composed: CompositionHooks, plugins: Iterable[tuple[str, object]] = ()):
        self._answers = composed
        self._counts: dict[tuple[int, int, int], tuple[Step, int]] = {}  # views, by phase, stage and group
        self._checked_permutations: set[tuple[int, int]] = set()  # steps and view groups whose permutation is checked
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(StageSpecs)
        self._manager.add_hookspecs(RegistrationSpecs)  # a plugin may also implement the registration hook
        for name, plugin in (("composition", composed), *plugins):
            attach(self._manager, name, plugin)
            if not stage_hooks(self._manager, plugin):
                raise RegistrationError(f"plugin {name!r} implements no hook of a run; the reference lists them")
            answered = [] if plugin is composed else answers(self._manager, plugin)
            if answered:
                raise CompositionError(exclusive_answer(name, answered[0]))

    @property
    def composition(self) -> Composition:
        """The method that the hooks run."""
        return self._answers.composition

    @property
    def network(self) -> Network:
        """The network without the plugins that wrap it."""
        return self._answers.network

    @property
    def watches_canvas(self) -> bool:
        """Whether a plugin reads tensors of the whole canvas at every step."""
        if any(self._others(hook) for hook in ("vitrail_mask", "vitrail_guide", "vitrail_fuse")):
            return True
        seen = (set(i.argnames) | set(i.kwargnames) for i in self._others("vitrail_step_end"))
        return any({"latents", "prediction"} & names for names in seen)

    def who(self, slot: str, step: Step, strategy: object) -> str:
        """Return the name of a strategy in messages: its slot, its registered name if it has one, and its class.

        Args:
            slot: Slot that the strategy fills.
            step: Any step.
            strategy: The strategy.
        """
        return str(evolve(self.asked(slot, step, strategy), step=None))

    def asked(self, slot: str, step: Step, strategy: object) -> StrategyCall:
        """Return a call of a strategy, as ``CompositionHooks.asked``."""
        return self._answers.asked(slot, step, strategy)

    @property
    def watches_forwards(self) -> bool:
        """Whether a plugin wraps or observes single forwards, and so may expect them one after another."""
        return bool(self._others("vitrail_predict"))

    def _others(self, hook: str) -> list[pluggy.HookImpl]:
        """Return the implementations of a hook that are not the composition's."""
        return [i for i in getattr(self._manager.hook, hook).get_hookimpls() if i.plugin is not self._answers]

    def _call(self, hook: str, step: Step | None, **arguments: object) -> object:
        try:
            return getattr(self._manager.hook, hook)(**arguments, **({} if step is None else {"step": step}))
        except VitrailError:
            raise
        except Exception as error:
            others = self._plugins(hook)
            if others or not getattr(error, "__notes__", ()):  # else a note names the strategy already
                where = f"in {hook}{at(step)}"
                error.add_note(f"{where}; plugins: {others}" if others else where)
            raise

    def _observe(self, hook: str, step: Step | None, **arguments: object) -> None:
        """Call an observing hook, and refuse what a plugin returns from it, since nothing would come of it."""
        for answer in cast("list[object]", self._call(hook, step, **arguments) or []):
            raise ShapeError(
                f"{hook}{at(step)} of {self._plugins(hook)} must return nothing, got {returned.kind(answer)}: an "
                "observer changes no picture; wrap a hook of a stage, or return latents from callback_on_step_end"
            )

    def _plugins(self, hook: str) -> str:
        """Return the names of the plugins besides the composition that implement a hook."""
        return ", ".join(i.plugin_name for i in self._others(hook))

    def _answer(self, hook: str, step: Step, asked: StrategyCall | None, kind: type[T], **arguments: object) -> T:
        result = self._call(hook, step, **arguments)
        if not isinstance(result, kind):
            wrappers = self._plugins(hook)
            more = f"; {hook} is wrapped by {wrappers}, and a wrapper must return what it received" if wrappers else ""
            who = f"{hook}{at(step)}" if asked is None else str(asked)
            raise ShapeError(f"{who} must give a {kind.__name__}, got {returned.kind(result)}{more}")
        return result

    def run_start(self, num_steps: int, canvas: Canvas, model_calls: int) -> None:
        """Notify observers of the plan; see ``vitrail_run_start``."""
        self._observe("vitrail_run_start", None, num_steps=num_steps, canvas=canvas, model_calls=model_calls)

    def patch(self, step: Step, canvas: Canvas, group: int) -> Patches:
        """Return the views of one view group; see ``vitrail_patch``.

        Raises:
            ShapeError: If the views do not fit the canvas, or their number differs from earlier steps of the stage.
        """
        from vitrail.core.geometry.views import Patches

        patching = self._answers.patching(step, group)
        asked = self._answers.asked("patching", step, patching)
        patches = self._answer("vitrail_patch", step, asked, Patches, canvas=canvas, group=group)
        returned.check_patches(asked, patches, canvas, OptionalPatching.of(patching).shows_whole)
        self._check_count(asked, step, group, len(patches.views))
        if (step.index, group) not in self._checked_permutations:  # views are requested several times per step
            returned.check_permutation(asked, patches, self._answers.channels)
            self._checked_permutations.add((step.index, group))
        return patches

    def outline(self, step: Step, canvas: Canvas, group: int) -> Outline:
        """Return number and shape of a group's views; they are laid out only if the patching has no ``outline``."""
        from vitrail.core.geometry.views import Outline

        patching = self._answers.patching(step, group)
        if self._others("vitrail_patch") or not has_own(patching, OptionalPatching.outline):
            return Outline.of(self.patch(step, canvas, group))
        asked = self._answers.asked("patching", step, patching)
        with asked.noted():
            outline = OptionalPatching.of(patching).outline(step, canvas)
        if not isinstance(outline, Outline):
            asked.refuse(f"must give an Outline, got {returned.kind(outline)}")
        self._check_count(asked, step, group, outline.count)
        return outline

    def _check_count(self, asked: StrategyCall, step: Step, group: int, count: int) -> None:
        """Refuse a number of views that differs between steps of a stage, since plan and cost come from one step."""
        first, planned = self._counts.setdefault((step.phase, step.stage, group), (step, count))
        if count != planned:
            asked.refuse(
                f"returned {count} views, but {planned} at step {first.index + 1} of the same stage; it must return as "
                "many at every step of a stage"
            )

    def prepare(self, step: Step, model_input: Tensor, canvas: Canvas, group: int) -> Tensor:
        """Return the canvas that a group's views are read from, Float32[Tensor, "batch channels height width"].

        See ``OptionalPatching.prepare`` for the arguments.
        """
        patching = self._answers.patching(step, group)
        if not has_own(patching, OptionalPatching.prepare):
            return model_input
        asked = self._answers.asked("patching", step, patching)
        with asked.noted():
            prepared = OptionalPatching.of(patching).prepare(step, model_input, canvas)
        returned.check_like(asked, "the canvas that its views are read from", prepared, model_input)
        return prepared

    def texts(
        self,
        step: Step,
        prompt: str,
        negative_prompt: str | None,
        views: Sequence[View],
        canvas: Canvas,
        memory: KeptMaps | None,
    ) -> tuple[str | None, ...]:
        """Return the texts of the main group's views, () if all have the prompt; see ``Prompting.texts``."""
        prompting = self._answers.stage(step).prompting
        asked = self._answers.asked("prompting", step, prompting)
        with asked.noted():
            texts = prompting.texts(step, prompt, negative_prompt, views, canvas, memory)
        return returned.check_texts(asked, texts, len(views))

    @property
    def predict(self) -> Callable[[Step, MicroBatch], ModelOutput]:
        """One forward of the network; called through the hook only if a plugin wraps or observes it."""
        return self._predict if self.watches_forwards else self.network.predict

    def _predict(self, step: Step, rows: MicroBatch) -> ModelOutput:
        from vitrail.core.method.micro_batch import ModelOutput

        return self._answer("vitrail_predict", step, None, ModelOutput, rows=rows)

    def mask(
        self, step: Step, key: Prediction, predicted: ModelOutput, state: object, nonfinite: NonFiniteSearch
    ) -> tuple[Tensor | None, object]:
        """Return the mask and the masking's new state; see ``Masking.mask``.

        ``nonfinite`` counts values outside [0, 1] on the device and raises at the end of the step.
        """
        asked = self._answers.asked("masking", step, self._answers.stage(step).masking)
        arguments = {"key": key, "predicted": predicted, "state": state}
        pair = self._answer("vitrail_mask", step, asked, tuple, **arguments)
        given, state = returned.check_pair(asked, "(mask, state)", pair)
        view = predicted.view
        shape = key.latents.shape[-2:] if view is None else view.shape
        mask = returned.check_mask(asked, given, key.latents, shape)
        if mask is not None:
            nonfinite.claim(returned.outside(mask), f"{asked} returned a mask that does not lie in [0, 1]")
        return mask, state

    def guide(
        self, step: Step, guidance: Guidance, subject: Subject, scene: GuidanceContext, state: object
    ) -> tuple[Subject, object]:
        """Return the corrected subject and the guidance's new state; see ``Guidance.guide``."""
        arguments = {"guidance": guidance, "subject": subject, "scene": scene, "state": state}
        asked = self._answers.asked("guidance", step, guidance)
        pair = self._answer("vitrail_guide", step, asked, tuple, **arguments)
        guided, state = returned.check_pair(asked, "(subject, state)", pair)
        return returned.check_guided(asked, subject, guided, scene.point), state

    def cost(self, step: Step, guidance: Guidance, canvas: Canvas, branches: int) -> Cost:
        """Return the calls of networks of a guidance besides the views'; see ``OptionalGuidance.cost``."""
        asked = self._answers.asked("guidance", step, guidance)
        with asked.noted():
            cost = OptionalGuidance.of(guidance).cost(step, canvas, branches)
        return returned.check_cost(asked, "cost", cost)

    def cost_of_views(self, step: Step, guidance: Guidance, outline: Outline, branches: int) -> Cost:
        """Return a guidance's calls that depend on the views; see ``OptionalGuidance.cost_of_views``."""
        asked = self._answers.asked("guidance", step, guidance)
        with asked.noted():
            cost = OptionalGuidance.of(guidance).cost_of_views(step, outline, branches)
        return returned.check_cost(asked, "cost_of_views", cost)

    def tell(self, step: Step, guidance: MessageGuidance, subject: Prediction, key: int, mask: Tensor | None) -> Tensor:
        """Return the key view's message, Float32[Tensor, "batch channels+1 h w"]; see ``MessageGuidance.tell``."""
        asked, like = self._answers.asked("guidance", step, guidance), subject.model_output[key]
        with asked.noted():
            message = guidance.tell(step, subject, key, mask)
        returned.check_like(
            asked, "the message", message, like.new_empty((len(like), like.shape[1] + 1, *like.shape[2:]))
        )
        return message

    def follow(
        self, step: Step, guidance: MessageGuidance, subject: Prediction, key: int, message: Tensor | None
    ) -> Prediction:
        """Return all views, corrected by a message; see ``MessageGuidance.follow``."""
        asked = self._answers.asked("guidance", step, guidance)
        with asked.noted():
            guided = guidance.follow(step, subject, key, message)
        returned.check_guided(asked, subject, guided, guidance.point)
        return guided

    def fuse(self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor, group: int) -> Tensor:
        """Return the network output of the canvas; see ``Fusion.fuse``."""
        import torch

        arguments = {"views": views, "prediction": prediction, "latents": latents, "group": group}
        asked = self._answers.asked("fusion", step, self._answers.fusion(step, group))
        fused = self._answer("vitrail_fuse", step, asked, torch.Tensor, **arguments)
        returned.check_fused(asked, fused, latents)
        return fused

    def step_end(self, step: Step, latents: Tensor, prediction: Prediction) -> None:
        """Notify observers of the new canvas; see ``vitrail_step_end``."""
        self._observe("vitrail_step_end", step, latents=latents, prediction=prediction)

    def run_end(self, latents: Tensor) -> None:
        """Notify observers that the run is done; see ``vitrail_run_end``."""
        self._observe("vitrail_run_end", None, latents=latents)


def check_output(step: Step, rows: MicroBatch, predicted: ModelOutput) -> None:
    """Refuse a network output that does not fit its micro-batch.

    Args:
        step: Position of the run.
        rows: The micro-batch.
        predicted: What ``vitrail_predict`` returned.

    Raises:
        ShapeError: If it is no ``ModelOutput`` or of another shape than the input.
    """
    from vitrail.core.method.micro_batch import ModelOutput

    if not isinstance(predicted, ModelOutput):
        raise ShapeError(f"vitrail_predict{at(step)} must give a ModelOutput, got {returned.kind(predicted)}")
    output, shown = predicted.model_output, rows.model_input
    if output.shape != shown.shape:
        raise ShapeError(
            f"vitrail_predict{at(step)} must give an output of {tuple(shown.shape)} for rows of that shape, got "
            f"{tuple(output.shape)}"
        )


def at(step: Step | None) -> str:
    """Return the position of a run as the end of a message, "" without a step."""
    return "" if step is None else f" at step {step.index + 1} of {step.num_steps}"
