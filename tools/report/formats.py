"""Markdown, LaTeX and CSV, and pages from templates."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from report.tables import Column, Row

TEMPLATES = Path(__file__).resolve().parent / "templates"


def markdown_text(text: str) -> str:
    """Text that a Markdown table takes as it is."""
    return (
        " ".join(text.split())
        .replace("\\", "\\\\")
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("*", "\\*")
    )


def fill(template: str, values: dict[str, str]) -> str:
    """A page: `{{name}}` becomes values[name]; paragraphs with an empty value, sections without text are left out."""
    paragraphs: list[str] = []
    for paragraph in (TEMPLATES / template).read_text(encoding="utf-8").strip("\n").split("\n\n"):
        names = re.findall(r"{{(\w+)}}", paragraph)
        if all(values[name] for name in names):
            paragraphs.append(
                re.sub(r"{{(\w+)}}", lambda found: values[found[1]].rstrip("\n"), paragraph)
            )
    levels = [len(re.match("#*", paragraph)[0]) for paragraph in paragraphs] + [1]
    kept = [
        paragraph
        for paragraph, level, following in zip(paragraphs, levels, levels[1:])
        if not level or not 0 < following <= level
    ]
    return "\n\n".join(kept) + "\n"


def markdown(columns: list[Column], rows: list[Row]) -> str:
    """A Markdown table; what is missing is a dash, and without rows a sentence."""
    if not rows:
        return "Not run yet.\n"
    headings = [
        f"{column.group}: {column.heading}" if column.group else column.heading
        for column in columns
    ]
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(columns)]
    lines += [
        "| "
        + " | ".join(markdown_text(row.get(column.key, "")) or "–" for column in columns)
        + " |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


TEX = {
    "\\": r"\textbackslash{}",
    "%": r"\%",
    "_": r"\_",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"\textsuperscript{\textdagger}",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
    "[": "{[}",
    "]": "{]}",
}


def tex_text(text: str) -> str:
    """Text with everything escaped that LaTeX would read as a command."""
    return "".join(TEX.get(character, character) for character in text)


def tex_groups(columns: list[Column]) -> Iterator[tuple[str, int, int]]:
    """Runs of neighbouring columns with one group: heading, first and last column (from 1)."""
    first = 0
    while first < len(columns):
        last = first
        while last + 1 < len(columns) and columns[last + 1].group == columns[first].group:
            last += 1
        yield columns[first].group, first + 1, last + 1
        first = last + 1


def latex(columns: list[Column], rows: list[Row]) -> str:
    """A booktabs tabular without float, for \\input; a thin rule where the first column changes."""
    groups = list(tex_groups(columns))
    lines = [
        "% made by tools/report/make.py; needs booktabs",
        r"\begin{tabular}{" + "l" * len(columns) + "}",
        r"\toprule",
    ]
    lines.append(
        " & ".join(
            rf"\multicolumn{{{last - first + 1}}}{{l}}{{{tex_text(group)}}}"
            for group, first, last in groups
        )
        + r" \\"
    )
    lines.append(
        " ".join(rf"\cmidrule(lr){{{first}-{last}}}" for group, first, last in groups if group)
    )
    lines += [" & ".join(tex_text(column.heading) for column in columns) + r" \\", r"\midrule"]
    for previous, row in zip([None, *rows], rows):
        if previous is not None and previous.get(columns[0].key) != row.get(columns[0].key):
            lines.append(r"\addlinespace")
        lines.append(
            " & ".join(tex_text(row.get(column.key, "") or "–") for column in columns) + r" \\"
        )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def comma_separated(keys: list[str], rows: list[Row]) -> str:
    """A CSV for programs: no thousands separators, ASCII minus, empty where nothing is known."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow([plain(key, row.get(key, "")) for key in keys])
    return stream.getvalue()


def plain(key: str, text: str) -> str:
    """A cell as programs like it."""
    if key in ("parameters", "fc_multiplications"):
        text = text.replace(",", "")
    return text.replace("−", "-").replace("×", "x")
