"""``remembered-attention``: a mask from the attention maps that an earlier stage kept, averaged over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_tuple, later, share_below_half
from vitrail.core.method.attention_maps import AttentionRequest, Over
from vitrail.errors import ConfigError, nearest
from vitrail.plugins.masking.heat_maps import OVERS, STOP_WORDS, as_words, normalised, warn
from vitrail.plugins.prompting.patch_content_aware import opened

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.attention_maps import KeptMaps
    from vitrail.core.method.micro_batch import ModelOutput
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step

Edge = Literal["soft", "binary"]


@frozen(kw_only=True)
class RememberedAttention:
    """The attention to the words of the prompt over all steps of a stage with ``remember = true``, word by word.

    ``soft`` stretches the map to [0, 1]; ``binary`` is 1 where it is above its own mean, less specks, as AccDiffusion
    (Lin et al., 2024, https://arxiv.org/abs/2407.10738), eq. 6 and 7, has it for each word.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"attention-maps"})
    recalls: ClassVar[bool] = True
    knows_whole: ClassVar[bool] = True
    words: tuple[str, ...] = field(default=(), converter=as_words)  # of the prompt, that alone count; () for all
    skip_stop_words: bool = True  # "a", "on" and their like are no content
    tokens: Over = field(default="mean", validator=v.in_(OVERS))  # of the content words; "max" is that of any
    edge: Edge = field(default="soft", validator=v.in_(("soft", "binary")))  # of the mask
    clip: float = field(default=0.02, validator=share_below_half)  # with soft: quantile cut at both ends
    opening: float = field(default=1 / 16, validator=share_below_half)  # with binary: as a share of the longer side
    layers: tuple[int, ...] = field(default=(), converter=as_tuple)  # up blocks whose maps are remembered; () for all
    blocks: tuple[int, ...] = later(default=(), converter=as_tuple)  # the same of a transformer; () for the late half

    @property
    def request(self) -> AttentionRequest | None:
        """One map a word, of the chosen layers; None leaves the choice to the stages that keep the maps."""
        chosen = self.layers or self.blocks
        return AttentionRequest(layers=self.layers, blocks=self.blocks, each=True) if chosen else None

    def init(self) -> None:
        """None: there is no state."""

    def mask(self, step: Step, key: Prediction, predicted: ModelOutput, state: None) -> tuple[Tensor | None, None]:
        """The kept maps of the chosen words at the size of ``predicted.view``, padding cells repeating the edge.

        None, which is everywhere, with a warning, where no content word has a map or the map is flat.

        Returns:
            Float32[Tensor, "batch 1 h w"] in [0, 1], or None; and None as state.

        Raises:
            ConfigError: If one of ``words`` is no word of the prompt.
        """
        import torch.nn.functional as F

        memory = predicted.memory
        chosen = [] if memory is None else self._chosen(memory)
        if memory is None or not chosen:
            warn(step, "no content word is remembered")
            return None, None
        heat = memory.heat(chosen, self.tokens)
        mask: Tensor | None = normalised(step, heat, self.clip)
        if mask is not None and self.edge == "binary":
            above = (heat > heat.mean((-2, -1), keepdim=True)).to(heat.dtype)
            mask = opened(above, int(self.opening * max(heat.shape[-2:])))
        if mask is None:
            return None, None
        height, width = key.latents.shape[-2:] if predicted.view is None else predicted.view.shape
        inner = predicted.inner or (height, width)
        mask = F.interpolate(mask, inner, mode="bilinear", align_corners=False).clamp(0, 1)
        return F.pad(mask, (0, width - inner[1], 0, height - inner[0]), mode="replicate"), None

    def _chosen(self, memory: KeptMaps) -> Sequence[int]:
        """Numbers of the words whose maps are used."""
        if not self.words:
            skip = STOP_WORDS if self.skip_stop_words else frozenset()
            return [number for number, word in enumerate(memory.words) if word not in skip]
        missing = [word for word in self.words if word not in memory.words]
        if missing:
            listed = ", ".join(f"{word!r}{nearest(word, memory.words)}" for word in missing)
            raise ConfigError(f"the words of the masking must be words of the prompt: {listed}")
        return [number for number, word in enumerate(memory.words) if word in self.words]
