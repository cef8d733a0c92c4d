"""Each mistake in a task folder gives one problem, with its file, line, field and remedy."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.core.errors import InputError, Problem
from distill_dagster.pipeline.open_task import find_tasks, open_task
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.reading import find_example_problems
from tests.support.kind_folder import write_kind_folder
from tests.support.task import reload_folder, write_small_task
from tests.tasks.mistakes import ROW, SLICE, Mistake, append, subfolder, templates, write
from tests.tasks.mistakes_in_rows import ROW_MISTAKES
from tests.tasks.mistakes_in_yaml import YAML_MISTAKES

MISTAKES = [*YAML_MISTAKES, *ROW_MISTAKES]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.name for m in MISTAKES])
def test_a_mistake_gives_one_problem(mistake: Mistake, tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, teacher={"few_shot": {"per_label": 3}})
    assert check_task_folder(reload_folder(folder)) == []
    mistake.breaks(folder.path)
    problems = check_task_folder(reload_folder(folder))
    assert len(problems) == 1, "\n".join(map(str, problems))
    [problem] = problems
    assert problem.severity == "error"
    assert problem.file == folder.path / mistake.file
    assert (problem.line or 0) == mistake.line
    assert problem.field == mistake.field
    assert mistake.message in problem.message
    assert mistake.remedy in problem.remedy
    assert "\n" not in str(problem)


PROPERTIES = {
    "task.yaml": lambda f: f.task,
    "slices/shop.yaml": lambda f: f.read_slice("shop"),
    "examples.jsonl": lambda f: f.examples,
    "dev.jsonl": lambda f: f.dev,
    "golden.jsonl": lambda f: f.golden,
    "human.jsonl": lambda f: f.human,
    "templates": lambda f: f.read_templates(),
}


@pytest.mark.parametrize(
    "mistake",
    [m for m in MISTAKES if m.file in PROPERTIES],
    ids=[m.name for m in MISTAKES if m.file in PROPERTIES],
)
def test_a_property_raises_the_same_problem(mistake: Mistake, tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, teacher={"few_shot": {"per_label": 3}})
    mistake.breaks(folder.path)
    with pytest.raises(InputError) as caught:
        PROPERTIES[mistake.file](reload_folder(folder))
    expected = check_task_folder(reload_folder(folder))
    assert set(expected) <= set(caught.value.problems)
    assert str(expected[0]) in str(caught.value)


def test_a_template_that_cannot_be_read_is_not_replaced_by_the_built_in_one(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    templates("classification_text.j2", b"\xff")(folder.path)
    with pytest.raises(InputError, match=r"classification_text\.j2"):
        folder.read_templates()


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    append("golden.jsonl", 'no json\n{"id": "n", "text": "t", "label": "x"}\n{"id": "m"}\n')(folder.path)
    problems = check_task_folder(folder)
    assert [(p.line, p.field) for p in problems] == [(7, None), (8, "label"), (9, "text")]


def test_calibration_needs_an_example_outside_of_the_draw(tmp_path: Path) -> None:
    changes = {"few_shot": {"per_label": 3}, "calibration": "examples"}
    problems = check_task_folder(write_small_task(tmp_path, teacher=changes))
    assert len(problems) == 3
    assert "teacher.calibration for one more" in problems[0].message


@pytest.mark.parametrize("name", ["Shop", "1shop", "shop-mail", "shop mail"])
def test_an_invalid_task_name(name: str, tmp_path: Path) -> None:
    [problem] = check_task_folder(write_small_task(tmp_path, name))
    assert "cannot be a task name" in problem.message
    assert "Rename the folder" in problem.remedy


def test_a_number_is_an_id_but_true_is_not(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    append("golden.jsonl", ROW.replace('"new"', "17") + "\n")(folder.path)
    assert reload_folder(folder).golden[-1].id == "17"
    append("golden.jsonl", ROW.replace('"new"', "true") + "\n")(folder.path)
    [problem] = check_task_folder(reload_folder(folder))
    assert (problem.line, problem.field) == (8, "id")


@pytest.mark.parametrize("name", ["golden.jsonl", "examples.jsonl", "slices/shop.yaml", "task.yaml"])
def test_bom_and_crlf_are_read(name: str, tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    before = (folder.task, folder.golden, folder.examples, folder.read_slice("shop"))
    path = folder.path / name
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    fresh = reload_folder(folder)
    assert check_task_folder(fresh) == []
    assert (fresh.task, fresh.golden, fresh.examples, fresh.read_slice("shop")) == before


def test_line_separators_inside_a_text_do_not_end_a_row(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    text = "one\u2028two\u0085three\x0bfour"
    row = json.dumps({"id": "n", "text": text, "label": "login"}, ensure_ascii=False)
    append("golden.jsonl", row + "\n")(folder.path)
    assert check_task_folder(folder) == []
    assert reload_folder(folder).golden[-1].text == text


def test_merge_keys_of_yaml_are_understood(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    write(
        "slices/shop.yaml", "description: d\nseeds:\n  - &a {text: x, target_label: refund}\n  - {<<: *a, text: y}\n"
    )(folder.path)
    assert check_task_folder(folder) == []
    assert [seed.target_label for seed in folder.read_slice("shop").seeds] == ["refund", "refund"]


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    write("task.yaml", "kind: !!python/object/apply:os.getcwd []\n")(folder.path)
    [problem] = check_task_folder(folder)
    assert "could not determine a constructor" in problem.message


def _warning(problems: list[Problem], part: str) -> Problem:
    assert all(p.severity == "warning" for p in problems)
    [found] = [p for p in problems if part in p.message]
    return found


def test_warnings_do_not_stop_anything(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    seeds = ["'held out: Please  REFUND me'", "'tried: login fails'", "'The Same'"]
    write("slices/shop.yaml", SLICE + "".join(f"  - {s}\n" for s in seeds))(folder.path)
    write("slices/web.yaml", SLICE + "  - the same \n")(folder.path)
    append("examples.jsonl", ROW.replace("some words", "held out: login fails") + "\n")(folder.path)
    append("dev.jsonl", ROW.replace("some words", "held out: delivery to Spain?") + "\n")(folder.path)
    problems = check_task_folder(folder)
    assert len(problems) == 5
    golden = _warning(problems, "prompt has the text of golden.jsonl row g-refund-0")
    assert golden.file.name == "shop.yaml"
    assert _warning(problems, "row new has the text of golden.jsonl row g-delivery").file.name == "dev.jsonl"
    assert "contaminated" in golden.remedy
    assert _warning(problems, "dev.jsonl row d-login-0").file.name == "shop.yaml"
    repeated = _warning(problems, "2 times")
    assert repeated.file.name == "web.yaml"
    assert "duplicate" in repeated.remedy
    assert _warning(problems, "row new has the text of golden.jsonl row g-login-0").file.name == "examples.jsonl"
    fresh = reload_folder(folder)
    assert len(fresh.read_slice("shop").seeds) == 3
    assert len(fresh.examples) == 10


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ({"logs": {"model": "replay/x"}}, None),
        ({"logs": {"model": "replay/x"}, "live": {"model": "openai/x", "few_shot": {"per_label": 2}}}, "2"),
    ],
)
def test_a_recorded_teacher_needs_no_few_shot_examples(
    tmp_path: Path, teachers: dict[str, Any], message: str | None
) -> None:
    folder = write_small_task(tmp_path, teachers=teachers, teacher=None)
    rows = [row for n, row in enumerate(folder.examples) if n % 3 == 0]  # one of each label
    found = [problem.message for problem in find_example_problems(folder.path, folder.task, rows)]
    asks = f"label 'refund' has 1 few-shot examples, teachers.live.few_shot.per_label asks for {message}."
    assert found[:1] == ([asks] if message else [])
    assert find_example_problems(folder.path, folder.task, rows[1:])[0].message.startswith("label 'refund' has 0")


def test_tasks_are_found_and_opened_by_name(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    tasks = folder.path.parent
    (tasks / "linked").symlink_to(folder.path)
    (tasks / "no_task").mkdir()
    assert [t.name for t in find_tasks(tasks, tmp_path / "accepted")] == ["shop_mail"]
    assert open_task(tasks, "shop_mail", tmp_path / "accepted").path == folder.path
    assert find_tasks(tmp_path / "nowhere", tmp_path / "accepted") == []
    for name in ("linked", "no_task", "../tasks/shop_mail", "shop_mail/"):
        with pytest.raises(InputError, match="Known tasks: shop_mail"):
            open_task(tasks, name, tmp_path / "accepted")


def test_slice_keys_skip_files_that_cannot_be_a_partition(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    subfolder(folder.path)
    write("slices/Big.yaml", SLICE + "  - a\n")(folder.path)
    write("slices/.hidden.yaml", SLICE + "  - a\n")(folder.path)
    assert TaskFolder(folder.path).list_slice_keys() == ["shop", "web"]


def test_leftovers_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    before = folder.read_templates()
    leftovers = [
        "templates/._classification_text.j2",
        "templates/.classification_text.j2",
        "slices/._shop.yaml",
        "slices/.ipynb_checkpoints/shop-checkpoint.yaml",
    ]
    for name in leftovers:
        path = folder.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x00\x05\x16\x07\xff Mac OS X")
    (folder.path / "templates" / ".#classification_text.j2").symlink_to("somebody@somewhere")
    fresh = TaskFolder(folder.path, tmp_path / "accepted")
    (tmp_path / "accepted" / "imagined").mkdir(parents=True)
    for name in ("._shop.jsonl", "imagined/._shop.jsonl"):
        (tmp_path / "accepted" / name).write_bytes(b"\x00\x05 no prompt\n")
    assert check_task_folder(fresh) == []
    assert fresh.read_templates() == before
    assert fresh.list_slice_keys() == ["shop", "web"]


def test_imported_prompts_alone_make_a_slice(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    for file in (folder.path / "slices").iterdir():
        file.unlink()
    fresh = TaskFolder(folder.path, tmp_path / "accepted")
    [problem] = check_task_folder(fresh)
    assert problem.message == "the task has no slice."
    assert "distill import shop_mail FILE --as seeds" in problem.remedy
    (tmp_path / "accepted").mkdir()
    for key in ("chat", "phone", "mail"):
        line = {"text": f"a prompt from {key}", "source": "x", "batch": "b", "accepted_at": "2026"}
        (tmp_path / "accepted" / f"{key}.jsonl").write_text(json.dumps(line) + "\n")
    write("slices/phone.yaml", "description: The phone.\n")(folder.path)
    write("slices/mail.yaml", "description: The mail.\nseeds:\n")(folder.path)
    assert check_task_folder(fresh) == []
    assert fresh.list_slice_keys() == ["chat", "mail", "phone"]
    assert fresh.read_slice("phone").description == "The phone."
    assert [prompt.text for prompt in fresh.read_slice("mail").accepted] == ["a prompt from mail"]
    write("slices/web.yaml", "description: The web.\n")(folder.path)
    [problem] = check_task_folder(fresh)
    assert (problem.file.name, problem.field) == ("web.yaml", "seeds")
    with pytest.raises(InputError, match="the slice has no prompt"):
        fresh.read_slice("web")


def test_fields_without_a_value_do_not_stand_in_the_way_of_a_turn(tmp_path: Path) -> None:
    folder = write_kind_folder(tmp_path, "conversation", "http://127.0.0.1:9/v1")
    turn = {"role": "user", "content": "hello", "tool_calls": None, "name": None, "refusal": None}
    for name in ("golden", "dev", "examples"):
        row = {"id": name, "messages": [turn | {"content": f"hello {name}"}], "answer": "hi"}
        (folder.path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    fresh = reload_folder(folder)
    assert fresh.golden[0].text == "hello golden"
    broken = {"id": "x", "messages": [turn | {"name": "Ann"}], "answer": "hi"}
    (folder.path / "dev.jsonl").write_text(json.dumps(broken) + "\n")
    with pytest.raises(InputError, match="unknown field"):
        _ = fresh.dev
