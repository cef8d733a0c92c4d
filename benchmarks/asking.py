"""Shared by the benchmarks of the teacher stage: a server in its own process, and a task that asks it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from slow_server import LABELS

from distill_dagster.config import BudgetSpec
from distill_dagster.prompts.few_shot import build_prompt_context, read_example_pool
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.prompts.templates import Templates
from distill_dagster.tasks import Slice, TaskFolder
from distill_dagster.teacher.asking.ask import Asker, AskResult, run_ask
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.client import resolve_endpoint

HERE = Path(__file__).resolve().parent
PRICE = {"input_usd": 1.0, "output_usd": 2.0}


@contextmanager
def server(folder: Path, **options: float) -> Iterator[str]:
    """Run a slow server and yield its address."""
    port_file = folder / f"port-{time.monotonic_ns()}"
    flags = [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.Popen([sys.executable, str(HERE / "slow_server.py"), str(port_file), *flags])
    try:
        while not port_file.exists():
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port_file.read_text()}"
    finally:
        process.kill()
        process.wait()


def counts(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/counts") as answer:
        return json.load(answer)


def write_task(folder: Path, address: str, **teacher: Any) -> TaskFolder:
    """Write a task with four labels that asks the server by chat, with one sample per prompt."""
    path = folder / "tasks" / "asking"
    (path / "slices").mkdir(parents=True, exist_ok=True)
    settings = {"model": "openai/slow", "api_base": f"{address}/v1", "few_shot": {"draws": 1, "per_label": 1}}
    task = {
        "kind": "classification",
        "description": "Requests to a server that counts them.",
        "labels": [{"name": label, "description": f"About {label}."} for label in LABELS],
        "teacher": settings | {"price": PRICE} | teacher,
        "students": {"one": {"model": "all-minilm-l6-v2", "architecture": "encoder"}},
    }
    (path / "task.yaml").write_text(yaml.safe_dump(task))
    (path / "slices" / "all.yaml").write_text(yaml.safe_dump({"description": "d", "seeds": ["one prompt"]}))
    for name in ("examples", "dev", "golden"):
        rows = [{"id": f"{name}-{label}", "text": f"{name} of {label}", "label": label} for label in LABELS]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TaskFolder(path)


def ask(
    folder: TaskFolder, store: CompletionStore, texts: list[str], budget: BudgetSpec, campaign: str = "benchmark"
) -> AskResult:
    """Do what the stage teacher_completions does, from prompts to a table."""
    task = folder.task
    prompts = build_seed_prompts("all", Slice.model_validate({"description": "d", "seeds": texts}))
    account = Account(folder.name, campaign, "slices", budget)
    examples = read_example_pool(build_prompt_context(folder.examples, set()))
    asker = Asker(RequestBuilder(task, Templates({}), examples, resolve_endpoint(task.teacher)), store, account)
    return run_ask(asker, prompts)
