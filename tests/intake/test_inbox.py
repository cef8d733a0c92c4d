"""Files in the inbox: taken whole or rejected, once, masked, and sorted into slices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.intake import inbox as module
from distill_dagster.intake.accepted import append_accepted
from distill_dagster.intake.inbox import QUIET_S, InboxSummary, compute_wait_s, process_inbox
from distill_dagster.pipeline.open_task import find_tasks, open_task
from distill_dagster.pipeline.source_versions import compute_source_version, find_label_of_slice, has_slices_as_labels
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.accepted import get_accepted_path, read_accepted
from tests.support.task import jsonl, write_small_task
from tests.support.waiting import HANG_S

NAME = "shop_mail"


@dataclass(frozen=True)
class Inbox:
    """A small task with its inbox; every call reads the task afresh."""

    home: Home

    @property
    def place(self) -> Path:
        return self.home.inbox / NAME

    @property
    def folder(self) -> TaskFolder:
        return open_task(self.home.tasks, NAME, self.home.accepted)

    def drop(self, name: str, content: str | bytes | list[dict[str, Any]], age_s: float = 60) -> Path:
        self.place.mkdir(parents=True, exist_ok=True)
        raw = jsonl(content) if isinstance(content, list) else content
        path = self.place / name
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        os.utime(path, (time.time() - age_s,) * 2)
        return path

    def take(self) -> list[InboxSummary]:
        return process_inbox(self.folder, self.place)

    def texts(self, key: str) -> list[str]:
        return [row.text for row in read_accepted(get_accepted_path(self.home.accepted / NAME, key))]

    def left(self) -> list[str]:
        """Every file below the inbox, but the lock."""
        found = [str(p.relative_to(self.place)) for p in self.place.rglob("*") if p.is_file() or p.is_symlink()]
        return sorted(name for name in found if name != ".lock")

    def summary(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.place / "done" / f"{name}.json").read_text())
        return value

    def reason(self, name: str) -> str:
        return (self.place / "rejected" / f"{name}.reason.txt").read_text()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Inbox]:
    def build(**inbox: Any) -> Inbox:
        write_small_task(tmp_path, NAME, **({"inbox": inbox} if inbox else {}))
        return Inbox(Home(root=tmp_path / "home", tasks=tmp_path / "tasks"))

    return build


def test_a_prompt_goes_to_the_slice_it_names_or_that_of_a_rule_or_unsorted(
    make: Callable[..., Inbox],
) -> None:
    box = make(
        text_field="message",
        slice_field="area",
        rules=[
            {"slice": "phone", "field": "channel", "matches": "^(phone|sip)$"},
            {"slice": "web", "matches": "(?i)browser"},
            {"slice": "numbers", "field": "count", "matches": "^7$"},
            {"slice": "shop", "field": "count", "matches": "7"},
        ],
    )
    rows: list[dict[str, Any]] = [
        {"message": "named", "area": "shop", "channel": "phone"},
        {"message": "a new slice", "area": "new-area"},
        {"message": "by rule", "channel": "sip"},
        {"message": "in my Browser", "area": "Not A Key", "channel": 7},
        {"message": "a number", "count": 7, "area": 12},
        {"message": "nothing", "channel": ["phone"], "area": None},
    ]
    box.drop("a.jsonl", jsonl(rows) + '{"message": "and an unpaired surrogate", "channel": "\\ud800"}\n')
    [taken] = box.take()
    assert taken.state == "accepted"
    assert taken.accepted == {"shop": 1, "new-area": 1, "phone": 1, "web": 1, "numbers": 1, "unsorted": 2}
    assert box.texts("shop") == ["named"]
    assert box.texts("web") == ["in my Browser"]
    assert box.texts("unsorted") == ["nothing", "and an unpaired surrogate"]
    assert box.folder.list_slice_keys() == ["new-area", "numbers", "phone", "shop", "unsorted", "web"]


def test_accepted_prompts_are_prompts_of_their_slice(make: Callable[..., Inbox]) -> None:
    box = make()
    before = {key: compute_source_version(box.folder, "slice_files", key) for key in box.folder.list_slice_keys()}
    box.drop("day.jsonl", [{"text": "a third refund", "slice": "shop"}, {"text": "what is this"}])
    box.take()
    folder = box.folder
    assert {
        key: compute_source_version(folder, "slice_files", key) == before.get(key) for key in folder.list_slice_keys()
    } == {
        "shop": False,
        "unsorted": False,
        "web": True,
    }
    prompts = build_seed_prompts("shop", folder.read_slice("shop"))
    assert prompts.filter(prompts["origin"] == "log")["source"].to_list() == ["day.jsonl"]
    assert sorted(prompts["origin"].to_list()) == ["human"] * 3 + ["log"]
    unsorted = folder.read_slice("unsorted")
    assert (unsorted.seeds, [row.text for row in unsorted.accepted]) == ([], ["what is this"])
    assert build_seed_prompts("unsorted", unsorted).height == 1
    assert check_task_folder(folder) == []
    assert [t.accepted for t in find_tasks(box.home.tasks, box.home.accepted)] == [folder.accepted]
    assert TaskFolder(folder.path).list_slice_keys() == ["shop", "web"], (
        "without its folder a task is what its files say"
    )


def test_a_version_covers_texts_and_not_their_order_or_file(make: Callable[..., Inbox]) -> None:
    box = make()
    box.drop("a.jsonl", [{"text": "one"}, {"text": "two"}])
    box.take()
    before = compute_source_version(box.folder, "slice_files", "unsorted")
    path = get_accepted_path(box.home.accepted / NAME, "unsorted")
    rows = [json.loads(line) | {"source": "b.jsonl"} for line in path.read_text().splitlines()]
    path.write_text(jsonl(rows[::-1]))
    assert compute_source_version(box.folder, "slice_files", "unsorted") == before
    path.write_text(jsonl(rows[:1]))
    assert compute_source_version(box.folder, "slice_files", "unsorted") != before


def test_secrets_are_masked_and_appear_nowhere(make: Callable[..., Inbox]) -> None:
    box = make()
    secret, mail = "AKIAIOSFODNN7EXAMPLE", "jane@example.org"
    box.drop(
        f"{mail}.jsonl",
        [{"text": f"refund {mail}, key {secret}"}, {"text": f"call {mail}"}, {"text": "call joe@example.org"}],
    )
    box.drop("bad.jsonl", f'{{"text": "{mail}"}}\n{{"text": 7, "{secret}": 1}}\n{secret}\n{{"{mail}": "x"}}\n')
    taken = {one.state: one for one in box.take()}
    assert taken["accepted"].masked == {"EMAIL": 2, "SECRET": 1}
    assert taken["accepted"].duplicates == 1, "masked, the second call is the first"
    assert box.texts("unsorted") == ["refund <EMAIL>, key <SECRET>", "call <EMAIL>"]
    written = [p for p in box.home.root.rglob("*") if p.is_file() and p.name != "bad.jsonl"]
    everything = "".join(p.read_text() for p in written) + str(taken) + "".join(map(str, taken.values()))
    assert secret not in everything
    assert mail not in everything
    assert not list((box.place / "done").glob("*.jsonl")), "the unmasked file is not kept"


def test_held_out_texts_are_refused_and_known_ones_are_duplicates(make: Callable[..., Inbox]) -> None:
    box = make()
    with (box.folder.path / "golden.jsonl").open("a") as golden:
        golden.write(json.dumps({"id": "m", "text": "mail me@example.org a refund", "label": "refund"}) + "\n")
    rows = [
        {"text": "HELD OUT:  please refund me"},
        {"text": "tried: please refund me"},
        {"text": "mail me@example.org a refund"},
        {"text": "mail you@example.org a refund"},
        {"text": "mail <EMAIL> a refund"},
        {"text": "i want a REFUND", "slice": "web"},
        {"text": "new"},
        {"text": " New "},
    ]
    box.drop("a.jsonl", rows)
    [taken] = box.take()
    assert (taken.held_out, taken.duplicates, taken.accepted) == (5, 2, {"unsorted": 1})
    assert str(taken) == "a.jsonl: accepted 1 to unsorted; not stored: 5 golden or dev, 2 duplicates"
    box.drop("a.jsonl", [{"text": "new", "slice": "shop"}])
    [again] = box.take()
    assert (again.duplicates, again.accepted) == (1, {})
    assert box.summary("a.jsonl")["refused_golden_or_dev"] == 5
    assert box.summary("a-2.jsonl")["duplicates"] == 1, "a summary is never overwritten"
    assert box.texts("shop") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "malformed JSON at column 2"),
        (b"[1]", "not an object"),
        (b'"text"', "not an object"),
        (b"{}", "'text' is missing"),
        (b'{"text": null}', "is null"),
        (b'{"text": 5}', "is a number"),
        (b'{"text": true}', "is true or false"),
        (b'{"text": ["a"]}', "is a list"),
        (b'{"text": {}}', "is an object"),
        (b'{"text": " \\n"}', "is empty"),
        (b'{"text": "\xff"}', "invalid UTF-8 at byte 11"),
        (b'{"text": "\\ud800"}', "unpaired surrogate"),
        (b'{"text": ' + b"9" * 5000 + b"}", "unreadable JSON"),
        (b"[" * 100_000, "unreadable JSON"),
    ],
)
def test_a_malformed_line_rejects_its_file_and_no_other(line: bytes, message: str, make: Callable[..., Inbox]) -> None:
    box = make()
    box.drop("a.jsonl", [{"text": "first"}])
    bad = box.drop("bad.jsonl", b'{"text": "good"}\n\n' + line + b'\n{"text": "good too"}\n{}\n').read_bytes()
    box.drop("c.jsonl", [{"text": "last"}])
    assert [one.state for one in box.take()] == ["accepted", "rejected", "accepted"]
    assert box.texts("unsorted") == ["first", "last"]
    reason = box.reason("bad.jsonl")
    assert "line 3: " in reason
    assert message in reason
    assert "line 5: the field 'text' is missing. Expected: " in reason, "every line is named"
    assert "line 1" not in reason
    assert "line 4" not in reason
    assert (box.place / "rejected" / "bad.jsonl").read_bytes() == bad
    assert box.left() == [
        "done/a.jsonl.json",
        "done/c.jsonl.json",
        "rejected/bad.jsonl",
        "rejected/bad.jsonl.reason.txt",
    ]


def test_an_empty_file_is_rejected_and_a_second_of_its_name_gets_a_number(make: Callable[..., Inbox]) -> None:
    box = make()
    for _ in range(2):
        box.drop("bad.jsonl", "\n")
        assert box.take()[0].state == "rejected"
    assert {"rejected/bad.jsonl", "rejected/bad-2.jsonl"} < set(box.left())
    assert "the file is empty" in box.reason("bad-2.jsonl")


def test_a_byte_order_mark_windows_line_ends_and_no_last_line_end(make: Callable[..., Inbox]) -> None:
    box = make()
    box.drop("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two\xe2\x80\xa8lines"}')
    assert box.take()[0].state == "accepted"
    assert box.texts("unsorted") == ["one", "two\u2028lines"]


def test_only_finished_regular_files_are_read(make: Callable[..., Inbox], tmp_path: Path) -> None:
    box = make()
    rows = [{"text": "not to be read"}]
    box.drop("young.jsonl", rows, age_s=1)
    for name in (".hidden.jsonl", "a.jsonl.part", "a.jsonl.tmp"):
        box.drop(name, rows)
    box.drop("a.csv", "x")
    outside = tmp_path / "outside.jsonl"
    outside.write_text(jsonl(rows))
    (box.place / "link.jsonl").symlink_to(outside)
    os.mkfifo(box.place / "pipe.jsonl")
    (box.place / "folder.jsonl").mkdir()
    found = {one.file: one.state for one in box.take()}
    assert found == {
        "young.jsonl": "waiting",
        "a.csv": "skipped",
        "link.jsonl": "skipped",
        "pipe.jsonl": "skipped",
        "folder.jsonl": "skipped",
    }
    assert 0 < (compute_wait_s(box.place) or 0) <= QUIET_S
    assert not (box.home.accepted / NAME).exists()
    assert outside.exists()


@pytest.mark.parametrize("place", ["", "done", "rejected"])
def test_a_linked_folder_is_not_followed(place: str, make: Callable[..., Inbox], tmp_path: Path) -> None:
    box = make()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.jsonl").write_text(jsonl([{"text": "x"}]))
    box.place.parent.mkdir(parents=True)
    if place:
        box.drop("a.jsonl", [{"text": "x"}])
    (box.place / place if place else box.place).symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="symbolic links"):
        box.take()
    assert [p.name for p in (tmp_path / "outside").iterdir()] == ["a.jsonl"]


def test_a_linked_file_of_accepted_prompts_is_not_followed(make: Callable[..., Inbox], tmp_path: Path) -> None:
    box = make()
    outside = tmp_path / "outside.jsonl"
    outside.write_text("")
    path = get_accepted_path(box.home.accepted / NAME, "unsorted")
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    box.drop("a.jsonl", [{"text": "x"}])
    with pytest.raises(InputError, match="symbolic links"):
        box.take()
    assert [problem.file for problem in check_task_folder(box.folder)] == [path]
    assert outside.read_text() == ""


def test_keep_files_keeps_the_original_file(make: Callable[..., Inbox]) -> None:
    box = make(keep_files=True)
    raws = [box.drop("a.jsonl", [{"text": "mail me@example.org"}]).read_bytes()]
    box.take()
    raws.append(box.drop("a.jsonl", [{"text": "another"}]).read_bytes())
    box.take()
    assert [(box.place / "done" / name).read_bytes() for name in ("a.jsonl", "a-2.jsonl")] == raws
    assert len(box.left()) == 4


def test_an_unfinished_last_line_is_ignored_and_removed_by_the_next_append(make: Callable[..., Inbox]) -> None:
    box = make()
    box.drop("a.jsonl", [{"text": "one"}])
    box.take()
    path = get_accepted_path(box.home.accepted / NAME, "unsorted")
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b"one", b"two")[:-9])
    assert box.texts("unsorted") == ["one"]
    assert check_task_folder(box.folder) == []
    box.drop("b.jsonl", [{"text": "two"}])
    box.take()
    assert box.texts("unsorted") == ["one", "two"]
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert box.texts("unsorted") == ["one", "two"], "a whole line counts, with or without its end"
    box.drop("c.jsonl", [{"text": "three"}])
    box.take()
    assert box.texts("unsorted") == ["one", "two", "three"]
    path.write_bytes(whole[:20])
    assert box.folder.list_slice_keys() == ["shop", "web"], "an unfinished prompt does not make a slice"


def test_a_broken_accepted_file_is_named_with_its_lines(make: Callable[..., Inbox]) -> None:
    box = make()
    box.drop("a.jsonl", [{"text": "one"}])
    box.take()
    path = get_accepted_path(box.home.accepted / NAME, "unsorted")
    row = json.loads(path.read_text())
    path.write_text('{"text": \n' + jsonl([row, row | {"text": " "}, row | {"colour": "AKIAIOSFODNN7EXAMPLE"}]))
    with pytest.raises(InputError) as caught:
        compute_source_version(box.folder, "slice_files", "unsorted")
    assert [(p.file, p.line, p.field) for p in caught.value.problems] == [
        (path, 1, None),
        (path, 3, "text"),
        (path, 4, "colour"),
    ]
    assert "AKIA" not in str(caught.value)
    assert check_task_folder(box.folder) == list(caught.value.problems)
    box.drop("b.jsonl", [{"text": "two"}])
    with pytest.raises(InputError):
        box.take()
    assert "b.jsonl" in box.left(), "what cannot be compared is not taken"


@pytest.mark.parametrize("broken", ["golden.jsonl", "slices/shop.yaml", "task.yaml"])
def test_nothing_is_taken_while_the_tasks_own_files_are_malformed(broken: str, make: Callable[..., Inbox]) -> None:
    box = make()
    (box.folder.path / broken).write_text("{")
    box.drop("a.jsonl", [{"text": "one"}])
    with pytest.raises(InputError):
        box.take()
    assert box.left() == ["a.jsonl"]


@pytest.mark.parametrize("step", ["append", "summary", "finish"])
def test_a_crash_at_any_step_causes_no_duplicate_and_the_same_summary(
    step: str, make: Callable[..., Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make()
    box.drop("a.jsonl", [{"text": "one", "slice": "shop"}, {"text": "two"}, {"text": "two"}])

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def append_one_then_die(path: Path, rows: Any) -> None:
        append_accepted(path, rows)
        die()

    with monkeypatch.context() as patch:
        if step == "append":  # after the first of two slices
            patch.setattr(module, "append_accepted", append_one_then_die)
        elif step == "summary":
            patch.setattr(module, "write_atomically", die)
        else:
            patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            box.take()
    assert "a.jsonl" in box.left()
    [taken] = box.take()
    assert (taken.accepted, taken.duplicates) == ({"shop": 1, "unsorted": 1}, 1)
    assert box.texts("shop") + box.texts("unsorted") == ["one", "two"]
    assert box.left() == ["done/a.jsonl.json"]


def test_a_file_that_grows_while_it_is_read_is_not_taken_away(
    make: Callable[..., Inbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    box = make()
    path = box.drop("a.jsonl", [{"text": "one"}])

    def parse(*arguments: Any) -> Any:
        with path.open("a") as more:
            more.write(jsonl([{"text": "two"}]))
        return original(*arguments)

    original = module._parse_file
    with monkeypatch.context() as patch:
        patch.setattr(module, "_parse_file", parse)
        assert [one.state for one in box.take()] == ["waiting"]
    os.utime(path, (time.time() - 60,) * 2)
    [taken] = box.take()
    assert (taken.accepted, taken.duplicates) == ({"unsorted": 1}, 1)
    assert box.texts("unsorted") == ["one", "two"]


def test_two_processes_do_not_take_one_file_twice(make: Callable[..., Inbox]) -> None:
    box = make()
    for n in range(8):
        box.drop(f"{n}.jsonl", [{"text": f"prompt {n} {m}"} for m in range(50)])
    code = (
        "import sys; from pathlib import Path\n"
        "from distill_dagster.intake.inbox import process_inbox\n"
        "from distill_dagster.pipeline.open_task import open_task\n"
        "tasks, accepted, place = map(Path, sys.argv[1:])\n"
        "print(sum(n for one in process_inbox(open_task(tasks, place.name, accepted), place) for n in one.accepted.values()))"  # noqa: E501
    )
    places = [str(p) for p in (box.home.tasks, box.home.accepted, box.place)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_FOLDER)}
    both = [
        subprocess.Popen([sys.executable, "-c", code, *places], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    counts = [int(process.communicate(timeout=HANG_S)[0]) for process in both]
    assert sum(counts) == 400
    assert len(box.texts("unsorted")) == len(set(box.texts("unsorted"))) == 400
    assert len(box.left()) == 8


def test_a_held_lock_is_an_error_after_the_timeout(make: Callable[..., Inbox]) -> None:
    box = make()
    box.drop("a.jsonl", [{"text": "one"}])
    with module.lock_inbox(box.place, -1), pytest.raises(DistillError, match="Another process"):
        process_inbox(box.folder, box.place, lock_s=0.05)
    assert box.left() == ["a.jsonl"]


def test_a_long_text_is_taken_and_masked_to_its_end(make: Callable[..., Inbox]) -> None:
    box = make()
    words = "some words " * 4_000
    box.drop("a.jsonl", [{"text": f"{words}from jane@example.org"}, {"text": f"{words}and more"}])
    [taken] = box.take()
    assert (taken.accepted, taken.masked) == ({"unsorted": 2}, {"EMAIL": 1})
    assert box.texts("unsorted") == [f"{words}from <EMAIL>", f"{words}and more"]


def test_slices_of_the_inbox_do_not_stop_slices_from_being_labels(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, NAME)
    for old, new in (("shop", "refund"), ("web", "delivery")):
        (folder.path / "slices" / f"{old}.yaml").rename(folder.path / "slices" / f"{new}.yaml")
    box = Inbox(Home(root=tmp_path / "home", tasks=tmp_path / "tasks"))
    box.drop("a.jsonl", [{"text": "one"}])
    box.take()
    assert has_slices_as_labels(box.folder)
    assert [find_label_of_slice(box.folder, key) for key in box.folder.list_slice_keys()] == [
        "delivery",
        "refund",
        None,
    ]


def test_a_missing_inbox_is_not_an_error_and_is_not_created(make: Callable[..., Inbox]) -> None:
    box = make()
    assert box.take() == []
    assert not box.place.exists()


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ('{"text": "fine"}\nbroken\n', "1 of 2 lines"),
        ('{"text": "fine"}\nbroken', "1 of 2 lines"),
        ('\n{"text": "fine"}\r\n\r\nbroken\n\n', "1 of 2 lines"),
        ("broken\n", "its line"),
        ("", "its line"),
    ],
)
def test_the_lines_of_a_rejected_file_are_counted(make: Callable[..., Inbox], content: str, count: str) -> None:
    box = make()
    box.drop("a.jsonl", content)
    [rejected] = box.take()
    assert rejected.state == "rejected"
    assert box.reason("a.jsonl").startswith(f"a.jsonl was rejected for {count}.")


def test_a_duplicate_key_of_a_line_is_no_choice(make: Callable[..., Inbox]) -> None:
    box = make()
    box.drop("a.jsonl", '{"text": "fine"}\n{"text": "one", "text": "two"}\n{"text": "x", "a": {"b": 1, "b": 2}}\n')
    [rejected] = box.take()
    assert rejected.state == "rejected"
    reason = box.reason("a.jsonl")
    assert "line 2: duplicate field 'text'. Expected: each field once. Remove one of them." in reason
    assert "line 3: duplicate field 'b'" in reason
    assert box.texts("unsorted") == []
