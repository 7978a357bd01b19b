"""tools/bench.py and tools/demo.py: what they measure and show is what they say, on small real data."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import bench  # noqa: E402
import demo  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def optdigits():
    """A small real set: the script, its recipe and its data, read as `published` does."""
    script = bench.load_script("MNIST/optdigits")
    options, recipe = script.parse_arguments(["--quiet"])
    torch.set_num_threads(1)
    return script, recipe, script.load_data(options, recipe, CPU)


def test_the_reference_makes_the_same_steps_as_we_do(optdigits):
    """One batch, dropout off: the plain loop's weights and ours differ by rounding only."""
    script, recipe, data = optdigits
    torch.manual_seed(0)
    reference = bench.Reference(script, recipe, "cnn", data, CPU)
    images, labels = data.train[0][:64], data.train[1][:64]
    inputs = (images.float() / 255 - recipe["mean"][0]) / recipe["std"][0]
    for step in ("script", "plain"):
        ours = bench.Ours(script, recipe, "cnn", data, step)
        for network, trainer in zip(reference.networks, ours.trainers):
            trainer.network.load_state_dict(network.state_dict())
            for module in [*network.modules(), *trainer.network.modules()]:
                if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
                    module.p = 0.0
        before = [p.clone() for trainer in ours.trainers for p in trainer.network.parameters()]
        for trainer in ours.trainers:
            ours.train(trainer, images, labels, torch.arange(64))
        after = [p for trainer in ours.trainers for p in trainer.network.parameters()]
        assert all(not torch.equal(a, b) for a, b in zip(before, after))
        if step == "script":
            first = after
        for a, b in zip(first, after):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    reference.step(inputs, labels)
    for a, b in zip(after, (p for n in reference.networks for p in n.parameters())):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_reference_feeds_what_we_feed(optdigits):
    script, recipe, data = optdigits
    images, labels = next(iter(bench.Reference(script, recipe, "cnn", data, CPU).test))
    torch.testing.assert_close(
        images, ((data.test[0][: len(images)].float() / 255 - recipe["mean"][0]) / recipe["std"][0])
    )
    assert torch.equal(labels, data.test[1][: len(labels)])
    vgg5 = script.parse_arguments(["--network", "vgg5"])[1]
    loader = bench.Reference(script, vgg5, "vgg5", data, CPU).train
    assert len(loader.dataset.transform.transforms) == 4  # two of them augment


def test_both_ways_learn(optdigits):
    script, recipe, data = optdigits
    for way in (bench.Reference(script, recipe, "cnn", data, CPU), bench.Ours(script, recipe, "cnn", data)):
        for _ in range(6):
            way.epoch()
        assert min(way.evaluate()) > 50, way


def test_operations_are_those_counted_by_hand(optdigits):
    """cnn: two convolutions and the head, two operations a multiplication, three passes; 16,500 and 8,480 (spec)."""
    convolutions = 24 * 24 * 10 * 25 + 8 * 8 * 20 * 250
    assert bench.flops_per_image(optdigits[0], "cnn") == 3 * 2 * (2 * convolutions + 16_500 + 8_480)


def test_a_mistake_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(["--repeats", "0"])
    assert end.value.code == 2
    assert bench.main(["--data-dir", str(tmp_path), "--no-download", "--networks", "cnn", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_short_bench_fills_its_page(tmp_path, monkeypatch, capsys):
    """The small CNN, on the handwritten digits in MNIST's place; the page is made from the files alone."""
    row = {"processes": 2, "images_per_second": 9_000.0}
    monkeypatch.setattr(bench, "processes", lambda *_: [row])
    monkeypatch.setattr(bench, "matrix_peak", lambda *_: 1e11)
    load_script = bench.load_script
    monkeypatch.setattr(bench, "load_script", lambda _: load_script("MNIST/optdigits"))
    here = ["--device", "cpu", "--output", str(tmp_path)]
    assert bench.main(["--networks", "cnn", "--images", "200", "--repeats", "1", *here]) == 0
    (path,) = (tmp_path / "bench").glob("*.json")
    record, page = json.loads(path.read_text()), (tmp_path / "bench.md").read_text()
    assert [row["way"] for row in record["rows"]] == ["reference", "ours, fp32", "ours, bf16"]
    assert (
        record["rows"][0]["ratio"] == 1.0 and record["device_name"] in page and "2 runs at once: 9,000 images/s" in page
    )
    assert bench.main(["--only", "processes", *here]) == 0
    assert json.loads(path.read_text())["rows"] == record["rows"]
    record["rows"][1] |= {
        "images_per_second": 7_000.0,
        "ratio": 3.25,
        "flops_per_second": 5e9,
        "accuracy_pct": [80, 81],
    }
    path.write_text(json.dumps(record))
    assert bench.main(["--page-only", *here]) == 0
    assert "| cnn | ours, fp32 | 1 | 200 | 7,000 | 3.25 | " in (tmp_path / "bench.md").read_text()
    assert " | 5 | 80.0 | 81.0 |" in (tmp_path / "bench.md").read_text()


# ---- Demo ------------------------------------------------------------------------------------------------------------
def test_the_demo_shows_its_logs_beside_the_paper(tmp_path, capsys):
    """Two seeds of each, with numbers made up here; the paper's are those of its tables."""
    logs = {("optdigits", "fc", None): 97.0, ("optdigits", "spinal", None): 97.5}
    for number, function in enumerate(demo.FUNCTIONS):
        logs |= {("synthetic_regression", head, function): 1e-3 * (number + 1) for head in demo.NAMES}
    for (script, head, function), value in logs.items():
        (tmp_path / "logs" / script).mkdir(parents=True, exist_ok=True)
        for seed in (0, 1):
            start = {"script": script, "seed": seed, "settings": {"head": head, "function": function}}
            end = {"selected_test_accuracy_pct": value + seed, "min_last_batch_mse_200": value}
            path = tmp_path / "logs" / script / f"{head}-{function}-{seed}.jsonl"
            path.write_text(json.dumps(start) + "\n" + json.dumps(end) + "\n")
    assert demo.main(["--results-dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "FC 97.50 %, Spinal 98.00 %: Spinal minus FC +0.50 points, +0.50 to +0.50 by seed" in output
    assert "FC 97.98 %, Spinal 98.32 %, +0.34 points" in output
    (product,) = [line for line in output.splitlines() if line.startswith("   product ")]
    assert product.split()[1:5] == ["3.875", "3.000", "2.217", "3.000"]
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    (tmp_path / "logs/optdigits/fc-None-0.jsonl").unlink()
    (tmp_path / "logs/optdigits/fc-None-1.jsonl").unlink()
    assert demo.main(["--results-dir", str(tmp_path)]) == 2
