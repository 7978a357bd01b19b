"""Runs the logs of the shipped evidence again with the scripts as they are, and compares them line by line.

    python tools/rerun.py run WORK --data DATA --subset SUBSET [--jobs 2] [PATTERN ...]
    python tools/rerun.py compare WORK [--old LOGS] [--write results/reruns.md]
    python tools/rerun.py install WORK [PATTERN ...]

`run` copies the scripts to WORK/scripts (an edit of the tree does not disturb the runs), works through the logs of
results/reference/logs whose names (script/run) contain one of the PATTERNs (default: all), in the order of the
patterns, each on one thread, and goes on where it was stopped when it is repeated. DATA holds the official sets, SUBSET
those that are not complete (their logs have data<hash> in their names). `compare` looks at each epoch line and the end
line, times and dates aside, and prints a table: equal, different, not run again; --old names a folder with the logs to
compare with (default: the shipped ones), --write puts the table into a page, below its first words. `install` puts the
new logs (whose names contain a PATTERN) in the place of the old ones. A log that the present text of its script has
made is left alone by `run` and not counted by `compare`, unless --all is given.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "results" / "reference" / "logs"
ASIDE = {"seconds", "ended", "peak_memory_bytes"}  # what may differ from run to run
FOLDERS = ("MNIST", "EMNIST", "CIFAR", "Regression", "Transfer_Learning")
FLAGS = {
    "e": "--epochs",
    "b": "--batch-size",
    "lr": "--lr",
    "limit": "--limit",
    "drop": "--fc-dropout",
    "px": "--image-size",
    "w": "--weights",
}


def script_of(root: Path, name: str) -> Path:
    return next(path for folder in FOLDERS if (path := root / folder / f"{name}.py").exists())


def command(log: Path, scripts: Path, results: Path, data: Path, subset: Path) -> list[str]:
    """The command line that makes the log of this name."""
    network, head, protocol, *options, seed = log.stem.split("-")
    flags = ["--protocol", protocol, "--seed", seed[1:], "--results-dir", str(results), "--quiet"]
    script = log.parent.name
    if script == "synthetic_regression":
        flags += ["--function", options[0], "--head", head[:6] if head != "fc" else "fc"]
        return [str(script_of(scripts, script)), *flags, *(["--noise", "broadcast"] if "broadcast" in options else [])]
    if script == "tabular":
        flags = flags[2:]  # it has one protocol
        return [
            str(script_of(scripts, script)),
            "--demo",
            "diabetes",
            "--head",
            "fc" if head == "fc" else "spinal",
            *flags,
        ]
    flags += ["--network", network, "--head", "fc" if head == "fc" else "spinal", "--no-download"]
    if sizes := re.fullmatch(r"spinal(\d+)x(\d+)", head):
        flags += ["--layers", sizes[1], "--width", sizes[2]]
    place = data
    for option in options:
        kind, value = re.fullmatch(r"(bf16|e|b|lr|limit|drop|px|wnone|w|data)(.*)", option).groups()
        if kind == "data":
            place = data if script.startswith("tl_") else subset
        elif kind == "bf16":
            flags += ["--precision", "bf16"]
        else:
            flags += ["--weights", "none"] if kind == "wnone" else [FLAGS[kind], value]
    return [str(script_of(scripts, script)), *flags, "--data-dir", str(place)]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def current(log: Path) -> bool:
    """Whether the log was made by the present text of its script."""
    start = lines_of(log)[0]
    text = script_of(ROOT, start["script"]).read_bytes()
    return start["provenance"]["script_sha256"] == hashlib.sha256(text).hexdigest()[:16]


def differences(old: Path, new: Path) -> list[str]:
    """The first number of each epoch or end line that both logs have and that differs, in words."""
    found, pairs = [], list(zip(lines_of(old)[1:], lines_of(new)[1:], strict=False))
    if len(lines_of(old)) != len(lines_of(new)):
        found.append("another number of lines")
    if len(set(precisions := [lines_of(log)[0]["settings"].get("precision") for log in (old, new)])) > 1:
        found.append("precision: {} is now {}".format(*precisions))
    for before, after in pairs:
        wrong = [key for key in before.keys() & after.keys() - ASIDE if before[key] != after[key]]
        if wrong:
            key = min(wrong)
            found.append(f"{before['event']} {before.get('epoch', '')} {key}: {before[key]} is now {after[key]}")
    return found


def seed_of(log: Path) -> int:
    return int(log.stem.rpartition("-s")[2])


def kind_of(log: Path) -> str:
    return log.stem.rpartition("-s")[0]


def processes(logs: list[Path], most: int = 5) -> list[list[Path]]:
    """The logs in their order; up to five neighbours whose seeds follow each other share a process (4 s to start)."""
    parts: list[list[Path]] = []
    for log in logs:
        last = parts[-1] if parts else []
        if (
            last
            and len(last) < most
            and log == last[-1].with_name(f"{kind_of(last[-1])}-s{seed_of(last[-1]) + 1}.jsonl")
        ):
            last.append(log)
        else:
            parts.append([log])
    return parts


def run(options: argparse.Namespace) -> int:
    scripts = options.work / "scripts"
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, scripts / folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    logs = sorted(LOGS.glob("*/*.jsonl"))
    todo = list(
        dict.fromkeys(
            log
            for pattern in options.patterns or [""]
            for log in logs
            if pattern in f"{log.parent.name}/{log.name}" and (options.all or not current(log))
        )
    )

    for log in todo:  # a finished log of an older text would stop its run
        made = options.work / "results" / "logs" / log.parent.name / log.name
        if made.exists() and not current(made):
            made.unlink()

    def work(logs: list[Path]) -> int:
        started = [sys.executable, *command(logs[0], scripts, options.work / "results", options.data, options.subset)]
        return subprocess.run(
            [*started, "--runs", str(len(logs))],
            cwd=options.work,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        ).returncode

    parts = processes(todo)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for number, (logs, status) in enumerate(zip(parts, pool.map(work, parts), strict=True), start=1):
            names = f"{logs[0].parent.name}/{logs[0].stem}" + f" to s{seed_of(logs[-1])}" * (len(logs) > 1)
            print(f"{number} of {len(parts)}: {names}{f' failed ({status})' if status else ''}", flush=True)
    return 0


def compare(options: argparse.Namespace) -> int:
    """A table by script and kind of run: equal bit by bit, different and how, not run again."""
    groups: dict[tuple, collections.Counter] = collections.defaultdict(collections.Counter)
    notes = []
    for old in sorted((options.old or LOGS).glob("*/*.jsonl")):
        if current(old) and not options.all:
            continue
        new = options.work / "results" / "logs" / old.parent.name / old.name
        group = old.parent.name, kind_of(old)
        state = (
            "not run again"
            if not new.exists() or not current(new)
            else "different"
            if (found := differences(old, new))
            else "equal"
        )
        groups[group][state] += 1
        if state == "different":
            notes.append(f"- {old.parent.name}/{old.name}: {len(found)} lines, first: {found[0]}")
    total = collections.Counter()
    table = ["| script | runs | equal bit by bit | different | not run again |", "|---|---|---:|---:|---:|"]
    for (script, name), counts in groups.items():
        total += counts
        table.append(f"| {script} | {name} | {counts['equal']} | {counts['different']} | {counts['not run again']} |")
    table.append(f"| all | | {total['equal']} | {total['different']} | {total['not run again']} |")
    text = "\n".join([*table, "", *notes]) + "\n"
    print(text)
    if options.write:
        page = options.write.read_text(encoding="utf-8") if options.write.exists() else ""
        options.write.write_text(page.partition("| script |")[0] + text, encoding="utf-8")
    return 0


def install(options: argparse.Namespace) -> int:
    for new in sorted((options.work / "results" / "logs").glob("*/*.jsonl")):
        if not any(pattern in f"{new.parent.name}/{new.name}" for pattern in options.patterns or [""]):
            continue
        (LOGS / new.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new, LOGS / new.parent.name / new.name)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "compare", "install"))
    parser.add_argument("work", type=Path)
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--subset", type=Path, default=Path("data/subset"))
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--old", type=Path)
    parser.add_argument("--write", type=Path)
    options = parser.parse_intermixed_args()  # patterns may come after options
    options.work, options.data, options.subset = (x.resolve() for x in (options.work, options.data, options.subset))
    return {"run": run, "compare": compare, "install": install}[options.what](options)


if __name__ == "__main__":
    sys.exit(main())
