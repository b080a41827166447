"""``rrdbnet``: enlarging by the network of ESRGAN, Real-ESRGAN and BSRGAN, with weights from a file.

The network is that of ESRGAN (Wang et al., 2018, https://arxiv.org/abs/1809.00219, sec. 3.1), which Real-ESRGAN (Wang
et al., 2021, https://arxiv.org/abs/2107.10833, sec. 3.4) and BSRGAN (Zhang et al., 2021,
https://arxiv.org/abs/2103.14006) train for other degradations. It enlarges by a whole factor, usually 4. It is applied
until neither side is smaller than wanted, and what is too large then shrinks by Lanczos.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.file_digests import digest_of_files
from vitrail.core.config.paths import expanded
from vitrail.core.method.cost import UpscalingCost
from vitrail.errors import ConfigError
from vitrail.plugins.upscaler.lanczos import LOBES, lanczos
from vitrail.plugins.upscaler.rrdb_weights import layout_in, load

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.plugins.upscaler.rrdb_layout import Layout


@frozen(kw_only=True)
class RRDBNet:
    """Enlarge by an RRDBNet of a file, such as BSRGAN or Real-ESRGAN, then by Lanczos to the wanted size."""

    needs: ClassVar[frozenset[str]] = frozenset()
    path_options: ClassVar[tuple[str, ...]] = ("file",)
    file: str | None = field(
        default=None, validator=v.optional(v.instance_of(str))
    )  # its weights, which it does not do without: a .safetensors, or a .pth of tensors alone
    tile: int = field(
        default=512, validator=v.ge(16)
    )  # longest side that a layer works on at once, in pixels of its own; less memory, and the picture up to rounding

    @property
    def reach(self) -> int:
        """The sum of all passes: each sees as far as its network, in pixels that are smaller by its factor."""
        layout = self._layout()
        return -(-layout.reach * layout.factor // (layout.factor - 1)) + 2 * (LOBES + 1)

    def check(self) -> None:
        """Read the file whole.

        Raises:
            ConfigError: If none is given.
            ModelError: If it is missing, broken, holds more than tensors, or no RRDBNet for colour pictures.
        """
        self._layout()

    def digest(self) -> str:
        """Of the file."""
        return "" if self.file is None else digest_of_files([expanded(self.file)])

    def cost(self, before: tuple[int, int], after: tuple[int, int]) -> UpscalingCost:
        """The passes of the network, and the memory of the last one, which is the largest."""
        layout, passes, last = self._layout(), 0, before
        shown = before
        while _is_smaller(shown, after):
            passes, last, shown = passes + 1, shown, _enlarged(shown, layout.factor)
        return UpscalingCost(passes=passes, peak_bytes=layout.peak_bytes(last, self.tile) if passes else None)

    def upscale(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        """Enlarge, clipped to [0, 1]; for the arguments see ``Upscaler.upscale``."""
        import torch

        from vitrail.plugins.upscaler.rrdb_forward import forward

        layout = self._layout()
        with torch.no_grad():
            if _is_smaller(tuple(picture.shape[-2:]), size):
                weights = load(self._file(), picture.device)
                while _is_smaller(tuple(picture.shape[-2:]), size):
                    picture = torch.cat([forward(one[None], layout, weights, self.tile) for one in picture]).clamp(0, 1)
            return lanczos(picture, size)

    def _layout(self) -> Layout:
        return layout_in(self._file())

    def _file(self) -> str:
        if self.file is None:
            raise ConfigError(
                "file: rrdbnet has no weights of its own; give it the file of an RRDBNet, such as BSRGAN.pth, "
                "RealESRGAN_x4plus.pth, RealESRGAN_x2plus.pth or RRDB_ESRGAN_x4.pth, or the same as .safetensors: "
                '{ type = "rrdbnet", file = "BSRGAN.pth" }'
            )
        return self.file


def _is_smaller(shown: tuple[int, ...], wanted: tuple[int, int]) -> bool:
    return any(side < other for side, other in zip(shown, wanted, strict=True))


def _enlarged(shown: tuple[int, int], factor: int) -> tuple[int, int]:
    return shown[0] * factor, shown[1] * factor
