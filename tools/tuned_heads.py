"""Does a Spinal head buy anything for its parameters? The small CNN, each head tuned alike.

    python tools/tuned_heads.py plan                          what will be run, in this order
    python tools/tuned_heads.py run RESULTS --data DATA       what is missing: 5 to 7 core hours

This experiment is ours, not the paper's. The plan below was committed before the first of its runs;
results/tuned_heads.md tells it in words. Tuning: each head trains with each dropout and each rate,
with two seeds, and the setting with the highest mean accuracy on the 5,000 held-out training images
is its best (of equal ones: the lower dropout, then the lower rate). Final: each head trains with
its best setting and fresh seeds. No choice looks at a test image. Every run is an ordinary one of
MNIST/mnist.py or MNIST/fashion_mnist.py with --protocol corrected, so that their logs are ordinary,
too, and a run that was interrupted goes on where it stopped. A round is one seed of the primary
heads on both sets; rounds are run in blocks, so that whole rounds are there at any time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETS = {"mnist": "MNIST/mnist.py", "fashion_mnist": "MNIST/fashion_mnist.py"}
HEADS = {  # flags of the scripts; FC 26 has as many parameters as Spinal 6 x 8 (78 more)
    "fc": ["--head", "fc"],
    "fc26": ["--head", "fc", "--width", "26"],
    "spinal6x8": ["--head", "spinal"],
    "spinal6x10": ["--head", "spinal", "--width", "10"],
}
PRIMARY_HEADS = ["fc", "fc26", "spinal6x8"]
DROPOUTS = [0.0, 0.25]
RATES = [0.01, 0.03, 0.1]
ROW = (0.0, 0.01)  # dropout and rate of the scripts' own recipe, which log names leave out
TUNING_SEEDS = range(100, 102)
FINAL_SEEDS = range(200, 230)
BLOCK = 5  # final seeds of one process
FEWEST_ROUNDS = 20  # with fewer the primary family is not evaluated


@dataclasses.dataclass(frozen=True)
class Task:
    """Runs of one head on one set with one setting, in one process."""

    dataset: str
    head: str
    dropout: float
    rate: float
    seeds: tuple[int, ...]

    def logs(self, results: Path) -> list[Path]:
        """One for each seed."""
        marks = ""
        if self.rate != ROW[1]:
            marks += f"-lr{self.rate}"
        if self.dropout != ROW[0]:
            marks += f"-drop{self.dropout}"
        name = f"cnn-{self.head}-corrected{marks}"
        return [results / "logs" / self.dataset / f"{name}-s{seed}.jsonl" for seed in self.seeds]

    def command(self, results: Path, data: Path) -> list[str]:
        """The command line that makes these logs."""
        command = [sys.executable, SETS[self.dataset], *HEADS[self.head]]
        command += ["--protocol", "corrected", "--no-download", "--quiet", "--device", "cpu"]
        command += ["--fc-dropout", str(self.dropout), "--lr", str(self.rate)]
        command += ["--seed", str(self.seeds[0]), "--runs", str(len(self.seeds))]
        return [*command, "--data-dir", str(data), "--results-dir", str(results)]


def tuning_tasks(heads: list[str]) -> list[Task]:
    return [
        Task(dataset, head, dropout, rate, tuple(TUNING_SEEDS))
        for dataset in SETS
        for dropout in DROPOUTS
        for rate in RATES
        for head in heads
    ]


def heldout_accuracy(log: Path) -> float:
    """Of the epoch that the run reports, in per cent. Raises ValueError if the log is unfinished"""
    end = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    if end["event"] != "end":
        raise ValueError(f"{log} is not finished")
    return end["best_heldout_accuracy_pct"] if end["outcome"] == "finished" else 0.0


def choose(scores: dict[tuple[float, float], float]) -> tuple[float, float]:
    """The (dropout, rate) with the highest mean held-out accuracy; of equal ones the lower ones."""
    # Six digits, so that equal counts of right images are equal scores.
    return max(scores, key=lambda setting: (round(scores[setting], 6), -setting[0], -setting[1]))


def best_setting(results: Path, dataset: str, head: str) -> tuple[float, float]:
    """Dropout and rate that the finished tuning runs choose."""
    scores = {}
    for dropout in DROPOUTS:
        for rate in RATES:
            logs = Task(dataset, head, dropout, rate, tuple(TUNING_SEEDS)).logs(results)
            scores[dropout, rate] = statistics.mean(map(heldout_accuracy, logs))
    return choose(scores)


def final_tasks(results: Path, heads: list[str]) -> list[Task]:
    """Whole blocks of rounds, one after the other; all tuning runs of these heads must be there."""
    best = {(name, head): best_setting(results, name, head) for name in SETS for head in heads}
    seeds = list(FINAL_SEEDS)
    blocks = [tuple(seeds[k : k + BLOCK]) for k in range(0, len(seeds), BLOCK)]
    return [
        Task(dataset, head, *best[dataset, head], block)
        for block in blocks
        for dataset in SETS
        for head in heads
    ]


def missing(tasks: list[Task], results: Path) -> list[Task]:
    return [task for task in tasks if not all(log.exists() for log in task.logs(results))]


def perform(tasks: list[Task], results: Path, data: Path, jobs: int) -> bool:
    """Runs what is missing, so many processes at once. Returns whether all of them succeeded.

    After a failure, or Ctrl-C, no other one is started.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    tasks = missing(tasks, results)

    def work(task: Task) -> int:
        began = time.monotonic()
        command = task.command(results, data)
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        print(f"{len(task.seeds)} runs in {time.monotonic() - began:.0f} s", flush=True)
        return status

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return not any(pool.map(work, tasks))  # a map that is left early cancels what waits


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a run failed, 130 stopped by Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="verb", required=True)
    commands.add_parser("plan")
    run = commands.add_parser("run")
    run.add_argument("results", type=Path)
    run.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    run.add_argument("--jobs", type=int, default=2, help="processes at once; default: 2")
    arguments = parser.parse_args(argv)
    others = [head for head in HEADS if head not in PRIMARY_HEADS]
    if arguments.verb == "plan":
        for heads in (PRIMARY_HEADS, others):
            tuned = len(tuning_tasks(heads)) * len(TUNING_SEEDS)
            final = len(SETS) * len(heads) * len(FINAL_SEEDS)
            print(f"{', '.join(heads)}: {tuned} runs to tune, then {final} final ones")
        return 0
    results, data = arguments.results.expanduser().resolve(), arguments.data.expanduser().resolve()
    try:
        for heads in (PRIMARY_HEADS, others):
            for tasks in (tuning_tasks, lambda heads: final_tasks(results, heads)):
                if not perform(tasks(heads), results, data, arguments.jobs):
                    print("error: a run failed; the same command goes on", file=sys.stderr)
                    return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
