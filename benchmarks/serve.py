"""Measure `distill serve`: what HTTP costs beside the bare model, and whether faults cost answers or memory.

Usage: python benchmarks/serve.py --home FOLDER [--export NAME] [--soak SECONDS] [--quick] [--json FILE]

`--home` is a DISTILL_HOME in which the bundled task was run and a student was released. It is only read: the server
runs in a home of its own, with a copy of the release, and with a teacher that is a local server.

`ratio_cN` is requests per CPU second of the server at N concurrent clients, divided by texts per CPU second of the same
export in a loop, one text at a time. Clients are another process, whose CPU time does not count. The student answers
everything. `cpu_ms_cN` is CPU ms per request, `p50_ms_cN` and `p95_ms_cN` are seen by the client.

The soak asks for tickets without end, and for others with faults: slow clients, cut connections, bodies of 10 MB, bad
JSON, unknown models, idle connections. A fifth of the tickets fall to the teacher, which is down half of the time.
`soak_lost` counts well-formed requests without an answer, `soak_wrong` answers of the student that differ from those of
the bare model, `soak_leak_mb` is how much the server's memory grew between a tenth of the soak and its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import psutil  # noqa: E402
import yaml  # noqa: E402
from common import wanted, write_result  # noqa: E402
from load import FAULTS, Answers, Connection, ask_all, ask_one, misbehave  # noqa: E402

from distill_dagster.core.paths import PROJECT_FOLDER, Home  # noqa: E402
from distill_dagster.release.registry import Registry  # noqa: E402
from distill_dagster.release.routing.table import ExportRouting, RoutingTable  # noqa: E402
from distill_dagster.release.runtimes.build import build_runtime, list_servable  # noqa: E402
from distill_dagster.release.runtimes.types import StudentSetup  # noqa: E402
from distill_dagster.student.types import StudentPrompt  # noqa: E402

TASK = "support_triage"
START = (sys.executable, "-m", "distill_dagster", "serve")
CONCURRENCIES = (1, 8, 32)
TEACHER_SHARE = 0.2
TEACHER_PERIOD_S = 20.0
"""The teacher is up for so long, then down for as long."""
SOAK_CLIENTS, BAD_CLIENTS = 4, 2


class ToldTeacher:
    """An OpenAI-compatible server that answers every ticket with the first label, or with status 503 while down."""

    def __init__(self, label: str) -> None:
        self.is_down = False
        self.asked = 0
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                teacher.asked += 1
                message = {"role": "assistant", "content": label}
                value: dict[str, Any] = {"choices": [{"message": message, "finish_reason": "stop", "index": 0}]}
                value["usage"] = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
                body = json.dumps(value if not teacher.is_down else {"error": {"message": "down"}}).encode()
                self.send_response(503 if teacher.is_down else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def prepare_home(root: Path, source: Home, export: str, number: int | None, threshold: float, url: str) -> Home:
    """A home with a copy of one release and its routing, and with the tables that the teacher needs."""
    home = Home(root / "home", root / "tasks")
    for name in ("prompt_context", "teacher_prior"):
        path = source.lake / TASK / f"{name}.parquet"
        (home.lake / TASK).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, home.lake / TASK / path.name)
    shutil.copytree(source.models, home.models)
    shutil.copytree(PROJECT_FOLDER / "data" / "tasks" / TASK, home.tasks / TASK)
    settings = yaml.safe_load((home.tasks / TASK / "task.yaml").read_text())
    for name in ("teachers", "cascade"):
        settings.pop(name, None)
    teacher = {"model": "openai/fake", "api_base": url, "api": "chat", "soft_labels": "votes", "calibration": "none"}
    settings["teacher"] = teacher | {
        "terms": {"acknowledged": True}, "max_retries": 0, "timeout_s": 5, "few_shot": {"per_label": 1, "draws": 1}
    }  # fmt: skip
    settings["serving"] = {"log_file_mb": 1, "log_files": 4}
    (home.tasks / TASK / "task.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    released = Registry(source.releases).read(TASK, number)

    def fill(folder: Path, _: int) -> dict[str, Any]:
        shutil.copytree(released.path, folder, dirs_exist_ok=True)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (folder / "manifest.json").unlink()
        RoutingTable(0.01, {export: ExportRouting(threshold, "task.yaml")}).write(folder)
        return {name: released.manifest[name] for name in ("student", "exports", "left_out")}

    Registry(home.releases).publish(TASK, fill)
    return home


@contextmanager
def serve(home: Home, export: str, *arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """`distill serve` as a process. Yields its address and the process."""
    log = home.root / f"serve-{time.monotonic_ns()}.log"
    environment = os.environ | {"DISTILL_HOME": str(home.root), "DISTILL_TASKS": str(home.tasks)}
    with log.open("w") as out:
        process = subprocess.Popen(
            [*START, TASK, "--port", "0", "--export", export, *arguments],
            env=environment | {"PYTHONPATH": str(PROJECT_FOLDER)},
            stdout=out,
            stderr=out,
        )
    try:
        while not (address := re.search(r"on (http://[\d.:]+)/v1", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield address.group(1), psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        if "Traceback" in (said := log.read_text()):
            print(said, file=sys.stderr)


def measure_cpu(process: psutil.Process) -> float:
    """CPU seconds of a process and of its children, such as llama.cpp's server."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def measure_memory_mb(process: psutil.Process) -> float:
    """Resident memory of a process and of its children in MiB."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20


def measure_bare(home: Home, export: str, texts: list[str]) -> tuple[float, dict[str, tuple[str, float]]]:
    """CPU seconds per text in a loop, and the label and confidence of each text."""
    release = Registry(home.releases).read(TASK)
    runtime = build_runtime(release.path, StudentSetup.read(release.path, home.models), export)
    runtime.open()
    me = psutil.Process()
    for text in texts[:20]:
        runtime.answer([StudentPrompt.from_text(text)])
    before, found = measure_cpu(me), {}
    for text in texts:
        [answer] = runtime.answer([StudentPrompt.from_text(text)])
        found[text] = (answer.answer, answer.confidence or 0.0)
    seconds = (measure_cpu(me) - before) / len(texts)
    runtime.close()
    return seconds, found


def measure_load(home: Home, export: str, texts: list[str], bare_s: float) -> dict[str, Any]:
    """Requests per CPU second and latencies at each concurrency, without the teacher."""
    figures: dict[str, Any] = {}
    with serve(home, export, "--no-fallback") as (address, process):
        asyncio.run(ask_all(address, texts[:50], 4))
        for clients in CONCURRENCIES:
            before, started = measure_cpu(process), time.perf_counter()
            found = asyncio.run(ask_all(address, texts, clients))
            cpu, wall = measure_cpu(process) - before, time.perf_counter() - started
            if found.lost:
                raise SystemExit(f"{len(found.lost)} requests were lost, the first: {found.lost[0]}")
            cuts = statistics.quantiles(found.seconds, n=20)
            figures |= {
                f"ratio_c{clients}": round(bare_s / (cpu / len(texts)), 3),
                f"cpu_ms_c{clients}": round(1000 * cpu / len(texts), 2),
                f"requests_per_s_c{clients}": round(len(texts) / wall, 1),
                f"p50_ms_c{clients}": round(1000 * cuts[9], 1),
                f"p95_ms_c{clients}": round(1000 * cuts[18], 1),
            }
            print(f"{clients:>2} clients: {figures[f'ratio_c{clients}']} of the bare model", flush=True)
    return figures


async def soak(
    address: str, process: psutil.Process, teacher: ToldTeacher, seconds: float, texts: list[str], rng: random.Random
) -> tuple[Answers, list[str], list[float]]:
    """Ask, misbehave and take the teacher down for a while. Returns answers, wrong reactions and memory over time."""
    found, wrong, memory = Answers(), list[str](), list[float]()
    end, period = time.monotonic() + seconds, min(TEACHER_PERIOD_S, seconds / 4)

    async def ask() -> None:
        connection = Connection(address)
        while time.monotonic() < end:
            # A new text now and then, so that nothing that is remembered per text can stay unseen.
            text = rng.choice(texts)
            await ask_one(connection, text if rng.random() < 0.7 else f"{text} ({rng.random():.6f})", found)
            await asyncio.sleep(rng.uniform(0, 0.02))
        await connection.close()

    async def misbehave_often() -> None:
        while time.monotonic() < end:
            if problem := await misbehave(address, rng.choice(FAULTS), rng):
                wrong.append(problem)
            await asyncio.sleep(rng.uniform(0, 0.2))

    async def watch() -> None:
        while time.monotonic() < end:
            teacher.is_down = int((end - time.monotonic()) / period) % 2 == 0
            memory.append(measure_memory_mb(process))
            await asyncio.sleep(1)

    await asyncio.gather(
        *(ask() for _ in range(SOAK_CLIENTS)), *(misbehave_often() for _ in range(BAD_CLIENTS)), watch()
    )
    return found, wrong, memory


def measure_soak(
    home: Home, export: str, teacher: ToldTeacher, seconds: float, known: dict[str, tuple[str, float]]
) -> dict[str, Any]:
    """The figures of the soak."""
    with serve(home, export) as (address, process):
        found, wrong, memory = asyncio.run(soak(address, process, teacher, seconds, list(known), random.Random(0)))
        first = memory[len(memory) // 10 : len(memory) // 10 + max(3, len(memory) // 20)]
        last = memory[-max(3, len(memory) // 20) :]
    is_wrong = [
        text for text, label, route in found.labels if route == "student" and text in known and label != known[text][0]
    ]
    for problem in [*found.lost[:5], *wrong[:5]]:
        print(problem, file=sys.stderr)
    return {
        "soak_s": round(seconds),
        "soak_requests": len(found.labels) + len(found.lost),
        "soak_lost": len(found.lost),
        "soak_wrong": len(is_wrong),
        "soak_wrong_reactions": len(wrong),
        "soak_teacher_answers": sum(route == "teacher" for _, _, route in found.labels),
        "soak_leak_mb": round(statistics.median(last) - statistics.median(first), 1),
        "soak_memory_mb": round(statistics.median(last), 1),
        "soak_p95_ms": round(1000 * statistics.quantiles(found.seconds, n=20)[18], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--release", type=int)
    parser.add_argument("--export")
    parser.add_argument("--soak", type=float, default=1800.0, metavar="SECONDS")
    parser.add_argument(
        "--repeats", type=int, default=4, help="how often every ticket is asked for at each concurrency"
    )
    parser.add_argument("--quick", action="store_true", help="few tickets, ten seconds of soak")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    source = Home(arguments.home.resolve(), PROJECT_FOLDER / "data" / "tasks")
    release = Registry(source.releases).read(TASK, arguments.release)
    export = arguments.export or list_servable(release.path)[0]
    rows = [
        json.loads(line)
        for name in ("golden", "dev")
        for line in (source.tasks / TASK / f"{name}.jsonl").read_text().splitlines()
    ]
    texts = [row["text"].strip() for row in rows]
    random.Random(0).shuffle(texts)
    repeats, seconds = (1, 10.0) if arguments.quick else (arguments.repeats, arguments.soak)
    settings = yaml.safe_load((source.tasks / TASK / "task.yaml").read_text())
    teacher = ToldTeacher(settings["labels"][0]["name"])
    with tempfile.TemporaryDirectory() as scratch:
        home = prepare_home(Path(scratch), source, export, arguments.release, 0.0, teacher.url)
        bare_s, known = measure_bare(home, export, texts)
        print(f"bare {export} of {release.student}: {1000 * bare_s:.2f} CPU ms a text", flush=True)
        figures = {"student": release.student, "export": export, "bare_cpu_ms": round(1000 * bare_s, 2)}
        figures |= measure_load(home, export, texts * repeats, bare_s)
        threshold = statistics.quantiles([confidence for _, confidence in known.values()], n=100)[
            round(100 * TEACHER_SHARE) - 1
        ]
        soak_home = prepare_home(Path(scratch) / "soak", source, export, arguments.release, threshold, teacher.url)
        figures |= measure_soak(soak_home, export, teacher, seconds, known)
    print(json.dumps(figures, indent=1))
    write_result(wanted(arguments, "serve"), figures)


if __name__ == "__main__":
    main()
