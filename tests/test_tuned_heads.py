"""tools/tuned_heads.py and its report: the plan, the choice, the sample, the comparisons."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

from conftest import ROOT, load_script

sys.path.insert(0, str(ROOT / "tools"))
import linear_head
import tuned_heads as plan
from report import names, tuned
from report.formats import comma_separated, markdown
from report.logs import read_logs

LOG = next((ROOT / "results/reference/logs/mnist").glob("cnn-fc-corrected-drop0.0-s0.jsonl"))
LINES = [json.loads(line) for line in LOG.read_text(encoding="utf-8").splitlines()]
DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
SIZES = {"fc": ("fc", 1, 50), "fc26": ("fc", 1, 26), "linear": ("linear", 1, 320)}
SIZES |= {"spinal6x8": ("spinal", 6, 8), "spinal6x10": ("spinal", 6, 10)}


def put(path: Path, dataset: str, head: str, seed: int, heldout: float, test: float, **changes):
    """A log at this path, whose last epoch is reported."""
    start, *epochs, end = json.loads(json.dumps(LINES))
    kind, layers, width = SIZES[head]
    start |= {"schema": 3, "script": dataset, "run": path.stem, "seed": seed, "departures": []}
    start["settings"] |= {"dataset": DATASETS[dataset], "head": kind, "layers": layers}
    start["settings"] |= {"width": width} | changes
    start["data"]["verified"] = True
    for epoch in epochs:
        epoch["heldout_accuracy_pct"] = heldout - 1
    epochs[-1]["heldout_accuracy_pct"] = heldout
    end |= {"best_heldout_accuracy_pct": heldout, "best_epoch": 8, "selected_epoch": 8}
    end |= {"selected_test_accuracy_pct": test, "last_test_accuracy_pct": test}
    end.pop("test_correct", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in [start, *epochs, end])
    path.write_text(text, encoding="utf-8")


def put_task(results: Path, task: plan.Task, heldout: float, tests: list[float]):
    for path, seed, test in zip(task.logs(results), task.seeds, tests, strict=True):
        choices = {"fc_dropout": task.dropout, "learning_rate": task.rate}
        put(path, task.dataset, task.head, seed, heldout, test, **choices)


@pytest.fixture
def folder(tmp_path):
    """Tuning runs: 0.03 without dropout is best for all but FC, which ties at two settings."""
    results = tmp_path / "tuned_heads"
    for task in plan.tuning_tasks(list(plan.HEADS)):
        heldout = 97.0 + ((task.dropout, task.rate) == (0.0, 0.03))
        if task.head == "fc":
            heldout = 97.0 + ((task.dropout, task.rate) in [(0.25, 0.01), (0.0, 0.1)])
        put_task(results, task, heldout, [99.9 - heldout / 10, 10.0])  # test numbers mislead
    return tmp_path


def scores(dataset: str, head: str, count: int) -> list[float]:
    """Test accuracies of the final runs, in whole test images."""
    base = {"fc": 98.6, "fc26": 98.3, "spinal6x8": 98.4, "spinal6x10": 98.5}[head]
    steps = [(37 * k + 11 * len(head)) % 29 for k in range(count)]
    return [round(base - 8 * (dataset != "mnist") + step / 100, 2) for step in steps]


def put_finals(folder: Path, counts: dict[str, int]):
    for task in plan.final_tasks(folder / "tuned_heads", list(counts)):
        for path, seed in zip(task.logs(folder / "tuned_heads"), task.seeds, strict=True):
            place = seed - plan.FINAL_SEEDS[0]
            if place < counts[task.head]:
                test = scores(task.dataset, task.head, 30)[place]
                choices = {"fc_dropout": task.dropout, "learning_rate": task.rate}
                put(path, task.dataset, task.head, seed, 98.0, test, **choices)


def test_the_plan_in_words_is_the_plan_in_code():
    page = (names.RESULTS / "tuned_heads.md").read_text(encoding="utf-8")
    words = " ".join(page.split())
    assert plan.PRIMARY_HEADS == ["fc", "fc26", "spinal6x8"]
    assert "dropout before the output layer 0 or 0.25, learning rate 0.01, 0.03 or 0.1" in words
    assert (plan.DROPOUTS, plan.RATES) == ([0.0, 0.25], [0.01, 0.03, 0.1])
    assert "seeds 100 and 101" in words and [*plan.TUNING_SEEDS] == [100, 101]
    assert "Seeds 200 to 229" in words and [*plan.FINAL_SEEDS] == [*range(200, 230)]
    assert "blocks of five whole seeds" in words and plan.BLOCK == 5
    assert "if they are 20 seeds or more" in words and plan.FEWEST_ROUNDS == 20
    assert "Spinal 6 x 8 minus FC 50 and Spinal 6 x 8 minus FC 26, on both sets" in words
    pairs = {("spinal6x8", "fc"), ("spinal6x8", "fc26")}
    assert sorted(tuned.PRIMARY) == sorted((name, *pair) for name in DATASETS for pair in pairs)


@pytest.mark.parametrize("dataset", plan.SETS)
def test_commands_make_the_logs_that_their_tasks_expect(tmp_path, dataset):
    """The names are those that the script itself gives, the network is the head's."""
    script = load_script(plan.SETS[dataset].removesuffix(".py"))
    facts = {"official": True, "sha256": "0" * 16, "train": 1, "heldout": 1, "test": 1}
    data = script.Data(None, None, None, facts)
    counts = {"fc": 21_840, "fc26": 13_896, "spinal6x8": 13_818, "spinal6x10": 16_050}
    for task in plan.tuning_tasks(list(plan.HEADS)):
        if task.dataset != dataset:
            continue
        args = script.parse_arguments(task.command(tmp_path, tmp_path)[2:])
        changes = {key: getattr(args, key) for key in script.MARKS}
        changes |= {"layers": args.layers, "width": args.width}
        recipe = script.recipe_of("cnn", args.head, args.protocol, **changes)
        assert (recipe.fc_dropout, recipe.learning_rate) == (task.dropout, task.rate)
        runs = [
            script.Run(recipe, args.seed + k, data, torch.device("cpu"), args)
            for k in range(args.runs)
        ]
        assert [run.log for run in runs] == task.logs(tmp_path)
        weights = script.network_of(recipe).parameters()
        assert sum(x.numel() for x in weights) == counts[task.head]


def test_held_out_images_choose_and_ties_go_to_the_lower_dropout(folder):
    results = folder / "tuned_heads"
    for dataset in plan.SETS:
        assert plan.best_setting(results, dataset, "fc") == (0.0, 0.1)
        assert plan.best_setting(results, dataset, "spinal6x8") == (0.0, 0.03)
    found = tuned.read_tuned(folder, [])
    assert found.findings == []
    for dataset in plan.SETS:
        for head in plan.HEADS:
            assert found.best(dataset, head) == plan.best_setting(results, dataset, head)
    # The one tuning run with the highest test accuracy changes nothing.
    task = plan.Task("mnist", "spinal6x8", 0.25, 0.1, (100,))
    put_task(results, task, 97.0, [99.99])
    assert plan.best_setting(results, "mnist", "spinal6x8") == (0.0, 0.03)


@pytest.mark.parametrize("end, status", [("sys.exit(2)", 1), ("os.kill(os.getppid(), 2)", 130)])
def test_after_a_failure_or_ctrl_c_no_other_run_is_started(
    tmp_path, monkeypatch, capsys, end, status
):
    """Each run would leave a file; the second one fails, or somebody types Ctrl-C."""
    program = "import os, sys, time; k = len(os.listdir('.')); open(str(k), 'w'); "
    program += f"k == 1 and {end}; time.sleep(0.5)"
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    monkeypatch.setattr(plan.Task, "command", lambda *_: [sys.executable, "-S", "-c", program])
    line = ["run", str(tmp_path.parent / "none"), "--data", str(tmp_path), "--jobs", "1"]
    assert plan.main(line) == status
    assert "the same command goes on" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) in (2, 3)  # the next one may just have begun


def test_the_linear_head_wants_a_script_with_the_small_cnn(capsys):
    for argv in ([], ["CIFAR/cifar10.py"], ["Regression/tabular.py"]):
        assert linear_head.main(argv) == 2
        assert "error: name one of MNIST/mnist.py" in capsys.readouterr().err


def test_a_diverged_run_is_never_the_best(folder):
    results = folder / "tuned_heads"
    for log in plan.Task("mnist", "fc26", 0.0, 0.03, tuple(plan.TUNING_SEEDS)).logs(results):
        log.write_text(log.read_text().replace('"finished"', '"diverged"'))
    assert plan.best_setting(results, "mnist", "fc26") == (0.0, 0.01)
    assert tuned.read_tuned(folder, []).best("mnist", "fc26") == (0.0, 0.01)


def test_only_whole_blocks_count_and_twenty_seeds_are_needed(folder):
    put_finals(folder, {"fc": 30, "fc26": 30, "spinal6x8": 30})
    found = tuned.read_tuned(folder, [])
    finals = [("mnist", log.start["run"]) for log in found.finals("mnist", "fc26")]
    for count, rounds in ((30, 30), (24, 20), (20, 20), (19, 15)):
        for name in finals[count:]:
            found.logs.pop(name, None)
        assert found.rounds(plan.PRIMARY_HEADS) == rounds
        assert bool(tuned.primary(found)) == (rounds >= 20)
        assert all(len(found.sample(name, "fc")) == rounds for name in DATASETS)
    assert tuned.values_of(None, markdown)["tuned_primary"] == ""


def test_the_primary_family_is_that_of_scipy(folder):
    put_finals(folder, {"fc": 30, "fc26": 30, "spinal6x8": 30, "spinal6x10": 10})
    found = tuned.read_tuned(folder, [])
    rows = tuned.primary_rows(found)
    p_values = []
    for (dataset, left, right), row in zip(tuned.PRIMARY, rows, strict=True):
        test = stats.ttest_rel(scores(dataset, left, 30), scores(dataset, right, 30))
        low, high = test.confidence_interval(0.95)
        assert row["pairs"] == "30" and row["dataset"] == DATASETS[dataset]
        assert float(row["low"]) == pytest.approx(low, abs=6e-4)
        assert float(row["high"]) == pytest.approx(high, abs=6e-4)
        p_values.append(test.pvalue)
    order = sorted(range(4), key=p_values.__getitem__)
    adjusted, running = [0.0] * 4, 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (4 - rank) * p_values[place]))
        adjusted[place] = running
    for row, p in zip(rows, adjusted, strict=True):
        assert row["p_holm"] == ("< 0.0001" if p < 1e-4 else f"{p:.4f}")
        assert (row["decision"] == "undecided") == (p >= 0.05)
    words = {row["decision"] for row in rows}
    assert words <= {"undecided", "FC 50 better", "FC 26 better", "Spinal 6 × 8 better"}
    values = tuned.values_of(found, markdown)
    assert values["tuned_seeds"] == "30 (as planned)"
    others = tuned.differences_of(found, tuned.EXPLORATORY)
    assert {difference.pairs for (_, left, _), difference in others if left != "fc26"} == {10}
    written = tuned.files(found, comma_separated)
    table = list(csv.DictReader(written["tables/tuned_heads.csv"].splitlines()))
    assert [row["family"] for row in table[:5]] == ["primary"] * 4 + ["exploratory"]
    assert tuned.files(None, comma_separated) == {}
    columns, lines = tuned.front_rows(found)
    assert [line["heads"].count("as many") for line in lines] == [0, 1]
    assert len(lines) == 2 and {"MNIST", "Fashion-MNIST"} < set(columns.values())


def test_the_linear_head(tmp_path):
    """Trunk and outputs, nothing between them; the trunk has the weights of any other head's."""
    script = linear_head.load_script("MNIST/mnist")
    torch.manual_seed(1)
    other = script.network_of(script.recipe_of("cnn", "fc", "corrected"))
    linear_head.exchange_head(script)
    recipe = script.recipe_of("cnn", "linear", "corrected")
    assert (recipe.fc_dropout, recipe.learning_rate, recipe.epochs) == (0.0, 0.01, 8)
    torch.manual_seed(1)
    network = script.network_of(recipe)
    assert torch.equal(network[0][0].weight, other[0][0].weight)
    shapes = [tuple(x.shape) for x in network[1:].parameters()]
    assert shapes == [(10, 320), (10,)]
    images = torch.randn(2, 1, 28, 28)
    network.eval()
    features = network[0](images)
    expected = torch.log_softmax(network[2](features), 1)
    assert torch.equal(network(images), expected)


def test_logs_of_the_linear_head_are_read(tmp_path):
    path = tmp_path / "logs/mnist/cnn-linear-corrected-s0.jsonl"
    put(path, "mnist", "linear", 0, 98.0, 98.1)
    logs, findings = read_logs(tmp_path / "logs")
    assert findings == [] and logs[0].head == "linear"
    path.rename(path.with_name("cnn-fc320-corrected-s0.jsonl"))
    assert read_logs(tmp_path / "logs")[0] == []
