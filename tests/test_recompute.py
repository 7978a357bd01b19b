"""The main tables computed again, straight from the shipped logs, with nothing of tools/report.

Means, deviations, paired intervals, Holm's correction and verdicts must be those of the tables'
CSV. scipy's paired t test takes the place of the report's own formulas.
"""

import csv
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy
import pytest
from scipy import stats

REFERENCE = Path(__file__).resolve().parent.parent / "results/reference"
NETWORKS = {"cnn": "CNN", "vgg5": "VGG-5", "lenet": "CNN (tutorial)"}
SAME_IMAGES = {
    "dd8f9a0d0745f4fc": "f1d8a8caaf1d658b"
}  # labels of EMNIST letters, less 1 and as read


def table(name):
    with (REFERENCE / f"tables/{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def size_of(settings):
    """`FC`, or `6 x 8` of a Spinal head."""
    if settings["head"] == "fc":
        return "FC"
    return f"{settings['layers']} x {settings['width']}"


@pytest.fixture(scope="module")
def starts_and_ends():
    found = []
    for path in sorted((REFERENCE / "logs").glob("*/*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        start, end = json.loads(lines[0]), json.loads(lines[-1])
        if "selected_test_accuracy_pct" in end:
            found.append((start, end))
    return found


@pytest.fixture(scope="module")
def accuracies(starts_and_ends):
    """By all that tells two experiments of images apart here, and the seed: the accuracy."""
    found = defaultdict(dict)
    for start, end in starts_and_ends:
        settings, data = start["settings"], start["data"]
        sha256 = SAME_IMAGES.get(data["sha256"], data["sha256"])
        kind = settings["network"], settings["protocol"], settings["precision"]
        sizes = data["train"], settings["epochs"], sha256
        head = size_of(settings), settings.get("fc_dropout")
        found[(start["script"], *kind, *sizes, *head)][start["seed"]] = end[
            "selected_test_accuracy_pct"
        ]
    return found


def released(starts_and_ends, script, network, head):
    """Accuracies of a row of the paper as released, by seed."""
    return {
        start["seed"]: end["selected_test_accuracy_pct"]
        for start, end in starts_and_ends
        if (start["script"], start["settings"]["network"]) == (script, network)
        and size_of(start["settings"]) == head
        and start["settings"]["protocol"] == "published"
        and start["data"]["official"]
        and not start["departures"]
    }


def test_means_deviations_and_verdicts(starts_and_ends):
    seen = 0
    for row in table("table2"):
        name = {"CNN (tutorial)": "lenet"}.get(
            row["network"], row["network"].lower().replace("-", "")
        )
        head = row["head"].removeprefix("Spinal ")
        values = numpy.array(list(released(starts_and_ends, row["script"], name, head).values()))
        count = len(values)
        assert row["runs"] == str(count)
        if count < 3:
            continue
        mean, std = values.mean(), values.std(ddof=1)
        printed = (row["mean"], row["std"], row["best"])
        assert printed == (f"{mean:.3f}", f"{std:.3f}", f"{values.max():.2f}")
        spread = math.sqrt(1 / count + 1 / 10)
        tolerance = stats.t.ppf(0.9875, count - 1) * std * spread + 0.005
        assert row["tolerance"] == f"{tolerance:.3f}"
        seen += 1
        if not row["paper_mean"]:
            assert row["verdict"] == "not comparable"
            continue
        above = int((values > float(row["paper_best"]) + 0.005).sum())
        chance = math.comb(count, above) / math.comb(count + 10, above)
        assert row["above_best"] == f"{above} of {count}"
        apart = abs(mean - float(row["paper_mean"])) > tolerance or chance <= 0.025
        assert row["verdict"].startswith("yes: " if apart else "no, ")
    assert seen >= 8


def dropouts(row, settings_of_cnn):
    """(Spinal, FC) dropout of a comparison of the small CNN, from its words."""
    words = row["treatment"]
    if "no dropout" in words:
        return 0.0, 0.0
    if ", dropout " in words:
        return (float(words.split(", dropout ")[1].split()[0]),) * 2
    return settings_of_cnn


def pairs_of(row, accuracies):
    """The two heads' accuracies of a line of comparisons.csv, in the order of seeds."""
    network = {name: key for key, name in NETWORKS.items()}[row["network"]]
    protocol = "corrected" if row["treatment"].startswith("corrected") else "published"
    heads = dropouts(row, {"cnn": (0.0, 0.5), "vgg5": (0.5, 0.5), "lenet": (0.0, 0.0)}[network])
    found = []
    for size, dropout in zip((row["head"], "FC"), heads, strict=True):
        start = (row["script"], network, protocol, row["precision"], int(row["train"]))
        matches = [
            members
            for key, members in accuracies.items()
            if key[:6] == (*start, int(row["epochs"])) and key[7:] == (size, dropout)
        ]
        assert len(matches) == 1, row
        found.append(matches[0])
    seeds = sorted(found[0].keys() & found[1].keys())
    return [[side[seed] for seed in seeds] for side in found]


def test_differences_of_the_heads(accuracies):
    names = NETWORKS.values()
    rows = [row for row in table("comparisons") if row["network"] in names and row["pairs"] != "1"]
    judged = 0
    for row in rows:
        ours, theirs = pairs_of(row, accuracies)
        assert row["pairs"] == str(len(ours))
        assert float(row["fc_mean"]) == pytest.approx(numpy.mean(theirs), abs=6e-4)
        if len(ours) < 3:
            assert row["p"] == ""
            continue
        test = stats.ttest_rel(ours, theirs)
        wide, narrow = test.confidence_interval(0.95), test.confidence_interval(0.9)
        got = [float(row[key]) for key in ("difference", "low", "high", "low90", "high90")]
        gain = numpy.mean(ours) - numpy.mean(theirs)
        assert got == pytest.approx([gain, *wide, *narrow], abs=6e-4)
        assert row["p"] == ("< 0.0001" if test.pvalue < 1e-4 else f"{test.pvalue:.4f}")
        assert float(row["correlation"]) == pytest.approx(
            numpy.corrcoef(ours, theirs)[0, 1], abs=6e-3
        )
        judged += 1
    assert judged >= 45


def test_the_identity_and_holms_decisions(accuracies):
    """As released = what FC gains without its dropout + what is left; Holm over what is left."""
    comparisons = {
        (row["script"], row["head"], row["treatment"]): row
        for row in table("comparisons")
        if (row["network"], row["precision"], row["epochs"]) == ("CNN", "fp32", "8")
    }
    rows, p_values = table("identity"), []
    for row in rows:
        key = row["script"], row["head"]
        spinal, fc = pairs_of(comparisons[(*key, "as released")], accuracies)
        same, bare = pairs_of(comparisons[(*key, "as released, no dropout")], accuracies)
        assert spinal == same
        parts = [
            numpy.subtract(*pair).mean() for pair in ((spinal, fc), (bare, fc), (spinal, bare))
        ]
        names = ("released_difference", "gain_difference", "left_difference")
        assert [float(row[name]) for name in names] == pytest.approx(parts, abs=6e-4)
        assert parts[0] == pytest.approx(parts[1] + parts[2])
        p_values.append(stats.ttest_rel(spinal, bare).pvalue)
    order = numpy.argsort(p_values)
    steps = numpy.array(p_values)[order] * numpy.arange(len(p_values), 0, -1)
    adjusted = numpy.empty(len(p_values))
    adjusted[order] = numpy.minimum(numpy.maximum.accumulate(steps), 1)
    for row, p in zip(rows, adjusted, strict=True):
        better = "Spinal better" if float(row["left_difference"]) > 0 else "FC better"
        assert row["decision"] == (better if p < 0.05 else "undecided")
        assert row["p_holm"] == ("< 0.0001" if p < 1e-4 else f"{p:.4f}")
    assert len(rows) == 10


# ---- The tuned heads ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tuned_runs():
    """By script, head, dropout, rate and seed: held-out and test accuracy of the reported epoch."""
    found = {}
    for path in (REFERENCE / "tuned_heads/logs").glob("*/*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        start, end = json.loads(lines[0]), json.loads(lines[-1])
        settings, data = start["settings"], start["data"]
        assert data["verified"] and (data["train"], data["heldout"]) == (55_000, 5_000), path
        assert settings["protocol"] == "corrected" and settings["epochs"] == 8, path
        assert end["outcome"] == "finished", path
        head = settings["head"], settings["layers"], settings["width"]
        choice = settings["fc_dropout"], settings["learning_rate"]
        values = end["best_heldout_accuracy_pct"], end["selected_test_accuracy_pct"]
        found[(start["script"], head, *choice, start["seed"])] = values
    return found


def test_the_primary_family_of_the_tuned_heads(tuned_runs):
    """Held-out images choose each head's setting; four paired t tests and Holm over them."""
    scripts = {"MNIST": "mnist", "Fashion-MNIST": "fashion_mnist"}
    heads = {"FC 50": ("fc", 1, 50), "FC 26": ("fc", 1, 26), "Spinal 6 x 8": ("spinal", 6, 8)}
    best = {}
    for script in scripts.values():
        for name, head in heads.items():
            scores = {}
            for choice in [(p, rate) for p in (0.0, 0.25) for rate in (0.01, 0.03, 0.1)]:
                pair = [tuned_runs[(script, head, *choice, seed)][0] for seed in (100, 101)]
                scores[choice] = round(sum(pair) / 2, 6)
            best[script, name] = min(x for x, y in scores.items() if y == max(scores.values()))
    rows = [row for row in table("tuned_heads") if row["family"] == "primary"]
    names = [(row["dataset"], row["heads"]) for row in rows]
    assert names == [
        (name, f"Spinal 6 x 8 - {fc}") for name in scripts for fc in ("FC 50", "FC 26")
    ]
    p_values = []
    for row in rows:
        script, seeds = scripts[row["dataset"]], range(200, 200 + int(row["pairs"]))
        assert row["pairs"] in ("20", "25", "30")
        ours, theirs = (
            [tuned_runs[(script, heads[name], *best[script, name], seed)][1] for seed in seeds]
            for name in row["heads"].split(" - ")
        )
        test = stats.ttest_rel(ours, theirs)
        numbers = numpy.subtract(ours, theirs).mean(), *test.confidence_interval(0.95)
        printed = [float(row[key]) for key in ("difference", "low", "high")]
        assert printed == pytest.approx(numbers, abs=6e-4)
        p_values.append(test.pvalue)
    for row, p in zip(rows, p_values, strict=True):
        larger = sorted(p_values, reverse=True)
        # The smallest p times 4, the next one times 3, ..., and never below a smaller p's.
        adjusted = min(1.0, max((k + 1) * x for k, x in enumerate(larger) if x <= p))
        assert row["p_holm"] == ("< 0.0001" if adjusted < 1e-4 else f"{adjusted:.4f}")
        left, right = row["heads"].split(" - ")
        better = left if float(row["difference"]) > 0 else right
        assert row["decision"] == (f"{better} better" if adjusted < 0.05 else "undecided")
