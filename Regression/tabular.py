# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=1.26", "tqdm>=4.66", "scikit-learn>=1.4"]
# ///
"""Your own table of numbers: SpinalNet against a default fully connected (FC) network of equal budget.

    python tabular.py --csv houses.csv --target price             one target
    python tabular.py --csv robot.csv --target x,y,z --splits 3   several targets, inputs cut into three parts
    python tabular.py --demo diabetes --runs 10                   442 patients, 10 inputs, from scikit-learn

A table is a CSV file with a line of column names; all its columns but the targets are inputs, all values are numbers.
Not in the paper, whose own regression is synthetic_regression.py. The network is the general form of the released
"customizable" SpinalNet (spec custom.md): hidden layer k of n sees window k of the inputs and the output of layer
k - 1, the output layer sees all hidden outputs. --splits S makes windows of round(F / S) of the F inputs (half to even,
Q4), one after the other, from the front again at the end. Inputs that no window has are an error, unless
--allow-unused; the released code loses them in silence (Q3). Q: quirks, in results/audit.md.

The default network has two hidden layers of equal width, the largest whose multiplications do not exceed the
SpinalNet's; the log counts both. The rows are split once, by a seed that --seed does not change; --validation and
--test of them are held out. Inputs and targets are standardised by mean and deviation of the training rows alone. Adam
trains on mean squared error; the epoch with the lowest validation error is kept and the test rows are read once, with
it. Errors are in the targets' own units squared, with R^2 (1: perfect, 0: no better than the training rows' mean). An
interrupted run goes on when its command is repeated.
"""
# >>> shared: regression_imports (origin Regression/synthetic_regression.py; edit there, then: make sync)
from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F
    from tqdm import tqdm
except ImportError as missing:
    sys.exit(f"error: {missing.name} is missing: pip install torch numpy tqdm, or use uv run")
# <<< shared: regression_imports
import csv

import numpy

# ---- Facts of this experiment ---------------------------------------------------------------------------------------
SCRIPT, LAYERS, WIDTH, SPLITS = "tabular", 6, 20, 2
RECIPE = dict(epochs=60, batch_size=32, learning_rate=0.003, optimizer="Adam", rate_rule="constant", precision="fp32")

# >>> shared: regression_seed (origin Regression/synthetic_regression.py; edit there, then: make sync)
def seed_of(*purpose: object) -> int:
    """A seed that is a pure function of its purpose: nothing random has to be stored in order to resume."""
    return int.from_bytes(hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest(), "big") >> 1
# <<< shared: regression_seed
# ---- Data -----------------------------------------------------------------------------------------------------------
def read_table(options: argparse.Namespace) -> argparse.Namespace:
    """Rows of numbers: inputs (N, F) and targets (N, C), float64; their name and the names of the targets."""
    if options.demo:
        try:
            from sklearn.datasets import load_diabetes
        except ImportError:
            raise ValueError("--demo needs scikit-learn: pip install scikit-learn, or give a --csv") from None
        found = load_diabetes(scaled=False)  # disease progression after a year (Efron et al. 2004)
        names, outputs = ["progression"], found.target[:, None]
        return argparse.Namespace(name="diabetes", inputs=found.data, targets=outputs, target_names=names)
    path, targets = options.csv, list(dict.fromkeys(options.targets))
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            names, lines = [name.strip() for name in next(csv.reader(stream), [])], list(stream)
            if not "".join(lines).strip():
                raise ValueError("no rows")
        rows = numpy.loadtxt(lines, delimiter=",", quotechar='"', comments=None, ndmin=2)
    except (ValueError, csv.Error) as error:  # not UTF-8, not a number, rows of different length
        raise ValueError(f"{path} must be CSV in UTF-8, a line of names, then numbers only: {error} (row 0 is the one "
                         "below the names); code categories as 0 and 1") from None
    if not (len(names) == len(set(names)) == rows.shape[1] and all(names) and numpy.isfinite(rows).all()):
        raise ValueError(f"{path} needs a name of its own for each column, and finite numbers below the names")
    if not set(targets) < set(names):
        raise ValueError(f"--target takes some, but not all, of {', '.join(names)}")
    at = [names.index(name) for name in targets]
    inputs = numpy.delete(rows, at, 1)
    return argparse.Namespace(name=path.stem, inputs=inputs, targets=rows[:, at], target_names=targets)


def split_rows(count: int, heldout: float, test: float) -> dict[str, Tensor]:
    """Row numbers of the three parts: at least one each, drawn once for all seeds."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of("tabular split", 0)))
    sizes = [max(1, round(count * share)) for share in (test, heldout)]
    if sum(sizes) + 2 > count:
        raise ValueError(f"{count} rows are too few for {sizes[1]} validation rows, {sizes[0]} test rows and two to "
                         "train on: give more rows, or less of them to --validation and --test")
    parts = order.split([*sizes, count - sum(sizes)])
    return {name: part.sort()[0] for name, part in zip(("test", "heldout", "train"), parts)}


def prepare(table: argparse.Namespace, options: argparse.Namespace, device: torch.device) -> argparse.Namespace:
    """Split and standardised by the training rows alone. parts: train, heldout, test: inputs and targets, float32, on
    the device; scale (C,) turns errors into the targets' units; facts for a log.
    """
    rows = split_rows(len(table.inputs), options.validation, options.test)
    inputs, targets = torch.from_numpy(table.inputs), torch.from_numpy(table.targets)
    (x_mean, x_scale), (y_mean, y_scale) = (
        (train.mean(0), train.std(0, correction=0)) for train in (inputs[rows["train"]], targets[rows["train"]]))
    if constant := [name for name, scale in zip(table.target_names, y_scale) if scale == 0]:
        raise ValueError(f"target {constant[0]!r} is the same in all training rows: there is nothing to learn")
    x_scale = torch.where(x_scale > 0, x_scale, 1.0)  # a constant input becomes 0
    inputs, targets = ((inputs - x_mean) / x_scale).float(), ((targets - y_mean) / y_scale).float()
    digest = hashlib.sha256(table.inputs.tobytes() + table.targets.tobytes()).hexdigest()[:16]
    facts = {name: len(index) for name, index in rows.items()} | {
        "sha256": digest, "official": options.csv is None, "inputs": inputs.shape[1], "targets": table.target_names}
    parts = {name: (inputs[index].to(device), targets[index].to(device)) for name, index in rows.items()}
    return argparse.Namespace(parts=parts, scale=y_scale, facts=facts)


# ---- Networks -------------------------------------------------------------------------------------------------------
def windows(features: int, splits: int, layers: int) -> list[list[int]]:
    """Input numbers that each layer sees: windows of round(F / S), half to even (Q4), from the front at the end."""
    size = round(features / splits)
    return [[(k * size + j) % features for j in range(size)] for k in range(layers)]


class SpinalNet(nn.Module):
    """The general SpinalNet (spec custom.md 5): (N, features) -> (N, outputs).
    chunks: the inputs that each hidden layer sees, a list of numbers each. widths: of the hidden layers, one for all or
    one each. activation: a factory. batch_norm, dropout: in each hidden layer; output_dropout: before the output layer.
    share[k]: the layer whose weights layer k uses (from 0). Raises ValueError for what makes no sense, and for inputs
    that no layer sees (unless allow_unused).
    """

    def __init__(self, features: int, chunks: list[list[int]], widths: int | list[int], outputs: int, *,
                 activation: Callable = nn.ReLU, batch_norm: bool = False, dropout: float = 0.0,
                 output_dropout: float = 0.0, share: list[int] | None = None, allow_unused: bool = False):
        super().__init__()
        widths = [widths] * len(chunks) if isinstance(widths, int) else list(widths)
        share = list(range(len(chunks)) if share is None else share)
        seen = {number for chunk in chunks for number in chunk}
        if min(features, outputs, *widths) < 1 or not len(widths) == len(share) == len(chunks) > 0:
            raise ValueError("a SpinalNet needs inputs, outputs and hidden layers, each with a width and a share")
        if not all(chunks) or not seen <= set(range(features)):
            raise ValueError(f"a hidden layer sees no input, or one not among 0 to {features - 1}: use fewer splits")
        if (unused := sorted(set(range(features)) - seen)) and not allow_unused:
            raise ValueError(f"inputs {', '.join(map(str, unused[:8]))} reach no layer: use more layers, fewer splits, "
                             "or --allow-unused")
        shapes = [(len(chunk) + (widths[k - 1] if k else 0), widths[k]) for k, chunk in enumerate(chunks)]
        self.share, self.hidden = share, nn.ModuleList()
        for k, (chunk, source) in enumerate(zip(chunks, share)):
            if not 0 <= source <= k or share[source] != source or shapes[k] != shapes[source]:
                raise ValueError(f"hidden layer {k + 1} cannot share the weights of layer {source + 1}")
            self.register_buffer(f"chunk{k}", torch.tensor(chunk), persistent=False)
            parts = [nn.Dropout(dropout)] * bool(dropout) + [nn.Linear(*shapes[k])] if source == k else []
            parts += [nn.BatchNorm1d(widths[k])] * batch_norm + [activation()] if source == k else []
            self.hidden.append(nn.Sequential(*parts))
        self.dropout, self.output = nn.Dropout(output_dropout), nn.Linear(sum(widths), outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for k, source in enumerate(self.share):
            outputs.append(self.hidden[source](torch.cat([x[:, getattr(self, f"chunk{k}")], *outputs[-1:]], 1)))
        return self.output(self.dropout(torch.cat(outputs, 1)))


def fc_width(features: int, outputs: int, budget: int) -> int:
    """Width w of two equal hidden layers, the largest with F w + w w + w C <= budget multiplications; at least 1."""
    return max(1, (math.isqrt((features + outputs) ** 2 + 4 * budget) - features - outputs) // 2)


def build_network(network: str, head: str | None, *, protocol: str = "corrected", width: int | None = None,
                  layers: int | None = None, features: int = 10, outputs: int = 1, splits: int = SPLITS,
                  allow_unused: bool = False) -> nn.Module:
    """A freshly initialised network on the CPU: (N, features) -> (N, outputs). network: mlp. head: "fc" or "spinal" (or
    None). width, layers, splits: of the SpinalNet, whose budget the FC network gets. Raises ValueError.
    """
    if network != "mlp" or head not in ("fc", "spinal", None) or splits < 1:
        raise ValueError(f"there is no network {network!r} with head {head!r} and {splits} splits")
    chunks = windows(features, splits, layers or LAYERS)
    spinal = SpinalNet(features, chunks, width or WIDTH, outputs, allow_unused=allow_unused)
    if head != "fc":
        return spinal
    w = fc_width(features, outputs, sum(x.weight.numel() for x in spinal.modules() if isinstance(x, nn.Linear)))
    return nn.Sequential(nn.Linear(features, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, outputs))


# ---- Training -------------------------------------------------------------------------------------------------------
def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, order: Tensor,
                batch_size: int) -> float:
    """One pass in this order, the last batch too. Returns the mean loss."""
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
    return ((network.eval()(inputs) - targets).cpu() * scale).square().mean(0)

# >>> shared: regression_log (origin Regression/synthetic_regression.py; edit there, then: make sync)
def write(path: Path, lines: list[dict]) -> None:
    """A log. Six digits keep a thousand of them small; JSON has no word for a number that is not finite."""
    short = lambda x: x if not isinstance(x, float) else float(f"{x:.6g}") if math.isfinite(x) else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({key: short(x) for key, x in line.items()}) + "\n" for line in lines))


def train(parts: list[str], seed: int, settings: dict, facts: dict, network: nn.Module,
          optimizer: torch.optim.Optimizer, options: argparse.Namespace, one_epoch: Callable[[Tensor, dict], dict],
          last_line: Callable[[dict], dict]) -> tuple[dict, str, Path]:
    """Trains one network, or goes on with it, unless its log is there. Returns that log's end, words and path.
    parts: of the name. facts: of the data. one_epoch(order, state): trains, measures, returns the numbers of an epoch
    line; last_line(state): those of the end line. `state` holds the log's lines. A loss that is not finite ends a run.
    """
    device, name = options.device, "-".join([*parts, *options.departures.values(), f"s{seed}"])
    path = options.results_dir / "logs" / SCRIPT / f"{name}.jsonl"
    part, checkpoint = path.with_suffix(".jsonl.part"), path.with_suffix(".pt")
    cuda, finished, next_save = device.type == "cuda", path.exists() and not options.overwrite, 0.0
    provenance = dict(
        script_sha256=hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16], device=device.type,
        device_name=torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(), versions={"torch": str(torch.__version__)})
    start = {
        "event": "start", "schema": 2, "script": SCRIPT, "run": name, "seed": seed, "settings": settings,
        "departures": sorted(options.departures), "parameters": sum(x.numel() for x in network.parameters()),
        "fc_multiplications": sum(x.weight.numel() for x in network.modules() if isinstance(x, nn.Linear)),
        "data": facts, "provenance": provenance}
    state = {"lines": [start], "epoch": 0, "seconds": 0.0}
    if checkpoint.exists() and not finished:
        try:
            saved = torch.load(checkpoint, device, weights_only=True)
            if saved["state"]["lines"][0] != start:
                raise ValueError("other versions, settings or text of the script, or another device")
            network.load_state_dict(saved["network"])
            optimizer.load_state_dict(saved["optimizer"])
            state = saved["state"]
            print(f"{name} goes on after epoch {state['epoch']}", file=sys.stderr)
        except Exception as error:  # torch.load raises what it likes
            print(f"{name} begins anew, its checkpoint cannot be used: {error}", file=sys.stderr)
    epochs = 0 if finished else options.epochs
    with tqdm(total=epochs, initial=state["epoch"], desc=name, leave=False, disable=options.quiet or None) as bar:
        while state["epoch"] < epochs and math.isfinite(state["lines"][-1].get("train_loss", 0)):
            began, epoch = time.monotonic(), state["epoch"] + 1
            generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))  # the same batches for both heads
            numbers = one_epoch(torch.randperm(facts["train"], generator=generator).to(device), state)
            seconds = time.monotonic() - began
            state |= {"epoch": epoch, "seconds": state["seconds"] + seconds}
            state["lines"].append({"event": "epoch", "epoch": epoch, "learning_rate": options.learning_rate, **numbers,
                                   "seconds": seconds})
            bar.update()
            if (began := time.monotonic()) >= next_save:  # so that saving takes a twentieth of the time at most
                write(part, state["lines"])
                torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "state": state},
                           path.with_suffix(".tmp"))
                os.replace(path.with_suffix(".tmp"), checkpoint)
                next_save = 21 * time.monotonic() - 20 * began
    if not finished:
        diverged = not math.isfinite(state["lines"][-1]["train_loss"])
        write(part, state["lines"] + [{
            "event": "end", "epochs": state["epoch"], "outcome": "diverged" if diverged else "finished",
            **({"diverged_epoch": state["epoch"]} if diverged else {}), **last_line(state), "seconds": state["seconds"],
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}])
        if options.save_weights:
            (folder := options.results_dir / "weights" / SCRIPT).mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), folder / checkpoint.name)
        os.replace(part, path)
    checkpoint.unlink(missing_ok=True)
    first, *_, end = [json.loads(line) for line in path.read_text().splitlines()]
    if first["provenance"]["script_sha256"] != provenance["script_sha256"]:
        raise ValueError(f"{path} was made by another text of this script: run again with --overwrite")
    old = f"already finished {end['ended']} on {first['provenance']['device_name']} (--overwrite: again): " * finished
    return end, old + name, path
# <<< shared: regression_log

def run(head: str, seed: int, table: argparse.Namespace, data: argparse.Namespace, options: argparse.Namespace) -> str:
    """Trains one network. Returns its result."""
    torch.manual_seed(seed_of(seed, "weights"))
    network = build_network("mlp", head, width=options.width, layers=options.layers, features=data.facts["inputs"],
                            outputs=len(table.target_names), splits=options.splits, allow_unused=options.allow_unused)
    network, budget = network.to(options.device), f"{options.splits}-{options.layers}x{options.width}"
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    layers, width = (2, network[0].out_features) if head == "fc" else (options.layers, options.width)
    settings = {key: getattr(options, key, x) for key, x in RECIPE.items()} | {
        "task": "tabular", "dataset": table.name, "targets": table.target_names, "network": "mlp", "head": head,
        "layers": layers, "width": width, "splits": options.splits, "budget": budget, "protocol": "corrected",
        "selection": "heldout", "validation": options.validation, "test": options.test}

    def one_epoch(order: Tensor, state: dict) -> dict:
        loss = train_epoch(network, optimizer, *data.parts["train"], order, options.batch_size)
        error = float(errors(network, *data.parts["heldout"], data.scale).mean())
        if error < state.get("best", math.inf):
            state |= {"best": error, "best_epoch": state["epoch"] + 1,
                      "best_weights": {key: x.clone() for key, x in network.state_dict().items()}}
        return {"train_loss": loss, "heldout_mse": error}

    def last_line(state: dict) -> dict:
        network.load_state_dict(state.get("best_weights", network.state_dict()))
        inputs, targets = data.parts["test"]
        error = errors(network, inputs, targets, data.scale)
        constant = (targets.cpu() * data.scale).square().mean(0)  # of the mean of the training rows, which is 0 here
        return {"best_epoch": state.get("best_epoch", 0), "heldout_mse": state.get("best", math.inf),
                "test_mse": float(error.mean()), "test_r2": float((1 - error / constant).mean())}

    word = "".join(c if c.isalnum() else "_" for c in table.name)
    parts = ["mlp", "fc" if head == "fc" else f"spinal{layers}x{width}", "corrected", word]
    parts += [f"split{budget}", "data" + data.facts["sha256"][:8]]
    end, text, path = train(parts, seed, settings, data.facts, network, optimizer, options, one_epoch, last_line)
    return (f"{text}: test MSE {end['test_mse']}, R^2 {end['test_r2']}, epoch {end['best_epoch']} of {end['epochs']}, "
            f"{sum(x.numel() for x in network.parameters()):,} parameters; {end['outcome']}. Log: {path}")

# >>> shared: regression_options (origin Regression/synthetic_regression.py; edit there, then: make sync)
def common_options(parser: argparse.ArgumentParser) -> Callable:
    """Adds the flags that all scripts have, and returns what adds more of them."""
    add, whole, flag = parser.add_argument, {"type": int, "metavar": "N"}, {"action": "store_true"}
    add("--head", choices=("fc", "spinal", "both"), default="both", help="default: both, on the same batches")
    add("--epochs", **whole, default=RECIPE["epochs"], help="default: %(default)s")
    add("--batch-size", **whole, default=RECIPE["batch_size"], help="default: %(default)s")
    add("--lr", type=float, dest="learning_rate", default=RECIPE["learning_rate"], help="default: %(default)s")
    add("--seed", **whole, default=0, help="first seed; default: 0")
    add("--runs", **whole, default=1, help="repeat with seeds seed..seed+N-1; default: 1")
    add("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, auto (cuda, else mps, else cpu)")
    add("--results-dir", type=Path, default="results", metavar="DIR", help="default: results")
    add("--save-weights", **flag, help="keep the weights of the reported epoch in results/weights/")
    add("--quiet", **flag, help="print the results only")
    add("--overwrite", **flag, help="run again what is already finished")
    return add


def checked(parser: argparse.ArgumentParser, argv: list[str] | None, names: dict[str, str]) -> argparse.Namespace:
    """The command line. `departures`: what differs from the default, as in the log's name."""
    options = parser.parse_args(argv)
    for key, low in dict(layers=1, width=1, splits=1, epochs=1, batch_size=1, runs=1, seed=0).items():
        if getattr(options, key, None) is not None and not low <= getattr(options, key) < 2**31:
            parser.error(f"--{key.replace('_', '-')} must be {low} or more and less than {2**31}")
    if not 1e-9 <= options.learning_rate < math.inf:
        parser.error("--lr must be 1e-09 or more, and finite")
    options.departures = {key: f"{short}{getattr(options, key)}" for key, short in names.items()
                          if getattr(options, key) != parser.get_default(key)}
    return options


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 user's mistake, 130 Ctrl-C."""
    options = parse_arguments(argv)
    try:
        auto = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        options.device = torch.zeros(1, device=auto if options.device == "auto" else options.device).device
        if options.device.type == "cpu":
            torch.set_num_threads(1)  # more would only wait for each other
        work(options)
        return 0
    except KeyboardInterrupt:
        print("stopped: the same command goes on after the last epoch that was saved", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError, AssertionError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
# <<< shared: regression_options

def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. `targets`: the names after --target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = common_options(parser)
    add("--csv", type=Path, metavar="FILE", help="a table: a line of column names, then rows of numbers")
    add("--target", default="", metavar="COL[,COL]", help="what to predict; all other columns are inputs")
    add("--demo", choices=("diabetes",), help="scikit-learn's diabetes data instead of a table")
    add("--splits", type=int, default=SPLITS, metavar="S", help="parts of the input; default: 2")
    add("--layers", type=int, default=LAYERS, metavar="N", help="hidden layers of the SpinalNet; default: 6")
    add("--width", type=int, default=WIDTH, metavar="N", help="neurons of each of them; default: 20")
    add("--allow-unused", action="store_true", help="leave out inputs that no window has")
    add("--validation", type=float, default=0.2, metavar="SHARE", help="of the rows; default: 0.2")
    add("--test", type=float, default=0.2, metavar="SHARE", help="of the rows; default: 0.2")
    options = checked(parser, argv, {"epochs": "e", "batch_size": "b", "learning_rate": "lr"})
    options.targets = [name.strip() for name in options.target.split(",") if name.strip()]
    if (options.csv is None) == (options.demo is None) or (options.csv is None) != (not options.targets):
        parser.error("give a table with --csv FILE --target COLUMN[,COLUMN], or --demo diabetes without them")
    if not (0 < options.validation < 1 and 0 < options.test < 1):
        parser.error("--validation and --test must be more than 0 and less than 1")
    return options


def work(options: argparse.Namespace) -> None:
    """Everything that the command line asks for."""
    table = read_table(options)
    data = prepare(table, options, options.device)
    for seed in range(options.seed, options.seed + options.runs):
        for head in ("fc", "spinal") if options.head == "both" else [options.head]:
            print(run(head, seed, table, data, options), flush=True)


if __name__ == "__main__":
    sys.exit(main())
