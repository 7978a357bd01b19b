"""Kill runs, start them again until they end, and compare their logs with those of uninterrupted runs, line for line.

    python tools/kill_test.py                  50 random kills of each family, and one at each exact point
    python tools/kill_test.py --random 0       only the exact points

Each command below is a short real run of one family of scripts, on small images made up here. It is started through
this file, in a fresh interpreter for one random kill in ten, else as a copy (fork) of this process, which has imported
all and trained nothing. It marks in shared memory what the run is doing, so that it is known what a random kill hit,
and at an exact point it kills the run from within, with SIGKILL. After one kill in three the checkpoint loses its end,
as after a power failure. A last round measures how long SIGTERM and Ctrl-C (SIGINT) take. Times (`seconds`, `started`,
`ended`) are left out of the comparison. The result is a table; --report FILE also writes it.

Exit status: 0 all logs equal, 1 a log differs or a run ended in another way than it should, 2 wrong use.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import mmap
import multiprocessing
import os
import pickle
import platform
import random
import shlex
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
    "MNIST, augmented": ("MNIST/mnist.py", "--network vgg5 --head spinal --epochs 5 --limit 10 --batch-size 5", "idx"),
    "MNIST, momentum forgotten": ("MNIST/arch2_mnist.py", "--epochs 104 --limit 20 --batch-size 20", "idx"),
    "EMNIST": ("EMNIST/emnist_digits.py", "--head both --epochs 8", "idx"),
    "CIFAR": ("CIFAR/cifar10.py", "--head spinal --protocol corrected --epochs 6 --batch-size 20", "pickle"),
    "Regression": ("Regression/synthetic_regression.py", "--function sinsum --epochs 40", None),
    "Regression, tables": ("Regression/tabular.py", "--demo diabetes --epochs 40", None),
    "Transfer learning": (
        "Transfer_Learning/tl_hymenoptera.py",
        "--weights none --image-size 32 --epochs 8 --head spinal --workers 0 --batch-size 8",
        "photos",
    ),
}
POINTS = {  # name: (what is counted, at which number of it a process is killed)
    "after a training step, within an epoch": ("step", 3),
    "after an evaluation": ("evaluation", 2),
    "half the log written": ("half log", 3),
    "log written, checkpoint not yet": ("log", 2),
    "half the checkpoint written": ("half checkpoint", 2),
    "checkpoint written, not yet renamed": ("before .pt", 2),
    "checkpoint renamed": ("after .pt", 2),
    "last line written, log not yet renamed": ("before .jsonl", 1),
    "log renamed, checkpoint not yet removed": ("after .jsonl", 1),
}
PHASES = ("starting", "training", "evaluation", "saving", "in between")


# ---- In the process that is killed -----------------------------------------------------------------------------------
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

    def during(self, phase: str, function, then: str = "", first: str = ""):
        """`function`, marked as this phase, with a point before and one after it."""

        @functools.wraps(function)
        def watched(*args, **keywords):
            before, self.byte[0] = self.byte[0], PHASES.index(phase)
            self.point(first)
            result = function(*args, **keywords)
            self.point(then)
            self.byte[0] = PHASES.index("in between") if before == PHASES.index("starting") else before
            return result

        return watched


def run_watched(shared: Path, counted: str, number: int, script: str, argv: list[str]) -> int:
    """The script's main, watched. Its exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    watch, module = Watch(shared, counted, number), load(script)
    import torch

    if script.startswith("CIFAR"):  # these images are none that torchvision knows
        import torchvision

        torchvision.datasets.CIFAR10._check_integrity = lambda _: True
        torchvision.datasets.CIFAR10._load_meta = lambda _: None
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        optimizer.step = watch.during("training", optimizer.step, "step")
    trainer = getattr(module, "Trainer", module)
    for place, name in ((trainer, "evaluate"), *((module, name) for name in ("sweep", "mean_squared_error", "errors"))):
        if hasattr(place, name):
            setattr(place, name, watch.during("evaluation", getattr(place, name), "evaluation"))
    save, write, replace = torch.save, Path.write_text, os.replace

    def save_halfway(what, path, *arguments, **keywords):
        save(what, path, *arguments, **keywords)
        if counted == "half checkpoint":
            if watch.left == 1:
                os.truncate(path, os.path.getsize(path) // 2)
            watch.point("half checkpoint")

    def write_halfway(path, text, *arguments, **keywords):
        if counted == "half log" and watch.left == 1:
            write(path, text[: len(text) // 2], *arguments, **keywords)
        watch.point("half log")
        write(path, text, *arguments, **keywords)
        watch.point("log")

    def rename(old, new):
        watch.point(f"before {Path(new).suffix}")
        replace(old, new)
        watch.point(f"after {Path(new).suffix}")

    torch.save = watch.during("saving", save_halfway)
    Path.write_text = watch.during("saving", write_halfway)
    os.replace = watch.during("saving", rename)
    Path.replace = lambda old, new: os.replace(old, new)
    Path.rename = Path.replace
    return module.main(argv)


# ---- In the process that kills ---------------------------------------------------------------------------------------
def make_data(kind: str | None, folder: Path) -> None:
    """Small files as MNIST and EMNIST (idx), CIFAR (pickle) or folders of photographs have them, always the same."""
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
                os._exit(run_watched(self.shared, counted, number, script, argv))

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
            for key in ("seconds", "ended"):
                record.pop(key, None)
            record.get("provenance", {}).pop("started", None)
    return logs


class Trial:
    """All that is done to the command of one family."""

    def __init__(self, family: str, root: Path):
        self.family, self.root, self.folders = family, root, 0
        self.hit, self.points, self.runs, self.lines, self.differing = Counter(), 0, 0, 0, []
        self.torn, self.cut = 0, {}  # checkpoints that were cut: how many in all; this run's, and when
        self.cut_at_start = 0  # starts that met one: more than cuts, where a kill came before the next checkpoint
        self.latency: dict[int, list[float]] = {signal.SIGTERM: [], signal.SIGINT: []}
        process = Process(family, root / "uninterrupted", None, True)
        process.begun()
        began = time.monotonic()
        self.expect(process, 0)
        self.seconds, self.expected = time.monotonic() - began, logs_of(root / "uninterrupted")

    def start(self, point: str | None = None, fork: bool = True) -> Process:
        self.cut_at_start += sum(path.exists() and path.stat().st_mtime_ns == at for path, at in self.cut.items())
        return Process(self.family, self.root / f"run{self.folders}", point, fork)

    def expect(self, process: Process, wanted: int) -> None:
        code = process.wait()
        if code != wanted:
            output = process.output.read_text()[-3000:]
            raise Failed(f"{self.family}: exit status {code} instead of {wanted}:\n{output}")

    def finish(self) -> None:
        """Starts the command once more, lets it end, and compares."""
        process = self.start()
        self.expect(process, 0)
        folder = self.root / f"run{self.folders}"
        said = process.output.read_text()
        if (anew := said.count(" begins anew")) > self.cut_at_start:
            raise Failed(f"{self.family}: {anew} checkpoints were not used, {self.cut_at_start} had been cut:\n{said}")
        self.cut, self.cut_at_start = {}, 0
        logs = logs_of(folder)
        left = [path.name for path in folder.rglob("*") if path.suffix in (".pt", ".tmp", ".part")]
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
        """At most five a run, then it may end. One in ten while a fresh interpreter starts; of the others every second
        one at once, the next ones as soon as the run is in one of the phases in turn that are too short for chance."""
        phases = itertools.cycle([None, "evaluation", None, "saving"])
        while kills:
            for _ in range(5):
                fresh = chance.random() < 0.1
                process = self.start(fork=not fresh)
                if fresh:
                    time.sleep(5 * chance.random())
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
        for path in (self.root / f"run{self.folders}").glob("logs/*/*.pt"):
            if chance.random() < 1 / 3:
                os.truncate(path, int(path.stat().st_size * chance.random()))
                self.torn, self.cut[path] = self.torn + 1, path.stat().st_mtime_ns

    def kill_at_points(self, points: list[str]) -> None:
        """Two a run, so that each process has enough of the run before it."""
        for at in range(0, len(points), 2):
            for point in points[at : at + 2]:
                self.expect(self.start(point), -signal.SIGKILL)  # also says whether the point was reached
                self.points += 1
            self.finish()

    def signals(self, chance: random.Random, times: int) -> None:
        for stop, status in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)) * times:
            for _ in range(5):  # it may have ended before, if the machine has become faster since it was timed
                process = self.start()
                if not process.begun():
                    raise Failed(f"{self.family}: it ended before it could be stopped")
                time.sleep(chance.random() * self.seconds / 2)
                began = time.monotonic()
                process.send(stop)
                if process.wait():
                    break
                self.finish()
            self.expect(process, status)
            self.latency[stop].append(time.monotonic() - began)
            self.finish()


# ---- Report ----------------------------------------------------------------------------------------------------------
def machine() -> str:
    """Processor, cores, versions."""
    import torch

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d', time.gmtime())}"
    )


def report(trials: list[Trial], points: list[str], command: str, seconds: float) -> str:
    """Markdown."""
    hit = sum((trial.hit for trial in trials), Counter())
    rows = [
        "| command | random kills | exact points | runs | log lines compared | lines that differ | SIGTERM, slowest "
        "| Ctrl-C, slowest |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for trial in trials:
        slowest = [f"{max(values):.2f} s of {len(values)}" if values else "-" for values in trial.latency.values()]
        script, arguments, _ = FAMILIES[trial.family]
        rows.append(
            f"| `{Path(script).name} {arguments}` | {sum(trial.hit.values())} | {trial.points} | {trial.runs} | "
            f"{trial.lines:,} | {len(trial.differing)} | {' | '.join(slowest)} |"
        )
    rows.append(
        f"| all | {hit.total()} | {sum(t.points for t in trials)} | {sum(t.runs for t in trials)} | "
        f"{sum(t.lines for t in trials):,} | {sum(len(t.differing) for t in trials)} | | |"
    )
    text = [
        "# Runs that are killed",
        f"Made by `{command}` in {seconds / 60:.0f} minutes on {machine()}.",
        "\n".join(rows),
        f"Random kills (SIGKILL) hit these moments: {', '.join(f'{phase} {hit[phase]}' for phase in PHASES)}.\n"
        f"After these kills {sum(trial.torn for trial in trials)} checkpoints were cut; a run that finds its own cut "
        "begins anew.\n"
        f"Exact points, each in a process of its own: {'; '.join(points)}.\n"
        "SIGTERM and Ctrl-C: seconds from the signal to the end of the process, which ends by it, or with 130.\n"
        "Every run that was stopped was started again until it ended; its logs, times aside, were compared with those\n"
        "of an uninterrupted run.",
    ]
    return "\n\n".join(text) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Exit status: see above."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["run"]:
        return run_watched(Path(argv[1]), argv[2], int(argv[3]), argv[4], argv[5:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=50, metavar="N", help="random kills of each family (50)")
    parser.add_argument("--signals", type=int, default=1, metavar="N", help="SIGTERM and Ctrl-C, N times a family (1)")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--points", nargs="*", choices=POINTS, default=list(POINTS), metavar="POINT")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the table there")
    options = parser.parse_args(argv)
    began, chance, trials = time.monotonic(), random.Random(options.seed), []
    with tempfile.TemporaryDirectory(prefix="kill_test_") as folder:
        try:
            for number, family in enumerate(options.families):
                trials.append(trial := Trial(family, Path(folder) / str(number)))
                trial.kill_at_random(options.random, chance)
                trial.kill_at_points(options.points)
                trial.signals(chance, options.signals)
                print(
                    f"{family}: {sum(trial.hit.values())} + {trial.points} kills, {len(trial.differing)} lines differ; "
                    f"after {time.monotonic() - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
        except Failed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    command = shlex.join(["python", "tools/kill_test.py", *argv])
    text = report(trials, options.points, command, time.monotonic() - began)
    print(f"\n{text}")
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    differing = [f"{trial.family}: {line}" for trial in trials for line in trial.differing]
    print(*(f"differs: {line}" for line in differing), sep="\n", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
