"""Every mistake in a task folder gives one problem, with its file, line, field and remedy."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from distill_dagster.errors import InputError, Problem
from distill_dagster.taskfiles import TaskFolder, check_folder, find_tasks, open_task
from tests.support.task import again, small_task


@dataclass(frozen=True)
class Mistake:
    """How a valid folder is broken, and what has to be said about it. `line` 0 stands for no line."""

    name: str
    breaks: Callable[[Path], object]
    file: str
    line: int
    field: str | None
    message: str
    remedy: str


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda path: (path / name).write_bytes(raw)


def append(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda path: (path / name).write_bytes((path / name).read_bytes() + raw)


def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
    def do(path: Path) -> None:
        text = (path / name).read_text()
        assert old in text
        (path / name).write_text(text.replace(old, new, 1))

    return do


def link(name: str) -> Callable[[Path], object]:
    """Move a file or folder out of the task folder and put a symbolic link in its place."""

    def do(path: Path) -> None:
        outside = path.parent.parent / "outside"
        (path / name).rename(outside)
        (path / name).symlink_to(outside)

    return do


def subfolder(path: Path) -> None:
    (path / "slices" / "area").mkdir()
    (path / "slices" / "area" / "web.yaml").write_text("description: x\nseeds: [text]\n")


def templates(name: str, content: str | bytes) -> Callable[[Path], object]:
    def do(path: Path) -> None:
        (path / "templates").mkdir()
        write(f"templates/{name}", content)(path)

    return do


def linked_templates(path: Path) -> None:
    templates("classification_user.j2", "{{ text }}")(path)
    link("templates")(path)


def repeat_line(name: str) -> Callable[[Path], object]:
    def do(path: Path) -> None:
        append(name, (path / name).read_text().splitlines(keepends=True)[0])(path)

    return do


def directory(name: str) -> Callable[[Path], object]:
    def do(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return do


ROW = '{"id": "new", "text": "some words", "label": "refund"}'
SLICE = "description: The shop.\nseeds:\n"
ONE_OBJECT = "one JSON object on each line"
MISTAKES = [
    # task.yaml
    Mistake("malformed task", write("task.yaml", "kind: classification\nlabels: [\n"), "task.yaml", 3, None, "expected",
            "Mend the YAML"),
    Mistake("tab in yaml", write("task.yaml", "kind: classification\nlabels:\n\t- a\n"), "task.yaml", 3, None, "\\t",
            "Mend the YAML"),
    Mistake("missing task", lambda p: (p / "task.yaml").unlink(), "task.yaml", 0, None, "missing", "Add it"),
    Mistake("repeated key", append("task.yaml", "description: again\n"), "task.yaml", 25, None,
            "'description' stands twice", "Mend the YAML"),
    Mistake("unknown field", replace("task.yaml", "description: Sort", "descriptoin: x\ndescription: Sort"), "task.yaml",
            2, "descriptoin", "unknown field", "spelling"),
    Mistake("unknown nested field", replace("task.yaml", "  api: text", "  apy: text\n  api: text"), "task.yaml", 12,
            "teacher.apy", "unknown field", "Remove it"),
    Mistake("value out of range", replace("task.yaml", "max_tokens: 4", "max_tokens: 0"), "task.yaml", 14,
            "teacher.max_tokens", "greater than or equal to 1 (found '0')", "Mend the value"),
    Mistake("missing field", replace("task.yaml", "  model: openai/fake\n", ""), "task.yaml", 10, "teacher.model",
            "field required", "Add it"),
    Mistake("no mapping", write("task.yaml", "- a\n- b\n"), "task.yaml", 1, None, "a mapping of fields is wanted",
            "Mend the value"),
    Mistake("empty task file", replace("task.yaml", "kind: classification\n", ""), "task.yaml", 1, "kind",
            "field required", "Add it"),
    # slices
    Mistake("malformed slice", write("slices/shop.yaml", "description: a: b\nseeds: [x]\n"), "slices/shop.yaml", 1, None,
            "mapping values are not allowed", "quotation marks"),
    Mistake("empty slice", write("slices/shop.yaml", "description: The shop.\nseeds: []\n"), "slices/shop.yaml", 2,
            "seeds", "at least 1 item", "Add at least one"),
    Mistake("slice without seeds", write("slices/shop.yaml", "description: The shop.\n"), "slices/shop.yaml", 1, "seeds",
            "field required", "Add it"),
    Mistake("blank seed", write("slices/shop.yaml", SLICE + '  - fine\n  - "  "\n'), "slices/shop.yaml", 4,
            "seeds.1.text", "empty", "Write some text"),
    Mistake("number as seed text", write("slices/shop.yaml", SLICE + "  - fine\n  - text: 404\n"), "slices/shop.yaml", 4,
            "seeds.1.text", "valid string (found '404')", "quotation marks"),
    Mistake("impossible date", write("slices/shop.yaml", SLICE + "  - 2024-02-30\n"), "slices/shop.yaml", 0, None,
            "malformed YAML", "quotation marks"),
    Mistake("half a surrogate pair", write("slices/shop.yaml", SLICE + '  - "\\ud83d"\n'), "slices/shop.yaml", 3,
            "seeds.0.text", "valid string", "Mend the value"),
    Mistake("label of a seed", write("slices/shop.yaml", SLICE + "  - text: a\n    target_label: refunds\n"),
            "slices/shop.yaml", 3, "seeds.0.target_label", "'refunds' is not a label", "refund, delivery, login"),
    Mistake("seed id twice", write("slices/shop.yaml", SLICE + "  - {id: a, text: x}\n  - {id: a, text: x}\n"),
            "slices/shop.yaml", 4, "seeds.1.id", "'a' stands twice", "id of its own"),
    Mistake("seed id reused", write("slices/shop.yaml", SLICE + "  - {id: a, text: x}\n  - {id: a, text: y}\n"),
            "slices/shop.yaml", 4, "seeds.1.id", "two different rows", "id of its own"),
    Mistake("unknown field of a seed", write("slices/shop.yaml", SLICE + "  - text: a\n    labell: refund\n"),
            "slices/shop.yaml", 4, "seeds.0.labell", "unknown field", "spelling"),
    Mistake("slice in a subfolder", subfolder, "slices/area/web.yaml", 0, None, "'area/web' cannot be a partition",
            "no slash"),
    Mistake("capital in a slice", lambda p: (p / "slices/web.yaml").rename(p / "slices/Web.yaml"), "slices/Web.yaml", 0,
            None, "'Web' cannot be a partition", "no capital"),
    Mistake("slice named .yml", lambda p: (p / "slices/web.yaml").rename(p / "slices/web.yml"), "slices/web.yml", 0, None,
            "end with .yaml", "Rename"),
    Mistake("no slices", lambda p: [f.unlink() for f in (p / "slices").iterdir()], "slices", 0, None, "no slice",
            "Add slices/"),
    Mistake("linked slices", link("slices"), "slices", 0, None, "symbolic links are not followed", "Put the file itself"),
    Mistake("linked slice", link("slices/web.yaml"), "slices/web.yaml", 0, None, "symbolic links are not followed",
            "Put the file itself"),
    # rows
    Mistake("malformed row", append("golden.jsonl", '{"id": "x", "text": \n'), "golden.jsonl", 7, None,
            "malformed JSON at column 21", ONE_OBJECT),
    Mistake("malformed example", append("examples.jsonl", "{'id': 'x'}\n"), "examples.jsonl", 10, None,
            "malformed JSON", ONE_OBJECT),
    Mistake("broken example", replace("examples.jsonl", '"id": "e-login-0",', '"id" "e-login-0",'), "examples.jsonl", 7,
            None, "malformed JSON", ONE_OBJECT),
    Mistake("a list", append("golden.jsonl", "[1, 2]\n"), "golden.jsonl", 7, None, "a mapping of fields is wanted",
            "Mend the value"),
    Mistake("endless number", append("golden.jsonl", '{"id": ' + "9" * 5000 + "}\n"), "golden.jsonl", 7, None, "digits",
            "plain value"),
    Mistake("field twice", append("dev.jsonl", '{"id": "a", "id": "b", "text": "t", "label": "refund"}\n'), "dev.jsonl", 7,
            None, "the field 'id' stands twice", "each field once"),
    Mistake("half a surrogate", append("dev.jsonl", '{"id": "a", "text": "\\ud83d", "label": "refund"}\n'), "dev.jsonl", 7,
            "text", "valid string", "Mend the value"),
    Mistake("unknown label", replace("golden.jsonl", '"label": "delivery"', '"label": "Delivery"'), "golden.jsonl", 3,
            "label", "'Delivery' is not a label", "refund, delivery, login"),
    Mistake("unknown label of an example", replace("examples.jsonl", '"label": "delivery"', '"label": "x"'),
            "examples.jsonl", 4, "label", "'x' is not a label", "Use one of"),
    Mistake("label missing", append("dev.jsonl", '{"id": "n", "text": "words"}\n'), "dev.jsonl", 7, "label",
            "the label is missing", "Add it"),
    Mistake("text missing", append("dev.jsonl", '{"id": "n", "label": "refund"}\n'), "dev.jsonl", 7, "text",
            "field required", "Add it"),
    Mistake("unknown field of a row", append("dev.jsonl", ROW.replace('"label"', '"note": 1, "label"') + "\n"), "dev.jsonl",
            7, "note", "unknown field", "spelling"),
    Mistake("row twice", repeat_line("golden.jsonl"), "golden.jsonl", 7, "id", "stands twice", "id of its own"),
    Mistake("id reused", append("golden.jsonl", ROW.replace("new", "g-login-0") + "\n"), "golden.jsonl", 7, "id",
            "'g-login-0' is used for two different rows", "id of its own"),
    Mistake("slice of a row", append("golden.jsonl", ROW.replace('"label"', '"slice": "../x", "label"') + "\n"),
            "golden.jsonl", 7, "slice", "'../x' cannot be a slice", "A slice matches"),
    Mistake("too few examples", replace("examples.jsonl", '"label": "refund"', '"label": "login"'), "examples.jsonl", 0,
            "label", "label 'refund' has 2 few-shot examples, teacher.few_shot.per_label asks for 3", "lower per_label"),
    Mistake("empty file", write("golden.jsonl", "\n  \n"), "golden.jsonl", 0, None, "empty", ONE_OBJECT),
    Mistake("empty examples", write("examples.jsonl", ""), "examples.jsonl", 0, None, "empty", ONE_OBJECT),
    Mistake("empty optional file", write("human.jsonl", ""), "human.jsonl", 0, None, "empty", ONE_OBJECT),
    Mistake("missing file", lambda p: (p / "dev.jsonl").unlink(), "dev.jsonl", 0, None, "missing", "Add it"),
    Mistake("missing examples", lambda p: (p / "examples.jsonl").unlink(), "examples.jsonl", 0, None, "missing", "Add it"),
    Mistake("a folder instead of a file", directory("golden.jsonl"), "golden.jsonl", 0, None, "cannot be read",
            "readable file"),
    Mistake("invalid UTF-8", append("golden.jsonl", b'{"id": "x", "text": "caf\xe9", "label": "refund"}\n'),
            "golden.jsonl", 7, None, "invalid UTF-8 at byte", "Save the file as UTF-8"),
    Mistake("invalid UTF-8 behind a BOM", write("golden.jsonl", codecs.BOM_UTF8 + b"\n\xff\n"), "golden.jsonl", 2, None,
            "invalid UTF-8 at byte 4", "Save the file as UTF-8"),
    Mistake("linked rows", link("golden.jsonl"), "golden.jsonl", 0, None, "symbolic links are not followed", "Put the file"),
    # templates
    Mistake("template syntax", templates("classification_user.j2", "Hello\n{% for x in %}\n"),
            "templates/classification_user.j2", 2, None, "Expected an expression", "Jinja2 syntax"),
    Mistake("unknown filter", templates("classification_user.j2", "\n\n{{ text | oneline }}"),
            "templates/classification_user.j2", 3, None, "No filter named 'oneline'", "Jinja2 syntax"),
    Mistake("unknown variable", templates("classification_user.j2", "{{ text }}\n{{ slice }}"),
            "templates/classification_user.j2", 2, None, "'slice' is not a variable", "text, examples, labels"),
    Mistake("unknown template", templates("classification.j2", "{{ text }}"), "templates/classification.j2", 0, None,
            "not the name of a template", "classification_text"),
    Mistake("empty template", templates("classification_user.j2", "\n"), "templates/classification_user.j2", 0, None,
            "empty", "built-in"),
    Mistake("template not in UTF-8", templates("classification_user.j2", b"{{ text }}\n\xe9"),
            "templates/classification_user.j2", 2, None, "invalid UTF-8", "Save the file as UTF-8"),
    Mistake("linked templates", linked_templates, "templates", 0, None, "symbolic links are not followed", "Put the file"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.name for m in MISTAKES])
def test_a_mistake_gives_one_problem(mistake: Mistake, tmp_path: Path) -> None:
    folder = small_task(tmp_path, teacher={"few_shot": {"per_label": 3}})
    assert check_folder(again(folder)) == []
    mistake.breaks(folder.path)
    problems = check_folder(again(folder))
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
    "slices/shop.yaml": lambda f: f.slice("shop"),
    "examples.jsonl": lambda f: f.examples,
    "dev.jsonl": lambda f: f.dev,
    "golden.jsonl": lambda f: f.golden,
    "human.jsonl": lambda f: f.human,
    "templates": lambda f: f.templates(),
}


@pytest.mark.parametrize(
    "mistake",
    [m for m in MISTAKES if m.file in PROPERTIES],
    ids=[m.name for m in MISTAKES if m.file in PROPERTIES],
)
def test_a_property_raises_the_same_problem(mistake: Mistake, tmp_path: Path) -> None:
    folder = small_task(tmp_path, teacher={"few_shot": {"per_label": 3}})
    mistake.breaks(folder.path)
    with pytest.raises(InputError) as caught:
        PROPERTIES[mistake.file](again(folder))
    expected = check_folder(again(folder))
    assert set(expected) <= set(caught.value.problems)
    assert str(expected[0]) in str(caught.value)


def test_a_template_that_cannot_be_read_is_not_replaced_by_the_built_in_one(tmp_path: Path) -> None:
    folder = small_task(tmp_path)
    templates("classification_text.j2", b"\xff")(folder.path)
    with pytest.raises(InputError, match="classification_text.j2"):
        folder.templates()


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    folder = small_task(tmp_path)
    append("golden.jsonl", 'no json\n{"id": "n", "text": "t", "label": "x"}\n{"id": "m"}\n')(folder.path)
    problems = check_folder(folder)
    assert [(p.line, p.field) for p in problems] == [(7, None), (8, "label"), (9, "text")]


def test_calibration_wants_an_example_outside_of_the_draw(tmp_path: Path) -> None:
    changes = {"few_shot": {"per_label": 3}, "calibration": "examples"}
    problems = check_folder(small_task(tmp_path, teacher=changes))
    assert len(problems) == 3
    assert "teacher.calibration for one more" in problems[0].message


@pytest.mark.parametrize("name", ["Shop", "1shop", "shop-mail", "shop mail"])
def test_a_task_name_that_cannot_be_one(name: str, tmp_path: Path) -> None:
    [problem] = check_folder(small_task(tmp_path, name))
    assert "cannot be a task name" in problem.message
    assert "Rename the folder" in problem.remedy


def test_a_number_is_an_id_but_true_is_not(tmp_path: Path) -> None:
    folder = small_task(tmp_path)
    append("golden.jsonl", ROW.replace('"new"', "17") + "\n")(folder.path)
    assert again(folder).golden[-1].id == "17"
    append("golden.jsonl", ROW.replace('"new"', "true") + "\n")(folder.path)
    [problem] = check_folder(again(folder))
    assert (problem.line, problem.field) == (8, "id")


@pytest.mark.parametrize("name", ["golden.jsonl", "examples.jsonl", "slices/shop.yaml", "task.yaml"])
def test_bom_and_crlf_are_read(name: str, tmp_path: Path) -> None:
    folder = small_task(tmp_path)
    before = (folder.task, folder.golden, folder.examples, folder.slice("shop"))
    path = folder.path / name
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    fresh = again(folder)
    assert check_folder(fresh) == []
    assert (fresh.task, fresh.golden, fresh.examples, fresh.slice("shop")) == before


def test_line_separators_inside_a_text_do_not_end_a_row(tmp_path: Path) -> None:
    folder = small_task(tmp_path)
    text = "one\u2028two\u0085three\x0bfour"
    row = json.dumps({"id": "n", "text": text, "label": "login"}, ensure_ascii=False)
    append("golden.jsonl", row + "\n")(folder.path)
    assert check_folder(folder) == []
    assert again(folder).golden[-1].text == text


def test_merge_keys_of_yaml_are_understood(tmp_path: Path) -> None:
    folder = small_task(tmp_path)
    write("slices/shop.yaml", "description: d\nseeds:\n  - &a {text: x, target_label: refund}\n  - {<<: *a, text: y}\n")(
        folder.path
    )
    assert check_folder(folder) == []
    assert [seed.target_label for seed in folder.slice("shop").seeds] == ["refund", "refund"]


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    folder = small_task(tmp_path)
    write("task.yaml", "kind: !!python/object/apply:os.getcwd []\n")(folder.path)
    [problem] = check_folder(folder)
    assert "could not determine a constructor" in problem.message


def _warning(problems: list[Problem], part: str) -> Problem:
    assert all(p.severity == "warning" for p in problems)
    [found] = [p for p in problems if part in p.message]
    return found


def test_warnings_do_not_stop_anything(tmp_path: Path) -> None:
    folder = small_task(tmp_path)
    seeds = ["'held out: Please  REFUND me'", "'tried: login fails'", "'The Same'"]
    write("slices/shop.yaml", SLICE + "".join(f"  - {s}\n" for s in seeds))(folder.path)
    write("slices/web.yaml", SLICE + "  - the same \n")(folder.path)
    append("examples.jsonl", ROW.replace("some words", "held out: login fails") + "\n")(folder.path)
    problems = check_folder(folder)
    assert len(problems) == 4
    golden = _warning(problems, "golden.jsonl row g-refund-0")
    assert golden.file.name == "shop.yaml"
    assert "contaminated" in golden.remedy
    assert _warning(problems, "dev.jsonl row d-login-0").file.name == "shop.yaml"
    repeated = _warning(problems, "stands 2 times")
    assert repeated.file.name == "web.yaml"
    assert "duplicate" in repeated.remedy
    assert _warning(problems, "row new has the text of golden.jsonl row g-login-0").file.name == "examples.jsonl"
    fresh = again(folder)
    assert len(fresh.slice("shop").seeds) == 3
    assert len(fresh.examples) == 10


def test_tasks_are_found_and_opened_by_name(tmp_path: Path) -> None:
    folder = small_task(tmp_path)
    tasks = folder.path.parent
    (tasks / "linked").symlink_to(folder.path)
    (tasks / "no_task").mkdir()
    assert [t.name for t in find_tasks(tasks)] == ["shop_mail"]
    assert open_task(tasks, "shop_mail").path == folder.path
    assert find_tasks(tmp_path / "nowhere") == []
    for name in ("linked", "no_task", "../tasks/shop_mail", "shop_mail/"):
        with pytest.raises(InputError, match="Known tasks: shop_mail"):
            open_task(tasks, name)


def test_slice_keys_leave_out_what_cannot_be_a_partition(tmp_path: Path) -> None:
    folder = small_task(tmp_path)
    subfolder(folder.path)
    write("slices/Big.yaml", SLICE + "  - a\n")(folder.path)
    write("slices/.hidden.yaml", SLICE + "  - a\n")(folder.path)
    assert TaskFolder(folder.path).slice_keys() == ["shop", "web"]
