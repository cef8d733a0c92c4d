"""Regular expressions of users, run by Rust's regex, which takes linear time on any text."""

from __future__ import annotations


def find_pattern_problem(pattern: str) -> str | None:
    """Return why Rust's regex does not accept a pattern, or None. It has no look-around and no backreference."""
    from polars import Series, String
    from polars.exceptions import ComputeError

    try:
        Series([""], dtype=String).str.contains(pattern)
    except ComputeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        what = next((line for line in lines if line.startswith("error:")), lines[0])
        return f"not a regular expression of Rust's regex: {what.removeprefix('error: ')}"
    return None


def find_last_group(pattern: str, text: str, group: str) -> tuple[str, int] | None:
    """The text of a named group in the last match, and the index at which that match begins; None without a match."""
    from polars import Series

    matches = Series([text]).str.extract_all(pattern)[0]
    if not len(matches):
        return None
    whole = str(matches[-1])
    found = Series([whole]).str.extract_groups(pattern)[0].get(group)
    return None if found is None else (str(found), text.rfind(whole))
