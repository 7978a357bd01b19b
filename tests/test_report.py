"""Claims about the report beyond its tables: comparisons, chances, cost claims, audit, verification, idempotence."""
import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "results"))
sys.path.insert(0, str(ROOT / "tools"))
import aggregate  # noqa: E402
import measure_costs  # noqa: E402
from report import audit, comparisons, costs, overview, verify  # noqa: E402
from report.cells import sort_into_cells  # noqa: E402
from report.logs import read_logs  # noqa: E402
from report.paper import read_paper  # noqa: E402

PAPER = read_paper(ROOT / "results/paper.csv")
COSTS = costs.read_costs(ROOT / "results/costs.csv")


@pytest.fixture(scope="module")
def cells():
    return sort_into_cells(read_logs(ROOT / "results/logs")[0], PAPER)


# ---- Comparisons -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("won, count, low, high", [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)])
def test_wilson_interval_of_known_cases(won, count, low, high):  # Newcombe 1998, method 3
    assert comparisons.wilson(won, count) == pytest.approx((low, high), abs=5e-4)


def test_heads_of_one_seed_are_one_trial_and_ties_count_half(cells):
    items = [item for item in comparisons.comparisons(cells, PAPER) if item.dataset == "MNIST" and item.variant == "published"]
    assert [item.head for item in items] == ["Spinal 6 × 8", "Spinal 6 × 10"]
    share, low, high, pairs, seeds = comparisons.chance(items)
    assert (pairs, seeds) == (20, 10) and (low, high) == pytest.approx(comparisons.wilson(share * 10, 10))
    won = [ours.score - theirs.score for item in items for ours, theirs in item.pairs]
    assert share == pytest.approx(sum(1 if value > 0 else 0.5 if value == 0 else 0 for value in won) / 20)
    tied = dataclasses.replace(items[0], spinal=items[0].fc)
    assert comparisons.chance([tied])[0] == 0.5


def test_every_comparison_is_between_heads_alone(cells):
    items = comparisons.comparisons(cells, PAPER)
    assert {item.dataset for item in items} >= {"MNIST", "Fashion-MNIST", "EMNIST (Letters), subset"}
    for item in items:
        for ours, theirs in item.pairs:
            assert ours.seed == theirs.seed and ours.settings["head"] == "spinal" and theirs.settings["head"] == "fc"
            assert ours.data["sha256"] == theirs.data["sha256"] and ours.settings["protocol"] == theirs.settings["protocol"]
            assert ours.settings["precision"] == theirs.settings["precision"]


def test_a_lower_error_wins_and_a_higher_accuracy_wins(cells):
    items = comparisons.comparisons(cells, PAPER)
    regression = next(item for item in items if item.script == "synthetic_regression" and item.variant == "corrected")
    better = sum(ours.score < theirs.score for ours, theirs in regression.pairs)
    assert comparisons.chance([regression])[0] == pytest.approx(better / len(regression.pairs))


# ---- Cost ------------------------------------------------------------------------------------------------------------------
def test_costs_csv_is_what_the_networks_count(tmp_path):
    """The committed counts come out again (times are not compared)."""
    assert measure_costs.main(["--no-times", "--output", str(tmp_path / "costs.csv")]) == 0
    def counts(rows):
        return [dataclasses.replace(row, microseconds=None, processor="") for row in rows]
    assert counts(costs.read_costs(tmp_path / "costs.csv")) == counts(COSTS)


def test_claims_are_recounted():
    verdicts = {row["claim"]: row for row in costs.claim_rows(COSTS)}
    assert verdicts["regression: fewer multiplications"]["counted"].startswith("35.48 %")
    assert verdicts["CIFAR-100, VGG-19: multiplications of the head left"]["verdict"] == "roughly"
    assert verdicts["v2, CIFAR-10, CNN of PyTorch's tutorial, 6 × 20: fewer"]["verdict"] == "does not hold"
    ratios = {(row["script"], row["network"], row["head"]): row["ratio"] for row in costs.network_cost_rows(COSTS)}
    assert ratios["cifar10", "ResNet-18", "4 × 256"] == "183" and ratios["cifar100", "ResNet-18", "4 × 512"] == "59"


def test_claims_can_fail():
    wrong = [dataclasses.replace(cost, multiplications=cost.multiplications * 2) if cost.head == "spinal" else cost for cost in COSTS]
    rows = {row["claim"]: row["verdict"] for row in costs.claim_rows(wrong)}
    assert rows["regression: fewer multiplications"] == "does not hold"


def test_plan_counts_training_three_times_and_never_beats_the_step_floor():
    row = next(row for row in PAPER if (row.script, row.network, row.head) == ("mnist", "cnn", "fc"))
    plan, = costs.plan_rows([row], COSTS, [])
    cost = costs.find(COSTS, "mnist", "cnn", "fc")
    assert plan["work"] == f"{2 * 10 * 2 * cost.macs * 8 * (3 * 60_000 + 10_000) / 1e15:.1f}"
    assert float(plan["data-centre GPU"]) == pytest.approx(2 * 10 * 8 * 60_000 / 64 * 1e-4 / 3600, abs=0.005)


# ---- Audit -----------------------------------------------------------------------------------------------------------------
def test_error_reductions_that_do_not_follow_are_found():
    found = {(row["dataset"], row["network"]): (row["printed"], row["recomputed"]) for row in audit.reduction_rows(PAPER)}
    assert found["Bird225", "Wide_ResNet-101_2"] == ("11.1", "29.0") and found["SVHN", "VGG-19_bn"] == ("18.28", "8.8")
    assert len(found) == 6 and all("MNIST" not in dataset for dataset, _ in found)  # the six of shared/paper/README.md


@pytest.mark.skipif(not (ROOT.parent / "shared/spec").is_dir(), reason="needs the specification, ../shared/spec")
def test_every_quirk_of_the_specification_is_listed_and_no_other():
    listed = set()
    for quirk in audit.read_quirks(ROOT / "results/quirks.csv"):
        name = None
        for part in re.split(r"[;,]\s*", quirk["number"]):
            match = re.fullmatch(r"(?:(\w+) )?Q(\d+)", part)
            name = match[1] or name
            listed.add((name, int(match[2])))
    wanted = {(path.stem, int(number)) for path in (ROOT.parent / "shared/spec").glob("*.md")
              for number in re.findall(r"^\* \*\*Q(\d+)", path.read_text(encoding="utf-8"), re.MULTILINE)}
    assert len(wanted) > 100 and listed == wanted


def test_each_quirk_has_evidence_that_the_report_knows(cells):
    quirks = audit.read_quirks(ROOT / "results/quirks.csv")
    page = audit.audit_page(PAPER, cells, comparisons.comparisons(cells, PAPER), COSTS, quirks)
    assert all(quirk["number"] in page for quirk in quirks) and "61 of 80 published runs" in page
    with pytest.raises(audit.UserError, match="does not know"):
        audit.audit_page(PAPER, cells, [], COSTS, [quirks[0] | {"evidence": "hearsay"}])


def test_selection_is_worth_what_the_logs_say(cells):
    gains = overview.gains(cells)
    for (_, variant), values in gains.items():
        assert variant != "published" or min(values) >= 0  # the best epoch is never below the last
    assert any(min(values) < 0 for (_, variant), values in gains.items() if variant == "corrected")


# ---- Verification ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def short_log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    subprocess.run([sys.executable, str(ROOT / "Regression/synthetic_regression.py"), "--epochs", "3", "--head", "spinal", "--seed", "2",
                    "--results-dir", str(folder), "--quiet", "--device", "cpu"], check=True, capture_output=True)
    return next(folder.rglob("*.jsonl"))


def edited(short_log, tmp_path, line, change):
    lines = [json.loads(text) for text in short_log.read_text().splitlines()]
    change(lines[line])
    path = tmp_path / short_log.name
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    return path


def test_a_log_verifies_and_a_changed_one_does_not(short_log, tmp_path, capsys):
    assert aggregate.main(["--verify", str(short_log)]) == 0
    assert "the same, times aside" in capsys.readouterr().out
    wrong = edited(short_log, tmp_path, 2, lambda line: line.update(train_mse=line["train_mse"] * 1.001))
    assert aggregate.main(["--verify", str(wrong)]) == 1
    assert f"{wrong}:3: train_mse" in capsys.readouterr().out


def test_times_names_and_another_processor_are_no_difference(short_log, tmp_path, capsys):
    assert aggregate.main(["--verify", str(edited(short_log, tmp_path, 1, lambda line: line.update(seconds=99)))]) == 0
    elsewhere = edited(short_log, tmp_path, 0, lambda line: line["provenance"].update(device_name="another"))
    assert aggregate.main(["--verify", str(elsewhere)]) == 0
    lines = elsewhere.read_text().replace('"train_loss": ', '"train_loss": 1')  # other bits there are expected, and said
    elsewhere.write_text(lines)
    capsys.readouterr()
    assert aggregate.main(["--verify", str(elsewhere)]) == 0 and "another processor" in capsys.readouterr().out
    other = edited(short_log, tmp_path, 0, lambda line: (line["provenance"].update(device_name="another"),
                                                          line.update(parameters=1)))
    assert aggregate.main(["--verify", str(other)]) == 1  # counts are the same everywhere


@pytest.mark.parametrize("text", ["", "{}", '{"event": "start"}\n{"event": "end"}\n', "\x00"])
def test_what_is_no_log_is_a_users_mistake(tmp_path, capsys, text):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    assert aggregate.main(["--verify", str(path)]) == 2 and capsys.readouterr().err.startswith("error: ")
    assert aggregate.main(["--verify", str(tmp_path / "none.jsonl")]) == 2


@pytest.mark.parametrize("log", ["mnist/cnn-spinal6x8-published-e1-limit2000-s0", "synthetic_regression/mlp-fc-corrected-sinsum-s0",
                                 "emnist_digits/cnn-fc-published-e1-limit2000-data*-s0", "cifar10/cnn-spinal4x128-published-e1-limit200-s0"])
def test_a_committed_log_of_each_family_comes_out_again(request, log):
    path, = (ROOT / "results/logs").glob(f"{log}.jsonl")
    data = ROOT if log.startswith("synthetic") else request.getfixturevalue("real_data")
    if log.startswith("cifar10"):
        data = request.getfixturevalue("real_cifar10")
    if log.startswith("emnist"):
        data = request.getfixturevalue("real_subset")
    done = subprocess.run([sys.executable, str(ROOT / "results/aggregate.py"), "--verify", str(path), "--data-dir", str(data)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- The whole -------------------------------------------------------------------------------------------------------------
def test_making_the_tables_again_changes_nothing():
    """Texts, not figures, whose bytes depend on the version of matplotlib."""
    assert aggregate.main(["--results-dir", str(ROOT / "results"), "--check"]) == 0


def test_two_thousand_logs_are_all_counted(tmp_path, capsys, monkeypatch):
    """Their number is checked here; how long they take is printed, and stands in the closing note, not in a timed test."""
    monkeypatch.setattr(aggregate, "write_figures", lambda *_: None)
    monkeypatch.setattr(aggregate, "write_overview", lambda *_: None)
    source = (ROOT / "results/logs/mnist/cnn-fc-published-s0.jsonl").read_text()
    folder = tmp_path / "logs/mnist"
    folder.mkdir(parents=True)
    for seed in range(2_000):
        (folder / f"cnn-fc-published-s{seed}.jsonl").write_text(source.replace("published-s0", f"published-s{seed}")
                                                                .replace('"seed": 0', f'"seed": {seed}'))
    began = time.perf_counter()
    assert aggregate.main(["--results-dir", str(tmp_path), "--paper", str(ROOT / "results/paper.csv")]) == 0
    assert "2000 runs counted, 0 logs left out" in capsys.readouterr().out
    print(f"2,000 logs: {time.perf_counter() - began:.1f} s")
