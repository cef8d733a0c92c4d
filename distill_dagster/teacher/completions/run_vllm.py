#!/usr/bin/env python3
"""Answer the request files in the folder of this program with vLLM's offline batch runner.

    python run_vllm.py --tensor-parallel-size 2 --max-model-len 8192

It needs Python and vLLM, nothing else. All options but `--at-once` go to `vllm run-batch`. Files are answered together,
up to `--at-once` requests (default 20000) per start of vLLM, since loading a model takes minutes. Answered files are
skipped, so start it again after it was killed. Several may run at the same time, also on several machines that share
the folder: each locks the files that it works on.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

REQUESTS, ANSWERS, OPTIONS_FILE = ".requests.jsonl", ".answers.jsonl", "vllm_options.json"
AT_ONCE = 20_000


def answer_all_files(folder: Path, options: list[str]) -> int:
    """Answer all files that are not answered yet. Returns the exit code."""
    at_once, options = _take_at_once(options)
    options = [*json.loads((folder / OPTIONS_FILE).read_text(encoding="utf-8")), *options]
    answered = 0
    while True:
        with ExitStack() as locks:
            files = _lock_files(folder, locks, at_once)
            if not files:
                print(f"Files answered: {answered}. None is left to do here.", file=sys.stderr)
                return 0
            code = _answer_files(folder, files, options)
        if code:
            print(f"vllm ended with exit code {code}. Files answered: {answered}. Start this again.", file=sys.stderr)
            return code
        answered += len(files)


def _take_at_once(options: list[str]) -> tuple[int, list[str]]:
    if "--at-once" not in options:
        return AT_ONCE, options
    place = options.index("--at-once")
    return int(options[place + 1]), options[:place] + options[place + 2 :]


def _lock_files(folder: Path, locks: ExitStack, at_once: int) -> dict[Path, list[str]]:
    """The next files without answers that nobody else works on, with their lines. They stay locked."""
    files: dict[Path, list[str]] = {}
    for path in sorted(folder.glob(f"*{REQUESTS}")):
        with ExitStack() as lock:
            try:
                handle: IO[str] = lock.enter_context(path.open(encoding="utf-8", newline="\n"))
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, FileNotFoundError):  # another one works on it, or its answers were collected
                continue
            if _get_answers_path(path).exists():
                continue
            lines = handle.read().split("\n")[:-1]
            if files and sum(map(len, files.values())) + len(lines) > at_once:
                break
            files[path] = lines
            locks.push(lock.pop_all())
    return files


def _answer_files(folder: Path, files: dict[Path, list[str]], options: list[str]) -> int:
    """Let vLLM answer these files in one go, and write the answers to each. Returns vLLM's exit code."""
    owners = {json.loads(line)["custom_id"]: path for path, lines in files.items() for line in lines}
    with tempfile.TemporaryDirectory(prefix=".run-", dir=folder) as temporary:
        requests, answers = Path(temporary, "requests.jsonl"), Path(temporary, "answers.jsonl")
        requests.write_text("".join(f"{line}\n" for lines in files.values() for line in lines), encoding="utf-8")
        print(f"Requests: {len(owners)}. Files: {len(files)}.", file=sys.stderr)
        command = ["vllm", "run-batch", "-i", str(requests), "-o", str(answers), *options]
        try:
            code = subprocess.run(command, check=False).returncode
        except FileNotFoundError:
            print("There is no program `vllm` here. Install vLLM, or activate its environment.", file=sys.stderr)
            return 127
        if code:
            return code
        if not answers.exists() or not answers.stat().st_size:
            print("vLLM wrote no answers.", file=sys.stderr)
            return 1
        lines: dict[Path, list[str]] = {path: [] for path in files}
        with answers.open(encoding="utf-8", newline="\n") as handle:
            for line in handle:
                with suppress(ValueError):  # a line without an end; its request is asked for again
                    lines[owners[json.loads(line)["custom_id"]]].append(line)
        for path, own in lines.items():
            _write_whole(Path(temporary, path.name), _get_answers_path(path), "".join(own))
    return 0


def _write_whole(temporary: Path, target: Path, text: str) -> None:
    """Write a file that appears whole, and stays after a power failure."""
    with temporary.open("w", encoding="utf-8", newline="\n") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(target)


def _get_answers_path(requests: Path) -> Path:
    return requests.with_name(requests.name.removesuffix(REQUESTS) + ANSWERS)


if __name__ == "__main__":
    sys.exit(answer_all_files(Path(__file__).resolve().parent, sys.argv[1:]))
