"""Does the present text of the scripts give the numbers of an earlier one?

    python tools/same_numbers.py [BASE] [--scripts mnist cifar10] [--output FILE]

For every script, network, head and protocol there is a short run of the text at BASE (a git commit;
default: HEAD) and one of the present text, on this machine, with the same command line, on small
made-up data (tools/made_up_data.py). The run of the present text is stopped after its first epoch
and goes on from its checkpoint; that of BASE is not. All numbers are compared digit by digit:
parameters, fc_multiplications and counts of the first line, every epoch, the end; not seconds and
dates, nor numbers that BASE did not log yet. The table says how many runs are equal; --output
writes it to a file as well.

A run has three epochs (arch2: 103, since its rate changes after 100; regression: 100) of 24 images
of 28 to 32 pixels. The large networks of the transfer scripts are real in tl_cifar10; in the other
scripts, which share its code, thin ones of the same kind stand in their place.

Exit status: 0 the same numbers, or others where they are expected (EXPECTED), 1 other numbers or a
run that failed, 2 a mistake of the user.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn

import made_up_data

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["CIFAR", "Transfer_Learning", "EMNIST", "MNIST", "Regression"]  # the slowest first
EXPECTED = {  # scripts and networks whose numbers are others than at a6ef80b, and why
    ("cifar10", "densenet"): "the released network in place of our guess, see results/audit.md",
}
LAST_STAGE = "epochs equal; the best epoch reported is the last stage's, as released (Q8)"
PROTOCOLS = ["published", "corrected"]
SHORT = "--epochs {epochs} --batch-size 10 --limit 24 --no-download"
EPOCHS = {"arch2": 103}
FUNCTIONS = ["sum", "sinsum", "product", "sinproduct"]
IGNORED = {"seconds", "ended", "test_correct", "peak_memory_bytes"}


# ---- What is run --------------------------------------------------------------------------------
def heads_of(script: ModuleType, network: str, protocol: str) -> list[str]:
    """Command lines of the heads: as published, and as wide as in any row of the paper."""
    lines = []
    for head in script.HEADS:
        if head == "fc":
            lines.append("--head fc")
            continue
        recipe = script.recipe_of(network, head, protocol)
        sizes = {(recipe.layers, recipe.width)}
        for row in script.PAPER:
            if match := re.fullmatch(rf"{network}-spinal(\d+)x(\d+).*", row):
                sizes.add((int(match[1]), int(match[2])))
        for layers, width in sorted(sizes):
            lines.append(f"--head spinal --layers {layers} --width {width}")
    return lines


def image_commands(script: ModuleType) -> list[str]:
    """Of a script of MNIST, EMNIST, CIFAR or Transfer_Learning."""
    transfer = script.SCRIPT.startswith("tl_")
    commands = []
    for network, protocol in itertools.product(script.NETWORKS, PROTOCOLS):
        options = [""]
        if transfer:
            size = 64 if network == "alexnet" else 32  # AlexNet cannot see smaller images
            options = [f"--weights none --image-size {size} --workers 0"]
        elif network == "cnn" and "CIFAR" not in script.DATASET:
            options = ["--fc-dropout 0.5"]  # in both heads
            if protocol == "corrected":
                options.append("--fc-dropout 0.0")
            else:
                options.append("")
        short = SHORT.format(epochs=EPOCHS.get(network, 3))
        for head, option in itertools.product(heads_of(script, network, protocol), options):
            line = f"--network {network} {head} --protocol {protocol} {short} {option}"
            commands.append(line.strip())
    return commands


def commands_of(script: ModuleType) -> list[str]:
    """The command lines of a script, but for the folders of data and results."""
    if script.SCRIPT == "tabular":
        commands = ["--demo diabetes --epochs 3"]
        for targets, splits in [("x", 2), ("x,y,z", 3)]:
            commands.append(f"--csv DATA/table.csv --target {targets} --splits {splits} --epochs 3")
        return [f"{command} --head {x}" for command in commands for x in ("fc", "spinal")]
    if script.SCRIPT == "synthetic_regression":
        commands = []
        for function, head in itertools.product(FUNCTIONS, ["fc", "spinal"]):
            line = f"--function {function} --head {head} --epochs 100"
            commands += [f"{line} --protocol {x}" for x in PROTOCOLS]
            commands.append(f"--function {function} --head {head} --epochs 5 --noise broadcast")
        return commands
    return [f"{command} --data-dir DATA" for command in image_commands(script)]


class Thin(nn.Module):
    """A network of VGG's kind with few channels: (N, 3, S, S) -> (N, 1000)"""

    def __init__(self):
        super().__init__()
        self.features = torchvision.models.vgg.make_layers([16, "M", 32, "M"], batch_norm=True)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Dropout())
        self.classifier.extend([nn.Linear(64, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 1000)])

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def thin_model(name: str, weights: object = None) -> nn.Module:
    """In place of torchvision's get_model: of the two largest networks a thin one."""
    if name == "vgg19_bn":
        return Thin()
    if name == "wide_resnet101_2":
        block = torchvision.models.resnet.Bottleneck
        return torchvision.models.ResNet(block, [1, 1, 1, 1], width_per_group=16)
    return getattr(torchvision.models, name)(weights=weights)


# ---- One script ---------------------------------------------------------------------------------
def load(folder: Path, name: str) -> ModuleType:
    """The script `name` (MNIST/mnist, ...) below this folder as a module."""
    spec = importlib.util.spec_from_file_location(f"{folder.name}_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


class Interruption:
    """Stops a run, as Ctrl-C does, as soon as it has written its first checkpoint."""

    def __init__(self):
        self.replace = os.replace
        self.done = False

    def __call__(self, source: Path, target: Path) -> None:
        self.replace(source, target)
        if Path(target).suffix == ".pt" and not self.done:
            self.done = True
            raise KeyboardInterrupt


def called(script: ModuleType, command: list[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of a call of a script."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = script.main(command)
        except SystemExit as end:
            status = end.code
    return status, output.getvalue(), errors.getvalue()


def numbers_of(log: Path) -> dict[str, object]:
    """Everything in a log that must not change with the text, by a name for people."""
    numbers = {}
    for line in map(json.loads, log.read_text().splitlines()):
        if line["event"] == "start":
            facts = {key: line[key] for key in ("parameters", "fc_multiplications")}
            facts |= {key: line["data"].get(key) for key in ("train", "heldout", "test")}
            numbers |= {f"start {key}": x for key, x in facts.items()}
        elif line["event"] != "resume":
            place = f"epoch {line['epoch']}" if line["event"] == "epoch" else "end"
            numbers |= {f"{place} {key}": x for key, x in line.items() if key not in IGNORED}
    return numbers


def run(script: ModuleType, command: str, folder: Path, stop: bool) -> dict[str, object]:
    """The numbers of one run. Raises ValueError if it fails.

    folder: with `data`; results come into a folder of their own. stop: after the first epoch, and
    go on in a second call
    """
    with tempfile.TemporaryDirectory(dir=folder) as results:
        words = command.replace("DATA", str(folder / "data")).split()
        words += ["--quiet", "--device", "cpu", "--results-dir", results]
        if stop:
            torch.manual_seed(1)  # the run must not lean on what this process did before
            with mock.patch.object(os, "replace", Interruption()):
                status, _, errors = called(script, words)
            if status != 130:
                raise ValueError(f"could not be stopped: status {status}, {errors.strip()}")
        torch.manual_seed(2)
        status, output, errors = called(script, words)
        if status:
            raise ValueError(f"status {status}, {errors.strip()}")
        if stop and "goes on after epoch 1" not in output + errors:
            raise ValueError("its second call did not go on after epoch 1")
        (log,) = Path(results).rglob("*.jsonl")
        return numbers_of(log)


def printed(script: ModuleType, command: str) -> dict[str, object]:
    """The numbers that a script prints which writes no log."""
    status, output, errors = called(script, command.split())
    if status:
        raise ValueError(f"status {status}, {errors.strip()}")
    found = re.findall(r"(?<![\w.])\d[\d,.e+-]*", output)
    return {f"number {k}": x.rstrip(".,") for k, x in enumerate(found, 1)}


def difference(old: dict, new: dict) -> str:
    """The first number of the old text that is another one now; empty if there is none."""
    for key, value in old.items():
        if key not in new or new[key] != value:
            return f"{key}: {value}, now {new.get(key, 'absent')}"
    return ""


@dataclass
class Result:
    """What came out for one script."""

    name: str
    runs: int = 0
    differ: dict[str, str] = field(default_factory=dict)  # of commands: what is different
    expected: dict[str, str] = field(default_factory=dict)  # the same, with the reason
    note: str = ""

    def add(self, command: str, text: str) -> None:
        """Counts a run. text: its first difference, if there is one"""
        self.runs += 1
        if not text:
            return
        for (script, network), reason in EXPECTED.items():
            if script == Path(self.name).name and f"--network {network} " in command:
                self.expected[command] = f"{network}: {reason}"
                return
        released = "--protocol published " in command and self.name.startswith("Transfer")
        if released and text.startswith("end "):  # all epochs are equal
            self.expected[command] = LAST_STAGE
            return
        self.differ[command] = text

    def row(self) -> str:
        """A line of the table."""
        notes = [self.note] if self.note else []
        notes += sorted(set(self.expected.values()))
        if self.differ:
            command, text = next(iter(self.differ.items()))
            notes.append(f"`{command}`: {text.replace('|', '/')}")
        different = len(self.differ) + len(self.expected)
        cells = [f"{self.name}.py", self.runs, self.runs - different, different, "; ".join(notes)]
        return "| " + " | ".join(map(str, cells)) + " |"


def compare_script(job: tuple[Path, str, Path | None]) -> Result:
    """All runs of one script, in a process of its own. job: working folder, script, --keep"""
    folder, name, keep = job
    kept = keep / f"{Path(name).name}-{fingerprint(folder, name)}.json" if keep else None
    if kept and kept.exists():
        return Result(**json.loads(kept.read_text("utf-8")))
    result = Result(name)
    torch.set_num_threads(1)
    made_up_data.accept_any_content()
    try:
        compare_runs(folder, name, result)
    except Exception as error:  # one script must not keep the others from being compared
        result.add("any run", f"failed: {error!r}")
    if kept:
        keep.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(result)), encoding="utf-8")
    return result


def fingerprint(folder: Path, name: str) -> str:
    """Of all that a result depends on: both texts, this tool and its data, PyTorch."""
    digest = hashlib.sha256(torch.__version__.encode())
    texts = [folder / text / f"{name}.py" for text in ("base", "present")]
    for path in [*texts, Path(__file__), Path(made_up_data.__file__)]:
        digest.update(path.read_bytes() if path.exists() else b"none")
    return digest.hexdigest()[:16]


def compare_runs(folder: Path, name: str, result: Result) -> None:
    """Adds the runs of this script to the result. folder: with both texts"""
    old_file, new_file = (folder / text / f"{name}.py" for text in ("base", "present"))
    if not old_file.exists():
        result.note = "not there at BASE"
        return
    if old_file.read_bytes() == new_file.read_bytes():
        result.note = "the same text"
    old, new = load(folder / "base", name), load(folder / "present", name)
    if Path(name).name == "universal_approximation":
        result.add("--no-figure", difference(*(printed(x, "--no-figure") for x in (old, new))))
        return
    thin = mock.patch.object(torchvision.models, "get_model", thin_model)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made_up_data.write_for(name, Path(place) / "data")
        with contextlib.nullcontext() if Path(name).name == "tl_cifar10" else thin:
            for command in commands_of(new):
                try:
                    before = run(old, command, Path(place), stop=False)
                    now = run(new, command, Path(place), stop=True)
                    result.add(command, difference(before, now))
                except ValueError as error:
                    result.add(command, f"failed: {' '.join(str(error).split())[:300]}")


# ---- All of them --------------------------------------------------------------------------------
def names_of_scripts(folder: Path) -> list[str]:
    """MNIST/mnist and so on, of all scripts below this folder."""
    names = []
    for group in FOLDERS:
        names += [f"{group}/{path.stem}" for path in sorted((folder / group).glob("*.py"))]
    return names


def unpack(base: str, folder: Path) -> str:
    """Copies both texts into base/ and present/ of this folder. Returns the hash of BASE."""
    found = subprocess.run(
        ["git", "rev-parse", "--verify", f"{base}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if found.returncode:
        raise ValueError(f"{base!r} is no commit of this repository")
    commit = found.stdout.strip()
    archive = ["git", "archive", "--format=tar", commit, *FOLDERS]
    packed = subprocess.run(archive, cwd=ROOT, capture_output=True, check=True).stdout
    (folder / "base").mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder / "base")], input=packed, check=True)
    for name in names_of_scripts(ROOT):
        copy = folder / "present" / f"{name}.py"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / f"{name}.py").read_bytes())
    return commit[:7]


def page(results: list[Result], commit: str) -> str:
    """The table in Markdown."""
    runs = sum(result.runs for result in results)
    expected = sum(len(result.expected) for result in results)
    differ = sum(len(result.differ) for result in results)
    lines = [
        f"# The same numbers as at {commit}\n",
        f"Made by `make same-numbers BASE={commit}` with torch {torch.__version__}: short runs of "
        "each script, network, head and protocol with the text at that commit and, stopped after "
        "the first epoch and continued, with the present one. Every number of both logs is "
        "compared digit by digit (tools/same_numbers.py says how).\n",
        f"{runs} runs: {runs - expected - differ} equal, {expected} different as expected, "
        f"{differ} different.\n",
        "| Script | Runs | Equal | Different | Note |",
        "|---|---:|---:|---:|---|",
    ]
    return "\n".join([*lines, *(result.row() for result in results)]) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("base", nargs="?", default="HEAD", metavar="BASE", help="a commit; default: HEAD")
    add("--scripts", nargs="+", metavar="NAME", help="mnist, tl_svhn, ...; default: all")
    add("--jobs", type=int, default=2, help="scripts at a time, a thread each; default: 2")
    add("--output", type=Path, help="write the table to this file as well")
    add("--keep", type=Path, help="keep each script's result here, for the next call")
    args = parser.parse_args(argv)
    names = names_of_scripts(ROOT)
    known = {Path(name).name for name in names}
    if unknown := sorted(set(args.scripts or []) - known):
        parser.error(f"there is no script {unknown[0]}: choose from {', '.join(sorted(known))}")
    if args.scripts:
        names = [name for name in names if Path(name).name in args.scripts]
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes below
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # checkpoints are large
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        try:
            commit = unpack(args.base, Path(folder))
        except ValueError as error:
            parser.error(str(error))
        results = []
        context = multiprocessing.get_context("spawn")
        with context.Pool(max(1, args.jobs), maxtasksperchild=1) as pool:
            jobs = [(Path(folder), name, args.keep) for name in names]
            for result in pool.imap(compare_script, jobs):
                print(result.row(), flush=True)
                results.append(result)
            pool.close()
            pool.join()
    text = page(results, commit)
    print(f"\n{text}")
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    return 1 if any(result.differ for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
