# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Numbers, names and tables as text: they read well in a terminal and are valid Markdown."""

import textwrap
from collections.abc import Sequence


# Characters of a line of text; tables may be wider.
_WIDTH = 110


def percent(mean: float, low: float | None = None, high: float | None = None) -> str:
    """Return a share in [0, 1] in percent, such as `71.0` or, with its interval, `71.0 [64.7, 77.4]`."""
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * mean:.1f}{interval}"


def sigma_key(sigma: float | None) -> str:
    """Return a sigma as records name it: `off`, `25`, `2.5`."""
    return "off" if sigma is None else f"{sigma:g}"


def sigma_label(sigma: float | None) -> str:
    """Return a sigma as tables and plots name it: `off`, `sigma 25`."""
    return "off" if sigma is None else f"sigma {sigma:g}"


def plural(number: int, noun: str, plural_noun: str | None = None) -> str:
    """Return a number with its noun: `1 process`, `2 processes`, `1,000 passes`."""
    many = plural_noun or (f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s")
    return f"{number:,} {noun if number == 1 else many}"


def wrapped(text: str) -> str:
    """Return text in lines that a terminal holds."""
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def bullets(sentences: Sequence[str]) -> str:
    """Return a wrapped list."""
    lines = (textwrap.indent(wrapped(sentence), "  ") for sentence in sentences)
    return "\n".join(f"- {line[2:]}" for line in lines)


def render_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Return a table.

    Args:
        columns: Its heading.
        rows: Its cells.
        numbers: Whether all columns but the first are right-aligned. A table of words (False) is left-aligned, and its
            last column is not padded, since it may be long.
    """
    cells = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    if not numbers:
        widths[-1] = 0

    def line(row: Sequence[str]) -> str:
        others = (cell.rjust(width) if numbers else cell.ljust(width) for cell, width in zip(row[1:], widths[1:]))
        return f"| {' | '.join([row[0].ljust(widths[0]), *others])} |"

    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" if numbers else "-" * (width or 3) for width in widths[1:])]
    return "\n".join([line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])])
