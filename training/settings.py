"""Settings of training, read from ``settings.toml`` with the project's strict loader."""

import tomllib
from pathlib import Path

from attrs import field, frozen
from attrs.validators import ge, gt, le

from vitrail.core.config.loader import Loader
from vitrail.core.config.overrides import override
from vitrail.sampling.discovery import registry

FILE = Path(__file__).with_name("settings.toml")


@frozen(kw_only=True)
class LoopSettings:
    """Settings of the loop: a learning rate with linear warm-up, a constant part and linear cool-down to zero."""

    noun = "a loop"
    num_steps: int = field(validator=gt(0))
    learning_rate: float = field(validator=gt(0))
    warmup_steps: int = field(default=200, validator=ge(1))
    cooldown_steps: int = field(default=0, validator=ge(0))
    ema: float = field(default=0.999, validator=[ge(0), le(1)])
    weight_decay: float = field(default=0.01, validator=ge(0))
    clip: float = field(default=1.0, validator=gt(0))
    seed: int = 0
    log_every: int = field(default=50, validator=ge(1))
    save_every_s: float = field(default=300.0, validator=ge(0))
    measure_every: int = field(default=1000, validator=ge(1))

    def scale_at(self, step: int) -> float:
        """Return the factor of the learning rate at a step, in (0, 1]."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = (self.num_steps - step) / max(1, self.cooldown_steps)
        return warm * min(1.0, left)


@frozen(kw_only=True)
class AutoencoderSettings:
    """Settings of the autoencoder's training; the fields are explained in ``settings.toml``."""

    noun = "'autoencoder'"
    loop: LoopSettings
    start: str
    batch: int = field(validator=ge(1))
    crop: int = field(validator=ge(8))
    pool: int = field(validator=ge(1))
    fresh: int = field(validator=ge(0))
    crowds: float
    pixel_weight: float
    edge_weight: float
    square_weight: float
    kl_weight: float
    measured: int = field(validator=ge(1))


@frozen(kw_only=True)
class DenoiserSettings:
    """Settings of the denoiser's training; the fields are explained in ``settings.toml``."""

    noun = "'denoiser'"
    loop: LoopSettings
    start: str
    vae: str
    batch: int = field(validator=ge(1))
    pool: int = field(validator=ge(1))
    fresh: int = field(validator=ge(0))
    close_up: float
    empty: float
    drop_text: float
    short_caption: float
    min_snr: float = field(validator=ge(0))
    measured: int = field(validator=ge(1))


@frozen(kw_only=True)
class JudgeSettings:
    """Settings of the judge's training; the fields are explained in ``settings.toml``."""

    noun = "'judge'"
    loop: LoopSettings
    vae: str
    batch: int = field(validator=ge(1))
    pool: int = field(validator=ge(4))
    measured: int = field(validator=ge(4))


@frozen(kw_only=True)
class Settings:
    """Settings of all training stages, the tables of ``settings.toml``."""

    noun = "the settings"
    autoencoder: AutoencoderSettings
    denoiser: DenoiserSettings
    judge: JudgeSettings


def load(file: Path = FILE, changes: tuple[str, ...] = ()) -> Settings:
    """Read the settings and apply changes of the form ``KEY=VALUE``.

    Raises:
        ConfigError: If a key is unknown or a value is invalid.
    """
    data = override(tomllib.loads(file.read_text()), changes)
    return Loader(registry()).structure(data, Settings, str(file.name))
