"""Make the tables, the figures and the report of this collection from the logs of the runs.

    python results/aggregate.py [--results-dir results] [--paper results/paper.csv] [--check | --verify LOG]

Reads `logs/**/*.jsonl` of the results folder, and `paper.csv`, `costs.csv` and `quirks.csv` of one folder, nothing else. Writes `tables/`, `figures/` and `README.md` there,
and the part of the README.md beside that folder that is fenced for it. It is a pure function of what it reads: the same logs
give the same bytes, on the same matplotlib also the figures. Its parts are in report/.
A log that breaks `SCHEMA.md`, repeats another or is unfinished is named on stderr and in the report and left out; it never
stops the program. Runs are averaged only if their settings and their data are equal.

`--check` writes nothing and ends with status 1 if tables or report on disk are not those of the logs (figures are not
compared: their bytes depend on the version of matplotlib). Exit status: 0 done, 1 --check found a difference, 2 user error.

Needs numpy and matplotlib. scipy would give the t distribution, but is a large dependency for one function of 20 lines.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from report.audit import read_quirks
from report.cells import sort_into_cells
from report.costs import read_costs
from report.facts import UserError
from report.figures import write_figures
from report.logs import read_logs
from report.overview import read_confusion, write_overview
from report.pages import render
from report.paper import read_paper
from report.verify import verify


def encoded(text: str) -> bytes:
    """UTF-8; a lone surrogate in somebody's log or file name must not stop the report."""
    return text.encode("utf-8", "backslashreplace")


def differing_files(folder: Path, texts: dict[str, str]) -> list[str]:
    """Files on disk that are not what the logs give."""
    return [name for name, text in sorted(texts.items())
            if not (folder / name).is_file() or (folder / name).read_bytes() != encoded(text)]


FENCE = ("<!-- begin: made by make tables -->\n", "<!-- end: made by make tables -->")


def front_page(path: Path, text: str) -> str | None:
    """The README of the collection with `text` between its fences; none if there is no such page or fence."""
    if not path.is_file():
        return None
    before, begin, rest = path.read_text(encoding="utf-8").partition(FENCE[0])
    _, end, after = rest.partition(FENCE[1])
    return before + begin + text + end + after if begin and end else None


def aggregate(folder: Path, paper_csv: Path, check: bool) -> int:
    """Read, sort, write (or compare); returns the exit status."""
    if not folder.is_dir():
        raise UserError(f"there is no results folder {folder}")
    paper = read_paper(paper_csv)
    logs, findings = read_logs(folder / "logs")
    cells = sort_into_cells(logs, paper)
    findings = sorted(findings + cells.findings, key=lambda finding: finding.path)
    for finding in findings:
        print(encoded(f"{folder.as_posix()}/{finding}").decode(), file=sys.stderr)
    costs, quirks = read_costs(paper_csv.parent / "costs.csv"), read_quirks(paper_csv.parent / "quirks.csv")
    texts = render(paper, cells, findings, costs, quirks, bool(read_confusion(folder / "confusion")))
    if page := front_page(folder / "../README.md", texts.pop("front page")):
        texts["../README.md"] = page
    if check:
        differing = differing_files(folder, texts)
        for name in differing:
            print(f"{folder / name} is not what the logs give; run: python results/aggregate.py")
        return 1 if differing else 0
    for name, text in texts.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded(text))
    write_figures(cells, folder / "figures")
    write_overview(cells, paper, folder / "figures")
    print(f"{len(logs) - len(cells.findings)} runs counted, {len(findings)} logs left out; see {folder / 'README.md'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="folder with logs/ (default: results)")
    parser.add_argument("--paper", type=Path, default=Path(__file__).resolve().parent / "paper.csv",
                        help="the paper's numbers (default: beside this program)")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if tables or report are out of date")
    parser.add_argument("--verify", type=Path, metavar="LOG", help="run this log's run again on the CPU and compare line by line: "
                        "status 0 the same (or another processor), 1 not the same")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="data sets for --verify (default: data)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.verify:
            return verify(arguments.verify, arguments.data_dir)
        return aggregate(arguments.results_dir, arguments.paper, arguments.check)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
