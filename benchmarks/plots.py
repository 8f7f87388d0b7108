"""Draw the newest raw numbers of each long measurement into docs/plots/.

python -m benchmarks.plots
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from benchmarks import copies, shapes, turns
from benchmarks.report import PLOTS, Results, newest

GREY, FAINT = "#57606a", "#d0d7de"
# The colour-blind can distinguish them too; ours stands out.
COLOURS = {
    shapes.OURS: "#0969da",
    "one door": "#56b4e9",
    "kept alive": "#009e73",
    "starter, delete_room_on_close": "#e69f00",
    "starter": "#d55e00",
    "copied cure": "#8c8c8c",
}
# A and B
WORKERS = ["#0969da", "#e69f00"]
# states of the stores: colour, and the samples by panel
STATES: dict[str, tuple[str, dict[str, dict[str, object]]]] = {
    "stores healthy": (
        "#0969da",
        {"turns": {"stores": turns.HEALTHY}, "greetings": {"stores": turns.HEALTHY}},
    ),
    "stalled: first turn, or before the call": (
        "#e69f00",
        {"turns": {"stores": turns.STALLED, "turn": 0}, "greetings": {"stores": turns.STALLED}},
    ),
    "stalled: next turn": ("#f6d58e", {"turns": {"stores": turns.STALLED, "turn": 1}}),
}
INGESTS = {"first": "#0969da", "one changed": "#56b4e9", "unchanged": "#e69f00"}
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": FAINT,
    "legend.frameon": False,
    "figure.dpi": 110,
}


def caption(figure: Figure, results: Results) -> None:
    """Write the source of the numbers below the plot."""
    about = results["machine"]
    names = ("livekit-agents",) if "livekit-agents" in about else ("copier", "cookiecutter")
    tools = ", ".join(f"{name} {about[name]}" for name in names)
    text = f"{about['date'][:10]}, {about['system']}, {about['cpus']} CPUs, {tools}"
    figure.supxlabel(text, x=0.99, ha="right", size=8, color=GREY)


def readable(seconds: float) -> str:
    """A number of seconds, as short as possible."""
    return (
        f"{seconds:.2f}" if seconds < 1 else f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"
    )


# ---------------------------------------------------------------------- shapes


def draw_shapes(results: Results) -> Figure:
    """Grouped bars on a logarithmic scale: a group for each end, a bar for each shape."""
    ends, names, limit = shapes.ALL_ENDS, shapes.SHAPES, results["limit"]
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 14), sharey=True, layout="constrained")
    smallest = 0.01
    for axis, title in zip(
        axes, ("until everything is closed", "until the slot is free"), strict=True
    ):
        axis.set_xscale("log")
        axis.set_xlim(smallest, limit * 8)
        axis.set_title(f"seconds {title}")
        axis.set_xticks([0.01, 0.1, 1, 10, 60], ["0.01", "0.1", "1", "10", "60"])
        axis.tick_params(axis="x", which="minor", length=0)
        axis.grid(axis="x", zorder=0)
        axis.axvline(limit, color=GREY, linewidth=0.8, linestyle=":")
    thickness = 0.8 / len(names)
    for place, end in enumerate(ends):
        for number, name in enumerate(names):
            at = place + (number - (len(names) - 1) / 2) * thickness
            cleanup, free = shapes.medians(results, end, name)
            cleaned, freed = shapes.in_words(results, end, name)
            for axis, value, words in ((axes[0], cleanup, cleaned), (axes[1], free, freed)):
                bar(axis, at, value, words, limit, smallest, thickness, COLOURS[name])
    axes[0].set_yticks(range(len(ends)), [end.replace(" (", "\n(") for end in ends], color="black")
    axes[0].set_ylim(len(ends) - 0.5, -0.5)
    for axis in axes:
        axis.tick_params(axis="y", length=0)
        for place in range(1, len(ends)):
            axis.axhline(place - 0.5, color=FAINT, linewidth=0.8)
    handles = [Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in names]
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    return figure


def bar(
    axis: Axes,
    at: float,
    value: float,
    words: str,
    limit: float,
    smallest: float,
    thickness: float,
    colour: str,
) -> None:
    """One bar and its label: never is hatched up to the limit, already closed has no bar."""
    style: dict[str, Any] = {"height": thickness * 0.9, "zorder": 2}
    if math.isinf(value):
        axis.barh(
            at, limit, facecolor="white", edgecolor=colour, hatch="////", linewidth=0.6, **style
        )
        label, end = words, limit
    elif value < 0:
        label, end = "already closed", smallest
    else:
        axis.barh(at, max(value, smallest * 1.2), color=colour, **style)
        label, end = words.replace(" s", "", 1), value
    # covers the lines of the grid
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axis.text(
        max(end, smallest) * 1.08,
        at,
        label,
        va="center",
        size=7.5,
        color="black",
        zorder=3,
        bbox=paper,
    )


# ---------------------------------------------------------------------- soak


def draw_soak(results: Results) -> Figure:
    """The worker's processes, memory, threads and files over the calls."""
    samples = results["samples"]
    calls = [sample["calls"] for sample in samples]
    figure, axes = plt.subplots(3, 1, figsize=(9, 9), sharex=True, layout="constrained")
    together = ("pss MB, with children", "with all its children (PSS)", "#e69f00")
    lines = [
        ("memory, MB", [together, ("rss MB", "the worker alone", "#0969da")]),
        ("processes", [("processes", "the worker and its children", "#009e73")]),
        (
            "open files of the worker",
            [("fds", "all", "#0969da"), ("sockets", "sockets among them", "#d55e00")],
        ),
    ]
    for axis, (title, series) in zip(axes, lines, strict=True):
        axis.set_title(title)
        axis.grid(axis="y")
        for name, label, colour in series:
            axis.plot(
                calls,
                [sample[name] for sample in samples],
                color=colour,
                linewidth=1.1,
                label=label,
            )
            ends = [results["before"][name], results["after"][name]]
            axis.plot(
                [0, calls[-1]],
                ends,
                "o",
                color=colour,
                markersize=7,
                markeredgecolor="black",
                clip_on=False,
            )
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes[-1].set_xlabel("calls that have ended; the dots are before the first and after the last")
    axes[-1].set_xlim(0, calls[-1])
    took = results["seconds calling"]
    figure.suptitle(
        f"{calls[-1]:g} calls through one worker in {took / 60:.0f} minutes, 4 at a time",
        weight="bold",
    )
    return figure


# ---------------------------------------------------------------------- rolling


def draw_rolling(results: Results) -> Figure:
    """Every call as a line in the lane of the worker that answered it."""
    workers, calls = results["workers"], results["calls"]
    lanes = {one["name"]: place for place, one in enumerate(workers)}
    began = workers[0]["started"]
    figure, axis = plt.subplots(figsize=(11, 0.45 * len(workers) + 2), layout="constrained")
    for one in workers:
        lane, colour = lanes[one["name"]], WORKERS[one["name"].startswith("B")]
        axis.barh(
            lane,
            one["stopping"] - one["registered"],
            left=one["registered"] - began,
            height=0.8,
            color=colour,
            alpha=0.18,
        )
        axis.barh(
            lane,
            one["exited"] - one["stopping"],
            left=one["stopping"] - began,
            height=0.8,
            color=GREY,
            alpha=0.22,
        )
        axis.plot(
            [one["stopping"] - began] * 2, [lane - 0.4, lane + 0.4], color="#cf222e", linewidth=2
        )
        # when each row of the lane is free again
        free = [0.0, 0.0, 0.0, 0.0]
        for call in calls:
            if one["name"] not in call["workers"]:
                continue
            row = next((row for row, at in enumerate(free) if at <= call["joined"]), 0)
            free[row] = call["over"]
            y = lane - 0.27 + 0.18 * row
            shown = "#cf222e" if call["problem"] else colour
            span = [call["joined"] - began, call["over"] - began]
            axis.plot(span, [y, y], color=shown, linewidth=2.4, solid_capstyle="butt")
            if "greeted" in call:
                axis.plot(call["greeted"] - began, y, "|", color="black", markersize=5)
    axis.set_yticks(range(len(workers)), list(lanes))
    axis.set_ylim(len(workers) - 0.4, -0.6)
    axis.set_xlabel("seconds")
    axis.set_xlim(left=0)
    axis.grid(axis="x")
    axis.set_axisbelow(True)
    bad = sum(bool(call["problem"]) for call in calls)
    axis.set_title(
        f"{results['restarts']} restarts of two workers, {len(calls)} calls,"
        f" {bad} of them dropped or unanswered"
    )
    handles = [
        Line2D([], [], color=WORKERS[0], linewidth=2.4, label="a call (A)"),
        Line2D([], [], color=WORKERS[1], linewidth=2.4, label="a call (B)"),
        Line2D([], [], color="black", marker="|", linestyle="", label="greeted"),
        Line2D([], [], color="#cf222e", linewidth=2, label="SIGTERM"),
        Rectangle((0, 0), 1, 1, color=GREY, alpha=0.22, label="drains"),
    ]
    # restarts go down to the right, so this corner is empty
    axis.legend(handles=handles, loc="upper right")
    return figure


# ---------------------------------------------------------------------- turns


def draw_turns(results: Results) -> Figure:
    """How long callers wait after their words and after joining: bars are medians, dots samples."""
    names = [str(parts) for parts in turns.COMBINATIONS]
    figure, axes = plt.subplots(
        1, 2, figsize=(11, 0.65 * len(names) + 1.8), sharey=True, layout="constrained"
    )
    titles = {"turns": "ms from words to sound", "greetings": "ms from joining to sound"}
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        axis.set_title(title)
        axis.grid(axis="x", zorder=0)
        shown = [(colour, wanted[kind]) for colour, wanted in STATES.values() if kind in wanted]
        thickness, longest = 0.8 / len(shown), 0.0
        for place, name in enumerate(names):
            for number, (colour, wanted) in enumerate(shown):
                at = place + (number - (len(shown) - 1) / 2) * thickness
                took = [
                    1000 * seconds
                    for seconds in turns.times(turns.of(results, kind, parts=name, **wanted))
                ]
                middle, longest = statistics.median(took), max(longest, *took)
                axis.barh(at, middle, height=thickness * 0.9, color=colour, zorder=2)
                axis.plot(
                    took, [at] * len(took), "o", color="black", markersize=2.5, alpha=0.5, zorder=3
                )
                offset = {"xytext": (5, 0), "textcoords": "offset points"}
                axis.annotate(f"{middle:.0f}", (max(took), at), va="center", size=7.5, **offset)
        axis.set_xlim(0, longest * 1.1)
        axis.tick_params(axis="y", length=0)
        for place in range(1, len(names)):
            axis.axhline(place - 0.5, color=FAINT, linewidth=0.8)
    axes[0].set_yticks(range(len(names)), names, color="black")
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    axes[0].set_ylabel("knowledge / memory")
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour, _ in STATES.values()]
    figure.legend(handles, list(STATES), loc="outside upper center", ncols=len(STATES))
    return figure


# ---------------------------------------------------------------------- documents


def draw_ingests(results: Results) -> Figure:
    """How long an ingest takes: of everything, of one changed document, and without changes."""
    rows = [
        (f"{int(size):,}, {kind}", run)
        for size, kinds in results["sizes"].items()
        for kind, run in kinds.items()
    ]
    figure, axis = plt.subplots(figsize=(9, 0.6 * len(rows) + 1.8), layout="constrained")
    axis.set_xscale("log")
    axis.set_title("seconds of an ingest, by passages, embeddings and store")
    axis.grid(axis="x", zorder=0)
    largest = max(run[name]["seconds"] for _, run in rows for name in INGESTS)
    axis.set_xlim(0.1, largest * 3)
    ticks = [tick for tick in (0.1, 1, 10, 100, 1000) if tick < largest * 3]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.tick_params(axis="x", which="minor", length=0)
    for place, (_, run) in enumerate(rows):
        for at, (name, colour) in zip(
            (place - 0.27, place, place + 0.27), INGESTS.items(), strict=True
        ):
            seconds = run[name]["seconds"]
            axis.barh(at, seconds, height=0.25, color=colour, zorder=2)
            axis.text(
                seconds * 1.05,
                at,
                readable(seconds),
                va="center",
                size=7.5,
                color="black",
                zorder=3,
            )
        if place:
            axis.axhline(place - 0.5, color=FAINT, linewidth=0.8)
    axis.set_yticks(
        range(len(rows)), [name if "pgvector" in name else f"{name}, sqlite" for name, _ in rows]
    )
    axis.tick_params(axis="y", length=0, labelcolor="black")
    axis.set_ylim(len(rows) - 0.5, -0.5)
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in INGESTS.values()]
    figure.legend(
        handles,
        ["everything", "one document changed", "nothing changed"],
        loc="outside upper center",
        ncols=3,
    )
    return figure


# ---------------------------------------------------------------------- copies


def draw_copies(results: Results) -> Figure:
    """How much longer ours takes than the floor: a dot for every pair, a bar for the median."""
    figure, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
    axis.set_title("times what three files take: every pair, and the median")
    axis.grid(axis="x", zorder=0)
    for place, name in enumerate(copies.TITLES):
        sides = results[name]
        ratios = [
            ours / floor
            for ours, floor in zip(sides[copies.OURS], sides[copies.FLOOR], strict=True)
        ]
        middle = statistics.median(ratios)
        axis.barh(place, middle, height=0.6, color=COLOURS[shapes.OURS], alpha=0.35, zorder=2)
        heights = [place + 0.4 * (number / len(ratios) - 0.5) for number in range(len(ratios))]
        axis.plot(ratios, heights, "o", color=COLOURS[shapes.OURS], markersize=3.5, zorder=3)
        axis.text(0.04, place, f"{middle:.2f}", va="center", color="black", zorder=4)
        if name in copies.GOALS:
            axis.vlines(
                copies.GOALS[name],
                place - 0.38,
                place + 0.38,
                color=COLOURS["starter"],
                linewidth=2,
                zorder=4,
            )
    axis.set_yticks(
        range(len(copies.TITLES)), [title.strip("`") for title in copies.TITLES.values()]
    )
    axis.tick_params(axis="y", length=0, labelcolor="black")
    axis.set_xlim(left=0)
    axis.set_ylim(len(copies.TITLES) - 0.5, -0.5)
    axis.legend(
        [Line2D([], [], color=COLOURS["starter"], linewidth=2)], ["goal"], loc="upper right"
    )
    return figure


DRAWINGS: dict[str, Callable[[Results], Figure]] = {
    "copies": draw_copies,
    "shapes": draw_shapes,
    "soak": draw_soak,
    "rolling": draw_rolling,
    "turns": draw_turns,
    "knowledge": draw_ingests,
}


def main() -> int:
    """Draw a plot for every measurement that has numbers."""
    PLOTS.mkdir(exist_ok=True)
    plt.rcParams.update(STYLE)
    for kind, draw in DRAWINGS.items():
        results = newest(kind)
        if results is None:
            print(f"no plot of {kind}: nothing was measured yet", file=sys.stderr)
            continue
        figure = draw(results)
        caption(figure, results)
        file = PLOTS / f"{kind}.png"
        figure.savefig(file, metadata={"Software": None})
        plt.close(figure)
        print(file.relative_to(PLOTS.parents[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
