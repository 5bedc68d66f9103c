"""Pictures of a cascade's dependence graph with its pass boundaries: for matplotlib, and as text for a terminal."""

from typing import TYPE_CHECKING

from probatum.algebra.cascade_graph import Graph
from probatum.algebra.cascade_passes import Passes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["as_text", "draw"]

COLOURS = {"input": "#d9d9d9", "stream": "#cfe3f5", "fibre": "#f4b6a6", "state": "#f6e2a3"}


def _levels(graph: Graph, passes: Passes) -> dict[str, tuple[int, int]]:
    """Tensor -> (pass, depth in it); the longest path decides, values of the step before add no depth."""
    found = dict.fromkeys(graph.inputs, (0, 0))
    for statement, number in zip(graph.statements, passes.of_statement, strict=True):
        if statement.initial:
            continue
        depth = 0
        for ref in statement.reads:
            level = found.get(ref.name)
            if level is not None and level[0] == number and not graph.reads_previous(statement, ref):
                depth = max(depth, level[1] + 1)
        found[statement.target.name] = (number, depth)
    return found


def _kind(graph: Graph, passes: Passes, name: str) -> str:
    if name in graph.carried:
        return "state"
    if passes.buffered(name):
        return "fibre"
    return "input" if name in graph.inputs else "stream"


def draw(graph: Graph, passes: Passes, figure: "Figure") -> None:
    """Tensors as boxes, reads as arrows, passes from top to bottom with a line between them.

    Red boxes are read in a later pass than the one that makes them (a whole fibre is kept or read again), yellow ones are carried.
    """
    levels = _levels(graph, passes)
    rows: dict[tuple[int, int], list[str]] = {}
    for name, level in levels.items():
        rows.setdefault(level, []).append(name)
    order = sorted(rows)
    heights = {level: -float(k) - 0.6 * level[0] for k, level in enumerate(order)}
    place: dict[str, tuple[float, float]] = {}
    for level in order:
        names = rows[level]
        # near their sources: sort by the mean position of what they read
        sources = {n: [place[r.name][0] for s in graph.statements if s.target.name == n for r in s.reads if r.name in place] for n in names}
        names.sort(key=lambda n: sum(sources[n]) / len(sources[n]) if sources[n] else 0.0)
        shift = 0.25 * (order.index(level) % 2)  # so that arrows over a row pass between boxes
        for k, name in enumerate(names):
            place[name] = (k - (len(names) - 1) / 2 + shift, heights[level])
    axes = figure.subplots()
    for statement in graph.statements:
        if statement.initial:
            continue
        for ref in dict.fromkeys((r.name, graph.reads_previous(statement, r)) for r in statement.reads):
            name, previous = ref
            if name == statement.target.name:
                continue
            axes.annotate(
                "", place[statement.target.name], place[name],
                arrowprops={"arrowstyle": "-|>", "color": "#8a8a8a" if previous else "#444444", "linestyle": ":" if previous else "-",
                            "shrinkA": 11, "shrinkB": 11, "connectionstyle": "arc3,rad=0.08", "linewidth": 0.9},
            )  # fmt: skip
    for name, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": COLOURS[_kind(graph, passes, name)], "edgecolor": "#555555"}
        axes.text(x, y, name, ha="center", va="center", bbox=box, fontsize=9)
    left, right = min(x for x, _ in place.values()) - 0.9, max(x for x, _ in place.values()) + 0.9
    for number in range(1, passes.count + 1):
        own = [y for name, (_, y) in place.items() if levels[name][0] == number]
        if not own:
            continue
        top = max(own) + 0.8
        axes.plot([left, right], [top, top], color="#a23b72", linestyle="--", linewidth=1)
        axes.text(left, top - 0.12, f"pass {number}", color="#a23b72", ha="left", va="top", fontsize=9)
    axes.set(xlim=(left, right), ylim=(min(y for _, y in place.values()) - 0.6, 1.0))
    axes.set_title(f"{passes.count} pass{'es' if passes.count != 1 else ''} over {{{', '.join(passes.family)}}}", fontsize=10)
    axes.axis("off")
    from matplotlib.patches import Patch

    meaning = {"input": "input", "stream": "streamed", "fibre": "whole fibre kept or read again", "state": "carried from step to step"}
    shown = {_kind(graph, passes, name) for name in place}
    axes.legend(handles=[Patch(facecolor=COLOURS[k], edgecolor="#555555", label=meaning[k]) for k in meaning if k in shown],
                loc="lower right", fontsize=7, frameon=False)  # fmt: skip


def as_text(graph: Graph, passes: Passes) -> str:
    """The statements by pass, with what each tensor needs; a rule between passes."""
    marks = {"fibre": "  <- whole fibre kept, or read again", "state": "  <- carried"}
    blocks: dict[int, list[str]] = {}
    for statement, number in zip(graph.statements, passes.of_statement, strict=True):
        if not statement.initial:
            blocks.setdefault(number, []).append(f"  {statement}{marks.get(_kind(graph, passes, statement.target.name), '')}")
    names = ", ".join(passes.family)
    lines = [f"inputs {', '.join(n + (' (read again)' if passes.buffered(n) else '') for n in graph.inputs)}"]
    initial = [f"  {s}" for s in graph.statements if s.initial]
    lines += ["before the first step", *initial] if initial else []
    for number in sorted(blocks):
        title = f"pass {number} over {{{names}}}" if number else f"free of {{{names}}}"
        lines += [f"---- {title} " + "-" * max(0, 50 - len(title)), *blocks[number]]
    return "\n".join(lines)
