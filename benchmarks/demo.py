"""Run the bundled task in an empty home, as `make demo` does: figures, time, memory, and latency as deployed.

Usage: python benchmarks/demo.py [--quick] [--json FILE] [--home FOLDER]

Every student is compared with the teacher of the same run. `--home` keeps the generated files; the default removes
them. `--quick` measures only the latency of the teacher and the bases.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from common import peak_mb, run_task, wanted, write_result

from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.prompts.few_shot import build_prompt_context, read_example_pool
from distill_dagster.prompts.templates import Templates

TASK = "support_triage"
COLD_REPEATS = 5


def teacher_latency(home: Home, items: int) -> dict[str, Any]:
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

    folder = open_task(home.tasks, TASK, home.accepted)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--home", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.home or Path(temporary)
        home = Home(root=root, tasks=PROJECT_FOLDER / "data" / "tasks")
        os.environ["DISTILL_HOME"] = str(root)
        figures: dict[str, Any] = {}
        if not arguments.quick:
            figures |= pipeline(root, home)
        figures |= teacher_latency(home, 8 if arguments.quick else 40)
        for student in ("minilm", "smollm2"):
            if f"{student}_latency_s" in figures:
                ratio = figures["teacher_latency_s"] / figures[f"{student}_latency_s"]
                figures[f"latency_ratio_{student}"] = round(ratio, 2)
                print(f"{student} answers {ratio:.1f} times as fast as the teacher with all draws and a warm cache")
    for name, value in figures.items():
        print(f"{name:34} {value}")
    write_result(wanted(arguments, "demo"), figures)


def pipeline(root: Path, home: Home) -> dict[str, Any]:
    """Train the default student from an empty home, then the other student."""
    started = time.perf_counter()
    summary, metrics = run_task(root, home.tasks, TASK, ["smollm2"])
    wall = time.perf_counter() - started
    figures: dict[str, Any] = {"pipeline_s": round(wall, 1), "overhead_s": round(wall - summary.model_s, 1)}
    figures |= {"peak_mb": peak_mb(), "teacher_calls": summary.teacher_calls}
    again = time.perf_counter()
    second, _ = run_task(root, home.tasks, TASK, ["smollm2"])
    if second.runs:
        raise SystemExit(f"the second run had something to do: {second.partitions}")
    figures["nothing_to_do_s"] = round(time.perf_counter() - again, 1)
    _, more = run_task(root, home.tasks, TASK, ["minilm"])
    for student, values in (metrics | more).items():
        suffix = "" if student == "smollm2" else f"_{student}"
        for system, facts in values["systems"].items():
            shared = system in ("teacher", "centroid")
            figures[f"{system}{'' if shared else suffix}"] = round(facts["score"]["value"], 4)
        figures[f"retention{suffix}"] = round(values["retention"]["value"], 4)
        figures[f"{student}_latency_s"] = round(values["systems"]["distilled"]["latency_s"]["p50"], 4)
        figures[f"teacher_dev{suffix}"] = round(values["splits"]["dev"]["systems"]["teacher"]["accuracy"]["value"], 4)
        figures[f"distilled_dev{suffix}"] = round(
            values["splits"]["dev"]["systems"]["distilled"]["accuracy"]["value"], 4
        )
    return figures


if __name__ == "__main__":
    main()
