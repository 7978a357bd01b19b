"""Regression/tabular.py: the general SpinalNet, honest splits, tables with mistakes, resume."""

import csv
import json
import subprocess
import sys

import numpy
import pytest
import torch
from torch import nn

from conftest import ROOT, load_script

tabular = load_script("Regression/tabular")
SHIPPED = ROOT / "results/reference/logs/tabular"


@pytest.fixture
def table(tmp_path):
    """60 rows, five inputs, two targets."""
    generator = numpy.random.default_rng(0)
    x = generator.normal(size=(60, 5))
    y = numpy.stack([x @ [1.0, -2.0, 0.5, 0.0, 3.0] + 7, x[:, 0] * x[:, 1]], 1) + 0.1 * generator.normal(size=(60, 2))
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["a", "b", "c", "d", "e", "y", "z"], *numpy.hstack([x, y]).tolist()])
    return path


def options_for(*more):
    return tabular.parse_arguments(["--demo", "diabetes", *more])


def logs_of(folder):
    """Parsed lines without times, by name of the log."""
    return {path.name: [{key: x for key, x in json.loads(line).items() if key not in ("seconds", "ended")}
                        for line in path.read_text().splitlines()]
            for path in sorted(folder.glob("logs/tabular/*"))}  # fmt: skip


def train(folder, *flags):
    assert tabular.main([*flags, "--results-dir", str(folder), "--quiet"]) == 0
    return logs_of(folder)


# ---- Network ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("features", "splits", "width", "layers", "outputs", "parameters", "products"),  # spec custom.md, section 2
    [
        (200, 4, 30, 15, 7, 38_707, 38_250),
        (2048, 2, 512, 10, 10, 7_658_506, 7_653_376),
        (8, 2, 50, 6, 1, 14_301, 14_000),
        (320, 2, 8, 6, 10, 8_538, 8_480),
        (784, 4, 20, 30, 10, 135_810, 135_200),
        (10, 3, 5, 4, 2, 197, 175),
        (11, 3, 5, 7, 2, 397, 360),
        (2048, 1, 20, 4, 10, 165_930, 165_840),
    ],
)
def test_counts_equal_the_specification(features, splits, width, layers, outputs, parameters, products):
    shape = {"width": width, "layers": layers, "features": features, "outputs": outputs, "splits": splits}
    network, calls = tabular.build_network("mlp", "spinal", **shape, allow_unused=True), []
    for layer in (layer for layer in network.modules() if isinstance(layer, nn.Linear)):
        layer.register_forward_hook(lambda layer, *_: calls.append(layer.in_features * layer.out_features))
    assert network(torch.zeros(1, features)).shape == (1, outputs)
    assert sum(p.numel() for p in network.parameters()) == parameters and sum(calls) == products


@pytest.mark.parametrize(
    ("features", "splits", "layers", "expected"),
    [
        (10, 3, 4, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 1]]),
        (11, 3, 3, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 0]]),
        (5, 2, 3, [[0, 1], [2, 3], [4, 0]]),
        (7, 2, 1, [[0, 1, 2, 3]]),
    ],
)
def test_windows_are_those_of_the_specification(features, splits, layers, expected):
    assert tabular.windows(features, splits, layers) == expected


def test_each_layer_sees_its_chunk_and_the_layer_before():
    chunks = [[0, 1], [4], [2, 3]]
    network = tabular.SpinalNet(6, chunks, [3, 2, 4], 1, activation=nn.Tanh, allow_unused=True)
    x = torch.randn(1, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    assert gradient[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]  # input 5 is in no chunk
    assert [layer[0].in_features for layer in network.hidden] == [2, 1 + 3, 2 + 2] and network.output.in_features == 9
    outputs = []
    for layer, chunk in zip(network.hidden, chunks):  # columns: input chunk first, then the previous layer
        outputs.append(torch.tanh(layer[0](torch.cat([x[:, chunk], *outputs[-1:]], 1))))
    torch.testing.assert_close(network(x), network.output(torch.cat(outputs, 1)))


def test_shared_layers_use_the_same_weights():
    """Second paper (spec custom.md 3): L2 serves layers 2..n."""
    network = tabular.SpinalNet(16, tabular.windows(16, 8, 8), 20, 10, share=[0, 1, 1, 1, 1, 1, 1, 1])
    assert sum(p.numel() for p in network.parameters()) == 2 * 20 + 20 + 22 * 20 + 20 + 8 * 20 * 10 + 10
    network(torch.randn(3, 16)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    wide = tabular.SpinalNet(2048, tabular.windows(2048, 8, 8), 20, 10, share=[0, 1, 1, 1, 1, 1, 1, 1])
    assert sum(p.numel() for p in wide.parameters()) == 12_290


def test_one_layer_is_a_plain_network_and_options_are_layers():
    network, x = tabular.SpinalNet(4, [[0, 1, 2, 3]], 5, 2), torch.randn(3, 4)
    torch.testing.assert_close(network(x), network.output(torch.relu(network.hidden[0][0](x))))
    rich = tabular.SpinalNet(4, [[0, 1], [2, 3]], 5, 2, batch_norm=True, dropout=0.5, output_dropout=0.25)
    kinds = [nn.Dropout, nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [[type(part) for part in layer] for layer in rich.hidden] == [kinds, kinds] and rich.dropout.p == 0.25


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((4, [[0, 1], []], 3, 1), {}, "sees no input"),
        ((4, [[0, 4]], 3, 1), {}, "not among"),
        ((4, [[0, 1], [2]], 3, 1), {}, "inputs 3 reach"),
        ((4, [[0, 1], [2, 3]], 3, 1), {"share": [0, 0]}, "cannot share"),
        ((4, [], 3, 1), {}, "needs inputs"),
        ((4, [[0, 1], [2, 3]], [3], 1), {}, "a width and a share"),
    ],
)
def test_networks_that_make_no_sense_are_refused(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        tabular.SpinalNet(*arguments, **options)


@pytest.mark.parametrize(
    ("features", "outputs", "budget"), [(10, 1, 2_860), (5, 2, 400), (1, 1, 1), (200, 7, 38_250)]
)
def test_the_default_network_is_the_largest_within_the_budget(features, outputs, budget):
    width, used = tabular.fc_width(features, outputs, budget), lambda w: features * w + w * w + w * outputs
    assert used(width + 1) > budget and (used(width) <= budget or width == 1)


# ---- Data ------------------------------------------------------------------------------------------------------------
def test_test_rows_have_no_influence_on_standardisation_or_training(table, tmp_path):
    """Rows of the test part are replaced by nonsense: every line of the log but the last stays the same."""
    rows = table.read_text().splitlines()
    for index in tabular.split_rows(60, 0.2, 0.2)["test"].tolist():
        rows[index + 1] = ",".join(str(1000.0 + k + index) for k in range(7))
    other = tmp_path / "other" / "table.csv"
    other.parent.mkdir()
    other.write_text("\n".join(rows) + "\n")
    flags = ["--target", "y,z", "--epochs", "3"]
    first, second = (train(tmp_path / path.parent.name, "--csv", str(path), *flags) for path in (table, other))
    assert len(first) == len(second) == 2 and set(first) != set(second)  # the name holds the data's fingerprint
    for one, two in zip(first.values(), second.values()):
        assert one[1:-1] == two[1:-1] and one[-1]["test_mse"] != two[-1]["test_mse"]


def test_training_rows_are_standardised_and_errors_are_in_own_units(table):
    read = tabular.read_table(tabular.parse_arguments(["--csv", str(table), "--target", "y"]))
    assert read.inputs.shape == (60, 6) and read.target_names == ["y"] and read.name == "table"
    data = tabular.prepare(read, options_for(), torch.device("cpu"))
    inputs, targets = data.parts["train"]
    torch.testing.assert_close(inputs.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.std(0, correction=0), torch.ones(1))
    zero = nn.Linear(6, 1)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
    true = read.targets[tabular.split_rows(60, 0.2, 0.2)["train"].numpy()]
    assert float(tabular.errors(zero, inputs, targets, data.scale)) == pytest.approx(true.var(), rel=1e-4)


def test_parts_are_disjoint_complete_and_the_same_for_all_seeds():
    parts = tabular.split_rows(101, 0.2, 0.3)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(101))
    assert [len(parts[name]) for name in ("heldout", "test")] == [20, 30]
    assert torch.equal(parts["test"], tabular.split_rows(101, 0.2, 0.3)["test"])


def test_odd_but_sound_tables_are_read(tmp_path):
    """A byte-order mark, quotes, blank lines, spaces, Windows line ends; a constant input becomes 0."""
    path, rows = tmp_path / "a b.csv", "".join(f'{i}, "2.5" ,{i * i % 7}\r\n\r\n' for i in range(12)).replace('"', "")
    path.write_bytes(b"\xef\xbb\xbf" + f'a,"b",y\r\n{rows}'.encode())
    (lines,) = train(tmp_path / "r", "--csv", str(path), "--target", "y", "--epochs", "1", "--head", "fc").values()
    assert lines[0]["data"]["train"] == 8 and lines[-1]["outcome"] == "finished"
    assert lines[0]["run"].startswith("mlp-fc-corrected-a_b-split2-6x20-data") and not lines[0]["data"]["official"]


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        ("a,b\n1,2\n3,x\n", "b", "'x' to float64 at row 1, column 2"),
        ("a,b\n1,2\n3,nan\n", "b", "finite numbers"),
        ("a,b\n1,2\n3\n", "b", "row 2"),
        ("", "b", "no rows"),
        ("a,b\n", "b", "no rows"),
        ("a,a\n1,2\n", "a", "a name of its own"),
        ("a,\n1,2\n", "a", "a name of its own"),
        ("a,b,c\n1,2\n", "a", "a name of its own"),
        ("a,b\n1,2\n3,4\n", "c", "of a, b"),
        ("a,b\n1,2\n3,4\n", "a,b", "but not all"),
        ("a,b\n1,2\n3,4\n", "b", "too few"),
        ("a,b\n" + "1,2\n" * 20, "b", "is the same in all"),
        ("a,b\n\x00,1\n", "b", ""),
        ("größe,y\n1,2\n".encode("latin-1"), "y", "UTF-8"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, capsys, text, target, words):
    path = tmp_path / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert tabular.main(["--csv", str(path), "--target", target, "--results-dir", str(tmp_path / "r"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error and not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--demo", "diabetes", "--csv", "x.csv"],
        ["--csv", "x.csv", "--target", " , "],
        ["--csv", "none.csv", "--target", "y"],
        ["--demo", "diabetes", "--target", "y"],
        ["--demo", "diabetes", "--splits", "30"],
        ["--demo", "diabetes", "--splits", "0"],
        ["--demo", "diabetes", "--splits", "5", "--layers", "2"],
        ["--demo", "diabetes", "--test", "1"],
        ["--demo", "diabetes", "--test", "nan"],
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(tmp_path, capsys, arguments):
    try:
        code = tabular.main([*arguments, "--results-dir", str(tmp_path / "r"), "--quiet"])
    except SystemExit as end:  # argparse's own
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and "error: " in error.splitlines()[-1] and not (tmp_path / "r").exists()


# ---- Runs ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", ["fc", "spinal"])
def test_the_first_epochs_are_those_of_the_log_that_ships(tmp_path, head):
    """To 1 %: processors add in different orders, and four epochs of training let the last digits grow."""
    (lines,) = train(tmp_path, "--demo", "diabetes", "--head", head, "--epochs", "4", "--seed", "3").values()
    (path,) = SHIPPED.glob(f"mlp-{head}*-corrected-diabetes-split2-6x20-datae9c1f755-s3.jsonl")
    shipped = [json.loads(line) for line in path.read_text().splitlines()]
    for ours, theirs in zip(lines[1:5], shipped[1:5]):
        for key in ("epoch", "learning_rate", "train_loss", "heldout_mse"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-2)
    same = ("parameters", "fc_multiplications", "data", "seed", "script")
    assert [lines[0][key] for key in same] == [shipped[0][key] for key in same]
    assert lines[0]["settings"] == shipped[0]["settings"] | {"epochs": 4}


def test_the_test_rows_are_read_with_the_best_weights(tmp_path, capsys):
    logs = train(tmp_path, "--demo", "diabetes", "--epochs", "25", "--save-weights")
    data = tabular.prepare(tabular.read_table(options_for()), options_for(), torch.device("cpu"))
    for name, records in logs.items():
        heldout = [record["heldout_mse"] for record in records[1:-1]]
        end = records[-1]
        assert end["heldout_mse"] == min(heldout) and end["best_epoch"] == heldout.index(min(heldout)) + 1 < 25
        assert 0.2 < end["test_r2"] < 0.7, name  # linear regression reaches about 0.5 on these data
        network = tabular.build_network("mlp", records[0]["settings"]["head"])
        saved = tmp_path / "weights/tabular" / name.replace(".jsonl", ".pt")
        network.load_state_dict(torch.load(saved, weights_only=True))
        error = tabular.errors(network, *data.parts["test"], data.scale)
        assert float(error.mean()) == pytest.approx(end["test_mse"], rel=1e-5)
    said = capsys.readouterr().out
    assert tabular.main(["--demo", "diabetes", "--quiet", "--epochs", "25", "--results-dir", str(tmp_path)]) == 0
    again = capsys.readouterr().out.splitlines()
    assert all(line.startswith("already finished 20") for line in again)
    assert all(new.endswith(old) for new, old in zip(again, said.splitlines(), strict=True))


def test_a_stopped_run_ends_like_an_uninterrupted_one(tmp_path, monkeypatch, capsys):
    """Its best weights are in the checkpoint, too: here the best epoch is before the stop."""
    flags = ["--demo", "diabetes", "--epochs", "6", "--head", "spinal", "--lr", "0.02"]
    whole, original, calls = train(tmp_path / "whole", *flags), tabular.train_epoch, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*arguments)

    clock = iter(range(0, 10**9, 1_000))
    with monkeypatch.context() as patch:
        patch.setattr(tabular.time, "monotonic", lambda: next(clock) ** 2)  # long epochs: more of them are saved
        patch.setattr(tabular, "train_epoch", stop)
        assert tabular.main([*flags, "--results-dir", str(tmp_path / "r"), "--quiet"]) == 130
    assert train(tmp_path / "r", *flags) == whole and "goes on after epoch" in capsys.readouterr().err


def test_a_diverging_run_ends_and_says_so(tmp_path):
    (lines,) = train(tmp_path, "--demo", "diabetes", "--epochs", "3", "--head", "spinal", "--lr", "1e30").values()
    assert len(lines) == 3 and lines[-1]["outcome"] == "diverged" and lines[-1]["diverged_epoch"] == 1
    assert lines[-1]["best_epoch"] == 0 and lines[-1]["test_mse"] is lines[-1]["heldout_mse"] is None


def test_the_report_reads_these_logs(tmp_path):
    sys.path.insert(0, str(ROOT / "tools"))
    from report.logs import read_logs

    train(tmp_path, "--demo", "diabetes", "--epochs", "2")
    logs, findings = read_logs(tmp_path / "logs")
    assert not findings and len(logs) == 2 and all(log.score == log.end["test_mse"] for log in logs)


def test_the_script_runs_alone(table, tmp_path):
    script = ROOT / "Regression/tabular.py"
    command = [sys.executable, script, "--csv", table, "--target", "y", "--splits", "3", "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("Log: results/logs/tabular/mlp-") == 2, done.stderr
