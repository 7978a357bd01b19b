# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy>=1.26", "matplotlib>=3.8"]
# ///
"""A SpinalNet can be any network with one hidden layer: the paper's universal approximation, built.

    python universal_approximation.py    a table and a figure
    python universal_approximation.py --neurons 200 --splits 4 --activation leaky_relu

Networks with one hidden layer approximate every continuous function on a bounded domain (Cybenko
1989, Hornik 1991). The paper argues that a SpinalNet can equal such a network, so that it is a
universal approximator, too. Here the weights of the equal SpinalNet are written down, not trained,
and the largest difference of the two outputs is printed. `to_spinal` takes any hidden layer
activation(W x + b) of m neurons, also one out of a trained network:

  --splits 1   Layer k sees the whole input. It gets row k of W, and weight 0 for the output of
               layer k - 1. This makes m layers of width 1, with every activation.
  --splits S   Layer k sees part k of the input, and then part 1 again. The first S - 1 of each S
               layers hand on a partial sum w x + M. M is so large that ReLU or leaky ReLU leaves
               the sum alone: |w x| <= M for all inputs up to --bound. The last of the S layers adds
               the last part and takes M away: it is the neuron. This makes m S layers of width 1.
               The other layers get weight 0 in the output layer. The activation must be linear
               somewhere, as ReLU and leaky ReLU are. Sums near M lose some digits to rounding.

This shows that SpinalNets are no smaller class of functions. It does not show that training finds
such weights, or that they save anything: the equal SpinalNet has more multiplications than the
network that it equals. Both numbers are printed.

The figure, results/figures/theory_universal_approximation.svg and .png, shows ReLU networks of 4, 8
and 32 neurons that interpolate a function of one variable, each as a SpinalNet.
"""

import argparse
import hashlib
import sys
from pathlib import Path

try:
    import torch
    from torch import Tensor, nn
except (ImportError, OSError) as error:  # the second: a library of the system is missing
    print(f"error: {error}: pip install torch numpy matplotlib, or uv run", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)

# ---- Facts of this experiment -------------------------------------------------------------------
ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.01),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
}
LINEAR_SOMEWHERE = ["relu", "leaky_relu"]  # these leave positive numbers alone
ROWS = [("relu", 1), ("tanh", 1), ("relu", 2), ("leaky_relu", 4)]  # of the table: with their splits
LEFT, RIGHT = -3.0, 3.0  # domain of the figure
DRAWN = {4: ("#D55E00", "--"), 8: ("#0072B2", "-."), 32: ("#009E73", ":")}  # colour and dashes


def target(x: Tensor) -> Tensor:
    """The function of the figure."""
    return torch.sin(3 * x) + 0.3 * x


# >>> shared: mlp_common (origin Regression/synthetic_regression.py; edit there, then: make sync)
def seed_of(*purpose) -> int:
    """A seed made of its purpose, such as (0, "order", 5), so that no random state is saved."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def multiplications(network: nn.Module) -> int:
    """How many one sample takes: one for each weight of the linear layers; biases have none."""
    return sum(x.numel() for x in network.parameters() if x.dim() == 2)


# <<< shared: mlp_common
class SpinalLayers(nn.Module):
    """Hidden layers of a SpinalNet, of width 1: (N, features) -> (N, layers).

    Layer k sees chunk k of the features, followed by the output of layer k - 1.
    """

    def __init__(self, chunks: list[slice], activation: nn.Module):
        super().__init__()
        self.chunks = chunks
        self.activation = activation
        self.hidden = nn.ModuleList()
        for k, chunk in enumerate(chunks):
            before = 1 if k > 0 else 0
            self.hidden.append(nn.Linear(chunk.stop - chunk.start + before, 1))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chunk, layer in zip(self.chunks, self.hidden, strict=True):
            inputs = torch.cat([x[:, chunk], *outputs[-1:]], 1)
            outputs.append(self.activation(layer(inputs)))
        return torch.cat(outputs, 1)


def check_splits(activation: str, features: int, splits: int, bound: float | None) -> None:
    """Raises ValueError if there is no such SpinalNet."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"there is no activation {activation!r}")
    if not 1 <= splits <= features:
        raise ValueError(f"{features} inputs cannot make {splits} parts")
    if splits > 1 and activation not in LINEAR_SOMEWHERE:
        raise ValueError(
            f"{activation} hands no sum on unchanged: use splits 1, relu or leaky_relu"
        )
    if splits > 1 and not bound:
        raise ValueError("with more than one part a bound of the inputs is needed")


@torch.no_grad()
def to_spinal(
    hidden: nn.Linear, activation: str, splits: int = 1, bound: float | None = None
) -> tuple[SpinalLayers, Tensor]:
    """Spinal layers that contain a hidden layer, and the places of its neurons among them.

    hidden: features -> neurons; splits: parts of the input; bound: the largest absolute value of an
    input, needed for more than one part. For all inputs x within the bound, layers(x)[:, places]
    equals activation(hidden(x)), up to rounding. Raises ValueError if that cannot be built.
    """
    neurons, features = hidden.weight.shape
    check_splits(activation, features, splits, bound)
    edges = [features * k // splits for k in range(splits + 1)]
    parts = [slice(edges[k], edges[k + 1]) for k in range(splits)]
    layers = SpinalLayers(parts * neurons, ACTIVATIONS[activation]).to(hidden.weight.dtype)
    for layer in layers.hidden:
        layer.weight.zero_()
        layer.bias.zero_()
    for neuron in range(neurons):
        weight, bias = hidden.weight[neuron], hidden.bias[neuron]
        chain = layers.hidden[neuron * splits : (neuron + 1) * splits]
        for k, part in enumerate(parts):
            size = part.stop - part.start
            chain[k].weight[0, :size] = weight[part]
            if k > 0:
                chain[k].weight[0, size] = 1.0  # the sum so far
        offset = 0.0
        if splits > 1:
            offset = (weight.abs().sum() * bound).ceil()
        chain[0].bias += offset
        chain[-1].bias += bias - offset
    return layers, torch.arange(neurons) * splits + splits - 1


def spinal_equal_of(
    network: nn.Sequential, activation: str, splits: int = 1, bound: float | None = None
) -> nn.Sequential:
    """The SpinalNet that equals Linear, activation, Linear. Raises ValueError as `to_spinal`."""
    layers, places = to_spinal(network[0], activation, splits, bound)
    last = network[2]
    output = nn.Linear(len(layers.hidden), last.out_features, dtype=last.weight.dtype)
    with torch.no_grad():
        output.weight.zero_()
        output.weight[:, places] = last.weight
        output.bias.copy_(last.bias)
    return nn.Sequential(layers, output)


def build_network(
    network: str,
    head: str | None,
    *,
    protocol: str = "corrected",
    width: int | None = None,
    layers: int | None = None,
    features: int = 8,
    outputs: int = 1,
    activation: str = "relu",
    splits: int = 1,
    bound: float | None = 4.0,
) -> nn.Module:
    """An untrained network on the CPU: (N, features) -> (N, outputs).

    network: "mlp"; head: "fc" for one hidden layer of `width` neurons (None: 100), "spinal" or None
    for the SpinalNet that equals it. Raises ValueError for what does not exist.
    """
    known = network == "mlp" and head in ("fc", "spinal", None) and layers is None
    if not known or activation not in ACTIVATIONS:
        text = f"there is no network {network!r} with head {head!r}"
        raise ValueError(f"{text}, layers {layers} and activation {activation!r}")
    width = width or 100
    first, last = nn.Linear(features, width), nn.Linear(width, outputs)
    plain = nn.Sequential(first, ACTIVATIONS[activation], last)
    if head == "fc":
        return plain
    return spinal_equal_of(plain, activation, splits, bound)


@torch.no_grad()
def interpolating(neurons: int, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A ReLU network through `target` at neurons + 1 equal steps: each neuron bends it at one."""
    knots = torch.linspace(LEFT, RIGHT, neurons + 1, dtype=dtype)
    values = target(knots)
    slopes = (values[1:] - values[:-1]) / (knots[1] - knots[0])
    changes = torch.cat([slopes[:1], slopes[1:] - slopes[:-1]])
    network = nn.Sequential(nn.Linear(1, neurons), nn.ReLU(), nn.Linear(neurons, 1)).to(dtype)
    network[0].weight.fill_(1.0)
    network[0].bias.copy_(-knots[:-1])
    network[2].weight.copy_(changes[None])
    network[2].bias.copy_(values[:1])
    return network


@torch.no_grad()
def largest_difference(first: nn.Module, second: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """The largest absolute difference of two networks' outputs, and the second's largest output."""
    ours, theirs = first(inputs), second(inputs)
    return float((ours - theirs).abs().max()), float(theirs.abs().max())


def table_row(args: argparse.Namespace, activation: str, splits: int, dtype: torch.dtype) -> str:
    """A random network against the SpinalNet that equals it, on random inputs."""
    torch.manual_seed(seed_of(args.seed, "theory"))
    shape = {"width": args.neurons, "features": args.inputs, "activation": activation}
    plain = build_network("mlp", "fc", **shape).to(dtype)
    spinal = spinal_equal_of(plain, activation, splits, args.bound)
    inputs = (2 * torch.rand(10_000, args.inputs, dtype=dtype) - 1) * args.bound
    difference, largest = largest_difference(spinal, plain, inputs)
    precision = str(dtype).removeprefix("torch.")
    text = f"{activation:<12}{splits:>6}{len(spinal[0].hidden):>8}{precision:>11}{largest:>16.3g}"
    text += f"{difference:>12.1e}{multiplications(plain):>9,}"
    return f"{text}{multiplications(spinal):>14,}"


def print_table(args: argparse.Namespace) -> None:
    """Prints a row for each way of cutting the input, in each precision."""
    rows = ROWS
    if args.activation or args.splits:
        rows = [(args.activation or "relu", args.splits or 1)]
    print(f"A random network {args.inputs} - {args.neurons} - 1, and the SpinalNet that equals it,")
    print(f"on 10,000 inputs from -{args.bound:g} to {args.bound:g}:")
    title = f"{'activation':<12}{'parts':>6}{'layers':>8}{'precision':>11}{'largest output':>16}"
    print(f"{title}{'difference':>12}{'mult.':>9}{'mult. spinal':>14}")
    for activation, splits in rows:
        for dtype in (torch.float64, torch.float32):
            print(table_row(args, activation, splits, dtype))


def draw_functions(axes) -> None:
    """The function and three SpinalNets."""
    grid = torch.linspace(LEFT, RIGHT, 4001, dtype=torch.float64)[:, None]
    axes.plot(grid, target(grid), color="black", linewidth=1.6, label="sin 3x + 0.3x")
    for neurons, (colour, dashes) in DRAWN.items():
        spinal = spinal_equal_of(interpolating(neurons), "relu")
        style = {"color": colour, "linestyle": dashes, "linewidth": 1.2}
        values = spinal(grid).detach()
        axes.plot(grid, values, **style, label=f"SpinalNet, {neurons} layers")
    axes.set_xlabel("x")
    axes.set_ylim(-2.2, 2.9)
    place = {"loc": "upper left", "ncols": 2, "handlelength": 2.4, "columnspacing": 1.0}
    axes.legend(fontsize=6.5, frameon=False, **place)


def draw_figure(folder: Path) -> None:
    """Draws the figure and prints where it is, if there is matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no figure without matplotlib: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {"font.size": 8, "svg.hashsalt": "spinalnet"}  # a fixed salt: files that are equal
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(4.2, 2.7), layout="constrained")
        draw_functions(axes)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "theory_universal_approximation.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        figure.savefig(path.with_suffix(".png"), dpi=150, metadata={"Software": None})
        pyplot.close(figure)
    print(f"figure: {path}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. A mistake ends the process with status 2."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--neurons", type=int, default=100, help="of the hidden layer; default: 100")
    add("--inputs", type=int, default=8, help="default: 8")
    add("--splits", type=int, help="parts of the input; default: 1, 2 and 4")
    add("--activation", choices=list(ACTIVATIONS), help="default: relu, tanh and leaky_relu")
    add("--bound", type=float, default=4.0, help="inputs are from -BOUND to BOUND; default: 4")
    add("--seed", type=int, default=0, help="of the random network; default: 0")
    add("--results-dir", type=Path, default="results", help="default: results")
    add("--no-figure", action="store_true", help="print the table only")
    args = parser.parse_args(argv)
    lowest = {"neurons": 1, "inputs": 1, "splits": 1, "bound": 1e-6, "seed": 0}
    for key, least in lowest.items():
        value = getattr(args, key)
        if value is not None and not least <= value < 10**6:
            parser.error(f"--{key} must be from {least} to 999999")
    return args


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 a mistake of the user, 130 stopped by Ctrl-C."""
    args = parse_arguments(argv)
    torch.set_num_threads(1)  # more threads would only wait for each other
    try:
        print_table(args)
        if not args.no_figure:
            draw_figure(args.results_dir.expanduser() / "figures")
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
