# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "tqdm>=4.66"]
# ///
"""Synthetic regression: default fully connected (FC) network against SpinalNet. Table I of arXiv 2007.03347.

| target, eight inputs     | --function | paper x 1e-3: FC @100 | FC @200 | Spinal @100 | Spinal @200 |
|--------------------------|------------|----------------------:|--------:|------------:|------------:|
| x1 + ... + x8 + noise    | sum        |                 1.178 |   0.887 |       1.007 |       0.855 |
| sin(x1 + ... + x8)+noise | sinsum     |                 1.918 |   1.086 |       1.912 |       1.219 |
| x1 x2 ... x8 + noise     | product    |                 3.875 |   3.875 |       3.966 |       2.217 |
| sin(x1 x2 ... x8)+ noise | sinproduct |                 3.403 |   1.554 |       0.910 |       0.910 |

`python synthetic_regression.py` alone trains all of it once, both heads on the same batches, half a minute on a CPU;
`--runs 10` with ten seeds. One cell: `--function sum --head spinal`. The paper's number at epoch E is a minimum over epochs
1..E of the loss of the last mini-batch, 40 training samples before their own update: no test error. The noise has variance
0.04/12 = 3.333e-3; on fresh samples no model has a smaller MSE. Every run therefore also measures train_mse (all 1,000
training samples) and clean_mse (10,000 fresh samples against function + 0.1, the mean of the noise; its floor is 0).
They are read after each epoch and decide nothing.

`--protocol published` (default) is the paper's experiment; `--protocol corrected` changes exactly this:
  Q1       --noise broadcast is refused
  Q3       six hidden layers of their own (published: layers 3 and 4 used again as 5 and 6; the declared layers 5 and 6, 5,500
           of 14,301 parameters, are never trained). With another --layers than 6 every layer is its own in both protocols
  Q4       reported: train_mse and clean_mse of the network (published: the minimum of the last-batch loss)
  Q5       of the last epoch; nothing is selected (published: the epoch of the minimum; its network is never used)
Kept in both: Q2, column noise is the default because the paper's numbers were made with it; Q9, one seed says little, use
--runs 10; Q10, the noise has mean 0.1, a part of what is learnt. Seed 0 draws the samples of the released script; weights and
order of the batches are other draws (Q6).

`--noise broadcast` (Q1) is the released script as it stands: a vector of noise added to a column gives a 1,000 x 1,000 target
whose row i holds clean_i + noise_j for all j. Its loss is (prediction - clean_i - mean noise)^2 + variance of the noise drawn,
so training is free of noise and no loss can fall below that variance. There train_mse is this loss over all 1,000 rows.

One log a run goes to results/logs/synthetic_regression/, its checkpoint to results/checkpoints/ until it is finished. An
interrupted run goes on where it stopped when the command is repeated; a finished one is not run again. Default device: cpu,
one thread; a training step takes less than a millisecond there, which leaves a GPU little to gain. On one processor and one
set of versions a seed gives the same log bit by bit. Q-numbers: quirks of the released script, listed in this project.
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


# ---- Facts of this experiment: Table I -------------------------------------------------------------------------------------
SCRIPT, DATASET, INPUTS, SAMPLES, FRESH = "synthetic_regression", "synthetic", 8, 1_000, 10_000
EPOCHS, BATCH_SIZE, LEARNING_RATE = 200, 64, 0.01  # Adam, constant rate
FC, SPINAL = (200, 100), (6, 50)  # widths of the two hidden layers; hidden layers and their width
NOISE, NOISE_MEAN, NOISE_VARIANCE = 0.2, 0.1, 0.04 / 12  # noise: 0.2 * uniform[0, 1)
FUNCTIONS = {"sum": lambda x: x.sum(1, keepdim=True), "sinsum": lambda x: x.sum(1, keepdim=True).sin(),
             "product": lambda x: x.prod(1, keepdim=True), "sinproduct": lambda x: x.prod(1, keepdim=True).sin()}
PAPER = {  # Table I: (function, head): minimum so far at epochs 100 and 200, x 1e-3
    ("sum", "fc"): (1.178, 0.887), ("sum", "spinal"): (1.007, 0.855),
    ("sinsum", "fc"): (1.918, 1.086), ("sinsum", "spinal"): (1.912, 1.219),
    ("product", "fc"): (3.875, 3.875), ("product", "spinal"): (3.966, 2.217),
    ("sinproduct", "fc"): (3.403, 1.554), ("sinproduct", "spinal"): (0.910, 0.910),
}


# ---- Data ------------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Data:
    inputs: Tensor  # (1000, 8)
    targets: Tensor  # (1000, 1), or (1000, 1000) with broadcast noise
    reference: Tensor  # (1000, 1): the training loss of a sample is its squared distance from this, plus `floor`
    floor: float  # 0, or the variance of the noise drawn with broadcast noise
    fresh_inputs: Tensor  # (10000, 8)
    fresh_targets: Tensor  # (10000, 1), without noise, but with its mean
    facts: dict  # what the log says of the data


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (count, 8), standard normal, drawn column after column; then noise (count,), 0.2 * uniform[0, 1)."""
    columns = [torch.randn(count, generator=generator) for _ in range(INPUTS)]
    return torch.stack(columns, 1), NOISE * torch.rand(count, generator=generator)


def make_data(function: str, noise_mode: str, seed: int, device: torch.device) -> Data:
    """The data of a seed, drawn on the CPU, so that every device gets the same ones."""
    inputs, noise = draw(SAMPLES, torch.Generator().manual_seed(seed))  # seed 0: the very samples of the released script
    fresh, _ = draw(FRESH, torch.Generator().manual_seed(seed_of(seed, "fresh")))
    clean, variance = FUNCTIONS[function](inputs), float(noise.double().var(correction=0))
    targets, reference, floor = clean + noise[:, None], clean + noise[:, None], 0.0
    if noise_mode == "broadcast":  # Q1: the released script leaves out [:, None]
        targets, reference, floor = clean + noise, clean + noise.mean(), variance
    digest = hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in (inputs, clean, noise)))
    facts = {"train": SAMPLES, "heldout": 0, "test": FRESH, "sha256": digest.hexdigest()[:16], "official": True,
             "noise_variance_drawn": rounded(variance)}
    tensors = (inputs, targets, reference, fresh, FUNCTIONS[function](fresh) + NOISE_MEAN)
    inputs, targets, reference, fresh, fresh_targets = (tensor.to(device) for tensor in tensors)
    return Data(inputs, targets, reference, floor, fresh, fresh_targets, facts)


# ---- Networks --------------------------------------------------------------------------------------------------------------
class SpinalLayers(nn.Module):
    """The hidden layers of a SpinalNet with leaky ReLU (spec regression.md 2): (N, features) -> (N, layers * width).

    The input is cut into halves A, B. Call k sees one half (A, B, A, B, ...) and, from the second on, the output of call
    k - 1, in this order. All outputs are joined, the first one's first. `calls` says which layer does call k (Q3).
    """

    def __init__(self, features: int, layers: int, width: int, calls: tuple[int, ...]):
        super().__init__()
        self.half, self.calls = features // 2, calls
        self.hidden = nn.ModuleList(nn.Linear(self.half + (width if k else 0), width) for k in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        halves = x[:, : self.half], x[:, self.half :]
        outputs = [F.leaky_relu(self.hidden[0](halves[0]), 0.01)]
        for k, layer in enumerate(self.calls[1:], start=1):
            outputs.append(F.leaky_relu(self.hidden[layer](torch.cat([halves[k % 2], outputs[-1]], 1)), 0.01))
        return torch.cat(outputs, 1)


def build_network(network: str, head: str | None, *, protocol: str = "published", width: int | None = None,
                  layers: int | None = None) -> nn.Module:
    """A freshly initialised network on the CPU: (N, 8) float -> (N, 1).

    network: mlp. head: "fc" or "spinal" (None: spinal). width, layers: of the Spinal head (None: published).
    Raises ValueError for what does not exist.
    """
    head = head or "spinal"
    if network != "mlp" or head not in ("fc", "spinal") or protocol not in ("published", "corrected"):
        raise ValueError(f"there is no network {network!r} with head {head!r} under protocol {protocol!r}")
    if head == "fc" and (width is not None or layers is not None):
        raise ValueError("width and layers belong to the Spinal head; the default FC head has its published size")
    if head == "fc":
        return nn.Sequential(nn.Linear(INPUTS, FC[0]), nn.LeakyReLU(0.01), nn.Linear(FC[0], FC[1]), nn.LeakyReLU(0.01),
                             nn.Linear(FC[1], 1))
    layers, width = layers or SPINAL[0], width or SPINAL[1]
    slip = protocol == "published" and layers == 6  # Q3: layers 5 and 6 are declared, and never called
    calls = (0, 1, 2, 3, 2, 3) if slip else tuple(range(layers))
    return nn.Sequential(SpinalLayers(INPUTS, layers, width, calls), nn.Linear(layers * width, 1))


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
def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, data: Data, order: Tensor,
                batch_size: int) -> tuple[float, float]:
    """One pass in the given order, the last batch not dropped. Returns the mean loss and that of the last batch (Q4)."""
    total = torch.zeros((), device=order.device)
    for index in order.split(batch_size):
        optimizer.zero_grad(set_to_none=True)
        targets = data.targets[index]
        # (B, 1) against (B, 1) or (B, 1000): the released script leaves this expansion to the loss, which prints a warning.
        loss = F.mse_loss(network(data.inputs[index]).expand_as(targets), targets)
        loss.backward()
        optimizer.step()
        loss = loss.detach()  # computed before this batch's own step
        total += loss * len(index)
    return float(total) / len(order), float(loss)


@torch.no_grad()
def mean_squared_error(network: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Over all samples; in parts that fit a CPU's cache."""
    parts = [F.mse_loss(network(x), y, reduction="sum") for x, y in zip(inputs.split(1_000), targets.split(1_000))]
    return float(sum(parts)) / len(targets)


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
    """One function, head and seed: its weights, optimiser, log and checkpoint."""

    def __init__(self, function: str, head: str, seed: int, data: Data, options: argparse.Namespace, device: torch.device):
        self.function, self.head, self.seed = function, head, seed
        self.data, self.options, self.device = data, options, device
        sizes = {"layers": options.layers, "width": options.width} if head == "spinal" else {}
        self.layers, self.width = (len(FC), FC[0]) if head == "fc" else (options.layers or SPINAL[0], options.width or SPINAL[1])
        self.label = head if head == "fc" else f"spinal{self.layers}x{self.width}"
        torch.manual_seed(seed_of(seed, "weights"))
        network = build_network("mlp", head, protocol=options.protocol, **sizes)
        self.start = self.describe(network)
        self.name = self.start["run"]
        self.log = RunLog(options.results_dir / "logs" / SCRIPT, self.name)
        self.checkpoint = Checkpoint(options.results_dir / "checkpoints" / SCRIPT / f"{self.name}.pt")
        self.network = network.to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=options.lr, fused=True)  # a fifth faster, same formula
        self.state = {"epoch": 0, "seconds": 0.0, "diverged": False}
        self.state |= dict.fromkeys(("minimum", "minimum_100", "minimum_200", "last_batch", "train", "clean"), math.inf)
        self.finished = self.log.path.exists() and not options.overwrite
        if self.finished and not self.log.part.exists():  # a process was killed between its last two acts
            self.checkpoint.remove()

    def describe(self, network: nn.Module) -> dict:
        """The first line of the log: everything that decides the numbers, and where they come from."""
        options, corrected = self.options, self.options.protocol == "corrected"
        known = {"noise": ("", "column"), "epochs": ("e", EPOCHS), "batch_size": ("b", BATCH_SIZE), "lr": ("lr", LEARNING_RATE)}
        changed = {option: short for option, (short, default) in known.items() if getattr(options, option) != default}
        parts = ["mlp", self.label, options.protocol, self.function]
        parts += [f"{short}{getattr(options, option)}" for option, short in changed.items()]
        settings = {
            "dataset": DATASET, "function": self.function, "noise": options.noise, "samples": SAMPLES, "network": "mlp",
            "head": self.head, "layers": self.layers, "width": self.width, "protocol": options.protocol,
            "epochs": options.epochs, "batch_size": options.batch_size, "learning_rate": options.lr, "optimizer": "Adam",
            "rate_rule": "constant", "selection": "last" if corrected else "minimum", "precision": "fp32"}
        return {"event": "start", "schema": 1, "script": SCRIPT, "run": "-".join(parts) + f"-s{self.seed}", "seed": self.seed,
                "settings": settings, "departures": sorted(changed),
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "fc_multiplications": count_fc_multiplications(network, torch.zeros(1, INPUTS)), "data": self.data.facts,
                "provenance": provenance(self.device)}

    def begin(self) -> None:
        """Opens the log; goes on from the checkpoint if there is one of the same run."""
        saved = self.checkpoint.load(self.device)
        if not self.log.open(self.start, saved["state"]["epoch"] if saved and saved.get("run") == self.name else 0):
            return
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = saved["state"]

    def train_epoch(self, epoch: int, order: Tensor) -> None:
        """One epoch: train, measure, log, save."""
        began, state, data = time.monotonic(), self.state, self.data
        loss, last_batch = train_epoch(self.network, self.optimizer, data, order, self.options.batch_size)
        train = mean_squared_error(self.network, data.inputs, data.reference) + data.floor
        clean = mean_squared_error(self.network, data.fresh_inputs, data.fresh_targets)
        if last_batch < state["minimum"]:
            state["minimum"] = last_batch
        if epoch in (100, 200):
            state[f"minimum_{epoch}"] = state["minimum"]
        seconds = time.monotonic() - began
        self.log.write({"event": "epoch", "epoch": epoch, "learning_rate": self.options.lr, "train_loss": rounded(loss),
                        "last_batch_mse": rounded(last_batch), "train_mse": rounded(train), "clean_mse": rounded(clean),
                        "seconds": rounded(seconds, 4)})
        state.update(epoch=epoch, last_batch=last_batch, train=train, clean=clean, diverged=not math.isfinite(loss),
                     seconds=state["seconds"] + seconds)
        self.checkpoint.save({"run": self.name, "state": state, "network": self.network.state_dict(),
                              "optimizer": self.optimizer.state_dict()})

    def progress(self) -> str:
        """How it stands after the last epoch, for the terminal."""
        state = self.state
        return f"last batch {state['last_batch']:.5f}, train {state['train']:.5f}, clean {state['clean']:.5f}"

    def end(self) -> None:
        """Closes the log."""
        state = self.state
        record = {"event": "end", "outcome": "diverged" if state["diverged"] else "finished", "epochs": state["epoch"],
                  "min_last_batch_mse_100": rounded(state["minimum_100"]),
                  "min_last_batch_mse_200": rounded(state["minimum_200"]),
                  "train_mse": rounded(state["train"]), "clean_mse": rounded(state["clean"]),
                  "noise_variance": rounded(NOISE_VARIANCE), "seconds": rounded(state["seconds"]),
                  "peak_memory_bytes": peak_memory(self.device)}
        if state["diverged"]:
            record["diverged_epoch"] = state["epoch"]
        self.log.finish(record)
        self.checkpoint.remove()


def train_together(runs: list[Run], options: argparse.Namespace) -> None:
    """Trains all runs of one seed and function, epoch by epoch, on the same batches in the same order."""
    for run in runs:
        run.begin()
    first, seed = min(run.state["epoch"] for run in runs), runs[0].seed
    bar = tqdm(total=options.epochs * len(runs), initial=sum(run.state["epoch"] for run in runs), unit="epoch", leave=False,
               dynamic_ncols=True, desc=f"seed {seed} {runs[0].function}", disable=None if not options.quiet else True)
    try:
        for epoch in range(first + 1, options.epochs + 1):
            order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seed_of(seed, "order", epoch)))
            active = [run for run in runs if run.state["epoch"] == epoch - 1 and not run.state["diverged"]]
            for run in active:
                run.train_epoch(epoch, order.to(run.device))
                bar.update()
            if active and not options.quiet and epoch % 50 == 0:
                parts = " | ".join(f"{run.label}: {run.progress()}" for run in active)
                bar.write(f"seed {seed}  {runs[0].function}  epoch {epoch}/{options.epochs}  {parts}", file=sys.stdout)
    finally:
        bar.close()
    for run in runs:
        run.end()


def print_results(runs: list[Run], options: argparse.Namespace) -> None:
    """A table of one seed, from the finished logs, beside the paper's numbers."""
    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    seed, folder, drawn = runs[0].seed, runs[0].log.path.parent, 1000 * runs[0].data.facts["noise_variance_drawn"]
    floor, any_below = drawn if options.noise == "broadcast" else 1000 * NOISE_VARIANCE, False
    print(f"\nseed {seed}, {options.protocol}, {options.noise} noise, {options.epochs} epochs: MSE x 1e-3 "
          f"(variance of the noise: 0.04/12 = {NOISE_VARIANCE:.6f}, in this table 3.333)\n"
          "function    head           min @100   paper   min @200   paper   train_mse   clean_mse")
    for run in runs:
        end = json.loads(run.log.path.read_text(encoding="utf-8").splitlines()[-1])
        ours = {key: value * 1000 if value is not None else None for key, value in end.items() if "mse" in key}
        paper = PAPER[run.function, run.head] if run.head == "fc" or (run.layers, run.width) == SPINAL else (None, None)
        text = f"{run.function:<12}{run.label:<13}"
        for epochs, printed in zip((100, 200), paper):
            minimum = ours[f"min_last_batch_mse_{epochs}"]
            below = minimum is not None and minimum < floor
            text, any_below = f"{text}{cell(minimum):>10}{'*' if below else ' '}{cell(printed):>7} ", any_below or below
        text += f"{cell(ours['train_mse']):>11}{cell(ours['clean_mse']):>12}"
        print(text + (f"  diverged in epoch {end['diverged_epoch']}" if end["outcome"] == "diverged" else ""))
    if any_below:
        print("* below the variance of the noise, which no model can be on fresh samples: the luckiest of many small training "
              "batches, or noise learnt by heart (Q4)")
    if options.noise == "broadcast":
        print(f"With broadcast noise no loss can be below the variance of the noise drawn, here {floor:.3f} (Q1)")
    unlike = runs[0].start["departures"] + ["protocol"] * (options.protocol == "corrected")
    if unlike:
        print(f"The paper's numbers are of another setting: {', '.join(unlike)}")
    print(f"Logs: {folder}/mlp-*-s{seed}.jsonl", flush=True)


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
    """The command line, with the published values filled in. Raises UserError."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--function", choices=(*FUNCTIONS, "all"), default="all", help="default: all four")
    parser.add_argument("--noise", choices=("column", "broadcast"), default="column",
                        help="column: each sample its own (default); broadcast: the released script's 1,000 x 1,000 target (Q1)")
    parser.add_argument("--head", choices=("fc", "spinal", "both"), default="both",
                        help="default: both, side by side on the same batches")
    parser.add_argument("--layers", type=whole(1), metavar="N", help="hidden layers of the Spinal head; default: 6")
    parser.add_argument("--width", type=whole(1), metavar="N", help="neurons of each of them; default: 50")
    common_options(parser)
    parser.set_defaults(epochs=EPOCHS, batch_size=BATCH_SIZE, lr=LEARNING_RATE, device="cpu")
    options = parser.parse_args(argv)
    if options.head == "fc" and (options.layers or options.width):
        raise UserError("--layers and --width belong to the Spinal head: choose --head spinal or both with them")
    if options.noise == "broadcast" and options.protocol == "corrected":
        raise UserError("--noise broadcast is a slip that --protocol corrected mends: leave out one of the two")
    return options


def work(argv: list[str] | None) -> None:
    """Everything that the command line asks for."""
    options = parse_arguments(argv)
    device = choose_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # fastest for batches of 64, and the numbers do not depend on the number of cores
    for seed in range(options.seed, options.seed + options.runs):
        runs = []
        for function in FUNCTIONS if options.function == "all" else (options.function,):
            data = make_data(function, options.noise, seed, device)
            heads = [head for head in ("fc", "spinal") if options.head in (head, "both")]
            pair = [Run(function, head, seed, data, options, device) for head in heads]
            unfinished = [run for run in pair if not run.finished]
            for run in (run for run in pair if run.finished):
                print(f"already finished: {run.log.path}")
            if unfinished:
                train_together(unfinished, options)
            runs += pair
        print_results(runs, options)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 user's mistake, 130 Ctrl-C, 143 SIGTERM."""
    return guarded(work, argv)


if __name__ == "__main__":
    sys.exit(main())
