"""The scripts of CIFAR/: networks, augmentation, rates, data. What a run does with its settings: test_settings.py."""

import argparse
import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as TF

from conftest import ROOT, load_script

modules = {10: load_script("CIFAR/cifar10"), 100: load_script("CIFAR/cifar100")}
cifar10 = modules[10]


# ---- Networks --------------------------------------------------------------------------------------------------------
COUNTS = {  # spec cifar.md 1.2, 2.2, 3.2: parameters FC, Spinal; FC multiplications FC, Spinal
    (10, "cnn"): (5_852_170, 2_230_282, 4_723_712, 1_102_848),
    (100, "cnn"): (5_898_340, 3_524_196, 4_769_792, 2_396_160),
    (10, "vgg11"): (28_149_514, 10_559_242, 18_915_328, 1_331_200),
    (10, "vgg13"): (28_334_410, 10_744_138, 18_915_328, 1_331_200),
    (10, "vgg16"): (33_646_666, 16_056_394, 18_915_328, 1_331_200),
    (10, "vgg19"): (38_958_922, 21_368_650, 18_915_328, 1_331_200),
    (100, "vgg11"): (28_518_244, 10_743_652, 19_283_968, 1_515_520),
    (100, "vgg13"): (28_703_140, 10_928_548, 19_283_968, 1_515_520),
    (100, "vgg16"): (34_015_396, 16_240_804, 19_283_968, 1_515_520),
    (100, "vgg19"): (39_327_652, 21_553_060, 19_283_968, 1_515_520),
    (10, "resnet18"): (3_141_674, 3_609_130, 2_560, 468_992),
    (10, "resnet34"): (5_670_570, 6_138_026, 2_560, 468_992),
    (100, "resnet18"): (3_164_804, 4_656_772, 25_600, 1_515_520),
    (100, "resnet34"): (5_693_700, 7_185_668, 25_600, 1_515_520),
    (10, "lenet"): (62_006, 30_202, 58_920, 27_200),  # printed in version 2: 62.01k and 30.20k
    (10, "densenet"): (1_593_738, 1_132_554, 529_408, 68_608),
}
PRINTED = {  # (script, network, width): millions that the paper prints, under another label for some (audit.md)
    (10, "resnet18", 64): 3.22, (10, "resnet34", 64): 5.75, (10, "densenet", 16): 1.13, (10, "densenet", 64): 1.36,
    (100, "resnet18", 512): 4.66, (100, "resnet34", 512): 7.19,
}  # fmt: skip


def size(classes, network, head, **options):
    """Parameters and multiplications; without weights, so that it costs nothing."""
    with torch.device("meta"):
        net = modules[classes].build_network(network, head, **options)
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, classes)
    return (
        sum(p.numel() for p in net.parameters()),
        sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Linear)),
    )


@pytest.mark.parametrize("classes, network", COUNTS)
def test_counts_equal_the_specification(classes, network):
    fc, spinal = size(classes, network, "fc"), size(classes, network, "spinal")
    assert (fc[0], spinal[0], fc[1], spinal[1]) == COUNTS[classes, network]


@pytest.mark.parametrize("classes, network, width", PRINTED)
def test_widths_that_fit_the_printed_counts(classes, network, width):
    assert round(size(classes, network, "spinal", width=width)[0] / 1e6, 2) == PRINTED[classes, network, width]


def test_the_guessed_densenet_meets_the_printed_savings():
    fc, narrow, wide = size(10, "densenet", "fc")[1], *(size(10, "densenet", None, width=w)[1] for w in (16, 64))
    assert [round(100 - 100 * spinal / fc, 1) for spinal in (narrow, wide)] == [87.0, 44.1]
    trunk = sum(p.numel() for p in cifar10.build_network("densenet", "fc")[0].parameters())
    assert trunk == 1_063_808 and round((trunk + 1024 * 10 + 10) / 1e6, 2) == 1.07


def test_resnet_spinal_layers_walk_the_quadrants():
    layers = cifar10.QuadrantSpinalLayers(2 * 3, 5, 4)
    for layer in layers.hidden:
        layer[-1] = nn.Identity()  # no ReLU: every gradient that can be there is there
    x = torch.randn(1, 3, 2, 2, requires_grad=True)
    for k in range(5):
        (gradient,) = torch.autograd.grad(layers(x)[0, 4 * k : 4 * k + 4].sum(), x)
        seen = gradient.abs().sum((0, 1)).flatten() > 0
        assert seen.tolist() == [quadrant <= k for quadrant in range(4)]  # row by row: P00, P01, P10, P11
    for k in range(1, 5):
        with torch.no_grad():
            layers.hidden[k][1].weight[:, 3:] = 0  # cut off the layer before: layer k has its own quadrant left
    for k in range(5):
        (gradient,) = torch.autograd.grad(layers(x)[0, 4 * k : 4 * k + 4].sum(), x)
        seen = gradient.abs().sum((0, 1)).flatten() > 0
        assert seen.tolist() == [quadrant == k % 4 for quadrant in range(4)]  # a fifth layer begins again


def test_resnet_spinal_layers_equal_explicit_matrices():
    """Columns: first the quadrant, then the layer before. Outputs: the first layer's first."""
    layers, x = cifar10.QuadrantSpinalLayers(2 * 3, 4, 5), torch.randn(2, 3, 2, 2)
    w = [(layer[1].weight, layer[1].bias) for layer in layers.hidden]
    outputs = [torch.relu(x[:, :, 0, 0] @ w[0][0].T + w[0][1])]
    for (weight, bias), (row, column) in zip(w[1:], ((0, 1), (1, 0), (1, 1))):
        chunk, before = weight[:, :3], weight[:, 3:]
        outputs.append(torch.relu(x[:, :, row, column] @ chunk.T + outputs[-1] @ before.T + bias))
    torch.testing.assert_close(layers(x), torch.cat(outputs, 1))


def test_resnet_blocks_have_no_last_relu_unless_asked_and_start_as_specified():
    for network, relu in (("resnet18", False), ("resnet18relu", True)):
        torch.manual_seed(0)
        net = cifar10.build_network(network, "spinal").eval()
        assert bool((net[0](torch.randn(2, 3, 32, 32)) >= 0).all()) == relu
        assert all(bool((m.bias == 0).all()) for m in net.modules() if isinstance(m, nn.Linear))  # spec cifar.md 3.3
    shortcut = net[0][6].shortcut[0]
    assert shortcut.kernel_size == (3, 3) and shortcut.stride == (2, 2)
    for conv in (net[0][0], net[0][-1].body[3]):
        assert float(conv.weight.detach().std()) == pytest.approx((2 / (9 * conv.out_channels)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("network", ["cnn", "lenet", "vgg11", "resnet18", "densenet"])
def test_outputs_are_log_probabilities_and_both_heads_share_the_trunk(network):
    trunks = []
    for head in ("fc", "spinal"):
        torch.manual_seed(3)
        net = cifar10.build_network(network, head).eval()
        output = net(torch.rand(2, 3, 32, 32))
        assert output.shape == (2, 10) and torch.allclose(output.exp().sum(1), torch.ones(2), atol=1e-5)
        trunks.append(torch.cat([p.detach().flatten() for p in net[0].parameters()]))
    assert torch.equal(*trunks)


@pytest.mark.parametrize("network, inner", [("cnn", 0.1), ("vgg11", 0.5), ("resnet18", 0.0)])
@pytest.mark.parametrize("head", ["fc", "spinal"])
def test_fc_dropout_is_that_before_the_output_layer_only(network, inner, head):
    with torch.device("meta"):
        plain, changed = (cifar10.build_network(network, head, fc_dropout=p)[1] for p in (None, 0.3))
    rates = [[m.p for m in part.modules() if isinstance(m, nn.Dropout)] for part in (plain, changed)]
    assert set(rates[0]) <= {inner, 0.0} and rates[1] == [*rates[0][:-1], 0.3] and rates[0][-1] == inner


# ---- Augmentation and rates ------------------------------------------------------------------------------------------
def test_pad_flip_crop_equals_torchvision_with_the_same_draws():
    images = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8)
    views = cifar10.pad_flip_crop(images, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    flips = torch.rand(100, generator=generator) < 0.5
    tops, lefts = torch.randint(0, 9, (2, 100), generator=generator)
    for image, flip, top, left, view in zip(images, flips, tops, lefts, views):
        image = TF.pad(image, [4] * 4)
        image = TF.horizontal_flip(image) if flip else image
        assert torch.equal(TF.crop(image, int(top), int(left), 32, 32), view)


def test_crops_and_flips_are_uniform():
    image = torch.zeros(20_000, 1, 32, 32, dtype=torch.uint8)
    image[:, 0, 16, 10] = 1  # after pad and flip at row 20, column 14 or 25
    views = cifar10.augment(image, ["pad_flip_crop"], torch.Generator().manual_seed(1))
    places = views.nonzero()
    rows, columns = 20 - places[:, 2], places[:, 3]
    flipped = columns > 14
    assert len(places) == 20_000 and abs(float(flipped.float().mean()) - 0.5) < 0.02
    counts = torch.bincount(rows * 9 + torch.where(flipped, 25, 14) - columns, minlength=81)
    assert len(counts) == 81 and counts.min() > 170 and counts.max() < 330  # expected 247, deviation 16


def trace(recipe, accuracies, head="spinal", uniform=0.5):
    """The rates of the epochs after these accuracies, the first one included."""
    rates, best = [recipe["learning_rate"]], -1.0
    for epoch, accuracy in enumerate(accuracies, start=1):
        e = dict(epoch=epoch, accuracy=accuracy, best=best, rate=rates[-1], lr=rates[0], u=uniform, head=head)
        rates.append(recipe["next_rate"](argparse.Namespace(**e)))
        best = max(best, accuracy)
    return rates


def test_the_plan_of_the_published_cifar10_cnn():
    """Spec cifar.md 1.3: 1e-3 in epochs 1 and 2, a third up to epoch 22, 1e-3 / 3^(k - 21) in epoch k > 22 (Q1)."""
    recipe = cifar10.recipe_of("cnn", "published")
    plan = [1e-3] * 2 + [1e-3 / 3] * 20 + [1e-3 / 3 ** (k - 21) for k in range(23, 41)]
    assert trace(recipe, [50.0] * 39, "fc") == pytest.approx(plan)
    assert plan[29] == pytest.approx(5.1e-8, rel=0.01) and plan[39] == pytest.approx(8.6e-13, rel=0.01)
    assert trace(recipe, [50.0, 40.0, 30.0] * 13, "spinal") == [1e-3] * 40  # Q2


@pytest.mark.parametrize("head", ["fc", "spinal"])
def test_the_other_rules_act_below_the_best_and_not_after_a_tie(head):
    accuracies = [50, 60, 60, 55, 61, 40, 45]
    third = [1e-3] * 4 + [1e-3 / 3] * 2 + [1e-3 / 9, 1e-3 / 27]
    assert trace(cifar10.recipe_of("cnn", "corrected"), accuracies, head) == pytest.approx(third)
    for protocol in ("published", "corrected"):
        assert trace(modules[100].recipe_of("cnn", protocol), accuracies, head) == pytest.approx(third)
        for module in modules.values():
            for network, base, power in (("vgg19", 1e-4, 3), ("resnet18", 1e-3, 5), ("densenet", 1e-3, 5)):
                recipe = module.recipe_of(network, protocol)
                assert trace(recipe, accuracies, head) == pytest.approx([base] * 4 + [base * 0.5**power] * 4)


# ---- Data and runs ---------------------------------------------------------------------------------------------------
@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes small files in CIFAR's real layout, with checksums that fit; returns (images (N, 3072), labels) by part."""

    def make(classes, count=20):
        rng, real = np.random.default_rng(0), getattr(modules[classes].torchvision.datasets, f"CIFAR{classes}")
        root, stored = tmp_path / "data" / real.base_folder, {}
        root.mkdir(parents=True)

        def write(name, content):
            (root / name).write_bytes(pickle.dumps(content, protocol=2))
            return hashlib.md5((root / name).read_bytes()).hexdigest()

        for which in ("train_list", "test_list"):
            files = []
            for name, _ in getattr(real, which):
                rows, labels = rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, classes, count)
                stored.setdefault(which, []).append((rows, labels))
                key = "labels" if classes == 10 else "fine_labels"
                files.append([name, write(name, {"data": rows, key: labels.tolist(), "filenames": ["x.png"] * count})])
            monkeypatch.setattr(real, which, files)
        names = {real.meta["key"]: [str(k) for k in range(classes)]}
        monkeypatch.setattr(real, "meta", {**real.meta, "md5": write(real.meta["filename"], names)})
        return {part: tuple(map(np.concatenate, zip(*batches))) for part, batches in stored.items()}

    return make


def run(classes, folder, *arguments):
    flags = ["--data-dir", str(folder / "data"), "--results-dir", str(folder / "results"), "--no-download", "--quiet"]
    return modules[classes].main([*flags, "--device", "cpu", *arguments])


@pytest.mark.parametrize("classes", modules)
def test_the_layout_is_read(tmp_path, fake, classes):
    module, stored = modules[classes], fake(classes)
    options = argparse.Namespace(data_dir=tmp_path / "data", no_download=True, limit=None)
    data = module.load_data(options, module.recipe_of("cnn", "published"), torch.device("cpu"))
    for (images, labels), (rows, truth) in zip((data.train, data.test), stored.values()):
        assert images.dtype == torch.uint8 and images.is_contiguous() and labels.dtype == torch.int64
        assert np.array_equal(images.numpy(), rows.reshape(-1, 3, 32, 32)) and np.array_equal(labels.numpy(), truth)
    assert data.heldout is None and not data.facts["official"]
    assert data.label == ["data" + data.facts["sha256"][:8]]


@pytest.mark.parametrize("classes", modules)
def test_corrected_holds_out_a_tenth_and_measures_each_channel(tmp_path, fake, classes):
    module, (rows, labels) = modules[classes], fake(classes)["train_list"]
    options = argparse.Namespace(data_dir=tmp_path / "data", no_download=True, limit=None)
    recipe = module.recipe_of("cnn", "corrected")
    data = module.load_data(options, recipe, torch.device("cpu"))
    parts = [*zip(*data.train), *zip(*data.heldout)]
    assert len(data.heldout[1]) == len(rows) // 10 and len(parts) == len(rows)
    seen = sorted((image.numpy().tobytes(), int(label)) for image, label in parts)
    assert seen == sorted((row.tobytes(), int(label)) for row, label in zip(rows, labels)), "each image once"
    pixels = data.train[0].numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert recipe["mean"] == pytest.approx(pixels.mean(1), abs=1e-4)
    assert recipe["std"] == pytest.approx(pixels.std(1), abs=1e-4)


@pytest.mark.parametrize("classes", modules)
def test_a_file_with_another_checksum_is_a_sentence(tmp_path, fake, capsys, classes):
    fake(classes)
    victim = next(iter((tmp_path / "data").glob("*/test*")))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    assert run(classes, tmp_path, "--epochs", "1") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: CIFAR-{classes} cannot be had in {tmp_path}") and error.count("\n") == 1


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_a_run_of_both_heads(tmp_path, fake, capsys, protocol):
    fake(10)
    flags = ("--network", "lenet", "--epochs", "2", "--batch-size", "30", "--protocol", protocol, "--save-weights")
    assert run(10, tmp_path, *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("paper" not in line for line in lines), "departures, and other data"
    logs = sorted((tmp_path / "results/logs/cifar10").iterdir())
    assert [log.name.partition("-data")[0] for log in logs] == [
        f"lenet-{label}-{protocol}-e2-b30" for label in ("fc", "spinal6x20")
    ]
    watched = "heldout" if protocol == "corrected" else "test"
    for log in logs:
        start, *epochs, end = map(json.loads, log.read_text().splitlines())
        assert [line["epoch"] for line in epochs] == [1, 2] and f"{watched}_accuracy_pct" in epochs[0]
        assert (start["data"]["train"], start["data"]["heldout"]) == ((90, 10) if watched == "heldout" else (100, 0))
        assert end["selected_epoch"] == (end["best_epoch"] if watched == "heldout" else 2)
    net = cifar10.build_network("lenet", "spinal")
    (path,) = (tmp_path / "results/weights/cifar10").glob("*spinal*")
    net.load_state_dict(torch.load(path, weights_only=True))


@pytest.mark.slow
def test_a_log_that_ships_is_met(tmp_path, real_cifar10):
    """200 real images, one epoch; bit by bit on the set-up of the log, nearly so elsewhere."""
    name = "cnn-spinal4x128-published-e1-limit200-s0.jsonl"
    flags = ("--head", "spinal", "--epochs", "1", "--limit", "200", "--results-dir", str(tmp_path))
    assert run(10, tmp_path, *flags, "--data-dir", str(real_cifar10)) == 0
    ours, theirs = (
        [json.loads(line) for line in (folder / "logs/cifar10" / name).read_text().splitlines()]
        for folder in (tmp_path, ROOT / "results/reference")
    )
    assert ours[0]["data"]["sha256"] == theirs[0]["data"]["sha256"] == cifar10.FINGERPRINT
    assert ours[0]["parameters"] == theirs[0]["parameters"]
    for key in ("train_loss", "test_loss"):
        assert ours[1][key] == pytest.approx(theirs[1][key], rel=0.01)
