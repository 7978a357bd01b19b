"""Kill runs again and again, and see whether their logs come out as if nothing had happened.

    python tools/kill_test.py --kills 50 --data-dir data [--cifar-dir data] [--seed 0]

For each family of scripts a short real run is made once undisturbed. Then it is made again in another folder, killed with
SIGKILL, started again, killed again, at moments drawn from --seed: after a random time, or inside the run at the n-th step,
evaluation, log line, checkpoint write (with half of the file on the disk) or rename; after some kills the newest checkpoint is
cut in half, so that the one before it must serve. When a run is finished, its log is compared line by line, times aside, and
the next round begins, until there were enough kills. Writes results/robustness.md. Exit status: 0 all logs equal, 1 not.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# family, script, arguments, folder of its data below --data-dir (None: needs none). A new family is one more line.
CASES = (
    ("MNIST", "MNIST/optdigits.py", ("--epochs", "6", "--protocol", "corrected"), None),
    ("MNIST, restarts", "MNIST/optdigits.py", ("--network", "arch2", "--epochs", "3", "--limit", "600"), None),
    ("EMNIST", "EMNIST/emnist_digits.py", ("--epochs", "3", "--limit", "1500", "--head", "spinal"), "subset"),
    ("CIFAR", "CIFAR/cifar10.py", ("--network", "cnn", "--epochs", "3", "--limit", "200"), "cifar"),
    ("Regression", "Regression/synthetic_regression.py", ("--function", "sum", "--epochs", "30"), None),
    ("Regression, tables", "Regression/tabular.py", ("--demo", "diabetes", "--epochs", "25"), None),
    ("Transfer", "Transfer_Learning/tl_hymenoptera.py", ("--weights", "none", "--image-size", "32", "--epochs", "2", "--head", "fc",
                                                         "--workers", "0", "--limit", "40"), "."),
)
POINTS = {"time": 0, "step": 60, "evaluation": 8, "log line": 12, "checkpoint": 6, "rename": 12}  # and the largest n


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def child(point: str, count: int, script: str, arguments: list[str]) -> None:
    """Runs a script in this process, which kills itself at the `count`-th passage of `point`."""
    import torch
    left = [count]

    def counted(function, before: bool = True):
        def wrapper(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and before:
                die()
            result = function(*args, **kwargs)
            if left[0] == 0:
                die()
            return result
        return wrapper

    def torn(state, file, *rest, **kwargs):
        left[0] -= 1
        original_save(state, file, *rest, **kwargs)
        if left[0] == 0:
            file.flush()
            os.truncate(file.fileno(), os.fstat(file.fileno()).st_size // 2)
            die()

    original_save = torch.save
    if point == "step":
        torch.Tensor.backward = counted(torch.Tensor.backward, before=False)
    elif point == "evaluation":
        torch.nn.Module.eval = counted(torch.nn.Module.eval, before=False)
    elif point == "log line":
        os.fsync = counted(os.fsync)
    elif point == "checkpoint":
        torch.save = torn
    elif point == "rename":
        os.replace = counted(os.replace, before=count % 2 == 0)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def without_times(folder: Path) -> dict[str, list[dict]]:
    """Finished logs by name; empty if one is unfinished."""
    found = {}
    for path in sorted(folder.glob("logs/*/*")):
        if path.suffix != ".jsonl":
            continue
        found[path.name] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for record in found[path.name]:
            for key in ("seconds", "peak_memory_bytes"):
                record.pop(key, None)
            record.get("provenance", {}).pop("started", None)
    return found


def round_of(command: list[str], folder: Path, wanted: int, chance: random.Random, seconds: float) -> tuple[Counter, dict]:
    """Kills the run in `folder` up to `wanted` times and lets it end. Returns kills by point, and the logs."""
    kills: Counter = Counter()
    script, arguments = command[0], [*command[1:], "--results-dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while sum(kills[point] for point in POINTS) < wanted:
        point = chance.choice(list(POINTS))
        start = [sys.executable, __file__, "--child", point, str(chance.randint(1, POINTS[point] or 1)), script, *arguments] \
            if point != "time" else [sys.executable, script, *arguments]
        process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, text=True)
        if point == "time":
            try:
                process.wait(chance.uniform(0.4, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        errors = process.communicate()[1]
        if process.returncode == -signal.SIGKILL:
            kills[point] += 1
            newest = sorted(folder.glob("checkpoints/*/*.pt"), key=lambda path: path.stat().st_mtime)
            if newest and chance.random() < 0.25:
                target = next((path for path in newest if ".previous" not in path.name), newest[-1])
                os.truncate(target, target.stat().st_size // 2)
                kills["then a torn checkpoint"] += 1
        elif process.returncode:
            raise SystemExit(f"error: {script} ended with status {process.returncode}: {errors.strip()[-300:]}")
        else:
            break  # finished before the point was reached
    done = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
                          text=True)
    if done.returncode:
        raise SystemExit(f"error: {script} ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    left = [path.name for path in folder.rglob("*") if path.suffix in (".part", ".pt", ".tmp")]
    return kills, without_times(folder) if not left else {"left behind": left}


def processor() -> str:
    try:
        return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="real data; families without theirs are left out")
    parser.add_argument("--cifar-dir", type=Path, help="where CIFAR-10 is, if not in --data-dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="families by name")
    parser.add_argument("--output", type=Path, default=ROOT / "results/robustness.md")
    options = parser.parse_args(argv)
    chance, rows, equal, began = random.Random(options.seed), [], True, time.time()
    cases = []
    for family, script, arguments, data in CASES:
        folder = None if data is None else (options.cifar_dir or options.data_dir) if data == "cifar" else options.data_dir / data
        if options.only and family not in options.only:
            continue
        if folder is not None and not folder.is_dir():
            print(f"note: {family} is left out: {folder} is not there", file=sys.stderr)
            continue
        command = [str(ROOT / script), *arguments, "--device", "cpu", "--quiet"]
        cases.append((family, script, command + (["--data-dir", str(folder.resolve()), "--no-download"] if folder else [])))
    for number, (family, script, command) in enumerate(cases):
        wanted = options.kills // len(cases) + (number < options.kills % len(cases))
        kills, rounds = Counter(), 0
        with tempfile.TemporaryDirectory() as scratch:
            started = time.time()
            subprocess.run([sys.executable, *command, "--results-dir", f"{scratch}/whole"], check=True, stdout=subprocess.DEVNULL,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})
            seconds, whole, same = time.time() - started, without_times(Path(scratch, "whole")), True
            while sum(kills[point] for point in POINTS) < wanted and rounds < 5 * wanted:
                folder = Path(scratch, f"round{rounds}")
                fresh, logs = round_of(command, folder, min(6, wanted - sum(kills[point] for point in POINTS)), chance, seconds)
                kills, rounds, same = kills + fresh, rounds + 1, same and bool(whole) and logs == whole
                shutil.rmtree(folder)
        lines = sum(map(len, whole.values()))
        points = ", ".join(f"{kills[point]} {point}" for point in [*POINTS, "then a torn checkpoint"] if kills[point])
        rows.append(f"| {family} | `{Path(script).name}` | {sum(kills[point] for point in POINTS)} | {points} | {rounds} | {lines} | "
                    f"{'equal' if same else 'DIFFERENT'} |")
        print(rows[-1], flush=True)
        equal = equal and same
    total = sum(int(row.split("|")[3]) for row in rows)
    options.output.write_text(
        "# Robustness: killed runs\n\nMade by `python tools/kill_test.py`. A short real run of each family was killed with SIGKILL "
        "and started again until it ended;\nthen its logs were compared with those of an undisturbed run, line by line, times aside. "
        "Points: `time`, a random moment;\nthe others inside the run, at a random n-th passage: after a backward pass, at an "
        "evaluation, between writing and syncing a\nlog line, with half of a checkpoint on the disk, before or after a rename.\n\n"
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {processor()}, seed {options.seed}: {total} kills in {(time.time() - began) / 60:.0f} "
        "minutes.\n\n| Family | Script | Kills | At | Runs finished | Lines compared each | Logs |\n|---|---|---:|---|---:|---:|---|\n"
        + "\n".join(rows) + "\n", encoding="utf-8")
    return 0 if equal else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5:])
        sys.exit(0)
    sys.exit(main())
