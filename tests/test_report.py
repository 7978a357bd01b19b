"""tools/report: logs of all schemas are read, checked and put where they belong; pages follow."""

import base64
import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from conftest import ROOT, load_script

sys.path.insert(0, str(ROOT / "tools"))
import measure_costs
import measure_gradients
from report import (
    audit,
    claims,
    costs,
    evidence,
    gradients,
    inference,
    make,
    names,
    pages,
    rules,
    texts,
)
from report.logs import BadLog, read_log, read_logs
from report.paper import read_lines, read_paper
from report.settings import common_settings

REFERENCE, RESULTS = ROOT / "results/reference", ROOT / "results"
PAPER = read_paper(RESULTS / "paper.csv")
COSTS = costs.read_costs(RESULTS / "costs.csv")
SETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "kmnist": "Kuzushiji-MNIST"}
PROVENANCE = {
    "script_sha256": "0123456789abcdef",
    "device": "cpu",
    "device_name": "test",
    "threads": 1,
    "versions": {"torch": "2.15.0"},
}


CHOICES = {
    "network": "cnn",
    "head": "fc",
    "layers": 1,
    "width": 50,
    "protocol": "published",
    "epochs": 8,
    "batch_size": 64,
    "learning_rate": 0.01,
    "optimizer": "SGD",
    "momentum": 0.5,
    "rate_rule": "constant",
    "precision": "fp32",
    "limit": None,
    "fc_dropout": 0.5,
}


def image_start(seed, schema, script, option, changes):
    """The first line. changes: of settings and data, departures, provenance; label: of the head."""
    data = {"train": 60000, "heldout": 0, "test": 10000, "sha256": "06b0d1f124c4e5fa"}
    data |= {"official": True, "verified": True}
    data |= {key: changes.pop(key) for key in list(data) if key in changes}
    if schema < 3:
        data.pop("verified")
    start = {"event": "start", "schema": schema, "script": script, "seed": seed, "data": data}
    start |= {"departures": changes.pop("departures", []), "parameters": 21840}
    start |= {"provenance": PROVENANCE | changes.pop("provenance", {}), "fc_multiplications": 16500}
    head = changes.pop("label", "fc")
    choices = {"dataset": SETS.get(script, script)} | CHOICES | changes
    corrected = choices["protocol"] == "corrected"
    choices.setdefault("selection", "heldout" if corrected else "last")
    if choices["head"] == "spinal":
        head = f"spinal{choices['layers']}x{choices['width']}"
    run = f"{choices['network']}-{head}-{choices['protocol']}{option}-s{seed}"
    return start | {"settings": choices, "run": run}


def image_log(seed=0, accuracy=98.0, schema=3, script="mnist", option="", **changes):
    """Lines of a run whose last epoch is reported."""
    start = image_start(seed, schema, script, option, changes)
    choices = start["settings"]
    split = "heldout" if choices["selection"] == "heldout" else "test"
    curve = [90.0] * (choices["epochs"] - 1) + [accuracy]
    lines = [
        {"event": "epoch", "epoch": epoch, "learning_rate": 0.01, "train_loss": 0.5}
        | {f"{split}_loss": 0.4, f"{split}_accuracy_pct": value, "seconds": 1.5}
        for epoch, value in enumerate(curve, 1)
    ]
    best = max(curve)
    end = {"event": "end", "outcome": "finished", "epochs": len(curve), "seconds": 12.0}
    end |= {"best_epoch": curve.index(best) + 1, f"best_{split}_accuracy_pct": best}
    end |= {"last_test_accuracy_pct": accuracy, "selected_epoch": len(curve)}
    end |= {"selected_test_accuracy_pct": accuracy}
    return [start, *lines, end]


def spinal_log(seed, accuracy, **changes):
    defaults = {"head": "spinal", "layers": 6, "width": 8, "fc_dropout": 0.0}
    return image_log(seed, accuracy, **(defaults | changes))


def regression_log(seed=0, minimum=0.001, head="fc", function="sum", noise="column", **changes):
    """Lines of a run of Table I whose smallest last-batch loss stands in epoch 50."""
    clean, protocol = changes.get("clean", 0.002), changes.get("protocol", "published")
    layers, width = (2, 200) if head == "fc" else (6, 50)
    label = "fc" if head == "fc" else "spinal6x50"
    option = f"-{function}" + ("-broadcast" if noise == "broadcast" else "")
    lines = image_log(seed)
    choices = {"dataset": "synthetic", "function": function, "noise": noise, "network": "mlp"}
    choices |= {"head": head, "layers": layers, "width": width, "protocol": protocol}
    choices |= {"epochs": 200, "optimizer": "Adam", "selection": "minimum"}
    start = lines[0] | {"script": "synthetic_regression", "departures": []}
    start |= {"run": f"mlp-{label}-{protocol}{option}-s{seed}"}
    start |= {"settings": lines[0]["settings"] | choices}
    start["data"] = lines[0]["data"] | {"sha256": f"{seed:064d}"}
    epochs = [
        {"event": "epoch", "epoch": epoch, "learning_rate": 0.01, "train_loss": 0.1, "seconds": 0.1}
        | {"train_mse": 0.01, "last_batch_mse": minimum if epoch == 50 else 0.5}
        | {"clean_mse": clean * 200 / epoch}
        for epoch in range(1, 201)
    ]
    end = {"event": "end", "outcome": "finished", "epochs": 200, "seconds": 20.0}
    end |= {"min_last_batch_mse_100": minimum, "min_last_batch_mse_200": minimum}
    end |= {"train_mse": 0.01, "clean_mse": clean, "noise_variance": 0.04 / 12}
    return [start, *epochs, end]


def text_of(lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


def put(results, lines, folder=None, name=None):
    """Writes a log where the schema wants it (or elsewhere) and returns its path."""
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


@pytest.fixture(scope="module")
def shipped():
    return evidence.read_evidence(REFERENCE)


@pytest.fixture(autouse=True)
def no_figures_no_reference(monkeypatch, tmp_path):
    """Drawing and reading the reference logs take time; the tests that want them say so."""
    monkeypatch.setattr(make, "write_figures", lambda *_: None)
    monkeypatch.setattr(make, "REFERENCE", tmp_path / "no reference")


def run(results, *options):
    return make.main(["--results-dir", str(results), "--quiet", *options])


def table(results, name, **wanted):
    """Rows of tables/NAME.csv that have these values."""
    text = (results / "tables" / f"{name}.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def page(results):
    return (results / "tables/README.md").read_text(encoding="utf-8")


def cell(results, head="FC", dataset="MNIST", network="CNN"):
    (row,) = table(results, "table2", dataset=dataset, network=network, head=head)
    return row


def pair(results, treatment="as released", **wanted):
    (row,) = table(results, "comparisons", treatment=treatment, **wanted)
    return row


# ---- The paper's numbers -------------------------------------------------------------------------
def test_paper_csv_holds_every_row_of_the_paper():
    lines = read_lines(RESULTS / "paper.csv")
    counts = {name: sum(line["table"] == name for line in lines) for name in pages_of(lines)}
    wanted = {"I": 16, "II": 154, "II (v2 only)": 48, "III": 140}
    assert {name: counts[name] for name in wanted} == wanted
    assert {"IV", "claim", "notebook", "text"} < counts.keys()
    assert all(line["source"] for line in lines)
    spinal = [row for row in PAPER if row.head == "spinal"]
    assert all(row.layers and row.width for row in spinal)


def pages_of(lines):
    return dict.fromkeys(line["table"] for line in lines)


def test_without_logs_every_row_is_there_and_not_run_yet(results):
    assert run(results) == 0
    assert len(table(results, "table1")) == 8
    assert len(table(results, "table2")) == 62 and len(table(results, "table3")) == 40
    rows = table(results, "table2") + table(results, "table3")
    assert {row["verdict"] for row in rows} == {"not run yet"}
    assert cell(results)["paper_mean"] == "97.98"


# ---- Statistics, against hand-worked numbers -----------------------------------------------------
def test_hand_worked_row(results):
    """FC 98.0, 98.2, 98.4, Spinal 98.3, 98.4, 98.8: std 0.2, 0.265; differences 0.3, 0.2, 0.4."""
    for seed, (default, spinal) in enumerate([(98.0, 98.3), (98.2, 98.4), (98.4, 98.8)]):
        put(results, image_log(seed, default))
        put(results, spinal_log(seed, spinal))
    assert run(results) == 0
    default, spinal, difference = cell(results), cell(results, "Spinal 6 x 8"), pair(results)
    numbers = [default[key] for key in ("runs", "mean", "best", "std")]
    assert numbers == ["3", "98.200", "98.40", "0.200"]
    assert (spinal["std"], spinal["error_reduction"]) == ("0.265", "25.0")  # 0.4 / 1.6
    half = 4.302653 * 0.1 / math.sqrt(3)  # t(2) for 95 %, std of the differences 0.1
    assert float(difference["difference"]) == pytest.approx(0.3)
    assert float(difference["low"]) == pytest.approx(0.3 - half, abs=6e-4)
    narrow = 2.919986 * 0.1 / math.sqrt(3)
    assert float(difference["low90"]) == pytest.approx(0.3 - narrow, abs=6e-4)
    assert (difference["pairs"], difference["ahead"], difference["paper"]) == (
        "3",
        "3 of 3",
        "+0.34",
    )
    tolerance = 6.205347 * 0.2 * math.sqrt(1 / 3 + 1 / 10) + 0.005  # t(2) for 97.5 %
    assert float(default["tolerance"]) == pytest.approx(tolerance, abs=6e-4)
    assert default["verdict"] == "no, tolerance 0.82" and default["above_best"] == "2 of 3"
    assert cell(results, "Spinal 6 x 10")["verdict"] == "not run yet"


def test_verdicts_say_direction_distance_and_tolerance():
    judge = inference.judge_row
    assert judge([98.49, 98.5, 98.51], "97.98", "99", 0.01).startswith("yes: mean higher by 0.52")
    assert judge([63.0, 63.1, 63.2], "83.24", "84", 0.01).startswith("yes: mean lower by 20.14")
    assert judge([97.99] * 3, "97.98", "99", 0.01).startswith("no, ")  # the weight of one image
    assert judge([98.10] * 3, "97.98", "99", 0.01).startswith("yes: mean higher by 0.12")
    assert judge([98.0] * 2, "97.98", "99", 0.01) == "not judged"
    assert judge([98.0] * 3, "", "99", 0.01) == "not comparable"


def test_the_best_of_ten_tells_apart_where_the_mean_does_not():
    """Six of ten above the paper's best: C(10, 6) / C(20, 6) = 0.5 % in one population."""
    values = [97.0] * 4 + [98.5] * 6
    assert inference.above_best(values, "98.17") == (6, pytest.approx(210 / 38760))
    assert inference.judge_row(values, "97.98", "98.17", 0.01).startswith("yes: 6 of 10 above")
    assert inference.judge_row(values, "97.98", "98.60", 0.01).startswith("no, tolerance ")


def test_holm_by_hand():
    assert inference.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert inference.holm([0.9, 0.8]) == [1.0, 1.0] and inference.holm([]) == []


def test_the_detectable_difference_is_that_of_a_t_test_with_80_percent_power():
    """Five pairs see 1.68 standard deviations; the scatter of five is known within 0.60 to 2.87."""
    difference = inference.Difference(5, 0.0, -1, 1, -1, 1, 1.0, 1.0)
    middle, low, high = inference.detectable(difference)
    assert middle == pytest.approx(1.68, abs=0.01)
    assert (low / middle, high / middle) == pytest.approx((0.599, 2.874), abs=0.001)


@pytest.mark.parametrize("scale, expected", [(0.02, "yes (± 0.1)"), (0.2, "not shown (± 0.1)")])
def test_equivalence_wants_the_90_percent_interval_inside_the_margin(results, scale, expected):
    for seed, gain in enumerate((1, -1, 0)):
        put(results, image_log(seed, 98.0))
        put(results, image_log(seed, 98 + scale * gain, precision="bf16", option="-bf16"))
        put(results, image_log(seed, 90, script="kmnist"))
        put(results, image_log(seed, 90, script="kmnist", precision="bf16", option="-bf16"))
    run(results)
    rows = {row["dataset"]: row for row in table(results, "precision")}
    assert (rows["MNIST"]["alone"], rows["MNIST"]["equivalent"]) == ("no", expected)
    assert rows["Kuzushiji-MNIST"]["equivalent"] == "no margin"
    assert {row["reason"] for row in table(results, "other_runs")} == {"departs in precision"}


def test_a_few_pairs_are_not_judged_and_pairs_are_of_one_seed(results):
    for seed in (0, 1, 2):
        put(results, image_log(seed))
    for seed in (1, 2, 3):
        put(results, spinal_log(seed, 98.5))
    run(results)
    row = pair(results)
    assert (row["pairs"], row["difference"], row["p"]) == ("2", "0.500", "")


# ---- Which run is what ---------------------------------------------------------------------------
def test_the_lead_is_what_fc_gains_without_dropout_and_what_is_left(results):
    """Decisions are Holm's over all lines of this table, and no other."""
    noise = (0.0, 0.02, -0.02)
    for seed, (script, left) in [
        (s, x) for s in range(3) for x in (("mnist", -0.2), ("kmnist", 0.0))
    ]:
        kind = {"script": script, "official": script == "mnist"}
        bare = {"fc_dropout": 0.0, "option": "-drop0.0", "departures": ["fc_dropout"]}
        put(results, image_log(seed, 97.0, **kind))
        put(results, image_log(seed, 98.0 + noise[seed], **kind, **bare))
        put(results, spinal_log(seed, 98.0 + left, **kind))
    run(results)
    mnist, part = table(results, "identity")
    parts = [float(mnist[f"{name}_difference"]) for name in ("released", "gain", "left")]
    assert parts == pytest.approx([0.8, 1.0, -0.2]) and mnist["decision"] == "FC better"
    assert part["dataset"] == "Kuzushiji-MNIST, a part" and part["decision"] == "undecided"
    assert float(mnist["p_holm"]) == pytest.approx(2 * float(mnist["left_p"]), abs=2e-4)
    front = pages.reference_texts(evidence.read_evidence(results))["front page"]
    assert "lead reproduced; FC ahead without dropout" in front
    assert "lead on this part, too; it is gone without dropout" in front
    assert {row["runs"] for row in table(results, "table2", script="kmnist")} == {"0"}


def test_old_and_new_logs_of_one_experiment_stand_in_one_row(results):
    """Schema 2 left out what schema 3 writes; what no optimiser reads makes no difference."""
    vgg5 = {"network": "vgg5", "width": 512, "epochs": 100, "optimizer": "Adam"}
    for seed, schema in enumerate((2, 3, 3)):
        put(results, image_log(seed, schema=schema))
        lines = image_log(seed, schema=schema, **vgg5)
        if schema == 2:
            del lines[0]["settings"]["momentum"]
        put(results, lines)
    assert run(results) == 0
    assert cell(results)["runs"] == cell(results, network="VGG-5")["runs"] == "3"


def test_settings_of_shipped_logs_are_those_of_the_present_recipes(shipped):
    """In the common form, so that a new run joins the old ones. Old DenseNet runs are a guess."""
    checked = set()
    for log in shipped.rows.logs:
        kind = log.script, log.settings["network"], log.head, log.settings_text
        guessed = kind[1] == "densenet" and log.start["schema"] == 2
        if kind in checked or log.regression or guessed:
            continue
        checked.add(kind)
        script = load_script(names.script_path(log.script).with_suffix("").as_posix())
        changed = ["epochs", "limit", "precision", "batch_size"]
        changed += ["train_mode_epochs"] if "train_mode_epochs" in log.settings else []
        changed += ["weights", "image_size"] if "stages" in log.settings else ["fc_dropout"]
        if log.settings["head"] == "spinal":
            changed += ["layers", "width"]
        changes = {key: log.settings.get(key) for key in changed}
        choice = [log.settings[key] for key in ("network", "head", "protocol")]
        recipe = script.recipe_of(*choice, **changes)
        start = {"schema": 3, "settings": {"dataset": script.DATASET, **asdict(recipe)}}
        present = common_settings(start)
        for key in ("mean", "std"):  # measured where they are empty
            present[key] = present[key] or log.settings[key]
        assert present == log.settings, log.path
    assert len(checked) > 40


def test_corrected_runs_go_by_their_dropout_not_by_their_names(results):
    """Before schema 3 `corrected` had 0.5 in both heads, since then none; no departure, both."""
    for seed in range(3):
        for schema, p, accuracy in ((2, 0.5, 97.0), (3, 0.0, 98.0)):
            kind = {"protocol": "corrected", "fc_dropout": p, "schema": schema}
            kind |= {"option": f"-old{p}"}
            put(results, image_log(seed, accuracy, **kind))
            put(results, spinal_log(seed, accuracy + 0.1 + p, **kind))
            kind |= {"departures": ["fc_dropout"], "option": f"-asked{p}"}
        put(results, image_log(seed + 3, 98.0, **(kind | {"fc_dropout": 0.0})))
    run(results)
    assert pair(results, "corrected, no dropout")["difference"] == "0.100"
    assert pair(results, "corrected, dropout 0.5 in both")["difference"] == "0.600"
    assert "(6), no dropout; 97.00 ± 0.00 (3), dropout 0.5 in both" in page(results)


def test_the_letters_hash_of_labels_less_one_is_that_of_the_same_images(results):
    for seed, sha256 in enumerate(("dd8f9a0d0745f4fc", "f1d8a8caaf1d658b")):
        kind = {"script": "emnist_letters", "official": False, "sha256": sha256, "verified": False}
        put(results, image_log(seed, protocol="corrected", schema=2 + seed, fc_dropout=0, **kind))
    run(results)
    (row,) = table(results, "other_runs")
    assert (row["runs"], row["sha256"]) == ("2", "f1d8a8ca")


def test_fc_heads_of_another_width_are_compared_and_never_the_papers_row(results):
    for seed in range(3):
        put(results, image_log(seed, 97.0, fc_dropout=0.0, option="-drop0.0"))
        put(results, image_log(seed, 97.5, width=26, label="fc26", fc_dropout=0.0))
        put(results, spinal_log(seed, 98.0))
    run(results)
    found = {row["head"]: row["difference"] for row in table(results, "comparisons")}
    assert found["6 x 8 - FC 26"] == "0.500"
    assert "departs in width" in {row["reason"] for row in table(results, "other_runs")}


def test_unverified_data_are_called_so(results):
    put(results, image_log(0, script="kmnist", verified=False, sha256="a" * 16))
    put(results, image_log(0))
    run(results)
    assert "| Kuzushiji-MNIST (data not verified) | CNN, FC |" in page(results)
    (row,) = table(results, "table2", dataset="Kuzushiji-MNIST (data not verified)")
    assert row["runs"] == "1" and row["head"] == "FC"
    assert "| MNIST | CNN, FC |" in page(results)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"departures": ["epochs"], "epochs": 3}, "departs in epochs"),
        ({"official": False}, "a part of the official data, or others"),
        ({"limit": 1000}, "limit 1000"),
        ({"epochs": 3}, "3 epochs, the paper prints 8"),
        ({"network": "arch2"}, "the paper has no such row"),
        ({"layers": 2}, "the paper has no such row"),
        ({"precision": "bf16"}, "departs in precision"),
        ({"precision": "ieee"}, "departs in precision"),
    ],
)
def test_other_experiments_never_reach_a_row_of_the_paper(results, changes, reason):
    put(results, image_log(0, **changes))
    run(results)
    assert {row["runs"] for row in table(results, "table2")} == {"0"}
    (other,) = table(results, "other_runs")
    assert (other["runs"], other["reason"], other["train"]) == ("1", reason, "60000")


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"batch_size": 32}, "batch_size"),
        ({"sha256": "e" * 16}, "data.sha256"),
        ({"provenance": {"device": "cuda:1"}}, "device"),
    ],
)
def test_different_experiments_are_never_averaged(results, capsys, changes, key):
    for seed in range(3):
        put(results, image_log(seed))
        put(results, spinal_log(seed, 99.0))
    put(results, image_log(9, 50.0, **changes))
    put(results, spinal_log(9, 99.0))
    run(results)
    assert (cell(results)["runs"], cell(results)["mean"]) == ("3", "98.000")
    assert f"differs in {key}; left out" in capsys.readouterr().err
    assert "cnn-fc-published-s9.jsonl" in page(results)
    assert pair(results)["pairs"] == "3"


def test_another_text_and_processor_are_named_and_not_refused(results):
    for seed in range(2):
        other = {"script_sha256": f"{seed}" * 16, "device_name": f"processor {seed}"}
        put(results, image_log(seed, provenance=other))
    run(results)
    assert cell(results)["runs"] == "2"
    assert "device_name: processor 0 (1 runs), processor 1 (1 runs)" in page(results)


def test_a_run_that_moved_to_another_kind_of_device_is_of_neither(results):
    lines = image_log(0)
    moved = {"event": "resume", "epoch": 2, "provenance": PROVENANCE | {"device": "cuda:0"}}
    put(results, [*lines[:3], moved, *lines[3:]])
    put(results, image_log(1))
    put(results, image_log(2))
    logs, findings = read_logs(results / "logs")
    assert [log.device for log in logs] == ["cpu and cuda", "cpu", "cpu"] and not findings
    run(results)
    assert cell(results)["runs"] == "2"


def test_published_runs_that_held_images_out_and_what_caltech_prints(results):
    for script, network, epochs in (
        ("tl_caltech101", "wide_resnet101_2", 10),
        ("tl_cinic10", "vgg19_bn", 25),
    ):
        sizes = {"layers": 0, "width": 0} if "101" in script else {"layers": 2, "width": 4096}
        kind = {"network": network, "epochs": epochs, "script": script, "selection": "heldout"}
        lines = image_log(0, 95.0, **kind, **sizes)
        lines[-1] |= {"selected_test_accuracy_pct": 93.0, "last_test_accuracy_pct": 92.0}
        put(results, lines)
    assert run(results) == 0
    rows = {row["script"]: row["mean"] for row in table(results, "table3") if row["runs"] == "1"}
    assert rows == {"tl_caltech101": "95.000", "tl_cinic10": "93.000"}


def test_diverged_run_counts_with_its_accuracy(results):
    put(results, image_log(0, 98.0))
    lines = image_log(1, 10.0, epochs=3)
    lines[0]["settings"]["epochs"] = 8
    lines[-1] |= {"outcome": "diverged"}
    lines[-1] |= {"best_test_accuracy_pct": 90.0, "best_epoch": 1}
    lines[3]["train_loss"] = None
    put(results, lines)
    run(results)
    assert (cell(results)["runs"], cell(results)["mean"]) == ("2", "54.000")


# ---- Broken logs ---------------------------------------------------------------------------------
def damaged(kind):
    """Bytes of a damaged log and the words that the finding must hold."""
    lines = image_log(7, 50.0)
    start, epoch, end = lines[0], lines[1], lines[-1]
    text = text_of(lines)
    bits = base64.b64encode(bytes(1250)).decode()
    resume = {"event": "resume", "epoch": 1}
    without_data = {key: start[key] for key in start if key != "data"}
    settings_of = {"settings": start["settings"] | {"precision": "fp8"}}
    wrong = {
        "no end": (lines[:-1], ":9: no end line"),
        "gap": (lines[:3] + lines[4:], ":4: epoch 3 is missing"),
        "schema": ([start | {"schema": 4}, *lines[1:]], ":1: schema 4, this program reads"),
        "missing": ([without_data, *lines[1:]], ":1: data is missing"),
        "type": ([start, epoch | {"seconds": "1"}, *lines[2:]], ":2: seconds is not a finite"),
        "boolean": ([start | {"seed": False}, *lines[1:]], ":1: seed is not an integer"),
        "edited": (
            [*lines[:-1], end | {"selected_test_accuracy_pct": 99.9}],
            ":10: selected_test_accuracy_pct is 99.9, the epoch lines say 50.0",
        ),
        "bits": ([*lines[:-1], end | {"test_correct": bits}], ":10: test_correct does not give"),
        "resume": ([start, epoch, resume, *lines[2:]], ":3: provenance is missing"),
        "precision": ([start | settings_of, *lines[1:]], ":1: settings.precision is none of"),
        "more": ([*lines, epoch], ":11: lines after the end line"),
        "name": ([start | {"seed": 8}, *lines[1:]], ":1: the name of the run does not fit"),
    }
    texts = {
        "cut": (text[:-30], ":10: not JSON (last line, the log may be cut off)"),
        "nan": (text.replace('"train_loss": 0.5', '"train_loss": NaN', 1), ":2: not JSON"),
        "infinite": (
            text.replace('_pct": 90.0', '_pct": 1e999', 1),
            ":2: test_accuracy_pct is not",
        ),
        "foreign": ('{"loss": 3}\n[1, 2]\n', ":1: not a log line"),
        "deep": ("[" * 100_000, ":1: not JSON"),
        "empty": ("", ":1: empty file"),
    }
    if kind in wrong:
        changed, words = wrong[kind]
        return text_of(changed).encode(), words
    if kind in texts:
        return texts[kind][0].encode(), texts[kind][1]
    return b"\x89PNG\xff\xfe\x00", ":1: not UTF-8"


KINDS = "no end,gap,schema,missing,type,boolean,edited,bits,resume,precision,more,name"
KINDS += ",cut,nan,infinite,foreign,deep,empty,binary"


@pytest.mark.parametrize("kind", KINDS.split(","))
def test_broken_log_is_named_with_its_line_and_left_out(results, capsys, kind):
    put(results, image_log(0))
    path = put(results, image_log(7, 50.0))
    content, words = damaged(kind)
    path.write_bytes(content)
    assert run(results) == 0
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{path.as_posix()}{words}" in error and error.endswith("; left out")
    assert (cell(results)["runs"], cell(results)["mean"]) == ("1", "98.000")
    assert path.name in page(results)


def test_renamed_moved_duplicate_and_unfinished_logs_are_left_out(results, capsys):
    put(results, image_log(0))
    put(results, image_log(1, 50.0), name="cnn-fc-published-s2.jsonl")
    put(results, image_log(3, 50.0), folder="kmnist")
    put(results, image_log(0, option="-again"))
    put(results, image_log(4, 50.0), name="cnn-fc-published-s4.jsonl.part")
    run(results)
    errors = capsys.readouterr().err
    for words in (
        "the log of run cnn-fc-published-s1 has the file name cnn-fc-published-s2",
        "lies in the folder kmnist",
        "cnn-fc-published-again-s0.jsonl:1: duplicate of logs/mnist/cnn-fc-published-s0.jsonl",
        "unfinished run",
    ):
        assert words in errors
    assert len(errors.splitlines()) == 4 and cell(results)["runs"] == "1"


def test_bits_resumes_and_linked_folders_are_read(results, tmp_path):
    lines = image_log(0, 98.0)
    right = bytes([255] * 1225) + bytes(25)  # 9,800 of 10,000
    lines[-1]["test_correct"] = base64.b64encode(right).decode()
    resume = {"event": "resume", "epoch": 1, "provenance": PROVENANCE}
    elsewhere = tmp_path / "elsewhere"
    put(elsewhere, [*lines[:2], resume, *lines[2:]])
    (results / "logs").mkdir()
    os.symlink(elsewhere / "logs/mnist", results / "logs/mnist")
    os.symlink(results / "logs", elsewhere / "logs/mnist/loop")  # a circle is walked once
    logs, findings = read_logs(results / "logs")
    assert len(logs) == 1 and not findings and len(logs[0].provenances) == 2


def test_right_images_give_the_error_of_the_test_set(results):
    """Half of 10,000 images differ, as often one way as the other: 100 * 0.5**0.5 / 100 points."""
    for seed in range(3):
        for make_log, byte in ((image_log, 0b11110000), (spinal_log, 0b11001100)):
            lines = make_log(seed, 50.0)
            lines[-1]["test_correct"] = base64.b64encode(bytes([byte] * 1250)).decode()
            put(results, lines)
    run(results)
    assert "where logs tell: MNIST, CNN, 6 × 8, as released: 0.71." in page(results)


JSON = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(strategies.characters(exclude_categories=())),
    lambda inner: (
        strategies.lists(inner, max_size=3)
        | strategies.dictionaries(strategies.text(), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(strategies.data())
def test_arbitrary_and_mutated_logs_are_read_or_refused(tmp_path_factory, data):
    """Never a traceback, neither in the reader nor in what sorts the logs."""
    lines = json.loads(json.dumps(image_log(1)))  # a copy
    record = lines[data.draw(strategies.integers(0, len(lines) - 1))]
    nested = [value for value in record.values() if isinstance(value, dict) and value]
    record = data.draw(strategies.sampled_from([record, *nested]))
    key = data.draw(strategies.sampled_from(sorted(record)))
    record[key] = data.draw(JSON)
    content = text_of(lines).encode("utf-8", "surrogatepass")
    if data.draw(strategies.booleans()):
        content = data.draw(strategies.binary(max_size=200))
    folder = tmp_path_factory.mktemp("logs") / "mnist"
    folder.mkdir()
    path = folder / "cnn-fc-published-s1.jsonl"
    path.write_bytes(content)
    try:
        read_log(path, "log", "mnist")
    except BadLog:
        return
    put(folder.parent.parent, image_log(0))
    shutil.copy(path, folder.parent.parent / "logs/mnist")
    found = evidence.read_evidence(folder.parent.parent)
    assert make.encoded("".join(pages.user_texts(found, found).values()))


# ---- Table I -------------------------------------------------------------------------------------
def test_regression_tells_noises_apart_and_compares_with_the_constant(results):
    for seed in range(5):
        put(results, regression_log(seed, 0.0008 + seed * 1e-4))
        put(results, regression_log(seed, 0.0007 + seed * 1e-4, head="spinal"))
        put(results, regression_log(seed, 0.0035, noise="broadcast"))
        put(results, regression_log(seed, protocol="corrected", clean=0.002 + seed * 1e-4))
        put(results, regression_log(seed, function="product", clean=(0.5, 0.6, 0.3, 40, 0.9)[seed]))
        if seed < 4:
            put(results, regression_log(seed, 0.002, function="sinsum"))
    assert run(results) == 0
    default, spinal = table(results, "table1", function="sum")
    runs = [default[key] for key in ("runs", "broadcast_runs", "corrected_runs")]
    spread = [default[f"minimum_200_{key}"] for key in ("median", "low", "high")]
    assert (runs, spread) == (["5", "5", "5"], ["1.000", "0.800", "1.200"])
    assert default["broadcast_200_median"] == "3.500"
    assert default["corrected_clean_median"] == "2.200"
    assert default["verdict_200"] == "within our range"  # 0.887
    assert (spinal["paper_winner"], spinal["spinal_wins"]) == ("Spinal", "Spinal in 5 of 5")
    assert "1.000† [0.800, 1.200]" in page(results) and not table(results, "other_runs")
    product = table(results, "table1", function="product", head="FC")[0]
    assert (product["released_clean_better"], product["constant"]) == ("4 of 5", "668")
    assert product["verdict_200"] == "paper above all our seeds"
    assert table(results, "table1", function="sine of sum")[0]["verdict_200"] == "not judged"


# ---- Output --------------------------------------------------------------------------------------
def test_same_logs_give_the_same_bytes_and_every_figure_is_linked(results):
    for seed in range(3):
        bare = {"fc_dropout": 0.0, "option": "-drop0.0", "departures": ["fc_dropout"]}
        put(results, image_log(seed, 97 + seed / 7))
        put(results, image_log(seed, 97.5 + seed / 7, **bare))
        put(results, spinal_log(seed, 97 + seed / 9))
        put(results, regression_log(seed, protocol="corrected"))
        put(results, regression_log(seed, protocol="corrected", head="spinal"))
    (results / "logs/mnist/broken.jsonl").write_text("{")

    def written(hash_seed):
        command = [sys.executable, ROOT / "tools/report/make.py", "--results-dir", results]
        environment = {"PYTHONHASHSEED": hash_seed, "MPLCONFIGDIR": str(results.parent / "mpl")}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        found = [path for path in sorted(results.rglob("*")) if path.is_file()]
        names = {path.relative_to(results).as_posix(): path.read_bytes() for path in found}
        return {name: text for name, text in names.items() if not name.startswith("logs")}

    first = written("1")
    assert first == written("2")
    figures = {name for name in first if name.endswith(".png")}
    drawn = {"dropout", "forest", "training_curves", "differences", "regression_curves"}
    assert figures == {f"figures/{name}.png" for name in drawn}
    mine = first["tables/README.md"].decode()
    assert all(f"(../{name})" in mine for name in figures)
    reference = csv.DictReader((REFERENCE / "tables/table2.csv").read_text().splitlines())
    mean = next(row["mean"] for row in reference if row["script"] == "mnist")
    assert f"| {float(mean):.2f} ± " in mine  # the reference's beside one's own


def test_learning_curves_lie_beside_the_logs_of_ones_own_runs(results):
    """And one data set is enough for a figure whose words fit."""
    for seed in range(3):
        put(results, image_log(seed, 97 + seed / 7, script="optdigits"))
        put(results, spinal_log(seed, 97.5, script="optdigits"))
    put(results, regression_log(0, departures=["epochs"]))
    command = [sys.executable, ROOT / "tools/report/make.py", "--results-dir", results]
    subprocess.run(command, check=True, capture_output=True)
    for script in ("optdigits", "synthetic_regression"):
        assert (results / "logs" / script / "curves.png").is_file()
        assert f"[{script}](../logs/{script}/curves.png)" in page(results)
    svg = (results / "figures/forest.svg").read_text(encoding="utf-8")
    assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) > 350


def test_released_vgg_19_is_run_once_for_both_rows(results):
    changes = {"script": "tl_svhn", "network": "vgg19_bn", "layers": 2, "width": 4096}
    for seed in range(3):
        put(results, image_log(seed, 94.0 + seed / 10, epochs=25, **changes))
    run(results)
    rows = table(results, "table3", script="tl_svhn", network="VGG-19_bn")
    assert [row["mean"] for row in rows] == ["94.100", "94.100"]
    assert page(results).count("94.10 ± 0.10 (3) ‡") == 1  # the Spinal row's


def test_check_writes_nothing_and_notices_an_edit(results, capsys):
    assert run(results, "--check") == 1 and not (results / "tables").exists()
    assert run(results) == 0 and run(results, "--check") == 0
    (results / "tables/table2.md").write_text("98.5")
    capsys.readouterr()
    assert run(results, "--check") == 1
    assert "table2.md is not what the logs give" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, text",
    [
        ("paper.csv", None),
        ("paper.csv", b"\xff\xfe"),
        ("costs.csv", b"a,b\n1,2\n"),
        ("claims.csv", b"a,b\n1,2\n"),
        ("regression_constants.csv", b"function,seed\nsum,x\n"),
    ],
)
def test_user_errors_are_one_sentence_and_exit_2(
    results, tmp_path, monkeypatch, capsys, name, text
):
    for path in RESULTS.glob("*.csv"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(make, "RESULTS", tmp_path)
    assert run(results) == 0
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_bytes(text)
    assert run(results) == 2 and run(tmp_path / "nowhere") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(error.startswith("error: ") for error in errors)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX on this machine")
def test_the_latex_of_all_tables_fits_its_pages(tmp_path):
    """The tables that ship, with all their rows, and nothing over the edge of a page."""
    for path in (REFERENCE / "tables").glob("*.tex"):
        shutil.copy(path, tmp_path)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout


def test_latex_escapes_and_has_equal_numbers_of_cells():
    for name in pages.IN_LATEX:
        lines = (REFERENCE / f"tables/{name}.tex").read_text(encoding="utf-8").splitlines()
        columns = lines[1].count("l", len(r"\begin{tabular}{"))
        bodies = [line.replace(r"\&", "") for line in lines if line.endswith(r"\\")]
        assert columns <= 8 and all(line.count("&") == columns - 1 for line in bodies), name
        text = "".join(lines[1:])
        assert text.count("%") == text.count(r"\%")
        whole = (REFERENCE / "tables/tables.tex").read_text(encoding="utf-8")
        assert rf"\fitted{{{name}.tex}}" in whole


# ---- The report that ships -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def made(shipped):
    return make.texts_of(shipped, reference=True)


def test_committed_report_is_what_the_logs_give(made, shipped):
    """Texts, not figures, whose bytes depend on the version of matplotlib."""
    assert make.differing_files(REFERENCE, made) == [] and shipped.findings == []


def test_the_page_has_the_order_of_mlrc_and_tables_that_fit(made):
    order = ("1. **As released**", "## Scope", "## Method", "## Results", "### Table II")
    order += ("## What was easy", "## What was difficult", "## Communication", "## Logs")
    places = [made["README.md"].index(words) for words in order]
    assert places == sorted(places)
    for name in ("README.md", "../audit.md"):
        for line in made[name].splitlines():
            assert not line.startswith("| ---") or line.count("---") <= 8, (name, line)
    assert "{{" not in "".join(made.values())


def test_every_figure_is_shown_and_described(made):
    shown = set(re.findall(r"\(figures/(\w+)\.png\)", made["README.md"]))
    there = {path.stem for path in (REFERENCE / "figures").glob("*")}
    assert shown == there - {"heads"}  # which README.md shows
    for name in shown - {"augmentation_samples"}:
        paragraph = made["README.md"].split(f"(figures/{name}.svg)")[1].split("\n\n")[0]
        assert "What one sees" in paragraph and len(paragraph) < 1500
        svg = (REFERENCE / f"figures/{name}.svg").read_text(encoding="utf-8")
        assert len(svg) < 150_000 and "<dc:date>" not in svg


@pytest.mark.parametrize("name", ["reference/README.md", "audit.md"])
def test_links_lead_somewhere(name):
    path = RESULTS / name
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert link.startswith("http") or (path.parent / link).exists(), link


def test_no_sentence_is_stronger_than_its_table(made, shipped):
    rows = list(csv.DictReader(made["tables/identity.csv"].splitlines()))
    for decision, words in (("Spinal better", "for the Spinal head"), ("FC better", "for the FC")):
        count = sum(row["decision"] == decision for row in rows) or "none"
        assert f"{count} {words}" in made["README.md"]
    for item in shipped.comparisons:
        for ours, theirs in item.pairs:
            same = ("protocol", "precision", "epochs", "dataset", "batch_size", "limit")
            assert all(ours.settings.get(key) == theirs.settings.get(key) for key in same)
            assert (ours.seed, ours.data_key) == (theirs.seed, theirs.data_key)
    for logs in shipped.rows.runs.values():
        assert all(log.settings["precision"] == "fp32" and log.data["official"] for log in logs)


def test_the_withdrawn_vgg5_runs_are_evidence_again(made):
    """Commit d1fc327 left them out for the age of their text; an interval favours Spinal."""
    rows = csv.DictReader(made["tables/comparisons.csv"].splitlines())
    found = {
        row["precision"]: row for row in rows if row["dataset"] == "Fashion-MNIST, 6,000 images"
    }
    assert (found["fp32"]["pairs"], found["bf16"]["pairs"]) == ("6", "7")
    ends = [found["fp32"][key] for key in ("difference", "low", "high")]
    assert ends == ["1.789", "0.296", "3.282"] and "+1.79 [+0.30, +3.28]" in made["README.md"]


def test_commands_name_scripts_and_flags_that_exist(made):
    lines = made["tables/commands.txt"].splitlines()
    assert len(lines) >= 40
    for line in lines:
        text = (ROOT / line.split()[1]).read_text(encoding="utf-8")
        flags = re.findall(r"--([a-z-]+)", line)
        assert all(f'"--{flag}"' in text or f'"{flag}"' in text for flag in flags), line


def test_the_rules_in_words_are_the_rules_in_numbers(made):
    text = " ".join(made["README.md"].split())
    assert rules.MARGINS == {"MNIST": 0.1, "Fashion-MNIST": 0.3}
    assert "0.1 points on MNIST and 0.3 on Fashion-MNIST" in text
    assert rules.FEWEST_RUNS == 3 and "at least 3 runs" in text and "from 3 pairs on" in text
    assert rules.FEWEST_SEEDS == 5 and "at least 5 seeds" in text and rules.PAPER_RUNS == 10
    assert rules.ROW_CONFIDENCE == 0.975 and "97.5 % prediction interval" in text
    assert rules.CONFIDENCE == 0.95 and rules.POWER == 0.8 and "80 % power" in text


@pytest.mark.parametrize("folders", [(), ("mnist",), ("synthetic_regression",), ("tabular",)])
def test_any_subset_of_the_logs_gives_a_report(tmp_path, folders):
    (tmp_path / "logs").mkdir()
    for folder in folders:
        shutil.copytree(REFERENCE / "logs" / folder, tmp_path / "logs" / folder)
    found = pages.reference_texts(evidence.read_evidence(tmp_path))
    assert "not run yet" in found["README.md"] and "{{" not in found["README.md"]
    shown = set(re.findall(r"\(figures/(\w+)\.png\)", found["README.md"]))
    assert ("forest" in shown) == ("mnist" in folders)


# ---- texts.csv: which text wrote a log -----------------------------------------------------------
def test_every_log_has_its_text_in_the_history(shipped):
    lines = texts.read_texts()
    counts = {(line["script"], line["script_sha256"]): int(line["logs"]) for line in lines}
    logs = shipped.rows.logs + list(shipped.tuned.logs.values() if shipped.tuned else [])
    assert counts == dict(texts.text_counts(logs))
    try:
        shallow = texts.git("rev-parse", "--is-shallow-repository").strip()
    except (names.UserError, OSError):
        pytest.skip("needs git and the repository: this is an unpacked archive")
    if shallow != b"false":
        pytest.skip("needs the whole history: this is a shallow clone (git fetch --unshallow)")
    for line in lines:
        text = texts.git("show", f"{line['commit']}:{line['path']}")
        assert texts.hash_of(text) == line["script_sha256"], line
        assert line["shown"]


def test_windows_line_ends_do_not_make_another_text():
    assert texts.hash_of(b"a\r\nb\r\n") == texts.hash_of(b"a\nb\n")


# ---- Cost, claims and audit ----------------------------------------------------------------------
@pytest.mark.parametrize(
    "line",
    [
        ("mnist", "cnn", "fc", None, None),
        ("mnist", "cnn", "spinal", 6, 8),
        ("fashion_mnist", "vgg5", "spinal", 4, 128),
        ("cifar10", "resnet18", "spinal", 4, 256),
        ("synthetic_regression", "mlp", "spinal", 6, 50),
        ("tl_cifar10", "vgg19_bn", "spinal", 4, 1024),
    ],
)
def test_costs_csv_is_what_the_networks_count(line):
    """One network of each kind; `make costs` counts all (20 s)."""
    found = measure_costs.cost(measure_costs.load_script(line[0]), *line)
    with (RESULTS / "costs.csv").open(encoding="utf-8", newline="") as stream:
        assert [str(value) for value in found] in list(csv.reader(stream))


def test_every_row_of_the_paper_has_a_cost():
    assert all(costs.of_row(COSTS, row) for row in PAPER)


def test_constants_are_those_of_the_fresh_samples(shipped):
    known = [[name, str(seed), f"{value:g}"] for (name, seed), value in shipped.constants.items()]
    assert [[str(value) for value in line] for line in measure_costs.constant_lines()] == known


def test_claims_are_recounted_and_their_printed_numbers_are_the_papers(shipped, made):
    printed = {line["value"].rstrip("kM") for line in read_lines(RESULTS / "paper.csv")}
    printed |= {value.rstrip("0").rstrip(".") for value in printed}
    for row in shipped.claims:
        for number in re.findall(r"\d+(?:\.\d+)?", row["printed"]):
            assert number in printed or row["printed"] == "6 of 8", row
        for number in re.findall(r"\d+\.\d+|\b\d+$", row["evidence"]):
            assert number in printed, row
    verdicts = list(csv.DictReader(made["tables/claims.csv"].splitlines()))
    found = {row["claim"]: row for row in verdicts}
    assert found["Regression: fewer multiplications"]["here"].startswith("counted: 35.48 %")
    assert all(row["verdict"] and row["here"] for row in verdicts)
    dear = [costs.Cost(*(*vars(cost).values(),)) for cost in COSTS]
    doubled = [
        costs.Cost(**(vars(cost) | {"multiplications": 2 * cost.multiplications}))
        if cost.head == "spinal"
        else cost
        for cost in dear
    ]
    assert claims.saved(doubled, "mnist/cnn", "6x8", "48.5")[1] == "does not hold"


def test_the_verdict_on_gradients_follows_the_numbers(shipped):
    lines = shipped.gradients
    assert {line["seeds"] for line in lines if line["layer"] == "50"} <= {str(n) for n in range(11)}
    told = gradients.gradients_verdict(lines)[1]
    assert told == "holds; at Table I's depth none vanishes in FC either"
    vanished = [
        line | {"relative_median": "1e-6"} if line["network"] == gradients.SPINAL else line
        for line in lines
    ]
    assert gradients.gradients_verdict(vanished)[1] == "does not hold"
    assert gradients.gradients_verdict([]) == ("not measured", "not tested")


def test_gradients_csv_is_what_the_networks_have(shipped):
    """Two seeds of one network within the range of ten; the whole file takes minutes."""
    recipe = measure_gradients.regression.recipe_of("fc", "published", function="sum")
    known = [line for line in shipped.gradients if line["network"] == "fc published"]
    (line,) = [x for x in known if (x["task"], x["epochs"], x["layer"]) == ("sum", "0", "1")]
    for seed in (0, 9):
        _, norms = next(measure_gradients.regression_run(recipe, seed))
        low, high = (float(line[f"relative_{end}"]) for end in ("low", "high"))
        assert 0.999 * low <= norms[0] / norms[1] <= 1.001 * high


def test_error_reductions_that_do_not_follow_are_found():
    found = {
        (row["dataset"], row["network"]): (row["printed"], row["recomputed"])
        for row in audit.reduction_rows(PAPER)
    }
    assert found["Bird225", "Wide_ResNet-101_2"] == ("11.1", "29.0")
    assert found["SVHN", "VGG-19_bn"] == ("18.28", "8.8") and len(found) == 6


@pytest.mark.skipif(not (ROOT.parent / "shared/spec").is_dir(), reason="needs ../shared/spec")
def test_every_quirk_of_the_specification_is_listed_and_no_other():
    listed = set()
    for quirk in audit.read_quirks(RESULTS / "quirks.csv"):
        name = None
        for part in re.split(r"[;,]\s*", quirk["number"].removeprefix("no number; ")):
            match = re.fullmatch(r"(?:(\w+) )?Q(\d+)", part)
            if match:
                name = match[1] or name
                listed.add((name, int(match[2])))
    pattern = re.compile(r"^\* \*\*Q(\d+)", re.MULTILINE)
    wanted = {
        (path.stem, int(number))
        for path in (ROOT.parent / "shared/spec").glob("*.md")
        for number in pattern.findall(path.read_text(encoding="utf-8"))
    }
    assert len(wanted) > 100 and listed == wanted


def test_each_difference_has_evidence_that_names_its_runs(made, shipped):
    quirks = audit.read_quirks(RESULTS / "quirks.csv")
    text = made["../audit.md"]
    assert all(quirk["number"] in text for quirk in quirks)
    assert re.search(r"\d+ of 80 runs as released", text)
    parts = PAPER, shipped.rows, [], COSTS
    with pytest.raises(names.UserError, match="does not know"):
        audit.audit_page(*parts, [quirks[0] | {"evidence": "hearsay"}])
    for words in ("that nobody reads", "mostly does nothing", "says nothing about"):
        assert words not in text
