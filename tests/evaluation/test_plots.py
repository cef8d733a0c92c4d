"""Plots: PNG of modest size for any text, drawn without global state."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from distill_dagster.core import plots
from tests.support.waiting import HANG_S

LABELS = [f"label number {i}" for i in range(24)]
DRAWN = {
    "bars": lambda: plots.plot_counts({name: i for i, name in enumerate(LABELS)}, "Rows"),
    "no bars": lambda: plots.plot_counts({}, "Rows"),
    "zero": lambda: plots.plot_counts({"a": 0}, "Rows"),
    "shares": lambda: plots.plot_counts({"a": 0.25, "b": 0.75}, "Shares", "probability"),
    "many bars": lambda: plots.plot_counts({f"{i}": i for i in range(500)}, "Rows"),
    "lines": lambda: plots.plot_lines({"a": [(i, i % 7) for i in range(2000)], "b": [(3, 1)]}, "Loss", "step", "loss"),
    "falling line": lambda: plots.plot_lines({"a": [(i, 3 * 0.9**i) for i in range(80)]}, "", "step", "loss"),
    "confusion": lambda: plots.plot_confusion(LABELS, [*LABELS, "(no label)"], [[3] * 25] * 24, "Confusion"),
    "intervals": lambda: plots.plot_intervals(
        [("base", 0.5, 0.4, 0.6), ("one", 1.0, 1.0, 1.0)], "Accuracy", "accuracy"
    ),
    "tradeoff": lambda: plots.plot_tradeoff(
        [(name, 10.0**i, i / 4, i > 2) for i, name in enumerate(LABELS[:4])], "Scores", "USD", "accuracy"
    ),
    "tradeoff from zero": lambda: plots.plot_tradeoff([("$a$", 0, 0.5, True), ("b", 0, 0.5, False)], "", "USD", "F1"),
    "formula": lambda: plots.plot_counts({r"$\frac{$": 1, "$a$ b$": 2, "line\nbreak": 3, "退款 🙂": 4}, r"$\bad{$"),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.filterwarnings("error")
def test_png_of_modest_size(name: str) -> None:
    png = DRAWN[name]()
    assert png.startswith(b"\x89PNG\r\n")
    assert len(png) < 60_000


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_white_stays_white(name: str) -> None:
    """A palette that rounds it would show each plot as a box on the page."""
    image = Image.open(io.BytesIO(DRAWN[name]())).convert("RGB")
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_the_same_data_gives_the_same_bytes_from_several_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: DRAWN["intervals"](), range(8)))
    assert len(set(images)) == 1


def test_no_global_state() -> None:
    code = (
        "import sys; from distill_dagster.core import plots; assert 'matplotlib' not in sys.modules; "
        "plots.plot_lines({'a': [(0, 1)]}, '', 'x', 'y'); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANG_S)


def test_a_curve_that_falls_to_a_tenth_has_a_logarithmic_axis() -> None:
    assert plots.needs_log_scale([2.0, 0.3, 0.2])
    assert not plots.needs_log_scale([2.0, 0.3])
    assert not plots.needs_log_scale([2.0, 0.0])
    assert not plots.needs_log_scale([])


def test_markdown_image_cannot_be_broken_out_of() -> None:
    text = plots.to_markdown_image(b"abc", alt="a](http://x) <b>[")
    assert text == f"![ahttpx b](data:image/png;base64,{base64.b64encode(b'abc').decode()})"
