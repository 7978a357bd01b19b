"""Which text of a script wrote each shipped log, and where that text stands in the history.

    python tools/report/texts.py           # writes results/reference/texts.csv
    python tools/report/texts.py --check   # status 1 if a log's text is not in the history

A log keeps the hash of the text that wrote it; comments and messages of a script may change without
a rerun. The column `shown` says how the text was shown to give the numbers of the present one; it
is written by hand and kept. Needs git and the whole history.
"""

import argparse
import csv
import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # `report` is a package in tools/

from report.logs import Log, read_logs
from report.names import REFERENCE, ROOT, UserError, script_order, script_path

COLUMNS = ("script", "script_sha256", "commit", "path", "logs", "shown")
FILE = REFERENCE / "texts.csv"


def git(*arguments: str) -> bytes:
    """What git prints; raises UserError."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def hash_of(text: bytes) -> str:
    """As a script hashes its own text: line ends are \\n, whatever the checkout made of them."""
    return hashlib.sha256(text.replace(b"\r\n", b"\n")).hexdigest()[:16]


def history_of(script: str) -> dict[str, str]:
    """Hash of each text that a script ever had: the first commit with it. Oldest first."""
    path = script_path(script).as_posix()
    commits = git("log", "--reverse", "--format=%H", "--", path).decode().split()
    found: dict[str, str] = {}
    for commit in commits:
        done = subprocess.run(["git", "show", f"{commit}:{path}"], cwd=ROOT, capture_output=True)
        if done.returncode == 0:  # it may have been deleted there
            found.setdefault(hash_of(done.stdout), commit)
    return found


def shipped_logs() -> list[Log]:
    """All logs that ship, also those of the tuned heads."""
    logs, _ = read_logs(REFERENCE / "logs")
    return logs + read_logs(REFERENCE / "tuned_heads/logs")[0]


def text_counts(logs: list[Log]) -> Counter:
    """How many logs each text wrote: (script, hash)."""
    keys = ((log.script, each["script_sha256"]) for log in logs for each in log.provenances[:1])
    return Counter(keys)


def read_texts(path: Path = FILE) -> list[dict[str, str]]:
    """The lines of texts.csv; none if there is no such file. Raises UserError."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        lines = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"{path} does not have the columns {', '.join(COLUMNS)}")
    return lines


def find_texts(logs: list[Log], known: list[dict[str, str]]) -> list[dict[str, str]]:
    """A line for each text; `shown` is that of the known lines."""
    shown = {(line["script"], line["script_sha256"]): line["shown"] for line in known}
    counts = text_counts(logs)
    lines = []
    for script in sorted({script for script, _ in counts}, key=script_order):
        history, path = history_of(script), script_path(script)
        for text in sorted({text for name, text in counts if name == script}):
            values = (script, text, history.get(text, ""), path.as_posix())
            line = dict(zip(COLUMNS, (*values, str(counts[script, text])), strict=False))
            lines.append(line | {"shown": shown.get((script, text)) or "not shown yet"})
    return lines


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args(argv)
    try:
        lines = find_texts(shipped_logs(), read_texts())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    missing = [line for line in lines if not line["commit"]]
    for line in missing:
        text = f"{line['script']}: {line['logs']} logs were written by the text"
        print(f"{text} {line['script_sha256']}, which is in no commit", file=sys.stderr)
    if not arguments.check:
        with FILE.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
        print(f"{len(lines)} texts written to {FILE.relative_to(ROOT)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
