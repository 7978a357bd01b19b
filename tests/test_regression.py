"""Regression/synthetic_regression.py: counts, wiring, data, both shapes of noise, what is logged, resume, errors."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import ROOT, load_script

regression, CPU = load_script("Regression/synthetic_regression"), torch.device("cpu")
FUNCTIONS = ["sum", "sinsum", "product", "sinproduct"]
SHIPPED = ROOT / "results/reference/logs/synthetic_regression"


def without_times(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: x for key, x in record.items() if key not in ("seconds", "ended")} for record in records]


def train(folder, *flags):
    """Logs of a run in this process, as parsed lines without times."""
    assert regression.main(["--results-dir", str(folder), "--quiet", *flags]) == 0
    return {path.name: without_times(path) for path in sorted(folder.glob("logs/synthetic_regression/*"))}


def status(module, argv):
    """The exit status, whether main returns it or argparse leaves with it."""
    try:
        return module.main(argv)
    except SystemExit as end:
        return end.code


# ---- Counts and wiring -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize(("head", "parameters", "products"), [("fc", 22_001, 21_700), ("spinal", 14_301, 14_000)])
def test_counts_equal_the_specification(protocol, head, parameters, products):
    network, calls = regression.build_network("mlp", head, protocol=protocol), []
    for layer in (layer for layer in network.modules() if isinstance(layer, nn.Linear)):
        layer.register_forward_hook(lambda layer, *_: calls.append(layer.in_features * layer.out_features))
    assert network(torch.zeros(3, 8)).shape == (3, 1)
    assert sum(p.numel() for p in network.parameters()) == parameters and sum(calls) == products


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_only_layers_5_and_6_of_the_published_net_get_no_gradient_and_stay_as_they_were_drawn(protocol):
    data = regression.make_data("sum", "column", 0, CPU)
    network = regression.build_network("mlp", None, protocol=protocol)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    regression.train_epoch(network, torch.optim.Adam(network.parameters(), 0.01), data, torch.arange(1_000), 64)
    dead = [name for name in before if name.startswith(("0.hidden.4.", "0.hidden.5."))] * (protocol == "published")
    assert [name for name, p in network.named_parameters() if p.grad is None] == dead
    assert [name for name, p in network.named_parameters() if torch.equal(p, before[name])] == dead
    assert sum(before[name].numel() for name in dead) == (5_500 if protocol == "published" else 0)


def test_other_depths_have_layers_of_their_own_in_both_protocols():
    for protocol in ("published", "corrected"):
        for layers in (1, 4, 7):
            network = regression.build_network("mlp", "spinal", protocol=protocol, layers=layers, width=5)
            network(torch.randn(9, 8)).sum().backward()
            assert all(p.grad is not None for p in network.parameters())
            assert [layer.in_features for layer in network[0].hidden] == [4] + [9] * (layers - 1)
    assert regression.build_network("mlp", "spinal", width=20)[0].calls == (0, 1, 2, 3, 2, 3)


@pytest.mark.parametrize(
    ("protocol", "calls"), [("published", (0, 1, 2, 3, 2, 3)), ("corrected", (0, 1, 2, 3, 4, 5))]
)
def test_spinal_network_equals_explicit_matrices(protocol, calls):
    network, x = regression.build_network("mlp", "spinal", protocol=protocol, width=3), torch.randn(11, 8)
    weights, halves, previous, outputs = network.state_dict(), (x[:, :4], x[:, 4:]), None, []
    for k, layer in enumerate(calls):
        weight, bias = weights[f"0.hidden.{layer}.weight"], weights[f"0.hidden.{layer}.bias"]
        scores = halves[k % 2] @ weight[:, :4].T + bias  # columns: input chunk first, then the previous layer
        if k:
            scores = scores + previous @ weight[:, 4:].T
        previous = torch.where(scores > 0, scores, 0.01 * scores)
        outputs.append(previous)
    expected = sum(h @ weights["1.weight"][:, 3 * k : 3 * k + 3].T for k, h in enumerate(outputs)) + weights["1.bias"]
    torch.testing.assert_close(network(x), expected)


def test_fc_network_equals_explicit_matrices():
    network, x = regression.build_network("mlp", "fc"), torch.randn(11, 8)
    w, leaky = list(network.state_dict().values()), lambda z: torch.where(z > 0, z, 0.01 * z)
    assert [tuple(p.shape) for p in w] == [(200, 8), (200,), (100, 200), (100,), (1, 100), (1,)]
    torch.testing.assert_close(network(x), leaky(leaky(x @ w[0].T + w[1]) @ w[2].T + w[3]) @ w[4].T + w[5])


def test_odd_layers_see_x1_to_x4_and_even_layers_x5_to_x8():
    layers = regression.build_network("mlp", "spinal", protocol="corrected", width=10)[0]
    x = torch.randn(64, 8, requires_grad=True)
    (first,) = torch.autograd.grad(layers(x)[:, :10].sum(), x)
    assert (first.abs().sum(0) > 0).tolist() == [True] * 4 + [False] * 4
    (second,) = torch.autograd.grad(layers(x)[:, 10:20].sum(), x)  # x1..x4 by way of the first layer
    assert (second.abs().sum(0) > 0).all()
    for k in range(1, 6):
        with torch.no_grad():  # cut the layer off the one before, so that only its own half is left
            layers.hidden[k].weight[:, 4:] = 0
        (gradient,) = torch.autograd.grad(layers(x)[:, 10 * k : 10 * k + 10].sum(), x)
        own = [False] * 4 + [True] * 4 if k % 2 else [True] * 4 + [False] * 4
        assert (gradient.abs().sum(0) > 0).tolist() == own


@pytest.mark.parametrize("arguments", [("cnn", "fc", {}), ("mlp", "both", {}), ("mlp", "fc", {"width": 5})])
def test_networks_that_do_not_exist_are_refused(arguments):
    with pytest.raises(ValueError, match="there is no network"):
        regression.build_network(*arguments[:2], **arguments[2])


# ---- Data ------------------------------------------------------------------------------------------------------------
def test_torch_seed_0_draws_the_data_of_the_specification():
    inputs, noise = regression.draw(1_000, torch.Generator().manual_seed(0))
    variances = [float(regression.FUNCTIONS[name](inputs).var(correction=0)) for name in FUNCTIONS]
    assert variances == pytest.approx([7.16, 0.506, 0.421, 0.0416], rel=2e-3)
    assert float(noise.var(correction=0)) == pytest.approx(0.003319, abs=5e-7)
    assert float(noise.mean()) == pytest.approx(0.104, abs=5e-4)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(inputs[:, 0], torch.randn(1_000, generator=generator))  # column after column
    assert torch.equal(inputs[:, 1], torch.randn(1_000, generator=generator))


def test_functions_are_those_of_table_1():
    x = torch.randn(50, 8, dtype=torch.float64)
    total, product = sum(x[:, k] for k in range(8)), math.prod(x[:, k] for k in range(8))
    for name, expected in zip(FUNCTIONS, (total, total.sin(), product, product.sin())):
        torch.testing.assert_close(regression.FUNCTIONS[name](x), expected[:, None])


def test_the_decisive_constants_are_those_of_the_specification(tmp_path):
    (start, *_), (other, *_) = train(tmp_path, "--function", "sum", "--epochs", "1").values()
    settings = start["settings"]
    assert regression.parse_arguments([]).epochs == 200 and settings["samples"] == start["data"]["train"] == 1_000
    assert (settings["batch_size"], settings["learning_rate"], settings["optimizer"]) == (64, 0.01, "Adam")
    assert (settings["rate_rule"], settings["noise"], settings["protocol"]) == ("constant", "column", "published")
    assert (settings["layers"], settings["width"]) == (2, 200) and (other["settings"]["width"]) == 50
    inputs, noise = regression.draw(200_000, torch.Generator().manual_seed(1))
    assert 0 <= noise.min() and noise.max() < 0.2 and regression.NOISE_VARIANCE == 0.04 / 12
    assert float(noise.mean()) == pytest.approx(0.1, abs=1e-3)
    assert float(noise.var()) == pytest.approx(1 / 300, rel=0.01)
    assert float(inputs.mean()) == pytest.approx(0, abs=0.01) and float(inputs.var()) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_column_noise_gives_each_sample_its_own_draw(function):
    data = regression.make_data(function, "column", 3, CPU)
    noise = data.targets - regression.FUNCTIONS[function](data.inputs)
    assert data.targets.shape == (1_000, 1) and data.inputs.shape == (1_000, 8)
    assert -1e-5 < noise.min() and noise.max() < 0.2 + 1e-5 and len(noise.round(decimals=4).unique()) > 500
    assert data.floor == 0 and torch.equal(data.reference, data.targets)
    assert data.facts["noise_variance_drawn"] == pytest.approx(float(noise.var(correction=0)), rel=1e-3)


def test_fresh_samples_are_others_and_carry_the_mean_of_the_noise():
    data = regression.make_data("sinsum", "column", 0, CPU)
    assert data.fresh_inputs.shape == (10_000, 8) and data.fresh_targets.shape == (10_000, 1)
    torch.testing.assert_close(data.fresh_targets, data.fresh_inputs.sum(1, keepdim=True).sin() + 0.1)
    assert not set(data.inputs[:, 0].tolist()) & set(data.fresh_inputs[:, 0].tolist())


def test_all_functions_of_a_seed_share_inputs_and_noise_and_seeds_differ():
    data = [regression.make_data(function, "column", 0, CPU) for function in FUNCTIONS]
    assert all(torch.equal(data[0].inputs, other.inputs) for other in data)
    assert len({other.facts["sha256"] for other in data}) == 4
    assert not torch.equal(data[0].inputs, regression.make_data("sum", "column", 1, CPU).inputs)


def test_broadcast_target_is_the_released_matrix():
    data, column = (regression.make_data("product", noise, 0, CPU) for noise in ("broadcast", "column"))
    clean = regression.FUNCTIONS["product"](column.inputs)
    noise = regression.draw(1_000, torch.Generator().manual_seed(0))[1]
    assert data.targets.shape == (1_000, 1_000)
    for i, j in ((0, 0), (3, 998), (999, 17)):
        assert data.targets[i, j] == clean[i, 0] + noise[j]
    assert torch.equal(column.targets[:, 0], clean[:, 0] + noise)


def test_broadcast_loss_is_distance_to_the_shifted_function_plus_the_variance_of_the_noise():
    data, predictions = regression.make_data("sum", "broadcast", 0, CPU), torch.randn(1_000, 1)
    clean, index = regression.FUNCTIONS["sum"](data.inputs), torch.randperm(1_000)[:64]
    noise = data.targets[0] - clean[0]
    with pytest.warns(UserWarning, match="size"):  # what the released script does, and its warning
        released = F.mse_loss(predictions[index], data.targets[index])
    identity = (predictions - clean - noise.mean())[index].square().mean() + noise.var(correction=0)
    assert float(released) == pytest.approx(float(identity), rel=1e-5)
    assert float(released) == float(F.mse_loss(predictions[index].expand(64, 1_000), data.targets[index]))
    best = F.mse_loss((clean + noise.mean()).expand(1_000, 1_000), data.targets)  # the best that any network can do
    assert float(best) == pytest.approx(0.003319, abs=1e-6) and data.floor == pytest.approx(float(best), rel=1e-4)


def test_train_mse_under_broadcast_is_the_loss_over_the_whole_matrix():
    data, network = regression.make_data("sinsum", "broadcast", 0, CPU), regression.build_network("mlp", "fc")
    with torch.no_grad():
        whole = F.mse_loss(network(data.inputs).expand(1_000, 1_000), data.targets)
    ours = regression.mean_squared_error(network, data.inputs, data.reference) + data.floor
    assert ours == pytest.approx(float(whole), rel=1e-5)


# ---- Training and log ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", ["column", "broadcast"])
@pytest.mark.parametrize("head", ["fc", "spinal"])
def test_an_epoch_equals_a_loop_written_by_hand(tmp_path, head, noise):
    """16 steps of Adam; the last batch has 40 samples, and its loss is that of the network before its own step (Q4)."""
    data, flags = regression.make_data("sinsum", noise, 0, CPU), ["--noise", noise, "--head", head, "--epochs", "1"]
    ((start, epoch, end),) = train(tmp_path, "--function", "sinsum", *flags).values()
    torch.manual_seed(regression.seed_of(0, "weights"))
    network = regression.build_network("mlp", head)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    order = torch.randperm(1_000, generator=torch.Generator().manual_seed(regression.seed_of(0, "order", 1)))
    losses, sizes = [], []
    for index in order.split(64):
        x, y = data.inputs[index], data.targets[index]
        loss = (network(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        sizes.append(len(index))
    with torch.no_grad():
        after_step = float((network(x) - y).square().mean())
        train_mse = float((network(data.inputs) - data.targets).square().mean())
        clean_mse = float((network(data.fresh_inputs) - data.fresh_targets).square().mean())
    constant = float((data.fresh_targets - data.targets.mean()).square().mean())
    assert sizes == [64] * 15 + [40]
    assert epoch["last_batch_mse"] == pytest.approx(losses[-1], rel=1e-3) and abs(after_step / losses[-1] - 1) > 2e-3
    assert epoch["train_loss"] == pytest.approx(sum(a * b for a, b in zip(losses, sizes)) / 1_000, rel=1e-3)
    assert epoch["train_mse"] == end["train_mse"] == pytest.approx(train_mse, rel=1e-3)
    assert epoch["clean_mse"] == end["clean_mse"] == pytest.approx(clean_mse, rel=1e-3)
    assert end["constant_clean_mse"] == pytest.approx(constant, rel=1e-5)
    assert end["min_last_batch_mse_100"] is None and end["min_last_batch_mse_200"] is None  # fewer epochs
    assert start["departures"] == (["epochs", "noise"] if noise == "broadcast" else ["epochs"])


@pytest.mark.parametrize(
    ("cell", "flags"),
    [
        ("fc-published-sum", ["--function", "sum", "--head", "fc"]),
        ("spinal6x50-published-product", ["--function", "product", "--head", "spinal"]),
        ("spinal6x50-corrected-sinsum", ["--function", "sinsum", "--head", "spinal", "--protocol", "corrected"]),
        ("fc-published-sinproduct-broadcast", ["--function", "sinproduct", "--head", "fc", "--noise", "broadcast"]),
    ],
)
def test_the_first_epochs_are_those_of_the_log_that_ships(tmp_path, cell, flags):
    """To 1 %: processors add in different orders, and 48 steps of training let the last digits grow."""
    (lines,) = train(tmp_path, *flags, "--epochs", "3", "--seed", "7").values()
    shipped = without_times(SHIPPED / f"mlp-{cell}-s7.jsonl")
    for ours, theirs in zip(lines[1:4], shipped[1:4]):
        assert ours == {key: pytest.approx(x, rel=1e-2) if key != "event" else x for key, x in theirs.items()}
    same = ("parameters", "fc_multiplications", "data", "seed", "script")
    assert [lines[0][key] for key in same] == [shipped[0][key] for key in same]
    assert lines[0]["settings"] == shipped[0]["settings"] | {"epochs": 3}


@pytest.mark.parametrize("epochs", [99, 100, 200])
def test_minima_at_100_and_200_are_those_of_the_epoch_lines(tmp_path, monkeypatch, capsys, epochs):
    losses = [abs(k % 37 - 20.5) * 1e-3 + 0.004 - 1e-5 * k for k in range(epochs)]
    ahead = iter(losses)
    monkeypatch.setattr(regression, "train_epoch", lambda *_: (0.5, next(ahead)))
    monkeypatch.setattr(regression, "mean_squared_error", lambda *_: 0.25)
    flags = ["--function", "sinproduct", "--head", "spinal", *(["--epochs", str(epochs)] if epochs != 200 else [])]
    ((*_, end),) = train(tmp_path, *flags).values()
    expected = [pytest.approx(min(losses[:n]), rel=1e-5) if epochs >= n else None for n in (100, 200)]
    assert [end["min_last_batch_mse_100"], end["min_last_batch_mse_200"]] == expected
    assert end["noise_variance"] == 0.00333333 and end["train_mse"] == end["clean_mse"] == 0.25
    said = capsys.readouterr().out
    assert ("below the variance of the noise, 3.333" in said) == (epochs == 200) and "0.910, 0.910" in said
    assert ("another setting" in said) == (epochs != 200) and "(a constant: 44.380)" in said


def test_the_report_reads_these_logs(tmp_path):
    sys.path.insert(0, str(ROOT / "tools"))
    from report.logs import read_logs

    train(tmp_path, "--function", "sum", "--epochs", "2")
    train(tmp_path, "--function", "sum", "--lr", "1e30")
    logs, findings = read_logs(tmp_path / "logs")
    assert not findings and len(logs) == 4 and all(log.regression for log in logs)


def test_names_and_settings_follow_the_schema(tmp_path):
    flags = ["--epochs", "1", "--batch-size", "32", "--lr", "0.1", "--seed", "7", "--noise", "broadcast"]
    logs = train(tmp_path, "--function", "product", "--width", "20", *flags)
    logs |= train(tmp_path, "--function", "sum", "--epochs", "1", "--protocol", "corrected", "--head", "spinal")
    part = "published-product-broadcast-e1-b32-lr0.1-s7.jsonl"
    assert sorted(logs) == [f"mlp-fc-{part}", f"mlp-spinal6x20-{part}", "mlp-spinal6x50-corrected-sum-e1-s0.jsonl"]
    fc, spinal, corrected = (logs[name][0] for name in sorted(logs))
    assert (fc["settings"]["layers"], fc["settings"]["width"]) == (2, 200) and fc["fc_multiplications"] == 21_700
    assert fc["departures"] == spinal["departures"] == ["batch_size", "epochs", "learning_rate", "noise"]
    assert (spinal["settings"]["layers"], spinal["settings"]["width"]) == (6, 20)
    assert fc["settings"]["selection"] == "minimum" and corrected["settings"]["selection"] == "last"
    assert corrected["parameters"] == 14_301 and corrected["schema"] == 2 and corrected["data"]["official"] is True
    assert [corrected["data"][key] for key in ("train", "heldout", "test")] == [1_000, 0, 10_000]
    assert set(corrected["provenance"]) == {"script_sha256", "device", "device_name", "threads", "versions"}
    assert {"dataset": "synthetic", "function": "sum", "noise": "column", "network": "mlp",
            "precision": "fp32"}.items() <= corrected["settings"].items()  # fmt: skip


def test_heads_share_batches_and_do_not_influence_each_other(tmp_path, monkeypatch):
    seen, original = [], regression.train_epoch

    def spy(network, optimizer, data, order, batch_size):
        seen.append(order.clone())
        return original(network, optimizer, data, order, batch_size)

    monkeypatch.setattr(regression, "train_epoch", spy)
    both = train(tmp_path / "both", "--function", "sinsum", "--epochs", "2")
    assert len(seen) == 4 and torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1]) and sorted(seen[0].tolist()) == list(range(1_000))
    train(tmp_path / "alone", "--function", "sinsum", "--epochs", "2", "--head", "spinal")
    assert both == train(tmp_path / "alone", "--function", "sinsum", "--epochs", "2", "--head", "fc")


def test_readings_do_not_influence_training(tmp_path, monkeypatch):
    (usual,) = train(tmp_path / "usual", "--function", "sum", "--epochs", "3", "--head", "spinal").values()
    monkeypatch.setattr(regression, "mean_squared_error", lambda *_: 1.0)
    (blind,) = train(tmp_path / "blind", "--function", "sum", "--epochs", "3", "--head", "spinal").values()
    assert [line["last_batch_mse"] for line in usual[1:-1]] == [line["last_batch_mse"] for line in blind[1:-1]]


def test_runs_are_seeds_and_a_seed_repeats_itself(tmp_path):
    first = train(tmp_path / "a", "--function", "sum", "--head", "fc", "--epochs", "2", "--runs", "2")
    assert [name[-8:] for name in first] == ["s0.jsonl", "s1.jsonl"]
    assert first == train(tmp_path / "b", "--function", "sum", "--head", "fc", "--epochs", "2", "--runs", "2")
    one, two = first.values()
    assert one[1]["train_loss"] != two[1]["train_loss"] and one[0]["data"]["sha256"] != two[0]["data"]["sha256"]


def test_a_diverging_run_ends_and_says_so(tmp_path):
    (lines,) = train(tmp_path, "--function", "sum", "--epochs", "5", "--head", "fc", "--lr", "1e30").values()
    assert len(lines) == 3 and lines[1]["train_loss"] is None
    assert lines[-1]["outcome"] == "diverged" and lines[-1]["diverged_epoch"] == lines[-1]["epochs"] == 1
    assert lines[-1]["train_mse"] is None and lines[-1]["min_last_batch_mse_100"] is None


# ---- Interruption ----------------------------------------------------------------------------------------------------
def test_ctrl_c_then_the_same_command_ends_like_an_uninterrupted_run(tmp_path, monkeypatch, capsys):
    flags, trained, original = ["--function", "sum", "--head", "spinal", "--epochs", "5"], [], regression.train_epoch

    def spy(*arguments):
        trained.append(len(trained) + 1)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    whole = train(tmp_path / "whole", *flags)
    clock = iter(range(0, 10**9, 1_000))
    monkeypatch.setattr(regression.time, "monotonic", lambda: next(clock) ** 2)  # long epochs: each is saved
    monkeypatch.setattr(regression, "train_epoch", spy)
    command = ["--results-dir", str(tmp_path / "r"), "--quiet", *flags]
    assert regression.main(command) == 130 and "the same command goes on" in capsys.readouterr().err
    (part,) = tmp_path.glob("r/logs/*/*.part")
    done = len(part.read_text().splitlines()) - 1
    assert 1 <= done <= 3 and {path.suffix for path in part.parent.iterdir()} == {".part", ".pt"}
    assert train(tmp_path / "r", *flags) == whole and f"goes on after epoch {done}" in capsys.readouterr().err
    assert len(trained) == 4 + 5 - done and len(list(tmp_path.glob("r/logs/*/*"))) == 1


def test_a_killed_process_goes_on_alone_in_an_empty_folder(tmp_path):
    """The script copied by itself, killed once its checkpoint is there, then started again."""
    flags = ["--function", "sinsum", "--head", "spinal", "--epochs", "25"]
    shutil.copy(ROOT / "Regression/synthetic_regression.py", tmp_path)
    command = [sys.executable, "synthetic_regression.py", *flags]
    folder = tmp_path / "results/logs/synthetic_regression"
    process, deadline = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL), time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline and not list(folder.glob("*.pt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not list(folder.glob("*.jsonl"))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "goes on after epoch" in done.stderr, done.stderr
    (path,) = folder.glob("*")
    assert "Log: results/logs/synthetic_regression/mlp-spinal6x50-published-sinsum-e25-s0.jsonl" in done.stdout
    assert [without_times(path)] == list(train(tmp_path / "whole", *flags).values())


@pytest.mark.parametrize("damage", ["torn", "other settings"])
def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path, capsys, damage):
    flags, folder = ["--function", "sum", "--head", "fc", "--epochs", "1"], tmp_path / "r/logs/synthetic_regression"
    whole, checkpoint = train(tmp_path / "whole", *flags), folder / "mlp-fc-published-sum-e1-s0.pt"
    folder.mkdir(parents=True)
    checkpoint.write_bytes(b"PK") if damage == "torn" else torch.save({"state": {"lines": [{"seed": 1}]}}, checkpoint)
    assert train(tmp_path / "r", *flags) == whole and "begins anew" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again_unless_asked(tmp_path, capsys):
    command = ["--results-dir", str(tmp_path), "--epochs", "1", "--quiet", "--head", "fc", "--function", "sum"]
    assert regression.main([*command, "--save-weights"]) == 0
    (path,) = tmp_path.glob("logs/*/*")
    (weights,) = tmp_path.glob("weights/synthetic_regression/mlp-fc-published-sum-e1-s0.pt")
    regression.build_network("mlp", "fc").load_state_dict(torch.load(weights, weights_only=True))
    before, said = path.stat(), capsys.readouterr().out
    assert regression.main(command) == 0
    again = capsys.readouterr().out
    assert again.startswith("already finished 20") and again.endswith(said)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    path.write_text(path.read_text().replace('"script_sha256": "', '"script_sha256": "0'))
    assert regression.main(command) == 2
    refused = capsys.readouterr()
    assert "another text of this script" in refused.err and "--overwrite" in refused.err and not refused.out
    assert regression.main([*command, "--overwrite"]) == 0 and regression.main(command) == 0


# ---- Mistakes, and the page ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mistake", "word"),
    [
        (["--epochs", "0"], "1 or more"),
        (["--seed", "x"], "invalid int"),
        (["--seed", "-1"], "0 or more"),
        (["--function", "foo"], "--function"),
        (["--noise", "none"], "--noise"),
        (["--lr", "nan"], "--lr"),
        (["--protocol", "corrected", "--noise", "broadcast"], "broadcast"),
        (["--head", "fc", "--layers", "3"], "Spinal head"),
        (["--results-dir", "a_file/results", "--epochs", "1"], "a_file"),
        (["--precision", "bf16"], "unrecognized"),
        (["--device", "abacus"], "device"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(tmp_path, capsys, monkeypatch, mistake, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    assert status(regression, [*mistake, "--quiet"]) == 2
    output = capsys.readouterr()
    last = output.err.splitlines()[-1]
    assert "error: " in last and word in last and "Traceback" not in output.err and not output.out
    assert [path.name for path in tmp_path.rglob("*")] == ["a_file"]


def test_the_paper_numbers_on_the_page_are_those_of_table_1():
    printed = {}
    for row in csv.DictReader((ROOT / "results/paper.csv").open(encoding="utf-8")):
        if row["script"] == "synthetic_regression" and row["metric"] == "min_mse_x1e-3":
            printed[row["function"], row["head"], row["epochs"]] = float(row["value"])
    rows = [[cell.strip() for cell in line.split("|")] for line in regression.__doc__.splitlines()]
    found = {row[2]: [float(cell) for cell in row[3:7]] for row in rows if row[2:3] and row[2] in FUNCTIONS}
    columns = [(head, epochs) for head in ("fc", "spinal") for epochs in ("100", "200")]
    assert found == {name: [printed[(name, *column)] for column in columns] for name in FUNCTIONS}
    assert found["product"] == [3.875, 3.875, 3.966, 2.217] and len(printed) == 16
