"""Make tables, figures and pages from the logs of runs.

    python tools/report/make.py [--results-dir results]  # your own runs: make tables
    python tools/report/make.py --reference              # those that ship: make reference-report

Without --reference: reads `logs/` of the results folder and writes `tables/` (begin with
tables/README.md), `figures/` and learning curves (logs/SCRIPT/curves.png) there: your numbers
beside the paper's and those of the reference runs. It touches no file that git tracks. With
--reference: reads results/reference/logs and writes results/reference (README.md, tables, figures),
results/audit.md, and the part of the collection's README.md that is fenced for it.

Both are pure functions of the logs and of paper.csv, costs.csv, quirks.csv, claims.csv,
regression_constants.csv, gradients.csv and reference/texts.csv in results: the same files give the
same bytes, on the same matplotlib also the figures. The prose of the pages stands in templates. A
log that breaks results/SCHEMA.md, repeats another or is unfinished is named on stderr and on the
page and left out; it never stops the program. Runs are averaged only if their settings, data,
precision and kind of device are equal.

`--check` writes nothing and ends with status 1 if texts on disk are not those of the logs (figures
are not compared: their bytes depend on the version of matplotlib). Exit status: 0 done, 1 --check
found a difference, 2 user error.
"""

import argparse
import re
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # `report` is a package in tools/

from report.audit import audit_page, read_quirks
from report.evidence import Evidence, read_evidence
from report.figures import write_curves, write_figures
from report.names import REFERENCE, RESULTS, ROOT, UserError
from report.pages import reference_texts, user_texts

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


def front_page(part: str) -> dict[str, str]:
    """The collection's README.md with its fenced part made anew; nothing if it has none."""
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = FENCE.search(text)
    if found is None:
        return {}
    whole = text[: found.start()] + found[1] + part + found[2] + text[found.end() :]
    return {"../../README.md": whole}


def texts_of(evidence: Evidence, reference: bool, constants: Path = RESULTS) -> dict[str, str]:
    """Every text to be written, by its path in the results folder."""
    if not reference:
        return user_texts(evidence, read_evidence(REFERENCE, constants))
    texts = reference_texts(evidence)
    quirks = read_quirks(constants / "quirks.csv")
    parts = evidence.paper, evidence.rows, evidence.identities, evidence.costs
    texts["../audit.md"] = audit_page(*parts, quirks)
    return texts | front_page(texts.pop("front page"))


def write(folder: Path, texts: dict[str, str]) -> None:
    """Writes every text."""
    for name, text in texts.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded(text))


def make(folder: Path, arguments: argparse.Namespace) -> int:
    """Read, sort, write (or compare); returns the exit status."""
    if not folder.is_dir():
        raise UserError(f"there is no results folder {folder}")
    evidence = read_evidence(folder, RESULTS)
    for finding in evidence.findings:
        print(encoded(f"{folder.as_posix()}/{finding}").decode(), file=sys.stderr)
    texts = texts_of(evidence, arguments.reference, RESULTS)
    if arguments.check:
        command = "python tools/report/make.py" + (" --reference" if arguments.reference else "")
        differing = differing_files(folder, texts)
        for name in differing:
            print(f"{folder / name} is not what the logs give; run: {command}")
        return 1 if differing else 0
    write(folder, texts)
    write_figures(evidence, folder / "figures")
    if not arguments.reference:
        write_curves(evidence, folder / "logs")
    if not arguments.quiet:
        counted = len(evidence.rows.logs) - len(evidence.rows.findings)
        page = folder / ("README.md" if arguments.reference else "tables/README.md")
        print(f"{counted} runs counted, {len(evidence.findings)} logs left out; see {page}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--results-dir", type=Path, default="results", help="has logs/ (default: results)")
    add("--reference", action="store_true", help="the report on the runs that ship")
    add("--check", action="store_true", help="write nothing; status 1 if a text is out of date")
    add("--quiet", action="store_true", help="print only what is left out, and errors")
    arguments = parser.parse_args(argv)
    try:
        return make(REFERENCE if arguments.reference else arguments.results_dir, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
