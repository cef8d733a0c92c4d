"""Generate instruction corpora with planted duplicates and leaks, so that the truth is known.

Words are drawn by Zipf's law from 30,000, and a third of the sentences begin with one of 400 common phrases. So
unrelated rows share common n-grams, as real rows do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

PLANTED = 0.22
WORDS = 30_000
PHRASES = 400
BATCH = 50_000


class Writer:
    """Draws texts. The same seed gives the same texts."""

    def __init__(self, seed: int) -> None:
        self.pick = np.random.default_rng(seed)
        fixed = np.random.default_rng(7)  # all corpora share one language
        letters = np.array(list("etaoinshrdlucmfwygpbvk"))
        lengths = np.clip(fixed.poisson(4, WORDS) + 1, 1, 14)
        self.words = ["".join(fixed.choice(letters, size)) for size in lengths]
        weights = 1 / (np.arange(WORDS) + 2.7)
        self.cumulative = np.cumsum(weights / weights.sum())
        self.phrases = [self._draw(fixed, int(size)) for size in fixed.integers(4, 9, PHRASES)]

    def _draw(self, pick: np.random.Generator, size: int) -> list[str]:
        return [self.words[i] for i in np.searchsorted(self.cumulative, pick.random(size))]

    def tokens(self, sizes: np.ndarray) -> Iterator[list[str]]:
        """For each size one list of so many words, and the phrases between them."""
        drawn = np.searchsorted(self.cumulative, self.pick.random(int(sizes.sum())))
        phrase = self.pick.integers(0, 3 * PHRASES, int(sizes.sum()) // 12 + sizes.size * 2)
        start, number = 0, 0
        for size in sizes:
            out: list[str] = []
            part = drawn[start : start + size]
            for at in range(0, int(size), 12):
                if phrase[number] < PHRASES:
                    out += self.phrases[phrase[number]]
                number += 1
                out += [self.words[i] for i in part[at : at + 12]]
            start += size
            yield out

    def edited(self, words: list[str], share: float) -> list[str]:
        """A copy with so many of its words replaced, dropped or followed by another."""
        words = list(words)
        for place in self.pick.choice(len(words), max(1, round(share * len(words))), replace=False):
            word = self.words[self.pick.integers(0, WORDS)]
            words[place] = {0: word, 1: "", 2: f"{words[place]} {word}"}[int(self.pick.integers(0, 3))]
        return [word for word in words if word]


def text_of(words: list[str], pick: np.random.Generator) -> str:
    """Join words to sentences, with capitals, commas and full stops."""
    out = []
    for start in range(0, len(words), 11):
        sentence = " ".join(words[start : start + 11])
        out.append(sentence[:1].upper() + sentence[1:] + (";" if pick.random() < 0.1 else "."))
    return " ".join(out)


def write_rows(path: Path, rows: int, seed: int, copy_from: Path | None = None) -> None:
    """Rows `id` (32 hex digits), `text`, `score`, and `copy_of`, `copy_kind` for the 22 % that are copies.

    Of these a quarter are exact, a quarter differ in case and white space, and half have 1 to 12 % of their words
    edited. With `copy_from` half of the copies are of rows there.
    """
    import pyarrow.parquet as pq

    writer, pick = Writer(seed), np.random.default_rng(seed + 1)
    others = pl.read_parquet(copy_from, columns=["id", "text"], n_rows=100_000) if copy_from else None
    sink = None
    for start in range(0, rows, BATCH):
        count = min(BATCH, rows - start)
        sizes = np.clip(pick.lognormal(4.2, 0.52, count), 6, 400).astype(np.int64)  # mean 90
        ids = [f"{high:016x}{low:016x}" for high, low in pick.integers(0, 2**63, (count, 2)).tolist()]
        texts: list[str] = []
        copies: list[str | None] = []
        kinds: list[str | None] = []
        for words in writer.tokens(sizes):
            kind, copied = None, None
            if len(texts) > 100 and pick.random() < PLANTED:
                if others is not None and pick.random() < 0.5:
                    copied, source = others.row(int(pick.integers(0, others.height)))
                else:
                    place = int(pick.integers(0, len(texts)))
                    copied, source = ids[place], texts[place]
                draw = pick.random()
                if draw < 0.25:
                    kind, text = "exact", source
                elif draw < 0.5:
                    kind, text = "case", f"  {source.upper()}\n" if draw < 0.375 else source.replace(" ", "  ")
                else:
                    kind, text = "edited", " ".join(writer.edited(source.split(), float(pick.uniform(0.01, 0.12))))
            else:
                text = text_of(words, pick)
            texts.append(text)
            copies.append(copied)
            kinds.append(kind)
        frame = pl.DataFrame(
            {"id": ids, "text": texts, "score": pick.random(count).round(3), "copy_of": copies, "copy_kind": kinds},
            {"id": pl.String, "text": pl.String, "score": pl.Float64, "copy_of": pl.String, "copy_kind": pl.String},
        ).to_arrow()
        sink = sink or pq.ParquetWriter(path, frame.schema, compression="zstd")
        sink.write_table(frame)
    assert sink is not None
    sink.close()


def write_golden(golden: Path, rows: Path, items: int, count: int, seed: int, leaks: int) -> None:
    """Golden items `id`, `text` (median 18 words, 29 % under 13), and rows of which some hold one word for word.

    Rows have `leak`, the id of the item or null. Half of the leaks are the item alone in another spelling, half stand
    within other text.
    """
    writer, pick = Writer(seed), np.random.default_rng(seed + 1)
    sizes = np.clip(pick.lognormal(np.log(16), 0.6, items), 3, 300).astype(np.int64)
    texts = [text_of(words, pick) for words in writer.tokens(sizes)]
    pl.DataFrame({"id": [f"g{n:05}" for n in range(items)], "text": texts}).write_parquet(golden)
    leaking = set(pick.choice(count, leaks, replace=False).tolist())
    rows_text: list[str] = []
    leak: list[str | None] = []
    for number, words in enumerate(writer.tokens(np.clip(pick.lognormal(4.2, 0.52, count), 6, 400).astype(np.int64))):
        text, item = text_of(words, pick), None
        if number in leaking:
            item = int(pick.integers(0, items))
            text = texts[item].lower() if pick.random() < 0.5 else f"{text} {texts[item]} {text_of(words[:20], pick)}"
        rows_text.append(text)
        leak.append(None if item is None else f"g{item:05}")
    frame = pl.DataFrame({"id": [f"r{n:07}" for n in range(count)], "text": rows_text, "leak": leak})
    frame.write_parquet(rows, row_group_size=BATCH)
