# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=1.26", "tqdm>=4.66"]
# ///
"""Synthetic regression: a fully connected (FC) network against a SpinalNet. Table I of 2007.03347.

    python synthetic_regression.py                                 all eight cells of the table
    python synthetic_regression.py --function sum --head spinal    one of them

| target of eight inputs     | --function | FC, epoch 100, 200 | Spinal, epoch 100, 200 |
|----------------------------|------------|--------------------|------------------------|
| x1 + ... + x8 + noise      | sum        |       1.178, 0.887 |           1.007, 0.855 |
| sin(x1 + ... + x8) + noise | sinsum     |       1.918, 1.086 |           1.912, 1.219 |
| x1 x2 ... x8 + noise       | product    |       3.875, 3.875 |           3.966, 2.217 |
| sin(x1 x2 ... x8) + noise  | sinproduct |       3.403, 1.554 |           0.910, 0.910 |

These are the paper's mean squared errors (MSE) x 1e-3. All cells take a minute on one CPU core. Add
--runs 10 for ten seeds. Both heads of a seed train on the same samples in the same order. Each run
writes one log, results/logs/synthetic_regression/NAME.jsonl, and prints its errors beside the
paper's. If you interrupt a run, the same command continues it.

The paper's number at epoch E is the smallest loss so far of an epoch's last mini-batch: of 40
training samples, before the step on them. That is no test error (Q4). The noise has the variance
0.04 / 12 = 3.333e-3, and no model has a smaller MSE on fresh samples. What is below it is a lucky
batch, or noise learnt by heart. So each run also measures, without any effect on training:
  train_mse            of all 1,000 training samples
  clean_mse            of 10,000 fresh samples, against the function + 0.1, the mean of the noise:
                       a perfect model has 0
  constant_clean_mse   the same of a constant, the mean of the training targets

--protocol published (the default) trains as the authors' script does. --protocol corrected mends
faults that results/audit.md explains:
  Q3   six hidden layers of their own; published: layers 3 and 4 are called again in the place of
       layers 5 and 6, whose 5,500 of 14,301 parameters are never trained (if --layers is 6)
  Q4   train_mse and clean_mse after the last epoch are reported, not the smallest loss
--noise column (the default) gives each sample its own noise. The paper's numbers were made so (Q2).
--noise broadcast is the authors' script as it was released: it adds a row of noise to a column of
targets, which makes a matrix of 1,000 x 1,000 (Q1). Its loss is (output - clean target - mean of
the noise)^2 + variance of the noise. So training is free of noise, and no loss is below that
variance. --protocol corrected refuses it.
"""

# >>> shared: mlp_imports (origin Regression/synthetic_regression.py; edit there, then: make sync)
import argparse
import hashlib
import json
import math
import os
import re
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F
    from tqdm import tqdm
except (ImportError, OSError) as error:  # the second: a library of the system is missing
    print(f"error: {error}: pip install torch numpy tqdm, or uv run", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)
# <<< shared: mlp_imports
# ---- Facts of this experiment -------------------------------------------------------------------
SCRIPT = "synthetic_regression"
HEADS = ["fc", "spinal"]
FUNCTIONS = ["sum", "sinsum", "product", "sinproduct"]
INPUTS = 8
FC_WIDTHS = (200, 100)  # of the two hidden layers of the FC network
SLOPE = 0.01  # of the leaky ReLU, for negative numbers
FRESH = 10_000  # samples that no network is trained on
NOISE = 0.2  # times a random number from 0 to 1
NOISE_MEAN = 0.1
NOISE_VARIANCE = 0.04 / 12
PAPER = {  # MSE x 1e-3: the smallest by epoch 100, and by epoch 200
    "sum-fc": (1.178, 0.887),
    "sum-spinal6x50": (1.007, 0.855),
    "sinsum-fc": (1.918, 1.086),
    "sinsum-spinal6x50": (1.912, 1.219),
    "product-fc": (3.875, 3.875),
    "product-spinal6x50": (3.966, 2.217),
    "sinproduct-fc": (3.403, 1.554),
    "sinproduct-spinal6x50": (0.910, 0.910),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers of a run. The log repeats it as its `settings`."""

    dataset: str = "synthetic"
    function: str = "sum"
    noise: str = "column"  # or "broadcast"
    samples: int = 1_000  # for training
    network: str = "mlp"
    head: str = "fc"
    layers: int = 2  # hidden layers
    width: int = FC_WIDTHS[0]  # neurons in each of them; of the FC network: in the first one
    protocol: str = "published"
    epochs: int = 200
    batch_size: int = 64
    optimizer: str = "Adam"
    learning_rate: float = 0.01
    rate_rule: str = "constant"
    selection: str = "minimum"  # what to report: the smallest loss, or the "last" epoch's errors
    precision: str = "fp32"


FC = Recipe()
SPINAL = replace(FC, head="spinal", layers=6, width=50)
# Settings that the command line can change, and their marks in the names of logs.
MARKS = {"noise": "", "epochs": "e", "batch_size": "b", "learning_rate": "lr"}


def corrected(recipe: Recipe) -> Recipe:
    """The recipe without the faults that the docstring of this script lists."""
    return replace(recipe, protocol="corrected", selection="last")


def recipe_of(head: str, protocol: str, **changes) -> Recipe:
    """The recipe of the paper's column under this protocol, with changes that are not None."""
    recipe = FC if head == "fc" else SPINAL
    if protocol == "corrected":
        recipe = corrected(recipe)
    return replace(recipe, **{key: x for key, x in changes.items() if x is not None})


# >>> shared: mlp_common (origin Regression/synthetic_regression.py; edit there, then: make sync)
def seed_of(*purpose) -> int:
    """A seed made of its purpose, such as (0, "order", 5), so that no random state is saved."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def multiplications(network: nn.Module) -> int:
    """How many one sample takes: one for each weight of the linear layers; biases have none."""
    return sum(x.numel() for x in network.parameters() if x.dim() == 2)


# <<< shared: mlp_common
class Data(NamedTuple):
    """The samples of a seed on the device, and facts for the log."""

    inputs: Tensor  # (1000, 8)
    targets: Tensor  # (1000, 1), or (1000, 1000) with broadcast noise
    reference: Tensor  # (1000, 1): the MSE is the distance from it, squared, plus the floor
    fresh_inputs: Tensor  # (10000, 8)
    fresh_targets: Tensor  # (10000, 1)
    floor: float
    facts: dict


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (count, 8), standard normal, drawn column after column; then their noise (count,)."""
    columns = [torch.randn(count, generator=generator) for _ in range(INPUTS)]
    return torch.stack(columns, 1), NOISE * torch.rand(count, generator=generator)


def clean_targets(function: str, inputs: Tensor) -> Tensor:
    """The function, without noise: (N, 8) -> (N, 1)"""
    if function in ("sum", "sinsum"):
        targets = inputs.sum(1, keepdim=True)
    else:
        targets = inputs.prod(1, keepdim=True)
    if function in ("sinsum", "sinproduct"):
        return targets.sin()
    return targets


def load_data(recipe: Recipe, seed: int, device: torch.device) -> Data:
    """Draws the samples of this seed on the CPU, so that they are the same on every device."""
    # Seed 0 gives the samples of the authors' script.
    inputs, noise = draw(recipe.samples, torch.Generator().manual_seed(seed))
    fresh_inputs, _ = draw(FRESH, torch.Generator().manual_seed(seed_of(seed, "fresh")))
    clean = clean_targets(recipe.function, inputs)
    variance = float(noise.double().var(correction=0))
    if recipe.noise == "broadcast":
        targets, reference, floor = clean + noise, clean + noise.mean(), variance
    else:
        targets = reference = clean + noise[:, None]
        floor = 0.0
    fresh_targets = clean_targets(recipe.function, fresh_inputs) + NOISE_MEAN
    digest = hashlib.sha256()
    for part in (inputs, clean, noise):
        digest.update(part.contiguous().numpy())
    facts = {"sha256": digest.hexdigest()[:16], "official": True, "verified": True}
    facts |= {"train": len(inputs), "heldout": 0, "test": len(fresh_inputs)}
    facts["noise_variance_drawn"] = float(f"{variance:.6g}")
    tensors = [inputs, targets, reference, fresh_inputs, fresh_targets]
    return Data(*[x.to(device) for x in tensors], floor, facts)


class SpinalLayers(nn.Module):
    """The hidden layers of a SpinalNet (paper, section III): (N, features) -> (N, calls * width).

    The features are cut into two halves, A and B. The first call sees A. Each later call sees B,
    A, B, ... in turns, followed by the output of the call before it. All outputs are joined.
    calls: which of the layers does each call; a layer may do several of them, or none
    """

    def __init__(self, features: int, layers: int, width: int, calls: list[int]):
        super().__init__()
        self.half = features // 2
        self.calls = calls
        self.hidden = nn.ModuleList()
        for k in range(layers):
            inputs = self.half if k == 0 else self.half + width
            self.hidden.append(nn.Linear(inputs, width))

    def forward(self, x: Tensor) -> Tensor:
        halves = x.split(self.half, 1)
        outputs = []
        for k, layer in enumerate(self.calls):
            inputs = torch.cat([halves[k % 2], *outputs[-1:]], 1)
            outputs.append(F.leaky_relu(self.hidden[layer](inputs), SLOPE))
        return torch.cat(outputs, 1)


def build_network(
    network: str,
    head: str | None,
    *,
    protocol: str = "published",
    width: int | None = None,
    layers: int | None = None,
) -> nn.Module:
    """An untrained network on the CPU: (N, 8) -> (N, 1).

    network: "mlp"; head: None for "spinal"; width, layers: of the Spinal head, None for those of
    the paper's column. Raises ValueError for what does not exist.
    """
    head = head or "spinal"
    if network != "mlp" or head not in HEADS or (head == "fc" and (width or layers)):
        text = f"there is no network {network!r} with head {head!r}"
        raise ValueError(f"{text}, width {width} and layers {layers}")
    if head == "fc":
        first, second = FC_WIDTHS
        hidden = [nn.Linear(INPUTS, first), nn.LeakyReLU(SLOPE)]
        hidden += [nn.Linear(first, second), nn.LeakyReLU(SLOPE)]
        return nn.Sequential(*hidden, nn.Linear(second, 1))
    recipe = recipe_of(head, protocol, width=width, layers=layers)
    calls = list(range(recipe.layers))
    if protocol == "published" and recipe.layers == 6:  # Q3
        calls = [0, 1, 2, 3, 2, 3]
    hidden = SpinalLayers(INPUTS, recipe.layers, recipe.width, calls)
    return nn.Sequential(hidden, nn.Linear(recipe.layers * recipe.width, 1))


class Trainer:
    """Trains and measures one network."""

    def __init__(self, recipe: Recipe, data: Data, device: torch.device):
        self.recipe = recipe
        self.data = data
        sizes = {}
        if recipe.head == "spinal":
            sizes = {"width": recipe.width, "layers": recipe.layers}
        network = build_network("mlp", recipe.head, protocol=recipe.protocol, **sizes)
        self.network = network.to(device)
        weights = self.network.parameters()
        self.optimizer = torch.optim.Adam(weights, recipe.learning_rate, fused=True)

    def epoch(self, order: Tensor, state: dict) -> dict:
        """Trains on all samples in this order. Returns the numbers of the epoch's line."""
        data = self.data
        total = 0
        for index in order.split(self.recipe.batch_size):
            self.optimizer.zero_grad()
            targets = data.targets[index]
            outputs = self.network(data.inputs[index])
            # Broadcast noise has 1,000 targets for each output.
            loss = F.mse_loss(outputs.expand_as(targets), targets)
            loss.backward()
            self.optimizer.step()
            loss = loss.detach()
            total += loss * len(index)
        return {
            "train_loss": float(total) / len(order),
            "last_batch_mse": float(loss),
            "train_mse": self.evaluate(data.inputs, data.reference) + data.floor,
            "clean_mse": self.evaluate(data.fresh_inputs, data.fresh_targets),
        }

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        """The MSE of all these samples: inputs (N, 8), targets (N, 1)."""
        total = 0
        # So many fit into the cache of a CPU.
        for x, y in zip(inputs.split(1_000), targets.split(1_000), strict=True):
            total += F.mse_loss(self.network(x), y, reduction="sum")
        return float(total) / len(targets)

    def report(self, state: dict) -> dict:
        """The numbers of the log's last line. state: of the run"""
        lines = [line for line in state["lines"] if line["event"] == "epoch"]
        losses = [line["last_batch_mse"] for line in lines]
        numbers = {}
        for epoch in (100, 200):
            smallest = min(losses[:epoch]) if len(losses) >= epoch else None
            numbers[f"min_last_batch_mse_{epoch}"] = smallest
        numbers |= {key: lines[-1][key] for key in ("train_mse", "clean_mse")}
        constant = self.data.reference.mean()
        error = float((self.data.fresh_targets - constant).square().mean())
        return numbers | {"noise_variance": NOISE_VARIANCE, "constant_clean_mse": error}

    def weights(self) -> dict:
        """What --save-weights keeps: on the CPU, which every computer has."""
        return self.network.cpu().state_dict()


def head_name(recipe: Recipe) -> str:
    """fc, spinal6x50, ..."""
    return "fc" if recipe.head == "fc" else f"spinal{recipe.layers}x{recipe.width}"


def describe_run(recipe: Recipe, facts: dict) -> list[str]:
    """Parts of the run's name. facts: about the data"""
    return [recipe.function]


def paper_numbers(run: "Run") -> tuple[float, float] | None:
    """The paper's numbers, if this run can be compared with them."""
    if run.start["departures"]:
        return None
    return PAPER.get(f"{run.recipe.function}-{head_name(run.recipe)}")


def describe_result(run: "Run") -> str:
    """What has come out, in words."""
    numbers = {}  # x 1e-3
    for key, x in run.end.items():
        if "_mse" in key:
            numbers[key] = "none" if x is None else f"{1000 * x:.3f}"
    text = """MSE x 1e-3:
  smallest last batch: {min_last_batch_mse_100} by epoch 100, {min_last_batch_mse_200} by 200"""
    paper = paper_numbers(run)
    if paper:
        title = "paper" if run.recipe.protocol == "published" else "paper, as published"
        text += f" ({title}: {paper[0]:.3f}, {paper[1]:.3f})"
    smallest = run.end["min_last_batch_mse_200"]
    floor = run.data.floor or NOISE_VARIANCE
    if smallest is not None and smallest < floor:
        text += f"\n  that is below the variance of the noise, {1000 * floor:.3f}"
    text += """
  training samples: {train_mse}; fresh samples: {clean_mse} (a constant: {constant_clean_mse})"""
    return text.format(**numbers)


# >>> shared: mlp_run (origin Regression/synthetic_regression.py; edit there, then: make sync)
def found(file: str, pattern: str) -> str:
    """What a system file of Linux says in the first group of the pattern, or "unknown"."""
    text = Path(file).read_text() if Path(file).exists() else ""
    return [*re.findall(pattern, text), "unknown"][0]


def provenance(device: torch.device) -> dict:
    """The program and the machine: what else can change the last digits of a result."""
    text = Path(__file__).read_bytes().replace(b"\r\n", b"\n")
    versions = {"torch": str(torch.__version__)}
    processor = found("/proc/cpuinfo", "model name.*: (.*)")
    facts = {
        "script_sha256": hashlib.sha256(text).hexdigest()[:16],
        "versions": versions,
        "device": device.type,
        "device_name": f"{processor} ({torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        versions["cudnn"] = torch.backends.cudnn.version()
        facts |= {
            "device_name": torch.cuda.get_device_name(device),
            "capability": torch.cuda.get_device_capability(device),
            "driver": found("/proc/driver/nvidia/version", r"(\d+\.[\d.]+)"),
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
            "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        }
    return facts


def write_log(path: Path, lines: list[dict]) -> None:
    """Writes JSON lines. Numbers get six digits, or null if they are not finite."""
    with path.open("w") as file:
        for line in lines:
            for key, x in line.items():
                if isinstance(x, float):
                    line = line | {key: float(f"{x:.6g}") if math.isfinite(x) else None}
            file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())  # the computer may lose its power


def save_tensors(path: Path, content: dict) -> None:
    """Writes or replaces a file in one go, as the process may be killed any time."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def compare(old: dict, new: dict) -> bool:
    """Compares the first lines of two logs: are they by the same text of the script?

    Raises ValueError if settings or data differ.
    """
    names = [key for key, x in new["settings"].items() if old["settings"].get(key) != x]
    if old["data"]["sha256"] != new["data"]["sha256"]:
        names.append("data")
    if names:
        raise ValueError(f"it was made with other {', '.join(names)}")
    return old["provenance"]["script_sha256"] == new["provenance"]["script_sha256"]


@dataclass
class Run:
    """One network that is trained with one seed."""

    recipe: Recipe
    seed: int
    data: Data
    device: torch.device
    args: argparse.Namespace

    def __post_init__(self) -> None:
        recipe = self.recipe
        departures = [key for key in MARKS if getattr(recipe, key) != getattr(SPINAL, key)]
        parts = ["mlp", head_name(recipe), recipe.protocol]
        parts += describe_run(recipe, self.data.facts)
        parts += [f"{MARKS[key]}{getattr(recipe, key)}" for key in departures]
        self.name = "-".join([*parts, f"s{self.seed}"])
        results = self.args.results_dir.expanduser()
        self.log = results / "logs" / SCRIPT / f"{self.name}.jsonl"
        self.unfinished_log = self.log.with_suffix(".jsonl.part")
        self.checkpoint = self.log.with_suffix(".pt")
        self.weights = results / "weights" / SCRIPT / f"{self.name}.pt"
        torch.manual_seed(seed_of(self.seed, "weights"))
        self.trainer = Trainer(recipe, self.data, self.device)
        self.start = {
            "event": "start",
            "schema": 3,
            "script": SCRIPT,
            "run": self.name,
            "seed": self.seed,
            "settings": asdict(recipe),
            "departures": sorted(departures),
            "parameters": sum(x.numel() for x in self.trainer.network.parameters()),
            "fc_multiplications": multiplications(self.trainer.network),
            "data": self.data.facts,
            "provenance": provenance(self.device),
        }
        # lines: of the log; epoch: the last finished one; loss: of its training
        self.state = {"lines": [self.start], "epoch": 0, "loss": 0.0}
        self.next_save = 0.0

    def perform(self) -> None:
        """Trains what is left to train, and prints the result."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.args.overwrite:
            for file in (self.log, self.checkpoint, self.weights):
                file.unlink(missing_ok=True)
        try:
            note = self.read_end() if self.log.exists() else ""
            if not note and self.checkpoint.exists():
                self.resume()
        except MemoryError:
            raise
        except Exception as error:  # damaged files raise exceptions of many kinds
            reason = error if type(error) is ValueError else "it is damaged"
            raise ValueError(
                f"the log or checkpoint {self.log.with_suffix('')} cannot be used ({reason}): "
                "--overwrite starts anew"
            ) from error
        if note:
            print(note)
        else:
            left = range(self.state["epoch"] + 1, self.recipe.epochs + 1)
            # disable=None: no bar unless in a terminal
            for epoch in tqdm(left, self.name, leave=False, disable=self.args.quiet or None):
                if math.isfinite(self.state["loss"]):  # else the run has ended
                    self.train_epoch(epoch)
            self.finish()
        self.checkpoint.unlink(missing_ok=True)
        text = f"{self.name}: {self.end['outcome']}\n  {describe_result(self)}"
        print(f"{text}\n  log: {self.log}", flush=True)
        if self.args.save_weights:
            print(f"  weights: {self.weights}")

    def read_end(self) -> str:
        """Reads the finished log. Returns a note about it; raises ValueError if it does not fit."""
        lines = self.log.read_text().splitlines()
        first, self.end = json.loads(lines[0]), json.loads(lines[-1])
        same_script = compare(first, self.start)
        if self.args.save_weights and not self.weights.exists():
            raise ValueError("its weights were not saved")
        made = f"{self.end['ended']} on {first['provenance']['device_name']}"
        if not same_script:
            made += " by another version of this script"
        return f"already finished {made} (--overwrite runs it again):"

    def resume(self) -> None:
        """Goes on from the checkpoint. Raises an exception if it is not one of this run."""
        # Tensors and plain values only. load_state_dict brings them to the device of this run.
        saved = torch.load(self.checkpoint, "cpu")
        if not compare(saved["state"]["lines"][0], self.start):
            raise ValueError("it was made by another version of this script")
        self.trainer.network.load_state_dict(saved["network"])
        self.trainer.optimizer.load_state_dict(saved["optimizer"])
        self.state = saved["state"]
        epoch = self.state["epoch"]
        line = {"event": "resume", "epoch": epoch, "provenance": self.start["provenance"]}
        self.state["lines"].append(line)
        print(f"{self.name} goes on after epoch {epoch}")

    def train_epoch(self, epoch: int) -> None:
        """Trains, measures and saves one epoch."""
        began = time.monotonic()
        state = self.state
        # The head is not in this seed: both heads get the same samples in the same order.
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        order = torch.randperm(self.data.facts["train"], generator=generator)
        numbers = self.trainer.epoch(order.to(self.device), state)
        state |= {"epoch": epoch, "loss": numbers["train_loss"]}
        line = {
            "event": "epoch",
            "epoch": epoch,
            "learning_rate": self.recipe.learning_rate,
            **numbers,
            "seconds": time.monotonic() - began,
        }
        state["lines"].append(line)
        if time.monotonic() >= self.next_save:
            self.save()
            self.next_save = time.monotonic() + 1  # epochs are short, and files take time

    def save(self) -> None:
        """Writes the unfinished log and the checkpoint."""
        write_log(self.unfinished_log, self.state["lines"])
        saved = {
            "state": self.state,
            "network": self.trainer.network.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
        }
        save_tensors(self.checkpoint, saved)

    def finish(self) -> None:
        """Measures what is reported, and writes the log with its last line."""
        state = self.state
        end = {
            "event": "end",
            "epochs": state["epoch"],
            "outcome": "finished" if math.isfinite(state["loss"]) else "diverged",
            **self.trainer.report(state),
            "seconds": sum(line.get("seconds", 0) for line in state["lines"]),
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_log(self.unfinished_log, [*state["lines"], end])
        if self.args.save_weights:
            self.weights.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(self.weights, self.trainer.weights())
        os.replace(self.unfinished_log, self.log)
        self.read_end()


# <<< shared: mlp_run
# >>> shared: mlp_arguments (origin Regression/synthetic_regression.py; edit there, then: make sync)
NUMBERS = {  # settings and arguments that are whole numbers
    "layers": "hidden layers of the SpinalNet",
    "width": "neurons in each of them",
    "epochs": "how often the network sees each training sample",
    "batch_size": "samples in a step of training",
    "seed": "of the first run",
    "runs": "with seeds SEED, SEED + 1, ...",
}


def new_parser() -> argparse.ArgumentParser:
    """A parser with the flags that all scripts of this folder have."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    usual = "default: %(default)s"
    add("--head", choices=[*HEADS, "both"], default="both", help=usual)
    defaults = asdict(SPINAL) | {"seed": 0, "runs": 1}
    for key, text in NUMBERS.items():
        flag = f"--{key.replace('_', '-')}"
        add(flag, type=int, default=defaults[key], help=f"{text}; {usual}")
    add("--lr", type=float, dest="learning_rate", default=SPINAL.learning_rate, help=usual)
    add(
        "--device",
        default="cpu",
        help="cpu (default: faster for networks this small), cuda, cuda:1, auto (cuda or cpu)",
    )
    add("--results-dir", type=Path, default="results", help=usual)
    add("--save-weights", action="store_true", help="keep the network in results/weights")
    add("--quiet", action="store_true", help="print results only")
    add("--overwrite", action="store_true", help="delete what earlier runs left, and start anew")
    return parser


def check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the process with status 2 if a number is out of range."""
    for key, value in vars(args).items():
        flag = "--lr" if key == "learning_rate" else f"--{key.replace('_', '-')}"
        least = 1e-9 if type(value) is float else 1
        if key == "seed":
            least = 0
        if type(value) in (int, float) and not least <= value < 10**6:
            parser.error(f"{flag} must be from {least} to 999999")


def choose_device(name: str) -> torch.device:
    """The device of this name. Raises ValueError if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except Exception as error:  # PyTorch's text may name twenty devices
        raise ValueError(f"--device {name} cannot be used on this computer") from error


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 a mistake of the user, 130 stopped by Ctrl-C."""
    args = parse_arguments(argv)
    torch.set_num_threads(1)  # more threads would only wait for each other
    try:
        reproduce(args, choose_device(args.device))
    except KeyboardInterrupt:
        print("stopped: the same command, without --overwrite, goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    return 0


# <<< shared: mlp_arguments
def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. A mistake ends the process with status 2."""
    parser = new_parser()
    add = parser.add_argument
    add("--function", choices=[*FUNCTIONS, "all"], default="all", help="default: all four")
    add("--noise", choices=["column", "broadcast"], default="column", help="default: column")
    add("--protocol", choices=["published", "corrected"], default="published", help="see above")
    args = parser.parse_args(argv)
    check_numbers(parser, args)
    if args.head == "fc" and (args.layers, args.width) != (SPINAL.layers, SPINAL.width):
        parser.error("--layers and --width belong to the Spinal head: choose --head spinal or both")
    if args.noise == "broadcast" and args.protocol == "corrected":
        parser.error("--noise broadcast is a fault that --protocol corrected mends: leave one out")
    return args


def choose_recipes(args: argparse.Namespace, function: str) -> list[Recipe]:
    """What the command line asks for: the recipe of each head for this function."""
    recipes = []
    for head in HEADS if args.head == "both" else [args.head]:
        changes = {key: getattr(args, key) for key in MARKS}
        changes["function"] = function
        if head == "spinal":
            changes |= {"layers": args.layers, "width": args.width}
        recipes.append(recipe_of(head, args.protocol, **changes))
    return recipes


def announce(args: argparse.Namespace, functions: list[str], device: torch.device) -> None:
    """Prints what will be trained, on what and where."""
    recipes = choose_recipes(args, functions[0])
    heads = " and ".join(head_name(recipe) for recipe in recipes)
    print(f"synthetic, {args.protocol}, {args.noise} noise: {heads}; runs of each: {args.runs}")
    print(f"functions: {', '.join(functions)}")
    print(f"epochs: {args.epochs}; training samples: {SPINAL.samples:,}; device: {device}")


def print_differences(runs: dict[str, list[Run]]) -> None:
    """Prints by how much the Spinal head is better. runs: of each function, FC, Spinal, FC, ..."""
    first = next(iter(runs.values()))
    key, title = "clean_mse", "MSE of fresh samples"
    recipe = first[0].recipe
    if recipe.selection == "minimum" and recipe.epochs >= 200:
        key, title = "min_last_batch_mse_200", "smallest loss by epoch 200"
    seeds = len(first) // 2
    print(f"Spinal - FC, {title}, x 1e-3 (mean; number of seeds: {seeds}):")
    for function, pairs in runs.items():
        values = [run.end[key] for run in pairs]
        text = "a run diverged"
        if None not in values:
            text = f"{1000 * (sum(values[1::2]) - sum(values[0::2])) / seeds:+.3f}"
        fc, spinal = [paper_numbers(run) for run in pairs[:2]]
        if fc and spinal and key != "clean_mse":
            text += f" (paper: {spinal[1] - fc[1]:+.3f})"
        print(f"  {function}: {text}")


def reproduce(args: argparse.Namespace, device: torch.device) -> None:
    """Does what the command line asks for."""
    functions = FUNCTIONS if args.function == "all" else [args.function]
    if not args.quiet:
        announce(args, functions, device)
    runs = {function: [] for function in functions}
    for seed in range(args.seed, args.seed + args.runs):
        for function in functions:
            recipes = choose_recipes(args, function)
            data = load_data(recipes[0], seed, device)
            for recipe in recipes:
                run = Run(recipe, seed, data, device, args)
                run.perform()
                runs[function].append(run)
    if len(recipes) == 2:
        print_differences(runs)


if __name__ == "__main__":
    sys.exit(main())
