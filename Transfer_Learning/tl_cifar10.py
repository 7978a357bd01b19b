# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "pillow>=10.0", "tqdm>=4.66"]
# ///
"""CIFAR-10 with ImageNet weights: fully connected (FC) head against SpinalNet head. Table III of arXiv 2007.03347.

| network          | head            | paper, average | paper, best | python tl_cifar10.py             |
|------------------|-----------------|---------------:|------------:|----------------------------------|
| wide_resnet101_2 | FC output only  |          97.43 |       98.22 | --head fc                        |
| wide_resnet101_2 | Spinal 4 x 20   |          97.61 |       98.12 | --head spinal                    |
| vgg19_bn         | FC 4096, 4096   |          94.88 |       95.91 | --network vgg19_bn --head fc     |
| vgg19_bn         | Spinal 4 x 1024 |          95.18 |       96.00 | --network vgg19_bn --head spinal |

`python tl_cifar10.py` trains both heads on the same views of the same images; an interrupted run goes on when its
command is repeated. Official split: 50,000 training and 10,000 test images.
The released script trains vgg19_bn for 50 epochs (table: 25) with a Spinal head 4 x 20 (table: 1024), while its header
speaks of WRN with 4 x 20 (Q13): the rows of wide_resnet101_2 have its settings, and flavour R as the notebook of this
set (the header says dropout and batch norm, 160 parameters more).
--protocol published (default) does what the released script did; corrected mends this (Q: quirks, in results/audit.md):
  ignored head (Q1)        vgg19_bn: the new head replaces ImageNet's classifier; published: VGG never calls it, so that
                           ImageNet's 1000 outputs are trained, and FC and Spinal row are the same network
  choice by test set (Q7)  the epoch is chosen on a tenth of the training images; published: on the test images
  normalisation (Q10)      ImageNet's mean and deviation; published: CIFAR-100's
Two GPUs: --fetch-only, then `torchrun --nproc-per-node=2 tl_cifar10.py`; steps are one process's to rounding.
"""
# >>> shared: transfer_imports (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
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
    import numpy
    import torch
    import torchvision
    from PIL import Image
    from torch import Tensor, distributed, nn
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms
    from tqdm import tqdm
except ImportError as missing:
    sys.exit(f"error: {missing.name} is missing: pip install torch torchvision numpy pillow tqdm, or use uv run")
# <<< shared: transfer_imports
# ---- Facts of this experiment: CIFAR-10, Table III (spec transfer.md section 2) -------------------------------------
SCRIPT, DATASET = "tl_cifar10", "CIFAR-10"
IMAGES = {"train": 50_000, "test": 10_000}  # of the official data; None: not known
FINGERPRINT = "80387ddb9a0edf3f"  # of the official images and labels; None: not known
WHERE = "delete what is damaged there, check network and rights, get it (170 MB) with --fetch-only"
COMMON = dict(
    classes=10, image_size=256, mean=[0.507, 0.487, 0.441], std=[0.267, 0.256, 0.276],
    augmentation=[("Resize", (272, 272)), ("RandomRotation", 15), ("RandomCrop", 256), ("RandomHorizontalFlip",)],
    evaluation=[("Resize", (256, 256))], head_ignored=False,  # the new head is never called (Q1)
    stages=[(1.0, 1.0)])  # factor of the rate, end as a part of the epochs
# fc: hidden layers, width, dropout; spinal: hidden layers, width, flavour
WRN = dict(epochs=50, learning_rate=0.001, batch_size=28, fc=(0, 0, 0.0), spinal=(4, 20, "R"))
VGG = WRN | dict(epochs=25, fc=(2, 4096, 0.5), spinal=(4, 1024, "DBR"), head_ignored=True)
RECIPES = {"wide_resnet101_2": WRN, "vgg19_bn": VGG, "resnet18": WRN}  # the last in no table: to try things out
CORRECTED = {"all": dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]), "vgg19_bn": dict(head_ignored=False)}


def read_parts(options: argparse.Namespace) -> dict[str, tuple]:
    """Images (N, H, W, 3) uint8 and labels of each part."""
    source, fetch = torchvision.datasets.CIFAR10, not options.no_download
    parts = {name: source(options.data_dir, train=name == "train", download=fetch) for name in ("train", "test")}
    return {name: (part.data, part.targets) for name, part in parts.items()}


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


# >>> shared: transfer_training (origin Transfer_Learning/tl_cifar10.py; edit there, then: make sync)
def recipe_of(network: str, protocol: str) -> dict:
    corrected = CORRECTED["all"] | CORRECTED.get(network, {}) if protocol == "corrected" else {}
    return COMMON | RECIPES[network] | corrected


def seed_of(*purpose: object) -> int:
    """A seed that is a pure function of its purpose: nothing random has to be stored in order to resume."""
    return int.from_bytes(hashlib.blake2b(repr(purpose).encode(), digest_size=8).digest(), "big") >> 1


def shuffled(count: int, *purpose: object) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(*purpose)))


class Views(Dataset):
    """Views (3, S, S) uint8 of images, with labels. What is drawn for image k is a pure function of (*draws, k)."""

    def __init__(self, images: numpy.ndarray, labels: numpy.ndarray, steps: str, recipe: dict):
        self.images, self.labels, self.draws, made = images, labels, (), []
        for name, *values in recipe[steps]:  # torchvision's transforms of these names; --image-size scales their sizes
            if name.endswith(("Resize", "Crop")):
                pixels = numpy.multiply(values[0], recipe["image_size"] / COMMON["image_size"])
                values[0] = numpy.rint(pixels).astype(int).tolist()
            made.append(getattr(transforms, name)(*values))
        self.view = transforms.Compose([*made, transforms.PILToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        image = self.images[k]  # pixels or the name of a file
        try:
            pixels = (Image.open(image) if isinstance(image, str) else Image.fromarray(image)).convert("RGB")
        except Exception as error:  # PIL raises what it likes
            raise ValueError(f"{image} cannot be read ({error}): fetch it anew or remove it") from None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(*self.draws, k))  # the GPU's is that of dropout
            return self.view(pixels), int(self.labels[k])


def load_data(options: argparse.Namespace, recipe: dict) -> argparse.Namespace:
    """train, heldout or None, test as Views; facts for a log."""
    try:
        parts = {name: list(map(numpy.asarray, part)) for name, part in read_parts(options).items()}
        digest, classes = hashlib.sha256(), set(range(recipe["classes"]))
        for name, (images, labels) in parts.items():
            found, files = set(labels.tolist()), images.dtype.kind == "U"
            if len(images) != len(labels) or found - classes or name == "train" and found != classes:
                raise ValueError(f"{name}: {len(images)} images of {len(found)} classes, not {len(classes)}")
            for file, label in zip(images, labels) if files else ():
                content, place = Path(file).read_bytes(), "/".join([name, *Path(file).parts[-2:]])
                digest.update(f"{place}\0{label}\0{len(content)}\0".encode() + content)
            digest.update(b"" if files else images.tobytes() + labels.astype("u1").tobytes())
        content, official = digest.hexdigest()[:16], all(IMAGES[x] in (None, len(parts[x][1])) for x in parts)
        if official and content != (FINGERPRINT or content):
            raise ValueError("not the official content")
    except Exception as error:  # missing, damaged and foreign files make torchvision raise what they like
        raise ValueError(f"{DATASET} cannot be had in {options.data_dir} ({error!r}): {WHERE}") from error
    for name, part in parts.items() if options.limit else ():  # folders hold class after class
        rows = shuffled(len(part[1]), "limit", name)[: options.limit].sort()[0].numpy()
        parts[name] = [x[rows] for x in part]
    if options.protocol == "corrected" and "heldout" not in parts:  # (Q7)
        order = shuffled(len(parts["train"][1]), "heldout")
        rows = order.tensor_split([max(1, len(order) // 10)])
        parts["heldout"], parts["train"] = ([x[index.sort()[0].numpy()] for x in parts["train"]] for index in rows)
    data = {name: Views(*part, "augmentation" if name == "train" else "evaluation", recipe)
            for name, part in parts.items()}
    facts = {name: len(data.get(name, ())) for name in ("train", "heldout", "test")}
    return argparse.Namespace(**{"heldout": None} | data, facts=facts | {"sha256": content, "official": official})


FLAVOURS = {"R": (0.0, False, nn.ReLU), "DBR": (0.5, True, nn.ReLU), "LIN": (0.0, False, nn.Identity),
            "LEAKY": (0.0, False, nn.LeakyReLU)}  # of the released Spinal heads: dropout, batch norm, activation


class Output(nn.Linear):  # the output layer computes in fp32: in bf16 the outputs of two classes would often tie
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):  # meta: to count multiplications
            return super().forward(x.float())


def build_network(network: str, head: str | None, *, protocol: str = "published", width: int | None = None,
                  layers: int | None = None, pretrained: bool = True, flavour: str | None = None) -> nn.Module:
    """torchvision's network with a new head, on the CPU: (N, 3, S, S) -> logits (N, classes). Nothing is frozen.
    head: "fc" or "spinal" (None: spinal). width, layers, flavour: of the Spinal head, None for the protocol's."""
    recipe, parts = recipe_of(network, protocol), []
    weights = torchvision.models.get_model_weights(network).IMAGENET1K_V1 if pretrained else None  # as published
    try:
        trunk = torchvision.models.get_model(network, weights=weights)
    except Exception as error:  # a download fails in many ways
        raise ValueError(f"the ImageNet weights of {network} cannot be had ({error!r}): check the network, or put "
                         f"{weights.url} into {torch.hub.get_dir()}/checkpoints, or take --weights none") from error
    trunk.place = "classifier" if hasattr(trunk, "classifier") else "fc"  # where the outputs are computed
    features = next(x for x in getattr(trunk, trunk.place).modules() if isinstance(x, nn.Linear)).in_features
    if head == "fc":
        layers, width, dropout = recipe["fc"]
        for _ in range(layers):
            parts += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout)]
            features = width
    else:
        layers, width, flavour = (ours or usual for ours, usual in zip((layers, width, flavour), recipe["spinal"]))
        dropout, batch_norm, activation = FLAVOURS[flavour]
        spinal = SpinalLayers(features, layers, width, dropout, batch_norm)
        for layer in spinal.hidden:
            layer[-1] = activation()
        if flavour == "LEAKY":  # calls its layers 3 and 4 again in place of 5 and 6, which stay unused (Q15)
            spinal.unused = spinal.hidden[4:].requires_grad_(False)
            spinal.hidden = nn.ModuleList(spinal.hidden[k if k < 4 else 2 + k % 2] for k in range(layers))
        parts, features = [spinal, nn.Dropout(dropout)], layers * width
    new = nn.Sequential(*parts, nn.Linear(features, recipe["classes"]))
    called = not recipe["head_ignored"]  # VGG never calls an attribute fc (Q1)
    setattr(trunk, trunk.place if called else "fc", new if called else new.requires_grad_(False))
    getattr(trunk, trunk.place)[-1].__class__ = Output  # also of a classifier with ImageNet's 1000 outputs
    return trunk


def sweep(model: nn.Module, part: Views, options: argparse.Namespace, recipe: dict, order: Tensor | None = None,
          optimizer: torch.optim.Optimizer | None = None) -> tuple[float, float]:
    """Learns from the images in this order, or without one tests them: mean loss and accuracy in per cent.
    Under torchrun each process has its share of every batch, and a step is that of the whole batch."""
    learn, device, processes, size = order is not None, options.device, options.processes, recipe["batch_size"]
    batches = order.split(size) if learn else torch.arange(len(part)).split(2 * size)
    if learn and len(batches[-1]) < 2 * processes:  # too small for batch norm: left out (Q14)
        batches = batches[:-1]
    shares = [x.tensor_split(processes)[options.rank].tolist() for x in batches]
    loader = DataLoader(part, batch_sampler=list(filter(None, shares)), num_workers=options.workers,
                        pin_memory=device.type == "cuda")
    mean, std = (torch.tensor(recipe[key], device=device).view(-1, 1, 1) for key in ("mean", "std"))
    model, totals = model.train(learn), torch.zeros(2, device=device)
    for batch, (images, labels) in zip(batches, tqdm(loader, leave=False, disable=options.quiet or None)):
        images, labels = (x.to(device, non_blocking=True) for x in (images, labels))
        images = images.to(torch.float32, memory_format=torch.channels_last).div_(255).sub_(mean).div_(std)
        with torch.set_grad_enabled(learn), torch.autocast(device.type, torch.bfloat16, recipe["precision"] == "bf16"):
            outputs = model(images)
            loss = F.cross_entropy(outputs, labels, reduction="sum")
        if learn:
            optimizer.zero_grad(set_to_none=True)
            (loss * (processes / len(batch))).backward()  # DistributedDataParallel takes the processes' mean
            optimizer.step()
        totals += torch.stack([loss.detach(), (outputs.argmax(1) == labels).sum()])
    if processes > 1:
        distributed.all_reduce(totals)
        for buffer in model.buffers():  # statistics of batch norm: on CPUs each process has its own
            distributed.broadcast(buffer, 0)
    loss, correct = (totals / sum(map(len, batches))).tolist()
    return loss, 100 * correct


def write(path: Path, lines: list[dict]) -> None:
    """A log. Six digits keep a thousand of them small; JSON has no word for a number that is not finite."""
    short = lambda x: x if not isinstance(x, float) else float(f"{x:.6g}") if math.isfinite(x) else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({key: short(x) for key, x in line.items()}) + "\n" for line in lines))


def run(head: str, seed: int, data: argparse.Namespace, options: argparse.Namespace, recipe: dict) -> str:
    """Trains one network, or goes on with it, unless its log is there. Returns its result beside the paper's."""
    (layers, width, flavour), device, watched = recipe[head], options.device, "heldout" if data.heldout else "test"
    label, flavour = ("fc", "") if head == "fc" else (f"spinal{layers}x{width}", flavour)
    others = [*options.departures.values(), *["data" + data.facts["sha256"][:8]] * (not data.facts["official"])]
    name = "-".join([options.network, label, options.protocol, *others, f"s{seed}"])
    path = options.results_dir / "logs" / SCRIPT / f"{name}.jsonl"
    part, checkpoint = path.with_suffix(".jsonl.part"), path.with_suffix(".pt")
    finished = path.exists() and not options.overwrite
    torch.manual_seed(seed_of(seed, "weights"))  # trunk, then head: both heads of a seed get the same trunk
    network = build_network(options.network, head, protocol=options.protocol, layers=layers, width=width,
                            pretrained=recipe["weights"] != "none" and not finished)
    for key, parameter in network.named_parameters() if recipe["freeze"] else ():
        parameter.requires_grad_(parameter.requires_grad and key.startswith(network.place))
    network = network.to(device, memory_format=torch.channels_last)
    if options.processes > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    model = DistributedDataParallel(network) if options.processes > 1 else network
    learning, rate = [x for x in network.parameters() if x.requires_grad], recipe["learning_rate"]
    optimizer = torch.optim.SGD(learning, rate, momentum=0.9)
    ends = [round(end * recipe["epochs"]) for _, end in recipe["stages"]]
    stages = [[rate * x, end - begin] for (x, _), begin, end in zip(recipe["stages"], [0, *ends], ends)]
    settings = {key: x for key, x in recipe.items() if key not in ("fc", "spinal")} | {
        "dataset": DATASET, "network": options.network, "head": head, "layers": layers, "width": width,
        "protocol": options.protocol, "flavour": flavour, "stages": stages, "optimizer": "SGD momentum 0.9",
        "rate_rule": "x0.1 every 7 epochs of a stage", "selection": "heldout" if data.heldout else "best_test"}
    provenance = dict(
        script_sha256=hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16], device=device.type,
        device_name=torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(), processes=options.processes,
        versions={x.__name__: str(x.__version__) for x in (torch, torchvision)})
    called = [x for x in getattr(network, network.place).modules() if isinstance(x, nn.Linear)]
    start = {
        "event": "start", "schema": 2, "script": SCRIPT, "run": name, "seed": seed, "settings": settings,
        "departures": sorted(options.departures), "parameters": sum(x.numel() for x in network.parameters()),
        "fc_multiplications": sum(x.weight.numel() for x in called), "data": data.facts, "provenance": provenance}
    state = {"lines": [start], "epoch": 0, "best": -1.0, "seconds": 0.0}
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
    schedule = [(rate * 0.1 ** (k // 7), k == 0) for rate, epochs in stages for k in range(epochs)]
    for epoch, (rate, fresh) in list(enumerate(schedule, 1))[len(schedule) if finished else state["epoch"] :]:
        began = time.monotonic()
        if fresh and epoch > 1:  # a new stage; the best is over all of them (Q8: published: of the last)
            network.load_state_dict(state["best_weights"])
            optimizer = torch.optim.SGD(learning, rate, momentum=0.9)
        optimizer.param_groups[0]["lr"] = rate
        data.train.draws = seed, "view", epoch  # the order and the views are the same for both heads
        torch.manual_seed(seed_of(seed, "dropout", epoch, *[options.rank] * (options.rank > 0)))
        order = shuffled(len(data.train), seed, "data", epoch)
        train_loss, _ = sweep(model, data.train, options, recipe, order, optimizer)
        loss, accuracy = sweep(network, getattr(data, watched), options, recipe)
        if accuracy > state["best"]:
            state |= {"best": accuracy, "best_epoch": epoch, "best_weights": copy.deepcopy(network.state_dict())}
        seconds = time.monotonic() - began
        state |= {"epoch": epoch, "seconds": state["seconds"] + seconds}
        state["lines"].append({
            "event": "epoch", "epoch": epoch, "learning_rate": rate, "train_loss": train_loss,
            f"{watched}_loss": loss, f"{watched}_accuracy_pct": accuracy, "seconds": seconds})
        if options.rank == 0:
            write(part, state["lines"])
            torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "state": state},
                       path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), checkpoint)
        if not options.quiet:
            print(f"{name} epoch {epoch}/{recipe['epochs']}: train loss {train_loss:.4f}, {watched} {accuracy:.2f} %, "
                  f"rate {rate:.2g}, {seconds:.1f} s, {seconds * (recipe['epochs'] - epoch):.0f} s left", flush=True)
    if not finished:
        last, selected = state["lines"][-1].get("test_accuracy_pct"), state["best"]
        if watched == "heldout":
            last = sweep(network, data.test, options, recipe)[1]
            network.load_state_dict(state["best_weights"])
            selected = sweep(network, data.test, options, recipe)[1]
    if options.rank > 0:
        return ""
    if not finished:
        write(part, state["lines"] + [{
            "event": "end", "epochs": state["epoch"],
            "outcome": "finished" if math.isfinite(state["lines"][-1]["train_loss"]) else "diverged",
            "best_epoch": state["best_epoch"], f"best_{watched}_accuracy_pct": state["best"],
            "last_test_accuracy_pct": last, "selected_epoch": state["best_epoch"],
            "selected_test_accuracy_pct": selected, "seconds": state["seconds"],
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}])
        if options.save_weights:
            (folder := options.results_dir / "weights" / SCRIPT).mkdir(parents=True, exist_ok=True)
            torch.save(state["best_weights"], folder / checkpoint.name)
        os.replace(part, path)
    first, *_, end = [json.loads(line) for line in path.read_text().splitlines()]
    if first["provenance"]["script_sha256"] != provenance["script_sha256"]:
        raise ValueError(f"{path} was made by another text of this script: run again with --overwrite")
    checkpoint.unlink(missing_ok=True)
    titles, *rows = [[x.strip() for x in line.split("|")] for line in __doc__.splitlines() if line.startswith("|")]
    title = f"Spinal {layers} x {width}" if flavour else f"FC {width}, {width}" if layers else "FC output only"
    paper = "".join(f"; {what}: {x}" for row in rows if row[1:3] == [options.network, title] and not others
                    for what, x in zip(titles[3:-2], row[3:-2]))
    note = "; its new head is never called, both heads give this (Q1)" * recipe["head_ignored"]
    old = f"already finished {end['ended']} on {first['provenance']['device_name']} (--overwrite: again): " * finished
    return f"{old}{DATASET} {name}: {end['selected_test_accuracy_pct']:.2f} %{paper}{note}. Log: {path}"


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, dict]:
    """The command line, and the recipe with its changes; `departures`: these changes, as in the log's name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, whole, flag = parser.add_argument, {"type": int, "metavar": "N"}, {"action": "store_true"}
    add("--network", choices=RECIPES, default=next(iter(RECIPES)), help="default: %(default)s")
    add("--head", choices=("fc", "spinal", "both"), default="both", help="default: both, on the same batches")
    add("--layers", **whole, help="hidden layers of the Spinal head; default: as published")
    add("--width", **whole, help="neurons of each of them; default: as published")
    add("--protocol", choices=("published", "corrected"), default="published", help="see above; default: published")
    add("--weights", choices=("imagenet1k_v1", "none"), default="imagenet1k_v1", help="none: from scratch")
    add("--freeze", **flag, help="train the head alone (as published nothing is frozen)")
    add("--epochs", **whole, help="default: as published; stages share them in proportion")
    add("--batch-size", **whole, help="of all processes together; default: as published")
    add("--lr", type=float, dest="learning_rate", metavar="RATE", help="first learning rate; default: as published")
    add("--seed", **whole, default=0, help="first seed; default: 0")
    add("--runs", **whole, default=1, help="repeat with seeds seed..seed+N-1; default: 1")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32; bf16 is never the paper's row")
    add("--image-size", **whole, help="a smoke run on smaller images; default: as published")
    add("--limit", **whole, help="only N images of each part: a smoke run")
    add("--workers", **whole, default=min(8, os.cpu_count() or 1), help="processes that make views; changes no number")
    add("--device", default="auto", metavar="NAME", help="auto (cuda, else mps, else cpu), cpu, cuda, cuda:1")
    add("--data-dir", type=Path, default="data", metavar="DIR", help="default: data")
    add("--results-dir", type=Path, default="results", metavar="DIR", help="default: results")
    add("--no-download", **flag, help="use the data that are there")
    add("--fetch-only", **flag, help="fetch data and weights, train nothing")
    add("--save-weights", **flag, help="keep the weights of the reported epoch in results/weights/")
    add("--quiet", **flag, help="print the results only")
    add("--overwrite", **flag, help="run again what is already finished")
    options = parser.parse_args(argv)
    low = dict(layers=1, width=1, epochs=1, batch_size=2, runs=1, limit=4, learning_rate=1e-9, image_size=16, workers=0)
    for key, least in low.items():
        if getattr(options, key) is not None and not least <= getattr(options, key) < 1e6:
            parser.error(f"--{key.replace('_', '-')} must be {least} or more and less than a million")
    if options.head == "fc" and (options.layers or options.width):
        parser.error("--layers and --width belong to the Spinal head: choose --head spinal or both with them")
    recipe = recipe_of(options.network, options.protocol)
    spinal = [ours or usual for ours, usual in zip((options.layers, options.width, None), recipe["spinal"])]
    recipe |= dict(spinal=spinal, limit=None, precision="fp32", weights="imagenet1k_v1", freeze=False)
    names = dict(epochs="e", batch_size="b", learning_rate="lr", limit="limit", weights="w", freeze="freeze",
                 image_size="px", precision="")
    given = {key: getattr(options, key) for key in names if getattr(options, key) not in (None, recipe[key])}
    options.departures = {key: names[key] + str(x) * (x is not True) for key, x in given.items()}
    return options, recipe | given


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 finished, 2 user's mistake, 130 Ctrl-C."""
    options, recipe = parse_arguments(argv)
    options.rank, options.processes = (int(os.environ.get(*x)) for x in (("RANK", 0), ("WORLD_SIZE", 1)))  # torchrun
    socket.setdefaulttimeout(60)  # seconds without a byte after which a download counts as broken
    try:
        first = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        auto = first if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        name = {"auto": auto, "cuda": first}.get(options.device, options.device)
        options.device = torch.zeros(1, device=name).device
        cuda, size = options.device.type == "cuda", recipe["batch_size"]
        if cuda:
            torch.cuda.set_device(options.device)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32
            torch.backends.cudnn.benchmark = True  # every step has the same shapes
            if recipe["precision"] == "bf16" and torch.cuda.get_device_capability() < (8, 0):
                raise ValueError("this GPU only emulates bf16: choose --precision fp32")
        recipe["batch_norm_images"] = size if cuda else size // options.processes  # it is synchronised on CUDA only
        if recipe["batch_norm_images"] != size:
            options.departures["batch_norm"] = f"bn{recipe['batch_norm_images']}"
        if size < 2 * options.processes:
            raise ValueError(f"a batch of {size} is too small for {options.processes} processes")
        options.no_download |= options.processes > 1  # they would write the same files
        options.quiet |= options.rank > 0
        data = load_data(options, recipe)
        if options.fetch_only or options.processes > 1:  # before any process waits for another
            build_network(options.network, None, pretrained=options.weights != "none")
        if options.processes > 1:
            distributed.init_process_group("nccl" if cuda else "gloo")
        for seed in range(options.seed, options.seed + options.runs * (not options.fetch_only)):
            for head in ("fc", "spinal") if options.head == "both" else [options.head]:
                if result := run(head, seed, data, options, recipe):
                    print(result, flush=True)
        if options.processes > 1:
            distributed.destroy_process_group()
        return 0
    except KeyboardInterrupt:
        print("stopped: the same command goes on after the last epoch that was saved", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError, RuntimeError, AssertionError) as error:
        print("error:", *str(error).rpartition("Error: ")[2].split(), file=sys.stderr)  # of a loader the last line
        return 2


if __name__ == "__main__":
    sys.exit(main())
# <<< shared: transfer_training
