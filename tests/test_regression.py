"""Regression/synthetic_regression.py: counts, wiring, data, both shapes of noise, what is logged, resume, errors."""
import csv
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, load_script
from torch.nn import functional as F

PATH = ROOT / "Regression/synthetic_regression.py"
regression, CPU = load_script("Regression/synthetic_regression"), torch.device("cpu")
FUNCTIONS = ["sum", "sinsum", "product", "sinproduct"]


def logs_of(folder):
    return {path.name: path.read_text().splitlines() for path in sorted((folder / "logs" / "synthetic_regression").glob("*"))}


def without_times(lines):
    records = [json.loads(line) for line in lines]
    for record in records:
        for key in ("seconds", "peak_memory_bytes"):
            record.pop(key, None)
        record.get("provenance", {}).pop("started", None)
    return records


def train(folder, *flags):
    """Logs of a run in this process, as parsed lines without times."""
    assert regression.main(["--results-dir", str(folder), "--quiet", *flags]) == 0
    return {name: without_times(lines) for name, lines in logs_of(folder).items()}


# ---- Counts and wiring -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("head, parameters, multiplications", [("fc", 22_001, 21_700), ("spinal", 14_301, 14_000)])
def test_counts_equal_the_specification(protocol, head, parameters, multiplications):
    network = regression.build_network("mlp", head, protocol=protocol)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert regression.count_fc_multiplications(network, torch.zeros(1, 8)) == multiplications
    assert network(torch.zeros(3, 8)).shape == (3, 1)


@pytest.mark.parametrize("protocol, dead", [
    ("published", ["0.hidden.4.weight", "0.hidden.4.bias", "0.hidden.5.weight", "0.hidden.5.bias"]), ("corrected", [])])
def test_only_layers_5_and_6_of_the_published_net_get_no_gradient(protocol, dead):
    network = regression.build_network("mlp", "spinal", protocol=protocol)
    network(torch.randn(64, 8)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == dead
    assert sum(p.numel() for p in network.parameters() if p.grad is None) == (5_500 if dead else 0)
    assert all(p.grad.abs().sum() > 0 for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_training_leaves_dead_layers_and_only_them_as_they_were_drawn(protocol):
    data, options = regression.make_data("sum", "column", 0, CPU), regression.parse_arguments(["--protocol", protocol])
    run = regression.Run("sum", "spinal", 0, data, options, CPU)
    before = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    regression.train_epoch(run.network, run.optimizer, data, torch.arange(1_000), 64)
    same = {name for name, p in run.network.named_parameters() if torch.equal(p, before[name])}
    dead = {name for name in before if name.startswith(("0.hidden.4.", "0.hidden.5."))}
    assert len(dead) == 4 and same == (dead if protocol == "published" else set())


def test_other_depths_have_layers_of_their_own_in_both_protocols():
    for protocol in ("published", "corrected"):
        for layers in (1, 4, 7):
            network = regression.build_network("mlp", "spinal", protocol=protocol, layers=layers, width=5)
            network(torch.randn(9, 8)).sum().backward()
            assert all(p.grad is not None for p in network.parameters())
            assert [layer.in_features for layer in network[0].hidden] == [4] + [9] * (layers - 1)
    narrow = regression.build_network("mlp", "spinal", width=20)
    assert narrow[0].calls == (0, 1, 2, 3, 2, 3)


@pytest.mark.parametrize("protocol, calls", [("published", (0, 1, 2, 3, 2, 3)), ("corrected", (0, 1, 2, 3, 4, 5))])
def test_spinal_network_equals_explicit_matrices(protocol, calls):
    torch.manual_seed(0)
    network, x = regression.build_network("mlp", "spinal", protocol=protocol, width=3), torch.randn(11, 8)
    weights = network.state_dict()
    halves, previous, outputs = (x[:, :4], x[:, 4:]), None, []
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
    w = list(network.state_dict().values())
    def leaky(z):
        return torch.where(z > 0, z, 0.01 * z)
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
        assert (gradient.abs().sum(0) > 0).tolist() == ([False] * 4 + [True] * 4 if k % 2 else [True] * 4 + [False] * 4)


@pytest.mark.parametrize("arguments", [
    ("cnn", "fc", {}), ("mlp", "both", {}), ("mlp", "fc", {"width": 5}), ("mlp", "fc", {"layers": 5}),
    ("mlp", "spinal", {"protocol": "mended"})])
def test_networks_that_do_not_exist_are_refused(arguments):
    with pytest.raises(ValueError):
        regression.build_network(*arguments[:2], **arguments[2])


# ---- Data ------------------------------------------------------------------------------------------------------------------
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


def test_noise_has_mean_a_tenth_and_variance_a_twelfth_of_four_hundredths():
    inputs, noise = regression.draw(200_000, torch.Generator().manual_seed(1))
    assert 0 <= noise.min() and noise.max() < 0.2
    assert float(noise.mean()) == pytest.approx(0.1, abs=1e-3)
    assert float(noise.var()) == pytest.approx(regression.NOISE_VARIANCE, rel=0.01) and regression.NOISE_VARIANCE == 0.04 / 12
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
    clean, noise = regression.FUNCTIONS["product"](column.inputs), regression.draw(
        1_000, torch.Generator().manual_seed(0))[1]
    assert data.targets.shape == (1_000, 1_000)
    for i, j in ((0, 0), (3, 998), (999, 17)):
        assert data.targets[i, j] == clean[i, 0] + noise[j]
    assert torch.equal(column.targets[:, 0], clean[:, 0] + noise)


def test_broadcast_loss_is_distance_to_the_shifted_function_plus_the_variance_of_the_noise():
    data, predictions = regression.make_data("sum", "broadcast", 0, CPU), torch.randn(1_000, 1)
    clean = regression.FUNCTIONS["sum"](data.inputs)
    noise = data.targets[0] - clean[0]
    index = torch.randperm(1_000)[:64]
    with pytest.warns(UserWarning, match="size"):  # what the released script does, and its warning
        released = F.mse_loss(predictions[index], data.targets[index])
    identity = (predictions - clean - noise.mean())[index].square().mean() + noise.var(correction=0)
    assert float(released) == pytest.approx(float(identity), rel=1e-5)
    ours = F.mse_loss(predictions[index].expand(64, 1_000), data.targets[index])
    assert float(ours) == float(released)
    best = F.mse_loss((clean + noise.mean()).expand(1_000, 1_000), data.targets)  # the best that any network can do
    assert float(best) == pytest.approx(float(noise.var(correction=0)), rel=1e-4) == pytest.approx(data.floor, rel=1e-4)


def test_train_mse_under_broadcast_is_the_loss_over_the_whole_matrix():
    data, network = regression.make_data("sinsum", "broadcast", 0, CPU), regression.build_network("mlp", "fc")
    with torch.no_grad():
        whole = F.mse_loss(network(data.inputs).expand(1_000, 1_000), data.targets)
    ours = regression.mean_squared_error(network, data.inputs, data.reference) + data.floor
    assert ours == pytest.approx(float(whole), rel=1e-5)


# ---- Training and log ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", ["column", "broadcast"])
@pytest.mark.parametrize("head", ["fc", "spinal"])
def test_an_epoch_equals_a_loop_written_by_hand(tmp_path, head, noise):
    """16 steps of Adam; the last batch has 40 samples, and its loss is that of the network before its own step (Q4)."""
    data = regression.make_data("sinsum", noise, 0, CPU)
    ((start, epoch, end),) = train(tmp_path, "--function", "sinsum", "--noise", noise, "--head", head, "--epochs", "1").values()
    torch.manual_seed(regression.seed_of(0, "weights"))
    network = regression.build_network("mlp", head)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    order = torch.randperm(1_000, generator=torch.Generator().manual_seed(regression.seed_of(0, "order", 1)))
    losses, sizes = [], []
    for index in order.split(64):
        x, y = data.inputs[index], data.targets[index]
        before = {name: value.clone() for name, value in network.state_dict().items()}
        loss = (network(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item()), sizes.append(len(index))
    assert sizes == [64] * 15 + [40]
    with torch.no_grad():
        after_step = float((network(x) - y).square().mean())
        train_mse = float((network(data.inputs) - data.targets).square().mean())
        clean_mse = float((network(data.fresh_inputs) - data.fresh_targets).square().mean())
        network.load_state_dict(before)
        before_step = float((network(x) - y).square().mean())
    assert epoch["last_batch_mse"] == pytest.approx(before_step, rel=1e-3) and abs(after_step / before_step - 1) > 2e-3
    assert epoch["train_loss"] == pytest.approx(sum(a * b for a, b in zip(losses, sizes)) / 1_000, rel=1e-3)
    assert epoch["train_mse"] == end["train_mse"] == pytest.approx(train_mse, rel=1e-3)
    assert epoch["clean_mse"] == end["clean_mse"] == pytest.approx(clean_mse, rel=1e-3)
    assert end["min_last_batch_mse_100"] is None and end["min_last_batch_mse_200"] is None  # fewer epochs
    assert start["departures"] == (["epochs", "noise"] if noise == "broadcast" else ["epochs"])


@pytest.fixture(scope="module")
def full_runs(tmp_path_factory):
    """200 epochs with the smallest networks, column and broadcast noise."""
    folder = tmp_path_factory.mktemp("full")
    flags = ["--function", "sinproduct", "--head", "spinal", "--layers", "1", "--width", "4"]
    train(folder, *flags)
    return folder, train(folder, *flags, "--noise", "broadcast", "--seed", "1")


def test_minima_at_100_and_200_are_those_of_the_epoch_lines(full_runs):
    for lines in full_runs[1].values():
        losses = [line["last_batch_mse"] for line in lines[1:-1]]
        assert len(losses) == 200 and [line["epoch"] for line in lines[1:-1]] == list(range(1, 201))
        assert lines[-1]["min_last_batch_mse_100"] == min(losses[:100])
        assert lines[-1]["min_last_batch_mse_200"] == min(losses)
        assert lines[-1]["noise_variance"] == pytest.approx(0.04 / 12, rel=1e-5)


def test_no_broadcast_loss_is_below_the_variance_of_the_noise_drawn(full_runs):
    (lines,) = [lines for name, lines in full_runs[1].items() if "broadcast" in name]
    floor = lines[0]["data"]["noise_variance_drawn"]
    assert 0.0030 < floor < 0.0037
    for line in lines[1:-1]:
        assert min(line["last_batch_mse"], line["train_loss"], line["train_mse"]) >= floor * (1 - 1e-5)


def test_the_aggregator_accepts_the_logs(full_runs):
    sys.path.insert(0, str(ROOT / "results"))
    from report.logs import read_logs
    logs, findings = read_logs(full_runs[0] / "logs")
    assert not findings and len(logs) == 2 and all(log.regression for log in logs)


def test_names_and_settings_follow_the_schema(tmp_path):
    logs = train(tmp_path, "--function", "product", "--epochs", "1", "--batch-size", "32", "--lr", "0.1", "--seed", "7",
                 "--noise", "broadcast", "--width", "20")
    logs |= train(tmp_path, "--function", "sum", "--epochs", "1", "--protocol", "corrected", "--head", "spinal")
    assert sorted(logs) == ["mlp-fc-published-product-broadcast-e1-b32-lr0.1-s7.jsonl", "mlp-spinal6x20-published-product-"
                            "broadcast-e1-b32-lr0.1-s7.jsonl", "mlp-spinal6x50-corrected-sum-e1-s0.jsonl"]
    fc, spinal, corrected = (logs[name][0] for name in sorted(logs))
    assert (fc["settings"]["layers"], fc["settings"]["width"]) == (2, 200) and fc["fc_multiplications"] == 21_700
    assert fc["departures"] == spinal["departures"] == ["batch_size", "epochs", "lr", "noise"]
    assert (spinal["settings"]["layers"], spinal["settings"]["width"]) == (6, 20)
    assert fc["settings"]["selection"] == "minimum" and corrected["settings"]["selection"] == "last"
    assert corrected["parameters"] == 14_301 and corrected["data"]["official"] is True
    assert (corrected["data"]["train"], corrected["data"]["heldout"], corrected["data"]["test"]) == (1_000, 0, 10_000)
    assert {"dataset": "synthetic", "function": "sum", "noise": "column", "samples": 1_000, "network": "mlp",
            "optimizer": "Adam", "rate_rule": "constant", "precision": "fp32"}.items() <= corrected["settings"].items()


def test_heads_share_batches_and_do_not_influence_each_other(tmp_path, monkeypatch):
    seen, original = [], regression.train_epoch

    def spy(network, optimizer, data, order, batch_size):
        seen.append(order.clone())
        return original(network, optimizer, data, order, batch_size)

    monkeypatch.setattr(regression, "train_epoch", spy)
    both = train(tmp_path / "both", "--function", "sinsum", "--epochs", "2")
    assert len(seen) == 4 and torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2]) and sorted(seen[0].tolist()) == list(range(1_000))
    assert not torch.equal(seen[0], torch.arange(1_000))
    train(tmp_path / "alone", "--function", "sinsum", "--epochs", "2", "--head", "spinal")
    assert both == train(tmp_path / "alone", "--function", "sinsum", "--epochs", "2", "--head", "fc")


def test_readings_do_not_influence_training(tmp_path, monkeypatch):
    usual = train(tmp_path / "usual", "--function", "sum", "--epochs", "3", "--head", "spinal")
    monkeypatch.setattr(regression, "mean_squared_error", lambda *_: 1.0)
    blind = train(tmp_path / "blind", "--function", "sum", "--epochs", "3", "--head", "spinal")
    for name in usual:
        assert [line["last_batch_mse"] for line in usual[name][1:-1]] == [line["last_batch_mse"] for line in blind[name][1:-1]]


def test_runs_are_seeds_and_a_seed_repeats_itself(tmp_path):
    first = train(tmp_path / "a", "--function", "sum", "--epochs", "2", "--runs", "2")
    assert [name[-8:] for name in first] == ["s0.jsonl", "s1.jsonl"] * 2
    assert first == train(tmp_path / "b", "--function", "sum", "--epochs", "2", "--runs", "2")
    one, two = (lines for name, lines in first.items() if "-fc-" in name)
    assert one[1]["train_loss"] != two[1]["train_loss"] and one[0]["data"]["sha256"] != two[0]["data"]["sha256"]


def test_a_diverging_run_is_logged_as_such(tmp_path):
    (lines,) = train(tmp_path, "--function", "sum", "--epochs", "5", "--head", "fc", "--lr", "1e30").values()
    assert len(lines) == 3 and lines[1]["train_loss"] is None
    assert lines[-1]["outcome"] == "diverged" and lines[-1]["diverged_epoch"] == lines[-1]["epochs"] == 1
    assert lines[-1]["train_mse"] is None and lines[-1]["min_last_batch_mse_100"] is None


def test_the_table_marks_minima_below_the_variance_of_the_noise(tmp_path, capsys):
    flags = ["--function", "sinproduct", "--head", "spinal", "--epochs", "1", "--results-dir", str(tmp_path), "--quiet"]
    assert regression.main(flags) == 0
    out = capsys.readouterr().out
    assert "0.003333" in out and "0.910" in out and "* below" not in out and "another setting: epochs" in out
    (path,) = tmp_path.rglob("*.jsonl")
    path.write_text(path.read_text().replace('"min_last_batch_mse_200": null', '"min_last_batch_mse_200": 0.002'))
    assert regression.main(flags) == 0
    out = capsys.readouterr().out
    assert "2.000*" in out and "* below" in out and out.startswith("already finished")


# ---- Interruption ----------------------------------------------------------------------------------------------------------
COMMAND = [sys.executable, str(PATH), "--epochs", "30", "--function", "sinsum"]


def run_until(folder, lines_wanted, stop, delay=0.0, *flags):
    """Starts the command, sends `stop` once the logs hold so many lines; returns the finished process."""
    process = subprocess.Popen([*COMMAND, *flags, "--results-dir", str(folder)], stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True)
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        if sum(map(len, logs_of(folder).values())) >= lines_wanted:
            time.sleep(delay)
            process.send_signal(stop)
            break
        time.sleep(0.005)
    process.errors = process.communicate()[1]
    return process


def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path):
    expected = train(tmp_path / "uninterrupted", *COMMAND[2:])
    chance = random.Random(time.time_ns())
    wanted = chance.randint(4, 40)  # of 62 lines
    killed = run_until(tmp_path / "killed", wanted, signal.SIGKILL, chance.random() * 0.05)
    assert killed.returncode in (-signal.SIGKILL, 0), wanted  # 0: on a busy machine it may be finished before the signal
    parts = [path.name for path in (tmp_path / "killed").rglob("*.part")]
    assert train(tmp_path / "killed", *COMMAND[2:]) == expected, (wanted, parts)
    assert not list((tmp_path / "killed" / "checkpoints").rglob("*.pt"))


def test_resume_goes_on_instead_of_beginning_anew(tmp_path, monkeypatch):
    trained, original = [], regression.Run.train_epoch

    def spy(self, epoch, order):
        if epoch == 3 and 3 not in trained:
            trained.append(3)
            raise KeyboardInterrupt
        trained.append(epoch)
        self.checkpoint.cost = 0.0  # save after every epoch
        return original(self, epoch, order)

    monkeypatch.setattr(regression.Run, "train_epoch", spy)
    command = ["--results-dir", str(tmp_path), "--epochs", "4", "--quiet", "--head", "spinal", "--function", "sum"]
    assert regression.main(command) == 130 and regression.main(command) == 0
    assert trained == [1, 2, 3, 3, 4]


@pytest.mark.parametrize("stop, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_a_valid_log_and_a_checkpoint(tmp_path, stop, status):
    process = run_until(tmp_path, 8, stop, 0.0, "--epochs", "2000")
    assert process.returncode == status and process.errors.strip().count("\n") == 0 and "Traceback" not in process.errors
    parts = list((tmp_path / "logs").rglob("*.part"))
    assert parts and not list((tmp_path / "logs").rglob("*.jsonl"))
    assert all(json.loads(line) for part in parts for line in part.read_text().splitlines())
    assert list((tmp_path / "checkpoints").rglob("*.pt"))


def test_a_finished_run_is_not_run_again_unless_asked(tmp_path, capsys):
    command = ["--results-dir", str(tmp_path), "--epochs", "1", "--quiet", "--head", "fc", "--function", "sum"]
    assert regression.main(command) == 0
    (path,) = (tmp_path / "logs").rglob("*.jsonl")
    before = path.stat()
    assert regression.main(command) == 0 and "already finished" in capsys.readouterr().out
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert regression.main([*command, "--overwrite"]) == 0
    assert path.stat().st_ino != before.st_ino


# ---- Mistakes, and the script alone ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("mistake, word", [
    (["--epochs", "0"], "1 or more"), (["--seed", "x"], "whole number"), (["--seed", "-1"], "0 or more"),
    (["--function", "foo"], "--function"), (["--noise", "none"], "--noise"), (["--lr", "nan"], "--lr"),
    (["--protocol", "corrected", "--noise", "broadcast"], "broadcast"), (["--head", "fc", "--layers", "3"], "Spinal head"),
    (["--head", "fc", "--width", "3"], "Spinal head"), (["--results-dir", "a_file/results"], "a_file"),
    (["--precision", "bf16"], "unrecognized"), (["--limit", "5"], "unrecognized"), (["--device", "abacus"], "no device")])
def test_a_mistake_is_one_sentence_and_status_2(tmp_path, capsys, monkeypatch, mistake, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    assert regression.main(mistake) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and word in output.err and not output.out
    assert [path.name for path in tmp_path.rglob("*")] == ["a_file"]


def test_the_script_alone_in_an_empty_folder_runs(tmp_path):
    shutil.copy(PATH, tmp_path)
    done = subprocess.run([sys.executable, "synthetic_regression.py", "--epochs", "2", "--function", "sum"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "Logs: results/logs/synthetic_regression/" in done.stdout and not done.stderr, done.stderr
    assert sorted(logs_of(tmp_path / "results")) == [
        "mlp-fc-published-sum-e2-s0.jsonl", "mlp-spinal6x50-published-sum-e2-s0.jsonl"]


def test_the_paper_numbers_in_the_script_are_those_of_table_1():
    printed = {}
    for row in csv.DictReader(open(ROOT / "results/paper.csv", encoding="utf-8")):
        if row["script"] == "synthetic_regression" and row["metric"] == "min_mse_x1e-3":
            printed.setdefault((row["function"], row["head"]), {})[row["epochs"]] = float(row["value"])
    assert regression.PAPER == {key: (value["100"], value["200"]) for key, value in printed.items()}
    assert len(printed) == 8
    for fc_100, fc_200, spinal_100, spinal_200 in [
            regression.PAPER[name, "fc"] + regression.PAPER[name, "spinal"] for name in FUNCTIONS]:
        assert f"{fc_100:.3f} |   {fc_200:.3f} |       {spinal_100:.3f} |       {spinal_200:.3f} |" in regression.__doc__
