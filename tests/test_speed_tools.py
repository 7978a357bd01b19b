"""tools/bench.py and tools/precision.py: what they measure is what they say, on small real data and on logs made here."""
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import bench  # noqa: E402
import precision  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def optdigits(tmp_path_factory):
    """A small real set: the script and its data, read as `published` does."""
    script = bench.load_script("MNIST/optdigits")
    options = script.parse_arguments(["--results-dir", str(tmp_path_factory.mktemp("results"))])
    return script, script.load_data(options, CPU)


def test_the_reference_makes_the_same_steps_as_we_do(optdigits):
    """One batch, dropout off: the plain loop's weights and ours differ by rounding only."""
    script, data = optdigits
    torch.manual_seed(0)
    reference, ours = bench.Reference(script, "cnn", data, CPU), bench.Ours(script, "cnn", data, CPU, "fp32", graph=False)
    for network, copy in zip(reference.networks, ours.networks):
        copy.load_state_dict(network.state_dict())
        for module in [*network.modules(), *copy.modules()]:
            if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
                module.p = 0.0
    images, labels = data.train.images[:64], data.train.labels[:64]
    before = [p.clone() for n in ours.networks for p in n.parameters()]
    reference.step(script.normalise(images, data), labels)
    for trainer in ours.trainers:
        trainer.epoch(script.Split(images, labels), torch.arange(64), 64, lambda: None)
    after = [p for n in ours.networks for p in n.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(before, after))
    for a, b in zip(after, (p for n in reference.networks for p in n.parameters())):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_reference_feeds_what_we_feed(optdigits):
    script, data = optdigits
    reference = bench.Reference(script, "cnn", data, CPU)
    images, labels = next(iter(reference.test))
    torch.testing.assert_close(images, script.normalise(data.test.images, data)[:len(images)])
    assert torch.equal(labels, data.test.labels[:len(labels)])
    assert len(bench.Reference(script, "vgg5", data, CPU).train.dataset.transform.transforms) == 4  # two of them augment


def test_both_ways_learn(optdigits):
    script, data = optdigits
    for way in (bench.Reference(script, "cnn", data, CPU), bench.Ours(script, "cnn", data, CPU, "fp32", graph=False)):
        for _ in range(6):
            way.epoch()
        assert min(way.evaluate()) > 50, way


def test_operations_are_those_counted_by_hand(optdigits):
    """cnn: two convolutions and the head, two operations a multiplication, three passes; FC 16,500, Spinal 8,480 (spec)."""
    convolutions = 24 * 24 * 10 * 25 + 8 * 8 * 20 * 250
    assert bench.flops_per_image(optdigits[0], "cnn") == 3 * 2 * (2 * convolutions + 16_500 + 8_480)


def test_a_mistake_is_one_sentence(tmp_path, capsys):
    assert bench.main(["--repeats", "0"]) == 2
    assert bench.main(["--data-dir", str(tmp_path), "--no-download", "--networks", "cnn"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_the_page_is_made_from_the_files_alone(tmp_path, monkeypatch):
    row = {"network": "cnn", "way": "ours, bf16", "precision": "bf16", "threads": 1, "images": 12_000, "tests": 2_000,
           "images_per_second": 7_000.0, "epoch_seconds": 2.0, "ratio": 3.25, "input_microseconds": 1.5, "accuracy_pct": [80.0, 81.0],
           "flops_per_second": 5e10, "memory_bytes": None, "train_seconds": [1.0]}
    record = {"device": "cpu", "device_name": "Some CPU", "torch": "2.15", "load": 0.1, "cores": 2, "date": "2026-11-21",
              "repeats": 3, "matrix_peak": {"bf16": 1e12, "fp32": 1e11}, "rows": [row],
              "processes": [{"processes": 2, "images_per_second": 9_000.0}]}
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    (tmp_path / "results/bench").mkdir(parents=True)
    (tmp_path / "results/bench/some-cpu.json").write_text(json.dumps(record))
    (tmp_path / "README.md").write_text(f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n")
    assert bench.main(["--pages-only"]) == 0
    page, readme = (tmp_path / "results/bench.md").read_text(), (tmp_path / "README.md").read_text()
    line = "| cnn | ours, bf16 | 1 | 12,000 | 7,000 | 3.2 | 1.5 | 5 | 80.0 | 81.0 |"
    assert line in page and line in readme and "Some CPU" in page and "2 runs at once: 9,000" in page
    assert readme.startswith("before\n") and readme.endswith("after\n") and "old" not in readme


def write_run(folder: Path, precision_: str, seed: int, accuracy: float, **settings) -> None:
    settings = {"dataset": "MNIST", "network": "cnn", "head": "fc", "layers": 1, "width": 50, "epochs": 8, "limit": None,
                "precision": precision_, **settings}
    start = {"event": "start", "script": "mnist", "seed": seed, "settings": settings, "data": {"sha256": "0"},
             "provenance": {"device": "cpu"}}
    end = {"event": "end", "selected_test_accuracy_pct": accuracy, "seconds": 20 if precision_ == "fp32" else 10}
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{precision_}-{seed}-{'-'.join(map(str, settings.values()))}.jsonl"
    (folder / name).write_text(json.dumps(start) + "\n" + json.dumps(end) + "\n")


def test_precision_pairs_equal_settings_and_gives_the_worked_interval(tmp_path):
    logs = tmp_path / "logs/mnist"
    for seed, difference in enumerate([0.1, -0.1, 0.2, 0.0, 0.3]):  # mean 0.1, deviation 0.158114
        write_run(logs, "fp32", seed, 98.0 + seed / 10)
        write_run(logs, "bf16", seed, 98.0 + seed / 10 + difference)
        write_run(logs, "bf16", seed, 12.0, epochs=9)  # another experiment
    write_run(logs, "fp32", 9, 50.0)  # without its twin
    (logs / "damaged.jsonl").write_text("{")
    assert precision.main(["--results-dir", str(tmp_path)]) == 0
    page = (tmp_path / "precision.md").read_text()
    half = 2.776 * 0.158114 / 5**0.5
    assert f"| 5 | 98.20 ± 0.16 | +0.10 ({0.1 - half:+.2f} to {0.1 + half:+.2f}) | not to be told apart | 2.00 |" in page
    assert page.count("| MNIST |") == 1


def test_precision_needs_five_pairs_and_says_what_differs(tmp_path):
    for seed in range(4):
        write_run(tmp_path / "logs/mnist", "fp32", seed, 98.0)
        write_run(tmp_path / "logs/mnist", "bf16", seed, 97.0 + seed / 1000)
    assert "No such runs yet" in precision.page(precision.rows_of(precision.pairs_of(tmp_path / "logs")))
    write_run(tmp_path / "logs/mnist", "fp32", 4, 98.0)
    write_run(tmp_path / "logs/mnist", "bf16", 4, 97.0)
    assert "| differs |" in precision.page(precision.rows_of(precision.pairs_of(tmp_path / "logs")))


def test_bf16_is_the_default_only_of_networks_on_that_page():
    """Each recipe that takes bf16 has a network whose two heads were measured, and none of them differed."""
    rows = [line.split("|") for line in precision.rows_of(precision.pairs_of(ROOT / "results/logs"))]
    proved = {network: {row[3].split()[0] for row in rows if row[2].strip() == network and "not to be told" in row[10]}
              for network in ("cnn", "vgg5")}
    differing = {row[2].strip() for row in rows if row[10].strip() == "differs"}
    for path in sorted([*ROOT.glob("MNIST/*.py"), *ROOT.glob("EMNIST/*.py"), *ROOT.glob("CIFAR/*.py")]):
        for network, recipe in bench.load_script(f"{path.parent.name}/{path.stem}").RECIPES.items():
            if recipe.bf16:
                assert path.parent.name != "CIFAR" and proved[network] == {"FC", "Spinal"} and network not in differing
