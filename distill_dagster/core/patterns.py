"""Regular expressions of users, run by Rust's regex: on any text in linear time."""

from __future__ import annotations


def find_pattern_problem(pattern: str) -> str | None:
    """Why a text is not a regular expression of that engine (it has no look-around and no backreference), or None."""
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
    """What a named group holds in the last match, and the character at which that match begins; None without one."""
    from polars import Series

    matches = Series([text]).str.extract_all(pattern)[0]
    if not len(matches):
        return None
    whole = str(matches[-1])
    found = Series([whole]).str.extract_groups(pattern)[0].get(group)
    return None if found is None else (str(found), text.rfind(whole))
