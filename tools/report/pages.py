"""The report on the shipped logs and the page of the user's own; their prose is in templates."""

import re
import statistics
from collections.abc import Iterable, Sequence

from report import tables, tuned
from report.claims import CLAIMS, claim_rows
from report.comparisons import Comparison, Identity, image_standard_error
from report.costs import find
from report.evidence import Evidence
from report.formats import TEMPLATES, comma_separated, fill, latex, markdown, markdown_text
from report.gradients import GRADIENTS, gradient_rows, gradients_sentence
from report.inference import decisions, mean_of
from report.names import script_path
from report.rows import BROADCAST, CORRECTED, RELEASED, departures_of, heads_differ
from report.tables import Columns, Row, difference_text, number

NOT_YET = "not run yet"
FORMS: dict[str, Columns] = {
    "identity": tables.IDENTITY,
    "comparisons": tables.PAIRS,
    "vgg5": tables.VGG5,
    "table1": tables.REGRESSION,
    "table1_learnt": tables.LEARNT,
    "table2": tables.ACCURACY,
    "table3": tables.ACCURACY,
    "precision": tables.PRECISION,
    "claims": CLAIMS,
    "other_runs": tables.OTHER,
}
IN_LATEX = ("identity", "comparisons", "vgg5", "table1", "table1_learnt", "table2", "table3")
FRONT: Columns = {
    "what": "Spinal minus FC, points",
    "paper": "Paper",
    "released": "Ours, as released",
    "left": "Ours, no dropout",
    "verdict": "Verdict",
}


def table_rows(evidence: Evidence, reference: Evidence | None = None) -> dict[str, list[Row]]:
    """The rows of every table."""
    paper, ours = evidence.paper, evidence.rows
    theirs = reference.rows if reference else None
    pairs = [tables.pair_row(each) for each in evidence.comparisons]
    first = tables.regression_rows(paper, ours, evidence.constants)
    identities, logs = evidence.identities, theirs.logs if theirs else []
    second = ("II", "II (v2 only)")
    return {
        "identity": tables.identity_rows(identities),
        "comparisons": pairs,
        "vgg5": [row for row in pairs if row["network"] == "VGG-5"],
        "table1": first,
        "table1_learnt": first,
        "table2": tables.accuracy_rows(paper, ours, *second, reference=theirs),
        "table3": tables.accuracy_rows(paper, ours, "III", reference=theirs),
        "precision": tables.precision_rows(ours.logs),
        "claims": claim_rows(evidence, first),
        "other_runs": tables.other_rows(ours.others, logs),
    }


def table_files(evidence: Evidence, made: dict[str, list[Row]]) -> dict[str, str]:
    """Markdown, CSV and LaTeX of each table, and the command of each row."""
    texts = {
        "tables/tables.tex": (TEMPLATES / "tables.tex").read_text(encoding="utf-8"),
        "tables/commands.txt": commands(evidence),
    }
    for name, columns in FORMS.items():
        texts[f"tables/{name}.md"] = markdown(columns, made[name])
        if name not in ("vgg5", "table1_learnt"):  # these are columns or lines of another one
            texts[f"tables/{name}.csv"] = comma_separated(made[name])
        if name in IN_LATEX:
            texts[f"tables/{name}.tex"] = latex(columns, made[name])
    return texts


def commands(evidence: Evidence) -> str:
    """One command for each row and variant that has runs, for the seeds that these span."""
    lines = []
    for row in evidence.paper:
        for (owner, variant), logs in evidence.rows.runs.items():
            if owner != row:
                continue
            target = f"--network {row.network} --precision fp32"
            if row.function:
                target = f"--function {row.function}"
            head = "fc"
            if row.head == "spinal":
                head = f"spinal --layers {row.layers} --width {row.width}"
            protocol = logs[0].settings["protocol"]
            option = " --noise broadcast" if variant == BROADCAST else ""
            if variant.startswith(f"{CORRECTED}, "):
                option = f" --fc-dropout {logs[0].settings['fc_dropout']}"
            seeds = f"--runs {logs[-1].seed - logs[0].seed + 1}"
            if logs[0].seed:
                seeds = f"--seed {logs[0].seed} {seeds}"
            command = f"python {script_path(row.script).as_posix()} {target} --head {head}"
            lines.append(f"{command} --protocol {protocol}{option} {seeds}\n")
    return "".join(dict.fromkeys(lines))


# ---- Values of sentences: nothing in them is stronger than the tables ---------------------------
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


def narrowest(identities: Sequence[Identity]) -> list[Identity]:
    """One of each set: the narrowest Spinal head."""
    found: dict[str, Identity] = {}
    for each in identities:
        found.setdefault(each.released.dataset, each)
    return list(found.values())


def by_set(identities: Sequence[Identity], part: str) -> str:
    """`MNIST +0.23 [+0.08, +0.39]; ...` of one part of each identity, 6 × 8 only."""
    texts = []
    for each in narrowest(identities):
        difference = each.gain if part == "gain" else getattr(each, part).difference
        texts.append(f"{each.released.dataset} {difference_text(difference, 2, count=False)}")
    return "; ".join(texts) or NOT_YET


def tally(found: Sequence[str]) -> str:
    """`4 for the Spinal head, none for the FC head, 2 undecided`."""
    words = {
        "Spinal better": "for the Spinal head",
        "FC better": "for the FC head",
        "undecided": "undecided",
    }
    return ", ".join(f"{found.count(key) or 'none'} {text}" for key, text in words.items())


def sides(items: Sequence[Comparison]) -> str:
    """`5 intervals, above 0: 4, below 0: none`."""
    judged = [item.difference for item in items if item.difference.judged]
    if not judged:
        return NOT_YET
    above, below = sum(each.low > 0 for each in judged), sum(each.high < 0 for each in judged)
    return f"{len(judged)} intervals, above 0: {above or 'none'}, below 0: {below or 'none'}"


def answer_values(evidence: Evidence, made: dict[str, list[Row]]) -> dict[str, str]:
    """What stands in the sentences of the summary."""
    rows = made["table2"] + made["table3"]
    judged = [row for row in rows if row["verdict"].startswith(("yes", "no,"))]
    means = [float(row["mean"]) > float(row["paper_mean"]) for row in judged]
    cells = [row[key] for row in made["table1"] for key in ("verdict_100", "verdict_200")]
    cells = [cell for cell in cells if not cell.startswith("not")]
    seeds = max((int(row["runs"]) for row in made["table1"]), default=0)
    expected = len(cells) * (seeds - 1) / (seeds + 1) if seeds else 0.0
    have = {row["network"] for row in rows if row["runs"] != "0"}
    lacking = dict.fromkeys(row["network"] for row in rows if row["network"] not in have)
    small = [each for each in evidence.comparisons if each.network == "CNN"]
    vgg5 = [each for each in evidence.comparisons if each.network == "VGG-5"]
    left = [each.left.difference for each in evidence.identities]
    decided = [decision for _, decision in decisions(left)]
    return {
        "released": by_set(evidence.identities, "released"),
        "left": by_set(evidence.identities, "left"),
        "gain": by_set(evidence.identities, "gain"),
        "decided": tally(decided) if decided else NOT_YET,
        "tuned_answer": tuned.answer(evidence.tuned) or NOT_YET,
        "corrected": sides([each for each in small if each.treatment.startswith(CORRECTED)]),
        "equal": sides([each for each in small if each.treatment.startswith(f"{RELEASED}, drop")]),
        "sets": ", ".join(dict.fromkeys(row["dataset"] for row in judged)) or "none",
        "alike": share(row["verdict"].startswith("no,") for row in judged),
        "above": share(means),
        "within": share("within" in cell for cell in cells),
        "expected": f"{expected:.0f}",
        "below": share("below" in cell for cell in cells if "within" not in cell),
        "missing": share(row["runs"] == "0" for row in rows),
        "lacking": ", ".join(lacking) or "no network",
        "vgg5_sides": sides(vgg5),
        "vgg5_list": "; ".join(
            f"{each.dataset}, {each.setting.split(', ', 1)[1]}, {each.treatment} "
            f"{difference_text(each.difference, 2)}"
            for each in vgg5
            if each.difference.judged
        )
        or NOT_YET,
    }


def heldout_preference(evidence: Evidence) -> str:
    """In how many pairs of corrected runs held-out images prefer no dropout to 0.5 in the head."""
    runs: dict[tuple, dict[float, float]] = {}
    for log in evidence.rows.logs:
        if log.settings["protocol"] == "corrected" and heads_differ(log) and not departures_of(log):
            key = (log.script, log.head, log.seed, log.data_key)
            best = log.end["best_heldout_accuracy_pct"]
            runs.setdefault(key, {})[log.settings["fc_dropout"]] = best
    both = [levels for levels in runs.values() if {0.0, 0.5} <= levels.keys()]
    return share(levels[0.0] > levels[0.5] for levels in both) if both else ""


def verdict_of(identity: Identity, decision: str) -> str:
    """Was the lead reproduced as released, and is it there without dropout?"""
    released = identity.released.difference
    if not released.judged or not identity.left.difference.judged:
        return "too few runs to tell"
    here = "reproduced" if identity.released.complete else "on this part, too"
    first = f"lead {here}" if released.low > 0 else "lead not seen"
    first = "FC ahead" if released.high < 0 else first
    words = {"Spinal better": "it stays", "FC better": "FC ahead", "undecided": "it is gone"}
    return f"{first}; {words[decision]} without dropout"


def front_rows(evidence: Evidence, made: dict[str, list[Row]]) -> list[Row]:
    """The table of the collection's README: one line for each question."""
    rows = []
    decided = decisions([each.left.difference for each in evidence.identities])
    shown = narrowest(evidence.identities)
    for each, (_, decision) in zip(evidence.identities, decided, strict=True):
        if each in shown:
            texts = (
                f"{images_of(each.released)}, small CNN, {each.released.size}",
                number(each.released.paper_difference, 2, "+"),
                difference_text(each.released.difference, 2, count=False),
                difference_text(each.left.difference, 2, count=False),
                verdict_of(each, decision),
            )
            rows.append(dict(zip(FRONT, texts, strict=True)))
    return rows + tutorial_row(evidence) + vgg5_row(evidence) + cost_and_regression(evidence, made)


def images_of(item: Comparison) -> str:
    """`MNIST`; `Kuzushiji-MNIST, 8,000 images` where that is not the complete set."""
    if item.complete or item.first.settings.get("limit"):
        return item.dataset
    return f"{item.dataset.removesuffix(', a part')}, {item.first.data['train']:,} images"


def tutorial_row(evidence: Evidence) -> list[Row]:
    """The CNN of PyTorch's tutorial, which has no dropout, as released."""
    found = [each for each in evidence.comparisons if each.network == "CNN (tutorial)"]
    for each in found:
        if each.treatment == RELEASED and each.complete and each.difference.judged:
            ahead = "FC ahead" if each.difference.high < 0 else "Spinal ahead"
            apart = each.difference.high < 0 or each.difference.low > 0
            texts = (
                f"{each.dataset}, tutorial's CNN, {each.size} (arXiv v2)",
                number(each.paper_difference, 2, "+"),
                difference_text(each.difference, 2, count=False),
                "the same: it has none",
                ahead if apart else "not told apart",
            )
            return [dict(zip(FRONT, texts, strict=True))]
    return []


def vgg5_row(evidence: Evidence) -> list[Row]:
    """VGG-5 with fewer images or epochs than the paper's, as released."""
    items = [each for each in evidence.comparisons if each.network == "VGG-5"]
    items = [each for each in items if each.difference.judged and each.treatment == RELEASED]
    if not items:
        return []
    paper = [each.paper_difference for each in items if each.paper_difference is not None]
    middle = ends_of([each.difference.mean for each in items], 2)
    texts = (
        f"VGG-5 with fewer images and epochs, {len(items)} small comparisons",
        ends_of(sorted(paper), 2),
        f"{middle}; {sides(items)}",
        "",
        "too few runs to tell",
    )
    return [dict(zip(FRONT, texts, strict=True))]


def cost_and_regression(evidence: Evidence, made: dict[str, list[Row]]) -> list[Row]:
    """The last lines of the front table: multiplications of the small CNN, Table I."""
    rows = []
    spinal = find(evidence.costs, "mnist", "cnn", "spinal", 6, 8)
    fc = find(evidence.costs, "mnist", "cnn", "fc")
    if spinal and fc:
        head = 100 - 100 * spinal.multiplications / fc.multiplications
        whole = 100 - 100 * spinal.macs / fc.macs
        printed = [line["printed"] for line in evidence.claims if "mnist/cnn" in line["evidence"]]
        ours = f"{head:.1f} % of the head, {whole:.1f} % of the network"
        texts = ("Multiplications saved, small CNN", *printed[:1], ours, "", "holds for the head")
        rows.append(dict(zip(FRONT, texts, strict=False)))
    values = answer_values(evidence, made)
    if not values["within"].startswith("0 of 0"):
        ours = f"{values['within']} within our seeds' range (about {values['expected']} expected)"
        texts = ("Regression, the numbers of Table I", "Table I", ours, "", "partly")
        rows.append(dict(zip(FRONT, texts, strict=True)))
    return rows


def seen(evidence: Evidence) -> dict[str, str]:
    """What one sees in the figures; empty where there are no runs for one."""
    identities = [each for each in evidence.identities if each.released.difference.judged]
    changing = []
    for each in narrowest(identities):
        curves = [(ours.curve, theirs.curve) for ours, theirs in each.released.pairs]
        ends = [mean_of([ours[end] - theirs[end] for ours, theirs in curves]) for end in (0, -1)]
        if ends[0] * ends[1] < 0:
            first, last = (number(end, 2, "+") for end in ends)
            changing.append(f"{each.released.dataset} ({first} after the first epoch, {last} last)")
    rows = {row: logs for (row, kind), logs in evidence.rows.runs.items() if kind == RELEASED}
    images = [logs for row, logs in rows.items() if row.table != "I"]
    steps = [
        mean_of([log.curve[-1] - log.curve[-2] for log in logs if len(log.curve) > 1] or [0.0])
        for logs in images
    ]
    released = [each.released for each in identities]
    left = [each.left for each in identities]
    return {
        "forest_released": sides(released) if released else "",
        "forest_left": sides(left),
        "changing": ("; ".join(changing) or "no set") if identities else "",
        "steps": ends_of(steps, 2),
        "worse": worse_than_constant(evidence),
        "vgg5_seen": sides([each for each in evidence.comparisons if each.network == "VGG-5"])
        if any(each.network == "VGG-5" for each in evidence.comparisons)
        else "",
    }


def worse_than_constant(evidence: Evidence) -> str:
    """In how many corrected rows of Table I a constant is closer to the function."""
    worse = []
    for (row, variant), logs in evidence.rows.runs.items():
        scores = [mse for (name, _), mse in evidence.constants.items() if name == row.function]
        if variant == CORRECTED and row.table == "I" and scores:
            middle = statistics.median(log.value("clean_mse") for log in logs)
            worse.append(1000 * middle > statistics.median(scores))
    return share(worse) if worse else ""


def gradients_table(evidence: Evidence) -> str:
    """Norms of gradients by layer; empty if they were not measured."""
    rows = gradient_rows(evidence.gradients)
    return markdown(GRADIENTS, rows) if rows else ""


def image_errors(comparisons: Sequence[Comparison]) -> str:
    """What other test images would do, where the logs say which images were right."""
    texts = []
    for item in comparisons:
        error = image_standard_error(item.pairs) if item.difference.judged else None
        if error is not None:
            texts.append(
                f"{item.dataset}, {item.network}, {item.heads}, {item.treatment}: {error:.2f}"
            )
    if not texts:
        return ""
    words = "Another test set of the same size would move Spinal − FC of the same networks by a "
    return f"{words}standard error of so many points, where logs tell: {'; '.join(texts)}."


def log_values(evidence: Evidence) -> dict[str, str]:
    """Which text and processor wrote the logs, what is counted and what is left out."""
    ours = evidence.rows
    unknown = [line for line in evidence.texts if line["shown"].startswith("not shown")]
    runs = sum(int(line["logs"]) for line in unknown)
    hidden = f"not shown: {len(unknown)} texts of {runs} logs" if unknown else "all are shown"
    names = {each["device_name"] for log in ours.logs for each in log.provenances}
    bare = {name for name in names if re.fullmatch("AVX2|AVX512|DEFAULT", name)}
    names = names - bare | {f"a processor with {name} that older logs do not name" for name in bare}
    tuned_logs = len(evidence.tuned.logs) if evidence.tuned else 0
    return {
        "count": str(len(ours.logs)),
        "tuned_count": str(tuned_logs or ""),
        "used": str(sum(map(len, ours.runs.values()))),
        "others": str(len(ours.others)),
        "out": str(len(evidence.findings)),
        "texts": str(len(evidence.texts)),
        "hidden": hidden,
        "devices": markdown_text(", ".join(sorted(names))) or "none",
        "left_out": "".join(
            f"* `{finding.path}`, line {finding.line}: {markdown_text(finding.reason)}\n"
            for finding in evidence.findings
        ),
        "notes": "".join(f"* {markdown_text(note)}\n" for note in ours.notes),
    }


def ran(rows: Iterable[Row]) -> list[Row]:
    """Rows with runs under some protocol."""
    kinds = ("runs", "broadcast_runs", "corrected_runs")
    return [row for row in rows if any(row.get(kind, "0") != "0" for kind in kinds)]


def small_cnn_others(rows: Iterable[Row]) -> list[Row]:
    """Comparisons that neither the identity nor the table of VGG-5 shows."""
    shown = (RELEASED, f"{RELEASED}, no dropout")
    return [
        row
        for row in rows
        if row["network"] != "VGG-5"
        and (row["network"] != "CNN" or row["treatment"] not in shown)
        and int(row["pairs"]) > 2
    ]


def reference_texts(evidence: Evidence) -> dict[str, str]:
    """Every text of the reference folder, by its path there, and the part of the README."""
    made = table_rows(evidence)
    answer = fill("answer.md", answer_values(evidence, made))
    constants = {
        f"mean_{name}": number(mean_of(scores), 0)
        for name in ("product", "sinproduct")
        if (scores := [mse for (key, _), mse in evidence.constants.items() if key == name])
    }
    small = [each for each in evidence.comparisons if heads_differ(each.first)]
    correlations = [each.difference.correlation for each in small if each.difference.pairs > 9]
    values = {name: markdown(columns, made[name]) for name, columns in FORMS.items()}
    values |= {
        "image_errors": image_errors(evidence.comparisons),
        "answer": answer,
        "gradients": gradients_table(evidence),
        "gradients_seen": gradients_sentence(evidence.gradients),
        "heldout": heldout_preference(evidence),
        **tuned.values_of(evidence.tuned, markdown),
        "rules": (TEMPLATES / "rules.md").read_text(encoding="utf-8"),
        "correlations": ends_of([each for each in correlations if each is not None], 2),
        "comparisons": markdown(tables.PAIRS, small_cnn_others(made["comparisons"])),
        "table2": markdown(tables.ACCURACY, ran(made["table2"])),
        "missing2": share(row not in ran(made["table2"]) for row in made["table2"]),
        "ran3": share(row in ran(made["table3"]) for row in made["table3"]),
        "mean_product": "unknown",
        "mean_sinproduct": "unknown",
        **constants,
        **seen(evidence),
        **log_values(evidence),
    }
    front = markdown(FRONT, front_rows(evidence, made))
    columns, rows = tuned.front_rows(evidence.tuned)
    if rows:
        front += "\n" + markdown(columns, rows)
    texts = {"README.md": fill("reference.md", values), "front page": front}
    return texts | table_files(evidence, made) | tuned.files(evidence.tuned, comma_separated)


def curves_of(evidence: Evidence) -> list[str]:
    """Links to the learning curves of one's own runs, of each script."""
    scripts = sorted({log.script for log in evidence.rows.logs if log.curve})
    return [f"[{script}](../logs/{script}/curves.png)" for script in scripts]


def user_texts(evidence: Evidence, reference: Evidence) -> dict[str, str]:
    """Every text of a folder of one's own runs: beside the paper and the reference runs."""
    made = table_rows(evidence, reference)
    accuracy = {key: text for key, text in tables.ACCURACY.items() if key != "above_best"}
    accuracy |= {"ours_cell": "Yours: mean ± std (runs)", "best": "Yours: best"}
    accuracy |= {"corrected_cell": "Yours, corrected", "reference_cell": "Reference (runs)"}
    others = {key: text for key, text in tables.OTHER.items() if key != "sha256"}
    others |= {"reference_cell": "Reference (runs)"}
    values = {name: markdown(columns, made[name]) for name, columns in FORMS.items()}
    values |= {
        "other_runs": markdown(others, made["other_runs"]),
        **tuned.values_of(evidence.tuned, markdown),
        "image_errors": image_errors(evidence.comparisons),
        "curves": ", ".join(curves_of(evidence)) or "none yet",
        "second": markdown(accuracy, ran(made["table2"] + made["table3"])),
        "table1": markdown(tables.REGRESSION, ran(made["table1"])),
        **seen(evidence),
        **log_values(evidence),
    }
    return {"tables/README.md": fill("user.md", values)} | table_files(evidence, made)
