"""The three files of a report: they agree with the predictions, leak no markup, and need no network."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score

from distill_dagster.config import TeacherSpec, TermsSpec
from distill_dagster.config.evaluation import MACHINE_USD_PER_HOUR
from distill_dagster.evaluation.formatting import (
    build_summary_rows,
    format_count,
    format_days,
    format_dollars,
    format_rate,
    format_size,
    mark_breaks,
)
from distill_dagster.evaluation.golden_items import NearestRow
from distill_dagster.evaluation.metrics import compute_metrics
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs, write_report
from distill_dagster.evaluation.system_names import SYSTEM_MEANINGS
from distill_dagster.tables.schemas import PREDICTIONS
from distill_dagster.teacher.providers.terms import find_terms
from tests.evaluation.build import LABELS, SPEC, row, table
from tests.evaluation.sample_report import EVIL, FACTS, INPUTS, build_predictions, write_files, write_sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("report"))


def test_names_that_scripts_rely_on(folder: Path) -> None:
    figures = json.loads((folder / "metrics.json").read_text())
    assert (figures["task"], figures["student"], figures["dataset_version"]) == ("mail", "small", "d" * 64)
    for system in ("teacher", "base", "seed_only", "distilled", "centroid"):
        found = figures["systems"][system]
        assert found["metric"] == "accuracy"
        assert found["score"].keys() == {"value", "low", "high"}
        assert found["latency_s"].keys() >= {"p50", "p95"}
        assert found.keys() >= {"cost_usd_per_1k", "parameters", "bytes"}
    assert figures["systems"]["teacher"]["cost_usd_per_1k"] == 1.25
    own = figures["systems"]["base"]
    assert own["cost_usd_per_1k"] == pytest.approx(1000 * own["latency_s"]["mean"] / 3600 * MACHINE_USD_PER_HOUR)
    assert figures["retention"].keys() == {"value", "low", "high"}
    assert figures["verdict"].keys() == {"worth_it", "text", "best_other", "probe", "money"}
    assert figures["golden_looks"] == list(INPUTS.golden_looks)
    assert figures["dataset"]["dropped"] == {"duplicate": 4}
    assert figures["settings_hash"] == "5" * 64
    assert figures["run"] == "r1"


def test_the_kept_epoch_is_named(tmp_path: Path) -> None:
    sentence = "The linear probe is kept: its validation loss is 0.300, and fine-tuning came to 0.400 at best."
    inputs = replace(INPUTS, how_trained="It learned.", kept_epoch=sentence)
    assert f"<p>{sentence}</p>" in write_files(tmp_path, build_predictions(), inputs)
    assert f"- Training: It learned. {sentence}" in (tmp_path / "report.md").read_text()


def test_every_figure_can_be_recomputed_from_the_predictions(folder: Path) -> None:
    figures = json.loads((folder / "metrics.json").read_text())
    predictions = pl.read_parquet(folder / "predictions.parquet")
    assert dict(predictions.schema) == dict(PREDICTIONS)
    accuracy: dict[tuple[str, str], float] = {}
    for (split, system), part in predictions.group_by("split", "system"):
        found = figures["splits"][split]["systems"][system]
        truth, answers = part["reference"].to_list(), part["answer"].fill_null("none").to_list()
        value = sum(t == a for t, a in zip(truth, answers, strict=True)) / len(truth)
        accuracy[str(split), str(system)] = value
        assert found["n"] == len(truth)
        assert found["accuracy"]["value"] == pytest.approx(value)
        assert (found["metric"], found["score"]) == ("accuracy", found["accuracy"])
        f1 = f1_score(truth, answers, labels=sorted(set(truth)), average="macro", zero_division=0)
        assert found["macro_f1"]["value"] == pytest.approx(f1)
        seconds = part["latency_s"].drop_nulls().to_numpy()
        assert found["latency_s"]["items"] == len(seconds)
        for name, q in (("p50", 50), ("p95", 95)):
            expected = np.percentile(seconds, q) if len(seconds) else None
            assert found["latency_s"][name] == (None if expected is None else pytest.approx(expected))
        for slice_, own in found["per_slice"].items():
            assert (
                own["score"]
                == own["accuracy"]
                == pytest.approx(part.filter(pl.col("slice") == slice_)["correct"].mean())
            )
        assert sum(items for *_, items in found["confusion"]) == len(truth)
        if split == "golden":
            main = figures["systems"][system]
            assert main["score"] == found["accuracy"]
            assert main["macro_f1"] == found["macro_f1"]
            assert main["latency_s"] == found["latency_s"]
            assert figures["per_slice"][system] == found["per_slice"]
    retention = accuracy["golden", "distilled"] / accuracy["golden", "teacher"]
    assert figures["retention"]["value"] == pytest.approx(retention)
    for name, comparison in figures["comparisons"].items():
        first, second = name.split(" - ")
        difference = accuracy["golden", first] - accuracy["golden", second]
        assert comparison["difference"]["value"] == pytest.approx(difference)


def test_intervals_and_verdict_can_be_recomputed_too(folder: Path) -> None:
    figures = json.loads((folder / "metrics.json").read_text())
    again = compute_metrics(pl.read_parquet(folder / "predictions.parquet"), FACTS, figures["labels"], SPEC)
    assert figures["verdict"]["text"] == recommend(again).text
    for system, score in again.golden.systems.items():
        assert figures["systems"][system]["score"] == score.score.to_dict()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.scopes: list[str | None] = []
        self.headers: list[str] = []
        self.captions = 0
        self.tables = 0
        self._in_header = False
        self.events: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "xlink:href")]
        self.events += [k for k, _ in attrs if k.startswith("on")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if tag == "th":
            self.scopes.append(dict(attrs).get("scope"))
            self.headers.append("")
            self._in_header = True

    def handle_endtag(self, tag: str) -> None:
        self._in_header = self._in_header and tag != "th"

    def handle_data(self, data: str) -> None:
        if self._in_header:
            self.headers[-1] += data.strip()


def test_page_needs_nothing_from_outside(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    page = _Page()
    page.feed(html)
    assert html.count("<script") == 1
    script = html[html.index("<script>") + len("<script>") : html.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    assert page.tags.isdisjoint({"link", "iframe", "object", "embed", "base"})
    assert {f"#{name}" for name in page.ids} >= {link for link in page.links if link.startswith("#")}
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert not page.events
    assert not re.search(r"https?://|url\(|@import", html)
    assert len(html) < 1_000_000


def test_every_table_has_a_caption_and_every_header_says_what_it_heads(folder: Path) -> None:
    page = _Page()
    page.feed((folder / "report.html").read_text())
    assert page.captions == page.tables > 8
    assert set(page.scopes) == {"col", "row"}
    assert all(page.headers)
    assert len(set(page.ids)) == len(page.ids)


def test_the_first_screen_says_what_it_means_and_explains_its_terms(folder: Path) -> None:
    html = re.sub(r"\s+", " ", (folder / "report.html").read_text())
    first = html[: html.index("In this report")]
    order = ["<h2>", "May I switch?", "Quality:", "What do I save?", "Cost:", "What do I risk?", "What to do next"]
    assert sorted(order, key=first.index) == order
    assert "60 items that people labelled and no system was trained on" in first
    assert "<dt>1,000 answers cost</dt>" in first
    assert "teacher $1.25" in first
    assert "2 January 2026" in first
    assert not re.search("d{12}|5{12}|03:04:05", first), "hashes and times are below"
    names = html[html.index('id="systems"') : html.index('id="compared"')]
    for name in ("teacher", "base", "seed_only", "distilled", "centroid"):
        assert SYSTEM_MEANINGS[name].replace("'", "&#39;") in names


def test_a_column_without_any_figure_is_left_out_and_every_figure_is_explained(tmp_path: Path) -> None:
    bare = {"teacher": {"cost_usd_per_1k": 1.0}}
    for facts, is_shown in ((FACTS, True), (bare, False)):
        metrics = compute_metrics(build_predictions(), facts, LABELS, SPEC)
        write_report(tmp_path, build_predictions(), metrics, recommend(metrics), INPUTS)
        html = re.sub(r"\s+", " ", (tmp_path / "report.html").read_text())
        for column in ("Peak memory", "Parameters", "Size"):
            assert (f'<th scope="col">{column}</th>' in html) == is_shown
        assert "<b>Accuracy:</b> Share of items whose answer equals the reference." in html
        assert "<b>Macro-F1:</b> Mean over the labels of F1" in html
    rows = re.findall(
        r"<tr[^>]*> <th scope=\"row\">.*?</tr>", html[html.index('id="systems"') : html.index('id="compared"')]
    )
    assert {row.count("<td") for row in rows} == {6}


def test_a_figure_has_its_values_as_text(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    score = json.loads((folder / "metrics.json").read_text())["systems"]["distilled"]["score"]
    texts = re.findall(r'<img [^>]*alt="([^"]*)"', html)
    assert len(texts) == 4
    assert any(f"distilled {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in text for text in texts)
    assert any("training loss from 2.00 to 1.00, validation loss from 1.50 to 1.50" in text for text in texts)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a-short_name", "a-short_name"),
        ("x" * 30, "x" * 24 + "<wbr>" + "x" * 6),
        ("one_two/" * 5, "<wbr>".join(["one_", "two/"] * 5)),
        ("<b>" * 12, "<wbr>".join(["&lt;b&gt;" * 8, "&lt;b&gt;" * 4])),
        ("", ""),
    ],
)
def test_only_long_words_may_wrap_within(text: str, shown: str) -> None:
    assert mark_breaks(text) == shown


def test_page_shows_all_parts(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    figures = json.loads((folder / "metrics.json").read_text())
    for text in ("mail", "small", "Teacher and student share their base.", "duplicate", "One by one.", "text number"):
        assert text in html
    for system in ("teacher", "base", "seed_only", "distilled", "centroid"):
        assert f"{figures['systems'][system]['score']['value']:.3f}" in html
    assert "unknown" in html
    assert "$1.25" in html
    assert "training: loss" in html  # both loss curves in one plot
    assert "training: empty" not in html


def test_texts_labels_and_answers_are_escaped(tmp_path: Path) -> None:
    labels = ("refund", f"card {EVIL}", "other")
    predictions = build_predictions(labels)
    # The distilled student answers the first item with markup that is not a label, and the teacher is right there.
    first = pl.col("item_id") == "golden0"
    predictions = predictions.with_columns(
        answer=pl.when(first & (pl.col("system") == "distilled"))
        .then(pl.lit(json.dumps(f"answer {EVIL}")))
        .when(first & (pl.col("system") == "teacher"))
        .then(pl.col("reference"))
        .otherwise(pl.col("answer")),
    ).with_columns(correct=(pl.col("answer") == pl.col("reference")).fill_null(False))
    inputs = replace(
        INPUTS,
        task=f"mail{EVIL}",
        texts={f"golden{i}": f'ticket {EVIL} "><img src=x onerror=alert(2)>' for i in range(60)},
        notice=EVIL,
        dataset={"dropped": {EVIL: 1}},
        versions={EVIL: EVIL},
        golden_looks=[{EVIL: EVIL}],
        training={EVIL: [(1, 1.0), (2, 0.5)]},
    )
    html = write_files(tmp_path, predictions, inputs, labels)
    page = _Page()
    page.feed(html)
    assert html.count("<script") == 1, "the page's own"
    assert not page.events
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    for kind in ("ticket", "card", "answer"):
        assert f"{kind} &lt;script&gt;" in html


def test_the_terms_of_the_teacher_are_in_page_and_figures(tmp_path: Path) -> None:
    declared = TermsSpec.model_validate({"acknowledged": True, "note": EVIL})
    terms = find_terms(TeacherSpec(model="anthropic/claude-sonnet-4-5", terms=declared)).to_json()
    html = write_files(tmp_path, build_predictions(), replace(INPUTS, terms=[terms]))
    text = re.sub(r"\s+", " ", html)
    assert "restrict training with its answers; the task acknowledges it." in text
    assert "Use outputs to train an AI model (e.g., “model scraping” or “model distillation”)" in text
    assert "https://www.anthropic.com/legal/aup; read on 2026-11-22" in text
    assert html.count("<script") == 1
    [entry] = json.loads((tmp_path / "metrics.json").read_text())["terms"]
    assert (entry["restricts"], entry["acknowledged"], entry["note"]) == ("yes", True, EVIL)
    assert entry["clauses"][0]["url"] == "https://www.anthropic.com/legal/aup"
    assert "Terms of the teacher" not in write_files(tmp_path, build_predictions(), INPUTS)
    judge = find_terms(TeacherSpec(model="openai/gpt-4o", terms=TermsSpec(acknowledged=True))).to_json("judge")
    both = write_files(tmp_path, build_predictions(), replace(INPUTS, terms=[terms, judge]))
    assert "Terms of the teacher and of other models that were asked" in both
    assert "Answers were judged. The terms of OpenAI" in both
    roles = [one["role"] for one in json.loads((tmp_path / "metrics.json").read_text())["terms"]]
    assert roles == ["teacher", "judge"]


NEAREST = NearestRow("p1", 0.873, f"a training text {EVIL}", "card", "big", 0.91, "It is about a card.")


def test_every_item_is_in_the_table_and_an_error_has_the_rows_that_it_was_taught(tmp_path: Path) -> None:
    predictions = build_predictions()
    wrong = predictions.filter(pl.col("split") == "golden", pl.col("system") == "distilled", ~pl.col("correct"))
    first = wrong["item_id"].sort()[0]
    html = write_files(tmp_path, predictions, replace(INPUTS, nearest={first: (NEAREST,)}))
    assert html.count("<tbody data-outcome=") == 60
    assert html.count('class="near"') == 1
    text = re.sub(r"\s+", " ", html)
    assert "Nearest training rows: card (0.87)" in text
    assert "a training text &lt;script&gt;" in text
    assert "<b>card</b> by big, 0.91: “It is about a card.”" in text
    [error] = json.loads((tmp_path / "metrics.json").read_text())["errors"]
    assert (error["item_id"], error["nearest"][0]["prompt_id"]) == (first, "p1")


def test_the_markdown_has_the_same_figures_and_no_markup(tmp_path: Path) -> None:
    learned = f"The student learned the objective soft_label with chat prompts. {EVIL}"
    inputs = replace(INPUTS, task=f"a|b*c {EVIL}", notice=f"`code_with|pipe` and {EVIL}", how_trained=learned)
    write_files(tmp_path, build_predictions(), inputs)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert text.startswith(r"# a\|b\*c \<script\>")
    assert not re.search(r"(?<!\\)<[a-z/]", text)
    order = ["May I switch?", "What do I save?", "What do I risk?", "All systems on 60 golden items", "By slice"]
    assert sorted(order, key=text.index) == order
    assert r"`code_with\|pipe` and" in text
    assert r"- Training: The student learned the objective soft\_label with chat prompts. \<script" in text
    for name, system in figures["systems"].items():
        score = system["score"]
        label = name.replace("_", r"\_")
        assert f"| {label} | {score['value']:.3f} | [{score['low']:.3f}, {score['high']:.3f}] |" in text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1, "a table has equal rows"


def test_leaks_are_listed_row_by_row(tmp_path: Path) -> None:
    leak = {"slice": "mail", "text": f"Where is it? {EVIL}", "why": "item_in_row of golden:g7, overlap 0.83"}
    html = write_files(tmp_path, build_predictions(), replace(INPUTS, leaks=[leak]))
    assert "1 row left out because of golden or dev rows in them" in html
    assert "item_in_row of golden:g7, overlap 0.83" in html
    assert "Where is it? &lt;script&gt;" in html
    assert json.loads((tmp_path / "metrics.json").read_text())["leaks"] == [leak]
    assert "because of golden or dev rows" not in write_files(tmp_path, build_predictions(), INPUTS)


def test_an_almost_empty_report_is_still_written(tmp_path: Path) -> None:
    predictions = table([row("distilled", "a", "card", "card", slice=None)])
    bare = ReportInputs("mail", "small", "d", "s", "now", {})
    html = write_files(tmp_path, predictions, bare)
    assert "No verdict" in html
    assert "There is no training log." in html
    assert "The log is empty." in html
    assert "Please note." not in html
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["retention"] == {"value": None, "low": None, "high": None}


def test_many_labels_are_cut_to_those_with_errors(tmp_path: Path) -> None:
    labels = tuple(f"label {i:02d}" for i in range(40))
    rows = [row("distilled", f"i{i:02d}", label, labels[39 - i] if i < 2 else label) for i, label in enumerate(labels)]
    html = write_files(tmp_path, table(rows), INPUTS, labels)
    assert "labels with most errors are drawn" in re.sub(r"\s+", " ", html)


def test_the_same_input_gives_the_same_files(tmp_path: Path) -> None:
    predictions = build_predictions()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_files(tmp_path / name, predictions, INPUTS)
    for file in ("report.html", "metrics.json", "predictions.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_summary_rows() -> None:
    unpriced = SPEC.model_copy(update={"machine_usd_per_hour": None})
    rows = {r["system"]: r for r in build_summary_rows(compute_metrics(build_predictions(), FACTS, LABELS, unpriced))}
    assert list(rows) == ["teacher", "base", "seed_only", "distilled", "centroid"]
    assert re.fullmatch(r"0\.\d\d \[0\.\d\d, [01]\.\d\d\]", rows["distilled"]["accuracy"])
    assert rows["distilled"]["size"] == "90.9 MB"
    assert rows["distilled"]["cost per 1,000"] == "own machine"
    assert rows["teacher"]["cost per 1,000"] == "$1.25"


def test_units() -> None:
    assert [format_count(v) for v in (None, 0, 9_999, 134_515_008, 7e9)] == ["unknown", "0", "9,999", "135 M", "7 B"]
    assert [format_size(v) for v in (None, 12, 23_000, 98_000_000)] == ["unknown", "12 B", "23 kB", "98 MB"]
    assert [format_dollars(v) for v in (None, 0.0, 0.00051, 12_000)] == ["unknown", "$0.00", "$0.00051", "$12,000"]
    assert [format_dollars(v) for v in (0.000018, 0.0003, 0.00999)] == ["$0.000018", "$0.0003", "$0.01"]
    assert [format_days(v) for v in (None, 0.01, 0.5, 2, 1234.5)] == [
        "never",
        "less than an hour",
        "12 hours",
        "2 days",
        "1,234 days",
    ]
    assert [format_rate(v) for v in (None, 0.1234, 123.4, 12_345)] == ["–", "0.123", "123", "12,345"]
