"""Texts of errors, whatever their classes do."""

from __future__ import annotations


def text_of(exc: BaseException) -> str:
    """``str(exc)``, or a stand-in where the class fails to give one."""
    try:
        return str.__str__(str(exc))  # a subclass might do anything when it is used
    except BaseException:
        return f"<str() of this {type(exc).__qualname__} failed>"


def cut_text(text: str, limit_bytes: int) -> str:
    """The text, or both its ends when it is longer than the limit in UTF-8."""
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) <= limit_bytes:
        return text
    marker = f"\n... {len(raw) - limit_bytes} bytes left out ...\n"
    half = max(0, (limit_bytes - len(marker)) // 2)
    return f"{raw[:half].decode('utf-8', 'ignore')}{marker}{raw[len(raw) - half :].decode('utf-8', 'ignore')}"
