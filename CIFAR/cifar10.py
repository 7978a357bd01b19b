# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "tqdm>=4.66"]
# ///
"""CIFAR-10: a fully connected (FC) head against a SpinalNet head. Table II of arXiv 2007.03347.

    python cifar10.py                                 VGG-19: FC 4096 and Spinal 4 x 512
    python cifar10.py --network resnet18              ResNet-18: output layer and Spinal 4 x 20

Only version 2 of the paper has these rows, with one number each:
    python cifar10.py --network resnet34              ResNet-34: output layer and Spinal 4 x 256
    python cifar10.py --network vgg13                 VGG-13: FC 4096 and Spinal 4 x 1024
    python cifar10.py --network vgg11                 VGG-11: FC 4096 and Spinal 4 x 1024
    python cifar10.py --network densenet              DenseNet: FC 512 and Spinal 8 x 16
    python cifar10.py --network densenet --head spinal --width 64
    python cifar10.py --network lenet                 the CNN of PyTorch's tutorial: FC 120 and
                                                      Spinal 6 x 20
In no table are vgg16 and the released cnn.

lenet takes minutes on a CPU; the others need a GPU. Add --runs 10 for ten seeds, as in the paper.
Both heads of a seed train on the same images in the same order. Each run writes one log,
results/logs/cifar10/NAME.jsonl, and prints its accuracy beside the paper's. If you interrupt a run,
the same command continues it after the last finished epoch.

Widths and numbers of epochs are those of the paper's tables. The authors' scripts have other ones:
Spinal 4 x 256 and 160 epochs for ResNet-18, 50 epochs for DenseNet, 2 for the tutorial's CNN. The
scripts of the last two were released for a month in 2020.

--protocol published (the default) trains as the authors' scripts do. --protocol corrected mends
faults that results/audit.md explains:
  Q1 Q2  cnn: both heads divide the rate by 3 after an epoch that is worse than the best; published:
         the FC head after epoch 2 and every epoch from 22 on, the Spinal head never
  Q5 Q6  rates, the epoch to report and its weights are chosen on 5,000 held-out training images,
         not on the test images (published cnn, densenet and lenet report their last epoch)
  Q7 Q8  images are normalised by the training images' mean and deviation; published: by CIFAR-100's
         (ResNets), by 0.5 (densenet, lenet), not at all (VGGs, cnn)
  Q22    DenseNet's FC head trains in training mode; published: in evaluation mode from epoch 2 on
DenseNet has layers that are counted but never called (Q23): with FC 512, 961,066 of its 1,071,946
parameters are trained; with Spinal 8 x 16, 499,882 of 1,135,562; with 8 x 64, 727,594 of 1,363,274.
"""

# >>> shared: imports (origin MNIST/mnist.py; edit there, then: make sync)
import argparse
import base64
import copy
import hashlib
import json
import math
import os
import re
import socket
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

try:
    import numpy
    import torch
    import torchvision
    from torch import Tensor, nn
    from torch.nn import functional as F
    from tqdm import tqdm
except ImportError as error:
    print(f"error: {error}: pip install torch torchvision numpy tqdm, or uv run", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)
# <<< shared: imports
# ---- Facts of this experiment -------------------------------------------------------------------
SCRIPT = "cifar10"
DATASET = "CIFAR-10"
FIRST_FILE = "cifar-10-batches-py/data_batch_1"  # below --data-dir
FINGERPRINT = "32e5966899bde482"  # of the official images and labels; None: not known
LABELS = range(10)
COUNTS = [50_000, 10_000]  # of the official training and test images
HEADS = ["fc", "spinal"]
NETWORKS = ["vgg19", "vgg16", "vgg13", "vgg11", "resnet18", "resnet34", "densenet", "lenet", "cnn"]
SMALL = ["lenet"]  # these train in minutes on one CPU thread; the others need a GPU
PAPER = {  # accuracy in per cent: of ten runs, or the one number that version 2 prints
    "vgg19-fc": {"average": 90.48, "best": 90.75},
    "vgg19-spinal4x512": {"average": 90.97, "best": 91.40},
    "resnet18-fc": {"average": 90.65, "best": 91.98},
    "resnet18-spinal4x20": {"average": 90.39, "best": 91.42},
    "resnet34-fc": {"version 2": 89.56},
    "resnet34-spinal4x256": {"version 2": 89.88},
    "vgg13-fc": {"version 2": 87.79},
    "vgg13-spinal4x1024": {"version 2": 89.16},
    "vgg11-fc": {"version 2": 86.68},
    "vgg11-spinal4x1024": {"version 2": 87.08},
    "densenet-fc": {"version 2": 77.79},
    "densenet-spinal8x16": {"version 2": 81.13},
    "densenet-spinal8x64": {"version 2": 81.95},
    "lenet-fc": {"version 2": 60.65},
    "lenet-spinal6x20": {"version 2": 62.37},
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers of a run. The log repeats it as its `settings`."""

    mean: list[float]  # of each channel, for pixels from 0 to 1; empty: to be measured
    std: list[float]
    augmentation: list[str]
    network: str = "vgg19"
    head: str = "fc"
    layers: int = 2  # hidden layers of the head
    width: int = 4096  # neurons in each of them; cnn and lenet with FC: see there
    fc_dropout: float = 0.5  # before the output layer
    protocol: str = "published"
    epochs: int = 200
    batch_size: int = 100
    optimizer: str = "Adam"
    momentum: float = 0.0  # of SGD
    learning_rate: float = 0.0001  # of the first epoch
    rate_rule: str = "lr U^3 if below best"  # what next_rate does
    selection: str = "best_test"  # the epoch to report: "last", this or the best on "heldout"
    heldout: int = 0  # one in so many training images is held out
    precision: str = "fp32"
    limit: int | None = None  # use only so many training and test images
    classes: int = 10  # outputs of the network
    first_label: int = 0  # what the first output stands for
    train_mode_epochs: int | None = None  # later ones train in evaluation mode (Q22); None: none


VGG19 = Recipe(mean=[0.0] * 3, std=[1.0] * 3, augmentation=["pad_flip_crop"])
VGG13 = replace(VGG19, network="vgg13", epochs=35)
RESNET18 = replace(
    VGG19,
    network="resnet18",
    layers=0,
    width=0,
    fc_dropout=0.0,
    epochs=150,
    batch_size=200,
    learning_rate=0.001,
    rate_rule="lr U^5 if below best",
    mean=[0.507, 0.487, 0.441],  # those of CIFAR-100 (Q8)
    std=[0.267, 0.256, 0.276],
)
DENSENET = Recipe(
    mean=[0.5] * 3,
    std=[0.5] * 3,
    augmentation=[],
    network="densenet",
    layers=1,
    width=512,
    fc_dropout=0.0,
    epochs=35,
    optimizer="SGD",
    momentum=0.95,
    learning_rate=0.001,
    rate_rule="constant",
    selection="last",
)
LENET = replace(
    DENSENET, network="lenet", layers=2, width=120, epochs=8, batch_size=4, momentum=0.9
)
CNN = replace(
    VGG19,
    network="cnn",
    width=512,
    fc_dropout=0.1,
    epochs=160,
    learning_rate=0.001,
    rate_rule="constant",
    selection="last",
)


def both_heads(recipe: Recipe, layers: int, width: int) -> dict:
    """This recipe, of a network's FC head, and the same for so many Spinal layers of this width."""
    spinal = replace(recipe, head="spinal", layers=layers, width=width)
    return {(recipe.network, "fc"): recipe, (recipe.network, "spinal"): spinal}


RECIPES = {
    **both_heads(VGG19, 4, 512),
    **both_heads(replace(VGG19, network="vgg16"), 4, 512),
    **both_heads(VGG13, 4, 1024),
    **both_heads(replace(VGG13, network="vgg11"), 4, 1024),
    **both_heads(RESNET18, 4, 20),
    **both_heads(replace(RESNET18, network="resnet34"), 4, 256),
    **both_heads(DENSENET, 8, 16),
    **both_heads(LENET, 6, 20),
    **both_heads(CNN, 4, 128),
}
# The heads of two networks differ in more than their layers (Q22, Q1).
RECIPES["densenet", "fc"] = replace(DENSENET, train_mode_epochs=1)
RECIPES["cnn", "fc"] = replace(CNN, rate_rule="a third after epoch 2 and from 22 on")


def corrected(recipe: Recipe) -> Recipe:
    """The recipe without the faults that the docstring of this script lists."""
    return replace(
        recipe,
        protocol="corrected",
        rate_rule="a third if below best" if recipe.network == "cnn" else recipe.rate_rule,
        mean=[],
        std=[],
        heldout=10,
        selection="heldout",
        train_mode_epochs=None,
    )


def next_rate(
    recipe: Recipe, epoch: int, rate: float, accuracy: float, best: float, u: float
) -> float:
    """The rate after this epoch. best: accuracy of the best one before it; u: random, 0 to 1"""
    if recipe.rate_rule == "constant":
        return rate
    if recipe.rate_rule == "a third after epoch 2 and from 22 on":
        return rate / 3 if epoch == 2 or epoch >= 22 else rate
    if accuracy >= best:  # after a tie, too, the rate stays (Q17)
        return rate
    if recipe.rate_rule == "a third if below best":
        return rate / 3
    power = 3 if recipe.rate_rule == "lr U^3 if below best" else 5
    return recipe.learning_rate * u**power


def read_part(folder: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) of the training or the test part."""
    part = torchvision.datasets.CIFAR10(folder, train=train, download=download)
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2)
    return images.contiguous(), torch.tensor(part.targets)


def match_archives(folder: Path) -> bool:
    """Are the files in this folder the official ones? Yes: torchvision refuses those whose md5 is
    not that of the official file, each time it reads them."""
    return True


# >>> shared: data (origin MNIST/mnist.py; edit there, then: make sync)
# Settings that the command line can change, and their marks in the names of logs.
MARKS = {
    "epochs": "e",
    "batch_size": "b",
    "learning_rate": "lr",
    "limit": "limit",
    "fc_dropout": "drop",
    "precision": "",
}
# Hashes of the images in official training and test parts, to tell data sets apart.
KNOWN_IMAGES = {
    "741c988805d008ac": "MNIST",
    "6d87418db22cc802": "MNIST",
    "2e487a6c89124f78": "Fashion-MNIST",
    "c867c93ff9536059": "Fashion-MNIST",
}


def recipe_of(network: str, head: str, protocol: str, **changes) -> Recipe:
    """The recipe of the paper's row under this protocol, with those changes that are not None."""
    recipe = RECIPES[network, head]
    if protocol == "corrected":
        recipe = corrected(recipe)
    return replace(recipe, **{key: x for key, x in changes.items() if x is not None})


def head_name(recipe: Recipe) -> str:
    """fc, spinal6x8, ...; or fc10 for an FC head whose width, 10, is not the paper's."""
    if recipe.head == "spinal":
        return f"spinal{recipe.layers}x{recipe.width}"
    if recipe.width == RECIPES[recipe.network, "fc"].width:
        return "fc"
    return f"fc{recipe.width}"


@dataclass
class Data:
    """Images (N, C, H, W) uint8 and labels (N,) int64 on the device, and facts for the log."""

    train: tuple[Tensor, Tensor]
    heldout: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor]
    facts: dict


def seed_of(*purpose) -> int:
    """A seed made of its purpose, such as (0, "data", 5), so that no random state is saved."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def identify(parts: list[tuple[Tensor, Tensor]]) -> dict:
    """Facts for the log. Raises ValueError if the images and labels are of another data set."""
    whole = hashlib.sha256()
    for images, labels in parts:
        if len(images) != len(labels) or labels.unique().tolist() != list(LABELS):
            raise ValueError("there is not one label for each image, or a class is missing")
        whole.update(images.numpy())
        whole.update(labels.byte().numpy())
        digest = hashlib.sha256(images.numpy()).hexdigest()[:16]
        name = KNOWN_IMAGES.get(digest, DATASET)
        if name != DATASET:
            raise ValueError(f"these are the images of {name}")
    sha256 = whole.hexdigest()[:16]
    official = [len(labels) for _, labels in parts] == COUNTS
    if official and FINGERPRINT not in (None, sha256):
        raise ValueError("its images or labels are not the official ones")
    return {"sha256": sha256, "official": official, "verified": sha256 == FINGERPRINT}


def load_data(folder: Path, recipe: Recipe, download: bool, device: torch.device) -> Data:
    """Reads, checks and splits the data. Raises ValueError if they cannot be had or are wrong."""
    socket.setdefaulttimeout(60)  # seconds without a byte, after which a download has failed
    file = folder / FIRST_FILE
    try:
        parts = [read_part(folder, train, download) for train in (True, False)]
        facts = identify(parts)
        facts["verified"] |= match_archives(file.parent)
    except Exception as error:  # torchvision raises exceptions of many kinds
        reason = str(error).partition(" You can use download=True")[0] or repr(error)
        raise ValueError(
            f"{DATASET} cannot be had from {file.parent} ({reason}): put the official {file.name} "
            "and so on there, or leave out --no-download"
        ) from error
    (images, labels), test = [
        (x[: recipe.limit].to(device), y[: recipe.limit].long().to(device) - recipe.first_label)
        for x, y in parts
    ]
    heldout, count = None, 0
    if recipe.heldout:  # the same images are held out in all runs
        generator = torch.Generator().manual_seed(seed_of("heldout"))
        order = torch.randperm(len(images), generator=generator).to(device)
        count = max(1, len(images) // recipe.heldout)
        chosen, rest = order[:count].sort().values, order[count:].sort().values
        heldout = (images[chosen], labels[chosen])
        images, labels = images[rest], labels[rest]
    facts |= {"train": len(images), "heldout": count, "test": len(test[1])}
    return Data((images, labels), heldout, test, facts)


def measured(recipe: Recipe, images: Tensor) -> Recipe:
    """The recipe with mean and deviation of these images (N, C, H, W) uint8, unless it has some."""
    if recipe.mean:
        return recipe
    std, mean = torch.std_mean(images.float() / 255, (0, 2, 3))
    mean, std = numpy.round([mean.tolist(), std.tolist()], 4).tolist()
    return replace(recipe, mean=mean, std=std)


def augment(images: Tensor, steps: list[str], generator: torch.Generator) -> Tensor:
    """A random view of each image (N, C, S, S) uint8; `generator` is one of the CPU."""
    views = []
    for part in images.split(2_000):  # so many fit into the cache of a CPU
        for step in steps:
            part = AUGMENTATIONS[step](part, generator)
        views.append(part)
    return torch.cat(views)


# <<< shared: data
# >>> shared: pad_flip_crop (origin CIFAR/cifar10.py; edit there, then: make sync)
def pad_flip_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """For each image (N, C, S, S) uint8: 4 black pixels around it, a flip, a crop of its old size.

    It flips with probability 0.5, and each of the 9 x 9 crops is equally likely. A crop before the
    flip, as in some of the authors' scripts, has the same distribution (Q20).
    """
    count, _, size, _ = images.shape
    flipped = torch.rand(count, generator=generator).to(images.device) < 0.5
    tops, lefts = torch.randint(0, 9, (2, count), generator=generator)
    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    crops = F.pad(images, [4] * 4).unfold(2, size, 1).unfold(3, size, 1)  # (N, C, 9, 9, S, S)
    return crops[torch.arange(count), :, tops, lefts]


# <<< shared: pad_flip_crop
AUGMENTATIONS = {"pad_flip_crop": pad_flip_crop}


# >>> shared: spinal (origin MNIST/mnist.py; edit there, then: make sync)
def hidden_layer(inputs: int, width: int, dropout: float, batch_norm: bool) -> nn.Module:
    """(N, inputs) -> (N, width)"""
    norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, width), norm, nn.ReLU())


class SpinalLayers(nn.Module):
    """The hidden layers of a SpinalNet (paper, section III): (N, features) -> (N, layers * width).

    The features are cut into two halves, A and B. The first layer sees A. Each later layer sees B,
    A, B, ... in turns, followed by the output of the layer before it. All outputs are joined.
    """

    def __init__(
        self, features: int, layers: int, width: int, dropout: float = 0.0, batch_norm: bool = False
    ):
        super().__init__()
        self.half = features // 2
        self.hidden = nn.ModuleList()
        for k in range(layers):
            inputs = self.half if k == 0 else self.half + width
            self.hidden.append(hidden_layer(inputs, width, dropout, batch_norm))

    def forward(self, x: Tensor) -> Tensor:
        halves = x.split(self.half, 1)
        outputs = [self.hidden[0](halves[0])]
        for k, layer in enumerate(self.hidden[1:], start=1):
            outputs.append(layer(torch.cat([halves[k % 2], outputs[-1]], 1)))
        return torch.cat(outputs, 1)


# <<< shared: spinal
# >>> shared: cifar_networks (origin CIFAR/cifar10.py; edit there, then: make sync)
# Each function below makes one kind of network: the trunk, the hidden layers of the head, and how
# many neurons the last hidden layer of the FC head has. The trunk comes first, so that it gets the
# same random weights with either head.


def cnn(recipe: Recipe) -> tuple:
    """The released CNN: (N, 3, 32, 32) -> (N, 4096). Its FC head has 2 * width, width neurons."""
    layers = []
    channels = 3
    for first, second, dropout in [(32, 64, 0.0), (128, 128, 0.05), (256, 256, 0.0)]:
        layers += [
            nn.Conv2d(channels, first, 3, padding=1),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(dropout),
        ]
        channels = second
    trunk = nn.Sequential(*layers, nn.Flatten())
    width = recipe.width
    if recipe.head == "spinal":
        hidden = SpinalLayers(4096, recipe.layers, width, dropout=0.1)
    else:
        hidden = nn.Sequential(
            hidden_layer(4096, 2 * width, 0.1, batch_norm=False),
            hidden_layer(2 * width, width, 0.0, batch_norm=False),
        )
    return trunk, hidden, width


def vgg(recipe: Recipe) -> tuple:
    """torchvision's VGG with batch norm, without its averaging: (N, 3, 32, 32) -> (N, 512)"""
    letter = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}[recipe.network]
    source = torchvision.models.vgg
    layers = source.make_layers(source.cfgs[letter], batch_norm=True)
    trunk = nn.Sequential(layers, nn.Flatten())
    width = recipe.width
    if recipe.head == "spinal":
        hidden = SpinalLayers(512, recipe.layers, width, dropout=0.5)
    else:
        hidden = nn.Sequential(
            hidden_layer(512, width, 0.0, batch_norm=False),
            hidden_layer(width, width, 0.5, batch_norm=False),
        )
    return trunk, hidden, width


def convolution(channels: int, width: int, stride: int) -> list:
    """3 x 3, and batch norm: (N, channels, S, S) -> (N, width, S / stride, S / stride)"""
    layer = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    return [layer, nn.BatchNorm2d(width)]


class Block(nn.Module):
    """A residual block of the paper: (N, channels, S, S) -> (N, width, S, S), or S / 2 if wider.

    Unlike the usual one it has a 3 x 3 convolution on the shortcut (Q10), not 1 x 1, and no ReLU
    after the addition (Q9).
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        stride = 1 if channels == width else 2
        first = convolution(channels, width, stride)
        self.body = nn.Sequential(*first, nn.ReLU(), *convolution(width, width, 1))
        self.shortcut = nn.Sequential()
        if stride == 2:
            self.shortcut.extend(convolution(channels, width, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class QuadrantSpinalLayers(SpinalLayers):
    """Hidden layers on (N, features / 2, 2, 2), which has four places instead of two halves.

    Layer k sees place k, row by row, followed by the output of layer k - 1. A fifth layer would
    begin again with the first place. All outputs are joined: (N, layers * width)
    """

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).unbind(2)
        outputs = []
        for k, layer in enumerate(self.hidden):  # there is no output before the first layer
            outputs.append(layer(torch.cat([places[k % 4], *outputs[-1:]], 1)))
        return torch.cat(outputs, 1)


def resnet(recipe: Recipe) -> tuple:
    """The paper's ResNet, half as wide as the usual one: (N, 3, 32, 32) -> (N, 256, 4, 4)

    The FC head gets the maximum of each channel, the Spinal head those of its quadrants (Q11).
    """
    layers = [*convolution(3, 32, 1), nn.ReLU(), nn.Dropout2d(0.02)]
    channels = 32
    depths = (2, 2, 2, 2) if recipe.network == "resnet18" else (3, 4, 6, 3)
    for width, depth in zip((32, 64, 128, 256), depths, strict=True):
        for _ in range(depth):
            layers.append(Block(channels, width))
            channels = width
    trunk = nn.Sequential(*layers)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if recipe.head == "spinal":
        layers = QuadrantSpinalLayers(2 * 256, recipe.layers, recipe.width)
        for layer in layers.hidden:
            nn.init.zeros_(layer[1].bias)
        hidden = nn.Sequential(nn.MaxPool2d(2), layers)
    elif recipe.width:
        raise ValueError("the ResNets' FC head is the output layer alone: leave out --width")
    else:
        hidden = nn.Sequential(nn.MaxPool2d(4), nn.Flatten())
    return trunk, hidden, 256


def network_of(recipe: Recipe) -> nn.Module:
    """Trunk, head, output layer, log-softmax, on the CPU: (N, 3, 32, 32) -> (N, classes)"""
    kind = recipe.network.rstrip("0123456789")
    trunk, hidden, features = KINDS[kind](recipe)
    if recipe.head == "spinal":
        features = recipe.layers * recipe.width
    output = nn.Linear(features, recipe.classes)
    if kind == "resnet":
        nn.init.zeros_(output.bias)
    head = nn.Sequential(hidden, nn.Dropout(recipe.fc_dropout))
    return nn.Sequential(trunk, head, output, nn.LogSoftmax(1))


# <<< shared: cifar_networks
class DenseBlock(nn.Module):
    """Batch norm and five convolutions: (N, channels, S, S) -> (N, 160, S, S)

    The first convolution sees the block's input, each later one the outputs of those before it.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.convolutions = nn.ModuleList()
        for inputs in (channels, 32, 64, 96, 128):
            self.convolutions.append(nn.Conv2d(inputs, 32, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        outputs = F.relu(self.convolutions[0](self.norm(x)))
        for convolution in self.convolutions[1:]:
            outputs = torch.cat([outputs, F.relu(convolution(outputs))], 1)
        return outputs


def densenet(recipe: Recipe) -> tuple:
    """The DenseNet of version 2's rows: (N, 3, 32, 32) -> (N, 1024). Its FC layer is linear (Q24).

    The authors' scripts make a fourth block that is never called and, with the Spinal head, the FC
    layer as well (Q23). Their parameters are counted, their multiplications are not.
    """
    layers = [nn.Conv2d(3, 64, 7, padding=3, bias=False), nn.ReLU()]
    for channels, width in [(64, 128), (128, 128), (128, 64)]:
        layers += [
            DenseBlock(channels),
            nn.Conv2d(160, width, 1, bias=False),
            nn.ReLU(),
            nn.BatchNorm2d(width),
            nn.AvgPool2d(2),
        ]
    trunk = nn.Sequential(*layers, nn.BatchNorm2d(64), nn.Flatten())
    unused = nn.ModuleList([DenseBlock(64)])
    if recipe.head == "spinal":
        hidden = SpinalLayers(1024, recipe.layers, recipe.width)
        unused.append(nn.Linear(1024, 512))
    else:
        hidden = nn.Linear(1024, recipe.width)
    hidden.unused = nn.ParameterList(unused.parameters())
    return trunk, hidden, recipe.width


def lenet(recipe: Recipe) -> tuple:
    """The CNN of PyTorch's tutorial: (N, 3, 32, 32) -> (N, 400). Its FC head: width, 84 neurons."""
    trunk = nn.Sequential(
        nn.Conv2d(3, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    if recipe.head == "spinal":
        hidden = SpinalLayers(400, recipe.layers, recipe.width)
    else:
        hidden = nn.Sequential(
            hidden_layer(400, recipe.width, 0.0, batch_norm=False),
            hidden_layer(recipe.width, 84, 0.0, batch_norm=False),
        )
    return trunk, hidden, 84


KINDS = {"vgg": vgg, "resnet": resnet, "densenet": densenet, "lenet": lenet, "cnn": cnn}


# >>> shared: build_network (origin MNIST/mnist.py; edit there, then: make sync)
def build_network(
    network: str,
    head: str | None,
    *,
    protocol: str = "published",
    width: int | None = None,
    layers: int | None = None,
) -> nn.Module:
    """The network of one of the paper's rows, untrained, on the CPU: images to log-probabilities.

    width, layers: None for those of the row; head: None for "spinal"
    """
    return network_of(recipe_of(network, head or "spinal", protocol, width=width, layers=layers))


# <<< shared: build_network
# >>> shared: trainer (origin MNIST/mnist.py; edit there, then: make sync)
class Trainer:
    """Trains and tests one network. Within an epoch nothing is read back from the device."""

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device):
        self.recipe = recipe
        self.device = device
        # channels_last changes no number and makes convolutions faster.
        self.network = network.to(device, memory_format=torch.channels_last)
        moments = torch.tensor([recipe.mean, recipe.std], device=device)
        self.mean, self.std = moments.view(2, -1, 1, 1)
        self.total = torch.zeros((), device=device)  # of the losses of an epoch's images
        self.cuda = device.type == "cuda"
        rate = recipe.learning_rate
        if self.cuda:
            rate = torch.tensor(rate, device=device)  # a CUDA graph notices no other change of it
            self.ordinary_steps = 0
            self.side = torch.cuda.Stream()
            self.graph = None
        weights = network.parameters()
        if recipe.optimizer == "Adam":
            self.optimizer = torch.optim.Adam(weights, rate, fused=True, capturable=self.cuda)
        else:
            # Unfused it would read the rate back from the device, which no graph can record.
            self.optimizer = torch.optim.SGD(weights, rate, recipe.momentum, fused=self.cuda)

    def outputs(self, images: Tensor) -> Tensor:
        """Log-probabilities (N, classes) of images (N, C, H, W) uint8."""
        x = (images.float() / 255 - self.mean) / self.std
        with torch.autocast(self.device.type, torch.bfloat16, self.recipe.precision == "bf16"):
            x = self.network[:2](x)  # trunk and head
        return self.network[2:](x.float())  # always fp32: in bf16 two classes would often be equal

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Trains on one batch, and adds the sum of its losses to the total."""
        self.optimizer.zero_grad()
        loss = F.nll_loss(self.outputs(images), labels)
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach() * len(labels)

    def begin(self, epoch: int) -> None:
        """What is done before an epoch is trained; epochs count from 1."""
        self.network.train()

    def epoch(self, images: Tensor, labels: Tensor, batches: tqdm, rate: float) -> float:
        """Trains on all images, whose indices come in batches. Returns the mean loss."""
        self.total.zero_()
        group = self.optimizer.param_groups[0]
        if self.cuda:
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        for index in batches:
            whole = len(index) == self.recipe.batch_size  # the last batch may be smaller
            step = self.graph_step if self.cuda and whole else self.step
            step(images[index], labels[index])
        return float(self.total) / len(labels)

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Mean loss on images (N, C, H, W) uint8 and labels (N,), and which are right (N,) bool."""
        self.network.eval()
        loss = 0
        right = []
        # On a CPU, large batches of a large network spend their time on memory pages.
        size = 1_000 if self.cuda else 100
        for part, truth in zip(images.split(1_000), labels.split(1_000), strict=True):
            outputs = torch.cat([self.outputs(batch) for batch in part.split(size)])
            loss += F.nll_loss(outputs, truth, reduction="sum")
            right.append(outputs.argmax(1) == truth)
        return float(loss) / len(labels), torch.cat(right)

    def graph_step(self, images: Tensor, labels: Tensor) -> None:
        """The same as `step`, but as a CUDA graph: all its short kernels start at once.

        Before PyTorch can record a step, it needs three ordinary ones on a stream of their own.
        """
        if self.ordinary_steps < 3:
            self.ordinary_steps += 1
            main = torch.cuda.current_stream()
            self.side.wait_stream(main)
            with torch.cuda.stream(self.side):
                self.step(images, labels)
            main.wait_stream(self.side)
            return
        if self.graph is None:
            self.batch = (images, labels)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step(images, labels)  # it is recorded, but not done
        self.batch[0].copy_(images)
        self.batch[1].copy_(labels)
        self.graph.replay()


# <<< shared: trainer
class ModeTrainer(Trainer):
    """Trains in evaluation mode after the recipe's train_mode_epochs.

    DenseNet's FC script turns to evaluation mode for the test of epoch 1, and never back (Q22).
    From then on batch norm uses the mean and variance that it has seen in epoch 1.
    """

    def begin(self, epoch: int) -> None:
        last = self.recipe.train_mode_epochs
        self.network.train(last is None or epoch <= last)
        if self.cuda and last == epoch - 1:  # a graph is of the mode it was recorded in
            self.graph = None
            self.ordinary_steps = 0


TRAINER = ModeTrainer  # what trains the networks of this script


# >>> shared: training (origin MNIST/mnist.py; edit there, then: make sync)
def found(file: str, pattern: str) -> str:
    """What a system file of Linux says in the first group of the pattern, or "unknown"."""
    text = Path(file).read_text() if Path(file).exists() else ""
    return [*re.findall(pattern, text), "unknown"][0]


def provenance(device: torch.device) -> dict:
    """The program and the machine: what else can change the last digits of a result."""
    text = Path(__file__).read_text("utf-8").encode()  # with line ends as on Linux
    versions = {"torch": str(torch.__version__), "torchvision": torchvision.__version__}
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
        facts["device_name"] = torch.cuda.get_device_name()
        facts["capability"] = torch.cuda.get_device_capability()
        facts["driver"] = found("/proc/driver/nvidia/version", r"(\d+\.[\d.]+)")
        facts["cudnn_allow_tf32"] = torch.backends.cudnn.allow_tf32
        facts["matmul_allow_tf32"] = torch.backends.cuda.matmul.allow_tf32
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


def percent(right: Tensor) -> float:
    """Of (N,) bool: how many are true."""
    return 100 * int(right.sum()) / len(right)


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
        facts = self.data.facts
        row = recipe_of(recipe.network, recipe.head, recipe.protocol)
        departures = [key for key in MARKS if getattr(recipe, key) != getattr(row, key)]
        label = f"{recipe.network}-{head_name(recipe)}"
        parts = [label, recipe.protocol]
        parts += [f"{MARKS[key]}{getattr(recipe, key)}" for key in departures]
        self.paper = {}  # the paper's numbers, if this run can be compared with them
        if not facts["official"]:
            parts.append(f"data{facts['sha256'][:8]}")
        elif not departures:
            self.paper = PAPER.get(label, {})
        self.name = "-".join([*parts, f"s{self.seed}"])
        self.watched = "heldout" if self.data.heldout else "test"
        results = self.args.results_dir.expanduser()
        self.log = results / "logs" / SCRIPT / f"{self.name}.jsonl"
        self.unfinished_log = self.log.with_suffix(".jsonl.part")
        self.checkpoint = self.log.with_suffix(".pt")
        self.weights = results / "weights" / SCRIPT / f"{self.name}.pt"
        self.start = {
            "event": "start",
            "schema": 3,
            "script": SCRIPT,
            "run": self.name,
            "seed": self.seed,
            "settings": {"dataset": DATASET, **asdict(recipe)},
            "departures": departures,
            "data": facts,
            "provenance": provenance(self.device),
        }

    def perform(self) -> float:
        """Trains what is left to train, and prints the result. Returns the accuracy in per cent."""
        if self.args.overwrite:
            for file in (self.log, self.checkpoint, self.weights):
                file.unlink(missing_ok=True)
        self.prepare()
        note = ""
        try:
            if self.log.exists():
                note = self.read_end()
                self.checkpoint.unlink(missing_ok=True)
            elif self.checkpoint.exists():
                self.resume()
        except Exception as error:  # damaged files raise exceptions of many kinds
            reason = error if type(error) is ValueError else f"damaged: {type(error).__name__}"
            raise ValueError(
                f"the log or checkpoint {self.log.with_suffix('')} cannot be used ({reason}): "
                "--overwrite starts anew"
            ) from error
        if not note:
            while self.state["epoch"] < self.recipe.epochs:
                self.train_epoch()
            self.finish()
        accuracy = self.end["selected_test_accuracy_pct"]
        text = f"{note}{DATASET} {self.name}: {accuracy:.2f} %"
        if self.paper:
            numbers = ", ".join(f"{key} {x}" for key, x in self.paper.items())
            text += f" (paper, as published: {numbers})"
        if not self.data.facts["verified"]:
            text += ", data not verified"
        print(f"{text}\n  log: {self.log}", flush=True)
        if self.args.save_weights:
            print(f"  weights: {self.weights}")
        return accuracy

    def read_end(self) -> str:
        """Reads the finished log. Returns a note about it; raises ValueError if it does not fit."""
        lines = self.log.read_text().splitlines()
        first, self.end = json.loads(lines[0]), json.loads(lines[-1])
        same_script = compare(first, self.start)
        if self.args.save_weights and not self.weights.exists():
            raise ValueError("its weights were not saved")
        made = self.end["ended"]
        if not same_script:
            made += " by another version of this script"
        return f"already finished {made} (--overwrite runs it again): "

    def prepare(self) -> None:
        """Builds the network and the state before the first epoch."""
        recipe = self.recipe
        torch.manual_seed(seed_of(self.seed, "weights"))
        network = network_of(recipe)
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        self.start["parameters"] = sum(x.numel() for x in network.parameters())
        self.start["fc_multiplications"] = sum(x.weight.numel() for x in linear)
        self.trainer = TRAINER(network, recipe, self.device)
        # lines: of the log; epoch: the last finished one; rate: of the next one; best: accuracy
        self.state = {
            "lines": [self.start],
            "epoch": 0,
            "rate": recipe.learning_rate,
            "best": -1.0,
        }

    def resume(self) -> None:
        """Goes on from the checkpoint. Raises an exception if it is not one of this run."""
        saved = torch.load(self.checkpoint, "cpu")  # a GPU's memory may be full of other things
        if not compare(saved["state"]["lines"][0], self.start):
            raise ValueError("it was made by another version of this script")
        self.trainer.network.load_state_dict(saved["network"])
        optimizer = self.trainer.optimizer.state_dict()  # with the options for this device
        optimizer["state"] = saved["optimizer"]
        self.trainer.optimizer.load_state_dict(optimizer)
        self.state = saved["state"]
        epoch = self.state["epoch"]
        machine = self.start["provenance"]
        self.state["lines"].append({"event": "resume", "epoch": epoch, "provenance": machine})
        print(f"{self.name} goes on after epoch {epoch}")

    def train_epoch(self) -> None:
        """Trains, tests and saves one epoch."""
        began = time.monotonic()
        recipe, state, trainer = self.recipe, self.state, self.trainer
        epoch, rate = state["epoch"] + 1, state["rate"]
        title = f"{self.name} epoch {epoch}/{recipe.epochs}"
        # The head is not in this seed: both heads get the same images in the same order.
        generator = torch.Generator().manual_seed(seed_of(self.seed, "data", epoch))
        images, labels = self.data.train
        order = torch.randperm(len(labels), generator=generator).to(self.device)
        images = augment(images, recipe.augmentation, generator)
        torch.manual_seed(seed_of(self.seed, "dropout", epoch))
        # disable=None: no bar unless in a terminal
        batches = order.split(recipe.batch_size)
        batches = tqdm(batches, title, leave=False, disable=self.args.quiet or None)
        trainer.begin(epoch)
        train_loss = trainer.epoch(images, labels, batches, rate)
        loss, right = trainer.evaluate(*(self.data.heldout or self.data.test))
        accuracy = percent(right)
        generator.manual_seed(seed_of(self.seed, "rate", head_name(recipe), epoch))
        u = float(torch.rand((), generator=generator, dtype=torch.float64))
        state["rate"] = next_rate(recipe, epoch, rate, accuracy, state["best"], u)
        if accuracy > state["best"]:
            state |= {"best": accuracy, "best_epoch": epoch}
            state["best_weights"] = copy.deepcopy(trainer.network.state_dict())
        seconds = time.monotonic() - began
        state |= {"epoch": epoch, "train_loss": train_loss}
        line = {
            "event": "epoch",
            "epoch": epoch,
            "learning_rate": rate,
            "train_loss": train_loss,
            f"{self.watched}_loss": loss,
            f"{self.watched}_accuracy_pct": accuracy,
            "seconds": seconds,
        }
        state["lines"].append(line)
        self.save()
        if not self.args.quiet:
            numbers = f"{self.watched} {accuracy:.2f} %, {seconds:.1f} s"
            print(f"{title}: train loss {train_loss:.4f}, {numbers}", flush=True)

    def save(self) -> None:
        """Writes the unfinished log and the checkpoint."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        write_log(self.unfinished_log, self.state["lines"])
        saved = {
            "state": self.state,
            "network": self.trainer.network.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict()["state"],
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        with temporary.open("wb", buffering=0) as file:
            torch.save(saved, file)
            os.fsync(file.fileno())
        os.replace(temporary, self.checkpoint)  # in one go, as the process may be killed any time

    def finish(self) -> None:
        """Tests the epoch that is reported, and writes the log with its last line."""
        state, network = self.state, self.trainer.network
        selected_epoch = state["epoch"]
        right = self.trainer.evaluate(*self.data.test)[1]
        last = percent(right)
        if self.recipe.selection != "last" and state["best_epoch"] < selected_epoch:
            selected_epoch = state["best_epoch"]
            network.load_state_dict(state["best_weights"])
            right = self.trainer.evaluate(*self.data.test)[1]
        bits = numpy.packbits(right.cpu()).tobytes()
        self.end = {
            "event": "end",
            "epochs": state["epoch"],
            "best_epoch": state["best_epoch"],
            "selected_epoch": selected_epoch,
            "outcome": "finished" if math.isfinite(state["train_loss"]) else "diverged",
            f"best_{self.watched}_accuracy_pct": state["best"],
            "last_test_accuracy_pct": last,
            "selected_test_accuracy_pct": percent(right),
            "test_correct": base64.b64encode(bits).decode(),  # one bit for each test image
            "seconds": sum(line.get("seconds", 0) for line in state["lines"]),
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_log(self.unfinished_log, [*state["lines"], self.end])
        if self.args.save_weights:
            self.weights.parent.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), self.weights)
        os.replace(self.unfinished_log, self.log)
        self.checkpoint.unlink(missing_ok=True)


NUMBERS = {  # arguments of the command line that are whole numbers, 1 or more
    "layers": "hidden layers of the Spinal head; default: as published",
    "width": "neurons in each of them, or of the FC head with --head fc",
    "epochs": "default: as published",
    "batch-size": "default: as published",
    "limit": "use the first LIMIT images: a quick try",
    "runs": "with seeds SEED, SEED + 1, ...; default: 1",
}
SWITCHES = {
    "no-download": "use the data that are there",
    "fetch-only": "download and check the data, train nothing",
    "save-weights": "keep the network in results/weights",
    "quiet": "print results only",
    "overwrite": "delete what earlier runs left, and start anew",
}


def positive(text: str) -> int:
    """A whole number of 1 or more from the command line."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. A mistake ends the process with status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--network", choices=NETWORKS, default=NETWORKS[0], help="default: %(default)s")
    add("--head", choices=[*HEADS, "both"], default="both")
    add("--protocol", choices=["published", "corrected"], default="published")
    for name, text in NUMBERS.items():
        add(f"--{name}", type=positive, help=text)
    add("--fc-dropout", type=float, help="before the output layer of either head")
    add("--lr", type=float, dest="learning_rate", help="of the first epoch; default: as published")
    add("--seed", type=int, default=0, help="of the first run; default: 0")
    add("--precision", choices=["fp32", "ieee", "bf16"], default="fp32", help="ieee: no TF32")
    add("--device", default="auto", help="cpu, cuda, cuda:1; default: cuda if there is one")
    add("--data-dir", type=Path, default="data")
    add("--results-dir", type=Path, default="results")
    for name, text in SWITCHES.items():
        add(f"--{name}", action="store_true", help=text)
    parser.set_defaults(runs=1)
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error("--seed must be 0 or more")
    if args.learning_rate is not None and not 0 < args.learning_rate < math.inf:
        parser.error("--lr must be more than 0")
    if args.head == "fc" and args.layers:
        parser.error("--layers belongs to the Spinal head: choose --head spinal or both")
    return args


def choose_device(args: argparse.Namespace) -> torch.device:
    """The device that the command line names, ready for use."""
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.zeros(1, device=name).device
    except Exception as error:  # PyTorch's text may name twenty devices
        raise ValueError(f"--device {name} cannot be used on this computer") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # graphs and random states are those of the current device
        if args.precision == "ieee":
            torch.backends.cudnn.allow_tf32 = False
    elif args.network in SMALL:
        torch.set_num_threads(1)  # more threads would only wait for each other
    return device


def announce(recipes: list[Recipe], data: Data, device: torch.device) -> None:
    """Prints what will be trained, on what and where."""
    recipe = recipes[0]
    heads = " and ".join(head_name(recipe) for recipe in recipes)
    print(f"{DATASET}, {recipe.network}, {recipe.protocol}: {heads}")
    print(f"{recipe.epochs} epochs of {len(data.train[1]):,} images on {device}")
    if device.type == "cpu" and recipe.network not in SMALL:
        print("all images take days on a CPU: use a GPU, or try --limit 2000 --epochs 2")


def print_difference(accuracies: list[float], papers: list[dict]) -> None:
    """Prints by how much the Spinal head is ahead. The lists are of FC, Spinal, FC, Spinal, ..."""
    seeds = len(accuracies) // 2
    gain = (sum(accuracies[1::2]) - sum(accuracies[::2])) / seeds
    fc, spinal = papers[0].get("average"), papers[1].get("average")
    paper = f"; paper, as published: {spinal - fc:+.2f}" if fc and spinal else ""
    print(f"Spinal - FC: {gain:+.2f} points (mean; number of seeds: {seeds}{paper})")


def reproduce(args: argparse.Namespace) -> None:
    """Does what the command line asks for."""
    device = choose_device(args)
    recipes = []
    for head in HEADS if args.head == "both" else [args.head]:
        changes = {key: getattr(args, key) for key in MARKS}
        if head == "spinal" or args.head == "fc":  # with both heads, --width is of the Spinal one
            changes |= {"layers": args.layers, "width": args.width}
        recipes.append(recipe_of(args.network, head, args.protocol, **changes))
    data = load_data(args.data_dir.expanduser(), recipes[0], not args.no_download, device)
    if args.fetch_only:
        return
    recipes = [measured(recipe, data.train[0]) for recipe in recipes]
    if not args.quiet:
        announce(recipes, data, device)
    accuracies, papers = [], []
    for seed in range(args.seed, args.seed + args.runs):
        for recipe in recipes:
            run = Run(recipe, seed, data, device, args)
            accuracies.append(run.perform())
            papers.append(run.paper)
    if len(recipes) == 2:
        print_difference(accuracies, papers)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 a mistake of the user, 130 stopped by Ctrl-C."""
    args = parse_arguments(argv)
    try:
        reproduce(args)
    except KeyboardInterrupt:
        print("stopped: the same command, without --overwrite, goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    return 0


# <<< shared: training
MARKS["train_mode_epochs"] = "trainmode"
NUMBERS["train-mode-epochs"] = "later ones train in evaluation mode (Q22); default: as published"

if __name__ == "__main__":
    sys.exit(main())
