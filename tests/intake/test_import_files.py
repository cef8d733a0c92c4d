"""`distill import`: files of every kind, and what is written from them."""

from __future__ import annotations

import json

import pytest

from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.tasks import ImportTarget
from distill_dagster.tasks.accepted import get_accepted_path, read_accepted
from distill_dagster.teacher.providers.replay import load_replay_teacher
from tests.e2e.project import hash_files
from tests.intake.place import Place

KEY = "sk-" + "abcdefgh12345678ABCDEFGH"
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
