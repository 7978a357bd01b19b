"""Submits what is missing to Slurm as job arrays: make -s list | python tools/slurm.py --launch "PYTHON"

Reads the lines of `make list`, leaves out runs that are done, running, or in the queue from an earlier call, and runs
whose data are not there; each of the others is one task of an array, longest first. A task that is preempted, requeued
or near its time limit (SLURM_FLAGS="--time=..."; it is told two minutes before) starts again and goes on after its last
saved epoch. Call it again whenever you like: only what is missing is submitted.

Written to results/slurm: NAME.tasks (a command a line), NAME.sh (the batch script), NAME-TASK.txt (what the task
printed). Exit status: 0 submitted or nothing to submit, 1 sbatch refused, 2 wrong use or no Slurm here.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from runs import Run, look, read_list

NAME = "spinalnet"
FOLDER = Path("results/slurm")
BATCH = """#!/bin/sh
#SBATCH --job-name={name} --comment="{tasks}" --array=0-{last}{at_once}
#SBATCH --requeue --open-mode=append --output="{stem}-%a.txt" --signal=B:USR1@120
#SBATCH --ntasks=1
# Near its time limit the task queues itself again, at most 100 times; SIGTERM goes to the run, which then ends within a
# step.
cd {root} || exit 2
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-${{SLURM_CPUS_PER_TASK:-1}}}}"
again() {{
    [ "${{SLURM_RESTART_COUNT:-0}}" -lt 100 ] && scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
}}
eval "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "{tasks}")" &
trap again USR1
trap 'kill -TERM $!' TERM
wait $!
status=$?
while kill -0 $! 2>/dev/null; do  # a signal ended the waiting, not the run
    wait $!
    status=$?
done
exit $status
"""


class Refused(Exception):
    """A program of Slurm did not do what it was asked."""


def ask(*command: str) -> str:
    """Output of a program of Slurm. Raises Refused."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"{command[0]}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def queued() -> set[str]:
    """The command lines of all our tasks that wait or run."""
    found = set()
    for line in ask("squeue", "--me", "--noheader", "--array", f"--name={NAME}", "--format=%K %k").splitlines():
        index, _, tasks = line.strip().partition(" ")
        try:
            found.add(Path(tasks).read_text(encoding="utf-8").splitlines()[int(index)])
        except (OSError, ValueError, IndexError):  # another folder's, or one that was removed
            continue
    return found


def largest_array() -> int:
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(match[1])) if match else 1000


def missing(runs: list[Run]) -> list[Run]:
    """Those that can run now; says what is left out."""
    states, without = Counter(), Counter()
    wanted = []
    for run in runs:
        look(run)
        states[run.state] += 1
        if run.state in ("done", "running"):
            continue
        if run.ready and not Path(run.ready).exists():
            without[run.ready] += 1
        else:
            wanted.append(run)
    print(f"{len(runs)} runs: " + ", ".join(f"{number} {state}" for state, number in states.items()))
    for ready, number in without.items():
        print(f"left out: {number} runs whose data are not there (make {ready})")
    return wanted


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--launch", required=True, metavar="COMMAND", help="what stands before each script, for instance a python"
    )
    parser.add_argument("--job", default=f"{shlex.quote(sys.executable)} tools/job.py", help="what notes failures")
    parser.add_argument("--flags", default="", help='for sbatch: "--partition=gpu --gpus=1 --time=24:00:00"')
    parser.add_argument(
        "--at-once", type=int, metavar="N", help="tasks of one array at a time; default: as many as Slurm starts"
    )
    parser.add_argument("--write-only", action="store_true", help="write the batch scripts, submit nothing")
    options = parser.parse_args(argv)
    if options.at_once is not None and options.at_once < 1:
        parser.error("--at-once must be 1 or more")
    if not options.write_only and not shutil.which("sbatch"):
        print(
            "error: there is no sbatch here: call this where Slurm is, or write the scripts only (--write-only)",
            file=sys.stderr,
        )
        return 2
    try:
        wanted = missing(read_list(sys.stdin))
        lines = [f"{options.job} {run.log} {options.launch} {run.command}" for run in wanted]
        size = 1000
        if not options.write_only:
            there, size = queued(), largest_array()
            if any(line in there for line in lines):
                print(f"left out: {sum(line in there for line in lines)} runs that are in the queue")
            lines = [line for line in lines if line not in there]
        stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        for number in range(0, len(lines), size):
            part, stem = lines[number : number + size], FOLDER / f"{stamp}-{number // size}"
            FOLDER.mkdir(parents=True, exist_ok=True)
            tasks = stem.with_suffix(".tasks").resolve()
            tasks.write_text("\n".join(part) + "\n", encoding="utf-8")
            script = stem.with_suffix(".sh")
            script.write_text(
                BATCH.format(
                    name=NAME,
                    last=len(part) - 1,
                    stem=stem.resolve(),
                    root=shlex.quote(str(Path.cwd())),
                    tasks=tasks,
                    at_once=f"%{options.at_once}" if options.at_once else "",
                )
            )
            said = (
                "written"
                if options.write_only
                else f"submitted as {ask('sbatch', '--parsable', *shlex.split(options.flags), str(script)).strip()}"
            )
            print(f"{script}: {len(part)} tasks, {said}")
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not lines:
        print("nothing to submit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
