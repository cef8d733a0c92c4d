"""One mistake is one line, however many lines of a file have it."""

from __future__ import annotations

from pathlib import Path

from distill_dagster.core.errors import Problem
from distill_dagster.core.problem_groups import MAX_ALIKE, group_problems

FILE = Path("rows.csv")


def test_equal_problems_are_one_line_with_their_number() -> None:
    missing = [Problem(FILE, "the text is missing.", "Add it.", line=n, field="text") for n in (2, 3, 4, 9)]
    other = Problem(FILE, "malformed JSON.", "Fix the line.", line=5)
    shown = group_problems([*missing[:2], other, *missing[2:]])
    assert [str(problem) for problem in shown] == [
        "rows.csv:2 [text]: the text is missing. Add it. (4 times, in lines 2-4, 9)",
        "rows.csv:5: malformed JSON. Fix the line.",
    ]


def test_records_without_a_line_are_listed_by_number() -> None:
    problems = [Problem(FILE, f"record {n} (id {n}x): the label is missing.", "Add it.") for n in (1, 2, 3, 7)]
    [shown] = group_problems(problems)
    assert str(shown) == "rows.csv: record 1 (id 1x): the label is missing. Add it. (4 times, in records 1-3, 7)"


def test_problems_of_other_files_fields_and_severities_are_others() -> None:
    problems = [
        Problem(FILE, "is odd.", "Fix it.", line=1),
        Problem(Path("other.csv"), "is odd.", "Fix it.", line=1),
        Problem(FILE, "is odd.", "Fix it.", line=1, field="x"),
        Problem(FILE, "is odd.", "Fix it.", line=1, severity="warning"),
    ]
    assert group_problems(problems) == problems


def test_of_problems_that_differ_in_a_name_only_the_first_are_shown() -> None:
    problems = [Problem(FILE, f"'label {n}' is not a label.", "Use one.", line=n) for n in range(1, 300)]
    shown = group_problems(problems)
    assert shown[:MAX_ALIKE] == problems[:MAX_ALIKE]
    assert str(shown[-1]) == "rows.csv:11: 289 more problems like this, from here on. Fix the first ones first."
    assert len(shown) == MAX_ALIKE + 1
    assert len(group_problems(problems[: MAX_ALIKE + 1])) == MAX_ALIKE + 1
    assert len(group_problems(problems[:MAX_ALIKE])) == MAX_ALIKE
