"""Fifteen minutes with a GPU, spent by one tool that needs no make.

    python tools/gpu_quarter_hour.py check --seconds 215 --out DIR --packed FOLDER
    python tools/gpu_quarter_hour.py train --seconds 500 --out DIR --packed FOLDER
    python tools/gpu_quarter_hour.py merge --out DIR      afterwards, at home

check  facts of the machine; one short epoch of VGG-5 in fp32 and bf16 (if it fails, its traceback
       and the end); tests/test_cuda.py; times of a step; epochs of four and eight runs at once,
       with and without MPS; ten seeds of the small CNN on Fashion-MNIST; the bench if time is left
train  whole pairs (FC and Spinal) of VGG-5, 100 epochs each, all together: Fashion-MNIST first, the
       lowest seeds that are in no log yet. How many is a matter of speed: as many as 0.92 of the
       time allows. After a quarter of it, and then every 30 s, the youngest pair is stopped if not
       all would finish. Accuracy decides nothing.
merge  the finished logs of DIR/logs.tar into results/reference/logs; no row gets a second device

DIR gets summary.md, speed.json, tests.xml and logs.tar, anew after every stage and every 30 s.
Everything else lies in --work (/dev/shm/spinalnet): a second call on the same machine goes on with
what is there. FOLDER holds unpack.py with packed data; --data-dir names unpacked ones instead.
--rehearse does all of it in small on a CPU. In a log `seconds` of an epoch leaves out the writing
of checkpoints; the times of epochs here do not.

Exit status: 0 done, 1 a stage failed or nothing could be trained, 2 a mistake of the user.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETS = ["fashion_mnist", "mnist"]  # the paper's lead is +0.17 on the first, 0.00 on the second
HEADS = {"fc": "fc", "spinal": "spinal4x128"}  # of VGG-5, and their names in logs
PAIR_SECONDS = 200.0  # of 100 epochs, before anything was measured
RESERVE = 45.0  # seconds at the end of `train`
SMALL = "--device cpu --limit 40 --batch-size 10 --epochs 3"
FACTS = """import json, sys; sys.path.insert(0, "MNIST"); import mnist
args = mnist.parse_arguments(sys.argv[1:])
print(json.dumps(mnist.provenance(mnist.choose_device(args))))"""
SMOKE = """import sys; sys.path.insert(0, "MNIST"); import mnist
mnist.reproduce(mnist.parse_arguments(sys.argv[1:]))"""  # main() would hide the traceback


class Failure(Exception):
    """Something that ends a verb."""


@dataclass
class Session:
    """One call of the tool: its time, its folders and what it has found."""

    args: argparse.Namespace
    began: float = field(default_factory=time.monotonic)
    device: str = ""
    stages: list[tuple[str, float, str]] = field(default_factory=list)
    speed: dict = field(default_factory=dict)
    written: float = 0.0

    def left(self) -> float:
        """Seconds of the time that was given."""
        return self.began + self.args.seconds - time.monotonic()

    @property
    def logs(self) -> Path:
        return self.args.work / "results" / "logs"

    def command(self, script: str, *options: str) -> list[str]:
        """Of a run of an image script. In a rehearsal the last options make it small."""
        line = [sys.executable, str(ROOT / "MNIST" / f"{script}.py"), *options]
        return [*line, *self.options()]

    def options(self) -> list[str]:
        small = SMALL.split() if self.args.rehearse else ["--device", "cuda"]
        folders = ["--data-dir", self.args.data_dir, "--results-dir", self.args.work / "results"]
        return ["--no-download", "--quiet", *map(str, folders), *small]

    def stage(self, name: str, need: float, work: Callable[[Session], str]) -> None:
        """Does one part if there is time for it. A failure of one is no end of the others."""
        began = time.monotonic()
        if self.left() < need:
            self.note(name, f"left out: it needs {need:.0f} s of the {self.left():.0f} s left")
            return
        try:
            text = work(self)
        except Failure:
            raise
        except Exception as error:
            text = f"failed: {' '.join(str(error).split()) or repr(error)}"
        self.note(name, text, time.monotonic() - began)

    def note(self, name: str, text: str, seconds: float = 0.0) -> None:
        self.stages.append((name, seconds, text))
        print(f"{name}: {text}", flush=True)
        self.write()

    def write(self) -> None:
        """Brings the files in --out up to date."""
        self.written = time.monotonic()
        self.args.out.mkdir(parents=True, exist_ok=True)
        finished = sorted(self.logs.glob("*/*.jsonl"))
        with tarfile.open(self.args.out / "logs.tar", "w") as archive:
            for path in finished:
                archive.add(path, f"logs/{path.parent.name}/{path.name}")
        text = json.dumps(self.speed, indent=1) + "\n"
        for folder in (self.args.out, self.args.work):
            (folder / "speed.json").write_text(text, encoding="utf-8")
        (self.args.out / "summary.md").write_text(summary(self, finished), encoding="utf-8")


def summary(session: Session, finished: list[Path]) -> str:
    """The page: stages, times, finished runs."""
    lines = [f"# {session.args.verb} on {session.device or 'this machine'}\n"]
    lines += ["| Stage | Seconds | Outcome |", "|---|---:|---|"]
    for name, seconds, text in session.stages:
        lines.append(f"| {name} | {seconds:.0f} | {text.replace('|', '/')} |")
    if session.speed.get("steps"):
        lines += ["\n| Precision | Format | cudnn.benchmark | ms a step |", "|---|---|---|---:|"]
    for row in session.speed.get("steps", []):
        cells = [row["precision"], row["format"], row["benchmark"], f"{row['milliseconds']:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if session.speed.get("at_once"):
        lines += ["\n| Runs at once | MPS | Seconds a pair-epoch |", "|---:|---|---:|"]
    for row in session.speed.get("at_once", []):
        lines.append(f"| {row['runs']} | {row['mps']} | {row['pair_epoch_seconds']:.2f} |")
    lines += ["\n| Finished run | Accuracy, % |", "|---|---:|"]
    for path in finished:
        end = json.loads(path.read_text().splitlines()[-1])
        lines.append(
            f"| {path.parent.name}/{path.stem} | {end['selected_test_accuracy_pct']:.2f} |"
        )
    return "\n".join(lines) + "\n"


# ---- Processes ----------------------------------------------------------------------------------
def start(session: Session, command: list[str], environment: dict | None = None):
    """A process with one thread, whose errors go to a file of its own."""
    errors = (session.args.work / f"errors-{time.monotonic_ns()}.txt").open("w")
    values = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
    child = subprocess.Popen(
        command, cwd=ROOT, env=values, stdout=subprocess.DEVNULL, stderr=errors
    )
    errors.close()
    child.errors = Path(errors.name)
    return child


def stop(children: list) -> None:
    """As Ctrl-C does: each run keeps the checkpoint of its last epoch."""
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
    end = time.monotonic() + 15
    for child in children:
        try:
            child.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait(session: Session, children: list, end: float) -> None:
    """Until all have ended, or it is `end`; those that have not are stopped."""
    while time.monotonic() < end and any(child.poll() is None for child in children):
        time.sleep(0.1)
        if time.monotonic() > session.written + 30:
            session.write()
    stop(children)


def start_mps(session: Session) -> dict[str, str]:
    """What processes need in their environment to share the GPU by MPS; empty: there is none."""
    environment = {}
    for name in ("PIPE", "LOG"):
        folder = session.args.work / "mps" / name.lower()
        folder.mkdir(parents=True, exist_ok=True)
        environment[f"CUDA_MPS_{name}_DIRECTORY"] = str(folder)
    command, values = ["nvidia-cuda-mps-control", "-d"], os.environ | environment
    try:
        done = subprocess.run(command, env=values, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        session.note("MPS", f"no daemon: {error}")
        return {}
    if done.returncode:
        session.note("MPS", f"no daemon: {' '.join((done.stdout + done.stderr).split())}")
        return {}
    return environment


def stop_mps(environment: dict[str, str]) -> None:
    """Ends the daemon by its own word."""
    if environment:
        command, values = ["nvidia-cuda-mps-control"], os.environ | environment
        subprocess.run(command, env=values, input="quit\n", text=True, timeout=20)


# ---- Runs of VGG-5 ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Vgg5:
    """One run of VGG-5."""

    script: str
    head: str
    seed: int

    def files(self, folder: Path, suffix: str) -> list[Path]:
        """Its log below a folder of logs; in a rehearsal it has marks in its name."""
        name = f"vgg5-{HEADS[self.head]}-published"
        found = folder.glob(f"{self.script}/{name}*-s{self.seed}{suffix}")
        marks = r"(-e3-b10-limit40-data\w+)?"
        return [x for x in found if re.fullmatch(rf"{name}{marks}-s\d+", x.name[: -len(suffix)])]

    def lines(self, folder: Path) -> list[dict]:
        """Of its log, finished or not."""
        for suffix in (".jsonl", ".jsonl.part"):
            for path in self.files(folder, suffix):
                with contextlib.suppress(ValueError):  # it is just being written
                    return [json.loads(line) for line in path.read_text().splitlines()]
        return []

    def progress(self, folder: Path) -> int:
        return sum(line["event"] == "epoch" for line in self.lines(folder))


def device_of(path: Path) -> str:
    return json.loads(path.read_text().splitlines()[0])["provenance"]["device_name"]


def pairs_to_do(session: Session) -> list[list[Vgg5]]:
    """Of each set and seed the runs that no log holds; none of a row of another device."""
    places = [session.args.reference / "logs", session.logs]
    pairs = []
    for script in SETS:
        runs = [Vgg5(script, head, seed) for seed in range(10) for head in HEADS]
        logs = {run: [x for place in places for x in run.files(place, ".jsonl")] for run in runs}
        devices = {device_of(path) for paths in logs.values() for path in paths}
        if devices - {session.device}:
            text = f"no run: its row has logs of {', '.join(sorted(devices - {session.device}))}"
            session.note(f"VGG-5 on {script}", text)
            continue
        for first in range(0, len(runs), 2):
            missing = [run for run in runs[first : first + 2] if not logs[run]]
            if missing:
                pairs.append(missing)
    return pairs


def start_run(session: Session, run: Vgg5, environment: dict[str, str]):
    more = ["--network", "vgg5", "--head", run.head, "--seed", str(run.seed)]
    return start(session, session.command(run.script, *more), environment)


# ---- check --------------------------------------------------------------------------------------
def look_at_machine(session: Session) -> str:
    """Data and facts of the machine. Without a GPU there is nothing to do."""
    args = session.args
    if args.packed:
        command = [sys.executable, args.packed / "unpack.py", args.data_dir]
        subprocess.run([*command, "mnist", "fashion-mnist"], check=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-c", FACTS, *session.options()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise Failure(done.stderr.strip().splitlines()[-1])
    facts = json.loads(done.stdout)
    session.device = facts["device_name"]
    session.speed |= {"facts": facts, "cores": os.cpu_count()}
    return ", ".join(f"{key} {x}" for key, x in facts.items() if key != "script_sha256")


def smoke(session: Session) -> str:
    """One epoch of 5,000 images in fp32 and in bf16."""
    for precision in ("fp32", "bf16"):
        line = ["--network", "vgg5", "--head", "spinal", "--precision", precision]
        line += ["--overwrite", *session.options(), "--epochs", "1"]
        if not session.args.rehearse:
            line += ["--limit", "5000"]
        line += ["--results-dir", str(session.args.work / "smoke")]
        child = start(session, [sys.executable, "-c", SMOKE, *line])
        wait(session, [child], time.monotonic() + session.args.patience * 60)
        if child.returncode:
            raise Failure(f"{precision}\n\n```\n{child.errors.read_text()[-4000:]}\n```\n")
    return "VGG-5 trains in fp32 and bf16"


def run_tests(session: Session) -> str:
    """tests/test_cuda.py by four workers; torchrun takes too long."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "4", "tests/test_cuda.py"]
    command += ["-k", "not torchrun", f"--junitxml={session.args.out / 'tests.xml'}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=90 * session.args.patience
    )
    return (done.stdout.strip().splitlines() or [done.stderr])[-1].strip("= ")


def time_steps(session: Session) -> str:
    """In a process of its own, whose lines count also if it does not come to its end."""
    command = [sys.executable, __file__, "steps", "--out", str(session.args.out)]
    command += ["--rehearse"] * session.args.rehearse
    output = session.args.work / "steps.txt"
    with output.open("w") as file:
        child = subprocess.Popen(command, stdout=file)
        child.errors = None
        wait(session, [child], time.monotonic() + session.args.patience * 45)
    session.speed["steps"] = [json.loads(line) for line in output.read_text().splitlines()]
    return f"{len(session.speed['steps'])} of 12 ways"


def measure_steps(rehearse: bool) -> None:
    """Prints a JSON line for each precision, memory format and cudnn.benchmark."""
    import torch

    sys.path.insert(0, str(ROOT / "MNIST"))
    import mnist

    device = torch.device("cpu" if rehearse else "cuda")
    size = 4 if rehearse else 100
    images = torch.randint(0, 256, (size, 1, 28, 28), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (size,), device=device)
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    for number in range(12):
        precision = ["ieee", "fp32", "bf16"][number // 4]
        name = list(formats)[number // 2 % 2]
        torch.backends.cudnn.allow_tf32 = precision != "ieee"
        torch.backends.cudnn.benchmark = number % 2 == 1
        recipe = mnist.recipe_of("vgg5", "spinal", "published", precision=precision)
        trainer = mnist.Trainer(mnist.network_of(recipe), recipe, device)
        trainer.network.to(memory_format=formats[name])
        trainer.begin(1)
        step = trainer.step if rehearse else trainer.graph_step
        for _ in range(1 if rehearse else 5):  # the graph is recorded at the fourth
            step(images, labels)
        float(trainer.total)  # waits for the device
        began, count = time.perf_counter(), 0
        while time.perf_counter() < began + (0.01 if rehearse else 1.5):
            for _ in range(1 if rehearse else 20):
                step(images, labels)
                count += 1
            float(trainer.total)
        milliseconds = 1e3 * (time.perf_counter() - began) / count
        row = {"precision": precision, "format": name, "milliseconds": milliseconds}
        print(json.dumps(row | {"benchmark": torch.backends.cudnn.benchmark}), flush=True)


def time_runs_at_once(session: Session, count: int, seconds: float, mps: bool) -> str:
    """Real runs, which `train` goes on with; the wall time of their epochs after the first."""
    environment = start_mps(session) if mps else {}
    if mps and not environment:
        return "left out: no MPS"
    runs = [run for pair in pairs_to_do(session) for run in pair][:count]
    before = {run: run.progress(session.logs) for run in runs}
    children = [start_run(session, run, environment) for run in runs]
    end, first, last = time.monotonic() + seconds, None, None
    try:
        while time.monotonic() < end and any(child.poll() is None for child in children):
            time.sleep(0.1)
            done = [run.progress(session.logs) - before[run] for run in runs]
            if first is None and min(done) > 0:
                first = (time.monotonic(), sum(done))
            last = (time.monotonic(), sum(done))
    finally:
        stop(children)
        stop_mps(environment)
    failed = [child for child in children if child.returncode not in (0, 130)]
    if failed:
        raise ValueError(failed[0].errors.read_text()[-500:])
    if first is None or last[1] == first[1]:
        raise ValueError(f"no two epochs in {seconds:.0f} s")
    pair_epoch = 2 * (last[0] - first[0]) / (last[1] - first[1])
    row = {"runs": count, "mps": mps, "pair_epoch_seconds": pair_epoch}
    session.speed.setdefault("at_once", []).append(row)
    best = min(row["pair_epoch_seconds"] for row in session.speed["at_once"] if row["mps"] == mps)
    session.speed["pair_seconds_mps" if mps else "pair_seconds"] = 100 * best
    return f"{pair_epoch:.2f} s for an epoch of both heads"


def small_cnn(session: Session) -> str:
    """Ten seeds of both heads on Fashion-MNIST, beside the rows of CPUs."""
    environment = start_mps(session)
    children = []
    for seed in range(2 if session.args.rehearse else 10):
        command = session.command("fashion_mnist", "--seed", str(seed))
        children.append(start(session, command, environment))
    try:
        wait(session, children, time.monotonic() + session.args.patience * 60)
    finally:
        stop_mps(environment)
    return f"{sum(child.returncode == 0 for child in children)} of {len(children)} seeds"


def run_bench(session: Session) -> str:
    """The published loop under PyTorch's defaults against ours."""
    folder = session.args.work / "bench"
    command = [sys.executable, "tools/bench.py", "--only", "networks", "--repeats", "1"]
    command += ["--no-compile", "--no-download", "--data-dir", str(session.args.data_dir)]
    command += ["--images", "500" if session.args.rehearse else "6000", "--output", str(folder)]
    if session.args.rehearse:
        command += ["--networks", "cnn", "--device", "cpu"]
    child = start(session, command)
    wait(session, [child], time.monotonic() + min(90 * session.args.patience, session.left() - 5))
    for path in folder.glob("bench/*.json"):
        session.speed["bench"] = json.loads(path.read_text())
        return "in speed.json; for the page: results/bench, then tools/bench.py --page-only"
    return f"failed: {child.errors.read_text()[-500:]}"


def check(session: Session) -> None:
    session.stage("smoke", 20, smoke)
    session.stage("tests", 40, run_tests)
    session.stage("steps", 30, time_steps)
    rehearse = session.args.rehearse
    for count, seconds, mps in ((4, 24, False), (4, 20, True), (8, 30, True)):
        if rehearse:
            count, seconds = 2, 240

        def work(session: Session, count=count, seconds=seconds, mps=mps) -> str:
            return time_runs_at_once(session, count, seconds, mps)

        session.stage(f"{count} runs at once{', MPS' if mps else ''}", seconds + 5, work)
    session.stage("small CNN", 30, small_cnn)
    session.stage("bench", 50, run_bench)


# ---- train --------------------------------------------------------------------------------------
def will_finish(session: Session, pairs: list, before: dict, began: float, end: float) -> bool:
    """Would all pairs finish by `end` at the pace so far? before: epochs that were done earlier"""
    done, remaining = 0, 0
    for pair in pairs:
        for run in pair:
            lines = run.lines(session.logs)
            progress = sum(line["event"] == "epoch" for line in lines)
            epochs = lines[0]["settings"]["epochs"] if lines else 100
            done += progress - before[run]
            remaining += epochs - progress
    now = time.monotonic()
    return remaining * (now - began) <= done * (end - now)


def train_pairs(session: Session, pairs: list, environment: dict[str, str], end: float) -> str:
    """Trains them together; without MPS one pair after the other, as they would only take turns."""
    before = {run: run.progress(session.logs) for pair in pairs for run in pair}
    began = time.monotonic()
    look = began + (end - began) / 4
    children, shed = {}, 0
    while time.monotonic() < end:
        running = []
        for number, pair in enumerate(pairs):
            busy = [child for child in running if child.poll() is None]
            if number not in children and (environment or not busy):
                children[number] = [start_run(session, run, environment) for run in pair]
            running += children.get(number, [])
        if len(children) == len(pairs) and all(child.poll() is not None for child in running):
            break
        if time.monotonic() > look and len(pairs) > 1:
            look = time.monotonic() + 30
            if not will_finish(session, pairs, before, began, end):
                pairs.pop()
                stop(children.pop(len(pairs), []))
                shed += 1
        if time.monotonic() > session.written + 30:
            session.write()
        time.sleep(0.1)
    left = [child for pair in children.values() for child in pair]
    stop(left)
    failed = [child for child in left if child.returncode not in (0, 130)]
    finished = sum(bool(run.files(session.logs, ".jsonl")) for pair in pairs for run in pair)
    text = f"{finished} of {sum(map(len, pairs))} runs finished; pairs stopped for time: {shed}"
    if failed:
        text += f"; failed: {failed[0].errors.read_text()[-500:]}"
    return text


def train(session: Session) -> None:
    """Chooses how many pairs, and trains them."""
    environment = start_mps(session)
    try:
        key = "pair_seconds_mps" if environment else "pair_seconds"
        each = session.args.pair_seconds or session.speed.get(key) or PAIR_SECONDS
        seconds = session.left() - (2 if session.args.rehearse else RESERVE)
        pairs = pairs_to_do(session)[: max(0, int(0.92 * seconds / each))]
        text = f"{len(pairs)} pairs of {each:.0f} s each in {seconds:.0f} s"
        session.note("plan", text + ("" if environment else ", one after the other"))
        if not pairs:
            raise Failure("there is no time for a pair, or nothing left to train")
        end = time.monotonic() + seconds
        session.stage("pairs", 0, lambda session: train_pairs(session, pairs, environment, end))
    finally:
        stop_mps(environment)


# ---- merge --------------------------------------------------------------------------------------
def merge(archive: Path, reference: Path) -> int:
    """Adds the finished logs to those of reference/logs. Returns how many are new.

    Raises Failure, before anything is written, if a log is none, another one has its name, or its
    row has logs of another device.
    """
    new = {}
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as file:
        for member in file.getmembers():
            if not member.isfile() or not re.fullmatch(r"logs/\w+/[\w.-]+\.jsonl", member.name):
                raise Failure(f"{member.name} is no log")
            new[reference / member.name] = file.extractfile(member).read()
    for path, content in new.items():
        first, last = (json.loads(content.splitlines()[k]) for k in (0, -1))
        if last.get("event") != "end":
            raise Failure(f"{path.name} is not finished")
        if path.exists() and path.read_bytes() != content:
            raise Failure(f"{path} is there and differs")
        row = path.name[: path.name.rindex("-s")]
        others = {device_of(x) for x in path.parent.glob(f"{row}-s*.jsonl")}
        if others - {first["provenance"]["device_name"]}:
            raise Failure(f"the row of {path.name} has logs of {', '.join(sorted(others))}")
    added = [path for path in new if not path.exists()]
    for path in added:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(new[path])
    return len(added)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. A mistake ends the process with status 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("verb", choices=["check", "train", "merge", "steps"], help="steps: a part of check")
    add("--seconds", type=float, default=215.0, help="that this call may take; default: 215")
    add("--out", type=Path, required=True, metavar="DIR", help="what is to be taken home")
    add("--work", type=Path, default=Path("/dev/shm/spinalnet"), help="default: /dev/shm/spinalnet")
    add("--packed", type=Path, metavar="FOLDER", help="with unpack.py and packed data")
    add("--data-dir", type=Path, help="unpacked data; default: data below --work")
    add("--pair-seconds", type=float, help="of a pair; default: as check measured, or 200")
    add(
        "--reference",
        type=Path,
        default=ROOT / "results/reference",
        help="the evidence: train leaves its runs out, merge adds to it",
    )
    add("--rehearse", action="store_true", help="all of it in small on a CPU")
    args = parser.parse_args(argv)
    for name in ("out", "work", "packed", "data_dir"):
        if value := getattr(args, name):
            setattr(args, name, value.resolve())
    args.data_dir = args.data_dir or args.work / "data"
    args.patience = 5 if args.rehearse else 1  # how much longer a stage may take
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.verb == "steps":
        measure_steps(args.rehearse)
        return 0
    if args.verb == "merge":
        try:
            print(f"{merge(args.out / 'logs.tar', args.reference)} new logs: make reference-report")
        except (Failure, OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    session = Session(args)
    args.work.mkdir(parents=True, exist_ok=True)
    for folder in (ROOT / "results/gpu", args.work):  # of an earlier call
        if (folder / "speed.json").exists():
            session.speed = json.loads((folder / "speed.json").read_text())
    try:
        session.stage("machine", 0, look_at_machine)
        if not session.device:
            raise Failure("the machine could not be looked at")
        check(session) if args.verb == "check" else train(session)
    except Failure as error:
        session.note("end", str(error))
        return 1
    return 1 if any(text.startswith("failed") for _, _, text in session.stages) else 0


if __name__ == "__main__":
    sys.exit(main())
