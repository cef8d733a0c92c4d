"""Great Expectations sees only the rows that may fail; its result is that of the whole table."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.tables import validation
from distill_dagster.tables.schemas import DATASET
from distill_dagster.tables.validation import EXPECTATIONS, check_table, select_expected_columns, validate_table

ROW = st.fixed_dictionaries(
    {
        "prompt_id": st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h", None]),
        "answer": st.sampled_from(['"x"', None]),
        "split": st.sampled_from(["train", "validation", "golden", None]),
        "weight": st.sampled_from([1.0, 0.0, -1.0, None]),
        "sample_index": st.integers(0, 2),
        "teacher": st.sampled_from(["t", "u", None]),
        "status": st.sampled_from(["ok", "odd"]),
        "prompt_tokens": st.sampled_from([3, -3, None]),
        "text": st.sampled_from(["long", "", None]),
    }
)


@settings(max_examples=20)
@given(
    st.lists(ROW, min_size=1, max_size=9), st.sampled_from(["filtered_dataset", "teacher_completions", "seed_prompts"])
)
def test_the_rows_that_may_fail_give_the_result_of_the_whole_table(rows: list[dict[str, Any]], stage: str) -> None:
    types = {name: DATASET.get(name, pl.String) for name in rows[0]} | {
        "sample_index": pl.Int64,
        "prompt_tokens": pl.Int64,
    }
    frame = pl.DataFrame(rows, schema=types)
    whole = validate_table(
        stage, select_expected_columns(stage, frame).collect().to_pandas(), EXPECTATIONS[stage], "prompt_id"
    )
    failed = {name: reason for name, reason in whole.items() if reason is not None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "ALWAYS_CHECKED_ROWS", 1)
        result = check_table(stage, frame.lazy())
    assert result.details == failed | {"expectations": len(whole), "rows": len(rows)}
    assert result.passed == (not failed)
