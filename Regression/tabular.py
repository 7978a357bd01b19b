# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=1.26", "tqdm>=4.66", "scikit-learn>=1.4"]
# ///
"""Your own table: a SpinalNet against a fully connected (FC) network that costs as much.

    python tabular.py --csv houses.csv --target price               one number to predict
    python tabular.py --csv robot.csv --target x,y,z --splits 3     several, inputs cut into 3 parts
    python tabular.py --csv plants.csv --target species --task classification
    python tabular.py --demo diabetes --runs 10                     442 patients, from scikit-learn

A table is a text file (UTF-8): a line of column names, then a line for each row. Values are parted
by commas, semicolons or tabs, whichever the first line has most of, or by --delimiter. All columns
but the targets are inputs. All values are numbers, with a decimal point; only the target of a
classification may be text. A table has at least 20 rows.

This is not in the paper, whose own regression is synthetic_regression.py. The network is the
authors' "customizable" SpinalNet: hidden layer k sees window k of the inputs, and the output of
layer k - 1; the output layer sees the outputs of all hidden layers. --splits S makes windows of F/S
of the F inputs, rounded (half to even, Q4), one after the other, and from the front again at the
end. Inputs that are in no window are an error, unless you give --allow-unused; the authors' code
loses them in silence (Q3). The Q-numbers are those of results/audit.md, custom.

The FC network has two hidden layers of equal width, the largest whose multiplications do not exceed
the SpinalNet's. The log counts both. The rows are split once, by a seed that --seed does not
change. Inputs and numbers to predict are standardised by the training rows' mean and deviation.
Adam trains on the mean squared error (MSE), or on the cross-entropy of the classes. The epoch that
does best on the validation rows is kept: by its MSE, or by accuracy and, where that is equal, by
cross-entropy. The test rows have no influence on anything. Their MSE is in the targets' own units
squared, RMSE is its root, and R^2 compares it with the training rows' mean (1: perfect, 0: no
better); with several targets, MSE and R^2 are means over them. If you interrupt a run, the same
command continues it.

--save-weights keeps a dictionary in results/weights/tabular: `network` for load_state_dict, the
names, mean and scale of the inputs, and those of the targets (or the names of the classes). An
input of the network is (x - input_mean) / input_scale, and a prediction is y * target_scale +
target_mean, or classes[y.argmax()].
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
import copy
import csv

# ---- Facts of this experiment -------------------------------------------------------------------
SCRIPT = "tabular"
HEADS = ["fc", "spinal"]
DIABETES = "e9c1f7559552854a"  # hash of the demo's numbers
MISSING = ["", "?", "na", "n/a", "nan"]  # what stands in tables for a missing value
LEAST_ROWS = 20


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers of a run. The log repeats it as its `settings`."""

    dataset: str = ""  # name of the table
    targets: list[str] | None = None  # names of the columns to predict
    task: str = "tabular"  # which is regression; or "classification"
    network: str = "mlp"
    head: str = "spinal"
    layers: int = 6  # hidden layers
    width: int = 20  # neurons in each of them
    splits: int = 2
    budget: str = ""  # sizes of the SpinalNet, which the FC network follows: splits-layersxwidth
    protocol: str = "corrected"
    epochs: int = 60
    batch_size: int = 32
    optimizer: str = "Adam"
    learning_rate: float = 0.003
    rate_rule: str = "constant"
    selection: str = "heldout"
    validation: float = 0.2  # share of the rows
    test: float = 0.2
    precision: str = "fp32"


SPINAL = Recipe()
# Settings that the command line can change, and their marks in the names of logs.
MARKS = {
    "epochs": "e",
    "batch_size": "b",
    "learning_rate": "lr",
    "validation": "validation",
    "test": "test",
}


# >>> shared: mlp_common (origin Regression/synthetic_regression.py; edit there, then: make sync)
def seed_of(*purpose) -> int:
    """A seed made of its purpose, such as (0, "order", 5), so that no random state is saved."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def multiplications(network: nn.Module) -> int:
    """How many one sample takes: one for each weight of the linear layers; biases have none."""
    return sum(x.numel() for x in network.parameters() if x.dim() == 2)


# <<< shared: mlp_common
class Table(NamedTuple):
    """A table as it was read."""

    name: str
    inputs: Tensor  # (N, F) float64
    targets: Tensor  # (N, C) float64; or the numbers of classes, (N,) int64
    names: dict[str, list[str]]  # of inputs, targets and classes (empty: no classification)


class Data(NamedTuple):
    """What runs need of a table."""

    parts: dict[str, tuple[Tensor, Tensor]]  # train, heldout, test: inputs, targets; on the device
    scaling: dict  # names, mean and scale of inputs (F,) and targets (C,); names of classes
    shape: dict  # arguments of build_network
    facts: dict  # for the log


def read_demo() -> Table:
    """Diabetes patients: how far it has progressed after a year (Efron et al. 2004)."""
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise ValueError("--demo needs scikit-learn: pip install scikit-learn") from error
    patients = load_diabetes(scaled=False)
    targets = torch.from_numpy(patients.target)[:, None]
    names = {"inputs": patients.feature_names, "targets": ["progression"], "classes": []}
    return Table("diabetes", torch.from_numpy(patients.data), targets, names)


def read_rows(path: Path, delimiter: str | None) -> list[tuple[int, dict]]:
    """The number of each line below the names, and its values by column. Raises ValueError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = delimiter or max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter)
            names = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            rows = [(reader.line_num, row) for row in reader]
    except (csv.Error, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no table in UTF-8 with the delimiter {delimiter!r}: {error}"
        ) from error
    if not rows:
        raise ValueError(f"{path} has no rows below a line of column names")
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"{path}: each column needs a name of its own: {', '.join(names)}")
    for line, row in rows:
        if None in row or None in row.values():  # csv's sign for too many or too few
            raise ValueError(
                f"{path}, line {line}: it has not one value for each of {len(names)} columns: "
                "mend it, or name the sign between values with --delimiter"
            )
    return rows


def numbers_of(rows: list[tuple[int, dict]], columns: list[str]) -> Tensor:
    """The values of these columns, (N, columns) float64. Raises ValueError if one is no number."""
    numbers = []
    for line, row in rows:
        for name in columns:
            try:
                numbers.append(float(row[name]))
            except ValueError:
                numbers.append(math.nan)
            if not math.isfinite(numbers[-1]):
                raise ValueError(
                    f"column {name!r}, line {line}: {row[name]!r} is not a number: fill in what is "
                    "missing, write decimals with a point, categories as 0 and 1; for a target "
                    "that is text there is --task classification"
                )
    return torch.tensor(numbers, dtype=torch.float64).view(len(rows), len(columns))


def read_table(args: argparse.Namespace) -> Table:
    """The table that the command line names. Raises ValueError if it cannot be used."""
    if args.demo:
        return read_demo()
    rows = read_rows(args.csv, args.delimiter)
    columns = list(rows[0][1])
    for target in args.targets:
        if target not in columns:
            raise ValueError(f"no column {target!r}, but {', '.join(columns)} (see --delimiter)")
    inputs = [name for name in columns if name not in args.targets]
    if not inputs:
        raise ValueError("--target names all columns: none is left as an input")
    names = {"inputs": inputs, "targets": args.targets, "classes": []}
    if args.task == "regression":
        targets = numbers_of(rows, args.targets)
    else:
        labels = []
        for line, row in rows:
            labels.append(row[args.targets[0]].strip())
            if labels[-1].lower() in MISSING:
                raise ValueError(f"column {args.targets[0]!r}, line {line}: the class is missing")
        names["classes"] = sorted(set(labels))
        targets = torch.tensor([names["classes"].index(label) for label in labels])
    return Table(args.csv.stem, numbers_of(rows, inputs), targets, names)


def split_rows(count: int, heldout: float, test: float) -> dict[str, Tensor]:
    """The rows of each part, the same in all runs. Raises ValueError if there are too few."""
    generator = torch.Generator().manual_seed(seed_of("tabular split", 0))
    order = torch.randperm(count, generator=generator)
    sizes = [round(count * share) for share in (test, heldout)]
    sizes.append(count - sum(sizes))
    if count < LEAST_ROWS or min(sizes) < 2:
        raise ValueError(
            f"{count} rows are too few to test on {sizes[0]}, validate on {sizes[1]} and train on "
            f"the rest: {LEAST_ROWS} are needed, 2 in each part"
        )
    parts = [part.sort().values for part in order.split(sizes)]
    return dict(zip(("test", "heldout", "train"), parts, strict=True))


def moments_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column; a column that does not change gets 1."""
    scale = rows.std(0, correction=0)
    return rows.mean(0), torch.where(scale > 0, scale, 1.0)


def load_data(table: Table, args: argparse.Namespace, device: torch.device) -> Data:
    """Splits and standardises a table, by its training rows alone. Raises ValueError."""
    _, inputs, targets, names = table
    rows = split_rows(len(inputs), args.validation, args.test)
    train = targets[rows["train"]]
    if (train == train[0]).all(0).any():
        raise ValueError(f"a target of {', '.join(names['targets'])} is the same in all rows")
    classes = names["classes"]
    if len(train.unique()) < len(classes):
        raise ValueError("a class is in no training row: give more rows of it, or leave it out")
    sha256 = hashlib.sha256(inputs.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()[:16]
    facts = {
        "sha256": sha256,
        "official": bool(args.demo),
        "verified": sha256 == DIABETES,
        "inputs": len(names["inputs"]),
        "targets": names["targets"],
    }
    mean, scale = moments_of(inputs[rows["train"]])
    inputs = ((inputs - mean) / scale).float()
    scaling = {**names, "input_mean": mean, "input_scale": scale}
    if not classes:
        mean, scale = moments_of(train)
        targets = ((targets - mean) / scale).float()
        scaling |= {"target_mean": mean, "target_scale": scale}
    parts = {}
    for name, index in rows.items():
        parts[name] = (inputs[index].to(device), targets[index].to(device))
        facts[name] = len(index)
    shape = {key: getattr(args, key) for key in ("splits", "layers", "width", "allow_unused")}
    shape |= {"features": facts["inputs"], "outputs": len(classes or names["targets"])}
    return Data(parts, scaling, shape, facts)


class SpinalNet(nn.Module):
    """The authors' customizable SpinalNet: (N, features) -> (N, outputs).

    Hidden layer k sees window k of the inputs, followed by the output of layer k - 1. The output
    layer sees all hidden outputs. size: of a window
    """

    def __init__(self, features: int, size: int, layers: int, width: int, outputs: int):
        super().__init__()
        windows = (torch.arange(layers * size) % features).view(layers, size)
        self.register_buffer("windows", windows, persistent=False)
        self.hidden = nn.ModuleList()
        for k in range(layers):
            inputs = size if k == 0 else size + width
            self.hidden.append(nn.Linear(inputs, width))
        self.output = nn.Linear(layers * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for window, layer in zip(self.windows, self.hidden, strict=True):
            inputs = torch.cat([x[:, window], *outputs[-1:]], 1)
            outputs.append(F.relu(layer(inputs)))
        return self.output(torch.cat(outputs, 1))


def build_network(
    network: str,
    head: str | None,
    *,
    protocol: str = "corrected",
    width: int | None = None,
    layers: int | None = None,
    features: int = 10,
    outputs: int = 1,
    splits: int = SPINAL.splits,
    allow_unused: bool = False,
) -> nn.Module:
    """An untrained network on the CPU: (N, features) -> (N, outputs).

    network: "mlp"; head: None for "spinal"; width, layers, splits: of the SpinalNet, whose
    multiplications limit the FC network's, too. Raises ValueError for what does not exist.
    """
    if network != "mlp" or head not in [*HEADS, None]:
        raise ValueError(f"there is no network {network!r} with head {head!r}")
    layers = layers or SPINAL.layers
    size = round(features / splits)  # half to even (Q4)
    if size < 1 or (layers * size < features and not allow_unused):
        raise ValueError(
            f"{layers} windows of {size} inputs do not cover {features} inputs: "
            "use more --layers, fewer --splits, or --allow-unused"
        )
    spinal = SpinalNet(features, size, layers, width or SPINAL.width, outputs)
    if head != "fc":
        return spinal
    # The largest width w with features w + w w + w outputs <= budget, but at least 1.
    both, budget = features + outputs, multiplications(spinal)
    width = max(1, (math.isqrt(both**2 + 4 * budget) - both) // 2)
    return nn.Sequential(
        nn.Linear(features, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


class Trainer:
    """Trains and measures one network."""

    def __init__(self, recipe: Recipe, data: Data, device: torch.device):
        self.recipe = recipe
        self.data = data
        self.classes = data.scaling["classes"]
        self.network = build_network("mlp", recipe.head, **data.shape).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), recipe.learning_rate)

    def epoch(self, order: Tensor, state: dict) -> dict:
        """Trains on all rows in this order. Returns the numbers of the epoch's line."""
        inputs, targets = self.data.parts["train"]
        loss_function = F.cross_entropy if self.classes else F.mse_loss
        total = 0
        for index in order.split(self.recipe.batch_size):
            self.optimizer.zero_grad()
            loss = loss_function(self.network(inputs[index]), targets[index])
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(index)
        rank, numbers = self.evaluate("heldout")
        if state["epoch"] == 0 or rank < state["rank"]:  # the lowest is the best
            state |= {"rank": rank, "best_epoch": state["epoch"] + 1}
            state["best_weights"] = copy.deepcopy(self.network.state_dict())
        return {"train_loss": float(total) / len(order), **numbers}

    @torch.no_grad()
    def evaluate(self, part: str) -> tuple[list[float], dict]:
        """What to minimise, and errors in the targets' own units, or loss and accuracy."""
        inputs, targets = self.data.parts[part]
        outputs = self.network(inputs)
        if self.classes:
            accuracy = 100 * float((outputs.argmax(1) == targets).sum()) / len(targets)
            loss = float(F.cross_entropy(outputs, targets))
            return [-accuracy, loss], {f"{part}_loss": loss, f"{part}_accuracy_pct": accuracy}
        scale = self.data.scaling["target_scale"].to(targets.device)
        errors = ((outputs - targets) * scale).square().mean(0)
        # The mean of the training rows is 0 here.
        constant = (targets * scale).square().mean(0)
        error = float(errors.mean())
        return [error], {
            f"{part}_mse": error,
            f"{part}_rmse": math.sqrt(error),
            f"{part}_r2": float((1 - errors / constant).mean()),
        }

    def report(self, state: dict) -> dict:
        """The numbers of the log's last line; the test rows are read here. state: of the run"""
        _, last = self.evaluate("test")
        self.network.load_state_dict(state["best_weights"])
        numbers = {"best_epoch": state["best_epoch"]}
        numbers |= self.evaluate("heldout")[1] | self.evaluate("test")[1]
        if self.classes:  # under the names that the logs of images have
            numbers |= {
                "selected_epoch": state["best_epoch"],
                "best_heldout_accuracy_pct": numbers["heldout_accuracy_pct"],
                "last_test_accuracy_pct": last["test_accuracy_pct"],
                "selected_test_accuracy_pct": numbers["test_accuracy_pct"],
            }
        return numbers

    def weights(self) -> dict:
        """What --save-weights keeps: on the CPU, which every computer has."""
        return {"network": self.network.cpu().state_dict(), **self.data.scaling}


def head_name(recipe: Recipe) -> str:
    """fc, spinal6x20, ..."""
    return "fc" if recipe.head == "fc" else f"spinal{recipe.layers}x{recipe.width}"


def describe_run(recipe: Recipe, facts: dict) -> list[str]:
    """Parts of the run's name. facts: about the data"""
    table = re.sub(r"[\W_]", "_", recipe.dataset)
    return [table, f"split{recipe.budget}", f"data{facts['sha256'][:8]}"]


def describe_result(run: "Run") -> str:
    """What has come out, in words."""
    end = run.end
    text = f"epoch {end['best_epoch']} of {end['epochs']}"
    if run.trainer.classes:
        return f"{text}, test accuracy {end['test_accuracy_pct']:.2f} %"
    text += f", test RMSE {end['test_rmse']}"
    return f"{text}, MSE {end['test_mse']}, R^2 {end['test_r2']}"


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
    add("--splits", type=int, default=SPINAL.splits, help="parts of the inputs; default: 2")
    add("--csv", type=Path, help="a file with a table: a line of column names, then rows")
    add("--target", default="", help="column to predict from all others; several: with commas")
    add("--delimiter", help="the sign between values; default: found in the first line")
    add(
        "--task",
        choices=["regression", "classification"],
        default="regression",
        help="default: regression",
    )
    add("--demo", choices=["diabetes"], help="a table of scikit-learn in place of a file")
    add("--allow-unused", action="store_true", help="leave out inputs that are in no window")
    for part in ("validation", "test"):
        default = getattr(SPINAL, part)
        add(
            f"--{part}", type=float, default=default, help="share of the rows; default: %(default)s"
        )
    args = parser.parse_args(argv)
    check_numbers(parser, args)
    args.targets = [name.strip() for name in args.target.split(",")]
    if bool(args.demo) == bool(args.csv) or bool(args.csv) != bool(args.target):
        parser.error("give --csv FILE --target COLUMN[,COLUMN], or --demo diabetes without them")
    if args.task == "classification" and (args.demo or "," in args.target):
        parser.error("--task classification needs --csv and one --target")
    return args


def choose_recipes(args: argparse.Namespace, table: Table, data: Data) -> list[Recipe]:
    """What the command line asks for: the recipe of each head. Raises ValueError."""
    changes = {key: getattr(args, key) for key in (*MARKS, "splits", "layers", "width")}
    if table.names["classes"]:
        changes["task"] = "classification"
    changes["budget"] = f"{args.splits}-{args.layers}x{args.width}"
    spinal = replace(SPINAL, dataset=table.name, targets=table.names["targets"], **changes)
    network = build_network("mlp", "fc", **data.shape)
    fc = replace(spinal, head="fc", layers=2, width=network[0].out_features)
    return [recipe for recipe in (fc, spinal) if args.head in (recipe.head, "both")]


def announce(
    args: argparse.Namespace, recipes: list[Recipe], data: Data, device: torch.device
) -> None:
    """Prints what will be trained, on what and where."""
    heads = " and ".join(head_name(recipe) for recipe in recipes)
    print(f"{recipes[0].dataset}, {args.task}: {heads}; runs of each: {args.runs}")
    print(f"epochs: {args.epochs}; training rows: {data.facts['train']:,}; device: {device}")


def print_difference(runs: list[Run]) -> None:
    """Prints by how much the Spinal head is better. runs: FC, Spinal, FC, Spinal, ..."""
    key = "test_accuracy_pct" if runs[0].trainer.classes else "test_mse"
    values = [run.end[key] for run in runs]
    if None not in values:  # no run has diverged
        seeds = len(values) // 2
        gain = (sum(values[1::2]) - sum(values[0::2])) / seeds
        print(f"Spinal - FC: {gain:+.6g} in {key} (mean; number of seeds: {seeds})")


def reproduce(args: argparse.Namespace, device: torch.device) -> None:
    """Does what the command line asks for."""
    table = read_table(args)
    data = load_data(table, args, device)
    recipes = choose_recipes(args, table, data)
    if not args.quiet:
        announce(args, recipes, data, device)
    runs = []
    for seed in range(args.seed, args.seed + args.runs):
        for recipe in recipes:
            runs.append(Run(recipe, seed, data, device, args))
            runs[-1].perform()
    if len(recipes) == 2:
        print_difference(runs)


if __name__ == "__main__":
    sys.exit(main())
