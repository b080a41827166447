"""Looking at an experiment's pictures: each once, from several folders, on after a kill; and what is not there."""

import io
import shutil

import pytest
import torch
from attrs import evolve, field, frozen
from PIL import Image
from rich.console import Console

import tiny_experiment as tiny
from listeners import Silent
from vitrail.cli import meter as metering
from vitrail.cli.listener import ConsoleListener
from vitrail.core.method.metric import Column
from vitrail.errors import ConfigError, ShapeError
from vitrail.experiments.analysis import feature_cache as keeping
from vitrail.experiments.analysis.gathering import gather_results
from vitrail.experiments.analysis.measurement import load, look, shown_of
from vitrail.experiments.analysis.picture_sets import costs_of
from vitrail.experiments.report.page_content import metric_values
from vitrail.experiments.report.sheets import draw_sheets
from vitrail.experiments.report.tables_and_plots import write_report
from vitrail.experiments.run.store import Outcome
from vitrail.metrics.crops import CropFeatures
from vitrail.pictures.picture_files import open_picture

ROWS = [tiny.Row("dark", lambda pair, size: 60 + 5 * pair), tiny.Row("light", lambda pair, size: 70 + 5 * pair)]
CELLS = tiny.cells(ROWS, pairs=4)


@pytest.fixture
def looks():
    tiny.LOOKS.clear()
    return tiny.LOOKS


@pytest.fixture
def folder(tmp_path):
    return tiny.folder_of(tmp_path / "foxes", ROWS, CELLS)


def seen_in(folders, experiment=None):
    loaded = load(folders, experiment or tiny.experiment())
    return loaded, look(loaded, Silent())


def results_of(folders, experiment=None, baseline=None):
    return gather_results(*seen_in(folders, experiment), Silent(), baseline)


def test_every_picture_is_looked_at_once_in_a_folders_life(folder, looks):
    _, first = seen_in([folder])
    assert len(looks) == len(CELLS) + 3  # two metrics with equal eyes; three true pictures
    _, again = seen_in([folder])
    assert len(looks) == len(CELLS) + 3
    key = repr(tiny.FeatureExtractor())
    assert torch.equal(
        first.of(tiny.FeatureExtractor(), [c.address for c in CELLS]),
        again.of(tiny.FeatureExtractor(), [c.address for c in CELLS]),
    )
    assert torch.equal(first.references[key, (64, 64)], again.references[key, (64, 64)])


def test_another_eye_or_reference_set_is_looked_through_again(folder, looks):
    seen_in([folder])
    looks.clear()

    seen_in([folder], evolve(tiny.experiment(), reference=tiny.Greys(levels=(10, 20))))
    assert looks == ["bright: true 10", "bright: true 20"]
    looks.clear()

    @frozen(kw_only=True)
    class Other(tiny.Bright):
        extractor = tiny.FeatureExtractor(name="other")

    seen_in([folder], tiny.experiment(metrics=(Other(),)))
    assert len(looks) == len(CELLS)
    assert all(each.startswith("other") for each in looks)


@pytest.mark.parametrize("after", [3, len(CELLS) + 1])
def test_a_killed_report_goes_on_where_it_was(folder, looks, monkeypatch, after):
    """Among the pictures, and among the true ones."""
    whole, count = tiny.FeatureExtractor.look, 0

    def tired(self, shown):
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        return whole(self, shown)

    monkeypatch.setattr(tiny.FeatureExtractor, "look", tired)
    with pytest.raises(KeyboardInterrupt):
        seen_in([folder])
    monkeypatch.setattr(tiny.FeatureExtractor, "look", whole)
    _, seen = seen_in([folder])
    assert sorted(looks) == sorted(
        [f"bright: {c.run['prompt']}" for c in CELLS] + [f"bright: true {n}" for n in (90, 100, 110)]
    )
    assert len(seen.references[repr(tiny.FeatureExtractor()), (64, 64)]) == 3


def test_what_was_seen_is_kept_while_looking(folder, monkeypatch):
    """A killed process has no chance to write at its end."""
    monkeypatch.setattr(keeping, "PAUSE_S", -1.0)
    answers = keeping.FeatureCache(folder, "an eye")
    answers.add("one", torch.tensor([1.0]))
    assert keeping.FeatureCache(folder, "an eye")["one"].tolist() == [1.0]
    assert "one" not in keeping.FeatureCache(folder, "another eye")
    assert not list((folder / "looked").glob("*.part"))


def test_an_unreadable_file_is_told(folder):
    seen_in([folder])
    for file in (folder / "looked").iterdir():
        file.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="delete it to look again"):
        seen_in([folder])


def test_eyes_see_what_was_saved(folder):
    cell = CELLS[3]
    pixels = Image.new("RGB", (64, 64), (0, 128, 255))
    pixels.putpixel((5, 2), (255, 0, 0))
    pixels.save(folder / cell.picture)
    loaded = load([folder], tiny.experiment())
    loaded.outcomes[cell.address] = evolve(loaded.outcomes[cell.address], rows=(16,), columns=(32, 48))
    shown = shown_of(cell, loaded)
    assert shown.picture.shape == (3, 64, 64)
    assert shown.picture[:, 2, 5].tolist() == [1.0, 0.0, 0.0]
    torch.testing.assert_close(shown.picture[:, 0, 0], torch.tensor([0.0, 128 / 255, 1.0]))
    assert (shown.prompt, shown.native_size, shown.rows, shown.columns) == (cell.run["prompt"], 64, (16,), (32, 48))


def test_shards_in_several_folders_are_one_experiment(tmp_path, folder, looks):
    halves = [tiny.folder_of(tmp_path / str(turn), ROWS, CELLS, {c.address for c in CELLS[turn::2]}) for turn in (0, 1)]
    whole, parts = results_of([folder]), results_of(halves)
    assert len(parts.estimates) == 2 * 8
    for key, estimate in parts.estimates.items():
        assert estimate == whole.estimates[key] or key[2] == "MiB"  # which nobody looked at
    assert parts.counts() == (8, 0, 0)
    looks.clear()
    results_of(halves[::-1])
    assert all("true" in each for each in looks)  # only the other folder had seen the true pictures


def test_a_cell_that_failed_in_one_folder_is_done_if_another_has_it(tmp_path):
    bad, good = CELLS[0].address, {c.address for c in CELLS[:2]}
    folders = [
        tiny.folder_of(tmp_path / "bad", ROWS, CELLS, set(), failed={bad, CELLS[5].address}),
        tiny.folder_of(tmp_path / "good", ROWS, CELLS, good),
    ]
    for order in (folders, folders[::-1]):
        results = results_of(order)
        assert results.counts() == (2, 5, 1)
        assert results.errors == ("light, 64x64, seed 102: out of foxes",)


def test_a_lost_picture_is_missing_and_a_broken_one_is_told(folder):
    (folder / CELLS[0].picture).unlink()
    assert load([folder], tiny.experiment()).has_failed(CELLS[0]) is False
    results = results_of([folder])
    assert results.counts() == (7, 1, 0)
    (folder / CELLS[1].picture).write_bytes(b"no picture")
    shutil.rmtree(folder / "looked")
    with pytest.raises(ConfigError, match="cannot be read as a picture"):
        seen_in([folder])


def test_a_picture_that_two_rows_share_is_looked_at_once(tmp_path, looks):
    twins = [evolve(cell, row="again") for cell in CELLS if cell.row == "dark"]
    folder = tiny.folder_of(tmp_path, [*ROWS, evolve(ROWS[0], name="again")], [*CELLS, *twins])
    results = results_of([folder], tiny.experiment(metrics=(tiny.Bright(),)))
    assert len(looks) == len(CELLS)
    assert results.estimates["again", (64, 64), "bright"] == results.estimates["dark", (64, 64), "bright"]


@frozen(kw_only=True)
class Learned:
    """An eye with weights."""

    digest: str = field(repr=False)

    def look(self, shown):
        tiny.LOOKS.append(self.digest)
        return torch.full((1,), float(len(self.digest)))


@frozen(kw_only=True)
class OfLearned(tiny.Bright):
    extractor: Learned


def test_an_eye_with_other_weights_looks_again(folder, looks):
    for digest in ("old", "older", "old"):
        metric = OfLearned(extractor=Learned(digest=digest))
        results = results_of([folder], tiny.experiment(metrics=(metric,)))
        assert results.estimates["dark", (64, 64), "bright"].value == len(digest)
    assert repr(Learned(digest="old")) == repr(Learned(digest="older"))
    assert looks == ["old"] * len(CELLS) + ["older"] * len(CELLS)


def test_a_picture_above_pillows_limit_is_shown_and_a_strangers_is_not(folder, monkeypatch):
    loaded = load([folder], tiny.experiment())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    with pytest.raises(ConfigError, match="exceeds limit of 4094 pixels"):
        open_picture(str(loaded.file(CELLS[0])))
    assert shown_of(CELLS[0], loaded).picture.shape == (3, 64, 64)
    assert draw_sheets(gather_results(*seen_in([folder]), Silent()), folder / "sheets")
    assert Image.MAX_IMAGE_PIXELS == 64 * 64 // 2 - 1


def test_an_eye_must_see_one_shape_in_pictures_of_one_size(folder):
    @frozen(kw_only=True)
    class Fickle:
        def look(self, shown):
            return torch.zeros(2 if shown.prompt == "a fox 0" else 3)

    @frozen(kw_only=True)
    class Metric(tiny.Bright):
        extractor = Fickle()

    with pytest.raises(ShapeError, match="one shape in pictures of one size"):
        results_of([folder], tiny.experiment(metrics=(Metric(),)))


def test_one_pictures_numbers_are_written_as_their_columns_say(folder):
    @frozen(kw_only=True)
    class Each(tiny.Lights):
        extractor = property(lambda self: self)
        look = staticmethod(tiny.Halves(level=70).look)

    loaded, seen = seen_in([folder], tiny.experiment(metrics=(Each(), tiny.Spread())))  # of sets nothing is told
    dark, light = (metric_values(cell, loaded, seen) for cell in CELLS[-2:])
    assert dark == {"all": "75.0", "light": "75.0", "share": "1"}
    assert metric_values(CELLS[0], loaded, seen) == {"all": "60.0", "light": "-", "share": "0"}
    assert light["share"] == "1"


def test_an_empty_reference_set_is_refused(folder):
    with pytest.raises(ConfigError, match="has no picture of 64x64 to compare with"):
        seen_in([folder], evolve(tiny.experiment(), reference=tiny.Greys(levels=())))


def test_a_long_look_tells_how_long_it_takes_and_a_short_one_nothing(monkeypatch):
    now, file = 0.0, io.StringIO()
    monkeypatch.setattr(metering.time, "monotonic", lambda: now)
    with metering.Meter(Console(file=file, width=100), "picture", 100) as meter:
        for _ in range(100):
            now += 2.0
            meter.step()
    lines = file.getvalue().splitlines()
    assert lines[0] == "picture 3/100, about 3 min left"
    assert len(lines) < 12
    with metering.Meter(Console(file=file, width=100), "true picture", None) as meter:
        now += 9.0
        meter.step()
    assert file.getvalue().splitlines()[len(lines) :] == ["true picture 1"]


def test_costs_of_a_cell():
    values = costs_of(
        Outcome(cell="x", seconds=1.5, model_calls=40, critical_calls=20, predicted_calls=41, peak_bytes=3 * 2**20)
    )
    assert values.tolist() == [1.5, 40, 20, 41, 3]
    assert costs_of(Outcome(cell="x"))[4].isnan()


def test_differences_are_of_pairs_that_both_rows_have(tmp_path):
    """Row and baseline have different pictures; over their own pictures they differ by more than a pair does."""
    lost = {c.address for c in CELLS if (c.row == "dark" and c.pair == 3) or (c.row == "light" and c.pair == 0)}
    results = results_of([tiny.folder_of(tmp_path, ROWS, CELLS, {c.address for c in CELLS} - lost)])
    dark, light = (results.estimates[row, (64, 64), "bright"] for row in ("dark", "light"))
    assert light.value - dark.value == pytest.approx(15.0, abs=1e-4)
    difference = results.differences["light", (64, 64), "bright"]
    assert (dark.count, light.count, difference.count) == (3, 3, 2)
    assert difference.value == pytest.approx(10.0, abs=1e-4)
    (ranking,) = [each for each in results.rankings if each.column == "bright"]
    assert ranking.count == 2


def test_pictures_that_tell_an_eye_nothing_are_left_out(tmp_path):
    """Black ones are nan to this eye."""
    rows = [tiny.Row("dark", lambda pair, size: 0 if pair == 1 else 60), ROWS[1]]
    results = results_of([tiny.folder_of(tmp_path, rows, CELLS)])
    found = results.estimates["dark", (64, 64), "bright"]
    assert (found.value, found.count) == (pytest.approx(60.0, abs=1e-4), 3)
    assert results.estimates["dark", (64, 64), "seconds"].count == 4
    assert results.differences["light", (64, 64), "bright"].count == 3


def test_two_columns_of_one_name_and_an_unknown_baseline_are_refused(folder, looks):
    with pytest.raises(ValueError, match="column 'bright' is there twice"):
        tiny.experiment(metrics=(tiny.Bright(), tiny.Bright()))
    with pytest.raises(ConfigError, match="did you mean 'light'"):
        write_report(
            [folder],
            folder,
            ConsoleListener(Console(file=io.StringIO())),
            baseline="ligth",
            plots=False,
            experiment=tiny.experiment(),
        )
    assert not looks  # told before anything is looked at
    with pytest.raises(ConfigError, match="did you mean 'light'"):
        results_of([folder], baseline="ligth")
    assert ("dark", (64, 64), "bright") in results_of([folder], baseline="light").differences


def test_without_metrics_there_are_costs(folder, looks):
    results = results_of([folder], tiny.experiment(metrics=()))
    assert not looks
    assert [column.name for column in results.costs] == ["seconds", "calls"]
    assert results.estimates["dark", (64, 64), "calls"].value == 20
    assert results.rankings == ()


@frozen(kw_only=True)
class Odd(tiny.Spread):
    """The brightness of a picture or a set, from an extractor that may be odd, too; changed on its way out."""

    gathered: object = None
    seen: object = None
    columns: object = (Column(name="bright", lowest=0.0, highest=255.0),)

    @property
    def extractor(self):
        return self if self.seen is not None else tiny.FeatureExtractor()

    def look(self, shown):
        return self.seen(shown.picture.mean()[None])

    def gather(self, looked, reference):
        number = looked.mean().item()
        return (number,) if self.gathered is None else self.gathered(number)


def refused(folder, **experiment):
    """The message of a report that ends before a number or a picture of it is written."""
    with pytest.raises(ShapeError) as caught:
        write_report(results_of([folder], evolve(tiny.experiment(), **experiment)), folder)
    assert not list(folder.glob("*.html")) and not list(folder.glob("*.csv"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"seen": float}, "must have an extractor whose `look` returns a tensor of float32 on the cpu, got a float"),
        ({"seen": lambda t: None}, "got nothing"),
        ({"seen": torch.Tensor.double}, "got float64 (1,) on cpu"),
        ({"seen": lambda t: t.to("meta")}, "got float32 (1,) on meta"),
        ({"gathered": lambda x: x}, "must return a tuple of floats from `gather`, got a float"),
        ({"gathered": lambda x: (torch.tensor(x),)}, "must return a tuple of floats from `gather`, got float32"),
        ({"gathered": lambda x: (x, x)}, "must return a number for each of 1 columns from `gather`, got 2"),
        ({"gathered": lambda x: ()}, "must return a number for each of 1 columns from `gather`, got 0"),
        ({"gathered": lambda x: (-1.0,)}, "returned bright = -1, outside of [0, 255]"),
        ({"gathered": lambda x: (float("inf"),)}, "returned bright = inf, outside of [0, 255]"),
        ({"columns": ()}, "must have `columns` that are a tuple of one Column or more, got ()"),
    ],
)
def test_a_report_refuses_what_a_metric_may_not_return(folder, odd, told):
    """By the rules of ``vitrail.testing``, before numbers are written, and with the metric's name."""
    message = refused(folder, metrics=(Odd(**odd),))
    assert message.startswith("metric Odd ") and told in message, message


@frozen(kw_only=True)
class OddGreys(tiny.Greys):
    change: object = None
    text: object = "greys"

    @property
    def digest(self):
        return self.text

    def pictures(self, height, width):
        for shown in super().pictures(height, width):
            yield self.change(shown)


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"change": lambda s: s.picture}, "must yield a Shown with a picture from `pictures`, got float32"),
        ({"change": lambda s: None}, "must yield a Shown with a picture from `pictures`, got nothing"),
        (
            {"change": lambda s: evolve(s, picture=s.picture[..., 1:])},
            "of float32 (3, 64, 64), got float32 (3, 64, 63)",
        ),
        ({"change": lambda s: evolve(s, picture=s.picture.double())}, "of float32 (3, 64, 64), got float64"),
        ({"change": lambda s: evolve(s, picture=s.picture * 255)}, "must yield pictures in [0, 1], got 12288 other"),
        ({"text": ""}, "must have a `digest`, a text that stands for the pictures, got ''"),
    ],
)
def test_a_report_refuses_what_a_reference_set_may_not_yield(folder, odd, told):
    message = refused(folder, metrics=(tiny.Spread(),), reference=OddGreys(**odd))
    assert message.startswith("reference OddGreys must ") and told in message, message


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("extract", torch.Tensor.double, "must return float32 (1, dim) from `extract`, got float64"),
        ("extract", lambda t: t[0], "must return float32 (1, dim) from `extract`, got float32 (3,)"),
        ("probabilities", lambda t: t, "must return probabilities from 0 on that add up to 1"),
    ],
)
def test_a_report_refuses_what_features_may_not_return(folder, kind, change, told):
    @frozen(kw_only=True)
    class OddFeatures:
        def extract(self, pictures):
            return change(pictures.mean((2, 3)))

        def probabilities(self, pictures):
            return change(pictures.mean((2, 3)))

    @frozen(kw_only=True)
    class OfFeatures(tiny.Bright):
        extractor = CropFeatures(features=OddFeatures(), crops=0, crop_size=0, seed=0, kind=kind)

    with pytest.raises(ShapeError) as caught:
        seen_in([folder], tiny.experiment(metrics=(OfFeatures(),)))
    assert str(caught.value).startswith("feature OddFeatures must ") and told in str(caught.value)
    assert caught.value.__notes__ == ["raised by metric OfFeatures"]


def test_an_exception_of_a_metric_or_a_reference_set_says_whose_it_is(folder):
    def fail(answer):
        raise KeyError("mine")

    for changed, whose in (
        ({"metrics": (Odd(seen=fail),)}, "metric Odd"),
        ({"metrics": (Odd(gathered=fail),)}, "metric Odd"),
        ({"metrics": (tiny.Spread(),), "reference": OddGreys(change=fail)}, "reference OddGreys"),
    ):
        with pytest.raises(KeyError, match="mine") as caught:
            results_of([folder], evolve(tiny.experiment(), **changed))
        assert caught.value.__notes__ == [f"raised by {whose}"]
