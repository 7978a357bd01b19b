# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=1.26", "tqdm>=4.66"]
# ///
"""Synthetic regression: default fully connected (FC) network against SpinalNet. Table I of arXiv 2007.03347.

| target, eight inputs       | --function | paper x 1e-3: FC @100 | FC @200 | Spinal @100 | Spinal @200 |
|----------------------------|------------|----------------------:|--------:|------------:|------------:|
| x1 + ... + x8 + noise      | sum        |                 1.178 |   0.887 |       1.007 |       0.855 |
| sin(x1 + ... + x8) + noise | sinsum     |                 1.918 |   1.086 |       1.912 |       1.219 |
| x1 x2 ... x8 + noise       | product    |                 3.875 |   3.875 |       3.966 |       2.217 |
| sin(x1 x2 ... x8) + noise  | sinproduct |                 3.403 |   1.554 |       0.910 |       0.910 |

`python synthetic_regression.py` trains all eight cells once, in a minute on a CPU core; --runs 10 with ten seeds; one
cell: --function sum --head spinal. An interrupted run goes on when its command is repeated.

The paper's number at epoch E is the smallest loss so far of an epoch's last mini-batch, 40 training samples before
their own update: no test error (Q4). The noise has variance 0.04/12 = 3.333e-3, and on fresh samples no model has a
smaller MSE: what is below it is a lucky batch, or noise learnt by heart. So a run also measures, without any effect,
train_mse (all 1,000 training samples) and clean_mse (10,000 fresh samples against function + 0.1, the mean of the
noise; its floor is 0), and at its end constant_clean_mse, that of the mean of the training targets.

--protocol published (default) does what the released script did; corrected mends this (Q: quirks, in results/audit.md):
  shared layers (Q3)   six hidden layers of their own; published: layers 3 and 4 are called again as 5 and 6, and the
                       declared 5 and 6, 5,500 of 14,301 parameters, are never trained (if --layers is 6)
  lucky batches (Q4)   reported: train_mse and clean_mse after the last epoch; published: the minimum of the losses
--noise column (default): each sample has its own noise, as in the paper's numbers (Q2). --noise broadcast: the released
script as it stands adds a vector to a column (Q1); row i of its target, 1,000 x 1,000, is clean_i + noise_j for all j.
Its loss is (prediction - clean_i - mean noise)^2 + variance of the noise drawn: training is free of noise, no loss is
below that variance, and train_mse is this loss over all rows. corrected refuses it.
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
# ---- Facts of this experiment: Table I (spec regression.md) ---------------------------------------------------------
SCRIPT, DATASET, INPUTS, SAMPLES, FRESH = "synthetic_regression", "synthetic", 8, 1_000, 10_000
RECIPE = dict(epochs=200, batch_size=64, learning_rate=0.01, optimizer="Adam", rate_rule="constant", precision="fp32")
FC, SPINAL = (200, 100), (6, 50)  # widths of the two hidden layers; hidden layers and their width
NOISE, NOISE_MEAN, NOISE_VARIANCE = 0.2, 0.1, 0.04 / 12  # noise: 0.2 * uniform[0, 1) (Q10: its mean is learnt)
FUNCTIONS = {"sum": lambda x: x.sum(1, keepdim=True), "sinsum": lambda x: x.sum(1, keepdim=True).sin(),
             "product": lambda x: x.prod(1, keepdim=True), "sinproduct": lambda x: x.prod(1, keepdim=True).sin()}

# >>> shared: regression_seed (origin Regression/synthetic_regression.py; edit there, then: make sync)
def seed_of(*purpose: object) -> int:
    """A seed that is a pure function of its purpose: nothing random has to be stored in order to resume."""
    return int.from_bytes(hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest(), "big") >> 1
# <<< shared: regression_seed

# ---- Data -----------------------------------------------------------------------------------------------------------
def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (count, 8), standard normal, drawn column after column; then noise (count,), 0.2 * uniform[0, 1)."""
    columns = [torch.randn(count, generator=generator) for _ in range(INPUTS)]
    return torch.stack(columns, 1), NOISE * torch.rand(count, generator=generator)


def make_data(function: str, noise_mode: str, seed: int, device: torch.device) -> argparse.Namespace:
    """The data of a seed, drawn on the CPU, so that every device gets the same ones; on the device.

    inputs (1000, 8); targets (1000, 1), or (1000, 1000) with broadcast noise; reference (1000, 1) and floor: the loss
    of a sample is its squared distance from the reference, plus the floor; fresh_inputs, fresh_targets: 10,000 of them.
    """
    inputs, noise = draw(SAMPLES, torch.Generator().manual_seed(seed))  # seed 0: those of the released script
    fresh, _ = draw(FRESH, torch.Generator().manual_seed(seed_of(seed, "fresh")))
    clean, variance = FUNCTIONS[function](inputs), float(noise.double().var(correction=0))
    targets, reference, floor = clean + noise[:, None], clean + noise[:, None], 0.0
    if noise_mode == "broadcast":  # Q1: the released script leaves out [:, None]
        targets, reference, floor = clean + noise, clean + noise.mean(), variance
    digest = hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in (inputs, clean, noise)))
    tensors = dict(inputs=inputs, targets=targets, reference=reference, fresh_inputs=fresh,
                   fresh_targets=FUNCTIONS[function](fresh) + NOISE_MEAN)
    facts = {"train": SAMPLES, "heldout": 0, "test": FRESH, "sha256": digest.hexdigest()[:16], "official": True,
             "noise_variance_drawn": float(f"{variance:.6g}")}
    return argparse.Namespace(**{key: x.to(device) for key, x in tensors.items()}, floor=floor, facts=facts)


# ---- Networks -------------------------------------------------------------------------------------------------------
class SpinalLayers(nn.Module):
    """The hidden layers of a SpinalNet with leaky ReLU (spec regression.md 2): (N, features) -> (N, layers * width).
    The input is cut into halves A, B. Call k sees one half (A, B, A, B, ...) and, from the second on, the output of
    call k - 1, in this order. All outputs are joined, the first one's first. `calls` says which layer does call k (Q3).
    """

    def __init__(self, features: int, layers: int, width: int, calls: tuple[int, ...]):
        super().__init__()
        self.half, self.calls = features // 2, calls
        self.hidden = nn.ModuleList(nn.Linear(self.half + (width if k else 0), width) for k in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        halves, outputs = x.split(self.half, 1), []
        for k, layer in enumerate(self.calls):
            outputs.append(F.leaky_relu(self.hidden[layer](torch.cat([halves[k % 2], *outputs[-1:]], 1)), 0.01))
        return torch.cat(outputs, 1)


def build_network(network: str, head: str | None, *, protocol: str = "published", width: int | None = None,
                  layers: int | None = None) -> nn.Module:
    """A freshly initialised network on the CPU: (N, 8) -> (N, 1). network: mlp. head: "fc" or "spinal" (None: spinal).
    width, layers: of the Spinal head, None for the published ones. Raises ValueError for what does not exist.
    """
    head = head or "spinal"
    if network != "mlp" or head not in ("fc", "spinal") or (head == "fc" and (width or layers)):
        raise ValueError(f"there is no network {network!r} with head {head!r}, layers {layers} and width {width}")
    if head == "fc":
        return nn.Sequential(nn.Linear(INPUTS, FC[0]), nn.LeakyReLU(0.01), nn.Linear(*FC), nn.LeakyReLU(0.01),
                             nn.Linear(FC[1], 1))
    layers, width = layers or SPINAL[0], width or SPINAL[1]
    slip = protocol == "published" and layers == 6  # Q3: layers 5 and 6 are declared, and never called
    calls = (0, 1, 2, 3, 2, 3) if slip else tuple(range(layers))
    return nn.Sequential(SpinalLayers(INPUTS, layers, width, calls), nn.Linear(layers * width, 1))


# ---- Training -------------------------------------------------------------------------------------------------------
def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, data: argparse.Namespace, order: Tensor,
                batch_size: int) -> tuple[float, float]:
    """One pass in this order, the last batch too. Returns the mean loss and that of the last batch (Q4)."""
    total = torch.zeros((), device=order.device)
    for index in order.split(batch_size):
        optimizer.zero_grad(set_to_none=True)
        targets = data.targets[index]  # (B, 1) or (B, 1000); the released script leaves the expansion to the loss
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


def run(function: str, head: str, seed: int, options: argparse.Namespace) -> str:
    """Trains one network of Table I. Returns its result beside the paper's."""
    data = make_data(function, options.noise, seed, options.device)
    layers, width, sizes = len(FC), FC[0], {}
    if head == "spinal":
        layers, width = options.layers or SPINAL[0], options.width or SPINAL[1]
        sizes = {"layers": layers, "width": width}
    torch.manual_seed(seed_of(seed, "weights"))
    network = build_network("mlp", head, protocol=options.protocol, **sizes).to(options.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate, fused=True)
    settings = {key: getattr(options, key, x) for key, x in RECIPE.items()} | {
        "dataset": DATASET, "function": function, "noise": options.noise, "samples": SAMPLES, "network": "mlp",
        "head": head, "layers": layers, "width": width, "protocol": options.protocol,
        "selection": "last" if options.protocol == "corrected" else "minimum"}

    def one_epoch(order: Tensor, state: dict) -> dict:
        loss, last_batch = train_epoch(network, optimizer, data, order, options.batch_size)
        return {"train_loss": loss, "last_batch_mse": last_batch,
                "train_mse": mean_squared_error(network, data.inputs, data.reference) + data.floor,
                "clean_mse": mean_squared_error(network, data.fresh_inputs, data.fresh_targets)}

    def last_line(state: dict) -> dict:
        losses, last = [line["last_batch_mse"] for line in state["lines"][1:]], state["lines"][-1]
        constant = (data.fresh_targets - data.reference.mean()).square().mean()
        return {**{f"min_last_batch_mse_{e}": min(losses[:e]) if len(losses) >= e else None for e in (100, 200)},
                "train_mse": last["train_mse"], "clean_mse": last["clean_mse"], "noise_variance": NOISE_VARIANCE,
                "constant_clean_mse": float(constant)}

    parts = ["mlp", "fc" if head == "fc" else f"spinal{layers}x{width}", options.protocol, function]
    end, text, path = train(parts, seed, settings, data.facts, network, optimizer, options, one_epoch, last_line)
    cell = lambda key: "-" if end[key] is None else f"{1000 * end[key]:.3f}"
    lowest, floor = end["min_last_batch_mse_200"] or math.inf, data.floor or NOISE_VARIANCE
    below = f", below the variance of the noise, {1000 * floor:.3f}" if lowest < floor else ""
    rows = [[cell.strip() for cell in line.split("|")] for line in __doc__.splitlines()]
    other = ", another setting" if options.departures or options.protocol == "corrected" else ""
    paper = [f" (paper{other}: {', '.join(row[3:5] if head == 'fc' else row[5:7])})" for row in rows
             if row[2:3] == [function] and (layers, width) in ((2, 200), SPINAL)]
    return (f"{text}, MSE x 1e-3: smallest last batch {cell('min_last_batch_mse_100')} by epoch 100, "
            f"{cell('min_last_batch_mse_200')} by 200{''.join(paper)}{below}; train {cell('train_mse')}, "
            f"clean {cell('clean_mse')} (a constant: {cell('constant_clean_mse')}); {end['outcome']}. Log: {path}")

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
    """The command line, with the published values filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = common_options(parser)
    add("--function", choices=(*FUNCTIONS, "all"), default="all", help="default: all four")
    add("--noise", choices=("column", "broadcast"), default="column", help="see above; default: column")
    add("--protocol", choices=("published", "corrected"), default="published", help="see above; default: published")
    add("--layers", type=int, metavar="N", help="hidden layers of the Spinal head; default: 6")
    add("--width", type=int, metavar="N", help="neurons of each of them; default: 50")
    options = checked(parser, argv, {"noise": "", "epochs": "e", "batch_size": "b", "learning_rate": "lr"})
    if options.head == "fc" and (options.layers or options.width):
        parser.error("--layers and --width belong to the Spinal head: choose --head spinal or both with them")
    if options.noise == "broadcast" and options.protocol == "corrected":
        parser.error("--noise broadcast is a slip that --protocol corrected mends: leave out one of the two")
    return options


def work(options: argparse.Namespace) -> None:
    """Everything that the command line asks for."""
    for seed in range(options.seed, options.seed + options.runs):
        for function in FUNCTIONS if options.function == "all" else [options.function]:
            for head in ("fc", "spinal") if options.head == "both" else [options.head]:
                print(run(function, head, seed, options), flush=True)


if __name__ == "__main__":
    sys.exit(main())
