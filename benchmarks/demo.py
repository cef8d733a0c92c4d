"""Run the bundled task in an empty home, as `make demo` does: figures, time, memory, and latency as deployed.

Usage: python benchmarks/demo.py [--embedded] [--quick] [--json FILE] [--home FOLDER]

Both packaged students are distilled, `minilm` first, so that its time is known alone (`pipeline_minilm_s`).
`pipeline_s` and `overhead_s` are those of both. Figures of `smollm2` have no suffix. `best_baseline` is the best system
that had no teacher, the student on human labels alone included. `systems` has what the README's table shows, and
`distillation` what distilling took.

`--embedded` does what `make demo TEACHER=embedded` does, measures the teacher's latency too, and writes
demo_embedded.json. `--home` keeps the generated files; the default removes them. `--quick` only measures the latency of
the embedded teacher, on a few tickets.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import name_verdict, open_home, peak_mb, read_score, run_task, wanted, write_result

from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.evaluation.recommendation import HAD_TEACHER
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.prompts.few_shot import build_prompt_context, read_example_pool
from distill_dagster.prompts.templates import Templates

TASK = "support_triage"
STUDENTS = ("minilm", "smollm2")
SHARED = ("teacher", "centroid", "linear_probe")
"""Systems that are the same for all students."""
COLD_REPEATS = 5


def copy_task_as_make_does(home: Home, task: str) -> None:
    """Copy the bundled task below `home.tasks` with the command that the Makefile has."""
    from typer.testing import CliRunner

    from distill_dagster.cli import app

    if (home.tasks / task).exists():
        return
    shutil.copytree(PROJECT_FOLDER / "data" / "tasks" / TASK, home.tasks / TASK, dirs_exist_ok=True)
    command = ["make", "-n", "demo", "TEACHER=embedded", f"DISTILL_TASKS={home.tasks}"]
    shown = subprocess.run(command, cwd=PROJECT_FOLDER, capture_output=True, text=True, check=True).stdout
    [copying] = re.findall(r"distill (copy .*)", shown)
    environment = {"DISTILL_HOME": str(home.root), "DISTILL_TASKS": str(home.tasks)}
    ended = CliRunner().invoke(app, shlex.split(copying), env=environment)
    if ended.exit_code:
        raise SystemExit(ended.output)


def teacher_latency(home: Home, task_name: str, items: int) -> dict[str, Any]:
    """Measure seconds per answer of the embedded teacher, asked one by one over HTTP without the store.

    Warm: the server has answered before and caches what prompts share. Cold: a new server processes every token.
    Finding the nearest examples is not counted; one embedding takes as long as one answer of `centroid`.
    """
    from distill_dagster.student.sentences import make_sentence_embedder
    from distill_dagster.teacher.asking.asked_prompt import AskedPrompt
    from distill_dagster.teacher.asking.requests import RequestBuilder
    from distill_dagster.teacher.providers import event_loop
    from distill_dagster.teacher.providers.client import ask_once
    from distill_dagster.teacher.providers.embedded import EMBEDDED_SERVERS
    from distill_dagster.teacher.providers.exchange import Response

    folder = open_task(home.tasks, task_name, home.accepted)
    task, examples = folder.task, read_example_pool(build_prompt_context(folder.examples, set()))
    texts = [row.text for row in folder.dev[: items + 1]]
    draws = range(task.teacher.few_shot.draws)

    async def ask_all(requests: RequestBuilder, wanted: list[tuple[str, int]]) -> list[Response]:
        timeout = task.teacher.timeout_s
        return [
            await ask_once(requests.endpoint, requests.build(AskedPrompt(text), draw), timeout) for text, draw in wanted
        ]

    def served(wanted: list[tuple[str, int]]) -> list[Response]:
        endpoint, lease = EMBEDDED_SERVERS.acquire(task.teacher, home.models)
        try:
            embed = make_sentence_embedder(task.teacher, home.models)
            return event_loop.run_in_loop(
                ask_all(RequestBuilder(task, Templates({}), examples, endpoint, embed), wanted)
            )
        finally:
            EMBEDDED_SERVERS.release(lease)

    warm = served([(text, draw) for text in texts for draw in draws])[len(draws) :]  # the first text warms up
    per_text = [warm[i : i + len(draws)] for i in range(0, len(warm), len(draws))]
    cold = [served([(texts[i % len(texts)], 0)])[0] for i in range(COLD_REPEATS)]
    processed = [sum((r.prompt_tokens or 0) - (r.cached_tokens or 0) for r in rs) for rs in per_text]
    return {
        "teacher_latency_s": round(median(sum(r.latency_s for r in rs) for rs in per_text), 4),
        "teacher_tokens_processed": median(processed),
        "teacher_tokens": median(sum(r.prompt_tokens or 0 for r in rs) for rs in per_text),
        "teacher_one_draw_cold_latency_s": round(median(r.latency_s for r in cold), 4),
        "teacher_one_draw_cold_tokens": median(r.prompt_tokens or 0 for r in cold),
    }


def pipeline(root: Path, home: Home, task: str) -> dict[str, Any]:
    """Distil into `minilm`, then into `smollm2`, from an empty home, and check that a second run has nothing to do."""
    figures: dict[str, Any] = {}
    metrics: dict[str, dict[str, Any]] = {}
    wall = model = calls = 0.0
    for student in STUDENTS:
        started = time.perf_counter()
        summary, one = run_task(root, home.tasks, task, [student])
        wall, model = wall + time.perf_counter() - started, model + summary.model_s
        calls, metrics = calls + summary.teacher_calls, metrics | one
        figures.setdefault(f"pipeline_{student}_s", round(wall, 1))
    del figures["pipeline_smollm2_s"]  # what both took is pipeline_s
    figures |= {"pipeline_s": round(wall, 1), "overhead_s": round(wall - model, 1), "teacher_calls": int(calls)}
    figures["peak_mb"] = peak_mb()
    again = time.perf_counter()
    second, _ = run_task(root, home.tasks, task, list(STUDENTS))
    if second.runs:
        raise SystemExit(f"the second run had something to do: {second.partitions}")
    figures["nothing_to_do_s"] = round(time.perf_counter() - again, 1)
    for student, values in metrics.items():
        figures |= read_metrics(values, "" if student == "smollm2" else f"_{student}")
        figures[f"{student}_latency_s"] = round(values["systems"]["distilled"]["latency_s"]["p50"], 4)
    return figures | {"systems": list_systems(metrics), "distillation": read_distillations(metrics)}


def list_systems(metrics: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every system with its student: accuracy with its interval, seconds per answer, bytes, USD for 1,000 answers.

    Those that all students share are the first student's.
    """
    rows: list[dict[str, Any]] = []
    for student, values in metrics.items():
        for name, facts in values["systems"].items():
            if name in SHARED and any(row["system"] == name for row in rows):
                continue
            usd, latency = facts["cost_usd_per_1k"], facts["latency_s"]["p50"]
            rows.append(
                {
                    "system": name,
                    "student": None if name in SHARED else student,
                    **read_score(facts),
                    "latency_s": round(latency, 5) if latency is not None else None,
                    "bytes": facts["bytes"],
                    "usd_per_1k": float(f"{usd:.3g}") if usd is not None else None,
                }
            )
    return rows


def read_distillations(metrics: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By student, what distilling took, and from how many requests on it pays."""
    wanted_parts = ("usd", "training_s", "break_even_requests", "rental_requests_per_day")
    found = {student: values["distillation"] for student, values in metrics.items()}
    return {
        student: {part: round(one[part] or 0, 3) or None for part in wanted_parts} for student, one in found.items()
    }


def read_metrics(values: dict[str, Any], suffix: str) -> dict[str, Any]:
    """The figures of one student's metrics.json. `suffix` is that of its own figures."""
    golden = {name: facts["score"]["value"] for name, facts in values["systems"].items()}
    dev = {name: facts["accuracy"]["value"] for name, facts in values["splits"]["dev"]["systems"].items()}
    figures = {f"{name}{'' if name in SHARED else suffix}": round(score, 4) for name, score in golden.items()}
    others = {name: score for name, score in golden.items() if name != "distilled" and name not in HAD_TEACHER}
    figures |= {f"{name}_dev": round(dev[name], 4) for name in ("teacher", "linear_probe") if name in dev}
    return figures | {
        f"best_baseline{suffix}": round(max(others.values()), 4),
        f"best_baseline_name{suffix}": max(others, key=lambda name: others[name]),
        f"retention{suffix}": round(values["retention"]["value"], 4),
        f"distilled_dev{suffix}": round(dev["distilled"], 4),
        f"worth_it{suffix}": name_verdict(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--home", type=Path)
    arguments = parser.parse_args()
    with open_home(arguments.home) as root:
        home = Home(root=root, tasks=PROJECT_FOLDER / "data" / "tasks")
        task = TASK
        if arguments.embedded or arguments.quick:
            home, task = Home(root=root, tasks=root / "tasks"), f"{TASK}_embedded"
            copy_task_as_make_does(home, task)
        figures: dict[str, Any] = {}
        if not arguments.quick:
            figures |= pipeline(root, home, task)
        if task != TASK:
            figures |= teacher_latency(home, task, 8 if arguments.quick else 40)
    for name, value in figures.items():
        print(f"{name:34} {value}")
    write_result(wanted(arguments, "demo_embedded" if arguments.embedded else "demo"), figures)


if __name__ == "__main__":
    main()
