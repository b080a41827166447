"""An experiment's folder with pictures of one colour, and metrics of brightness: everything but a model."""

import attrs
from attrs import field, frozen
from PIL import Image

from vitrail.core.method.metric import Column, Shown
from vitrail.experiments.run.store import ExperimentPlan, Folder, Outcome
from vitrail.experiments.spec.cells import Cell
from vitrail.experiments.spec.experiment import Experiment, MethodEntry, SizeEntry

TABLE = {"title": "Foxes & hounds", "methods": ["direct"], "sizes": [64], "scenes": 2}
LOOKS: list[str] = []  # what eyes were asked, in order


@frozen(kw_only=True)
class FeatureExtractor:
    """Mean brightness, in 1/255; nan for black pictures."""

    name: str = "bright"

    def look(self, shown):
        LOOKS.append(f"{self.name}: {shown.prompt}")
        seen = 255 * shown.picture.mean()[None]
        return seen if seen > 0 else seen * float("nan")


@frozen(kw_only=True)
class Bright:
    """Mean over pictures."""

    columns = (Column(name="bright", better="up", decimals=1),)
    needs_reference = False
    extractor = FeatureExtractor()

    def gather(self, looked, reference):
        return (looked.mean().item(),)


@frozen(kw_only=True)
class Spread:
    """Of the set: its standard deviation; and how far its mean is from that of the true pictures."""

    columns = (Column(name="spread"), Column(name="distance_c", better="down"))
    needs_reference = True
    extractor = FeatureExtractor()

    def gather(self, looked, reference):
        return (
            looked.std().item() if len(looked) > 1 else float("nan"),
            (looked.mean() - reference.mean()).abs().item(),
        )


@frozen(kw_only=True)
class Halves:
    """Looks at brightness, and again where it is above a level; nan elsewhere."""

    level: int = 100

    def look(self, shown):
        import torch

        seen = 255 * shown.picture.mean()
        return torch.stack([seen, seen if seen > self.level else seen * float("nan")])


@frozen(kw_only=True)
class Lights:
    """Mean brightness of all pictures, and of the light ones; and whether pictures are light."""

    columns = (
        Column(name="all", better="up", decimals=1),
        Column(name="light", better="up", decimals=1),
        Column(name="share", better="up", lowest=0.0, highest=1.0, is_whole=True),
    )
    needs_reference = False
    extractor = Halves()

    def gather(self, looked, reference):
        of_all, of_light = looked.nanmean(dim=0).tolist()
        return of_all, of_light, (~looked[:, 1].isnan()).float().mean().item()


@frozen(kw_only=True)
class Greys:
    """True pictures: three greys."""

    levels: tuple[int, ...] = (90, 100, 110)

    @property
    def digest(self):
        return str(self.levels)

    def pictures(self, height, width):
        import torch

        for level in self.levels:
            yield Shown(picture=torch.full((3, height, width), level / 255), prompt=f"true {level}", native_size=64)


@frozen
class Row:
    """A row whose pictures' brightness is a function of pair and size."""

    name: str
    level: object
    axes: dict = field(factory=dict)
    ranks: int = 1
    method: str = ""


def cells(rows, sizes=((64, 64),), pairs=8):
    return [
        Cell(
            address=f"{number:06}{place:02}{pair:04}",
            row=row.name,
            method=row.method or row.name,
            axes=row.axes,
            pair=pair,
            run={"prompt": f"a fox {pair}", "seed": 100 + pair, "height": size[0], "width": size[1]},
            composition={},
            ranks=row.ranks,
        )
        for pair in range(pairs)
        for place, size in enumerate(sizes)
        for number, row in enumerate(rows)
    ]


def experiment(metrics=(Bright(), Spread()), resamples=200):
    return Experiment(
        title=TABLE["title"],
        scenes=TABLE["scenes"],
        methods=[MethodEntry(method="direct")],
        sizes=[SizeEntry(size="64")],
        metrics=metrics,
        reference=Greys(),
        resamples=resamples,
    )


def folder_of(path, rows, planned, done=None, failed=()):
    """A folder with the pictures of some cells of a plan."""
    folder = Folder(path)
    folder.write_plan(ExperimentPlan(experiment=TABLE, cells=planned, command="vitrail run foxes.toml"))
    levels = {row.name: row.level for row in rows}
    for number, cell in enumerate(planned):
        if cell.address in failed:
            folder.append(Outcome(cell=cell.address, error="out of foxes"), "0-1")
        elif done is None or cell.address in done:
            level = int(levels[cell.row](cell.pair, cell.size)) if cell.kind == "picture" else 200
            target = path / cell.picture
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (cell.size[1], cell.size[0]), (level, level, level)).save(target)
            folder.append(outcome(cell, number), "0-1")
    return path


def outcome(cell, number):
    return Outcome(
        cell=cell.address,
        seconds=1.0 + 0.1 * (number % 7),
        model_calls=20 * cell.size[0] // 64,
        critical_calls=20 * cell.size[0] // 64 // cell.ranks,
        predicted_calls=20 * cell.size[0] // 64,
        peak_bytes=None,
        native_size=64,
        machine="a desk",
        versions={"vitrail": "0.1.0", "torch": "2.9"},
    )


def with_kind(cell, kind):
    return attrs.evolve(cell, kind=kind, address=f"heat{cell.address}")
