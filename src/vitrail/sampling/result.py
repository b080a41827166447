"""Plans, reports and results of a sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.geometry.continuation import Continuation
from vitrail.core.geometry.views import Canvas
from vitrail.core.method.attention_maps import NEEDS_OF_KINDS, Kind, kind_of
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.cost import Cost, UpscalingCost
from vitrail.core.method.members import OptionalUpscaler
from vitrail.core.method.returned_values import check_upscaling_cost
from vitrail.sampling.discovery import registered_name
from vitrail.sampling.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.trace.recording import Recorder
    from vitrail.core.config.run_config import Wrap
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.method.protocols import Upscaler
    from vitrail.core.method.stage import Strategy
    from vitrail.sampling.output_types import Images


@frozen(kw_only=True)
class StagePlan:
    """What one stage will do at one size."""

    stage: int
    size: tuple[int, int]  # height and width, pixels
    first_step: int
    num_steps: int
    num_views: int  # at its first step, of all groups, clean key views included
    num_branches: int  # of each of these views, at the step that has the most
    num_asked: int  # questions about them: one for each prompt that lies on a view
    work: float  # cost of that step, in units of a view of the training size with its branches
    strategies: str


@frozen(kw_only=True)
class UpscalingPlan:
    """What one call of an upscaler will do; sizes are (height, width) in pixels."""

    before: tuple[int, int]
    after: tuple[int, int]
    upscaler: str
    cost: UpscalingCost


@frozen(kw_only=True)
class Plan:
    """What a run will do, known before any model call."""

    stages: tuple[StagePlan, ...]
    canvas: Canvas
    cost: Cost  # cost of one picture
    first_step: int = 0  # first step that is done; more than 0 if it starts from a picture
    upscalings: tuple[UpscalingPlan, ...] = field(converter=as_tuple, default=())  # of one picture, in order

    @property
    def model_calls(self) -> int:
        """Number of rows that the network will compute for one picture."""
        return self.cost.model_calls

    @classmethod
    def of(cls, plan: RunPlan, backbone: Backbone) -> Plan:
        """Summarise the plan of one picture on a backbone."""
        native_size, kind = backbone.native_size, kind_of(backbone.offers)
        stages = [
            StagePlan(
                stage=step.stage,
                size=plan.phase(step).picture,
                first_step=step.index,
                num_steps=num_steps,
                num_views=plan.count_views(step),
                num_branches=plan.most_branches(step),
                num_asked=plan.count_asked(step),
                work=plan.cost_of_step(step).evaluations(native_size**2, len(plan.branches)),
                strategies=" · ".join(_named(strategy, kind) for _, strategy in plan.stage(step).strategies()),
            )
            for step, num_steps in plan.stage_starts()
        ]
        upscalings = [
            _of_upscaling(upscaler, before, after, plan.canvas.wrap) for upscaler, before, after in plan.upscalings()
        ]
        cost, first = plan.cost(), plan.first
        return cls(stages=tuple(stages), canvas=plan.canvas, cost=cost, first_step=first, upscalings=upscalings)


def _of_upscaling(upscaler: Upscaler, before: tuple[int, int], after: tuple[int, int], wrap: Wrap) -> UpscalingPlan:
    """Return the plan of a call; where edges meet the upscaler works on a continued picture, which costs more."""
    optional, asked = OptionalUpscaler.of(upscaler), StrategyCall("upscaler", upscaler, named=registered_name)
    with asked.noted():
        reach = optional.reach
    across = Continuation.of(before, after, wrap, reach)
    (down, right), (height, width) = across.before, across.after
    cost = check_upscaling_cost(asked, asked.ask(optional.cost, (down, right), (height, width)))
    return UpscalingPlan(before=before, after=after, upscaler=type(upscaler).__name__, cost=cost)


def _named(strategy: Strategy, kind: Kind) -> str:
    """Return the name of a strategy's class, with the kind of attention where the backbone chooses it."""
    chosen = kind != "text" and NEEDS_OF_KINDS["text"] in strategy.needs
    return f"{type(strategy).__name__} ({kind} attention)" if chosen else type(strategy).__name__


@frozen(kw_only=True)
class Report:
    """What a run did: counts, and durations in seconds."""

    steps: int
    model_calls: int
    vae_decodes: int
    vae_encodes: int
    gradients: int = 0  # views that were differentiated
    upscalings: int = 0  # pictures that an upscaler enlarged
    predict_s: float
    engine_s: float  # everything in the loop, ``predict_s`` included
    decode_s: float
    interrupted: bool
    notes: tuple[str, ...] = field(converter=as_tuple, default=())  # splits as memory ran out, by rank; measured speeds


@frozen(kw_only=True, eq=False)
class Result:
    """Pictures and how they were made; reads like the output of a diffusers pipeline.

    ``result.images``, ``result[0]`` and ``result["images"]`` are the same, as is ``result.to_tuple()[0]``.

    Attributes:
        images: By ``output_type``: a list of Pillow images; Float32[np.ndarray, "images Height Width 3"] or
            Float32[Tensor, "images 3 Height Width"] in [0, 1]; or the latents.
        latents: Float32[Tensor, "images channels height width"]; with a ``finish`` of the smaller size that is sampled.
        report: Durations and counts, of all pictures together.
        recipes: One per picture; each makes it again.
        traces: Timed events of every rank, by rank.
    """

    images: Images
    latents: Tensor
    report: Report
    recipes: tuple[Recipe, ...] = field(converter=as_tuple)
    traces: tuple[Recorder, ...] = field(converter=as_tuple, default=())
    __iter__ = None  # diffusers' output gives its keys, Python would give what ``result[0]`` is

    def to_tuple(self) -> tuple[Images]:
        """Return what a pipeline returns without ``return_dict``: a tuple with the images."""
        return (self.images,)

    def __contains__(self, key: object) -> bool:
        return key == "images"

    def __len__(self) -> int:
        """Return the number of entries, as of a pipeline's output; the pictures are ``len(result.images)``."""
        return len(self.to_tuple())

    def __getitem__(self, key: int | str) -> Images:
        """Return the images, the only entry that a pipeline's output shares with this one."""
        if isinstance(key, str) and key != "images":
            raise KeyError(f"a result has the key 'images', not {key!r}; read .{key} where it is a field")
        return self.images if isinstance(key, str) else self.to_tuple()[key]
