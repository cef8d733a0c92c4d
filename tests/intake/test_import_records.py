"""`distill import`: what the records of other programs' files become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.core.errors import InputError
from tests.intake.place import Place


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
    assert [(row["text"], row["label"]) for row in place.golden_rows()] == list(
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
            place.load(path, target)


def test_a_chat_gives_a_labelled_row(place: Place) -> None:
    turns = [{"role": "system", "content": "Sort."}, {"role": "user", "content": "my code is wrong", "name": None}]
    label = {"role": "assistant", "content": "Login", "tool_calls": None, "refusal": None}
    earlier = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    rows = [
        {"messages": [*turns, label]},
        {"messages": [*earlier, {"role": "user", "content": "late"}], "label": "delivery"},
    ]
    done = place.load(place.file("tuning.jsonl", rows), "golden")
    assert [(row["text"], row["label"]) for row in place.golden_rows()] == [
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
    [row] = place.golden_rows()
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
    assert [row["label"] for row in place.golden_rows()] == ["refund", "login", "delivery", "delivery", "delivery"]
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
    assert [row["label"] for row in place.golden_rows()] == ["delivery", "login"]


def test_numbers_that_are_labels_are_labels(tmp_path: Path) -> None:
    place = Place(tmp_path)
    task = place.path / "task.yaml"
    for old, new in (("refund", "1"), ("delivery", "2"), ("login", "3")):
        task.write_text(task.read_text().replace(f"name: {old}", f"name: '{new}'"))
        for file in ("golden", "dev", "examples"):
            path = place.path / f"{file}.jsonl"
            path.write_text(path.read_text().replace(f'"label": "{old}"', f'"label": "{new}"'))
    place.load(place.file("stars.jsonl", [{"text": "well", "label": 3}, {"text": "bad", "label": 1.0}]), "golden")
    assert [row["label"] for row in place.golden_rows()] == ["3", "1"]


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
    assert place.golden_rows() == []
    dry = place.load(path, "golden", skip_invalid=True, dry_run=True)
    assert place.golden_rows() == []
    done = place.load(path, "golden", skip_invalid=True)
    assert (done.added, done.skipped, done.records) == (dry.added, dry.skipped, dry.records)
    assert (done.added, done.skipped, done.records) == ({"golden.jsonl": 2}, {"cannot be used": 4}, 6)
    assert [problem.line for problem in done.problems] == [3, 4, 5, 7]
    assert [row["id"] for row in place.golden_rows()] == ["1", "5"]
    lines = '{"text": "fine", "completion": "x"}\n{"text": \n[1]\n{"text": "also fine", "completion": "y"}\n'
    for target in ("seeds", "recorded"):
        done = place.load(place.file("l.jsonl", lines), target, skip_invalid=True)
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
