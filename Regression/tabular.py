# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "tqdm>=4.66", "matplotlib>=3.8", "scikit-learn>=1.4"]
# ///
"""Your own table of numbers: SpinalNet against a default fully connected (FC) network of equal budget.

    python tabular.py --csv houses.csv --target price            one target
    python tabular.py --csv robot.csv --target x,y,z --splits 3   several targets, inputs cut into three parts
    python tabular.py --demo diabetes --runs 10                  442 patients, 10 inputs, from scikit-learn

Not in the paper, whose own regression is synthetic_regression.py. The network is the general form of the released
"customizable" SpinalNet (spec custom.md, section 2): hidden layer k of n sees window k of the inputs and the output of layer
k - 1, the output layer sees all hidden outputs. --splits S makes windows of round(F / S) of the F inputs, one after the other,
from the front again at the end (Q3: inputs that no window has are an error, unless --allow-unused; Q4: half rounds to even).

The default network has two hidden layers of equal width, the largest whose multiplications do not exceed the SpinalNet's; the
log counts both. A table's rows are split once, by a seed that --seed does not change: --validation and --test of them are held
out (a fifth each). Inputs and targets are standardised by mean and deviation of the training rows alone. Adam trains on mean
squared error; the epoch with the lowest validation error is kept and the test rows are read once, with it. Errors are printed
in the targets' own units squared, with R^2 (1: perfect, 0: no better than the mean of the training rows).

A table is a CSV file with a line of column names; all its columns but the targets are inputs, all values are numbers. One log
a run goes to results/logs/tabular/, a plot of predictions to results/figures/. An interrupted run goes on where it stopped when
the command is repeated; a finished one is not run again. scikit-learn is needed for --demo alone, matplotlib for the plot.
"""
from __future__ import annotations

# >>> shared: imports (origin MNIST/mnist.py; edit there, then: make sync)
import argparse
import contextlib
import dataclasses
import errno
import gzip
import hashlib
import http.client
import io
import json
import math
import os
import pickle
import platform
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

try:
    import numpy
    import torch
    import torchvision
    from torch import Tensor, distributed, nn
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel
    from tqdm import tqdm
except ImportError as missing:
    sys.exit(f"error: {missing.name} is missing: pip install torch torchvision numpy tqdm, or start this file with uv run")
# <<< shared: imports

import csv
from collections.abc import Sequence


# >>> shared: basics (origin MNIST/mnist.py; edit there, then: make sync)
class UserError(Exception):
    """Something that the person at the keyboard can mend; the text is one sentence that says how. Exit status 2."""


def seed_of(*purpose: object) -> int:
    """A seed that is a pure function of its purpose: nothing random has to be stored in order to resume."""
    return int.from_bytes(hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest(), "big") >> 1


@contextlib.contextmanager
def one_at_a_time(folder: Path):
    """Holds a lock in a folder that is downloaded to, so that two processes never write the same files."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # Windows, a folder that is read-only: no lock
            import fcntl
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".lock", "a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"note: waiting for another process that reads or fetches data in {folder}", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
# <<< shared: basics

# ---- Facts of this experiment ----------------------------------------------------------------------------------------------
SCRIPT = "tabular"
EPOCHS, BATCH_SIZE, LEARNING_RATE = 60, 32, 0.003  # Adam, constant rate
LAYERS, WIDTH, SPLITS = 6, 20, 2
SPLIT_SEED = 0  # who is held out, whatever --seed is


# ---- Data ------------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Table:
    """Rows of numbers: inputs (N, F), targets (N, C), float64, and the names of their columns."""

    name: str
    inputs: numpy.ndarray
    targets: numpy.ndarray
    input_names: list[str]
    target_names: list[str]


@dataclasses.dataclass
class Data:
    """Standardised parts of a table on the device, and what turns predictions back into the targets' units."""

    parts: dict[str, tuple[Tensor, Tensor]]  # train, heldout, test: inputs (n, F), targets (n, C)
    mean: Tensor  # of the training targets, (C,)
    scale: Tensor
    facts: dict  # what the log says of the data


def read_csv(path: Path, targets: Sequence[str]) -> Table:
    """A CSV file with one line of names. Raises UserError that names line and column of what is no number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = [(number, row) for number, row in enumerate(csv.reader(stream), start=1) if row]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a CSV file with --csv") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8 ({error}): save the table as CSV") from None
    if len(lines) < 2:
        raise UserError(f"{path} has {len(lines)} lines: it needs a line of column names and rows of numbers below it")
    names = [name.strip() for name in lines[0][1]]
    if len(set(names)) < len(names) or "" in names:
        double = next(name for name in names if names.count(name) > 1 or not name)
        raise UserError(f"{path} has {'no name for a column' if not double else f'two columns named {double!r}'}: give each "
                        "column a name of its own")
    if missing := [name for name in targets if name not in names]:
        raise UserError(f"{path} has no column {missing[0]!r}: --target takes one or more of {', '.join(names)}")
    if len(set(targets)) == len(names):
        raise UserError(f"all columns of {path} are targets: leave at least one as input")
    rows = numpy.empty((len(lines) - 1, len(names)))
    for place, (number, row) in enumerate(lines[1:]):
        if len(row) != len(names):
            raise UserError(f"line {number} of {path} has {len(row)} values for {len(names)} columns: complete or remove it")
        for column, (name, text) in enumerate(zip(names, row)):
            try:
                rows[place, column] = value = float(text)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise UserError(f"line {number}, column {name!r} of {path} is {text!r}, not a number: put a number there, code "
                                "categories as 0 and 1, or remove the line")
    at = [names.index(name) for name in dict.fromkeys(targets)]
    others = [k for k in range(len(names)) if k not in at]
    return Table(path.stem, rows[:, others], rows[:, at], [names[k] for k in others], [names[k] for k in at])


def diabetes() -> Table:
    """442 patients, 10 inputs, disease progression after a year (Efron et al. 2004), as scikit-learn ships it unscaled."""
    try:
        from sklearn.datasets import load_diabetes
    except ImportError:
        raise UserError("--demo needs scikit-learn: pip install scikit-learn, or give a table of your own with --csv") from None
    found = load_diabetes(scaled=False)
    return Table("diabetes", found.data, found.target[:, None], list(found.feature_names), ["progression"])


def split_rows(count: int, heldout: float, test: float) -> dict[str, Tensor]:
    """Row numbers of the three parts: at least one each, drawn once for all seeds."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of("tabular split", SPLIT_SEED)))
    sizes = [max(1, round(count * share)) for share in (heldout, test)]
    if sum(sizes) + 2 > count:
        raise UserError(f"{count} rows are too few for {sizes[0]} validation rows, {sizes[1]} test rows and two to train on: "
                        "give more rows, or less of them to --validation and --test")
    ends = [sizes[1], sum(sizes)]
    parts = {"test": order[: ends[0]], "heldout": order[ends[0] : ends[1]], "train": order[ends[1] :]}
    return {name: part.sort()[0] for name, part in parts.items()}


def prepare(table: Table, options: argparse.Namespace, device: torch.device) -> Data:
    """Split and standardised by the training rows alone."""
    rows = split_rows(len(table.inputs), options.validation, options.test)
    inputs, targets = torch.from_numpy(table.inputs), torch.from_numpy(table.targets)
    moments = []
    for values, names in ((inputs, table.input_names), (targets, table.target_names)):
        train = values[rows["train"]]
        mean, scale = train.mean(0), train.std(0, correction=0)
        if names is table.target_names and (constant := [n for n, s in zip(names, scale) if s == 0]):
            raise UserError(f"target {constant[0]!r} is the same in all training rows: there is nothing to learn")
        moments.append((mean, torch.where(scale > 0, scale, torch.ones_like(scale))))  # a constant input becomes 0
    (x_mean, x_scale), (y_mean, y_scale) = moments
    inputs, targets = ((inputs - x_mean) / x_scale).float(), ((targets - y_mean) / y_scale).float()
    parts = {name: (inputs[index].to(device), targets[index].to(device)) for name, index in rows.items()}
    digest = hashlib.sha256(table.inputs.tobytes() + table.targets.tobytes()).hexdigest()[:16]
    facts = {**{name: len(index) for name, index in rows.items()}, "sha256": digest, "official": table.name == "diabetes",
             "inputs": table.inputs.shape[1], "targets": table.target_names}
    return Data(parts, y_mean.to(device), y_scale.to(device), facts)


# ---- Networks --------------------------------------------------------------------------------------------------------------
def windows(features: int, splits: int, layers: int) -> list[list[int]]:
    """Input numbers that each layer sees: windows of round(F / S), half to even (Q4), from the front again at the end."""
    size = round(features / splits)
    return [[(k * size + j) % features for j in range(size)] for k in range(layers)]


class SpinalNet(nn.Module):
    """The general SpinalNet (spec custom.md 5): (N, features) -> (N, outputs).

    chunks: the inputs that each hidden layer sees, one list of numbers each. widths: of the hidden layers, one for all or one
    each. activation: a factory. batch_norm, dropout: in each hidden layer; output_dropout: before the output layer. share[k]:
    the layer whose weights layer k uses (from 0). Raises ValueError for an empty chunk, a number that is no input, inputs that
    no layer sees (unless allow_unused), and layers of different shape that share weights.
    """

    def __init__(self, features: int, chunks: Sequence[Sequence[int]], widths: int | Sequence[int], outputs: int, *,
                 activation: callable = nn.ReLU, batch_norm: bool = False, dropout: float = 0.0, output_dropout: float = 0.0,
                 share: Sequence[int] | None = None, allow_unused: bool = False):
        super().__init__()
        widths = [widths] * len(chunks) if isinstance(widths, int) else list(widths)
        share = list(range(len(chunks))) if share is None else list(share)
        if features < 1 or outputs < 1 or not chunks or min(widths, default=0) < 1:
            raise ValueError("a SpinalNet needs at least one input, one output, one hidden layer and one neuron in each")
        if len(widths) != len(chunks) or len(share) != len(chunks):
            raise ValueError(f"{len(chunks)} hidden layers need as many widths and shares, not {len(widths)} and {len(share)}")
        for k, chunk in enumerate(chunks):
            if not chunk:
                raise ValueError(f"hidden layer {k + 1} sees no input: use fewer splits")
            if not all(0 <= number < features for number in chunk):
                raise ValueError(f"hidden layer {k + 1} asks for an input that is not among 0 to {features - 1}")
        unused = sorted(set(range(features)) - {number for chunk in chunks for number in chunk})
        if unused and not allow_unused:
            raise ValueError(f"inputs {', '.join(map(str, unused[:8]))} reach no layer: use more layers or fewer splits")
        shapes = [(len(chunk) + (widths[k - 1] if k else 0), widths[k]) for k, chunk in enumerate(chunks)]
        for k, source in enumerate(share):
            if not 0 <= source <= k or share[source] != source or shapes[k] != shapes[source]:
                raise ValueError(f"hidden layer {k + 1} cannot share the weights of layer {source + 1}: {shapes[k]} inputs and "
                                 f"neurons are not {shapes[source] if 0 <= source < len(shapes) else 'there'}")
        self.share, self.hidden = share, nn.ModuleList()
        for k, (chunk, shape) in enumerate(zip(chunks, shapes)):
            self.register_buffer(f"chunk{k}", torch.tensor(chunk), persistent=False)
            parts = ([nn.Dropout(dropout)] if dropout else []) + [nn.Linear(*shape)]
            parts += ([nn.BatchNorm1d(shape[1])] if batch_norm else []) + [activation()]
            self.hidden.append(nn.Sequential(*parts) if share[k] == k else nn.Identity())
        self.dropout, self.output = nn.Dropout(output_dropout), nn.Linear(sum(widths), outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for k, source in enumerate(self.share):
            window = x[:, getattr(self, f"chunk{k}")]
            outputs.append(self.hidden[source](torch.cat([window, outputs[-1]], 1) if outputs else window))
        return self.output(self.dropout(torch.cat(outputs, 1)))


def fc_width(features: int, outputs: int, budget: int) -> int:
    """Width w of two equal hidden layers, the largest with F w + w w + w C <= budget multiplications; at least 1."""
    return max(1, (math.isqrt((features + outputs) ** 2 + 4 * budget) - features - outputs) // 2)


def build_network(network: str, head: str | None, *, protocol: str = "corrected", width: int | None = None,
                  layers: int | None = None, features: int = 10, outputs: int = 1, splits: int = SPLITS,
                  allow_unused: bool = False) -> nn.Module:
    """A freshly initialised network on the CPU: (N, features) float -> (N, outputs).

    network: mlp. head: "fc" or "spinal" (None: spinal). width, layers, splits: of the SpinalNet (None: 20, 6); the FC network
    gets the budget of that SpinalNet. Raises ValueError for what does not exist (see SpinalNet).
    """
    head = head or "spinal"
    if network != "mlp" or head not in ("fc", "spinal") or splits < 1:
        raise ValueError(f"there is no network {network!r} with head {head!r} and {splits} splits")
    chunks = windows(features, splits, layers or LAYERS)
    spinal = SpinalNet(features, chunks, width or WIDTH, outputs, allow_unused=allow_unused)
    if head == "spinal":
        return spinal
    w = fc_width(features, outputs, count_fc_multiplications(spinal, torch.zeros(1, features)))
    return nn.Sequential(nn.Linear(features, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, outputs))


# >>> shared: counts (origin MNIST/mnist.py; edit there, then: make sync)
def count_fc_multiplications(network: nn.Module, sample: Tensor) -> int:
    """in x out summed over every call of a linear layer for one sample (N = 1); biases and convolutions are not counted."""
    calls = []
    hooks = [module.register_forward_hook(lambda m, _, __: calls.append(m.in_features * m.out_features))
             for module in network.modules() if isinstance(module, nn.Linear)]
    mode = network.training
    with torch.no_grad():
        network.eval()(sample)
    network.train(mode)
    for hook in hooks:
        hook.remove()
    return sum(calls)
# <<< shared: counts


# ---- Training --------------------------------------------------------------------------------------------------------------
def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, order: Tensor,
                batch_size: int) -> float:
    """One pass in the given order, the last batch not dropped. Returns the mean loss."""
    network.train()
    total = torch.zeros((), device=inputs.device)
    for index in order.split(batch_size):
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(network(inputs[index]), targets[index])
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(index)
    return float(total) / len(order)


@torch.no_grad()
def errors(network: nn.Module, inputs: Tensor, targets: Tensor, scale: Tensor) -> Tensor:
    """Mean squared error of each target in its own units, (C,)."""
    return ((network.eval()(inputs) - targets) * scale).square().mean(0)


# ---- Log and checkpoint ----------------------------------------------------------------------------------------------------
# >>> shared: log (origin MNIST/mnist.py; edit there, then: make sync)
def rounded(value: float, digits: int = 6) -> float | None:
    """Six significant digits keep a thousand logs small; JSON has no word for a loss that is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def provenance(device: torch.device) -> dict:
    """What ran where: script, versions, device."""
    script = Path(__file__).resolve()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        models = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        name = models[0] if models else name
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    revision = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(script.parent), "log", "-1", "--format=%h", "--", script.name]
        revision = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or None
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
                "numpy": numpy.__version__}
    return {"script_sha256": hashlib.sha256(script.read_bytes()).hexdigest()[:16], "git_revision": revision,
            "device": device.type, "device_name": name, "threads": torch.get_num_threads(), "versions": versions,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def peak_memory(device: torch.device) -> int | None:
    """Most bytes ever held: by CUDA tensors on that device, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def naming(path: Path):
    """Makes an error in here say which file it is about; when a write fails, the operating system does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class RunLog:
    """The JSON-lines file of one run: `NAME.jsonl.part` while unfinished, `NAME.jsonl` as the last act.

    The unfinished file is locked by the process that writes it, which the system undoes when that process dies; `NAME.pid`
    says which one it is.
    """

    def __init__(self, folder: Path, name: str):
        self.path, self.part, self.owner = (folder / f"{name}{suffix}" for suffix in (".jsonl", ".jsonl.part", ".pid"))
        self.file = None

    def open(self, start: dict, epochs_done: int) -> bool:
        """Opens the unfinished log and keeps its first `epochs_done` epoch lines if it began with the same `start`.

        Returns whether it did; otherwise the file is begun anew. Raises UserError if another process has it open.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.part, "a+b", buffering=0)  # nothing is left in a buffer when a write fails
        with naming(self.part):
            self.lock()
            self.file.seek(0)
            lines = [line + b"\n" for line in self.file.read().split(b"\n")[:-1]]  # what follows the last newline is torn
            same = 0 < epochs_done < len(lines) and self.comparable(lines[0]) == self.comparable(json.dumps(start))
            self.file.truncate(sum(map(len, lines[: 1 + epochs_done])) if same else 0)
        if not same:
            if len(lines) > 1:
                print(f"note: {self.part.name} begins anew: it was made with other versions, settings or text of the script,"
                      " on another device, or its checkpoint is missing", file=sys.stderr)
            self.write(start)
        return same

    def lock(self) -> None:
        """Raises UserError if another process has this log, or has just finished it."""
        try:
            import fcntl
        except ImportError:  # Windows has no flock; two runs at once are not detected there
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            who = "one that does not say which it is"
            with contextlib.suppress(OSError, ValueError):
                who = self.owner.read_text(encoding="utf-8").strip() or who
            raise UserError(f"another process ({who}) is writing {self.part}: wait for it, or stop it first") from None
        except OSError:  # a file system without locks: as on Windows
            return
        if not self.part.exists() or not os.path.samestat(os.fstat(self.file.fileno()), self.part.stat()):
            raise UserError(f"another process has just finished {self.path}: repeat the command")
        self.owner.write_text(f"{os.getpid()} on {platform.node()}\n", encoding="utf-8")

    @staticmethod
    def comparable(line: bytes | str) -> dict | None:
        """A start line without its time."""
        try:
            record = json.loads(line)
            record["provenance"].pop("started")
        except (ValueError, KeyError, TypeError):
            return None
        return record

    def write(self, record: dict) -> None:
        rest = json.dumps(record, allow_nan=False).encode() + b"\n"
        with naming(self.part):
            while rest:
                rest = rest[self.file.write(rest) :]
            os.fsync(self.file.fileno())  # before the checkpoint of the same epoch, which must not be ahead of the log

    def finish(self, record: dict) -> None:
        self.write(record)
        self.owner.unlink(missing_ok=True)
        os.replace(self.part, self.path)
        self.file.close()


class Checkpoint:
    """The state after an epoch, with the one before it, each written atomically and followed by its SHA-256.

    torch.load alone takes most altered bytes for numbers. A torn, altered or foreign file counts as none.
    """

    def __init__(self, path: Path):
        self.path, self.previous, self.partial = path, path.with_suffix(".previous.pt"), path.with_suffix(".tmp")
        self.saved_at, self.cost = 0.0, 0.0

    def load(self, device: torch.device) -> dict | None:
        for path in (self.path, self.previous):
            try:
                content = path.read_bytes()
                if hashlib.sha256(content[:-32]).digest() != content[-32:]:
                    raise ValueError("its checksum is wrong")
                state = torch.load(io.BytesIO(content[:-32]), map_location=device, weights_only=True)
                if {"run", "state"} <= set(state):
                    return state
                reason = "it is no checkpoint of this collection"
            except (FileNotFoundError, NotADirectoryError):  # the first also between the two renamings of `save`
                continue
            except torch.OutOfMemoryError:
                raise
            except (OSError, EOFError, LookupError, AttributeError, RuntimeError, TypeError, ValueError,
                    pickle.PickleError) as error:
                reason = str(error).partition("\n")[0]
            print(f"note: {path} is not used: {reason}", file=sys.stderr)
        return None

    def save(self, state: dict) -> None:
        """Skipped while saving at this pace would cost more than a twentieth of the time."""
        began = time.monotonic()
        if began - self.saved_at < 20 * self.cost:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(state, content)  # not into the file: on a full disk torch raises a RuntimeError that says nothing
        content.write(hashlib.sha256(content.getbuffer()).digest())
        try:
            with naming(self.partial), open(self.partial, "wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self.partial.unlink(missing_ok=True)  # a half file would fill the disk for the other runs
            raise
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, self.previous)
        os.replace(self.partial, self.path)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - began

    def remove(self) -> None:
        for path in (self.path, self.previous, self.partial):
            path.unlink(missing_ok=True)
# <<< shared: log


class Run:
    """One head and seed: its weights, optimiser, log and checkpoint."""

    def __init__(self, head: str, seed: int, table: Table, data: Data, options: argparse.Namespace, device: torch.device):
        self.head, self.seed, self.data, self.options, self.device = head, seed, data, options, device
        features, outputs = table.inputs.shape[1], table.targets.shape[1]
        torch.manual_seed(seed_of(seed, "weights"))
        try:
            network = build_network("mlp", head, width=options.width, layers=options.layers, features=features, outputs=outputs,
                                    splits=options.splits, allow_unused=options.allow_unused)
        except ValueError as error:
            raise UserError(f"--splits {options.splits} --layers {options.layers} with {features} inputs: {error} "
                            "(--allow-unused)") from None
        self.layers, self.width = (2, network[0].out_features) if head == "fc" else (options.layers, options.width)
        self.label = "fc" if head == "fc" else f"spinal{self.layers}x{self.width}"
        self.start = self.describe(network, table)
        self.name = self.start["run"]
        self.log = RunLog(options.results_dir / "logs" / SCRIPT, self.name)
        self.checkpoint = Checkpoint(options.results_dir / "checkpoints" / SCRIPT / f"{self.name}.pt")
        self.network = network.to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=options.lr)
        self.state = {"epoch": 0, "seconds": 0.0, "best": math.inf, "best_epoch": 0, "diverged": False}
        self.best_weights = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.finished = self.log.path.exists() and not options.overwrite
        if self.finished and not self.log.part.exists():  # a process was killed between its last two acts
            self.checkpoint.remove()

    def describe(self, network: nn.Module, table: Table) -> dict:
        """The first line of the log: everything that decides the numbers, and where they come from."""
        options, budget = self.options, f"{self.options.splits}-{self.options.layers}x{self.options.width}"
        known = {"epochs": ("e", EPOCHS), "batch_size": ("b", BATCH_SIZE), "lr": ("lr", LEARNING_RATE)}
        changed = {option: short for option, (short, default) in known.items() if getattr(options, option) != default}
        parts = ["mlp", self.label, "corrected", "".join(c if c.isalnum() else "_" for c in table.name), f"split{budget}",
                 f"data{self.data.facts['sha256'][:8]}"]
        parts += [f"{short}{getattr(options, option)}" for option, short in changed.items()]
        settings = {
            "task": "tabular", "dataset": table.name, "targets": table.target_names, "network": "mlp", "head": self.head,
            "layers": self.layers, "width": self.width, "splits": options.splits, "budget": budget, "protocol": "corrected",
            "epochs": options.epochs, "batch_size": options.batch_size, "learning_rate": options.lr, "optimizer": "Adam",
            "rate_rule": "constant", "selection": "heldout", "precision": "fp32", "validation": options.validation,
            "test": options.test}
        return {"event": "start", "schema": 1, "script": SCRIPT, "run": "-".join(parts) + f"-s{self.seed}", "seed": self.seed,
                "settings": settings, "departures": sorted(changed),
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "fc_multiplications": count_fc_multiplications(network, torch.zeros(1, table.inputs.shape[1])),
                "data": self.data.facts, "provenance": provenance(self.device)}

    def begin(self) -> None:
        """Opens the log; goes on from the checkpoint if there is one of the same run."""
        saved = self.checkpoint.load(self.device)
        if not self.log.open(self.start, saved["state"]["epoch"] if saved and saved.get("run") == self.name else 0):
            return
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state, self.best_weights = saved["state"], saved["best_weights"]

    def train_epoch(self, epoch: int, order: Tensor) -> None:
        """One epoch: train, read the validation rows, log, save."""
        began, state = time.monotonic(), self.state
        loss = train_epoch(self.network, self.optimizer, *self.data.parts["train"], order, self.options.batch_size)
        error = float(errors(self.network, *self.data.parts["heldout"], self.data.scale).mean())
        if error < state["best"]:
            state.update(best=error, best_epoch=epoch)
            self.best_weights = {key: value.clone() for key, value in self.network.state_dict().items()}
        seconds = time.monotonic() - began
        self.log.write({"event": "epoch", "epoch": epoch, "learning_rate": self.options.lr, "train_loss": rounded(loss),
                        "heldout_mse": rounded(error), "seconds": rounded(seconds, 3)})
        state.update(epoch=epoch, diverged=not math.isfinite(loss), seconds=state["seconds"] + seconds)
        self.checkpoint.save({"run": self.name, "state": state, "network": self.network.state_dict(),
                              "optimizer": self.optimizer.state_dict(), "best_weights": self.best_weights})

    def end(self) -> None:
        """Reads the test rows with the kept weights and closes the log."""
        state, (inputs, targets) = self.state, self.data.parts["test"]
        self.network.load_state_dict(self.best_weights)
        error = errors(self.network, inputs, targets, self.data.scale)
        constant = (targets * self.data.scale).square().mean(0)  # of predicting the mean of the training rows, which is 0 here
        record = {"event": "end", "outcome": "diverged" if state["diverged"] else "finished", "epochs": state["epoch"],
                  "best_epoch": state["best_epoch"], "heldout_mse": rounded(state["best"]),
                  "test_mse": rounded(float(error.mean())), "test_r2": rounded(float((1 - error / constant).mean())),
                  "seconds": rounded(state["seconds"]), "peak_memory_bytes": peak_memory(self.device)}
        if state["diverged"]:
            record["diverged_epoch"] = state["epoch"]
        self.log.finish(record)
        self.checkpoint.remove()

    def result(self) -> str:
        """One line from the finished log."""
        end = json.loads(self.log.path.read_text(encoding="utf-8").splitlines()[-1])
        numbers = "no finite error" if end["test_mse"] is None else f"test MSE {end['test_mse']:.6g}, R^2 {end['test_r2']:.3f}"
        return (f"seed {self.seed}  {self.label:<12} {self.start['parameters']:>8,} parameters  {numbers}  "
                f"(epoch {end['best_epoch']} of {end['epochs']})")


def train_together(runs: list[Run], options: argparse.Namespace) -> None:
    """Trains all runs of one seed, epoch by epoch, on the same batches in the same order."""
    for run in runs:
        run.begin()
    first, count = min(run.state["epoch"] for run in runs), len(runs[0].data.parts["train"][0])
    bar = tqdm(total=options.epochs * len(runs), initial=sum(run.state["epoch"] for run in runs), unit="epoch", leave=False,
               dynamic_ncols=True, desc=f"seed {runs[0].seed}", disable=None if not options.quiet else True)
    try:
        for epoch in range(first + 1, options.epochs + 1):
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(runs[0].seed, "order", epoch)))
            for run in runs:
                if run.state["epoch"] == epoch - 1 and not run.state["diverged"]:
                    run.train_epoch(epoch, order.to(run.device))
                    bar.update()
    finally:
        bar.close()
    for run in runs:
        run.end()


def plot(runs: list[Run], table: Table, folder: Path) -> Path | None:
    """Predicted against true targets of the test rows, one panel a head; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("note: no plot without matplotlib: pip install matplotlib", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, grid = pyplot.subplots(1, len(runs), figsize=(3.2 * len(runs), 3.2), squeeze=False, layout="constrained")
    for axes, run in zip(grid.flat, runs):
        inputs, targets = run.data.parts["test"]
        with torch.no_grad():
            predicted = run.network.eval()(inputs) * run.data.scale + run.data.mean
        true = targets * run.data.scale + run.data.mean
        for column, (name, marker) in enumerate(zip(table.target_names, "os^Dv<>ph*" * len(table.target_names))):
            axes.plot(true[:, column].cpu(), predicted[:, column].cpu(), linestyle="none", marker=marker, markersize=3,
                      alpha=0.6, label=name)
        ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.set_title(f"{'FC' if run.head == 'fc' else 'Spinal'}, {run.layers} x {run.width}", fontsize=9)
        axes.set_xlabel("true")
        axes.set_ylabel("predicted, test rows")
        if len(table.target_names) > 1:
            axes.legend(fontsize=7, frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"tabular_{runs[0].name.rpartition('-s')[0].split('-', 3)[3]}.png"
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
    return path


# ---- Command line ----------------------------------------------------------------------------------------------------------
# >>> shared: options (origin MNIST/mnist.py; edit there, then: make sync)
class Parser(argparse.ArgumentParser):
    """Reports a user's mistake as a UserError instead of printing the usage and leaving."""

    def error(self, message: str):
        raise UserError(message)


def number(low: float, below: float, kind: type = float) -> callable:
    """An argparse type: a number of that kind in [low, below)."""
    def convert(text: str) -> float:
        try:
            if not re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", text):  # Python also takes 1_0, spaces and foreign digits
                raise ValueError
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a {'whole ' * (kind is int)}number, not {text!r}") from None
        if not low <= value < below:
            raise argparse.ArgumentTypeError(f"must be {low} or more and less than {below}, not {text}")
        return value
    return convert


def whole(low: int) -> callable:
    """An argparse type: a whole number of at least `low`."""
    return number(low, 2**31, int)


def folder(text: str) -> Path:
    """An argparse type: the path of a folder, there or not."""
    if not text.strip() or not text.isprintable():  # also what is no text at all, which could not be printed
        raise argparse.ArgumentTypeError(f"must be the name of a folder, not {text!r}")
    return Path(text)


def common_options(parser: argparse.ArgumentParser) -> None:
    """Flags that mean the same in every script."""
    parser.add_argument("--protocol", choices=("published", "corrected"), default="published",
                        help="published: as the released scripts did; corrected: with their quirks mended (see above)")
    parser.add_argument("--epochs", type=whole(1), metavar="N", help="default: as published")
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="default: as published")
    parser.add_argument("--lr", type=number(1e-9, math.inf), metavar="RATE", help="first learning rate; default: as published")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="first seed (default: 0)")
    parser.add_argument("--runs", type=whole(1), default=1, metavar="N", help="repeat with seeds seed..seed+N-1 (default: 1)")
    parser.add_argument("--results-dir", type=folder, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (cuda, else mps, else cpu), cpu, cuda, cuda:1")
    parser.add_argument("--quiet", action="store_true", help="print the results only")
    parser.add_argument("--overwrite", action="store_true", help="run again what is already finished")


def choose_device(name: str) -> torch.device:
    """The torch device of that name. Raises UserError if there is none."""
    if name == "auto":
        mps = getattr(torch.backends, "mps", None)
        name = "cuda" if torch.cuda.is_available() else "mps" if mps and mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps") or device.type != "cuda" and device.index is not None:
            raise RuntimeError
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"there is no device {name!r} here: choose auto, cpu, or a cuda device of this machine") from None
    return device


def guarded(work: callable, argv: list[str] | None) -> int:
    """Runs `work(argv)` and turns every way of stopping into an exit status: 2 user's mistake, 130 Ctrl-C, 143 SIGTERM."""
    def terminate(*_):
        raise KeyboardInterrupt("terminated")

    with contextlib.suppress(ValueError):  # not in the main thread, for instance in a notebook's worker
        signal.signal(signal.SIGTERM, terminate)
    socket.setdefaulttimeout(60)  # seconds; a download that stalls is an error then, and not a wait for ever
    try:
        work(argv)
        return 0
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'a file'} cannot be used ({error.strerror or error}): check the folder, its rights" \
                  " and the space on the disk, then repeat the command; a run goes on after the last epoch that was saved"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            message = "the device has too little memory: choose a smaller --batch-size, or --device cpu"
        elif isinstance(error, MemoryError) or "allocate memory" in str(error) or "overflow" in str(error):
            message = "this machine has too little memory for a network or a batch of this size: choose smaller ones"
        else:
            raise
    except KeyboardInterrupt as stop:
        print("stopped: the same command goes on after the last epoch that was saved", file=sys.stderr)
        return 143 if "terminated" in stop.args else 130
    print("error: " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in message), file=sys.stderr)  # one line
    return 2
# <<< shared: options


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a table: a line of column names, then rows of numbers")
    parser.add_argument("--target", metavar="COL[,COL]", help="what to predict; all other columns are inputs")
    parser.add_argument("--demo", choices=("diabetes",), help="scikit-learn's diabetes data instead of a table")
    parser.add_argument("--head", choices=("fc", "spinal", "both"), default="both", help="default: both on the same batches")
    parser.add_argument("--splits", type=whole(1), default=SPLITS, metavar="S", help="parts of the input (default: 2)")
    parser.add_argument("--layers", type=whole(1), default=LAYERS, metavar="N", help="of the SpinalNet (default: 6)")
    parser.add_argument("--width", type=whole(1), default=WIDTH, metavar="N", help="neurons of each of them (default: 20)")
    parser.add_argument("--allow-unused", action="store_true", help="inputs that no window has are left out without an error")
    parser.add_argument("--validation", type=number(1e-6, 1), default=0.2, metavar="SHARE", help="of the rows (default: 0.2)")
    parser.add_argument("--test", type=number(1e-6, 1), default=0.2, metavar="SHARE", help="of the rows (default: 0.2)")
    common_options(parser)
    parser.set_defaults(epochs=EPOCHS, batch_size=BATCH_SIZE, lr=LEARNING_RATE, device="cpu", protocol="corrected")
    options = parser.parse_args(argv)
    if options.protocol != "corrected":
        raise UserError("a table of your own has no published protocol: leave --protocol out")
    if (options.csv is None) == (options.demo is None):
        raise UserError("give a table with --csv FILE --target COLUMN, or --demo diabetes")
    if options.csv and not (options.target or "").strip(", "):
        raise UserError("--csv needs --target COLUMN: the column or columns to predict, separated by commas")
    if options.demo and options.target:
        raise UserError("--target belongs to --csv; the demo predicts disease progression")
    return options


def work(argv: list[str] | None) -> None:
    """Everything that the command line asks for."""
    options = parse_arguments(argv)
    device = choose_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # fastest for networks of this size, and the numbers do not depend on the number of cores
    names = [name.strip() for name in (options.target or "").split(",") if name.strip()]
    table = diabetes() if options.demo else read_csv(options.csv, names)
    data = prepare(table, options, device)
    if not options.quiet:
        facts = data.facts
        print(f"{table.name}: {facts['inputs']} inputs, {len(table.target_names)} target{'s' * (len(table.target_names) > 1)}, "
              f"{facts['train']} training, {facts['heldout']} validation and {facts['test']} test rows")
    heads = [head for head in ("fc", "spinal") if options.head in (head, "both")]
    for seed in range(options.seed, options.seed + options.runs):
        runs = [Run(head, seed, table, data, options, device) for head in heads]
        unfinished = [run for run in runs if not run.finished]
        if unfinished:
            train_together(unfinished, options)
        for run in runs:
            print(run.result() + ("" if run in unfinished else "  (already finished)"), flush=True)
    if unfinished == runs and (path := plot(runs, table, options.results_dir / "figures")):
        print(f"plot of the last seed: {path}; logs: {runs[0].log.path.parent}")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 user's mistake, 130 Ctrl-C, 143 SIGTERM."""
    return guarded(work, argv)


if __name__ == "__main__":
    sys.exit(main())
