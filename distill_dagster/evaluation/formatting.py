"""Format figures for people. An unknown figure is shown as unknown, never as zero."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from distill_dagster.evaluation.metrics import TEACHER, Metrics, SystemFacts, SystemScore
from distill_dagster.evaluation.statistics import Interval

if TYPE_CHECKING:
    from markupsafe import Markup

UNKNOWN = "unknown"
OWN_MACHINE = "own machine"
_TEXT_LIMIT = 600
"""How many characters of a text a report shows."""


def format_share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def format_interval(value: Interval) -> str:
    """ "0.912 [0.880, 0.941]", without the brackets where there is no interval."""
    if value.low is None or value.high is None:
        return format_share(value.value)
    return f"{format_share(value.value)} {format_bounds(value)}"


def format_bounds(value: Interval) -> str:
    return "" if value.low is None or value.high is None else f"[{value.low:.3f}, {value.high:.3f}]"


def format_points(value: Interval) -> str:
    """A difference of shares in percentage points, signed."""
    if value.value is None:
        return "–"
    low, high = value.low, value.high
    bounds = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"{100 * value.value:+.1f}{bounds}"


def format_percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def format_milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    ms = 1000 * seconds
    return f"{ms:.2g} ms" if ms < 10 else f"{ms:,.0f} ms"


def format_megabytes(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f} MB"


def format_size(number: int | None) -> str:
    """Bytes in decimal units."""
    if number is None:
        return UNKNOWN
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number} B"


def format_count(number: float | None) -> str:
    """A count with its scale, for example "135 M" for 134,515,008."""
    if number is None:
        return UNKNOWN
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e4)):
        if number >= scale:
            return f"{number / (1e3 if unit == 'k' else scale):.3g} {unit}"
    return f"{number:,.0f}"


def format_dollars(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if 0 < value < 0.01:
        return "$" + f"{value:.{1 - math.floor(math.log10(value))}f}".rstrip("0")
    return f"${value:,.2f}" if value < 1000 else f"${value:,.0f}"


def is_local(system: str, facts: SystemFacts) -> bool:
    """Whether a system ran on the user's own machine: every student did, and an embedded teacher does."""
    if system != TEACHER:
        return True
    return facts.model is not None and all(name.startswith("embedded/") for name in facts.model.split(", "))


def format_cost(system: str, facts: SystemFacts) -> str:
    """Dollars for 1,000 answers; "own machine" if nobody bills them and the machine's price is not set."""
    if facts.cost_usd_per_1k is None and is_local(system, facts):
        return OWN_MACHINE
    return format_dollars(facts.cost_usd_per_1k)


def format_days(days: float | None) -> str:
    """Days, or hours if it is less than two."""
    if days is None:
        return "never"
    if days < 2:
        return "less than an hour" if days * 24 < 1 else f"{days * 24:.0f} hours"
    return f"{days:,.0f} days"


def format_rate(per_second: float | None) -> str:
    return "–" if per_second is None else f"{per_second:,.3g}" if per_second < 1000 else f"{per_second:,.0f}"


def format_p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def shorten_value(value: object) -> str:
    """A value of a log entry as text. Hashes are cut to 12 digits."""
    text = str(value)
    return text[:12] if len(text) >= 40 and set(text) <= set("0123456789abcdef") else text


def format_day(timestamp: str) -> str:
    """The day of an ISO timestamp, such as 2 January 2026; another text as it is."""
    try:
        day = datetime.fromisoformat(timestamp)
    except ValueError:
        return timestamp
    return f"{day.day} {day:%B %Y}"


def describe_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Curves in words, for a reader who does not see them: where each begins and ends."""
    return ", ".join(f"{name} from {points[0][1]:.2f} to {points[-1][1]:.2f}" for name, points in curves.items())


def mark_breaks(text: object, longest: int = 24) -> Markup:
    """Escaped text whose words of more than `longest` characters may wrap: after `-`, `_`, `/`, `.`, or anywhere."""
    from markupsafe import Markup, escape

    if all(len(word) <= longest for word in str(text).split()):
        return escape(text)
    parts = re.findall(rf"[^-_/.]{{1,{longest}}}[-_/.]*|[-_/.]+", str(text))
    return Markup("<wbr>").join(escape(part) for part in parts)


def mark_code(text: str) -> Markup:
    """Escaped text in which what stands in backticks is code."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(mark_breaks(part)) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


METRIC_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "token_f1": "Token F1",
    "rouge_l": "ROUGE-L",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "bleu": "BLEU",
    "chrf": "chrF",
    "corpus_chrf": "chrF of all texts",
    "field_f1": "Field F1",
    "exact_match": "Exact match",
    "call_f1": "Call F1",
}
METRIC_MEANINGS = {
    "accuracy": "Share of items whose answer equals the reference.",
    "macro_f1": "Mean over the labels of F1, the harmonic mean of precision and recall.",
    "token_f1": "Harmonic mean of precision and recall over words (Rajpurkar et al. 2016).",
    "rouge_l": "F-measure of the longest common subsequence of words (Lin 2004, by rouge-score), 0 without an answer.",
    "chrf": "F-score of character n-grams (chrF2, Popović 2015, by sacrebleu), 0 without an answer.",
    "field_f1": "F1 over pairs of field and value, 0 without a valid answer.",
    "exact_match": "Share of items with every field right.",
    "call_f1": "F1 over calls, each with all its arguments.",
}
"""What the figures mean, as sentences of the report after the figure's name."""


def format_metric_name(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric)


def format_metric_name_in_sentence(metric: str) -> str:
    """A metric's name within a sentence: accuracy, ROUGE-L."""
    return "accuracy" if metric == "accuracy" else format_metric_name(metric)


TEMPLATE_FILTERS: dict[str, Callable[..., str]] = {
    "share": format_share,
    "interval": format_interval,
    "bounds": format_bounds,
    "points": format_points,
    "percent": format_percent,
    "ms": format_milliseconds,
    "mb": format_megabytes,
    "size": format_size,
    "count": format_count,
    "dollars": format_dollars,
    "days": format_days,
    "rate": format_rate,
    "p_value": format_p_value,
    "brief": shorten_value,
    "day": format_day,
    "cost": format_cost,
    "breaks": mark_breaks,
    "code": mark_code,
    "figure": format_metric_name,
    "figure_within": format_metric_name_in_sentence,
    "meaning": lambda metric: METRIC_MEANINGS.get(metric, ""),
}


def build_summary_rows(metrics: Metrics) -> list[dict[str, str]]:
    """Build the table that the command line prints: one row per system on golden. Every cell is a string."""
    rows = []
    for name, system in metrics.golden.systems.items():
        facts = metrics.facts.get(name, SystemFacts())
        value, low, high = system.score.value, system.score.low, system.score.high
        bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
        rows.append(
            {
                "system": name,
                metrics.metric: "–" if value is None else f"{value:.2f}{bounds}",
                "latency": format_milliseconds(system.latency.p50),
                "size": format_size(facts.bytes),
                "cost per 1,000": format_cost(name, facts),
            }
        )
    return rows


def format_answer(answer: str | None) -> str:
    """A canonical JSON answer for people: a string without its quotes, any other value as JSON."""
    if answer is None:
        return "(no answer)"
    try:
        value = json.loads(answer)
    except json.JSONDecodeError:
        return answer
    return value if isinstance(value, str) else answer


def shorten_text(text: str, most: int = _TEXT_LIMIT) -> str:
    """At most so many characters of a text; an ellipsis says that it goes on."""
    return text if len(text) <= most else text[:most] + " …"


def find_mistakes(score: SystemScore, most: int = 10) -> list[tuple[str, str, int]]:
    """Find the most frequent wrong answers as (reference, answer, items)."""
    wrong = [cell for cell in score.confusion if cell[0] != cell[1]]
    return sorted(wrong, key=lambda cell: (-cell[2], cell[0], cell[1]))[:most]
