# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "tqdm>=4.66"]
# ///
"""CIFAR-10: default fully connected (FC) head against SpinalNet head. Table II of arXiv 2007.03347, rows "CIFAR-10".

| network  | head            | paper, average of 10 | paper, best | python cifar10.py                           |
|----------|-----------------|---------------------:|------------:|---------------------------------------------|
| resnet18 | FC 0            |                90.65 |       91.98 | --network resnet18 --head fc                |
| resnet18 | Spinal 4 x 20   |                90.39 |       91.42 | --network resnet18 --head spinal --width 20 |
| vgg19    | FC 4096         |                90.48 |       90.75 | --network vgg19 --head fc                   |
| vgg19    | Spinal 4 x 512  |                90.97 |       91.40 | --network vgg19 --head spinal               |
| resnet34 | FC 0            |                    - |  89.56 (v2) | --network resnet34 --head fc                |
| resnet34 | Spinal 4 x 256  |                    - |  89.88 (v2) | --network resnet34 --head spinal            |
| vgg13    | FC 4096         |                    - |  87.79 (v2) | --network vgg13 --head fc                   |
| vgg13    | Spinal 4 x 1024 |                    - |  89.16 (v2) | --network vgg13 --head spinal --width 1024  |
| vgg11    | FC 4096         |                    - |  86.68 (v2) | --network vgg11 --head fc                   |
| vgg11    | Spinal 4 x 1024 |                    - |  87.08 (v2) | --network vgg11 --head spinal --width 1024  |
| densenet | FC 512          |                    - |  77.79 (v2) | --network densenet --head fc                |
| densenet | Spinal 8 x 16   |                    - |  81.13 (v2) | --network densenet --head spinal            |
| densenet | Spinal 8 x 64   |                    - |  81.95 (v2) | --network densenet --head spinal --width 64 |
| lenet    | FC 120          |                    - |  60.65 (v2) | --network lenet --head fc                   |
| lenet    | Spinal 6 x 20   |                    - |  62.37 (v2) | --network lenet --head spinal               |

v2: only version 2 of the paper prints the row, one number. FC 0: the output layer alone; FC 4096, lenet: two layers.
Epochs are the tables', default widths the released scripts'. In no table: their cnn and vgg16; resnet18relu and
resnet34relu (ReLU after additions, Q9). Guesses: lenet's recipe, all of densenet. Why: "CIFAR" in results/audit.md.

`python cifar10.py` trains cnn with both heads, hours on a CPU (lenet: minutes). Repeat a command to go on with a run.
--protocol published (default) does what the released scripts did; corrected mends this (Q: quirks, results/audit.md):
  unlike rates (Q1, Q2)      cnn: a third if below the best; published: FC after epoch 2 and from 22 on, Spinal never
  choice by test set (Q5)    epoch, rate, weights (Q6) by 5,000 held-out training images; published cnn, lenet: last
  normalisation (Q7, Q8)     mean and deviation of the training part; published: none (cnn, vgg), CIFAR-100's (resnet)
"""
# >>> shared: imports (origin MNIST/mnist.py; edit there, then: make sync)
from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import os
import socket
import sys
import time
from pathlib import Path

try:
    import torch
    import torchvision
    from torch import Tensor, nn
    from torch.nn import functional as F
    from tqdm import tqdm
except ImportError as missing:
    sys.exit(f"error: {missing.name} is missing: pip install torch torchvision numpy tqdm, or use uv run")
# <<< shared: imports
# ---- Facts of this experiment: CIFAR-10, Table II (spec cifar.md) ---------------------------------------------------
SCRIPT, DATASET, TRAIN_IMAGES, TEST_IMAGES = "cifar10", "CIFAR-10", 50_000, 10_000
FINGERPRINT = "32e5966899bde482"  # of the official images and labels; None: not known
HEADS, SMALL = ("fc", "spinal"), ["lenet"]  # small networks use one CPU thread


def SOURCE(root: Path, train: bool, download: bool) -> argparse.Namespace:
    part = torchvision.datasets.CIFAR10(root, train=train, download=download)
    return argparse.Namespace(data=torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), targets=part.targets)


COMMON = dict(
    classes=10, first_label=0, mean=[0.0] * 3, std=[1.0] * 3, dropout={"fc": 0.0, "spinal": 0.0}, optimizer="Adam",
    augmentation=["pad_flip_crop"], heldout=0,  # one in so many training images is held out
    selection="best_test",  # the epoch whose accuracy is reported: best_test, heldout (the best one there), last
    # e: epoch (just over), accuracy, best (before it), rate, lr (the first rate), u (uniform in 0..1), head, optimizer
    rate_rule="constant", next_rate=lambda e: e.rate)
VGG = dict(epochs=200, batch_size=100, learning_rate=1e-4, fc=(2, 4096), spinal=(4, 512),
           dropout={"fc": 0.5, "spinal": 0.5}, rate_rule="lr U^3 if below best",  # not after a tie (Q17)
           next_rate=lambda e: e.rate if e.accuracy >= e.best else e.lr * e.u**3)
RESNET = dict(epochs=150, batch_size=200, learning_rate=1e-3, fc=(0, 0), spinal=(4, 256), mean=[0.507, 0.487, 0.441],
              std=[0.267, 0.256, 0.276], rate_rule="lr U^5 if below best",  # CIFAR-100's mean and deviation (Q8)
              next_rate=lambda e: e.rate if e.accuracy >= e.best else e.lr * e.u**5)
RECIPES = {
    "cnn": dict(epochs=160, batch_size=100, learning_rate=1e-3, fc=(2, 512), spinal=(4, 128), selection="last",
                dropout={"fc": 0.1, "spinal": 0.1}, rate_rule="fc: a third after 2 and from 22 on; spinal: constant",
                next_rate=lambda e: e.rate / 3 if e.head == "fc" and (e.epoch == 2 or e.epoch > 21) else e.rate),
    "lenet": dict(epochs=8, batch_size=4, learning_rate=1e-3, optimizer="SGD", momentum=0.9, fc=(2, 120),
                  spinal=(6, 20), mean=[0.5] * 3, std=[0.5] * 3, augmentation=[], selection="last"),
    "resnet18": RESNET, "resnet34": RESNET, "resnet18relu": RESNET, "resnet34relu": RESNET,
    "vgg19": VGG, "vgg16": VGG, "vgg13": VGG | dict(epochs=35), "vgg11": VGG | dict(epochs=35),
    "densenet": RESNET | dict(epochs=35, batch_size=100, fc=(1, 512), spinal=(8, 16))}
CORRECTED = {  # what `corrected` puts in their place; None: measured
    "all": dict(heldout=10, selection="heldout", mean=None, std=None),
    "cnn": dict(rate_rule="a third if below best", next_rate=lambda e: e.rate if e.accuracy >= e.best else e.rate / 3)}

# >>> shared: data (origin MNIST/mnist.py; edit there, then: make sync)
def recipe_of(network: str, protocol: str) -> dict:
    corrected = CORRECTED["all"] | CORRECTED.get(network, {}) if protocol == "corrected" else {}
    return COMMON | RECIPES[network] | corrected


def seed_of(*purpose: object) -> int:
    """A seed that is a pure function of its purpose: nothing random has to be stored in order to resume."""
    return int.from_bytes(hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest(), "big") >> 1


def load_data(options: argparse.Namespace, recipe: dict, device: torch.device) -> argparse.Namespace:
    """train, heldout or None, test: images (N, C, S, S) uint8 and labels (N,) int64, on the device; facts for a log."""
    try:
        parts = [SOURCE(options.data_dir, train=train, download=not options.no_download) for train in (True, False)]
        arrays = [torch.as_tensor(x) for part in parts for x in (part.data, part.targets)]
        arrays[1::2] = [labels - recipe["first_label"] for labels in arrays[1::2]]
        counts, labels, digest = [len(array) for array in arrays], torch.cat(arrays[1::2]), hashlib.sha256()
        for array in arrays:
            digest.update(array.to(torch.uint8).contiguous().numpy())
        content, official = digest.hexdigest()[:16], counts[1::2] == [TRAIN_IMAGES, TEST_IMAGES]
        assert counts[::2] == counts[1::2] and 0 <= labels.min() <= labels.max() < recipe["classes"], "foreign labels"
        assert not official or content == (FINGERPRINT or content), "not the official content"
    except Exception as error:  # missing, damaged and foreign files make torchvision raise what they like
        raise ValueError(f"{DATASET} cannot be had in {options.data_dir} ({str(error) or repr(error)}): delete what is "
                         "damaged there, check network and rights, run again without --no-download") from error
    arrays = [array[: options.limit].to(device) for array in arrays]
    images, test_images = (x if x.ndim == 4 else x.unsqueeze(1) for x in arrays[::2])
    data = argparse.Namespace(train=(images, arrays[1].long()), heldout=None, test=(test_images, arrays[3].long()))
    if recipe["heldout"]:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed_of("heldout"))).to(device)
        rows = order.tensor_split([max(1, len(order) // recipe["heldout"])])
        data.heldout, data.train = ([x[index.sort()[0]] for x in data.train] for index in rows)
        for key, moment in zip(("std", "mean"), torch.std_mean(data.train[0].float() / 255, (0, 2, 3))):  # (Q17)
            recipe[key] = [round(x, 4) for x in moment.tolist()]
    data.facts = {"train": len(data.train[1]), "heldout": len(data.heldout[1]) if data.heldout else 0,
                  "test": len(test_images), "sha256": content, "official": official}
    data.label = [] if official else ["data" + content[:8]]
    return data


def augment(images: Tensor, steps: list[str], generator: torch.Generator) -> Tensor:
    """One view of each image (N, C, S, S) uint8; parameters are drawn for each of them, on the CPU for all devices."""
    parts = list(images.split(2_000))  # they fit a CPU's cache
    for k, step in ((k, step) for k in range(len(parts)) for step in steps):
        parts[k] = globals()[step](parts[k], generator)
    return torch.cat(parts) if steps else images
# <<< shared: data


# >>> shared: pad_flip_crop (origin CIFAR/cifar10.py; edit there, then: make sync)
def pad_flip_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Zero pad 4, flip with probability 0.5, one of the 9 x 9 crops; crop-then-flip is the same (Q20)."""
    count, channels, size, _ = images.shape
    flipped = torch.rand(count, generator=generator) < 0.5
    tops, lefts = torch.randint(0, 9, (2, count), generator=generator)
    rows, columns = (start[:, None] + torch.arange(size) for start in (tops, lefts))
    columns = torch.where(flipped[:, None], size + 7 - columns, columns)
    rows, columns = (index.to(images.device, non_blocking=True) for index in (rows, columns))
    images = F.pad(images, [4] * 4).gather(2, rows[:, None, :, None].expand(-1, channels, -1, size + 8))
    return images.gather(3, columns[:, None, None, :].expand(-1, channels, size, -1))
# <<< shared: pad_flip_crop


# >>> shared: spinal (origin MNIST/mnist.py; edit there, then: make sync)
class SpinalLayers(nn.Module):
    """The hidden layers of a SpinalNet (paper, section III; spec mnist.md 1.1): (N, features) -> (N, layers * width).
    The input is cut into halves A, B. Layer k sees one half (A, B, A, B, ...) and, from the second on, the output of
    layer k - 1, in this order. All outputs are joined, the first layer's first. Dropout and batch norm: flavour DBR.
    """

    def __init__(self, features: int, layers: int, width: int, dropout: float = 0.0, batch_norm: bool = False):
        super().__init__()
        self.half = features // 2
        self.hidden = nn.ModuleList(nn.Sequential(
            nn.Dropout(dropout), nn.Linear(self.half + (width if k else 0), width),
            nn.BatchNorm1d(width) if batch_norm else nn.Identity(), nn.ReLU()) for k in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        halves, outputs = x.split(self.half, 1), []
        for k, layer in enumerate(self.hidden):
            outputs.append(layer(torch.cat([halves[k % 2], *outputs[-1:]], 1)))
        return torch.cat(outputs, 1)
# <<< shared: spinal


# >>> shared: cifar_networks (origin CIFAR/cifar10.py; edit there, then: make sync)
DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4),
          "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
SIZES = {"cnn": (4096, 1024, 512), "lenet": (400, 120, 84), "vgg": (512, 4096, 4096), "resnet": (256,),
         "densenet": (1024, 512)}  # features of the trunk, then the hidden layers of the default head


class QuadrantSpinalLayers(SpinalLayers):
    """The ResNets' (spec cifar.md 3.2), for a (N, features / 2, 2, 2) map. Layer k sees quadrant k, row by row, and the
    output of layer k - 1, in this order; a fifth layer begins again with the first quadrant."""

    def forward(self, x: Tensor) -> Tensor:
        quadrants, outputs = x.flatten(2).unbind(2), []
        for k, layer in enumerate(self.hidden):
            outputs.append(layer(torch.cat([quadrants[k % 4], *outputs[-1:]], 1)))
        return torch.cat(outputs, 1)


def plain_trunk(network: str) -> nn.Module:
    """VGG (spec cifar.md 2.1): (N, 512); the CNN (1.1): (N, 4096); that of PyTorch's first tutorial: (N, 400)."""
    if network == "lenet":
        return nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
                             nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    layers, before, cnn = [], 3, network == "cnn"
    blocks = [(32, 64), (128, 128), (256, 256)] if cnn else [
        [width] * depth for width, depth in zip((64, 128, 256, 512, 512), DEPTHS[network])]
    for block in blocks:
        for k, width in enumerate(block):
            norm = [] if cnn and k else [nn.BatchNorm2d(width)]  # cnn: after the first of each pair only
            layers += [nn.Conv2d(before, width, 3, padding=1), *norm, nn.ReLU()]
            before = width
        layers += [nn.MaxPool2d(2)] + [nn.Dropout2d(0.05)] * (cnn and width == 128)
    return nn.Sequential(*layers, nn.Flatten())


class Block(nn.Module):
    """Residual block: 3 x 3 convolution on the shortcut, too (Q10); no ReLU after the addition unless asked (Q9)."""

    def __init__(self, before: int, width: int, last_relu: bool):
        super().__init__()
        stride = 1 if before == width else 2
        conv = lambda channels, stride: [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)]
        self.body = nn.Sequential(*conv(before, stride), nn.ReLU(), *conv(width, 1))
        self.shortcut = nn.Identity() if stride == 1 else nn.Sequential(*conv(before, stride))
        self.last = nn.ReLU() if last_relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x) + self.shortcut(x))


def resnet_trunk(network: str) -> nn.Module:
    """The paper's ResNet, half as wide as the usual one (spec cifar.md 3.1): (N, 256, 4, 4)."""
    depths, last_relu = DEPTHS[network.removesuffix("relu")], network.endswith("relu")
    widths = [width for width, depth in zip((32, 64, 128, 256), depths) for _ in range(depth)]
    trunk = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout2d(0.02),
                          *(Block(before, width, last_relu) for before, width in zip([32, *widths], widths)))
    for conv in (module for module in trunk.modules() if isinstance(module, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # section 3.3
    return trunk


class DenseLayer(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


def densenet_trunk() -> nn.Module:
    """DenseNet-BC, four blocks of four layers, a guess that fits version 2's counts (results/audit.md): (N, 1024)."""
    layers = [nn.Conv2d(3, 128, 3, padding=1, bias=False)]
    for block in range(4):  # each doubles the 128 channels, a transition halves them and the size
        layers += [DenseLayer(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 128, 1, bias=False),
                              nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 32, 3, padding=1, bias=False))
                   for width in range(128, 256, 32)]
        transition = [nn.Conv2d(256, 128, 1, bias=False), nn.AvgPool2d(2)] if block < 3 else []
        layers += [nn.BatchNorm2d(256), nn.ReLU(), *transition]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())


def build_network(network: str, head: str | None, *, protocol: str = "published", width: int | None = None,
                  layers: int | None = None, fc_dropout: float | None = None) -> nn.Module:
    """Trunk, head, output layer, log-softmax, freshly initialised on the CPU: (N, 3, 32, 32) -> (N, classes).
    head: "fc" or "spinal" (None: spinal). width, layers (of Spinal), fc_dropout: None for those of the protocol. The
    trunk is drawn before the head: both heads of a seed get the same one."""
    recipe, head, kind = recipe_of(network, protocol), head or "spinal", next(k for k in SIZES if network.startswith(k))
    (layers, width), inner = (layers or recipe[head][0], width or recipe[head][1]), recipe["dropout"][head]
    sizes, p, resnet = SIZES[kind], inner if fc_dropout is None else fc_dropout, kind == "resnet"
    trunk = resnet_trunk(network) if resnet else densenet_trunk() if kind == "densenet" else plain_trunk(network)
    if head == "spinal":
        parts = [nn.MaxPool2d(2), QuadrantSpinalLayers(2 * 256, layers, width)] if resnet else [
            SpinalLayers(sizes[0], layers, width, inner)]
        sizes = [layers * width]
    else:
        parts = [nn.MaxPool2d(4), nn.Flatten()] if resnet else [
            part for before, after in zip(sizes, sizes[1:]) for part in (nn.Linear(before, after), nn.ReLU())]
        parts.insert(0 if kind == "cnn" else 2, nn.Dropout(inner))  # cnn, vgg (0: no effect)
    output = nn.Linear(sizes[-1], recipe["classes"])
    for linear in (x for x in nn.Sequential(*parts, output).modules() if resnet and isinstance(x, nn.Linear)):
        nn.init.zeros_(linear.bias)  # section 3.3
    return nn.Sequential(trunk, nn.Sequential(*parts, nn.Dropout(p)), output, nn.LogSoftmax(1))
# <<< shared: cifar_networks


# >>> shared: training (origin MNIST/mnist.py; edit there, then: make sync)
class Trainer:
    """Trains and tests one network. Losses are summed on the device; nothing is read from it within an epoch."""

    def __init__(self, network: nn.Module, recipe: dict, device: torch.device):
        self.recipe, self.device, cuda, rate = recipe, device, device.type == "cuda", recipe["learning_rate"]
        self.network = network.to(device, memory_format=torch.channels_last)  # the same numbers, faster convolutions
        rate = torch.tensor(rate, device=device) if cuda else rate  # a graph follows only a tensor
        if recipe["optimizer"] == "Adam":
            self.optimizer = torch.optim.Adam(network.parameters(), rate, fused=True, capturable=cuda)
            self.optimizer._warned_capturable_if_run_uncaptured = True  # partial batches run without the graph
        else:
            self.optimizer = torch.optim.SGD(network.parameters(), rate, recipe["momentum"], fused=cuda or None)
        self.mean, self.std = (torch.tensor(recipe[key], device=device).view(-1, 1, 1) for key in ("mean", "std"))
        self.graph, self.total = None, torch.zeros((), device=device)

    def outputs(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe["precision"] == "bf16"):
            x = self.network[:2](images.float().div_(255).sub_(self.mean).div_(self.std))
        return self.network[2:](x.float())  # in bf16 the outputs of two classes would often tie

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.nll_loss(self.outputs(images), labels)
        loss.backward()
        self.optimizer.step()
        self.total += loss.detach() * len(labels)

    def capture(self, images: Tensor, labels: Tensor) -> None:
        """Records the step as a CUDA graph by PyTorch's documented pattern, and puts back what its warm-up changed."""
        changed = lambda: [self.total, *self.network.state_dict().values(), *(
            x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, Tensor))]
        self.batch, before, random = (images, labels), [x.clone() for x in changed()], torch.cuda.get_rng_state()
        side, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step(*self.batch)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(self.graph):
            self.step(*self.batch)
        for k, x in enumerate(changed()):
            x.copy_(before[k]) if k < len(before) else x.zero_()  # the moments of a new optimiser
        torch.cuda.set_rng_state(random)

    def epoch(self, images: Tensor, labels: Tensor, order: Tensor, rate: float, quiet: bool) -> float:
        """One pass in this order, the last batch too; returns the mean loss."""
        self.network.train()
        self.total.zero_()
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        for index in tqdm(order.split(self.recipe["batch_size"]), leave=False, disable=quiet or None):
            if self.device.type == "cuda" and len(index) == self.recipe["batch_size"]:
                if self.graph is None:
                    self.capture(images[index], labels[index])
                for part, batch in zip((images, labels), self.batch):
                    torch.index_select(part, 0, index, out=batch)
                self.graph.replay()  # such small kernels take longer to launch than to run
            else:
                self.step(images[index], labels[index])
        return float(self.total) / len(order)

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Mean loss and accuracy in per cent."""
        self.network.eval()
        loss, correct = torch.zeros(2, device=self.device).unbind()
        for part, truth in zip(images.split(1_000), labels.split(1_000)):
            outputs = self.outputs(part)
            loss += F.nll_loss(outputs, truth, reduction="sum")
            correct += (outputs.argmax(1) == truth).sum()
        return float(loss) / len(labels), 100 * float(correct) / len(labels)


def write(path: Path, lines: list[dict]) -> None:
    """A log. Six digits keep a thousand of them small; JSON has no word for a number that is not finite."""
    short = lambda x: x if not isinstance(x, float) else float(f"{x:.6g}") if math.isfinite(x) else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({key: short(x) for key, x in line.items()}) + "\n" for line in lines))


def run(head: str, seed: int, data: argparse.Namespace, options: argparse.Namespace, recipe: dict) -> str:
    """Trains one network, or goes on with it, unless its log is there. Returns its result beside the paper's."""
    (layers, width), device, watched = recipe[head], options.device, "heldout" if data.heldout else "test"
    label, others = "fc" if head == "fc" else f"spinal{layers}x{width}", [*options.departures.values(), *data.label]
    p = recipe["dropout"][head] if options.fc_dropout is None else options.fc_dropout
    name = "-".join([options.network, label, options.protocol, *others, f"s{seed}"])
    path = options.results_dir / "logs" / SCRIPT / f"{name}.jsonl"
    part, checkpoint = path.with_suffix(".jsonl.part"), path.with_suffix(".pt")
    torch.manual_seed(seed_of(seed, "weights"))
    network = build_network(options.network, head, protocol=options.protocol, layers=layers, width=width, fc_dropout=p)
    trainer = Trainer(network, recipe, device)
    settings = {key: x for key, x in recipe.items() if key not in ("fc", "spinal", "dropout", "next_rate")} | {
        "dataset": DATASET, "network": options.network, "head": head, "layers": layers, "width": width,
        "protocol": options.protocol, "fc_dropout": p}
    provenance = dict(
        script_sha256=hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16], device=device.type,
        device_name=torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(), versions={x.__name__: str(x.__version__) for x in (torch, torchvision)})
    start = {
        "event": "start", "schema": 2, "script": SCRIPT, "run": name, "seed": seed, "settings": settings,
        "departures": sorted(options.departures), "parameters": sum(x.numel() for x in network.parameters()),
        "fc_multiplications": sum(x.weight.numel() for x in network.modules() if isinstance(x, nn.Linear)),
        "data": data.facts, "provenance": provenance}
    state = {"lines": [start], "epoch": 0, "rate": recipe["learning_rate"], "best": -1.0, "seconds": 0.0}
    finished = path.exists() and not options.overwrite
    if checkpoint.exists() and not finished:
        try:
            saved = torch.load(checkpoint, device, weights_only=True)
            if saved["state"]["lines"][0] != start:
                raise ValueError("other versions, settings or text of the script, or another device")
            network.load_state_dict(saved["network"])
            trainer.optimizer.load_state_dict(saved["optimizer"])
            state = saved["state"]
            print(f"{name} goes on after epoch {state['epoch']}", file=sys.stderr)
        except Exception as error:  # torch.load raises what it likes
            print(f"{name} begins anew, its checkpoint cannot be used: {error}", file=sys.stderr)
    for epoch in range(state["epoch"] + 1, 1 + recipe["epochs"] * (not finished)):
        began, generator = time.monotonic(), torch.Generator().manual_seed(seed_of(seed, "data", epoch))
        order = torch.randperm(len(data.train[1]), generator=generator).to(device)  # the same for both heads
        images = augment(data.train[0], recipe["augmentation"], generator)
        torch.manual_seed(seed_of(seed, "dropout", epoch))
        train_loss = trainer.epoch(images, data.train[1], order, state["rate"], options.quiet)
        loss, accuracy = trainer.evaluate(*getattr(data, watched))
        draw = torch.Generator().manual_seed(seed_of(seed, "rate", label, epoch))
        e = argparse.Namespace(**state | {"epoch": epoch}, accuracy=accuracy, head=head, optimizer=trainer.optimizer,
                               lr=recipe["learning_rate"], u=float(torch.rand((), generator=draw, dtype=torch.float64)))
        if accuracy > state["best"]:
            state |= {"best": accuracy, "best_epoch": epoch, "best_weights": copy.deepcopy(network.state_dict())}
        seconds = time.monotonic() - began
        state |= {"epoch": epoch, "rate": recipe["next_rate"](e), "seconds": state["seconds"] + seconds}
        state["lines"].append({
            "event": "epoch", "epoch": epoch, "learning_rate": e.rate, "train_loss": train_loss,
            f"{watched}_loss": loss, f"{watched}_accuracy_pct": accuracy, "seconds": seconds})
        write(part, state["lines"])
        torch.save({"network": network.state_dict(), "optimizer": trainer.optimizer.state_dict(), "state": state},
                   path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), checkpoint)
        if not options.quiet:
            print(f"{name} epoch {epoch}/{recipe['epochs']}: train loss {train_loss:.4f}, {watched} {accuracy:.2f} %, "
                  f"rate {e.rate:.2g}, {seconds:.1f} s, {seconds * (recipe['epochs'] - epoch):.0f} s left", flush=True)
    if not finished:
        last, selected = trainer.evaluate(*data.test)[1], state["epoch"]
        if recipe["selection"] != "last":
            selected = state["best_epoch"]
            network.load_state_dict(state["best_weights"])
        write(part, state["lines"] + [{
            "event": "end", "epochs": state["epoch"], "best_epoch": state["best_epoch"], "selected_epoch": selected,
            "outcome": "finished" if math.isfinite(state["lines"][-1]["train_loss"]) else "diverged",
            f"best_{watched}_accuracy_pct": state["best"], "last_test_accuracy_pct": last, "seconds": state["seconds"],
            "selected_test_accuracy_pct": trainer.evaluate(*data.test)[1],
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}])
        if options.save_weights:
            (folder := options.results_dir / "weights" / SCRIPT).mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), folder / checkpoint.name)
        os.replace(part, path)
    first, *_, end = [json.loads(line) for line in path.read_text().splitlines()]
    if first["provenance"]["script_sha256"] != provenance["script_sha256"]:
        raise ValueError(f"{path} was made by another text of this script: run again with --overwrite")
    checkpoint.unlink(missing_ok=True)
    rows = [[cell.strip() for cell in line.split("|")] for line in ("" if others else __doc__).splitlines()]
    title = f"FC {width}" if head == "fc" else f"Spinal {layers} x {width}"
    paper = [f"; paper: average {row[3]}, best {row[4]}" for row in rows if row[1:3] == [options.network, title]]
    old = f"already finished {end['ended']} on {first['provenance']['device_name']} (--overwrite: again): " * finished
    return f"{old}{DATASET} {name}: {end['selected_test_accuracy_pct']:.2f} %{''.join(paper)}. Log: {path}"


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
    """The command line, and the recipe with its changes; `departures`: these changes, as in the log's name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, whole, flag = parser.add_argument, {"type": int, "metavar": "N"}, {"action": "store_true"}
    add("--network", choices=RECIPES, default=next(iter(RECIPES)), help="default: %(default)s")
    add("--head", choices=(*HEADS, "both"), default="both", help="default: both, on the same batches")
    add("--layers", **whole, help="hidden layers of the Spinal head; default: as published")
    add("--width", **whole, help="neurons of each of them; default: as published")
    add("--fc-dropout", type=float, metavar="P", help="dropout before the output layer, of either head")
    add("--protocol", choices=("published", "corrected"), default="published", help="see above; default: published")
    add("--epochs", **whole, help="default: as published")
    add("--batch-size", **whole, help="default: as published")
    add("--lr", type=float, dest="learning_rate", metavar="RATE", help="first learning rate; default: as published")
    add("--seed", **whole, default=0, help="first seed; default: 0")
    add("--runs", **whole, default=1, help="repeat with seeds seed..seed+N-1; default: 1")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32; bf16 is never the paper's row")
    add("--device", default="auto", metavar="NAME", help="auto (cuda, else mps, else cpu), cpu, cuda, cuda:1")
    add("--data-dir", type=Path, default="data", metavar="DIR", help="default: data")
    add("--results-dir", type=Path, default="results", metavar="DIR", help="default: results")
    add("--limit", **whole, help="only the first N training and test images: a smoke run")
    add("--no-download", **flag, help="use the data that are there")
    add("--fetch-only", **flag, help="fetch and check the data, train nothing")
    add("--save-weights", **flag, help="keep the weights of the reported epoch in results/weights/")
    add("--quiet", **flag, help="print the results only")
    add("--overwrite", **flag, help="run again what is already finished")
    options = parser.parse_args(argv)
    for key, low in dict(layers=1, width=1, epochs=1, batch_size=1, runs=1, limit=2, learning_rate=1e-9).items():
        if getattr(options, key) is not None and not low <= getattr(options, key) < 1e6:
            parser.error(f"--{key.replace('_', '-')} must be {low} or more and less than a million")
    if options.head == "fc" and (options.layers or options.width):
        parser.error("--layers and --width belong to the Spinal head: choose --head spinal or both with them")
    recipe = recipe_of(options.network, options.protocol) | {"limit": None, "precision": "fp32", "fc_dropout": None}
    recipe["spinal"] = options.layers or recipe["spinal"][0], options.width or recipe["spinal"][1]
    names = dict(epochs="e", batch_size="b", learning_rate="lr", limit="limit", fc_dropout="drop", precision="")
    given = {key: getattr(options, key) for key in names if getattr(options, key) not in (None, recipe[key])}
    options.departures = {key: f"{names[key]}{value}" for key, value in given.items()}
    return options, recipe | given


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 user's mistake, 130 Ctrl-C."""
    options, recipe = parse_arguments(argv)
    socket.setdefaulttimeout(60)  # seconds without a byte after which a download counts as broken
    try:
        auto = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        options.device = torch.zeros(1, device=auto if options.device == "auto" else options.device).device
        if options.device.type == "cuda":
            torch.cuda.set_device(options.device)  # graphs and random states are those of the current device
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32
            if options.precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
                raise ValueError("this GPU only emulates bf16: choose --precision fp32")
        elif options.network in SMALL:
            torch.set_num_threads(1)  # more would only wait for each other
        data = load_data(options, recipe, options.device)
        for seed in range(options.seed, options.seed + options.runs * (not options.fetch_only)):
            for head in HEADS if options.head == "both" else [options.head]:
                print(run(head, seed, data, options, recipe), flush=True)
        return 0
    except KeyboardInterrupt:
        print("stopped: the same command goes on after the last epoch that was saved", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError, AssertionError) as error:
        print("error:", *str(isinstance(error, RuntimeError) and error.__context__ or error).split(), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
# <<< shared: training
