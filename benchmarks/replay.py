"""Run recorded teachers through the real stage: PaLM and Llama-3-8B on CommonsenseQA, PaLM on SVAMP. Measure resuming.

Usage: python benchmarks/replay.py --data FOLDER [--quick] [--json FILE]

FOLDER holds commonsenseqa/{questions,completions-palm,completions-llama3-8b}.jsonl and svamp/{train,completions-palm-
train}.jsonl: public data, as shipped with Hsieh et al. 2023, "Distilling Step-by-Step!". `distill import` reads
questions as seeds and completions as recorded. A replay teacher answers them in `teacher_completions`, which uses the
task's own answer pattern. Accuracy is over all questions; a question without an answer is wrong.

agree_*: questions kept by the filter `min_teacher_agreement: 1` with both teachers, and how often the answer is right.
Both are read by the letter or the words of an option. cascade_*: the stage's own `cascade` of Llama-3-8B, then PaLM if
that has no answer. There is one recorded completion per question, so a cascade by disagreement cannot be shown.

resume_100k_s: wall seconds of the whole stage `teacher_completions`, with checks and table, for 100,000 prompts that
the store answers. The teacher is an address where no server listens.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from common import RESULTS, peak_mb, write_result

from distill_dagster.core.hashing import hash_content
from distill_dagster.core.paths import Home
from distill_dagster.curation.filters import FilterSettings, filter_rows, select_filters
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds import Question, get_kind
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.prompts.seeds import compute_prompt_id
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.messages import make_user_messages
from distill_dagster.tables.schemas import COMPLETIONS, SCORED
from distill_dagster.tasks import TaskFolder

STRICT = {"pattern": r"So the answer is \([a-e]\) (?P<answer>.*)\.", "stop": "\n\nQ:", "exact": True}
OPTION = {"pattern": r"(?s)So the answer is.*?\(.\)(?P<answer>.*?)\.?\s*$", "stop": "Q:", "choices": True}
EQUATION = {"pattern": r"The answer is (?P<answer>\(.*?\))\.", "stop": "\n\nQ:"}
SLICES = 4
QUICK_SLICES = 1
RESUMED = 100_000


def lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as handle:
        yield from map(json.loads, handle)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_task(home: Home, name: str, **settings: Any) -> Path:
    """Write a task folder without prompts. Its few labelled rows are not from the data."""
    folder = home.tasks / name
    task = {
        "description": "Recorded completions of a public data set.",
        "item": "Question",
        "students": {"small": {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}},
        **settings,
    }
    folder.mkdir(parents=True)
    (folder / "task.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    for number, file in enumerate(("examples", "dev", "golden")):
        rows: list[dict[str, Any]] = [{"text": f"Where do fish live? {number}\nAnswer Choices:\n(a) water\n(b) sky"}]
        rows[0] |= {"id": file, "answer": "water", "reasoning": "They swim."}
        if task["kind"] == "math":
            rows = [{"id": file, "text": f"How many is {number}?", "answer": number, "reasoning": "It is so."}]
        elif task["kind"] == "classification":
            rows = [{"id": file + label, "text": f"{file} of {label}", "label": label} for label in "xy"]
        jsonl(folder / f"{file}.jsonl", rows)
    return folder


def change_task(home: Home, name: str, **settings: Any) -> None:
    path = home.tasks / name / "task.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings, sort_keys=False))


def distill(home: Home, *arguments: str) -> dict[str, Any]:
    """Run `distill` in this process and return the JSON object that it prints last."""
    from distill_dagster.cli import app

    where = {"DISTILL_HOME": home.root, "DISTILL_TASKS": home.tasks, "DAGSTER_HOME": home.instance}
    os.environ.update({name: str(path) for name, path in where.items()})
    started = time.perf_counter()
    with redirect_stdout(io.StringIO()) as said:
        code = app([*arguments, "--json"], standalone_mode=False)
    print(f"[{time.perf_counter() - started:6.1f} s] distill {' '.join(arguments[:4])}", file=sys.stderr, flush=True)
    if code:
        raise SystemExit(f"distill {arguments[0]} failed")
    return dict(json.loads(said.getvalue().strip().splitlines()[-1]))


def teacher(name: str) -> dict[str, Any]:
    return {"model": f"replay/{name}", "min_success": 0, "replay": {"match": "id"}, "few_shot": {"per_label": 1}}


def answers(home: Home, name: str) -> dict[str, dict[str, Any]]:
    """Return answers by prompt_id (None without one): of each teacher in teacher_completions, and of the candidates."""
    done = distill(home, "backfill", name, "--which", "all")
    if done["teacher_calls"] or done["failed"]:
        raise SystemExit(f"{name}: {done['teacher_calls']} requests were sent, failed: {done['failed']}")
    lake, out = open_lake(home), dict[str, dict[str, Any]]()
    for key in open_task(home.tasks, name, home.accepted).list_slice_keys():
        frame, _ = lake.read(name, "teacher_completions", key, COMPLETIONS)
        first = frame.filter(pl.col("sample_index") == 0).select("teacher", "prompt_id", "answer")
        scored, _ = lake.read(name, "scored_completions", key, SCORED)
        chosen = scored.select(pl.lit("candidate").alias("teacher"), "prompt_id", "answer")
        for teacher_, id_, answer in pl.concat([first, chosen]).iter_rows():
            out.setdefault(teacher_, {})[id_] = json.loads(answer) if answer is not None else None
    return out


def accuracy(home: Home, name: str, found: dict[str, Any], right: dict[str, Any]) -> float:
    kind = get_kind(open_task(home.tasks, name, home.accepted).task)
    return sum(kind.score(found[id_], right[id_]) for id_ in right) / len(right)


def key_of(text: str) -> str:
    return compute_prompt_id(make_user_messages(text.strip()))


def commonsense(home: Home, data: Path, limit: int | None) -> dict[str, float]:
    slices = SLICES if limit is None else QUICK_SLICES
    rows, right = [], dict[str, Any]()
    for row in list(lines(data / "questions.jsonl"))[:limit]:
        options = "\n".join(f"({letter}) {choice}" for letter, choice in zip("abcde", row["choices"], strict=False))
        text = f"{row['question']}\nAnswer Choices:\n{options}"
        rows.append({"id": row["id"], "text": text, "part": f"part-{int(hash_content(row['id'])[:4], 16) % slices}"})
        right[key_of(text)] = row["answer"]
    name, place = "commonsense", home.root / "files"
    write_task(home, name, kind="qa", reasoning=True, answer=STRICT, teacher=teacher("palm"))
    imported(home, name, rows, place, "--slice-field", "part")
    for model, file in (("palm", "completions-palm.jsonl"), ("llama", "completions-llama3-8b.jsonl")):
        recorded(home, name, data / file, model, limit)
    figures = {"cqa_questions": float(len(right))}
    figures["cqa_accuracy"] = accuracy(home, name, answers(home, name)["replay/palm"], right)
    both = {"llama": teacher("llama"), "palm": teacher("palm")}
    change_task(home, name, answer=OPTION, teacher=None, teachers=both)
    found = answers(home, name)
    figures["cqa_accuracy_by_option"] = accuracy(home, name, found["palm"], right)
    figures["llama_accuracy_by_option"] = accuracy(home, name, found["llama"], right)
    figures |= agreeing(home, name, right)
    change_task(home, name, cascade={})
    found = answers(home, name)
    figures["cascade_strong_share"] = len(found["palm"]) / len(right)
    figures["cascade_accuracy"] = accuracy(home, name, found["candidate"], right)
    return figures


def agreeing(home: Home, name: str, right: dict[str, Any]) -> dict[str, float]:
    """Measure what the filter by teacher agreement keeps, and the share that is right."""
    folder, lake = open_task(home.tasks, name, home.accepted), open_lake(home)
    about, kind = TaskView.from_task(folder.task), get_kind(folder.task)
    filters = select_filters(FilterSettings.model_validate({"min_teacher_agreement": 1.0}), about)
    kept = []
    for key in folder.list_slice_keys():
        for batch in filter_rows(lake.read(name, "scored_completions", key, SCORED)[0], filters, about):
            kept += batch.filter(pl.col("drop_reason").is_null()).select("prompt_id", "answer").rows()
    correct = sum(kind.score(json.loads(answer), right[id_]) for id_, answer in kept)
    return {"agree_kept": len(kept) / len(right), "agree_precision": correct / len(kept)}


def imported(home: Home, name: str, rows: list[dict[str, Any]], place: Path, *more: str) -> None:
    path = jsonl(place / f"{name}.jsonl", rows)
    done = distill(home, "import", name, str(path), "--as", "seeds", *more)
    if sum(done["added"].values()) != len(rows):
        raise SystemExit(f"{name}: {done['added']} of {len(rows)} prompts were imported, left out: {done['skipped']}")


def recorded(home: Home, name: str, path: Path, model: str, limit: int | None) -> None:
    if limit is not None:
        path = jsonl(home.root / "files" / path.name, list(lines(path))[:limit])
    distill(home, "import", name, str(path), "--as", "recorded", "--name", model)


def svamp(home: Home, data: Path, limit: int | None) -> dict[str, float]:
    name = "svamp"
    write_task(home, name, kind="math", reasoning=True, answer=EQUATION, teacher=teacher("palm"))
    kind = get_kind(open_task(home.tasks, name, home.accepted).task)
    rows = list(lines(data / "train.jsonl"))[:limit]
    right = {key_of(row["question"]): kind.canonicalize(row["equation"], Question(row["question"])) for row in rows}
    seeds = [{"id": row["id"], "text": row["question"]} for row in rows]
    imported(home, name, seeds, home.root / "files", "--slice", "train")
    recorded(home, name, data / "completions-palm-train.jsonl", "palm", limit)
    return {
        "svamp_questions": float(len(right)),
        "svamp_accuracy": accuracy(home, name, answers(home, name)["replay/palm"], right),
    }


@contextmanager
def timed(note: Callable[[float], None]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    note(time.perf_counter() - started)


def resume(home: Home, count: int) -> dict[str, float]:
    """Run the stage over `count` prompts with stored answers, and measure the seconds in total and for asking."""
    from distill_dagster.pipeline.stages import prompts
    from distill_dagster.pipeline.stages import teacher as stage
    from distill_dagster.pipeline.stages.context import StageContext, StageInputs
    from distill_dagster.pipeline.stages.gate import PASSED_VERSION
    from distill_dagster.prompts.few_shot import read_example_pool
    from distill_dagster.prompts.templates import Templates, get_template_names
    from distill_dagster.tables.schemas import PREDICTIONS, PROMPT_CONTEXT
    from distill_dagster.teacher.asking.asked_prompt import AskedPrompt
    from distill_dagster.teacher.asking.requests import RequestBuilder
    from distill_dagster.teacher.completions.store import STORE_FILE, CompletionStore
    from distill_dagster.teacher.providers.client import resolve_endpoint
    from distill_dagster.teacher.providers.exchange import Response

    name = "resumed"
    asked = {"model": "openai/none", "api_base": "http://127.0.0.1:9/v1", "max_retries": 0, "concurrency": 64}
    few = {"per_label": 1, "draws": 1}
    labels = [{"name": label, "description": label} for label in "xy"]
    write_task(home, name, kind="classification", labels=labels, teacher=asked | {"few_shot": few})
    texts = [f"Ticket {n}: {hash_content(n)[:40]}" for n in range(count)]
    (home.tasks / name / "slices").mkdir()
    value = {"description": "All.", "seeds": texts}
    (home.tasks / name / "slices" / "all.yaml").write_text(json.dumps(value))
    folder: TaskFolder = open_task(home.tasks, name, home.accepted)
    lake, store = open_lake(home), CompletionStore.open_in_folder(home.store)

    @contextmanager
    def endpoint(spec: Any) -> Iterator[Any]:
        yield resolve_endpoint(spec)

    env = StageContext(folder, lake, store, home.models, home.reports, endpoint)
    prompts.make_prompt_context(env, None)
    prompts.make_seed_prompts(env, "all")
    gate = StageInputs(env, "teacher_gate", None)  # as after a teacher that passed
    gate.note_source("teacher_settings")
    lake.write(
        name,
        pl.DataFrame(schema=PREDICTIONS),
        ArtifactRecord("teacher_gate", None, PASSED_VERSION, gate.stage.code_version, gate.versions),
    )
    examples = read_example_pool(lake.read(name, "prompt_context", None, PROMPT_CONTEXT)[0])
    templates = Templates(folder.read_templates(), get_template_names(folder.task.kind, folder.task.reasoning))
    requests = RequestBuilder(folder.task, templates, examples, resolve_endpoint(folder.task.teacher))
    told = Response("x", "stop", [], 20, 1, 0, None, 0.2, 1, "none", "2026-01-01T00:00:00.000+00:00")
    response = json.dumps(asdict(told))
    with sqlite3.connect(home.store / STORE_FILE) as database:
        rows = ((requests.build(AskedPrompt(text), 0).key, response, told.received_at) for text in texts)
        database.executemany("INSERT INTO completions (request_key, response, received_at) VALUES (?, ?, ?)", rows)
    figures: dict[str, float] = {}
    with timed(lambda s: figures.update(stage_s=s)):
        made = stage.make_teacher_completions(env, "all")
    if made.record.extra["teacher_calls"] or made.record.missing_rows or made.record.rows != count:
        raise SystemExit("the resumed stage asked, or missed rows")
    store.close()
    return {"rows": float(count), "stage_s": figures["stage_s"], "asking_s": float(made.record.extra["model_s"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="300 questions per set, 2,000 resumed: under a minute")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    limit, count = (300, 2000) if arguments.quick else (None, RESUMED)
    with tempfile.TemporaryDirectory() as root:
        home = Home(root=Path(root), tasks=Path(root) / "tasks")
        figures = commonsense(home, arguments.data / "commonsenseqa", limit)
        figures |= svamp(home, arguments.data / "svamp", limit)
        found = resume(home, count)
    if arguments.quick:
        figures |= {"resumed_rows": found["rows"], "resume_s": found["stage_s"]}
    else:
        figures |= {"resume_100k_s": found["stage_s"], "resume_100k_asking_s": found["asking_s"]}
    figures = {name: round(value, 4) for name, value in figures.items()} | {"peak_mb": peak_mb()}
    print(json.dumps(figures, indent=1))
    target = arguments.json or (None if arguments.quick else RESULTS / "replay.json")
    if target is not None:
        write_result(target, figures)


if __name__ == "__main__":
    main()
