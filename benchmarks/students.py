"""Students in figures: what each way of teaching gives, on Banking77, support_triage, CommonsenseQA and SVAMP.

Usage: python benchmarks/students.py --data FOLDER [--parts shrink table soft_hard commonsenseqa svamp]
           [--sources banking77 support_triage] [--students minilm smollm2] [--systems distilled human ...]
           [--seeds 0 1 2] [--shares 5 10 25 50 100] [--rows 1200] [--full] [--items 1221]
           [--objectives answer reasoning multitask] [--filters all agreed] [--all-layers] [--home FOLDER] [--quick]
           [--json FILE]

FOLDER holds banking77, commonsenseqa and svamp: human labels and recorded teachers. support_triage is the bundled task.
Every accuracy is on rows that nothing else uses, and is the mean over seeds; `_sd` is the standard deviation over them.
A seed sets the order of rows and first weights, in `soft_hard` also which rows are taken. Rows come straight from the
recordings, without filters; a tenth of them is validation.

    shrink         a 3-layer encoder by soft labels alone, and with its hidden states or attention matched to 6 layers
    table          the teacher; human labels only; distilled; both together; preference; progressive
    soft_hard      the teacher's probabilities against its labels, at 5 to 100 % of the prompts
    commonsenseqa  answer, reasoning and multitask, of all rows and of those on which two teachers agree. It learns
                   --rows of them, or with --full all, whose figures have names of their own: cqa_full_answer. Its
                   last 10 layers learn, or with --all-layers all: cqa_all_layers_answer
    svamp          the same; a row is agreed on if the reasoning names the value of the answer

Each part writes its figures when it ends, and on which devices it trained. `commonsenseqa` and `svamp` also write each
figure as soon as it is measured. So does `table` with its rows, with the accuracy of each seed, and keeps the rows and
seeds that a run does not measure. So one student, system or seed can be measured at a time. Trainings are cached in
--home by settings and rows, not by code: use a new home after a change of the code.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import student_sources as sources
from common import summarize, wanted, write_result
from preference import DPO
from student_trainer import Bench, Figures

from distill_dagster.core.paths import Home
from distill_dagster.student.types import PreferencePair, TrainRow

SHARES = (5, 10, 25, 50, 100)
"""Percent of the prompts."""
HUMAN_FACTORS = (1, 3, 10)
SHRUNK: dict[str, Any] = {"shrink": {"layers": 3}, "lora": {"rank": 16, "alpha": 32}}
"""All layers that stay get an adapter, so that they can make up for the others."""
QUICK = {"epochs": 1}
READERS = {"banking77": sources.read_banking77, "support_triage": sources.read_support_triage}
FILTERS = {"all": "", "agreed": "_agreed"}
"""Rows with written answers to learn: all, or those that are agreed on. With the ending of their figures."""
OBJECTIVES = ("answer", "reasoning", "multitask")
WRITTEN = {"commonsenseqa": ("cqa", sources.read_commonsenseqa), "svamp": ("svamp", sources.read_svamp)}
PARTS = ("shrink", "table", "soft_hard", *WRITTEN)
SYSTEMS = (
    "teacher",
    "human_examples",
    "human",
    "distilled",
    *(f"combined_x{factor}" for factor in HUMAN_FACTORS),
    "combined_written",
    "combined_preference",
    "progressive",
)
"""The rows of `table`. `distilled` and `progressive` are also measured for an encoder of 3 layers."""
NOTE = (
    "Banking77 (Casanueva et al. 2020; PolyAI, CC BY 4.0), CommonsenseQA (Talmor et al. 2019) and SVAMP (Patel et al. "
    "2021) with the recorded answers of Hsieh et al. 2023. The teacher of Banking77 and of the tickets is a "
    "frontier-class LLM of 2026, recorded. It knows the labelling habits of Banking77 to some degree."
)


def measure_shrink(bench: Bench, source: sources.Source) -> Figures:
    """Accuracy and latency of the encoder with 6 layers, with 3, and with 3 that imitate the 6."""
    rows, validation = source.split(source.taught)
    soft = {"weight": 1.0}
    systems: dict[str, dict[str, Any]] = {
        "6_layers": {"objective": {"kind": "soft_label"} | soft},
        "3_layers": SHRUNK | {"objective": {"kind": "soft_label"} | soft},
        "3_layers_hidden_state": SHRUNK | {"objective": {"kind": "hidden_state"} | soft},
        "3_layers_attention": SHRUNK | {"objective": {"kind": "attention"} | soft},
    }
    settings = source.students["minilm"] | {"lora": SHRUNK["lora"]}
    figures: Figures = {}
    for name, change in systems.items():
        found = bench.measure_seeds(source, settings, rows, validation, **change)
        mean, deviation = summarize([one["accuracy"] for one in found.values()])
        latency = round(statistics.median(one["latency_s"] for one in found.values()), 5)
        figures[name] = {"accuracy": mean, "sd": deviation, "latency_s": latency}
    return {f"shrink_{source.name}": figures}


class Table:
    """The figure `table`: by source, a row for each student and system, with the accuracy of each seed.

    A row that is measured is written at once. It replaces the same seeds of its row in the file and keeps the others,
    unless they learned another number of rows.
    """

    def __init__(self, source: str, systems: list[str] | None, record: Callable[[Figures], None], known: Figures):
        self._source, self._record, self._systems = source, record, systems
        self._rows: list[Figures] = list(known.get("table", {}).get(source, []))

    def wants(self, system: str) -> bool:
        """Whether this run measures a system."""
        return self._systems is None or system in self._systems

    def add(self, student: str | None, system: str, count: int, found: dict[int, float]) -> None:
        """Write the row of a system that learned `count` rows, with the accuracies that were `found` by seed."""
        by_seed = {str(seed): round(accuracy, 4) for seed, accuracy in found.items()}
        row: Figures = {"student": student, "system": system, "rows": count}
        for number, old in enumerate(self._rows):
            if (old["student"], old["system"]) == (student, system):
                if old["rows"] == count:
                    by_seed = old["by_seed"] | by_seed
                self._rows[number] = row
                break
        else:
            self._rows.append(row)
        row["accuracy"], row["sd"] = summarize(list(by_seed.values()))
        row["by_seed"] = dict(sorted(by_seed.items()))
        print(row, flush=True)
        self._record({"table": {self._source: self._rows}})


def measure_table(bench: Bench, source: sources.Source, students: list[str], table: Table) -> None:
    """The rows of one source in the figure `table`: every system of every student that is wanted."""
    rows, validation = source.split(source.taught)

    def train(student: str, system: str, settings: Figures, part: list[TrainRow], epochs: int | None = None) -> None:
        if table.wants(system):
            held = [] if epochs else validation
            found = bench.measure_seeds(source, settings, part, held, epochs)
            table.add(student, system, len(part), {seed: one["accuracy"] for seed, one in found.items()})

    if table.wants("teacher"):
        table.add(None, "teacher", 0, {0: source.teacher})
    for student in students:
        settings = source.students[student]
        epochs = bench.change.get("epochs") or settings["seed_only_epochs"]
        train(student, "human_examples", settings, source.human[: source.examples], epochs)
        train(student, "human", settings, source.human, epochs)
        train(student, "distilled", settings, rows)
        for factor in HUMAN_FACTORS:
            train(student, f"combined_x{factor}", settings, rows + factor * source.human)
    if "minilm" in students:
        train("minilm, 3 layers", "distilled", source.students["minilm"] | SHRUNK, rows)
    if "smollm2" in students:
        for system, then in (("combined_written", []), ("combined_preference", [DPO])):
            if table.wants(system):
                part = rows + source.human
                accuracies = {seed: measure_preference(bench, source, part, seed, then) for seed in bench.seeds}
                table.add("smollm2", system, len(part), accuracies)
        if table.wants("progressive"):
            accuracies = {seed: measure_progressive(bench, source, seed) for seed in bench.seeds}
            table.add("minilm, 3 layers", "progressive", len(rows), accuracies)


def measure_preference(
    bench: Bench, source: sources.Source, rows: list[TrainRow], seed: int, then: list[dict[str, Any]]
) -> float:
    """Accuracy of smollm2 on these rows and phases after it.

    It writes the label, with and without a phase, so compare these two. In the other systems smollm2 chooses the label.
    A pair is the teacher's label and the label that the teacher found next likely.
    """
    pairs = []
    for row in rows:
        others = sorted(((prob, label) for label, prob in row.soft.items() if label != row.answer_label), reverse=True)
        if others and others[0][0] > 0:
            pairs.append(PreferencePair(row, replace(row, answer_label=others[0][1], target=others[0][1])))
    change = {"objective": "answer", "patience": None, "then": then, "answer_tokens": 24}
    spec = bench.build_spec(source.students["smollm2"], seed, **change)
    return float(bench.measure(source, spec, rows, [], pairs=pairs if then else None, writes=True)["accuracy"])


def measure_progressive(bench: Bench, source: sources.Source, seed: int) -> float:
    """Teacher, then smollm2, then an encoder of 3 layers that learns the probabilities of smollm2."""
    rows, validation = source.split(source.taught)
    asked = [row.prompt for row in [*rows, *validation]]
    large = bench.build_spec(source.students["smollm2"], seed)
    probs = bench.measure(source, large, rows, validation, asked=asked)["probs"]
    taught = [
        replace(row, soft=soft, answer_label=max(soft, key=soft.__getitem__))
        for row, soft in zip([*rows, *validation], probs, strict=True)
    ]
    small = bench.build_spec(source.students["minilm"] | SHRUNK, seed)
    return float(bench.measure(source, small, taught[: len(rows)], taught[len(rows) :])["accuracy"])


def measure_soft_hard(bench: Bench, source: sources.Source, shares: list[int]) -> Figures:
    """Soft against hard labels at shares of the prompts, for the encoder. The same rows and seeds for both."""
    figures: Figures = {}
    for share in shares:
        found: dict[str, list[float]] = {"soft": [], "hard": []}
        for seed in bench.seeds:
            order = random.Random(f"rows {seed}").sample(source.taught, len(source.taught))
            rows, validation = source.split(order[: max(2, round(share / 100 * len(order)))])
            for name, objective in (("soft", {"kind": "soft_label", "weight": 1.0}), ("hard", {"kind": "answer"})):
                spec = bench.build_spec(source.students["minilm"], seed, objective=objective)
                found[name].append(bench.measure(source, spec, rows, validation)["accuracy"])
        found["soft_minus_hard"] = [a - b for a, b in zip(found["soft"], found["hard"], strict=True)]
        for name, values in found.items():
            key = f"{name}_{share}pct_{source.name}"
            figures[key], figures[f"{key}_sd"] = summarize(values)
    return figures


def measure_written(
    bench: Bench,
    source: sources.Source,
    short: str,
    most: int | None,
    objectives: list[str],
    filters: list[str],
    all_layers: bool,
    results: Results,
) -> Figures:
    """Objectives of written answers, on all rows and on those that are agreed on.

    Each figure is written as soon as it is measured. `<short>_best` is the best mean, also of those written before. A
    student learns at most `most` rows; None: all. With `all_layers` all of its layers get an adapter.
    """
    every, settings = source.split(source.taught), source.students["smollm2, all layers" if all_layers else "smollm2"]
    group = short + ("" if most else "_full") + ("_all_layers" if all_layers else "")
    name_of_accuracy = re.compile(rf"{short}(_full)?(_all_layers)?_({'|'.join(OBJECTIVES)})(_agreed)?")
    figures: Figures = {f"{short}_teacher": round(source.teacher, 4), f"{group}_items": len(source.golden)}
    parts = {"all": every, "agreed": tuple([r for r in part if r.prompt_id in source.agreed] for part in every)}
    for kind in objectives:
        for name in filters:
            suffix, (rows, validation) = FILTERS[name], parts[name]
            rows, validation = rows[:most], validation[: max(1, most // 10) if most else None]
            if kind == "reasoning":
                rows, validation = (
                    [replace(r, target=sources.add_reasoning(r)) for r in part] for part in (rows, validation)
                )
            tokens = 24 if kind == "answer" else 112
            change: Figures = {"objective": kind, "answer_tokens": tokens, "max_cut_targets": 0.1}
            found = bench.measure_seeds(source, settings, rows, validation, **change)
            mean, deviation = summarize([one["accuracy"] for one in found.values()])
            figures |= {f"{group}_{kind}{suffix}": mean, f"{group}_{kind}{suffix}_sd": deviation}
            figures[f"{group}_{kind}{suffix}_rows"] = len(rows)
            known = (results.read() | figures).items()
            figures[f"{short}_best"] = max(value for name, value in known if name_of_accuracy.fullmatch(name))
            results.add(figures)
    return figures


class Results:
    """The result file, or nothing where none is wanted. What it holds stays unless it is measured again."""

    def __init__(self, target: Path | None) -> None:
        self._target = target

    def read(self) -> Figures:
        """The figures in the file."""
        if self._target is None or not self._target.exists():
            return {}
        figures: Figures = json.loads(self._target.read_text())["figures"]
        return figures

    def add(self, figures: Figures) -> None:
        """Write new figures. The figure `table` keeps the sources that the new one does not have."""
        if "table" in figures:
            figures = figures | {"table": self.read().get("table", {}) | figures["table"]}
        write_result(self._target, figures, note=NOTE)


def measure_part(part: str, bench: Bench, arguments: argparse.Namespace, results: Results) -> Figures:
    """The figures of one part, of all its sources, but those of `table`, which are written row by row."""
    figures: Figures = {}
    if part in WRITTEN:
        short, read = WRITTEN[part]
        source = read(arguments.data)
        source.shorten(len(source.taught), arguments.items)
        most = None if arguments.full else arguments.rows
        return measure_written(
            bench, source, short, most, arguments.objectives, arguments.filters, arguments.all_layers, results
        )
    for name in arguments.sources:
        source = READERS[name](arguments.data)
        if arguments.quick:
            source.shorten(4 * arguments.rows, arguments.items)
        if part == "shrink":
            figures |= measure_shrink(bench, source)
        elif part == "table":
            table = Table(source.name, arguments.systems, results.add, results.read())
            measure_table(bench, source, arguments.students, table)
        else:
            figures |= measure_soft_hard(bench, source, arguments.shares)
    if part == "soft_hard" and 10 in arguments.shares:
        for suffix in ("", "_sd"):
            found = [figures[f"soft_minus_hard_10pct_{name}{suffix}"] for name in arguments.sources]
            figures[f"soft_minus_hard_10pct{suffix}"] = round(statistics.fmean(found), 4)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sources", nargs="+", choices=sorted(READERS), default=list(READERS))
    parser.add_argument("--students", nargs="+", choices=("minilm", "smollm2"), default=["minilm", "smollm2"])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="rows of `table` to measure (default: all)")
    parser.add_argument("--shares", nargs="+", type=int, choices=SHARES, default=[*SHARES], help="of `soft_hard`")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--rows", type=int, default=1200, help="most rows with written answers to learn (default: 1200)"
    )
    parser.add_argument("--full", action="store_true", help="learn all rows with written answers")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=[*OBJECTIVES], help="of written answers")
    parser.add_argument("--filters", nargs="+", choices=FILTERS, default=[*FILTERS], help="of written answers")
    parser.add_argument(
        "--all-layers", action="store_true", help="adapt all layers to written answers, not the last 10"
    )
    parser.add_argument("--items", type=int, default=sources.CQA_HELD_OUT, help="most held-out written answers")
    parser.add_argument("--home", type=Path, help="a folder for finished trainings, to continue from")
    parser.add_argument("--quick", action="store_true", help="few rows and one epoch, too few for real figures")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.items, arguments.seeds = 24, 12, [0]
    results = Results(wanted(arguments, "students"))
    with tempfile.TemporaryDirectory() as temporary:
        home = (arguments.home or Path(temporary)).resolve()
        bench = Bench(home, Home.from_env().models, arguments.seeds, QUICK if arguments.quick else {})
        for part in arguments.parts:
            figures = measure_part(part, bench, arguments, results)
            for name, value in figures.items():
                print(f"{name:40} {value}", flush=True)
            results.add(figures | {f"devices_{part}": dict(bench.devices)})
            bench.devices.clear()


if __name__ == "__main__":
    main()
