"""Find the secrets of this process, such as keys and passwords, and redact them from text."""

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
"""Shortest secret in characters. Some local servers need a short dummy key such as `EMPTY`."""
_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|WEBHOOK)S?(_|$)")
_URL_LOGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^\s/@:]*):([^\s/@]+)@")
_SECRET_PATTERNS = (
    # Secrets by their place in a URL or a header, also those that this process does not know.
    (re.compile(r"(\w://)[^\s/@]+@"), rf"\1{MASK}@"),
    (re.compile(r"([?&][\w.-]*(?:key|token|secret|password|signature|sig|code)=)[^&#\s\"'<>]+", re.I), rf"\1{MASK}"),
    (re.compile(r"\b(Bearer|Basic) [\w.~+/=-]{8,}"), rf"\1 {MASK}"),
)


_remembered_secrets: set[str] = set()


def remember_secret(secret: str) -> None:
    """Treat a value as a secret of the process from now on, such as a teacher's key in a variable of any name."""
    if len(secret.strip()) >= MIN_SECRET_CHARS:
        _remembered_secrets.add(secret)


def list_secrets(*more: str | None) -> list[str]:
    """The secrets of this process in every spelling that a message may contain, longest first.

    Secrets are: `more`, remembered secrets, values of environment variables with a name such as `…_KEY` (libraries read
    keys from them), and passwords in URLs in any variable.
    """
    secrets = set(_remembered_secrets)
    secrets |= {
        value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= MIN_SECRET_CHARS
    }
    for value in os.environ.values():
        for user, password in _URL_LOGIN.findall(value):
            login = f"{unquote(user)}:{unquote(password)}"
            secrets |= {password, unquote(password), base64.b64encode(login.encode()).decode()}
    return _list_spellings(secrets | {value for value in more if value})


def list_credentials() -> list[str]:
    """The secrets of `list_secrets` that cannot be words. They are removed from answers before these are stored.

    A variable with the name of a secret may contain a plain word, which an answer may contain too.
    """
    no_words = [value for value in list_secrets() if len(value) >= 16 and not _is_wordlike(value)]
    return _list_spellings([*_remembered_secrets, *no_words])


def _is_wordlike(value: str) -> bool:
    return " " in value or not re.search(r"[A-Za-z]", value) or not re.search(r"\d", value)


def _list_spellings(values: Iterable[str]) -> list[str]:
    spellings: set[str] = set()
    for value in values:
        # A key read from a file ends with a line break, which messages omit or escape.
        for text in (value, value.strip()):
            spellings |= {text, quote(text, safe=""), quote_plus(text), json.dumps(text)[1:-1], repr(text)[1:-1]}
    return sorted((text for text in spellings if text.strip()), key=lambda text: (-len(text), text))


def redact(text: str, *more: str | None) -> str:
    """A text for people (message, log, alert) without secrets. `more` as for `list_secrets`."""
    for secret in list_secrets(*more):
        text = text.replace(secret, MASK)
    for pattern, replacement in _SECRET_PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def remove_secrets(text: str, secrets: Iterable[str]) -> str:
    """A text without these secrets. The start of a secret at the text's end, where it was cut, is removed too."""
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
    """The redacted traceback of an error if it or a cause of it contains a secret, else None."""
    text = "".join(traceback.format_exception(error))
    clean = redact(text)
    return clean if clean != text else None


def is_plain_url(address: str) -> bool:
    """Whether a URL has no user name, password, query or fragment, which may contain keys."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return "@" not in parts.netloc and not parts.query and not parts.fragment
