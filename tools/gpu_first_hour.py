"""The first hour with a GPU, in parts, in the order of their worth: make gpu-first-hour [PART=name]

    python tools/gpu_first_hour.py [PART ...] [--minutes 8] [--data-dir data] [--dry-run]

    tests    tests/test_cuda.py: does the CUDA path do what the CPU's does
    bench    tools/bench.py: our speed against the published loop's; graph, plain steps, torch.compile; fp32 and bf16
    jobs     tools/bench.py: how many runs at a time are best, which the parts below then do
    cnn      ten seeds of the small CNN's rows on MNIST and Fashion-MNIST
    vgg5     ten seeds of VGG-5 on MNIST and Fashion-MNIST, both heads, published protocol
    bf16     the same networks in bf16, beside fp32
    cifar    ResNet-18 and VGG-19 on CIFAR-10, both heads, published protocol

Each part has at most so many minutes; what it has not finished by then goes on when it is called again, and a part that
is done is not run again. Logs go where all runs go, results/logs, the bench to results/tables/bench.md, and what is
printed to results/gpu. A row of which there are logs of another device is left out and named: no row gets runs of two
devices here. At the end it says what is done, what is left and where everything is. Exit status: 0 all done, 1
something is left, 2 no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

OUTPUT = Path("results/gpu")
SETS = "(fashion_)?mnist"
PARTS = {  # name: command with {python}, {data}; or which logs of `make list`
    "tests": "{python} -m pytest -q tests/test_cuda.py",
    "bench": "{python} tools/bench.py --only networks --data-dir {data}",
    "jobs": "{python} tools/bench.py --only processes --data-dir {data}",
    "cnn": re.compile(rf"{SETS}/cnn-(fc|spinal6x8|spinal6x10)-(published|corrected)-s\d+"),
    "vgg5": re.compile(rf"{SETS}/vgg5-(fc|spinal4x128)-published-s\d+"),
    "bf16": re.compile(rf"{SETS}/(cnn|vgg5)-(fc|spinal6x8|spinal4x128)-published-bf16-s\d+"),
    "cifar": re.compile(r"cifar10/(resnet18-(fc|spinal4x20)|vgg19-(fc|spinal4x512))-published-s\d+"),
}


def gpu_names() -> list[str]:
    """As the driver calls them; empty without one."""
    if not shutil.which("nvidia-smi"):
        return []
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def jobs_at_once(names: list[str]) -> int:
    """On each GPU, as the bench measured it on this kind; else four."""
    for path in sorted(Path("results").glob("tables/bench/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["device_name"] in names and record["processes"]:
            return max(record["processes"], key=lambda row: row["images_per_second"])["processes"]
    return 4


def listed(data: str) -> list[Path]:
    """The logs of `make list`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "--silent", "list", "RUNS=10", f"DATA={data}"]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=True)
    return [Path(line.split("\t")[1]) for line in done.stdout.splitlines()]


def strangers(row: Path, names: list[str]) -> set[str]:
    """Other devices that finished or unfinished logs of a row were made on; a row is its log without the seed."""
    found = set()
    for path in row.parent.glob(f"{row.name}-s*.jsonl*"):
        try:
            with path.open(encoding="utf-8") as stream:
                found.add(json.loads(stream.readline())["provenance"]["device_name"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {name for name in found if not name.startswith(tuple(names))}  # a part of a GPU has a longer name


@dataclass
class Part:
    name: str
    command: list[str]
    logs: list[Path]
    foreign: dict[Path, set[str]]

    @property
    def stamp(self) -> Path:
        return OUTPUT / f"{self.name}.done"

    def left(self) -> int:
        """Runs, or 1 for a part without."""
        return sum(not log.exists() for log in self.logs) if self.logs or self.foreign else int(not self.stamp.exists())

    def state(self) -> str:
        if self.logs or self.foreign:
            where = sorted({str(log.parent) for log in self.logs})
            text = f"{len(self.logs) - self.left()} of {len(self.logs)} runs done: {', '.join(where)}"
            for row, names in self.foreign.items():
                text += f"\n          left out: {row} has runs of {', '.join(sorted(names))}"
            return text
        return f"{'to do' if self.left() else 'done'}: {OUTPUT / self.name}.txt"


def plan(names: list[str], data: str, jobs: int) -> list[Part]:
    runs, parts = listed(data), []
    for name, what in PARTS.items():
        if isinstance(what, str):
            parts.append(Part(name, what.format(python=sys.executable, data=data).split(), [], {}))
            continue
        logs = [log for log in runs if what.fullmatch(f"{log.parent.name}/{log.stem}")]
        rows = {log: log.with_name(re.sub(r"-s\d+$", "", log.stem)) for log in logs}
        foreign = {row: found for row in set(rows.values()) if (found := strangers(row, names))}
        logs = [log for log in logs if rows[log] not in foreign]
        settings = [f"DATA={data}", f"JOBS_PER_GPU={jobs}", f"PYTHON={sys.executable}"]
        make = ["make", "--no-print-directory", "--keep-going", f"-j{jobs * len(names)}", "RUNS=10", *settings]
        parts.append(Part(name, [*make, *map(str, logs)], logs, dict(sorted(foreign.items()))))
    return parts


def work(part: Part, minutes: float) -> None:
    """Runs it, at most so long; then asks it to stop, which costs at most an epoch of each run."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    clean.setdefault("OMP_NUM_THREADS", "1")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with (OUTPUT / f"{part.name}.txt").open("a", encoding="utf-8") as output:
        child = subprocess.Popen(
            ["timeout", "--kill-after=20", f"{60 * minutes:.0f}", *part.command],
            env=clean,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            status = child.wait()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
    if status == 0 and not part.logs:
        part.stamp.write_text(time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()), encoding="utf-8")
    if status == 124:
        print(f"  its {minutes:g} minutes are over", flush=True)
    elif status:
        print(f"  exit status {status}: see {OUTPUT / part.name}.txt", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all, in this order")
    parser.add_argument("--minutes", type=float, default=8.0, help="of each part, at most (8)")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    options = parser.parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {min(unknown)}: choose from {', '.join(PARTS)}")
    names = gpu_names()
    if not names:
        print("error: nvidia-smi names no GPU here", file=sys.stderr)
        return 2
    print(f"GPUs: {', '.join(names)}")
    wanted = options.parts or list(PARTS)
    for name in wanted:  # planned one after the other: the bench says how many runs at a time the later parts may have
        (part,) = (part for part in plan(names, options.data_dir, jobs_at_once(names)) if part.name == name)
        if options.dry_run:
            print(f"{name}: {' '.join(part.command)}")
        elif part.left():
            print(f"{name}: {part.left()} to do" if part.logs else name, flush=True)
            work(part, options.minutes)
    parts = plan(names, options.data_dir, jobs_at_once(names))
    print("\n".join(["", *(f"{part.name:<8}  {part.state()}" for part in parts)]))
    left = [part.name for part in parts if part.left()]
    print(f"\nLeft: {', '.join(left)}. The same command goes on." if left else "\nAll done: make tables")
    return 1 if left else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
