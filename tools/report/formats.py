"""Markdown, LaTeX and CSV, and pages from templates."""

import csv
import io
import re
from pathlib import Path

from report.tables import Columns, Row

TEMPLATES = Path(__file__).resolve().parent / "templates"
MARKDOWN = {"\\": "\\\\", "|": "\\|", "<": "&lt;", "*": "\\*"}
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
    "‡": r"\textsuperscript{\textdaggerdbl}",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
    "[": "{[}",
    "]": "{]}",
}


def markdown_text(text: str) -> str:
    """Text that a Markdown table takes as it is."""
    line = " ".join(text.split())
    return "".join(MARKDOWN.get(character, character) for character in line)


def fill(template: str, values: dict[str, str]) -> str:
    """A page: `{{name}}` becomes values[name].

    Paragraphs with an empty value and sections without text are left out.
    """

    def value_of(found: re.Match) -> str:
        return values[found[1]].rstrip("\n")

    text = (TEMPLATES / template).read_text(encoding="utf-8").strip("\n")
    paragraphs = []
    for paragraph in text.split("\n\n"):
        names = re.findall(r"{{(\w+)}}", paragraph)
        if all(values[name] for name in names):
            paragraphs.append(re.sub(r"{{(\w+)}}", value_of, paragraph))
    levels = [len(re.match("#*", paragraph)[0]) for paragraph in paragraphs] + [1]
    kept = []
    for paragraph, level, following in zip(paragraphs, levels, levels[1:], strict=False):
        if level == 0 or following == 0 or following > level:
            kept.append(paragraph)
    return "\n\n".join(kept) + "\n"


def markdown(columns: Columns, rows: list[Row]) -> str:
    """A Markdown table; what is missing is a dash, and without rows a sentence."""
    if not rows:
        return "Not run yet.\n"
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [markdown_text(row.get(key, "")) or "–" for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def tex_text(text: str) -> str:
    """Text with everything escaped that LaTeX would read as a command."""
    return "".join(TEX.get(character, character) for character in text)


def latex(columns: Columns, rows: list[Row]) -> str:
    r"""A booktabs tabular for \input; a thin space where the first column changes."""
    lines = ["% made by tools/report/make.py; needs booktabs"]
    lines += [r"\begin{tabular}{" + "l" * len(columns) + "}", r"\toprule"]
    lines += [" & ".join(tex_text(heading) for heading in columns.values()) + r" \\", r"\midrule"]
    first, previous = next(iter(columns)), None
    for row in rows:
        if previous is not None and previous[first] != row[first]:
            lines.append(r"\addlinespace")
        cells = [tex_text(row.get(key, "")) or "--" for key in columns]
        lines.append(" & ".join(cells) + r" \\")
        previous = row
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def comma_separated(rows: list[Row]) -> str:
    """A CSV for programs: every column but the cells for reading, ASCII minus."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if "_cell" not in key]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        texts = [row.get(key, "").replace("−", "-").replace("×", "x") for key in keys]
        writer.writerow(texts)
    return stream.getvalue()
