"""Claims about the report on the reference logs: its sentences, rules, figures, costs and audit page."""

import csv
import re
import shutil
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "tools"))
from report import make as aggregate  # noqa: E402
import measure_costs  # noqa: E402
from report import audit, costs, rules, series as evidence  # noqa: E402
from report.rows import part_comparisons  # noqa: E402
from report.names import UserError  # noqa: E402
from report.paper import read_paper  # noqa: E402

REFERENCE = ROOT / "results/reference"
PAPER = read_paper(ROOT / "results/paper.csv")
COSTS = costs.read_costs(ROOT / "results/costs.csv")
PAGE = (REFERENCE / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sources():
    return aggregate.read_sources(REFERENCE)


@pytest.fixture(scope="module")
def texts(sources):
    return aggregate.texts_of(sources, reference=True)


def rows(texts, name):
    return list(csv.DictReader(texts[f"tables/{name}.csv"].splitlines()))


# ---- The whole ----

def test_committed_report_is_what_the_logs_give(texts, sources):
    """Texts, not figures, whose bytes depend on the version of matplotlib."""
    assert aggregate.differing_files(REFERENCE, texts) == [] and sources.findings == []


def test_the_page_opens_with_question_answer_picture_table_and_rules(texts):
    order = ("## Question", "## Answer", "\n1. **As released**", "\n5. **Not known**", "figures/forest.png",
             "| Data set | Network | Head | Protocol | Paper |", "## Rules", "## Table II")
    places = [texts["README.md"].index(words) for words in order]
    assert places == sorted(places)


def test_the_answer_counts_no_more_decisions_than_the_table_makes(texts):
    answer = texts["README.md"].split("## Answer")[1].split("Points of test accuracy")[0]
    pairs = rows(texts, "table2_pairs")
    wanted = {"1.": [row for row in pairs if row["network"] == "CNN" and row["variant"] == "published"],
              "2.": [row for row in rows(texts, "dropout") if row["difference"]],
              "3.": [row for row in pairs if row["network"] == "CNN" and row["variant"] != "published"]}
    for number, members in wanted.items():
        line = next(line for line in answer.splitlines() if line.startswith(number))
        counts = [sum(row["decision"] == decision for row in members) for decision in ("Spinal better", "FC better",
                                                                                       "undecided")]
        words = "decisions: {} for the Spinal head, {} for the FC head, {} undecided".format(*(count or "none"
                                                                                               for count in counts))
        assert words in line
    verdicts = [row["verdict"] for row in rows(texts, "table2")]
    alike = sum(verdict.startswith("not told apart") for verdict in verdicts)
    judged = sum("told apart" in verdict for verdict in verdicts)
    assert f"{alike} of {judged} rows of Tables II and III that can be judged (" in answer


def test_nothing_is_called_reproduced_and_nothing_is_pooled(texts):
    everything = "\n".join(texts.values()).lower()
    for words in ("| reproduced", "not reproduced: ours", "all image sets", "at the first attempt", "same fc dropout",
                  "chance that a"):
        assert words not in everything


def test_quirk_numbers_carry_their_words(texts):
    for name in ("README.md", "../audit.md"):
        for found in re.finditer(r"\bQ\d+(?:, Q\d+)*", texts[name]):
            after, before = texts[name][found.end():][:1], texts[name][:found.start()][-40:]
            in_words = after == ":" or name == "../audit.md" and re.search(r"\((?:[^()]*; |[^()]*, )?\w+ $", before)
            assert in_words, texts[name][found.start() - 40:found.end() + 20]


@pytest.mark.parametrize("name", ["reference/README.md", "audit.md"])
def test_links_lead_somewhere(name):
    page = ROOT / "results" / name
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link


def test_every_figure_is_shown_small_and_described(texts):
    shown = set(re.findall(r"\(figures/(\w+)\.png\)", texts["README.md"]))
    assert shown == {path.stem for path in (REFERENCE / "figures").glob("*")}
    for name in shown - {"augmentation_samples"}:
        paragraph = texts["README.md"].split(f"(figures/{name}.svg)")[1].split("\n\n")[0]
        assert "What one sees" in paragraph and len(paragraph) < 1500
        assert (REFERENCE / f"figures/{name}.svg").stat().st_size < 150_000
        assert "<dc:date>" not in (REFERENCE / f"figures/{name}.svg").read_text(encoding="utf-8")


def test_commands_name_scripts_and_flags_that_exist(texts):
    lines = texts["tables/commands.txt"].splitlines()
    assert len(lines) >= 40
    for line in lines:
        script = ROOT / line.split()[1]
        text = script.read_text(encoding="utf-8")
        assert all(f'"{flag}"' in text for flag in re.findall(r"--[a-z-]+", line)), line
        assert ("--precision fp32" in line) == ("--network" in line), line


@pytest.mark.parametrize("folders", [(), ("mnist",), ("synthetic_regression",), ("cifar10", "emnist_letters"),
                                     ("tabular",)])
def test_any_subset_of_the_logs_gives_a_report(tmp_path, folders):
    (tmp_path / "logs").mkdir()
    for folder in folders:
        if (REFERENCE / "logs" / folder).is_dir():
            shutil.copytree(REFERENCE / "logs" / folder, tmp_path / "logs" / folder)
    found = aggregate.reference_texts(aggregate.read_sources(tmp_path))
    assert "not run yet" in found["README.md"] and "{{" not in found["README.md"]
    shown = set(re.findall(r"\(figures/(\w+)\.png\)", found["README.md"]))
    assert ("forest" in shown) == bool({"mnist", "cifar10"} & set(folders))


# ---- Rules ----

def test_the_rules_in_words_are_the_rules_in_numbers():
    text = " ".join(rules.__doc__.split())
    assert rules.MARGINS == {"MNIST": 0.1,
                             "Fashion-MNIST": 0.3} and "0.1 points on MNIST and 0.3 on Fashion-MNIST" in text
    assert rules.FEWEST_RUNS == 3 and "at least 3 runs" in text and "at least 3 pairs" in text
    assert rules.FEWEST_SEEDS == 5 and "at least 5 seeds" in text and rules.PAPER_RUNS == 10
    assert rules.ROW_CONFIDENCE == 0.975 and "97.5 % prediction interval" in text and "at most 2.5 %" in text
    assert rules.CONFIDENCE == 0.95 and rules.__doc__.strip() in PAGE


# ---- Evidence ----

def test_parts_of_the_data_are_never_rows(sources):
    parts = part_comparisons(sources.cells)
    assert parts and all(item.row is None for item in parts) and all(item.row is not None for item in sources.items)
    for item in parts + sources.items:
        for ours, theirs in item.pairs:
            assert ours.seed == theirs.seed and ours.settings["head"] == "spinal" and theirs.settings["head"] == "fc"
            same = ("protocol", "precision", "epochs", "dataset", "batch_size")
            assert all(ours.settings[key] == theirs.settings[key] for key in same)
            assert ours.data["sha256"] == theirs.data["sha256"]


def test_every_run_in_a_row_is_fp32_complete_and_official(sources):
    for logs in sources.cells.runs.values():
        assert all(log.settings["precision"] == "fp32" and log.data["official"] and not log.settings.get("limit")
                   for log in logs)


def test_selection_is_measured_on_runs_of_the_networks_that_select_or_not_at_all(sources):
    """The tutorial's CNN and eight-epoch runs say nothing of vgg5 and arch2."""
    effect = evidence.selection_effect(sources.cells.logs, "vgg5 arch2", "mnist fashion kmnist qmnist emnist arch2")
    assert "CNN" not in effect and "CIFAR" not in effect and (not effect or "VGG-5" in effect and " runs (" in effect)
    assert evidence.selection_effect([log for log in sources.cells.logs if log.settings["network"] == "lenet"], "vgg5",
                                     "mnist") == ""


def test_logs_of_another_script_text_are_counted(sources):
    logs = sources.cells.logs
    line = evidence.foreign_texts(logs)
    assert line in PAGE
    shown = {name: int(count) for name, count in re.findall(r"`(\w+)` (\d+) of", line)}
    for script in {log.script for log in logs}:
        (path,) = ROOT.glob(f"[A-Z]*/{script}.py")
        text = measure_costs.hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        other = [log for log in logs if log.script == script and log.start["provenance"]["script_sha256"] != text]
        assert shown.get(script, 0) == len(other)


# ---- Cost ----

@pytest.mark.parametrize("line", [
    ("mnist", "cnn", "fc", None, None), ("mnist", "cnn", "spinal", 6, 8), ("fashion_mnist", "vgg5", "spinal", 4, 128),
    ("cifar10", "resnet18", "spinal", 4, 256), ("synthetic_regression", "mlp", "spinal", 6, 50),
    ("tl_cifar10", "vgg19_bn", "spinal", 4, 1024)])
def test_costs_csv_is_what_the_networks_count(line):
    """One network of each kind; `make costs` counts all (20 s)."""
    found = measure_costs.cost(measure_costs.load_script(line[0]), *line)
    with (ROOT / "results/costs.csv").open(encoding="utf-8", newline="") as stream:
        assert [str(value) for value in found] in list(csv.reader(stream))


def test_every_row_of_the_paper_has_a_cost():
    assert all(costs.of_row(COSTS, row) for row in PAPER)


def test_constants_are_those_of_the_fresh_samples(sources):
    assert [[str(value) for value in line] for line in measure_costs.constant_lines()] == [
        [function, str(seed), f"{value:g}"] for (function, seed), value in sources.constants.items()]
    means = {name: sum(sources.constants[name, seed] for seed in range(10)) / 10 for name in ("product", "sinproduct")}
    assert round(means["product"]) == 823 and round(means["sinproduct"]) == 43


def test_claims_are_recounted_and_can_fail():
    verdicts = {row["claim"]: row for row in costs.claim_rows(COSTS)}
    assert verdicts["regression: fewer multiplications"]["counted"].startswith("35.48 %")
    assert verdicts["CIFAR-100, VGG-19: multiplications of the head left"]["verdict"] == "roughly"
    assert verdicts["v2, CIFAR-10, CNN of PyTorch's tutorial, 6 × 20: fewer"]["verdict"] == "does not hold"
    wrong = [costs.Cost(*(getattr(cost, key) * (2 if key == "multiplications" and cost.head == "spinal" else 1)
                          if getattr(cost, key) is not None else None for key in costs.Cost.__dataclass_fields__))
             for cost in COSTS]
    found = {row["claim"]: row["verdict"] for row in costs.claim_rows(wrong)}
    assert found["regression: fewer multiplications"] == "does not hold"


def test_plan_is_sorted_by_work_that_counts_training_three_times(texts):
    lines = [line.split(",") for line in texts["tables/plan.csv"].splitlines()]
    assert lines[0] == ["script", "network", "epochs", "pflop"]
    work = [float(line[3]) for line in lines[1:]]
    assert work == sorted(work, reverse=True) and len(lines) == 48
    cost = costs.find(COSTS, "mnist", "cnn", "fc")
    (line,) = (line for line in lines if line[:2] == ["mnist", "cnn"])
    assert float(line[3]) == pytest.approx(2e-15 * cost.macs * 8 * (3 * 60_000 + 10_000), rel=1e-3)


# ---- Audit ----

def test_error_reductions_that_do_not_follow_are_found():
    found = {(row["dataset"], row["network"]): (row["printed"], row["recomputed"])
             for row in audit.reduction_rows(PAPER)}
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


def test_each_quirk_has_evidence_that_names_its_runs(texts, sources):
    quirks = audit.read_quirks(ROOT / "results/quirks.csv")
    page = texts["../audit.md"]
    assert all(quirk["number"] in page for quirk in quirks) and re.search(r"\d+ of 80 published runs", page)
    for line in page.split("## Quirks")[1].split("\n\n")[1].splitlines()[2:]:
        effect = line.rstrip(" |").rsplit(" | ", 1)[1]
        names = r"not measured|nothing to measure|counted, no run|Table I|MNIST, CNN, published|\d+ runs \("
        assert re.match(rf".*(?:{names})", effect), effect
    with pytest.raises(UserError, match="does not know"):
        audit.audit_page(PAPER, sources.cells, [], COSTS, [quirks[0] | {"evidence": "hearsay"}])
