"""One resumable training loop for every stage."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from attrs import field, frozen
from torch import Generator, Tensor, nn


@frozen(kw_only=True)
class LoopConfig:
    """How one stage is trained."""

    num_steps: int
    learning_rate: float
    warmup_steps: int = 200
    final_fraction: float = 0.02  # of the learning rate, at the end of the cosine
    ema: float = 0.998
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    save_every_s: float = 240.0
    log_every: int = 50


@frozen(eq=False)
class Ema:
    """Exponential moving average of a module's parameters, debiased while it is young."""

    decay: float
    shadow: dict[str, Tensor] = field(factory=dict)

    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            kept = self.shadow.setdefault(name, value.detach().clone())
            if value.dtype.is_floating_point:
                kept.lerp_(value.detach(), 1 - decay)
            else:
                kept.copy_(value)


def scale_at(config: LoopConfig, step: int) -> float:
    """Learning-rate factor: linear warm-up, then cosine."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.num_steps)))
    return warm * (config.final_fraction + (1 - config.final_fraction) * cosine)


def train(
    module: nn.Module,
    loss: Callable[[int, Generator], tuple[Tensor, dict[str, float]]],
    config: LoopConfig,
    folder: Path,
    on_save: Callable[[dict[str, Tensor], int], None] | None = None,
) -> dict[str, Tensor]:
    """Train a module and keep a checkpoint from which the same command goes on.

    Args:
        module: What is optimised; parameters without ``requires_grad`` stay as they are.
        loss: ``(step, generator) -> (loss, numbers to log)``.
        config: Steps, learning rate and so on.
        folder: Where ``state.pt`` and ``log.jsonl`` are kept.
        on_save: Called with the averaged weights and the step after each checkpoint.

    Returns:
        The averaged weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = Generator().manual_seed(config.seed)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
    )
    ema, start = Ema(config.ema), 0
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        ema.shadow.update(state["ema"])
        start = state["step"]

    def save(step: int) -> None:
        state = {
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "ema": ema.shadow,
            "step": step,
        }
        torch.save(state, folder / "state.tmp")
        (folder / "state.tmp").replace(folder / "state.pt")
        if on_save:
            on_save(ema.shadow, step)

    saved = logged = time.monotonic()
    sums: dict[str, float] = {}
    for step in range(start, config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * scale_at(config, step)
        value, numbers = loss(step, generator)
        value.backward()
        norm = nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(module, step)
        for key, number in {"loss": value.item(), "norm": norm.item(), **numbers}.items():
            sums[key] = sums.get(key, 0.0) + number
        if (step + 1) % config.log_every == 0:
            now = time.monotonic()
            line = {"step": step + 1, "s_per_step": round((now - logged) / config.log_every, 3)}
            line |= {key: round(total / config.log_every, 5) for key, total in sums.items()}
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            logged, sums = now, {}
        if time.monotonic() - saved > config.save_every_s:
            save(step + 1)
            saved = time.monotonic()
    save(config.num_steps)
    return ema.shadow
