"""Make text from an untrusted file safe to quote in a message."""

from __future__ import annotations


def quoted(text: str) -> str:
    """Return a safe excerpt of `text`: one line, printable, without addresses, tokens and signatures."""
    words = "".join(each if each.isprintable() else " " for each in text[:400]).split()
    return " ".join(word if len(word) <= 24 and "://" not in word else "..." for word in words)[:100].strip()
