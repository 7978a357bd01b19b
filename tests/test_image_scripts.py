"""The scripts of MNIST/ and EMNIST/: wiring, augmentation, data, training and logs, offline.

What scripts share is the same text (tests/test_sync.py), so that one script stands for all of them
where nothing of its own is tried. Settings are in test_settings.py, interrupted runs in
test_resume.py, mistakes in test_bad_data.py.
"""

import base64
import hashlib
import json
import math
import os
import runpy
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import numpy
import pytest
import torch
import torchvision.transforms.functional as TF
from torch import nn
from torchvision import datasets, transforms

from conftest import ARCH2, ROOT, SCRIPTS, lines_of, load_script, logs_in, run
from made_up_data import SETS, data_of, pictures
from report import logs as report_logs

mnist, fashion = load_script("MNIST/mnist"), load_script("MNIST/fashion_mnist")
CPU = torch.device("cpu")
FILES = [script for script in SCRIPTS if script != "MNIST/optdigits"]
QUICK = ["--epochs", "1", "--head", "fc", "--quiet"]


def loaded(script: str, folder: Path, network: str, protocol: str = "published", **changes):
    """The module of a script, its data as it loads them, and its recipe for them."""
    module = load_script(script)
    recipe = module.recipe_of(network, "spinal", protocol, **changes)
    data = module.load_data(folder, recipe, False, CPU)
    return module, data, module.measured(recipe, data.train[0])


def network_name(script: str) -> str:
    return "arch2" if script in ARCH2 else "cnn"


# ---- Wiring -------------------------------------------------------------------------------------
def linears_of(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


def test_spinal_layers_equal_explicit_matrices():
    torch.manual_seed(0)
    layers, x = mnist.SpinalLayers(10, 3, 4), torch.randn(7, 10)
    a, b = x[:, :5], x[:, 5:]
    first, second, third = linears_of(layers)
    h1 = torch.relu(a @ first.weight.T + first.bias)
    # The columns of a matrix: the half of the input, then the layer before.
    h2 = torch.relu(b @ second.weight[:, :5].T + h1 @ second.weight[:, 5:].T + second.bias)
    h3 = torch.relu(a @ third.weight[:, :5].T + h2 @ third.weight[:, 5:].T + third.bias)
    torch.testing.assert_close(layers(x), torch.cat([h1, h2, h3], 1))


@pytest.mark.parametrize("k", range(5))
def test_gradients_show_which_half_and_which_layer_each_spinal_layer_sees(k):
    torch.manual_seed(k)
    layers, x = mnist.SpinalLayers(6, 5, 4), torch.randn(64, 6, requires_grad=True)
    linears = linears_of(layers)
    biases = [linear.bias for linear in linears]
    whole = linears[k].weight.detach().clone()
    with torch.no_grad():
        linears[k].weight[:, 3:] = 0  # cut off from the layer before
    (gradient,) = torch.autograd.grad(layers(x)[:, 4 * k : 4 * k + 4].sum(), x)
    assert (gradient.abs().sum(0) > 0).tolist() == ([k % 2 == 0] * 3 + [k % 2 == 1] * 3)
    with torch.no_grad():
        linears[k].weight.copy_(whole)[:, :3] = 0  # cut off from its half
    gradients = torch.autograd.grad(
        layers(x)[:, 4 * k : 4 * k + 4].sum(), biases, allow_unused=True
    )
    seen = [gradient is not None and bool(gradient.any()) for gradient in gradients]
    assert seen == [j <= k for j in range(5)]  # earlier layers act through the last of them
    if k > 1:
        with torch.no_grad():
            linears[k - 1].weight[:, 3:] = 0
        gradients = torch.autograd.grad(
            layers(x)[:, 4 * k : 4 * k + 4].sum(), biases[: k - 1], allow_unused=True
        )
        assert not any(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("network", ["cnn", "vgg5"])
def test_both_heads_of_a_seed_start_from_the_same_trunk(network):
    trunks = []
    for head in ("fc", "spinal"):
        torch.manual_seed(5)
        trunks.append(mnist.build_network(network, head)[0].state_dict())
    assert trunks[0].keys() == trunks[1].keys() and len(trunks[0]) > 3
    assert all(torch.equal(trunks[0][key], trunks[1][key]) for key in trunks[0])


# ---- Augmentation -------------------------------------------------------------------------------
def textures(count: int = 200) -> torch.Tensor:
    """Images with structure up to the border, where mistakes show."""
    coarse = torch.rand(count, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    fine = nn.functional.interpolate(coarse, 28, mode="bicubic").clamp(0, 1)
    return fine.mul(255).round().to(torch.uint8)


def test_rotation_equals_torchvision():
    images = textures()
    ours = mnist.rotation10(images, torch.Generator().manual_seed(1))
    degrees = torch.rand(len(images), generator=torch.Generator().manual_seed(1)) * 20 - 10
    theirs, from_pillow = [], []
    for image, angle in zip(images, degrees.tolist(), strict=True):
        theirs.append(TF.rotate(image, angle, fill=[0.0]))
        from_pillow.append(TF.pil_to_tensor(TF.rotate(TF.to_pil_image(image), angle)))
    assert torch.equal(ours, torch.stack(theirs)) and (ours != images).float().mean() > 0.3
    assert (ours != torch.stack(from_pillow)).float().mean() < 0.01


def test_perspective_equals_torchvision():
    images = textures()
    ours = mnist.perspective(images, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    chosen = torch.rand(len(images), generator=generator) < 0.5
    moves = torch.randint(0, 8, (len(images), 4, 2), generator=generator)  # 0 to 0.5 * 14
    start, theirs = torch.tensor([[0, 0], [27, 0], [27, 27], [0, 27]]), images.clone()
    for k in chosen.nonzero().flatten().tolist():
        end = (start - moves[k]).abs()
        points = (start.tolist(), end.tolist())
        theirs[k] = TF.perspective(images[k], *points, TF.InterpolationMode.BILINEAR, fill=[0.0])
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() <= 1e-4
    assert torch.equal(ours[~chosen], images[~chosen]) and 0.3 < chosen.float().mean() < 0.7
    assert (ours[chosen] != images[chosen]).float().mean() > 0.5


def test_resized_crop_equals_torchvision():
    """Boxes by torchvision's rules from the same numbers; pixels by Pillow."""
    images, theirs, whole = textures(), [], 0
    ours = fashion.crop95(images, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    areas = 784 * (0.95 + 0.05 * torch.rand(200, 10, generator=generator))
    logarithms = torch.rand(200, 10, generator=generator) * (math.log(4 / 3) - math.log(3 / 4))
    ratios = torch.exp(math.log(3 / 4) + logarithms)
    heights, widths = torch.sqrt(areas / ratios).round(), torch.sqrt(areas * ratios).round()
    places = torch.rand(200, 2, dtype=torch.float64, generator=generator).tolist()
    for k, (y, x) in enumerate(places):
        height, width = 28, 28  # if none of ten fits
        for h, w in zip(heights[k].int().tolist(), widths[k].int().tolist(), strict=True):
            if h <= 28 and w <= 28:
                height, width = h, w
                break
        whole += (height, width) == (28, 28)
        box = [int(y * (29 - height)), int(x * (29 - width)), height, width]
        crop = TF.resized_crop(TF.to_pil_image(images[k]), *box, [28, 28])
        theirs.append(TF.pil_to_tensor(crop))
    assert torch.equal(ours, torch.stack(theirs)) and (ours != images).float().mean() > 0.4
    assert 0.15 < whole / 200 < 0.42  # 28.5 % of many


def test_augment_applies_the_steps_in_order_to_2000_images_at_a_time(monkeypatch):
    calls = []

    def double(images, generator):
        calls.append(("double", len(images)))
        return images * 2

    def add(images, generator):
        calls.append(("add", len(images)))
        return images + 1

    monkeypatch.setattr(mnist, "AUGMENTATIONS", {"add": add, "double": double})
    images = torch.arange(2_100, dtype=torch.uint8).view(-1, 1, 1, 1) % 100
    out = mnist.augment(images, ["double", "add"], torch.Generator())
    assert calls == [("double", 2_000), ("add", 2_000), ("double", 100), ("add", 100)]
    assert torch.equal(out, images * 2 + 1)
    assert torch.equal(mnist.augment(images, [], torch.Generator()), images)


# ---- Data ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("script", FILES)
def test_data_are_split_labelled_and_described(script, data):
    network = network_name(script)
    train, labels, test, test_labels = map(torch.from_numpy, pictures(script, train=132))
    _, published, recipe = loaded(script, data, network)
    assert torch.equal(published.train[0][:, 0], train) and torch.equal(published.train[1], labels)
    assert torch.equal(published.test[0][:, 0], test)
    assert torch.equal(published.test[1], test_labels) and published.heldout is None
    assert published.train[1].dtype == torch.int64
    whole = [x.to(torch.uint8).numpy().tobytes() for x in (train, labels, test, test_labels)]
    facts = {"train": 132, "heldout": 0, "test": 60, "official": False, "verified": False}
    facts["sha256"] = hashlib.sha256(b"".join(whole)).hexdigest()[:16]
    assert published.facts == facts

    first = SETS[data_of(script)][3]  # `corrected` counts from 0
    _, corrected, recipe = loaded(script, data, network, "corrected")
    assert corrected.facts == facts | {"train": 121, "heldout": 11}  # one in twelve
    assert torch.equal(corrected.test[1], test_labels - first)
    wanted = {x.numpy().tobytes(): int(y) for x, y in zip(train, labels - first, strict=True)}
    found = {}
    for images, truth in (corrected.train, corrected.heldout):
        found |= {x.numpy().tobytes(): int(y) for x, y in zip(images, truth, strict=True)}
    assert found == wanted and len(found) == 132
    pixels = corrected.train[0].double() / 255  # the held-out images are not measured
    assert recipe.mean == [round(float(pixels.mean()), 4)]
    assert recipe.std == [round(float(pixels.std()), 4)]
    _, again, _ = loaded(script, data, network, "corrected", epochs=3)
    assert torch.equal(again.heldout[0], corrected.heldout[0])  # the same images in all runs


@pytest.mark.parametrize("split", ["digits", "letters", "balanced"])
def test_emnist_is_taken_as_torchvision_delivers_it(split, data):
    """Its images lie transposed, for training and test alike."""
    _, found, _ = loaded(f"EMNIST/emnist_{split}", data, "cnn")
    for part, train in ((found.train, True), (found.test, False)):
        delivered = datasets.EMNIST(data, split=split, train=train)
        assert torch.equal(part[0][:, 0], delivered.data)
        assert torch.equal(part[1], delivered.targets)


def test_limit_takes_the_first_images(data):
    _, part, _ = loaded("MNIST/mnist", data, "cnn", limit=24)
    _, whole, _ = loaded("MNIST/mnist", data, "cnn")
    assert torch.equal(part.train[0], whole.train[0][:24])
    assert torch.equal(part.test[1], whole.test[1][:24])
    assert (part.facts["train"], part.facts["test"]) == (24, 24)
    assert part.facts["sha256"] == whole.facts["sha256"]


def test_optical_digits_are_split_once_and_framed():
    _, found, _ = loaded("MNIST/optdigits", Path("nowhere"), "cnn")
    assert found.facts["official"] is True
    ends, wanted = [0], []
    for count in (178, 182, 177, 183, 181, 182, 181, 179, 174, 180):  # zeros, ones, ...
        ends.append(ends[-1] + count)
        wanted.append(sum(k % 5 != 0 for k in range(*ends[-2:])))  # every fifth is for test
    assert torch.bincount(found.train[1]).tolist() == wanted
    images = found.train[0]
    assert not images[:, :, :2].any() and not images[:, :, :, -2:].any() and images.max() == 255
    inner = images[:, :, 2:-2, 2:-2]  # each pixel is repeated three times
    assert torch.equal(inner[:, :, ::3, ::3], inner[:, :, 2::3, 1::3])


# ---- Training -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "script, network, head",
    [
        ("MNIST/mnist", "cnn", "fc"),
        ("EMNIST/emnist_digits", "cnn", "spinal"),
        ("MNIST/fashion_mnist", "vgg5", "spinal"),
        ("MNIST/arch2_mnist", "arch2", "spinal"),
    ],
)
def test_two_steps_equal_a_loop_written_by_hand(script, network, head):
    module = load_script(script)
    recipe = module.recipe_of(network, head, "published", batch_size=4)
    torch.manual_seed(0)
    ours, theirs = module.network_of(recipe), module.network_of(recipe)
    theirs.load_state_dict(ours.to(memory_format=torch.channels_last).state_dict())
    theirs.to(memory_format=torch.channels_last)
    images, labels, *_ = map(torch.from_numpy, pictures("MNIST/mnist", train=6))
    before = [x.detach().clone() for x in ours.parameters()]
    rate = recipe.learning_rate
    optimizer = torch.optim.SGD(theirs.parameters(), rate, momentum=0.5)
    if network == "vgg5":
        optimizer = torch.optim.Adam(theirs.parameters(), rate)
    trainer, batches = module.TRAINER(ours, recipe, CPU), torch.tensor([3, 1, 0, 4, 5, 2]).split(4)
    trainer.begin(1)
    torch.manual_seed(1)
    loss = trainer.epoch(images[:, None], labels, batches, rate)
    torch.manual_seed(1)
    norm = ([0.5], [0.5]) if network == "vgg5" else ([0.1307], [0.3081])
    step = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*norm)])
    total = 0.0
    for batch in batches:
        views = torch.stack([step(images[k].numpy()) for k in batch])
        batch_loss = nn.functional.cross_entropy(theirs(views), labels[batch])
        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()
        total += batch_loss.item() * len(batch)
    assert loss == pytest.approx(total / 6, rel=1e-4)
    for a, b, old in zip(ours.parameters(), theirs.parameters(), before, strict=True):
        if network != "vgg5":
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        elif a.ndim > 1:  # Adam moves a weight by its gradient's sign, even if that is rounding
            assert (a - b).abs().mean() < 0.1 * (a - old).abs().mean()


@pytest.mark.parametrize("script", SCRIPTS)
def test_batches_are_complete_and_the_same_for_both_heads(script, data, tmp_path, monkeypatch):
    """Augmented images, labels and orders of two epochs, as they reach training."""
    module, seen = load_script(script), []

    def epoch(self, images, labels, batches, rate):
        views = hashlib.sha256(images.numpy()).hexdigest()
        seen.append((views, labels.tolist(), [batch.tolist() for batch in batches]))
        return 1.0

    def evaluate(self, images, labels):
        return 1.0, labels == labels

    def network_of(recipe):
        return nn.Linear(2, 2)

    monkeypatch.setattr(module.Trainer, "epoch", epoch)
    monkeypatch.setattr(module.Trainer, "evaluate", evaluate)
    monkeypatch.setattr(module, "network_of", network_of)
    flags = ["--network", module.NETWORKS[-1], "--epochs", "2", "--batch-size", "50"]
    flags += ["--quiet", "--limit", "132"]
    assert run(script, data, tmp_path, *flags) == 0
    (views, _, first), (other_views, _, second) = seen[:2]
    assert seen == seen[:2] * len(module.HEADS)
    assert [len(batch) for batch in first] == [50, 50, 32]  # the last one is smaller
    first, second = sum(first, []), sum(second, [])
    assert sorted(first) == sorted(second) == list(range(132)) and first != second
    assert views != other_views  # drawn anew in each epoch
    seen.clear()
    assert run(script, data, tmp_path, *flags, "--head", module.HEADS[0], "--seed", "1") == 0
    assert sum(seen[0][2], []) != first and seen[0][0] != views


def test_evaluation_has_no_dropout_and_does_not_depend_on_its_parts():
    torch.manual_seed(0)
    trainer = mnist.Trainer(mnist.build_network("cnn", "fc"), mnist.CNN, CPU)
    images = torch.randint(0, 256, (1_010, 1, 28, 28), dtype=torch.uint8)
    labels = torch.randint(0, 10, (1_010,))
    trainer.network.train()
    loss, right = trainer.evaluate(images, labels)
    with torch.no_grad():
        outputs = trainer.network.eval()((images.float() / 255 - 0.1307) / 0.3081)
    assert torch.equal(right, outputs.argmax(1) == labels)
    assert loss == pytest.approx(float(nn.functional.nll_loss(outputs, labels)), rel=1e-5)


@pytest.mark.parametrize("script", ["MNIST/mnist", "MNIST/arch2_kmnist"])
def test_the_output_layer_is_fp32_under_bf16(script):
    module, seen = load_script(script), []
    recipe = module.recipe_of(network_name(script), "spinal", "published", width=4)
    trainer = module.TRAINER(
        module.network_of(recipe), module.replace(recipe, precision="bf16"), CPU
    )

    def note(layer, inputs, output):
        seen.append((inputs[0].dtype, output.dtype))

    for layer in linears_of(trainer.network):
        layer.register_forward_hook(note)
    outputs = trainer.outputs(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    assert outputs.dtype == torch.float32 and seen[-1] == (torch.float32, torch.float32)
    assert {output for _, output in seen[:-1]} == {torch.bfloat16}


@pytest.mark.parametrize("script", ["MNIST/mnist", "MNIST/arch2_mnist"])
def test_corrected_reads_the_test_set_at_the_end_only(script, data, tmp_path, monkeypatch):
    module, read = load_script(script), []
    evaluate = module.Trainer.evaluate

    def noted(self, images, labels):
        read.append(len(labels))
        return evaluate(self, images, labels)

    monkeypatch.setattr(module.Trainer, "evaluate", noted)
    flags = ["--protocol", "corrected", "--epochs", "3", "--head", "spinal", "--quiet"]
    assert run(script, data, tmp_path, *flags) == 0
    assert read[:3] == [11] * 3 and set(read[3:]) == {60}
    ((_, lines),) = logs_in(tmp_path).items()
    assert all("heldout_loss" in line and "test_loss" not in line for line in lines[1:-1])


# ---- The log ------------------------------------------------------------------------------------
START = "event schema script run seed settings departures parameters fc_multiplications data"
END = "event epochs best_epoch selected_epoch outcome best_{}_accuracy_pct last_test_accuracy_pct"
END += " selected_test_accuracy_pct test_correct seconds ended"
PROVENANCE = {"script_sha256", "device", "device_name", "threads", "versions"}


def right_of(end: dict, count: int) -> list[int]:
    """The bits of `test_correct`."""
    bits = numpy.frombuffer(base64.b64decode(end["test_correct"]), "u1")
    return numpy.unpackbits(bits, count=count).tolist()


@pytest.mark.parametrize("protocol, watched", [("published", "test"), ("corrected", "heldout")])
def test_a_log_is_schema_3_and_the_report_reads_it(data, tmp_path, protocol, watched):
    assert run("MNIST/mnist", data, tmp_path, "--protocol", protocol, "--epochs", "2") == 0
    for path in tmp_path.glob("logs/mnist/*"):
        assert path.suffix == ".jsonl"  # neither a part nor a checkpoint is left
        start, *epochs, end = map(json.loads, path.read_text().splitlines())
        assert set(start) == {*START.split(), "provenance"}
        assert (start["schema"], start["script"], start["run"]) == (3, "mnist", path.stem)
        recipe = mnist.recipe_of("cnn", start["settings"]["head"], protocol, epochs=2)
        measured = {key: start["settings"][key] for key in ("mean", "std")}
        settings = mnist.asdict(recipe) | {"dataset": "MNIST"} | measured
        assert start["settings"] == settings and start["departures"] == ["epochs"]
        fc = "-fc-" in path.name
        counts = (start["parameters"], start["fc_multiplications"])
        assert counts == ((21_840, 16_500) if fc else (13_818, 8_480))
        assert set(start["provenance"]) == PROVENANCE
        text = (ROOT / "MNIST/mnist.py").read_bytes()
        assert start["provenance"]["script_sha256"] == hashlib.sha256(text).hexdigest()[:16]
        keys = f"event epoch learning_rate train_loss {watched}_loss {watched}_accuracy_pct"
        assert [list(line) for line in epochs] == [[*keys.split(), "seconds"]] * 2
        assert list(end) == END.format(watched).split() and end["outcome"] == "finished"
        assert end["seconds"] == pytest.approx(sum(line["seconds"] for line in epochs), rel=1e-3)
        accuracy = 100 * sum(right_of(end, 60)) / 60
        assert end["selected_test_accuracy_pct"] == pytest.approx(accuracy, abs=1e-4)
    logs, findings = report_logs.read_logs(tmp_path / "logs")
    assert len(logs) == 2 and not findings, findings


DEPARTURES = [  # flags, what they add to the name, departures
    ("", "", []),
    ("--epochs 1 --batch-size 32 --lr 0.02", "-e1-b32-lr0.02", "epochs batch_size learning_rate"),
    ("--epochs 8 --batch-size 64 --lr 0.01", "", []),  # the published ones
    ("--fc-dropout 0.25 --limit 20", "-limit20-drop0.25", "limit fc_dropout"),
    ("--precision bf16", "-bf16", "precision"),
    ("--precision ieee", "-ieee", "precision"),
    ("--protocol corrected --fc-dropout 0.0", "", []),
    ("--protocol corrected --fc-dropout 0.5", "-drop0.5", "fc_dropout"),
]


@pytest.mark.parametrize("flags, part, departures", DEPARTURES)
def test_names_of_logs_and_departures(data, tmp_path, monkeypatch, flags, part, departures):
    def epoch(self, *_):
        return 1.0

    def evaluate(self, images, labels):
        return 1.0, labels > 4

    monkeypatch.setattr(mnist.Trainer, "epoch", epoch)
    monkeypatch.setattr(mnist.Trainer, "evaluate", evaluate)
    more = ["--width", "10", "--seed", "3", "--runs", "2", "--quiet"]
    assert run("MNIST/mnist", data, tmp_path, *flags.split(), *more) == 0
    logs = logs_in(tmp_path)
    sha256 = next(iter(logs.values()))[0]["data"]["sha256"]
    protocol = "corrected" if "corrected" in flags else "published"
    end = f"-{protocol}{part}-data{sha256[:8]}-s"
    heads = ["cnn-fc", "cnn-spinal6x10"]
    assert list(logs) == [f"{head}{end}{seed}.jsonl" for head in heads for seed in (3, 4)]
    wanted = sorted(departures.split()) if departures else []
    for name, (start, *_) in logs.items():
        changed = [x for x in wanted if x != "fc_dropout" or start["settings"][x] != 0]
        assert sorted(start["departures"]) == changed or sorted(start["departures"]) == wanted
        assert start["settings"]["width"] == (50 if name.startswith("cnn-fc") else 10)
        assert start["seed"] == int(name[-7])


def test_another_fc_width_is_named(data, tmp_path):
    assert run("MNIST/mnist", data, tmp_path, *QUICK, "--width", "26") == 0
    ((name, (start, *_)),) = logs_in(tmp_path).items()
    assert name.startswith("cnn-fc26-published-e1-") and start["settings"]["width"] == 26


def test_a_diverging_run_is_logged_as_such(data, tmp_path):
    assert run("MNIST/mnist", data, tmp_path, *QUICK, "--lr", "1e20", "--epochs", "2") == 0
    ((_, (_, *epochs, end)),) = logs_in(tmp_path).items()
    assert end["outcome"] == "diverged" and epochs[-1]["train_loss"] is None
    assert end["selected_test_accuracy_pct"] == 100 * sum(right_of(end, 60)) / 60


@pytest.mark.parametrize("script", ["MNIST/mnist", "MNIST/arch2_kmnist"])
def test_saved_weights_are_those_of_the_reported_epoch(script, data, tmp_path, capsys):
    """They load into the network of the same name and give the logged accuracy."""
    flags = ["--protocol", "corrected", "--epochs", "3", "--head", "spinal", "--lr", "0.3"]
    assert run(script, data, tmp_path, *flags, "--save-weights", "--quiet") == 0
    (weights,) = (tmp_path / "weights" / script.split("/")[1]).iterdir()
    ((name, (*_, end)),) = logs_in(tmp_path).items()
    assert weights.name == name.replace(".jsonl", ".pt")
    assert f"weights: {weights}" in capsys.readouterr().out
    network = network_name(script)
    module, found, recipe = loaded(script, data, network, "corrected")
    built = module.build_network(network, "spinal", protocol="corrected")
    built.load_state_dict(torch.load(weights, weights_only=True))
    trainer = module.TRAINER(built, recipe, CPU)
    right = trainer.evaluate(*found.test)[1]
    assert right.int().tolist() == right_of(end, 60)
    heldout = trainer.evaluate(*found.heldout)[1].float().mean().item() * 100
    assert heldout == pytest.approx(end["best_heldout_accuracy_pct"], rel=1e-5)


# ---- What is printed ----------------------------------------------------------------------------
def test_first_and_last_lines_say_what_is_trained_and_what_came_out(data, tmp_path, capsys):
    assert run("MNIST/mnist", data, tmp_path, "--epochs", "1", "--runs", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "MNIST, cnn, published: fc and spinal6x8"
    assert lines[1].startswith("1 epochs of 132 images on cpu")
    assert lines[-1].startswith("Spinal - FC: ") and "number of seeds: 2" in lines[-1]
    assert sum("data not verified" in line for line in lines) == 4
    assert not any("paper" in line for line in lines)  # with other data there is no comparison
    gains = []
    for seed in (0, 1):
        ends = [
            log[-1] for name, log in logs_in(tmp_path).items() if name.endswith(f"{seed}.jsonl")
        ]
        fc, spinal = (end["selected_test_accuracy_pct"] for end in ends)
        gains.append(spinal - fc)
    assert f"{sum(gains) / 2:+.2f} points" in lines[-1]


def test_the_paper_stands_beside_official_runs(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fashion, "COUNTS", [132, 60])
    monkeypatch.setattr(fashion, "FINGERPRINT", None)
    monkeypatch.setattr(fashion, "RECIPES", {**fashion.RECIPES})
    for head in fashion.HEADS:
        short = fashion.replace(fashion.RECIPES["cnn", head], epochs=1)
        fashion.RECIPES["cnn", head] = short
    assert run("MNIST/fashion_mnist", data, tmp_path, "--quiet") == 0
    text = capsys.readouterr().out
    assert "(paper, as published: average 83.59, best 84.1)" in text
    assert "paper, as published: +1.72" in text.splitlines()[-1]


def test_vgg5_on_a_cpu_says_that_it_takes_days(capsys):
    fake = Namespace(train=(None, range(1_000)))
    mnist.announce([mnist.VGG5], fake, CPU)
    assert "days on a CPU" in capsys.readouterr().out
    mnist.announce([mnist.CNN], fake, CPU)
    assert "days" not in capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_alone_in_an_empty_folder_shows_its_help(script, tmp_path, monkeypatch, capsys):
    name = f"{script.split('/')[1]}.py"
    shutil.copy(ROOT / f"{script}.py", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    libraries = [entry for entry in sys.path if "site-packages" in entry or "lib/python" in entry]
    monkeypatch.setattr(sys, "path", libraries)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(name, run_name="__main__")
    text = capsys.readouterr().out
    assert not end.value.code and text.startswith(f"usage: {name}")
    assert load_script(script).__doc__.splitlines()[0] in text
    assert os.listdir(tmp_path) == [name]


# ---- Real data ----------------------------------------------------------------------------------
@pytest.mark.parametrize("script", ["MNIST/mnist", "MNIST/fashion_mnist", "MNIST/arch2_mnist"])
def test_real_data_are_complete_official_and_verified(real_data, script):
    _, found, recipe = loaded(script, real_data, network_name(script), "corrected")
    facts = [found.facts[key] for key in ("official", "verified", "train", "heldout", "test")]
    assert facts == [True, True, 55_000, 5_000, 10_000]
    mean, std = (0.286, 0.353) if "fashion" in script else (0.1307, 0.3081)
    assert recipe.mean == [pytest.approx(mean, abs=5e-4)]
    assert recipe.std == [pytest.approx(std, abs=5e-4)]


def test_the_kmnist_subset_is_not_taken_for_kmnist(real_data):
    if not (real_data / "subset/KMNIST").is_dir():
        pytest.skip(f"needs the KMNIST subset in {real_data / 'subset'}")
    _, found, _ = loaded("MNIST/kmnist", real_data / "subset", "cnn")
    assert found.facts["official"] is False and found.facts["verified"] is False


@pytest.mark.parametrize("split, count", [("letters", 42_900), ("digits", 30_000)])
def test_the_emnist_subset_is_read_and_not_taken_for_emnist(real_subset, split, count):
    _, found, recipe = loaded(f"EMNIST/emnist_{split}", real_subset, "cnn", "corrected")
    assert found.facts["official"] is False and found.facts["heldout"] == count // 12
    assert found.facts["train"] == count - count // 12
    classes = 26 if split == "letters" else 10
    assert found.test[1].unique().tolist() == list(range(classes))
    assert recipe.mean == [pytest.approx(0.173, abs=3e-3)]


@pytest.mark.slow
def test_the_first_epoch_of_a_log_that_ships_is_repeated(real_data, tmp_path):
    """60,000 images, FC head, seed 0. Other processors and versions add in another order, and 938
    steps let the last digits grow: the loss must agree to 2 %, the accuracy to half a point."""
    start, first, *_ = lines_of(ROOT / "results/reference/logs/mnist/cnn-fc-published-s0.jsonl")
    assert run("MNIST/mnist", real_data, tmp_path, *QUICK) == 0
    ((_, (mine, line, _)),) = logs_in(tmp_path).items()
    assert line["train_loss"] == pytest.approx(first["train_loss"], rel=0.02)
    assert line["test_accuracy_pct"] == pytest.approx(first["test_accuracy_pct"], abs=0.5)
    assert mine["parameters"] == start["parameters"] == 21_840
    assert mine["data"]["sha256"] == start["data"]["sha256"] and mine["data"]["verified"] is True
