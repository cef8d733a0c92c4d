"""What filters and scorers read of a row, as columns: the user's turns, the answer's words, what was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.kinds.base import ANSWER_MARK, REASONING_MARK
from distill_dagster.kinds.refusals import REFUSAL_KEY, is_refusal
from distill_dagster.tables.messages import normalized_expr, user_text_expr

if TYPE_CHECKING:
    from distill_dagster.kinds import Kind

# What `str.strip()` of Python takes for white space; that of Polars does not know U+001C to U+001F.
_WHITESPACE = "".join(chr(c) for c in range(0x3001) if chr(c).isspace())
# What canonical JSON writes instead of a character, in one pass from left to right.
_JSON_ESCAPES = {chr(c): f"\\u{c:04x}" for c in range(32)} | {
    '"': '\\"',
    "\\": "\\\\",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\b": "\\b",
    "\f": "\\f",
}
# Escapes of canonical JSON but for \u00XX, undone from left to right in one pass.
_JSON_UNESCAPES = {'\\"': '"', "\\\\": "\\", "\\n": "\n", "\\r": "\r", "\\t": "\t", "\\b": "\b", "\\f": "\f"}


def extract_answer_texts(answers: pl.Series) -> pl.Series:
    """`Kind.text` of each answer (canonical JSON text): a string as it is, a refusal's words, else the JSON."""
    frame = answers.alias("a").to_frame()
    a, quoted = pl.col("a"), pl.col("a").str.starts_with('"')
    inner = a.str.strip_prefix('"').str.strip_suffix('"')
    odd = (quoted & a.str.contains(r"\\u")) | a.str.starts_with("{") | a.str.starts_with("[")
    words = (
        pl.when(a.is_null() | odd)
        .then(None)
        .when(quoted & a.str.contains("\\", literal=True))
        .then(inner.str.replace_many(list(_JSON_UNESCAPES), list(_JSON_UNESCAPES.values())))
        .when(quoted)
        .then(inner)
        .otherwise(a)  # numbers, true, false: canonical text is what json writes
    )
    found = frame.select(words.alias("words"), odd.fill_null(False).alias("odd"))
    if not found["odd"].any():
        return found["words"]
    rest = answers.filter(found["odd"])
    return found["words"].scatter(found["odd"].arg_true(), [_format_answer(json.loads(one)) for one in rest])


def json_text_expr(text: pl.Expr) -> pl.Expr:
    """`hashing.canonical_json` of a text."""
    return pl.concat_str(
        pl.lit('"'), text.str.replace_many(list(_JSON_ESCAPES), list(_JSON_ESCAPES.values())), pl.lit('"')
    )


def _format_answer(answer: Any) -> str:
    if is_refusal(answer):
        return str(answer[REFUSAL_KEY])
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def list_target_columns(kind: Kind | None) -> tuple[str, ...]:
    """What `targets` reads of a row."""
    return ("answer", "reasoning") if kind and not kind.has_labels and kind.task.reasoning else ("answer",)


def build_targets(kept: pl.DataFrame, kind: Kind | None) -> pl.Series:
    """`Kind.target` of each row, without a call per row; by default an answer's words alone."""
    words = extract_answer_texts(kept["answer"])
    if "reasoning" not in list_target_columns(kind):
        return words
    frame = kept.select("reasoning").with_columns(words.alias("words"))
    stripped = pl.col("reasoning").str.strip_chars(_WHITESPACE)
    both = pl.concat_str(pl.lit(f"{REASONING_MARK} "), stripped, pl.lit(f"\n{ANSWER_MARK} "), pl.col("words"))
    has = (frame["reasoning"].is_not_null() & (frame["reasoning"] != "")).fill_null(False)
    if has.all():
        return frame.select(both).to_series()
    return frame.select(pl.when(has).then(both).otherwise(pl.col("words"))).to_series()


def extract_user_texts(messages: pl.Series) -> pl.Series:
    """`tables.user_text` of each prompt: at once where each begins with the user's only turn, as most do."""
    lengths = messages.list.len().fill_null(0)
    turns = int(lengths[0]) if len(messages) else 0
    if turns and lengths.eq(turns).all():
        each = messages.explode().struct
        asked, texts = each.field("role") == "user", each.field("content").gather_every(turns)
        if asked.gather_every(turns).all() and asked.sum() == len(messages) and not texts.null_count():
            return texts.alias("text")
    return messages.to_frame("messages").select(user_text_expr().alias("text")).to_series()


def build_text_keys(texts: pl.Series) -> pl.Series:
    """`tables.normalized_expr` of each text. Of plain ASCII with single spaces, as most are, only the case changes."""
    odd = texts.str.contains(r"[^\x20-\x7e]|  |^ | $").fill_null(True)
    keys = texts.str.to_lowercase().alias("text_key")
    if not odd.any():
        return keys
    rest = texts.filter(odd).to_frame("t").select(normalized_expr(pl.col("t"))).to_series()
    return keys.scatter(odd.arg_true(), rest)


def append_answers(messages: pl.Series, words: pl.Series) -> pl.Series:
    """The messages of each prompt and behind them a turn of the assistant."""
    import numpy as np
    import pyarrow as pa

    lengths = messages.list.len().fill_null(0).to_numpy().astype(np.int64)
    rows, total = len(lengths), int(lengths.sum())
    given = messages.filter(pl.Series(lengths > 0)).explode().struct.unnest()
    turn = {"role": pl.lit("assistant"), "content": pl.lit(words)}
    said = pl.DataFrame({"row": range(rows)}).select(
        turn.get(name, pl.lit(None)).cast(dtype).alias(name) for name, dtype in given.schema.items()
    )
    ends = np.cumsum(lengths + 1)
    order = np.empty(total + rows, np.int64)
    last = np.zeros(total + rows, bool)
    last[ends - 1] = True
    order[last] = np.arange(total, total + rows)
    order[~last] = np.arange(total)
    turns = pl.concat([given, said])[order].to_struct("turn").to_arrow()
    offsets = pa.array(np.concatenate([[0], ends]), pa.int64())
    return pl.Series("messages", pl.from_arrow(pa.LargeListArray.from_arrays(offsets, turns)), dtype=messages.dtype)


def add_text_columns(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with `text` (user turns), `answer_text`, and `written`: reasoning and answer, one below the other."""
    texts = extract_user_texts(rows["messages"]), extract_answer_texts(rows["answer"]).alias("answer_text")
    return rows.with_columns(texts).with_columns(
        pl.concat_str("reasoning", "answer_text", separator="\n", ignore_nulls=True).alias("written")
    )
