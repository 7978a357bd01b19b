"""Runs the logs of the shipped evidence again with the scripts as they are, and compares them.

    python tools/rerun.py WORK [PATTERN ...] [--data DATA] [--subset SUBSET] [--jobs 2]

Works through the logs of results/reference/logs whose names (script/run) begin with one of the
PATTERNs (default: all, which takes days), each on one thread; what an earlier call has finished
with the same scripts is not run again. DATA holds the official sets, SUBSET those that are not
complete (their logs have data<hash> in their names). Then it prints a table: how many of the logs
come out
  equal      each number of each epoch, digit by digit
  close      the result of the last line within the tolerance, on another processor, device or
             version of torch, which add in another order: four standard deviations of the shipped
             seeds of the same row, or 5 % where fewer than three ship
  different  anything else
--compare only compares, --write FILE puts the table into a page, below its first words.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "results/reference/logs"
ASIDE = {"seconds", "ended", "peak_memory_bytes"}  # what may differ from run to run
RESULTS = ("selected_test_accuracy_pct", "clean_mse", "test_mse")  # of a last line
STATES = ("equal", "close", "different", "not run again")
MARKS = {
    "e": "--epochs",
    "b": "--batch-size",
    "lr": "--lr",
    "limit": "--limit",
    "drop": "--fc-dropout",
    "trainmode": "--train-mode-epochs",
    "px": "--image-size",
    "w": "--weights",
}


def script_of(name: str) -> Path:
    return next(ROOT.glob(f"[A-Z]*/{name}.py"))


def seed_of(log: Path) -> int:
    return int(log.stem.rpartition("-s")[2])


def kind_of(log: Path) -> str:
    return log.stem.rpartition("-s")[0]


def lines_of(path: Path) -> list[dict]:
    """What it says of the run, without the notes of where it went on."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] != "resume"]


def option_flags(option: str, subset: bool) -> list[str]:
    """The flags that make this part of a log's name."""
    if option in ("bf16", "ieee"):
        return ["--precision", option]
    if option.startswith("data"):
        return ["--data-dir", "SUBSET" if subset else "DATA"]
    kind, value = re.fullmatch(r"(e|b|lr|limit|drop|trainmode|px|w)(.*)", option).groups()
    return [MARKS[kind], value]


def command(log: Path) -> list[str]:
    """Script and flags that make this log; DATA and SUBSET stand for folders."""
    network, head, protocol, *options, seed = log.stem.split("-")
    script, settings = log.parent.name, lines_of(log)[0]["settings"]
    name, layers, width = re.fullmatch(r"(fc|spinal)(?:(\d+)x)?(\d*)", head).groups()
    flags = [script_of(script).as_posix(), "--head", name, "--seed", seed[1:], "--quiet"]
    if script == "tabular":
        return [*flags, "--demo", "diabetes"]
    flags += ["--protocol", protocol]
    if script == "synthetic_regression":
        flags += ["--function", options[0]]
        return [*flags, *(["--noise", "broadcast"] if "broadcast" in options else [])]
    flags += ["--network", network, "--no-download", "--data-dir", "DATA"]
    flags += ["--layers", layers] if layers else []
    flags += ["--width", width] if width else []
    for option in options:
        flags += option_flags(option, subset=not script.startswith("tl_"))
    if network == "cnn" and protocol == "corrected" and "--fc-dropout" not in flags:
        flags += ["--fc-dropout", str(settings["fc_dropout"])]  # `corrected` once meant 0.5
    return flags


def groups(logs: list[Path], most: int = 5) -> list[list[Path]]:
    """Up to five neighbours whose seeds follow each other share a process (4 s to start)."""
    parts: list[list[Path]] = []
    for log in logs:
        last = parts[-1][-1] if parts else None
        follows = last and log == last.with_name(f"{kind_of(last)}-s{seed_of(last) + 1}.jsonl")
        if follows and len(parts[-1]) < most:
            parts[-1].append(log)
        else:
            parts.append([log])
    return parts


def again(work: Path, log: Path) -> Path | None:
    """The log of the run that was made again by the present text of its script."""
    folder = work / log.parent.name / kind_of(log)
    text = script_of(log.parent.name).read_bytes().replace(b"\r\n", b"\n")
    present = hashlib.sha256(text).hexdigest()[:16]
    for path in folder.glob(f"logs/*/*-s{seed_of(log)}.jsonl"):
        if lines_of(path)[0]["provenance"]["script_sha256"] == present:
            return path
    return None


def run_group(work: Path, logs: list[Path], data: Path, subset: Path) -> int:
    """Runs these logs in one process. Returns its exit status."""
    folder = work / logs[0].parent.name / kind_of(logs[0])
    places = {"DATA": str(data), "SUBSET": str(subset)}
    flags = [places.get(flag, flag) for flag in command(logs[0])]
    flags += ["--results-dir", str(folder), "--runs", str(len(logs)), "--overwrite"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [sys.executable, *flags]
    return subprocess.run(started, stdout=subprocess.DEVNULL, env=environment).returncode


def run(work: Path, logs: list[Path], options: argparse.Namespace) -> None:
    """Runs what is missing, some processes at a time."""
    parts = groups([log for log in logs if again(work, log) is None])

    def one(part: list[Path]) -> int:
        return run_group(work, part, options.data.resolve(), options.subset.resolve())

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for number, status in enumerate(pool.map(one, parts), start=1):
            part = parts[number - 1]
            text = f"{number} of {len(parts)}: {part[0].parent.name}/{part[0].stem}"
            if len(part) > 1:
                text += f" to s{seed_of(part[-1])}"
            print(text + (f" failed ({status})" if status else ""), flush=True)


def result_of(log: Path) -> float:
    """The number that tables report: an accuracy, or a mean squared error."""
    end = lines_of(log)[-1]
    value = next(end[key] for key in RESULTS if key in end)
    return float("nan") if value is None else value


def first_difference(old: Path, new: Path) -> str:
    """The first number that both logs have and that differs, in words; empty if there is none."""
    before, after = lines_of(old)[1:], lines_of(new)[1:]
    if len(before) != len(after):
        return f"{len(before)} lines are now {len(after)}"
    for ours, theirs in zip(before, after, strict=True):
        for key in sorted(ours.keys() & theirs.keys() - ASIDE):
            if ours[key] != theirs[key]:
                place = f"{ours['event']} {ours.get('epoch', '')} {key}"
                return f"{place}: {ours[key]} is now {theirs[key]}"
    return ""


def alike(old: Path, new: Path) -> bool:
    """Were both made by one kind of processor, with one version of torch?"""
    first, second = (lines_of(log)[0]["provenance"] for log in (old, new))
    same = first["device_name"] == second["device_name"]
    return same and first["versions"]["torch"] == second["versions"]["torch"]


def tolerance(log: Path) -> float:
    """By how much its result may differ on another processor."""
    seeds = [other for other in log.parent.glob("*.jsonl") if kind_of(other) == kind_of(log)]
    if len(seeds) >= 3:
        return 4 * statistics.stdev(result_of(other) for other in seeds)
    return 0.05 * abs(result_of(log))


def judge(old: Path, new: Path | None) -> tuple[str, str]:
    """One of STATES, and in words what differs."""
    if new is None:
        return "not run again", ""
    before, after = (lines_of(log)[0]["settings"].get("precision") for log in (old, new))
    if before != after:
        return "different", f"precision: {before} is now {after}"
    difference = first_difference(old, new)
    if not difference:
        return "equal", ""
    close = abs(result_of(old) - result_of(new)) <= tolerance(old)
    return "close" if close and not alike(old, new) else "different", difference


def compare(work: Path, logs: list[Path]) -> str:
    """The table, by script and kind of run, and a line for each that is different."""
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    notes = []
    for log in logs:
        state, difference = judge(log, again(work, log))
        for key in ((log.parent.name, kind_of(log)), ("all", "")):
            counts[key][state] += 1
        if state == "different":
            notes.append(f"- {log.parent.name}/{log.name}: {difference}")
    counts["all", ""] = counts.pop(("all", ""), Counter())  # last
    table = [f"| script | runs | {' | '.join(STATES)} |", "|---|---|---:|---:|---:|---:|"]
    for key, found in counts.items():
        table.append(f"| {' | '.join([*key, *(str(found[state]) for state in STATES)])} |")
    return "\n".join([*table, "", *notes]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("work", type=Path, help="folder for the new logs")
    add("patterns", nargs="*", default=[], help="beginnings of names: mnist/cnn-fc-pub")
    add("--data", type=Path, default=Path("data"), help="default: data")
    add("--subset", type=Path, default=Path("data/subset"), help="default: data/subset")
    add("--jobs", type=int, default=2, help="runs at a time; default: 2")
    add("--compare", action="store_true", help="run nothing")
    add("--write", type=Path, metavar="FILE", help="a page for the table")
    options = parser.parse_intermixed_args(argv)  # patterns may come after options
    logs = []
    for log in sorted(LOGS.glob("*/*.jsonl")):
        name = f"{log.parent.name}/{log.stem}"
        if name.startswith(tuple(options.patterns or [""])):
            logs.append(log)
    if not logs:
        print("error: no shipped log has such a name: results/reference/logs", file=sys.stderr)
        return 2
    work = options.work.resolve()
    if not options.compare:
        run(work, logs, options)
    text = compare(work, logs)
    print(text)
    if options.write:
        page = options.write.read_text(encoding="utf-8") if options.write.exists() else ""
        options.write.write_text(page.partition("| script |")[0] + text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
