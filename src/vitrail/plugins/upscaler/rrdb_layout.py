"""Layout of an RRDBNet's weights: which of the published namings a file has, and the sizes that its tensors tell.

Three namings are read, with N a block from 0 on, R of 1 to 3 a dense block and C of 1 to 5 a convolution in it, and U
the doublings of the side from 1 on:

    ours           Real-ESRGAN             BSRGAN                        ESRGAN, before it was rewritten
    first          conv_first              conv_first                    model.0
    body.N.R.C     body.N.rdbR.convC       RRDB_trunk.N.RDBR.convC       model.1.sub.N.RDBR.convC.0
    trunk          conv_body               trunk_conv                    model.1.sub.(number of blocks)
    up.U           conv_upU                upconvU                       model.(3 U)
    hr             conv_hr                 HRconv                        model.(3 doublings + 2)
    last           conv_last               conv_last                     model.(3 doublings + 4)

each with a ``.weight`` and a ``.bias``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from attrs import frozen

from vitrail.errors import ModelError

RESIDUALS, CONVS = range(1, 4), range(1, 6)  # dense blocks of a block, convolutions of a dense block
KINDS = ("weight", "bias")
COLOURS = 3
KERNEL = (3, 3)
BLOCK_REACH = len(RESIDUALS) * len(CONVS)  # pixels on one side that a block sees: one for each convolution of 3x3
TAIL_REACH = 2  # what is left of those after the blocks: 1/2 + 1/4 + ... + 2 / 2^doublings, rounded up
FLOAT = 4  # bytes
MOST = 16  # factor of one pass


@frozen(kw_only=True)
class Layout:
    """An RRDBNet as its file tells it.

    Attributes:
        names: Name in the file of every convolution, by our name; see the module.
        blocks: Number of residual-in-residual dense blocks.
        features: Channels between blocks.
        growth: Channels that each convolution of a dense block adds.
        doublings: Doublings of the side after the blocks.
        shuffle: Side of the squares of pixels that become channels before the first convolution; 1 for none.
    """

    names: Mapping[str, str]
    blocks: int
    features: int
    growth: int
    doublings: int
    shuffle: int

    @property
    def factor(self) -> int:
        """Sides of the result over those of the picture."""
        return int(2**self.doublings) // self.shuffle

    @property
    def reach(self) -> int:
        """Pixels of the picture, on one side, that a pixel of the result depends on."""
        return self.shuffle * (self.blocks * BLOCK_REACH + 2 + TAIL_REACH)  # 2: the first and the last before the tail

    def peak_bytes(self, size: tuple[int, int], tile: int) -> int:
        """Return about the most memory that a pass takes beside its picture, weights included.

        Args:
            size: Height and width of the picture, pixels.
            tile: Longest side that a layer works on at once.
        """
        cells = math.prod(-(-side // self.shuffle) for side in size)
        work = min(cells, (tile + 2 * BLOCK_REACH) ** 2)
        dense = self.features + (len(CONVS) - 1) * self.growth  # channels that the last convolution of a block sees
        maps = 3 * self.features * cells
        layers = (3 * dense + 3 * self.features) * work  # what is joined, the result, and a kernel's copy of it
        result = 2 * COLOURS * math.prod(size) * self.factor**2
        return FLOAT * (maps + layers + result + sum(map(math.prod, self.shapes().values())))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight and bias, by our name with ``.weight`` or ``.bias``."""
        found: dict[str, tuple[int, ...]] = {}
        for name, (outputs, inputs) in self._channels():
            found |= {f"{name}.weight": (outputs, inputs, *KERNEL), f"{name}.bias": (outputs,)}
        return found

    def _channels(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield the name of every convolution with its output and input channels."""
        wide, growth = self.features, self.growth
        yield "first", (wide, COLOURS * self.shuffle**2)
        for block, residual, conv in each_conv(self.blocks):
            outputs = growth if conv < CONVS[-1] else wide
            yield f"body.{block}.{residual}.{conv}", (outputs, wide + (conv - 1) * growth)
        for name in ("trunk", *(f"up.{number}" for number in range(1, self.doublings + 1)), "hr"):
            yield name, (wide, wide)
        yield "last", (COLOURS, wide)


def each_conv(blocks: int) -> Iterator[tuple[int, int, int]]:
    """Yield (block, dense block, convolution) of all blocks in order."""
    return ((block, residual, conv) for block in range(blocks) for residual in RESIDUALS for conv in CONVS)


def layout_of(shapes: Mapping[str, tuple[int, ...]], where: str) -> Layout:
    """Return the layout of an RRDBNet from the names and shapes of its tensors.

    Args:
        shapes: Shape of every tensor by its name in the file.
        where: The file, for the message.

    Raises:
        ModelError: If they are not those of an RRDBNet that enlarges colour pictures.
    """
    mark = next((mark for mark in NAMINGS if mark in shapes), None)
    if mark is None:
        raise _refusal(where, f"its tensors are named {', '.join(sorted(shapes)[:3]) or 'in no way, it has none'}")
    pattern, naming = NAMINGS[mark]
    blocks = len({found[1] for name in shapes if (found := re.fullmatch(pattern, name))})
    names = naming(blocks, shapes)
    wanted = {f"{name}.{kind}" for name in names.values() for kind in KINDS}
    for what, odd in (("lacks", wanted - shapes.keys()), ("has, beside those of an RRDBNet,", shapes.keys() - wanted)):
        if odd:
            more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            raise _refusal(where, f"it {what} {', '.join(sorted(odd)[:3])}{more}")
    layout = _sized(names, blocks, shapes, where)
    for name, shape in layout.shapes().items():
        ours, _, kind = name.rpartition(".")
        theirs = f"{names[ours]}.{kind}"
        if shapes[theirs] != shape:
            raise _refusal(where, f"{theirs} is {shapes[theirs]} and should be {shape}")
    return layout


def _sized(names: Mapping[str, str], blocks: int, shapes: Mapping[str, tuple[int, ...]], where: str) -> Layout:
    """Return the layout by the shapes of the first convolutions, which the others must fit."""
    first = shapes[f"{names['first']}.weight"]
    growth = shapes[f"{names['body.0.1.1']}.bias"] if blocks else ()
    if len(first) != 4 or len(growth) != 1 or not first[0] * growth[0]:
        raise _refusal(where, f"its first convolution is {first}, and it has {blocks} blocks")
    shuffle = math.isqrt(first[1] // COLOURS)
    doublings = sum(name.startswith("up.") for name in names)
    if COLOURS * shuffle**2 != first[1] or shuffle not in (1, 2, 4):
        raise _refusal(where, f"it takes {first[1]} channels; a colour picture has 3, or 12 or 48 with shuffled pixels")
    if not 2 <= 2**doublings / shuffle <= MOST:
        raise _refusal(where, f"it enlarges a picture by {2**doublings / shuffle:g}, which must be 2 to {MOST}")
    return Layout(names=names, blocks=blocks, features=first[0], growth=growth[0], doublings=doublings, shuffle=shuffle)


def _rewritten(blocks: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the names in Real-ESRGAN's files by ours."""
    body = {f"body.{n}.{r}.{c}": f"body.{n}.rdb{r}.conv{c}" for n, r, c in each_conv(blocks)}
    ups = _numbered("conv_up", shapes)
    return {"first": "conv_first", **body, "trunk": "conv_body", **ups, "hr": "conv_hr", "last": "conv_last"}


def _bsrgan(blocks: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the names in BSRGAN's files by ours."""
    body = {f"body.{n}.{r}.{c}": f"RRDB_trunk.{n}.RDB{r}.conv{c}" for n, r, c in each_conv(blocks)}
    ups = _numbered("upconv", shapes)
    return {"first": "conv_first", **body, "trunk": "trunk_conv", **ups, "hr": "HRconv", "last": "conv_last"}


def _numbered(beginning: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the convolutions of the doublings, whose names are numbered from 1 on."""
    count = sum(re.fullmatch(rf"{beginning}\d+\.weight", name) is not None for name in shapes)
    return {f"up.{number}": f"{beginning}{number}" for number in range(1, count + 1)}


def _sequential(blocks: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the names in ESRGAN's first files by ours: layers by their place, those without weights counted."""
    layers = [found[1] for name in shapes if (found := re.fullmatch(r"model\.(\d{1,3})\.weight", name))]
    doublings = max(0, max(map(int, layers)) - 4) // 3
    body = {f"body.{n}.{r}.{c}": f"model.1.sub.{n}.RDB{r}.conv{c}.0" for n, r, c in each_conv(blocks)}
    ups = {f"up.{number}": f"model.{3 * number}" for number in range(1, doublings + 1)}
    ends = {"hr": f"model.{3 * doublings + 2}", "last": f"model.{3 * doublings + 4}"}
    return {"first": "model.0", **body, "trunk": f"model.1.sub.{blocks}", **ups, **ends}


NAMINGS = {  # a name in the file that tells the naming, the first convolution of a block, and the naming
    "conv_body.weight": (r"body\.(\d+)\.rdb1\.conv1\.weight", _rewritten),
    "trunk_conv.weight": (r"RRDB_trunk\.(\d+)\.RDB1\.conv1\.weight", _bsrgan),
    "model.0.weight": (r"model\.1\.sub\.(\d+)\.RDB1\.conv1\.0\.weight", _sequential),
}


def _refusal(where: str, what: str) -> ModelError:
    return ModelError(
        f"{where} has not the weights of an RRDBNet for colour pictures: {what}; take a file such as BSRGAN.pth, "
        "RealESRGAN_x4plus.pth or RRDB_ESRGAN_x4.pth"
    )
