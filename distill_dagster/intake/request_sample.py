"""Divide the logged requests: a random sample stays for calibrating and for drift, the others become prompts.

A student that learned from a request says nothing about how it does on new ones, so the sample is never taken as
prompts. Membership depends on chance and on the text's hash, never on confidence, so that the sample is traffic as it
comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from distill_dagster.core.hashing import hash_content
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.request_log import LoggedRequest

RESERVED_SHARE = 0.2
"""Share of the requests that stays in the sample while the teacher answers everything."""
_DIGITS = 8


def select_teacher_sample(requests: Iterable[LoggedRequest], shadow_shares: Mapping[int, float]) -> list[LoggedRequest]:
    """The requests with an answer of the teacher that are a random sample of all.

    Args:
        shadow_shares: the share of shadowed requests by number of the release (`routing.json`). Requests of other
            releases are left out: how they were chosen is unknown.
    """
    return [
        one
        for one in requests
        if one.teacher_answer is not None
        and one.release in shadow_shares
        and is_reserved(one, shadow_shares[one.release])
    ]


def is_reserved(request: LoggedRequest, shadow_share: float) -> bool:
    """Whether a request belongs to the sample.

    Accepted requests were drawn when they were shadowed. Of those that fell back, whose teacher's answer exists anyway,
    the same share is drawn by the hash of the text, so that both parts have their share of the traffic.
    """
    if not request.sampled:
        return False
    if request.route == "student":
        return request.shadowed
    return compute_draw(request.text) < (RESERVED_SHARE if request.threshold is None else shadow_share)


def compute_draw(text: str) -> float:
    """A number from 0 to 1 (excluded) that looks random and is always the same for a text."""
    return int(hash_content(normalize_text(text))[:_DIGITS], 16) / 16**_DIGITS
