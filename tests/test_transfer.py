"""The scripts of Transfer_Learning/: settings, counts, what learns, data, views, runs, mistakes."""

import base64
import copy
import csv
import functools
import json
import os
import re
import subprocess
import sys
import urllib.error
from dataclasses import asdict, fields, replace

import numpy
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms

from conftest import ROOT, lines_of, load_script, one_error
from made_up_data import CHECKED, WRITERS, pixels, without_checksums

NAMES = sorted(path.stem for path in (ROOT / "Transfer_Learning").glob("*.py"))
SCRIPTS = {name: load_script(f"Transfer_Learning/{name}") for name in NAMES}
WRN, VGG, RESNET = "wide_resnet101_2", "vgg19_bn", "resnet18"
get_model = torchvision.models.get_model

# ---- Settings, as the paper, the released scripts and the notebooks have them -------------------
C100 = ([0.507, 0.487, 0.441], [0.267, 0.256, 0.276])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CINIC = ([0.47889522, 0.47227842, 0.43047404], [0.24205776, 0.23828046, 0.25874835])
OWN = {
    "tl_cinic10": CINIC,
    "tl_mnist": ([0.1307] * 3, [0.3081] * 3),
    "tl_fashion_mnist": ([0.5] * 3, [0.5] * 3),
    "tl_hymenoptera": IMAGENET,
}
FLIP, UPSIDE_DOWN = ["RandomHorizontalFlip"], ["RandomVerticalFlip"]


def turned(larger: int, size: int) -> tuple:
    """Size, augmentation and evaluation of most sets."""
    steps = [["Resize", [larger] * 2], ["RandomRotation", 15], ["RandomCrop", size], FLIP]
    return size, steps, [["Resize", [size] * 2]]


def cut(larger: int, size: int, evaluation: object) -> tuple:
    """The same with a random part of the image, also upside down."""
    steps = [["Resize", [larger] * 2], ["RandomRotation", 15]]
    steps += [["RandomResizedCrop", size, [0.08, 1.0]], FLIP, UPSIDE_DOWN]
    return size, steps, [["Resize", evaluation]]


HOUSES = [["Resize", [272, 320]], ["RandomRotation", 15], ["CenterCrop", 272], ["RandomCrop", 256]]
INSECTS = [["RandomResizedCrop", 224, [0.08, 1.0]], FLIP]
DIGITS = [["Resize", [120, 120]], ["RandomRotation", 10], ["RandomCrop", 112]]
CLOTHES = [["Resize", [120, 120]], FLIP, ["RandomAffine", 10, [0.2, 0.2]]]
VIEWS = {
    "tl_bird225": turned(230, 224),
    "tl_caltech101": turned(230, 224),
    "tl_cifar10": turned(272, 256),
    "tl_cifar100": turned(272, 256),
    "tl_cinic10": turned(456, 448),
    "tl_fashion_mnist": (
        112,
        [*CLOTHES, ["RandomResizedCrop", 112, [0.95, 1.0]]],
        [["Resize", [112, 112]]],
    ),
    "tl_fruits360": cut(140, 128, 128),
    "tl_hymenoptera": (224, INSECTS, [["Resize", 256], ["CenterCrop", 224]]),
    "tl_intel_image": turned(230, 224),
    "tl_mnist": (112, [*DIGITS, ["RandomPerspective"]], [["Resize", [112, 112]]]),
    "tl_monkey10": cut(320, 300, [300, 300]),
    "tl_oxford_flowers102": turned(464, 448),
    "tl_stanford_cars": turned(456, 448),
    "tl_stl10": turned(272, 256),
    "tl_svhn": (256, HOUSES, [["Resize", [272, 320]], ["CenterCrop", 256]]),
}
ONE, HALVES, QUARTER = [[1.0, 1.0]], [[1.0, 0.5], [0.1, 1.0]], [[1.0, 0.25], [0.1, 1.0]]
THIRDS, THIRD = [[1.0, 1 / 3], [0.1, 2 / 3], [0.01, 1.0]], [[1.0, 1 / 3], [0.1, 1.0]]
FC, WIDE = ("fc", 2, 4096, 0.5, ""), ("spinal", 4, 1024, 0.0, "DBR")
OUTPUT = ("fc", 0, 0, 0.0, "")
BIRDS = {"train": 31_316, "heldout": [5] * 225, "test": [5] * 225}
MONKEYS = {"train": None, "test": 272}
SETS = {  # name, classes, images of the official parts, or of each class in them
    "tl_bird225": ("Bird225", 225, BIRDS),
    "tl_caltech101": ("Caltech-101", 101, {"train": 6_162, "heldout": 820, "test": 1_695}),
    "tl_cifar10": ("CIFAR-10", 10, {"train": 50_000, "test": 10_000}),
    "tl_cifar100": ("CIFAR-100", 100, {"train": 50_000, "test": 10_000}),
    "tl_cinic10": ("CINIC-10", 10, dict.fromkeys(["train", "heldout", "test"], [9_000] * 10)),
    "tl_fashion_mnist": ("Fashion-MNIST", 10, {"train": 60_000, "test": 10_000}),
    "tl_fruits360": ("Fruits 360", 131, {"train": 67_692, "test": 22_688}),
    "tl_hymenoptera": ("Hymenoptera", 2, {"train": [123, 121], "test": [70, 83]}),
    "tl_intel_image": ("Intel Image", 6, {"train": 14_034, "test": 3_000}),
    "tl_mnist": ("MNIST", 10, {"train": 60_000, "test": 10_000}),
    "tl_monkey10": ("10 Monkey Species", 10, MONKEYS),
    "tl_oxford_flowers102": ("Oxford 102 Flower", 102, {"train": 6552, "test": 818, "unused": 819}),
    "tl_stanford_cars": ("Stanford Cars", 196, {"train": 8_144, "test": 8_041}),
    "tl_stl10": ("STL-10", 10, {"train": 5_000, "test": 8_000}),
    "tl_svhn": ("SVHN", 10, {"train": 73_257, "test": 26_032}),
}


def r(layers: int, width: int, flavour: str = "R") -> tuple:
    """A Spinal head."""
    return "spinal", layers, width, 0.0, flavour


def table(head: tuple, wrn: tuple, vgg: tuple) -> dict:
    """The networks of Table III; resnet18, in no table, has the settings of wide_resnet101_2."""
    return {WRN: (*wrn, [OUTPUT, head]), VGG: (*vgg, [FC, WIDE]), RESNET: (*wrn, [OUTPUT, head])}


def other(head: tuple, wrn: tuple) -> dict:
    """The networks of a set with one recipe."""
    return {WRN: (*wrn, [OUTPUT, head]), RESNET: (*wrn, [OUTPUT, head])}


SLOW, TWICE = (25, 9, 0.001, ONE), (20, 128, 0.01, HALVES)
NETWORKS = {  # of each network: epochs, batch, rate, stages, heads
    "tl_bird225": table(r(4, 225), (25, 24, 0.001, ONE), (25, 24, 0.001, ONE)),
    "tl_caltech101": table(r(4, 101), (10, 64, 0.01, HALVES), (10, 64, 0.001, ONE)),
    "tl_cifar10": table(r(4, 20), (50, 28, 0.001, ONE), (25, 28, 0.001, ONE)),
    "tl_cifar100": table(r(4, 512, "DBR"), (50, 24, 0.001, ONE), (25, 24, 0.001, ONE)),
    "tl_cinic10": table(r(4, 20), (50, 9, 0.01, HALVES), SLOW),
    "tl_fashion_mnist": other(r(4, 1024, "LIN"), (10, 200, 0.01, HALVES)),
    "tl_fruits360": table(r(4, 131), (10, 224, 0.01, ONE), (10, 224, 0.001, ONE)),
    "tl_hymenoptera": {RESNET: (25, 4, 0.001, ONE, [OUTPUT, r(6, 5, "LEAKY")])},
    "tl_intel_image": other(r(4, 20), (20, 24, 0.001, ONE)),
    "tl_mnist": {VGG: (*TWICE, [FC, WIDE]), RESNET: (*TWICE, [OUTPUT, WIDE])},
    "tl_monkey10": {
        "alexnet": (20, 40, 0.01, [[1.0, 0.5], [1.0, 1.0]], [OUTPUT, r(4, 20)]),
        **other(r(4, 20), (20, 24, 0.001, ONE)),
    },
    "tl_oxford_flowers102": {
        **table(r(4, 101), (50, 8, 0.001, ONE), (25, 8, 0.001, ONE)),
        "resnext50_32x4d": (40, 64, 0.01, QUARTER, [("fc", 2, 204, 0.0, ""), r(4, 101)]),
    },
    "tl_stanford_cars": table(r(4, 196), SLOW, SLOW),
    "tl_stl10": table(r(4, 20, "DBR"), (10, 24, 0.001, ONE), (10, 24, 0.001, ONE)),
    "tl_svhn": table(r(4, 20), (25, 28, 0.001, ONE), (25, 28, 0.001, ONE)),
}
TABLE_III = [name for name in NAMES if VGG in NETWORKS[name] and name != "tl_mnist"]
WITH_PART = {"tl_bird225", "tl_caltech101", "tl_cinic10"}  # for choosing the epoch
BY_INDEX = {"tl_mnist", "tl_fashion_mnist"}
NAMED = {  # epochs, batch, rate, stages, heads, index of the held-out images, printed numbers
    ("tl_bird225", "script"): (25, 24, 0.001, ONE, [OUTPUT, WIDE], None, [99.56]),
    ("tl_caltech101", "script"): (20, 30, 0.001, ONE, [OUTPUT, WIDE], None, [96.11, 96.87]),
    ("tl_cifar10", "notebook"): (15, 56, 0.01, THIRDS, [OUTPUT, r(4, 20)], None, [97.60]),
    ("tl_cifar100", "notebook"): (15, 56, 0.01, THIRDS, [OUTPUT, r(4, 200)], 4, [86.31]),
    ("tl_stanford_cars", "script"): (50, 9, 0.001, HALVES, [OUTPUT, r(4, 196)], None, [93.35]),
    ("tl_stl10", "notebook"): (20, 24, 0.0005, ONE, [OUTPUT, r(4, 512, "DBR")], 0, [98.56]),
    ("tl_stl10", "custom"): (15, 24, 0.001, THIRD, [OUTPUT, r(10, 512)], 0, [98.39]),
}


def expected(script: str, network: str, row: tuple, head: tuple, protocol: str) -> dict:
    """All settings of a run, in literals."""
    size, augmentation, evaluation = VIEWS[script]
    epochs, batch, rate, stages = row[:4]
    kind, layers, width, dropout, flavour = head
    corrected = protocol == "corrected"
    mean, std = IMAGENET if corrected else OWN.get(script, C100)
    if corrected and flavour == "LIN":
        flavour = "R"
    heldout = 10 if script in BY_INDEX or (corrected and script not in WITH_PART) else 0
    return {
        "network": network,
        "classes": SETS[script][1],
        "image_size": size,
        "epochs": epochs,
        "batch_size": batch,
        "learning_rate": rate,
        "mean": mean,
        "std": std,
        "augmentation": augmentation,
        "evaluation": evaluation,
        "stages": stages,
        "head": kind,
        "layers": layers,
        "width": width,
        "fc_dropout": dropout,
        "flavour": flavour,
        "head_ignored": network == VGG and script in TABLE_III and not corrected,
        "protocol": protocol,
        "weights": "imagenet1k_v1",
        "freeze": False,
        "momentum": 0.9,
        "selection": "heldout" if heldout or script in WITH_PART else "best_test",
        "best_of_stage": not (corrected and any(len(x[3]) > 1 for x in NETWORKS[script].values())),
        "heldout": heldout,
        "heldout_index": 0 if script in BY_INDEX else None,
        "precision": "fp32",
        "limit": None,
    }


@pytest.mark.parametrize("script", NAMES)
def test_every_setting_is_the_published_one(script):
    module, (dataset, _, images) = SCRIPTS[script], SETS[script]
    assert (script, dataset, images) == (module.SCRIPT, module.DATASET, module.IMAGES)
    assert list(NETWORKS[script]) == module.NETWORKS and module.HEADS == ["fc", "spinal"]
    for network, row in NETWORKS[script].items():
        for head in row[4]:
            for protocol in ("published", "corrected"):
                recipe = module.recipe_of(network, head[0], protocol)
                assert asdict(recipe) == expected(script, network, row, head, protocol)


@pytest.mark.parametrize("script, protocol", NAMED)
def test_named_recipes_are_those_of_their_sources(script, protocol):
    *row, heads, index, numbers = NAMED[script, protocol]
    module = SCRIPTS[script]
    for head in heads:
        recipe = module.recipe_of(WRN, head[0], protocol)
        settings = expected(script, WRN, row, head, protocol)
        if index is not None:
            settings |= {"selection": "heldout", "heldout": 10, "heldout_index": index}
        assert asdict(recipe) == settings
    found = []
    for label, values in module.PAPER.items():
        shape = "fc|" + "|".join(f"spinal{head[1]}x{head[2]}" for head in heads)
        if re.fullmatch(f"{WRN}-({shape})-{protocol}", label):
            found += values.values()
    assert found == numbers
    assert set(module.PROTOCOLS) - {"corrected"} == {p for s, p in NAMED if s == script}


def paper_rows() -> list[dict]:
    with open(ROOT / "results/paper.csv", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["script"].startswith("tl_")]


def test_numbers_and_epochs_of_the_paper_stand_in_the_scripts():
    assert {row["script"] for row in paper_rows()} == set(TABLE_III)
    for row in paper_rows():
        module, head = SCRIPTS[row["script"]], row["head"]
        recipe = module.recipe_of(row["network"], head, "published")
        assert recipe.epochs == int(row["epochs"])
        assert (recipe.layers, recipe.width) == (int(row["layers"] or 0), int(row["width"] or 0))
        kind = {"accuracy_avg_pct": "average", "accuracy_best_pct": "best"}.get(row["metric"])
        if kind:
            numbers = module.PAPER[f"{row['network']}-{module.head_name(recipe)}"]
            assert numbers[kind] == float(row["value"])
    others = {"tl_mnist": 99.75, "tl_fashion_mnist": 94.76, "tl_intel_image": 93.77}
    for script, value in others.items():
        assert [list(x.values()) for x in SCRIPTS[script].PAPER.values()] == [[value]]
    assert {
        "alexnet-spinal4x20": {"in its notebook": 92.28},
        f"{WRN}-spinal4x20": {"in its text": 99.26},
    } == SCRIPTS["tl_monkey10"].PAPER


def test_a_log_repeats_every_field_of_a_recipe():
    names = [field.name for field in fields(SCRIPTS["tl_cifar10"].Recipe)]
    for module in SCRIPTS.values():
        assert [field.name for field in fields(module.Recipe)] == names


# ---- Counts -------------------------------------------------------------------------------------
TRUNKS = {
    WRN: 124_837_696,
    VGG: 20_035_392,
    RESNET: 11_176_512,
    "resnext50_32x4d": 22_979_904,
    "alexnet": 2_469_696,
}
VGG_WHOLE = 143_678_248
HEADS = [  # script, network, changes (None: FC), parameters and multiplications of the head
    ("tl_bird225", WRN, {"width": 1024, "flavour": "DBR"}, 8_274_145, 8_261_632),
    ("tl_cifar100", WRN, {}, 3_094_628, 3_088_384),
    ("tl_cinic10", WRN, {}, 84_010, 83_920),
    ("tl_cifar10", WRN, {}, 84_010, 83_920),
    ("tl_svhn", WRN, {}, 84_010, 83_920),
    ("tl_caltech101", WRN, None, 206_949, 206_848),
    ("tl_caltech101", WRN, {}, 485_608, None),
    ("tl_caltech101", WRN, {"width": 1024}, 7_757_925, None),
    ("tl_fruits360", WRN, {}, 657_358, 656_703),
    ("tl_fruits360", WRN, {"flavour": "DBR"}, 658_406, None),
    ("tl_oxford_flowers102", WRN, {"width": 102}, 491_130, 490_620),
    ("tl_oxford_flowers102", WRN, None, 208_998, None),
    ("tl_stl10", WRN, {"width": 512}, 2_910_218, 2_904_064),
    ("tl_stl10", WRN, {"layers": 10, "width": 512, "flavour": "R"}, 7_658_506, None),
    ("tl_stanford_cars", WRN, {}, 1_072_708, 1_071_728),
    ("tl_fashion_mnist", WRN, {}, 7_385_098, None),
    ("tl_cifar100", WRN, {"width": 200, "flavour": "R"}, 1_020_100, 1_019_200),
    ("tl_oxford_flowers102", "resnext50_32x4d", None, 480_726, 480_216),
    ("tl_monkey10", "alexnet", {}, 370_730, None),
    ("tl_mnist", VGG, {}, 54_579_210, 54_566_912),
    ("tl_mnist", VGG, {"flavour": "LIN"}, 54_571_018, None),
    ("tl_mnist", VGG, None, 119_586_826, 119_578_624),
    ("tl_hymenoptera", RESNET, {}, 7_897, 7_865),
]


@functools.cache
def trunk_on_meta(network):
    return get_model(network, weights=None)


def copy_of_trunk(name, weights=None):
    """Copying takes less time than building."""
    return copy.deepcopy(trunk_on_meta(name))


def on_meta(script, network, head, protocol="published", **changes):
    """The network without numbers."""
    module = SCRIPTS[script]
    recipe = module.recipe_of(network, head, protocol, weights="none", **changes)
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "get_model", copy_of_trunk)
        return module.network_of(recipe, download=False)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def multiplications(network):
    return sum(x.weight.numel() for x in SCRIPTS["tl_cifar10"].linear_layers(network))


@pytest.mark.parametrize("script, network, changes, parameters, multiplied", HEADS)
def test_counts_of_heads_equal_the_specification(script, network, changes, parameters, multiplied):
    built = on_meta(script, network, "fc" if changes is None else "spinal", **(changes or {}))
    assert count(built) == TRUNKS[network] + parameters
    assert multiplied in (None, multiplications(built))


@pytest.mark.parametrize("script", ["tl_cifar10", "tl_svhn"])
def test_released_vgg_scripts_have_a_dead_head_beside_the_whole_vgg(script):
    network = on_meta(script, VGG, "spinal", width=20)
    assert count(network) == VGG_WHOLE + 1_005_770
    assert multiplications(network) == 25_088 * 4_096 + 4_096 * 4_096 + 4_096 * 1_000
    corrected = on_meta(script, VGG, "spinal", "corrected", width=20)
    assert count(corrected) == TRUNKS[VGG] + 1_005_770


FITS = {  # printed counts that do not fit the printed label, and what they fit
    ("tl_cifar100", WRN): {"width": 1024, "flavour": "R"},
    ("tl_caltech101", WRN): {"width": 1024},
    ("tl_stanford_cars", WRN): {"width": 1024},
    ("tl_stanford_cars", VGG): {"width": 196},
}


def test_the_40_printed_counts_fit_the_published_networks():
    rows = [row for row in paper_rows() if row["metric"] == "parameters_printed"]
    assert len(rows) == 40
    for row in rows:
        script, network, head = row["script"], row["network"], row["head"]
        shape = FITS.get((script, network), {}) if head == "spinal" else {}
        printed = float(row["value"][:-1])
        counted = count(on_meta(script, network, head, **shape))
        if (script, network, head) == ("tl_caltech101", WRN, "fc"):
            counted += 2_049  # the printed number fits one class more, the background
        assert counted / 1e6 == pytest.approx(printed, abs=0.00501), row
        if network == VGG:  # with the head in its place the printed count does not come out
            replaced = count(on_meta(script, network, head, "corrected", **shape))
            assert abs(replaced / 1e6 - printed) > 40


# ---- What learns --------------------------------------------------------------------------------
def learning(network):
    """Names of the parameters that get a gradient."""
    place = next(network.parameters()).device
    network(torch.zeros(2, 3, 64, 64, device=place)).sum().backward()
    return {name for name, x in network.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("head", ["fc", "spinal"])
@pytest.mark.parametrize("script", [*TABLE_III, "tl_mnist"])
def test_which_parameters_of_vgg_learn(script, head):
    """Q1, on tensors without numbers: a parameter outside of the graph has no gradient."""
    for protocol in ("published", "corrected"):
        network = on_meta(script, VGG, head, protocol)
        names = {name for name, _ in network.named_parameters()}
        dead = {name for name in names if name.startswith("fc.")}
        assert bool(dead) == (script in TABLE_III and protocol == "published")
        if script not in ("tl_cifar10", "tl_mnist"):  # the others are built by the same text
            continue
        assert learning(network) == names - dead
        outputs = network(torch.zeros(2, 3, 64, 64, device="meta"))
        assert outputs.shape == (2, 1000 if dead else 10)


def test_the_leaky_head_uses_layers_three_and_four_again():
    module = SCRIPTS["tl_hymenoptera"]
    head = module.build_network(RESNET, "spinal", pretrained=False).fc
    x, layers = torch.randn(3, 512), head[0].hidden
    outputs = [layers[0](x[:, :256])]
    for k, layer in enumerate((1, 2, 3, 2, 3), 1):
        half = x[:, 256:] if k % 2 else x[:, :256]
        outputs.append(layers[layer](torch.cat([half, outputs[-1]], 1)))
    assert torch.equal(head(x), head[1:](torch.cat(outputs, 1)))
    assert layers[0][-1](torch.tensor(-1.0)) == pytest.approx(-0.01)
    head(x).sum().backward()
    assert len(head[0].unused) == 2
    assert all(parameter.grad is None for parameter in head[0].unused.parameters())
    assert all(parameter.grad is not None for parameter in layers.parameters())


@pytest.mark.parametrize("protocol, affine", [("published", True), ("corrected", False)])
def test_the_fashion_head_is_affine_as_published(protocol, affine):
    module = SCRIPTS["tl_fashion_mnist"]
    network = module.build_network(RESNET, "spinal", protocol=protocol, pretrained=False)
    head, (x, y) = network.fc[0].double(), torch.randn(2, 4, 512, dtype=torch.float64)
    assert torch.allclose(head((x + y) / 2), (head(x) + head(y)) / 2, atol=1e-9) == affine


def test_dbr_and_fc_heads_are_as_specified():
    head = on_meta("tl_cifar100", WRN, "spinal").fc
    kinds = [nn.Dropout, nn.Linear, nn.BatchNorm1d, nn.ReLU]
    for layer in head[0].hidden:
        assert [type(part) for part in layer] == kinds and layer[0].p == 0.5
    assert isinstance(head[1], nn.Dropout) and head[1].p == 0.5 and isinstance(head[2], nn.Linear)
    fc, kinds = on_meta("tl_mnist", VGG, "fc").classifier, [nn.Linear, nn.ReLU, nn.Dropout] * 2
    assert all(map(isinstance, fc, [*kinds, nn.Linear])) and len(fc) == 7
    assert fc[2].p == fc[5].p == 0.5


class Tiny(nn.Module):
    """The attributes of VGG or ResNet, without batch norm: images of a batch feel no others."""

    def __init__(self, network):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        self.features = nn.Sequential(*layers)
        if network in (VGG, "alexnet"):
            layers = [nn.Linear(32, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1000)]
            self.classifier = nn.Sequential(*layers)
        else:
            self.fc = nn.Linear(32, 1000)

    def forward(self, x):
        head = self.classifier if hasattr(self, "classifier") else self.fc
        return head(self.features(x))


def tiny_model(network, *_, **__):
    return Tiny(network)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(torchvision.models, "get_model", tiny_model)


def test_logits_are_fp32_under_bf16(tiny):
    """Also those of ImageNet's classifier, which the published VGG keeps (Q1)."""
    for network in (WRN, VGG):
        built = SCRIPTS["tl_cifar10"].build_network(network, "spinal", pretrained=False).eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert built(torch.zeros(1, 3, 64, 64)).dtype == torch.float32


def test_default_weights_are_the_first_of_imagenet(monkeypatch):
    asked = []

    def spy(name, weights=None):
        asked.append(weights)
        return Tiny(name)

    monkeypatch.setattr(torchvision.models, "get_model", spy)
    for pretrained in (True, False):
        SCRIPTS["tl_cifar10"].build_network(WRN, "fc", pretrained=pretrained)
    assert asked == [torchvision.models.Wide_ResNet101_2_Weights.IMAGENET1K_V1, None]


# ---- Data ---------------------------------------------------------------------------------------
SIZES = {  # images in each part of the made-up sets: train, heldout, test
    "tl_bird225": (450, 450, 450),
    "tl_caltech101": (430, 57, 119),
    "tl_cifar10": (50, 0, 10),
    "tl_cifar100": (100, 0, 100),
    "tl_cinic10": (40, 40, 40),
    "tl_fashion_mnist": (27, 3, 10),
    "tl_fruits360": (262, 0, 262),
    "tl_hymenoptera": (18, 0, 18),
    "tl_intel_image": (24, 0, 24),
    "tl_mnist": (27, 3, 10),
    "tl_monkey10": (30, 0, 30),
    "tl_oxford_flowers102": (408, 0, 51),
    "tl_stanford_cars": (196, 0, 196),
    "tl_stl10": (20, 0, 20),
    "tl_svhn": (20, 0, 20),
}


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """script -> folder with its made-up set."""

    @functools.cache
    def write(script):
        folder = tmp_path_factory.mktemp(script)
        WRITERS[script](folder)
        return folder

    return write


@pytest.fixture(autouse=True)
def other_content_is_read(monkeypatch):
    for name in CHECKED:
        source = getattr(torchvision.datasets, name)
        monkeypatch.setattr(torchvision.datasets, name, without_checksums(source))


def loaded(script, folder, protocol="published", network=None, **changes):
    module = SCRIPTS[script]
    recipe = module.recipe_of(network or module.NETWORKS[0], "fc", protocol, **changes)
    return module.load_data(folder, recipe, download=False, quiet=True)


@pytest.mark.parametrize("script", NAMES)
def test_loader_reads_the_format_on_disk(script, written):
    data, facts = loaded(script, written(script))
    assert tuple(facts[name] for name in ("train", "heldout", "test")) == SIZES[script]
    assert ("heldout" in data) == (script in WITH_PART | BY_INDEX)
    for part in data.values():
        for image, label in zip(part.images, part.labels, strict=True):
            if not isinstance(image, str):
                assert int(numpy.ravel(image[0, 0])[0]) == label
            elif image.endswith(".png"):
                assert Image.open(image).getpixel((0, 0))[0] == label
    assert set(data["train"].labels.tolist()) == set(range(SETS[script][1]))
    assert not facts["official"] and not facts["verified"] and len(facts["sha256"]) == 16


@pytest.mark.parametrize("script", NAMES)
def test_views_are_the_published_transforms(script):
    """Those of torchvision on the same draws, and a pure function of seed, epoch and image."""
    module = SCRIPTS[script]
    square = {"tl_cifar10", "tl_cifar100", "tl_svhn", "tl_cinic10", "tl_fruits360"}
    source = (32, 32, 3) if script in square else (90, 70, 3)
    if script in BY_INDEX:
        source = (28, 28)
    images = numpy.stack([pixels(k, k, source) for k in range(2)])
    size, *both = VIEWS[script]
    for random, steps in zip((True, False), both, strict=True):
        part = module.Views(images, numpy.array([0, 1]), steps, 1.0)
        part.draws, state = (3, "view", 1), torch.get_rng_state()
        view, label, k = part[1]
        assert view.shape == (3, size, size) and view.dtype == torch.uint8 and (label, k) == (1, 1)
        assert torch.equal(state, torch.get_rng_state()), "dropout's generator is left alone"
        torch.manual_seed(module.seed_of(3, "view", 1, 1))
        made = [getattr(transforms, name)(*values) for name, *values in steps]
        by_hand = transforms.Compose(made)(Image.fromarray(images[1]).convert("RGB"))
        assert torch.equal(view, transforms.functional.pil_to_tensor(by_hand))
        for draws in ((4, "view", 1), (3, "view", 2)):
            part.draws = draws
            assert torch.equal(view, part[1][0]) != random
    small = module.Views(images, numpy.array([0, 1]), both[0], 32 / size)
    assert small[0][0].shape == (3, 32, 32)


@pytest.mark.parametrize("script", ["tl_cifar10", "tl_hymenoptera", "tl_mnist"])
def test_held_out_images_are_not_trained_on(script, written):
    data, facts = loaded(script, written(script), "corrected")
    contents = []
    for name in ("train", "heldout"):
        contents.append({x if isinstance(x, str) else x.tobytes() for x in data[name].images})
    total = sum(SIZES[script][:2])
    assert facts["train"] + facts["heldout"] == total
    assert facts["heldout"] == max(1, total // 10) and facts["test"] == SIZES[script][2]
    assert not contents[0] & contents[1]
    again, facts_again = loaded(script, written(script), "corrected")
    assert (again["heldout"].labels == data["heldout"].labels).all() and facts_again == facts


@pytest.mark.parametrize(
    "script, protocol, rest", [("tl_mnist", "published", 0), ("tl_cifar100", "notebook", 4)]
)
def test_images_are_held_out_by_their_index(script, protocol, rest, written):
    data, _ = loaded(script, written(script), protocol)
    whole, _ = SCRIPTS[script].read_parts(written(script), False)
    images, labels = whole["train"]
    assert numpy.array_equal(data["heldout"].images, images[rest::10])
    assert data["train"].labels.tolist() == [x for k, x in enumerate(labels) if k % 10 != rest]


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    WRITERS["tl_hymenoptera"](tmp_path)
    victim = tmp_path / "hymenoptera_data/val/class000/image_0001.jpg"
    seen = [loaded("tl_hymenoptera", tmp_path)[1]["sha256"]]
    victim.write_bytes(victim.read_bytes() + b"x")
    seen.append(loaded("tl_hymenoptera", tmp_path)[1]["sha256"])
    victim.rename(victim.with_name("b.jpg"))
    seen.append(loaded("tl_hymenoptera", tmp_path)[1]["sha256"])
    assert len(set(seen)) == 3


def test_what_counts_as_official_and_verified(written, monkeypatch):
    folders, cifar, mnist = [SCRIPTS[f"tl_{x}"] for x in ("hymenoptera", "cifar10", "mnist")]
    monkeypatch.setattr(folders, "IMAGES", {"train": [9, 9], "test": 18})
    facts = loaded("tl_hymenoptera", written("tl_hymenoptera"))[1]
    assert facts["official"] and not facts["verified"], "nothing proves the content of folders"
    monkeypatch.setitem(folders.FINGERPRINTS, facts["sha256"], "Hymenoptera")
    assert loaded("tl_hymenoptera", written("tl_hymenoptera"))[1]["verified"]
    monkeypatch.setattr(folders, "IMAGES", {"train": [8, 10], "test": 18})
    assert not loaded("tl_hymenoptera", written("tl_hymenoptera"))[1]["official"]
    monkeypatch.setattr(cifar, "IMAGES", {"train": 50, "test": 10})
    facts = loaded("tl_cifar10", written("tl_cifar10"))[1]
    assert facts["official"] and facts["verified"], "torchvision has compared md5 sums"
    monkeypatch.setattr(mnist, "IMAGES", {"train": 30, "test": 10})
    with pytest.raises(ValueError, match="not the official ones"):
        loaded("tl_mnist", written("tl_mnist"))


def test_known_data_of_another_set_are_refused_by_name(written, monkeypatch):
    facts = loaded("tl_mnist", written("tl_mnist"))[1]
    monkeypatch.setitem(SCRIPTS["tl_mnist"].FINGERPRINTS, facts["sha256"], "Fashion-MNIST")
    with pytest.raises(ValueError, match="these are the images and labels of Fashion-MNIST"):
        loaded("tl_mnist", written("tl_mnist"))


# ---- Runs ---------------------------------------------------------------------------------------
SHORT = "--weights none --image-size 32 --limit 12 --epochs 2 --batch-size 6"
SHORT += " --no-download --workers 0 --device cpu --quiet"


def status_of(script, folder, results, *extra):
    """Exit status of a short run in this process."""
    where = ["--data-dir", str(folder), "--results-dir", str(results)]
    try:
        return SCRIPTS[script].main([*where, *SHORT.split(), *map(str, extra)])
    except SystemExit as end:
        return end.code


def run(script, folder, results, *extra):
    """The lines of the newest log after a short run, without times."""
    assert status_of(script, folder, results, *extra) == 0
    logs = (results / "logs" / script).glob("*.jsonl")
    return lines_of(max(logs, key=lambda path: path.stat().st_mtime_ns))


def fails(capsys, script, folder, results, *extra):
    """The sentence about the mistake."""
    capsys.readouterr()
    assert status_of(script, folder, results, *extra) == 2
    return one_error(capsys.readouterr().err)


def change(monkeypatch, script, network, head, **changes):
    """Changes a published recipe, for instance to a narrower head."""
    recipes = SCRIPTS[script].RECIPES
    monkeypatch.setitem(recipes, (network, head), replace(recipes[network, head], **changes))


@pytest.mark.parametrize("script", NAMES)
def test_short_run_gives_a_log_as_the_schema_says(script, written, tmp_path, tiny, capsys):
    for protocol in ("published", "corrected"):
        flags = ("--protocol", protocol, "--head", "spinal", "--width", "8")
        start, *epochs, end = run(script, written(script), tmp_path, *flags)
        own = script in WITH_PART | BY_INDEX
        watched = "heldout" if own or protocol == "corrected" else "test"
        values = [line[f"{watched}_accuracy_pct"] for line in epochs]
        assert start["schema"] == 3 and "-data" in start["run"]
        departures = ["batch_size", "epochs", "image_size", "limit", "weights"]
        assert start["departures"] == departures
        assert start["settings"]["dataset"] == SETS[script][0]
        assert start["settings"]["selection"] == ("heldout" if own else end_rule(protocol))
        stages = [x[3] for x in NETWORKS[script].values()][0]
        if len(stages) == 1 or protocol == "corrected":  # else: the best of the last stage
            assert end[f"best_{watched}_accuracy_pct"] == max(values)
            assert end["selected_epoch"] == end["best_epoch"] == 1 + values.index(max(values))
        if watched == "test":
            assert end["selected_test_accuracy_pct"] == max(values)
            assert end["last_test_accuracy_pct"] == values[-1]
        bits = numpy.unpackbits(numpy.frombuffer(base64.b64decode(end["test_correct"]), "u1"))
        found = 100 * bits.sum() / start["data"]["test"]
        assert found == pytest.approx(end["selected_test_accuracy_pct"], abs=1e-3)
    assert all(path.suffix == ".jsonl" for path in (tmp_path / "logs" / script).iterdir())
    shown = capsys.readouterr().out
    assert "paper" not in shown and shown.count("not the official images") == 2


def end_rule(protocol):
    return "heldout" if protocol == "corrected" else "best_test"


def constant_sweep(self, model, part, batches, title):
    """In place of training and tests: one half is right."""
    return 1.0, torch.arange(len(part)).remainder(2).float()


def save_nothing(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


def test_result_stands_beside_the_papers(written, tmp_path, tiny, monkeypatch, capsys):
    module = SCRIPTS["tl_cifar10"]
    monkeypatch.setattr(module, "IMAGES", {"train": 50, "test": 10})
    monkeypatch.setattr(module, "load_trunk", tiny_model)
    monkeypatch.setattr(module.Trainer, "sweep", constant_sweep)
    monkeypatch.setattr(module, "save", save_nothing)
    where = ["--data-dir", str(written("tl_cifar10")), "--results-dir", str(tmp_path)]
    where += ["--no-download", "--quiet", "--device", "cpu"]
    assert module.main([*where, "--runs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    for line, name, numbers in [
        (lines[0], "fc-published-s0", "average 97.43, best 98.22"),
        (lines[3], "spinal4x20-published-s1", "average 97.61, best 98.12"),
    ]:
        assert f"{name}: 50.00 % (paper, as published: {numbers}). Log: " in line
    assert lines[4] == "Spinal - FC: +0.00 points (mean; number of seeds: 2; paper: +0.18)"
    assert module.main([*where, "--recipe", "notebook"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "fc-notebook-s0: 50.00 %. Log" in lines[0], "no number of another recipe"
    assert "spinal4x20-notebook-s0: 50.00 % (paper, as published: in its notebook" in lines[1]
    assert lines[2].endswith("(mean; number of seeds: 1)")
    (path,) = tmp_path.rglob(f"{WRN}-spinal4x20-notebook-s0.jsonl")
    start = json.loads(path.read_text().splitlines()[0])
    assert start["departures"] == ["protocol"] and start["settings"]["protocol"] == "notebook"
    assert module.main([*where, "--network", VGG, "--head", "fc"]) == 0
    assert "never called, both heads give this (Q1)" in capsys.readouterr().out


def test_first_line_says_what_is_trained_where(written, tmp_path, tiny, capsys):
    flags = [flag for flag in SHORT.split() if flag != "--quiet"]
    where = ["--data-dir", str(written("tl_cifar10")), "--results-dir", str(tmp_path)]
    assert SCRIPTS["tl_cifar10"].main([*where, *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"CIFAR-10, {WRN}, published: fc and spinal4x20, 1 run(s) of each,"
    assert lines[1].startswith("2 epochs of 12 images of 32 pixels on cpu (")
    assert sum(" epoch " in line and len(line) <= 80 for line in lines) == 4


def test_a_finished_run_is_not_run_again(written, tmp_path, tiny, capsys):
    folder = written("tl_cifar10")
    first = run("tl_cifar10", folder, tmp_path, "--head", "fc")
    capsys.readouterr()
    assert run("tl_cifar10", folder, tmp_path, "--head", "fc") == first
    assert "already finished " in capsys.readouterr().out
    message = fails(capsys, "tl_cifar10", folder, tmp_path, "--head", "fc", "--save-weights")
    assert "its weights were not saved" in message and "--overwrite" in message
    (path,) = (tmp_path / "logs/tl_cifar10").iterdir()
    text = path.read_text()
    hashed = first[0]["provenance"]["script_sha256"]
    path.write_text(text.replace(hashed, "0" * 16))
    run("tl_cifar10", folder, tmp_path, "--head", "fc")
    assert "by another version of this script" in capsys.readouterr().out
    path.write_text(text.replace('"momentum": 0.9', '"momentum": 0.8'))
    message = fails(capsys, "tl_cifar10", folder, tmp_path, "--head", "fc")
    assert "other values of momentum" in message and "--overwrite" in message
    for damaged in ("", text[: len(text) // 2], text.splitlines()[0]):
        path.write_text(damaged)
        message = fails(capsys, "tl_cifar10", folder, tmp_path, "--head", "fc")
        assert "it is damaged; --overwrite starts anew" in message and path.name[:-8] in message
    run("tl_cifar10", folder, tmp_path, "--head", "fc", "--overwrite", "--save-weights")
    assert ". Weights: " in capsys.readouterr().out and list(tmp_path.rglob("weights/*/*.pt"))


def test_published_vgg_rows_are_one_network(written, tmp_path, tiny, monkeypatch, capsys):
    """Q1: FC and Spinal head give the same numbers to the last digit; corrected they differ."""
    change(monkeypatch, "tl_cifar10", VGG, "fc", width=32)
    change(monkeypatch, "tl_cifar10", VGG, "spinal", width=8)
    for protocol in ("published", "corrected"):
        curves = []
        for head in ("fc", "spinal"):
            flags = ("--network", VGG, "--head", head, "--lr", "0.05", "--protocol", protocol)
            _, *epochs, _ = run("tl_cifar10", written("tl_cifar10"), tmp_path, *flags)
            assert ("never called" in capsys.readouterr().out) == (protocol == "published")
            curves.append([line["train_loss"] for line in epochs])
        assert (curves[0] == curves[1]) == (protocol == "published")


def test_both_heads_see_the_same_views_and_start_from_the_same_trunk(
    written, tmp_path, tiny, monkeypatch
):
    module, seen = SCRIPTS["tl_hymenoptera"], []

    def spy(self, part, order, rate, title):
        views = torch.stack([part[int(k)][0] for k in order])
        seen.append((views, self.network.features[0].weight.detach().clone()))
        return 1.0

    monkeypatch.setattr(module.Trainer, "epoch", spy)
    run("tl_hymenoptera", written("tl_hymenoptera"), tmp_path)
    (views, trunk), (later, _), (views2, trunk2), (later2, _) = seen
    assert torch.equal(views, views2) and torch.equal(trunk, trunk2)
    assert torch.equal(later, later2) and not torch.equal(views, later), "another epoch"


def test_number_of_workers_changes_nothing(written, tmp_path, tiny):
    """With dropout, whose generator the loaders must not touch."""
    logs = []
    for workers in ("0", "2"):
        flags = ("--head", "spinal", "--epochs", "1", "--workers", workers)
        logs.append(run("tl_stl10", written("tl_stl10"), tmp_path / workers, *flags))
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    "protocol, stop", [("published", 1), ("published", 2), ("corrected", 3), ("published", 4)]
)
def test_interrupted_run_goes_on_to_the_same_log(
    written, tmp_path, tiny, monkeypatch, protocol, stop, capsys
):
    """tl_fashion_mnist has two stages: of the four epochs the third begins the second one."""
    script, folder = "tl_fashion_mnist", written("tl_fashion_mnist")
    change(monkeypatch, script, WRN, "spinal", width=8, flavour="DBR")
    flags = ("--epochs", "4", "--head", "spinal", "--protocol", protocol, "--limit", "24")
    whole = run(script, folder, tmp_path / "whole", *flags)
    module, saved = SCRIPTS[script], []
    save = module.save

    def interrupted(path, tensors):
        save(path, tensors)
        saved.append(path)
        if len(saved) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save", interrupted)
    assert status_of(script, folder, tmp_path / "parts", *flags) == 130
    assert "the same command" in capsys.readouterr().err
    checkpoint = saved[-1]
    kept = checkpoint.read_bytes()
    if stop == 1:
        torch.save(torch.load(checkpoint) | {"state": {"lines": [whole[0] | {"data": {}}]}}, "x.pt")
        os.replace("x.pt", checkpoint)
        assert "other values of sha256" in fails(capsys, script, folder, tmp_path / "parts", *flags)
        checkpoint.write_bytes(kept[:1000])
        assert "it is damaged" in fails(capsys, script, folder, tmp_path / "parts", *flags)
        checkpoint.write_bytes(kept)
    torch.manual_seed(12345)
    parts = run(script, folder, tmp_path / "parts", *flags)
    assert f"goes on after epoch {stop}" in capsys.readouterr().err and parts == whole
    assert not checkpoint.exists()


def test_freeze_trains_the_head_alone(written, tmp_path, tiny):
    flags = ("--freeze", "--head", "fc", "--save-weights", "--lr", "1")
    start = run("tl_cifar10", written("tl_cifar10"), tmp_path, *flags)[0]
    weights = torch.load(tmp_path / "weights/tl_cifar10" / f"{start['run']}.pt")
    assert "freeze" in start["departures"] and "-freeze-" in start["run"]
    torch.manual_seed(SCRIPTS["tl_cifar10"].seed_of(0, "weights"))
    fresh = SCRIPTS["tl_cifar10"].build_network(WRN, "fc", pretrained=False).state_dict()
    for key, x in weights.items():
        assert torch.equal(x, fresh[key]) == key.startswith("features")


def test_single_last_image_is_left_out(written, tmp_path, tiny, monkeypatch):
    """Q14: of 16 images batches of three leave one over; batch norm cannot train on it."""
    change(monkeypatch, "tl_cifar10", WRN, "spinal", width=8, flavour="DBR")
    flags = ("--head", "spinal", "--limit", "16", "--batch-size", "3")
    lines = run("tl_cifar10", written("tl_cifar10"), tmp_path, *flags)
    assert lines[-1]["outcome"] == "finished" and lines[0]["data"]["train"] == 16


# ---- Stages -------------------------------------------------------------------------------------
@pytest.mark.parametrize("script", NAMES)
def test_rates_are_those_of_steplr_in_each_stage(script):
    module = SCRIPTS[script]
    for network in module.NETWORKS:
        recipe = module.recipe_of(network, "fc", "published")
        rates, begins, begin = [], [], 0
        for factor, part in recipe.stages:
            begins.append(begin + 1)
            optimizer = torch.optim.SGD(
                [nn.Parameter(torch.zeros(1))], recipe.learning_rate * factor
            )
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)
            end = round(part * recipe.epochs)
            for _ in range(begin, end):
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
            begin = end
        found = [module.rate_of(recipe, epoch) for epoch in range(1, recipe.epochs + 1)]
        assert [rate for rate, _ in found] == pytest.approx(rates)
        assert [k for k, (_, new) in enumerate(found, 1) if new] == begins


CURVE = [30, 60, 50, 40, 55, 55]  # two stages of three epochs


@pytest.mark.parametrize("protocol, selected", [("published", 5), ("corrected", 2)])
def test_stages_begin_with_the_best_weights_and_published_forget_its_accuracy(
    written, tmp_path, tiny, monkeypatch, protocol, selected
):
    """Q8. The first bias counts the epochs that led to it: each epoch adds one."""
    module, before, momentum = SCRIPTS["tl_fashion_mnist"], [], []

    def epoch(self, part, order, rate, title):
        with torch.no_grad():
            bias = self.network.fc[-1].bias
            before.append(bias[0].item())
            momentum.append(bool(self.optimizer.state))
            self.optimizer.state[bias]["momentum_buffer"] = torch.zeros(10)
            bias[0] += 1
        return 1.0

    def evaluate(self, part, title):
        steps = self.network.fc[-1].bias[0].item() - before[0]
        accuracy = 10 * steps if title.startswith("test") else float(CURVE[len(before) - 1])
        return 1.0, accuracy, torch.zeros(len(part))

    monkeypatch.setattr(module.Trainer, "epoch", epoch)
    monkeypatch.setattr(module.Trainer, "evaluate", evaluate)
    flags = ("--epochs", "6", "--head", "fc", "--protocol", protocol)
    *_, end = run("tl_fashion_mnist", written("tl_fashion_mnist"), tmp_path, *flags)
    assert momentum == [False, True, True] * 2, "each stage begins without momentum"
    assert before[3] == pytest.approx(before[0] + 2), "the second stage: weights of epoch 2"
    assert end["best_epoch"] == end["selected_epoch"] == selected
    assert end["best_heldout_accuracy_pct"] == CURVE[selected - 1]
    steps = {5: 4, 2: 2}[selected]
    assert end["selected_test_accuracy_pct"] == pytest.approx(10 * steps, abs=0.1)
    assert end["last_test_accuracy_pct"] == pytest.approx(50, abs=0.1)


# ---- Several processes --------------------------------------------------------------------------
HELPER = """
import sys
sys.path[:0] = [{tests!r}]
import torchvision, test_transfer
for name in test_transfer.CHECKED:
    source = getattr(torchvision.datasets, name)
    setattr(torchvision.datasets, name, test_transfer.without_checksums(source))
torchvision.models.get_model = test_transfer.tiny_model
sys.exit(test_transfer.SCRIPTS["tl_cifar10"].main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(written, tmp_path, tiny):
    """Batches of 7 are cut into 4 + 3; weights, losses and accuracies agree to rounding."""
    folder = written("tl_cifar10")
    more = [
        "--head",
        "spinal",
        "--batch-size",
        "7",
        "--limit",
        "48",
        "--lr",
        "0.05",
        "--save-weights",
    ]
    one = run("tl_cifar10", folder, tmp_path / "one", *more)
    helper = tmp_path / "helper.py"
    helper.write_text(HELPER.format(tests=str(ROOT / "tests")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(helper), *SHORT.split(), *more]
    command += ["--data-dir", str(folder), "--results-dir", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("CIFAR-10 wide_resnet101_2") == 1, "the first process speaks"
    (path,) = (tmp_path / "two/logs/tl_cifar10").iterdir()
    two = lines_of(path)
    assert two[0]["provenance"]["processes"] == 2
    for ours, theirs in zip(two[1:-1], one[1:-1], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-4)
        assert ours["test_accuracy_pct"] == theirs["test_accuracy_pct"]
    assert two[-1]["test_correct"] == one[-1]["test_correct"]
    (a,), (b,) = ((tmp_path / x / "weights/tl_cifar10").iterdir() for x in ("one", "two"))
    a, b = torch.load(a), torch.load(b)
    assert all(torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-6) for key in a)


# ---- Mistakes -----------------------------------------------------------------------------------
@pytest.mark.parametrize("script", NAMES)
def test_missing_data_are_named_with_where_to_get_them(script, tmp_path, capsys):
    message = fails(capsys, script, tmp_path / "none", tmp_path / "results")
    assert str(tmp_path / "none") in message and SCRIPTS[script].WHERE in message
    assert not (tmp_path / "results").exists()


def add_class(base):
    for part in ("train", "val"):
        (base / part / "third").mkdir()
        picture = (base / part / "class001/image_0002.jpg").read_bytes()
        (base / part / "third/a.jpg").write_bytes(picture)


def empty_class(base):
    for path in (base / "train/class001").iterdir():
        path.unlink()


def no_image(base):
    (base / "train/class001/image_0002.jpg").write_text("no image")


def torn_image(base):
    picture = numpy.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype="u1")
    victim = base / "train/class001/image_0002.jpg"
    Image.fromarray(picture).save(victim)
    victim.write_bytes(victim.read_bytes()[:5000])


def deep_image(base, kind="u2", suffix="png"):
    picture = numpy.linspace(0, 60_000, 400).reshape(20, 20).astype(kind)
    Image.fromarray(picture).save(base / f"val/class000/deep.{suffix}")


def float_image(base):
    deep_image(base, "f4", "tiff")


def other_class(base):
    (base / "val/class001").rename(base / "val/wasps")


DAMAGES = [
    (add_class, "labels of 3 classes, not 2"),
    (empty_class, "class001"),
    (no_image, "class001/image_0002.jpg cannot be used"),
    (torn_image, "class001/image_0002.jpg cannot be used"),
    (deep_image, "deep.png cannot be used: it has more than 8 bits a channel"),
    (float_image, "deep.tiff cannot be used: it has more than 8 bits a channel (mode F)"),
    (other_class, "wasps"),
]


@pytest.mark.parametrize("damage, words", DAMAGES)
def test_damaged_folders_are_named_before_training(damage, words, tmp_path, tiny, capsys):
    WRITERS["tl_hymenoptera"](tmp_path)
    (tmp_path / "hymenoptera_data/train/.DS_Store").write_text("")
    base = tmp_path / "hymenoptera_data"
    damage(base)
    message = fails(capsys, "tl_hymenoptera", tmp_path, tmp_path / "results")
    assert words in message and str(tmp_path) in message and not list(tmp_path.rglob("*.jsonl*"))
    assert "or remove" not in message


def test_files_of_macos_beside_the_images_do_no_harm(tmp_path):
    WRITERS["tl_caltech101"](tmp_path)
    base = tmp_path / "caltech101/101_ObjectCategories"
    for place in (base, base / "class000"):
        (place / ".DS_Store").write_text("")
    assert loaded("tl_caltech101", tmp_path)[1]["train"] == SIZES["tl_caltech101"][0]


MISTAKES = [
    ("--head fc --width 3", "belong to the Spinal head"),
    ("--epochs 0", "--epochs must be"),
    ("--batch-size 1", "--batch-size must be"),
    ("--weights x", "--weights"),
    ("--image-size 3", "--image-size must be"),
    ("--lr 0", "--lr must be"),
    ("--lr nan", "--lr must be"),
    ("--seed -1", "--seed must be"),
    ("--device gpu", "--device must be auto, cpu, cuda, mps"),
    ("--recipe nothing", "--recipe"),
]


@pytest.mark.parametrize("flags, words", MISTAKES)
def test_mistakes_on_the_command_line_end_with_status_2(flags, words, tmp_path, capsys):
    assert words in fails(capsys, "tl_cifar10", tmp_path, tmp_path, *flags.split())


def test_left_over_variables_of_torchrun_are_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = fails(capsys, "tl_cifar10", tmp_path, tmp_path)
    assert "RANK" in message


def test_little_shared_memory_names_workers():
    explain = SCRIPTS["tl_cifar10"].explain
    for text in (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that",
        "unable to write to file </torch_12_3>: No space left on device (28)",
    ):
        assert "--workers" in explain(RuntimeError(text))
    assert "--workers" not in explain(OSError(28, "No space left on device", "results/x"))
    worker = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback\n  x\nValueError: y"
    )
    assert explain(ValueError(worker)) == "ValueError: y"


@pytest.mark.parametrize("flags", [["--no-download"], []])
def test_weights_that_cannot_be_had_are_one_sentence(written, tmp_path, capsys, monkeypatch, flags):
    asked = []

    def unreachable(url, *_, **__):
        asked.append(url)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    flags += ["--data-dir", str(written("tl_cifar10")), "--results-dir", str(tmp_path / "results")]
    flags += [
        "--network",
        "resnet18",
        "--head",
        "fc",
        "--workers",
        "0",
        "--quiet",
        "--device",
        "cpu",
    ]
    assert SCRIPTS["tl_cifar10"].main(flags) == 2
    message = one_error(capsys.readouterr().err)
    assert "weights of resnet18 cannot be had" in message and "--weights none" in message
    assert str(tmp_path / "torch") in message and "resnet18-" in message
    assert bool(asked) == ("--no-download" not in flags)
    assert not list((tmp_path / "results").rglob("*.jsonl*"))


def test_hymenoptera_is_fetched_and_the_set_is_unpacked_once(tmp_path, monkeypatch):
    asked = []

    def fetch(url, folder):
        asked.append(url)
        WRITERS["tl_hymenoptera"](folder)

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fetch)
    for _ in range(2):
        SCRIPTS["tl_hymenoptera"].read_parts(tmp_path, True)
    assert asked == ["https://download.pytorch.org/tutorial/hymenoptera_data.zip"]


def test_fetch_only_trains_nothing_and_a_home_folder_is_found(written, tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(written("tl_cifar10")))
    results = tmp_path / "results"
    assert status_of("tl_cifar10", "~", results, "--fetch-only") == 0 and not results.exists()


def test_results_that_cannot_be_written_are_one_sentence(written, tmp_path, tiny, capsys):
    (tmp_path / "results").write_text("")
    message = fails(capsys, "tl_cifar10", written("tl_cifar10"), tmp_path / "results")
    assert str(tmp_path / "results") in message


IMPORTS = [
    ("ImportError('libcudnn.so.9: cannot open shared object file')", 2, "libcudnn.so.9"),
    ("ModuleNotFoundError(\"No module named 'torch'\", name='torch')", 2, "No module named"),
    ("KeyboardInterrupt()", 130, ""),
]


@pytest.mark.parametrize("error, status, words", IMPORTS)
def test_a_torch_that_cannot_be_imported_is_one_sentence(error, status, words, tmp_path):
    (tmp_path / "torch.py").write_text(f"raise {error}\n")
    script = ROOT / "Transfer_Learning/tl_cifar10.py"
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == status and "Traceback" not in done.stderr
    assert words in done.stderr and len(done.stderr.splitlines()) == (status == 2)


# ---- tools/scale_images.py ----------------------------------------------------------------------
def test_pictures_are_scaled_once_and_keep_their_places(tmp_path, capsys):
    import scale_images

    old, new = tmp_path / "old", tmp_path / "new"
    sizes = {"a/large.jpg": (60, 40), "a/tall.png": (30, 90), "b/small.jpg": (12, 16)}
    for name, (width, height) in sizes.items():
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        picture = numpy.random.default_rng(0).integers(0, 256, (height, width, 3), dtype="u1")
        Image.fromarray(picture).save(old / name)
    (old / "labels.mat").write_bytes(b"labels")
    (old / "linked").symlink_to(old / "a")
    arguments = [str(old), str(new), "--side", "20"]
    assert scale_images.main(arguments) == 0
    assert "4 pictures scaled" in capsys.readouterr().out
    found = {}
    for path in [*new.rglob("*.jpg"), *new.rglob("*.png")]:
        found[path.relative_to(new).as_posix()] = Image.open(path).size
    large, tall = (30, 20), (20, 60)
    expected = {"a/large.jpg": large, "a/tall.png": tall, "b/small.jpg": (12, 16)}
    assert found == expected | {"linked/large.jpg": large, "linked/tall.png": tall}
    assert (new / "b/small.jpg").read_bytes() == (old / "b/small.jpg").read_bytes()
    assert (new / "labels.mat").read_bytes() == b"labels"
    (old / "b/broken.jpg").write_text("no picture")
    Image.fromarray(numpy.zeros((40, 40), "u2")).save(old / "b/deep.png")
    assert scale_images.main(arguments) == 2
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err and " 0 pictures scaled" in captured.out
    assert "deep.png: it has more than 8 bits a channel (mode I;16)" in captured.err
    (tmp_path / "empty").mkdir()
    for wrong in ([str(old), str(old / "new")], [str(tmp_path / "empty"), str(new)]):
        with pytest.raises(SystemExit) as end:
            scale_images.main(wrong)
        assert end.value.code == 2
