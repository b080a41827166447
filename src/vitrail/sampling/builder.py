"""Construction of a picture's plan, and of the engine that does its steps, from a run and a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import Factory, evolve, field, frozen

from vitrail.backbones.loading.turns import is_plain
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.run_config import ROW_BATCH, RunConfig
from vitrail.core.engine.compiling import check_compiling, check_graphs
from vitrail.core.engine.conditioning_cache import Conditions
from vitrail.core.engine.remembering import check_remembering
from vitrail.core.geometry.views import Canvas
from vitrail.core.method.composition import Composition
from vitrail.core.method.inputs import Extras, Inputs
from vitrail.core.method.members import OptionalGuidance, OptionalMasking, combines_branches, has_own, recalls
from vitrail.errors import CapabilityError, ConfigError
from vitrail.sampling.differentiation import check_gradients, gradients_of
from vitrail.sampling.discovery import registered_name
from vitrail.sampling.finishing import sampled_size
from vitrail.sampling.pixels import Pixels
from vitrail.sampling.region_masks import mask_digests, mask_names, read_masks

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.engine import Engine
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.engine.memory_backoff import MemoryBackoff
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.engine.regions import Regions
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.method.cascade import Enter
    from vitrail.core.schedule.noise_schedule import Stepper
    from vitrail.core.schedule.phase import Phase


@frozen(eq=False)
class Builder:
    """Build plans and engines of a run.

    Attributes:
        backbone: The model.
        composition: The method.
        plugins: (name, plugin) pairs that wrap or observe the hooks.
        config: Settings of the run.
        masks: Mask pictures of its regions, read once, see ``read_masks``.
    """

    backbone: Backbone
    composition: Composition
    plugins: tuple[tuple[str, object], ...] = field(converter=as_tuple)
    config: RunConfig
    masks: tuple[Tensor | None, ...] = Factory(lambda self: read_masks(self.config.regions), takes_self=True)

    def plan(self, seed: int, extras: Extras) -> RunPlan:
        """Return the plan of one picture; see ``Sampler.run_plan``."""
        from vitrail.core.engine.hooks import CompositionHooks, Hooks
        from vitrail.core.engine.network import Network
        from vitrail.core.engine.plan import ClassifierFree, RunPlan
        from vitrail.core.schedule.streams import Streams

        config, backbone, streams = self.config, self.backbone, Streams(seed)
        if config.compile:
            check_compiling(self.composition, backbone, config.model)
        phases = self._phases(extras)
        inputs = self._inputs_of(extras, phases)
        for each in inputs:
            backbone.check_inputs(each)
        self._check(inputs[0])
        conditions = Conditions(backbone, inputs, self.composition.attention_request())
        network = Network(backbone, self.composition, phases, conditions, streams, registered_name)
        plan = RunPlan(
            hooks=Hooks(CompositionHooks(self.composition, network, backbone.latent_channels, streams), self.plugins),
            phases=phases,
            cfg=ClassifierFree.of(config.guidance_scale, config.guidance_rescale),
            enlarged=None if phases[-1].picture == (config.height, config.width) else (config.height, config.width),
            regions=self._regions(extras),
            remembers=backbone.remembers() is not None,
        )
        check_regions(plan)
        check_background(plan, "vae" in backbone.offers, config.model)
        _refuse_rescheduled(plan)
        if inputs[0].extras.control_image is not None:
            _refuse_hints_of_copies(plan)
        self._refuse_large_views(plan)
        return plan

    def _regions(self, extras: Extras) -> Regions:
        """Return the run's regions, with a digest of each mask for their canonical order.

        Raises:
            ConfigError: For embeddings beside regions, whose texts would be encoded without them.
            CapabilityError: For bootstrapping on a model without a VAE.
        """
        from vitrail.core.engine.regions import PlacedRegion, Regions

        config, digests = self.config, mask_digests(self.config.regions, self.masks)
        if not config.regions:
            return Regions((), config.prompt, config.negative_prompt)
        embeds = [name for name in extras.given() if name.endswith("prompt_embeds")]
        if embeds:
            raise ConfigError(f"regions have texts of their own, which needs a prompt and not {embeds[0]}")
        wanting = [number for number, region in enumerate(config.regions) if region.bootstrap > 0]
        if wanting and "vae" not in self.backbone.offers:
            raise CapabilityError(
                f"regions.{wanting[0]}.bootstrap needs 'vae', to encode the colour that stands for what lies outside "
                f"the region, and model {config.model!r} has none; set bootstrap = 0"
            )
        names = mask_names(config.regions)
        placed = [
            PlacedRegion(number, region, mask, digests.get(names.get(number, ""), ""))
            for number, (region, mask) in enumerate(zip(config.regions, self.masks, strict=True))
        ]
        return Regions(placed, config.prompt, config.negative_prompt)

    def engine(
        self, plan: RunPlan, exchange: Exchange, watched: bool = False, backoff: MemoryBackoff | None = None
    ) -> Engine:
        """Return the engine for a plan; see ``Sampler.engine``.

        Args:
            plan: As ``plan`` returned it.
            exchange: The ranks.
            watched: Whether an observer reads the canvas after every step.
            backoff: Splits forwards that do not fit in memory; a new one if None.

        Raises:
            CapabilityError: If the network has a cache that does not fit the run, or too many graphs to compile.
        """
        from vitrail.core.engine.backdrops import Backdrops
        from vitrail.core.engine.engine import Engine
        from vitrail.core.engine.forwards import Forwards
        from vitrail.core.engine.guidance_points import GuidancePoints
        from vitrail.core.engine.memory_backoff import MemoryBackoff

        config, backbone, network = self.config, self.backbone, plan.hooks.network
        forwards = Forwards(
            predict=plan.hooks.predict,
            condition=network.conditions.of,
            exchange=exchange,
            backoff=backoff or MemoryBackoff(allowed=config.memory == "auto"),
            row_batch=config.row_batch or ROW_BATCH,
            workers=self._workers(exchange, plan),
        )
        vae = Pixels(backbone, exchange, config.wrap, config.memory == "auto", network.streams)
        gradients, backdrops = gradients_of(plan, forwards, backbone), Backdrops(plan, network.streams)
        conditions = network.conditions
        named = conditions.request is not None and conditions.request.each
        engine = Engine(
            plan=plan,
            forwards=forwards,
            guidance=GuidancePoints(
                plan=plan,
                forwards=forwards,
                streams=network.streams,
                backdrops=backdrops,
                vae=vae,
                gradients=gradients,
            ),
            streams=network.streams,
            backdrops=backdrops,
            words=[backbone.words(evolve(conditions.inputs[0], prompt=each)) for each in plan.regions.prompts()]
            if named
            else [()],
            prompt=config.prompt,
            negative_prompt=config.negative_prompt,
            watched=watched,
            cell=backbone.vae_scale_factor,
        )
        found = backbone.remembers()
        if found is not None:
            check_remembering(found, plan, forwards.row_batch, exchange.world_size)
        if config.compile:
            check_graphs(plan, forwards.row_batch)
        return engine

    def conditions(self, extras: Extras, phases: Sequence[Phase]) -> Conditions:
        """Return the conditioning without attention maps, for callbacks."""
        return Conditions(self.backbone, self._inputs_of(extras, phases), None)

    def _inputs_of(self, extras: Extras, phases: Sequence[Phase]) -> list[Inputs]:
        pictures = [phase.picture for phase in phases]
        return [self._inputs(extras, phase, pictures) for phase in phases]

    def _phases(self, extras: Extras) -> list[Phase]:
        """Return the phases of the run, each with a scheduler of its own."""
        from vitrail.core.schedule.phase import Phase

        config, groups = self.config, self.composition.groups()
        factor, native = self.backbone.vae_scale_factor, self.backbone.native_size
        height, width = sampled_size(self.composition.finish, config, self.backbone)
        sizes: Sequence[tuple[int, int]] = [(height, width)]
        if self.composition.cascade is not None:
            sizes = self.composition.cascade.pictures(height, width, native * factor, factor, config.wrap)
        phases: list[Phase] = []
        for number, (height, width) in reversed(list(enumerate(sizes))):  # a size may end where the next one takes over
            group = min(number, len(groups) - 1)
            canvas = Canvas.of_picture(height, width, factor, native, config.wrap)
            enter = self.composition.stages[groups[group][0]].enter
            gamma = math.prod(canvas.inner) / native**2 if enter is not None and enter.reschedule else 1.0
            stepper = self._stepper(canvas, gamma)
            first = self._first_of_size(extras, stepper, enter, number, len(sizes) - 1)
            after = phases[-1] if phases else None
            is_cut = after is not None and after.enter is not None and after.enter.relay
            skipped, end = 0 if enter is None else first, len(stepper.schedule.timesteps)
            if after is not None and is_cut:
                end = after.first
                _refuse_no_steps(first, end, canvas)
            phase = Phase(
                number=number,
                canvas=self.composition.pad(canvas, end - skipped, group, registered_name),
                stepper=stepper,
                stages=groups[group],
                ends=[skipped + each for each in self.composition.boundaries(end - skipped, group)],
                first=first,
                repeats=[self.composition.stages[stage].repeats for stage in groups[group]],
                enter=enter,
                is_cut=is_cut,
                gamma=gamma,
            )
            if any(phase.repeats):
                stepper.check_repeatable()
            phases.append(phase)
        return phases[::-1]

    def _first_of_size(self, extras: Extras, stepper: Stepper, enter: Enter | None, number: int, count: int) -> int:
        """Return the first step that is done at size ``number`` of the ``count`` further ones; 0 is the first size."""
        from vitrail.core.schedule.phase import first_of, relayed_first

        if enter is None:
            return self._first_step(extras, stepper)
        num_steps = self.config.num_inference_steps
        if enter.relay:
            first = relayed_first(enter.strength[0], number, count, num_steps, stepper.order)
        else:
            first = first_of(enter.share(number - 1, count), num_steps, stepper.order)
        stepper.begin_at(first)
        return first

    def _stepper(self, canvas: Canvas, gamma: float) -> Stepper:
        """Return a fresh scheduler, set for a canvas, with the noise of a picture of so many times the area."""
        from vitrail.core.schedule.noise_schedule import Stepper
        from vitrail.core.schedule.rescheduling import rescheduled

        scheduler = rescheduled(self.backbone.new_scheduler(self.config.scheduler), gamma)
        options = self.backbone.timestep_options(scheduler, canvas.height, canvas.width)
        return Stepper(scheduler, self.config.num_inference_steps, options, self.config.scheduler_step)

    def _workers(self, exchange: Exchange, plan: RunPlan) -> int:
        """Return the number of concurrent micro-batches; 1 if a plugin sees forwards or the network is not plain."""
        if exchange.workers == 1 or plan.hooks.watches_forwards:
            return 1
        network = self.backbone.network
        return exchange.workers if network is not None and is_plain(network) else 1

    def _inputs(self, extras: Extras, phase: Phase, pictures: Sequence[tuple[int, int]]) -> Inputs:
        """Return the conditioning inputs of a picture at one size."""
        config = self.config
        height, width = phase.picture
        return Inputs(
            prompt=config.prompt,
            negative_prompt=config.negative_prompt,
            guided=config.guidance_scale > 1.0,
            height=height,
            width=width,
            num_steps=len(phase.stepper.schedule.timesteps),
            first=phase.first,
            sizes=[stage.sizes for stage in self.composition.stages],
            extras=extras,
            pictures=pictures,
            compiled=config.compile,
        )

    def _check(self, inputs: Inputs) -> None:
        """Refuse inputs that the method or the model cannot use."""
        if self.config.wrap != "none":
            self.backbone.check_wrap()
        check_gradients(self.composition, self.backbone)
        own_texts = [s for s in self.composition.stages if recalls(s.prompting)]
        if own_texts and inputs.extras.prompt_embeds is not None:
            name = type(own_texts[0].prompting).__name__
            raise ConfigError(f"{name} gives views texts of their own, which needs a prompt and not prompt_embeds")
        for index, stage in enumerate(self.composition.stages):
            names = [type(g).__name__ for g in stage.guidance if combines_branches(g)]
            if names and not inputs.guided:
                raise ConfigError(
                    f"stages.{index}.guidance: {names[0]} combines both branches of classifier-free guidance, which a "
                    "guidance_scale of 1 switches off; raise it, or leave this guidance out"
                )

    def _first_step(self, extras: Extras, stepper: Stepper) -> int:
        """Return the first step that is done: 0, or later if the run starts from a picture."""
        config = self.config
        if config.image is None and extras.image is None:
            return 0
        first: int = self.backbone.first_step(config.num_inference_steps, config.strength) * stepper.order
        if first >= len(stepper.timesteps):
            raise ConfigError(
                f"strength {config.strength:g} of {config.num_inference_steps} steps leaves no step to do; "
                "raise the strength or the number of steps"
            )
        stepper.begin_at(first)
        return first

    def _refuse_large_views(self, plan: RunPlan) -> None:
        """Refuse views that are too large for the network, before anything is computed."""
        limit = self.backbone.max_view
        if limit is None:
            return
        for step, _ in plan.stage_starts():
            sides = {side for outline in plan.outlines(step) for side in outline.shape}
            if max(sides) > limit:
                raise CapabilityError(
                    f"stage {step.stage + 1} has views of {max(sides)} latent cells a side, model "
                    f"{self.config.model!r} takes {limit} at most; use a method with windows, or a smaller picture"
                )


def check_background(plan: RunPlan, has_vae: bool, model: str) -> None:
    """Refuse a model without a VAE if the network sees a plain colour beyond the canvas, which must be encoded.

    Raises:
        CapabilityError: Naming the stage.
    """
    first = plan.background_from()
    if first is not None and not has_vae:
        stage = plan.steps()[first].stage + 1
        raise CapabilityError(
            f"stage {stage} fills up what is smaller than a training picture with a plain colour, which needs 'vae', "
            f'and model {model!r} has none; set pad = "none" there, or make the picture larger'
        )

    for step, _ in plan.stage_starts():
        if not any(plan.fills_up(step, group) for group in range(1 + len(plan.stage(step).extra_views))):
            continue
        canvas = plan.phase(step).canvas
        beside = "a mask" if not OptionalMasking.of(plan.stage(step).masking).is_everywhere else None
        beside = "bootstrapped regions" if plan.regions.bootstrapped(step, canvas) else beside
        if beside is not None:
            raise CapabilityError(
                f"stage {step.stage + 1} fills up what is smaller than a training picture, and {beside} would count "
                'what is filled up as picture; set pad = "none" there, make the picture larger, or leave them out'
            )


def _refuse_hints_of_copies(plan: RunPlan) -> None:
    """Refuse a control picture where a guidance asks about copies of the canvas that no view of it shows."""
    for step, _ in plan.stage_starts():
        for guidance in plan.stage(step).guidance:
            if OptionalGuidance.of(guidance).views_branches:
                raise CapabilityError(
                    f"stage {step.stage + 1}: {type(guidance).__name__} asks about copies of the whole whose cells lie "
                    "unevenly, and a control picture is cropped to even ones; leave control_image out, or use another "
                    "method"
                )


def _refuse_rescheduled(plan: RunPlan) -> None:
    """Refuse more noise where the network sees something else than the whole picture at its own size.

    Raises:
        ConfigError: Naming the stage.
    """
    for step, _ in plan.stage_starts():
        enter, canvas, stage = plan.phase(step).enter, plan.phase(step).canvas, plan.stage(step)
        if enter is None or not enter.reschedule:
            continue
        is_whole = all(outline.shape == (canvas.height, canvas.width) for outline in plan.outlines(step))
        if not is_whole or any(has_own(each, OptionalGuidance.cost) for each in stage.guidance):
            raise ConfigError(
                f"stage {step.stage + 1}: enter.reschedule gives the noise of the whole picture at its size, and the "
                "network is asked about others there; set enter.reschedule = false, or use patching 'whole' and no "
                "guidance that asks"
            )


def _refuse_no_steps(first: int, end: int, canvas: Canvas) -> None:
    """Refuse a size whose steps are all done by others: by a picture that is given, or by the size that takes over."""
    if first >= end:
        height, width = canvas.picture
        raise ConfigError(
            f"the size {width}x{height} would begin at step {first + 1} of its schedule and hand over to the next size "
            "before it, so it has no step to do; raise the run's strength, or lower enter.strength"
        )


def check_regions(plan: RunPlan) -> None:
    """Refuse regions that no view of a stage shows, before anything is computed.

    Raises:
        ConfigError: Naming such a region and the stage, or one that has no cell of the canvas at some size.
    """
    for step, _ in plan.stage_starts() if plan.regions else ():
        pairs = plan.regions.asked(plan.phase(step).canvas, plan.patches(step)[0])
        asked = {text for _, text in pairs.pairs}
        for text, placed in enumerate(plan.regions.placed, 1):
            if text not in asked:
                raise ConfigError(
                    f"regions.{placed.number}: lies outside of every view of stage {step.stage + 1}, so its prompt "
                    "would not be asked there; make it larger, or use a method whose views cover the canvas"
                )
