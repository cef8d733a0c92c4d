"""Small plots as PNG bytes, for reports and for the Markdown metadata of assets.

Figures are objects on the Agg canvas without global state, so threads can draw at the same time. The colours of Okabe
and Ito (2008) are distinct for colour-blind readers.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_INK, _GRID = "#333333", "#DDDDDD"
_DPI = 140
_PALETTE = 64
_MAX_BARS = 30


def plot_counts(counts: Mapping[str, float], title: str, xlabel: str = "rows") -> bytes:
    """Horizontal bars of counts or shares, in the given order. Beyond 30 bars the smallest are summed as "others"."""
    shown = dict(counts)
    if len(shown) > _MAX_BARS:
        largest = sorted(shown, key=lambda name: -shown[name])[: _MAX_BARS - 1]
        rest = {name: n for name, n in shown.items() if name not in largest}
        shown = {name: shown[name] for name in counts if name in largest} | {f"{len(rest)} others": sum(rest.values())}
    figure, axes = _make_axes(5.6, 0.7 + 0.26 * max(len(shown), 1), title)
    values = list(shown.values())
    whole = all(float(value).is_integer() for value in values)
    bars = axes.barh(range(len(shown)), values, color=COLOURS[0], height=0.7)
    axes.bar_label(bars, fmt="{:,.0f}" if whole else "{:,.3g}", padding=3, fontsize=8, color=_INK)
    axes.set_yticks(range(len(shown)), [_escape_text(name) for name in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel(xlabel)
    axes.set_xlim(0, 1.14 * (max(values, default=0) or 1))
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    return _render_png(figure)


def plot_lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str, xlabel: str, ylabel: str) -> bytes:
    """One line of (x, y) points for each name. A logarithmic axis shows values that fall to a tenth or less."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _make_axes(5.6, 2.8, title)
    for i, (name, points) in enumerate(series.items()):
        style = ("-", "--", "-.", ":")[i % 4]
        marker = "o" if len(points) <= 20 else None
        x, y = [p[0] for p in points], [p[1] for p in points]
        axes.plot(x, y, style, color=COLOURS[i % len(COLOURS)], label=_escape_text(name), marker=marker, markersize=3.5)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if needs_log_scale([y for points in series.values() for _, y in points]):
        axes.set_yscale("log")
        axes.set_ylabel(f"{ylabel} (logarithmic)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color=_GRID, linewidth=0.6)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return _render_png(figure)


def plot_panels(panels: Mapping[str, Sequence[tuple[object, float]]], title: str, ylabel: str) -> bytes:
    """Dots of (x, y) points, a panel for each name. An x that is no number is a category."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.6, 2.2 * len(panels)), 2.6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_escape_text(title, 90), fontsize=10, color=_INK, x=0.01, ha="left")
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, points) in zip(columns, panels.items(), strict=True):
        numbers = [x for x, _ in points if isinstance(x, int | float) and not isinstance(x, bool)]
        xs = [x if len(numbers) == len(points) else str(x) for x, _ in points]
        axes.plot(xs, [y for _, y in points], "o", color=COLOURS[0], markersize=4, alpha=0.7)
        if len(numbers) == len(points) and needs_log_scale(numbers):
            axes.set_xscale("log")
        axes.set_xlabel(_escape_text(name), fontsize=9)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.tick_params(labelsize=8, colors=_INK)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(ylabel, fontsize=9)
    return _render_png(figure)


def needs_log_scale(values: Sequence[float]) -> bool:
    """Whether a linear axis would show the smaller values as a flat line."""
    return min(values, default=0) > 0 and max(values) >= 10 * min(values)


def plot_confusion(rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]], title: str) -> bytes:
    """Heat map: row = reference, column = answer, shade = share of the row. Small tables show the counts too."""
    import numpy as np

    table = np.asarray(counts, dtype=float).reshape(len(rows), len(columns))
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 0.36 if len(columns) <= 16 else 0.24
    figure, axes = _make_axes(2.0 + side * len(columns), 1.7 + side * len(rows), title)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size = 8 if len(columns) <= 16 else 6
    axes.set_xticks(
        range(len(columns)),
        [_escape_text(c) for c in columns],
        rotation=45,
        ha="right",
        fontsize=size,
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(rows)), [_escape_text(r) for r in rows], fontsize=size)
    axes.set_xlabel("answer")
    axes.set_ylabel("reference")
    axes.tick_params(length=0)
    for i, j in np.argwhere(table > 0):
        colour = "white" if share[i, j] > 0.55 else _INK
        axes.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", fontsize=size - 1, color=colour)
    return _render_png(figure)


def plot_intervals(rows: Sequence[tuple[str, float, float, float]], title: str, xlabel: str) -> bytes:
    """One dot with its interval for each (name, value, low, high)."""
    figure, axes = _make_axes(6.4, 0.95 + 0.34 * max(len(rows), 1), title)
    for i, (_, value, low, high) in enumerate(rows):
        axes.plot([low, high], [i, i], color=COLOURS[0], linewidth=2.2, solid_capstyle="butt")
        axes.plot([value], [i], "o", color=COLOURS[1], markersize=6, zorder=3)
        text = f"{value:.3f}"
        axes.annotate(text, (value, i), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=_INK)
    axes.set_yticks(range(len(rows)), [_escape_text(name) for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    return _render_png(figure)


def plot_tradeoff(points: Sequence[tuple[str, float, float, bool]], title: str, xlabel: str, ylabel: str) -> bytes:
    """A dot with its name for each (name, x, y, is_best), on a logarithmic x axis. Those that are best have a line."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _make_axes(6.4, 3.6, title)
    xs = sorted(x for _, x, _, _ in points)
    middle = (xs[0] * xs[-1]) ** 0.5 if xs[0] > 0 else (xs[0] + xs[-1]) / 2
    for name, x, y, is_best in points:
        colour = COLOURS[1] if is_best else COLOURS[0]
        axes.plot([x], [y], "D" if is_best else "o", color=colour, markersize=6 if is_best else 5, zorder=3)
        side, place = ("left", (6, 4)) if x <= middle else ("right", (-6, 4))  # names stay within the plot
        axes.annotate(_escape_text(name), (x, y), place, textcoords="offset points", fontsize=7.5, color=_INK, ha=side)
    best = sorted((x, y) for _, x, y, is_best in points if is_best)
    axes.plot([x for x, _ in best], [y for _, y in best], "--", color=COLOURS[1], linewidth=1, alpha=0.7)
    if xs[0] > 0:
        axes.set_xscale("log")
        xlabel = f"{xlabel} (logarithmic)"
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if xs[-1] < 1000 * xs[0] else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.12)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color=_GRID, linewidth=0.6)
    return _render_png(figure)


def plot_reliability(series: Mapping[str, Sequence[tuple[float, float, float, float]]], title: str) -> bytes:
    """A reliability diagram: for each (stated, right, low, high) a dot with its interval, next to the diagonal."""
    figure, axes = _make_axes(4.2, 3.6, title)
    axes.plot([0, 1], [0, 1], "--", color="#999999", linewidth=1)
    for i, (name, points) in enumerate(series.items()):
        colour, marker = COLOURS[i % len(COLOURS)], "os^Dv*"[i % 6]
        for stated, _, low, high in points:
            axes.plot([stated, stated], [low, high], color=colour, linewidth=1, alpha=0.6)
        x, y = [point[0] for point in points], [point[1] for point in points]
        axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1, label=_escape_text(name))
    axes.set_xlabel("mean confidence")
    axes.set_ylabel("share of right answers")
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.grid(color=_GRID, linewidth=0.6)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return _render_png(figure)


def to_data_uri(png: bytes) -> str:
    """A PNG image as a `data:` URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def compute_css_width(png: bytes) -> int:
    """The width in CSS pixels (96 per inch) at which the text of a plot has its designed size."""
    return round(int.from_bytes(png[16:20], "big") * 96 / _DPI)


def to_markdown_image(png: bytes, alt: str = "plot") -> str:
    """Markdown that shows the plot without a file. Characters of `alt` that could end the Markdown are removed."""
    safe = "".join(c for c in alt if c.isalnum() or c in " ,.-_")
    return f"![{safe}]({to_data_uri(png)})"


def _make_axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    if title:
        axes.set_title(_escape_text(title, 90), fontsize=10, color=_INK, loc="left")
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=_INK)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    return figure, axes


def _escape_text(text: str, longest: int = 34) -> str:
    """Text in one line of at most `longest` characters, with `$` escaped: matplotlib reads it as mathematics."""
    one_line = " ".join(text.split())
    cut = one_line if len(one_line) <= longest else one_line[: longest - 1] + "…"
    return cut.replace("$", r"\$")


def _render_png(figure: Figure) -> bytes:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Scripts that the built-in font lacks appear as boxes; the tables next to the plot contain the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        canvas.draw()
    # A palette reduces the file to a third, without a visible difference in flat colours. This method of choosing the
    # palette is fast and keeps white unchanged.
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    flat = pixels.quantize(_PALETTE, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    flat.save(buffer, format="png", compress_level=6)
    return buffer.getvalue()
