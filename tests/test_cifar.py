"""The scripts of CIFAR/: counts, wiring, augmentation, rates, loader, resume. Everything runs offline."""
import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PACKED, ROOT, load_script
from torch import nn
from torchvision.transforms.v2 import functional as TF

modules = {10: load_script("CIFAR/cifar10"), 100: load_script("CIFAR/cifar100")}
COUNTS = {  # cifar.md 1.2, 2.2, 3.2: parameters FC, Spinal; FC multiplications FC, Spinal
    (10, "cnn"): (5_852_170, 2_230_282, 4_723_712, 1_102_848), (100, "cnn"): (5_898_340, 3_524_196, 4_769_792, 2_396_160),
    (10, "vgg11"): (28_149_514, 10_559_242, 18_915_328, 1_331_200), (10, "vgg13"): (28_334_410, 10_744_138, 18_915_328, 1_331_200),
    (10, "vgg16"): (33_646_666, 16_056_394, 18_915_328, 1_331_200), (10, "vgg19"): (38_958_922, 21_368_650, 18_915_328, 1_331_200),
    (100, "vgg11"): (28_518_244, 10_743_652, 19_283_968, 1_515_520),
    (100, "vgg13"): (28_703_140, 10_928_548, 19_283_968, 1_515_520),
    (100, "vgg16"): (34_015_396, 16_240_804, 19_283_968, 1_515_520),
    (100, "vgg19"): (39_327_652, 21_553_060, 19_283_968, 1_515_520),
    (10, "resnet18"): (3_141_674, 3_609_130, 2_560, 468_992), (10, "resnet34"): (5_670_570, 6_138_026, 2_560, 468_992),
    (100, "resnet18"): (3_164_804, 4_656_772, 25_600, 1_515_520), (100, "resnet34"): (5_693_700, 7_185_668, 25_600, 1_515_520),
    (10, "lenet"): (62_006, 30_202, 58_920, 27_200),  # printed in version 2: 62.01k, 30.20k; README of the paper's numbers
    (10, "densenet"): (1_593_738, 1_132_554, 529_408, 68_608),
}


def size(classes, network, head, **options):
    module = modules[classes]
    net = module.build_network(network, head, **options)
    return sum(p.numel() for p in net.parameters()), module.count_fc_multiplications(net, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("classes, network", COUNTS)
def test_counts_equal_the_specification(classes, network):
    fc, spinal = size(classes, network, "fc"), size(classes, network, "spinal")
    assert (fc[0], spinal[0], fc[1], spinal[1]) == COUNTS[classes, network]


def test_the_guessed_densenet_meets_the_printed_counts():
    assert size(10, "densenet", "spinal", width=64) == (1_360_266, 295_936)  # printed: 1.36M and 44.1 % fewer
    trunk = sum(p.numel() for p in modules[10].build_network("densenet", "fc").trunk.parameters())
    assert round((trunk + 10_250) / 1e6, 2) == 1.07 and round(size(10, "densenet", "spinal")[0] / 1e6, 2) == 1.13


@pytest.mark.parametrize("classes", modules)
def test_resnet_spinal_layers_walk_the_quadrants(classes):
    layers = modules[classes].QuadrantSpinalLayers(3, 4, 5)
    for part in layers.hidden:
        part[1] = nn.Identity()  # no ReLU: every gradient that can be there is there
    x = torch.randn(1, 3, 2, 2, requires_grad=True)
    output = layers(x)
    for k in range(4):
        (gradient,) = torch.autograd.grad(output[0, 5 * k : 5 * k + 5].sum(), x, retain_graph=True)
        seen = gradient.abs().sum((0, 1)).flatten() > 0
        assert seen.tolist() == [place <= k for place in range(4)]  # P00, P01, P10, P11
    last = layers.hidden[3][0].weight
    assert last.shape == (5, 8)
    by_hand = layers.hidden[1][0](torch.cat([x[:, :, 0, 1], layers.hidden[0][0](x[:, :, 0, 0])], 1))
    assert torch.equal(output[:, 5:10], by_hand)


@pytest.mark.parametrize("network, p, half, fc_dropouts", [("cnn", 0.1, 2048, 2), ("vgg11", 0.5, 256, 2)])
def test_dropout_is_where_the_flavour_has_it(network, p, half, fc_dropouts):
    spinal, fc = (modules[10].build_network(network, head).head for head in ("spinal", "fc"))
    assert [type(part) for part in spinal][1:] == [nn.Dropout, nn.Linear] and spinal[1].p == p
    for layer in spinal[0].hidden:
        assert [type(part) for part in layer] == [nn.Dropout, nn.Linear, nn.ReLU] and layer[0].p == p
    assert spinal[0].half == half
    kinds = [type(part) for part in fc]
    assert kinds == ([nn.Dropout] if network == "cnn" else []) + [nn.Linear, nn.ReLU] + \
        ([nn.Dropout] if network == "vgg11" else []) + [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert sum(kind is nn.Dropout for kind in kinds) == fc_dropouts


def test_resnet_blocks_have_no_last_relu_unless_asked_and_start_as_specified():
    for network, relu in (("resnet18", False), ("resnet18relu", True)):
        torch.manual_seed(0)
        net = modules[10].build_network(network, "spinal").eval()
        assert bool((net.trunk(torch.randn(2, 3, 32, 32)) >= 0).all()) == relu
    assert all(bool((m.bias == 0).all()) for m in net.modules() if isinstance(m, nn.Linear))
    shortcut = net.trunk[6].shortcut[0]
    assert shortcut.kernel_size == (3, 3) and shortcut.stride == (2, 2)
    conv = net.trunk[-1].body[3].weight
    assert float(conv.detach().std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


@pytest.mark.parametrize("classes", modules)
def test_outputs_are_log_probabilities_and_both_heads_share_the_trunk(classes):
    trunks = []
    for head in ("fc", "spinal"):
        torch.manual_seed(3)
        net = modules[classes].build_network("resnet18", head).eval()
        output = net(torch.rand(2, 3, 32, 32))
        assert output.shape == (2, classes) and torch.allclose(output.exp().sum(1), torch.ones(2), atol=1e-5)
        trunks.append(torch.cat([p.flatten() for p in net.trunk.parameters()]))
    assert torch.equal(*trunks)


@pytest.mark.parametrize("bad", [("vgg5", "fc", {}), ("cnn", "x", {}), ("cnn", "fc", {"width": 3})])
def test_what_does_not_exist_is_refused(bad):
    with pytest.raises(ValueError):
        modules[10].build_network(bad[0], bad[1], **bad[2])


# ---- Augmentation and rates ------------------------------------------------------------------------------------------------
def test_pad_flip_crop_equals_torchvision():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8)
    flips, (tops, lefts) = torch.rand(100) < 0.5, torch.randint(0, 9, (2, 100))
    for image, flip, top, left, got in zip(images, flips, tops, lefts, modules[10].pad_flip_crop(images, flips, tops, lefts)):
        image = TF.pad(image, [4] * 4)
        image = TF.horizontal_flip(image) if flip else image
        assert torch.equal(TF.crop(image, int(top), int(left), 32, 32), got)


def test_crops_and_flips_are_uniform():
    image = torch.zeros(20_000, 1, 32, 32, dtype=torch.uint8)
    image[:, 0, 16, 10] = 1  # after pad and flip at row 20, column 14 or 25
    places = modules[10].random_pad_flip_crop(image, torch.Generator().manual_seed(1)).nonzero()
    rows, columns = 20 - places[:, 2], places[:, 3]
    flipped = columns > 14
    assert len(places) == 20_000 and abs(float(flipped.float().mean()) - 0.5) < 0.02
    lefts = torch.where(flipped, 25, 14) - columns
    counts = torch.bincount(rows * 9 + lefts, minlength=81)
    assert len(counts) == 81 and counts.min() > 170 and counts.max() < 330  # expected 247, deviation 16


def trace(rule, accuracies, base, uniform=0.5):
    rate, best, rates = base, -1.0, []
    for epoch, accuracy in enumerate(accuracies, start=1):
        rates.append(rate)
        rate = rule.next(epoch, rule.improves(accuracy, best), rate, base, uniform)
        best = max(best, accuracy)
    return rates


def test_rates_of_the_cifar10_cnn():  # cifar.md 1.3, Q1, Q2
    recipe = modules[10].RECIPES["cnn"]
    rates = trace(recipe.rule, range(160), 1e-3)
    assert rates == pytest.approx([1e-3] * 2 + [1e-3 / 3] * 20 + [1e-3 / 3 ** (k - 21) for k in range(23, 161)])
    assert rates[29] == pytest.approx(5.1e-8, rel=0.01) and rates[39] == pytest.approx(8.6e-13, rel=0.01)
    assert not recipe.rule.renew  # the harness would forget Adam's moments
    assert trace(recipe.spinal_rule, [50, 40, 30], 1e-3) == [1e-3] * 3


def test_rates_of_the_others():
    accuracies = [50, 60, 60, 55, 61, 40, 45]
    third = [1e-3] * 4 + [1e-3 / 3] * 2 + [1e-3 / 9]
    assert trace(modules[100].RECIPES["cnn"].rule, accuracies, 1e-3) == pytest.approx(third)
    assert trace(modules[10].RECIPES["cnn"].corrected_rule, accuracies, 1e-3) == pytest.approx(third)
    for module in modules.values():
        for network, base, power in (("vgg19", 1e-4, 3), ("resnet18", 1e-3, 5)):
            restart = base * 0.5**power
            assert trace(module.RECIPES[network].rule, accuracies, base) == [base] * 4 + [restart] * 3


def test_facts():
    epochs = {c: {n: r.epochs for n, r in m.RECIPES.items()} for c, m in modules.items()}
    assert [epochs[10][n] for n in ("resnet18", "resnet34", "vgg19", "vgg11", "vgg13", "cnn")] == [150, 150, 200, 35, 35, 160]
    assert [epochs[100][n] for n in ("resnet18", "resnet34", "vgg19", "vgg16", "vgg13", "vgg11")] == [30, 30, 150, 150, 50, 40]
    assert [modules[10].RECIPES[n].batch_size for n in ("cnn", "vgg19", "resnet18")] == [100, 100, 200]
    assert {r.batch_size for r in modules[100].RECIPES.values()} == {200}


# ---- Loader and runs -------------------------------------------------------------------------------------------------------
def fake(folder, monkeypatch, classes, count=20):
    """Small files in CIFAR's real pickle layout, with md5 lists that fit. Returns the images as stored."""
    module, rng, real = modules[classes], np.random.default_rng(0), modules[classes].SOURCE
    root = folder / real.base_folder
    root.mkdir(parents=True)
    attributes, stored = {}, {}
    for which in ("train_list", "test_list"):
        attributes[which] = []
        for name, _ in getattr(real, which):
            rows = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
            labels = [int(x) for x in rng.integers(0, classes, count)]
            stored.setdefault(which, []).append((rows, labels))
            entry = {"data": rows, "labels" if classes == 10 else "fine_labels": labels, "filenames": ["x.png"] * count}
            (root / name).write_bytes(pickle.dumps(entry, protocol=2))
            attributes[which].append([name, hashlib.md5((root / name).read_bytes()).hexdigest()])
    names = {real.meta["key"]: [str(k) for k in range(classes)]}
    (root / real.meta["filename"]).write_bytes(pickle.dumps(names, protocol=2))
    attributes["meta"] = {**real.meta, "md5": hashlib.md5((root / real.meta["filename"]).read_bytes()).hexdigest()}
    monkeypatch.setattr(module, "SOURCE", type("Fake", (real,), attributes))
    return root, stored


def run(module, folder, *arguments):
    return module.main(["--data-dir", str(folder / "d"), "--results-dir", str(folder / "r"), "--no-download", "--quiet",
                        "--device", "cpu", *arguments])


@pytest.mark.parametrize("classes", modules)
def test_loader_reads_the_layout(tmp_path, monkeypatch, classes):
    _, stored = fake(tmp_path / "d", monkeypatch, classes)
    options = type("Options", (), {"data_dir": tmp_path / "d", "no_download": True})
    images, labels, test_images, _ = modules[classes].load_arrays(options)
    rows = np.concatenate([rows for rows, _ in stored["train_list"]])
    assert images.dtype == torch.uint8 and images.shape == (len(rows), 3, 32, 32) and test_images.shape == (20, 3, 32, 32)
    assert np.array_equal(images.numpy().reshape(-1, 3072), rows) and labels.dtype == torch.int64
    assert labels.tolist() == [label for _, part in stored["train_list"] for label in part]


@pytest.mark.parametrize("classes", modules)
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_files_are_a_sentence(tmp_path, monkeypatch, capsys, classes, damage):
    root, _ = fake(tmp_path / "d", monkeypatch, classes)
    victim = root / modules[classes].SOURCE.test_list[0][0]
    victim.write_bytes(victim.read_bytes()[:100]) if damage == "truncated" else victim.unlink()
    assert run(modules[classes], tmp_path, "--epochs", "1") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: CIFAR") and error.count("\n") == 1 and "--data-dir" in error


def test_resumed_runs_equal_uninterrupted_ones(tmp_path, monkeypatch):
    module = modules[10]
    fake(tmp_path / "d", monkeypatch, 10)
    flags = ("--epochs", "3", "--limit", "20", "--batch-size", "10")
    assert run(module, tmp_path, *flags) == 0
    logs = {path.name: path.read_text() for path in (tmp_path / "r").rglob("*.jsonl")}
    assert len(logs) == 2
    original, calls = module.Run.train_epoch, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(self, *arguments)

    monkeypatch.setattr(module.Checkpoint, "save", lambda self, state: (setattr(self, "cost", 0.0), save(self, state))[1])
    monkeypatch.setattr(module.Run, "train_epoch", interrupted)
    assert run(module, tmp_path, *flags, "--overwrite", "--results-dir", str(tmp_path / "r2")) == 130
    monkeypatch.setattr(module.Run, "train_epoch", original)
    assert run(module, tmp_path, *flags, "--results-dir", str(tmp_path / "r2")) == 0

    def bare(text):
        records = [json.loads(line) for line in text.splitlines()]
        for record in records:
            for key in ("seconds", "provenance", "peak_memory_bytes"):
                record.pop(key, None)
        return records

    for path in (tmp_path / "r2").rglob("*.jsonl"):
        assert bare(path.read_text()) == bare(logs[path.name])


save = modules[10].Checkpoint.save

# ---- Several processes -----------------------------------------------------------------------------------------------------
HELPER = """
import sys
sys.path[:0] = [{tests!r}]
import torch, test_cifar
module = test_cifar.modules[10]
module.SOURCE = type("Fake", (module.SOURCE,), {lists!r})
module.build_network = test_cifar.without_dropout(module.build_network)
end = module.Run.end
def saving_end(self):
    torch.save(self.network.state_dict(), {weights!r} + self.label + str(self.team.rank))
    end(self)
module.Run.end = saving_end
sys.exit(module.main(sys.argv[1:]))  # once: torchrun's store keeps the addresses of a first group
"""


def without_dropout(build_network):
    """Masks are drawn in each process for its part, so no two ways of cutting a batch have the same."""
    def build(*arguments, **keywords):
        network = build_network(*arguments, **keywords)
        for module in network.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        return network
    return build


@pytest.fixture
def torchrun(tmp_path, monkeypatch):
    """Runs cifar10.py on small files in two processes on the CPU, which save their weights; returns the finished torchrun."""
    fake(tmp_path / "d", monkeypatch, 10)
    lists = {name: getattr(modules[10].SOURCE, name) for name in ("train_list", "test_list", "meta")}
    helper = tmp_path / "helper.py"
    helper.write_text(HELPER.format(tests=str(ROOT / "tests"), lists=lists, weights=str(tmp_path / "weights ")))

    def start(*arguments):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(helper), "--data-dir",
                   str(tmp_path / "d"), "--results-dir", str(tmp_path / "two"), "--no-download", "--device", "cpu", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return start


needs_gloo = pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="needs gloo")


@needs_gloo
def test_two_processes_take_the_steps_of_one(tmp_path, monkeypatch, torchrun):
    """Batches of 7, the last of 6, cut into 4 + 3 and 3 + 3; both heads, batch norm, held-out selection, no dropout."""
    flags = ("--epochs", "3", "--limit", "22", "--batch-size", "7", "--protocol", "corrected")
    monkeypatch.setattr(modules[10], "build_network", without_dropout(modules[10].build_network))
    assert run(modules[10], tmp_path, *flags) == 0
    done = torchrun(*flags)
    assert done.returncode == 0, done.stderr[:2000]
    assert done.stdout.count("CIFAR-10 cnn FC") == done.stdout.count("CIFAR-10 cnn Spinal") == 1, "the first process speaks"
    assert "epoch 3/3" in done.stdout
    ones, twos = (sorted((tmp_path / name / "logs/cifar10").iterdir()) for name in ("r", "two"))
    assert [one.name for one in ones] == [two.name for two in twos] and len(ones) == 2
    for pair in zip(ones, twos):
        (start, *one, end), (start_2, *two, end_2) = ([json.loads(line) for line in log.read_text().splitlines()] for log in pair)
        assert start_2["provenance"]["processes"] == 2 and start_2["settings"] == start["settings"]
        assert len(one) == len(two) == 3
        # three steps; later on Adam, which makes whole steps of gradients that are zero but for rounding, drives them apart
        assert two[0]["train_loss"] == pytest.approx(one[0]["train_loss"], rel=1e-4)
        assert two[0]["heldout_loss"] == pytest.approx(one[0]["heldout_loss"], rel=1e-4)
        assert end_2["outcome"] == end["outcome"] == "finished"
    for label in ("fc", "spinal4x128"):
        first, second = (torch.load(f"{tmp_path / 'weights '}{label}{rank}") for rank in range(2))
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    again = torchrun(*flags)
    assert again.returncode == 0 and again.stdout.count("already finished") == 2, again.stderr[-2000:]


ONE_STEP = """
import argparse, copy, sys
sys.path[:0] = [{tests!r}]
import torch, test_cifar
module, build = test_cifar.modules[10], test_cifar.without_dropout(test_cifar.modules[10].build_network)
team = module.Team(argparse.Namespace(device="cpu"))
alone = type("Alone", (), dict(rank=0, size=1, wrap=lambda self, network, ignored: network, add=lambda self, value: value))()
data = argparse.Namespace(shift=torch.zeros(3, 1, 1), scale=torch.ones(3, 1, 1))
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (7, 3, 32, 32), generator=generator, dtype=torch.uint8)
split = module.Split(images, torch.arange(7))
for name in ("cnn", "vgg11", "resnet18", "densenet"):
    torch.manual_seed(1)
    one, grads = build(name, "spinal"), []
    two = copy.deepcopy(one)
    module.share_batch_norm(two)
    for network, members in ((one, alone), (two, team)):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        trainer = module.Trainer(network, optimizer, data, "fp32", members)
        loss = trainer.epoch(split, torch.arange(7), 7, lambda: None)
        grads.append(torch.cat([weight.grad.flatten() for weight in network.parameters()] + [torch.tensor([loss])]))
    statistics = max((old - new).abs().max() / old.abs().max() for (key, old), new in
                     zip(one.state_dict().items(), two.state_dict().values()) if "running" in key)
    assert list(one.state_dict()) == list(two.state_dict())
    error = float((grads[0] - grads[1]).norm() / grads[0].norm())
    sys.stdout.write(f"{{name}} {{team.rank}} {{error}} {{float(statistics)}}\\n")
torch.distributed.destroy_process_group()
"""


@needs_gloo
def test_gradients_and_statistics_of_two_processes_are_those_of_the_whole_batch(tmp_path):
    """Within rounding: fp32 has 7 digits. Seven images, 4 + 3; batch norm without sharing would be off by tenths."""
    (tmp_path / "step.py").write_text(ONE_STEP.format(tests=str(ROOT / "tests")))
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "step.py"],
                          capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[:2000]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert sorted(line[:2] for line in lines) == sorted([name, rank] for name in ("cnn", "vgg11", "resnet18", "densenet") for rank in "01")
    assert all(float(error) < 1e-4 and float(statistics) < 1e-5 for _, _, error, statistics in lines), done.stdout


@needs_gloo
def test_what_several_processes_cannot_do_is_one_sentence(tmp_path, torchrun):
    done = torchrun("--batch-size", "7", "--limit", "15", "--epochs", "1")
    assert done.returncode != 0 and "error: batches of 7 cannot be cut into 2 parts" in done.stderr
    assert "helper.py\", line" not in done.stderr and not (tmp_path / "two").exists()
