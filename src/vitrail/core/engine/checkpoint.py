"""Checkpoints of a run: written by rank 0 during the run, read when it is started again, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from vitrail.core.config.log import logger
from vitrail.core.config.renamed_keys import current_keys
from vitrail.core.config.run_config import MAX_ROWS
from vitrail.core.engine.guidance_context import Start
from vitrail.core.engine.resize import phase_noise
from vitrail.core.engine.run_state import Sampled
from vitrail.core.engine.state_file import load_state, pack, save_state, unpack
from vitrail.core.schedule.prediction import Prediction
from vitrail.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.protocol import Communicator
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams


CURRENT = {  # parts of an unfinished picture
    *("latents", "steps", "cost", "memory", "base", "grown", "picture", "guidance", "masking"),
    *("predicted_from", "model_output", "scheduler"),
}
MANNER = {"run.memory"}  # keys of a recipe that do not affect the picture


@define(eq=False)
class Checkpoints:
    """The checkpoint of a run of one or more pictures.

    Attributes:
        path: Path of the file.
        every: Steps between two writes.
        recipe: Everything that determines the pixels; a file of another recipe is refused.
        communicator: This rank's communicator; rank 0 reads and writes.
        packages: Packages of the run's strategies, whose classes may be in the file.
        finished: Final latents of the finished pictures.
        current: State of the unfinished picture as it was read, or None.
        failed: Whether the last write failed; logged once.
    """

    path: Path
    every: int
    recipe: dict[str, Any]
    communicator: Communicator
    packages: frozenset[str] = frozenset()
    finished: list[Tensor] = field(factory=list)
    current: dict[str, Any] | None = None
    failed: bool = False

    def open(self, device: Any) -> None:
        """Read the file if it exists; collective.

        Raises:
            ConfigError: If it belongs to another run or cannot be read, or if its folder does not exist.
        """
        content = None
        if self.communicator.rank == 0:
            if self.path.exists():
                content = _read(self.path, self.packages)
                self._check(content)
            elif not self.path.parent.is_dir():
                raise ConfigError(f"--checkpoint {self.path}: the folder {self.path.parent} does not exist")
        content = broadcast_state(self.communicator, content, 0, device)
        if content is not None:
            self.finished, self.current = content["finished"], content["current"]

    def _check(self, content: Any) -> None:
        kept = json.loads(content["recipe"])
        kept |= {"method": current_keys(kept.get("method"), quiet=True)}
        there, here = _flat(kept), _flat(self.recipe)
        changed = sorted(key for key in (there.keys() | here.keys()) - MANNER if there.get(key) != here.get(key))
        if changed:
            differences = ", ".join(f"{key} {there.get(key)!r} there, {here.get(key)!r} here" for key in changed[:4])
            raise ConfigError(
                f"--checkpoint {self.path}: belongs to another run ({differences}); run that one again, or name "
                "another file"
            )

    def resume(self, plan: RunPlan, streams: Streams, latents: Tensor) -> Sampled:
        """Return the unfinished picture as read from the file, or a new one.

        Args:
            plan: What the run will do.
            streams: The picture's random streams.
            latents: Initial latents of a new picture, Float32[Tensor, "batch channels height width"].

        Raises:
            ConfigError: If the file's picture does not fit the plan.
        """
        done = Sampled(latents, plan.first)
        if self.current is not None:
            kept, self.current = self.current, None
            self._check_place(plan, kept)
            done.latents, done.steps = kept["latents"].float(), kept["steps"]
            state, step = done.state, plan.steps()[done.steps - 1]
            state.phase, state.stage = step.phase, step.stage
            state.guidance, state.masking = kept["guidance"], kept["masking"]
            state.memory, state.base = kept["memory"], kept["base"]
            if kept["grown"] is not None:
                phase = plan.phases[step.phase]
                state.start = Start(kept["grown"], phase_noise(kept["grown"], phase, streams), kept["picture"])
            done.timings.add(kept["cost"])
            done.prediction = Prediction(kept["predicted_from"], kept["model_output"], step)
            plan.phases[step.phase].stepper.load(kept["scheduler"])
            logger().info("run.resumed", path=str(self.path), steps=done.steps)
        return done

    def _check_place(self, plan: RunPlan, kept: dict[str, Any]) -> None:
        """Refuse an unfinished picture with a step or a canvas that this run does not have."""
        steps = plan.steps()
        if kept["steps"] in range(plan.first + 1, len(steps)):
            canvas = plan.phases[steps[kept["steps"] - 1].phase].canvas
            shapes = {tuple(kept[name].shape[-2:]) for name in ("latents", "predicted_from", "model_output")}
            if shapes == {(canvas.height, canvas.width)}:
                return
        raise ConfigError(f"--checkpoint {self.path}: holds step {kept['steps']} of another canvas; begin again")

    def is_due(self, step: Step) -> bool:
        """Whether the run is written after this step."""
        return (step.index + 1) % self.every == 0 and step.index + 1 < step.num_steps

    def keep(self, plan: RunPlan, step: Step, done: Sampled) -> None:
        """Write the unfinished picture, whose canvas is complete on every rank; collective.

        Args:
            plan: What the run does.
            step: The step just done.
            done: State of the picture after it.
        """
        state = done.state
        guidance, masking = state.guidance, state.masking
        if state.independent is not None:  # only the key view's rank has these
            guidance = [state.independent.last_message(step)] if state.guidance else []
            owner = state.independent.view_owners()[state.independent.patches.key]
            masking = broadcast_state(self.communicator, masking, owner, done.latents.device)
        assert done.prediction is not None
        self._write(
            {
                "latents": done.latents,
                "steps": done.steps,
                "cost": done.timings.cost,
                "memory": state.memory,
                "base": state.base,
                "grown": None if state.start is None else state.start.clean,
                "picture": None if state.start is None else state.start.picture,
                "guidance": guidance,
                "masking": masking,
                "predicted_from": done.prediction.latents,
                "model_output": done.prediction.model_output,
                "scheduler": plan.phases[step.phase].stepper.state(),
            }
        )

    def finish(self, latents: Tensor) -> None:
        """Record the final latents of a picture, Float32[Tensor, "batch channels height width"], and write the file."""
        self.finished.append(latents)
        self._write(None)

    def _write(self, current: dict[str, Any] | None) -> None:
        if self.communicator.rank == 0:
            content = {"recipe": json.dumps(self.recipe), "finished": self.finished, "current": current}
            try:
                save_state(self.path, content)
                self.failed = False
            except OutputError as error:  # a run goes on without its checkpoint
                if not self.failed:
                    logger().warning("checkpoint.not_written", path=str(self.path), reason=error.reason)
                self.failed = True


def kept_row_batch(path: Path | None, packages: frozenset[str], communicator: Communicator) -> int | None:
    """Return the rows per forward of the run that a checkpoint belongs to; None if there is no file. Collective.

    A resumed run must not choose anew: free memory may have changed, and with it the last bits of the picture.

    Raises:
        ConfigError: If the file is not a checkpoint or is damaged.
    """
    if path is None:
        return None
    own = None
    if communicator.rank == 0 and path.exists():
        own = json.loads(_read(path, packages)["recipe"])["run"].get("row_batch")
    rows: int | None = communicator.broadcast_object(own, 0)
    return rows


def broadcast_state(communicator: Communicator, value: Any, src: int, device: Any) -> Any:
    """Return a value of plain data, tensors and attrs classes on every rank; collective.

    Args:
        communicator: The ranks.
        value: The value; used on rank ``src`` only.
        src: Rank that has the value.
        device: Device of the tensors in the result.
    """
    import torch

    tensors: list[Tensor] = []
    header: Any = None
    if communicator.rank == src:
        skeleton = pack(value, tensors)
        header = [skeleton, [[list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for tensor in tensors]]
    skeleton, shapes = communicator.broadcast_object(header, src)
    if communicator.rank != src:
        tensors = [
            torch.empty(shape, dtype=getattr(torch, dtype), device=communicator.device) for shape, dtype in shapes
        ]
    tensors = [tensor.detach().cpu().contiguous() for tensor in tensors]
    for tensor in tensors:
        communicator.broadcast(tensor, src)
    return unpack(skeleton, tensors, device)


def _read(path: Path, packages: frozenset[str]) -> dict[str, Any]:
    """Read a checkpoint and check that it has the parts of one.

    Raises:
        ConfigError: If the file is not a checkpoint, is damaged, or holds classes of other packages.
    """
    content = load_state(path, packages)
    if not _is_sound(content):
        raise ConfigError(f"--checkpoint {path}: is not a checkpoint of a run of this version")
    found: dict[str, Any] = content
    return found


def _is_sound(content: Any) -> bool:
    """Whether the content of a file has the parts of a checkpoint."""
    import torch

    if not isinstance(content, dict) or content.keys() != {"recipe", "finished", "current"}:
        return False
    current, tensors = content["current"], content["finished"]
    if not isinstance(content["recipe"], str) or not isinstance(tensors, list) or not _is_recipe(content["recipe"]):
        return False
    if current is not None:
        if not isinstance(current, dict) or current.keys() != CURRENT or not isinstance(current["steps"], int):
            return False
        tensors = [*tensors, *(current[name] for name in ("latents", "predicted_from", "model_output"))]
    return all(isinstance(tensor, torch.Tensor) and tensor.ndim == 4 for tensor in tensors)


def _is_recipe(text: str) -> bool:
    """Whether a text has what is read of a recipe before it is compared with the run's."""
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(recipe, dict) or not isinstance(recipe.get("run"), dict):
        return False
    rows = recipe["run"].get("row_batch")
    return rows is None or (isinstance(rows, int) and 1 <= rows <= MAX_ROWS)


def _flat(recipe: Any, path: str = "") -> dict[str, Any]:
    """Flatten nested data to one dotted key per leaf."""
    if not isinstance(recipe, (dict, list)):
        return {path: recipe}
    items = recipe.items() if isinstance(recipe, dict) else enumerate(recipe)
    return {k: v for key, item in items for k, v in _flat(item, f"{path}.{key}" if path else str(key)).items()}
