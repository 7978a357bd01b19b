"""The scripts of MNIST/: counts, wiring, augmentation, training, logs, resume, errors. Everything here runs offline."""
import ast
import dataclasses
import functools
import http.server
import json
import math
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from conftest import ROOT, load_script
from torch import nn
from torchvision import transforms

SCRIPTS = ["mnist", "fashion_mnist", "kmnist", "qmnist", "optdigits"]
ARCH2 = {"mnist": (395_120, 389_000), "fashion_mnist": (5_761_640, 5_748_500), "kmnist": (677_640, 671_000),
         "qmnist": (677_640, 671_000), "optdigits": (395_120, 389_000)}
mnist, optdigits, fashion = (load_script(f"MNIST/{name}") for name in ("mnist", "optdigits", "fashion_mnist"))


# ---- Counts and wiring -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("network, head, width, parameters, multiplications", [
    ("cnn", "fc", None, 21_840, 16_500), ("cnn", "spinal", None, 13_818, 8_480), ("cnn", "spinal", 10, 16_050, 10_700),
    ("vgg5", "fc", None, 3_646_154, 136_192), ("vgg5", "spinal", None, 3_629_770, 119_808), ("arch2", None, None, 0, 0)])
def test_counts_equal_the_specification(script, protocol, network, head, width, parameters, multiplications):
    module = load_script(f"MNIST/{script}")
    built = module.build_network(network, head, protocol=protocol, width=width)
    if network == "arch2":
        parameters, multiplications = ARCH2[script]
    assert sum(p.numel() for p in built.parameters()) == parameters
    assert module.count_fc_multiplications(built, torch.zeros(1, 1, 28, 28)) == multiplications
    assert built.training and all(not p.is_cuda for p in built.parameters())


def test_spinal_layers_equal_explicit_matrices():
    torch.manual_seed(0)
    layers, x = mnist.SpinalLayers(10, 3, 4), torch.randn(7, 10)
    a, b = x[:, :5], x[:, 5:]
    w = [(layer[0].weight, layer[0].bias) for layer in layers.hidden]
    h1 = torch.relu(a @ w[0][0].T + w[0][1])
    h2 = torch.relu(b @ w[1][0][:, :5].T + h1 @ w[1][0][:, 5:].T + w[1][1])  # columns: input chunk first, then previous layer
    h3 = torch.relu(a @ w[2][0][:, :5].T + h2 @ w[2][0][:, 5:].T + w[2][1])
    torch.testing.assert_close(layers(x), torch.cat([h1, h2, h3], 1))


def test_each_spinal_layer_sees_its_half_directly():
    torch.manual_seed(0)
    layers, x = mnist.SpinalLayers(6, 4, 5), torch.randn(64, 6, requires_grad=True)
    for k in range(4):
        with torch.no_grad():  # cut layer k off the layer before, so that only its own half is left
            if k:
                layers.hidden[k][0].weight[:, 3:] = 0
        (gradient,) = torch.autograd.grad(layers(x)[:, 5 * k : 5 * k + 5].sum(), x)
        seen = gradient.abs().sum(0) > 0
        assert seen.tolist() == ([True] * 3 + [False] * 3 if k % 2 == 0 else [False] * 3 + [True] * 3)


def test_vgg5_spinal_layer_is_dropout_linear_batch_norm_relu():
    head = mnist.build_network("vgg5", "spinal").head
    assert [type(part).__name__ for part in head[0].hidden[1]] == ["Dropout", "Linear", "BatchNorm1d", "ReLU"]
    assert head[0].hidden[1][0].p == 0.5 and head[1].p == 0.5 and head[2].in_features == 512


@pytest.mark.parametrize("head, protocol, dropout", [
    ("fc", "published", 0.5), ("spinal", "published", 0.0), ("fc", "corrected", 0.5), ("spinal", "corrected", 0.5)])
def test_only_corrected_gives_both_cnn_heads_the_same_dropout(head, protocol, dropout):
    network = mnist.build_network("cnn", head, protocol=protocol)
    assert [m.p for m in network.head.modules() if isinstance(m, nn.Dropout)] == [dropout]


def test_initialisation_is_the_published_one():
    torch.manual_seed(3)
    convolutions = [m for m in mnist.build_network("vgg5", "fc").trunk if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [64] * 2 + [128] * 2 + [256] * 6
    for conv in convolutions[1:]:  # the first has 576 weights only
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * conv.out_channels)), rel=0.02)
        assert conv.weight.abs().max() > 3.5 * conv.weight.std()  # normal, not uniform
    linear = mnist.build_network("cnn", "spinal").head[0].hidden[1][0]
    bound = 1 / math.sqrt(linear.in_features)
    assert 0.98 * bound < linear.weight.abs().max() <= bound


def test_both_heads_of_a_seed_start_from_the_same_trunk():
    for network in ("cnn", "vgg5"):
        trunks = []
        for head in ("fc", "spinal"):
            torch.manual_seed(5)
            built = mnist.build_network(network, head)
            trunks.append([v for k, v in built.state_dict().items() if not k.startswith("head")])
        assert all(torch.equal(a, b) for a, b in zip(*trunks))


def test_log_softmax_then_cross_entropy_is_the_loss_we_use():  # Q24
    scores, labels = torch.randn(50, 10) * 5, torch.randint(0, 10, (50,))
    published = nn.functional.cross_entropy(torch.log_softmax(scores, 1), labels)
    torch.testing.assert_close(nn.functional.nll_loss(torch.log_softmax(scores, 1), labels), published)


@pytest.mark.parametrize("arguments", [("cnn", "spinel"), ("lenet", "fc"), ("arch2", "fc")])
def test_unknown_networks_raise_value_error(arguments):
    with pytest.raises(ValueError):
        mnist.build_network(*arguments)
    with pytest.raises(ValueError):
        mnist.build_network("cnn", "fc", width=8)


# ---- Augmentation ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """200 images with structure up to the border, where mistakes show."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(200, 1, 7, 7, generator=generator)
    return nn.functional.interpolate(coarse, 28, mode="bicubic").clamp(0, 1).mul(255).round().to(torch.uint8)


def test_perspective_equals_torchvision(pictures):
    generator = torch.Generator().manual_seed(1)
    _, corners = mnist.draw_perspective(len(pictures), 28, generator)
    ours = mnist.perspective(pictures, corners)
    start = [[0, 0], [27, 0], [27, 27], [0, 27]]
    theirs = torch.stack([TF.perspective(image, start, corner.tolist(), TF.InterpolationMode.BILINEAR, fill=[0.0])
                          for image, corner in zip(pictures, corners)])
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3  # a coordinate may round the other way
    assert (ours != pictures).float().mean() > 0.5


def test_rotation_equals_torchvision(pictures):
    degrees = torch.linspace(-10, 10, len(pictures))
    ours = mnist.rotation(pictures, degrees)
    theirs = torch.stack([TF.rotate(image, float(angle), fill=[0.0]) for image, angle in zip(pictures, degrees)])
    assert (ours != theirs).float().mean() < 1e-3  # a pixel centre half-way between two neighbours may go either way
    from_pil = torch.stack([TF.pil_to_tensor(TF.rotate(TF.to_pil_image(image), float(angle)))
                            for image, angle in zip(pictures, degrees)])
    assert (ours != from_pil).float().mean() < 0.01


def test_resized_crop_equals_pillow(pictures):
    boxes = fashion.draw_crop(len(pictures), 28, 0.5, torch.Generator().manual_seed(2))
    ours = fashion.resized_crop(pictures, boxes)
    theirs = torch.stack([TF.pil_to_tensor(TF.resized_crop(TF.to_pil_image(image), *box.tolist(), [28, 28]))
                          for image, box in zip(pictures, boxes)])
    assert torch.equal(ours, theirs)
    assert (ours != pictures).float().mean() > 0.5


def test_perspective_corners_are_distributed_as_in_torchvision():
    random.seed(0), torch.manual_seed(0)
    theirs = torch.tensor([transforms.RandomPerspective.get_params(28, 28, 0.5)[1] for _ in range(4_000)])
    chosen, ours = mnist.draw_perspective(40_000, 28, torch.Generator().manual_seed(0))
    assert chosen.float().mean().item() == pytest.approx(0.5, abs=0.01)
    for corner in range(4):
        for axis in range(2):
            assert ours[:, corner, axis].unique().tolist() == theirs[:, corner, axis].unique().tolist()
            shares = torch.bincount(ours[:, corner, axis], minlength=28).float() / len(ours)
            assert (shares[shares > 0] - 1 / 8).abs().max() < 0.01


def test_crop_boxes_are_distributed_as_in_torchvision():
    torch.manual_seed(0)
    image = torch.zeros(1, 28, 28)
    theirs = torch.tensor([transforms.RandomResizedCrop.get_params(image, [0.95, 1.0], [3 / 4, 4 / 3]) for _ in range(6_000)])
    ours = fashion.draw_crop(60_000, 28, 0.95, torch.Generator().manual_seed(0))
    whole = ((ours[:, 2] == 28) & (ours[:, 3] == 28)).float().mean().item()
    assert whole == pytest.approx(0.285, abs=0.01)  # Q18: simulated for the specification
    boxes = ours.unique(dim=0)
    assert {tuple(box) for box in theirs.tolist()} <= {tuple(box) for box in boxes.tolist()}
    for column in range(4):
        assert ours[:, column].float().mean().item() == pytest.approx(theirs[:, column].float().mean().item(), abs=0.06)
    assert ((ours[:, :2] >= 0) & (ours[:, :2] + ours[:, 2:] <= 28)).all()


def test_augment_applies_the_steps_in_order_to_each_image(pictures, monkeypatch):
    calls = []
    for name in ("perspective", "rotation"):
        original = getattr(mnist, name)
        monkeypatch.setattr(mnist, name, lambda images, values, name=name, original=original:
                            calls.append((name, len(images))) or original(images, values))
    out = mnist.augment(pictures, ("perspective", "rotation10"), torch.Generator().manual_seed(0))
    assert [name for name, _ in calls] == ["perspective", "rotation"] and calls[1][1] == len(pictures)
    assert 70 < calls[0][1] < 130  # half of the images
    assert out.dtype == torch.uint8 and out.shape == pictures.shape
    again = mnist.augment(pictures, ("perspective", "rotation10"), torch.Generator().manual_seed(0))
    assert torch.equal(out, again) and not torch.equal(out[0], out[1])


# ---- Rate rules ------------------------------------------------------------------------------------------------------------
def trace(rule, base, accuracies, uniforms):
    """Rates used in epochs 1, 2, ... and the one left after the last."""
    best, rate, rates = 0.0, base, [base]
    for epoch, (accuracy, uniform) in enumerate(zip(accuracies, uniforms), start=1):
        rate = rule.next(epoch, rule.improves(accuracy, best), rate, base, uniform)
        best = max(best, accuracy)
        rates.append(rate)
    return rates


def test_restart_rule_follows_the_worked_example():  # spec mnist.md 5.5
    rule = mnist.RECIPES["vgg5"].rule
    rates = trace(rule, 0.005, [0.90, 0.95, 0.95, 0.94, 0.96], [9, 9, 0.5, 0.2, 9])
    assert rates == pytest.approx([0.005, 0.005, 0.005, 0.000625, 0.00004, 0.00004])


def test_arch2_rules():
    published, corrected = mnist.RECIPES["arch2"].rule, mnist.RECIPES["arch2"].corrected_rule
    accuracies = [0.5] * 100 + [0.6, 0.6]
    rates = trace(published, 0.01, accuracies, [0.5] * 102)
    assert rates[:101] == [0.01] * 101 and rates[101:] == pytest.approx([0.00625] * 2)  # epochs 1-101, then 0.05 * U^3
    assert trace(corrected, 0.01, accuracies, [0.5] * 102)[101:] == pytest.approx([0.01, 0.00625])
    assert trace(load_script("MNIST/fashion_mnist").RECIPES["arch2"].rule, 0.005, [0.5] * 52, [0.5] * 52)[50:] == \
        pytest.approx([0.005, 0.003125, 0.003125])
    for script, expected in (("kmnist", [0.1, 0.1, 0.1 / 32]), ("qmnist", [0.1, 0.1, 0.09])):
        recipe = load_script(f"MNIST/{script}").RECIPES["arch2"]
        assert trace(recipe.rule, 0.1, [0.5, 0.4], [0.5, 0.5]) == [0.1] * 3  # Q11: never handed to the optimiser
        assert trace(recipe.corrected_rule, 0.1, [0.5, 0.4], [0.5, 0.5]) == pytest.approx(expected)


def test_a_tie_counts_as_an_improvement_where_the_rule_says_so():  # spec mnist.md 5.5, second table; cifar.md 1.3
    assert trace(mnist.RateRule(power=3, tie_improves=True), 1e-4, [0.5, 0.5, 0.4], [0.5] * 3) == \
        pytest.approx([1e-4, 1e-4, 1e-4, 1.25e-5])
    assert trace(mnist.RateRule(decay=1 / 3, tie_improves=True), 1e-3, [0.5, 0.5, 0.4, 0.4], [0] * 4) == \
        pytest.approx([1e-3, 1e-3, 1e-3, 1e-3 / 3, 1e-3 / 9])
    plan = trace(mnist.RateRule(decay=1 / 3, always=True, after=21, at=(2,)), 1e-3, [0.5] * 24, [0] * 24)  # cifar.md Q1
    assert plan[:24] == pytest.approx([1e-3] * 2 + [1e-3 / 3] * 20 + [1e-3 / 9, 1e-3 / 27])


@pytest.mark.parametrize("renew", [True, False])
def test_only_a_rule_that_renews_the_optimiser_loses_its_momentum(tmp_path, monkeypatch, renew):  # Q13
    rule = optdigits.RateRule(power=3, always=True, renew=renew)
    monkeypatch.setitem(optdigits.RECIPES, "cnn", dataclasses.replace(optdigits.RECIPES["cnn"], rule=rule))
    options = arguments(optdigits, tmp_path, "--limit", "100")
    run = optdigits.Run("fc", 0, optdigits.load_data(options, torch.device("cpu")), options, optdigits.Team(options))
    run.begin()
    run.train_epoch(1, run.data.train, torch.arange(100), lambda: None)
    momentum = torch.cat([state["momentum_buffer"].flatten() for state in run.optimizer.state.values()])
    assert (momentum.norm() == 0) == renew and 0 < run.state["rate"] < 0.01


# ---- Training --------------------------------------------------------------------------------------------------------------
def arguments(script, tmp_path, *more):
    return script.parse_arguments(["--results-dir", str(tmp_path), "--quiet", *more])


@pytest.mark.parametrize("network, make", [
    ("cnn", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5)), ("vgg5", lambda p: torch.optim.Adam(p, lr=0.005))])
def test_two_steps_equal_a_loop_written_by_hand(tmp_path, network, make):
    options = arguments(optdigits, tmp_path, "--network", network, "--batch-size", "16", "--precision", "fp32")
    data = optdigits.load_data(options, torch.device("cpu"))
    run = optdigits.Run("fc", 0, data, options, optdigits.Team(options))
    torch.manual_seed(optdigits.seed_of(0, "weights"))
    reference = optdigits.build_network(network, "fc").to(memory_format=torch.channels_last)
    order = torch.arange(32)
    torch.manual_seed(1)
    loss = run.trainer.epoch(data.train, order, 16, lambda: None)
    torch.manual_seed(1)
    optimizer, losses = make(reference.parameters()), []
    normalise = transforms.Normalize((0.1307,), (0.3081,))
    for batch in (range(16), range(16, 32)):
        images = torch.stack([normalise(transforms.ToTensor()(data.train.images[i, 0].numpy())) for i in batch])
        losses.append(nn.functional.cross_entropy(reference(images), data.train.labels[list(batch)]))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert loss == pytest.approx(sum(x.item() for x in losses) / 2, rel=1e-5 if network == "cnn" else 1e-3)
    rate = run.optimizer.param_groups[0]["lr"]
    for (name, ours), theirs in zip(run.network.named_parameters(), reference.parameters()):
        if network == "cnn":
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        else:  # Adam divides by the gradient's size, which makes rounding of gradients near zero visible: few, small
            assert (ours - theirs).abs().mean() < 0.1 * rate or "trunk" in name and "bias" in name, name  # Q34: no gradient


def replay_without_cuda(step):
    """In place of `record`: it also takes steps before the capture, and its replay runs the step again."""
    for _ in range(3):
        step()
    return step


@pytest.mark.parametrize("network", ["cnn", "vgg5"])
@pytest.mark.parametrize("sound", [True, False])
def test_the_way_of_the_cuda_graph_trains_the_same_network(tmp_path, monkeypatch, capsys, network, sound):
    """Everything of it but CUDA: fixed addresses, the state before the capture, the small last batch, renewed momentum."""
    def train():
        torch.manual_seed(0)
        options = arguments(optdigits, tmp_path, "--network", network, "--limit", "50", "--batch-size", "16", "--precision", "fp32")
        run = optdigits.Run("fc", 0, optdigits.load_data(options, torch.device("cpu")), options, optdigits.Team(options))
        run.rule, losses = dataclasses.replace(run.rule, always=True, renew=True, power=1), []
        for epoch in (1, 2):
            order = torch.randperm(50)
            torch.manual_seed(epoch)
            optdigits.set_rate(run.optimizer, 0.01 / epoch)
            losses.append(run.trainer.epoch(run.data.train, order, 16, lambda: None))
        return run, losses

    plain, plain_losses = train()
    assert plain.trainer.graph is None
    monkeypatch.setattr(optdigits, "wants_graph", lambda device: True)
    wrong = lambda step: replay_without_cuda(step) and (lambda: None)  # noqa: E731  its replay does nothing
    monkeypatch.setattr(optdigits, "record", replay_without_cuda if sound else wrong)
    graph, graph_losses = train()
    assert (graph.trainer.graph is not None) == sound and ("without CUDA graphs" in capsys.readouterr().err) != sound
    assert graph_losses == plain_losses
    for ours, theirs in zip(graph.network.state_dict().values(), plain.network.state_dict().values()):
        assert torch.equal(ours, theirs)


def test_a_graph_that_cannot_be_captured_is_no_error(tmp_path, monkeypatch, capsys):
    def fails(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(optdigits, "wants_graph", lambda device: True)
    monkeypatch.setattr(optdigits, "record", fails)
    assert optdigits.main(["--results-dir", str(tmp_path), "--epochs", "1", "--limit", "200", "--quiet"]) == 0
    assert "without CUDA graphs" in capsys.readouterr().err


def test_only_cuda_asks_for_graphs_and_tensor_rates():
    assert optdigits.wants_graph(torch.device("cuda")) and not optdigits.wants_graph(torch.device("cpu"))
    optimizer = optdigits.build_optimizer(nn.Linear(2, 2), optdigits.RECIPES["vgg5"], 0.5)
    assert optimizer.defaults["fused"] and not optimizer.defaults["capturable"] and optimizer.param_groups[0]["lr"] == 0.5
    optdigits.set_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25
    optimizer.param_groups[0]["lr"] = rate = torch.tensor(1.0)
    optdigits.set_rate(optimizer, 0.125)
    assert optimizer.param_groups[0]["lr"] is rate and rate == 0.125  # the same tensor, which a graph reads


@pytest.mark.parametrize("proved, amx, expected", [(True, True, "bf16"), (True, False, "fp32"), (False, True, "fp32")])
def test_bf16_is_the_default_only_where_it_was_measured(monkeypatch, proved, amx, expected):
    recipe = dataclasses.replace(optdigits.RECIPES["cnn"], bf16=proved)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert optdigits.default_precision(torch.device("cpu"), recipe) == expected
    assert optdigits.default_precision(torch.device("cuda"), recipe) == "fp32"


def test_evaluation_has_no_dropout_and_counts_every_image(tmp_path):
    options = arguments(optdigits, tmp_path)
    data = optdigits.load_data(options, torch.device("cpu"))
    network = optdigits.build_network("cnn", "fc")
    loss, accuracy = optdigits.evaluate(network.train(), data.train, data, "fp32")  # 1,437 images: two batches
    with torch.no_grad():
        outputs = network.eval()(optdigits.normalise(data.train.images, data))
    assert loss == pytest.approx(nn.functional.nll_loss(outputs, data.train.labels).item(), rel=1e-5)
    assert accuracy == pytest.approx(100 * (outputs.argmax(1) == data.train.labels).double().mean().item())


def test_dropout_is_drawn_anew_in_each_epoch_and_seed(tmp_path, monkeypatch):
    seeds, original = [], optdigits.Trainer.epoch
    monkeypatch.setattr(optdigits.Trainer, "epoch", lambda *parts: seeds.append(torch.initial_seed()) or original(*parts))
    assert optdigits.main(["--results-dir", str(tmp_path), "--epochs", "2", "--runs", "2", "--limit", "100", "--quiet"]) == 0
    assert len(set(seeds)) == 4  # two epochs of two seeds; the heads of a seed share theirs


def test_last_batch_is_kept_and_every_image_is_seen_once(tmp_path):
    options = arguments(optdigits, tmp_path, "--batch-size", "64")
    data = optdigits.load_data(options, torch.device("cpu"))
    run, sizes = optdigits.Run("fc", 0, data, options, optdigits.Team(options)), []
    run.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    run.trainer.epoch(data.train, torch.randperm(1437), 64, lambda: None)
    assert sizes == [64] * 22 + [29]


def logs_of(folder, script="optdigits"):
    return {path.name: path.read_text().splitlines() for path in sorted((folder / "logs" / script).glob("*"))}


def without_times(lines):
    records = [json.loads(line) for line in lines]
    for record in records:
        for key in ("seconds", "peak_memory_bytes"):
            record.pop(key, None)
        record.get("provenance", {}).pop("started", None)
    return records


def test_heads_get_the_same_shuffled_batches_and_do_not_influence_each_other(tmp_path, monkeypatch):
    seen = []
    original = optdigits.Trainer.epoch

    def spy(self, split, order, *rest):
        seen.append((order.clone(), split.images))
        return original(self, split, order, *rest)

    monkeypatch.setattr(optdigits.Trainer, "epoch", spy)
    assert optdigits.main(["--results-dir", str(tmp_path / "both"), "--epochs", "2", "--quiet"]) == 0
    assert torch.equal(seen[0][0], seen[1][0]) and seen[0][1] is seen[1][1]
    assert not torch.equal(seen[0][0], seen[2][0]) and not torch.equal(seen[0][0], torch.arange(1437))
    for head in ("spinal", "fc"):
        assert optdigits.main(["--results-dir", str(tmp_path / "alone"), "--epochs", "2", "--quiet", "--head", head]) == 0
    both, alone = logs_of(tmp_path / "both"), logs_of(tmp_path / "alone")
    assert list(both) == list(alone) == ["cnn-fc-published-e2-s0.jsonl", "cnn-spinal6x8-published-e2-s0.jsonl"]
    for name in both:
        assert without_times(both[name]) == without_times(alone[name])


def test_corrected_reads_the_test_set_twice_and_at_the_end_only(tmp_path, monkeypatch):
    read = []
    original = optdigits.evaluate
    monkeypatch.setattr(optdigits, "evaluate", lambda network, split, *rest: read.append(len(split.labels))
                        or original(network, split, *rest))
    assert optdigits.main(["--results-dir", str(tmp_path), "--epochs", "3", "--quiet", "--head", "fc", "--protocol",
                           "corrected"]) == 0
    assert read == [119, 119, 119, 360, 360]
    lines = [json.loads(line) for line in logs_of(tmp_path)["cnn-fc-corrected-e3-s0.jsonl"]]
    assert lines[0]["data"]["train"] == 1437 - 119 and lines[0]["data"]["heldout"] == 119
    best = max(lines[1:4], key=lambda line: line["heldout_accuracy_pct"])
    assert lines[-1]["selected_epoch"] == lines[-1]["best_epoch"] == best["epoch"]
    assert lines[-1]["best_heldout_accuracy_pct"] == best["heldout_accuracy_pct"]


def test_heldout_images_are_not_trained_on(tmp_path):
    options = arguments(optdigits, tmp_path, "--protocol", "corrected")
    corrected = optdigits.load_data(options, torch.device("cpu"))
    published = optdigits.load_data(arguments(optdigits, tmp_path), torch.device("cpu"))
    def keys(split):
        return sorted(image.numpy().tobytes() for image in split.images)
    assert sorted(keys(corrected.train) + keys(corrected.heldout)) == keys(published.train)
    pixels = corrected.train.images.double() / 255
    assert corrected.norm == (pytest.approx(float(pixels.mean()), abs=1e-4), pytest.approx(float(pixels.std()), abs=1e-4))
    assert published.norm == (0.1307, 0.3081)
    torch.testing.assert_close(optdigits.normalise(corrected.test.images, corrected),
                               (corrected.test.images / 255 - corrected.norm[0]) / corrected.norm[1])


def test_colour_images_are_measured_and_standardised_by_channel():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8) // torch.tensor([1, 2, 3]).view(3, 1, 1).to(torch.uint8)
    mean, std = mnist.measure(images)
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-4) and std == pytest.approx(pixels.std(1).tolist(), abs=1e-3)


def test_published_reports_the_last_epoch_for_cnn_and_the_best_for_vgg5(tmp_path):
    assert mnist.RECIPES["cnn"].selection == "last" and mnist.RECIPES["vgg5"].selection == "best_test"
    assert optdigits.main(["--results-dir", str(tmp_path), "--network", "vgg5", "--head", "fc", "--epochs", "3", "--limit", "200",
                           "--batch-size", "50", "--lr", "0.05", "--quiet"]) == 0
    (lines,) = (list(map(json.loads, lines)) for lines in logs_of(tmp_path).values())
    accuracies = [line["test_accuracy_pct"] for line in lines[1:-1]]
    assert lines[-1]["selected_test_accuracy_pct"] == max(accuracies)
    assert lines[-1]["selected_epoch"] == 1 + accuracies.index(max(accuracies))
    assert lines[-1]["last_test_accuracy_pct"] == accuracies[-1]
    assert lines[0]["departures"] == ["batch_size", "epochs", "limit", "lr"]


def test_a_diverging_run_is_logged_as_such(tmp_path):
    assert optdigits.main(["--results-dir", str(tmp_path), "--epochs", "5", "--quiet", "--head", "fc", "--lr", "1e30"]) == 0
    (lines,) = (list(map(json.loads, lines)) for lines in logs_of(tmp_path).values())
    assert lines[-1]["outcome"] == "diverged" and lines[-1]["diverged_epoch"] == 1 and lines[1]["train_loss"] is None
    assert 0 <= lines[-1]["selected_test_accuracy_pct"] <= 100


# ---- Interruption ----------------------------------------------------------------------------------------------------------
COMMAND = [sys.executable, str(ROOT / "MNIST/optdigits.py"), "--epochs", "16", "--head", "both", "--protocol", "corrected"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert optdigits.main([*COMMAND[2:], "--results-dir", str(folder), "--quiet"]) == 0
    return logs_of(folder)


def run_until(folder, lines_wanted, stop, delay=0.0):
    """Starts the command, sends `stop` once the logs hold so many lines; returns the finished process."""
    process = subprocess.Popen([*COMMAND, "--results-dir", str(folder)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        if sum(map(len, logs_of(folder).values())) >= lines_wanted:
            time.sleep(delay)
            process.send_signal(stop)
            break
        time.sleep(0.005)
    process.errors = process.communicate()[1]
    return process


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, uninterrupted, seed):
    chance = random.Random(seed)
    for _ in range(2):
        run_until(tmp_path, chance.randint(1, 16), signal.SIGKILL, chance.random() * 0.4)
    last = subprocess.run([*COMMAND, "--results-dir", str(tmp_path), "--quiet"], capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    logs = logs_of(tmp_path)
    assert list(logs) == list(uninterrupted)
    for name in logs:
        assert without_times(logs[name]) == without_times(uninterrupted[name])
    assert not list((tmp_path / "checkpoints").rglob("*.pt"))


@pytest.mark.parametrize("stop, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_a_valid_log_and_a_checkpoint(tmp_path, uninterrupted, stop, status):
    process = run_until(tmp_path, 8, stop)
    assert process.returncode == status and process.errors.strip().count("\n") == 0 and "Traceback" not in process.errors
    parts = list((tmp_path / "logs").rglob("*.part"))
    assert parts and not list((tmp_path / "logs").rglob("*.jsonl"))
    assert all(json.loads(line) for part in parts for line in part.read_text().splitlines())
    assert list((tmp_path / "checkpoints").rglob("*.pt"))


def test_resume_goes_on_instead_of_beginning_anew(tmp_path, monkeypatch):
    trained = []
    original = optdigits.Run.train_epoch

    def spy(self, epoch, *rest):
        if epoch == 3 and not trained.count(3):
            trained.append(3)
            raise KeyboardInterrupt
        trained.append(epoch)
        self.checkpoint.cost = 0.0  # save after every epoch
        return original(self, epoch, *rest)

    monkeypatch.setattr(optdigits.Run, "train_epoch", spy)
    command = ["--results-dir", str(tmp_path), "--epochs", "4", "--quiet", "--head", "spinal"]
    assert optdigits.main(command) == 130 and optdigits.main(command) == 0
    assert trained == [1, 2, 3, 3, 4]


def test_a_torn_checkpoint_counts_as_none(tmp_path, uninterrupted):
    run_until(tmp_path, 8, signal.SIGKILL)
    for checkpoint in (tmp_path / "checkpoints").rglob("*.pt"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    last = subprocess.run([*COMMAND, "--results-dir", str(tmp_path), "--quiet"], capture_output=True, text=True)
    assert last.returncode == 0 and "begins anew" in last.stderr
    for name, lines in logs_of(tmp_path).items():
        assert without_times(lines) == without_times(uninterrupted[name])


def test_a_finished_run_is_not_run_again_unless_asked(tmp_path, capsys):
    command = ["--results-dir", str(tmp_path), "--epochs", "1", "--quiet", "--head", "fc"]
    assert optdigits.main(command) == 0
    (path,) = (tmp_path / "logs").rglob("*.jsonl")
    before = path.stat()
    assert optdigits.main(command) == 0 and "already finished" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino
    assert optdigits.main([*command, "--overwrite"]) == 0
    assert path.stat().st_ino != before.st_ino


def test_a_second_process_on_the_same_run_is_turned_away(tmp_path):
    process = subprocess.Popen([*COMMAND, "--results-dir", str(tmp_path), "--epochs", "60"], stdout=subprocess.DEVNULL)
    try:
        deadline = time.time() + 60
        while sum(map(len, logs_of(tmp_path).values())) < 3 and time.time() < deadline:
            time.sleep(0.01)
        second = subprocess.run([*COMMAND, "--results-dir", str(tmp_path), "--epochs", "60"], capture_output=True, text=True)
        assert second.returncode == 2 and "is writing" in second.stderr and "Traceback" not in second.stderr
    finally:
        process.kill()
        process.wait()


# ---- Mistakes --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mistake, word", [
    (["--network", "lenet"], "--network"), (["--epochs", "0"], "1 or more"), (["--seed", "x"], "whole number"),
    (["--seed", "-1"], "0 or more"), (["--lr", "nan"], "--lr"), (["--runs", "0"], "--runs"), (["--limit", "1"], "--limit"),
    (["--fc-dropout", "1"], "less than 1"), (["--device", "cuda:99"], "no device"), (["--device", "abacus"], "no device"),
    (["--head", "fc", "--width", "9"], "Spinal head"), (["--network", "arch2", "--head", "fc"], "no FC head"),
    (["--network", "arch2", "--head", "both"], "no FC head"), (["--networks", "cnn"], "unrecognized"),
    (["--network", "vgg5", "--limit", "101"], "batch norm"), (["--network", "arch2", "--layers", "3"], "arch2"),
    (["--results-dir", "/dev/null/results"], "/dev/null")])
def test_a_mistake_is_one_sentence_and_status_2(tmp_path, capsys, monkeypatch, mistake, word):
    monkeypatch.chdir(tmp_path)
    assert optdigits.main(mistake) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and word in errors
    assert not any(tmp_path.rglob("*.jsonl*"))


def write_idx(path, array, magic):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes())


def write_mnist(folder, train=40, test=20, seed=0):
    """Files in MNIST's format; returns the folder that holds them."""
    rng = np.random.default_rng(seed)
    for name, count in (("train", train), ("t10k", test)):
        write_idx(folder / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), 2051)
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10, 2049)
    return folder


@pytest.mark.parametrize("script, folder", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_files_in_the_real_format_are_read_and_labelled_for_what_they_are(tmp_path, script, folder):
    write_mnist(tmp_path / folder / "raw")
    module = load_script(f"MNIST/{script}")
    assert module.main(["--data-dir", str(tmp_path), "--results-dir", str(tmp_path), "--epochs", "1", "--head", "fc", "--quiet",
                        "--no-download"]) == 0
    ((name, lines),) = logs_of(tmp_path, script).items()
    start = json.loads(lines[0])
    assert f"-data{start['data']['sha256'][:8]}-" in name and start["data"]["official"] is False
    assert (start["data"]["train"], start["data"]["test"]) == (40, 20)


@pytest.mark.parametrize("damage", [
    lambda raw: (raw / "train-images-idx3-ubyte").write_bytes((raw / "train-images-idx3-ubyte").read_bytes()[:-100]),
    lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(b""),
    lambda raw: (raw / "t10k-images-idx3-ubyte").write_bytes(b"<html><body>404 not found</body></html>"),
    lambda raw: write_idx(raw / "train-labels-idx1-ubyte", np.full(40, 11, np.uint8), 2049),
    lambda raw: write_idx(raw / "train-labels-idx1-ubyte", np.zeros(39, np.uint8), 2049),
    lambda raw: shutil.rmtree(raw)], ids=["truncated", "empty", "html", "labels", "counts", "missing"])
def test_damaged_data_are_named_before_training(tmp_path, capsys, damage):
    damage(write_mnist(tmp_path / "MNIST" / "raw"))
    assert mnist.main(["--data-dir", str(tmp_path), "--results-dir", str(tmp_path / "r"), "--no-download"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and str(tmp_path) in errors
    assert not (tmp_path / "r").exists()


def test_a_flipped_bit_in_the_official_files_is_found(tmp_path, capsys, monkeypatch):
    raw = write_mnist(tmp_path / "MNIST" / "raw")
    monkeypatch.setattr(mnist, "TRAIN_IMAGES", 40), monkeypatch.setattr(mnist, "TEST_IMAGES", 20)
    options = arguments(mnist, tmp_path, "--data-dir", str(tmp_path))
    monkeypatch.setattr(mnist, "FINGERPRINT", None)
    monkeypatch.setattr(mnist, "FINGERPRINT", mnist.load_data(options, torch.device("cpu")).facts["sha256"])
    assert mnist.load_data(options, torch.device("cpu")).facts["official"]
    content = bytearray((raw / "train-images-idx3-ubyte").read_bytes())
    content[5_000] ^= 1
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(mnist.UserError, match="not the official content"):
        mnist.load_data(options, torch.device("cpu"))


def test_a_download_that_is_not_the_data_is_refused(tmp_path, capfd, monkeypatch):
    """A web page in place of an archive: torchvision compares checksums, we turn its exception into a sentence."""
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"<html>blocked by a proxy</html>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(mnist.SOURCE, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        assert mnist.main(["--data-dir", str(tmp_path / "d"), "--results-dir", str(tmp_path / "r")]) == 2
        server.shutdown()
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "corrupted" in error
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("test, count", [("60k", 12_000), ("10k", 10_000)])
def test_qmnist_takes_all_test_images_or_the_first_10000(tmp_path, test, count):
    qmnist, raw, rng = load_script("MNIST/qmnist"), tmp_path / "QMNIST" / "raw", np.random.default_rng(0)
    for name, n in (("train", 30), ("test", 12_000)):  # labels: eight big-endian integers an image, the digit first
        write_idx(raw / f"qmnist-{name}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), 2051)
        write_idx(raw / f"qmnist-{name}-labels-idx2-int",
                  np.stack([np.arange(n) % 10] + [rng.integers(0, 4_000, n) for _ in range(7)], 1).astype(">i4"), 0x0C02)
    options = arguments(qmnist, tmp_path, "--data-dir", str(tmp_path), "--no-download", "--test", test)
    data = qmnist.load_data(options, torch.device("cpu"))
    assert len(data.test.labels) == count and torch.equal(data.train.labels, torch.arange(30) % 10)
    run = qmnist.Run("fc", 0, data, options, qmnist.Team(options))
    assert ("test10k" in run.name) == (test == "10k") and ("test" in run.start["departures"]) == (test == "10k")


# ---- The collection --------------------------------------------------------------------------------------------------------
def test_a_script_alone_in_an_empty_folder_runs(tmp_path):
    shutil.copy(ROOT / "MNIST/optdigits.py", tmp_path)
    done = subprocess.run([sys.executable, "optdigits.py", "--epochs", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("Log: results") == 2, done.stderr
    assert "it/s" not in done.stderr and "batch/s" not in done.stderr  # no bar where there is no terminal


def test_no_script_imports_project_code():
    allowed = set(sys.stdlib_module_names) | {"numpy", "torch", "torchvision", "tqdm", "sklearn", "matplotlib", "PIL"}
    scripts = [path for folder in ("MNIST", "EMNIST", "CIFAR", "Regression", "Transfer_Learning")
               for path in (ROOT / folder).glob("*.py")]
    assert len(scripts) >= len(SCRIPTS)
    for path in scripts:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            assert all(name.split(".")[0] in allowed for name in names), (path.name, names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_paper_numbers_in_a_script_are_those_of_the_table(script):
    import csv
    rows = list(csv.DictReader(open(ROOT / "results/paper.csv", encoding="utf-8")))
    printed = {}
    for row in rows:
        if row["script"] == script and row["table"] == "II" and row["metric"] in ("accuracy_avg_pct", "accuracy_best_pct"):
            key = (row["network"], row["head"], int(row["layers"]), int(row["width"]))
            printed.setdefault(key, {})[row["metric"]] = float(row["value"])
            assert int(row["epochs"]) == load_script(f"MNIST/{script}").RECIPES[row["network"]].epochs
    paper = {key: (value["accuracy_avg_pct"], value["accuracy_best_pct"]) for key, value in printed.items()}
    assert load_script(f"MNIST/{script}").PAPER == paper
    assert len(paper) == (0 if script == "optdigits" else 5)


# ---- Real data -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("script", ["mnist", "fashion_mnist"])
def test_real_data_are_complete_and_official(real_data, tmp_path, script):
    module = load_script(f"MNIST/{script}")
    data = module.load_data(arguments(module, tmp_path, "--data-dir", str(real_data), "--no-download"), torch.device("cpu"))
    assert data.facts["official"] and data.facts["sha256"] == module.FINGERPRINT
    assert (len(data.train.labels), len(data.test.labels)) == (60_000, 10_000)


def test_cnn_learns_real_digits(real_data, tmp_path):
    assert mnist.main(["--data-dir", str(real_data), "--no-download", "--results-dir", str(tmp_path), "--limit", "6000", "--epochs",
                       "3", "--quiet"]) == 0
    for lines in logs_of(tmp_path, "mnist").values():
        assert json.loads(lines[-1])["selected_test_accuracy_pct"] > 80


def test_the_kmnist_subset_is_not_taken_for_kmnist(real_data, tmp_path):
    module = load_script("MNIST/kmnist")
    options = arguments(module, tmp_path, "--data-dir", str(real_data / "subset"), "--no-download")
    facts = module.load_data(options, torch.device("cpu")).facts
    assert facts["official"] is False and (facts["train"], facts["test"]) == (8_000, 2_000)
