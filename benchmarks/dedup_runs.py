"""One measured run of benchmarks/dedup.py in its own process: python dedup_runs.py RUN FILE [NAME=VALUE ...]

The last line of output is a JSON object with seconds and peak memory. `clusters=FILE` writes the clusters to a file.
All runs read the same Parquet file and return clusters of rows.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import polars as pl
from common import peak_mb

PUNCTUATION = {ord(c): " " for c in "!\"#$%&'()*+,-./:;<=>?@[\\]^`{|}~"}
THRESHOLD = 0.7


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    frame = pl.read_parquet(path, columns=["id", "text"])
    return frame["id"].to_list(), frame["text"].to_list()


def shingles(text: str, n: int) -> list[str]:
    words = text.translate(PUNCTUATION).lower().split()
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


class Union:
    """Union-find over the places of rows."""

    def __init__(self, size: int) -> None:
        self.parent = list(range(size))

    def find(self, x: int) -> int:
        while self.parent[x] != x:
            self.parent[x] = self.parent[self.parent[x]]
            x = self.parent[x]
        return x

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)

    def clusters(self, ids: list[str]) -> dict[str, str]:
        roots = [self.find(n) for n in range(len(ids))]
        return {ids[n]: ids[root] for n, root in enumerate(roots)}


def run_ours(path: Path, ngram: int) -> dict[str, str]:
    from distill_dagster.curation.dedup.duplicates import find_duplicates
    from distill_dagster.curation.dedup.folding import MinHashScheme

    found = find_duplicates(path, order=[-pl.col("score")], scheme=MinHashScheme(ngram=ngram), threshold=THRESHOLD)
    return dict(found.members.select("id", "cluster_id").iter_rows())


def run_prefix_join(path: Path, ngram: int) -> dict[str, str]:
    """The DuckDB query without compiled code, which finds every pair."""
    from dedup_prefix_join import find_duplicates_by_prefix_join

    from distill_dagster.core.limits import ResourceLimits
    from distill_dagster.curation.dedup.folding import MinHashScheme

    limits = ResourceLimits(memory_mb=8192)
    found = find_duplicates_by_prefix_join(path, scheme=MinHashScheme(ngram=ngram), threshold=THRESHOLD, limits=limits)
    return dict(found.members.select("id", "cluster_id").iter_rows())


def run_duckdb_minhash(path: Path, ngram: int) -> dict[str, str]:
    """MinHash in plain DuckDB SQL: one-permutation hashing into 64 bins, bands of four, shingles compared exactly.

    `translate` splits words, which is twice as fast as a regular expression.
    """
    import duckdb

    shingle = "hash(" + ", ".join(f"w[i + {n}]" for n in range(ngram)) + ")"
    query = f"""
    CREATE TABLE words AS
    SELECT row_number() OVER () - 1 AS place, list_filter(
        string_split(translate(lower(text), '.,;:!?()-"' || chr(10), '           '), ' '), lambda x: x <> ''
    ) AS w
    FROM read_parquet('{path}');
    CREATE TABLE sets AS
    SELECT place, list_distinct(list_transform(range(1, len(w) - {ngram} + 2), lambda i: {shingle})) AS s
    FROM words WHERE len(w) >= 12;
    CREATE TABLE bands AS
    SELECT place, bin // 4 AS band, hash(list(least ORDER BY bin)) AS key FROM (
        SELECT place, h % 64 AS bin, min(h) AS least FROM (SELECT place, unnest(s) AS h FROM sets) GROUP BY place, bin
    ) GROUP BY place, band;
    CREATE TABLE pairs AS
    SELECT DISTINCT a.place AS l, b.place AS r FROM bands a
    JOIN bands b ON a.band = b.band AND a.key = b.key AND a.place < b.place;
    """
    verified = f"""
    SELECT l, r FROM (
        SELECT l, r, len(list_intersect(a.s, b.s)) AS common, len(a.s) AS x, len(b.s) AS y
        FROM pairs JOIN sets a ON a.place = l JOIN sets b ON b.place = r
    ) WHERE common / (x + y - common) >= {THRESHOLD}
    """
    with duckdb.connect() as connection:
        connection.execute(query)
        found = connection.sql(verified).fetchall()
    ids = pl.read_parquet(path, columns=["id"])["id"].to_list()
    union = Union(len(ids))
    for left, right in found:
        union.join(left, right)
    return union.clusters(ids)


def run_rensa(path: Path, ngram: int) -> dict[str, str]:
    """128 permutations, 32 bands; candidates of every row that shares a band are compared exactly."""
    from rensa import RMinHash, RMinHashLSH

    ids, texts = read_texts(path)
    rows = [shingles(text, ngram) for text in texts]
    matrix = RMinHash.digest_matrix_from_token_sets(rows, num_perm=128, seed=42)
    flags = RMinHashLSH(threshold=THRESHOLD, num_perm=128, num_bands=32).query_duplicate_flags_matrix_one_shot(matrix)
    flagged = [n for n, flag in enumerate(flags) if flag]
    sets = {n: set(rows[n]) for n in flagged}
    hashes = RMinHash.from_token_sets([rows[n] for n in flagged], num_perm=128, seed=42)
    index = RMinHashLSH(threshold=THRESHOLD, num_perm=128, num_bands=32)
    index.insert_many(hashes)
    union = Union(len(ids))
    for place, candidates in enumerate(index.query_all(hashes)):
        for other in candidates:
            if other > place:
                verify(union, sets, flagged[place], flagged[other])
    return union.clusters(ids)


def run_datasketch(path: Path, ngram: int) -> dict[str, str]:
    """128 permutations; the library chooses the bands for the threshold; candidates are compared exactly."""
    from datasketch import MinHash, MinHashLSH

    ids, texts = read_texts(path)
    rows = [shingles(text, ngram) for text in texts]
    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    sets: dict[int, set[str]] = {}
    union = Union(len(ids))
    encoded = ([shingle.encode() for shingle in row] for row in rows)
    for place, hashed in enumerate(MinHash.generator(encoded, num_perm=128)):
        for other in index.query(hashed):
            for one in (place, other):
                if one not in sets:
                    sets[one] = set(rows[one])
            verify(union, sets, place, other)
        index.insert(place, hashed, check_duplication=False)
    return union.clusters(ids)


def verify(union: Union, sets: dict[int, set[str]], a: int, b: int) -> None:
    if union.find(a) == union.find(b):
        return
    common = len(sets[a] & sets[b])
    if common and common / (len(sets[a]) + len(sets[b]) - common) >= THRESHOLD:
        union.join(a, b)


def run_datatrove(path: Path, ngram: int) -> dict[str, str]:
    """datatrove's four MinHash steps with two workers. It does not verify candidates.

    Words are split at white space, which is faster than its default for English, the spaCy tokenizer.
    """
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from spaces import Spaces

    logging.disable(logging.CRITICAL)
    folder = path.with_suffix(".datatrove")
    (folder / "rows").mkdir(parents=True)
    frame = pl.read_parquet(path, columns=["id", "text"])
    half = (frame.height + 1) // 2
    for number in range(2):
        frame.slice(number * half, half).write_ndjson(folder / "rows" / f"{number}.jsonl")
    config = MinhashConfig(n_grams=ngram, num_buckets=14, hashes_per_bucket=8)
    reader = JsonlReader(str(folder / "rows"))

    def run(steps: list[Any], tasks: int) -> None:
        executor = LocalPipelineExecutor(
            steps, tasks=tasks, workers=2, logging_dir=str(folder / f"logs{tasks}-{len(list(folder.iterdir()))}")
        )
        executor.run()

    run([reader, MinhashDedupSignature(str(folder / "signatures"), config, language=Spaces())], 2)
    run([MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config)], config.num_buckets)
    run([MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config, save_cluster_id=True)], 1)
    run(
        [reader, MinhashDedupFilter(str(folder / "remove"), load_cluster_ids=True), JsonlWriter(str(folder / "kept"))],
        2,
    )
    import gzip

    kept: set[str] = set()
    for file in (folder / "kept").glob("*.gz"):
        with gzip.open(file, "rt") as handle:
            kept |= {json.loads(line)["id"] for line in handle}
    return {id_: "removed" for id_ in frame["id"] if id_ not in kept}


RUNS: dict[str, Callable[[Path, int], dict[str, str]]] = {
    "ours": run_ours,
    "pure": run_prefix_join,
    "duckdb_minhash": run_duckdb_minhash,
    "rensa": run_rensa,
    "datasketch": run_datasketch,
    "datatrove": run_datatrove,
}


def warm_up(run: str, ngram: int, folder: Path) -> float:
    """Run once on two rows. Returns the seconds for imports, and for compiling if nothing is cached."""
    if run in ("datatrove", "datasketch", "rensa"):
        __import__(run)
        return 0.0
    tiny = folder / f"tiny-{run}.parquet"
    text = "one two three four five six seven eight nine ten eleven twelve thirteen é"
    pl.DataFrame({"id": ["a", "b"], "text": [text, f"{text} more"], "score": [0.0, 1.0]}).write_parquet(tiny)
    started = time.perf_counter()
    RUNS[run](tiny, ngram)
    return time.perf_counter() - started


def measure_incremental(accepted: Path, slice_: Path, ngram: int) -> dict[str, Any]:
    """Compare a slice with accepted rows: seconds, bytes per row of the state, and the share of equal results."""
    from distill_dagster.curation.dedup.duplicates import find_duplicates
    from distill_dagster.curation.dedup.folding import MinHashScheme
    from distill_dagster.curation.dedup.incremental import DedupState

    scheme, order = MinHashScheme(ngram=ngram), [-pl.col("score")]
    seconds, full_seconds, index_seconds = [], [], []
    folder = accepted.with_suffix(f".state{ngram}")
    state = DedupState(folder, scheme, THRESHOLD)
    started = time.perf_counter()
    state.add_slice("accepted", accepted, order=order)
    index_seconds.append(time.perf_counter() - started)
    bytes_row = state.size_bytes / state.height
    for _ in range(3):
        started = time.perf_counter()
        state.add_slice("new", slice_, accepted, order=order)
        touched = state.read_duplicates("new")
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        full = find_duplicates([accepted, slice_], order=order, scheme=scheme, threshold=THRESHOLD)
        full_seconds.append(time.perf_counter() - started)
    decided = dict(state.read_duplicates().members.select("id", pl.struct("cluster_id", "kept")).iter_rows())
    expected = dict(full.members.select("id", pl.struct("cluster_id", "kept")).iter_rows())
    differ = sum(decided.get(id_) != expected.get(id_) for id_ in decided.keys() | expected.keys())
    rows = pl.read_parquet(slice_, columns=["id"])["id"].to_list()
    differ_new = sum(decided.get(id_) != expected.get(id_) for id_ in rows)
    return {
        "seconds": sorted(seconds)[1],
        "full_seconds": sorted(full_seconds)[1],
        "index_seconds": index_seconds[0],
        "state_bytes_row": bytes_row,
        "equal": 1 - differ_new / len(rows),
        "equal_all": 1 - differ / full.height,
        "touched": touched.members.height,
    }


def measure_decontamination(rows: Path, golden: Path, turns: int) -> dict[str, Any]:
    from distill_dagster.curation.dedup.decontaminate import find_contamination

    seconds = []
    for _ in range(turns):
        started = time.perf_counter()
        found = find_contamination(rows, golden)
        seconds.append(time.perf_counter() - started)
    table = pl.read_parquet(rows, columns=["id", "leak"])
    leaks = table.drop_nulls("leak")
    detected = leaks.join(found.hits, left_on=["id", "leak"], right_on=["id", "golden_id"], how="semi")
    words = pl.scan_parquet(golden).select("id", pl.col("text").str.split(" ").list.len().alias("words")).collect()
    short = leaks.join(words.filter(pl.col("words") < 13), left_on="leak", right_on="id", how="semi")
    detected_short = detected.join(words.filter(pl.col("words") < 13), left_on="leak", right_on="id", how="semi")
    clean = table.filter(pl.col("leak").is_null())
    false = clean.filter(pl.col("id").is_in(found.ids.implode())).height
    return {
        "seconds": sorted(seconds)[len(seconds) // 2],
        "rows": table.height,
        "recall": detected.height / leaks.height,
        "recall_short": detected_short.height / max(short.height, 1),
        "short_share": (words["words"] < 13).mean(),
        "false": false / clean.height,
    }


def measure_semantic(path: Path, rows: int) -> dict[str, Any]:
    """Embed the first 20 words of each row with MiniLM, then compare all pairs."""
    import numpy as np

    from distill_dagster.curation.dedup.semantic import find_close_pairs, find_semantic_duplicates
    from distill_dagster.student.sentences import SentenceEmbedder

    table = pl.read_parquet(path, columns=["id", "text"], n_rows=rows)
    table = table.with_columns(pl.col("text").str.extract(r"^((?:\S+\s*){1,20})"))
    embedder = SentenceEmbedder(path.parent / "models")
    started = time.perf_counter()
    found = find_semantic_duplicates(table, embedder.embed)
    seconds = time.perf_counter() - started
    assert found is not None
    vectors = np.random.default_rng(1).normal(size=(rows, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    started = time.perf_counter()
    find_close_pairs(vectors, 0.95)
    return {"seconds": seconds, "pairs_seconds": time.perf_counter() - started, "rejected": found.rejected.height}


def main(arguments: Iterable[str]) -> None:
    run, file, *rest = arguments
    options = dict(option.split("=", 1) for option in rest)
    path, ngram = Path(file), int(options.get("ngram", 3))
    first = warm_up(run if run in RUNS else "ours", ngram, path.parent)
    out: dict[str, Any]
    if run == "incremental":
        out = measure_incremental(path, Path(options["slice"]), ngram)
    elif run == "semantic":
        out = measure_semantic(path, int(options["rows"]))
    elif run == "decontamination":
        measure_decontamination(path, Path(options["golden"]), 1)  # the first one compiles
        out = measure_decontamination(path, Path(options["golden"]), int(options.get("turns", 7)))
    else:
        started, used = time.perf_counter(), time.process_time()
        clusters = RUNS[run](path, ngram)
        out = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used}
        if target := options.get("clusters"):
            Path(target).write_text(json.dumps(clusters))
    print(json.dumps(out | {"peak_mb": peak_mb(), "first_use_s": round(first, 2)}))


if __name__ == "__main__":
    main(sys.argv[1:])
