"""Train students for benchmarks/students.py, each once for its settings, rows and seed."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import name_device
from student_sources import Source

from distill_dagster.config import StudentSpec
from distill_dagster.config.objective import SHORT_FORMS
from distill_dagster.core.hashing import hash_content
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import PreferencePair, StudentPrompt, TaskSettings, TrainRow

LATENCY_ITEMS = 40
Figures = dict[str, Any]


class Bench:
    """Trains students once for each setting, rows and seed."""

    def __init__(self, home: Path, models: Path, seeds: list[int], change: dict[str, Any]) -> None:
        """`change` is put over the settings of every student."""
        self.models, self.seeds, self.change = models, seeds, change
        self.cache = home / "students"
        self.devices: Counter[str] = Counter()
        """How many trainings ran on which device."""
        self.cache.mkdir(parents=True, exist_ok=True)

    def build_spec(self, settings: dict[str, Any], seed: int = 0, **more: Any) -> StudentSpec:
        """A student of these settings. A given objective replaces the older forms of it."""
        if "objective" in more:
            settings = {name: value for name, value in settings.items() if name not in SHORT_FORMS}
        return StudentSpec.model_validate(settings | more | self.change | {"seed": seed})

    def measure(
        self,
        source: Source,
        spec: StudentSpec,
        rows: list[TrainRow],
        validation: list[TrainRow],
        epochs: int | None = None,
        asked: list[StudentPrompt] | None = None,
        pairs: list[PreferencePair] | None = None,
        writes: bool = False,
    ) -> Figures:
        """Train a student and let it answer golden.

        Args:
            epochs: replaces the spec's.
            asked: prompts whose label probabilities are returned too, as `probs`.
            writes: the student writes its answer, though the task has labels.

        Returns:
            `accuracy`, and `latency_s`, the median time of one answer alone.
        """
        labels = [] if writes else source.labels
        settings = TaskSettings(
            source.settings.item, reasoning=not labels and spec.resolve_objective(False, False).kind == "reasoning"
        )
        given = [asdict(row) for row in rows], [asdict(row) for row in validation], [asdict(p) for p in asked or []]
        lost = [[asdict(pair.kept), asdict(pair.rejected)] for pair in pairs or []]
        kept = self.cache / hash_content(
            [source.name, source.golden, spec.model_dump(mode="json"), given, epochs, lost, writes]
        )
        if not kept.exists():
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as name:
                out = Path(name)
                train_adapter(
                    spec, labels, settings, rows, validation, out, self.models, epochs=epochs, pairs=pairs or []
                )
                predictor = load_predictor(spec, labels, settings, self.models, out)
                prompts = [StudentPrompt.from_text(text) for text, _ in source.golden]
                answers = [one.label.rpartition("Answer:")[2].strip() for one in predictor.predict(prompts)]
                right = [
                    source.is_right(a, reference) for a, (_, reference) in zip(answers, source.golden, strict=True)
                ]
                seconds = []
                for prompt in prompts[:LATENCY_ITEMS]:
                    begun = time.perf_counter()
                    predictor.predict([prompt])
                    seconds.append(time.perf_counter() - begun)
                found: Figures = {"accuracy": statistics.fmean(right), "latency_s": statistics.median(seconds)}
                found |= {"probs": [one.probs for one in predictor.predict(asked)]} if asked else {}
                found["device"] = name_device()
            kept.write_text(json.dumps(found))
            about = f"{source.name}, {spec.model}, {len(rows)} rows: {found['accuracy']:.4f}"
            print(f"[{time.perf_counter() - started:6.0f} s] {about}", file=sys.stderr, flush=True)
        result: Figures = json.loads(kept.read_text())
        self.devices[result.get("device", "cpu")] += 1
        return result

    def measure_seeds(
        self,
        source: Source,
        settings: dict[str, Any],
        rows: list[TrainRow],
        validation: list[TrainRow],
        epochs: int | None = None,
        **change: Any,
    ) -> dict[int, Figures]:
        """What `measure` returns, for each seed of a student with changed settings."""
        specs = {seed: self.build_spec(settings, seed, **change) for seed in self.seeds}
        return {seed: self.measure(source, spec, rows, validation, epochs) for seed, spec in specs.items()}
