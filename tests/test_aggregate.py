"""Claims about results/aggregate.py and tools/make_paper_csv.py, on synthetic logs written by the schema."""

import csv
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from conftest import ROOT

PAPER = ROOT / "results" / "paper.csv"

sys.path.insert(0, str(ROOT / "tools"))  # where the command runs from
from report import make as aggregate  # noqa: E402
from report import series as evidence  # noqa: E402
from report import inference as report_statistics  # noqa: E402

PROVENANCE = {"script_sha256": "0123456789abcdef", "device": "cpu", "device_name": "test", "threads": 1,
              "versions": {"torch": "2.15.0"}}


def image_log(seed=0, accuracies=(97.0, 98.0), head="fc", layers=1, width=50, network="cnn", protocol="published",
              script="mnist", epochs=8, departures=(), official=True, option="", data="d" * 64, **changes):
    """Lines of an image run that was selected by its last epoch; the last accuracy is the reported one."""
    label = "fc" if head == "fc" else f"spinal{layers}x{width}"
    split = "test" if protocol == "published" else "heldout"
    accuracies = [90.0] * (epochs - len(accuracies)) + list(accuracies)
    dataset = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "kmnist": "Kuzushiji-MNIST"}.get(script, script)
    choices = {
        "dataset": dataset, "network": network, "head": head, "layers": layers, "width": width, "protocol": protocol,
        "epochs": epochs, "batch_size": 64, "learning_rate": 0.01, "optimizer": "SGD", "rate_rule": "constant",
        "selection": "last" if protocol == "published" else "heldout", "precision": "fp32", "limit": None} | changes
    start = {
        "event": "start", "schema": 2, "script": script, "run": f"{network}-{label}-{protocol}{option}-s{seed}",
        "seed": seed, "settings": choices, "departures": list(departures), "parameters": 21840,
        "fc_multiplications": 16500, "provenance": PROVENANCE,
        "data": {"train": 60000, "heldout": 0, "test": 10000, "sha256": data, "official": official}}
    lines = [{"event": "epoch", "epoch": number, "learning_rate": 0.01, "train_loss": 0.5, f"{split}_loss": 0.4,
              f"{split}_accuracy_pct": accuracy, "seconds": 1.5} for number, accuracy in enumerate(accuracies, 1)]
    best = max(accuracies)
    end = {"event": "end", "outcome": "finished", "epochs": epochs, "best_epoch": accuracies.index(best) + 1,
           f"best_{split}_accuracy_pct": best, "last_test_accuracy_pct": accuracies[-1], "selected_epoch": epochs,
           "selected_test_accuracy_pct": accuracies[-1], "seconds": 12.0, "ended": "2026-01-01T00:00:00Z"}
    return [start, *lines, end]


def spinal_log(seed, accuracy, **changes):
    return image_log(seed, [accuracy], **({"head": "spinal", "layers": 6, "width": 8} | changes))


def regression_log(seed=0, minimum=0.001, head="fc", function="sum", noise="column", protocol="published", clean=0.002,
                   departures=()):
    """Lines of a regression run of 200 epochs whose smallest last-batch loss stands in epoch 50."""
    layers, width = (2, 200) if head == "fc" else (6, 50)
    label = "fc" if head == "fc" else "spinal6x50"
    option = f"-{function}" + "-broadcast" * (noise == "broadcast")
    choices = {
        "dataset": "synthetic", "function": function, "noise": noise, "network": "mlp", "head": head, "layers": layers,
        "width": width, "protocol": protocol, "epochs": 200, "batch_size": 64, "learning_rate": 0.01,
        "optimizer": "Adam", "rate_rule": "constant", "selection": "minimum", "precision": "fp32"}
    start = {
        "event": "start", "schema": 2, "script": "synthetic_regression",
             "run": f"mlp-{label}-{protocol}{option}-s{seed}",
        "seed": seed, "settings": choices, "departures": list(departures), "parameters": 22001,
        "fc_multiplications": 21700, "provenance": PROVENANCE,
        "data": {"train": 1000, "heldout": 0, "test": 1000, "sha256": f"{seed:064d}", "official": True}}
    lines = [{"event": "epoch", "epoch": epoch, "learning_rate": 0.01, "train_loss": 0.1, "seconds": 0.1,
              "train_mse": 0.01, "last_batch_mse": minimum if epoch == 50 else 0.5, "clean_mse": clean * 200 / epoch}
             for epoch in range(1, 201)]
    end = {"event": "end", "outcome": "finished", "epochs": 200, "min_last_batch_mse_100": minimum, "seconds": 20.0,
           "min_last_batch_mse_200": minimum, "train_mse": 0.01, "clean_mse": clean, "noise_variance": 0.04 / 12,
           "peak_memory_bytes": None}
    return [start, *lines, end]


def text_of(lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


def put(results, lines, folder=None, name=None):
    """Write a log where the schema wants it (or elsewhere) and return its path."""
    start = lines[0]
    path = results / "logs" / (folder or start["script"]) / (name or start["run"] + ".jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text_of(lines), encoding="utf-8")
    return path


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def no_figures_no_reference(monkeypatch, tmp_path):
    """Drawing and reading the reference logs take time; the tests that want them say so."""
    monkeypatch.setattr(aggregate, "write_figures", lambda *_: None)
    monkeypatch.setattr(aggregate, "REFERENCE", tmp_path / "no reference")


def run(results, *options):
    return aggregate.main(["--results-dir", str(results), "--quiet", *options])


def table(results, name, **wanted):
    """Rows of tables/NAME.csv that have these values."""
    with (results / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if all(row[key] == value for key, value in wanted.items())]


def page(results):
    return (results / "tables/README.md").read_text(encoding="utf-8")


def cell(results, head="FC", network="CNN", dataset="MNIST"):
    (row,) = table(results, "table2", dataset=dataset, network=network, head=head)
    return row


def pair(results, **wanted):
    (row,) = table(results, "table2_pairs", **({"dataset": "MNIST", "variant": "published"} | wanted))
    return row


# ---- Paper ----

def test_paper_csv_holds_every_row_of_the_paper():
    with PAPER.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    counts = {name: sum(row["table"] == name for row in rows) for name in ("I", "II", "II (v2 only)", "III")}
    assert counts == {"I": 16, "II": 154, "II (v2 only)": 48, "III": 140} and len(rows) == 358
    assert all(row["head"] in ("fc", "spinal") and row["source"].startswith("arXiv v") for row in rows)
    assert all(row["layers"] and row["width"] for row in rows if row["head"] == "spinal")


def test_paper_csv_is_what_the_converter_makes_of_labels():
    specification = importlib.util.spec_from_file_location("make_paper_csv", ROOT / "tools" / "make_paper_csv.py")
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    assert tool.head_of("default FC (1HL x 50)") == ("fc", "1", "50")
    assert tool.head_of("default (2HL x 200,100)") == ("fc", "2", "")
    assert tool.head_of("default FC (output layer only)") == ("fc", "", "")
    assert tool.head_of("Spinal FC (4HL x 1024)") == ("spinal", "4", "1024")
    assert tool.network_of("III", "Wide_ResNet-101_2") == "wide_resnet101_2"
    assert (tool.network_of("II (v2 only)", "CNN"), tool.network_of("II", "CNN")) == ("lenet", "cnn")


def test_without_logs_every_row_is_there_and_not_run_yet(results):
    assert run(results) == 0
    assert len(table(results, "table1")) == 8
    assert len(table(results, "table2")) == 43 + 19 and len(table(results, "table3")) == 40
    assert {row["verdict"] for row in table(results, "table2") + table(results, "table3")} == {"not run yet"}
    assert cell(results)["paper_mean"] == "97.98" and cell(results, "Spinal 6 x 8")["parameters_printed"] == "13.82k"
    assert {row["decision"] for row in table(results, "dropout") + table(results, "vgg5_parts")} == {"not run yet"}


# ---- Statistics, against hand-worked numbers ----

def test_error_reduction_recomputes_the_paper():
    assert report_statistics.error_reduction(98.44, 98.17) == pytest.approx(14.75, abs=0.01)
    assert report_statistics.error_reduction(100, 100) is None


def test_hand_worked_row(results):
    """FC 98.0, 98.2, 98.4 and Spinal 98.3, 98.4, 98.8: std 0.2 and 0.265; differences 0.3, 0.2, 0.4."""
    for seed, (default, spinal) in enumerate([(98.0, 98.3), (98.2, 98.4), (98.4, 98.8)]):
        put(results, image_log(seed, [default]))
        put(results, spinal_log(seed, spinal))
    assert run(results) == 0
    default, spinal, difference = cell(results), cell(results, "Spinal 6 x 8"), pair(results)
    assert (default["runs"], default["mean"], default["best"], default["std"]) == ("3", "98.200", "98.40", "0.200")
    assert (spinal["mean"], spinal["std"], spinal["error_reduction"]) == ("98.500", "0.265", "25.0")  # 0.4 / 1.6
    half = 4.302653 * 0.1 / math.sqrt(3)  # t(2) for 95 %, std of the differences 0.1
    assert float(difference["difference"]) == pytest.approx(0.3)
    assert float(difference["low"]) == pytest.approx(0.3 - half, abs=6e-4)
    assert float(difference["high"]) == pytest.approx(0.3 + half, abs=6e-4)
    assert float(difference["low90"]) == pytest.approx(0.3 - 2.919986 * 0.1 / math.sqrt(3), abs=6e-4)
    assert (difference["pairs"], difference["ahead"], difference["alone"]) == ("3", "3 of 3", "Spinal better")
    assert (difference["paper_difference"], difference["paper_inside"]) == ("+0.34", "yes")
    tolerance = 6.205347 * 0.2 * math.sqrt(1 / 3 + 1 / 10) + 0.005  # t(2) for 97.5 %
    assert float(default["tolerance"]) == pytest.approx(tolerance, abs=6e-4)
    assert default["verdict"] == "not told apart, tolerance 0.82" and default["above_best"] == "2 of 3"
    assert cell(results, "Spinal 6 x 10")["verdict"] == "not run yet"


def test_verdict_says_direction_distance_and_tolerance(results):
    for seed, accuracy in enumerate([98.49, 98.50, 98.51]):
        put(results, image_log(seed, [accuracy]))
        put(results, image_log(seed, [accuracy - 20], script="kmnist"))  # paper 83.24
    run(results)
    assert cell(results)["verdict"] == "told apart: mean higher by 0.52, tolerance 0.05"
    assert cell(results, dataset="Kuzushiji-MNIST")["verdict"].startswith("told apart: mean lower by 4.74")


def test_the_best_of_ten_tells_apart_where_the_mean_does_not():
    """Rule 3: six of ten runs above the paper's best have the chance C(10, 6) / C(20, 6) = 0.5 % in one population."""
    values = [97.0] * 4 + [98.5] * 6
    assert report_statistics.above_best(values, "98.17") == (6, pytest.approx(210 / 38760))
    assert report_statistics.judge_row(values, "97.98", "98.17", 0.01).startswith("told apart: 6 of 10 above")
    assert report_statistics.judge_row(values, "97.98", "98.60", 0.01).startswith("not told apart, tolerance ")
    fewer = [97.0] * 6 + [98.5] * 4  # 4.3 %: more than the 2.5 % of this half of the rule
    assert report_statistics.judge_row(fewer, "97.60", "98.17", 0.01).startswith("not told apart")


def test_equal_accuracies_are_judged_with_the_weight_of_one_image():
    """Three equal runs have s = 0; the tolerance is then that of one test image of 10,000, not only of rounding."""
    assert report_statistics.judge_row([97.99] * 3, "97.98", "99", 0.01).startswith("not told apart")
    assert report_statistics.judge_row([98.10] * 3, "97.98", "99", 0.01).startswith("told apart: mean higher by 0.12")


@pytest.mark.parametrize("runs, expected", [(0, "not run yet"), (2, "not judged"),
                                            (3, "not told apart, tolerance 0.41")])
def test_fewer_than_three_runs_are_not_judged(results, runs, expected):
    for seed in range(runs):
        put(results, image_log(seed, [97.8 + seed / 10]))
    run(results)
    assert cell(results)["verdict"] == expected


def test_holm_by_hand():
    assert report_statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert report_statistics.holm([0.9, 0.8]) == [1.0, 1.0] and report_statistics.holm([]) == []


def test_decisions_rest_on_holm_over_the_whole_table(results):
    """Alone both differences of three pairs exclude 0 (p 0.035 each); two of them together do not pass Holm's 0.025."""
    for seed, gain in enumerate((0.3, 0.2, 0.4)):
        put(results, image_log(seed, [98.0]))
        put(results, spinal_log(seed, 98.0 + gain))
    run(results)
    assert (pair(results)["decision"], pair(results)["p_holm"]) == ("Spinal better", pair(results)["p"])
    for seed, gain in enumerate((-0.3, -0.2, -0.4)):
        put(results, image_log(seed, [98.0], protocol="corrected"))
        put(results, spinal_log(seed, 98.0 + gain, protocol="corrected"))
    run(results)
    rows = table(results, "table2_pairs")
    assert [row["alone"] for row in rows] == ["Spinal better", "FC better"]
    assert [row["decision"] for row in rows] == ["undecided"] * 2
    assert "none for the Spinal head, none for the FC head, 1 undecided" in answers(results)


def answers(results):
    """The five sentences on these logs."""
    sources = aggregate.read_sources(results)
    return aggregate.reference_texts(sources)["front page"]


@pytest.mark.parametrize("gain, expected", [((0.3, -0.2, 0.1), "undecided"), ((0.3, 0.2), "not judged")])
def test_what_does_not_exclude_zero_is_undecided_and_two_pairs_are_not_judged(results, gain, expected):
    for seed, difference in enumerate(gain):
        put(results, image_log(seed, [98.0]))
        put(results, spinal_log(seed, 98.0 + difference))
    run(results)
    assert pair(results)["decision"] == pair(results)["alone"] == expected


@pytest.mark.parametrize("scale, expected", [(0.02, "yes (± 0.1)"), (0.2, "not shown (± 0.1)")])
def test_equivalence_wants_the_90_percent_interval_inside_the_margin(results, scale, expected):
    """An interval around 0 shows nothing by itself: rule 5."""
    for seed, gain in enumerate((1, -1, 0)):
        put(results, image_log(seed, [98.0]))
        put(results, spinal_log(seed, 98.0 + scale * gain))
    run(results)
    assert pair(results)["decision"] == "undecided" and pair(results)["equivalent"] == expected


def test_sets_without_a_margin_are_never_called_equivalent(results):
    for seed, gain in enumerate((0.01, -0.01, 0)):
        put(results, image_log(seed, [98.0], script="kmnist"))
        put(results, spinal_log(seed, 98.0 + gain, script="kmnist"))
    run(results)
    assert pair(results, dataset="Kuzushiji-MNIST")["equivalent"] == ""


def test_pairs_are_matched_by_seed(results):
    for seed in (0, 1, 2):
        put(results, image_log(seed, [98.0]))
    for seed in (2, 3, 4):
        put(results, spinal_log(seed, 98.5))
    run(results)
    assert (pair(results)["pairs"], pair(results)["difference"]) == ("1", "0.500")


def test_runs_on_different_data_are_no_pair(results):
    for seed in range(3):
        put(results, image_log(seed, [98.0]))
        put(results, spinal_log(seed, 98.5, data="e" * 64))
    run(results)
    assert not table(results, "table2_pairs")


def test_a_printed_difference_outside_the_interval_is_said_to_be(results):
    for seed, gain in enumerate((1.0, 1.1, 1.2)):
        put(results, image_log(seed, [97.0]))
        put(results, spinal_log(seed, 97.0 + gain))
    run(results)
    assert (pair(results)["paper_difference"], pair(results)["paper_inside"]) == ("+0.34", "no")


def test_the_detectable_difference_is_that_of_a_t_test_with_80_percent_power():
    """Five pairs see 1.68 standard deviations (G*Power and tables: 1.68)."""
    difference = report_statistics.Difference(5, 0.0, -1, 1, -1, 1, 1.0, 1.0)
    assert report_statistics.detectable(difference) == pytest.approx(1.68, abs=0.01)


def test_corrected_runs_stand_beside_and_are_not_judged(results):
    for seed in range(3):
        put(results, image_log(seed, [95.0], protocol="corrected"))
    run(results)
    assert cell(results)["verdict"] == "not run yet" and cell(results)["corrected_mean"] == "95.000"


def test_runs_without_dropout_in_either_head_are_a_variant_of_their_own(results):
    for seed in range(3):
        for head, gain in (({}, 0.0), ({"head": "spinal", "layers": 6, "width": 8}, 0.2)):
            both = dict(seed=seed, protocol="corrected", **head)
            put(results, image_log(accuracies=(97.0 + gain,), **both, fc_dropout=0.5))
            put(results, image_log(accuracies=(98.0 + 2 * gain,), **both, option="-drop0.0", fc_dropout=0.0,
                                   departures=["fc_dropout"]))
            put(results, image_log(accuracies=(91.0,), **both, option="-drop0.1", departures=["fc_dropout"],
                                   fc_dropout=0.1))
    assert run(results) == 0
    assert pair(results, variant="corrected")["difference"] == "0.200"
    assert pair(results, variant="corrected, no dropout")["difference"] == "0.400"
    assert cell(results, head="Spinal 6 x 8")["verdict"] == "not run yet"
    assert {row["reason"] for row in table(results, "other_runs")} == {"departs in fc_dropout"}


def test_published_runs_that_held_images_out_are_read_and_caltech_counts_by_them(results):
    """Bird225, Caltech-101, CINIC-10; what the paper prints for Caltech-101 is of the held-out part."""
    for script, network, epochs in (("tl_caltech101", "wide_resnet101_2", 10), ("tl_cinic10", "vgg19_bn", 25)):
        for seed in range(3):
            fc = {"layers": 0, "width": 0} if network == "wide_resnet101_2" else {"layers": 2, "width": 4096}
            lines = image_log(seed, (94.0, 95.0 + seed), network=network, protocol="corrected", script=script,
                              epochs=epochs, **fc)
            lines[0]["settings"]["protocol"] = "published"
            lines[0]["run"] = lines[0]["run"].replace("corrected", "published")
            lines[-1] |= {"selected_test_accuracy_pct": 93.0, "last_test_accuracy_pct": 92.0}
            put(results, lines)
    assert run(results) == 0
    rows = {row["script"]: row for row in table(results, "table3") if row["runs"] == "3"}
    assert (rows["tl_caltech101"]["mean"], rows["tl_cinic10"]["mean"]) == ("96.000", "93.000")


def test_diverged_run_counts_with_its_accuracy(results):
    put(results, image_log(0, [98.0]))
    lines = image_log(1, [10.0], epochs=3)
    lines[0]["settings"]["epochs"] = 8
    lines[-1] |= {"outcome": "diverged", "diverged_epoch": 3}
    lines[3]["train_loss"] = None
    put(results, lines)
    run(results)
    assert cell(results)["runs"] == "2" and cell(results)["mean"] == "54.000"


# ---- What must not be averaged ----

@pytest.mark.parametrize("changes, reason", [
    ({"departures": ["epochs"], "epochs": 3, "option": "-e3"}, "departs in epochs"),
    ({"official": False, "option": "-datadddddddd"}, "data are not the complete official set"),
    ({"limit": 1000, "option": "-limit1000"}, "limit 1000"), ({"epochs": 3}, "3 epochs, the paper prints 8"),
    ({"network": "arch2"}, "the paper has no such row"), ({"layers": 2}, "the paper has no such row"),
    ({"precision": "bf16"}, "departs in precision"),  # whatever the log's script took for its default
    ({"precision": "bf16", "departures": ["precision"], "option": "-bf16"}, "departs in precision")])
def test_other_experiments_never_reach_a_row_of_the_paper(results, changes, reason):
    put(results, image_log(0, [98.0], **changes))
    run(results)
    assert {row["runs"] for name in ("table2", "table3") for row in table(results, name)} == {"0"}
    (other,) = table(results, "other_runs")
    assert (other["runs"], other["reason"], other["sha256"], other["train"]) == ("1", reason, "d" * 64, "60000")


def test_two_groups_of_settings_are_never_averaged(results, capsys):
    for seed in range(3):
        put(results, image_log(seed, [98.0]))
    for seed in range(3, 5):
        put(results, image_log(seed, [50.0], batch_size=32))
    put(results, image_log(9, [50.0], data="e" * 64))
    run(results)
    errors = capsys.readouterr().err
    assert cell(results)["runs"] == "3" and cell(results)["mean"] == "98.000"
    assert errors.count("differs in batch_size; left out") == 2 and errors.count("differs in data.sha256; left "
                                                                                 "out") == 1
    assert "cnn-fc-published-s9.jsonl" in page(results)


def test_another_script_hash_or_device_is_listed_and_not_refused(results):
    for seed in range(2):
        lines = image_log(seed, [98.0])
        lines[0]["provenance"] = PROVENANCE | {"script_sha256": f"{seed}" * 16, "device_name": f"device {seed}"}
        put(results, lines)
    run(results)
    assert cell(results)["runs"] == "2" and "device_name: device 0 (1 runs), device 1 (1 runs)" in page(results)
    assert "**2 of 2 logs were written by another text of their script than the shipped one**" in page(results)


def test_other_runs_are_paired_with_the_same_experiment(results):
    for seed in range(3):
        put(results, image_log(seed, [90.0], official=False))
        put(results, spinal_log(seed, 91.0, official=False))
    run(results)
    (row,) = table(results, "other_runs", head="spinal6x8")
    assert row["difference"] == "1.000" and row["pairs"] == "3"


def test_parts_of_the_data_have_a_table_of_their_own_and_are_not_pooled(results):
    for seed in range(3):
        for gain, head in ((0, {}), (1, {"head": "spinal", "layers": 6, "width": 8})):
            put(results, image_log(seed, [90.0 + gain], **head))
            put(results, image_log(seed, [80.0 + 2 * gain], official=False, data="e" * 64, option="-data", **head))
            head = head and {"head": "spinal", "layers": 4, "width": 128}
            put(results, image_log(seed, [70.0 + 3 * gain], network="vgg5", epochs=30,
                                   departures=["epochs", "precision"],
                                   limit=10_000, precision="bf16", option="-e30-limit10000-bf16", **head))
    run(results)
    assert [row["difference"] for row in table(results, "table2_pairs")] == ["1.000"]
    assert [row["difference"] for row in table(results, "cnn_parts", dataset="MNIST")] == ["2.000"]
    (row,) = table(results, "vgg5_parts", dataset="MNIST")
    assert (row["difference"], row["precision"], row["epochs"]) == ("3.000", "bf16", "30")
    assert "not run yet" in {row["decision"] for row in table(results, "vgg5_parts", dataset="Fashion-MNIST")}


def test_other_runs_pair_heads_that_differ_in_dropout_but_never_average_two_dropouts(results):
    put(results, image_log(0, [90.0], official=False, fc_dropout=0.5))
    put(results, spinal_log(0, 91.0, official=False, fc_dropout=0.0))
    run(results)
    assert table(results, "other_runs", head="spinal6x8")[0]["difference"] == "1.000"
    put(results, image_log(0, [80.0], official=False, fc_dropout=0.0, option="-drop0.0"))
    run(results)
    assert [row["mean"] for row in table(results, "other_runs", head="fc")] == ["80.000", "90.000"]
    assert table(results, "other_runs", head="spinal6x8")[0]["difference"] == "11.000"


def test_the_dropout_series_pairs_equal_dropout_only(results):
    """Published FC has 0.5 and Spinal 0; the others depart in it."""
    for seed in range(3):
        for p, accuracy in ((0.0, 98.6), (0.25, 98.4), (0.5, 98.0)):
            option = f"-drop{p}" if p != 0.5 else ""
            put(results, image_log(seed, [accuracy], fc_dropout=p, option=option,
                                   departures=["fc_dropout"] * bool(option)))
            option = f"-drop{p}" if p else ""
            put(results, spinal_log(seed, 98.3 - p, fc_dropout=p, option=option,
                                    departures=["fc_dropout"] * bool(option)))
        put(results, spinal_log(seed, 50.0, fc_dropout=0.5, precision="bf16", option="-drop0.5-bf16",
                                departures=["fc_dropout", "precision"]))
    run(results)
    rows = {row["dropout"]: row["difference"] for row in table(results, "dropout", dataset="MNIST", head="6 x 8")}
    assert rows == {"0": "-0.300", "0.25": "-0.350", "0.5": "-0.200"}
    assert pair(results)["difference"] == "0.300"  # what the paper compares
    assert {row["decision"] for row in table(results, "dropout", head="6 x 10")} == {"not run yet"}
    assert {row["reason"] for row in table(results, "other_runs")} == {"departs in fc_dropout, precision"}
    assert "between −0.35 and −0.20 on MNIST" in answers(results) and "9 of 12 not run yet" in answers(results)


def test_precisions_are_paired_by_seed_and_equivalence_needs_the_margin(results):
    for seed, gain in enumerate((0.02, -0.02, 0.0)):
        put(results, image_log(seed, [98.0]))
        put(results, image_log(seed, [98.0 + gain], precision="bf16", departures=["precision"], option="-bf16"))
        put(results, image_log(seed, [90.0], script="fashion_mnist"))
        put(results, image_log(seed, [90.0 + 50 * gain], script="fashion_mnist", precision="bf16",
                               departures=["precision"], option="-bf16"))
    run(results)
    rows = {row["dataset"]: (row["pairs"], row["alone"], row["equivalent"]) for row in table(results, "precision")}
    assert rows == {"MNIST": ("3", "no", "yes (± 0.1)"), "Fashion-MNIST": ("3", "no", "not shown (± 0.3)")}


def test_selection_is_measured_on_named_runs_of_networks_that_select(results):
    """What choosing by the test set adds says nothing where the last epoch is taken, nor of other networks."""
    for seed in range(3):
        curve = [97.0] * 28 + [99.0, 98.5]
        vgg = dict(network="vgg5", epochs=30, departures=["epochs"], option="-e30", selection="best_test")
        lines = image_log(seed, curve, **vgg)
        lines[-1] |= {"selected_epoch": 29, "selected_test_accuracy_pct": 99.0}
        put(results, lines)
        put(results, image_log(seed, curve, network="cnn", epochs=30, departures=["epochs"], option="-e30"))
        put(results, image_log(seed, curve, network="vgg5", epochs=30, departures=["epochs"], option="-last",
                               selection="last"))
    logs = aggregate.read_sources(results).cells.logs
    assert len(logs) == 9
    effect = evidence.selection_effect(logs, "vgg5 arch2", "mnist")
    runs = "3 runs (MNIST, VGG-5, 60,000 images, 30 epochs, fp32)"
    assert effect == f"best test epoch minus last epoch +0.50 ± 0.00 points in {runs}"
    assert evidence.selection_effect(logs, "cnn", "mnist") == "" == evidence.selection_effect(logs, "vgg5", "kmnist")


# ---- Broken logs ----

def damage(lines, kind):
    """Bytes of a damaged log and the words that the finding must hold."""
    text = text_of(lines)
    start, epoch, end = lines[0], lines[1], lines[-1]
    if kind == "truncated":
        return text[:-30].encode(), ":10: not JSON (last line, the log may be cut off)"
    if kind == "no end":
        return text_of(lines[:-1]).encode(), ":9: no end line"
    if kind == "gap":
        return text_of(lines[:3] + lines[4:]).encode(), ":4: epoch 3 is missing"
    if kind == "schema":
        return text_of([start | {"schema": 1}, *lines[1:]]).encode(), ":1: schema 1, this program reads schema 2"
    if kind == "missing key":
        return text_of([{key: start[key] for key in start if key != "data"},
                        *lines[1:]]).encode(), ":1: data is missing"
    if kind == "type":
        return text_of([start, epoch | {"seconds": "1"}, *lines[2:]]).encode(), ":2: seconds is not a finite number"
    if kind == "boolean":
        return text_of([start | {"seed": False}, *lines[1:]]).encode(), ":1: seed is not an integer"
    if kind == "nan":
        return text.replace('"train_loss": 0.5', '"train_loss": NaN', 1).encode(), ":2: not JSON"
    if kind == "infinite":
        wanted = ":2: test_accuracy_pct is not a number from 0 to 100"
        return text.replace('_pct": 90.0', '_pct": 1e999', 1).encode(), wanted
    if kind == "edited":
        return text_of([*lines[:-1],
                        end | {"selected_test_accuracy_pct": 99.9}]).encode(), ":10: selected_test_accuracy_"
    if kind == "precision":
        changed = start | {"settings": start["settings"] | {"precision": "fp8"}}
        return text_of([changed, *lines[1:]]).encode(), ":1: settings.precision is none of fp32, bf16"
    if kind == "more":
        return (text + text_of([epoch])).encode(), ":11: lines after the end line"
    if kind == "foreign":
        return b'{"loss": 3}\n[1, 2]\n', ":1: not a log line"
    if kind == "deep":
        return b"[" * 100_000, ":1: not JSON"
    return {"empty": (b"", ":1: empty file"), "binary": (b"\x89PNG\xff\xfe\x00", ":1: not UTF-8")}[kind]


KINDS = ("truncated", "no end", "gap", "schema", "missing key", "type", "boolean", "nan", "infinite", "edited",
         "precision",
         "more", "foreign", "deep", "empty", "binary")


@pytest.mark.parametrize("kind", KINDS)
def test_broken_log_is_named_with_its_line_and_left_out(results, capsys, kind):
    for seed in range(3):
        put(results, image_log(seed, [98.0]))
    lines = image_log(7, [50.0])
    path = put(results, lines)
    content, words = damage(lines, kind)
    path.write_bytes(content)
    assert run(results) == 0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and f"{path.as_posix()}{words}" in errors[0] and errors[0].endswith("; left out")
    assert cell(results)["runs"] == "3" and cell(results)["mean"] == "98.000"
    assert path.name in page(results)


def test_renamed_moved_duplicate_and_unfinished_logs_are_left_out(results, capsys):
    put(results, image_log(0, [98.0]))
    put(results, image_log(1, [50.0]), name="cnn-fc-published-s2.jsonl")
    put(results, image_log(3, [50.0]), folder="kmnist")
    put(results, image_log(0, [98.0], option="-again"))
    put(results, image_log(4, [50.0]), name="cnn-fc-published-s4.jsonl.part")
    wrong = image_log(5, [50.0])
    wrong[0]["run"] = "cnn-spinal6x8-published-s5"
    put(results, wrong)
    run(results)
    errors = capsys.readouterr().err
    for words in ("the log of run cnn-fc-published-s1 has the file name cnn-fc-published-s2",
                  "lies in the folder kmnist",
                  "cnn-fc-published-again-s0.jsonl:1: duplicate of logs/mnist/cnn-fc-published-s0.jsonl",
                  "unfinished run", "the name does not fit the settings"):
        assert words in errors
    assert len(errors.splitlines()) == 5 and cell(results)["runs"] == "1" and cell(results)["mean"] == "98.000"


def survives(content):
    """Run the aggregator on one log with this content beside a good one; the good one must be counted."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        put(results, image_log(0, [98.0]))
        (results / "logs" / "mnist" / "cnn-fc-published-s1.jsonl").write_bytes(content)
        assert run(results) == 0
        assert cell(results)["runs"] in ("1", "2")


PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(strategies.binary(max_size=300))
def test_arbitrary_bytes_never_give_a_traceback(content):
    survives(content)


JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats()
    | strategies.text(strategies.characters(exclude_categories=())),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(), inner, max_size=3),
    max_leaves=5)


@PROPERTY
@given(strategies.data())
def test_mutated_logs_never_give_a_traceback(data):
    lines = json.loads(json.dumps(image_log(1, [98.0])))  # a copy: the mutation must not reach the other tests
    record = lines[data.draw(strategies.integers(0, len(lines) - 1))]
    nested = [value for value in record.values() if isinstance(value, dict) and value]
    record = data.draw(strategies.sampled_from([record, *nested]))
    key = data.draw(strategies.sampled_from(sorted(record)))
    if data.draw(strategies.booleans()):
        del record[key]
    else:
        record[key] = data.draw(JSON)
    survives(text_of(lines).encode())


# ---- Table I ----

def test_regression_counts_noise_shapes_apart_whatever_departures_say(results):
    for seed in range(5):
        put(results, regression_log(seed, minimum=0.0008 + seed * 1e-4))
        put(results, regression_log(seed, minimum=0.0007 + seed * 1e-4, head="spinal"))
        put(results, regression_log(seed, minimum=0.0035, noise="broadcast", departures=["noise"] * (seed % 2)))
        put(results, regression_log(seed, protocol="corrected", clean=0.002 + seed * 1e-4))
    assert run(results) == 0
    default, spinal = table(results, "table1", function="sum")
    assert (default["runs"], default["broadcast_runs"], default["corrected_runs"]) == ("5", "5", "5")
    spread = [default[f"minimum_200_{key}"] for key in ("median", "low", "high")]
    assert spread == ["1.000", "0.800", "1.200"] and default["broadcast_200_median"] == "3.500"
    assert default["corrected_clean_median"] == "2.200"
    assert default["verdict_100"] == default["verdict_200"] == "within our spread"  # 1.178, 0.887
    assert spinal["paper_winner"] == "Spinal" and spinal["spinal_wins"] == "Spinal in 5 of 5"
    assert "1.000† [0.800, 1.200]" in (results / "tables" / "table1.md").read_text(encoding="utf-8")
    assert not table(results, "other_runs")


def test_what_was_learnt_is_compared_with_the_constant_seed_by_seed_and_on_the_same_network(results):
    """A median, so that one bad seed decides nothing; 823 is the mean over seeds of what a constant scores."""
    for seed, clean in enumerate((0.5, 0.6, 0.3, 40.0, 0.9)):
        put(results, regression_log(seed, function="product", clean=clean))
        put(results, regression_log(seed, function="product", clean=clean / 2, head="spinal", minimum=0.002))
    run(results)
    default, spinal = table(results, "table1", function="product")
    assert (default["published_clean_median"], default["published_clean_high"]) == ("600.000", "40000.000")
    assert default["published_clean_better"] == "4 of 5" and spinal["published_clean_wins"] == "Spinal in 5 of 5"
    assert spinal["spinal_wins"] == "Spinal in 0 of 5" and default["constant"] == "668"


def test_regression_verdict_needs_five_seeds_and_says_which_side(results):
    for seed in range(5):
        put(results, regression_log(seed, minimum=0.002))
        if seed < 4:
            put(results, regression_log(seed, minimum=0.002, function="product"))
    run(results)
    assert table(results, "table1", function="sum")[0]["verdict_200"] == "outside: the paper below all our seeds"
    assert table(results, "table1", function="product")[0]["verdict_200"] == "not judged"


# ---- Output ----

def test_same_logs_give_the_same_bytes(results):
    for seed in range(3):
        put(results, image_log(seed, [97 + seed / 7]))
        put(results, spinal_log(seed, 97 + seed / 9))
        put(results, image_log(seed, [50 + seed], official=False, option="-data"))
        put(results, regression_log(seed, protocol="corrected"))
    (results / "logs" / "mnist" / "broken.jsonl").write_text("{")

    def written(hash_seed):
        command = [sys.executable, str(ROOT / "tools" / "report" / "make.py"), "--results-dir", str(results)]
        environment = {"PYTHONHASHSEED": hash_seed, "MPLCONFIGDIR": str(results.parent / "mpl")}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return {path.relative_to(results).as_posix(): path.read_bytes() for path in sorted(results.rglob("*"))
                if path.is_file() and "logs" not in path.parts}

    first, second = written("1"), written("2")
    assert first == second
    assert {"figures/training_curves.png", "figures/regression_curves.svg", "figures/forest.svg",
            "tables/table3.tex", "tables/tables.tex", "tables/README.md"} <= first.keys()
    reference = csv.DictReader((ROOT / "results/reference/tables/table2.csv").read_text(encoding="utf-8").splitlines())
    mean = next(row["mean"] for row in reference if (row["script"], row["head"]) == ("mnist", "FC"))
    assert f"| 10 | {float(mean):.2f} ± ".encode() in first["tables/README.md"]  # the reference's beside one's own
    linked = [link for link in first if link.startswith("figures/")
              and f"../{link}".encode() not in first["tables/README.md"]]
    assert not linked


def test_check_writes_nothing_and_notices_an_edit(results, capsys):
    assert run(results, "--check") == 1 and not (results / "tables").exists()
    assert run(results) == 0 and run(results, "--check") == 0
    (results / "tables" / "table2.md").write_text("98.5")
    capsys.readouterr()
    assert run(results, "--check") == 1 and "table2.md is not what the logs give" in capsys.readouterr().out


def test_latex_escapes_and_has_equal_numbers_of_cells(results):
    put(results, image_log(0, [98.0]))
    run(results)
    for name in ("table1", "table1_learnt", "table2", "table3", "dropout", "vgg5_parts", "cnn_parts"):
        lines = (results / "tables" / f"{name}.tex").read_text(encoding="utf-8").splitlines()
        columns = lines[1].count("l", len(r"\begin{tabular}{"))
        bodies = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
        assert all(line.replace(r"\&", "").count("&") == columns - 1 for line in bodies)
        assert r"Wide\_ResNet-101\_2" in "".join(lines) or name != "table3"
        assert "".join(lines[1:]).count("%") == "".join(lines[1:]).count(r"\%")
        whole = (results / "tables/tables.tex").read_text(encoding="utf-8")
        assert rf"\fitted{{{name}.tex}}" in whole


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX on this machine")
def test_the_latex_of_all_tables_fits_its_pages(tmp_path):
    """The tables that ship, with all their rows, and nothing over the edge of a page."""
    for table in (ROOT / "results/reference/tables").glob("*.tex"):
        shutil.copy(table, tmp_path)
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"], cwd=tmp_path,
                          capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "(5 pages" in done.stdout


@pytest.mark.parametrize("name, spoil", [
    ("paper.csv", lambda path: path.unlink()), ("paper.csv", lambda path: path.write_bytes(b"\xff\xfe")),
    ("costs.csv", lambda path: path.write_text("a,b\n1,2\n")),
    ("regression_constants.csv", lambda path: path.write_text("function,seed\nsum,x\n"))])
def test_user_errors_are_one_sentence_and_exit_2(results, tmp_path, monkeypatch, capsys, name, spoil):
    for constants in ("paper.csv", "costs.csv", "regression_constants.csv"):
        shutil.copy(ROOT / "results" / constants, tmp_path)
    monkeypatch.setattr(aggregate, "HERE", tmp_path)
    assert run(results) == 0
    spoil(tmp_path / name)
    assert run(results) == 2 and run(tmp_path / "nowhere") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(error.startswith("error: ") for error in errors)


def test_two_thousand_logs_are_all_counted(results, capsys):
    lines = image_log(0, [98.0], network="vgg5", width=512, epochs=100)
    for seed in range(2000):
        lines[0] |= {"run": f"vgg5-fc-published-s{seed}", "seed": seed}
        put(results, lines)
    assert aggregate.main(["--results-dir", str(results)]) == 0 and cell(results, network="VGG-5")["runs"] == "2000"
    assert "2000 runs counted, 0 logs left out" in capsys.readouterr().out
