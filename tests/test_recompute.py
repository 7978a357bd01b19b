"""Table II computed a second time, straight from the reference logs, with nothing of results/report.

Means, deviations, paired intervals, Holm's correction and verdicts must be those of the tables' CSV. The rules are
those that the report prints under "Rules"; scipy's paired t test takes the place of the report's own formulas.
"""

import csv
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy
import pytest
from scipy import stats

MARGINS = {"MNIST": 0.1, "Fashion-MNIST": 0.3}
REFERENCE = Path(__file__).resolve().parent.parent / "results/reference"


def table(name):
    with (REFERENCE / f"tables/{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def row_of(start):
    """(script, network, head, variant) of a run that may stand in a row of the paper, or nothing."""
    settings, departures = start["settings"], start["departures"]
    bare = settings["protocol"] == "corrected" and settings.get("fc_dropout") == 0 and "fc_dropout" in departures
    complete = start["data"]["official"] and not settings.get("limit") and settings["precision"] == "fp32"
    if departures != ["fc_dropout"] * bare or not complete:
        return None
    head = "FC" if settings["head"] == "fc" else f"Spinal {settings['layers']} x {settings['width']}"
    return start["script"], settings["network"], head, settings["protocol"] + ", no dropout" * bare


@pytest.fixture(scope="module")
def accuracies():
    """(script, network, head, variant): {seed: accuracy}."""
    found = defaultdict(dict)
    for path in sorted((REFERENCE / "logs").glob("*/*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        start, end = json.loads(lines[0]), json.loads(lines[-1])
        if "selected_test_accuracy_pct" in end and (key := row_of(start)):
            found[key][start["seed"]] = end["selected_test_accuracy_pct"]
    return found


def network_of(row):
    return {"CNN (tutorial)": "lenet"}.get(row["network"], row["network"].lower().replace("-", ""))


def test_means_deviations_and_verdicts(accuracies):
    seen = 0
    for row in table("table2"):
        runs = accuracies.get((row["script"], network_of(row), row["head"], "published"), {})
        assert row["runs"] == str(len(runs))
        if len(runs) < 3:
            continue
        values = numpy.array(list(runs.values()))
        count, mean, std = len(values), values.mean(), values.std(ddof=1)
        assert (row["mean"], row["std"], row["best"]) == (f"{mean:.3f}", f"{std:.3f}", f"{values.max():.2f}")
        tolerance = stats.t.ppf(0.9875, count - 1) * std * math.sqrt(1 / count + 1 / 10) + 0.005
        assert row["tolerance"] == f"{tolerance:.3f}"
        seen += 1
        if not row["paper_mean"]:
            assert row["verdict"] == "not comparable"
            continue
        above = int((values > float(row["paper_best"]) + 0.005).sum())
        chance = math.comb(count, above) / math.comb(count + 10, above)
        assert row["above_best"] == f"{above} of {count}"
        apart = abs(mean - float(row["paper_mean"])) > tolerance or chance <= 0.025
        assert row["verdict"].startswith("told apart" if apart else "not told apart")
    assert seen >= 6


def test_corrected_columns(accuracies):
    for row in table("table2"):
        for prefix, variant in (("corrected", "corrected"), ("nodropout", "corrected, no dropout")):
            values = list(accuracies.get((row["script"], network_of(row), row["head"], variant), {}).values())
            assert row[f"{prefix}_runs"] == str(len(values))
            assert row[f"{prefix}_mean"] == (f"{numpy.mean(values):.3f}" if values else "")


def check_differences(rows, pairs_of, margin_of):
    """Every row's interval, equivalence and decisions, Holm's over the rows with three pairs or more."""
    judged, p_values = [], []
    for row in rows:
        ours, theirs = pairs_of(row)
        assert row["pairs"] == str(len(ours))
        if len(ours) < 3:
            assert row["decision"] == ("not judged" if ours else "not run yet")
            continue
        test = stats.ttest_rel(ours, theirs)
        wide, narrow = test.confidence_interval(0.95), test.confidence_interval(0.9)
        got = [float(row[key]) for key in ("difference", "low", "high")]
        assert got == pytest.approx([numpy.mean(ours) - numpy.mean(theirs), *wide], abs=6e-4)
        margin = margin_of(row)
        assert row["equivalent"].startswith("yes") == (-margin < narrow.low and narrow.high < margin)
        judged.append(row)
        p_values.append(test.pvalue)
    order = numpy.argsort(p_values)
    steps = numpy.array(p_values)[order] * numpy.arange(len(p_values), 0, -1)
    adjusted = numpy.empty(len(p_values))
    adjusted[order] = numpy.minimum(numpy.maximum.accumulate(steps), 1)
    for row, p, alone in zip(judged, adjusted, p_values):
        better = "Spinal better" if float(row["difference"]) > 0 else "FC better"
        assert row["decision"] == (better if p < 0.05 else "undecided")
        assert row["alone"] == (better if alone < 0.05 else "undecided")
        assert row["p_holm"] == ("< 0.0001" if p < 1e-4 else f"{p:.4f}")
    return len(judged)


def paired(spinal, fc):
    seeds = sorted(spinal.keys() & fc.keys())
    return [spinal[seed] for seed in seeds], [fc[seed] for seed in seeds]


def test_differences_of_the_heads(accuracies):
    rows = table("table2_pairs")
    expected = {key for key in accuracies if key[2] != "FC" and accuracies.get((*key[:2], "FC", key[3]))}
    rows_of_paper = {(row["script"], network_of(row), row["head"]) for row in table("table2")}
    assert {key for key in expected if key[:3] in rows_of_paper} == {
        (row["script"], network_of(row), row["head"], row["variant"]) for row in rows}

    def pairs_of(row):
        key = row["script"], network_of(row)
        spinal, fc = (accuracies[(*key, head, row["variant"])] for head in (row["head"], "FC"))
        assert float(row["correlation"]) == pytest.approx(numpy.corrcoef(*paired(spinal, fc))[0, 1], abs=6e-3)
        return paired(spinal, fc)

    assert check_differences(rows, pairs_of, lambda row: MARGINS.get(row["dataset"], 0)) >= 12


def test_differences_at_equal_dropout():
    found = defaultdict(dict)  # (data set, head, dropout): {seed: accuracy}
    for path in sorted((REFERENCE / "logs").glob("*mnist/cnn-*-published-*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        start, end = json.loads(lines[0]), json.loads(lines[-1])
        settings = start["settings"]
        complete = start["data"]["official"] and settings["precision"] == "fp32" and settings["dataset"] in MARGINS
        if complete and not set(start["departures"]) - {"fc_dropout"}:
            size = f"{settings['layers']} x {settings['width']}" if settings["head"] == "spinal" else "FC"
            found[settings["dataset"], size, settings["fc_dropout"]][start["seed"]] = end["selected_test_accuracy_pct"]

    def pairs_of(row):
        return paired(*(found[row["dataset"], head, float(row["dropout"])] for head in (row["head"], "FC")))

    rows = table("dropout")
    assert len(rows) == check_differences(rows, pairs_of, lambda row: MARGINS[row["dataset"]]) == 12
