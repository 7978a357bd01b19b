# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "tqdm>=4.66", "matplotlib>=3.8"]
# ///
"""A SpinalNet can be any network with one hidden layer: the paper's universal approximation argument, built and measured.

    python universal_approximation.py                   # the table below, and a figure
    python universal_approximation.py --neurons 200 --splits 4 --activation tanh

Networks with one hidden layer approximate every continuous function on a bounded domain (Cybenko 1989, Hornik 1991). The
paper argues that a SpinalNet can equal such a network, so it is a universal approximator too. Here the weights of the equal
SpinalNet are written down, not trained, and the largest difference of the two outputs is printed. `to_spinal` takes any hidden
layer `activation(W x + b)` with m neurons, also one out of a trained network:

  splits 1: layer k sees the whole input. It gets row k of W, and weight 0 for the output of layer k - 1. m layers of width 1;
      every activation, every input.
  splits S: layer k sees part k of the input, then part 1 again. The first S - 1 of each S layers hand on a partial sum
      w x + M, where M is so large that ReLU or leaky ReLU leaves it alone (|w x| <= M for all inputs up to --bound); the
      S-th adds the last part, takes M away and is the neuron. m S layers of width 1; the others get weight 0 in the output
      layer. It needs an activation that is linear somewhere: ReLU, leaky ReLU. The price of exactness is rounding: with M about
      the size of the sums some digits of them are lost, and none of the inputs may leave the bound.

What it shows: the class of functions is not smaller. What it does not show: that training finds such weights, or that it saves
anything. The equal SpinalNet has more multiplications than the network it equals; both are printed.

The figure goes to results/figures/theory_universal_approximation.svg and .png: piecewise linear interpolation of a function of
one variable by ReLU networks of 4 to 256 neurons, each as a SpinalNet, and their error.
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


# ---- Facts of this experiment ----------------------------------------------------------------------------------------------
ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.01), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
LINEAR_SOMEWHERE = ("relu", "leaky_relu")  # the identity for positive numbers
LEFT, RIGHT = -3.0, 3.0  # domain of the figure
NEURONS = (4, 8, 16, 32, 64, 128, 256)


def target(x: Tensor) -> Tensor:
    """The function of the figure."""
    return torch.sin(3 * x) + 0.3 * x


# ---- Networks --------------------------------------------------------------------------------------------------------------
class SpinalLayers(nn.Module):
    """Hidden layers of a SpinalNet: (N, features) -> (N, layers * width). Layer k sees `chunks[k]` of the input and h(k-1)."""

    def __init__(self, chunks: list[slice], sizes: list[int], width: int, activation: nn.Module):
        super().__init__()
        self.chunks, self.activation = chunks, activation
        self.hidden = nn.ModuleList(nn.Linear(size + (width if k else 0), width) for k, size in enumerate(sizes))

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for chunk, layer in zip(self.chunks, self.hidden):
            outputs.append(self.activation(layer(torch.cat([x[:, chunk], *outputs[-1:]], 1))))
        return torch.cat(outputs, 1)


@torch.no_grad()
def to_spinal(hidden: nn.Linear, activation: str, splits: int = 1, bound: float | None = None) -> tuple[SpinalLayers, Tensor]:
    """Spinal layers of width 1 that contain the hidden layer `activation(hidden(x))`, and the places of its neurons (m,).

    hidden: features -> m. splits: parts of the input. bound: largest absolute value of an input, needed for splits > 1.
    For every x within the bound, `layers(x)[:, places]` equals `activation(hidden(x))` to rounding. Raises ValueError where
    that cannot be built.
    """
    weight, bias = hidden.weight, hidden.bias
    neurons, features = weight.shape
    if activation not in ACTIVATIONS or not 1 <= splits <= features:
        raise ValueError(f"there is no activation {activation!r}, or {features} inputs cannot be cut into {splits} parts")
    if splits > 1 and activation not in LINEAR_SOMEWHERE:
        raise ValueError(f"{activation} hands no sum on unchanged: use splits 1, relu or leaky_relu")
    if splits > 1 and not bound:
        raise ValueError("with more than one part a bound of the inputs is needed")
    edges = [features * k // splits for k in range(splits + 1)]
    parts = [slice(*pair) for pair in zip(edges, edges[1:])]
    layers = SpinalLayers(parts * neurons, [part.stop - part.start for part in parts] * neurons, 1, ACTIVATIONS[activation]())
    layers.to(weight.dtype)
    offset = (weight.abs().sum(1) * (bound or 0)).ceil()  # M of each neuron
    for neuron in range(neurons):
        for k, part in enumerate(parts):
            layer = layers.hidden[neuron * splits + k]
            size, last = part.stop - part.start, k == splits - 1
            layer.weight.zero_()
            layer.weight[0, :size] = weight[neuron, part]
            if k:
                layer.weight[0, size] = 1.0  # the partial sum of the layers before; a neuron's first layer takes nothing over
            if last:
                layer.bias.fill_(bias[neuron] - (offset[neuron] if k else 0.0))
            else:
                layer.bias.fill_(0.0 if k else offset[neuron])
    return layers, torch.arange(neurons) * splits + splits - 1


def spinal_equal_of(network: nn.Sequential, activation: str, splits: int = 1, bound: float | None = None) -> nn.Sequential:
    """The SpinalNet equal to Linear, activation, Linear: its output layer sees all hidden outputs, most with weight 0."""
    layers, places = to_spinal(network[0], activation, splits, bound)
    output = nn.Linear(len(layers.hidden), network[2].out_features, dtype=network[2].weight.dtype)
    with torch.no_grad():
        output.weight.zero_()
        output.weight[:, places] = network[2].weight
        output.bias.copy_(network[2].bias)
    return nn.Sequential(layers, output)


def build_network(network: str, head: str | None, *, protocol: str = "corrected", width: int | None = None,
                  layers: int | None = None, features: int = 8, outputs: int = 1, activation: str = "relu", splits: int = 1,
                  bound: float | None = 4.0) -> nn.Module:
    """One hidden layer of `width` (100) neurons, freshly initialised ("fc"), or the SpinalNet equal to it ("spinal", None):
    (N, features) -> (N, outputs). Raises ValueError for what does not exist."""
    head = head or "spinal"
    if network != "mlp" or head not in ("fc", "spinal") or layers is not None or activation not in ACTIVATIONS:
        raise ValueError(f"there is no network {network!r} with head {head!r}, layers {layers} and activation {activation!r}")
    plain = nn.Sequential(nn.Linear(features, width or 100), ACTIVATIONS[activation](), nn.Linear(width or 100, outputs))
    return plain if head == "fc" else spinal_equal_of(plain, activation, splits, bound)


@torch.no_grad()
def interpolating(neurons: int, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A ReLU network through `target` at neurons + 1 equal steps of the domain: its slope changes by one neuron at each."""
    knots = torch.linspace(LEFT, RIGHT, neurons + 1, dtype=dtype)
    slopes = (target(knots[1:]) - target(knots[:-1])) / (knots[1] - knots[0])
    network = nn.Sequential(nn.Linear(1, neurons), nn.ReLU(), nn.Linear(neurons, 1)).to(dtype)
    network[0].weight.fill_(1.0)
    network[0].bias.copy_(-knots[:-1])
    network[2].weight.copy_(torch.cat([slopes[:1], slopes[1:] - slopes[:-1]])[None])
    network[2].bias.copy_(target(knots[:1]))
    return network


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


# ---- Measuring -------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def largest_difference(first: nn.Module, second: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """(largest absolute difference of the outputs, largest absolute output)."""
    ours, theirs = first(inputs), second(inputs)
    return float((ours - theirs).abs().max()), float(theirs.abs().max())


def equality_table(options: argparse.Namespace) -> list[str]:
    """A line for each way of cutting the input and each precision, from random networks and random inputs."""
    lines = [f"{'activation':<12}{'parts':>6}{'layers':>8}{'precision':>11}{'largest output':>16}{'difference':>12}"
             f"{'mult.':>9}{'mult. spinal':>14}"]
    wanted = [(options.activation, options.splits)] if options.activation or options.splits else \
        [("relu", 1), ("tanh", 1), ("relu", 2), ("leaky_relu", 4)]
    for activation, splits in wanted:
        activation, splits = activation or "relu", splits or 1
        for dtype in (torch.float64, torch.float32):
            torch.manual_seed(seed_of(options.seed, "theory"))
            plain = build_network("mlp", "fc", width=options.neurons, features=options.inputs, activation=activation).to(dtype)
            try:
                spinal = spinal_equal_of(plain, activation, splits, options.bound)
            except ValueError as error:
                raise UserError(str(error)) from None
            inputs = (2 * torch.rand(10_000, options.inputs, dtype=dtype) - 1) * options.bound
            gap, size = largest_difference(spinal, plain, inputs)
            counts = [count_fc_multiplications(network, inputs[:1]) for network in (plain, spinal)]
            lines.append(f"{activation:<12}{splits:>6}{len(spinal[0].hidden):>8}{str(dtype)[6:]:>11}{size:>16.3g}{gap:>12.1e}"
                         f"{counts[0]:>9,}{counts[1]:>14,}")
    return lines


def draw_figure(folder: Path) -> Path | None:
    """Left: the function and three of its approximations by SpinalNets. Right: error, and difference to the plain network."""
    try:
        import matplotlib
    except ImportError:
        print("note: no figure without matplotlib: pip install matplotlib", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    grid = torch.linspace(LEFT, RIGHT, 4001, dtype=torch.float64)[:, None]
    spinal_errors, gaps = [], []
    with pyplot.rc_context({"font.size": 8, "svg.hashsalt": "spinalnet", "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(6.3, 2.7), layout="constrained")
        left.plot(grid, target(grid), color="black", linewidth=1.6, label="sin 3x + 0.3x")
        styles = {4: ("#D55E00", "--"), 8: ("#0072B2", "-."), 32: ("#009E73", ":")}
        for neurons in NEURONS:
            plain = interpolating(neurons)
            spinal = spinal_equal_of(plain, "relu")
            gaps.append(max(largest_difference(spinal, plain, grid)[0], 1e-18))
            with torch.no_grad():
                values = spinal(grid)
            spinal_errors.append(float((values - target(grid)).abs().max()))
            if neurons in styles:
                colour, dashes = styles[neurons]
                left.plot(grid, values, color=colour, linestyle=dashes, linewidth=1.2,
                          label=f"SpinalNet, {neurons} layers")
        left.set_xlabel("x")
        left.set_ylim(-2.2, 2.9)
        left.legend(fontsize=6.5, frameon=False, loc="upper left", ncols=2, handlelength=2.4, columnspacing=1.0)
        right.loglog(NEURONS, spinal_errors, color="#0072B2", marker="o", markersize=3.5, label="error of the SpinalNet")
        right.loglog(NEURONS, gaps, color="#D55E00", marker="s", markersize=3.5,
                     label="difference to the plain network\n(0 is drawn at 1e-18)")
        right.axhline(2.0**-52, color="#666666", linewidth=0.8, linestyle=":", label="rounding of one number (float64)")
        right.set_xlabel("hidden layers of width 1")
        right.set_ylabel("largest value on the domain")
        right.legend(fontsize=6.5, frameon=False, loc="center right")
        right.grid(alpha=0.3)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "theory_universal_approximation.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
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


def work(argv: list[str] | None) -> None:
    """Everything that the command line asks for."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--neurons", type=whole(1), default=100, metavar="M",
                        help="of the network with one hidden layer (default: 100)")
    parser.add_argument("--inputs", type=whole(1), default=8, metavar="F", help="default: 8")
    parser.add_argument("--splits", type=whole(1), metavar="S", help="parts of the input; default: 1, 2 and 4")
    parser.add_argument("--activation", choices=ACTIVATIONS, help="default: relu, tanh and leaky_relu")
    parser.add_argument("--bound", type=number(1e-6, 1e6), default=4.0, metavar="X", help="inputs lie in [-X, X] (default: 4)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the random network (default: 0)")
    parser.add_argument("--results-dir", type=folder, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--no-figure", action="store_true", help="the table only")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"A random network {options.inputs} - {options.neurons} - 1 and the SpinalNet written down to equal it, on 10,000 "
          f"inputs in [-{options.bound:g}, {options.bound:g}]:", *equality_table(options), sep="\n")
    if not options.no_figure and (path := draw_figure(options.results_dir / "figures")):
        print(f"figure: {path}")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 user's mistake, 130 Ctrl-C, 143 SIGTERM."""
    return guarded(work, argv)


if __name__ == "__main__":
    sys.exit(main())
