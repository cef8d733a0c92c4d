"""The teacher of a served student, asked as the stages ask it: with its examples, store, budget and terms."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime

import polars as pl

from distill_dagster.config import Task, TeacherSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.paths import Home
from distill_dagster.curation.candidates.choose import choose_candidates
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.pipeline.stages.teacher import ask_in_turn
from distill_dagster.prompts.few_shot import read_example_pool
from distill_dagster.prompts.seeds import compute_prompt_id
from distill_dagster.prompts.templates import build_answer_templates
from distill_dagster.serving.teacher import TeacherAnswer, UnansweredError
from distill_dagster.student.sentences import make_sentence_embedder
from distill_dagster.student.types import StudentPrompt
from distill_dagster.tables.schemas import PROMPT_CONTEXT, PROMPTS, TEACHER_PRIOR, build_frame
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.asking.ask import Asker, AskResult, run_ask
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.completions.ledger import SERVING, Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.client import Endpoint, resolve_endpoint
from distill_dagster.teacher.providers.embedded import EMBEDDED_SERVERS
from distill_dagster.teacher.providers.replay import load_replay_teacher

PROMPT_ERRORS = ("HTTP 400:", "HTTP 413:", "HTTP 422:")
"""What a teacher says about one prompt, such as that it is too long. It may answer the next one."""


class ServedTeacher:
    """Answers single prompts with the candidate that the pipeline would choose. Servers stay warm until `close`."""

    def __init__(self, folder: TaskFolder, home: Home, store: CompletionStore) -> None:
        """Open the teachers' endpoints. One `distill serve` is one campaign of the budget.

        Raises:
            DistillError: the task was never run, so the teacher's examples are not known.
            TeacherError: a key is missing, an embedded teacher does not start, or terms are not acknowledged.
        """
        lake = open_lake(home)
        self._folder, self._models, self._store = folder, home.models, store
        self._examples = read_example_pool(lake.read(folder.name, "prompt_context", None, PROMPT_CONTEXT)[0])
        self._prior = lake.read(folder.name, "teacher_prior", None, TEACHER_PRIOR)[0]
        campaign = f"serve-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        self._account = Account(folder.name, campaign, SERVING, folder.task.budget)
        self._stack = ExitStack()
        self._endpoints: dict[str, Endpoint] = {}
        self._templates = {name: build_answer_templates(folder, task) for name, task in folder.task.list_teachers()}
        try:
            for name, task in folder.task.list_teachers():
                endpoint = self._open_endpoint(task.teacher)
                if task.teacher.is_replay:
                    endpoint = replace(endpoint, recorded=load_replay_teacher(folder, task.teacher))
                self._endpoints[name] = endpoint
                # Load what a first request would wait for: the client's libraries, and the embedder of examples.
                self._build_asker(name, task).requests.build(AskedPrompt("warm up"), 0)
        except BaseException:
            self._stack.close()
            raise

    def _open_endpoint(self, spec: TeacherSpec) -> Endpoint:
        if not spec.is_embedded:
            return resolve_endpoint(spec)
        endpoint, lease = EMBEDDED_SERVERS.acquire(spec, self._models)
        self._stack.callback(EMBEDDED_SERVERS.release, lease)
        return endpoint

    def answer(self, prompt: StudentPrompt) -> TeacherAnswer:
        """As `serving.teacher.Teacher`."""
        messages = list(prompt.messages)
        row = dict.fromkeys(PROMPTS) | {"slice": SERVING, "origin": "log", "messages": messages}
        row["prompt_id"] = compute_prompt_id(messages)
        prompts = build_frame([row], PROMPTS, ("prompt_id",))
        result = ask_in_turn(self._folder, prompts, self._ask)
        completions = result.completions
        if result.missing_rows and not result.usable_prompts:
            error = str(completions["error"].drop_nulls().first() or "the teacher did not answer")
            raise (UnansweredError if error.startswith(PROMPT_ERRORS) else TeacherError)(error)
        [found] = choose_candidates(self._folder.task, prompts, completions, self._prior).to_dicts()
        if found["answer"] is None:
            raise UnansweredError(found["error"] or f"the teacher gave no valid answer: {found['status']}")
        return TeacherAnswer(
            json.loads(found["answer"]),
            found["confidence"],
            int(completions["prompt_tokens"].sum() or 0),
            int(completions["completion_tokens"].sum() or 0),
            found["reasoning"],
        )

    def _ask(self, name: str, task: Task, prompts: pl.DataFrame) -> AskResult:
        return run_ask(self._build_asker(name, task), prompts)

    def _build_asker(self, name: str, task: Task) -> Asker:
        # One row decides nothing about the teacher, and a client does not wait for a batch.
        online = task.teacher.model_copy(update={"min_success": 0.0, "smoke_rows": 0, "mode": "online"})
        task = task.model_copy(update={"teacher": online})
        embed = make_sentence_embedder(online, self._models)
        requests = RequestBuilder(task, self._templates[name], self._examples, self._endpoints[name], embed)
        return Asker(requests, self._store, self._account, name, f"{self._folder.name}/{SERVING}")

    def close(self) -> None:
        """Stop the embedded servers."""
        self._stack.close()
