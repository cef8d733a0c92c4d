"""Whatever a table contains, it is refused in words, or it becomes a task that checks clean."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill_dagster.config import TaskKind
from distill_dagster.core.errors import InputError
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.row_files import SourceRecord
from distill_dagster.new_task.columns import Columns, guess_columns, summarize_columns
from distill_dagster.new_task.options import NewTaskOptions
from distill_dagster.new_task.plan import plan_task
from tests.new_task.table import build_rows, read_parts, write_plan

KINDS: list[TaskKind | None] = ["classification", "qa", "extraction", "math", "generation", "nli", "tool_call", None]
WORDS = st.sampled_from(
    [
        "refund",
        "Refund ",
        "REFUND",
        "login",
        "log-in",
        "parcel 7",
        "",
        " ",
        "nan",
        "ﬁx",
        "日本",
        "a@example.org",
        "#x: y",
        "1",
        "1.0",
    ]
)
CELLS = st.one_of(
    WORDS,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.none(),
    st.booleans(),
    st.integers(-3, 10**12),
    st.floats(),
    st.lists(WORDS, max_size=2),
    st.dictionaries(st.sampled_from(["a", "name", "text"]), WORDS, max_size=2),
)
ODD_ROWS = st.lists(
    st.fixed_dictionaries({"text": CELLS | WORDS, "label": WORDS | CELLS, "channel": WORDS | CELLS, "nr": CELLS}),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(odd=ODD_ROWS, regular=st.integers(0, 45), data=st.data())
def test_a_table_is_refused_in_words_or_becomes_a_clean_task(
    odd: list[dict[str, Any]], regular: int, data: st.DataObject
) -> None:
    rows = [*build_rows(regular), *odd]
    kind = data.draw(st.sampled_from(KINDS))
    columns = Columns(slice="channel") if bool(odd) and data.draw(st.booleans()) else Columns()
    records = [SourceRecord(row, Path("odd.jsonl"), line) for line, row in enumerate(rows, start=1)]
    guess = guess_columns(summarize_columns(records), columns, kind)
    if guess.kind is None:
        return
    options = NewTaskOptions("mail", guess.kind, guess.columns, skip_invalid=data.draw(st.booleans()))
    with tempfile.TemporaryDirectory() as temporary:
        try:
            plan = plan_task(records, Path("odd.jsonl"), options)
        except InputError:
            return
        folder, problems = write_plan(Path(temporary), plan)
        if plan.to_label:
            return
        assert [str(problem) for problem in problems] == []
        texts = Counter(normalize_text(text) for part in read_parts(folder).values() for text in part)
        assert max(texts.values()) == 1
        assert sum(plan.parts.values()) + sum(plan.left_out.values()) == len(rows)
