"""What is kept of a run of the authors' code: draws, what was seen, the picture; also as a file.

A file holds tensors and plain data alone, so that reading one runs no code. It lets the authors' code run in another
environment than Vitrail, with libraries of its time.
"""

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from attrs import field, frozen
from PIL import Image

from .checkout import RefusedError
from .draws import Draw, Place
from .watching import Moment, Row, Seen

FORMAT = "vitrail parity recording 1"


@frozen(kw_only=True, eq=False)
class Recording:
    """A run of the authors' code.

    Attributes:
        method: Name of the method.
        commit: Commit of the checkout.
        versions: Versions of Python and libraries.
        call: Prompt, sizes, steps and so on of the run, which Vitrail's run must have, too.
        draws: What it drew, in order.
        seen: What the network and the decoder were asked.
        picture: Its picture.
    """

    method: str
    commit: str
    versions: dict[str, str]
    call: dict[str, Any]
    draws: list[Draw] = field(repr=False)
    seen: Seen = field(repr=False)
    picture: Image.Image = field(repr=False)

    def write(self, path: Path) -> None:
        """Write it to a file."""
        table = {
            "format": FORMAT,
            "method": self.method,
            "commit": self.commit,
            "versions": self.versions,
            "call": self.call,
            "draws": [attrs.asdict(draw) for draw in self.draws],
            "moments": [(moment.timestep, [row.parts for row in moment.rows]) for moment in self.seen.moments],
            "decoded": self.seen.decoded,
            "picture": torch.from_numpy(np.array(self.picture.convert("RGB"))),
        }
        torch.save(table, path)

    @classmethod
    def read(cls, path: Path) -> "Recording":
        """Read one from a file.

        Raises:
            RefusedError: If it is none.
        """
        try:
            table = torch.load(path, map_location="cpu", weights_only=True)
            assert table["format"] == FORMAT
        except Exception as error:  # torch raises many kinds
            raise RefusedError(
                f"{path}: is no recording of this version of the tool ({type(error).__name__})"
            ) from error
        return cls(
            **{name: table[name] for name in ("method", "commit", "versions", "call")},
            draws=[Draw(**{**draw, "place": Place(**draw["place"])}) for draw in table["draws"]],
            seen=Seen([Moment(t, [Row(parts) for parts in rows]) for t, rows in table["moments"]], table["decoded"]),
            picture=Image.fromarray(table["picture"].numpy()),
        )
