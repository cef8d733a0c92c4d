"""`distill import`: what the records of other programs' files become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.intake.import_files import import_file
from distill_dagster.intake.import_options import ImportOptions, ImportSummary
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.tasks import ImportTarget, TaskFolder
from distill_dagster.tasks.accepted import get_accepted_path, read_accepted
from distill_dagster.teacher.providers.replay import load_replay_teacher
from tests.e2e.project import hash_files
from tests.support.kind_folder import write_kind_folder
from tests.support.task import jsonl, write_small_task

KEY = "sk-" + "abcdefgh12345678ABCDEFGH"


class Place:
    """A task, and files to import into it."""

    def __init__(self, root: Path) -> None:
        self.root, self.inbox = root, root / "inbox" / "shop_mail"
        self.path = write_small_task(root).path

    @property
    def folder(self) -> TaskFolder:
        return TaskFolder(self.path, self.root / "accepted" / "shop_mail")

    def file(self, name: str, content: str | list[dict[str, Any]]) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            assert isinstance(content, list)
            pl.DataFrame(content).write_parquet(path)
        else:
            path.write_text(jsonl(content) if isinstance(content, list) else content)
        return path

    def load(self, path: Path, target: ImportTarget, **options: Any) -> ImportSummary:
        return import_file(self.folder, path, ImportOptions(target, **options), self.inbox)

    def accepted(self, key: str) -> list[str]:
        return [row.text for row in read_accepted(get_accepted_path(self.root / "accepted" / "shop_mail", key))]

    def errors(self) -> list[str]:
        return [str(p) for p in check_task_folder(self.folder) if p.severity == "error"]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


ROWS = [{"body": "my parcel, lost", "area": "shop"}, {"body": "no refund yet", "area": "web"}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "rows.json", "traces"])
def test_seeds_of_every_kind_of_file(place: Place, name: str) -> None:
    if name == "rows.csv":
        path = place.file(name, 'body,area\n"my parcel, lost",shop\nno refund yet,web\n')
    elif name == "rows.json":
        path = place.file(name, json.dumps(ROWS))
    elif name == "traces":
        for number, row in enumerate(ROWS):
            place.file(f"traces/{number}/trace.json", json.dumps(row))
        path = place.root / "traces"
    else:
        path = place.file(name, ROWS)
    done = place.load(path, "seeds", text_field="body", slice_field="area")
    assert done.added == {"slice shop": 1, "slice web": 1}
    assert place.accepted("shop") == ["my parcel, lost"]
    assert place.accepted("web") == ["no refund yet"]
    again = place.load(path, "seeds", text_field="body", slice_field="area")
    assert (again.added, again.skipped) == ({}, {"duplicate": 2})


def test_seeds_are_masked_and_compared_and_leave_the_users_files_unchanged(place: Place) -> None:
    before = hash_files(place.path)
    held_out = place.folder.golden[0].text
    rows = [
        {"text": f"write to a.b@example.org, my key is {KEY}", "id": 7},
        {"text": held_out.upper()},
        {"text": "I want a refund"},
        {"text": "long words " * 2_000 + "me@example.org", "id": "me@example.org"},
    ]
    done = place.load(place.file("log.jsonl", rows), "seeds", slice="fresh-slice")
    assert done.added == {"slice fresh-slice": 2}
    assert done.skipped == {"golden or dev": 1, "duplicate": 1}
    assert done.masked == {"EMAIL": 2, "SECRET": 1}
    words = "long words " * 2_000
    assert place.accepted("fresh-slice") == ["write to <EMAIL>, my key is <SECRET>", f"{words}<EMAIL>"]
    [stored, other] = read_accepted(get_accepted_path(place.root / "accepted" / "shop_mail", "fresh-slice"))
    assert stored.id == "7"
    assert (other.id or "").startswith("masked-"), "an id may be a mail address"
    assert hash_files(place.path) == before
    assert "fresh-slice" in place.folder.list_slice_keys()
    assert place.errors() == []


def test_seeds_of_chat_traces_are_sorted_by_the_rules_of_the_inbox(place: Place) -> None:
    trace = [{"role": "system", "content": "s"}, {"role": "user", "content": "where is it"}]
    place.file("traces/a.json", json.dumps(trace))
    place.file("traces/b.jsonl", [{"request": {"messages": [*trace[:1], {"role": "user", "content": "and this"}]}}])
    assert place.load(place.root / "traces", "seeds").added == {"slice unsorted": 2}
    assert place.accepted("unsorted") == ["where is it", "and this"]


@pytest.mark.parametrize(("target", "name"), [(t, f"{t}.jsonl") for t in ("examples", "golden", "dev", "human")])
def test_labelled_rows_are_appended_to_the_tasks_own_file(place: Place, target: ImportTarget, name: str) -> None:
    path = place.path / name
    before = path.read_text() if path.exists() else ""
    if before:
        path.write_text(before.rstrip("\n"))  # an editor left the last line open
    rows = "question;x,kind,no\nWhere; is it?,delivery,12\nWhere; is it?,delivery,12\nI forgot it,login,13\n"
    csv = place.file("rows.csv", rows)
    options = {"text_field": "question;x", "label_field": "kind"}
    done = place.load(csv, target, **options)
    assert (done.added, done.skipped) == ({name: 2}, {"duplicate": 1})
    assert path.read_text().startswith(before)
    new = [json.loads(line) for line in path.read_text().splitlines()][-2:]
    assert [(row["text"], row["label"]) for row in new] == [("Where; is it?", "delivery"), ("I forgot it", "login")]
    assert place.errors() == []
    assert place.load(csv, target, **options).added == {}
    assert path.read_text().count("Where; is it?") == 1


def test_rows_equal_to_golden_and_contradictions_are_left_out(place: Place) -> None:
    golden, example = place.folder.golden[0], place.folder.examples[0]
    other = next(label for label in place.folder.task.label_names if label != example.label)
    rows = [{"text": golden.text, "label": golden.label}, {"text": example.text, "label": other}]
    done = place.load(place.file("rows.jsonl", rows), "examples")
    assert (done.added, done.skipped) == ({}, {"golden or dev": 1, "known with another answer": 1})
    assert place.load(place.file("g.jsonl", rows[:1]), "dev").skipped == {"golden or dev": 1}


def test_each_problem_names_its_line_and_nothing_is_written(place: Place) -> None:
    before = hash_files(place.path)
    path = place.file("rows.csv", 'q,l\n"two\nlines",refund\nx,parking\n ,login\n')
    with pytest.raises(InputError) as caught:
        place.load(path, "golden", text_field="q", label_field="l")
    found = [(p.file, p.line, p.field) for p in caught.value.problems]
    assert found == [(path, 4, "l"), (path, 5, "q")], "all mistakes are named at once"
    path = place.file("rows.csv", 'q,l\n"two\nlines",refund\nx,parking\ny,\n')
    with pytest.raises(InputError) as caught:
        place.load(path, "golden", text_field="q", label_field="l")
    assert [(p.line, p.field) for p in caught.value.problems] == [(4, "l"), (5, "l")]
    taken = place.folder.golden[0].id
    path = place.file("ids.jsonl", [{"id": taken, "text": "another", "label": "refund"}])
    with pytest.raises(InputError, match=f"{taken!r} is in golden.jsonl already"):
        place.load(path, "golden")
    assert hash_files(place.path) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b\n1\n", "1 cell, while the first line names 2 columns"),
        ("a.csv", "a,a\n1,2\n", "column name 'a' is duplicate"),
        ("a.csv", 'a,b\n"1,2\n', "malformed CSV"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', "malformed JSON at column 8"),
        ("a.jsonl", "7\n", "not an object"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "unpaired surrogate"),
        ("a.jsonl", "", "contains no record"),
        ("a.json", "{", "malformed JSON"),
        ("a.parquet.jsonl", "PAR1", "malformed JSON"),
        ("a.xml", "x", "unsupported file type"),
        ("a.jsonl", '{"label": "refund"}\n', "Name its field with --text-field. The record has: label"),
        ("a.jsonl", '{"text": 7}\n', "the text is missing"),
    ],
)
def test_files_that_cannot_be_read(place: Place, name: str, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        place.load(place.file(name, content), "seeds", slice="shop")


def test_a_broken_parquet_file_and_a_missing_file(place: Place) -> None:
    (place.root / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        place.load(place.root / "x.parquet", "seeds", slice="shop")
    with pytest.raises(InputError, match="no such file"):
        place.load(place.root / "none.csv", "seeds", slice="shop")


def test_recorded_completions_are_masked_and_replayed(place: Place) -> None:
    rows = [
        {"prompt": "I want a refund", "completion": "refund"},
        {"prompt": "I want a refund", "completion": "refund"},
        {"prompt": "mail a.b@example.org", "completion": "login", "reasoning": f"their key is {KEY}"},
        {"prompt": "words " * 3_000 + "c@example.org", "completion": "delivery"},
        {"prompt": "call", "completion": '{"to": "c\\u0040example.org"}'},
    ]
    path = place.file("Provider Log.jsonl", rows)
    done = place.load(path, "recorded")
    assert done.added == {"recorded/provider-log.jsonl": 5}
    assert done.masked == {"EMAIL": 3, "SECRET": 1}
    assert "replay/provider-log" in done.hint
    stored = place.root / "accepted" / "shop_mail" / "recorded" / "provider-log.jsonl"
    assert KEY not in stored.read_text()
    assert "example.org" not in stored.read_text(), "neither at the end of a long text nor behind an escape"
    assert place.load(path, "recorded").added == {}
    more = place.file("Provider Log.jsonl", [*rows, rows[0]])
    assert place.load(more, "recorded").added == {"recorded/provider-log.jsonl": 1}

    (place.path / "task.yaml").write_text(
        (place.path / "task.yaml")
        .read_text()
        .replace("openai/fake", "replay/provider-log")
        .replace("logprobs", "votes")
    )
    found = load_replay_teacher(place.folder, place.folder.task.teacher)
    assert [r.completion for r in found.find("i want a  REFUND")] == ["refund"] * 3
    assert [r.completion for r in found.find("mail a.b@example.org")] == ["login"]
    assert [r.completion for r in found.find("words " * 3_000 + "c@example.org")] == ["delivery"]
    assert found.find("words " * 3_000 + "another ending") == [], "a long prompt is compared to its end"
    assert len(compute_source_version(place.folder, "teacher_settings")) == 64


def test_recorded_completions_with_an_id_and_no_prompt(place: Place) -> None:
    path = place.file("palm.jsonl", [{"id": "7", "completion": "refund"}])
    assert "match: id" in place.load(path, "recorded").hint


def test_recorded_labels_keep_their_probabilities_and_are_masked(place: Place) -> None:
    rows = [
        {
            "text": "mail a.b@example.org",
            "label": "login",
            "reasoning": f"key {KEY}",
            "probs": {"login": 0.9, "refund": 0.1},
        },
        {"text": "spam", "label": "refund", "probs": {"refund": 0.6, "x@example.org": 0.3, "y@example.org": 0.1}},
    ]
    path = place.file("frontier.jsonl", rows)
    assert place.load(path, "recorded").added == {"recorded/frontier.jsonl": 2}
    stored = (place.root / "accepted" / "shop_mail" / "recorded" / "frontier.jsonl").read_text()
    assert KEY not in stored
    assert "example.org" not in stored
    first, second = (json.loads(line) for line in stored.splitlines())
    assert (first["prompt"], first["completion"], first["soft_labels"]) == ("mail <EMAIL>", "login", rows[0]["probs"])
    assert second["soft_labels"] == {"refund": 0.6, "<EMAIL>": 0.4}
    assert place.load(path, "recorded").added == {}
    again = place.file("again.jsonl", [{"text": "q", "label": "login", "odds": {"login": 0.7}}])
    place.load(again, "recorded", soft_labels_field="odds")
    stored = (place.root / "accepted" / "shop_mail" / "recorded" / "again.jsonl").read_text()
    assert json.loads(stored)["soft_labels"] == {"login": 0.7}
    with pytest.raises(DistillError, match="--soft-labels-field has no meaning"):
        place.load(again, "golden", soft_labels_field="odds")


def test_a_dry_run_writes_nothing(place: Place) -> None:
    place.inbox.mkdir(parents=True)
    rows = place.file("a.jsonl", [{"text": "new", "label": "refund", "completion": "refund", "prompt": "new"}])
    (place.inbox / ".lock").touch()
    before = hash_files(place.root)
    targets: list[ImportTarget] = ["seeds", "examples", "golden", "recorded"]
    assert [place.load(rows, target, dry_run=True).count for target in targets] == [1, 1, 1, 1]
    assert hash_files(place.root) == before


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("seeds", {"label_field": "x"}, "--label-field has no meaning with --as seeds"),
        ("golden", {"name": "x"}, "--name has no meaning"),
        ("seeds", {"slice": "A/B"}, "cannot be a slice"),
        ("seeds", {"slice": "a", "slice_field": "b"}, "not both"),
        ("recorded", {"name": "../x"}, "cannot be the name"),
    ],
)
def test_options_that_do_not_go_together(
    place: Place, target: ImportTarget, options: dict[str, str], message: str
) -> None:
    with pytest.raises(DistillError, match=message):
        place.load(place.file("a.jsonl", [{"text": "a"}]), target, **options)


def test_links_are_not_followed(place: Place) -> None:
    rows = place.file("a.jsonl", [{"text": "new", "label": "refund"}])
    (place.root / "link.jsonl").symlink_to(rows)
    with pytest.raises(InputError, match="symbolic links"):
        place.load(place.root / "link.jsonl", "seeds")
    (place.path / "human.jsonl").symlink_to(rows)
    with pytest.raises(InputError, match="symbolic links"):
        place.load(rows, "human")


# what other programs write


def golden_rows(place: Place) -> list[dict[str, Any]]:
    """The rows of golden.jsonl that were imported."""
    rows = [json.loads(line) for line in (place.path / "golden.jsonl").read_text().split("\n") if line]
    return [row for row in rows if "source" in row]


def test_an_instruction_and_its_input_are_one_prompt(place: Place) -> None:
    rows = [
        {"instruction": "Which team?", "input": "My refund is late.", "output": "refund"},
        {"instruction": "Where is my parcel?", "input": "", "output": "delivery"},
    ]
    path = place.file("alpaca.json", json.dumps(rows))
    texts = ["Which team?\n\nMy refund is late.", "Where is my parcel?"]
    assert place.load(path, "seeds", slice="shop").added == {"slice shop": 2}
    assert place.accepted("shop") == texts
    assert place.load(path, "golden").added == {"golden.jsonl": 2}
    assert [(row["text"], row["label"]) for row in golden_rows(place)] == list(
        zip(texts, ["refund", "delivery"], strict=True)
    )
    named = {"text_field": ("instruction", "input"), "label_field": "output"}
    assert place.load(path, "human", **named).skipped == {"golden or dev": 2}


def test_cells_that_contain_chats_are_read(place: Place) -> None:
    chat = json.dumps([{"role": "system", "content": "Sort."}, {"role": "user", "content": "my parcel is lost"}])
    answer = json.dumps({"role": "assistant", "content": "delivery"})
    quoted = [cell.replace('"', '""') for cell in (chat, answer)]
    path = place.file("export.csv", f'id,input,output\nt1,"{quoted[0]}","{quoted[1]}"\nt2,"{quoted[0][:40]}",x\n')
    with pytest.raises(InputError, match=r"export\.csv:3 \[text\]: the text begins as a list of messages"):
        place.load(path, "seeds")
    assert place.load(path, "seeds", slice="shop", skip_invalid=True).skipped == {"cannot be used": 1}
    assert place.accepted("shop") == ["my parcel is lost"]
    assert place.load(path, "recorded", completion_field="output", skip_invalid=True).count == 1
    stored = (place.root / "accepted" / "shop_mail" / "recorded" / "export.jsonl").read_text()
    assert json.loads(stored) == {"completion": "delivery", "id": "t1", "prompt": "my parcel is lost"}


def test_pictures_and_failed_calls_are_counted(place: Place) -> None:
    picture = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    rows = [
        {"messages": [{"role": "user", "content": picture}, {"role": "assistant", "content": "a lamp"}]},
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]},
        {"prompt": "late", "error": {"code": 429}, "completion": None},
    ]
    path = place.file("log.jsonl", rows)
    done = place.load(path, "recorded")
    assert (done.count, done.records) == (1, 3)
    assert done.skipped == {"failed call": 1, "with a picture or other attachment": 1}
    done = place.load(path, "seeds", slice="shop")
    assert (done.added, done.skipped) == ({"slice shop": 2}, {"with a picture or other attachment": 1})
    again = place.load(path, "recorded")
    assert (again.count, again.skipped["duplicate"]) == (0, 1)


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e"])
def test_a_completion_with_an_odd_line_break_is_known_the_second_time(place: Place, sign: str) -> None:
    path = place.file("log.jsonl", [{"prompt": f"two{sign}lines", "completion": f"one{sign}two"}])
    assert place.load(path, "recorded").count == 1
    assert place.load(path, "recorded").skipped == {"duplicate": 1}
    assert place.load(path, "seeds", slice="shop").count == 1
    assert place.load(path, "seeds", slice="shop").skipped == {"duplicate": 1}
    assert place.accepted("shop") == [f"two{sign}lines"]


def test_a_duplicate_key_is_no_choice(place: Place) -> None:
    path = place.file("rows.jsonl", '{"text": "x", "label": "refund", "label": "login"}\n')
    for target in ("seeds", "golden", "recorded"):
        with pytest.raises(InputError, match=r"rows\.jsonl:1: duplicate field 'label'\. Write each field once"):
            place.load(path, target)  # type: ignore[arg-type]


def test_a_chat_gives_a_labelled_row(place: Place) -> None:
    turns = [{"role": "system", "content": "Sort."}, {"role": "user", "content": "my code is wrong", "name": None}]
    label = {"role": "assistant", "content": "Login", "tool_calls": None, "refusal": None}
    earlier = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    rows = [
        {"messages": [*turns, label]},
        {"messages": [*earlier, {"role": "user", "content": "late"}], "label": "delivery"},
    ]
    done = place.load(place.file("tuning.jsonl", rows), "golden")
    assert [(row["text"], row["label"]) for row in golden_rows(place)] == [
        ("my code is wrong", "login"),
        ("late", "delivery"),
    ]
    assert any("the last user turn was taken" in remark for remark in done.remarks)
    with pytest.raises(InputError, match=r"\[label\]: 'Sure\.' is not a label"):
        place.load(place.file("b.jsonl", [{"messages": [*turns, label | {"content": "Sure."}]}]), "dev")


LABELLED: list[tuple[dict[str, Any], str]] = [
    ({"label": "refund", "answer": "accept", "_input_hash": 12, "_session_id": None}, "refund"),
    ({"accept": ["login"], "options": [{"id": "login"}, {"id": "refund"}], "answer": "accept"}, "login"),
    ({"label": ["delivery"]}, "delivery"),
    ({"label": "refund", "axes": ["a"], "reasoning": 7, "source": {"url": "x"}, "slice": "Not A Key"}, "refund"),
    ({"label": "refund", "axes": {"tone": "sad"}, "reasoning": "because", "slice": "shop"}, "refund"),
    ({"label": "refund", "tool_calls": None, "metadata": {"a": 1}, "answer": None}, "refund"),
    ({"answer": "refund"}, "refund"),
    ({"label": " Refund "}, "refund"),
]


@pytest.mark.parametrize(("record", "label"), LABELLED)
def test_fields_that_were_not_asked_for_do_not_stand_in_the_way(
    place: Place, record: dict[str, Any], label: str
) -> None:
    place.load(place.file("rows.jsonl", [{"text": "an odd text"} | record]), "golden")
    [row] = golden_rows(place)
    assert row["label"] == label
    assert set(row) - {"id", "text", "label", "source"} == (set(record) - {"label"} if "tone" in str(record) else set())
    assert place.errors() == []


def test_what_an_annotator_did_not_accept_is_counted(place: Place) -> None:
    rows = [
        {"text": f"text {verdict}", "label": "refund", "answer": verdict} for verdict in ("accept", "reject", "ignore")
    ]
    done = place.load(place.file("prodigy.jsonl", rows), "golden", label_field="label")
    assert (done.added, done.skipped) == ({"golden.jsonl": 1}, {"rejected by the annotator": 2})


def test_labels_are_renamed_and_it_is_said(place: Place) -> None:
    labels = ["Refund ", "LOGIN", "shipping", "Shipping", "spam", "delivery"]
    rows = "text;kind\n" + "".join(f"text {n};{label}\n" for n, label in enumerate(labels))
    mapping = {"shipping": "delivery", "Shipping": "delivery", "spam": "", "ham": "login"}
    done = place.load(place.file("rows.csv", rows), "golden", label_field="kind", label_map=mapping)
    assert [row["label"] for row in golden_rows(place)] == ["refund", "login", "delivery", "delivery", "delivery"]
    assert done.skipped == {"left out by --map": 1}
    [renamed] = [remark for remark in done.remarks if "renamed" in remark]
    assert "'Refund ' to 'refund' (1)" in renamed
    assert any("'ham'" in remark for remark in done.remarks), "a name that no record has may be a slip"


@pytest.mark.parametrize("number", ["0", "0.0"])
def test_class_numbers_are_named_as_such(place: Place, number: str) -> None:
    path = place.file("hf.jsonl", f'{{"text": "late", "label": {number}}}\n{{"text": "wrong code", "label": 1}}\n')
    with pytest.raises(InputError, match=r"the label is the class number 0, and the task has names\. .*--map 0=refund"):
        place.load(path, "golden")
    assert place.load(path, "golden", label_map={"0": "delivery", "1": "login"}).count == 2
    assert [row["label"] for row in golden_rows(place)] == ["delivery", "login"]


def test_numbers_that_are_labels_are_labels(tmp_path: Path) -> None:
    place = Place(tmp_path)
    task = place.path / "task.yaml"
    for old, new in (("refund", "1"), ("delivery", "2"), ("login", "3")):
        task.write_text(task.read_text().replace(f"name: {old}", f"name: '{new}'"))
        for file in ("golden", "dev", "examples"):
            path = place.path / f"{file}.jsonl"
            path.write_text(path.read_text().replace(f'"label": "{old}"', f'"label": "{new}"'))
    place.load(place.file("stars.jsonl", [{"text": "well", "label": 3}, {"text": "bad", "label": 1.0}]), "golden")
    assert [row["label"] for row in golden_rows(place)] == ["3", "1"]


def test_several_labels_are_none(place: Place) -> None:
    path = place.file("a.jsonl", [{"text": "x", "label": ["refund", "login"]}, {"text": "y", "label": {"a": 1}}])
    with pytest.raises(InputError) as caught:
        place.load(path, "golden")
    assert [problem.message for problem in caught.value.problems] == [
        "the label is several labels.",
        "the label is an object.",
    ]


def test_records_that_cannot_be_used_are_left_out_if_asked(place: Place) -> None:
    rows = 'id,text,label\n1,late,delivery\n2,,login\n3,odd,parking\n4,short\n5,"code",login\n5,"other code",login\n'
    path = place.file("rows.csv", rows)
    with pytest.raises(InputError) as caught:
        place.load(path, "golden")
    assert [problem.line for problem in caught.value.problems] == [3, 4, 5, 7]
    assert golden_rows(place) == []
    dry = place.load(path, "golden", skip_invalid=True, dry_run=True)
    assert golden_rows(place) == []
    done = place.load(path, "golden", skip_invalid=True)
    assert (done.added, done.skipped, done.records) == (dry.added, dry.skipped, dry.records)
    assert (done.added, done.skipped, done.records) == ({"golden.jsonl": 2}, {"cannot be used": 4}, 6)
    assert [problem.line for problem in done.problems] == [3, 4, 5, 7]
    assert [row["id"] for row in golden_rows(place)] == ["1", "5"]
    lines = '{"text": "fine", "completion": "x"}\n{"text": \n[1]\n{"text": "also fine", "completion": "y"}\n'
    for target in ("seeds", "recorded"):
        done = place.load(place.file("l.jsonl", lines), target, skip_invalid=True)  # type: ignore[arg-type]
        assert (done.count, done.skipped, done.records) == (2, {"cannot be used": 2}, 4)
    with pytest.raises(InputError, match="no such file"):
        place.load(place.root / "none.csv", "seeds", skip_invalid=True)
    with pytest.raises(InputError, match="malformed JSON"):
        place.load(place.file("n.jsonl", "{\n"), "seeds", skip_invalid=True)


@pytest.mark.parametrize("id_", ["", " ", None])
def test_equal_texts_without_an_id_are_duplicates_and_no_duplicate_ids(place: Place, id_: str | None) -> None:
    rows = [{"id": id_, "text": text, "label": "refund"} for text in ("same", "other", "SAME ", "same")]
    done = place.load(place.file("rows.jsonl", rows), "golden")
    assert (done.added, done.skipped) == ({"golden.jsonl": 2}, {"duplicate": 2})


def test_records_of_a_list_are_named_by_number_and_id(place: Place) -> None:
    rows = [
        {"id": "a", "data": {"text": "x"}, "said": [{"choice": "refund"}]},
        {"id": "b", "data": {"text": "y"}, "said": []},
    ]
    path = place.file("project.json", json.dumps(rows))
    fields = {"text_field": "data.text", "label_field": "said.0.choice"}
    with pytest.raises(InputError, match=r"project\.json \[said\.0\.choice\]: record 2 \(id b\): the label is missing"):
        place.load(path, "golden", **fields)
    assert place.load(path, "golden", **fields, skip_invalid=True).count == 1
    with pytest.raises(
        InputError, match=r"\[label\]: record 1 \(id a\): the label is missing\. Name its field with --label"
    ):
        place.load(path, "golden", text_field="data.text")


# conversations


@pytest.fixture
def talk(tmp_path: Path) -> Place:
    """A task of kind conversation."""
    place = Place(tmp_path)
    place.path = write_kind_folder(tmp_path, "conversation", "http://127.0.0.1:9/v1").path
    return place


TURNS = [
    {"role": "user", "content": "I want to send the lamp back to a.b@example.org."},
    {"role": "assistant", "content": "When did it come?"},
    {"role": "user", "content": "On Monday. And?"},
]


def test_chats_are_seeds_of_a_conversation_with_all_their_turns(talk: Place) -> None:
    tool = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    rows = [
        {
            "id": 1,
            "messages": [{"role": "system", "content": "Be kind."}, *TURNS, {"role": "assistant", "content": "Done."}],
        },
        {"messages": TURNS[:1]},
        {"messages": [*TURNS[:1], tool, {"role": "tool", "content": "x"}, TURNS[2]]},
        {"text": "only a text"},
    ]
    path = talk.file("chats.jsonl", rows)
    done = talk.load(path, "seeds", slice="one")
    assert (done.added, done.skipped) == ({"slice one": 3}, {"with tool calls in the chat": 1})
    assert done.masked == {"EMAIL": 2}
    prompts = build_seed_prompts("one", talk.folder.read_slice("one"))
    found = [row["messages"] for row in prompts.filter(pl.col("origin") == "log").to_dicts()]
    masked = TURNS[0]["content"].replace("a.b@example.org", "<EMAIL>")
    assert sorted([(turn["role"], turn["content"]) for turn in messages] for messages in found) == sorted(
        [
            [("system", "Be kind."), ("user", masked), ("assistant", "When did it come?"), ("user", "On Monday. And?")],
            [("user", masked)],
            [("user", "only a text")],
        ]
    )
    assert talk.load(path, "seeds", slice="one").added == {}
    assert talk.errors() == []
    version = compute_source_version(talk.folder, "slice_files", "one")
    other = [TURNS[0], TURNS[1] | {"content": "Which day?"}, TURNS[2]]
    assert talk.load(talk.file("more.jsonl", [{"messages": other}]), "seeds", slice="one").count == 1, "another chat"
    assert compute_source_version(talk.folder, "slice_files", "one") != version


def test_recorded_chats_answer_the_same_chats_as_seeds(talk: Place) -> None:
    chats = talk.file("chats.jsonl", [{"messages": [*TURNS, {"role": "assistant", "content": "Done."}]}])
    done = talk.load(chats, "recorded")
    assert "`replay: {match: conversation}`" in done.hint
    talk.load(chats, "seeds", slice="one")
    spec = {"model": "replay/chats", "replay": {"match": "conversation"}}
    task = yaml.safe_load((talk.path / "task.yaml").read_text())
    (talk.path / "task.yaml").write_text(yaml.safe_dump(task | {"teacher": spec}))
    [seed] = [accepted.text for accepted in talk.folder.read_slice("one").accepted]
    recorded = load_replay_teacher(talk.folder, talk.folder.task.teacher)
    assert [recording.completion for recording in recorded.find(seed)] == ["Done."]


def test_chats_are_labelled_rows_of_a_conversation(talk: Place) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        {"messages": [*TURNS, {"role": "assistant", "content": "Done."}]},
    ]
    done = talk.load(talk.file("chats.jsonl", rows), "golden")
    assert done.added == {"golden.jsonl": 2}
    first, second = golden_rows(talk)
    assert (first["text"], first["answer"]) == ("Hello", "Hi")
    assert (second["messages"], second["answer"]) == (TURNS, "Done.")
    held_out = talk.load(talk.file("again.jsonl", [{"messages": TURNS}]), "seeds")
    assert held_out.skipped == {"golden or dev": 1}
    assert talk.errors() == []


def test_any_value_names_a_slice_on_request(place: Place) -> None:
    rows = [{"text": f"matter {n}", "area": area} for n, area in enumerate(["Phone note", "phone-note", "Übersee", ""])]
    path = place.file("rows.jsonl", rows)
    with pytest.raises(InputError, match="--slugify"):
        place.load(path, "seeds", slice_field="area")
    done = place.load(path, "seeds", slice_field="area", slugify=True)
    assert done.added == {"slice phone-note": 2, "slice ubersee": 1, "slice unsorted": 1}
    path = place.file("rows.jsonl", [{"text": "one more", "area": "日本"}])
    with pytest.raises(InputError, match="cannot be a slice"):
        place.load(path, "seeds", slice_field="area", slugify=True)
    with pytest.raises(DistillError, match="--slice-field"):
        place.load(path, "seeds", slugify=True)
