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
MIN_SECRET_CHARS = 8
"""Characters: a shorter value, such as the `EMPTY` that some local servers want as their key, is no secret."""
_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|WEBHOOK)S?(_|$)")
_URL_LOGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^\s/@:]*):([^\s/@]+)@")
_SECRET_PATTERNS = (
    # Secrets by their place, also those that this process does not know: of an address, and of a header.
    (re.compile(r"(\w://)[^\s/@]+@"), rf"\1{MASK}@"),
    (re.compile(r"([?&][\w.-]*(?:key|token|secret|password|signature|sig|code)=)[^&#\s\"'<>]+", re.I), rf"\1{MASK}"),
    (re.compile(r"\b(Bearer|Basic) [\w.~+/=-]{8,}"), rf"\1 {MASK}"),
)


_remembered_secrets: set[str] = set()


def remember_secret(secret: str) -> None:
    """From now on a secret of the process: the key that a teacher was given, whatever its variable is called."""
    if len(secret.strip()) >= MIN_SECRET_CHARS:
        _remembered_secrets.add(secret)


def list_secrets(*more: str | None) -> list[str]:
    """The secrets of this process in every spelling that a message may have, longest first.

    They are `more`, what is remembered, the values of environment variables whose name says so (a library finds keys
    there by itself), and passwords within addresses in any variable.
    """
    found = set(_remembered_secrets)
    found |= {
        value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= MIN_SECRET_CHARS
    }
    for value in os.environ.values():
        for user, password in _URL_LOGIN.findall(value):
            login = f"{unquote(user)}:{unquote(password)}"
            found |= {password, unquote(password), base64.b64encode(login.encode()).decode()}
    return _list_spellings(found | {value for value in more if value})


def list_credentials() -> list[str]:
    """Those of `known` that are certainly no words: what an answer is rid of before it is stored.

    A variable named like a secret may hold a plain word; an answer that has the word keeps it.
    """
    found = [
        v for v in list_secrets() if len(v) >= 16 and re.search(r"[A-Za-z]", v) and re.search(r"\d", v) and " " not in v
    ]
    return _list_spellings([*_remembered_secrets, *found])


def _list_spellings(values: Iterable[str]) -> list[str]:
    out: set[str] = set()
    for value in values:
        # Stripped first: a key read from a file ends with a line break, and messages quote it without or escaped.
        for one in (value, value.strip()):
            out |= {one, quote(one, safe=""), quote_plus(one), json.dumps(one)[1:-1], repr(one)[1:-1]}
    return sorted((one for one in out if one.strip()), key=lambda one: (-len(one), one))


def redact(text: str, *more: str | None) -> str:
    """A text for people (message, log, alert) without any secret; `more` as for `known`."""
    for secret in list_secrets(*more):
        text = text.replace(secret, MASK)
    for pattern, instead in _SECRET_PATTERNS:
        text = pattern.sub(instead, text)
    return text


def remove_secrets(text: str, secrets: Iterable[str]) -> str:
    """A text without these secrets, nor the beginning of one at its end, where an answer was cut."""
    for secret in secrets:
        if secret[:MIN_SECRET_CHARS] not in text:
            continue
        text = text.replace(secret, MASK)
        cut = next(
            (n for n in range(min(len(secret), len(text)), MIN_SECRET_CHARS - 1, -1) if text.endswith(secret[:n])), 0
        )
        text = text[: len(text) - cut] + MASK if cut else text
    return text


def redact_traceback(error: BaseException) -> str | None:
    """The traceback of an error, scrubbed, if it or anything it was raised from tells a secret; else None."""
    text = "".join(traceback.format_exception(error))
    clean = redact(text)
    return clean if clean != text else None


def is_plain_url(address: str) -> bool:
    """Whether an address is one alone: without a user name, a password, a query or a fragment, where keys may hide."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return "@" not in parts.netloc and not parts.query and not parts.fragment
