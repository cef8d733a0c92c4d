"""What differs between two releases: score, cost, sizes, settings, and what each was made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from distill_dagster.core.formatting import format_bytes, format_usd
from distill_dagster.release.golden_scores import compare_golden_scores, read_golden_scores
from distill_dagster.release.registry import Release
from distill_dagster.release.runtimes.types import STUDENT_FILE


@dataclass(frozen=True)
class Difference:
    """A property with its value in two releases."""

    name: str
    first: str
    second: str


def compare_releases(first: Release, second: Release) -> list[Difference]:
    """Score, cost and sizes of both, and then whatever else differs: settings, inputs, versions and exports."""
    figures = [Difference(name, a, b) for (name, a), (_, b) in zip(_figures(first), _figures(second), strict=True)]
    sizes = [
        {f"size of {export.name}": format_bytes(export.bytes) for export in release.exports}
        for release in (first, second)
    ]
    golden = compare_golden_scores(read_golden_scores(second.path), read_golden_scores(first.path), seed=0)
    if golden is not None:
        text = f"{golden.difference:+.3f}: {golden.better} better, {golden.worse} worse, p = {golden.p_value:.2g}"
        figures.append(Difference(f"on {golden.items} golden items of both", "", text))
    shown = figures + _list_pairs(sizes[0], sizes[1], only_changed=False)
    for name in ("base", "made_from", "versions"):
        shown += _list_pairs(_flatten_part(first, name), _flatten_part(second, name))
    return shown + _list_pairs(_read_settings(first), _read_settings(second))


def _figures(release: Release) -> list[tuple[str, str]]:
    manifest = release.manifest
    cost, latency = manifest["cost_usd_per_1k"], manifest["latency_p50_s"]
    return [
        ("student", release.student),
        ("released", manifest["created_at"]),
        (manifest["metric"], _format(manifest["score"])),
        ("golden items", str(manifest["items"])),
        ("share of the teacher's score", _format(manifest["retention"])),
        ("cost of 1,000 answers", "unknown" if cost is None else format_usd(cost)),
        ("latency", "not measured" if latency is None else f"{1000 * latency:.1f} ms"),
        ("dataset rows", f"{manifest['dataset']['rows']:,}"),
    ]


def _format(interval: dict[str, float | None]) -> str:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None:
        return "undefined"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _read_settings(release: Release) -> dict[str, str]:
    return _flatten(json.loads((release.path / STUDENT_FILE).read_text(encoding="utf-8")), "")


def _flatten_part(release: Release, name: str) -> dict[str, str]:
    """A part of the manifest. Names of artifacts are without their student, so that both releases have the same."""
    part = {key.removesuffix(f"[{release.student}]"): value for key, value in release.manifest[name].items()}
    return _flatten(part, name)


def _flatten(value: Any, name: str) -> dict[str, str]:
    """The leaves of nested settings by their path. Long texts, such as hashes, are cut."""
    if isinstance(value, dict):
        return {
            path: leaf
            for key, part in value.items()
            for path, leaf in _flatten(part, f"{name}.{key}".removeprefix(".")).items()
        }
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {name: text if len(text) <= 60 else f"{text[:12]}…"}


def _list_pairs(first: dict[str, str], second: dict[str, str], only_changed: bool = True) -> list[Difference]:
    names = [*first, *(name for name in second if name not in first)]
    pairs = [Difference(name, first.get(name, "none"), second.get(name, "none")) for name in names]
    return [pair for pair in pairs if pair.first != pair.second or not only_changed]
