"""The scripts of Transfer_Learning/: settings, counts, what learns, data, views, runs, mistakes.

What the scripts share is tested in one of them: tests/test_sync.py holds that it is equal in all.
"""

import base64
import csv
import functools
import json
import os
import re
import shutil
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

import scale_images
from conftest import ROOT, lines_of, load_script, one_error
from conftest import run as start
from made_up_data import CHECKED, WRITERS, pixels, without_checksums

# ---- Settings, as the paper, the released scripts and the notebooks have them -------------------
WRN, VGG, RESNET = "wide_resnet101_2", "vgg19_bn", "resnet18"
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
SMALL = [["Resize", [112, 112]]]
VIEWS = {
    "houses": (256, HOUSES, [["Resize", [272, 320]], ["CenterCrop", 256]]),
    "insects": (224, INSECTS, [["Resize", 256], ["CenterCrop", 224]]),
    "digits": (112, [*DIGITS, ["RandomPerspective"]], SMALL),
    "clothes": (112, [*CLOTHES, ["RandomResizedCrop", 112, [0.95, 1.0]]], SMALL),
    "fruits": cut(140, 128, 128),
    "monkeys": cut(320, 300, [300, 300]),
    "224": turned(230, 224),
    "256": turned(272, 256),
    "448": turned(456, 448),
    "flowers": turned(464, 448),
}
SETS = {  # name, classes, views, official images in the parts, made-up ones: train, heldout, test
    "bird225": ("Bird225", 225, "224", (31_316, [5] * 225, [5] * 225), (450, 450, 450)),
    "caltech101": ("Caltech-101", 101, "224", (6_162, 820, 1_695), (430, 57, 119)),
    "cifar10": ("CIFAR-10", 10, "256", (50_000, 10_000), (50, 0, 10)),
    "cifar100": ("CIFAR-100", 100, "256", (50_000, 10_000), (100, 0, 100)),
    "cinic10": ("CINIC-10", 10, "448", ([9_000] * 10, [9_000] * 10, [9_000] * 10), (40, 40, 40)),
    "fashion_mnist": ("Fashion-MNIST", 10, "clothes", (60_000, 10_000), (27, 3, 10)),
    "fruits360": ("Fruits 360", 131, "fruits", (67_692, 22_688), (262, 0, 262)),
    "hymenoptera": ("Hymenoptera", 2, "insects", ([123, 121], [70, 83]), (18, 0, 18)),
    "intel_image": ("Intel Image", 6, "224", (14_034, 3_000), (24, 0, 24)),
    "mnist": ("MNIST", 10, "digits", (60_000, 10_000), (27, 3, 10)),
    "monkey10": ("10 Monkey Species", 10, "monkeys", (None, 272), (30, 0, 30)),
    "oxford_flowers102": ("Oxford 102 Flower", 102, "flowers", (6_552, 818, 819), (408, 0, 51)),
    "stanford_cars": ("Stanford Cars", 196, "448", (8_144, 8_041), (196, 0, 196)),
    "stl10": ("STL-10", 10, "256", (5_000, 8_000), (20, 0, 20)),
    "svhn": ("SVHN", 10, "houses", (73_257, 26_032), (20, 0, 20)),
}
SIZES = {name: row[4] for name, row in SETS.items()}
SCRIPTS = {name: load_script(f"Transfer_Learning/tl_{name}") for name in SETS}
PROVED = {"cifar10", "cifar100", "stl10", "svhn"}  # by md5 sums that torchvision compares
WITH_PART = {"bird225", "caltech101", "cinic10"}  # for choosing the epoch
STAGES = {  # factor of the rate, and end as a part of the epochs
    "one": [[1.0, 1.0]],
    "halves": [[1.0, 0.5], [0.1, 1.0]],
    "same": [[1.0, 0.5], [1.0, 1.0]],
    "quarter": [[1.0, 0.25], [0.1, 1.0]],
    "third": [[1.0, 1 / 3], [0.1, 1.0]],
    "thirds": [[1.0, 1 / 3], [0.1, 2 / 3], [0.01, 1.0]],
}
TABLE = f"""
bird225           {WRN}     published 25  24 0.001  one     0x0    4x225R
bird225           {VGG}     published 25  24 0.001  one     2x4096 4x1024DBR
bird225           {WRN}     script    25  24 0.001  one     0x0    4x1024DBR
caltech101        {WRN}     published 10  64 0.01   halves  0x0    4x101R
caltech101        {VGG}     published 10  64 0.001  one     2x4096 4x1024DBR
caltech101        {WRN}     script    20  30 0.001  one     0x0    4x1024DBR
cifar10           {WRN}     published 50  28 0.001  one     0x0    4x20R
cifar10           {VGG}     published 25  28 0.001  one     2x4096 4x1024DBR
cifar10           {WRN}     notebook  15  56 0.01   thirds  0x0    4x20R
cifar100          {WRN}     published 50  24 0.001  one     0x0    4x512DBR
cifar100          {VGG}     published 25  24 0.001  one     2x4096 4x1024DBR
cifar100          {WRN}     notebook  15  56 0.01   thirds  0x0    4x200R
cinic10           {WRN}     published 50   9 0.01   halves  0x0    4x20R
cinic10           {VGG}     published 25   9 0.001  one     2x4096 4x1024DBR
fashion_mnist     {WRN}     published 10 200 0.01   halves  0x0    4x1024LIN
fruits360         {WRN}     published 10 224 0.01   one     0x0    4x131R
fruits360         {VGG}     published 10 224 0.001  one     2x4096 4x1024DBR
hymenoptera       {RESNET}  published 25   4 0.001  one     0x0    6x5LEAKY
intel_image       {WRN}     published 20  24 0.001  one     0x0    4x20R
mnist             {VGG}     published 20 128 0.01   halves  2x4096 4x1024DBR
mnist             {RESNET}  published 20 128 0.01   halves  0x0    4x1024DBR
monkey10          alexnet   published 20  40 0.01   same    0x0    4x20R
monkey10          {WRN}     published 20  24 0.001  one     0x0    4x20R
oxford_flowers102 {WRN}     published 50   8 0.001  one     0x0    4x101R
oxford_flowers102 {VGG}     published 25   8 0.001  one     2x4096 4x1024DBR
oxford_flowers102 resnext50_32x4d published 40 64 0.01 quarter 2x204 4x101R
stanford_cars     {WRN}     published 25   9 0.001  one     0x0    4x196R
stanford_cars     {VGG}     published 25   9 0.001  one     2x4096 4x1024DBR
stanford_cars     {WRN}     script    50   9 0.001  halves  0x0    4x196R
stl10             {WRN}     published 10  24 0.001  one     0x0    4x20DBR
stl10             {VGG}     published 10  24 0.001  one     2x4096 4x1024DBR
stl10             {WRN}     notebook  20  24 0.0005 one     0x0    4x512DBR
stl10             {WRN}     custom    15  24 0.001  third   0x0    10x512R
svhn              {WRN}     published 25  28 0.001  one     0x0    4x20R
svhn              {VGG}     published 25  28 0.001  one     2x4096 4x1024DBR
"""
BY_INDEX = {"mnist": 0, "fashion_mnist": 0, "stl10": 0, "cifar100": 4}  # modulo ten: held out
PRINTED = f"""
bird225       {WRN}-spinal4x1024-script     99.56 in its header
caltech101    {WRN}-fc-script               96.11 in its header
caltech101    {WRN}-spinal4x1024-script     96.87 in its header
cifar10       {WRN}-spinal4x20-notebook     97.60 in its notebook
cifar100      {WRN}-spinal4x200-notebook    86.31 in its notebook
fashion_mnist {WRN}-spinal4x1024            94.76 in its notebook
intel_image   {WRN}-spinal4x20              93.77 in its text
mnist         {VGG}-spinal4x1024            99.75 in its notebook
monkey10      alexnet-spinal4x20            92.28 in its notebook
monkey10      {WRN}-spinal4x20              99.26 in its text
stanford_cars {WRN}-spinal4x196-script      93.35 in its header
stl10         {WRN}-spinal4x512-notebook    98.56 in its notebook
stl10         {WRN}-spinal10x512-custom     98.39 in its notebook
"""
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
MOMENTS = {  # mean and deviation that normalise the images; of the other scripts: CIFAR-100's
    "hymenoptera": IMAGENET,
    "cinic10": ([0.47889522, 0.47227842, 0.43047404], [0.24205776, 0.23828046, 0.25874835]),
    "mnist": ([0.1307] * 3, [0.3081] * 3),
    "fashion_mnist": ([0.5] * 3, [0.5] * 3),
}
CIFAR100 = ([0.507, 0.487, 0.441], [0.267, 0.256, 0.276])
VIEWED = ("image_size", "augmentation", "evaluation")
FIXED = {"weights": "imagenet1k_v1", "freeze": False, "momentum": 0.9, "precision": "fp32"}


def rows() -> list[list[str]]:
    """The table; resnet18, in no paper, has the settings of wide_resnet101_2."""
    found = [line.split() for line in TABLE.strip().splitlines()]
    copies = [[x[0], RESNET, *x[2:]] for x in found if x[1:3] == [WRN, "published"]]
    return found + copies


def head_of(shape: str) -> dict:
    """What a head such as 2x4096 or 4x20R is in a recipe."""
    layers, width, flavour = re.fullmatch(r"(\d+)x(\d+)(\w*)", shape).groups()
    head = {"head": "spinal" if flavour else "fc", "layers": int(layers), "width": int(width)}
    return head | {"fc_dropout": 0.5 if shape == "2x4096" else 0.0, "flavour": flavour}


def expected(row: list[str], shape: str, protocol: str) -> dict:
    """All settings of a run, in literals."""
    script, network, _, epochs, batch, rate, stages, *_ = row
    corrected = protocol == "corrected"
    by_index = script.endswith("mnist") or protocol in ("notebook", "custom")
    index = BY_INDEX.get(script) if by_index else None
    heldout = 10 if index is not None or (corrected and script not in WITH_PART) else 0
    of_script = {x[6] for x in rows() if x[0] == script and x[2] == "published"}
    settings = {"network": network, "classes": SETS[script][1], "limit": None, **FIXED}
    settings |= {"epochs": int(epochs), "batch_size": int(batch), "learning_rate": float(rate)}
    settings["mean"], settings["std"] = IMAGENET if corrected else MOMENTS.get(script, CIFAR100)
    for key, value in zip(VIEWED, VIEWS[SETS[script][2]], strict=True):
        settings[key] = value
    settings |= head_of(shape.replace("LIN", "R") if corrected else shape)
    return settings | {
        "stages": STAGES[stages],
        "head_ignored": network == VGG and script != "mnist" and not corrected,
        "protocol": protocol,
        "selection": "heldout" if heldout or script in WITH_PART else "best_test",
        "best_of_stage": not corrected or of_script == {"one"},
        "heldout": heldout,
        "heldout_index": index,
    }


@pytest.mark.parametrize("script", SETS)
def test_every_setting_is_the_published_one(script):
    module, (dataset, _, _, images, _) = SCRIPTS[script], SETS[script]
    assert [f"tl_{script}", dataset] == [module.SCRIPT, module.DATASET]
    parts = ["train", *["heldout"] * (script in WITH_PART), "test", "unused"]
    assert dict(zip(parts, images, strict=False)) == module.IMAGES
    mine = [row for row in rows() if row[0] == script]
    assert set(module.PROTOCOLS) == {"corrected", *(row[2] for row in mine)} - {"published"}
    assert module.NETWORKS[0] == mine[0][1] and module.HEADS == ["fc", "spinal"]
    assert set(module.NETWORKS) == {row[1] for row in mine}
    for row in mine:
        for head, shape in zip(("fc", "spinal"), row[7:], strict=True):
            for protocol in {row[2], "corrected"} if row[2] == "published" else {row[2]}:
                recipe = module.recipe_of(row[1], head, protocol)
                assert asdict(recipe) == expected(row, shape, protocol)
    assert list(asdict(recipe)) == [field.name for field in fields(SCRIPTS["cifar10"].Recipe)]


def paper_rows() -> list[dict]:
    with open(ROOT / "results/paper.csv", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["script"].startswith("tl_")]


def test_numbers_and_epochs_of_the_paper_stand_in_the_scripts():
    wanted = {script: {} for script in SETS}
    for line in PRINTED.strip().splitlines():
        script, label, number, source = line.split(maxsplit=3)
        wanted[script][label] = {source: float(number)}
    for row in paper_rows():
        script, network, head = row["script"][3:], row["network"], row["head"]
        recipe = SCRIPTS[script].recipe_of(network, head, "published")
        assert recipe.epochs == int(row["epochs"])
        assert (recipe.layers, recipe.width) == (int(row["layers"] or 0), int(row["width"] or 0))
        kind = {"accuracy_avg_pct": "average", "accuracy_best_pct": "best"}.get(row["metric"])
        if kind:
            shape = head + f"{row['layers']}x{row['width']}" * (head == "spinal")
            wanted[script].setdefault(f"{network}-{shape}", {})[kind] = float(row["value"])
    assert {script: module.PAPER for script, module in SCRIPTS.items()} == wanted
    here = {path.stem for path in (ROOT / "Transfer_Learning").glob("*.py")} - {"tl_folder"}
    assert here == {f"tl_{script}" for script in SETS}, "tl_folder has tests of its own"


# ---- Counts -------------------------------------------------------------------------------------
TRUNKS = {  # parameters, features
    WRN: (124_837_696, 2_048),
    VGG: (20_035_392, 25_088),
    RESNET: (11_176_512, 512),
    "resnext50_32x4d": (22_979_904, 2_048),
    "alexnet": (2_469_696, 9_216),
}
VGG_WHOLE = 143_678_248
HEADS = [  # network, classes, head, its parameters and multiplications
    (WRN, 225, "4x1024DBR", 8_274_145, 8_261_632),
    (WRN, 100, "4x512DBR", 3_094_628, 3_088_384),
    (WRN, 10, "4x20R", 84_010, 83_920),
    (WRN, 101, "0x0", 206_949, 206_848),
    (WRN, 101, "4x101R", 485_608, None),
    (WRN, 131, "4x131R", 657_358, 656_703),
    (WRN, 10, "4x512DBR", 2_910_218, 2_904_064),
    (WRN, 10, "10x512R", 7_658_506, None),
    (WRN, 196, "4x196R", 1_072_708, 1_071_728),
    (WRN, 10, "4x1024LIN", 7_385_098, None),
    ("resnext50_32x4d", 102, "2x204", 480_726, 480_216),
    ("alexnet", 10, "4x20R", 370_730, None),
    (VGG, 10, "4x20DBR", 1_005_770, None),
    (VGG, 10, "4x1024DBR", 54_579_210, 54_566_912),
    (VGG, 10, "2x4096", 119_586_826, 119_578_624),
    (RESNET, 2, "6x5LEAKY", 7_897, 7_865),
]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def head_on_meta(network: str, classes: int, shape: str) -> nn.Module:
    """A head without numbers."""
    module = SCRIPTS["cifar10"]
    recipe = replace(module.RECIPES[WRN, "fc"], classes=classes, **head_of(shape))
    with torch.device("meta"):
        return module.build_head(recipe, TRUNKS[network][1])


def on_meta(recipe: object) -> nn.Module:
    """A whole network without numbers."""
    with torch.device("meta"):
        return SCRIPTS["cifar10"].network_of(replace(recipe, weights="none"), download=False)


def test_counts_of_heads_are_the_printed_ones():
    for network, classes, shape, parameters, multiplied in HEADS:
        head = head_on_meta(network, classes, shape)
        weights = sum(x.weight.numel() for x in head.modules() if isinstance(x, nn.Linear))
        assert count(head) == parameters and multiplied in (None, weights), shape


@pytest.mark.parametrize("network", TRUNKS)
def test_a_head_stands_on_the_whole_trunk(network):
    recipe = replace(SCRIPTS["cifar10"].RECIPES[WRN, "spinal"], network=network)
    head = head_on_meta(network, 10, "4x20R")
    built = on_meta(recipe)
    assert count(built) == TRUNKS[network][0] + count(head)
    shapes = [x.weight.shape for x in SCRIPTS["cifar10"].linear_layers(built)]
    assert shapes == [x.weight.shape for x in head.modules() if isinstance(x, nn.Linear)]
    if network == VGG:  # with a dead head beside it
        built = on_meta(replace(recipe, head_ignored=True))
        assert count(built) == VGG_WHOLE + count(head)
        shapes = [tuple(x.weight.shape) for x in SCRIPTS["cifar10"].linear_layers(built)]
        assert shapes == [(4_096, 25_088), (4_096, 4_096), (1_000, 4_096)]


FITS = {  # printed counts that do not fit the printed label, and what they fit
    ("tl_cifar100", WRN): "4x1024R",
    ("tl_caltech101", WRN): "4x1024R",
    ("tl_stanford_cars", WRN): "4x1024R",
    ("tl_stanford_cars", VGG): "4x196DBR",
}


def test_the_40_printed_counts_fit_the_published_networks():
    published = {tuple(row[:2]): row[7:] for row in rows() if row[2] == "published"}
    printed = [row for row in paper_rows() if row["metric"] == "parameters_printed"]
    assert len(printed) == 40
    for row in printed:
        script, network, head = row["script"], row["network"], row["head"]
        shape = published[script[3:], network][head == "spinal"]
        if head == "spinal":
            shape = FITS.get((script, network), shape)
        counted = count(head_on_meta(network, SETS[script[3:]][1], shape))
        if (script, network, head) == ("tl_caltech101", WRN, "fc"):
            counted += 2_049  # the printed number fits one class more, the background
        replaced = (counted + TRUNKS[network][0]) / 1e6
        whole = (counted + VGG_WHOLE) / 1e6 if network == VGG else replaced
        assert whole == pytest.approx(float(row["value"][:-1]), abs=0.00501), row
        # With VGG's head in its place the printed count does not come out.
        assert network != VGG or abs(replaced - float(row["value"][:-1])) > 40


# ---- What learns --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "head, protocol", [("fc", "published"), ("spinal", "published"), ("spinal", "corrected")]
)
def test_a_head_that_is_never_called_gets_no_gradient(head, protocol):
    """Q1, on tensors without numbers: a parameter outside of the graph has no gradient."""
    network = on_meta(SCRIPTS["cifar10"].recipe_of(VGG, head, protocol))
    outputs = network(torch.zeros(2, 3, 64, 64, device="meta"))
    outputs.sum().backward()
    names = {name for name, _ in network.named_parameters()}
    dead = {name for name in names if name.startswith("fc.")}
    assert bool(dead) == (protocol == "published")
    assert {name for name, x in network.named_parameters() if not x.requires_grad} == dead
    assert {name for name, x in network.named_parameters() if x.grad is not None} == names - dead
    assert outputs.shape == (2, 1000 if dead else 10)


def head_of_script(script: str, protocol: str = "published") -> nn.Module:
    """The Spinal head of resnet18, which has 512 features."""
    module = SCRIPTS[script]
    return module.build_head(module.recipe_of(RESNET, "spinal", protocol), 512)


def test_the_leaky_head_uses_layers_three_and_four_again():
    head = head_of_script("hymenoptera")
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
    head = head_of_script("fashion_mnist", protocol)[0].double()
    x, y = torch.randn(2, 4, 512, dtype=torch.float64)
    assert torch.allclose(head((x + y) / 2), (head(x) + head(y)) / 2, atol=1e-9) == affine


def test_dbr_and_fc_heads_are_as_specified():
    head, kinds = head_of_script("stl10"), [nn.Dropout, nn.Linear, nn.BatchNorm1d, nn.ReLU]
    for layer in head[0].hidden:
        assert [type(part) for part in layer] == kinds and layer[0].p == 0.5
    assert isinstance(head[1], nn.Dropout) and head[1].p == 0.5 and isinstance(head[2], nn.Linear)
    fc, kinds = head_on_meta(VGG, 10, "2x4096"), [nn.Linear, nn.ReLU, nn.Dropout] * 2
    assert all(map(isinstance, fc, [*kinds, nn.Linear])) and len(fc) == 7
    assert fc[2].p == fc[5].p == 0.5


class Tiny(nn.Module):
    """The attributes of VGG or ResNet, without batch norm: images of a batch feel no others."""

    def __init__(self, network: str, *_, **__):
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


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(torchvision.models, "get_model", Tiny)


def test_logits_are_fp32_under_bf16(tiny):
    """Also those of ImageNet's classifier, which the published VGG keeps (Q1)."""
    for network in (WRN, VGG):
        built = SCRIPTS["cifar10"].build_network(network, "spinal", pretrained=False).eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert built(torch.zeros(1, 3, 64, 64)).dtype == torch.float32


# ---- Data ---------------------------------------------------------------------------------------
PLACES = {  # folders of the parts, below the data folder, where a script reads folders
    "bird225": "bird225/train; bird225/valid bird225/val; bird225/test",
    "cinic10": "cinic10/train; cinic10/valid; cinic10/test",
    "fruits360": "fruits-360/Training fruits/fruits-360/Training; "
    "fruits-360/Test fruits/fruits-360/Test",
    "hymenoptera": "hymenoptera_data/train; hymenoptera_data/val",
    "intel_image": "intel-image/seg_train/seg_train intel-image/seg_train; "
    "intel-image/seg_test/seg_test intel-image/seg_test",
    "monkey10": "10-monkey-species/training/training 10-monkey-species/training; "
    "10-monkey-species/validation/validation 10-monkey-species/validation",
}


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """script -> folder with its made-up set."""

    @functools.cache
    def write(script):
        folder = tmp_path_factory.mktemp(script)
        WRITERS[f"tl_{script}"](folder)
        return folder

    return write


@pytest.fixture(autouse=True)
def other_content_is_read(monkeypatch):
    for name in CHECKED:
        source = getattr(torchvision.datasets, name)
        monkeypatch.setattr(torchvision.datasets, name, without_checksums(source))


def loaded(script, folder, protocol="published", **changes):
    module = SCRIPTS[script]
    recipe = module.recipe_of(module.NETWORKS[0], "fc", protocol, **changes)
    return module.load_data(folder, recipe, download=False, quiet=True)


@pytest.mark.parametrize("script", SETS)
def test_loader_reads_the_format_on_disk(script, written):
    data, facts = loaded(script, written(script))
    assert tuple(facts[name] for name in ("train", "heldout", "test")) == SIZES[script]
    assert ("heldout" in data) == (SIZES[script][1] > 0)
    for part in data.values():
        for image, label in zip(part.images, part.labels, strict=True):
            if not isinstance(image, str):
                assert int(numpy.ravel(image[0, 0])[0]) == label
            elif image.endswith(".png"):
                assert Image.open(image).getpixel((0, 0))[0] == label
    assert set(data["train"].labels.tolist()) == set(range(SETS[script][1]))
    assert not facts["official"] and not facts["verified"] and len(facts["sha256"]) == 16
    assert SCRIPTS[script].read_parts(written(script), False)[1] == (script in PROVED)
    places = getattr(SCRIPTS[script], "PARTS", {}).values()
    assert "; ".join(map(" ".join, places)) == PLACES.get(script, "")


@pytest.mark.parametrize("views", ["256", "houses", "insects", "digits", "clothes", "fruits"])
def test_views_are_the_published_transforms(views):
    """Those of torchvision on the same draws, and a pure function of seed, epoch and image."""
    module = SCRIPTS["cifar10"]
    grey = views in ("digits", "clothes")
    source = (28, 28) if grey else (90, 70, 3) if views == "insects" else (32, 32, 3)
    images = numpy.stack([pixels(k, k, source) for k in range(2)])
    size, *both = VIEWS[views]
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


@pytest.mark.parametrize("script", ["cifar10", "hymenoptera"])
def test_held_out_images_are_drawn_and_not_trained_on(script, written):
    data, facts = loaded(script, written(script), "corrected")
    contents = []
    for name in ("train", "heldout"):
        contents.append({x if isinstance(x, str) else x.tobytes() for x in data[name].images})
    total = SIZES[script][0]
    assert (facts["train"], facts["heldout"]) == (total - max(1, total // 10), max(1, total // 10))
    assert not contents[0] & contents[1] and facts["test"] == SIZES[script][2]
    again, facts_again = loaded(script, written(script), "corrected")
    assert (again["heldout"].labels == data["heldout"].labels).all() and facts_again == facts


@pytest.mark.parametrize(
    "script, protocol, rest", [("mnist", "published", 0), ("cifar100", "notebook", 4)]
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
    seen = [loaded("hymenoptera", tmp_path)[1]["sha256"]]
    for place in (victim.parent, victim.parent.parent):  # macOS leaves such files
        (place / ".DS_Store").write_text("")
    assert loaded("hymenoptera", tmp_path)[1]["sha256"] == seen[0]
    victim.write_bytes(victim.read_bytes() + b"x")
    seen.append(loaded("hymenoptera", tmp_path)[1]["sha256"])
    victim.rename(victim.with_name("b.jpg"))
    seen.append(loaded("hymenoptera", tmp_path)[1]["sha256"])
    assert len(set(seen)) == 3


def test_what_counts_as_official_and_verified(written, monkeypatch):
    folders, cifar, mnist = [SCRIPTS[x] for x in ("hymenoptera", "cifar10", "mnist")]
    monkeypatch.setattr(folders, "IMAGES", {"train": [9, 9], "test": 18})
    facts = loaded("hymenoptera", written("hymenoptera"))[1]
    assert facts["official"] and not facts["verified"], "nothing proves the content of folders"
    monkeypatch.setitem(folders.FINGERPRINTS, facts["sha256"], "Hymenoptera")
    assert loaded("hymenoptera", written("hymenoptera"))[1]["verified"]
    monkeypatch.setattr(folders, "IMAGES", {"train": [8, 10], "test": 18})
    assert not loaded("hymenoptera", written("hymenoptera"))[1]["official"]
    monkeypatch.setattr(cifar, "IMAGES", {"train": 50, "test": 10})
    facts = loaded("cifar10", written("cifar10"))[1]
    assert facts["official"] and facts["verified"], "torchvision has compared md5 sums"
    facts = loaded("mnist", written("mnist"))[1]
    monkeypatch.setattr(mnist, "IMAGES", {"train": 30, "test": 10})
    with pytest.raises(ValueError, match="not the official ones"):
        loaded("mnist", written("mnist"))
    monkeypatch.setitem(mnist.FINGERPRINTS, facts["sha256"], "Fashion-MNIST")
    with pytest.raises(ValueError, match="these are the images and labels of Fashion-MNIST"):
        loaded("mnist", written("mnist"))


# ---- Runs ---------------------------------------------------------------------------------------
SHORT = "--weights none --image-size 32 --limit 12 --epochs 2 --batch-size 6"
SHORT += " --no-download --workers 0 --device cpu --quiet"


def status_of(script, folder, results, *extra):
    """Exit status of a short run in this process."""
    return start(f"Transfer_Learning/tl_{script}", folder, results, *SHORT.split(), *extra)


def run(script, folder, results, *extra):
    """The lines of the newest log after a short run, without times."""
    assert status_of(script, folder, results, *extra) == 0
    logs = (results / f"logs/tl_{script}").glob("*.jsonl")
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


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("script", ["cifar10", "cinic10", "hymenoptera", "fashion_mnist"])
def test_short_run_gives_a_log_as_the_schema_says(
    script, protocol, written, tmp_path, tiny, capsys
):
    flags = ("--protocol", protocol, "--head", "spinal", "--width", "8")
    start, *epochs, end = run(script, written(script), tmp_path, *flags)
    own = SIZES[script][1] > 0
    watched = "heldout" if own or protocol == "corrected" else "test"
    values = [line[f"{watched}_accuracy_pct"] for line in epochs]
    assert start["schema"] == 3 and "-data" in start["run"]
    assert start["departures"] == ["batch_size", "epochs", "image_size", "limit", "weights"]
    assert start["settings"]["dataset"] == SETS[script][0]
    if script in ("cifar10", "hymenoptera") or protocol == "corrected":  # else: of the last stage
        assert end[f"best_{watched}_accuracy_pct"] == max(values)
        assert end["selected_epoch"] == end["best_epoch"] == 1 + values.index(max(values))
    if watched == "test":
        assert end["selected_test_accuracy_pct"] == max(values)
        assert end["last_test_accuracy_pct"] == values[-1]
    bits = numpy.unpackbits(numpy.frombuffer(base64.b64decode(end["test_correct"]), "u1"))
    found = 100 * bits.sum() / start["data"]["test"]
    assert found == pytest.approx(end["selected_test_accuracy_pct"], abs=1e-3)
    assert all(path.suffix == ".jsonl" for path in (tmp_path / f"logs/tl_{script}").iterdir())
    shown = capsys.readouterr().out
    assert "paper" not in shown and shown.count("not the official images") == 1


def constant_sweep(self, model, part, batches, title):
    """In place of training and tests: one half is right."""
    return 1.0, torch.arange(len(part)).remainder(2).float()


def save_nothing(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


def test_result_stands_beside_the_papers(written, tmp_path, tiny, monkeypatch, capsys):
    module = SCRIPTS["cifar10"]
    monkeypatch.setattr(module, "IMAGES", {"train": 50, "test": 10})
    monkeypatch.setattr(module, "load_trunk", Tiny)
    monkeypatch.setattr(module.Trainer, "sweep", constant_sweep)
    monkeypatch.setattr(module, "save", save_nothing)
    where = ["--data-dir", str(written("cifar10")), "--results-dir", str(tmp_path)]
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
    where = ["--data-dir", str(written("cifar10")), "--results-dir", str(tmp_path)]
    assert SCRIPTS["cifar10"].main([*where, *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"CIFAR-10, {WRN}, published: fc and spinal4x20, 1 run(s) of each,"
    assert lines[1].startswith("2 epochs of 12 images of 32 pixels on cpu (")
    assert sum(" epoch " in line and len(line) <= 80 for line in lines) == 4


def test_a_finished_run_is_not_run_again(written, tmp_path, tiny, capsys):
    asked = ("cifar10", written("cifar10"), tmp_path, "--head", "fc")
    first = run(*asked)
    capsys.readouterr()
    assert run(*asked) == first and "already finished " in capsys.readouterr().out
    message = fails(capsys, *asked, "--save-weights")
    assert "its weights were not saved" in message and "--overwrite" in message
    (path,) = (tmp_path / "logs/tl_cifar10").iterdir()
    text = path.read_text()
    path.write_text(text.replace(first[0]["provenance"]["script_sha256"], "0" * 16))
    run(*asked)
    assert "by another version of this script" in capsys.readouterr().out
    path.write_text(text.replace('"momentum": 0.9', '"momentum": 0.8'))
    message = fails(capsys, *asked)
    assert "other values of momentum" in message and "--overwrite" in message
    for damaged in ("", text[: len(text) // 2], text.splitlines()[0]):
        path.write_text(damaged)
        message = fails(capsys, *asked)
        assert "it is damaged; --overwrite starts anew" in message and path.name[:-8] in message
    run(*asked, "--overwrite", "--save-weights")
    assert ". Weights: " in capsys.readouterr().out and list(tmp_path.rglob("weights/*/*.pt"))


def test_published_vgg_rows_are_one_network(written, tmp_path, tiny, monkeypatch, capsys):
    """Q1: FC and Spinal head give the same numbers to the last digit; corrected they differ.

    So both heads see the same views in the same order, and start from the same trunk.
    """
    change(monkeypatch, "cifar10", VGG, "fc", width=32)
    change(monkeypatch, "cifar10", VGG, "spinal", width=8)
    for protocol in ("published", "corrected"):
        curves = []
        for head in ("fc", "spinal"):
            flags = ("--network", VGG, "--head", head, "--lr", "0.05", "--protocol", protocol)
            _, *epochs, _ = run("cifar10", written("cifar10"), tmp_path, *flags)
            assert ("never called" in capsys.readouterr().out) == (protocol == "published")
            curves.append([line["train_loss"] for line in epochs])
        assert (curves[0] == curves[1]) == (protocol == "published")


def test_number_of_workers_changes_nothing(written, tmp_path, tiny):
    """With dropout, whose generator the loaders must not touch."""
    logs = []
    for workers in ("0", "2"):
        flags = ("--head", "spinal", "--epochs", "1", "--workers", workers)
        logs.append(run("stl10", written("stl10"), tmp_path / workers, *flags))
    assert logs[0] == logs[1]


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_a_run_interrupted_after_each_epoch_ends_in_the_same_log(
    written, tmp_path, tiny, monkeypatch, protocol, capsys
):
    """tl_fashion_mnist has two stages: of the four epochs the third begins the second one."""
    module, folder = SCRIPTS["fashion_mnist"], written("fashion_mnist")
    change(monkeypatch, "fashion_mnist", WRN, "spinal", width=8, flavour="DBR")
    flags = ("--epochs", "4", "--head", "spinal", "--protocol", protocol, "--limit", "24")
    whole = run("fashion_mnist", folder, tmp_path / "whole", *flags)
    asked, save = ("fashion_mnist", folder, tmp_path / "parts", *flags), module.save

    def interrupted(path, tensors):
        save(path, tensors)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save", interrupted)
    for epoch in range(4):
        assert status_of(*asked) == 130
        error = capsys.readouterr().err
        assert "the same command" in error
        assert (f"goes on after epoch {epoch}" in error) == (epoch > 0)
        torch.manual_seed(12345)
    (checkpoint,) = (tmp_path / "parts").rglob("*.pt")
    kept = checkpoint.read_bytes()
    torch.save({"state": {"lines": [whole[0] | {"data": {}}]}}, checkpoint)
    assert "other values of sha256" in fails(capsys, *asked)
    checkpoint.write_bytes(kept[:1000])
    assert "it is damaged" in fails(capsys, *asked)
    checkpoint.write_bytes(kept)
    assert run(*asked) == whole and not checkpoint.exists()


def test_freeze_trains_the_head_alone(written, tmp_path, tiny):
    flags = ("--freeze", "--head", "fc", "--save-weights", "--lr", "1")
    start = run("cifar10", written("cifar10"), tmp_path, *flags)[0]
    weights = torch.load(tmp_path / "weights/tl_cifar10" / f"{start['run']}.pt")
    assert "freeze" in start["departures"] and "-freeze-" in start["run"]
    torch.manual_seed(SCRIPTS["cifar10"].seed_of(0, "weights"))
    fresh = SCRIPTS["cifar10"].build_network(WRN, "fc", pretrained=False).state_dict()
    for key, x in weights.items():
        assert torch.equal(x, fresh[key]) == key.startswith("features")


def test_single_last_image_is_left_out(written, tmp_path, tiny, monkeypatch):
    """Q14: of 16 images batches of three leave one over; batch norm cannot train on it."""
    change(monkeypatch, "cifar10", WRN, "spinal", width=8, flavour="DBR")
    flags = ("--head", "spinal", "--limit", "16", "--batch-size", "3")
    lines = run("cifar10", written("cifar10"), tmp_path, *flags)
    assert lines[-1]["outcome"] == "finished" and lines[0]["data"]["train"] == 16


# ---- Stages -------------------------------------------------------------------------------------
TRACED = {  # how often the rate of each epoch has been divided by ten
    "one": [0] * 7 + [1] * 7 + [2] * 7 + [3] * 4,
    "halves": [0] * 7 + [1] * 5 + [1] * 7 + [2] * 6,
    "same": [0] * 7 + [1] * 5 + [0] * 7 + [1] * 6,
    "quarter": [0] * 6 + [1] * 7 + [2] * 7 + [3] * 5,
    "third": [0] * 7 + [1] + [1] * 7 + [2] * 7 + [3] * 3,
    "thirds": [0] * 7 + [1] + [1] * 7 + [2] * 2 + [2] * 7 + [3],
}
BEGINS = {"one": [1], "halves": [1, 13], "same": [1, 13], "quarter": [1, 7]}
BEGINS |= {"third": [1, 9], "thirds": [1, 9, 18]}


@pytest.mark.parametrize("stages", STAGES)
def test_rates_of_25_epochs_are_those_traced_by_hand(stages):
    """StepLR divides by ten every seven epochs, anew in each stage."""
    module = SCRIPTS["cifar10"]
    row = module.RECIPES[WRN, "fc"]
    recipe = replace(row, epochs=25, learning_rate=0.01, stages=STAGES[stages])
    found = [module.rate_of(recipe, epoch) for epoch in range(1, 26)]
    assert [rate for rate, _ in found] == pytest.approx([0.01 * 0.1**k for k in TRACED[stages]])
    assert [epoch for epoch, (_, new) in enumerate(found, 1) if new] == BEGINS[stages]


CURVE = [30, 60, 50, 40, 55, 55]  # two stages of three epochs


@pytest.mark.parametrize("protocol, selected", [("published", 5), ("corrected", 2)])
def test_stages_begin_with_the_best_weights_and_published_forget_its_accuracy(
    written, tmp_path, tiny, monkeypatch, protocol, selected
):
    """Q8. The first bias counts the epochs that led to it: each epoch adds one."""
    module, before, momentum = SCRIPTS["fashion_mnist"], [], []

    def epoch(self, part, order, rate, title):
        with torch.no_grad():
            bias = self.network.fc[-1].bias
            before.append(bias[0].item())
            assert part.draws == (0, "view", len(before)), "other views in each epoch"
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
    *_, end = run("fashion_mnist", written("fashion_mnist"), tmp_path, *flags)
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
sys.path[:0] = {paths!r}
import torchvision, test_transfer, made_up_data
made_up_data.accept_any_content()
torchvision.models.get_model = test_transfer.Tiny
sys.exit(test_transfer.SCRIPTS["cifar10"].main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(written, tmp_path, tiny):
    """Batches of 7 are cut into 4 + 3; weights, losses and accuracies agree to rounding."""
    folder = written("cifar10")
    more = ["--head=spinal", "--batch-size=7", "--limit=48", "--lr=0.05", "--save-weights"]
    one = run("cifar10", folder, tmp_path / "one", *more)
    helper = tmp_path / "helper.py"
    helper.write_text(HELPER.format(paths=[str(ROOT / "tests"), str(ROOT / "tools")]))
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
def test_missing_data_are_named_with_where_to_get_them(tmp_path, capsys):
    for script, module in SCRIPTS.items():
        message = fails(capsys, script, tmp_path / "none", tmp_path / "results")
        assert str(tmp_path / "none") in message and module.WHERE in message, script
        assert not (tmp_path / "results").exists()


DAMAGES = {
    "third class": "labels of 3 classes, not 2",
    "empty class": "class001",
    "no image": "class001/image_0002.jpg cannot be used",
    "torn image": "class001/image_0002.jpg cannot be used",
    "u2": "deep.tiff cannot be used: it has more than 8 bits a channel",
    "f4": "deep.tiff cannot be used: it has more than 8 bits a channel (mode F)",
    "other class": "wasps",
}


def damage(kind, base):
    victim = base / "train/class001/image_0002.jpg"
    if kind == "third class":
        for part in ("train", "val"):
            shutil.copytree(base / part / "class001", base / part / "third")
    elif kind == "empty class":
        shutil.rmtree(victim.parent)
        victim.parent.mkdir()
    elif kind == "no image":
        victim.write_text("no image")
    elif kind == "torn image":
        Image.fromarray(pixels(0, 0, (200, 200, 3))).save(victim)
        victim.write_bytes(victim.read_bytes()[:5000])
    elif kind == "other class":
        (base / "val/class001").rename(base / "val/wasps")
    else:
        picture = numpy.linspace(0, 60_000, 400).reshape(20, 20).astype(kind)
        Image.fromarray(picture).save(base / "val/class000/deep.tiff")


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_folders_are_named_before_training(kind, tmp_path, tiny, capsys):
    WRITERS["tl_hymenoptera"](tmp_path)
    damage(kind, tmp_path / "hymenoptera_data")
    message = fails(capsys, "hymenoptera", tmp_path, tmp_path / "results")
    assert DAMAGES[kind] in message and str(tmp_path) in message
    assert not list(tmp_path.rglob("*.jsonl*"))


MISTAKES = {
    "--head fc --width 3": "belong to the Spinal head",
    "--epochs 0": "--epochs must be",
    "--batch-size 1": "--batch-size must be",
    "--weights x": "--weights",
    "--image-size 3": "--image-size must be",
    "--lr 0": "--lr must be",
    "--lr nan": "--lr must be",
    "--seed -1": "--seed must be",
    "--device gpu": "--device must be auto, cpu, cuda, mps",
    "--recipe nothing": "--recipe",
}


def test_mistakes_on_the_command_line_end_with_status_2(tmp_path, capsys, monkeypatch):
    for flags, words in MISTAKES.items():
        assert words in fails(capsys, "cifar10", tmp_path, tmp_path, *flags.split())
    monkeypatch.setenv("WORLD_SIZE", "2")  # left over from torchrun
    assert "RANK" in fails(capsys, "cifar10", tmp_path, tmp_path)


def test_errors_of_workers_are_explained():
    explain = SCRIPTS["cifar10"].explain
    for text in (
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that",
        "unable to write to file </torch_12_3>: No space left on device (28)",
    ):
        assert "--workers" in explain(RuntimeError(text))
    assert "--workers" not in explain(OSError(28, "No space left on device", "results/x"))
    error = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback\n  x\nValueError: y"
    )
    assert explain(ValueError(error)) == "ValueError: y"


WEIGHTS = {  # those with which the paper began: torchvision has later ones
    "--no-download": "wide_resnet101_2-32ee1156.pth",
    "--network=resnet18": "resnet18-f37072fd.pth",
}


@pytest.mark.parametrize("flag", WEIGHTS)
def test_weights_that_cannot_be_had_are_one_sentence(written, tmp_path, capsys, monkeypatch, flag):
    asked = []

    def unreachable(url, *_, **__):
        asked.append(url)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    flags = [flag, "--head=fc", "--quiet", "--device=cpu", f"--results-dir={tmp_path / 'out'}"]
    assert SCRIPTS["cifar10"].main([*flags, f"--data-dir={written('cifar10')}"]) == 2
    message = one_error(capsys.readouterr().err)
    assert "cannot be had" in message and "--weights none" in message
    assert str(tmp_path / "torch") in message and WEIGHTS[flag] in message
    assert bool(asked) == (flag != "--no-download") and not (tmp_path / "out").exists()


def test_hymenoptera_is_fetched_and_the_set_is_unpacked_once(tmp_path, monkeypatch):
    asked = []

    def fetch(url, folder):
        asked.append(url)
        WRITERS["tl_hymenoptera"](folder)

    monkeypatch.setattr(torchvision.datasets.utils, "download_and_extract_archive", fetch)
    for _ in range(2):
        SCRIPTS["hymenoptera"].read_parts(tmp_path, True)
    assert asked == ["https://download.pytorch.org/tutorial/hymenoptera_data.zip"]


def test_fetch_only_trains_nothing_and_files_in_the_way_are_named(
    written, tmp_path, tiny, monkeypatch, capsys
):
    monkeypatch.setenv("HOME", str(written("cifar10")))
    results = tmp_path / "results"
    assert status_of("cifar10", "~", results, "--fetch-only") == 0 and not results.exists()
    results.write_text("")
    assert str(results) in fails(capsys, "cifar10", "~", results)


IMPORTS = {
    "ImportError('libcudnn.so.9: cannot open shared object file')": (2, "libcudnn.so.9"),
    "ModuleNotFoundError(\"No module named 'torch'\", name='torch')": (2, "No module named"),
    "KeyboardInterrupt()": (130, ""),
}


@pytest.mark.parametrize("error", IMPORTS)
def test_a_torch_that_cannot_be_imported_is_one_sentence(error, tmp_path):
    (tmp_path / "torch.py").write_text(f"raise {error}\n")
    command = [sys.executable, ROOT / "Transfer_Learning/tl_cifar10.py"]
    more = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=more)
    status, words = IMPORTS[error]
    assert done.returncode == status and "Traceback" not in done.stderr
    assert words in done.stderr and len(done.stderr.splitlines()) == (status == 2)


# ---- tools/scale_images.py ----------------------------------------------------------------------
def test_pictures_are_scaled_once_and_keep_their_places(tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    sizes = {"a/large.jpg": (60, 40), "a/tall.png": (30, 90), "b/small.jpg": (12, 16)}
    for name, (width, height) in sizes.items():
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(0, 0, (height, width, 3))).save(old / name)
    (old / "labels.mat").write_bytes(b"labels")
    (old / "linked").symlink_to(old / "a")
    arguments = [str(old), str(new), "--side", "20"]
    assert scale_images.main(arguments) == 0
    assert "4 pictures scaled" in capsys.readouterr().out
    sizes |= {"a/large.jpg": (30, 20), "a/tall.png": (20, 60)}
    sizes |= {"linked/large.jpg": (30, 20), "linked/tall.png": (20, 60)}
    found = {x.relative_to(new).as_posix(): x for x in new.rglob("*.*") if x.suffix != ".mat"}
    assert {name: Image.open(path).size for name, path in found.items()} == sizes
    for name in ("b/small.jpg", "labels.mat"):
        assert (new / name).read_bytes() == (old / name).read_bytes()
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
