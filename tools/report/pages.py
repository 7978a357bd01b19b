"""The report on the reference logs and the page of the user's own runs; their prose stands in the templates."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from report import rules, series, tables
from report.costs import CLAIM, Cost, claim_rows, find, of_row, plan_file
from report.formats import TEMPLATES, comma_separated, fill, latex, markdown, markdown_text
from report.inference import Difference, mean_of
from report.logs import Finding
from report.names import VARIANTS, script_path
from report.paper import PaperRow
from report.rows import Cells, Comparison, reading_order, row_comparisons
from report.tables import Column, Constants, Row, number

NOT_YET = "not run yet"


@dataclass(frozen=True)
class Sources:
    """Everything that the report is a function of."""

    paper: list[PaperRow]
    cells: Cells
    findings: list[Finding]
    costs: list[Cost]
    constants: Constants

    @property
    def items(self) -> list[Comparison]:
        return row_comparisons(self.cells, self.paper)

    @property
    def images(self) -> list[Comparison]:
        """Comparisons of image sets, in the order of the table."""
        return sorted(
            (item for item in self.items if not item.spinal[0].regression), key=reading_order
        )


Tables = dict[str, list[Row]]
FORMS: dict[str, tuple[list[Column], list[str]]] = {
    "table1": (tables.REGRESSION, tables.REGRESSION_CSV),
    "table2": (tables.ACCURACY, tables.ACCURACY_CSV),
    "table2_pairs": (tables.PAIRS, tables.PAIRS_CSV),
    "table3": (tables.ACCURACY, tables.ACCURACY_CSV),
    "dropout": (series.DROPOUT, series.DROPOUT_CSV),
    "vgg5_parts": (tables.PARTS, tables.PARTS_CSV),
    "cnn_parts": (tables.PARTS, tables.PARTS_CSV),
    "precision": (series.PRECISION, series.PRECISION_CSV),
    "other_runs": (tables.OTHER, tables.OTHER_CSV),
}
IN_LATEX = ("table1", "table2", "table2_pairs", "table3", "dropout", "vgg5_parts", "cnn_parts")


def table_rows(sources: Sources, reference: Cells | None = None) -> Tables:
    """The rows of every table."""
    paper, cells = sources.paper, sources.cells
    return {
        "table1": tables.regression_rows(paper, cells, sources.constants, reference),
        "table2": tables.accuracy_rows(paper, cells, "II", "II (v2 only)", reference=reference),
        "table2_pairs": tables.pair_rows(sources.images),
        "table3": tables.accuracy_rows(paper, cells, "III", reference=reference),
        "dropout": series.dropout_rows(series.dropout_runs(cells)),
        "vgg5_parts": series.part_rows(cells, paper, "vgg5"),
        "cnn_parts": series.part_rows(cells, paper, "cnn"),
        "precision": series.precision_rows(cells.logs),
        "other_runs": tables.other_rows(series.outside_the_series(cells), reference),
    }


def table_files(sources: Sources, made: Tables) -> dict[str, str]:
    """Markdown, CSV and LaTeX of each table, and the command of each row."""
    texts = {
        "tables/table1_learnt.md": markdown(tables.LEARNT, made["table1"]),
        "tables/table1_learnt.tex": latex(tables.LEARNT, made["table1"]),
        "tables/tables.tex": (TEMPLATES / "tables.tex").read_text(encoding="utf-8"),
        "tables/commands.txt": commands(sources),
    }
    for name, (columns, keys) in FORMS.items():
        texts[f"tables/{name}.md"] = markdown(columns, made[name])
        texts[f"tables/{name}.csv"] = comma_separated(keys, made[name])
        if name in IN_LATEX:
            texts[f"tables/{name}.tex"] = latex(columns, made[name])
    return texts


def commands(sources: Sources) -> str:
    """One command for each row and protocol that has runs, for the seeds that these span."""
    lines = []
    for row in sources.paper:
        for variant in VARIANTS:
            if logs := sources.cells.of(row, variant):
                protocol, _, option = variant.partition("-")
                target = (
                    f"--function {row.function}"
                    if row.function
                    else f"--network {row.network} --precision fp32"
                )
                head = (
                    f"spinal --layers {row.layers} --width {row.width}"
                    if row.head == "spinal"
                    else "fc"
                )
                option = {"broadcast": " --noise broadcast", "nodropout": " --fc-dropout 0"}.get(
                    option, ""
                )
                seeds = (
                    f"--seed {logs[0].seed} " * bool(logs[0].seed)
                    + f"--runs {logs[-1].seed - logs[0].seed + 1}"
                )
                script = (script_path(row.script) or Path(f"{row.script}.py")).as_posix()
                lines.append(
                    f"python {script} {target} --head {head} --protocol {protocol}{option} {seeds}\n"
                )
    return "".join(dict.fromkeys(lines))


# ---- Values of sentences: nothing in them is stronger than the decisions of the tables ----
def tally(found: Sequence[str]) -> str:
    """`4 for the Spinal head, none for the FC head, 2 undecided`."""
    words = {
        "Spinal better": "for the Spinal head",
        "FC better": "for the FC head",
        "undecided": "undecided",
    }
    return ", ".join(f"{found.count(key) or 'none'} {text}" for key, text in words.items())


def spans(found: Iterable[tuple[str, str, Difference]]) -> str:
    """Differences by data set: `MNIST +0.23 [+0.08, +0.39] (6 × 8), +0.26 [...] (6 × 10)`."""
    sets: dict[str, list[str]] = defaultdict(list)
    for name, label, difference in found:
        sets[name].append(
            tables.difference_text(difference, 2, count=False) + f" ({label})" * bool(label)
        )
    return "; ".join(f"{name} {', '.join(texts)}" for name, texts in sets.items())


def told(images: Sequence[Comparison], network: str, *variants: str) -> str:
    """Differences of a network under these variants, and decisions by Holm over all of the table."""
    found, decided = [], []
    for item, (_, _, decision) in zip(
        images, tables.decisions([item.difference for item in images])
    ):
        if item.network == network and item.variant in variants and item.difference.judged:
            found.append(
                (
                    item.dataset,
                    item.size + ", no dropout" * ("nodropout" in item.variant),
                    item.difference,
                )
            )
            decided.append(decision)
    return f"{spans(found)}; decisions: {tally(decided)}" if found else NOT_YET


def equal_dropout(runs: series.DropoutRuns) -> str:
    """What is left of the difference at equal dropout: range of means and intervals for each set, and decisions."""
    found = series.dropout_differences(runs)
    decided = [decision for _, _, decision in tables.decisions(list(found.values()))]
    parts = []
    for script, name in series.DROPOUT_SETS:
        if here := [
            difference
            for key, difference in found.items()
            if key[0] == script and difference.judged
        ]:
            means, lows, highs = (
                [getattr(each, key) for each in here] for key in ("mean", "low", "high")
            )
            ends = [number(end, 2, "+") for end in (min(means), max(means), min(lows), max(highs))]
            parts.append(
                "between {} and {} on {} (intervals reach from {} to {})".format(
                    *ends[:2], name, *ends[2:]
                )
            )
    missing = sum(not difference.judged for difference in found.values())
    text = f"{' and '.join(parts)}; decisions: {tally(decided)}" if parts else NOT_YET
    return text + f"; {missing} of {len(found)} {NOT_YET}" * bool(parts and missing)


def told_on_parts(rows: Sequence[Row]) -> str:
    """Decisions on parts of the data, by protocol."""
    judged = [row for row in rows if row.get("p")]
    sets = ", ".join(dict.fromkeys(row["dataset"] for row in judged))
    found = {
        variant: [row["decision"] for row in judged if row["variant"] == variant]
        for variant in VARIANTS.values()
    }
    texts = [f"{variant}: {tally(decided)}" for variant, decided in found.items() if decided]
    return f"{sets}: {'; '.join(texts)}" if texts else NOT_YET


def answer_values(sources: Sources, made: Tables) -> dict[str, str]:
    """What stands in the five sentences."""
    images, runs, rows = (
        sources.images,
        series.dropout_runs(sources.cells),
        made["table2"] + made["table3"],
    )
    judged = [row for row in rows if "told apart" in row["verdict"]]
    cells = [row[key] for row in made["table1"] for key in ("verdict_100", "verdict_200")]
    have = {row["network"] for row in rows if row["runs"] != "0"}
    lacking = dict.fromkeys(row["network"] for row in rows if row["network"] not in have)
    vgg = [row for row in made["vgg5_parts"] if row.get("p")]
    parts = [
        f"{row['dataset']} {row['difference_cell'].rpartition(' (')[0]} ({row['variant']}, {row['epochs']} "
        f"epochs, {row['precision']}, {row['pairs']} pairs, 80 % power from {row['detectable']}; the paper, "
        f"all data: {row['paper_difference']})"
        for row in vgg
    ]
    return {
        "published": told(images, "CNN", "published"),
        "equal_dropout": equal_dropout(runs),
        "gains": spans((name, "", gain) for name, gain in series.dropout_gains(runs))
        or f"({NOT_YET})",
        "corrected": told(images, "CNN", "corrected", "corrected-nodropout"),
        "parts": told_on_parts(made["cnn_parts"]),
        "tutorial": told(images, "CNN (tutorial)", "corrected"),
        "judged": str(len(judged)),
        "sets": ", ".join(dict.fromkeys(row["dataset"] for row in judged)) or "none",
        "apart": str(sum(row["verdict"].startswith("told apart") for row in judged)),
        "alike": str(sum(row["verdict"].startswith("not told apart") for row in judged)),
        "above": share(float(row["mean"]) > float(row["paper_mean"]) for row in judged),
        "within": share("within" in cell for cell in cells if not cell.startswith("not")),
        "missing": share(row["runs"] == "0" for row in rows),
        "lacking": ", ".join(lacking) or "no network",
        "vgg5": f"{'; '.join(parts)}; decisions: {tally([row['decision'] for row in vgg])}"
        if vgg
        else NOT_YET,
    }


def share(flags: Iterable[bool]) -> str:
    """`3 of 8`."""
    flags = list(flags)
    return f"{sum(flags)} of {len(flags)}"


def ends_of(values: Sequence[float], digits: int) -> str:
    """`−4.9 to −1.2`; empty without values."""
    return (
        f"{number(min(values), digits, '+')} to {number(max(values), digits, '+')}"
        if values
        else ""
    )


def seen(sources: Sources) -> dict[str, str]:
    """What one sees in the figures; empty where there are no runs for one."""
    cells, costs, runs = sources.cells, sources.costs, series.dropout_runs(sources.cells)
    items = [item for item in sources.images if item.difference.judged]
    rows = {
        row: logs
        for (row, variant), logs in cells.runs.items()
        if variant == "published" and row.table != "I"
    }
    sides = []
    for variant in ("published", "corrected", "corrected-nodropout"):
        if here := [item.difference for item in items if item.variant == variant]:
            right, left = (
                share(each.low > 0 for each in here),
                share(each.high < 0 for each in here),
            )
            sides.append(
                f"{VARIANTS[variant]}: {right} intervals wholly right of 0, {left} wholly left"
            )
    changing = []
    for item in items:
        ends = [
            mean_of([ours.curve[end] - theirs.curve[end] for ours, theirs in item.pairs])
            for end in (0, -1)
        ]
        if item.variant == "published" and ends[0] * ends[1] < 0:
            first, last = (number(end, 2, "+") for end in ends)
            changing.append(
                f"{item.dataset}, {item.network}, {item.size}: {first} after the first epoch, {last} after "
                "the last"
            )
    printed = [
        mean_of([log.score for log in logs]) > float(row.metric("accuracy_avg_pct"))
        for row, logs in rows.items()
        if row.metric("accuracy_avg_pct")
    ]
    steps = [
        mean_of([log.curve[-1] - log.curve[-2] for log in logs if len(log.curve) > 1] or [0.0])
        for logs in rows.values()
    ]
    changes = [
        100 * (ours.macs / fc.macs - 1)
        for row in rows
        if row.head == "spinal"
        and (ours := of_row(costs, row))
        and (fc := find(costs, row.script, row.network, "fc"))
    ]
    worse = []
    for (row, variant), logs in cells.runs.items():
        scores = [
            score for (function, _), score in sources.constants.items() if function == row.function
        ]
        if variant == "corrected" and row.table == "I" and scores:
            worse.append(
                1000 * statistics.median(log.value("clean_mse") for log in logs)
                > statistics.median(scores)
            )
    return {
        "forest": "; ".join(sides),
        "changing": ("; ".join(changing) or "no row") if items else "",
        "lower": share(printed) if rows else "",
        "changes": ends_of(changes, 1),
        "steps": ends_of(steps, 2),
        "below": share(
            each.mean < 0 for each in series.dropout_differences(runs).values() if each.judged
        ),
        "moved": spans((name, "", gain) for name, gain in series.dropout_gains(runs)),
        "worse": share(worse) if worse else "",
    }


def log_values(sources: Sources) -> dict[str, str]:
    """Which text wrote the logs, what is counted and what is left out."""
    cells, others = sources.cells, series.outside_the_series(sources.cells)
    return {
        "texts": series.foreign_texts(cells.logs),
        "used": str(sum(map(len, cells.runs.values()))),
        "others": str(len(others)),
        "series": str(len(cells.others) - len(others)),
        "out": str(len(sources.findings)),
        "left_out": "".join(
            f"* `{finding.path}`, line {finding.line}: {markdown_text(finding.reason)}\n"
            for finding in sources.findings
        ),
        "notes": "".join(f"* {markdown_text(note)}\n" for note in cells.notes),
    }


def ran(rows: Iterable[Row]) -> list[Row]:
    """Rows with runs under some protocol."""
    kinds = ("runs", "broadcast_runs", "corrected_runs", "nodropout_runs")
    return [row for row in rows if any(row.get(kind, "0") != "0" for kind in kinds)]


def reference_texts(sources: Sources) -> dict[str, str]:
    """Every text of the reference folder, by its path there, and the part of the collection's README."""
    made = table_rows(sources)
    answer = fill("answer.md", answer_values(sources, made))
    correlations = [
        item.difference.correlation
        for item in sources.images
        if item.difference.correlation is not None
    ]
    means = {
        name: number(mean_of(scores), 0)
        for name in ("product", "sinproduct")
        if (
            scores := [
                score for (function, _), score in sources.constants.items() if function == name
            ]
        )
    }
    values = (
        {
            "answer": answer,
            "rules": rules.__doc__,
            "correlations": ends_of(correlations, 2),
            "missing2": f"{len(made['table2']) - len(ran(made['table2']))} of {len(made['table2'])}",
            "ran3": f"{len(ran(made['table3']))} of {len(made['table3'])}",
            "mean_product": means.get("product", "unknown"),
            "mean_sinproduct": means.get("sinproduct", "unknown"),
            "claims": markdown(CLAIM, claim_rows(sources.costs)),
            "table1_learnt": markdown(tables.LEARNT, made["table1"]),
        }
        | seen(sources)
        | log_values(sources)
    )
    for name, (columns, _) in FORMS.items():
        values[name] = markdown(columns, ran(made[name]) if name == "table2" else made[name])
    short = [column for column in tables.PAIRS if column.key in tables.FRONT]
    return {
        "README.md": fill("reference.md", values),
        "tables/plan.csv": plan_file(sources.paper, sources.costs),
        "front page": f"{answer}\n{markdown(short, made['table2_pairs'])}",
    } | table_files(sources, made)


def user_texts(sources: Sources, reference: Cells) -> dict[str, str]:
    """Every text of a folder of one's own runs: the same tables, beside the paper and the reference runs."""
    made = table_rows(sources, reference)
    beside = {
        "second": (
            tables.ACCURACY[:8] + tables.REFERENCE + tables.ACCURACY[8:],
            ran(made["table2"] + made["table3"]),
        ),
        "pairs": (tables.PAIRS, made["table2_pairs"]),
        "first": (
            tables.REGRESSION[:4] + tables.REFERENCE_200 + tables.REGRESSION[4:],
            ran(made["table1"]),
        ),
        "other": (tables.OTHER + tables.REFERENCE, made["other_runs"]),
    }
    values = (
        {name: markdown(columns, rows) for name, (columns, rows) in beside.items()}
        | seen(sources)
        | log_values(sources)
    )
    return {"tables/README.md": fill("user.md", values)} | table_files(sources, made)
