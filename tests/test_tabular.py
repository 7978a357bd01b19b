"""Regression/tabular.py: the general SpinalNet, honest splits, tables with mistakes, resume."""
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from conftest import ROOT, load_script

tabular = load_script("Regression/tabular")
SCRIPT = ROOT / "Regression/tabular.py"


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


# ---- Network ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("features, splits, width, layers, outputs, parameters, multiplications", [  # spec custom.md, section 2
    (200, 4, 30, 15, 7, 38_707, 38_250), (2048, 2, 512, 10, 10, 7_658_506, 7_653_376), (8, 2, 50, 6, 1, 14_301, 14_000),
    (320, 2, 8, 6, 10, 8_538, 8_480), (784, 4, 20, 30, 10, 135_810, 135_200), (10, 3, 5, 4, 2, 197, 175), (11, 3, 5, 7, 2, 397, 360),
    (2048, 1, 20, 4, 10, 165_930, 165_840)])
def test_counts_equal_the_specification(features, splits, width, layers, outputs, parameters, multiplications):
    network = tabular.build_network("mlp", "spinal", width=width, layers=layers, features=features, outputs=outputs, splits=splits,
                                    allow_unused=True)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert tabular.count_fc_multiplications(network, torch.zeros(1, features)) == multiplications


@pytest.mark.parametrize("features, splits, layers, expected", [
    (10, 3, 4, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 1]]), (11, 3, 3, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 0]]),
    (5, 2, 3, [[0, 1], [2, 3], [4, 0]]), (7, 2, 1, [[0, 1, 2, 3]])])
def test_windows_are_those_of_the_specification(features, splits, layers, expected):
    assert tabular.windows(features, splits, layers) == expected


def test_each_layer_sees_its_chunk_and_the_layer_before():
    network = tabular.SpinalNet(6, [[0, 1], [4], [2, 3]], [3, 2, 4], 1, activation=torch.nn.Tanh, allow_unused=True)
    x = torch.randn(1, 6, requires_grad=True)
    gradient, = torch.autograd.grad(network(x).sum(), x)
    assert gradient[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]  # input 5 is in no chunk
    assert [layer[0].in_features for layer in network.hidden] == [2, 1 + 3, 2 + 2] and network.output.in_features == 9


def test_shared_layers_use_the_same_weights():
    """Second paper (spec custom.md 3): L2 serves layers 2..n."""
    network = tabular.SpinalNet(16, tabular.windows(16, 8, 8), 20, 10, share=[0, 1, 1, 1, 1, 1, 1, 1])
    assert sum(p.numel() for p in network.parameters()) == 2 * 20 + 20 + 22 * 20 + 20 + 8 * 20 * 10 + 10
    assert network(torch.randn(3, 16)).shape == (3, 10)


def test_one_layer_is_a_plain_network():
    network = tabular.SpinalNet(4, [range(4)], 5, 2)
    x = torch.randn(3, 4)
    linear = network.hidden[0][0]
    torch.testing.assert_close(network(x), network.output(torch.relu(linear(x))))


@pytest.mark.parametrize("arguments, options, words", [
    ((4, [[0, 1], []], 3, 1), {}, "sees no input"), ((4, [[0, 4]], 3, 1), {}, "not among"), ((4, [[0, 1], [2]], 3, 1), {}, "inputs 3 reach"),
    ((4, [[0, 1], [2, 3]], 3, 1), {"share": [0, 0]}, "cannot share"), ((4, [], 3, 1), {}, "at least one"),
    ((4, [[0, 1], [2, 3]], [3], 1), {}, "as many widths")])
def test_networks_that_make_no_sense_are_refused(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        tabular.SpinalNet(*arguments, **options)


@pytest.mark.parametrize("features, outputs, budget", [(10, 1, 2_860), (5, 2, 400), (1, 1, 1), (200, 7, 38_250)])
def test_the_default_network_is_the_largest_within_the_budget(features, outputs, budget):
    width = tabular.fc_width(features, outputs, budget)
    def used(w):
        return features * w + w * w + w * outputs
    assert used(width + 1) > budget and (used(width) <= budget or width == 1)


# ---- Data ------------------------------------------------------------------------------------------------------------------
def options_for(tmp_path, *more):
    return tabular.parse_arguments(["--demo", "diabetes", "--results-dir", str(tmp_path), "--quiet", *more])


def test_test_rows_have_no_influence_on_standardisation_or_training(table, tmp_path):
    """Rows of the test part are replaced by nonsense: every line of the log but the last stays the same."""
    rows = table.read_text().splitlines()
    for index in tabular.split_rows(60, 0.2, 0.2)["test"].tolist():
        rows[index + 1] = ",".join(str(1000.0 + k + index) for k in range(7))
    other = tmp_path / "other" / "table.csv"
    other.parent.mkdir()
    other.write_text("\n".join(rows) + "\n")
    epochs = []
    for path, folder in ((table, tmp_path / "r1"), (other, tmp_path / "r2")):
        assert tabular.main(["--csv", str(path), "--target", "y,z", "--epochs", "4", "--results-dir", str(folder), "--quiet"]) == 0
        logs = sorted(folder.rglob("*.jsonl"))
        assert len(logs) == 2
        epochs.append([{k: v for k, v in json.loads(line).items() if k != "seconds"} for log in logs for line in
                       log.read_text().splitlines()[1:-1]])
    assert epochs[0] == epochs[1]


def test_training_rows_are_standardised_and_errors_are_in_own_units(table, tmp_path):
    read = tabular.read_csv(table, ["y"])
    assert read.input_names == ["a", "b", "c", "d", "e", "z"] and read.target_names == ["y"]
    data = tabular.prepare(read, options_for(tmp_path), torch.device("cpu"))
    inputs, targets = data.parts["train"]
    torch.testing.assert_close(inputs.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.std(0, correction=0), torch.ones(1))
    zero = torch.nn.Linear(6, 1)
    torch.nn.init.zeros_(zero.weight), torch.nn.init.zeros_(zero.bias)
    true = targets * data.scale + data.mean
    torch.testing.assert_close(tabular.errors(zero, inputs, targets, data.scale), true.var(0, correction=0), rtol=1e-4, atol=0,
                               check_dtype=False)


def test_parts_are_disjoint_complete_and_the_same_for_all_seeds():
    parts = tabular.split_rows(101, 0.2, 0.3)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(101))
    assert [len(parts[name]) for name in ("heldout", "test")] == [20, 30]
    assert torch.equal(parts["test"], tabular.split_rows(101, 0.2, 0.3)["test"])


@pytest.mark.parametrize("text, target, words", [
    ("a,b\n1,2\n3,x\n", "b", "line 3, column 'b'"), ("a,b\n1,2\n3,nan\n", "b", "'nan', not a number"), ("a,b\n1,2\n3\n", "b", "line 3"),
    ("", "b", "0 lines"), ("a,b\n", "b", "1 lines"), ("a,a\n1,2\n", "a", "two columns named 'a'"), ("a,\n1,2\n", "a", "no name"),
    ("a,b\n1,2\n3,4\n", "c", "no column 'c'"), ("a,b\n1,2\n3,4\n", "a,b", "all columns"), ("a,b\n1,2\n3,4\n", "b", "too few"),
    ("a,b\n" + "1,2\n" * 20, "b", "is the same in all"), ("a,b\n" + "".join(f"{i},{i}\n" for i in range(20)), " , ", "--target"),
    ("a,b\n\x00,1\n", "b", "")])
def test_a_bad_table_is_one_sentence(tmp_path, capsys, text, target, words):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert tabular.main(["--csv", str(path), "--target", target, "--results-dir", str(tmp_path / "r"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error and not (tmp_path / "r").exists()


@pytest.mark.parametrize("arguments", [[], ["--demo", "diabetes", "--csv", "x.csv"], ["--csv", "none.csv", "--target", "y"],
                                       ["--demo", "diabetes", "--target", "y"], ["--demo", "diabetes", "--protocol", "published"],
                                       ["--demo", "diabetes", "--splits", "30"], ["--demo", "diabetes", "--splits", "5", "--layers", "2"],
                                       ["--demo", "diabetes", "--test", "1"], ["--demo", "diabetes", "--test", "nan"]])
def test_a_mistake_on_the_command_line_is_one_sentence(tmp_path, capsys, arguments):
    assert tabular.main([*arguments, "--results-dir", str(tmp_path / "r"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and not (tmp_path / "r").exists()


def test_latin_1_is_named(tmp_path, capsys):
    (tmp_path / "x.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    assert tabular.main(["--csv", str(tmp_path / "x.csv"), "--target", "y"]) == 2 and "UTF-8" in capsys.readouterr().err


# ---- Runs ------------------------------------------------------------------------------------------------------------------
def lines_of(folder):
    found = {}
    for path in sorted(folder.rglob("*.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            record.pop("seconds", None), record.pop("peak_memory_bytes", None), record.get("provenance", {}).pop("started", None)
        found[path.name] = records
    return found


def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path):
    command = [sys.executable, str(SCRIPT), "--demo", "diabetes", "--quiet", "--epochs", "30", "--head", "spinal"]
    subprocess.run([*command, "--results-dir", str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--results-dir", str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None:
        if sum(len(path.read_text().splitlines()) for path in (tmp_path / "killed").rglob("*.part")) > 6:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "--results-dir", str(tmp_path / "killed")], check=True, capture_output=True)
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")


def test_the_test_rows_are_read_with_the_best_weights(tmp_path, capsys):
    assert tabular.main(["--demo", "diabetes", "--quiet", "--epochs", "25", "--results-dir", str(tmp_path)]) == 0
    for name, records in lines_of(tmp_path).items():
        heldout = [record["heldout_mse"] for record in records[1:-1]]
        assert records[-1]["heldout_mse"] == min(heldout) and records[-1]["best_epoch"] == heldout.index(min(heldout)) + 1
        assert 0.2 < records[-1]["test_r2"] < 0.7, name  # linear regression reaches about 0.5 on these data
    assert list((tmp_path / "figures").glob("tabular_diabetes*.png"))
    capsys.readouterr()
    assert tabular.main(["--demo", "diabetes", "--quiet", "--epochs", "25", "--results-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("already finished") == 2


def test_the_report_reads_these_logs(tmp_path):
    assert tabular.main(["--demo", "diabetes", "--quiet", "--epochs", "3", "--results-dir", str(tmp_path)]) == 0
    done = subprocess.run([sys.executable, str(ROOT / "results/aggregate.py"), "--results-dir", str(tmp_path), "--paper",
                           str(ROOT / "results/paper.csv")], capture_output=True, text=True)
    assert done.returncode == 0 and "2 runs counted, 0 logs left out" in done.stdout
    assert "test MSE" in (tmp_path / "tables/other_runs.md").read_text()
    log = next(Path(tmp_path).rglob("*.jsonl"))
    *lines, end = log.read_text().splitlines()
    log.write_text("\n".join([*lines, json.dumps(json.loads(end) | {"heldout_mse": 1.0})]) + "\n")
    done = subprocess.run([sys.executable, str(ROOT / "results/aggregate.py"), "--results-dir", str(tmp_path), "--paper",
                           str(ROOT / "results/paper.csv")], capture_output=True, text=True)
    assert "heldout_mse is 1.0, the epoch lines say" in done.stderr and "1 logs left out" in done.stdout
