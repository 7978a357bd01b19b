"""The texts: results/README.md and the part of the front page."""
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from report.audit import audit_page
from report.cells import Cells
from report.comparisons import Comparison, chance_lines, comparisons
from report.costs import (
    CLAIM_COLUMNS, NETWORK_COST_COLUMNS, PLAN_COLUMNS, Cost, claim_rows, default_of, network_cost_rows, plan_file, plan_rows)
from report.facts import FEWEST_RUNS, FEWEST_SEEDS, FOLDERS, PAPER_RUNS
from report.figures import figures_of
from report.formats import DOCUMENT, comma_separated, latex, markdown, markdown_text
from report.logs import Finding, Log
from report.overview import CAPTIONS, overview_names
from report.paper import PaperRow
from report.tables import (
    Column, ACCURACY_COLUMNS, ACCURACY_CSV, COST_COLUMNS, LEARNT_COLUMNS, OTHER_COLUMNS, OTHER_CSV, PAIR_COLUMNS, REGRESSION_COLUMNS,
    REGRESSION_CSV, Row, VARIANTS, accuracy_rows, cost_rows, other_rows, regression_rows)

LEARNT_PREFACE = """\
What the networks learnt, mean ± std over seeds × 1e-3. A constant scores the variance of the function: 8,000 for the sum, 500
for its sine, 1,000 for the product; in the 1,000 samples of seed 0 (spec) 7,160, 506, 421, and 41.6 for the sine of the product.
"""
PAIRS_PREFACE = """\
Spinal minus FC in points of test accuracy: mean over seeds [95 % interval] (pairs of runs). Paper: difference of its averages,
or of the single numbers of arXiv v2.
"""
FRONT_SECOND = "**Table II**, rows that have runs (accuracy in per cent).\n"
FRONT_FIRST = """\
**Table I**, × 1e-3, ours: median [lowest, highest] over seeds. The paper's measure is the smallest loss of a last mini-batch so
far, 40 training samples, no test error. † below 3.333, the variance of the noise, which no model can be on fresh samples.
"""
RULES = f"""\
**Rules**

* Number of a run: `selected_test_accuracy_pct` of its log, that is the epoch that the protocol selects. *Published* selects as
  the released scripts did, often by the best test accuracy; *corrected* selects on held-out training images. Mean, best and
  std (sample, n − 1) are over seeds. Caltech-101, *published*: the best accuracy on the held-out part, which
  is what the paper prints there. A diverged run counts with its accuracy.
* **Verdict** (published protocol only): the paper's average of ten runs is compared with what ten further runs of ours might
  average, the 95 % prediction interval mean ± t(n − 1) · s · √(1/n + 1/{PAPER_RUNS}), widened by 0.005 because the paper rounds to
  two decimals; s is at least the weight of one test image. Inside: *reproduced*, else *not reproduced* with direction and
  distance. Fewer than {FEWEST_RUNS} runs: *not judged*. No average in print (rows of arXiv v2): *not comparable*.
  The rule assumes normal scatter that is as wide in the paper's runs as in ours (the paper prints no spread). *Reproduced*
  means "not told apart": with few runs the interval is wide and lenient, so read `tolerance` in the CSV. One row in twenty
  fails by chance even if all is well. How many runs are averaged in Table III is not printed; ten is assumed there.
* **Spinal beats FC?** Runs of one seed see the same batches, so Spinal minus FC is taken seed by seed. *yes* or *no (FC better)*
  if the 95 % t interval of the mean difference excludes 0, else *undecided*; at least {FEWEST_RUNS} pairs.
  *Corrected, no FC dropout*: `--protocol corrected --fc-dropout 0`. The published small CNN has dropout in its FC head only
  (Q5), so a difference of the heads may be one of dropout; the two corrected columns give both heads the same, 0.5 or none.
* Error reduction is recomputed from our best runs, as the paper does from its own; the best of n grows with n.
* Parameters and multiplications of linear layers are counted by the script, per sample, and are not quoted.
"""

NOISE_PASSAGE = f"""\
All values × 1e-3; ours: median [lowest, highest] over seeds. The paper's number is the smallest loss of the *last mini-batch* of an epoch (40 training samples) so far, of
one seed. So the rule is another one: *within our spread* if it lies between the lowest and the highest of at least
{FEWEST_SEEDS} seeds of ours, else *outside*.

**† below the noise.** The targets carry noise 0.2 · uniform[0, 1), whose variance 0.04/12 = 3.333e-3 no model can
predict: on fresh samples even the true function has this MSE. A smaller number is neither a test error nor an error on the
full training set. It is the luckiest of hundreds of 40-sample training batches, or the network has fitted the noise of
its 1,000 samples, or both. Compare with the columns of the corrected protocol: `train_mse` is over all 1,000 training samples
(below 3.333, it has fitted noise), `clean_mse` is on fresh samples against the function without noise (plus the mean of the
noise); its floor is 0, and it is what one wants to know of a regression. *Broadcast noise* is the released script as it stands:
a shape error turns the target into a 1,000 × 1,000 matrix, training is free of noise, and no loss can fall below the
variance of the seed's own noise vector (3.319 for seed 0, which draws the samples of the released script). The paper's
numbers below that cannot come from the script in this form.
"""


NO_PAIR = "no pair of runs yet"


def family_sentence(name: str, rows: list[Row]) -> str:
    """One sentence on Spinal minus FC for one data set."""
    words = {"yes": "better than FC", "no (FC better)": "worse than FC", "undecided": "undecided", "not judged": "with too few runs"}
    parts = []
    for prefix, protocol in (("", "published protocol"), ("corrected_", "corrected protocol"),
                             ("nodropout_", "corrected without FC dropout")):
        compared = [row for row in rows if row.get(f"{prefix}pairs", "0") != "0"]
        if not compared:
            continue
        verdicts = Counter(row[f"{prefix}spinal_beats_fc"] for row in compared)
        counts = ", ".join(f"{verdicts[key]} {text}" for key, text in words.items() if verdicts[key])
        differences = sorted((row[f"{prefix}difference_cell"].split()[0] for row in compared),
                             key=lambda text: float(text.replace("−", "-")))
        parts.append(f"{protocol}: of {len(compared)} Spinal head{'s' * (len(compared) > 1)} {counts} "
                     f"({' to '.join(dict.fromkeys((differences[0], differences[-1])))} points)")
    return f"* **{name}**: {'; '.join(parts) or NO_PAIR}."


def regression_sentence(rows: list[Row]) -> str:
    """One sentence on the heads in Table I."""
    measures = (("spinal_wins", "by the paper's measure"), ("corrected_spinal_wins", "by corrected clean MSE"))
    parts = []
    for row in rows:
        won = [f"{row[key].removeprefix('Spinal in ')} seeds {words}" for key, words in measures if row.get(key)]
        parts += [f"{row['function']} in {' and '.join(won)}"] if won else []
    return f"* **Regression**: {'Spinal is lower than FC for ' * bool(parts)}{'; '.join(parts) or NO_PAIR}."


def command(row: PaperRow, variant: str, logs: list[Log]) -> str:
    """The command that repeats a row, for the seeds that these runs span."""
    first, last = logs[0].seed, logs[-1].seed
    folder = FOLDERS.get(row.script.split("_")[0], "MNIST")
    head = f"--head spinal --layers {row.layers} --width {row.width}" if row.head == "spinal" else "--head fc"
    target = f"--function {row.function}" if row.function else f"--network {row.network}"
    noise = {"broadcast": " --noise broadcast", "nodropout": " --fc-dropout 0"}.get(variant.partition("-")[2], "")
    seeds = (f"--seed {first} " if first else "") + f"--runs {last - first + 1}"
    return f"python {folder}/{row.script}.py {target} {head} --protocol {variant.split('-')[0]}{noise} {seeds}"


def findings_section(findings: list[Finding], notes: list[str], used: int, others: int) -> str:
    """What the report does not count, and why."""
    lines = ["## Logs", "", f"{used} runs are in the paper's rows, {others} in `tables/other_runs.md`, "
             f"{len(findings)} logs are left out.", ""]
    lines += [f"* `{finding.path}`, line {finding.line}: {markdown_text(finding.reason)}" for finding in findings]
    if notes:
        lines += ["", "Averaged although this differs (it does not decide the experiment, but see it before you cite):", ""]
        lines += [f"* {markdown_text(note)}" for note in notes]
    return "\n".join(lines) + "\n"


def figures_section(names: Iterable[str], title: str = "## At a glance") -> str:
    """Links to the figures that there are."""
    captions = CAPTIONS | {"training_curves": "Test accuracy by epoch, published protocol: mean over seeds, band ± 1 std",
                "regression_curves": "Clean MSE by epoch, corrected protocol: median over seeds, band from quartile to quartile",
                "training_curves_other": "Runs that are not comparable with the paper: accuracy by epoch, mean ± 1 std"}
    lines = [f"[![{captions[name]}](figures/{name}.png)](figures/{name}.svg)\n\n{captions[name]}.\n" for name in names]
    return f"{title}\n\n" + ("\n".join(lines) if lines else "None yet.\n")


def summary(rows: list[Row]) -> str:
    """How many rows of Table II and III have which verdict."""
    counts = Counter(row["verdict"].split(":")[0] for row in rows)
    order = ("reproduced", "not reproduced", "not judged", "not comparable", "not yet run")
    return ", ".join(f"{counts[key]} {key}" for key in order)


def in_plain_words(tables: dict[str, list[Row]]) -> str:
    """What the logs say, a sentence for each family that has runs."""
    families: dict[str, list[Row]] = defaultdict(list)
    for row in tables["table2"]:
        families[row["dataset"]].append(row)
    sentences = [*(family_sentence(name, rows) for name, rows in families.items()), regression_sentence(tables["table1"])]
    missing = [sentence for sentence in sentences if sentence.endswith(f"{NO_PAIR}.")]
    names = ", ".join(sentence.split("**")[1] for sentence in missing)
    lines = [f"Verdicts on the rows of Table II: {summary(tables['table2'])}. Table III: {summary(tables['table3'])}.", ""]
    lines += [sentence for sentence in sentences if sentence not in missing]
    return "\n".join(lines + ([f"* Not compared yet: {names}."] if missing else [])) + "\n"


def ran(rows: list[Row]) -> list[Row]:
    """Rows of Table II with runs under some protocol."""
    return [row for row in rows if any(row.get(f"{prefix}runs", "0") != "0" for prefix in VARIANTS)]


def first_table(rows: list[Row]) -> str:
    """Table I, and what the networks learnt."""
    return "\n".join([markdown(REGRESSION_COLUMNS, rows), LEARNT_PREFACE, markdown(LEARNT_COLUMNS, rows)])


def second_table(rows: list[Row]) -> str:
    """Table II with the rows that have runs, and the differences of the heads."""
    return "\n".join([markdown(ACCURACY_COLUMNS, ran(rows)), PAIRS_PREFACE,
                      markdown(PAIR_COLUMNS, [row for row in ran(rows) if "difference_cell" in row])])


SCOPE = """\
**Scope.** The paper's claim: a SpinalNet head in place of the fully connected (FC) head gives higher accuracy for fewer
multiplications. Asked here, row by row: do the printed accuracies come out of the released procedure (`published`); does the
Spinal head still lead when its FC twin is treated alike and no choice is made on the test set (`corrected`); what does it cost.
"""
METHOD = """\
**Method.** Everything is written anew from a specification of the released scripts; the original code is not used. One script
a data set, one log a run, ten seeds a row. Runs of one seed share batches, augmentation and the trunk's first weights, so heads
are compared in pairs. This page, its tables and figures are a function of `logs/`, `paper.csv`, `costs.csv` and `quirks.csv`.
"""
EASY = """\
**What was easy.** The heads are small and printed in full; their parameters and multiplications come out as printed where the
label fits the network. The small CNN trains in a minute on a CPU core and comes out close to the paper at the first attempt.
"""
DIFFICULT = """\
**What was difficult.** The released scripts and the tables disagree (epochs, widths, backbones), several scripts cannot run as
released, and what decides a comparison is often not the head ([audit.md](audit.md)). VGG-5, the CIFAR networks and all of Table
III want a GPU, and several data sets could not be had where these runs were made; the table below says what has no run yet.
"""
REASONS = {  # (script, head): what runs say of a difference
    ("fashion_mnist", "spinal"): "not known: the FC row and all three rows of MNIST, trained by the same code, agree",
}
CHANGES = """\
## Change a script without breaking its evidence

* Comments, messages, command line, file handling: free. The log's `script_sha256` changes, which the report lists; `make verify
  LOG=...` shows that a committed log still comes out bit by bit.
* Data, augmentation, networks, initialisation, order of random draws, optimiser, rates, selection, precision: can move a number.
  Run the rows again with `--overwrite`, commit logs and change together. A new reading of the paper gets a flag of its own, so that
  old logs stay what they say they are.
* Anything in a shared block concerns every script that has it: `make sync`, then verify one log a family (the tests do).
* Speed: the same, if it changes the order of sums; compare paired seeds as [precision.md](precision.md) does.
"""
DIFFERENCE_COLUMNS = [Column("row", "Row"), Column("paper", "Paper, mean"), Column("ours", "Ours"), Column("reason", "Likely reason")]


def difference_rows(rows: list[Row]) -> list[Row]:
    """Rows of Table II and III that are not reproduced, with what may be the reason."""
    return [{"row": f"{row['dataset']}, {row['network']}, {row['head']}", "paper": row["paper_mean"], "ours": row["mean_cell"],
             "reason": REASONS.get((row["script"], "spinal" if "Spinal" in row["head"] else "fc"), "not known")}
            for row in rows if row["verdict"].startswith("not reproduced")]


def cost_section(costs: list[Cost], plan: list[Row]) -> str:
    """Counts, claims and the plan."""
    if not costs:
        return "No [costs.csv](costs.csv) yet: `make costs`.\n"
    processors = ", ".join(sorted({cost.processor for cost in costs if cost.processor})) or "none yet"
    networks = {(cost.script, cost.network) for cost in costs}
    resnets = [cost for cost in costs if cost.network == "resnet18" and (cost.script, cost.width) in (("cifar10", 256), ("cifar100", 512))]
    ratios = [f"{cost.multiplications / default_of(cost, costs).multiplications:.0f} times ({'CIFAR-10' if cost.script == 'cifar10' else 'CIFAR-100'})"
              for cost in resnets]
    return "\n".join([
        f"Counted by `make costs` from {len(networks)} networks ([costs.csv](costs.csv)): multiplications of linear layers, all "
        "multiply-accumulates of a forward\npass (PyTorch's flop counter), and the time of a forward pass in batches of 100, fp32, one "
        f"thread ({processors}).\nA head is a small part of most networks: fewer multiplications in the head are hardly fewer in "
        "the network, except for VGG on CIFAR\nand the regression. On ResNet the Spinal head costs more: "
        f"{' and '.join(ratios)} the multiplications of the FC head with the released\nscripts' widths (Q11), since it sees the "
        "2 × 2 map that the FC head sees through a maximum.\n",
        markdown(CLAIM_COLUMNS, claim_rows(costs)), markdown(NETWORK_COST_COLUMNS, network_cost_rows(costs)),
        "### A plan on paper: what all rows would take\n",
        "Ten runs of every row under both protocols. Work: counted multiply-accumulates × 2 × (3 × training images + evaluated images) × "
        "epochs. The CPU\ncolumn scales the seconds that our logs of the same networks took (one core, fp32 or bf16 as logged). "
        "The GPU columns are no measurements but\nassumptions: a third of the dense bf16 peak of an RTX 4090 (165 TFLOP/s) or an H200 "
        "(990 TFLOP/s), at least 100 µs for 64 images. Money: multiply\nby what an hour costs; consumer cards rent for tenths of a "
        "dollar, data-centre cards for a few dollars, eight of them for some tens.\n",
        markdown(PLAN_COLUMNS, plan)])


def report(paper: list[PaperRow], cells: Cells, findings: list[Finding], tables: dict[str, list[Row]],
           figures: Iterable[str], costs: list[Cost], items: list[Comparison]) -> str:
    """The whole of results/README.md."""
    used = sum(map(len, cells.runs.values()))
    commands = dict.fromkeys(command(row, variant, cells.of(row, variant)) for row in paper
                             for variant in ("published", "published-broadcast", "corrected", "corrected-nodropout")
                             if cells.of(row, variant))
    missing = len(tables["table2"]) - len(ran(tables["table2"]))
    chances = chance_lines(items)
    differing = difference_rows(tables["table2"] + tables["table3"])
    parts = [
        "# Results: SpinalNet (arXiv 2007.03347), the paper's numbers beside ours\n",
        "Made by `python results/aggregate.py` from `logs/` (format: [SCHEMA.md](SCHEMA.md)) and [paper.csv](paper.csv); edits here "
        "are lost.\nEach table is also in `tables/` as Markdown, LaTeX and CSV (`tables/tables.tex` sets all of them). "
        "Quirks, their measured effects, and where the\npaper does not add up: [audit.md](audit.md). Speed: [bench.md](bench.md), "
        "[precision.md](precision.md).\n",
        "## Summary\n", SCOPE, METHOD,
        "**Results.**\n", in_plain_words(tables),
        "The chance that a Spinal run beats its FC twin: share of pairs (95 % Wilson interval for as many trials as there are seeds and data "
        "sets, since heads\nof one seed share their twin; ties count half):\n" if chances else "",
        "\n".join(chances) + "\n" if chances else "",
        EASY, DIFFICULT,
        "### Paper, ours, likely reason\n" if differing else "", markdown(DIFFERENCE_COLUMNS, differing) if differing else "",
        figures_section(name for name in figures if name in CAPTIONS),
        "[What augmentation does](figures/augmentation_samples.png) to eight images of each data set; drawn by "
        "`tools/draw_samples.py`, which needs the data.\n" if "confusion" in figures else "",
        "## Table II: accuracy from random initialisation\n", RULES,
        "Rows marked *(arXiv v2 only)* were printed in v2 and dropped from v3. v2 prints one accuracy a row, shown here under best: "
        "in the rows that both versions print it is v3's best.\n",
        f"{missing} of {len(tables['table2'])} rows have no run yet; [tables/table2.md](tables/table2.md) shows them too.\n",
        second_table(tables["table2"]), "## Table I: regression\n", NOISE_PASSAGE,
        first_table(tables["table1"]),
        "## Cost\n", cost_section(costs, tables["plan"]),
        "### Heads that were run\n", "Counted by the scripts for one sample; every network of which both heads were run, if only "
        "for a moment.\n", markdown(COST_COLUMNS, tables["cost"]),
        "## Table III: transferred initialisation\n", "See [tables/table3.md](tables/table3.md).\n",
        "## Other runs\n", f"{len(tables['other_runs'])} groups of runs that no row of the paper can be compared with: "
        "[tables/other_runs.md](tables/other_runs.md).\n",
        figures_section((name for name in figures if name not in CAPTIONS), "## Training curves"), CHANGES, "## Repeat a row\n",
        "Rows that have runs, each with its command:\n\n```\n" + "\n".join(commands) + "\n```\n" if commands else "No runs yet.\n",
        findings_section(findings, cells.notes, used, len(cells.others)),
    ]
    return "\n".join(part for part in parts if part)


def render(paper: list[PaperRow], cells: Cells, findings: list[Finding], costs: list[Cost], quirks: list[Row],
           confusions: bool = False) -> dict[str, str]:
    """Every text file that this program writes, by its path in the results folder."""
    every = [*(log for logs in cells.runs.values() for log in logs), *(log for log, _ in cells.others)]
    items = comparisons(cells, paper)
    second = accuracy_rows(paper, cells, "II", "II (v2 only)")
    for row in second:
        row["dataset"] += " (arXiv v2 only)" if row["table"] != "II" else ""
    tables = {"table1": regression_rows(paper, cells), "table2": second, "table3": accuracy_rows(paper, cells, "III"),
              "table1_learnt": regression_rows(paper, cells), "table2_pairs": [row for row in second if "difference_cell" in row], "other_runs": other_rows(cells.others),
              "cost": cost_rows(every),
              "plan": plan_rows(paper, costs, every)}
    forms = {"table1": (REGRESSION_COLUMNS, REGRESSION_CSV, NOISE_PASSAGE), "table2": (ACCURACY_COLUMNS, ACCURACY_CSV, RULES),
             "table1_learnt": (LEARNT_COLUMNS, None, LEARNT_PREFACE), "table2_pairs": (PAIR_COLUMNS, None, PAIRS_PREFACE),
             "table3": (ACCURACY_COLUMNS, ACCURACY_CSV, RULES),
             "other_runs": (OTHER_COLUMNS, OTHER_CSV, "Runs that depart from the paper's rows or use other data. "
                            "Not comparable with any number of the paper.\n")}
    texts = {"README.md": report(paper, cells, findings, tables, [*overview_names(cells, confusions), *figures_of(cells)],
                                  costs, items),
             "audit.md": audit_page(paper, cells, items, costs, quirks),
             "front page": "\n".join([in_plain_words(tables), FRONT_SECOND, second_table(second), FRONT_FIRST,
                                       first_table(tables["table1"])])}
    for name, (columns, keys, preface) in forms.items():
        texts[f"tables/{name}.md"] = preface + "\n" + markdown(columns, tables[name])
        if keys:
            texts[f"tables/{name}.csv"] = comma_separated(keys, tables[name])
        if name != "other_runs":
            texts[f"tables/{name}.tex"] = latex(columns, tables[name])
    return texts | {"tables/plan.csv": plan_file(paper, costs), "tables/tables.tex": DOCUMENT}
