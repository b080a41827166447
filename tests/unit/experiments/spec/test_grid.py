"""Laws of an experiment's cells: addresses, pairs, order and shares."""

import json

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.errors import ConfigError
from vitrail.experiments.run.execution import Shard
from vitrail.experiments.spec.cells import Model, cells_of
from vitrail.experiments.spec.experiment_file import structure

MODEL = Model(native_size=64, defaults={"guidance_scale": 2.0}, fingerprint="f")
BASE = {"prompts": ["a fox", "a cat"], "sizes": ["128", {"size": "3x", "pictures": 1}], "methods": ["direct", "asg"]}
SCALE = {"name": "scale", "values": [0.5, 2.0], "set": ["stages.0.guidance.0.scale={value}"], "methods": ["asg"]}
MASK = {
    "name": "mask",
    "settings": [{"name": "mask"}, {"name": "no mask", "set": ["stages.0.masking=none"]}],
    "methods": ["asg"],
}

COMMS = ("gloo", "in-process")


def cells(folder, model=MODEL, **table):
    return cells_of(structure({**BASE, **table}, "test"), model, folder)


def addresses(folder, **table):
    return {cell.address for cell in cells(folder, **table)}


def test_the_grid_is_complete(tmp_path):
    found = cells(tmp_path, axes=[SCALE, MASK], ranks=[1, 2])
    rows = {"direct", *(f"asg, scale {w}, {mask}" for w in ("0.5", "2.0") for mask in ("mask", "no mask"))}
    told = {(c.row, c.size, c.pair, c.ranks) for c in found}
    both = {1: "1 rank", 2: "2 ranks"}
    sizes = [((128, 128), 0), ((128, 128), 1), ((192, 192), 0)]
    assert told == {(f"{r}, {both[n]}", size, pair, n) for r in rows for size, pair in sizes for n in both}
    assert len({c.address for c in found}) == len(found)


def test_equal_pairs_have_equal_prompts_and_seeds_in_every_row(tmp_path):
    by_pair = {}
    for cell in cells(tmp_path, axes=[SCALE], repeats=3):
        by_pair.setdefault(cell.pair, set()).add((cell.run["prompt"], cell.run["seed"]))
    assert all(len(each) == 1 for each in by_pair.values())
    assert len({seed for each in by_pair.values() for _, seed in each}) == 6  # no seed twice


def test_given_seeds_are_for_every_prompt(tmp_path):
    found = {(c.run["prompt"], c.run["seed"]) for c in cells(tmp_path, seeds=[7, 3])}
    assert found == {(prompt, seed) for prompt in BASE["prompts"] for seed in (7, 3)}


def test_an_address_depends_on_pixels_alone(tmp_path):
    here = addresses(tmp_path)
    renamed = ["direct", {"method": "asg", "label": "another name"}]
    assert addresses(tmp_path, methods=renamed, title="other", resamples=3) == here
    assert addresses(tmp_path, metrics=["objects"]) == here
    assert addresses(tmp_path, run={"revision": "a branch", "model_config": "a/folder"}) == here
    for change in (
        {"run": {"num_inference_steps": 3}},
        {"run": {"scheduler": "DDIMScheduler"}},
        {"prompts": ["a dog", "a pig"]},
        {"seeds": [100]},
    ):
        assert not addresses(tmp_path, **change) & here
    other = {c.address for c in cells(tmp_path, model=evolve(MODEL, fingerprint="g"))}
    assert not other & here


def test_who_shares_the_work_counts_where_it_is_shared(tmp_path):
    """It changes no pixel but every time."""
    gloo, threads = ({c.ranks: c.address for c in cells(tmp_path, ranks=[1, 2], comm=name)} for name in COMMS)
    assert gloo[1] == threads[1]
    assert len({*gloo.values(), *threads.values()}) == 3


def test_a_picture_to_start_from_counts_by_what_it_shows(tmp_path):
    first, same, other = (tmp_path / f"{name}.png" for name in ("first", "same", "other"))
    for path, colour in ((first, "red"), (same, "red"), (other, "blue")):
        Image.new("RGB", (8, 8), colour).save(path)
    here, there, elsewhere = (addresses(tmp_path, run={"image": str(path)}) for path in (first, same, other))
    assert here == there
    assert not here & elsewhere


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"sizes": ["2x", "128"]}, "row 'direct' is there twice at 128x128 pixels"),
        ({"seeds": [3, 3]}, "prompt 'a fox' is there twice with seed 3"),
        ({"seeds": [3], "prompts": ["a fox", "a fox"]}, "prompt 'a fox' is there twice with seed 3"),
    ],
)
def test_what_would_count_twice_is_refused(tmp_path, table, told):
    with pytest.raises(ConfigError, match=told):
        cells(tmp_path, **table)


def test_a_default_that_is_spelt_out_changes_nothing(tmp_path):
    spelt = {"method": "asg", "label": "asg", "set": ["stages.0.guidance.0.scale=1.0"]}
    assert addresses(tmp_path, methods=["direct", spelt]) == addresses(tmp_path)


def test_rows_that_mean_the_same_share_their_pictures(tmp_path):
    spelt = {"method": "asg", "label": "spelt out", "set": ["stages.0.guidance.0.scale=1.0"]}
    found = cells(tmp_path, methods=["asg", spelt])
    rows = {row: [c.address for c in found if c.row == row] for row in ("asg", "spelt out")}
    assert rows["asg"] == rows["spelt out"]
    assert len(rows["asg"]) == len(set(rows["asg"])) == 3


def test_an_extended_experiment_keeps_its_cells(tmp_path):
    before = addresses(tmp_path)
    assert before < addresses(tmp_path, methods=["direct", "asg", "multidiffusion"])
    assert before < addresses(tmp_path, prompts=[*BASE["prompts"], "a pig"], sizes=["128", "192"])
    twice = addresses(tmp_path, repeats=2)
    assert before < twice < addresses(tmp_path, repeats=3, prompts=[*BASE["prompts"], "a pig"])


@given(st.integers(1, 6), st.integers(1, 5))
def test_shards_share_every_cell_out(tmp_path_factory, count, repeats):
    found = cells(tmp_path_factory.getbasetemp(), repeats=repeats)
    shares = [[c.address for c in found if Shard(i, count).has(c)] for i in range(count)]
    assert sorted(a for share in shares for a in share) == sorted(c.address for c in found)


def test_half_of_the_order_is_a_balanced_table(tmp_path):
    sizes = [{"size": "64", "pictures": 12}, {"size": "128", "pictures": 6}]
    found = cells(tmp_path, repeats=6, sizes=sizes)
    half = found[: len(found) // 2]
    counts = {size: sum(c.size == size for c in half) for size in ((64, 64), (128, 128))}
    assert abs(counts[64, 64] - 2 * counts[128, 128]) <= 4
    assert {c.row for c in half} == {"direct", "asg"}


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "1/0"])
def test_no_shard(text):
    with pytest.raises(ConfigError, match="i/n"):
        Shard.read(text)


def test_wrong_overrides_are_told_with_their_row(tmp_path):
    wrong = {**SCALE, "set": ["stages.0.guidance.0.scal={value}"]}
    with pytest.raises(ConfigError, match="has no key 'scal'"):
        cells(tmp_path, axes=[wrong])


def test_scenes_name_objects_of_the_demo_model(tmp_path):
    table = {name: value for name, value in BASE.items() if name != "prompts"}
    found = cells_of(structure({**table, "scenes": 5}, "test"), MODEL, tmp_path)
    assert len({c.run["prompt"] for c in found}) == 5


def test_a_cell_is_plain_data(tmp_path):
    import attrs

    for cell in cells(tmp_path, axes=[SCALE]):
        assert type(cell)(**json.loads(json.dumps(attrs.asdict(cell)))) == cell
