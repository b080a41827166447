"""One training loop for every stage: goes on from its last checkpoint, on any device, for as long as it is told.

A step depends on its number and the seed alone, and so do its pictures, so a run that was killed and
resumed takes the same steps as one that was left alone.
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
BETAS = (0.9, 0.99)


class Task(Protocol):
    """What a stage tells the loop."""

    module: nn.Module  # what is optimised; parameters without ``requires_grad`` stay as they are

    def loss(self, step: int, generator: Generator, dtype: torch.dtype) -> tuple[Tensor, Numbers]:
        """The loss of one batch and numbers to log, with the networks in autocast to ``dtype``."""

    def measure(self, weights: dict[str, Tensor], step: int, folder: Path) -> Numbers:
        """Judge averaged weights, and write samples into a folder."""

    def export(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write averaged weights in the format in which they are used."""


@frozen(kw_only=True)
class Budget:
    """How long one call may train, where, and with what.

    Attributes:
        folder: Where ``state.pt``, ``log.jsonl`` and samples are kept.
        device: Of the networks.
        minutes: None: to the last step.
        precision: "float32", "bfloat16", or "measured" for the faster one.
    """

    folder: Path
    device: torch.device
    minutes: float | None = None
    precision: str = "measured"
    clock: Callable[[], float] = time.monotonic


@frozen(eq=False)
class Average:
    """Exponential moving average of a module's state, debiased while it is young."""

    decay: float
    state: dict[str, Tensor]

    @classmethod
    def of(cls, module: nn.Module, decay: float) -> "Average":
        """Start at a module's weights."""
        return cls(decay, {name: value.detach().clone() for name, value in module.state_dict().items()})

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the module's weights after a step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = module.state_dict()
        averaged = [name for name, value in current.items() if value.is_floating_point()]
        kept = [self.state[name] for name in averaged]
        torch._foreach_lerp_(kept, [current[name].detach() for name in averaged], 1 - decay)
        for name in current.keys() - averaged:
            self.state[name].copy_(current[name])


def generator_of(seed: int, step: int) -> Generator:
    """The random draws of one step, on the CPU."""
    return Generator().manual_seed((seed << 40) + step)


def to_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights where files and measurements want them."""
    return {name: value.detach().cpu() for name, value in state.items()}


@frozen(eq=False)
class Run:
    """One call of a stage: what it trains, how, and how far that has come."""

    task: Task
    settings: LoopSettings
    budget: Budget
    optimizer: torch.optim.AdamW
    average: Average

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is optimised."""
        return [p for p in self.task.module.parameters() if p.requires_grad]

    def resume(self) -> int:
        """Load the checkpoint, if there is one; the step to go on from."""
        path = self.budget.folder / "state.pt"
        if not path.exists():
            return 0
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=self.budget.device)
        self.task.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.state.update(state["average"])
        return int(state["step"])

    def save(self, step: int) -> None:
        """Write the checkpoint and the averaged weights; a kill in between leaves the older files whole."""
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
        """One step of the optimiser."""
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
        """One more line of ``log.jsonl``."""
        with (self.budget.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def measure(self, step: int) -> None:
        """Judge the averaged weights, and log what was found."""
        started = self.budget.clock()
        numbers = self.task.measure(to_cpu(self.average.state), step, self.budget.folder / "samples")
        self.log({"step": step, "measured": numbers, "seconds": round(self.budget.clock() - started, 1)})


def start(task: Task, settings: LoopSettings, budget: Budget) -> Run:
    """Put a task on its device, with a fresh optimiser and average."""
    budget.folder.mkdir(parents=True, exist_ok=True)
    task.module.to(budget.device)
    parameters = [p for p in task.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=BETAS, fused=True
    )
    return Run(task, settings, budget, optimizer, Average.of(task.module, settings.ema))


def train(task: Task, settings: LoopSettings, budget: Budget, should_stop: Callable[[], bool] = lambda: False) -> int:
    """Train until the last step, the minutes' end or a signal, whichever comes first; the step that was reached.

    Files are written every ``save_every_s`` seconds and at the end, so a kill loses no more than that.
    """
    run = start(task, settings, budget)
    first = run.resume()
    if first >= settings.num_steps:
        return first
    if budget.precision == "measured":
        untouched = {name: value.clone() for name, value in task.module.state_dict().items()}
        dtype = faster_precision(run.take, budget.device)
        task.module.load_state_dict(untouched)  # the trial's steps changed weights, averages and the optimiser's state
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
    """The mean of each number over some steps."""
    return {key: round(sum(line[key] for line in lines) / len(lines), 5) for key in lines[0]}
