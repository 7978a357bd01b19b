"""The small CNN with each head tuned alike: what held-out images chose, and the comparisons.

The plan is ours, not the paper's: results/tuned_heads.md in words, tools/tuned_heads.py in code.
The logs lie apart, in tuned_heads/logs of a results folder, so that no other table counts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from report.comparisons import image_standard_error
from report.inference import (
    Difference,
    decisions,
    equivalent,
    half_width,
    mean_of,
    paired,
    paired_difference,
    resolution_of,
)
from report.logs import Finding, Log, read_logs
from report.rules import MARGINS
from report.tables import Columns, Row, difference_text, mean_cell, number, p_value
from tuned_heads import (
    BLOCK,
    DROPOUTS,
    FEWEST_ROUNDS,
    FINAL_SEEDS,
    HEADS,
    PRIMARY_HEADS,
    RATES,
    ROW,
    SETS,
    TUNING_SEEDS,
    Task,
    choose,
)

NAMES = {"fc": "FC 50", "fc26": "FC 26", "spinal6x8": "Spinal 6 × 8", "spinal6x10": "Spinal 6 × 10"}
NAMES["linear"] = "no hidden layer"
GRID = [(dropout, rate) for dropout in DROPOUTS for rate in RATES]
PRIMARY = [(name, "spinal6x8", other) for name in SETS for other in ("fc", "fc26")]
EXPLORATORY = [
    (name, *heads)
    for name in SETS
    for heads in (
        ("fc26", "fc"),
        ("spinal6x10", "fc"),
        ("spinal6x10", "fc26"),
        ("spinal6x10", "spinal6x8"),
    )
]
UNTUNED = [(name, "linear", other) for name in SETS for other in ("fc", "spinal6x8")]
FINAL: Columns = {
    "dataset": "Data set",
    "head": "Head",
    "parameters": "Parameters of the network",
    "setting": "Best dropout, rate",
    "runs": "Seeds",
    "heldout_cell": "Held-out images, %",
    "test_cell": "Test images, %",
}
PAIRS: Columns = {
    "dataset": "Data set",
    "heads": "Heads",
    "pairs": "Seeds",
    "difference_cell": "Difference [95 %], points",
    "image_error": "Standard error over test images",
}
FAMILY: Columns = PAIRS | {
    "p_holm": "p, Holm",
    "decision": "Decision",
    "equivalent": "Equivalent? (margin)",
}
FRONT: Columns = {"heads": "Each head tuned on held-out images, points"}


@dataclass(frozen=True)
class Tuned:
    """The logs of the experiment, and those of other runs that its linear head is compared with."""

    logs: dict[tuple[str, str], Log]  # by script and name of the run
    others: dict[tuple[str, str], Log]
    findings: list[Finding]

    def runs(self, task: Task) -> list[Log]:
        """The runs of a task that are there."""
        names = [(path.parent.name, path.stem) for path in task.logs(Path())]
        return [self.logs[name] for name in names if name in self.logs]

    def scores(self, dataset: str, head: str) -> dict[tuple[float, float], float]:
        """Mean held-out accuracy of each setting whose tuning runs are all there."""
        found = {}
        for setting in GRID:
            runs = self.runs(Task(dataset, head, *setting, tuple(TUNING_SEEDS)))
            if len(runs) == len(TUNING_SEEDS):
                found[setting] = mean_of([heldout(run) for run in runs])
        return found

    def best(self, dataset: str, head: str) -> tuple[float, float] | None:
        """Dropout and rate; nothing before all tuning runs of this head are there."""
        scores = self.scores(dataset, head)
        return choose(scores) if len(scores) == len(GRID) else None

    def finals(self, dataset: str, head: str) -> list[Log]:
        """The final runs, in the order of their seeds."""
        setting = self.best(dataset, head)
        return self.runs(Task(dataset, head, *setting, tuple(FINAL_SEEDS))) if setting else []

    def rounds(self, heads: Sequence[str]) -> int:
        """How many seeds, in whole blocks from the first on, all these heads have on all sets."""
        seeds = [{log.seed for log in self.finals(name, head)} for name in SETS for head in heads]
        common = set.intersection(*seeds)
        missing = [place for place, seed in enumerate(FINAL_SEEDS) if seed not in common]
        return (missing[0] if missing else len(FINAL_SEEDS)) // BLOCK * BLOCK

    def sample(self, dataset: str, head: str) -> list[Log]:
        """The final runs that count: whole blocks, for a primary head of all primary heads."""
        heads = PRIMARY_HEADS if head in PRIMARY_HEADS else [*PRIMARY_HEADS, head]
        return self.finals(dataset, head)[: self.rounds(heads)]

    def plain(self, dataset: str, head: str) -> list[Log]:
        """Runs with the scripts' own rate and no dropout, corrected, of the seeds 0 to 9."""
        place = self.logs if head == "linear" else self.others
        names = [f"cnn-{head}-corrected{mark}" for mark in ("", "-drop0.0")]  # schemas 3 and 2
        runs = [place.get((dataset, f"{name}-s{k}")) for k in range(10) for name in names]
        return [run for run in runs if run and run.settings["fc_dropout"] == 0]


def read_tuned(folder: Path, others: Sequence[Log]) -> Tuned | None:
    """The experiment of a results folder; nothing if it was not begun there."""
    if not (folder / "tuned_heads/logs").is_dir():
        return None
    logs, findings = read_logs(folder / "tuned_heads/logs")
    named = [{(log.script, log.start["run"]): log for log in part} for part in (logs, others)]
    findings = [replace(each, path=f"tuned_heads/{each.path}") for each in findings]
    return Tuned(*named, findings)


def heldout(log: Log) -> float:
    """What the tuning goes by: the held-out accuracy of the reported epoch; 0 if it diverged."""
    finished = log.end["outcome"] == "finished"
    return log.end["best_heldout_accuracy_pct"] if finished else 0.0


def tuning_columns() -> Columns:
    """A column for each setting."""
    settings = {f"{p} {rate}": f"{p:g}, {rate:g}" for p, rate in GRID}
    return {"dataset": "Data set", "head": "Head"} | settings


def tuning_rows(tuned: Tuned) -> list[Row]:
    """Mean held-out accuracy by setting; the best one is marked."""
    rows = []
    for dataset in SETS:
        for head in HEADS:
            scores, best = tuned.scores(dataset, head), tuned.best(dataset, head)
            if not scores:
                continue
            row = {"dataset": set_name(tuned, dataset), "head": NAMES[head]}
            for setting, score in scores.items():
                mark = " ←" if setting == best else ""
                row["{} {}".format(*setting)] = number(score, 2) + mark
            rows.append(row)
    return rows


def set_name(tuned: Tuned, script: str) -> str:
    """`Fashion-MNIST`, as the logs call it."""
    names = (log.settings["dataset"] for (owner, _), log in tuned.logs.items() if owner == script)
    return next(names, script)


def final_rows(tuned: Tuned) -> list[Row]:
    """Each head with its best setting, on the images that the comparisons use."""
    rows = []
    for dataset in SETS:
        series = [(head, tuned.best(dataset, head), tuned.sample(dataset, head)) for head in HEADS]
        series.append(("linear", ROW, tuned.plain(dataset, "linear")))
        for head, setting, logs in series:
            if len(logs) < 3:
                continue
            values = [heldout(log) for log in logs]
            note = ", not tuned" if head == "linear" else ""
            row = {
                "dataset": set_name(tuned, dataset),
                "head": NAMES[head],
                "parameters": f"{logs[0].start['parameters']:,}",
                "setting": "{:g}, {:g}".format(*setting) + note,
                "runs": str(len(logs)),
                "heldout_cell": number(mean_of(values), 2),
                "test_cell": mean_cell(logs),
                "heldout": f"{mean_of(values):.3f}",
                "test": f"{mean_of([log.score for log in logs]):.3f}",
            }
            rows.append(row)
    return rows


def pairs_of(tuned: Tuned, comparison: tuple[str, str, str]) -> list[tuple[Log, Log]]:
    """The runs of two heads, seed by seed."""
    dataset, left, right = comparison
    if "linear" in (left, right):
        return paired(tuned.plain(dataset, left), tuned.plain(dataset, right))
    return paired(tuned.sample(dataset, left), tuned.sample(dataset, right))


def differences_of(
    tuned: Tuned, comparisons: Sequence[tuple[str, str, str]]
) -> list[tuple[tuple[str, str, str], Difference]]:
    """Those comparisons that have runs of at least three seeds."""
    found = []
    for comparison in comparisons:
        pairs = pairs_of(tuned, comparison)
        if len(pairs) > 2:
            found.append((comparison, paired_difference(*zip(*pairs, strict=True))))
    return found


def primary(tuned: Tuned | None) -> list[tuple[tuple[str, str, str], Difference]]:
    """The four primary comparisons: none before there are as many seeds as the plan wants."""
    if tuned is None or tuned.rounds(PRIMARY_HEADS) < FEWEST_ROUNDS:
        return []
    return differences_of(tuned, PRIMARY)


def words_of(decision: str, left: str, right: str) -> str:
    """A decision between Spinal and FC, with the names of these heads."""
    better = {"Spinal better": left, "FC better": right}
    return f"{NAMES[better[decision]]} better" if decision in better else decision


def pair_rows(tuned: Tuned, items: list) -> list[Row]:
    """A line for each comparison."""
    rows = []
    for (dataset, left, right), difference in items:
        error = image_standard_error(pairs_of(tuned, (dataset, left, right)))
        row = {
            "dataset": set_name(tuned, dataset),
            "heads": f"{NAMES[left]} − {NAMES[right]}",
            "pairs": str(difference.pairs),
            "difference_cell": difference_text(difference, 2, count=False),
            "image_error": number(error, 2),
            "difference": f"{difference.mean:.3f}",
            "low": f"{difference.low:.3f}",
            "high": f"{difference.high:.3f}",
            "p": p_value(difference.p),
        }
        rows.append(row)
    return rows


def primary_rows(tuned: Tuned | None) -> list[Row]:
    """The primary family with Holm's correction; empty before it can be evaluated."""
    items = primary(tuned)
    verdicts = decisions([difference for _, difference in items])
    rows = pair_rows(tuned, items) if items else []
    for row, (comparison, difference), (p, decision) in zip(rows, items, verdicts, strict=True):
        row["p_holm"] = p_value(p)
        row["decision"] = words_of(decision, *comparison[1:])
        row["equivalent"] = equivalent(difference, MARGINS[row["dataset"]])
    return rows


def front_rows(tuned: Tuned | None) -> tuple[Columns, list[Row]]:
    """For the collection's README: a line a comparison, a column a set."""
    rows = primary_rows(tuned)
    columns = FRONT | {row["dataset"]: row["dataset"] for row in rows}
    lines: dict[str, Row] = {}
    for row in rows:
        larger = " (as many parameters)" if row["heads"].endswith("FC 26") else ""
        line = lines.setdefault(row["heads"], {"heads": row["heads"] + larger})
        line[row["dataset"]] = f"{row['difference_cell']}: {row['decision']}"
    return columns, list(lines.values())


def seen(tuned: Tuned) -> str:
    """What one sees in the figure: the order of the primary heads."""
    texts = []
    for dataset in SETS:
        means = {
            head: mean_of([x.score for x in tuned.sample(dataset, head)]) for head in PRIMARY_HEADS
        }
        order = sorted(means, key=means.get, reverse=True)
        listed = ", ".join(f"{NAMES[head]} {number(means[head], 2)}" for head in order)
        texts.append(f"{set_name(tuned, dataset)}: {listed}")
    return f"the means, from the highest, are {'; '.join(texts)}."


def answer(tuned: Tuned | None) -> str:
    """The primary family in a sentence; empty before it can be evaluated."""
    rows = primary_rows(tuned)
    if not rows:
        return ""
    decided = [row["decision"] for row in rows]
    counts = [f"{words} in {decided.count(words)}" for words in dict.fromkeys(decided)]
    texts = [f"{row['dataset']}, {row['heads']} {row['difference_cell']}" for row in rows]
    seeds = f"{rows[0]['pairs']} fresh seeds"
    return f"{'; '.join(texts)} ({seeds}). Decisions, by Holm: {', '.join(counts)}"


def values_of(tuned: Tuned | None, markdown: Any) -> dict[str, str]:
    """What the page says; empty texts drop their paragraphs. markdown: makes a table"""
    names = ("tuning", "final", "primary", "exploratory", "seeds", "edge", "seen")
    rows = primary_rows(tuned)
    if not rows:
        return {f"tuned_{name}": "" for name in names}
    rounds = tuned.rounds(PRIMARY_HEADS)
    chosen = [tuned.best(name, head) for name in SETS for head in PRIMARY_HEADS]
    edge = sum(rate == max(RATES) for _, rate in chosen)
    bare = sum(dropout == 0 for dropout, _ in chosen)
    others = differences_of(tuned, EXPLORATORY + UNTUNED)
    whole = "as planned"
    if rounds < len(FINAL_SEEDS):
        whole = f"of {len(FINAL_SEEDS)} planned: the clock ended the runs"
    texts = (
        markdown(tuning_columns(), tuning_rows(tuned)),
        markdown(FINAL, final_rows(tuned)),
        markdown(FAMILY, rows),
        markdown(PAIRS, pair_rows(tuned, others)) if others else "",
        f"{rounds} ({whole})",
        f"{bare} of {len(chosen)} best settings have no dropout, {edge} the rate {max(RATES):g}",
        seen(tuned),
    )
    return {f"tuned_{name}": text for name, text in zip(names, texts, strict=True)}


def files(tuned: Tuned | None, comma_separated: Any) -> dict[str, str]:
    """The tables for programs; none before the primary family can be evaluated."""
    rows = primary_rows(tuned)
    if not rows:
        return {}
    others = pair_rows(tuned, differences_of(tuned, EXPLORATORY + UNTUNED))
    named = [row | {"family": "primary"} for row in rows]
    named += [row | {"family": "exploratory"} for row in others]
    return {
        "tables/tuned_heads.csv": comma_separated(named),
        "tables/tuned_settings.csv": comma_separated(final_rows(tuned)),
    }


def draw(pyplot: Any, tuned: Tuned | None, panels: Any, looks: list) -> Any:
    """Test accuracy against the parameters of the network; mean and 95 % interval over seeds."""
    if not primary(tuned):
        return None
    figure, grid = panels(pyplot, len(SETS), 3.6)
    figure.set_figheight(2.9)
    for axes, dataset in zip(grid, SETS, strict=True):
        series = {head: tuned.sample(dataset, head) for head in HEADS}
        kinds = {"fc": looks[0], "spinal": looks[1]}
        for head, logs in series.items():
            if len(logs) < 3:
                continue
            colour, _, marker = kinds[head.rstrip("0123456789x")]
            values = [log.score for log in logs]
            place = logs[0].start["parameters"] / 1000, mean_of(values)
            half = half_width(values, 0, resolution_of(logs[0]))
            look = {"color": colour, "marker": marker, "markersize": 4, "capsize": 2}
            axes.errorbar(*place, yerr=half, linestyle="none", **look)
            left = head in ("fc26", "spinal6x8")  # two heads of one size, one above the other
            axes.annotate(
                NAMES[head],
                place,
                (-7 if left else 7, 0),
                textcoords="offset points",
                color=colour,
                ha="right" if left else "left",
                va={"fc26": "bottom", "spinal6x8": "top"}.get(head, "center"),
            )
        axes.set_title(f"{set_name(tuned, dataset)}, small CNN", loc="left")
        axes.set_xlabel("parameters of the network, thousands")
        axes.set_xlim(9, 25.5)
        axes.margins(y=0.15)
    grid[0].set_ylabel("test accuracy, %")
    return figure
