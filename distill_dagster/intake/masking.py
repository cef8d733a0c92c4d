"""Secrets and personal data in a text, replaced by what they are: `<EMAIL>`, `<PHONE>`, `<IBAN>`, `<CARD>`, `<SECRET>`.

Found offline and without a model, by libraries that know the formats: detect-secrets (keys and tokens), phonenumbers,
python-stdnum (check digits of IBANs and cards). Names, addresses and IP addresses are not found. Whoever writes the
texts is not trusted, so every pattern here takes time that is linear, or nearly so, in a text of at most `MAX_CHARS`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

MAX_TEXT_CHARS = 10_000
"""Longer texts are no prompts of a classification, and some of detect-secrets' patterns take quadratic time."""

Span = tuple[int, int]

# High-entropy strings are order numbers and commits as often as secrets; IP addresses look like versions. The patterns
# for npm and OpenAI take quadratic time on made-up texts: `_TOKENS` has their tokens.
_SKIPPED_DETECTORS = {
    "Base64HighEntropyString",
    "HexHighEntropyString",
    "KeywordDetector",
    "IPPublicDetector",
    "NpmDetector",
    "OpenAIDetector",
}
# Newer formats, which detect-secrets 1.5 does not have.
_TOKEN = re.compile(
    r"\b(?:sk-(?=[A-Za-z_-]{0,300}\d)[A-Za-z0-9_-]{20,300}|AIza[A-Za-z0-9_-]{35}|github_pat_[A-Za-z0-9_]{22,100}|hf_[A-Za-z0-9]{30,60}"
    r"|npm_[A-Za-z0-9]{36}|ya29\.[A-Za-z0-9_-]{20,500}|(?:rk|pk|whsec)_(?:live|test)?_?[A-Za-z0-9]{20,100}"
    r"|xapp-[A-Za-z0-9-]{20,200})"
    r"|(?i:\bbearer[ \t]{1,4})(?P<bearer>[A-Za-z0-9._~+/=-]{16,2000})"
)
# "password: hunter2", "my PIN is 4711": only where the value has a digit or a sign; "password: forgotten" stays.
_NAMED_SECRET = re.compile(
    r"(?i)(?:passw(?:or)?d|passphrase|passcode|pwd|\bpass|\bpin|secret|(?:api|access|auth|private)[ _-]?(?:key|token)"
    r"|token)[\"']?[ \t]{0,4}(?:[:=]{1,2}|\bis\b|\bwas\b)[ \t]{0,4}[\"'`]?(?P<value>[^\s\"'`]{4,200})"
)
_SECRET_VALUE = re.compile(r"(?=.*[0-9!@#$%^&*_+=~])(?!<[A-Z]+>)(?!\d{4}-\d\d-\d\d)")
_EMAIL = re.compile(r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[\w-]{2,63}")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}")
# 14 digits or more: 13 are bar codes. Only what an issuer of cards begins with: an IMEI has the same check digit.
_CARD = re.compile(r"(?<![\d.,/-])\d(?:[ -]?\d){13,18}(?![\d])")
_CARD_ISSUER = re.compile(
    r"4\d{15}(?:\d{3})?|(?:5[1-5]|2[2-7]|35)\d{14}|3[47]\d{13}|3(?:0[0-5]|[689])\d{11}|(?:5[06-9]|6\d)\d{14,17}"
)
# Seven digits with signs between them, as every phone number has.
_NEAR_DIGITS = re.compile(r"(?:\d[^\w=*:;,!?\"'<>]{0,6}[xX]?){6}\d")
_PEM_END = re.compile(r"END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}(?:-----)?")
_TOKEN_REST = re.compile(r"[A-Za-z0-9_./+=~-]*")


@dataclass(frozen=True)
class MaskedText:
    """A text without what must not be stored, and how much of each kind was in it."""

    text: str
    counts: dict[str, int] = field(default_factory=dict)


def mask_text(text: str, phone_regions: Sequence[str] = (), only: Collection[str] | None = None) -> MaskedText:
    """Replace secrets and personal data.

    Args:
        only: the kinds that are looked for, such as EMAIL; by default all.
        phone_regions: countries (`US`, `DE`) whose national way to write a phone number is recognised; international
            numbers (`+49 …`) always are.
    """
    finders: list[tuple[str, Callable[[], Iterator[Span]]]] = [
        ("SECRET", lambda: _find_secrets(text)),
        ("EMAIL", lambda: (m.span() for m in _EMAIL.finditer(text))),
        ("IBAN", lambda: _find_ibans(text)),
        ("CARD", lambda: _find_cards(text)),
        ("PHONE", lambda: _find_phones(text, phone_regions)),
    ]
    taken: list[tuple[int, int, str]] = []
    for kind, find in finders:
        if only is not None and kind not in only:
            continue
        for start, end in sorted(find()):
            overlapping = [one for one in taken if one[0] < end and start < one[1]]
            if not overlapping:
                taken.append((start, end, kind))
            elif kind != "EMAIL":  # parts of one thing: all of it goes (`user:password@host` is no mail address)
                taken = [one for one in taken if one not in overlapping]
                ends = [*overlapping, (start, end, kind)]
                taken.append((min(o[0] for o in ends), max(o[1] for o in ends), overlapping[0][2]))
    out, at = [], 0
    for start, end, kind in sorted(taken):
        out += [text[at:start], f"<{kind}>"]
        at = end
    return MaskedText("".join([*out, text[at:]]), dict(Counter(kind for _, _, kind in taken)))


@cache
def _load_secret_patterns() -> list[re.Pattern[str]]:
    """The patterns of detect-secrets. Its plugins give back groups of a match, not always the whole secret."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    kinds: list[Any] = list(get_mapping_from_secret_type_to_class().values())
    chosen = [kind() for kind in kinds if kind.__name__ not in _SKIPPED_DETECTORS]
    return [pattern for detector in chosen for pattern in detector.denylist]


def _find_secrets(text: str) -> Iterator[Span]:
    for pattern in _load_secret_patterns():
        for match in pattern.finditer(text):
            start, end = match.span()
            if "PRIVATE KEY" in match.group():  # the pattern finds the headline; the key is what follows
                last = _PEM_END.search(text, end)
                yield max(start - 5, 0) if text[:start].endswith("-----") else start, last.end() if last else len(text)
            elif match.group().startswith("://"):  # user and password of an address, not its host
                yield start + 3, end - 1
            else:  # a pattern may stop within a token, as the one for JSON Web Tokens does before the signature
                found = match.group()
                run = _TOKEN_REST.match(text, end) if not found[-1:].isspace() else None
                start += len(found) - len(found.lstrip())
                yield start, run.end() if run else start + len(found.strip())
    for match in _TOKEN.finditer(text):
        yield match.span("bearer") if match["bearer"] else match.span()
    for match in _NAMED_SECRET.finditer(text):
        value = match["value"].rstrip(".,;:!?)")
        if _SECRET_VALUE.match(value):
            yield match.start("value"), match.start("value") + len(value)


def _find_ibans(text: str) -> Iterator[Span]:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        # The words behind it may look like more of it: the longest beginning that ends at a word's end and is valid.
        for end in range(match.end(), match.start() + 14, -1):
            if not text[end - 1].isalnum() or text[end : end + 1].isalnum():
                continue
            if iban.is_valid(text[match.start() : end].replace("-", "")):
                yield match.start(), end
                break


def _find_cards(text: str) -> Iterator[Span]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match.group())
        if _CARD_ISSUER.fullmatch(digits) and luhn.is_valid(digits):
            yield match.span()


def _find_phones(text: str, regions: Sequence[str]) -> Iterator[Span]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    if sum(c.isdecimal() for c in text) < 7:
        return
    rest = text
    for found in PhoneNumberMatcher(text, None, leniency=Leniency.POSSIBLE):
        yield found.start, found.end
        rest = rest[: found.start] + " " * (found.end - found.start) + rest[found.end :]
    if not _NEAR_DIGITS.search(rest):  # no other number: each region takes as long as all that was done so far
        return
    for region in regions:
        for local in PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING):
            # A bare run of digits is an order number as often as a phone number.
            if not local.raw_string.isdecimal() or local.raw_string.startswith("0"):
                yield local.start, local.end
