"""What is done, running, failed and waiting, and how long the rest will take: make -s list | python tools/runs.py

    status      a line for each group of rows, and one for each running run (the default)
    failures    the failed runs, each with its message and the command that repeats it; exit status 0

`make list` prints a line for each run: its group, its log, the file that says that its data are there, its command. A
run is
  done      if its log is there,
  running   if tools/job.py runs it on this machine (NAME.running has its lock); started by hand, if it wrote within
            three of its epochs, or ten minutes before the first; on another machine, if it wrote within the last hour,
  failed    if tools/job.py has noted so since,
  stopped   if it is unfinished otherwise; it goes on when it is started again,
  waiting   if none of these.
Time left: the epochs that a run still needs times the seconds that an epoch of the same network took on the same
device, in all logs of this results folder; those of a part of the images (`--limit`) are scaled to all. The device is
that of the log written last. A network without such a log counts by its work (results/reference/tables/plan.csv) at the
rate of the one with a log that is nearest in work, and the time gets a `~`; a run that neither tells anything about is
not in it, and the time gets a `>`. On a CPU a run that would take more than half a day is not in it either: it needs a
GPU. The sum is divided by the number of runs at a time.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from job import ENDED, failure_of, is_running, note_of

STATES = ("done", "running", "failed", "stopped", "waiting")
TOO_LONG = 12 * 3600.0  # seconds of one run on a CPU


@dataclass
class Run:
    """One line of `make list`, and what the results folder says of it."""

    group: str
    log: Path
    ready: str
    command: str
    state: str = ""
    start: dict = field(default_factory=dict)  # the first line of its log
    seconds: list[float] = field(default_factory=list)  # of its epochs
    written: float = 0.0  # the time of its last line
    failure: dict = field(default_factory=dict)

    @property
    def network(self) -> tuple[str, str]:
        return self.log.parent.name, self.log.name.split("-")[0]

    @property
    def epochs(self) -> int | None:
        return self.start.get("settings", {}).get("epochs")

    @property
    def device(self) -> str | None:
        return self.start.get("provenance", {}).get("device_name")


def read_list(lines: Iterable[str]) -> list[Run]:
    """The runs of `make list`. Raises ValueError."""
    runs = []
    for line in lines:
        parts = line.rstrip("\n").split("\t")
        if len(parts) != 4:
            raise ValueError(f"not a line of `make list`: {line.strip()[:80]!r}")
        runs.append(Run(parts[0], Path(parts[1]), *parts[2:]))
    return runs


def read_log(run: Run, path: Path) -> None:
    """Start line and seconds of the epochs; a damaged line ends the reading."""
    try:
        run.written = path.stat().st_mtime
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            record = json.loads(line)
            if record["event"] == "start":
                run.start = record
            elif record["event"] == "epoch":
                run.seconds.append(float(record["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass


def age(path: Path) -> float:
    """Seconds since it was last written; infinite where it is not there."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf


def alive(run: Run, part: Path) -> bool:
    """Does somebody write this log? Of what tools/job.py did not start here, the age of its files tells."""
    here = is_running(run.log)
    if here is not None:
        return here
    note, patience = note_of(run.log), max(60.0, 3 * max(run.seconds)) if run.seconds else 600.0
    elsewhere = note.exists() and note.read_text(encoding="utf-8", errors="replace") != ENDED
    return age(part) < patience or (elsewhere and min(age(part), age(note)) < max(3600.0, patience))


def look(run: Run) -> None:
    """Sets the run's state."""
    part, failure = run.log.with_name(f"{run.log.name}.part"), failure_of(run.log)
    if run.log.exists():
        run.state = "done"
        read_log(run, run.log)
        return
    if part.exists():
        read_log(run, part)
    if alive(run, part):
        run.state = "running"
    elif part.exists():
        run.state = "stopped"
    if run.state != "running" and failure.exists():
        try:
            run.failure, run.state = json.loads(failure.read_text(encoding="utf-8")), "failed"
        except (OSError, ValueError):
            run.failure, run.state = {"reason": f"{failure} cannot be read"}, "failed"
    run.state = run.state or "waiting"


def read_plan(path: Path) -> dict[tuple[str, str], tuple[int, float]]:
    """(epochs, PFLOP) of a run of (script, network); empty without the file."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return {
                (row["script"], row["network"]): (int(row["epochs"]), float(row["pflop"]))
                for row in csv.DictReader(stream)
            }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def like(runs: list[Run]) -> list[Run]:
    """The runs that have epochs, and those outside the list that differ from a row by epochs or --limit alone."""
    listed, others = {run.log for run in runs}, []
    for folder in sorted({run.log.parent for run in runs}):
        for path in sorted(folder.glob("*.jsonl")):
            if path not in listed:
                other = Run("", path, "", "")
                read_log(other, path)
                if other.start.get("data", {}).get("official") and set(other.start["departures"]) <= {
                    "epochs",
                    "limit",
                }:
                    others.append(other)
    return [run for run in [*runs, *others] if run.device and run.seconds]


def full_epoch(run: Run) -> float:
    """Seconds of an epoch with all images."""
    data = run.start.get("data") or {}
    complete, used = data.get("complete_train"), (data.get("train") or 0) + (data.get("heldout") or 0)
    limited = run.start["settings"].get("limit") and complete and used
    return statistics.median(run.seconds) * (complete / used if limited else 1.0)


class Estimate:
    """Seconds that runs still need, from what logs of one device say."""

    def __init__(self, runs: list[Run], plan: dict[tuple[str, str], tuple[int, float]]):
        started = like(runs)
        last = max(started, key=lambda run: run.written, default=None)
        self.device, self.plan = last.device if last else None, plan
        self.cpu = bool(last) and last.start["provenance"].get("device") == "cpu"
        epochs, numbers = defaultdict(list), {network: epochs for network, (epochs, _) in plan.items()}
        for run in started:
            if run.device == self.device:
                epochs[run.network].append(full_epoch(run))
                if not run.start.get("departures") and run.epochs:
                    numbers[run.network] = run.epochs
        self.epoch = {network: statistics.median(seconds) for network, seconds in epochs.items() if network in numbers}
        self.run = {network: epoch * numbers[network] for network, epoch in self.epoch.items()}

    def __call__(self, run: Run) -> tuple[float | None, bool]:
        """(seconds left, are they measured on this network)."""
        if run.network in self.run:
            measured = run.state == "running" and run.device == self.device and run.seconds
            epoch = statistics.median(run.seconds) if measured else self.epoch[run.network]
            return ((run.epochs - len(run.seconds)) * epoch if run.epochs else self.run[run.network]), True
        both = [network for network in self.run if network in self.plan]
        if both and run.network in self.plan:
            work = {network: pflop for network, (_, pflop) in self.plan.items()}
            near = min(both, key=lambda network: abs(math.log(work[network] / work[run.network])))
            whole = self.run[near] / work[near] * work[run.network]
            return whole * (1 - len(run.seconds) / run.epochs) if run.epochs else whole, False
        return None, False

    def needs_gpu(self, run: Run) -> bool:
        """Is this CPU too slow for a whole run of that network? One that runs has been started on purpose."""
        seconds, _ = self(replace(run, start={}, seconds=[], state="waiting"))
        return self.cpu and run.state != "running" and (seconds or 0.0) > TOO_LONG

    def of(self, runs: Iterable[Run], at_once: int = 1) -> str:
        """What is left of all these runs, as words."""
        left = [run for run in runs if run.state != "done"]
        known = [self(run) for run in left if not self.needs_gpu(run)]
        gpu = len(known) < len(left)
        if not any(seconds for seconds, _ in known):
            return "needs a GPU" if gpu else "?" if left else ""
        total = sum(seconds or 0.0 for seconds, _ in known) / at_once
        sign = ">" if any(seconds is None for seconds, _ in known) else "" if all(exact for _, exact in known) else "~"
        return sign + words(total) + " + GPU" * gpu


def words(seconds: float) -> str:
    """0.1 s, 45 s, 12 min, 3.5 h, 12 d"""
    for limit, size, digits, unit in ((9.5, 1, 1, "s"), (90, 1, 0, "s"), (5400, 60, 0, "min"), (172_800, 3600, 1, "h")):
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86_400:,.0f} d"


def status(runs: list[Run], plan: dict[tuple[str, str], tuple[int, float]], at_once: int | None) -> str:
    """The overview."""
    estimate = Estimate(runs, plan)
    running = [run for run in runs if run.state == "running"]
    at_once = at_once or max(1, len(running))
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    line = "{:<30}" + "{:>9}" * len(STATES) + "{:>16}"
    rows = [line.format(f"{len(runs):,} runs", *STATES, "time left")]
    for name, members in [*((f"reproduce-{name}", members) for name, members in groups.items()), ("all", runs)]:
        counts = [sum(run.state == state for run in members) for state in STATES]
        rows.append(line.format(name, *counts, estimate.of(members, at_once)))
    if running:
        rows += ["", "running:"]
    for run in sorted(running, key=lambda run: str(run.log)):
        rows.append(
            f"  {run.log.parent.name}/{run.log.stem}: epoch {len(run.seconds) + 1} of {run.epochs or '?'}"
            + (f", {words(statistics.median(run.seconds))} an epoch" if run.seconds else "")
            + (f", {left} left" if (left := estimate.of([run])) else "")
        )
    rows.append("")
    if estimate.device:
        rows.append(
            f"Time left: as fast as on {estimate.device}, {at_once} at a time (~ scaled from other networks by their "
            "work, > without what nothing is known of, needs a GPU: more than half a day for one run on this CPU)."
        )
    failed = [run for run in runs if run.state == "failed"]
    if failed:
        rows.append(f"{len(failed)} failed: make failures")
    return "\n".join(rows)


def failures(runs: list[Run]) -> str:
    """The failed runs, those with the same message together."""
    same: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.state == "failed":
            same[run.failure.get("reason") or f"exit status {run.failure.get('status')}"].append(run)
    rows = [f"{sum(map(len, same.values()))} runs failed:"] if same else []
    for reason, members in same.items():
        rows += ["", f"{reason} ({len(members)})"]
        rows += [f"  {shlex.join(run.failure.get('command') or ['make', str(run.log)])}" for run in members]
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("status", "failures"), default="status")
    parser.add_argument("--at-once", type=int, metavar="N", help="runs at a time; default: as many as are running now")
    parser.add_argument(
        "--plan", type=Path, default=Path("results/reference/tables/plan.csv"), help="work of each network"
    )
    options = parser.parse_args(argv)
    if options.at_once is not None and options.at_once < 1:
        parser.error("--at-once must be 1 or more")
    try:
        runs = read_list(sys.stdin)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for run in runs:
        look(run)
    text = status(runs, read_plan(options.plan), options.at_once) if options.what == "status" else failures(runs)
    if text:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
