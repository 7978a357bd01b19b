"""What is done, running, failed and waiting, and how long the rest takes: make list | runs.py

    status      a line for each group of rows, and one for each running run (the default)
    failures    the failed runs, each with its message and the command that repeats it
    plan        work and GPU-hours of each group, and of the sums that --sum names
    tasks       the command lines of the runs that can start now: --job JOB --launch PYTHON

`make list` prints a line for each run: its group, its log, the file that says that its data are
there, its command; lines that begin with # are remarks. A run is
  done      if its log is there, and whole,
  running   if tools/job.py runs it on this machine (NAME.running has its lock); started by hand, if
            it wrote within three of its epochs, or ten minutes before the first; on another
            machine, if it wrote within the last hour,
  failed    if tools/job.py has noted so since, or its log is damaged,
  stopped   if it is unfinished otherwise; it goes on when it is started again,
  no data   if fetching its data has failed,
  waiting   if none of these.
Time left: the epochs that a run still needs times the seconds that an epoch of the same network
took on the same device, in all logs of this results folder. The device is that of the log written
last. A network without such a log counts by its work (results/plan.csv) at the rate of the network
with a log that is nearest in work, and the time gets a `~`; a run that neither tells anything about
is not in it, and the time gets a `>`. On a CPU a run that would take more than half a day is not in
it either: it needs a GPU. The sum is divided by the number of runs at a time.
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
from dataclasses import dataclass, field
from pathlib import Path

from job import ENDED, failure_of, is_running, note_of, unfinished

ROOT = Path(__file__).resolve().parent.parent
STATES = ("done", "running", "failed", "stopped", "no data", "waiting")
TOO_LONG = 12 * 3600.0  # seconds of one run on a CPU
ASSUMED = 0.04  # PFLOP a second of a GPU that no log tells anything about
STARTING = 20.0  # seconds that a run takes at least: imports, data, kernels


@dataclass
class Run:
    """One line of `make list`, and what the results folder says of it."""

    group: str
    log: Path
    ready: str = ""
    command: str = ""
    state: str = ""
    start: dict = field(default_factory=dict)  # the first line of its log
    seconds: list[float] = field(default_factory=list)  # of its epochs
    ended: bool = False  # has its log a last line
    written: float = 0.0  # the time of its last line
    failure: dict = field(default_factory=dict)  # what tools/job.py noted

    @property
    def network(self) -> tuple[str, str]:
        """Script and network, the key of the plan."""
        return self.log.parent.name, self.log.name.split("-")[0]

    @property
    def name(self) -> str:
        return f"{self.log.parent.name}/{self.log.stem}"

    @property
    def epochs(self) -> int | None:
        return self.start.get("settings", {}).get("epochs")

    @property
    def device(self) -> str | None:
        return self.start.get("provenance", {}).get("device_name")

    @property
    def on_cpu(self) -> bool:
        return self.start.get("provenance", {}).get("device") == "cpu"


class Work:
    """Epochs and PFLOP of a run of each (script, network), as results/plan.csv has them."""

    def __init__(self, path: Path):
        self.epochs: dict[tuple[str, str], int] = {}
        self.pflop: dict[tuple[str, str], float] = {}
        if path.exists():
            with path.open(encoding="utf-8", newline="") as stream:
                for row in csv.DictReader(stream):
                    key = row["script"], row["network"]
                    self.epochs[key], self.pflop[key] = int(row["epochs"]), float(row["pflop"])


def read_list(lines: Iterable[str]) -> list[Run]:
    """The runs of `make list`. Raises ValueError."""
    runs = []
    for line in lines:
        if line.startswith("#"):
            continue
        parts = line.rstrip("\n").split("\t")
        if len(parts) != 4:
            raise ValueError(f"not a line of `make list`: {line.strip()[:80]!r}")
        runs.append(Run(parts[0], Path(parts[1]), parts[2], parts[3]))
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
            run.ended = record["event"] == "end"
    except (OSError, ValueError, KeyError, TypeError):
        run.ended = False


def read_failure(path: Path) -> dict:
    """What tools/job.py noted there; empty if nothing."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"reason": f"{path} cannot be read"}


# ---- States of runs ------------------------------------------------------------------------------
def age(path: Path) -> float:
    """Seconds since it was last written; infinite where it is not there."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf


def alive(run: Run) -> bool:
    """Does somebody write this log? Where tools/job.py cannot say, the age of its files does."""
    here = is_running(run.log)
    if here is not None:
        return here
    part, note = unfinished(run.log), note_of(run.log)
    patience = 600.0
    if run.seconds:
        patience = max(60.0, 3 * max(run.seconds))
    if age(part) < patience:
        return True
    if not note.exists() or note.read_text(encoding="utf-8", errors="replace") == ENDED:
        return False
    return min(age(part), age(note)) < max(3600.0, patience)  # on another machine


def look(run: Run) -> None:
    """Sets the run's state, and reads its log."""
    part = unfinished(run.log)
    if run.log.exists():
        read_log(run, run.log)
        run.state = "done" if run.ended else "failed"
        reason = f"{run.log} is damaged: delete it, and make runs it again"
        run.failure = {} if run.ended else {"reason": reason, "command": ["rm", str(run.log)]}
        return
    if part.exists():
        read_log(run, part)
    run.failure = read_failure(failure_of(run.log))
    if alive(run):
        run.state = "running"
    elif run.failure:
        run.state = "failed"
    elif part.exists():
        run.state = "stopped"
    elif fetch_failure(run):
        run.state = "no data"
    else:
        run.state = "waiting"


def fetch_failure(run: Run) -> dict:
    """Why its data are not there; empty if they are, or nobody has tried to fetch them."""
    if not run.ready or Path(run.ready).exists():
        return {}
    return read_failure(failure_of(Path(run.ready)))


# ---- Time ----------------------------------------------------------------------------------------
def words(seconds: float) -> str:
    """0.1 s, 45 s, 12 min, 3.5 h, 12 d"""
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:,.0f} d"


def timed(runs: list[Run], folders: Iterable[Path]) -> list[Run]:
    """Runs that have epochs: of the list, and others here that differ from rows by epochs only."""
    listed = {run.log for run in runs}
    others = []
    for folder in folders:
        for path in sorted(folder.glob("*.jsonl")):
            if path not in listed:
                other = Run("", path)
                read_log(other, path)
                others.append(other)
    found = [run for run in runs if run.seconds and run.device]
    for run in others:
        official = run.start.get("data", {}).get("official")
        if run.seconds and run.device and official and set(run.start["departures"]) <= {"epochs"}:
            found.append(run)
    return found


class Estimate:
    """Seconds that runs take, from what the logs of one device say."""

    def __init__(self, started: list[Run], work: Work):
        self.work = work
        last = max(started, key=lambda run: run.written, default=Run("", Path("none")))
        self.device, self.cpu = last.device, last.on_cpu
        epochs = defaultdict(list)
        numbers = dict(work.epochs)
        for run in started:
            if run.device == self.device:
                epochs[run.network].append(statistics.median(run.seconds))
                if run.epochs and not run.start.get("departures"):
                    numbers[run.network] = run.epochs
        self.epoch = {key: statistics.median(all_) for key, all_ in epochs.items()}
        self.run = {key: x * numbers[key] for key, x in self.epoch.items() if key in numbers}

    def whole(self, network: tuple[str, str]) -> tuple[float | None, bool]:
        """Seconds of a whole run, None if nothing is known; and whether they are measured."""
        if network in self.run:
            return self.run[network], True
        pflop = self.work.pflop
        measured = [other for other in self.run if other in pflop]
        if not measured or network not in pflop:
            return None, False
        near = min(measured, key=lambda other: abs(math.log(pflop[other] / pflop[network])))
        return self.run[near] / pflop[near] * pflop[network], False

    def left(self, run: Run) -> tuple[float | None, bool]:
        """The same for what is left of this run."""
        epochs = run.epochs or self.work.epochs.get(run.network)
        if run.state == "running" and run.seconds and epochs and run.device == self.device:
            return (epochs - len(run.seconds)) * statistics.median(run.seconds), True
        seconds, measured = self.whole(run.network)
        if seconds is not None and epochs:
            seconds *= 1 - len(run.seconds) / epochs
        return seconds, measured

    def needs_gpu(self, run: Run) -> bool:
        """Is this CPU too slow for it? A run that runs has been started on purpose."""
        seconds, _ = self.whole(run.network)
        return self.cpu and run.state != "running" and (seconds or 0.0) > TOO_LONG

    def of(self, runs: Iterable[Run], at_once: int = 1) -> str:
        """What is left of all these runs, as words."""
        left = [run for run in runs if run.state != "done"]
        known = [self.left(run) for run in left if not self.needs_gpu(run)]
        gpu = len(known) < len(left)
        if not any(seconds for seconds, _ in known):
            return "needs a GPU" if gpu else "?" if left else ""
        sign = ""
        if any(seconds is None for seconds, _ in known):
            sign = ">"
        elif not all(measured for _, measured in known):
            sign = "~"
        total = sum(seconds or 0.0 for seconds, _ in known) / at_once
        return sign + words(total) + (" + GPU" if gpu else "")


# ---- What is printed -----------------------------------------------------------------------------
def by_group(runs: list[Run]) -> dict[str, list[Run]]:
    groups = defaultdict(list)
    for run in runs:
        groups[run.group].append(run)
    return groups


def table(runs: list[Run], estimate: Estimate, at_once: int) -> list[str]:
    """A line for each group."""
    line = "{:<21}{:>6}{:>8}{:>7}{:>8}{:>8}{:>8}{:>14}"
    rows = [line.format(f"{len(runs):,} runs", *STATES, "time left")]
    for name, members in [*by_group(runs).items(), ("all", runs)]:
        counts = [sum(run.state == state for run in members) for state in STATES]
        rows.append(line.format(name, *counts, estimate.of(members, at_once)))
    return rows


def running_line(run: Run, estimate: Estimate) -> str:
    """Where a running run is."""
    text = f"  {run.name}: epoch {len(run.seconds) + 1}"
    epochs = run.epochs or estimate.work.epochs.get(run.network)
    if epochs:
        text += f" of {epochs}"
    if run.seconds:
        text += f", {words(statistics.median(run.seconds))} an epoch"
    left = estimate.of([run])
    return text if left == "?" else f"{text}, {left} left"


def status(runs: list[Run], work: Work, at_once: int | None) -> str:
    """The overview."""
    folders = sorted({run.log.parent for run in runs})
    estimate = Estimate(timed(runs, folders), work)
    running = sorted((run for run in runs if run.state == "running"), key=lambda run: run.name)
    at_once = at_once or max(1, len(running))
    rows = table(runs, estimate, at_once)
    if running:
        rows += ["", "running:", *(running_line(run, estimate) for run in running)]
    if estimate.device:
        rows += [
            "",
            f"Time left: as fast as on {estimate.device}, {at_once} at a time (~ scaled from other",
            "networks by their work, > without what nothing is known of, needs a GPU: more than",
            "half a day for one run on this CPU).",
        ]
    failed = sum(run.state == "failed" for run in runs)
    without = sum(run.state == "no data" for run in runs)
    if failed or without:
        rows += ["", f"{failed} failed, {without} have no data: make failures"]
    return "\n".join(rows)


def failures(runs: list[Run]) -> str:
    """Failed fetches and failed runs, those with the same message together."""
    same, fetches, waiting = defaultdict(list), {}, defaultdict(int)
    for run in runs:
        if run.state == "failed":
            reason = run.failure.get("reason") or f"exit status {run.failure.get('status')}"
            same[reason].append(run)
        elif run.state == "no data":
            fetches[run.ready] = fetch_failure(run)
            waiting[run.ready] += 1
    rows = []
    if fetches:
        rows.append(f"{sum(waiting.values())} runs have no data:")
    for ready, failure in fetches.items():
        command = shlex.join(failure.get("command") or ["make", ready])
        rows += ["", f"{failure.get('reason')} ({waiting[ready]})", f"  {command}"]
    if same:
        rows += [""] if rows else []
        rows.append(f"{sum(map(len, same.values()))} runs failed:")
    for reason, members in same.items():
        rows += ["", f"{reason} ({len(members)})"]
        for run in members:
            rows.append(f"  {shlex.join(run.failure.get('command') or ['make', str(run.log)])}")
    return "\n".join(rows)


def plan(runs: list[Run], work: Work, sums: dict[str, list[str]]) -> str:
    """Work and GPU-hours of groups, as if no run were done."""
    folders = {run.log.parent for run in runs}
    folders |= {ROOT / "results/reference/logs" / folder.name for folder in folders}
    started = [run for run in timed(runs, sorted(folders)) if not run.on_cpu]
    estimate = Estimate(started, work)
    parts = {name: [run for run in runs if run.group in sums[name]] for name in sums}
    line = "{:<21}{:>7}{:>12}{:>12}  {}"
    rows = [line.format("", "runs", "EFLOP", "GPU-hours", "of these hours")]
    for name, members in [*by_group(runs).items(), *parts.items()]:
        if not members:
            continue
        pflop = sum(work.pflop.get(run.network, 0.0) for run in members)
        hours = defaultdict(float)
        for run in members:
            seconds, measured = estimate.whole(run.network)
            kind = "measured" if measured else "scaled"
            if seconds is None:
                kind = "assumed" if run.network in work.pflop else "unknown"
                seconds = STARTING + work.pflop.get(run.network, 0.0) / ASSUMED
            hours[kind] += seconds / 3600
        total = sum(hours.values())
        shares = [f"{100 * part / total:.0f} % {kind}" for kind, part in hours.items()]
        rows.append(
            line.format(
                name, len(members), f"{pflop / 1e3:,.4f}", f"{total:,.1f}", ", ".join(shares)
            )
        )
    device = f"as fast as on {estimate.device}" if estimate.device else "no run on a GPU so far"
    rows += [
        "",
        "An estimate. EFLOP: 1e18 operations, counted (results/costs.csv) for every image of",
        "every epoch, training three times the forward pass.",
        f"Measured: {device}. Scaled: from those, by the work.",
        f"Assumed: {1000 * ASSUMED:.0f} TFLOP a second, what VGG-5 may reach on an H100 with TF32",
        f"convolutions, and {STARTING:.0f} s to start. Several runs can share a GPU: JOBS_PER_GPU.",
    ]
    return "\n".join(rows)


def tasks(runs: list[Run], job: str, launch: str) -> str:
    """Command lines of what can start now. Says on stderr what is left out."""
    lines, without = [], defaultdict(int)
    for run in runs:
        if run.state in ("done", "running"):
            continue
        if run.ready and not Path(run.ready).exists():
            without[run.ready] += 1
            continue
        lines.append(f"{job} {run.log} -- {launch} {run.command}")
    for ready, number in without.items():
        text = f"left out: {number} runs whose data are not there (make {ready})"
        print(text, file=sys.stderr)
    return "\n".join(lines)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. A mistake ends the process with status 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    kinds = ("status", "failures", "plan", "tasks")
    add("what", nargs="?", choices=kinds, default="status")
    add("--at-once", type=int, metavar="N", help="runs at a time; default: as many as run now")
    add("--plan", type=Path, default=Path("results/plan.csv"), help="work of each network")
    add("--sum", nargs="*", default=[], metavar="NAME=GROUP,GROUP", help="also in the plan")
    add("--job", default="python3 tools/job.py", help="of tasks: what notes failures")
    add("--launch", default="python", help="of tasks: what stands before each script")
    options = parser.parse_args(argv)
    if options.at_once is not None and options.at_once < 1:
        parser.error("--at-once must be 1 or more")
    return options


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 2 if the input is no list."""
    options = parse_arguments(argv)
    try:
        runs = read_list(sys.stdin)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for run in runs:
        look(run)
    work = Work(options.plan)
    if options.what == "status":
        text = status(runs, work, options.at_once)
    elif options.what == "failures":
        text = failures(runs)
    elif options.what == "plan":
        sums = {}
        for part in options.sum:
            name, _, groups = part.partition("=")
            sums[name] = groups.split(",")
        text = plan(runs, work, sums)
    else:
        text = tasks(runs, options.job, options.launch)
    if text:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
