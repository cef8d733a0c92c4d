"""What imagining asks for, in which order, and what it accepts; against the fake provider."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill_dagster.config import BudgetSpec, ImagineSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.hashing import hash_content
from distill_dagster.kinds import WANTED_REFUSAL
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.prompts.templates import IMAGINE_TEMPLATES, select_templates
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tasks import Slice, TaskFolder
from distill_dagster.tasks.imagined import ImaginedPrompt, ImagineHistory, get_imagined_path, read_imagined
from distill_dagster.teacher.completions.ledger import Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.imagine.ask import ImagineResult, imagine_prompts
from distill_dagster.teacher.imagine.plan import EVOLUTIONS, Imaginer, count_imagine_requests
from distill_dagster.teacher.providers.attempts import TeacherPausedError
from distill_dagster.teacher.providers.client import resolve_endpoint
from tests.support.imagining import answer_as_teacher, build_imagined_texts, format_prompt_list, get_request_text
from tests.support.provider import FakeProvider, Fault
from tests.support.task import LABELS, write_small_task
from tests.support.waiting import HANG_S

AXES = {"difficulty": ["easy", "tricky"], "persona": ["student", "clerk", "nurse"]}


@dataclass
class Slices:
    """The slice `shop` of a small task, whose prompts are imagined as in the stage."""

    folder: TaskFolder
    store: CompletionStore

    def change(self, **changes: Any) -> None:
        path = self.folder.path / "slices" / "shop.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))

    def imaginer(self, **spec: Any) -> Imaginer:
        folder = TaskFolder(self.folder.path, self.folder.accepted)
        task = folder.task
        if spec:
            task = task.model_copy(update={"imagine": ImagineSpec.model_validate(spec)})
        own = select_templates(folder.read_templates(), IMAGINE_TEMPLATES)
        held_out = [*folder.golden, *folder.dev]
        return Imaginer(task, "shop", folder.read_slice("shop"), held_out, own, resolve_endpoint(task.teacher).identity)

    @property
    def file(self) -> Path:
        assert self.folder.accepted is not None
        return get_imagined_path(self.folder.accepted, "shop")

    def imagine(self, **spec: Any) -> ImagineResult:
        imaginer = self.imaginer(**spec)
        return imagine_prompts(imaginer, self.file, resolve_endpoint(imaginer.teacher), self.store)

    def version(self) -> str:
        return compute_data_version(
            build_seed_prompts("shop", TaskFolder(self.folder.path, self.folder.accepted).read_slice("shop"))
        )


def slices_in(root: Path, url: str, target: int = 13, **teacher_: Any) -> Slices:
    settings = {"api_base": url, "api": "chat", "soft_labels": "votes", "max_retries": 0} | teacher_
    folder = write_small_task(root, teacher=settings)
    store = CompletionStore.open_in_folder(root / "store")
    made = Slices(TaskFolder(folder.path, root / "accepted" / folder.name), store)
    made.change(target=target)
    return made


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider(LABELS, answer=answer_as_teacher) as provider:
        yield provider


@pytest.fixture
def slices(tmp_path: Path, provider: FakeProvider) -> Iterator[Slices]:
    made = slices_in(tmp_path, provider.url)
    yield made
    made.store.close()


def test_methods_appear_in_their_shares_and_every_value_equally_often(slices: Slices) -> None:
    imaginer = slices.imaginer(axes=AXES, per_request=1)
    jobs = imaginer.plan_jobs(ImagineHistory(), 60)
    assert Counter(job.method for job in jobs) == {"grid": 24, "self_instruct": 18, "evolve": 18}
    assert Counter(job.method for job in jobs[:10]) == {"grid": 4, "self_instruct": 3, "evolve": 3}
    grid = [job for job in jobs if job.method == "grid"]
    assert Counter(job.axes["difficulty"] for job in grid) == {"easy": 12, "tricky": 12}
    assert set(Counter(job.axes["persona"] for job in grid).values()) == {8}
    assert Counter(job.label.name for job in jobs if job.label and job.method != "evolve") == dict.fromkeys(LABELS, 14)
    evolved = [job for job in jobs if job.parent]
    assert Counter(job.axes["evolution"] for job in evolved) == dict.fromkeys(EVOLUTIONS, 6)
    assert set(Counter(job.parent.id for job in evolved if job.parent).values()) == {6}, "each of 3 seeds"
    assert {job.label.name for job in evolved if job.label} == {"login"}, "the label that its parent was written for"


def test_the_number_determines_the_request(slices: Slices) -> None:
    imaginer = slices.imaginer(axes=AXES, per_request=2)
    jobs = imaginer.plan_jobs(ImagineHistory(), 40)
    assert jobs == slices.imaginer(axes=AXES, per_request=2).plan_jobs(ImagineHistory(), 40)
    assert [job.count for job in imaginer.plan_jobs(ImagineHistory(), 5)] == [2, 2, 1]
    keys = {imaginer.build_request(job, 0).key for job in jobs}
    assert len(keys) == 20
    assert not keys & {imaginer.build_request(job, 1).key for job in jobs}, "a new generation asks differently"
    assert jobs != slices.imaginer(axes=AXES, per_request=2, seed=1).plan_jobs(ImagineHistory(), 40)


def test_without_axes_there_is_no_grid(slices: Slices) -> None:
    assert {job.method for job in slices.imaginer().plan_jobs(ImagineHistory(), 60)} == {"self_instruct", "evolve"}
    only = slices.imaginer(axes=AXES, methods={"self_instruct": 0, "evolve": 0})
    assert {job.method for job in only.plan_jobs(ImagineHistory(), 60)} == {"grid"}


def test_requests_show_description_axes_examples_and_parent(slices: Slices) -> None:
    imaginer = slices.imaginer(axes=AXES, per_request=3)
    by_method = {job.method: job for job in reversed(imaginer.plan_jobs(ImagineHistory(), 30))}
    shown = {name: asked(imaginer.build_request(job, 0)) for name, job in by_method.items()}
    for text in shown.values():
        assert "Sort messages to a shop." in text
        assert "Where they come from: The shop." in text
        assert "Write 3 new texts" in text
    assert "- persona: " in shown["grid"]
    assert "- difficulty: " in shown["grid"]
    assert {line[3:] for line in shown["self_instruct"].splitlines() if line[:2] in ("1.", "2.", "3.")} == {
        "I want a refund", "a delivery arrived broken", "login asks twice"
    }  # fmt: skip
    parent = by_method["evolve"].parent
    assert parent is not None
    assert parent.text in shown["evolve"]
    assert EVOLUTIONS[by_method["evolve"].axes["evolution"]] in shown["evolve"]
    assert 'category "' in shown["self_instruct"]


def asked(request: Any) -> str:
    return str(request.messages[0]["content"])


def test_a_template_of_the_task_replaces_the_built_in_one(slices: Slices) -> None:
    before = slices.imaginer()
    folder = slices.folder.path / "templates"
    folder.mkdir()
    (folder / "imagine_self_instruct.j2").write_text("{{ count }} for {{ label.name }}, please")
    after = slices.imaginer(methods={"evolve": 0})
    job = after.plan_jobs(ImagineHistory(), 1)[0]
    assert job.label is not None
    assert asked(after.build_request(job, 0)) == f"1 for {job.label.name}, please"
    assert after.templates.version != before.templates.version


def test_a_schema_is_sent_if_the_model_accepts_one(slices: Slices, provider: FakeProvider) -> None:
    own = {"model": "openai/fake", "api_base": provider.url, "response_format": "json_schema"}
    slices.imagine(teacher=own)
    assert all(seen.body["response_format"]["json_schema"]["strict"] for seen in provider.requests)
    slices.change(target=16)
    provider.requests.clear()
    outcome = slices.imagine(teacher=own | {"response_format": "auto"})
    assert outcome.missing == 0
    assert provider.requests
    assert not any("response_format" in seen.body for seen in provider.requests)
    assert "numbered list" in get_request_text(provider.requests[0])


def test_a_prompt_for_the_text_api_starts_the_list(tmp_path: Path, provider: FakeProvider) -> None:
    slices = slices_in(tmp_path, provider.url, api="text")
    outcome = slices.imagine()
    assert outcome.missing == 0
    assert {seen.path for seen in provider.requests} == {"/v1/completions"}
    assert all(seen.body["prompt"].endswith("\n\n1.") for seen in provider.requests)
    assert all(not one.text.startswith("1") or " wants " in one.text for one in outcome.history.prompts)


def test_repeats_within_the_slice_are_left_out_and_counted(slices: Slices, provider: FakeProvider) -> None:
    long = "my parcel went to the neighbour who is on a journey and nobody else has a key to that house"
    slices.change(seeds=["I want a refund", long])
    odd = ["i want a REFUND!", f"{long} sadly", "brand new", "Brand  new."]
    provider.answer = lambda seen: json.dumps([*odd, *build_imagined_texts(seen)][:4])
    outcome = slices.imagine(max_rounds=1)
    [ended] = outcome.history.rounds
    assert [one.text for one in outcome.history.prompts] == ["brand new"]
    assert (ended.requests, ended.duplicates, ended.near_duplicates) == (3, 7, 3)
    assert outcome.missing == 10
    assert outcome.missing_rows == 0, "all requests were answered: asking again by itself would loop"


def test_later_rounds_show_and_evolve_what_was_imagined(slices: Slices, provider: FakeProvider) -> None:
    slices.change(target=40)
    provider.answer = lambda seen: format_prompt_list(seen, build_imagined_texts(seen)[:2])
    outcome = slices.imagine(per_request=4, examples=6)
    assert outcome.rounds > 1
    ids = {row["prompt_id"] for row in build_seed_prompts("shop", slices.imaginer().slice).to_dicts()}
    parents = {one.parent_prompt_id for one in outcome.history.prompts} - {None}
    assert parents <= ids
    assert len(parents) > 3, "more parents than seeds"


ODD_BODY = '{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 9}}'


@pytest.mark.parametrize(
    ("fault", "says"),
    [(Fault(500), "HTTP 500"), (Fault(200, ODD_BODY), "content is a number"), (Fault(200, "[]"), "contains no answer")],
)
def test_a_failed_request_is_asked_for_next_time(
    slices: Slices, provider: FakeProvider, fault: Fault, says: str
) -> None:
    slices.change(target=23)
    provider.fail = lambda seen, _: fault if len(provider.requests) == 2 else None
    outcome = slices.imagine(max_rounds=1)
    assert (outcome.missing, outcome.missing_rows, outcome.failed) == (4, 4, 1)
    assert says in outcome.errors[0]
    provider.fail = None
    asked_before = len(provider.requests)
    assert slices.imagine().missing == 0
    assert len(provider.requests) == asked_before + 1

    provider.fail = lambda *_: Fault(503)
    slices.change(target=30)
    before = slices.file.read_bytes()
    down = slices.imagine()
    assert (down.missing, down.missing_rows) == (7, 7)
    assert slices.file.read_bytes() == before
    assert len(provider.requests) == asked_before + 1 + 2, "one round of two requests, and no more while it is down"


def test_a_budget_stop_keeps_what_was_accepted_and_asks_for_the_rest_next_time(
    slices: Slices, provider: FakeProvider
) -> None:
    imaginer = slices.imaginer()
    endpoint = resolve_endpoint(imaginer.teacher)
    capped = Account("t", "c", "imagine", BudgetSpec(tokens=0))
    stopped = imagine_prompts(imaginer, slices.file, endpoint, slices.store, capped)
    assert (stopped.missing, stopped.missing_rows, provider.requests) == (10, 10, [])
    assert "budget.tokens" in (stopped.usage.stopped or "")
    assert slices.imagine().missing == 0


def test_a_pause_of_the_teacher_keeps_what_was_accepted(slices: Slices, provider: FakeProvider) -> None:
    slices.change(target=63)
    provider.fail = lambda *_: Fault(429, retry_after="9000") if len(provider.requests) > 3 else None
    with pytest.raises(TeacherPausedError, match="asks to wait until"):
        slices.imagine()
    assert 0 < len(read_imagined(slices.file).prompts) <= 12
    assert len(provider.requests) <= 8


def test_a_refused_key_stops_at_once(slices: Slices, provider: FakeProvider) -> None:
    slices.change(target=203)
    provider.fail = lambda *_: Fault(401)
    with pytest.raises(TeacherError, match="HTTP 401"):
        slices.imagine()
    assert len(provider.requests) <= 4


def test_count_imagine_requests(slices: Slices) -> None:
    imaginer = slices.imaginer()
    need = count_imagine_requests(imaginer.task, imaginer.slice)
    assert (need.prompts, need.requests, need.at_most) == (10, 3, 15)
    none = imaginer.slice.model_copy(update={"target": None})
    assert count_imagine_requests(imaginer.task, none).at_most == 0
    had = ImaginedPrompt(text="new", method="grid", teacher="t", template_version="v", request_key="k", imagined_at="x")
    some = imaginer.slice.with_imagined(ImagineHistory(prompts=(had, replace_text(had, "I want a refund"))))
    assert count_imagine_requests(imaginer.task, some).prompts == 9, "a prompt that is also a seed counts once"


def replace_text(one: ImaginedPrompt, text: str) -> ImaginedPrompt:
    return one.model_copy(update={"text": text})


DIES = """
import os, sys
from pathlib import Path
from tests.teacher import test_imagine
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.imagine import log as imagined

left, where = int(sys.argv[3]), sys.argv[4]
commit, append = CompletionStore.commit, imagined._append_lines

def commit_and_die(self, answers, *more):
    global left
    verdicts = commit(self, answers, *more)
    left -= len(answers)
    if left <= 0 and answers and where == "asking":
        os._exit(9)
    return verdicts

def append_and_die(path, lines):
    if where == "writing":
        with path.open("ab") as handle:
            handle.write(lines[0].model_dump_json().encode() + b"\\n" + lines[1].model_dump_json().encode()[:40])
        os._exit(9)
    append(path, lines)
    if where == "written":
        os._exit(9)

CompletionStore.commit, imagined._append_lines = commit_and_die, append_and_die
test_imagine.slices_again(Path(sys.argv[1]), sys.argv[2]).imagine(**test_imagine.SPEC)
"""
SPEC: dict[str, Any] = {"axes": AXES, "per_request": 1}


def slices_again(root: Path, name: str) -> Slices:
    folder = TaskFolder(root / "tasks" / name, root / "accepted" / name)
    return Slices(folder, CompletionStore.open_in_folder(root / "store"))


@pytest.mark.parametrize(("after", "where"), [(1, "asking"), (7, "asking"), (0, "writing"), (0, "written")])
def test_a_run_after_a_killed_one_repeats_no_answered_request(tmp_path: Path, after: int, where: str) -> None:
    root = Path(__file__).resolve().parents[2]

    with FakeProvider(LABELS, answer=answer_as_teacher, pause_s=0.01) as provider:
        slices = slices_in(tmp_path, provider.url)
        command = [sys.executable, "-c", DIES, str(tmp_path), slices.folder.name, str(after), where]
        killed = subprocess.run(
            command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, timeout=HANG_S, check=False
        )
        assert killed.returncode == 9
        stored, sent = slices.store.count(), len(provider.requests)
        assert (after <= stored < 10) if where == "asking" else (stored == 10)
        assert sent <= stored + 4

        outcome = slices.imagine(**SPEC)
        assert outcome.missing == 0
        assert outcome.usage.calls == 10 - stored
        assert len(provider.requests) == sent + 10 - stored
        undisturbed = slices_in(tmp_path / "other", provider.url)
        undisturbed.imagine(**SPEC)
        assert undisturbed.version() == slices.version()
        assert len(read_imagined(slices.file).prompts) == 10
        for one in (slices, undisturbed):
            one.store.close()


def test_two_processes_fill_a_slice_once(tmp_path: Path, provider: FakeProvider) -> None:
    provider.pause_s = 0.05
    slices = slices_in(tmp_path, provider.url)
    code = (
        "import sys; from pathlib import Path; from tests.teacher import test_imagine as t;"
        "print(t.slices_again(Path(sys.argv[1]), sys.argv[2]).imagine(**t.SPEC).usage.calls)"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(tmp_path), slices.folder.name]
    both = [
        subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    calls = sorted(int(process.communicate(timeout=HANG_S)[0]) for process in both)
    assert calls == [0, 10]
    assert len(provider.requests) == 10
    slices.store.close()


def test_built_in_requests_keep_their_keys(slices: Slices) -> None:
    """An interrupted round asks only for missing answers, so the answered requests must keep their keys."""
    imaginer = slices.imaginer(axes=AXES, per_request=2)
    keys = [imaginer.build_request(job, 0).key for job in imaginer.plan_jobs(ImagineHistory(), 20)]
    assert hash_content(keys) == "6c15710bead2d64117581850702695cc8d005f1977e1b193708da998c141989c"


def test_an_imagined_prompt_of_a_safety_slice_expects_a_refusal() -> None:
    slice_ = Slice.model_validate({"description": "d", "seeds": ["a"], "refusal": "wanted"})
    made = ImaginedPrompt(text="b", method="grid", teacher="t", template_version="v", request_key="k", imagined_at="x")
    table = build_seed_prompts("shop", slice_.with_imagined(ImagineHistory(prompts=(made,))))
    assert table["reference"].to_list() == [WANTED_REFUSAL] * 2
