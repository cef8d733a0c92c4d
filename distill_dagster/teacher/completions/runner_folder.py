"""Files for vLLM's offline batch runner: requests that it answers without a server, and the program that starts it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from distill_dagster.config import TeacherSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.files import write_atomically
from distill_dagster.teacher.completions.run_vllm import ANSWERS, OPTIONS_FILE, REQUESTS

SCRIPT = "run_vllm.py"


class RunnerFolder:
    """The folder of one teacher. `NAME.requests.jsonl` is answered by `NAME.answers.jsonl`; both appear whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def script(self) -> Path:
        """The program that answers the requests in this folder."""
        return self.path / SCRIPT

    def write_requests(self, spec: TeacherSpec, name: str, lines: Sequence[str]) -> None:
        """Write a file of requests. The program and its options are there before it.

        Raises:
            TeacherError: the folder cannot be written.
        """
        try:
            program = Path(__file__).with_name(SCRIPT).read_bytes()
            if not self.script.exists() or self.script.read_bytes() != program:
                write_atomically(self.script, program)
                self.script.chmod(0o755)
            options = ["--model", spec.model.partition("/")[2]]
            options += ["--revision", spec.revision] if spec.revision else []
            write_atomically(self.path / OPTIONS_FILE, json.dumps(options) + "\n")
            write_atomically(self.path / f"{name}{REQUESTS}", "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise TeacherError(f"The requests for the batch runner cannot be written: {error}.") from None

    def list_names(self) -> set[str]:
        """The batches with a file of requests."""
        return {path.name.removesuffix(REQUESTS) for path in self.path.glob(f"*{REQUESTS}")}

    def has_answers(self, name: str) -> bool:
        """Whether a batch is answered."""
        return (self.path / f"{name}{ANSWERS}").exists()

    def read_answers(self, name: str) -> bytes:
        """The lines that the runner wrote for a batch.

        Raises:
            TeacherError: the file cannot be read.
        """
        try:
            return (self.path / f"{name}{ANSWERS}").read_bytes()
        except OSError as error:
            raise TeacherError(f"The answers of the batch runner cannot be read: {error}.") from None

    def remove(self, name: str) -> None:
        """Remove the files of a batch, the requests first: without them the runner does not answer it again."""
        for suffix in (REQUESTS, ANSWERS):
            with suppress(OSError):
                (self.path / f"{name}{suffix}").unlink(missing_ok=True)
