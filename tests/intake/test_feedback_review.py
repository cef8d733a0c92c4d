"""Feedback waits for a person: accepted rows are in human.jsonl, checked, and each is decided once."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.core.paths import Home
from distill_dagster.intake.feedback_review import (
    REVIEWED_FILE,
    WaitingFeedback,
    accept_feedback,
    list_waiting_feedback,
    reject_feedback,
)
from distill_dagster.intake.request_log import FEEDBACK_FILE, Feedback, LoggedRequest, format_log_line
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.tasks import LabelledRow, TaskFolder
from tests.support.task import write_small_task

NAME = "shop_mail"
PLAIN = LoggedRequest(
    id="r1", at="2026-11-26T10:00:00+00:00", text="The lamp came broken, money back please", messages=None,
    slice="phone", student="s", release=1, export="onnx", answer="delivery", route="student", confidence=0.7,
    threshold=0.5, student_answer="delivery",
)  # fmt: skip


@dataclass(frozen=True)
class Served:
    """A small task with logged requests and feedback."""

    home: Home

    @property
    def log(self) -> Path:
        return self.home.requests / NAME

    @property
    def folder(self) -> TaskFolder:
        return open_task(self.home.tasks, NAME, self.home.accepted)

    def write(self, name: str, *rows: LoggedRequest | Feedback) -> None:
        self.log.mkdir(parents=True, exist_ok=True)
        with (self.log / name).open("ab") as handle:
            handle.writelines(format_log_line(row) for row in rows)

    def say(self, id_: str = "r1", is_right: bool | None = False, answer: str | None = "refund", n: int = 0) -> None:
        text = None if id_ == "r1" else f"Text of {id_}"
        at = f"2026-11-26T11:00:{n:02}+00:00"
        self.write(FEEDBACK_FILE, Feedback(id_, at, is_right, answer, "no", text if id_ != "lost" else None))

    @property
    def waiting(self) -> list[WaitingFeedback]:
        return list_waiting_feedback(self.log)

    def accept(self, answer: str | None = None) -> None:
        inbox = self.home.inbox / NAME
        inbox.mkdir(parents=True, exist_ok=True)
        accept_feedback(self.folder, inbox, self.log, self.waiting[0], answer)

    @property
    def human(self) -> list[LabelledRow]:
        return [row for row in self.folder.human if row.id.startswith("feedback-")]


@pytest.fixture
def served(tmp_path: Path) -> Served:
    home = Home(root=tmp_path / "home", tasks=tmp_path / "tasks")
    write_small_task(tmp_path, NAME)
    found = Served(home)
    found.write("requests-1-1.jsonl", PLAIN)
    return found


def test_accepted_feedback_is_a_row_of_human_jsonl_and_does_not_wait_any_more(served: Served) -> None:
    served.say()
    (one,) = served.waiting
    assert (one.text, one.served, one.proposed, one.confidence) == (PLAIN.text, "delivery", "refund", 0.7)
    served.accept()
    (row,) = served.human
    assert (row.id, row.text, row.label, row.slice, row.source) == (
        "feedback-r1", PLAIN.text, "refund", "phone", "feedback",
    )  # fmt: skip
    assert served.waiting == []


def test_a_person_may_know_better_than_the_user(served: Served) -> None:
    served.say(answer=None)
    with pytest.raises(DistillError, match="gave no right answer"):
        served.accept()
    served.accept("login")
    assert [row.label for row in served.human] == ["login"]


def test_praise_proposes_the_served_answer(served: Served) -> None:
    served.say(is_right=True, answer=None)
    assert served.waiting[0].proposed == "delivery"


def test_rejected_feedback_is_not_shown_again_but_newer_one_is(served: Served) -> None:
    served.say()
    reject_feedback(served.log, served.waiting[0])
    assert served.waiting == []
    assert served.human == []
    served.say(answer="login", n=1)
    assert [one.proposed for one in served.waiting] == ["login"]


def test_a_request_that_was_not_logged_has_the_text_of_its_feedback(served: Served) -> None:
    served.say("r2")
    served.say("lost")
    (one,) = served.waiting
    assert (one.request_id, one.text, one.served) == ("r2", "Text of r2", None)


def test_an_unknown_label_is_refused_and_goes_on_waiting(served: Served) -> None:
    served.say(answer="moonlight")
    with pytest.raises(InputError, match="moonlight"):
        served.accept()
    assert served.human == []
    assert len(served.waiting) == 1


def test_a_golden_text_is_refused(served: Served) -> None:
    text = served.folder.golden[0].text
    served.write("requests-2-1.jsonl", replace(PLAIN, id="g1", text=text))
    served.say("g1")
    with pytest.raises(DistillError, match="golden or dev"):
        served.accept()
    assert served.human == []


def test_a_cut_decision_is_asked_again_and_a_broken_one_is_named(served: Served) -> None:
    served.say()
    reject_feedback(served.log, served.waiting[0])
    path = served.log / REVIEWED_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:30])
    assert len(served.waiting) == 1
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(InputError, match=r"reviewed\.jsonl:1"):
        _ = served.waiting
    assert json.loads(whole)["decision"] == "rejected"
