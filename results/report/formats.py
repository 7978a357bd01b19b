"""Markdown, LaTeX and CSV."""
from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from report.tables import Column, Row


def markdown_text(text: str) -> str:
    """Text that a Markdown table takes as it is."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def markdown(columns: list[Column], rows: list[Row]) -> str:
    """A Markdown table; what is missing is a dash."""
    headings = [f"{column.group}: {column.heading}" if column.group else column.heading for column in columns]
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(markdown_text(row.get(column.key, "")) or "–" for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


TEX = {"\\": r"\textbackslash{}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$", "×": r"$\times$",
       "†": r"\textsuperscript{\textdagger}", "–": "--", "<": "$<$", ">": "$>$", "[": "{[}", "]": "{]}"}


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
    lines = ["% made by results/aggregate.py; needs booktabs", r"\begin{tabular}{" + "l" * len(columns) + "}", r"\toprule"]
    lines.append(" & ".join(rf"\multicolumn{{{last - first + 1}}}{{l}}{{{tex_text(group)}}}" for group, first, last in groups)
                 + r" \\")
    lines.append(" ".join(rf"\cmidrule(lr){{{first}-{last}}}" for group, first, last in groups if group))
    lines += [" & ".join(tex_text(column.heading) for column in columns) + r" \\", r"\midrule"]
    for previous, row in zip([None, *rows], rows):
        if previous is not None and previous.get(columns[0].key) != row.get(columns[0].key):
            lines.append(r"\addlinespace")
        lines.append(" & ".join(tex_text(row.get(column.key, "") or "–") for column in columns) + r" \\")
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


DOCUMENT = r"""% made by results/aggregate.py: all tables, one page each; compile in this folder
\documentclass[a4paper]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{textcomp}
\usepackage{booktabs,graphicx}
\usepackage[landscape,margin=1cm]{geometry}
\pagestyle{empty}
\begin{document}
\noindent\resizebox{\linewidth}{!}{\input{table1.tex}}

\bigskip
\noindent\resizebox{0.7\linewidth}{!}{\input{table1_learnt.tex}}\clearpage
\noindent\resizebox*{!}{0.95\textheight}{\input{table2.tex}}\clearpage
\noindent\resizebox{\linewidth}{!}{\input{table2_pairs.tex}}\clearpage
\noindent\resizebox*{!}{0.95\textheight}{\input{table3.tex}}
\end{document}
"""
