"""Does the gradient vanish? Norms of the loss gradient, layer by layer, of both kinds of network.

    python tools/measure_gradients.py [--folder results]

Writes gradients.csv, a function of its seeds and of the versions that it names (some minutes on
one core). It measures, ten seeds each, before training and after 1 and 20 epochs:

* the regression networks of Table I, FC 200-100 and Spinal 6 x 50, as published and with six layers
  of their own (corrected), for each function of Regression/synthetic_regression.py;
* chains of 50 hidden layers of 8 neurons on 320 features, as many as the trunk of the small CNN
  gives: a Spinal one (SpinalLayers of MNIST/mnist.py) and a plain one, where each layer sees the
  layer before it and nothing else. Both have the hidden layers of the small CNN (linear, ReLU), a
  linear output layer and its recipe (SGD, batches of 64), and start from PyTorch's usual weights or
  from He's. The task is made up: rectified normal features, ten classes by a random linear map.
  "chain alone": the untrained Spinal one without what its layers, but the last, send to the
  output layer themselves; so their gradient comes through the layers after them.

The gradient is that of the mean loss of all 1,000 training samples with respect to the weights of a
layer. `norm`: its Euclidean norm; `relative`: that norm divided by the norm of the last hidden
layer. Median, lowest and highest over the seeds; `seeds`: those in which the last hidden layer has
a gradient, without which `relative` is nothing. `loss`: of the same samples, median of all seeds.
Layers count from 1 at the input. Of the published Spinal network, layers 3 and 4 are called twice
and 5 and 6 never, so its last one is layer 4.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from measure_costs import load_script, write  # noqa: E402

SEEDS = range(10)
EPOCHS = (0, 1, 20)  # trained when measured
SAMPLES, FEATURES, CLASSES = 1_000, 320, 10
DEPTH, WIDTH = 50, 8
SPREAD = ("norm_median", "relative_median", "relative_low", "relative_high")
COLUMNS = ("network", "task", "weights", "epochs", "layer", "layers", *SPREAD)
COLUMNS += ("seeds", "loss_median", "versions")
ALONE = "spinal chain alone"
HEADS = (("fc", "published"), ("spinal", "published"), ("spinal", "corrected"))
Measure = tuple[float, list[float]]  # loss, norm of the gradient of each layer

regression = load_script("synthetic_regression")
mnist = load_script("mnist")


def measure(loss: Tensor, layers: list[nn.Linear]) -> Measure:
    """Norms of the gradients of the layers that are in use."""
    gradients = torch.autograd.grad(loss, [layer.weight for layer in layers])
    return loss.item(), [float(gradient.norm()) for gradient in gradients]


# ---- The networks of Table I --------------------------------------------------------------------
def hidden_layers(network: nn.Module) -> list[nn.Linear]:
    """All linear layers that are called, but the output layer."""
    if isinstance(network[0], regression.SpinalLayers):
        return [network[0].hidden[index] for index in sorted(set(network[0].calls))]
    return [module for module in network[:-1] if isinstance(module, nn.Linear)]


def regression_run(recipe: regression.Recipe, seed: int) -> Iterator[Measure]:
    """The run of the script with this seed, measured at EPOCHS."""
    device = torch.device("cpu")
    data = regression.load_data(recipe, seed, device)
    # The fresh samples have no effect on training, and their errors are not wanted here.
    data = data._replace(fresh_inputs=data.inputs[:1], fresh_targets=data.reference[:1])
    torch.manual_seed(regression.seed_of(seed, "weights"))
    trainer = regression.Trainer(recipe, data, device)
    for epoch in range(EPOCHS[-1] + 1):
        if epoch:
            generator = torch.Generator().manual_seed(regression.seed_of(seed, "order", epoch))
            trainer.epoch(torch.randperm(len(data.inputs), generator=generator), {})
        if epoch in EPOCHS:
            loss = F.mse_loss(trainer.network(data.inputs), data.targets)
            yield measure(loss, hidden_layers(trainer.network))


# ---- Deep chains --------------------------------------------------------------------------------
def made_up_task(seed: int) -> tuple[Tensor, Tensor]:
    """Features (1000, 320), at least 0, and classes (1000,)."""
    generator = torch.Generator().manual_seed(regression.seed_of(seed, "chain"))
    features = torch.randn(SAMPLES, FEATURES, generator=generator).relu()
    teacher = torch.randn(FEATURES, CLASSES, generator=generator)
    return features, ((features - features.mean(0)) @ teacher).argmax(1)


def chain(kind: str, weights: str, seed: int) -> tuple[nn.Module, list[nn.Linear]]:
    """A classifier (N, 320) -> (N, 10), and its hidden linear layers."""
    torch.manual_seed(regression.seed_of(seed, "weights"))
    if kind == "spinal":
        hidden = mnist.SpinalLayers(FEATURES, DEPTH, WIDTH)
        network = nn.Sequential(hidden, nn.Linear(DEPTH * WIDTH, CLASSES))
    else:
        sizes = [FEATURES, *[WIDTH] * (DEPTH - 1)]
        hidden = [mnist.hidden_layer(size, WIDTH, 0.0, False) for size in sizes]
        network = nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if weights == "He":
        for layer in linear:
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / layer.in_features))
            nn.init.zeros_(layer.bias)
    return network, linear[:-1]


def measure_chain_alone(network: nn.Module, task: tuple[Tensor, Tensor]) -> Measure:
    """The same of a Spinal chain, but for what its layers send to the output layer themselves.

    Only the last layer's way to the output layer stays open: as in a plain chain.
    """
    features, classes = task
    joined = network[0](features)
    loss = F.cross_entropy(network[1](joined), classes)
    (gradient,) = torch.autograd.grad(loss, joined, retain_graph=True)
    gradient[:, :-WIDTH] = 0
    weights = [module.weight for module in network[0].modules() if isinstance(module, nn.Linear)]
    gradients = torch.autograd.grad(joined, weights, gradient)
    return loss.item(), [float(each.norm()) for each in gradients]


def chain_run(kind: str, weights: str, seed: int) -> Iterator[Measure]:
    """A chain trained with the recipe of the small CNN, measured at EPOCHS."""
    features, classes = made_up_task(seed)
    network, layers = chain(kind.split()[0], weights, seed)
    recipe = mnist.CNN
    optimizer = torch.optim.SGD(network.parameters(), recipe.learning_rate, recipe.momentum)
    for epoch in range(1 if kind == ALONE else EPOCHS[-1] + 1):
        if epoch:
            generator = torch.Generator().manual_seed(regression.seed_of(seed, "order", epoch))
            for index in torch.randperm(SAMPLES, generator=generator).split(recipe.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(network(features[index]), classes[index]).backward()
                optimizer.step()
        if epoch in EPOCHS and kind == ALONE:
            yield measure_chain_alone(network, (features, classes))
        elif epoch in EPOCHS:
            yield measure(F.cross_entropy(network(features), classes), layers)


# ---- All of them --------------------------------------------------------------------------------
def spread(norms: list[list[float]], layer: int) -> list[str]:
    """SPREAD and the number of seeds, of one layer. norms: of each seed and layer"""
    known = [each[layer] / each[-1] for each in norms if each[-1] > 0]
    values = [statistics.median(each[layer] for each in norms)]
    if known:
        values += [statistics.median(known), min(known), max(known)]
    texts = [f"{value:.4g}" for value in values]
    return [*texts, *[""] * (len(SPREAD) - len(texts)), str(len(known))]


def lines_of(names: list[str], run: Callable[[int], Iterator[Measure]]) -> Iterator[list[str]]:
    """The lines of one network, task and kind of weights. run: its measures, of a seed"""
    versions = f"torch {torch.__version__.split('+')[0]}"
    moments = zip(*[run(seed) for seed in SEEDS], strict=True)
    for epochs, measures in zip(EPOCHS, moments, strict=False):
        loss = f"{statistics.median(loss for loss, _ in measures):.4g}"
        norms = [each for _, each in measures]
        depth = len(norms[0])
        for layer in range(depth):
            place = [str(epochs), str(layer + 1), str(depth)]
            yield [*names, *place, *spread(norms, layer), loss, versions]


def all_lines() -> list[list[str]]:
    """Everything that gradients.csv holds."""
    lines = []
    for weights in ("default", "He"):
        for kind in ("plain", "spinal", ALONE):
            run = partial(chain_run, kind, weights)
            lines += lines_of([f"{kind} {DEPTH}x{WIDTH}", "made up", weights], run)
            print(f"{kind}, {weights} weights: done", file=sys.stderr)
    for function in regression.FUNCTIONS:
        for head, protocol in HEADS:
            recipe = regression.recipe_of(head, protocol, function=function)
            name = f"{regression.head_name(recipe)} {protocol}"
            lines += lines_of([name, function, "default"], partial(regression_run, recipe))
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--folder", type=Path, default=ROOT / "results", help="default: results")
    folder = parser.parse_args(argv).folder
    torch.set_num_threads(1)
    write(folder / "gradients.csv", COLUMNS, all_lines())
    return 0


if __name__ == "__main__":
    sys.exit(main())
