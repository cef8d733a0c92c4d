"""Each built-in filter by its own examples, the block in task.yaml, the order, and the page made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distill_dagster.config import CurationSpec, Task
from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.curation.dataset.curate import curate_dataset
from distill_dagster.curation.dataset.mask import mask_rows
from distill_dagster.curation.filters import (
    BUILT_IN_FILTERS,
    Filter,
    FilterSettings,
    collect_scorers,
    collect_task_scorers,
    docs,
    filter_rows,
    list_filter_hash_fields,
    list_parameters,
    mark_dropped,
    select_filters,
    select_task_filters,
)
from distill_dagster.curation.filters.pii import Pii
from distill_dagster.curation.scores import SCORERS, add_scores
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds import KINDS
from distill_dagster.pipeline.source_versions import hash_curation_settings
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.prompts.seeds import compute_prompt_id
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.messages import make_user_messages
from distill_dagster.tables.schemas import SCORED, SCORES, build_frame
from distill_dagster.tasks import TaskFolder
from tests.support.task import TASK, merge_settings, reload_folder, write_small_task

DEFAULT_FILTERS = ["truncated", "refused", "no_answer", "invalid_answer", "invalid_label", "too_short", "too_long"]
LONG_PROMPT_KINDS = ("summarization", "extraction", "qa", "conversation", "generation")
HERE = {"DISTILL_CLASSIFIERS": "shouting=distill_dagster.curation.filters.docs:score_capitals"}


@pytest.fixture(autouse=True)
def classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HERE.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("one", BUILT_IN_FILTERS, ids=[one.name for one in BUILT_IN_FILTERS])
def test_a_filter_keeps_and_drops_its_examples(one: type[Filter]) -> None:
    assert docs.apply_to_example(one, one.kept) == (None, None)
    reason, detail = docs.apply_to_example(one, one.dropped)
    assert reason == one.reason
    assert detail


@pytest.mark.parametrize("one", BUILT_IN_FILTERS, ids=[one.name for one in BUILT_IN_FILTERS])
def test_a_filter_documents_itself(one: type[Filter]) -> None:
    assert one.__doc__
    assert one.__doc__ != Filter.__doc__
    assert all(field.description for field in one.model_fields.values())
    assert set(one.defaults.kinds) <= set(KINDS)
    for kind, values in one.defaults.kinds.items():
        assert one(**(dict(one.dropped.settings) | dict(values))).is_active(), kind


def test_names_and_reasons_are_unique_and_every_score_has_one_scorer() -> None:
    assert (
        len({one.name for one in BUILT_IN_FILTERS})
        == len({one.reason for one in BUILT_IN_FILTERS})
        == len(BUILT_IN_FILTERS)
    )
    fields = [name for one in SCORERS.values() for name in one.fields]
    assert len(fields) == len(set(fields))
    assert {*fields, "toxicity", "injection"} == set(SCORES.to_schema())


def test_the_docs_page_is_current() -> None:
    stale = "the page is stale: python -m distill_dagster.curation.filters.docs"
    assert docs.FILTERS_PAGE.read_text(encoding="utf-8") == docs.render_filters_page(), stale


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_needs_no_score(kind: str) -> None:
    for thinks in (False, True):
        about = TaskView(kind, reasoning=thinks)
        names = [one.name for one in select_filters(FilterSettings(), about)]
        assert names == (DEFAULT_FILTERS[:-1] if kind in LONG_PROMPT_KINDS else DEFAULT_FILTERS)
        assert collect_scorers(select_filters(FilterSettings(), about)) == []


def test_the_preset_suited_depends_on_the_kind() -> None:
    def suited(kind: str, thinks: bool = False, **more: Any) -> list[str]:
        rules = select_filters(
            FilterSettings.model_validate({"preset": "suited"} | more), TaskView(kind, reasoning=thinks)
        )
        return [one.name for one in rules if one.name not in plain]

    plain = [one.name for one in select_filters(FilterSettings(), TaskView())]
    assert suited("classification") == []
    assert suited("classification", True) == ["reasoning_words", "repetition", "answer_first", "contradiction"]
    assert suited("math", True)[-1] == "arithmetic"
    assert suited("generation") == ["answer_words", "boilerplate", "echo", "repetition"]
    assert suited("generation", echo=False, pii="mask") == ["answer_words", "boilerplate", "repetition", "pii"]


def one_of(name: str, kind: str = "generation", **block: Any) -> Filter:
    return next(one for one in select_filters(FilterSettings.model_validate(block), TaskView(kind)) if one.name == name)


def test_a_filter_is_declared_by_true_a_value_or_a_mapping() -> None:
    assert list_parameters(one_of("repetition", repetition=True))["top_2_gram"] == 0.2
    assert list_parameters(one_of("repetition", "math", repetition=True))["top_2_gram"] == 0.4
    assert list_parameters(one_of("repetition", "math", repetition={"top_2_gram": 0.3}))["top_2_gram"] == 0.3
    assert list_parameters(one_of("repetition", "math", repetition={"top_4_gram": None}))["top_3_gram"] == 0.3
    assert list_parameters(one_of("language", language="en"))["allow"] == ["en"]
    assert list_parameters(one_of("language", language=["en", "de"]))["allow"] == ["en", "de"]
    assert list_parameters(one_of("echo", echo=0.5)) == {"max": 0.5}
    pii = one_of("pii", pii="mask")
    assert isinstance(pii, Pii)
    assert pii.action == "mask"
    assert "truncated" not in [
        one.name for one in select_filters(FilterSettings.model_validate({"truncated": False}), TaskView())
    ]
    assert "no_answer" in [
        one.name for one in select_filters(FilterSettings.model_validate({"truncated": False}), TaskView())
    ]


def hash_with(filters: dict[str, Any]) -> str:
    return hash_curation_settings(Task.model_validate(merge_settings(TASK, {"curation": {"filters": filters}})))


def test_the_settings_hash_changes_only_with_the_filters_that_apply() -> None:
    plain = hash_with({})
    for same in ({"echo": False}, {"max_confidence": 1.0}, {"min_words": 1}, {"target_label": "keep_answer"}):
        assert hash_with(same) == plain
    others: list[dict[str, Any]] = [{"echo": True}, {"echo": 0.5}, {"max_confidence": 0.9}, {"truncated": False}]
    assert len({plain, *map(hash_with, others)}) == len(others) + 1
    assert hash_with({"echo": True}) == hash_with({"echo": {"max": 0.8}})


@pytest.mark.parametrize(
    ("block", "field", "says"),
    [
        ({"echo": 2}, "echo.max", "less than or equal to 1"),
        ({"repetition": {"top_5_gram": 0.1}}, "repetition.top_5_gram", "unknown field"),
        ({"repeat": True}, "repeat", "unknown field"),
        ({"language": "English"}, "language.allow", "'English' is not a language"),
        ({"answer_words": {"min": 5, "max": 2}}, "answer_words", "min is more than max"),
        ({"pii": "hide"}, "pii.action", "'drop' or 'mask'"),
        ({"pii": {"kinds": ["EMAIL", "NAME"]}}, "pii.kinds.1", "'EMAIL'"),
        ({"min_confidence": 0.9, "max_confidence": 0.5}, None, "min_confidence is more than max_confidence"),
        ({"toxicity": True}, "toxicity.use", "field required"),
        ({"no_answer": False}, "no_answer", "unknown field"),
        ({"own": [{"name": "a", "sql": "words >"}]}, "own.0.sql", "not an expression"),
        ({"own": [{"name": "A b", "sql": "words > 1"}]}, "own.0.name", "a name matches"),
        ({"own": [{"sql": "words > 1"}]}, "own.0", "needs a `name`"),
        ({"own": [{"name": "a"}]}, "own.0", "either `sql` or `use`"),
        ({"own": [{"use": "nobody"}]}, "own.0", "no installed package has a filter 'nobody'"),
        ({"own": [{"name": "echo", "sql": "words > 1"}]}, None, "built-in reason"),
        ({"own": [{"name": "a", "sql": "words > 1"}, {"name": "a", "sql": "words > 2"}]}, None, "is a duplicate"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, block: dict[str, Any], field: str | None, says: str) -> None:
    folder = write_small_task(tmp_path, curation={"filters": block})
    with pytest.raises(InputError) as caught:
        _ = reload_folder(folder).task
    [problem] = caught.value.problems
    assert problem.file.name == "task.yaml"
    assert problem.field == ("curation.filters" if field is None else f"curation.filters.{field}")
    lines = (folder.path / "task.yaml").read_text().splitlines()
    assert problem.line is not None
    near = "\n".join(lines[max(0, problem.line - 4) : problem.line])
    assert (field or "filters").split(".")[0] in near
    assert says in problem.message


def test_the_examples_of_the_docs_page_are_valid(tmp_path: Path) -> None:
    import re

    text = docs.FILTERS_PAGE.read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)]
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        folder = write_small_task(tmp_path / str(number), **block)
        assert [str(p) for p in check_task_folder(reload_folder(folder)) if p.severity == "error"] == []
    code = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    path = tmp_path / "completions.parquet"
    docs.build_example_row(docs.FilterExample({})).write_parquet(path)
    exec(compile(code.replace('"completions.parquet"', repr(str(path))), "page", "exec"), {})


def test_the_bundled_tasks_have_the_filters_they_had() -> None:
    for name in ("support_triage", "word_problems"):
        task = TaskFolder(docs.PROJECT_FOLDER / "data" / "tasks" / name).task
        assert collect_task_scorers(task) == []
        names = [one.name for one in select_task_filters(task)]
        assert names == [*DEFAULT_FILTERS, *(name for name in ("low_agreement", "low_confidence") if name in names)]


# -- tables of any content ---------------------------------------------------------------------------------------------

ABOUT = TaskView("generation", reasoning=True)
ALL: dict[str, Any] = {
    "truncated": {"finish": True},
    "refused": True,
    "reasoning_words": {"min": 2, "max": 12},
    "answer_words": {"min": 2, "max": 40},
    "boilerplate": True,
    "echo": 0.6,
    "language": ["en"],
    "repetition": {"min_words": 4},
    "prose": {"min_words": 4},
    "answer_first": True,
    "contradiction": True,
    "arithmetic": True,
    "gold": 0.5,
    "min_agreement": 0.5,
    "min_confidence": 0.3,
    "max_confidence": 0.95,
    "secrets": "drop",
    "pii": "drop",
    "own": [{"name": "no_tabs", "sql": "not contains(answer, chr(9))"}],
}
ANSWERS = [
    None,
    "It left our house on Monday and comes soon.",
    "Where is my parcel, it was sent on Monday?",
    "again and again and again and again and again",
    "# # # 1 2 3 4 5 6",
    "As an AI model I cannot help with that.",
    "Das Paket ist noch nicht bei uns angekommen.",
    "write to jane.doe@example.org now",
    "the password is hunter2 today",
    "a\ttab",
    "x",
    {"refusal": "I cannot help with that."},
    12,
    ["a", "list"],
]
TEXTS = [
    "Where is my parcel, it was sent on Monday?",
    "Hello",
    "WHERE is  it",
    "12 * 3 = ?",
    "¿Dónde está mi paquete, por favor?",
]
THOUGHTS = [
    None,
    "",
    "3 * 4 = 12, so it is 12.",
    "The answer is 7. For three and four make seven of them.",
    "2 + 2 = 5 is what I say",
]


def candidate(n: int, text: str, answer: Any, thought: str | None, **more: Any) -> dict[str, Any]:
    from distill_dagster.core.hashing import to_canonical_json

    row: dict[str, Any] = dict.fromkeys(SCORED)
    row |= {"prompt_id": compute_prompt_id(make_user_messages(f"{n} {text}")), "slice": "shop", "origin": "human"}
    row |= {"messages": make_user_messages(text), "status": "ok", "teacher": "t", "answer_kind": "text"}
    row |= {"answer": None if answer is None else to_canonical_json(answer), "reasoning": thought}
    return row | {"completion_ids": ["c"], "words": len(text.split()), "agreement": 1.0, "confidence": 0.5} | more


ROWS = st.lists(
    st.tuples(
        st.sampled_from(TEXTS),
        st.sampled_from(ANSWERS),
        st.sampled_from(THOUGHTS),
        st.fixed_dictionaries(
            {
                "status": st.sampled_from(["ok", "ok", "ok", "truncated", "refused", "failed", None]),
                "agreement": st.sampled_from([None, 0.2, 0.5, 1.0]),
                "confidence": st.sampled_from([None, 0.1, 0.5, 0.99]),
                "teacher": st.sampled_from(["t", "t", None]),
                "reference": st.sampled_from([None, None, '"x"', '{"refusal":"wanted"}']),
            }
        ),
    ),
    max_size=12,
).map(lambda rows: [candidate(n, text, answer, why, **more) for n, (text, answer, why, more) in enumerate(rows)])


def cut(rows: list[dict[str, Any]], block: dict[str, Any]) -> Any:
    spec = CurationSpec(filters=block, validation_share=0.3)
    frame = build_frame(rows, SCORED, ("prompt_id",))
    rules = select_filters(FilterSettings.model_validate(spec.filters), ABOUT)
    return curate_dataset(add_scores(frame, collect_scorers(rules), ABOUT), set(), [], spec, ABOUT)


@settings(max_examples=15)
@given(ROWS, st.randoms(use_true_random=False))
def test_every_row_is_kept_or_dropped_with_one_reason(rows: list[dict[str, Any]], random: Any) -> None:
    found = cut(rows, ALL)
    assert found.dataset.height + found.rejected.height == len(rows)
    assert found.rejected["drop_reason"].null_count() == 0
    assert set(found.rejected["drop_reason"]) <= set(found.order)
    assert sum(found.count_reasons().values()) == found.rejected.height
    ids = [*found.dataset["prompt_id"], *found.rejected["prompt_id"]]
    assert sorted(ids) == sorted(row["prompt_id"] for row in rows)
    turned = rows.copy()
    random.shuffle(turned)
    again_ = cut(turned, ALL)
    assert compute_data_version(again_.dataset) == compute_data_version(found.dataset)
    assert compute_data_version(again_.rejected) == compute_data_version(found.rejected)


LOOSER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("echo", {"echo": 0.3}, {"echo": 0.9}),
    ("repetition", {"repetition": {"min_words": 4}}, {"repetition": {"min_words": 4, "top_2_gram": 0.9}}),
    ("prose", {"prose": {"min_words": 4}}, {"prose": {"min_words": 4, "min_stop_words": 0}}),
    ("answer_length", {"answer_words": {"min": 3, "max": 5}}, {"answer_words": {"min": 1, "max": 9}}),
    ("reasoning_length", {"reasoning_words": {"min": 4}}, {"reasoning_words": {"min": 1}}),
    ("low_agreement", {"min_agreement": 0.8}, {"min_agreement": 0.4}),
    ("low_confidence", {"min_confidence": 0.4}, {"min_confidence": 0.05}),
    ("high_confidence", {"max_confidence": 0.4}, {"max_confidence": 0.9}),
    ("arithmetic", {"arithmetic": 0}, {"arithmetic": 1}),
    ("not_gold", {"gold": 1.0}, {"gold": 0.1}),
    ("language", {"language": ["en"]}, {"language": {"allow": ["en"], "min_share": 0.99}}),
    ("too_short", {"min_words": 3}, {"min_words": 1}),
    ("too_long", {"max_words": 3}, {"max_words": 8}),
]


@pytest.mark.parametrize(("reason", "strict", "loose"), LOOSER, ids=[one[0] for one in LOOSER])
def test_a_loosened_threshold_never_drops_more(reason: str, strict: dict[str, Any], loose: dict[str, Any]) -> None:
    hit: list[int] = []

    @settings(max_examples=8)
    @given(ROWS)
    def check(rows: list[dict[str, Any]]) -> None:
        before, after = cut(rows, strict), cut(rows, loose)
        assert after.count_reasons()[reason] <= before.count_reasons()[reason] if reason in after.order else True
        hit.append(before.count_reasons()[reason])
        old = set(before.rejected.filter(pl.col("drop_reason") == reason)["prompt_id"])
        assert set(after.rejected.filter(pl.col("drop_reason") == reason)["prompt_id"]) <= old

    check()
    assert sum(hit), "no row was ever dropped by it"


def test_filtering_a_file_gives_the_same_in_batches_of_any_size(tmp_path: Path) -> None:
    rows = [
        candidate(n, TEXTS[n % len(TEXTS)], ANSWERS[n % len(ANSWERS)], THOUGHTS[n % len(THOUGHTS)]) for n in range(200)
    ]
    frame = build_frame(rows, SCORED, ("prompt_id",))
    path = tmp_path / "rows.parquet"
    frame.write_parquet(path)
    rules = select_filters(FilterSettings.model_validate(ALL), ABOUT)
    whole = pl.concat(filter_rows(frame, rules, ABOUT))
    assert whole["drop_reason"].n_unique() > 8
    for size in (7, 64, 1000):
        assert pl.concat(filter_rows(path, rules, ABOUT, size)).equals(whole)
    assert whole["prompt_id"].equals(frame["prompt_id"])
    few = pl.concat(filter_rows(frame.select("prompt_id", "messages", "answer").lazy(), rules, ABOUT))
    kept = few.filter(pl.col("drop_reason").is_null())
    assert few.height == 200
    assert kept.height == 0, "agreement is null, which counts as 0"
    plain = select_filters(FilterSettings.model_validate({"echo": True}), ABOUT)
    reasons = pl.concat(filter_rows(frame.select("messages", "answer"), plain, ABOUT))["drop_reason"]
    assert set(reasons.drop_nulls()) == {"echo", "invalid_answer"}


def test_an_empty_table_gives_an_empty_table() -> None:
    rules = select_filters(FilterSettings.model_validate(ALL), ABOUT)
    assert (
        pl.concat([pl.DataFrame(), *filter_rows(pl.DataFrame(schema=SCORED), rules, ABOUT)], how="diagonal").height == 0
    )


def test_masked_rows() -> None:
    mail, secret = "jane.doe@example.org", "the password is hunter2 today"
    rows = [
        candidate(0, f"I am {mail}", f"Dear {mail}, soon.", f"{mail} asks"),
        candidate(1, "no data", "none", None),
        candidate(2, "a secret", secret, None),
    ]
    both = cut(rows, {"pii": "mask", "secrets": "drop"})
    assert both.masked == 1
    assert both.rejected.select("drop_reason", "drop_detail").rows() == [("secret", "1 found")]
    row = next(r for r in both.dataset.to_dicts() if r["prompt_id"] == rows[0]["prompt_id"])
    assert row["answer"] == '"Dear <EMAIL>, soon."'
    assert row["reasoning"] == "<EMAIL> asks"
    assert [turn["content"] for turn in row["messages"]] == ["I am <EMAIL>", "Dear <EMAIL>, soon."]
    secrets = cut(rows, {"secrets": "mask"})
    assert secrets.masked == 1
    assert mail in str(secrets.dataset.to_dicts())
    assert "hunter2" not in str(secrets.dataset.to_dicts())
    card = cut(rows, {"pii": {"kinds": ["CARD"]}})
    assert (card.masked, card.rejected.height) == (0, 0)


def test_long_documents_are_kept_by_default_and_a_limit_drops_them() -> None:
    """A task of documents is not emptied by a limit that nobody set."""
    document = " ".join(f"word{n}" for n in range(800))
    frame = build_frame([candidate(0, document, "In short: words.", None)], SCORED, ("prompt_id",))
    for kind in KINDS:
        about = TaskView(kind)
        filters = [select_filters(FilterSettings.model_validate(block), about) for block in ({}, {"max_words": 500})]
        reasons = [mark_dropped(frame, each, about)["drop_reason"][0] for each in filters]
        assert reasons == ([None, "too_long"] if kind in LONG_PROMPT_KINDS else ["too_long", "too_long"]), kind


def test_masking_reaches_every_value_of_an_answer() -> None:
    """A field `name` is a value like any other; only tools are called by their name."""
    mail = "jane.doe@example.org"
    person = {"name": f"Jane, {mail}", "home": {"name": mail, "notes": [{"name": mail}]}, "age": 40}
    calls = [{"name": "send_mail", "arguments": {"name": mail, "to": [{"name": mail}]}}]
    filters = select_filters(FilterSettings.model_validate({"pii": "mask"}), TaskView("extraction"))

    def mask(answer: Any, kind: str) -> Any:
        frame = build_frame([candidate(0, "Who?", answer, None)], SCORED, ("prompt_id",))
        return json.loads(mask_rows(frame.with_columns(masks=pl.lit(True)), filters, TaskView(kind))["answer"][0])

    assert mask(person, "extraction") == {
        "name": "Jane, <EMAIL>",
        "home": {"name": "<EMAIL>", "notes": [{"name": "<EMAIL>"}]},
        "age": 40,
    }
    assert mask(calls, "tool_call") == [
        {"name": "send_mail", "arguments": {"name": "<EMAIL>", "to": [{"name": "<EMAIL>"}]}}
    ]


def test_a_label_is_never_masked() -> None:
    about = TaskView("classification", ("mail to a@b.co", "other"))
    row = candidate(0, "write to x@example.org", "mail to a@b.co", None, answer_kind="label")
    spec = CurationSpec(filters={"pii": "mask"})
    frame = add_scores(
        build_frame([row], SCORED, ("prompt_id",)),
        collect_scorers(select_filters(FilterSettings.model_validate(spec.filters), about)),
        about,
    )
    found = curate_dataset(frame, set(), list(about.labels), spec, about)
    assert found.dataset["answer"].to_list() == ['"mail to a@b.co"']
    assert found.dataset["messages"][0][0]["content"] == "write to <EMAIL>"


def test_a_wanted_refusal_is_kept() -> None:
    said = {"refusal": "I cannot help with that."}
    rows = [candidate(n, TEXTS[n], said, None, reference=r) for n, r in enumerate([None, '{"refusal":"wanted"}'])]
    assert [row["drop_reason"] for row in cut(rows, {"refused": True}).rejected.to_dicts()] == ["refused"]


def test_a_missing_classifier_and_one_with_wrong_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [candidate(0, TEXTS[0], "GO AWAY NOW", None)]
    assert cut(rows, {"toxicity": {"use": "shouting"}}).count_reasons()["toxic"] == 1
    assert cut(rows, {"toxicity": {"use": "shouting", "of": "prompt"}}).count_reasons()["toxic"] == 0
    with pytest.raises(ValidationError, match=r"no classifier 'absent'.*DISTILL_CLASSIFIERS"):
        cut(rows, {"toxicity": {"use": "absent"}})
    monkeypatch.setenv("DISTILL_CLASSIFIERS", "lengths=tests.curation.test_filters:lengths")
    with pytest.raises(DistillError, match="one number from 0 to 1"):
        cut(rows, {"toxicity": {"use": "lengths"}})


def lengths(texts: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def test_a_class_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site"
    info = package / "parcels-1.2.dist-info"
    info.mkdir(parents=True)
    (package / "parcels_filters.py").write_text(
        "import polars as pl\n"
        "from distill_dagster.curation.filters import Filter\n"
        "class NoParcels(Filter):\n"
        "    '''No row about parcels.'''\n"
        "    name = 'no_parcels'\n"
        "    reason = 'parcels'\n"
        "    word: str = 'parcel'\n"
        "    def drop_expr(self, task):\n"
        "        return pl.col('answer').str.contains(self.word)\n"
        "class Other: pass\n"
    )
    (info / "METADATA").write_text("Name: parcels\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[distill_dagster.filters]\nno_parcels = parcels_filters:NoParcels\nother = parcels_filters:Other\n"
    )
    monkeypatch.syspath_prepend(str(package))
    block = {"own": [{"use": "no_parcels", "settings": {"word": "house"}}]}
    rows = [candidate(0, TEXTS[0], ANSWERS[1], None), candidate(1, TEXTS[1], "short and good", None)]
    assert cut(rows, block).count_reasons()["parcels"] == 1
    task = Task.model_validate(merge_settings(TASK, {"curation": {"filters": block}}))
    used = {"use": "no_parcels", "settings": {"word": "house"}, "version": "1.2"}
    assert list_filter_hash_fields(task)[-1] == used
    for wrong, says in (
        ({"use": "no_parcels", "settings": {"wrd": 1}}, "settings.wrd"),
        ({"use": "other"}, "not a subclass"),
    ):
        folder = write_small_task(tmp_path / says.split(".")[0], curation={"filters": {"own": [wrong]}})
        with pytest.raises(InputError, match=says):
            _ = reload_folder(folder).task
