"""Kill runs, start them again until they end, and compare their logs with those of uninterrupted runs, line for line.

    python tools/kill_test.py                  50 kills at random moments, and one at each exact point of each command
    python tools/kill_test.py --random 0       only the exact points

Each command below is a short real run of one family of scripts, on small images made up here. It is started through this file,
in a fresh interpreter for the random kills, else as a copy (fork) of this process, which has imported all and trained nothing,
which marks in shared memory what the run is doing, so that it is known what a kill at a random moment hit; and which at an
exact point kills the run from within, with SIGKILL. A last round measures how long SIGTERM and Ctrl-C (SIGINT) take. Times
(`seconds`, `started`, `peak_memory_bytes`) are left out of the comparison. The result is a table; --report FILE also writes it.

Exit status: 0 all logs equal, 1 a log differs or a run ended in another way than it should, 2 wrong use.
"""
from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import itertools
import json
import mmap
import multiprocessing
import os
import pickle
import platform
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: sums of another number of threads differ in their last bit
ROOT = Path(__file__).resolve().parent.parent
FAMILIES = {  # name: script, its arguments, what makes its data; another family is one more line
    "MNIST": ("MNIST/optdigits.py", "--head both --protocol corrected --epochs 8", None),
    "MNIST, rate rule that renews": ("MNIST/mnist.py", "--network arch2 --epochs 106 --batch-size 20", "idx"),
    "EMNIST": ("EMNIST/emnist_digits.py", "--head both --epochs 8", "idx"),
    "CIFAR": ("CIFAR/cifar10.py", "--head spinal --protocol corrected --epochs 6 --batch-size 20", "pickle"),
    "Regression": ("Regression/synthetic_regression.py", "--function sinsum --epochs 40", None),
    "Regression, tables": ("Regression/tabular.py", "--demo diabetes --epochs 40", None),
    "Transfer learning": ("Transfer_Learning/tl_hymenoptera.py",
                          "--weights none --image-size 32 --epochs 8 --head spinal --workers 0 --batch-size 8", "photos"),
}
POINTS = {  # name: (what is counted, at which number of it a fresh process is killed)
    "after a training step, within an epoch": ("step", 3),
    "after an evaluation, before its line": ("evaluation", 2),
    "half a log line written": ("half line", 3),
    "line written, no checkpoint yet": ("line", 3),
    "half a checkpoint written": ("half checkpoint", 2),
    "checkpoint written, not yet renamed": ("checkpoint", 2),
    "between the two renamings": ("previous", 1),
    "checkpoint renamed": ("renamed", 2),
    "last line written, log not yet renamed": ("last line", 1),
    "log renamed, checkpoint not yet removed": ("finished", 1),
}
PHASES = ("starting", "training", "evaluation", "writing a log line", "writing a checkpoint", "in between")


# ---- In the process that is killed -----------------------------------------------------------------------------------------
@functools.cache
def load(script: str):
    """The script as a module."""
    name = "killed_" + Path(script).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / script)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Watch:
    """Marks what the run is doing in a byte that the other process sees, and kills this process at the wanted point."""

    def __init__(self, shared: Path, counted: str, number: int):
        with open(shared, "r+b") as file:
            self.byte = mmap.mmap(file.fileno(), 1)
        self.counted, self.left = counted, number

    def point(self, name: str) -> None:
        if name == self.counted:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)

    def during(self, phase: str, function, then: str = ""):
        """`function`, marked as this phase, with a point after it."""
        @functools.wraps(function)
        def watched(*args, **keywords):
            before, self.byte[0] = self.byte[0], PHASES.index(phase)
            try:
                result = function(*args, **keywords)
                self.point(then)
                return result
            finally:
                self.byte[0] = before
        return watched


class HalfWriter:
    """A file, with a point in the middle of each write."""

    def __init__(self, file, watch: Watch, name: str):
        self.file, self.watch, self.name = file, watch, name

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content) -> int:
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        self.watch.point(self.name)
        self.file.write(content[half:])
        return len(content)


def run_watched(shared: Path, counted: str, number: int, script: str, argv: list[str]) -> int:
    """The script's main, watched. Its exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    watch = Watch(shared, counted, number)
    module = load(script)
    import torch

    if hasattr(module, "ArraysOnly"):  # CIFAR: its checksums are those of the official files; take ours for official
        place, real = Path(argv[argv.index("--data-dir") + 1]) / module.SOURCE.base_folder, module.SOURCE
        lists = {key: [[name, hashlib.md5((place / name).read_bytes()).hexdigest()] for name, _ in getattr(real, key)]
                 for key in ("train_list", "test_list")}
        module.SOURCE = type("Small", (real,), lists)
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        optimizer.step = watch.during("training", optimizer.step, "step")
    for place, name, phase, point in ((module.Run, "train_epoch", "training", ""), (module.Run, "one_epoch", "training", ""),
                                      (module, "evaluate", "evaluation", "evaluation"),
                                      (module, "mean_squared_error", "evaluation", "evaluation"),
                                      (module, "errors", "evaluation", "evaluation")):
        if hasattr(place, name):
            setattr(place, name, watch.during(phase, getattr(place, name), point))
    write, save, replace = module.RunLog.write, module.Checkpoint.save, os.replace

    def write_line(log, record):
        write(log, record)
        watch.point("last line" if record["event"] == "end" else "line")

    def save_now(checkpoint, state):
        if counted:
            checkpoint.cost = 0.0  # after every epoch, so that the exact points are reached
        save(checkpoint, state)

    def rename(old, new):
        if Path(old).suffix == ".tmp":
            watch.point("checkpoint")
        replace(old, new)
        watch.point({".tmp": "renamed", ".pt": "previous", ".part": "finished"}.get(Path(old).suffix, ""))

    def open_halfway(path, *arguments, **keywords):
        kind = {".part": "half line", ".tmp": "half checkpoint"}.get(Path(path).suffix)
        file = open(path, *arguments, **keywords)
        return HalfWriter(file, watch, kind) if kind else file

    module.RunLog.write = watch.during("writing a log line", write_line)
    module.Checkpoint.save = watch.during("writing a checkpoint", save_now)
    module.open, os.replace = open_halfway, rename
    opened = module.RunLog.open

    def open_log(log, *arguments):
        watch.byte[0] = PHASES.index("in between")
        return opened(log, *arguments)

    module.RunLog.open = open_log
    return module.main(argv)


# ---- In the process that kills ---------------------------------------------------------------------------------------------
def make_data(kind: str | None, folder: Path) -> None:
    """Small files in the formats of MNIST and EMNIST (idx), CIFAR (pickle) or folders of photographs, always the same."""
    import numpy
    rng = numpy.random.default_rng(0)
    if kind == "idx":
        for raw, parts in (("MNIST", ("train", "t10k")), ("EMNIST", ("emnist-digits-train", "emnist-digits-test"))):
            (folder / raw / "raw").mkdir(parents=True)
            for part, count in zip(parts, (40, 20) if raw == "MNIST" else (1_200, 200)):
                images, labels = rng.integers(0, 256, (count, 28, 28), dtype="u1"), numpy.arange(count) % 10
                for name, array, magic in (("images-idx3", images, 2051), ("labels-idx1", labels, 2049)):
                    header = struct.pack(f">{1 + array.ndim}I", magic, *array.shape)
                    (folder / raw / "raw" / f"{part}-{name}-ubyte").write_bytes(header + array.astype("u1").tobytes())
    elif kind == "pickle":
        (folder / "cifar-10-batches-py").mkdir(parents=True)
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
            batch = {"data": rng.integers(0, 256, (16, 3072), dtype="u1"), "labels": rng.integers(0, 10, 16).tolist()}
            (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, protocol=2))
    elif kind == "photos":
        from PIL import Image
        for part, count in (("train", 16), ("val", 4)):
            for name in ("ants", "bees"):
                place = folder / "hymenoptera_data" / part / name
                place.mkdir(parents=True)
                for number in range(count):
                    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype="u1")).save(place / f"{number}.jpg")


class Process:
    """A started run: a fresh interpreter, or with `fork` a copy of this process, which has imported everything."""

    def __init__(self, family: str, folder: Path, point: str | None, fork: bool):
        script, arguments, kind = FAMILIES[family]
        counted, number = POINTS[point] if point else ("", 0)
        data = folder.parent / "data"
        if kind and not data.exists():
            make_data(kind, data)
        folder.mkdir(parents=True, exist_ok=True)
        self.shared, self.output = folder / "phase", folder / "output.txt"
        self.shared.write_bytes(b"\0")
        argv = [*arguments.split(), "--results-dir", str(folder), "--device", "cpu"]
        argv += ["--data-dir", str(data), "--no-download"] if kind else []
        if fork:
            load(script)

            def work():
                for stream in (1, 2):
                    os.dup2(os.open(self.output, os.O_CREAT | os.O_APPEND | os.O_WRONLY), stream)
                code = run_watched(self.shared, counted, number, script, argv)
                os._exit(code)

            self.process = multiprocessing.get_context("fork").Process(target=work)
            self.process.start()
            self.wait = lambda: (self.process.join(), self.process.exitcode)[1]
            self.running = self.process.is_alive
        else:
            command = [sys.executable, __file__, "run", str(self.shared), counted, str(number), script, *argv]
            with open(self.output, "a") as output:
                self.process = subprocess.Popen(command, stdout=output, stderr=output)
            self.wait = self.process.wait
            self.running = lambda: self.process.poll() is None

    def phase(self) -> str:
        return PHASES[self.shared.read_bytes()[0]]

    def begun(self) -> bool:
        """Waits until the run has left its start behind, or has ended; false in the second case."""
        while self.running() and self.phase() == "starting":
            time.sleep(0.002)
        return self.running()

    def send(self, stop: int) -> None:
        if self.running():
            os.kill(self.process.pid, stop)


class Failed(Exception):
    """A run ended in another way than it should."""


def logs_of(folder: Path) -> dict[str, list[dict]]:
    """The finished logs without their times."""
    logs = {}
    for path in sorted(folder.rglob("*.jsonl")):
        logs[path.name] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for record in logs[path.name]:
            for key in ("seconds", "peak_memory_bytes"):
                record.pop(key, None)
            record.get("provenance", {}).pop("started", None)
    return logs


class Trial:
    """All that is done to the command of one family."""

    def __init__(self, family: str, root: Path, fork: bool):
        self.family, self.root, self.fork, self.folders = family, root, fork, 0
        self.hit, self.points, self.torn, self.runs, self.lines, self.differing = Counter(), 0, 0, 0, 0, []
        self.latency: dict[int, list[float]] = {signal.SIGTERM: [], signal.SIGINT: []}
        process = Process(family, root / "uninterrupted", None, True)
        process.begun()
        began = time.monotonic()
        self.expect(process, 0)
        self.seconds, self.expected = time.monotonic() - began, logs_of(root / "uninterrupted")

    def start(self, point: str | None = None, fork: bool = True) -> Process:
        return Process(self.family, self.root / f"run{self.folders}", point, fork)

    def expect(self, process: Process, wanted: int) -> None:
        code = process.wait()
        if code != wanted:
            raise Failed(f"{self.family}: exit status {code} instead of {wanted}:\n{process.output.read_text()[-3000:]}")

    def finish(self) -> None:
        """Starts the command once more, lets it end, and compares."""
        self.expect(self.start(), 0)
        folder = self.root / f"run{self.folders}"
        logs = logs_of(folder)
        left = [path.name for path in folder.rglob("*") if path.suffix in (".pt", ".tmp", ".part", ".pid")]
        if set(logs) != set(self.expected) or left:
            raise Failed(f"{self.family}: the logs are {sorted(logs)}, and {left} is left over")
        self.runs, self.folders = self.runs + 1, self.folders + 1
        for name, lines in logs.items():
            self.lines += len(lines)
            pairs = enumerate(zip(lines, self.expected[name]), 1)
            self.differing += [f"{folder.name}/{name}:{number}" for number, (ours, wanted) in pairs if ours != wanted]
            if len(lines) != len(self.expected[name]):
                self.differing.append(f"{folder.name}/{name}: {len(lines)} lines")

    def kill_at_random(self, kills: int, chance: random.Random) -> None:
        """At most five a run, then it may end. One in ten while the interpreter starts; of the others every second one at
        once, and the next ones as soon as the run is in one of the phases in turn, most of which are too short for chance."""
        phases = itertools.cycle([None, "evaluation", None, "writing a log line", None, "writing a checkpoint"])
        while kills:
            for _ in range(5):
                process = self.start(fork=self.fork)
                if chance.random() < 0.1:
                    time.sleep(chance.random())
                elif process.begun():
                    time.sleep(chance.random() * self.seconds)
                    wanted = next(phases)
                    while wanted and process.running() and process.phase() != wanted:
                        time.sleep(0.0002)
                    time.sleep(chance.random() * 0.001)
                process.send(signal.SIGKILL)
                if process.wait() == -signal.SIGKILL:  # 0: it had ended before
                    self.hit[process.phase()] += 1
                    kills -= 1
                    self.tear(chance)
                if not kills:
                    break
            self.finish()

    def tear(self, chance: random.Random) -> None:
        """After one kill in three the newest checkpoints lose their ends, as after a power failure."""
        for path in (self.root / f"run{self.folders}").glob("checkpoints/*/*.pt"):
            if not path.name.endswith(".previous.pt") and chance.random() < 1 / 3:
                os.truncate(path, int(path.stat().st_size * chance.random()))
                self.torn += 1

    def kill_at_points(self, points: list[str]) -> None:
        """Two a run, so that each process has enough of the run before it."""
        for at in range(0, len(points), 2):
            for point in points[at : at + 2]:
                self.expect(self.start(point), -signal.SIGKILL)  # also says whether the point was reached
                self.points += 1
            self.finish()

    def signals(self, chance: random.Random, times: int) -> None:
        for stop, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)) * times:
            process = self.start()
            if not process.begun():
                raise Failed(f"{self.family}: it ended before it could be stopped")
            time.sleep(chance.random() * self.seconds / 2)
            began = time.monotonic()
            process.send(stop)
            self.expect(process, status)
            self.latency[stop].append(time.monotonic() - began)
            self.finish()


# ---- Report ----------------------------------------------------------------------------------------------------------------
def machine() -> str:
    """Processor, cores, versions, revision."""
    import torch
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        name = (models or [name])[0]
    git = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return (f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
            f"torch {torch.__version__}, revision {git.stdout.strip()}, {time.strftime('%Y-%m-%d', time.gmtime())}")


def report(trials: list[Trial], command: str, seconds: float) -> str:
    """Markdown."""
    hit = sum((trial.hit for trial in trials), Counter())
    rows = ["| command | random kills | exact points | runs | log lines compared | lines that differ | SIGTERM, slowest "
            "| Ctrl-C, slowest |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for trial in trials:
        slowest = [f"{max(values):.2f} s of {len(values)}" if values else "-" for values in trial.latency.values()]
        script, arguments, _ = FAMILIES[trial.family]
        rows.append(f"| `{Path(script).name} {arguments}` | {sum(trial.hit.values())} | {trial.points} | {trial.runs} | "
                    f"{trial.lines:,} | {len(trial.differing)} | {' | '.join(slowest)} |")
    rows.append(f"| all | {hit.total()} | {sum(t.points for t in trials)} | {sum(t.runs for t in trials)} | "
                f"{sum(t.lines for t in trials):,} | {sum(len(t.differing) for t in trials)} | | |")
    return "\n".join([
        "# Runs that are killed", "", f"Made by `{command}` in {seconds / 60:.0f} minutes on {machine()}.", "", *rows, "",
        "Random kills (SIGKILL) hit these moments: " + ", ".join(f"{phase} {hit[phase]}" for phase in PHASES) + ".",
        f"After these kills {sum(trial.torn for trial in trials)} checkpoints were cut; the ones before them had to serve.",
        "Exact points, each in a process of its own: " + "; ".join(POINTS) + ".",
        "SIGTERM and Ctrl-C: seconds from the signal to the end of the process, exit status 143 and 130 each time. Every run "
        "that was stopped was started again until it ended; its logs, times aside, were compared with those of an "
        "uninterrupted run.", ""])


def main(argv: list[str] | None = None) -> int:
    """Exit status: see above."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["run"]:
        return run_watched(Path(argv[1]), argv[2], int(argv[3]), argv[4], argv[5:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=50, metavar="N", help="kills at random moments, over all families (50)")
    parser.add_argument("--signals", type=int, default=1, metavar="N", help="SIGTERM and Ctrl-C, each N times a family (1)")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME", help="default: all")
    parser.add_argument("--points", nargs="*", choices=POINTS, default=list(POINTS), metavar="POINT", help="default: all")
    parser.add_argument("--fork", action="store_true", help="no fresh interpreter, also for kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the table there")
    options = parser.parse_args(argv)
    began, chance, trials = time.monotonic(), random.Random(options.seed), []
    with tempfile.TemporaryDirectory(prefix="kill_test_") as folder:
        try:
            for number, family in enumerate(options.families):
                trials.append(trial := Trial(family, Path(folder) / str(number), options.fork))
                share = len(options.families)
                trial.kill_at_random((options.random + share - 1 - number) // share, chance)
                trial.kill_at_points(options.points)
                trial.signals(chance, options.signals)
                print(f"{family}: {sum(trial.hit.values())} + {trial.points} kills, {len(trial.differing)} lines differ; after "
                      f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        except Failed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    text = report(trials, " ".join(["python tools/kill_test.py", *argv]), time.monotonic() - began)
    print(f"\n{text}")
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    differing = [f"{trial.family}: {line}" for trial in trials for line in trial.differing]
    print(*(f"differs: {line}" for line in differing), sep="\n", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
