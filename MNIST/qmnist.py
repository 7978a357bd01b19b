# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "tqdm>=4.66"]
# ///
"""QMNIST: default fully connected (FC) head against SpinalNet head. Table II of arXiv 2007.03347.

| network | head           | paper, average of 10 | paper, best | python qmnist.py             |
|---------|----------------|---------------------:|------------:|------------------------------|
| cnn     | FC 50          |                97.66 |       97.82 | --head fc                    |
| cnn     | Spinal 6 x 8   |                97.81 |       97.97 | --head spinal                |
| cnn     | Spinal 6 x 10  |                98.00 |       98.07 | --head spinal --width 10     |
| vgg5    | FC 512         |                99.63 |       99.66 | --network vgg5 --head fc     |
| vgg5    | Spinal 4 x 128 |                99.64 |       99.68 | --network vgg5 --head spinal |

`python qmnist.py` trains cnn, both heads on the same batches (two minutes on a CPU); --runs 10 as the paper. A repeated
command goes on with an interrupted run. cnn: MNIST's script. vgg5: 100 epochs (script: 200). All 60,000 test images.
--protocol published (default) does what the released scripts did; corrected mends this (Q: see results/audit.md):
  unequal dropout (Q5)       cnn: 0.5 before the output layer of both heads; published: of the FC head only
  choice by test set (Q25)   epoch, rate and weights (Q26) are chosen on 5,000 held-out training images
  normalisation (Q17, Q32)   mean and deviation of the training part; published: MNIST's 0.1307 and 0.3081
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
# ---- Facts of this experiment: QMNIST, Table II (spec mnist.md sections 3 and 5) ------------------------------------
SCRIPT, DATASET, TRAIN_IMAGES, TEST_IMAGES = "qmnist", "QMNIST", 60_000, 60_000
FINGERPRINT = None  # of the official images and labels; None: not known
HEADS, SMALL = ("fc", "spinal"), ["cnn"]  # small networks use one CPU thread

def SOURCE(root: Path, train: bool, download: bool) -> argparse.Namespace:
    part = torchvision.datasets.QMNIST(root, train=train, download=download)
    return argparse.Namespace(data=part.data, targets=part.targets[:, 0])  # the digit; others tell where it is from

COMMON = dict(
    classes=10, first_label=0, mean=[0.1307], std=[0.3081], dropout={"fc": 0.5, "spinal": 0.5}, momentum=0.5,
    augmentation=[], heldout=0,  # one in so many training images is held out
    selection="best_test",  # the epoch whose accuracy is reported: best_test, heldout (the best one there), last
    # e: epoch (just over), accuracy, best (before it), rate, lr (the first rate), u (uniform in 0..1), head, optimizer
    rate_rule="constant", next_rate=lambda e: e.rate)
RECIPES = {
    "cnn": dict(epochs=8, batch_size=64, learning_rate=0.01, optimizer="SGD", fc=(1, 50), spinal=(6, 8),
                dropout={"fc": 0.5, "spinal": 0.0}, selection="last"),
    "vgg5": dict(epochs=100, batch_size=100, learning_rate=0.005, optimizer="Adam", fc=(1, 512), spinal=(4, 128),
                 augmentation=["perspective", "rotation10"], rate_rule="lr U^3 if not improved",
                 next_rate=lambda e: e.rate if e.accuracy > e.best else e.lr * e.u**3)}
CORRECTED = {  # what `corrected` puts in their place; None: measured
    "all": dict(heldout=12, selection="heldout", mean=None, std=None), "cnn": dict(dropout={"fc": 0.5, "spinal": 0.5})}

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


# >>> shared: warp (origin MNIST/mnist.py; edit there, then: make sync)
def warp(images: Tensor, matrices: Tensor, mode: str) -> Tensor:
    """Each image seen through its matrix (N, 3, 3) from output to input pixels, origin in the centre; black outside."""
    size, device = images.shape[-1], images.device
    line = torch.arange(size, device=device) + 0.5 - size / 2
    pixels = torch.stack([line.repeat(size), line.repeat_interleave(size), torch.ones(size * size, device=device)], 1)
    x, y, z = (pixels @ matrices.transpose(1, 2).float().to(device, non_blocking=True)).unbind(2)
    grid = (torch.stack([x / z, y / z], 2) / (size / 2)).view(-1, size, size, 2)
    both = torch.cat([images.float(), torch.ones_like(images[:, :1], dtype=torch.float32)], 1)  # as torchvision: a mask
    both = F.grid_sample(both, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return (both[:, :-1] * both[:, -1:]).round_().to(torch.uint8)


def rotation10(images: Tensor, generator: torch.Generator) -> Tensor:
    """RandomRotation(10): by -10 to 10 degrees about the centre, nearest neighbour."""
    angle = torch.deg2rad((torch.rand(len(images), generator=generator) * 20 - 10).double())
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return warp(images, torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).view(-1, 3, 3), "nearest")
# <<< shared: warp


# >>> shared: perspective (origin MNIST/mnist.py; edit there, then: make sync)
def perspective(images: Tensor, generator: torch.Generator) -> Tensor:
    """RandomPerspective(0.5, p=0.5): each corner moves inwards by up to a quarter; bilinear (2020: bicubic)."""
    size, chosen = images.shape[-1], (torch.rand(len(images), generator=generator) < 0.5).nonzero().squeeze(1)
    moves = torch.randint(0, int(0.5 * (size // 2)) + 1, (len(images), 4, 2), generator=generator)[chosen]
    corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]]) * (size - 1)
    moved = torch.where(corners > 0, corners - moves, moves).double() - size / 2
    (x, y), (u, v) = moved.unbind(-1), (corners - size / 2).expand_as(moved).double().unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)  # eight equations for eight entries; the ninth is 1
    system = torch.cat([torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 2),
                        torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 2)], 1)
    matrices = torch.cat([torch.linalg.solve(system, torch.cat([u, v], 1)), one[:, :1]], 1).view(-1, 3, 3)
    chosen = chosen.to(images.device, non_blocking=True)
    return images.index_copy(0, chosen, warp(images[chosen], matrices, "bilinear"))
# <<< shared: perspective


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


# >>> shared: networks (origin MNIST/mnist.py; edit there, then: make sync)
def cnn_trunk() -> nn.Module:
    """The small CNN of the paper (spec mnist.md 3.1): (N, 320). Whole channels are dropped, before the pool (Q9)."""
    return nn.Sequential(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(),
                         nn.Conv2d(10, 20, 5), nn.Dropout2d(0.5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten())


def vgg5_trunk() -> nn.Module:
    """The paper's "VGG-5": ten convolutions in four blocks (spec mnist.md 5.1): (N, 256)."""
    layers, before = [], 1
    for widths in ((64, 64), (128, 128), (256, 256, 256), (256, 256, 256)):
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            nn.init.normal_(layers[-3].weight, 0.0, math.sqrt(2 / (9 * width)))  # section 5.3
            before = width
        layers.append(nn.MaxPool2d(2))  # 28, 14, 7, 3, 1 (Q35)
    return nn.Sequential(*layers, nn.Flatten())


def build_network(network: str, head: str | None, *, protocol: str = "published", width: int | None = None,
                  layers: int | None = None, fc_dropout: float | None = None) -> nn.Module:
    """Trunk, head, output layer, log-softmax, freshly initialised on the CPU: (N, 1, 28, 28) -> (N, classes).
    head: "fc" or "spinal" (None: spinal). width, layers, fc_dropout: None for those of the protocol.
    """
    recipe, head, vgg5 = recipe_of(network, protocol), head or "spinal", network == "vgg5"
    layers, width = layers or recipe[head][0], width or recipe[head][1]
    p = recipe["dropout"][head] if fc_dropout is None else fc_dropout
    first, features = (p, 256) if vgg5 else (0.0, 320)  # the heads of vgg5 begin with dropout and have batch norm
    trunk = vgg5_trunk() if vgg5 else cnn_trunk()  # drawn before the head: both heads of a seed get the same one
    parts = [SpinalLayers(features, layers, width, first, batch_norm=vgg5)] if head == "spinal" else [
        nn.Dropout(first), nn.Linear(features, width), nn.BatchNorm1d(width) if vgg5 else nn.Identity(), nn.ReLU()]
    return nn.Sequential(trunk, nn.Sequential(*parts, nn.Dropout(p)), nn.Linear(layers * width, recipe["classes"]),
                         nn.LogSoftmax(1))
# <<< shared: networks


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
