"""Regression/tabular.py: the customizable SpinalNet, honest splits, tables as users have them."""

import csv
from dataclasses import asdict

import numpy
import pytest
import torch
from torch import nn

from conftest import lines_of, load_script

tabular = load_script("Regression/tabular")
DEMO = ["--demo", "diabetes"]


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def table(tmp_path):
    """60 rows, five inputs, two targets, and a class that the inputs decide."""
    generator = numpy.random.default_rng(0)
    x = generator.normal(size=(60, 5))
    y = numpy.stack([x @ [1.0, -2.0, 0.5, 0.0, 3.0] + 7, x[:, 0] * x[:, 1]], 1)
    kinds = numpy.select([x[:, 0] > 0.5, x[:, 0] < -0.5], ["high", "low"], "middle")
    rows = [[*row, *more, kind] for row, more, kind in zip(x, y, kinds, strict=True)]
    return write(tmp_path / "table.csv", [["a", "b", "c", "d", "e", "y", "z", "kind"], *rows])


@pytest.fixture
def numbers(table):
    """The same table without its column of text."""
    rows = [line.split(",")[:-1] for line in table.read_text().splitlines()]
    return write(table.with_name("numbers.csv"), rows)


def data_of(*flags):
    args = tabular.parse_arguments([*flags])
    read = tabular.read_table(args)
    return read, tabular.load_data(read, args, torch.device("cpu"))


def train(folder, *flags):
    """The logs of a run in this process by name, without times."""
    assert tabular.main([*flags, "--results-dir", str(folder), "--quiet"]) == 0
    return {path.stem: lines_of(path) for path in sorted(folder.glob("logs/tabular/*.jsonl"))}


# ---- Networks -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("features", "splits", "width", "layers", "outputs", "parameters", "products"),
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
def test_counts(features, splits, width, layers, outputs, parameters, products):
    shape = {"width": width, "layers": layers, "features": features, "outputs": outputs}
    network = tabular.build_network("mlp", "spinal", **shape, splits=splits)
    assert network(torch.zeros(1, features)).shape == (1, outputs)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert tabular.multiplications(network) == products
    # The FC network is the largest of two equal hidden layers that costs no more.
    network = tabular.build_network("mlp", "fc", **shape, splits=splits)
    fc = network[0].out_features
    assert tabular.multiplications(network) == features * fc + fc * fc + fc * outputs <= products
    assert features * (fc + 1) + (fc + 1) ** 2 + (fc + 1) * outputs > products


@pytest.mark.parametrize(
    ("features", "splits", "layers", "expected"),
    [
        (10, 3, 4, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 1]]),
        (11, 3, 3, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 0]]),
        (5, 2, 3, [[0, 1], [2, 3], [4, 0]]),
        (7, 2, 2, [[0, 1, 2, 3], [4, 5, 6, 0]]),
        (10, 3, 3, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),  # input 9 is in no window
    ],
)
def test_windows(features, splits, layers, expected):
    shape = {"features": features, "splits": splits, "layers": layers, "width": 3}
    network = tabular.build_network("mlp", None, **shape, allow_unused=True)
    assert network.windows.tolist() == expected
    with torch.no_grad():  # so that no ReLU cuts anything off
        for p in network.parameters():
            p.abs_()
    x = torch.rand(2, features, requires_grad=True)
    outputs = []
    for layer, window in zip(network.hidden, expected, strict=True):  # the window comes first
        outputs.append(torch.relu(layer(torch.cat([x[:, window], *outputs[-1:]], 1))))
    torch.testing.assert_close(network(x), network.output(torch.cat(outputs, 1)))
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    assert set(gradient[0].nonzero().flatten().tolist()) == set(sum(expected, []))


# ---- Tables -------------------------------------------------------------------------------------
def test_rows_are_split_once_and_standardised_by_training_rows(numbers):
    parts = tabular.split_rows(101, 0.2, 0.3)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(101))
    assert [len(parts[name]) for name in ("train", "heldout", "test")] == [51, 20, 30]
    read, data = data_of("--csv", str(numbers), "--target", "y")
    assert read.inputs.shape == (60, 6) and read.names["targets"] == ["y"]
    inputs, targets = data.parts["train"]
    torch.testing.assert_close(inputs.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.std(0, correction=0), torch.ones(1))


def test_test_rows_have_no_influence(numbers):
    """With nonsense in the test rows every line of the log but the last stays the same."""
    rows = [line.split(",") for line in numbers.read_text().splitlines()]
    for index in tabular.split_rows(60, 0.2, 0.2)["test"].tolist():
        rows[index + 1] = [1000.0 + k + index for k in range(7)]
    other = write(numbers.parent / "other" / "numbers.csv", rows)
    logs = []
    for path in (numbers, other):
        flags = ["--csv", str(path), "--target", "y,z", "--epochs", "3"]
        logs.append(train(path.parent, *flags))
    for one, two in zip(logs[0].values(), logs[1].values(), strict=True):
        assert one[1:-1] == two[1:-1] and one[-1]["test_mse"] != two[-1]["test_mse"]
    assert set(logs[0]).isdisjoint(logs[1])  # the name holds the data's fingerprint


def test_tables_are_read_as_users_have_them(numbers, tmp_path):
    text = numbers.read_text()
    expected = data_of("--csv", str(numbers), "--target", "y")[1].facts
    forms = {
        "semicolons": text.replace(",", ";"),
        "tabs": text.replace(",", "\t"),
        "of Excel": "\ufeff" + text.replace("\n", "\r\n"),
        "spaces and blank lines": text.replace(",", " , ").replace("\n", "\n\n"),
        "quotes": text.replace("a,b", '"a","b"'),
        "|": text.replace(",", "|"),
    }
    for name, form in forms.items():
        path = tmp_path / "form.csv"
        path.write_text(form, encoding="utf-8", newline="")
        delimiter = ["--delimiter", "|"] if name == "|" else []
        facts = data_of("--csv", str(path), "--target", "y", *delimiter)[1].facts
        assert facts == expected, name


ROWS = "1,2\n3,4\n5,6\n" * 10


@pytest.mark.parametrize(
    ("text", "target", "words"),
    [
        (f"a,b\n{ROWS}3,x\n", "b", "column 'b', line 32: 'x' is not a number"),
        (f"town,b\n{ROWS}Paris,1\n", "b", "column 'town', line 32: 'Paris' is not a number"),
        (f"a,b\n{ROWS}3, \n", "b", "column 'b', line 32: ' ' is not a number: fill in"),
        (f"a,b\n{ROWS}nan,3\n", "b", "column 'a', line 32: 'nan' is not a number"),
        (f"a,b\n{ROWS}3,inf\n", "b", "line 32: 'inf' is not a number"),
        (f"a;b\n{ROWS.replace(',', ';')}3;1,5\n", "b", "'1,5' is not a number"),
        (f"a,b\n{ROWS}3\n", "b", "line 32: it has not one value for each of 2 columns"),
        (f"a,b\n{ROWS}3,4,5\n", "b", "line 32: it has not one value"),
        (f"a,b\n{ROWS}", "price", "no column 'price', but a, b"),
        (f"a,b\n{ROWS}", "b,", "no column ''"),
        (f"a|b\n{ROWS.replace(',', '|')}", "b", "no column 'b', but a|b (see --delimiter)"),
        (f"a,b\n{ROWS}", "a,b", "none is left as an input"),
        (f"a,a\n{ROWS}", "a", "a name of its own"),
        (f"a,\n{ROWS}", "a", "a name of its own"),
        ("a,b\n1,2\n3,4\n5,6\n7,8\n", "b", "4 rows are too few"),
        ("a,b\n" + "1,2\n" * 30, "b", "is the same in all rows"),
        ("a,b\n", "b", "no rows"),
        ("", "b", "no rows"),
        ("größe,y\n1,2\n".encode("latin-1"), "y", "UTF-8"),
        (f"a,b\n{ROWS}", "b --delimiter ;;", "delimiter"),
        (f"a,b\n{ROWS}3,\n", "b --task classification", "column 'b', line 32: the class"),
        ("a,b\n" + "".join(f"1,{k}\n" for k in range(30)), "b --task classification", "a class"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path, capsys, text, target, words):
    path = tmp_path / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    command = ["--csv", str(path), "--target", *target.split(), "--quiet"]
    assert tabular.main([*command, "--results-dir", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert not (tmp_path / "r").exists()


# ---- Runs ---------------------------------------------------------------------------------------
def test_settings():
    args = tabular.parse_arguments(DEMO)
    read, data = data_of(*DEMO)
    fc, spinal = tabular.choose_recipes(args, read, data)
    common = {"dataset": "diabetes", "targets": ["progression"], "task": "tabular"}
    common |= {"splits": 2, "budget": "2-6x20", "protocol": "corrected", "selection": "heldout"}
    common |= {"epochs": 60, "batch_size": 32, "learning_rate": 0.003, "rate_rule": "constant"}
    common |= {"optimizer": "Adam", "precision": "fp32", "network": "mlp"}
    common |= {"validation": 0.2, "test": 0.2}
    assert asdict(fc) == common | {"head": "fc", "layers": 2, "width": 46}
    assert asdict(spinal) == common | {"head": "spinal", "layers": 6, "width": 20}
    facts = {"sha256": "e9c1f7559552854a", "official": True, "verified": True}
    facts |= {"train": 266, "heldout": 88, "test": 88, "inputs": 10, "targets": ["progression"]}
    assert data.facts == facts


def test_weights_are_the_best_epochs_and_carry_means_and_scales(tmp_path, capsys):
    logs = train(tmp_path, *DEMO, "--epochs", "25", "--save-weights")
    said = capsys.readouterr().out
    read, data = data_of(*DEMO)
    rows = tabular.split_rows(442, 0.2, 0.2)["test"]
    for name, lines in logs.items():
        end = lines[-1]
        errors = [line["heldout_mse"] for line in lines[1:-1]]
        assert end["heldout_mse"] == min(errors)
        assert end["best_epoch"] == errors.index(min(errors)) + 1 < 25
        assert 0.2 < end["test_r2"] < 0.7  # linear regression reaches about 0.5 on these data
        saved = torch.load(tmp_path / f"weights/tabular/{name}.pt")
        assert (saved["targets"], saved["classes"]) == (["progression"], [])
        network = tabular.build_network("mlp", lines[0]["settings"]["head"])
        network.load_state_dict(saved["network"])
        x = (read.inputs[rows] - saved["input_mean"]) / saved["input_scale"]
        with torch.no_grad():
            y = network(x.float()) * saved["target_scale"] + saved["target_mean"]
        error = float((y - read.targets[rows]).square().mean())
        assert end["test_mse"] == pytest.approx(error, rel=1e-4)
        assert end["test_rmse"] == pytest.approx(error**0.5, rel=1e-4)
        assert f"test RMSE {end['test_rmse']}, MSE {end['test_mse']}" in said


def test_classification(table, tmp_path, capsys):
    flags = ["--csv", str(table), "--target", "kind", "--task", "classification"]
    logs = train(tmp_path, *flags, "--save-weights")
    assert "Spinal - FC: " in capsys.readouterr().out.splitlines()[-1]
    read, data = data_of(*flags)
    assert read.names["classes"] == ["high", "low", "middle"]
    inputs, targets = data.parts["test"]
    for name, lines in logs.items():
        end = lines[-1]
        assert lines[0]["settings"]["task"] == "classification" and len(targets) == 12
        best = max(line["heldout_accuracy_pct"] for line in lines[1:-1])
        assert end["best_heldout_accuracy_pct"] == best and best > 70
        saved = torch.load(tmp_path / f"weights/tabular/{name}.pt")
        assert saved["classes"] == ["high", "low", "middle"]
        shape = {"features": 7, "outputs": 3}
        network = tabular.build_network("mlp", lines[0]["settings"]["head"], **shape)
        network.load_state_dict(saved["network"])
        right = float((network(inputs).argmax(1) == targets).double().mean())
        assert end["selected_test_accuracy_pct"] == pytest.approx(100 * right, rel=1e-5)
        assert {"last_test_accuracy_pct", "selected_epoch"} < set(end)
        loss = nn.functional.cross_entropy(network(inputs), targets).item()
        assert end["test_loss"] == pytest.approx(loss, rel=1e-4)
