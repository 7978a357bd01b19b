"""tools/bench.py and tools/demo.py: what they measure and show is what they say, on small data."""

import json
import re
import sys

import pytest
import torch

from conftest import ROOT, load_script

sys.path.insert(0, str(ROOT / "tools"))
import bench  # noqa: E402
import demo  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def optdigits():
    """A small real set: the script, the recipes of both heads of the small CNN, and the data."""
    script = load_script("MNIST/optdigits")
    recipes = [script.recipe_of("cnn", head, "published") for head in bench.HEADS]
    torch.set_num_threads(1)
    return script, recipes, script.load_data(ROOT, recipes[0], False, CPU)


@pytest.mark.parametrize("step", ["script", "plain"])
def test_the_reference_makes_the_same_steps_as_we_do(optdigits, step):
    """One batch without dropout: the plain loop's weights and ours differ by rounding only."""
    script, recipes, data = optdigits
    reference, ours = bench.Reference(*optdigits), bench.Ours(*optdigits, step)
    images, labels = data.train[0][:64], data.train[1][:64]
    networks = [trainer.network for trainer in ours.trainers]
    for plain, network in zip(reference.networks, networks, strict=True):
        network.load_state_dict(plain.state_dict())
        for module in [*plain.modules(), *network.modules()]:
            if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
                module.p = 0.0
    before = [x.clone() for network in networks for x in network.parameters()]
    ours.train(images, labels, [torch.arange(64)])
    reference.step((images.float() / 255 - recipes[0].mean[0]) / recipes[0].std[0], labels)
    after = [x for network in networks for x in network.parameters()]
    theirs = [x for network in reference.networks for x in network.parameters()]
    for x, y, z in zip(before, after, theirs, strict=True):
        assert not torch.equal(x, y)
        torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-6)


def test_the_reference_feeds_what_we_feed(optdigits):
    script, recipes, data = optdigits
    images, labels = next(iter(bench.Reference(*optdigits).test))
    expected = (data.test[0][: len(images)].float() / 255 - recipes[0].mean[0]) / recipes[0].std[0]
    torch.testing.assert_close(images, expected)
    assert torch.equal(labels, data.test[1][: len(labels)])
    vgg5 = [script.recipe_of("vgg5", head, "published") for head in bench.HEADS]
    transform = bench.Reference(script, vgg5, data).train.dataset.transform
    assert len(transform.transforms) == 4  # two of them augment


def test_operations_are_those_counted_by_hand(optdigits):
    """Two convolutions and the head, two operations a multiplication, three passes."""
    convolutions = 24 * 24 * 10 * 25 + 8 * 8 * 20 * 250
    counted = bench.flops_per_image(*optdigits[:2])
    assert counted == 3 * 2 * (2 * convolutions + 16_500 + 8_480)


def test_a_mistake_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        bench.main(["--repeats", "0"])
    assert end.value.code == 2
    nowhere = ["--data-dir", str(tmp_path), "--no-download", "--networks", "cnn"]
    assert bench.main([*nowhere, "--device", "cpu"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_a_short_bench_fills_its_page(tmp_path, monkeypatch):
    """The digits in MNIST's place; the page is made from the files alone."""
    row = {"processes": 2, "images_per_second": 9_000.0}
    monkeypatch.setattr(bench, "runs_at_once", lambda *_: [row])
    monkeypatch.setattr(bench, "peaks", lambda *_: {"product": 1e11, "convolution": 2e11})
    monkeypatch.setattr(bench, "load_script", lambda _: load_script("MNIST/optdigits"))
    here = ["--device", "cpu", "--output", str(tmp_path)]
    assert bench.main(["--networks", "cnn", "--images", "500", "--repeats", "1", *here]) == 0
    (path,) = (tmp_path / "bench").glob("*.json")
    record, page = json.loads(path.read_text()), (tmp_path / "bench.md").read_text()
    assert [row["way"] for row in record["rows"]] == ["reference", "ours, fp32", "ours, bf16"]
    assert record["rows"][0]["ratio"] == 1.0
    assert record["device_name"] in page and "2 runs at once: 9,000 images/s" in page
    assert bench.main(["--only", "processes", *here]) == 0
    assert json.loads(path.read_text())["rows"] == record["rows"]
    changes = {"images_per_second": 7_000.0, "ratio": 3.25, "flops_per_second": 5e9}
    record["rows"][1] |= changes | {"input_microseconds": 1.5}
    path.write_text(json.dumps(record))
    assert bench.main(["--page-only", *here]) == 0
    cells = "| cnn | ours, fp32 | 1 | 500 | 7,000 | 3.25 | 1.5 | 2 |\n"
    assert cells in (tmp_path / "bench.md").read_text()


# ---- Demo ---------------------------------------------------------------------------------------
def test_the_demo_shows_its_logs_beside_the_paper(tmp_path, capsys):
    """Two seeds of each, with numbers made up here; the paper's are those of its tables."""
    digits = (("fc", 0.5, 97.0), ("fc", 0.0, 97.75), ("spinal", 0.0, 97.5))
    logs = {("optdigits", head, dropout): value for head, dropout, value in digits}
    for number, function in enumerate(demo.FUNCTIONS, 1):
        logs |= {("synthetic_regression", x, function): 1e-3 * number for x in demo.NAMES}
    for (script, head, function), value in logs.items():
        (tmp_path / "logs" / script).mkdir(parents=True, exist_ok=True)
        for seed in (0, 1):
            settings = {"head": head, "function": function, "fc_dropout": function}
            start = {"script": script, "seed": seed, "settings": settings}
            end = {"selected_test_accuracy_pct": value + seed, "min_last_batch_mse_200": value}
            path = tmp_path / "logs" / script / f"{head}-{function}-{seed}.jsonl"
            path.write_text(json.dumps(start) + "\n" + json.dumps(end) + "\n")
    assert demo.main(["--results-dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "FC 97.50 %, FC without its dropout 98.25 %, Spinal 98.00 %." in output
    assert "where FC alone has dropout: +0.50 points (+0.50 to +0.50 by seed)" in output
    assert re.search(r"no dropout in either head: +-0.25 points", output)
    assert "FC 97.98 %, Spinal 98.32 %, +0.34 points" in output
    (product,) = [line for line in output.splitlines() if line.startswith("   product ")]
    assert product.split()[1:5] == ["3.875", "3.000", "2.217", "3.000"]
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    for seed in (0, 1):
        (tmp_path / f"logs/optdigits/fc-0.0-{seed}.jsonl").unlink()
    assert demo.main(["--results-dir", str(tmp_path)]) == 2
