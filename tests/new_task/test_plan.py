"""The task folder that is planned from a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.config import StudentSpec
from distill_dagster.core.errors import InputError
from distill_dagster.core.text import normalize_text
from distill_dagster.new_task.columns import Columns
from distill_dagster.new_task.plan import TaskPlan
from distill_dagster.new_task.task_yaml import TeacherChoice
from tests.new_task.table import build_rows, plan_table, read_parts, read_yaml, write_plan


def refuse(path: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        plan_table(path, rows, **options)
    return str(caught.value)


def test_a_labelled_table_becomes_a_task_without_a_single_problem(tmp_path: Path) -> None:
    plan = plan_table(tmp_path / "tickets.csv", build_rows(300))
    folder, problems = write_plan(tmp_path, plan)
    assert problems == []
    assert plan.parts == {"golden": 90, "dev": 60, "examples": 60, "seeds": 90}
    assert folder.task.label_names == ["billing", "delivery", "login"]
    assert folder.task.students.keys() == {"minilm"}
    assert folder.task.teacher.is_embedded
    texts = [text for part in read_parts(folder).values() for text in part]
    assert sorted(texts) == sorted(row["text"] for row in build_rows(300))
    by_label = Counter(row.label for row in folder.golden)
    assert set(by_label.values()) == {30}
    found = [row for row in [*folder.golden, *folder.dev, *folder.examples] if row.text == build_rows(300)[7]["text"]]
    assert len(found) <= 1
    for row in found:
        assert (row.id, row.source) == ("t7", "tickets.csv:9")
    [seed] = folder.read_slice("tickets").seeds[:1]
    assert seed.reference == next(row["label"] for row in build_rows(300) if row["text"] == seed.text)


def test_the_same_table_in_another_order_is_the_same_split_and_a_seed_makes_another(tmp_path: Path) -> None:
    first = plan_table(tmp_path / "a.csv", build_rows(60))
    again = plan_table(tmp_path / "a.csv", build_rows(60)[::-1])
    other = plan_table(tmp_path / "a.csv", build_rows(60), seed=1)

    def ids(plan: TaskPlan) -> set[str]:
        return {json.loads(line)["id"] for line in plan.files["golden.jsonl"].splitlines()}

    assert ids(first) == ids(again)
    assert ids(first) != ids(other)


def test_no_text_is_in_two_parts_whatever_its_spaces_and_case(tmp_path: Path) -> None:
    rows = build_rows(60)
    twins = [row | {"id": f"x{n}", "text": f" {row['text'].upper()}  "} for n, row in enumerate(rows)]
    plan = plan_table(tmp_path / "a.jsonl", [*rows, *twins])
    folder, problems = write_plan(tmp_path, plan)
    assert problems == []
    assert plan.left_out == {"duplicates": 60}
    keys = Counter(normalize_text(text) for part in read_parts(folder).values() for text in part)
    assert set(keys.values()) == {1}


def test_near_duplicates_are_never_divided(tmp_path: Path) -> None:
    long = "our order {n} with the red lamp and the oak table arrived on monday but the box was open and a leg is lost"
    rows = [*build_rows(60), *({"text": long.format(n=n), "label": "delivery"} for n in range(20))]
    plan = plan_table(tmp_path / "a.jsonl", rows)
    folder, _ = write_plan(tmp_path, plan)
    parts = read_parts(folder)
    [(part, texts)] = [(part, texts) for part, texts in parts.items() if any("our order" in text for text in texts)]
    number = sum("our order" in text for text in texts)
    assert (number == 20) if part == "seeds" else (number == 1 and sum(plan.left_out.values()) == 19)
    assert sum(plan.parts.values()) + sum(plan.left_out.values()) == 80


def test_texts_with_different_labels_are_used_without_one_and_named(tmp_path: Path) -> None:
    rows = build_rows(60)
    rows.append({"id": "other", "text": rows[0]["text"], "label": "login"})
    plan = plan_table(tmp_path / "a.csv", rows)
    assert any("line 2 says 'billing', line 62 'login'" in note for note in plan.notes)
    folder, _ = write_plan(tmp_path, plan)
    assert [seed.reference for seed in folder.read_slice("a").seeds if seed.text == rows[0]["text"]] == [None]


def test_rows_without_a_label_are_seeds(tmp_path: Path) -> None:
    rows = [row | ({"label": ""} if n >= 60 else {}) for n, row in enumerate(build_rows(200))]
    plan = plan_table(tmp_path / "a.csv", rows)
    assert plan.parts == {"golden": 18, "dev": 12, "examples": 30, "seeds": 140}
    unlabelled = {row["text"] for row in rows[60:]}
    assert unlabelled == {seed["text"] for seed in read_yaml(plan, "slices/a.yaml")["seeds"]}
    plan = plan_table(tmp_path / "a.csv", [{name: row[name] for name in ("text", "label")} for row in rows])
    seeds = read_yaml(plan, "slices/a.yaml")["seeds"]
    assert unlabelled == set(seeds), "a text without id and label is a plain string"


def test_labels_are_cleaned_and_mapped(tmp_path: Path) -> None:
    rows = build_rows(90)
    for n, row in enumerate(rows):
        row["label"] = {0: "Billing ", 1: "delivery", 2: "sign-in"}[n % 3] if n < 45 else row["label"]
    plan = plan_table(tmp_path / "a.csv", rows, label_map={"sign-in": "login", "Billing ": "billing"})
    assert {name: sum(counts.values()) for name, counts in plan.labels.items()} == {
        "billing": 30, "delivery": 30, "login": 30
    }  # fmt: skip
    assert plan.renamed == {"Billing ": ("billing", 15), "sign-in": ("login", 15)}
    assert "--map names labels that no row has: 'sign_in'" in refuse(
        tmp_path / "a.csv", rows, label_map={"sign_in": "login"}
    )


def test_slices_come_from_a_column_and_their_names_are_keys(tmp_path: Path) -> None:
    names = ["Phone note", "phone  note", "Web-Formular", "Übersee", "日本", "C++", "C#", ""]
    rows = [row | {"channel": names[n % 8]} for n, row in enumerate(build_rows(240))]
    plan = plan_table(tmp_path / "a.csv", rows, columns=Columns(slice="channel"))
    folder, problems = write_plan(tmp_path, plan)
    assert problems == []
    keys = folder.list_slice_keys()
    assert {"phone-note", "web-formular", "ubersee", "a"} <= set(keys)
    assert len(keys) == 7, keys
    assert "Phone note" in folder.read_slice("phone-note").description
    assert {row.slice for row in folder.golden} <= set(keys)


def test_secrets_and_personal_data_are_masked_in_every_part_unless_the_user_wants_them(tmp_path: Path) -> None:
    rows = [row | {"text": f"{row['text']}, write to a{n}@example.org"} for n, row in enumerate(build_rows(60))]
    plan = plan_table(tmp_path / "a.csv", rows)
    assert "@example.org" not in "".join(plan.files.values())
    assert plan.masked == {"EMAIL": 60}
    kept = plan_table(tmp_path / "a.csv", rows, mask=False)
    assert "".join(kept.files.values()).count("@example.org") == 60
    assert kept.masked == {}


def test_rows_that_cannot_be_used_refuse_the_table_or_are_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = build_rows(60)
    rows[3]["text"], rows[7]["label"], rows[9]["text"] = " ", ["billing", "login"], {"a": 1}
    message = refuse(tmp_path / "a.jsonl", rows)
    assert "a.jsonl:4 [text]: the text is empty" in message
    assert "a.jsonl:8 [label]: the cell has several values" in message
    assert "a.jsonl:10 [text]: the text is not a string" in message
    plan = plan_table(tmp_path / "a.jsonl", rows, skip_invalid=True)
    assert plan.left_out == {"invalid rows": 3}
    assert sum(plan.parts.values()) == 57


def test_rare_labels_refuse_the_table_or_are_left_out(tmp_path: Path) -> None:
    rows = [*build_rows(60), *({"text": f"odd {n}", "label": "odd"} for n in range(3))]
    assert "odd (3)" in refuse(tmp_path / "a.jsonl", rows)
    plan = plan_table(tmp_path / "a.jsonl", rows, skip_invalid=True)
    assert plan.left_out == {"rows of rare labels": 3}
    assert list(plan.labels) == ["billing", "delivery", "login"]
    joined = plan_table(tmp_path / "a.jsonl", rows, label_map={"odd": "login"})
    assert sum(joined.labels["login"].values()) == 23


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"text": f"words {n}", "label": "same"} for n in range(20)], "the only label is 'same'"),
        ([{"text": f"words {n}", "label": f"label {n}"} for n in range(60)], "60 different values in 60 rows"),
        (build_rows(12), "no row is left for the slices"),
        (build_rows(9), "fewer than 4 different rows"),
        ([{"text": "the same words", "label": "ab"[n % 2]} for n in range(20)], "no text keeps its answer"),
    ],
)
def test_what_is_no_task_is_said_in_words(tmp_path: Path, rows: list[dict[str, Any]], what: str) -> None:
    assert what in refuse(tmp_path / "a.jsonl", rows, kind="classification", columns=Columns(answer=("label",)))


def test_a_table_without_labels_becomes_slices_and_a_sheet_to_label(tmp_path: Path) -> None:
    rows = [{"text": row["text"]} for row in build_rows(120)]
    plan = plan_table(tmp_path / "a.csv", rows, kind="classification", labels=("billing", "login", "delivery"))
    assert (plan.to_label, plan.parts["seeds"]) == (60, 60)
    assert plan.files.keys() == {"task.yaml", "slices/a.yaml", "to_label.csv"}
    first = [line.split(",")[1] for line in plan.files["to_label.csv"].splitlines()[1:9]]
    assert set(first) == {"examples", "dev", "golden"}, "whoever labels the first rows only has all parts"
    assert "no row has a label" in refuse(tmp_path / "a.csv", rows, kind="classification")


CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "My lamp is broken."},
    {"role": "assistant", "content": "Which?"},
]


def build_chat(n: int) -> list[dict[str, str]]:
    """A chat whose last user turn is answered, or that ends with thanks, which nobody answered."""
    turns = [*CHAT, {"role": "user", "content": f"Number {n}."}, {"role": "assistant", "content": f"I send {n}."}]
    return turns if n % 2 else [*turns, {"role": "user", "content": "thanks"}]


def build_call(n: int) -> str:
    return json.dumps([{"name": "weather", "arguments": {"town": f"town {n}"}}])


RELATIONS = ["entailment", "neutral", "contradiction"]
KINDS: dict[str, Any] = {
    "qa": lambda n: {"question": f"who rules land {n}?", "answer": f"king {n}"},
    "math": lambda n: {"question": f"{n} and {n}?", "answer": f"they make <<{n}+{n}={2 * n}>>{2 * n}. #### {2 * n}"},
    "extraction": lambda n: {"text": f"{n} lamps to Oslo", "answer": {"count": n, "town": "Oslo" if n % 2 else None}},
    "tool_call": lambda n: {"query": f"weather in town {n}", "tools": "[]", "answers": build_call(n)},
    "summarization": lambda n: {"document": f"it rained in town {n} on all of its days", "summary": f"rain in {n}"},
    "generation": lambda n: {"instruction": "Be kind to", "input": f"customer {n}", "output": f"Dear customer {n}"},
    "conversation": lambda n: {"messages": build_chat(n)},
    "nli": lambda n: {"premise": f"a man walks {n} miles", "hypothesis": f"he moves {n}", "label": RELATIONS[n % 3]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_a_task_without_a_single_problem(tmp_path: Path, kind: str) -> None:
    rows = [KINDS[kind](n) for n in range(80)]
    plan = plan_table(tmp_path / "a.jsonl", rows)
    folder, problems = write_plan(tmp_path, plan)
    assert problems == []
    assert (plan.kind, folder.task.kind) == (kind, kind)
    assert min(plan.parts.values()) > 0
    answers = {row.answer_json for row in [*folder.golden, *folder.dev, *folder.examples]}
    assert "null" not in answers
    assert folder.task.reasoning == (kind == "math")


def test_answers_define_schema_tools_and_reasoning(tmp_path: Path) -> None:
    plan = plan_table(tmp_path / "a.jsonl", [KINDS["extraction"](n) for n in range(40)])
    schema = read_yaml(plan)["answer_schema"]
    assert schema["properties"] == {"count": {"type": "integer"}, "town": {"type": ["string", "null"]}}
    assert schema["required"] == ["count", "town"]
    plan = plan_table(tmp_path / "a.jsonl", [KINDS["tool_call"](n) for n in range(40)])
    [tool] = read_yaml(plan)["tools"]
    assert (tool["name"], tool["parameters"]["required"]) == ("weather", ["town"])
    plan = plan_table(tmp_path / "a.jsonl", [KINDS["math"](n) for n in range(40)])
    row = json.loads(plan.files["examples.jsonl"].splitlines()[0])
    assert row["reasoning"] == f"they make {row['answer']}."


def test_several_columns_are_the_fields_of_an_object(tmp_path: Path) -> None:
    rows = [{"text": f"{n} lamps to 0{n}", "count": str(n), "zip": f"0{n}", "note": ""} for n in range(40)]
    plan = plan_table(tmp_path / "a.csv", rows, columns=Columns(answer=("count", "zip", "note")))
    answer = json.loads(plan.files["golden.jsonl"].splitlines()[0])["answer"]
    assert isinstance(answer["count"], int)
    assert answer["zip"] == f"0{answer['count']}", "a leading zero makes a code"
    assert answer["note"] is None


def test_an_answer_of_another_kind_is_a_problem_of_its_row(tmp_path: Path) -> None:
    rows = [{"question": f"what is {n}?", "answer": n} for n in range(40)]
    rows[4]["answer"] = "a number"
    assert "a.jsonl:5 [answer]: the answer is not a number" in refuse(tmp_path / "a.jsonl", rows, kind="math")
    assert plan_table(tmp_path / "a.jsonl", rows, kind="math", skip_invalid=True).left_out == {"invalid rows": 1}


def test_a_real_teacher_gets_its_key_variable_and_no_word_about_terms_is_invented(tmp_path: Path) -> None:
    plan = plan_table(tmp_path / "a.csv", build_rows(60), teacher=TeacherChoice("openai/gpt-4o-mini"))
    teacher = read_yaml(plan)["teacher"]
    assert teacher == {
        "model": "openai/gpt-4o-mini", "api_key_env": "OPENAI_API_KEY", "few_shot": {"per_label": 2, "draws": 1}
    }  # fmt: skip
    own = TeacherChoice("openai/my-model", "http://127.0.0.1:8000/v1")
    plan = plan_table(tmp_path / "a.csv", build_rows(60), teacher=own)
    assert "api_key_env" not in read_yaml(plan)["teacher"]


def test_many_labels_and_long_texts_get_examples_that_fit(tmp_path: Path) -> None:
    rows = [{"text": f"words {n} about it", "label": f"intent {n % 40}"} for n in range(400)]
    assert read_yaml(plan_table(tmp_path / "a.csv", rows))["teacher"]["few_shot"] == {"nearest": 8, "draws": 1}
    rows = [{"text": f"{n} " + f"long{n} words{n} " * 150, "label": "abcd"[n % 4]} for n in range(80)]
    assert read_yaml(plan_table(tmp_path / "a.csv", rows))["teacher"]["few_shot"]["nearest"] <= 4


def test_many_conflicts_and_rare_labels_are_one_line_with_a_count(tmp_path: Path) -> None:
    rows = build_rows(90)
    rows += [{"id": f"x{n}", "text": rows[n]["text"], "label": rows[n + 1]["label"]} for n in range(10)]
    [note] = [note for note in plan_table(tmp_path / "a.jsonl", rows).notes if "different answers" in note]
    assert note.startswith("10 texts have different answers")
    assert note.count("says") == 3
    assert "and 7 other texts" in note
    rows = [*build_rows(300), *({"text": f"odd {n}", "label": f"rare {n}"} for n in range(40))]
    message = refuse(tmp_path / "a.jsonl", rows)
    assert message.count("rare ") == 20
    assert "and 20 more" in message


def make_english(n: int) -> str:
    return " ".join(f"word{n} letter{n * i}" for i in range(40))


def make_chinese(n: int) -> str:
    return "".join(chr(0x4E00 + (n * 97 + i * 31) % 9000) for i in range(200))


@pytest.mark.parametrize(("make", "letters_per_token"), [(make_english, 3), (make_chinese, 1)])
def test_prompts_and_answers_fit_into_the_tokens_of_teacher_and_student(
    tmp_path: Path, make: Callable[[int], str], letters_per_token: int
) -> None:
    rows = [{"instruction": make(n), "output": make(n + 1000)[:60]} for n in range(60)]
    task = read_yaml(plan_table(tmp_path / "a.jsonl", rows))
    student = task["students"]["smollm2"]
    assert len(make(7)) / letters_per_token < student["max_tokens"] <= 1024
    assert 60 / letters_per_token < student["answer_tokens"] == task["teacher"]["max_tokens"]


def test_one_line_moves_the_language_model_of_a_new_task_to_a_larger_one(tmp_path: Path) -> None:
    rows = [{"instruction": make_english(n), "output": make_english(n + 1000)[:60]} for n in range(60)]
    settings = read_yaml(plan_table(tmp_path / "a.jsonl", rows))["students"]["smollm2"]
    small, large = (StudentSpec.model_validate(settings | {"preset": name}) for name in ("smollm2", "phi-4-mini"))
    assert (small.model, large.model) == ("smollm2-135m-instruct", "microsoft/Phi-4-mini-instruct")
    assert large.lora.target_modules != small.lora.target_modules
    assert settings["preset"] == "smollm2"
