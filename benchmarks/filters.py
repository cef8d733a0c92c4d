"""Filters over a million completions, the same rules in datatrove, and a new cut after a changed threshold.

Usage: python benchmarks/filters.py [--quick] [--json FILE] [--rows N]

The corpus is generated from a seed: prompts of about 20 words, reasoning and answers of about 90 words. It has planted
rows for each filter: repetition, echoes, refusals, boilerplate, placeholders, wrong equations, email addresses,
passwords, truncated answers and others. All built-in filters that look at one row are on, except those with a model
(language and classifiers).

rows_s: rows per second from a Parquet file through `filter_rows`, with every score and every filter. `rules` counts
each limit of a filter of several measures as one. ratio_datatrove: the same rules as datatrove's own filters (Gopher
quality and repetition, with a tokenizer that splits at white space, much faster than its default) and LambdaFilters in
Python, on a sample of the same rows, with one worker per core. recut_1m_s: `curate_dataset` over the scored rows with
another threshold, from a Parquet file for each of 50 slices to the files of the dataset. Leaks and near-duplicates come
from the cut before; no score is computed and no teacher is asked. slice_cut_s: a cut after one slice, 2 % of the rows,
has new texts. The best of three runs counts. recut_peak_mb and others: the peak memory of the process of such a cut,
imports included. language_rows_s: the scorer of languages alone, on a sample, with one core. load_before and
load_after: the number of processes that want a core, including this one. If it is above the number of cores, the wall
times are those of a busy machine.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata, util
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import peak_mb, wanted, write_result

from distill_dagster.config import Task
from distill_dagster.config.inbox import DEFAULT_PHONE_REGIONS
from distill_dagster.curation.dataset.comparison_cache import ComparisonCache
from distill_dagster.curation.dataset.curate import CuratedDataset, curate_dataset
from distill_dagster.curation.filters import Filter, filter_rows, select_task_filters
from distill_dagster.curation.filters.measure_filter import MeasureFilter
from distill_dagster.curation.scores import arithmetic, boilerplate, language, personal_data, reasoning
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import extract_user_texts
from distill_dagster.kinds import refusals
from distill_dagster.tables.parquet import write_parquet
from distill_dagster.tables.schemas import MESSAGES, SCORED, SCORES, conform_to_schema

ROWS, SAMPLE, QUICK_ROWS, QUICK_SAMPLE = 1_000_000, 4_000, 100_000, 1_000
PLANTED = 0.005
BATCH = 50_000
REPEATS = 3
GOLDEN = 500
SLICES = 50
TASK = {
    "kind": "qa",
    "reasoning": True,
    "description": "A benchmark.",
    "teacher": "replay/none",
    "judge": {"model": "replay/none", "rubric": [{"name": "correct", "description": "It is right."}]},
    "students": {"small": {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}},
}
DECLARED: dict[str, Any] = {
    "truncated": True,
    "refused": True,
    "reasoning_words": {"min": 3, "max": 600},
    "answer_words": {"min": 1, "max": 400},
    "completion_tokens": {"min": 2, "max": 2000},
    "boilerplate": True,
    "echo": 0.8,
    "repetition": {"top_2_gram": 0.2, "top_3_gram": 0.18},
    "prose": True,
    "answer_first": True,
    "contradiction": True,
    "arithmetic": True,
    "gold": 0.5,
    "secrets": "drop",
    "pii": "drop",
    "min_agreement": 0.4,
    "min_confidence": 0.3,
    "max_confidence": 0.9999,
    "min_teacher_agreement": 0.4,
    "min_judge": 0.2,
    "target_label": "drop_disagreement",
    "own": [{"name": "has_letters", "sql": "regexp_matches(answer, '[A-Za-z]')"}],
}
_FREQUENT = """
the of and to in a is that it was for on are with as his they be at one have this from or had by hot but some what
there we can out other were all your when up use word how said an each she which do their time if will way about many
then them would write like so these her long make thing see him two has look more day could go come did sound no most
number who over know water than call first people may down side been now find head stand own page should country found
answer school grow study still learn plant cover food sun four thought let keep eye never last door between city tree
cross since hard start might story saw far sea draw left late run while press close night real life few stop open seem
together next white children begin got walk example ease paper often always music those both mark book letter until
mile river car feet care second group carry took rain eat room friend began idea fish mountain north once base hear
horse cut sure watch colour face wood main enough plain girl usual young ready above ever red list though feel talk
bird soon body dog family direct pose leave song measure state product black short numeral class wind question happen
complete ship area half rock order fire south problem piece told knew pass farm top whole king size heard best hour
better true during hundred remember step early hold west ground interest reach fast five sing listen six table travel
less morning ten simple several vowel toward war lay against pattern slow
"""
WORDS = _FREQUENT.split()


def make_sentences(rng: np.random.Generator, count: int) -> pl.Series:
    """Sentences of 5 to 20 words, frequent words first."""
    lengths = rng.integers(5, 21, count)
    shares = 1 / (np.arange(len(WORDS)) + 10)
    chosen = pl.Series(WORDS).gather(rng.choice(len(WORDS), lengths.sum(), p=shares / shares.sum()))
    rows = np.repeat(np.arange(count), lengths)
    joined = pl.DataFrame({"w": chosen, "r": rows}).group_by("r", maintain_order=True).agg(pl.col("w").str.join(" "))
    return joined["w"].str.replace(r"^(.)", "${1}") + "."


def make_corpus(rows: int, seed: int) -> pl.DataFrame:
    """Candidates without scores, with planted rows of every kind."""
    rng = np.random.default_rng(seed)
    pool = make_sentences(rng, 60_000)

    def joined(least: int, most: int, separator: str) -> pl.Series:
        lengths = rng.integers(least, most + 1, rows)
        said = pl.DataFrame(
            {"s": pool.gather(rng.integers(0, len(pool), lengths.sum())), "r": np.repeat(np.arange(rows), lengths)}
        )
        return said.group_by("r", maintain_order=True).agg(pl.col("s").str.join(separator))["s"]

    text, thought, answer = joined(1, 2, " "), joined(1, 4, " "), joined(2, 6, "\n")
    a, b = rng.integers(2, 90, rows), rng.integers(2, 90, rows)
    wrong = rng.random(rows) < PLANTED
    sums = pl.Series(a).cast(pl.String) + " * " + pl.Series(b).cast(pl.String) + " = "
    sums = sums + pl.Series(a * b + wrong).cast(pl.String) + "."
    dice, at = rng.random(rows), pl.int_range(rows, eager=True)
    place = pl.Series((dice / PLANTED).astype(np.int64))
    unique = pl.Series([f"{n:x}" for n in range(rows)])
    frame = pl.DataFrame(
        {"text": text + " " + unique, "reasoning": thought, "answer": answer, "place": place, "sums": sums}
    )
    said, why, kind = pl.col("answer"), pl.col("reasoning"), pl.col("place")
    planted = [
        (said.str.slice(0, 40) + " ").repeat_by(9).list.join(""),
        pl.col("text"),
        said + " I am sorry, but I cannot help with that.",
        pl.lit("As an AI language model I have no view. ") + said,
        pl.lit("Dear [insert name], ") + said,
        said + " Write to jane.doe@example.org.",
        said + " The password is pa55-w0rd-4711.",
        pl.lit("N/A"),
        pl.lit("# ## ### $$$ 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8 0x9 0x10 0x11 0x12 0x13 0x14"),
        said + " Call +49 30 901820 today.",
    ]
    for number, words in enumerate(planted):
        said = pl.when(kind == number).then(words).otherwise(said)
    why = pl.when(kind < 30).then(why + " So " + pl.col("sums")).otherwise(why)
    why = pl.when(kind == 40).then(pl.lit("The answer is water. Because ") + why).otherwise(why)
    why = pl.when(kind == 41).then(why + " The answer is parsnips.").otherwise(why)
    said = pl.when(kind == 41).then(pl.lit("deep water")).otherwise(said)
    frame = frame.with_columns(said.alias("answer"), why.alias("reasoning"))
    turn = pl.struct(
        pl.lit("user").alias("role"),
        pl.col("text").alias("content"),
        *(pl.lit(None, dtype=pl.String).alias(name) for name in ("tool_calls", "tool_call_id", "name")),
    )
    from distill_dagster.curation.text_columns import json_text_expr

    status = (
        pl.when(kind == 50).then(pl.lit("truncated")).when(kind == 51).then(pl.lit("failed")).otherwise(pl.lit("ok"))
    )
    full = frame.with_columns(
        pl.concat_list(turn).cast(MESSAGES).alias("messages"),
        status.alias("status"),
        json_text_expr(pl.col("answer")).alias("answer"),
        (pl.lit("p") + unique.str.pad_start(31, "0")).alias("prompt_id"),
        pl.when(kind == 60)
        .then(pl.lit('"something else"'))
        .when(kind == 61)
        .then(json_text_expr(said))
        .alias("reference"),
        pl.format("s{}", at % SLICES).alias("slice"),
        pl.lit("synthetic").alias("origin"),
        pl.lit("teacher").alias("teacher"),
        pl.lit("text").alias("answer_kind"),
        pl.Series("agreement", np.round(rng.beta(6, 1, rows), 3)),
        pl.Series("confidence", np.round(rng.beta(5, 1, rows), 3)),
        pl.Series("judge_score", np.round(rng.beta(5, 1, rows), 3)),
        pl.Series("teacher_agreement", rng.choice([0.5, 1.0], rows)),
        pl.concat_list(pl.lit("c") + unique).alias("completion_ids"),
        pl.col("text").str.count_matches(r"\S+").cast(pl.Int64).alias("words"),
        pl.Series("finish_reason", rng.choice(["stop", "length"], rows, p=[0.995, 0.005])),
        pl.Series("completion_tokens", rng.integers(3, 400, rows)),
        at.alias("at"),
    )
    absent = [pl.lit(None, dtype=dtype).alias(name) for name, dtype in SCORED.items() if name not in full.columns]
    return full.with_columns(absent).select(*SCORED, "finish_reason", "completion_tokens")


def write_corpus(path: Path, rows: int) -> None:
    """Write the corpus in parts, so that the whole table is never in memory."""
    parts = []
    for number, start in enumerate(range(0, rows, 100_000)):
        part = path.with_name(f"part-{number}.parquet")
        part_rows = make_corpus(min(100_000, rows - start), number)
        part_rows.with_columns((pl.col("prompt_id") + f"{number:03d}").alias("prompt_id")).write_parquet(
            part, compression="zstd"
        )
        parts.append(part)
    pl.scan_parquet(parts).sink_parquet(path, compression="zstd", row_group_size=BATCH)
    for part in parts:
        part.unlink()


def count_rules(filters: list[Filter]) -> int:
    """The number of limits in all filters."""
    several = sum(len(each._list_limits()) - 1 for each in filters if isinstance(each, MeasureFilter))
    bands = sum(getattr(one, "min", None) is not None and getattr(one, "max", None) is not None for one in filters)
    return len(filters) + several + bands


def measure_datatrove(rows: list[dict[str, Any]], workers: int) -> tuple[float, float]:
    """Rows per second with one process per core, and the share of rows kept. The slowest worker counts."""
    parts = [rows[n::workers] for n in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_run_datatrove, parts))
    return len(rows) / max(seconds for seconds, _ in found), sum(kept for _, kept in found) / len(rows)


def _run_datatrove(rows: list[dict[str, Any]]) -> tuple[float, int]:
    from datatrove.data import Document
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LambdaFilter
    from spaces import Spaces

    spaces = Spaces()
    refusal, boiler = re.compile(refusals.REFUSAL_ANYWHERE), re.compile(boilerplate.BOILERPLATE_PATTERN)
    conclusion = re.compile(reasoning.CONCLUSION_PATTERN)
    plain = personal_data.KIND_HINTS | {"PHONE": r"(?:\d[-\s().+/]{0,4}){6}\d"}  # Python's re has no Unicode properties
    hints = {kind: re.compile(pattern) for kind, pattern in plain.items()}
    equation = re.compile(r"(?<![\w.=+*/-])\d+ [-+*/] \d+ = \d+")
    first = re.compile(r"[^.!?\n]{0,200}[.!?\n]?")

    def grams(text: str) -> set[tuple[str, ...]]:
        said = text.lower().split()
        return set(zip(said, said[1:], said[2:], strict=False))

    def echo(doc: Any) -> bool:
        said = grams(doc.metadata["answer"])
        return not said or len(said & grams(doc.metadata["text"])) / len(said) <= 0.8

    def public(doc: Any) -> bool:
        kinds = [kind for kind, hint in hints.items() if hint.search(doc.text)]
        return not kinds or not personal_data.count_personal_data(doc.text, kinds, DEFAULT_PHONE_REGIONS)

    def figures(doc: Any) -> bool:
        row = doc.metadata
        return bool(
            row["status"] == "ok"
            and row["agreement"] >= 0.4
            and 0.3 <= row["confidence"] <= 0.9999
            and row["teacher_agreement"] >= 0.4
            and row["judge_score"] >= 0.2
            and 2 <= row["completion_tokens"] <= 2000
            and row["finish_reason"] != "length"
            and (row["reference"] is None or row["reference"] == row["answer"])
        )

    pipeline = [
        LambdaFilter(figures),
        LambdaFilter(lambda doc: 1 <= len(doc.metadata["text"].split()) <= 400),
        LambdaFilter(lambda doc: 3 <= len(doc.metadata["reasoning"].split()) <= 600),
        LambdaFilter(lambda doc: 1 <= len(doc.metadata["answer"].split()) <= 400),
        LambdaFilter(lambda doc: refusal.search(doc.text.replace("’", "'")) is None),
        LambdaFilter(lambda doc: boiler.search(doc.metadata["answer"]) is None),
        LambdaFilter(echo),
        GopherRepetitionFilter(language=spaces),
        GopherQualityFilter(min_doc_words=None, max_doc_words=None, language=spaces),
        LambdaFilter(lambda doc: conclusion.search(first.match(doc.metadata["reasoning"]).group()) is None),  # type: ignore[union-attr]
        LambdaFilter(lambda doc: conclusion.search(doc.metadata["reasoning"]) is None),
        LambdaFilter(
            lambda doc: all(arithmetic.is_equation_true(e) for e in equation.findall(doc.metadata["reasoning"]))
        ),
        LambdaFilter(public),
        LambdaFilter(lambda doc: re.search("[A-Za-z]", doc.metadata["answer"]) is not None),
    ]
    documents = [Document(text=row["written"], id=str(n), metadata=row) for n, row in enumerate(rows)]
    arithmetic.is_equation_true.cache_clear()
    started, kept = time.perf_counter(), 0
    for doc in documents:
        # Every rule looks at every row, as in this engine.
        results = [step.filter(doc) for step in pipeline]
        kept += all(result is True for result in results)
    return time.perf_counter() - started, kept


def read_sample(path: Path, count: int) -> list[dict[str, Any]]:
    from distill_dagster.curation.text_columns import add_text_columns

    rows = add_text_columns(pl.scan_parquet(path).head(count).collect())
    names = ["text", "reasoning", "status", "agreement", "confidence", "teacher_agreement", "judge_score"]
    names += ["completion_tokens", "finish_reason", "reference", "written"]
    return rows.select(*names, pl.col("answer_text").alias("answer")).to_dicts()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--rows", type=int, default=None)
    arguments = parser.parse_args()
    rows = arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)
    task = Task.model_validate(TASK | {"curation": {"filters": DECLARED}})
    about, filters = TaskView.from_task(task), select_task_filters(task)
    peers: dict[str, str] = {}
    load = os.getloadavg()[0]
    figures: dict[str, float] = {"rows": rows, "filters": len(filters), "rules": count_rules(filters)}
    with tempfile.TemporaryDirectory() as folder:
        path, scored = Path(folder) / "candidates.parquet", Path(folder) / "scored.parquet"
        write_corpus(path, rows)
        print(f"{rows} rows, {path.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
        sample = read_sample(path, QUICK_SAMPLE if arguments.quick else SAMPLE)
        mean = sum(len(row["written"].split()) for row in sample) / len(sample)
        figures["mean_words"] = round(mean, 1)
        for _ in filter_rows(pl.scan_parquet(path).head(2_000), filters, about):
            pass  # numba compiles, or reads its cache
        cpu = time.process_time()
        runs = [measure_filters(path, scored, filters, about, rows) for _ in range(REPEATS)]
        figures["rows_s"], reasons = max(runs, key=lambda run: run[0])
        # Includes writing the scored table. Other work on the machine does not count.
        figures["filter_cpu_s"] = round((time.process_time() - cpu) / REPEATS, 1)
        print(f"rows_s {figures['rows_s']:.0f}, peak {peak_mb()} MB", file=sys.stderr)
        figures["filter_peak_mb"] = peak_mb()
        if util.find_spec("datatrove"):
            workers = 2
            speed, kept = max(measure_datatrove(sample, workers) for _ in range(REPEATS))
            figures |= {"datatrove_rows_s": round(speed, 1), "datatrove_kept": round(kept, 4)}
            figures["ratio_datatrove"] = round(figures["rows_s"] / speed, 1)
            peers["datatrove"] = metadata.version("datatrove")
        else:
            peers["datatrove"] = "not installed: pip install datatrove"
        figures["language_rows_s"] = measure_language(sample)
        figures |= measure_cuts(scored, rows)
    figures |= {"peak_mb": peak_mb(), "load_before": load, "load_after": os.getloadavg()[0]}
    figures = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    print(figures)
    write_result(wanted(arguments, "filters"), figures, peers=peers, dropped=reasons)


def measure_filters(
    path: Path, scored: Path, filters: list[Filter], about: TaskView, rows: int
) -> tuple[float, dict[str, int]]:
    """Rows per second through all filters. Writing the scored rows to a file does not count."""
    import pyarrow.parquet as pq

    spent, reasons, writer = 0.0, Counter[str](), None
    started = time.perf_counter()
    for batch in filter_rows(path, filters, about, BATCH):
        spent += time.perf_counter() - started
        reasons.update(batch["drop_reason"].fill_null("(kept)").to_list())
        table = batch.select(list(SCORED)).to_arrow()
        writer = writer or pq.ParquetWriter(scored, table.schema, compression="zstd")
        writer.write_table(table)
        started = time.perf_counter()
    spent += time.perf_counter() - started
    if writer is not None:
        writer.close()
    if sum(reasons.values()) != rows:
        raise SystemExit(f"{sum(reasons.values())} of {rows} rows were returned")
    return rows / spent, dict(sorted(reasons.items()))


def measure_language(sample: list[dict[str, Any]]) -> float:
    said = pl.Series([row["written"] for row in sample])
    language.detect_languages(said.head(10))
    started = time.perf_counter()
    language.detect_languages(said)
    return round(len(said) / (time.perf_counter() - started), 1)


def write_slices(scored: Path, folder: Path) -> None:
    """Write the scored rows as the lake stores them: a sorted file for each slice."""
    rows = pl.scan_parquet(scored).with_columns(pl.col("scores").cast(SCORES))
    for number in range(SLICES):
        part = rows.filter(pl.col("slice") == f"s{number}").collect(engine="streaming")
        write_parquet(conform_to_schema(part, SCORED, ("prompt_id",)), folder / f"s{number}.parquet", {})


def measure_cut(folder: Path, change: dict[str, Any], rows: int) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of one cut, from the files of all slices to those of the dataset."""
    task = Task.model_validate(TASK | {"curation": {"filters": DECLARED | change}})
    about, files = TaskView.from_task(task), sorted((folder / "slices").iterdir())
    asked = (
        pl.scan_parquet(files[-1])
        .select("messages")
        .collect()["messages"]
        .gather_every(max(1, rows // SLICES // GOLDEN))
    )
    items = pl.DataFrame({"text": extract_user_texts(asked)}).select(
        pl.format("golden:{}", pl.int_range(pl.len())).alias("id"), "text"
    )

    def curate(source: pl.LazyFrame | list[Path], compared: ComparisonCache, into: Path) -> CuratedDataset:
        return curate_dataset(
            source, {"no such text"}, [], task.curation, about, items=items, cache=compared, folder=into
        )

    with tempfile.TemporaryDirectory(dir=folder) as into:
        curate(pl.scan_parquet(files[0]).head(500), ComparisonCache(), Path(into) / "warm")  # numba reads its cache
        started, cpu = time.perf_counter(), time.process_time()
        found = curate(files, ComparisonCache(folder / "compared"), Path(into))
        taken = time.perf_counter() - started
        if found.candidates != rows:
            raise SystemExit("Rows were lost.")
        used = time.process_time() - cpu
        return {"s": taken, "cpu_s": used, "peak_mb": peak_mb(), "kept": found.kept_rows}


def measure_cuts(scored: Path, rows: int) -> dict[str, float]:
    """Measure a first cut, cuts after a changed threshold, and cuts after one slice of 50 has new texts.

    Each cut has its own process. Of each kind, the fastest run and the highest peak count.
    """
    folder, runs = scored.parent, dict[str, list[dict[str, float]]]()
    write_slices(scored, folder / "slices")
    strict = {"min_agreement": 0.7}
    for number in range(-1, 2 * REPEATS):
        if number >= REPEATS:
            path = folder / "slices" / f"s{number}.parquet"
            said = pl.element().struct.with_fields(pl.field("content") + " Thank you.")
            write_parquet(pl.read_parquet(path).with_columns(pl.col("messages").list.eval(said)), path, {})
        kind = "first_cut" if number < 0 else "recut" if number < REPEATS else "slice_cut"
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            run = process.submit(measure_cut, folder, {} if number < 0 else strict, rows).result()
        print(kind, {name: round(value, 2) for name, value in run.items()}, file=sys.stderr)
        runs.setdefault(kind, []).append(run)
    if not runs["recut"][0]["kept"] < runs["first_cut"][0]["kept"]:
        raise SystemExit("The higher threshold dropped nothing.")
    figures: dict[str, float] = {"recut_teacher_calls": 0}
    for kind, found in runs.items():
        best = min(found, key=lambda run: run["s"])
        figures |= {f"{kind}_s": round(best["s"], 2), f"{kind}_cpu_s": round(best["cpu_s"], 2)}
        figures[f"{kind}_peak_mb"] = max(run["peak_mb"] for run in found)
    if rows == ROWS:
        figures["recut_1m_s"] = figures["recut_s"]
    return figures | {"kept": runs["first_cut"][0]["kept"], "kept_after": runs["recut"][0]["kept"]}


if __name__ == "__main__":
    main()
