"""``vitrail timeline``: traces as a figure with ranks as rows, steps as blocks, one panel per run, one time axis.

The schematic of ASGDiffusion (Li et al., 2024, https://arxiv.org/abs/2412.06163), fig. 4, from recorded traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.cli.console import console, say
from vitrail.comm.trace.chrome import recorders_of
from vitrail.comm.trace.summary import Summary, summarize, union
from vitrail.core.config.atomic import replacing
from vitrail.core.config.paths import expanded
from vitrail.core.config.text_files import LARGEST_RECORD, read_json
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vitrail.comm.trace.recording import Recorder, TraceSpan

MOST_TRACES, MOST_RANKS = 64, 1024  # maximum number of traces and of their ranks in one figure
STAGE_COLOURS = (("#3b6fb6", "#7ea6da"), ("#d9822b", "#f0b878"), ("#4d9a57", "#93c79a"))  # of even and odd steps
OTHER = "#8a8f98"  # computation outside of steps
WAIT_FACE, WAIT_EDGE = "#f3f1ee", "#c4beb4"
ARROW = "#b3123b"
INK = "#26292e"  # on light blocks
BAR, LANE = 0.62, 1.0  # height of a block and of a rank's row, in rows
MOST_NUMBERS = 40  # number of steps up to which blocks are numbered
MOST_ARROWS, MOST_BOLD = 2000, 80  # maximum number of arrows, and up to which they are drawn bold
CONTROL = "stop"  # name of the control channel, whose messages are not drawn
DPI = 120
WIDTH, PANEL, ROW = 11.0, 0.85, 0.34  # inches: width of the figure, height of an empty panel and of a row


def timeline(
    traces: Annotated[list[Path], typer.Argument(help="Files that `vitrail sample --trace` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file.")] = Path("timeline.png"),
    label: Annotated[list[str] | None, typer.Option(help="What to call each trace; its name if not given.")] = None,
) -> None:
    """Draw what every rank did when, one trace above the other."""
    draw_timeline(traces, label or [], output)


def draw_timeline(traces: Sequence[Path], labels: Sequence[str], output: Path) -> None:
    """Draw traces as one figure and print its path.

    Args:
        traces: Files of ``vitrail sample --trace``.
        labels: A title for each trace; () for the files' names.
        output: PNG, SVG or PDF file.

    Raises:
        ConfigError: If labels and traces do not match, there are too many traces, a file is not a trace, the output
            cannot be written there, or matplotlib is missing.
    """
    if labels and len(labels) != len(traces):
        raise ConfigError(f"--label: {len(labels)} labels for {len(traces)} traces; give one for each, or none")
    if len(traces) > MOST_TRACES:
        raise ConfigError(f"{len(traces)} traces are more than {MOST_TRACES}, the most of one figure")
    traces, output = [expanded(path) for path in traces], expanded(output)
    draw(traces, labels or [path.stem for path in traces], output)
    say(console(), f"{output}: {len(traces)} trace{'s' * (len(traces) > 1)}")


def draw(paths: Sequence[Path], labels: Sequence[str], out: Path) -> None:
    """Draw traces in panels below each other with a common time axis.

    Args:
        paths: Chrome traces of Vitrail runs.
        labels: A title for each trace.
        out: PNG, SVG or PDF file, by its suffix; written atomically.

    Raises:
        ConfigError: If a file is not such a trace, labels and files do not match, or matplotlib is missing.
    """
    if not paths or len(paths) != len(labels):
        raise ConfigError(f"a timeline needs one label for each trace, got {len(paths)} traces, {len(labels)} labels")
    _check_target(out)
    runs = [read_trace(path) for path in paths]
    if (count := sum(map(len, runs))) > MOST_RANKS:
        raise ConfigError(f"{count} ranks are more than {MOST_RANKS}, the most of one figure")
    summaries = [summarize(recorders) for recorders in runs]
    figure, panels = _panels([len(recorders) for recorders in runs])
    longest = max(summary.makespan_s for summary in summaries)
    for panel, recorders, summary, label in zip(panels, runs, summaries, labels, strict=True):
        _draw_run(panel, recorders, longest)
        _write_beside(panel, summary, label)
        panel.set_xlim(0, longest * 1.002)
    panels[-1].set_xlabel("seconds")
    _legend(figure, runs)
    metadata = {"Software": None} if out.suffix == ".png" else {}
    with replacing(out) as part:
        figure.savefig(part, dpi=DPI, bbox_inches="tight", metadata=metadata)


def read_trace(path: Path) -> list[Recorder]:
    """Read a file of ``vitrail sample --trace``: one recorder per rank.

    Raises:
        ConfigError: If the file is missing or is not such a trace.
    """
    return recorders_of(read_json(path, LARGEST_RECORD), path)


def _check_target(out: Path) -> None:
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"{out}: a timeline is drawn as .png, .svg or .pdf, got {out.suffix or 'no suffix'!r}")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}")


def _panels(ranks: Sequence[int]) -> tuple[Any, list[Axes]]:
    """Create a figure without a window, with one panel per trace for its number of ranks."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a timeline needs matplotlib, which is not installed; pip install 'vitrail[plot]'") from error
    heights = [PANEL + ROW * count for count in ranks]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(ranks), 1, sharex=True, squeeze=False, height_ratios=heights)
    return figure, [row[0] for row in grid]


def _draw_run(panel: Axes, recorders: Sequence[Recorder], longest: float) -> None:
    """Draw the blocks, waits and arrows of one run."""
    steps = {span.args["step"] for r in recorders for span in r.spans if "step" in span.args}
    for row, recorder in enumerate(recorders):
        waits = union((s.begin, s.end) for s in recorder.spans if s.lane == "wait" and s.end > s.begin)
        style: dict[str, Any] = {"facecolor": WAIT_FACE, "edgecolor": WAIT_EDGE, "hatch": "////", "linewidth": 0.4}
        panel.broken_barh([(a, b - a) for a, b in waits], (row - 0.4 * BAR, 0.8 * BAR), zorder=1, **style)
        computing = [span for span in recorder.spans if span.lane == "compute"]
        blocks = [(span.begin, span.end - span.begin) for span in computing]
        style = {"facecolors": [_colour(span) for span in computing], "edgecolor": "white"}
        thin = 0.4 if len(steps) <= MOST_NUMBERS else 0.15
        panel.broken_barh(blocks, (row - 0.5 * BAR, BAR), linewidth=thin, zorder=2, **style)
        if len(steps) <= MOST_NUMBERS:
            _number_steps(panel, row, computing, longest)
    _draw_messages(panel, recorders)
    panel.set_yticks(range(len(recorders)), [f"rank {recorder.rank}" for recorder in recorders])
    panel.set_ylim(len(recorders) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.grid(axis="x", color="#e7e5e1", linewidth=0.6)
    panel.set_axisbelow(True)


def _colour(span: TraceSpan) -> str:
    """Colour of a block: by stage, lighter for odd steps."""
    if "step" not in span.args:
        return OTHER
    return STAGE_COLOURS[span.args.get("stage", 0) % len(STAGE_COLOURS)][span.args["step"] % 2]


def _number_steps(panel: Axes, row: int, computing: Sequence[TraceSpan], longest: float) -> None:
    """Write each step's number in the centre of a rank's blocks, where it fits."""
    by_step: dict[int, list[TraceSpan]] = {}
    for span in computing:
        if "step" in span.args:
            by_step.setdefault(span.args["step"], []).append(span)
    for step, spans in by_step.items():
        begin, end = spans[0].begin, spans[-1].end
        if end - begin > 0.012 * longest:
            colour = INK if step % 2 else "white"
            style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": colour, "zorder": 4}
            panel.text((begin + end) / 2, row, str(step), **style)


def _draw_messages(panel: Axes, recorders: Sequence[Recorder]) -> None:
    """Draw arrows from publishing a version to reading it on other ranks."""
    published = {(f.channel, f.version): (row, f.time) for row, f in _flows(recorders, "s")}
    arrows = [(row, flow) for row, flow in _flows(recorders, "f") if (flow.channel, flow.version) in published]
    few = len(arrows) <= MOST_BOLD
    looks: dict[str, Any] = {"lw": 0.7, "mutation_scale": 6} if few else {"lw": 0.25, "mutation_scale": 3, "alpha": 0.7}
    for row, flow in arrows[:MOST_ARROWS]:
        source, sent = published[flow.channel, flow.version]
        if source == row:
            continue
        side = BAR / 2 if row > source else -BAR / 2
        panel.annotate(
            "", (flow.time, row - side), (sent, source + side),
            arrowprops={"arrowstyle": "->", "color": ARROW, "shrinkA": 0, "shrinkB": 0, **looks},
            zorder=5,
        )  # fmt: skip


def _flows(recorders: Sequence[Recorder], end: str) -> list[tuple[int, Any]]:
    rows = enumerate(recorders)
    return [(row, f) for row, recorder in rows for f in recorder.flows if f.end == end and f.channel != CONTROL]


def _write_beside(panel: Axes, summary: Summary, label: str) -> None:
    """Write the run's title above and its summary at the right of the panel."""
    panel.set_title(label, loc="left", fontsize=10, fontweight="bold")
    text = (
        f"makespan {summary.makespan_s:.3g} s\n"
        f"exposed communication\n{summary.mean_exposed_s:.3g} s ({summary.exposed_share:.1%})\n"
        f"computing {sum(summary.busy_share) / len(summary.busy_share):.0%}"
    )
    panel.text(1.01, 0.5, text, transform=panel.transAxes, fontsize=8, va="center", linespacing=1.4)


def _legend(figure: Any, runs: Sequence[Sequence[Recorder]]) -> None:
    """Add a legend below the panels with the kinds of marks that occur."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    spans = [span for recorders in runs for recorder in recorders for span in recorder.spans]
    stages = sorted({span.args.get("stage", 0) for span in spans if "step" in span.args})
    handles: list[Any] = [
        Patch(facecolor=STAGE_COLOURS[s % len(STAGE_COLOURS)][0], label=f"forwards of stage {s} (lighter: odd steps)")
        for s in stages
    ]
    if any(span.lane == "compute" and "step" not in span.args for span in spans):
        handles.append(Patch(facecolor=OTHER, label="other computing"))
    handles.append(Patch(facecolor=WAIT_FACE, edgecolor=WAIT_EDGE, hatch="////", label="waiting"))
    if any(_flows(recorders, "f") for recorders in runs):
        handles.append(Line2D([], [], color=ARROW, lw=0.9, label="message of the key view, published to read"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
