"""What decides the numbers of the scripts of MNIST/ and EMNIST/, against literals written by hand.

They come from a description of the released scripts and from the paper's Table II. A constant
that is changed in a script fails one of its tests; test_every_changed_constant_is_found proves it.
"""

import ast
import copy
import hashlib
from dataclasses import MISSING, asdict, fields

import pytest
import torch
from torch import nn

from conftest import ARCH2, FAMILY, ROOT, SCRIPTS, load_script
from made_up_data import pictures, write_data

MNIST_NORM = {"mean": [0.1307], "std": [0.3081]}
HALF_NORM = {"mean": [0.5], "std": [0.5]}
TURNED = ["perspective", "rotation10"]
CLOTHES = ["rotation10", "crop95"]
DEFAULTS = {"network": "cnn", "head": "fc", "layers": 1, "width": 50, "fc_dropout": 0.5}
DEFAULTS |= {"protocol": "published", "epochs": 8, "batch_size": 64, "optimizer": "SGD"}
DEFAULTS |= {"momentum": 0.5, "learning_rate": 0.01, "rate_rule": "constant", "selection": "last"}
DEFAULTS |= {"heldout": 0, "precision": "fp32", "limit": None, "classes": 10, "first_label": 0}
VGG5 = {"network": "vgg5", "width": 512, "batch_size": 100, "optimizer": "Adam"}
VGG5 |= {"learning_rate": 0.005, "rate_rule": "lr U^3 if not improved", "selection": "best_test"}
ROWS = {  # of Table II: changes of DEFAULTS
    ("cnn", "fc"): {},
    ("cnn", "spinal"): {"head": "spinal", "layers": 6, "width": 8, "fc_dropout": 0.0},
    ("vgg5", "fc"): VGG5,
    ("vgg5", "spinal"): VGG5 | {"head": "spinal", "layers": 4, "width": 128},
}
CORRECTED = {"protocol": "corrected", "mean": [], "std": [], "heldout": 12, "selection": "heldout"}
FILES = {  # data set: name, first file, fingerprint, labels, images
    "mnist": ("MNIST", "MNIST/raw/train-images-idx3-ubyte"),
    "fashion_mnist": ("Fashion-MNIST", "FashionMNIST/raw/train-images-idx3-ubyte"),
    "kmnist": ("Kuzushiji-MNIST", "KMNIST/raw/train-images-idx3-ubyte"),
    "qmnist": ("QMNIST", "QMNIST/raw/qmnist-train-images-idx3-ubyte"),
    "optdigits": ("optical digits", "digits.csv.gz"),
    "emnist_digits": ("EMNIST (Digits)", "EMNIST/raw/emnist-digits-train-images-idx3-ubyte"),
    "emnist_letters": ("EMNIST (Letters)", "EMNIST/raw/emnist-letters-train-images-idx3-ubyte"),
    "emnist_balanced": ("EMNIST (Balanced)", "EMNIST/raw/emnist-balanced-train-images-idx3-ubyte"),
}
DATA = {  # fingerprint, labels, training and test images
    "mnist": ("06b0d1f124c4e5fa", range(10), [60_000, 10_000]),
    "fashion_mnist": ("ca3ab2a37f845e1b", range(10), [60_000, 10_000]),
    "kmnist": (None, range(10), [60_000, 10_000]),
    "qmnist": (None, range(10), [60_000, 60_000]),
    "optdigits": (None, range(10), [1_437, 360]),
    "emnist_digits": (None, range(10), [240_000, 40_000]),
    "emnist_letters": (None, range(1, 27), [124_800, 20_800]),
    "emnist_balanced": (None, range(47), [112_800, 18_800]),
}
SETTINGS = {  # vgg5: epochs, augmentation, normalisation; outputs published and corrected
    "mnist": (100, TURNED, MNIST_NORM, 10, 10),
    "fashion_mnist": (100, CLOTHES, HALF_NORM, 10, 10),
    "kmnist": (200, TURNED, MNIST_NORM, 10, 10),
    "qmnist": (100, TURNED, MNIST_NORM, 10, 10),
    "optdigits": (20, ["rotation10"], MNIST_NORM, 10, 10),
    "emnist_digits": (50, TURNED, MNIST_NORM, 10, 10),
    "emnist_letters": (200, TURNED, MNIST_NORM, 62, 26),
    "emnist_balanced": (200, TURNED, MNIST_NORM, 62, 47),
}
NAMES = ["cnn-fc", "cnn-spinal6x8", "cnn-spinal6x10", "vgg5-fc", "vgg5-spinal4x128"]
PAPER = {  # average and best of ten runs, in the order of NAMES
    "mnist": "97.98 98.17  98.32 98.44  98.37 98.48  99.69 99.72  99.69 99.72",
    "fashion_mnist": "83.59 84.10  85.31 85.98  85.71 86.61  94.02 94.63  94.19 94.68",
    "kmnist": "83.24 84.48  85.98 87.94  86.48 88.25  98.76 98.94  99.05 99.15",
    "qmnist": "97.66 97.82  97.81 97.97  98.00 98.07  99.63 99.66  99.64 99.68",
    "optdigits": "",
    "emnist_digits": "98.80 98.89  99.03 99.12  99.07 99.16  99.75 99.81  99.75 99.82",
    "emnist_letters": "87.29 87.57  89.88 90.07  90.02 90.23  95.71 95.86  95.79 95.88",
    "emnist_balanced": "78.99 79.61  82.13 82.77  82.57 83.21  90.71 91.04  90.73 91.05",
}
ARCH2_ROWS = {  # width, rate, augmentation, norm, rules, parameters, fc_multiplications
    "arch2_mnist": (30, 0.01, TURNED, MNIST_NORM, 395_120, 389_000),
    "arch2_fashion_mnist": (300, 0.005, CLOTHES, HALF_NORM, 5_761_640, 5_748_500),
    "arch2_kmnist": (50, 0.1, TURNED, MNIST_NORM, 677_640, 671_000),
    "arch2_qmnist": (50, 0.1, TURNED, MNIST_NORM, 677_640, 671_000),
    "arch2_emnist_digits": (50, 0.1, TURNED, MNIST_NORM, 677_640, 671_000),
}
LATE = "5 lr U^3 after epochs > {} if not improved"
ARCH2_RULES = {  # published, corrected
    "arch2_mnist": ("5 lr U^3, no momentum, after epochs > 100", LATE.format(100)),
    "arch2_fashion_mnist": ("5 lr U^3, no momentum, after epochs > 50", LATE.format(50)),
    "arch2_kmnist": ("constant", "lr U^5 if not improved"),
    "arch2_qmnist": ("constant", "0.9 of it if not improved"),
    "arch2_emnist_digits": ("constant", "0.8 of it if not improved"),
}
# Rates of 104 epochs, each more accurate but 2, 52, 53, 102 and 103, with U = 0.5.
ARCH2_RATES = {  # published, corrected: how many epochs with which rate
    "arch2_mnist": ([(101, 0.01), (3, 0.00625)], [(102, 0.01), (2, 0.00625)]),
    "arch2_fashion_mnist": ([(51, 0.005), (53, 0.003125)], [(52, 0.005), (52, 0.003125)]),
    "arch2_kmnist": ([(104, 0.1)], [(2, 0.1), (102, 0.003125)]),
    "arch2_qmnist": (
        [(104, 0.1)],
        [(2, 0.1), (50, 0.09), (1, 0.081), (49, 0.0729), (1, 0.06561), (1, 0.059049)],
    ),
    "arch2_emnist_digits": (
        [(104, 0.1)],
        [(2, 0.1), (50, 0.08), (1, 0.064), (49, 0.0512), (1, 0.04096), (1, 0.032768)],
    ),
}
RESTARTS = {"arch2_mnist": 101, "arch2_fashion_mnist": 51}  # momentum is lost after this epoch
CNN_TRUNK = "conv 1>10 5, pool 2, relu, conv 10>20 5, channels 0.5, pool 2, relu, flatten, "
UNIT = "conv {0}>{1} 3 pad, bn {1}, relu, "
VGG5_TRUNK = (
    f"{UNIT.format(1, 64)}{UNIT.format(64, 64)}pool 2, "
    f"{UNIT.format(64, 128)}{UNIT.format(128, 128)}pool 2, "
    f"{UNIT.format(128, 256)}{UNIT.format(256, 256) * 2}pool 2, "
    f"{UNIT.format(256, 256) * 3}pool 2, flatten, "
)
LAYERS = {  # with (published) and without (corrected) dropout before the output layer of cnn
    "cnn fc": CNN_TRUNK + "linear 320>50, relu, {drop}linear 50>{classes}, logsoftmax",
    "cnn spinal": f"{CNN_TRUNK}linear 160>8, relu{', linear 168>8, relu' * 5}"
    ", linear 48>{classes}, logsoftmax",
    "vgg5 fc": VGG5_TRUNK
    + "drop 0.5, linear 256>512, bn 512, relu, drop 0.5, linear 512>{classes}, logsoftmax",
    "vgg5 spinal": f"{VGG5_TRUNK}drop 0.5, linear 128>128, bn 128, relu"
    f"{', drop 0.5, linear 256>128, bn 128, relu' * 3}"
    ", drop 0.5, linear 512>{classes}, logsoftmax",
}
COUNTS = {  # outputs: parameters and fc_multiplications in the order of LAYERS
    10: [21_840, 16_500, 13_818, 8_480, 3_646_154, 136_192, 3_629_770, 119_808],
    62: [24_492, 19_100, 16_366, 10_976, 3_672_830, 162_816, 3_656_446, 146_432],
    26: [22_656, 17_300, 14_602, 9_248, 3_654_362, 144_384, 3_637_978, 128_000],
    47: [23_727, 18_350, 15_631, 10_256, 3_665_135, 155_136, 3_648_751, 138_752],
}


# ---- What is expected ---------------------------------------------------------------------------
def data_name(script: str) -> str:
    """The data set of a script: mnist for MNIST/mnist and MNIST/arch2_mnist."""
    return script.split("/")[1].removeprefix("arch2_")


def recipe_of(script: str, network: str, head: str, protocol: str) -> dict:
    """The settings that the log of this run must have."""
    if network == "arch2":
        name = script.split("/")[1]
        width, rate, augmentation, norm, *_ = ARCH2_ROWS[name]
        row = norm | {"network": "arch2", "head": "spinal", "layers": 26, "width": width}
        row |= {"augmentation": augmentation, "learning_rate": rate, "fc_dropout": 0.0}
        row |= {"epochs": 200, "selection": "best_test", "rate_rule": ARCH2_RULES[name][0]}
        if protocol == "corrected":
            row |= CORRECTED | {"rate_rule": ARCH2_RULES[name][1]}
        return DEFAULTS | row
    name = data_name(script)
    epochs, augmentation, norm, classes, corrected_classes = SETTINGS[name]
    row = MNIST_NORM | {"augmentation": []} | ROWS[network, head] | {"classes": classes}
    if name == "optdigits":
        row["epochs"] = 60
    if network == "vgg5":
        row |= norm | {"augmentation": augmentation, "epochs": epochs}
    if protocol == "corrected":
        row |= CORRECTED | {"classes": corrected_classes}
        row["first_label"] = int(name == "emnist_letters")
        if network == "cnn":
            row["fc_dropout"] = 0.0
    return DEFAULTS | row


def describe(network: nn.Module) -> str:
    """The layers in the order of their definition."""
    words = []
    for layer in network.modules():
        name = type(layer).__name__
        if isinstance(layer, nn.Conv2d):
            (size, _), pad = layer.kernel_size, " pad" if layer.padding == (1, 1) else ""
            words.append(f"conv {layer.in_channels}>{layer.out_channels} {size}{pad}")
            assert layer.stride == (1, 1) and layer.bias is not None
        elif isinstance(layer, nn.Linear):
            words.append(f"linear {layer.in_features}>{layer.out_features}")
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            words.append(f"bn {layer.num_features}")
        elif isinstance(layer, nn.MaxPool2d):
            words.append(f"pool {layer.kernel_size}")
        elif isinstance(layer, nn.Dropout | nn.Dropout2d) and layer.p:
            words.append(f"{'drop' if name == 'Dropout' else 'channels'} {layer.p}")
        elif isinstance(layer, nn.ReLU | nn.Flatten | nn.LogSoftmax):
            words.append(name.lower())
            assert name != "LogSoftmax" or layer.dim == 1
    return ", ".join(words)


# ---- Checks of a script, or of a changed copy of it ---------------------------------------------
def check_facts(module, script: str, folder) -> None:
    name = data_name(script)
    arch2 = script in ARCH2
    numbers = [] if arch2 else [float(x) for x in PAPER[name].split()]
    paper = {}
    for row, average, best in zip(NAMES, numbers[::2], numbers[1::2], strict=False):
        paper[row] = {"average": average, "best": best}
    networks = ["arch2"] if arch2 else ["cnn", "vgg5"]
    facts = {"SCRIPT": script.split("/")[1], "PAPER": paper, "NETWORKS": networks}
    facts |= {"HEADS": ["spinal"] if arch2 else ["fc", "spinal"], "SMALL": networks[:1]}
    facts |= dict(zip(["DATASET", "FIRST_FILE"], FILES[name], strict=True))
    facts |= dict(zip(["FINGERPRINT", "LABELS", "COUNTS"], DATA[name], strict=True))
    assert {key: getattr(module, key) for key in facts} == facts
    steps = recipe_of(script, networks[-1], "spinal", "published")["augmentation"]
    assert {key: x.__name__ for key, x in module.AUGMENTATIONS.items()} == {x: x for x in steps}


def check_recipes(module, script: str, folder) -> None:
    defaults = {field.name: field.default for field in fields(module.Recipe)}
    nothing = dict.fromkeys(["mean", "std", "augmentation"], MISSING)
    assert defaults == nothing | DEFAULTS
    assert set(module.RECIPES) == {(n, h) for n in module.NETWORKS for h in module.HEADS}
    for network, head in module.RECIPES:
        for protocol in ("published", "corrected"):
            found = asdict(module.recipe_of(network, head, protocol))
            assert found == recipe_of(script, network, head, protocol), (network, head, protocol)


def rates_of(module, recipe, accuracies: list[float], us: list[float]) -> list[float]:
    """The rate of each epoch, and of the one after the last."""
    rates, best = [recipe.learning_rate], -1.0
    for epoch, (accuracy, u) in enumerate(zip(accuracies, us, strict=True), start=1):
        rates.append(module.next_rate(recipe, epoch, rates[-1], accuracy, best, u))
        best = max(best, accuracy)
    return rates


def check_rates(module, script: str, folder) -> None:
    name = script.split("/")[1]
    for k, protocol in enumerate(("published", "corrected")):
        if script in ARCH2:
            recipe = module.recipe_of("arch2", "spinal", protocol)
            accuracies = [float(epoch) for epoch in range(1, 105)]
            for epoch in (2, 52, 53, 102, 103):
                accuracies[epoch - 1] = 0.5
            expected = [rate for count, rate in ARCH2_RATES[name][k] for _ in range(count)]
            rates = rates_of(module, recipe, accuracies, [0.5] * 104)[:-1]
            assert rates == pytest.approx(expected, rel=1e-9)
            check_momentum(module, recipe, RESTARTS.get(name, 104) if k == 0 else 104)
            continue
        accuracies, us = [90.0, 95.0, 95.0, 94.0, 96.0], [0.9, 0.8, 0.5, 0.2, 0.7]
        recipe = module.recipe_of("vgg5", "spinal", protocol)  # a tie is no improvement
        expected = [0.005, 0.005, 0.005, 0.000625, 0.00004, 0.00004]
        assert rates_of(module, recipe, accuracies, us) == pytest.approx(expected, rel=1e-9)
        recipe = module.recipe_of("cnn", "fc", protocol)
        assert rates_of(module, recipe, accuracies, us) == [0.01] * 6


def check_momentum(module, recipe, last: int) -> None:
    """The momentum is kept in the epochs up to `last`, and lost before each later one."""
    network = nn.Linear(2, 2)
    trainer = module.TRAINER(network, recipe, torch.device("cpu"))
    network(torch.ones(1, 2)).sum().backward()
    trainer.optimizer.step()
    for epoch in range(1, 105):
        buffers = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
        for buffer in buffers:
            buffer.fill_(1.0)
        trainer.begin(epoch)
        assert all(float(x.sum()) == (x.numel() if epoch <= last else 0) for x in buffers), epoch


def count(network: nn.Module) -> list[int]:
    """Parameters, and multiplications of the fully connected layers for one image."""
    linears = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    weights = sum(layer.in_features * layer.out_features for layer in linears)
    return [sum(x.numel() for x in network.parameters()), weights]


def check_networks(module, script: str, folder) -> None:
    if script in ARCH2:
        with torch.device("meta"):  # sizes only
            network = module.build_network("arch2", None)
        assert count(network) == list(ARCH2_ROWS[script.split("/")[1]][4:])
        check_arch2(module.build_network("arch2", None, width=4).eval())
        return
    classes = SETTINGS[data_name(script)][3:]
    for k, (names, layers) in enumerate(LAYERS.items()):
        for protocol, outputs in zip(("published", "corrected"), classes, strict=True):
            with torch.device("meta"):
                network = module.build_network(*names.split(), protocol=protocol)
            drop = "drop 0.5, " if protocol == "published" else ""
            assert describe(network) == layers.format(drop=drop, classes=outputs)
            assert count(network) == COUNTS[outputs][2 * k : 2 * k + 2]
    wider = module.build_network("cnn", "spinal", width=10)
    assert count(wider)[0] == {10: 16_050, 62: 19_222}[classes[0]]
    check_initialisation(module.build_network("vgg5", "fc"))


def check_initialisation(network: nn.Module) -> None:
    """VGG-5's convolutions are normal with deviation sqrt(2 / 9 / outputs); linear: PyTorch's."""
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for layer, std in zip(convolutions[1:], [0.0589] + [0.0417] * 2 + [0.0295] * 6, strict=True):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(layer.weight.mean().item()) < 5 * std / layer.weight.numel() ** 0.5
        assert layer.weight.abs().max() > 3.5 * layer.weight.std()  # normal, not uniform
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and layer.out_features > 100:
            bound = layer.in_features**-0.5
            assert 0.98 * bound < layer.weight.abs().max() <= bound


def check_arch2(network: nn.Module) -> None:
    """Three branches of Spinal layers see the pixels and both convolutions."""
    trunk, x = network[0], torch.randn(3, 1, 28, 28)
    low = torch.relu(nn.functional.max_pool2d(trunk.conv1(x), 2))
    high = torch.relu(nn.functional.max_pool2d(trunk.conv2(low), 2))
    branches = [trunk.raw(x.flatten(1)), trunk.low(low.flatten(1)), trunk.high(high.flatten(1))]
    assert [branch.shape[1] for branch in branches] == [40, 32, 32]
    hidden, output = (layer for layer in network[1:].modules() if isinstance(layer, nn.Linear))
    scores = output(torch.relu(hidden(torch.cat(branches, 1))))
    torch.testing.assert_close(network(x), torch.log_softmax(scores, 1))
    (channels,) = (layer.p for layer in network.modules() if isinstance(layer, nn.Dropout2d))
    assert channels == 0.5


def check_data(module, script: str, folder) -> None:
    """Its own set is read from files that lie side by side; images and labels as they are."""
    parts = [module.read_part(folder, train, False) for train in (True, False)]
    if script == "MNIST/optdigits":
        whole = hashlib.sha256()
        for images, labels in parts:
            whole.update(images.numpy())
            whole.update(labels.to(torch.uint8).numpy())
        assert [len(labels) for _, labels in parts] == [1_437, 360]
        assert whole.hexdigest()[:16] == OPTDIGITS
        return
    arrays = [torch.from_numpy(array) for array in pictures(script)]
    for (images, labels), truth in zip(parts, (arrays[:2], arrays[2:]), strict=True):
        assert torch.equal(images, truth[0].unsqueeze(1)) and torch.equal(labels, truth[1])


OPTDIGITS = "d657dd1bd72fcd19"  # fingerprint of the split and enlarged digits
CHECKS = [check_facts, check_recipes, check_rates, check_data, check_networks]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("sets"))


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
@pytest.mark.parametrize("script", SCRIPTS)
def test_settings(script, check, folder):
    check(load_script(script), script, folder)


@pytest.mark.parametrize("script", FAMILY)
def test_the_docstring_says_what_the_settings_are(script):
    text = load_script(script).__doc__
    heldout = DATA[data_name(script)][2][0] // 12
    assert f"{heldout:,} held-out" in text
    epochs, *_, published, corrected = SETTINGS[data_name(script)]
    if script != "MNIST/optdigits":
        assert f"the {epochs} epochs" in " ".join(text.split())
    if published != corrected:
        assert f"there are {corrected} outputs" in text and f"published: {published}" in text


# ---- Proof --------------------------------------------------------------------------------------
def constants_of(tree: ast.Module, script: str) -> list[ast.Constant]:
    """The constants of a script's own text, of networks also if they are shared with others.

    No docstrings, types and messages. The other shared blocks hold no settings.
    """
    text = (ROOT / f"{script}.py").read_text()
    hidden, fences = set(), {}  # lines; block: its first line
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("# >>> shared: "):
            fences[line.split()[3]] = number
        elif line.startswith("# <<< shared: "):
            begin = fences[line.split()[3]]
            own = f"origin {script}.py" in text.splitlines()[begin - 1]
            if not own or line.split()[3] not in ("networks", "arch2_network"):
                hidden |= set(range(begin, number))
    silent = set()
    for node in ast.walk(tree):
        for part in ("annotation", "returns"):
            if isinstance(getattr(node, part, None), ast.AST):
                silent |= set(ast.walk(getattr(node, part)))
        if isinstance(node, ast.ClassDef):
            silent |= {x for part in node.decorator_list for x in ast.walk(part)}
        if isinstance(node, ast.Raise | ast.Try | ast.Expr) or is_not_run(node):
            silent |= set(ast.walk(node))
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [node for node in constants if node.lineno not in hidden and node not in silent]


def is_not_run(node: ast.AST) -> bool:
    """What the checks do not reach: the last lines, and the comparison with archives."""
    main = isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
    return main or isinstance(node, ast.FunctionDef) and node.name == "match_archives"


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, str):
        return f"{value}x"
    return value + 2 if isinstance(value, int) else value * 1.01 + 0.001


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_changed_constant_is_found(script, folder):
    tree = ast.parse((ROOT / f"{script}.py").read_text())
    missed, tried = [], 0
    for node in constants_of(tree, script):
        value, node.value = node.value, other(node.value)
        tried += 1
        try:
            module = load_script(script, copy.deepcopy(tree))
            for check in CHECKS:
                check(module, script, folder)
            missed.append(f"line {node.lineno}: {value!r}")
        except Exception:  # found, however
            pass
        node.value = value
    print(f"{script}: {tried - len(missed)} of {tried} changed constants found")
    assert tried > 60 and not missed
