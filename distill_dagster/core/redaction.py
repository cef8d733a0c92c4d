"""Keys and passwords: what is one in this process, and how texts are rid of them before anybody reads or keeps them."""

from __future__ import annotations

import base64
import json
import os
import re
import traceback
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote, urlsplit

MASK = "***"
SHORTEST = 8
"""Characters: a shorter value, such as the `EMPTY` that some local servers want as their key, is no secret."""
_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|WEBHOOK)S?(_|$)")
_LOGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^\s/@:]*):([^\s/@]+)@")
_FORMS = (
    # Secrets by their place, also those that this process does not know: of an address, and of a header.
    (re.compile(r"(\w://)[^\s/@]+@"), rf"\1{MASK}@"),
    (re.compile(r"([?&][\w.-]*(?:key|token|secret|password|signature|sig|code)=)[^&#\s\"'<>]+", re.I), rf"\1{MASK}"),
    (re.compile(r"\b(Bearer|Basic) [\w.~+/=-]{8,}"), rf"\1 {MASK}"),
)


_remembered: set[str] = set()


def remember(secret: str) -> None:
    """From now on a secret of the process: the key that a teacher was given, whatever its variable is called."""
    if len(secret.strip()) >= SHORTEST:
        _remembered.add(secret)


def known(*more: str | None) -> list[str]:
    """The secrets of this process in every spelling that a message may have, longest first.

    They are `more`, what is remembered, the values of environment variables whose name says so (a library finds keys
    there by itself), and passwords within addresses in any variable.
    """
    found = set(_remembered)
    found |= {value for name, value in os.environ.items() if _NAME.search(name) and len(value) >= SHORTEST}
    for value in os.environ.values():
        for user, password in _LOGIN.findall(value):
            login = f"{unquote(user)}:{unquote(password)}"
            found |= {password, unquote(password), base64.b64encode(login.encode()).decode()}
    return _spellings(found | {value for value in more if value})


def credentials() -> list[str]:
    """Those of `known` that are certainly no words: what an answer is rid of before it is stored.

    A variable named like a secret may hold a plain word; an answer that has the word keeps it.
    """
    found = [v for v in known() if len(v) >= 16 and re.search(r"[A-Za-z]", v) and re.search(r"\d", v) and " " not in v]
    return _spellings([*_remembered, *found])


def _spellings(values: Iterable[str]) -> list[str]:
    out: set[str] = set()
    for value in values:
        # Stripped first: a key read from a file ends with a line break, and messages quote it without or escaped.
        for one in (value, value.strip()):
            out |= {one, quote(one, safe=""), quote_plus(one), json.dumps(one)[1:-1], repr(one)[1:-1]}
    return sorted((one for one in out if one.strip()), key=lambda one: (-len(one), one))


def scrubbed(text: str, *more: str | None) -> str:
    """A text for people (message, log, alert) without any secret; `more` as for `known`."""
    for secret in known(*more):
        text = text.replace(secret, MASK)
    for pattern, instead in _FORMS:
        text = pattern.sub(instead, text)
    return text


def without(text: str, secrets: Iterable[str]) -> str:
    """A text without these secrets, nor the beginning of one at its end, where an answer was cut."""
    for secret in secrets:
        if secret[:SHORTEST] not in text:
            continue
        text = text.replace(secret, MASK)
        cut = next((n for n in range(min(len(secret), len(text)), SHORTEST - 1, -1) if text.endswith(secret[:n])), 0)
        text = text[: len(text) - cut] + MASK if cut else text
    return text


def trace_with_secret(error: BaseException) -> str | None:
    """The traceback of an error, scrubbed, if it or anything it was raised from tells a secret; else None."""
    text = "".join(traceback.format_exception(error))
    clean = scrubbed(text)
    return clean if clean != text else None


def plain_address(address: str) -> bool:
    """Whether an address is one alone: without a user name, a password, a query or a fragment, where keys may hide."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return "@" not in parts.netloc and not parts.query and not parts.fragment
