"""Regression/synthetic_regression.py: settings, wiring, noise, reported numbers, resume, words."""

import csv
import json
import math
import shutil
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import ROOT, lines_of, load_script
from cuda_stand_in import CUDA, CudaOnTheCpu, FakeCuda

CPU = torch.device("cpu")
regression = load_script("Regression/synthetic_regression")
FUNCTIONS = ["sum", "sinsum", "product", "sinproduct"]
SHIPPED = ROOT / "results/reference/logs"
PAPER = {  # Table I x 1e-3: by epoch 100 and 200
    "sum": {"fc": (1.178, 0.887), "spinal6x50": (1.007, 0.855)},
    "sinsum": {"fc": (1.918, 1.086), "spinal6x50": (1.912, 1.219)},
    "product": {"fc": (3.875, 3.875), "spinal6x50": (3.966, 2.217)},
    "sinproduct": {"fc": (3.403, 1.554), "spinal6x50": (0.910, 0.910)},
}
SHORT = ["--function", "sum", "--head", "fc", "--epochs", "3", "--quiet"]
LABEL = "mlp-fc-published-sum-e3-s0"


def without_times(path):
    """Lines of a log; what two runs of the same numbers can differ in is left out."""
    lines = lines_of(path)
    lines[0].pop("provenance")
    return lines


def train(folder, *flags, script=regression):
    """The logs of a run in this process by name."""
    assert script.main(["--quiet", "--results-dir", str(folder), *flags]) == 0
    return {path.stem: without_times(path) for path in sorted(folder.glob("logs/*/*.jsonl"))}


def stop(monkeypatch, script, folder, *flags):
    """A run that Ctrl-C ends after its first epoch."""

    def save(self, original=script.Run.save):
        original(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script.Run, "save", save)
        assert script.main([*flags, "--quiet", "--results-dir", str(folder)]) == 130


def data_of(function="sum", noise="column", seed=0, device=CPU):
    return regression.load_data(regression.Recipe(function=function, noise=noise), seed, device)


def recipes_of(*flags, function="sum"):
    return regression.choose_recipes(regression.parse_arguments([*flags]), function)


# ---- Settings -----------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_settings_are_those_of_the_publication(function, protocol):
    fc, spinal = recipes_of("--protocol", protocol, function=function)
    common = {"dataset": "synthetic", "function": function, "noise": "column", "samples": 1_000}
    common |= {"network": "mlp", "protocol": protocol, "epochs": 200, "batch_size": 64}
    common |= {"optimizer": "Adam", "learning_rate": 0.01, "rate_rule": "constant"}
    common |= {"selection": "minimum" if protocol == "published" else "last", "precision": "fp32"}
    assert asdict(fc) == common | {"head": "fc", "layers": 2, "width": 200}
    assert asdict(spinal) == common | {"head": "spinal", "layers": 6, "width": 50}
    optimizer = regression.Trainer(spinal, data_of(function), CPU).optimizer
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    decisive = [group[key] for key in ("lr", "betas", "eps", "weight_decay", "amsgrad")]
    assert decisive == [0.01, (0.9, 0.999), 1e-8, 0, False]


def test_the_paper_has_sixteen_numbers_in_code_docstring_and_csv():
    columns = ("fc", "spinal6x50")
    expected = {f"{name}-{head}": PAPER[name][head] for name in FUNCTIONS for head in columns}
    assert expected == regression.PAPER
    rows = [line.split("|") for line in regression.__doc__.splitlines()]
    printed = {row[2].strip(): row[3] + "," + row[4] for row in rows if len(row) == 6}
    for name in FUNCTIONS:
        numbers = tuple(float(x) for x in printed[name].split(","))
        assert numbers == PAPER[name]["fc"] + PAPER[name]["spinal6x50"]
    with (ROOT / "results/paper.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["script"] == "synthetic_regression"]
    rows = [row for row in rows if row["metric"] == "min_mse_x1e-3"]
    assert len(rows) == 16
    for row in rows:
        head = "fc" if row["head"] == "fc" else "spinal6x50"
        assert float(row["value"]) == PAPER[row["function"]][head][row["epochs"] == "200"]


# ---- Networks -----------------------------------------------------------------------------------
@pytest.mark.parametrize("protocol", ["published", "corrected"])
@pytest.mark.parametrize(
    ("head", "shapes", "parameters", "products"),
    [
        ("fc", [(8, 200), (200, 100), (100, 1)], 22_001, 21_700),
        ("spinal", [(4, 50)] + [(54, 50)] * 5 + [(300, 1)], 14_301, 14_000),
    ],
)
def test_counts(protocol, head, shapes, parameters, products):
    network = regression.build_network("mlp", head, protocol=protocol)
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == shapes
    assert sum(p.numel() for p in network.parameters()) == parameters
    calls = []
    for layer in linear:
        layer.register_forward_hook(lambda layer, *_: calls.append(layer.weight.numel()))
    assert network(torch.zeros(3, 8)).shape == (3, 1)
    assert sum(calls) == products == regression.multiplications(network)


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_only_layers_5_and_6_of_the_published_network_are_dead(protocol):
    recipe = recipes_of("--protocol", protocol)[1]
    trainer = regression.Trainer(recipe, data_of(), CPU)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.epoch(torch.arange(1_000), {})
    after = dict(trainer.network.named_parameters())
    dead = [name for name in before if after[name].grad is None]
    assert dead == [name for name in before if torch.equal(before[name], after[name])]
    expected = [f"0.hidden.{k}.{kind}" for k in (4, 5) for kind in ("weight", "bias")]
    assert dead == (expected if protocol == "published" else [])
    assert sum(before[name].numel() for name in dead) in (0, 5_500)


def test_networks_equal_explicit_matrices():
    x, leaky = torch.randn(11, 8), nn.LeakyReLU(0.01)
    network = regression.build_network("mlp", "fc")
    w = list(network.state_dict().values())
    expected = leaky(leaky(x @ w[0].T + w[1]) @ w[2].T + w[3]) @ w[4].T + w[5]
    torch.testing.assert_close(network(x), expected)
    for protocol, calls in (("published", [0, 1, 2, 3, 2, 3]), ("corrected", range(6))):
        network = regression.build_network("mlp", "spinal", protocol=protocol, width=3)
        weights = network.state_dict()
        outputs = []
        for k, layer in enumerate(calls):
            half = x[:, 4:] if k % 2 else x[:, :4]
            inputs = torch.cat([half, *outputs[-1:]], 1)  # the half first, then the layer before
            weight, bias = weights[f"0.hidden.{layer}.weight"], weights[f"0.hidden.{layer}.bias"]
            outputs.append(leaky(inputs @ weight.T + bias))
        expected = torch.cat(outputs, 1) @ weights["1.weight"].T + weights["1.bias"]
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("layers", [1, 4, 7])
def test_other_depths_share_no_layers(layers):
    network = regression.build_network("mlp", None, layers=layers, width=5)
    network(torch.randn(9, 8)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


NO_NETWORKS = [("cnn", "fc", {}), ("mlp", "both", {}), ("mlp", "fc", {"width": 5})]


@pytest.mark.parametrize(("network", "head", "sizes"), NO_NETWORKS)
def test_networks_that_do_not_exist_are_refused(network, head, sizes):
    with pytest.raises(ValueError, match="there is no network"):
        regression.build_network(network, head, **sizes)


# ---- Data ---------------------------------------------------------------------------------------
def test_seed_0_draws_the_samples_of_the_publication():
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randn(1_000, generator=generator) for _ in range(8)]
    noise = 0.2 * torch.rand(1_000, generator=generator)
    assert float(noise.var(correction=0)) == pytest.approx(0.003319, abs=5e-7)
    variances = {"sum": 7.16, "sinsum": 0.506, "product": 0.421, "sinproduct": 0.0416}
    total, product = sum(columns), math.prod(columns)
    clean = {"sum": total, "sinsum": total.sin(), "product": product, "sinproduct": product.sin()}
    for name in FUNCTIONS:
        data = data_of(name)
        assert torch.equal(data.inputs, torch.stack(columns, 1))
        torch.testing.assert_close(data.targets[:, 0], clean[name] + noise)
        assert float(clean[name].var(correction=0)) == pytest.approx(variances[name], rel=2e-3)
        assert data.facts["noise_variance_drawn"] == pytest.approx(0.003319, abs=5e-7)
    assert pytest.approx(0.2**2 / 12) == regression.NOISE_VARIANCE and regression.NOISE_MEAN == 0.1


def test_fresh_samples_are_others_and_carry_the_mean_of_the_noise():
    data = data_of("sinsum")
    assert data.fresh_inputs.shape == (10_000, 8)
    expected = data.fresh_inputs.sum(1, keepdim=True).sin() + 0.1
    torch.testing.assert_close(data.fresh_targets, expected)
    assert not set(data.inputs[:, 0].tolist()) & set(data.fresh_inputs[:, 0].tolist())
    assert not torch.equal(data.inputs, data_of("sinsum", seed=1).inputs)


def test_broadcast_noise_is_a_matrix_with_a_floor_and_column_noise_its_diagonal():
    data, column = data_of("product", "broadcast"), data_of("product")
    clean = regression.clean_targets("product", data.inputs)
    assert data.targets.shape == (1_000, 1_000) and column.targets.shape == (1_000, 1)
    assert torch.equal(data.targets.diagonal(), column.targets[:, 0])
    noise = data.targets[0] - clean[0]
    torch.testing.assert_close(data.targets[7], clean[7] + noise)  # all of the noise in each row
    index, outputs = torch.randperm(1_000)[:64], torch.randn(64, 1)
    with pytest.warns(UserWarning, match="size"):  # as the authors' script does, with its warning
        released = F.mse_loss(outputs, data.targets[index])
    distance = (outputs - clean[index] - noise.mean()).square().mean()
    assert float(released) == pytest.approx(float(distance + noise.var(correction=0)), rel=1e-5)
    assert data.floor == pytest.approx(0.003319, abs=1e-6) and column.floor == 0
    best = F.mse_loss((clean + noise.mean()).expand(1_000, 1_000), data.targets)
    assert float(best) == pytest.approx(data.floor, rel=1e-4)  # the best that any network can do


# ---- Training and log ---------------------------------------------------------------------------
@pytest.mark.parametrize("noise", ["column", "broadcast"])
@pytest.mark.parametrize("head", ["fc", "spinal"])
def test_an_epoch_equals_a_loop_written_by_hand(tmp_path, head, noise):
    """16 steps of Adam. The last batch has 40 samples; its loss is that before its own step."""
    flags = ["--function", "sinsum", "--noise", noise, "--head", head, "--epochs", "1"]
    ((start, epoch, end),) = train(tmp_path, *flags).values()
    data = data_of("sinsum", noise)
    torch.manual_seed(regression.seed_of(0, "weights"))
    network = regression.build_network("mlp", head)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(regression.seed_of(0, "order", 1))
    batches = torch.randperm(1_000, generator=generator).split(64)
    losses = []
    for index in batches:
        loss = (network(data.inputs[index]) - data.targets[index]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    sizes = [len(index) for index in batches]
    assert sizes == [64] * 15 + [40]
    mean = sum(size * loss for size, loss in zip(sizes, losses, strict=True)) / 1_000
    with torch.no_grad():
        train_mse = float((network(data.inputs) - data.targets).square().mean())
        clean_mse = float((network(data.fresh_inputs) - data.fresh_targets).square().mean())
    # Not to the last digit: other orders of summation.
    expected = {"train_loss": mean, "last_batch_mse": losses[-1]}
    expected |= {"train_mse": train_mse, "clean_mse": clean_mse, "learning_rate": 0.01}
    assert {key: epoch[key] for key in expected} == pytest.approx(expected, rel=1e-3)
    constant = float((data.fresh_targets - data.targets.mean()).square().mean())
    assert end["constant_clean_mse"] == pytest.approx(constant, rel=1e-4)
    assert (end["train_mse"], end["clean_mse"]) == (epoch["train_mse"], epoch["clean_mse"])
    assert end["min_last_batch_mse_100"] is None and end["min_last_batch_mse_200"] is None
    assert start["departures"] == ["epochs"] + ["noise"] * (noise == "broadcast")


PRODUCT = "--function product --protocol corrected --epochs 3 --seed 7"
TABLE = "--demo diabetes --epochs 3 --seed 3"


@pytest.mark.parametrize("name, flags", [("synthetic_regression", PRODUCT), ("tabular", TABLE)])
def test_the_first_epochs_are_those_of_the_logs_that_ship(tmp_path, name, flags):
    """To 1 %: processors add in different orders, and training lets the last digits grow."""
    script = load_script(f"Regression/{name}")
    for label, ours in train(tmp_path, *flags.split(), script=script).items():
        theirs = without_times(SHIPPED / name / f"{label.replace('-e3', '')}.jsonl")
        for one, two in zip(ours[1:4], theirs[1:4], strict=True):
            assert one.pop("event") == two.pop("event") == "epoch"
            both = {key: one[key] for key in one if key in two}  # old logs of tables have fewer
            assert both == pytest.approx({key: two[key] for key in both}, rel=1e-2)
            assert {"train_loss", "learning_rate"} < set(both) and len(both) > 3
        assert ours[0]["settings"] == theirs[0]["settings"] | {"epochs": 3}
        assert ours[0]["data"] == theirs[0]["data"] | {"verified": True}
        for key in ("parameters", "fc_multiplications", "seed", "script"):
            assert ours[0][key] == theirs[0][key]


@pytest.mark.parametrize("epochs", [99, 100, 200])
def test_minima_at_100_and_200_and_what_is_printed(tmp_path, monkeypatch, capsys, epochs):
    losses = [abs(k % 37 - 20.5) * 1e-3 + 0.004 - 1e-5 * k for k in range(epochs)]
    ahead = iter(losses * 2)  # both heads
    numbers = {"train_loss": 0.5, "train_mse": 0.25, "clean_mse": 0.125}
    step = lambda *_: numbers | {"last_batch_mse": next(ahead)}  # noqa: E731
    monkeypatch.setattr(regression.Trainer, "epoch", step)
    for *_, end in train(tmp_path, "--function", "sinproduct", "--epochs", str(epochs)).values():
        for limit in (100, 200):
            smallest = pytest.approx(min(losses[:limit]), rel=1e-5) if epochs >= limit else None
            assert end[f"min_last_batch_mse_{limit}"] == smallest
        assert end["noise_variance"] == 0.00333333
        assert (end["train_mse"], end["clean_mse"]) == (0.25, 0.125)
    said = capsys.readouterr().out
    whole = epochs == 200
    assert ("(paper: 3.403, 1.554)" in said) == ("(paper: 0.910, 0.910)" in said) == whole
    assert ("that is below the variance of the noise, 3.333" in said) == whole
    assert "fresh samples: 125.000 (a constant: 44.380)" in said
    last = "sinproduct: +0.000 (paper: -0.644)" if whole else "sinproduct: +0.000"
    assert said.rstrip().endswith(last)
    assert max(len(line) for line in said.splitlines() if "log:" not in line) <= 80


def test_names_and_first_line(tmp_path):
    flags = ["--epochs", "1", "--batch-size", "32", "--lr", "0.1", "--seed", "7"]
    name = "published-product-broadcast-e1-b32-lr0.1-s7"
    flags += ["--noise", "broadcast", "--function", "product", "--width", "20"]
    logs = train(tmp_path, *flags)
    assert list(logs) == [f"mlp-fc-{name}", f"mlp-spinal6x20-{name}"]
    (fc, *_), (spinal, *_) = logs.values()
    assert fc["departures"] == ["batch_size", "epochs", "learning_rate", "noise"]
    assert (fc["settings"]["width"], spinal["settings"]["width"]) == (200, 20)
    keys = "event schema script run seed settings departures parameters fc_multiplications data"
    assert list(fc) == keys.split() and (fc["schema"], fc["run"]) == (3, f"mlp-fc-{name}")
    facts = {"official": True, "verified": True, "train": 1_000, "heldout": 0, "test": 10_000}
    assert facts.items() <= fc["data"].items() and len(fc["data"]["sha256"]) == 16
    log = tmp_path / f"logs/synthetic_regression/mlp-fc-{name}.jsonl"
    provenance = json.loads(log.read_text().splitlines()[0])["provenance"]
    known = {"device": "cpu", "threads": 1, "versions": {"torch": str(torch.__version__)}}
    assert known.items() <= provenance.items() and provenance["device_name"].endswith(")")


def test_heads_share_batches_and_runs_are_seeds(tmp_path, monkeypatch):
    orders, original = [], regression.Trainer.epoch

    def spy(self, order, state):
        orders.append(order)
        return original(self, order, state)

    monkeypatch.setattr(regression.Trainer, "epoch", spy)
    flags = ["--function", "sinsum", "--epochs", "2"]
    both = train(tmp_path / "both", *flags, "--runs", "2")
    assert list(both) == [f"mlp-{h}-published-sinsum-e2-s{s}" for h in PAPER["sum"] for s in (0, 1)]
    for fc, spinal in ((0, 2), (1, 3), (4, 6), (5, 7)):  # epochs of a seed
        assert torch.equal(orders[fc], orders[spinal])
    assert sorted(orders[0].tolist()) == list(range(1_000))
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[4])
    # A head alone, without measurements on the way, has the same losses.
    monkeypatch.setattr(regression.Trainer, "evaluate", lambda *_: 1.0)
    ((_, *alone, _),) = train(tmp_path / "alone", *flags, "--head", "spinal").values()
    together = both["mlp-spinal6x50-published-sinsum-e2-s0"][1:-1]
    assert [x["last_batch_mse"] for x in alone] == [x["last_batch_mse"] for x in together]


FAST = {"synthetic_regression": ["--function", "sum"], "tabular": ["--demo", "diabetes"]}


@pytest.mark.parametrize("name", FAST)
def test_a_diverging_run_ends_and_says_so(tmp_path, capsys, name):
    script = load_script(f"Regression/{name}")
    for lines in train(
        tmp_path, *FAST[name], "--epochs", "9", "--lr", "9e5", script=script
    ).values():
        assert len(lines) < 11 and lines[-2]["train_loss"] is None
        assert lines[-1]["outcome"] == "diverged" and lines[-1]["epochs"] == len(lines) - 2
        assert None in (lines[-1].get("train_mse", 0), lines[-1].get("test_mse", 0))
    said = capsys.readouterr().out
    assert ("sum: a run diverged" in said) == (name != "tabular") and "Spinal - FC: " not in said


# ---- CUDA ---------------------------------------------------------------------------------------
SCRIPTS = [  # at this rate the first epoch of the table's FC network is its best
    ("synthetic_regression", ["--function", "sinsum", "--epochs", "2", "--save-weights"]),
    ("tabular", ["--demo", "diabetes", "--epochs", "2", "--lr", "0.2", "--save-weights"]),
]


@pytest.mark.parametrize(("name", "flags"), SCRIPTS)
def test_cuda_is_used_when_asked_for(tmp_path, monkeypatch, capsys, name, flags):
    """On a stand-in for it, with the CPU's numbers, also in a run that Ctrl-C stopped before."""
    script = load_script(f"Regression/{name}")
    expected = train(tmp_path / "cpu", *flags, script=script)

    folder = tmp_path / "moved"
    stop(monkeypatch, script, folder, *flags)
    capsys.readouterr()
    for device in ("cuda", "auto"):
        with CudaOnTheCpu():
            assert train(folder, *flags, "--device", device, script=script) == expected
    said = capsys.readouterr().out
    assert said.count("goes on after epoch 1") == 1 and said.count("already finished 20") == 2
    fc, spinal = [path.read_text().splitlines() for path in sorted(folder.glob("logs/*/*.jsonl"))]
    resume, start = json.loads(fc[2]), json.loads(spinal[0])
    assert (resume["event"], resume["epoch"]) == ("resume", 1)
    for provenance in (resume["provenance"], start["provenance"]):
        assert provenance["versions"].keys() == {"torch", "cudnn"} and "driver" in provenance
        known = {"device": "cuda", "device_name": "stand-in", "capability": [9, 0], "threads": 1}
        known["cudnn_allow_tf32"] = torch.backends.cudnn.allow_tf32
        known["matmul_allow_tf32"] = torch.backends.cuda.matmul.allow_tf32
        assert known.items() <= provenance.items()
    if name == "tabular":  # the best weights are in the checkpoint, too
        assert json.loads(fc[-1])["best_epoch"] == 1


@pytest.mark.parametrize("head", ["fc", "spinal"])
@pytest.mark.parametrize(("name", "flags"), SCRIPTS)
def test_data_network_and_batches_are_on_the_device(tmp_path, monkeypatch, name, flags, head):
    """Tensors without content, which refuse what a GPU refuses; random draws are the CPU's."""
    script = load_script(f"Regression/{name}")
    command = [*flags[:-1], "--head", head, "--quiet", "--results-dir", str(tmp_path)]
    trainers = []

    def gradients(loss):
        assert loss.device == CUDA and loss.grad_fn is not None
        for x in trainers[-1].network.parameters():
            x.grad = torch.zeros_like(x)

    def epoch(trainer, order, state, original=script.Trainer.epoch):
        assert order.device == CUDA
        trainers.append(trainer)
        return original(trainer, order, state)

    monkeypatch.setattr(torch.Tensor, "backward", gradients)
    monkeypatch.setattr(script.Trainer, "epoch", epoch)
    monkeypatch.setattr(script.Run, "save", lambda run: None)  # there is no content to save
    machine = {"script_sha256": "", "device_name": ""}
    monkeypatch.setattr(script, "provenance", lambda device: machine)
    with FakeCuda():
        script.reproduce(script.parse_arguments(command), CUDA)
    data, network = trainers[0].data, trainers[0].network
    tensors = [*network.parameters(), *network.buffers()]
    tensors += sum(data.parts.values(), ()) if name == "tabular" else data[:5]
    assert {x.device for x in tensors} == {CUDA} and len(trainers) == 2


# ---- Interruption and what earlier runs left ----------------------------------------------------
@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the finished run SHORT, and its lines."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(folder, *SHORT)[LABEL]


CHANGES = {
    "other learning_rate": lambda first: first["settings"].update(learning_rate=0.5),
    "other data": lambda first: first["data"].update(sha256="0" * 16),
    "another version": lambda first: first["provenance"].update(script_sha256="0" * 16),
}


def spoil(path, how):
    """Changes the first line of a log or checkpoint, or cuts the file."""
    content = path.read_bytes()
    if how == "damaged: empty":
        path.write_bytes(b"")
    elif how == "damaged: cut":
        path.write_bytes(content[: content.rstrip().rfind(b"\n") + 1])
    elif path.suffix == ".pt":
        saved = torch.load(path)
        CHANGES[how](saved["state"]["lines"][0])
        torch.save(saved, path)
    else:
        first, *rest = content.decode().splitlines(keepends=True)
        first = json.loads(first)
        CHANGES[how](first)
        path.write_text(json.dumps(first) + "\n" + "".join(rest))


HOW = [*CHANGES, "damaged: cut", "damaged: empty"]
MISFITS = [(".pt", how) for how in HOW] + [
    (".jsonl", how) for how in HOW if how != HOW[2]
]  # that is a note


@pytest.mark.parametrize(("suffix", "how"), MISFITS)
def test_misfits_are_refused_and_kept(tmp_path, monkeypatch, capsys, finished, suffix, how):
    stop(monkeypatch, regression, tmp_path, *SHORT)
    path = tmp_path / f"logs/synthetic_regression/{LABEL}.pt"
    if suffix == ".jsonl":
        log = path.with_suffix(".jsonl")
        path.unlink()
        path = shutil.copy(finished[0] / log.relative_to(tmp_path), log)
    spoil(path, how)
    before = path.read_bytes()
    capsys.readouterr()
    assert regression.main([*SHORT, "--results-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and how.partition(":")[0] in error and "--overwrite" in error
    assert path.read_bytes() == before
    assert train(tmp_path, *SHORT, "--overwrite") == {LABEL: finished[1]}


def test_a_finished_run_is_shown_and_not_run_again(tmp_path, capsys, finished):
    command = [*SHORT, "--save-weights", "--results-dir", str(tmp_path)]
    assert regression.main(command) == 0
    said = capsys.readouterr().out
    weights = tmp_path / f"weights/synthetic_regression/{LABEL}.pt"
    assert f"weights: {weights}" in said
    regression.build_network("mlp", "fc").load_state_dict(torch.load(weights))
    (path,) = tmp_path.glob("logs/*/*")
    weights.rename(tmp_path / "elsewhere")
    assert regression.main(command) == 2
    assert "its weights were not saved" in capsys.readouterr().err
    (tmp_path / "elsewhere").rename(weights)
    text = path.read_text().replace('"script_sha256": "', '"script_sha256": "0')
    path.write_text(text)
    assert regression.main(command) == 0
    note, again = capsys.readouterr().out.split("\n", 1)
    assert note.startswith("already finished 20") and "another version of this script" in note
    assert again == said and path.read_text() == text


# ---- Mistakes -----------------------------------------------------------------------------------
MISTAKES = [
    ("--epochs 0", "--epochs must be from 1"),
    ("--seed -1", "--seed must be from 0"),
    ("--seed x", "--seed"),
    ("--function foo", "--function"),
    ("--lr 0", "--lr must"),
    ("--lr nan", "--lr must"),
    ("--device gpu", "--device gpu cannot be used on this computer"),
    ("--device cuda:63", "--device cuda:63 cannot be used on this computer"),
    ("--protocol corrected --noise broadcast", "broadcast is a fault"),
    ("--head fc --layers 3", "belong to the Spinal head"),
    ("--results-dir a_file/results --epochs 1", "a_file"),
]
OF_TABLES = [
    ("", "--csv FILE --target"),
    ("--demo diabetes --csv x.csv", "--csv FILE --target"),
    ("--demo diabetes --target y", "--csv FILE --target"),
    ("--demo diabetes --task classification", "one --target"),
    ("--csv x.csv --target y,z --task classification", "one --target"),
    ("--csv none.csv --target y", "none.csv"),
    ("--demo diabetes --splits 30", "do not cover"),
    ("--demo diabetes --splits 0", "--splits must be from 1"),
    ("--demo diabetes --splits 5 --layers 2", "--allow-unused"),
    ("--demo diabetes --test 1", "too few"),
    ("--demo diabetes --test nan", "--test must"),
    ("--demo diabetes --device gpu", "--device gpu cannot be used on this computer"),
]


@pytest.mark.parametrize(
    "name, mistake, words",
    [*[("synthetic_regression", *x) for x in MISTAKES], *[("tabular", *x) for x in OF_TABLES]],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, monkeypatch, name, mistake, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    try:
        code = load_script(f"Regression/{name}").main([*mistake.split(), "--quiet"])
    except SystemExit as end:  # argparse's own
        code = end.code
    output = capsys.readouterr()
    last = output.err.splitlines()[-1]
    assert code == 2 and "error: " in last and words in last and not output.out
    assert [path.name for path in tmp_path.rglob("*")] == ["a_file"]


def test_the_first_lines_say_what_is_trained(tmp_path, capsys):
    assert regression.main([*SHORT[:-1], "--results-dir", str(tmp_path)]) == 0
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert first == "synthetic, published, column noise: fc; runs of each: 1"
    assert (second, third) == ("functions: sum", "epochs: 3; training samples: 1,000; device: cpu")
