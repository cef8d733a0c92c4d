"""Replace secrets and personal data in a text by their kind: `<EMAIL>`, `<PHONE>`, `<IBAN>`, `<CARD>`, `<SECRET>`.

Everything works offline and without a model, with libraries that know the formats: detect-secrets (keys and tokens),
phonenumbers, python-stdnum (check digits of IBANs and cards). Names, addresses and IP addresses are not found. The
texts are untrusted, so every pattern takes linear or nearly linear time in a window of `WINDOW_CHARS`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from distill_dagster.core.hashing import hash_content

WINDOW_CHARS = 10_000
"""Longer texts are searched window by window: some patterns of detect-secrets take quadratic time."""
_OVERLAP_CHARS = 4_000
"""Windows overlap by this much, so that each value is whole in the window that its first character belongs to."""

_Span = tuple[int, int]

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
# "password: hunter2", "my PIN is 4711": only a value with a digit or a sign; "password: forgotten" stays.
_NAMED_SECRET = re.compile(
    r"(?i)(?:passw(?:or)?d|passphrase|passcode|pwd|\bpass|\bpin|secret|(?:api|access|auth|private)[ _-]?(?:key|token)"
    r"|token)[\"']?[ \t]{0,4}(?:[:=]{1,2}|\bis\b|\bwas\b)[ \t]{0,4}[\"'`]?(?P<value>[^\s\"'`]{4,200})"
)
_SECRET_VALUE = re.compile(r"(?=.*[0-9!@#$%^&*_+=~])(?!<[A-Z]+>)(?!\d{4}-\d\d-\d\d)")
_EMAIL = re.compile(r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[\w-]{2,63}")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}")
# At least 14 digits: 13 are bar codes. Only prefixes of card issuers: an IMEI has the same check digit.
_CARD = re.compile(r"(?<![\d.,/-])\d(?:[ -]?\d){13,18}(?![\d])")
_CARD_ISSUER = re.compile(
    r"4\d{15}(?:\d{3})?|(?:5[1-5]|2[2-7]|35)\d{14}|3[47]\d{13}|3(?:0[0-5]|[689])\d{11}|(?:5[06-9]|6\d)\d{14,17}"
)
# Every phone number has seven digits with few signs between them.
_NEAR_DIGITS = re.compile(r"(?:\d[^\w=*:;,!?\"'<>]{0,6}[xX]?){6}\d")
_KEY_END = re.compile(r"END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}(?:-----)?|Private-MAC: [0-9a-f]{40,64}")
_TOKEN_REST = re.compile(r"[A-Za-z0-9_./+=~-]*")


@dataclass(frozen=True)
class MaskedText:
    """A masked text, and how many values of each kind were masked in it."""

    text: str
    counts: dict[str, int] = field(default_factory=dict)


def mask_text(text: str, phone_regions: Sequence[str] = (), only: Collection[str] | None = None) -> MaskedText:
    """Mask secrets and personal data in a text of any length.

    Args:
        phone_regions: countries (`US`, `DE`) whose national format of phone numbers is recognised; international
            numbers (`+49 …`) always are.
        only: the kinds to mask, such as EMAIL; by default all.
    """
    parts, covered = list[str](), 0
    spans = _find_spans(text, phone_regions, only)
    for start, end, kind in spans:
        parts += [text[covered:start], f"<{kind}>"]
        covered = end
    return MaskedText("".join([*parts, text[covered:]]), dict(Counter(kind for _, _, kind in spans)))


def mask_json(value: Any, mask: Callable[[str], str]) -> Any:
    """A JSON value with `mask` applied to each text in it, at any depth. Names of fields stay as they are.

    A number that `mask` would change as a text, such as a card number, becomes the masked text.
    """
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list):
        return [mask_json(item, mask) for item in value]
    if isinstance(value, dict):
        return {name: mask_json(item, mask) for name, item in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and (masked := mask(str(value))) != str(value):
        return masked
    return value


def mask_id(value: str, phone_regions: Sequence[str] = ()) -> str:
    """An id as it may be stored: unchanged, or a hash of it if it contains secrets or personal data.

    Different ids stay different, and the same id always gives the same result.
    """
    return f"masked-{hash_content(value)[:16]}" if mask_text(value, phone_regions).counts else value


def _find_spans(text: str, regions: Sequence[str], only: Collection[str] | None) -> list[tuple[int, int, str]]:
    """Start, end and kind of each value to mask, sorted and disjoint."""
    spans = [(*span, "SECRET") for span in _find_private_keys(text)] if only is None or "SECRET" in only else []
    start = covered = 0
    while True:
        window = text[start : start + WINDOW_CHARS]
        is_last = start + WINDOW_CHARS >= len(text)
        # Half of the overlap belongs to the window before, half to this one.
        first = start + _OVERLAP_CHARS // 2 if start else 0
        last = len(text) if is_last else start + WINDOW_CHARS - _OVERLAP_CHARS // 2
        # A window within one long token needs no search: otherwise its end would be looked up again and again.
        for begin, end, kind in _find_in_window(window, regions, only) if covered < start + len(window) else ():
            if first <= start + begin < last:
                end += start
                if end == start + WINDOW_CHARS and (rest := _TOKEN_REST.match(text, end)):
                    covered = end = rest.end()  # a token that is longer than the rest of the window
                spans.append((start + begin, end, kind))
        if is_last:
            return _merge_spans(spans)
        start += WINDOW_CHARS - _OVERLAP_CHARS


def _merge_spans(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Sorted spans; overlapping ones become one, with the kind of the first."""
    merged: list[tuple[int, int, str]] = []
    for start, end, kind in sorted(spans, key=lambda span: span[:2]):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]), merged[-1][2])
        else:
            merged.append((start, end, kind))
    return merged


def _find_in_window(text: str, regions: Sequence[str], only: Collection[str] | None) -> list[tuple[int, int, str]]:
    """Start, end and kind of each value in a text of at most `WINDOW_CHARS`; private keys apart."""
    finders: list[tuple[str, Callable[[], Iterator[_Span]]]] = [
        ("SECRET", lambda: _find_secrets(text)),
        ("EMAIL", lambda: (match.span() for match in _EMAIL.finditer(text))),
        ("IBAN", lambda: _find_ibans(text)),
        ("CARD", lambda: _find_cards(text)),
        ("PHONE", lambda: _find_phones(text, regions)),
    ]
    spans: list[tuple[int, int, str]] = []
    for kind, find in finders:
        if only is not None and kind not in only:
            continue
        for start, end in sorted(find()):
            overlapping = [span for span in spans if span[0] < end and start < span[1]]
            if not overlapping:
                spans.append((start, end, kind))
            elif kind != "EMAIL":  # parts of one thing: mask all of it (`user:password@host` is no mail address)
                spans = [span for span in spans if span not in overlapping]
                ends = [*overlapping, (start, end, kind)]
                first, last = min(span[0] for span in ends), max(span[1] for span in ends)
                spans.append((first, last, overlapping[0][2]))
    return spans


@cache
def _load_secret_patterns() -> list[re.Pattern[str]]:
    """The patterns of detect-secrets. Its plugins return groups of a match, not always the whole secret."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    plugins: list[Any] = list(get_mapping_from_secret_type_to_class().values())
    detectors = [plugin() for plugin in plugins if plugin.__name__ not in _SKIPPED_DETECTORS]
    return [pattern for detector in detectors for pattern in detector.denylist]


def _is_for_private_keys(pattern: re.Pattern[str]) -> bool:
    return "PRIVATE KEY" in pattern.pattern or "PuTTY-User-Key" in pattern.pattern


def _find_private_keys(text: str) -> Iterator[_Span]:
    """Private keys of several lines. They may be longer than a window, and finding them takes linear time."""
    for pattern in filter(_is_for_private_keys, _load_secret_patterns()):
        end = 0
        for match in pattern.finditer(text):
            if match.start() < end:
                continue
            # The pattern finds the first line; the key is in the lines after it.
            start = match.start() - 5 if text.endswith("-----", 0, match.start()) else match.start()
            last = _KEY_END.search(text, match.end())
            end = last.end() if last else len(text)
            yield start, end


def _find_secrets(text: str) -> Iterator[_Span]:
    for pattern in _load_secret_patterns():
        for match in pattern.finditer(text) if not _is_for_private_keys(pattern) else ():
            start, end = match.span()
            if match.group().startswith("://"):  # user and password of an address, not its host
                yield start + 3, end - 1
            else:  # a pattern may stop within a token, as the one for JSON Web Tokens does before the signature
                matched = match.group()
                rest = _TOKEN_REST.match(text, end) if not matched[-1:].isspace() else None
                start += len(matched) - len(matched.lstrip())
                yield start, rest.end() if rest else start + len(matched.strip())
    for match in _TOKEN.finditer(text):
        yield match.span("bearer") if match["bearer"] else match.span()
    for match in _NAMED_SECRET.finditer(text):
        value = match["value"].rstrip(".,;:!?)")
        if _SECRET_VALUE.match(value):
            yield match.start("value"), match.start("value") + len(value)


def _find_ibans(text: str) -> Iterator[_Span]:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        # The words after it may look like a part of it: take the longest valid prefix that ends at the end of a word.
        for end in range(match.end(), match.start() + 14, -1):
            if not text[end - 1].isalnum() or text[end : end + 1].isalnum():
                continue
            if iban.is_valid(text[match.start() : end].replace("-", "")):
                yield match.start(), end
                break


def _find_cards(text: str) -> Iterator[_Span]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match.group())
        if _CARD_ISSUER.fullmatch(digits) and luhn.is_valid(digits):
            yield match.span()


def _find_phones(text: str, regions: Sequence[str]) -> Iterator[_Span]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    if sum(c.isdecimal() for c in text) < 7:
        return
    rest = text
    for number in PhoneNumberMatcher(text, None, leniency=Leniency.POSSIBLE):
        yield number.start, number.end
        rest = rest[: number.start] + " " * (number.end - number.start) + rest[number.end :]
    if not _NEAR_DIGITS.search(rest):  # no other number: each region takes as long as all of the above
        return
    for region in regions:
        for local in PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING):
            # A bare run of digits is an order number as often as a phone number.
            if not local.raw_string.isdecimal() or local.raw_string.startswith("0"):
                yield local.start, local.end
