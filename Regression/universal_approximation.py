# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=1.26", "matplotlib>=3.8"]
# ///
"""A SpinalNet can be any network with one hidden layer: the paper's universal approximation, built and measured.

    python universal_approximation.py   # a table and a figure
    python universal_approximation.py --neurons 200 --splits 4 --activation leaky_relu

Networks with one hidden layer approximate every continuous function on a bounded domain (Cybenko 1989, Hornik 1991).
The paper argues that a SpinalNet can equal such a network, so it is a universal approximator too. Here the weights of
the equal SpinalNet are written down, not trained, and the largest difference of the two outputs is printed. `to_spinal`
takes any hidden layer `activation(W x + b)` with m neurons, also one out of a trained network:

  splits 1: layer k sees the whole input. It gets row k of W, and weight 0 for the output of layer k - 1. m layers of
      width 1; every activation, every input.
  splits S: layer k sees part k of the input, then part 1 again. The first S - 1 of each S layers hand on a partial sum
      w x + M, where M is so large that ReLU or leaky ReLU leaves it alone (|w x| <= M for all inputs up to --bound);
      the S-th adds the last part, takes M away and is the neuron. m S layers of width 1; the others get weight 0 in the
      output layer. It needs an activation that is linear somewhere: ReLU, leaky ReLU. The price of exactness is
      rounding: with M about the size of the sums some digits of them are lost, and no input may leave the bound.

What it shows: the class of functions is not smaller. What it does not show: that training finds such weights, or that
it saves anything. The equal SpinalNet has more multiplications than the network it equals; both are printed.

The figure goes to results/figures/theory_universal_approximation.svg and .png: piecewise linear interpolation of a
function of one variable by ReLU networks of 4 to 256 neurons, each as a SpinalNet, and their error.
"""
from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

try:
    import torch
    from torch import Tensor, nn
except ImportError as missing:
    sys.exit(f"error: {missing.name} is missing: pip install torch numpy matplotlib, or use uv run")

# ---- Facts of this experiment ---------------------------------------------------------------------------------------
ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.01), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
LINEAR_SOMEWHERE = ("relu", "leaky_relu")  # the identity for positive numbers
LEFT, RIGHT = -3.0, 3.0  # domain of the figure
NEURONS = (4, 8, 16, 32, 64, 128, 256)


def target(x: Tensor) -> Tensor:
    """The function of the figure."""
    return torch.sin(3 * x) + 0.3 * x

# >>> shared: regression_seed (origin Regression/synthetic_regression.py; edit there, then: make sync)
def seed_of(*purpose: object) -> int:
    """A seed that is a pure function of its purpose: nothing random has to be stored in order to resume."""
    return int.from_bytes(hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest(), "big") >> 1
# <<< shared: regression_seed


# ---- Networks -------------------------------------------------------------------------------------------------------
class SpinalLayers(nn.Module):
    """Hidden layers of a SpinalNet: (N, features) -> (N, layers * width). Layer k sees `chunks[k]` and h(k-1)."""

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
def to_spinal(hidden: nn.Linear, activation: str, splits: int = 1,
              bound: float | None = None) -> tuple[SpinalLayers, Tensor]:
    """Spinal layers of width 1 that contain the hidden layer `activation(hidden(x))`, and the places of its neurons.

    hidden: features -> m. splits: parts of the input. bound: largest absolute value of an input, needed for splits > 1.
    For every x within the bound, `layers(x)[:, places]` equals `activation(hidden(x))` to rounding. Raises ValueError
    where that cannot be built.
    """
    weight, bias = hidden.weight, hidden.bias
    neurons, features = weight.shape
    if activation not in ACTIVATIONS or not 1 <= splits <= features:
        raise ValueError(f"there is no activation {activation!r}, or {features} inputs cannot make {splits} parts")
    if splits > 1 and activation not in LINEAR_SOMEWHERE:
        raise ValueError(f"{activation} hands no sum on unchanged: use splits 1, relu or leaky_relu")
    if splits > 1 and not bound:
        raise ValueError("with more than one part a bound of the inputs is needed")
    edges = [features * k // splits for k in range(splits + 1)]
    parts = [slice(*pair) for pair in zip(edges, edges[1:])]
    sizes = [part.stop - part.start for part in parts]
    layers = SpinalLayers(parts * neurons, sizes * neurons, 1, ACTIVATIONS[activation]())
    layers.to(weight.dtype)
    offset = (weight.abs().sum(1) * (bound or 0)).ceil()  # M of each neuron
    for neuron in range(neurons):
        for k, part in enumerate(parts):
            layer = layers.hidden[neuron * splits + k]
            size, last = sizes[k], k == splits - 1
            layer.weight.zero_()
            layer.weight[0, :size] = weight[neuron, part]
            if k:
                layer.weight[0, size] = 1.0  # the partial sum of the layers before; a neuron's first takes nothing over
            if last:
                layer.bias.fill_(bias[neuron] - (offset[neuron] if k else 0.0))
            else:
                layer.bias.fill_(0.0 if k else offset[neuron])
    return layers, torch.arange(neurons) * splits + splits - 1


def spinal_equal_of(network: nn.Sequential, activation: str, splits: int = 1,
                    bound: float | None = None) -> nn.Sequential:
    """The SpinalNet equal to Linear, activation, Linear: its output layer sees all outputs, most with weight 0."""
    layers, places = to_spinal(network[0], activation, splits, bound)
    output = nn.Linear(len(layers.hidden), network[2].out_features, dtype=network[2].weight.dtype)
    with torch.no_grad():
        output.weight.zero_()
        output.weight[:, places] = network[2].weight
        output.bias.copy_(network[2].bias)
    return nn.Sequential(layers, output)


def build_network(network: str, head: str | None, *, protocol: str = "corrected", width: int | None = None,
                  layers: int | None = None, features: int = 8, outputs: int = 1, activation: str = "relu",
                  splits: int = 1, bound: float | None = 4.0) -> nn.Module:
    """One hidden layer of `width` (100) neurons, freshly initialised ("fc"), or the SpinalNet equal to it ("spinal" or
    None): (N, features) -> (N, outputs). Raises ValueError for what does not exist.
    """
    head, width = head or "spinal", width or 100
    if network != "mlp" or head not in ("fc", "spinal") or layers is not None or activation not in ACTIVATIONS:
        raise ValueError(f"there is no network {network!r} with head {head!r}, layers {layers}, {activation!r}")
    plain = nn.Sequential(nn.Linear(features, width), ACTIVATIONS[activation](), nn.Linear(width, outputs))
    return plain if head == "fc" else spinal_equal_of(plain, activation, splits, bound)


@torch.no_grad()
def interpolating(neurons: int, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A ReLU network through `target` at neurons + 1 equal steps: its slope changes by one neuron at each."""
    knots = torch.linspace(LEFT, RIGHT, neurons + 1, dtype=dtype)
    slopes = (target(knots[1:]) - target(knots[:-1])) / (knots[1] - knots[0])
    network = nn.Sequential(nn.Linear(1, neurons), nn.ReLU(), nn.Linear(neurons, 1)).to(dtype)
    network[0].weight.fill_(1.0)
    network[0].bias.copy_(-knots[:-1])
    network[2].weight.copy_(torch.cat([slopes[:1], slopes[1:] - slopes[:-1]])[None])
    network[2].bias.copy_(target(knots[:1]))
    return network


# ---- Measuring ------------------------------------------------------------------------------------------------------
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
            plain = build_network("mlp", "fc", width=options.neurons, features=options.inputs, activation=activation)
            plain = plain.to(dtype)
            spinal = spinal_equal_of(plain, activation, splits, options.bound)
            inputs = (2 * torch.rand(10_000, options.inputs, dtype=dtype) - 1) * options.bound
            gap, size = largest_difference(spinal, plain, inputs)
            counts = [sum(x.weight.numel() for x in network.modules() if isinstance(x, nn.Linear))
                      for network in (plain, spinal)]
            lines.append(f"{activation:<12}{splits:>6}{len(spinal[0].hidden):>8}{str(dtype)[6:]:>11}{size:>16.3g}"
                         f"{gap:>12.1e}{counts[0]:>9,}{counts[1]:>14,}")
    return lines


def draw_figure(folder: Path) -> Path | None:
    """Left: the function and three approximations by SpinalNets. Right: error, and difference to the plain network."""
    try:
        import matplotlib
    except ImportError:
        print("note: no figure without matplotlib: pip install matplotlib", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    grid = torch.linspace(LEFT, RIGHT, 4001, dtype=torch.float64)[:, None]
    spinal_errors, gaps = [], []
    with pyplot.rc_context({"font.size": 8, "svg.hashsalt": "spinalnet", "axes.spines.top": False,
                            "axes.spines.right": False}):
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
        right.loglog(NEURONS, spinal_errors, color="#0072B2", marker="o", markersize=3.5,
                     label="error of the SpinalNet")
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


# ---- Command line ---------------------------------------------------------------------------------------------------
def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, whole = parser.add_argument, {"type": int, "metavar": "N"}
    add("--neurons", **whole, default=100, help="of the network with one hidden layer; default: 100")
    add("--inputs", **whole, default=8, help="default: 8")
    add("--splits", **whole, help="parts of the input; default: 1, 2 and 4")
    add("--activation", choices=ACTIVATIONS, help="default: relu, tanh and leaky_relu")
    add("--bound", type=float, default=4.0, metavar="X", help="inputs lie in [-X, X]; default: 4")
    add("--seed", **whole, default=0, help="of the random network; default: 0")
    add("--results-dir", type=Path, default="results", metavar="DIR", help="default: results")
    add("--no-figure", action="store_true", help="the table only")
    options = parser.parse_args(argv)
    for key, low in dict(neurons=1, inputs=1, splits=1, bound=1e-6, seed=0).items():
        if getattr(options, key) is not None and not low <= getattr(options, key) < 1e6:
            parser.error(f"--{key} must be {low} or more and less than a million")
    return options


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 user's mistake, 130 Ctrl-C."""
    options = parse_arguments(argv)
    torch.set_num_threads(1)
    try:
        print(f"A random network {options.inputs} - {options.neurons} - 1 and the SpinalNet written down to equal it, "
              f"on 10,000 inputs in [-{options.bound:g}, {options.bound:g}]:", *equality_table(options), sep="\n")
        if not options.no_figure and (path := draw_figure(options.results_dir / "figures")):
            print(f"figure: {path}")
        return 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
