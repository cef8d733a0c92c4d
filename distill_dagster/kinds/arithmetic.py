"""Parse numbers and arithmetic as models write them. Results are exact, and `eval` is never used.

"7 * 36", "(10 - (3 + 6))", "$1,250.50", "48 / 2 = 24", "36 marbles", "\\boxed{12}": each is one number.
"""

from __future__ import annotations

import ast
import re
from fractions import Fraction

MAX_CHARS = 200
MAX_EXPONENT = 64
MAX_BITS = 1000
"""The largest numerator or denominator, in bits: about 10^300, the limit of a float."""

_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")"})
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TIMES = re.compile(r"(?<=[\d)])\s*x\s*(?=[\d(])")
_POWER = re.compile(r"\^")
_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
_MONEY = re.compile(r"[$€£\\]")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:/\d+)?")
_START = re.compile(r"[-+*/(). \d]+")


class NotANumberError(Exception):
    """A text is not one number. The message says why."""


def parse_number(text: str) -> Fraction:
    """Parse the number in a short text: the expression that it begins with, or else the only number in it.

    Raises:
        NotANumberError: the text has no number or several, or a number that is too large.
    """
    if len(text) > MAX_CHARS:
        raise NotANumberError(f"longer than {MAX_CHARS} characters")
    plain = _MONEY.sub("", _extract_boxed(text).replace("{,}", ",")).translate(_SIGNS)  # TeX writes 1{,}234
    plain = _ZEROS.sub("", _THOUSANDS.sub("", plain))
    plain = _POWER.sub("**", _TIMES.sub("*", plain)).strip().strip("*").strip()
    for part in reversed(plain.split("=")):  # "48 / 2 = 24": the right-hand side
        found = _START.match(part.strip())
        written = found.group().rstrip(" .+-*/(") if found else ""
        rest = part.strip()[len(written) :]
        if any(c.isdigit() for c in written) and not any(c.isdigit() for c in rest):
            return evaluate_expression(written)
    numbers = {Fraction(n) for n in _NUMBER.findall(plain) if not n.endswith("/0")}
    if len(numbers) == 1:
        return numbers.pop()
    raise NotANumberError("several numbers" if numbers else "no number")


def _extract_boxed(text: str) -> str:
    """Return the content of the last \\boxed{…}, which marks a result in TeX, or the whole text."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return text
    inner = text[start + len("\\boxed{") :]
    depth = 1
    for index, sign in enumerate(inner):
        depth += (sign == "{") - (sign == "}")
        if depth == 0:
            return inner[:index]
    return inner


def evaluate_expression(text: str) -> Fraction:
    """Return the exact value of an expression of numbers, + - * / ** and brackets.

    Raises:
        NotANumberError: the expression contains anything else, divides by zero, or has a number that is too large.
    """
    if len(text) > MAX_CHARS:
        raise NotANumberError(f"longer than {MAX_CHARS} characters")
    try:
        return _evaluate_node(ast.parse(text.strip(), mode="eval").body, text.strip())
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise NotANumberError("not an arithmetic expression") from error
    except ZeroDivisionError as error:
        raise NotANumberError("a division by zero") from error


def _evaluate_node(node: ast.expr, text: str) -> Fraction:
    match node:
        case ast.Constant(value=bool()):
            raise NotANumberError("not an arithmetic expression")
        case ast.Constant(value=int() | float()):
            # Read the digits from the source: a float would have rounded them.
            found = ast.get_source_segment(text, node) or ""
            if "e" in found.lower() or "_" in found:
                raise NotANumberError("not a plain number")
            return _check_size(Fraction(found))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate_node(operand, text)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate_node(operand, text)
        case ast.BinOp(left=left, op=op, right=right):
            return _check_size(_apply_operator(_evaluate_node(left, text), op, _evaluate_node(right, text)))
    raise NotANumberError("not an arithmetic expression")


def _apply_operator(a: Fraction, op: ast.operator, b: Fraction) -> Fraction:
    match op:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div():
            return a / b
        case ast.Pow():
            if b.denominator != 1 or abs(b) > MAX_EXPONENT:
                raise NotANumberError(f"a power that is not whole or above {MAX_EXPONENT}")
            return Fraction(a ** int(b))
    raise NotANumberError("not an arithmetic expression")


def _check_size(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise NotANumberError("a number is too large")
    return value
