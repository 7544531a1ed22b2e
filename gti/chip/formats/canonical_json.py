"""JSON text exactly as the containers hold it (docs/model_format.md, header text)."""

from __future__ import annotations

from decimal import Decimal

from gti.errors import ModelFileError

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_TRANSLATION = {code: f"\\u{code:04x}" for code in range(0x20)} | {ord(k): v for k, v in _ESCAPES.items()}


def canonical(value: object) -> str:
    """Return the compact form: no blanks, keys sorted by their UTF-8 bytes, numbers and escapes as documented.

    Raises ModelFileError for strings that UTF-8 cannot hold (lone surrogates).
    """
    return _write(value, None, 0)


def indented(value: object) -> str:
    """Return the form of decomposed headers: like `canonical`, with an indent of 4 and a blank after each colon."""
    return _write(value, 4, 0)


def number(value: int | float) -> str:
    """Return the text of a number.

    Integers in -2**63..2**64-1 stay integers; everything else is a double in the shortest digits that read back
    equal: plain with at least one decimal for exponents -4..14, otherwise `d.ddde+XX`.
    """
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return str(value)
    negative, numerals, exponent = Decimal(repr(float(value))).as_tuple()
    digits = "".join(map(str, numerals)).rstrip("0") or "0"
    sign = "-" if negative else ""
    if digits == "0":
        return f"{sign}0.0"
    leading = len(numerals) + int(exponent) - 1  # exponent of the first digit
    if not -4 <= leading <= 14:
        mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        return f"{sign}{mantissa}e{'-' if leading < 0 else '+'}{abs(leading):02d}"
    if leading < 0:
        return f"{sign}0.{'0' * (-leading - 1)}{digits}"
    return f"{sign}{digits[: leading + 1].ljust(leading + 1, '0')}.{digits[leading + 1 :] or '0'}"


def _string(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ModelFileError(f"JSON text: a string holds half a character ({text[:40]!a}).") from None
    return f'"{text.translate(_TRANSLATION)}"'


def _write(value: object, indent: int | None, depth: int) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, str):
        return _string(value)
    colon = ":" if indent is None else ": "
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-8", "surrogatepass"))
        items = [f"{_string(key)}{colon}{_write(value[key], indent, depth + 1)}" for key in keys]
        opening, closing = "{", "}"
    elif isinstance(value, (list, tuple)):
        items = [_write(item, indent, depth + 1) for item in value]
        opening, closing = "[", "]"
    else:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    if indent is None or not items:
        return opening + ",".join(items) + closing
    margin = "\n" + " " * indent * (depth + 1)
    return f"{opening}{margin}{f',{margin}'.join(items)}\n{' ' * indent * depth}{closing}"
