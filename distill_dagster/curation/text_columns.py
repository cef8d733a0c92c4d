"""The texts of candidates as columns: the user's turns, the answer, and the reasoning with the answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.kinds.base import ANSWER_MARK, REASONING_MARK
from distill_dagster.kinds.refusals import REFUSAL_KEY, is_refusal
from distill_dagster.tables.messages import normalized_expr, user_text_expr

if TYPE_CHECKING:
    from distill_dagster.kinds import Kind

# White space as Python's `str.strip()` defines it. Polars does not count U+001C to U+001F.
_WHITESPACE = "".join(chr(c) for c in range(0x3001) if chr(c).isspace())
# The escape that canonical JSON writes for a character. All are replaced in one pass from left to right.
_JSON_ESCAPES = {chr(c): f"\\u{c:04x}" for c in range(32)} | {
    '"': '\\"',
    "\\": "\\\\",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\b": "\\b",
    "\f": "\\f",
}
# The opposite, without the escapes \u00XX.
_JSON_UNESCAPES = {'\\"': '"', "\\\\": "\\", "\\n": "\n", "\\r": "\r", "\\t": "\t", "\\b": "\b", "\\f": "\f"}


def extract_answer_texts(answers: pl.Series) -> pl.Series:
    """`Kind.format_answer` of each answer, given as canonical JSON, without a call per row where that is possible."""
    answer = pl.col("answer")
    is_string = answer.str.starts_with('"')
    inner = answer.str.strip_prefix('"').str.strip_suffix('"')
    needs_parser = (is_string & answer.str.contains(r"\\u")) | answer.str.starts_with("{") | answer.str.starts_with("[")
    text = (
        pl.when(answer.is_null() | needs_parser)
        .then(None)
        .when(is_string & answer.str.contains("\\", literal=True))
        .then(inner.str.replace_many(list(_JSON_UNESCAPES), list(_JSON_UNESCAPES.values())))
        .when(is_string)
        .then(inner)
        .otherwise(answer)  # numbers, true, false: their canonical JSON is their text
    )
    frame = answers.alias("answer").to_frame()
    columns = frame.select(text.alias("words"), needs_parser.fill_null(False).alias("needs_parser"))
    if not columns["needs_parser"].any():
        return columns["words"]
    parsed = [_format_answer(json.loads(text)) for text in answers.filter(columns["needs_parser"])]
    return columns["words"].scatter(columns["needs_parser"].arg_true(), parsed)


def json_text_expr(text: pl.Expr) -> pl.Expr:
    """`core.hashing.to_canonical_json` of a text as a Polars expression."""
    return pl.concat_str(
        pl.lit('"'), text.str.replace_many(list(_JSON_ESCAPES), list(_JSON_ESCAPES.values())), pl.lit('"')
    )


def _format_answer(answer: Any) -> str:
    """`Kind.format_answer`, which is the same for all kinds."""
    if is_refusal(answer):
        return str(answer[REFUSAL_KEY])
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


def list_target_columns(kind: Kind | None) -> tuple[str, ...]:
    """The columns that `build_targets` reads."""
    return ("answer", "reasoning") if kind and not kind.has_labels and kind.task.reasoning else ("answer",)


def build_targets(kept: pl.DataFrame, kind: Kind | None) -> pl.Series:
    """`Kind.format_target` of each row, without a call per row. Without a kind, it is the text of the answer."""
    words = extract_answer_texts(kept["answer"])
    if "reasoning" not in list_target_columns(kind):
        return words
    frame = kept.select("reasoning").with_columns(words.alias("words"))
    stripped = pl.col("reasoning").str.strip_chars(_WHITESPACE)
    both = pl.concat_str(pl.lit(f"{REASONING_MARK} "), stripped, pl.lit(f"\n{ANSWER_MARK} "), pl.col("words"))
    has_reasoning = (frame["reasoning"].is_not_null() & (frame["reasoning"] != "")).fill_null(False)
    if has_reasoning.all():
        return frame.select(both).to_series()
    return frame.select(pl.when(has_reasoning).then(both).otherwise(pl.col("words"))).to_series()


def extract_user_texts(messages: pl.Series) -> pl.Series:
    """`messages.get_user_text` of each prompt. Fast if every prompt begins with its only user turn, as most do."""
    lengths = messages.list.len().fill_null(0)
    turns = int(lengths[0]) if len(messages) else 0
    if turns and lengths.eq(turns).all():
        fields = messages.explode().struct
        is_user, texts = fields.field("role") == "user", fields.field("content").gather_every(turns)
        if is_user.gather_every(turns).all() and is_user.sum() == len(messages) and not texts.null_count():
            return texts.alias("text")
    return messages.to_frame("messages").select(user_text_expr().alias("text")).to_series()


def build_text_keys(texts: pl.Series) -> pl.Series:
    """`messages.normalized_expr` of each text. Fast for ASCII texts with single spaces, where only the case changes."""
    is_complex = texts.str.contains(r"[^\x20-\x7e]|  |^ | $").fill_null(True)
    keys = texts.str.to_lowercase().alias("text_key")
    if not is_complex.any():
        return keys
    normalized = texts.filter(is_complex).to_frame("text").select(normalized_expr(pl.col("text"))).to_series()
    return keys.scatter(is_complex.arg_true(), normalized)


def append_answers(messages: pl.Series, words: pl.Series) -> pl.Series:
    """`messages.append_answer` for columns: the turns of each prompt and a turn of the assistant with the words."""
    import numpy as np
    import pyarrow as pa

    lengths = messages.list.len().fill_null(0).to_numpy().astype(np.int64)
    rows, total = len(lengths), int(lengths.sum())
    prompt_turns = messages.filter(pl.Series(lengths > 0)).explode().struct.unnest()
    turn = {"role": pl.lit("assistant"), "content": pl.lit(words)}
    answer_turns = pl.DataFrame({"row": range(rows)}).select(
        turn.get(name, pl.lit(None)).cast(dtype).alias(name) for name, dtype in prompt_turns.schema.items()
    )
    ends = np.cumsum(lengths + 1)
    order = np.empty(total + rows, np.int64)
    is_answer = np.zeros(total + rows, bool)
    is_answer[ends - 1] = True
    order[is_answer] = np.arange(total, total + rows)
    order[~is_answer] = np.arange(total)
    turns = pl.concat([prompt_turns, answer_turns])[order].to_struct("turn").to_arrow()
    offsets = pa.array(np.concatenate([[0], ends]), pa.int64())
    return pl.Series("messages", pl.from_arrow(pa.LargeListArray.from_arrays(offsets, turns)), dtype=messages.dtype)


def add_text_columns(rows: pl.DataFrame) -> pl.DataFrame:
    """Add the columns `text` (user turns), `answer_text`, and `written` (reasoning and answer, joined by a newline)."""
    texts = extract_user_texts(rows["messages"]), extract_answer_texts(rows["answer"]).alias("answer_text")
    return rows.with_columns(texts).with_columns(
        pl.concat_str("reasoning", "answer_text", separator="\n", ignore_nulls=True).alias("written")
    )
