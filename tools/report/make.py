"""Make tables, figures and pages from the logs of runs.

    python tools/report/make.py [--results-dir results]   # your own runs: make tables
    python tools/report/make.py --reference               # the runs that ship: make reference-report

Without --reference: reads `logs/**/*.jsonl` of the results folder and writes `tables/` (begin with tables/README.md)
and `figures/` there: your numbers beside the paper's and those of the reference runs. It touches no file that git
tracks. With --reference: reads `reference/logs/` and writes `reference/README.md`, `reference/tables/`,
`reference/figures/`, `audit.md`, and the part of the collection's README.md that is fenced for it.

Both are pure functions of the logs, of paper.csv, costs.csv, quirks.csv and regression_constants.csv beside this
program, and of the SHA-256 of the shipped scripts: the same files give the same bytes, on the same matplotlib also
the figures. The rules of every verdict stand in report/rules.py, the prose of the pages in report/*.md. A log that
breaks `SCHEMA.md`, repeats another or is unfinished is named on stderr and on the page and left out; it never stops
the program. Runs are averaged only if their settings and their data are equal.

`--check` writes nothing and ends with status 1 if texts on disk are not those of the logs (figures are not compared:
their bytes depend on the version of matplotlib). Exit status: 0 done, 1 --check found a difference, 2 user error.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # `report` is a package in tools/
from report.audit import audit_page, read_quirks
from report.costs import read_costs
from report.figures import write_figures
from report.logs import read_logs
from report.names import ROOT, UserError
from report.pages import Sources, reference_texts, user_texts
from report.paper import read_constants, read_paper
from report.rows import part_comparisons, sort_into_cells

HERE = ROOT / "results"
REFERENCE = HERE / "reference"
FENCE = re.compile(
    r"(<!-- begin: made by make (?:tables|reference-report) -->\n).*?(<!-- end: made by make)",
    re.DOTALL,
)


def encoded(text: str) -> bytes:
    """UTF-8; a lone surrogate in somebody's log or file name must not stop the report."""
    return text.encode("utf-8", "backslashreplace")


def differing_files(folder: Path, texts: dict[str, str]) -> list[str]:
    """Files on disk that are not what the logs give."""
    return [
        name
        for name, text in sorted(texts.items())
        if not (folder / name).is_file() or (folder / name).read_bytes() != encoded(text)
    ]


def read_sources(folder: Path) -> Sources:
    """Everything that the report on a folder's logs is a function of."""
    paper = read_paper(HERE / "paper.csv")
    logs, findings = read_logs(folder / "logs")
    cells = sort_into_cells(logs, paper)
    findings = sorted(findings + cells.findings, key=lambda finding: finding.path)
    return Sources(
        paper,
        cells,
        findings,
        read_costs(HERE / "costs.csv"),
        read_constants(HERE / "regression_constants.csv"),
    )


def texts_of(sources: Sources, reference: bool) -> dict[str, str]:
    """Every text to be written, by its path in the results folder."""
    if not reference:
        return user_texts(sources, read_sources(REFERENCE).cells)
    texts = reference_texts(sources)
    texts["../audit.md"] = audit_page(
        sources.paper, sources.cells, sources.items, sources.costs, read_quirks(HERE / "quirks.csv")
    )
    front, page = texts.pop("front page"), ROOT / "README.md"
    if page.is_file() and FENCE.search(text := page.read_text(encoding="utf-8")):
        texts["../../README.md"] = FENCE.sub(
            lambda found: found[1] + front + found[2], text, count=1
        )
    return texts


def aggregate(folder: Path, reference: bool, check: bool, quiet: bool) -> int:
    """Read, sort, write (or compare); returns the exit status."""
    if not folder.is_dir():
        raise UserError(f"there is no results folder {folder}")
    sources = read_sources(folder)
    for finding in sources.findings:
        print(encoded(f"{folder.as_posix()}/{finding}").decode(), file=sys.stderr)
    texts = texts_of(sources, reference)
    if check:
        differing = differing_files(folder, texts)
        for name in differing:
            print(
                f"{folder / name} is not what the logs give; run: python "
                f"tools/report/make.py{' --reference' * reference}"
            )
        return 1 if differing else 0
    for name, text in texts.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded(text))
    write_figures(
        sources.cells,
        sources.items + part_comparisons(sources.cells),
        sources.costs,
        sources.constants,
        folder / "figures",
    )
    if not quiet:
        counted = len(sources.cells.logs) - len(sources.cells.findings)
        page = folder / ("README.md" if reference else "tables/README.md")
        print(f"{counted} runs counted, {len(sources.findings)} logs left out; see {page}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results-dir",
        type=Path,
        default=Path("results"),
        help="folder with logs/ (default: results)",
    )
    parser.add_argument(
        "--reference",
        action="store_true",
        help="the report on the runs that ship with the collection",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; status 1 if a text is out of date"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing but what is left out, and errors"
    )
    arguments = parser.parse_args(argv)
    try:
        return aggregate(
            REFERENCE if arguments.reference else arguments.results_dir,
            arguments.reference,
            arguments.check,
            arguments.quiet,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
