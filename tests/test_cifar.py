"""The scripts of CIFAR/: networks, recipes, rates, augmentation, data, DenseNet's modes.

What all image scripts have in common is tested in test_image_scripts.py.
"""

import hashlib
import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as TF

from conftest import load_script

modules = {10: load_script("CIFAR/cifar10"), 100: load_script("CIFAR/cifar100")}
cifar10 = modules[10]
CPU = torch.device("cpu")

# ---- Every constant that decides a number, once more, from the paper's tables and the scripts ---
PLAN = "a third after epoch 2 and from 22 on"
U3, U5, THIRD = "lr U^3 if below best", "lr U^5 if below best", "a third if below best"
# FC and Spinal: (layers, width, rule of the rate). Then epochs, batch, rate, dropout, selection.
ROWS = {
    (10, "cnn"): ((2, 512, PLAN), (4, 128, "constant"), 160, 100, 0.001, 0.1, "last"),
    (100, "cnn"): ((2, 512, THIRD), (4, 256, THIRD), 160, 200, 0.001, 0.1, "best_test"),
    (10, "vgg11"): ((2, 4096, U3), (4, 1024, U3), 35, 100, 0.0001, 0.5, "best_test"),
    (10, "vgg13"): ((2, 4096, U3), (4, 1024, U3), 35, 100, 0.0001, 0.5, "best_test"),
    (10, "vgg16"): ((2, 4096, U3), (4, 512, U3), 200, 100, 0.0001, 0.5, "best_test"),
    (10, "vgg19"): ((2, 4096, U3), (4, 512, U3), 200, 100, 0.0001, 0.5, "best_test"),
    (100, "vgg11"): ((2, 4096, U3), (4, 1024, U3), 40, 200, 0.0001, 0.5, "best_test"),
    (100, "vgg13"): ((2, 4096, U3), (4, 1024, U3), 50, 200, 0.0001, 0.5, "best_test"),
    (100, "vgg16"): ((2, 4096, U3), (4, 512, U3), 150, 200, 0.0001, 0.5, "best_test"),
    (100, "vgg19"): ((2, 4096, U3), (4, 512, U3), 150, 200, 0.0001, 0.5, "best_test"),
    (10, "resnet18"): ((0, 0, U5), (4, 20, U5), 150, 200, 0.001, 0.0, "best_test"),
    (10, "resnet34"): ((0, 0, U5), (4, 256, U5), 150, 200, 0.001, 0.0, "best_test"),
    (100, "resnet18"): ((0, 0, U5), (4, 128, U5), 30, 200, 0.001, 0.0, "best_test"),
    (100, "resnet34"): ((0, 0, U5), (4, 128, U5), 30, 200, 0.001, 0.0, "best_test"),
    (10, "densenet"): ((1, 512, "constant"), (8, 16, "constant"), 35, 100, 0.001, 0.0, "last"),
    (10, "lenet"): ((2, 120, "constant"), (6, 20, "constant"), 8, 4, 0.001, 0.0, "last"),
}
OF_CIFAR100 = ([0.507, 0.487, 0.441], [0.267, 0.256, 0.276])
MOMENTS = dict.fromkeys(ROWS, OF_CIFAR100)
for key in (10, "vgg11"), (10, "vgg13"), (10, "vgg16"), (10, "vgg19"), (10, "cnn"), (100, "cnn"):
    MOMENTS[key] = ([0.0] * 3, [1.0] * 3)
MOMENTS[10, "densenet"] = MOMENTS[10, "lenet"] = ([0.5] * 3, [0.5] * 3)
MOMENTUM = {"densenet": 0.95, "lenet": 0.9}  # of SGD; the others have Adam
COUNTS = {  # Parameters with FC and with Spinal, multiplications of both heads. Key: Spinal width
    (10, "cnn", 128): (5_852_170, 2_230_282, 4_723_712, 1_102_848),
    (100, "cnn", 256): (5_898_340, 3_524_196, 4_769_792, 2_396_160),
    (10, "vgg11", 512): (28_149_514, 10_559_242, 18_915_328, 1_331_200),
    (10, "vgg13", 512): (28_334_410, 10_744_138, 18_915_328, 1_331_200),
    (10, "vgg16", 512): (33_646_666, 16_056_394, 18_915_328, 1_331_200),
    (10, "vgg19", 512): (38_958_922, 21_368_650, 18_915_328, 1_331_200),
    (100, "vgg11", 512): (28_518_244, 10_743_652, 19_283_968, 1_515_520),
    (100, "vgg13", 512): (28_703_140, 10_928_548, 19_283_968, 1_515_520),
    (100, "vgg16", 512): (34_015_396, 16_240_804, 19_283_968, 1_515_520),
    (100, "vgg19", 512): (39_327_652, 21_553_060, 19_283_968, 1_515_520),
    (10, "resnet18", 256): (3_141_674, 3_609_130, 2_560, 468_992),
    (10, "resnet34", 256): (5_670_570, 6_138_026, 2_560, 468_992),
    (100, "resnet18", 512): (3_164_804, 4_656_772, 25_600, 1_515_520),
    (100, "resnet34", 512): (5_693_700, 7_185_668, 25_600, 1_515_520),
    (10, "lenet", 20): (62_006, 30_202, 58_920, 27_200),
    (10, "densenet", 16): (1_071_946, 1_135_562, 529_408, 68_608),
    (10, "densenet", 64): (1_071_946, 1_363_274, 529_408, 295_936),
}
PAPER = {  # average and best of version 3, or the one number of version 2: FC, then Spinal
    (10, "resnet18", "4x20"): ((90.65, 91.98), (90.39, 91.42)),
    (10, "vgg19", "4x512"): ((90.48, 90.75), (90.97, 91.40)),
    (10, "resnet34", "4x256"): ((89.56,), (89.88,)),
    (10, "vgg13", "4x1024"): ((87.79,), (89.16,)),
    (10, "vgg11", "4x1024"): ((86.68,), (87.08,)),
    (10, "densenet", "8x16"): ((77.79,), (81.13,)),
    (10, "densenet", "8x64"): ((77.79,), (81.95,)),
    (10, "lenet", "6x20"): ((60.65,), (62.37,)),
    (100, "resnet18", "4x128"): ((64.41, 65.04), (62.93, 63.60)),
    (100, "vgg19", "4x512"): ((61.69, 62.05), (64.12, 64.77)),
    (100, "resnet34", "4x128"): ((65.51,), (63.32,)),
    (100, "vgg16", "4x512"): ((63.20,), (64.99,)),
    (100, "vgg13", "4x1024"): ((60.75,), (62.46,)),
    (100, "vgg11", "4x1024"): ((55.60,), (60.48,)),
}


def expected(classes, network, head, protocol):
    """All settings of a row."""
    fc, spinal, epochs, batch_size, rate, dropout, selection = ROWS[classes, network]
    layers, width, rule = fc if head == "fc" else spinal
    mean, std = MOMENTS[classes, network]
    settings = {
        "network": network,
        "head": head,
        "layers": layers,
        "width": width,
        "fc_dropout": dropout,
        "mean": mean,
        "std": std,
        "augmentation": [] if network in MOMENTUM else ["pad_flip_crop"],
        "protocol": protocol,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": "SGD" if network in MOMENTUM else "Adam",
        "momentum": MOMENTUM.get(network, 0.0),
        "learning_rate": rate,
        "rate_rule": rule,
        "selection": selection,
        "heldout": 0,
        "precision": "fp32",
        "limit": None,
        "classes": classes,
        "first_label": 0,
    }
    if protocol == "corrected":
        settings |= {"mean": [], "std": [], "heldout": 10, "selection": "heldout"}
        settings["rate_rule"] = THIRD if network == "cnn" else rule
    if classes == 10:  # Q22
        evaluation = (network, head, protocol) == ("densenet", "fc", "published")
        settings["train_mode_epochs"] = 1 if evaluation else None
    return settings


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("classes, network", ROWS)
def test_every_setting_of_both_heads(classes, network, protocol):
    for head in ("fc", "spinal"):
        recipe = modules[classes].recipe_of(network, head, protocol)
        assert asdict(recipe) == expected(classes, network, head, protocol)


@pytest.mark.parametrize("classes", modules)
def test_facts_of_the_experiment(classes):
    module = modules[classes]
    assert sorted(module.NETWORKS) == sorted(name for k, name in ROWS if k == classes)
    assert module.NETWORKS[0] == "vgg19"
    assert (f"cifar{classes}", f"CIFAR-{classes}") == (module.SCRIPT, module.DATASET)
    assert module.COUNTS == [50_000, 10_000] and range(classes) == module.LABELS
    keys = {1: ["version 2"], 2: ["average", "best"]}
    paper = {}
    for (k, network, spinal), numbers in PAPER.items():
        for head, row in zip(("fc", f"spinal{spinal}"), numbers, strict=True):
            if k == classes:
                paper[f"{network}-{head}"] = dict(zip(keys[len(row)], row, strict=True))
    assert paper == module.PAPER
    assert {10: (["lenet"], "32e5966899bde482"), 100: ([], None)}[classes] == (
        module.SMALL,
        module.FINGERPRINT,
    )


# ---- Networks -----------------------------------------------------------------------------------
def size(classes, network, head, width=None):
    """Parameters and multiplications; without weights, so that it costs nothing."""
    with torch.device("meta"):
        net = modules[classes].build_network(network, head, width=width)
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, classes)
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    return sum(p.numel() for p in net.parameters()), sum(m.weight.numel() for m in linear)


@pytest.mark.parametrize("classes, network, width", COUNTS)
def test_counts_equal_the_specification(classes, network, width):
    fc, spinal = size(classes, network, "fc"), size(classes, network, "spinal", width)
    assert (fc[0], spinal[0], fc[1], spinal[1]) == COUNTS[classes, network, width]


def gradients(net):
    """The gradient of each parameter, None where there is none, of the outputs of four images."""
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    return [parameter.grad for parameter in net.parameters()]


LIVE = [("fc", None, 961_066), ("spinal", None, 499_882), ("spinal", 64, 727_594)]


@pytest.mark.parametrize("head, width, count", LIVE)
def test_the_layers_of_densenet_that_are_trained(head, width, count):
    net = cifar10.build_network("densenet", head, width=width)
    assert sum(x.numel() for x in gradients(net) if x is not None) == count
    dead = [parameter.shape for parameter in net.parameters() if parameter.grad is None]
    assert (64,) in dead and (32, 128, 3, 3) in dead  # the fourth block
    assert ((512, 1024) in dead) == (head == "spinal")


@pytest.mark.parametrize("head", ["fc", "spinal"])
@pytest.mark.parametrize("network", ["cnn", "lenet", "vgg11", "resnet18"])
def test_all_other_layers_are_trained(network, head):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert all(x is not None and x.abs().sum() > 0 for x in gradients(build(network, head)))


def build(network, head):
    """A narrow one where the paper's takes time."""
    width = 16 if head == "spinal" or network.startswith("vgg") else None
    return cifar10.build_network(network, head, width=width)


def test_a_dense_block_joins_its_five_convolutions_but_not_its_input():
    block = cifar10.DenseBlock(64).eval()
    x = torch.randn(2, 64, 6, 6)
    outputs = [torch.relu(block.convolutions[0](block.norm(x)))]
    for convolution in block.convolutions[1:]:
        outputs.append(torch.relu(convolution(torch.cat(outputs, 1))))
    torch.testing.assert_close(block(x), torch.cat(outputs, 1))
    assert [c.in_channels for c in block.convolutions] == [64, 32, 64, 96, 128]
    assert all(c.bias is not None and c.padding == (1, 1) for c in block.convolutions)


def test_the_layers_of_densenet_are_in_the_released_order():
    trunk = cifar10.build_network("densenet", "fc")[0]
    step = ["DenseBlock", "Conv2d", "ReLU", "BatchNorm2d", "AvgPool2d"]
    order = ["Conv2d", "ReLU", *step * 3, "BatchNorm2d", "Flatten"]
    assert [type(layer).__name__ for layer in trunk] == order
    assert trunk[0].kernel_size == (7, 7) and trunk[0].bias is None and trunk[3].bias is None
    assert [trunk[k].out_channels for k in (0, 3, 8, 13)] == [64, 128, 128, 64]


def test_the_fc_head_of_densenet_is_one_linear_map():
    _, head, output, _ = cifar10.build_network("densenet", "fc").double()
    a, b, zero = torch.randn(1, 1024).double(), torch.randn(1, 1024).double(), torch.zeros(1, 1024)
    one, two, both, none = [output(head(x.double())) for x in (a, b, a + b, zero)]
    torch.testing.assert_close(one + two - none, both)  # Q24


def test_resnet_spinal_layers_equal_explicit_matrices():
    """Columns: first the place, then the layer before. A fifth layer sees the first place again."""
    layers, x = cifar10.QuadrantSpinalLayers(2 * 3, 5, 4), torch.randn(2, 3, 2, 2)
    weights = [(layer[1].weight, layer[1].bias) for layer in layers.hidden]
    outputs = [torch.relu(x[:, :, 0, 0] @ weights[0][0].T + weights[0][1])]
    places = [(0, 1), (1, 0), (1, 1), (0, 0)]
    for (weight, bias), (row, column) in zip(weights[1:], places, strict=True):
        here, before = weight[:, :3], weight[:, 3:]
        total = x[:, :, row, column] @ here.T + outputs[-1] @ before.T + bias
        outputs.append(torch.relu(total))
    torch.testing.assert_close(layers(x), torch.cat(outputs, 1))


def test_resnet_blocks_have_no_last_relu_and_start_as_specified():
    torch.manual_seed(0)
    net = cifar10.build_network("resnet18", "spinal").eval()
    assert bool((net[0](torch.randn(2, 3, 32, 32)) < 0).any())
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 5 and all(bool((module.bias == 0).all()) for module in linear)
    shortcut = net[0][6].shortcut[0]
    assert shortcut.kernel_size == (3, 3) and shortcut.stride == (2, 2)
    for layer in (net[0][0], net[0][-1].body[3]):
        deviation = float(layer.weight.detach().std())
        assert deviation == pytest.approx((2 / (9 * layer.out_channels)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("network", ["cnn", "lenet", "vgg11", "densenet"])
def test_other_networks_start_with_the_weights_of_the_library(network):
    for module in build(network, "spinal").modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = module.weight[0].numel() ** -0.5  # uniform between -bound and bound
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound
            assert module.bias is None or float(module.bias.detach().abs().max()) <= bound


@pytest.mark.parametrize("network", ["cnn", "lenet", "vgg11", "resnet18", "densenet"])
def test_outputs_are_log_probabilities_and_both_heads_share_the_trunk(network):
    trunks = []
    for head in ("fc", "spinal"):
        torch.manual_seed(3)
        net = build(network, head).eval()
        output = net(torch.rand(2, 3, 32, 32))
        torch.testing.assert_close(output.exp().sum(1), torch.ones(2))
        trunks.append(torch.cat([p.detach().flatten() for p in net[0].parameters()]))
    assert torch.equal(*trunks)


DROPOUT = {  # in the order of the layers; the last one stands before the output layer
    ("cnn", "fc"): [0.1, 0.0, 0.1],
    ("cnn", "spinal"): [0.1] * 5,
    ("vgg11", "fc"): [0.0, 0.5, 0.5],
    ("vgg11", "spinal"): [0.5] * 5,
    ("resnet18", "fc"): [0.0],
    ("resnet18", "spinal"): [0.0] * 5,
    ("densenet", "fc"): [0.0],
    ("densenet", "spinal"): [0.0] * 9,
    ("lenet", "fc"): [0.0] * 3,
    ("lenet", "spinal"): [0.0] * 7,
}


@pytest.mark.parametrize("network, head", DROPOUT)
def test_dropout_of_the_heads(network, head):
    """--fc-dropout is that before the output layer only."""
    for dropout in (None, 0.3):
        recipe = cifar10.recipe_of(network, head, "published", fc_dropout=dropout)
        with torch.device("meta"):
            net = cifar10.network_of(recipe)[1]
        rates = [module.p for module in net.modules() if isinstance(module, nn.Dropout)]
        *before, last = DROPOUT[network, head]
        assert rates == [*before, last if dropout is None else dropout]


def test_a_width_for_a_head_without_hidden_layers_is_refused():
    with pytest.raises(ValueError, match="leave out --width"):
        cifar10.build_network("resnet18", "fc", width=20)


# ---- DenseNet's FC head trains in evaluation mode from epoch 2 on (Q22) --------------------------
def images_and_labels():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.tensor([0, 1, 2, 3])


def state_after_epochs(recipe, epochs):
    """Scale and mean of the last batch norm of DenseNet's trunk after each of these epochs."""
    torch.manual_seed(0)
    trainer = cifar10.TRAINER(cifar10.network_of(recipe), recipe, CPU)
    norm = trainer.network[0][-2]
    states = []
    for epoch in epochs:
        trainer.begin(epoch)
        trainer.epoch(*images_and_labels(), torch.arange(4).split(2), 0.1)
        states.append((norm.weight.detach().clone(), norm.running_mean.clone()))
        trainer.evaluate(*images_and_labels())
    return states


@pytest.mark.parametrize(
    "head, protocol, epochs, moves",
    [
        ("fc", "published", (1, 2, 3), [False, False]),
        ("fc", "published", (2, 3), [False]),  # as after a continuation
        ("fc", "corrected", (1, 2), [True]),
        ("spinal", "published", (1, 2), [True]),
    ],
)
def test_densenet_keeps_its_statistics_in_evaluation_mode(head, protocol, epochs, moves):
    recipe = cifar10.recipe_of("densenet", head, protocol)
    recipe = cifar10.measured(recipe, images_and_labels()[0])
    states = state_after_epochs(recipe, epochs)
    pairs = list(zip(states, states[1:], strict=False))
    assert [not torch.equal(old[1], new[1]) for old, new in pairs] == moves
    assert not any(torch.equal(old[0], new[0]) for old, new in pairs), "scales are trained in both"


def test_a_graph_is_recorded_anew_when_the_mode_changes():
    trainer = cifar10.TRAINER(
        nn.Sequential(nn.Linear(1, 1)), cifar10.RECIPES["densenet", "fc"], CPU
    )
    trainer.cuda, trainer.graph, trainer.ordinary_steps = True, "of training mode", 3
    trainer.begin(1)
    assert trainer.network.training and trainer.graph == "of training mode"
    trainer.begin(2)
    assert not trainer.network.training and (trainer.graph, trainer.ordinary_steps) == (None, 0)
    trainer.graph = "of evaluation mode"
    trainer.begin(3)
    assert trainer.graph == "of evaluation mode"


# ---- Augmentation and rates ---------------------------------------------------------------------
def test_pad_flip_crop_equals_torchvision_with_the_same_draws():
    images = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8)
    before = images.clone()
    views = cifar10.pad_flip_crop(images, torch.Generator().manual_seed(5))
    assert torch.equal(images, before) and views.dtype == torch.uint8
    generator = torch.Generator().manual_seed(5)
    flips = torch.rand(100, generator=generator) < 0.5
    tops, lefts = torch.randint(0, 9, (2, 100), generator=generator).tolist()
    for image, flip, top, left, view in zip(images, flips, tops, lefts, views, strict=True):
        image = TF.pad(image, [4] * 4)
        image = TF.horizontal_flip(image) if flip else image
        assert torch.equal(TF.crop(image, top, left, 32, 32), view)


def test_crops_and_flips_are_uniform():
    image = torch.zeros(20_000, 1, 32, 32, dtype=torch.uint8)
    image[:, 0, 16, 10] = 1  # after pad and flip at row 20, column 14 or 25
    views = cifar10.augment(image, ["pad_flip_crop"], torch.Generator().manual_seed(1))
    places = views.nonzero()
    rows, columns = 20 - places[:, 2], places[:, 3]
    flipped = columns > 14
    assert len(places) == 20_000 and abs(float(flipped.float().mean()) - 0.5) < 0.02
    counts = torch.bincount(rows * 9 + torch.where(flipped, 25, 14) - columns, minlength=81)
    assert len(counts) == 81 and counts.min() > 170 and counts.max() < 330  # expected: 247


def trace(classes, row, accuracies, uniform=0.5):
    """The rates of the epochs after these accuracies, the first one included."""
    module = modules[classes]
    recipe = module.recipe_of(*row)
    rates, best = [recipe.learning_rate], -1.0
    for epoch, accuracy in enumerate(accuracies, start=1):
        rates.append(module.next_rate(recipe, epoch, rates[-1], accuracy, best, uniform))
        best = max(best, accuracy)
    return rates


def test_the_plan_of_the_published_cifar10_cnn():
    """1e-3 in epochs 1 and 2, a third up to epoch 22, 1e-3 / 3^(k - 21) in epoch k > 22 (Q1)."""
    plan = [1e-3] * 2 + [1e-3 / 3] * 20 + [1e-3 / 3 ** (k - 21) for k in range(23, 41)]
    assert trace(10, ("cnn", "fc", "published"), [50.0] * 39) == pytest.approx(plan)
    assert plan[29] == pytest.approx(5.1e-8, rel=0.01)
    assert plan[39] == pytest.approx(8.6e-13, rel=0.01)
    assert trace(10, ("cnn", "spinal", "published"), [50.0, 40.0] * 20) == [1e-3] * 41  # Q2


@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("classes, network", ROWS)
def test_the_other_rules_act_below_the_best_and_not_after_a_tie(classes, network, protocol):
    accuracies = [50, 60, 60, 55, 61, 40, 45]
    for head in ("fc", "spinal"):
        settings = expected(classes, network, head, protocol)
        rate, rule = settings["learning_rate"], settings["rate_rule"]
        rates = {
            "constant": [rate] * 8,
            THIRD: [rate] * 4 + [rate / 3] * 2 + [rate / 9, rate / 27],
            U3: [rate] * 4 + [rate / 8] * 4,
            U5: [rate] * 4 + [rate / 32] * 4,
            PLAN: [rate] * 2 + [rate / 3] * 6,
        }
        row = (network, head, protocol)
        assert trace(classes, row, accuracies) == pytest.approx(rates[rule])


# ---- Data and runs ------------------------------------------------------------------------------
@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Makes small files in CIFAR's layout, with checksums that fit.

    Returns (images (N, 3072), labels) of the training and of the test part.
    """

    def write(path, content):
        path.write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5(path.read_bytes()).hexdigest()

    def make(classes):
        rng = np.random.default_rng(0)
        real = getattr(modules[classes].torchvision.datasets, f"CIFAR{classes}")
        folder = tmp_path / "data" / real.base_folder
        folder.mkdir(parents=True)
        key, count = {10: ("labels", 20), 100: ("fine_labels", 100)}[classes]
        parts = []
        for which in ("train_list", "test_list"):
            files, rows, labels = [], [], []
            for name, _ in getattr(real, which):
                rows.append(rng.integers(0, 256, (count, 3072), dtype=np.uint8))
                labels += rng.permutation(np.arange(count) % classes).tolist()
                content = {"data": rows[-1], key: labels[-count:]}
                files.append([name, write(folder / name, content)])
            monkeypatch.setattr(real, which, files)
            parts.append((np.concatenate(rows), labels))
        names = {real.meta["key"]: [str(k) for k in range(classes)]}
        meta = {**real.meta, "md5": write(folder / real.meta["filename"], names)}
        monkeypatch.setattr(real, "meta", meta)
        return parts

    return make


def run(classes, folder, *arguments):
    """The exit status of the script, which reads and writes in the folder."""
    flags = ["--data-dir", str(folder / "data"), "--results-dir", str(folder / "results")]
    flags += ["--no-download", "--quiet", "--device", "cpu"]
    return modules[classes].main([*flags, *arguments])


def read_logs(folder, script="cifar10"):
    logs = sorted((folder / "results/logs" / script).glob("*.jsonl"))
    return [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]


@pytest.mark.parametrize("classes", modules)
def test_the_layout_is_read_and_each_channel_measured(tmp_path, made_up, classes):
    module, parts = modules[classes], made_up(classes)
    recipe = module.recipe_of("cnn", "fc", "published", mean=[])
    data = module.load_data(tmp_path / "data", recipe, False, CPU)
    for (images, labels), (rows, truth) in zip((data.train, data.test), parts, strict=True):
        assert images.dtype == torch.uint8 and images.is_contiguous()
        assert labels.dtype == torch.int64 and labels.tolist() == truth
        assert np.array_equal(images.numpy(), rows.reshape(-1, 3, 32, 32))
    assert data.heldout is None and not data.facts["official"]
    recipe = module.measured(recipe, data.train[0])
    pixels = parts[0][0].reshape(-1, 3, 1024) / 255
    assert recipe.mean == pytest.approx(pixels.mean((0, 2)), abs=1e-4)
    assert recipe.std == pytest.approx(pixels.std((0, 2)), abs=1e-4)


@pytest.mark.parametrize("classes", modules)
def test_a_file_with_another_checksum_is_a_sentence(tmp_path, made_up, capsys, classes):
    made_up(classes)
    victim = next(iter((tmp_path / "data").glob("*/test*")))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    assert run(classes, tmp_path, "--epochs", "1") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: CIFAR-{classes} cannot be had from {tmp_path}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_a_run_of_both_heads(tmp_path, made_up, capsys, protocol):
    made_up(10)
    flags = ("--network", "lenet", "--epochs", "2", "--batch-size", "30")
    assert run(10, tmp_path, *flags, "--protocol", protocol) == 0
    assert "paper" not in capsys.readouterr().out, "other settings, and other data"
    for (start, *epochs, end), head in zip(read_logs(tmp_path), ("fc", "spinal6x20"), strict=True):
        assert start["run"].startswith(f"lenet-{head}-{protocol}-e2-b30-data")
        corrected = protocol == "corrected"
        assert (start["data"]["train"], start["data"]["heldout"]) == (
            (90, 10) if corrected else (100, 0)
        )
        assert ("heldout_accuracy_pct" in epochs[0]) == corrected
        assert end["selected_epoch"] == (end["best_epoch"] if corrected else 2)


def test_densenet_continues_in_evaluation_mode(tmp_path, made_up, monkeypatch):
    """Stopped after epoch 1 and continued, it has the numbers of a run that was not stopped."""
    made_up(10)
    flags = ("--network", "densenet", "--head", "fc", "--epochs", "2", "--limit", "4")
    assert run(10, tmp_path, *flags) == 0
    (whole,) = read_logs(tmp_path)
    begin = cifar10.TRAINER.begin

    def stop(trainer, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        begin(trainer, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(cifar10.TRAINER, "begin", stop)
        assert run(10, tmp_path, *flags, "--overwrite") == 130
    assert run(10, tmp_path, *flags) == 0
    (continued,) = read_logs(tmp_path)
    second = [next(line for line in log if line.get("epoch") == 2) for log in (whole, continued)]
    assert second[0]["train_loss"] == second[1]["train_loss"]
    assert second[0]["test_loss"] == second[1]["test_loss"]
    assert run(10, tmp_path, *flags, "--train-mode-epochs", "2") == 0
    names = [log[0]["run"].partition("-data")[0] for log in read_logs(tmp_path)]
    assert sorted(names)[1] == "densenet-fc-published-e2-limit4-trainmode2"
    other = next(log for log in read_logs(tmp_path) if "trainmode2" in log[0]["run"])
    assert "train_mode_epochs" in other[0]["departures"]
    assert other[2]["train_loss"] != whole[2]["train_loss"]
