"""Human-written values: sizes, lengths and rates."""

from __future__ import annotations

import re

_LENGTH_FACTORS = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}
_BYTE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    unit: 2 ** (10 * (i + 1)) for i, unit in enumerate(("ki", "mi", "gi", "ti"))
}


def parse_length(text: str) -> int | None:
    """'8192', '32k' (1,000s), '32K' (1,024s, as vLLM reads it); 'auto' and '-1' mean ``None``."""
    text = text.strip()
    if text in ("auto", "-1"):
        return None
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([kKmM]?)", text)
    if not match:
        raise ValueError(f"{text!r} is no length: write 8192, 32k, 32K or auto.")
    return int(float(match[1]) * _LENGTH_FACTORS[match[2]])


def parse_rate(text: str) -> str | None:
    """Requests a second, as they are; 'inf' means ``None``: all at once."""
    return None if text.strip().lower() in ("inf", "infinity") else text


def parse_memory(text: str) -> str:
    """Check a memory setting ('auto', '0.9', '20GiB', '800MB'); ``memory_bytes`` resolves it."""
    memory_bytes(text, total=0)
    return text


def memory_bytes(text: str, total: int) -> int | None:
    """Bytes of a memory setting on a device of ``total`` bytes; ``None`` for auto."""
    if text.strip() == "auto":
        return None
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?:([kmgt]i?)?b?)", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise ValueError(f"{text!r} is no amount of memory: write 20GiB, 800MB, a fraction such as 0.9, or auto.")
    value, unit = float(match[1]), match[2] or ""
    if unit or (value > 1 and value.is_integer()):
        return int(value * _BYTE_UNITS[unit])
    if value > 1:
        raise ValueError(f"{text!r} is no fraction: write at most 1.0, or a unit, as in {text.strip()}GiB.")
    return int(value * total)
