"""Predict speed-ups of several ranks by a cost model, beside ideal ones, and the benefit of asynchronous guidance.

Usage: python tools/predict_speedups.py --out docs/results/speedups.md

Nothing here is measured on a GPU; the page lists the assumed numbers. Takes less than a minute.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import attrs
import typer
from rich.console import Console

from simulated_load import simulate
from speedup_plots import draw_async, draw_speedups
from speedups_page import PAGE
from vitrail.cli.timeline import draw
from vitrail.comm.trace.chrome import trace_text
from vitrail.comm.trace.cost_model import CostModel
from vitrail.comm.trace.speedup_model import RunLoad, StageLoad, predict

STEPS = 25  # of each stage
PAIR_S = 0.0985  # forward of two rows: CutDiffusion's total 2048x2048 time on an RTX 4090 over its 325 pairs
LAUNCH = 0.1  # share of it that does not depend on the number of rows: between 0 and 0.34, that of an A100
TILE_S, SERIAL_S = 0.15, 1.0  # decoding of a tile; prompt, start and saving; both assumed
TILE_BYTES = 3 * 1024 * 1024  # of a tile in 8-bit colour
RANKS = (2, 4, 8)
SIZES = {"1024x2048": (2, 3, 6), "2048x2048": (4, 9, 9), "3072x3072": (9, 25, 16), "4096x4096": (16, 49, 36)}
GRIDS = {"1024x2048": (1, 3), "2048x2048": (3, 3), "3072x3072": (5, 5), "4096x4096": (7, 7)}  # of the windows
PAPER = {"1024x2048": (18, 10), "2048x2048": (40, 14), "3072x3072": (132, 59.4), "4096x4096": (294, 105)}
DATAFLOW = {  # ideal speed-ups by list scheduling of windows that wait for their neighbours only
    "1024x2048": (2.00, 3.97, 5.00),
    "2048x2048": (2.00, 3.99, 7.93),
    "3072x3072": (2.00, 3.88, 7.33),
    "4096x4096": (2.00, 4.00, 7.99),
}
LINKS = {  # latency in seconds, bandwidth in bytes per second
    "PCIe": (5e-5, 12e9),
    "10 Gbit Ethernet": (1e-4, 1.1e9),
    "1 Gbit Ethernet": (2e-4, 1.1e8),
    "slow, 100 Mbit": (3e-2, 1.1e7),
}
MODES = {"gather": ("gather", 1), "channel, lag 0": ("channel", 0), "channel, lag 1": ("channel", 1)}
LATENCIES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
JITTERS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
SEEDS = range(20)
FLOW_CASES = (  # size, ranks, rows of a forward
    ("2048x2048", 4, 2),
    ("2048x2048", 8, 2),
    ("2048x2048", 8, 1),
    ("4096x4096", 4, 2),
    ("4096x4096", 8, 2),
    ("4096x4096", 16, 2),
)
ASYNC_CASES = (("2048x2048", 4), ("4096x4096", 4), ("4096x4096", 8))


def model(link: str = "PCIe", **changes: float) -> CostModel:
    """Return the cost model of a link, with other settings of ``CostModel`` in ``changes``."""
    latency, bandwidth = LINKS[link]
    settings = {"mask_share": 0.05, "tile_s": TILE_S, "serial_s": SERIAL_S, "latency_s": latency}
    return CostModel.of_pair(PAIR_S, LAUNCH, bandwidth=bandwidth, **(settings | changes))


def load(size: str, row_batch: int = 2, mode: str = "gather", flows: bool = False) -> RunLoad:
    """Return the load of a whole run.

    Args:
        size: One of ``SIZES``.
        row_batch: Rows of a micro-batch.
        mode: Exchange of the first stage, one of ``MODES``.
        flows: Whether the windows are exchanged without a barrier.
    """
    structure, _, tiles = SIZES[size]
    exchange, lag = MODES[mode]
    first = StageLoad(steps=STEPS, views=structure, masked="key", exchange=exchange, lag=lag)
    stages = (first, window_stage(size, flows))
    return RunLoad(stages=stages, row_batch=row_batch, tiles=tiles, tile_bytes=TILE_BYTES)


def window_stage(size: str, flows: bool) -> StageLoad:
    """Return the load of the window stage, with or without a barrier at every step."""
    exchange: Literal["gather", "dataflow"] = "dataflow" if flows else "gather"
    return StageLoad(steps=STEPS, views=SIZES[size][1], grid=GRIDS[size], exchange=exchange)


def ideal(size: str, ranks: int, parts: int) -> float:
    """Compute the ideal speed-up of equal units with a barrier at each step.

    Args:
        size: One of ``SIZES``.
        ranks: Number of ranks.
        parts: Units per view: 1 for whole views, 2 for guidance branches.
    """
    structure, windows, _ = SIZES[size]
    turns = sum(math.ceil(parts * views / ranks) for views in (structure, windows)) / parts
    return (structure + windows) / turns


def speedup_rows() -> list[dict[str, float | str]]:
    """Return one row per size and number of ranks."""
    rows: list[dict[str, float | str]] = []
    cost = model()
    for size in SIZES:
        alone = predict(load(size), cost, 1).makespan_s
        for number, ranks in enumerate(RANKS):
            by_batch = {batch: predict(load(size, batch), cost, ranks).makespan_s for batch in (2, 1)}
            flowing = min(predict(load(size, b, flows=True), cost, ranks).makespan_s for b in (2, 1))
            paper = PAPER[size][0] / PAPER[size][1] if ranks == 4 else math.nan
            rows.append(
                {
                    "size": size,
                    "ranks": ranks,
                    "ideal view": ideal(size, ranks, 1),
                    "ideal branch": ideal(size, ranks, 2),
                    "ideal dataflow": DATAFLOW[size][number],
                    "views": alone / by_batch[2],
                    "branches": alone / by_batch[1],
                    "dataflow": alone / flowing,
                    "seconds": min(flowing, *by_batch.values()),
                    "paper": paper,
                    "paper seconds": PAPER[size][1] if ranks == 4 else math.nan,
                }
            )
    return rows


def flow_rows() -> list[list[str]]:
    """Return rows of the window stage alone, with and without a barrier, on equal ranks and with one of half speed."""
    rows = []
    for size, ranks, row_batch in FLOW_CASES:
        for slow, jitter in ((1.0, 0.0), (0.5, 0.0), (1.0, 0.2)):
            speeds = (1.0,) * (ranks - 1) + (slow,)
            seeds = SEEDS if jitter else (0,)
            times = {}
            for flows in (False, True):
                only = RunLoad(stages=(window_stage(size, flows),), row_batch=row_batch)
                models = [model(speeds=speeds, jitter=jitter, seed=seed, serial_s=0.0) for seed in seeds]
                times[flows] = sum(predict(only, each, ranks).makespan_s for each in models) / len(models)
            alone = {
                b: predict(RunLoad(stages=(window_stage(size, True),), row_batch=b), model(serial_s=0.0), 1).makespan_s
                for b in (2, row_batch)
            }
            what = "one at half speed" if slow < 1 else f"jitter {jitter:.0%}" if jitter else "equal"
            own = alone[row_batch] / times[True]
            rows.append([size, str(ranks), str(row_batch), what, f"{alone[2] / times[False]:.2f}"])
            rows[-1] += [f"{alone[2] / times[True]:.2f}", f"{own:.2f}", f"{own / sum(speeds):.1%}"]
    return rows


def many_rows() -> list[list[str]]:
    """Return rows of 4096x4096 on up to more ranks than it has rows of work."""
    cost, rows = model(), []
    alone = predict(load("4096x4096"), cost, 1).makespan_s
    for ranks in (1, 8, 16, 32, 64, 128, 1024):
        runs = (predict(load("4096x4096", b, flows=flows), cost, ranks) for b in (1, 2) for flows in (False, True))
        best = min(runs, key=lambda f: f.makespan_s)
        rows.append([str(ranks), f"{best.makespan_s:.1f}", f"{alone / best.makespan_s:.2f}", f"{best.busy_share:.0%}"])
    return rows


def structure_s(size: str, ranks: int, mode: str, cost: CostModel, max_staleness: int = 1) -> float:
    """Predict the seconds of the structure stage, the mean over seeds if there is jitter.

    Args:
        size: One of ``SIZES``.
        ranks: Number of ranks.
        mode: Exchange of the stage, one of ``MODES``.
        cost: The cost model.
        max_staleness: Bound of the channel in versions.
    """
    only = RunLoad(stages=(attrs.evolve(load(size, mode=mode).stages[0], max_staleness=max_staleness),))
    models = [attrs.evolve(cost, seed=seed, serial_s=0.0) for seed in SEEDS] if cost.jitter else [cost]
    return sum(predict(only, each, ranks).makespan_s - each.serial_s for each in models) / len(models)


def sweep(size: str, ranks: int, option: str) -> dict[str, list[float]]:
    """Predict the structure stage's seconds by mode of exchange.

    Args:
        size: One of ``SIZES``.
        ranks: Number of ranks.
        option: "latency_s" or "jitter", the setting to vary.
    """
    values = LATENCIES if option == "latency_s" else JITTERS
    return {mode: [structure_s(size, ranks, mode, model(**{option: x})) for x in values] for mode in MODES}


def whole_runs() -> list[dict[str, float | str]]:
    """Predict the seconds of whole runs by link and jitter, and the savings of each mode over gathering."""
    runs: list[dict[str, float | str]] = []
    for size, ranks in ASYNC_CASES:
        for link in LINKS:
            for jitter in (0.0, 0.2):
                models = [model(link, jitter=jitter, seed=seed) for seed in (SEEDS if jitter else (0,))]
                run: dict[str, float | str] = {"size": size, "ranks": ranks, "link": link, "jitter": jitter}
                for mode in MODES:
                    spent = [predict(load(size, mode=mode), each, ranks).makespan_s for each in models]
                    run[mode] = sum(spent) / len(spent)
                runs.append(run | {f"saves {m}": round(1 - run[m] / run["gather"], 3) + 0.0 for m in MODES})
    return runs


def whole_rows(runs: list[dict]) -> list[list[str]]:
    """Format the whole runs as rows of a table."""
    names = [f"saves {mode}" for mode in MODES if mode != "gather"]
    return [
        [run["size"], str(run["ranks"]), run["link"], f"{run['jitter']:.0%}"]
        + [f"{run[mode]:.2f}" for mode in MODES]
        + [f"{run[name]:.1%}" for name in names]
        for run in runs
    ]


def findings(runs: list[dict], sweeps: dict) -> dict[str, str]:
    """Return the numbers that the page's text quotes."""
    one, zero = "saves channel, lag 1", "saves channel, lag 0"
    calm = [run for run in runs if run["link"] in ("PCIe", "10 Gbit Ethernet") and not run["jitter"]]
    rough = [run for run in runs if run["link"] == "PCIe" and run["jitter"]]
    slow = [run for run in runs if run["link"] == "slow, 100 Mbit"]
    small = sweeps[ASYNC_CASES[0]]
    late = {mode: small["latency_s"][mode][LATENCIES.index(0.3)] for mode in MODES}
    shaky = {mode: small["jitter"][mode][JITTERS.index(0.3)] for mode in MODES}
    deep = structure_s(*ASYNC_CASES[0], "channel, lag 0", model(latency_s=0.3), max_staleness=4)
    return {
        "deep": f"{1 - deep / late['channel, lag 0']:.0%}",
        "calm": f"{max(run[one] for run in calm):.1%}",
        "rough": f"{min(run[one] for run in rough):.1%} to {max(run[one] for run in rough):.1%}",
        "slow": f"{min(run[one] for run in slow):.0%} to {max(run[one] for run in slow):.0%}",
        "lag": f"{max(run[one] - run[zero] for run in runs):.1%}",
        "late": f"{1 - late['channel, lag 1'] / late['channel, lag 0']:.0%}",
        "shaky": f"{1 - shaky['channel, lag 1'] / shaky['channel, lag 0']:.1%}",
        "shaky_channel": f"{1 - shaky['channel, lag 0'] / shaky['gather']:.0%}",
    }


def example(folder: Path, out: Path) -> None:
    """Draw the timeline of two simulated runs, a synchronous and an asynchronous one; ``folder`` takes the traces."""
    cost = model(latency_s=0.02, jitter=0.2, tile_s=0.0, serial_s=0.0)
    paths = []
    for mode in ("gather", "channel, lag 1"):
        structure, windows = load("2048x2048", mode=mode).stages
        stages = (attrs.evolve(structure, steps=8), attrs.evolve(windows, steps=3))
        outcome = simulate(RunLoad(stages=stages), cost, 4)
        paths.append(folder / f"{mode[:6]}.json")
        paths[-1].write_text(trace_text(outcome.traces), encoding="utf-8")
    titles = ("synchronous: predictions gathered at every step", "asynchronous: the key view's message of step t - 1")
    draw(paths, titles, out)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def main(out: Annotated[Path, typer.Option(help="Markdown file.")] = Path("docs/results/speedups.md")) -> None:
    """Predict all numbers, draw the plots and write the page."""
    console = Console(width=200)
    rows = speedup_rows()
    head = ["size", "ranks", *(f"ideal, {x}" for x in ("views", "branches", "dataflow")), "predicted, views"]
    head += ["predicted, branches", "predicted, dataflow", "predicted, s", "paper", "paper, s"]
    flow_head = ["size", "ranks", "rows a forward", "ranks are", "barrier", "dataflow", "dataflow, same micro-batches"]
    flow_head += ["of the speeds' sum"]
    body = [[cell(row[name]) for name in row] for row in rows]
    sweeps = {(size, n): {o: sweep(size, n, o) for o in ("latency_s", "jitter")} for size, n in ASYNC_CASES}
    runs = whole_runs()
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_speedups(rows, out.with_name("speedups.png"))
    draw_async(sweeps, LATENCIES, JITTERS, out.with_name("speedups-async.png"))
    with tempfile.TemporaryDirectory() as folder:
        example(Path(folder), out.with_name("speedups-timeline.png"))
    whole_head = ["size", "ranks", "link", "jitter", *(f"{mode}, s" for mode in MODES), "lag 0 saves", "lag 1 saves"]
    page = PAGE.format(
        speedups=table(head, body),
        flows=table(flow_head, flow_rows()),
        many=table(["ranks", "s", "speed-up", "computing"], many_rows()),
        structure=table(["size", "ranks", "case", *(f"{mode}, s" for mode in MODES)], structure_rows(sweeps)),
        whole=table(whole_head, whole_rows(runs)),
        links=",\n  ".join(f"{name} ({1000 * lat:g} ms, {rate / 1e9:g} GB/s)" for name, (lat, rate) in LINKS.items()),
        seeds=len(SEEDS),
        **{"q": f"{1000 * PAIR_S:g}", "launch": f"{LAUNCH:.0%}", "tile": TILE_S, "serial": SERIAL_S},
        **findings(runs, sweeps),
    )
    out.write_text(page)
    console.print(page, markup=False)


def cell(value: float | str) -> str:
    """Format a cell of the table."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.2f}"
    return str(value)


def structure_rows(sweeps: dict) -> list[list[str]]:
    """Return rows of the structure stage at a few points of the sweeps."""
    rows = []
    for (size, ranks), by_option in sweeps.items():
        for option, values, shown in (("latency_s", LATENCIES, (0.0, 0.01, 0.1)), ("jitter", JITTERS, (0.1, 0.3))):
            for value in shown:
                at = values.index(value)
                what = f"latency {1000 * value:g} ms" if option == "latency_s" else f"jitter {value:.0%}"
                rows.append([size, str(ranks), what, *(f"{by_option[option][mode][at]:.2f}" for mode in MODES)])
    return rows


if __name__ == "__main__":
    typer.run(main)
