"""The training loop of all networks: resumes from its last checkpoint, on any device, within a time budget.

A step and its pictures depend on its number and the seed only, so a run that was killed and resumed takes the
same steps as an uninterrupted one.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from attrs import frozen
from torch import Generator, Tensor, nn

from training.precision import faster_precision
from training.settings import LoopSettings

Numbers = dict[str, float]
BETAS = (0.9, 0.99)  # of AdamW


class Task(Protocol):
    """A network to train, with its data and loss."""

    module: nn.Module  # the trained module; parameters without ``requires_grad`` are fixed

    def loss(self, step: int, generator: Generator, dtype: torch.dtype) -> tuple[Tensor, Numbers]:
        """Compute the loss of the batch of a step.

        Args:
            step: Index of the step.
            generator: CPU generator of the step.
            dtype: Dtype of autocast; float32 disables it.

        Returns:
            The loss, Float32[Tensor, ""], and numbers to log.
        """

    def measure(self, weights: dict[str, Tensor], step: int, folder: Path) -> Numbers:
        """Measure averaged weights, and write samples into a folder.

        Args:
            weights: Averaged state of the module, on the CPU.
            step: Index of the step.
            folder: Folder of the samples.

        Returns:
            Numbers to log.
        """

    def export(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write averaged weights to a folder in the format in which they are loaded for use."""


@frozen(kw_only=True)
class Budget:
    """Limits and resources of one training call.

    Attributes:
        folder: Folder of ``state.pt``, ``log.jsonl``, samples and weights.
        device: Device of the networks.
        minutes: Time limit; None trains to the last step.
        precision: "float32", "bfloat16", or "measured" for the faster one.
        clock: Returns the time in seconds.
    """

    folder: Path
    device: torch.device
    minutes: float | None = None
    precision: str = "measured"
    clock: Callable[[], float] = time.monotonic


@frozen(eq=False)
class Average:
    """Exponential moving average of a module's state, with a smaller decay in the first steps.

    Attributes:
        decay: Maximum decay per step.
        state: The averaged state.
    """

    decay: float
    state: dict[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module, decay: float) -> "Average":
        """Start an average at a module's state."""
        return cls(decay, {name: value.detach().clone() for name, value in module.state_dict().items()})

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Update the average with the module's state after a step; integer buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = module.state_dict()
        averaged = [name for name, value in current.items() if value.is_floating_point()]
        kept = [self.state[name] for name in averaged]
        torch._foreach_lerp_(kept, [current[name].detach() for name in averaged], 1 - decay)
        for name in current.keys() - averaged:
            self.state[name].copy_(current[name])


def generator_of(seed: int, step: int) -> Generator:
    """Return the CPU generator of a step, which depends on seed and step only."""
    return Generator().manual_seed((seed << 40) + step)


def to_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy a state to the CPU."""
    return {name: value.detach().cpu() for name, value in state.items()}


@frozen(eq=False)
class Run:
    """State of one training call: task, settings, budget, optimiser and average."""

    task: Task
    settings: LoopSettings
    budget: Budget
    optimizer: torch.optim.AdamW
    average: Average

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Trained parameters of the module."""
        return [p for p in self.task.module.parameters() if p.requires_grad]

    def resume(self) -> int:
        """Load the checkpoint, if there is one, and return the step to continue from."""
        path = self.budget.folder / "state.pt"
        if not path.exists():
            return 0
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.budget.device)
        self.task.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.state.update(state["average"])
        return int(state["step"])

    def save(self, step: int) -> None:
        """Write the checkpoint and the averaged weights; a kill meanwhile leaves the previous checkpoint intact."""
        folder = self.budget.folder
        state = {
            "module": self.task.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state,
            "step": step,
        }
        with (folder / "state.new").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        (folder / "state.new").replace(folder / "state.pt")
        self.task.export(to_cpu(self.average.state), folder / "weights")

    def take(self, step: int, dtype: torch.dtype) -> Numbers:
        """Take one optimiser step and return numbers to log: loss, gradient norm and those of the task."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * self.settings.scale_at(step)
        value, numbers = self.task.loss(step, generator_of(self.settings.seed, step), dtype)
        value.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.task.module, step)
        return {"loss": value.item(), "norm": norm.item(), **numbers}

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to ``log.jsonl``."""
        with (self.budget.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def measure(self, step: int) -> None:
        """Measure the averaged weights and log the result."""
        started = self.budget.clock()
        numbers = self.task.measure(to_cpu(self.average.state), step, self.budget.folder / "samples")
        self.log({"step": step, "measured": numbers, "seconds": round(self.budget.clock() - started, 1)})


def start(task: Task, settings: LoopSettings, budget: Budget) -> Run:
    """Move a task to its device, with a new optimiser and average.

    Args:
        task: The task.
        settings: Settings of the loop.
        budget: Folder, which is created, and device.
    """
    budget.folder.mkdir(parents=True, exist_ok=True)
    task.module.to(budget.device)
    parameters = [p for p in task.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=BETAS, fused=True
    )
    return Run(task, settings, budget, optimizer, Average.of(task.module, settings.ema))


def train(task: Task, settings: LoopSettings, budget: Budget, should_stop: Callable[[], bool] = lambda: False) -> int:
    """Train until the last step, the time limit or ``should_stop``, whichever comes first.

    Checkpoints are written every ``save_every_s`` seconds and at the end, so a kill loses no more than that.

    Args:
        task: The task.
        settings: Settings of the loop.
        budget: Folder, device, time limit and precision.
        should_stop: Asked after every step.

    Returns:
        The number of steps reached.
    """
    run = start(task, settings, budget)
    first = run.resume()
    if first >= settings.num_steps:
        return first
    if budget.precision == "measured":
        untouched = {name: value.clone() for name, value in task.module.state_dict().items()}
        dtype = faster_precision(run.take, budget.device)
        task.module.load_state_dict(untouched)  # undo the trial's steps, which changed weights, average and optimiser
        run = start(task, settings, budget)
        run.resume()
    else:
        dtype = getattr(torch, budget.precision)
    began = saved = logged = budget.clock()
    run.log({"step": first, "resumed": first > 0, "device": str(budget.device), "dtype": str(dtype)})
    if first == 0:
        run.measure(0)
    lines: list[Numbers] = []
    step = first
    while step < settings.num_steps:
        lines.append(run.take(step, dtype))
        step += 1
        now = budget.clock()
        if step % settings.log_every == 0:
            rate = (now - logged) / len(lines)
            left = (settings.num_steps - step) * rate / 3600
            run.log({"step": step, "s_per_step": round(rate, 3), "hours_left": round(left, 2), **means(lines)})
            logged, lines = now, []
        if step % settings.measure_every == 0:
            run.measure(step)
        if now - saved > settings.save_every_s:
            run.save(step)
            saved = budget.clock()
        if should_stop() or (budget.minutes is not None and now - began > 60 * budget.minutes):
            break
    run.save(step)
    return step


def means(lines: Sequence[Numbers]) -> Numbers:
    """Return the mean of each number over some steps."""
    return {key: round(sum(line[key] for line in lines) / len(lines), 5) for key in lines[0]}
