"""Decode the bytes of a text file whose encoding nobody named."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WESTERN = frozenset("äöüßÄÖÜéèêëÉÈÊàâáãåÀÂÁÅçÇñÑíìîïÍóòôõÓúùûÚæøÆØœ€£§°²³µ«»·–—‘’‚“”„…•\xa0´¡¿®™©ªº")
"""What is usual in Windows-1252, the encoding of Excel's CSV in Western Europe and America."""
_LEGACY = ("cp1250", "cp1251", "cp1253", "cp1254", "cp1252", "shift_jis", "gb18030", "big5", "euc_kr", "mac_roman")
"""What else spreadsheets write."""


@dataclass(frozen=True)
class DecodedText:
    """A text and its encoding. `is_guess` if only the characters suggest the encoding."""

    text: str
    encoding: str
    is_guess: bool = False


def decode_text(content: bytes, encoding: str | None = None, guess: bool = False) -> DecodedText:
    """Decode a text by its byte order mark, as UTF-8, or as UTF-16 without a mark. The mark is removed.

    Args:
        encoding: the encoding, if the user names it.
        guess: whether to guess an older encoding, such as Windows-1252, if it is none of these.

    Raises:
        UnicodeDecodeError: the text is in another encoding.
        LookupError: Python does not know `encoding`.
    """
    if encoding is not None:
        return DecodedText(content.decode(encoding).removeprefix("\ufeff"), codecs.lookup(encoding).name)
    for mark, name in _MARKS:
        if content.startswith(mark):
            return DecodedText(content.decode(name).removeprefix("\ufeff"), name)
    if utf16 := _find_utf16(content):
        return DecodedText(content.decode(utf16), utf16)
    try:
        return DecodedText(content.decode("utf-8"), "utf-8")
    except UnicodeDecodeError:
        if not guess or _is_mostly_utf8(content):
            raise
        return _guess_legacy(content)


def _find_utf16(content: bytes) -> str | None:
    """UTF-16 without a mark: in text every second byte of the Latin characters is zero."""
    start = content[:1024]
    half = len(start) // 2
    if not half or len(content) % 2:
        return None
    for name, zeros, letters in (("utf-16-le", start[1::2], start[::2]), ("utf-16-be", start[::2], start[1::2])):
        if zeros.count(0) > 0.4 * half and letters.count(0) < 0.1 * half:
            return name
    return None


def _is_mostly_utf8(content: bytes) -> bool:
    """Whether a broken text is UTF-8 nevertheless: characters of several bytes are rarely there by chance."""
    text = content.decode("utf-8", "surrogateescape")
    broken = sum("\udc80" <= c <= "\udcff" for c in text)
    return sum(c > "\x7f" for c in text) - broken > broken


def _guess_legacy(content: bytes) -> DecodedText:
    from charset_normalizer import from_bytes

    western = content.decode("cp1252", "replace")
    special = [c for c in western if c > "\x7f"]
    letters = sum(c.isalpha() for c in western)
    # Read as Windows-1252, Cyrillic and Greek consist of such letters alone.
    if len(special) <= 0.4 * letters and sum(c in _WESTERN for c in special) >= 0.9 * len(special):
        return DecodedText(western, "cp1252", is_guess=True)
    best = from_bytes(content, cp_isolation=list(_LEGACY)).best()
    if best is None:
        content.decode("utf-8")  # the error names the byte
        raise AssertionError
    return DecodedText(str(best), best.encoding, is_guess=True)
