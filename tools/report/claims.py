"""The ledger of claims: what the paper, its README and its notebooks claim, and the evidence here.

claims.csv holds the words; its column `evidence` names a function of this module that finds what
the logs and costs.csv say, or is empty where the file itself says why nothing was tested.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report.comparisons import Comparison, Identity
from report.costs import Cost, find
from report.gradients import gradients_verdict
from report.inference import decisions, mean_of
from report.names import UserError
from report.paper import PaperRow
from report.tables import Columns, Row, difference_text
from report.tuned import Tuned, answer, primary_rows

SPELLINGS = {"Bird225": "225 Bird Species", "Oxford 102 Flower": "Oxford 102 Flowers"}
KEYS = ("claim", "where", "printed", "evidence", "here", "verdict")
CLAIMS: Columns = {
    "claim": "Claim",
    "where": "Where",
    "printed": "Printed",
    "here": "Evidence here",
    "verdict": "Verdict",
}


def read_claims(path: Path) -> list[Row]:
    """The lines of claims.csv. Raises UserError."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    wrong = any(None in row or None in row.values() for row in rows)
    if tuple(reader.fieldnames or ()) != KEYS or wrong:
        raise UserError(f"{path} has a line that does not have the columns {', '.join(KEYS)}")
    return rows


def saved(costs: list[Cost], network: str, size: str, printed: str, left: str = "") -> tuple:
    """Multiplications of a Spinal head against its FC head: saved, or left, in per cent."""
    script, network = network.split("/")
    layers, width = map(int, size.split("x"))
    spinal = find(costs, script, network, "spinal", layers, width)
    fc = find(costs, script, network, "fc")
    if spinal is None or fc is None:
        return "not counted yet", "not tested"
    share = 100 * spinal.multiplications / fc.multiplications
    counted = share if left else 100 - share
    off = abs(counted - float(printed))
    verdict = "holds" if off < 0.5 else "roughly" if off < 1 else "does not hold"
    numbers = f"{spinal.multiplications:,} against {fc.multiplications:,}"
    network = f"; {100 - 100 * spinal.macs / fc.macs:.1f} % of the whole network"
    return f"counted: {counted:.2f} % ({numbers}){'' if left else network}", verdict


def fewer(costs: list[Cost], transfer: str) -> tuple:
    """How many Spinal heads have fewer multiplications than their FC head."""
    heads = [cost for cost in costs if cost.head == "spinal"]
    pairs = [(cost, find(costs, cost.script, cost.network, "fc")) for cost in heads]
    pairs = [pair for pair in pairs if pair[0].script.startswith("tl_") == (transfer == "transfer")]
    count = sum(spinal.multiplications < fc.multiplications for spinal, fc in pairs)
    small = sum(abs(spinal.macs / fc.macs - 1) < 0.02 for spinal, fc in pairs)
    text = f"counted: {count} of {len(pairs)} Spinal heads have fewer than their FC head; "
    text += f"in {small} the whole network changes by less than 2 %"
    return text, "holds for the heads" if 2 * count > len(pairs) else "does not hold"


def lead(sources: tuple[Sequence[Identity], Tuned | None]) -> tuple:
    """Whether the Spinal head of the small CNN is ahead: as released, without dropout, tuned."""
    identities, tuned = sources
    if not identities:
        return "not run yet", "not tested"
    released = sum(each.released.difference.low > 0 for each in identities)
    decided = [words for _, words in decisions([each.left.difference for each in identities])]
    text = f"small CNN, {len(identities)} comparisons on complete sets and parts: "
    text += f"as released {released} intervals above 0; without dropout in either head "
    text += f"{decided.count('Spinal better')} decided for the Spinal head, "
    text += f"{decided.count('FC better')} for the FC head"
    if found := answer(tuned):
        text += f"; each head tuned: {found}"
    gone = released and not decided.count("Spinal better")
    better = [row for row in primary_rows(tuned) if row["decision"].startswith("Spinal")]
    gone = gone and not better
    return text, "only with unequal dropout" if gone else "partly"


def vgg5(comparisons: Sequence[Comparison]) -> tuple:
    """What the VGG-5 runs on parts of the data say."""
    found = [each for each in comparisons if each.network == "VGG-5" and each.difference.judged]
    if not found:
        return "no run", "not tested"
    texts = [
        f"{each.dataset}, {each.setting.split(', ', 1)[1]}, {each.treatment}: "
        f"{difference_text(each.difference, 2)}"
        for each in found
    ]
    return f"parts of the data only, Spinal − FC: {'; '.join(texts)}", "not tested at full size"


def table1(rows: Sequence[Row]) -> tuple:
    """Table I: in how many cells our Spinal median is lower, by both measures."""
    pairs = list(zip(rows[0::2], rows[1::2], strict=True))
    keys = ("minimum_100_median", "minimum_200_median", "released_clean_median")
    known = [pair for pair in pairs if all(row[key] for row in pair for key in keys)]
    if not known:
        return "not run yet", "not tested"
    cells = [float(spinal[key]) < float(fc[key]) for fc, spinal in known for key in keys[:2]]
    clean = [float(spinal[keys[2]]) < float(fc[keys[2]]) for fc, spinal in known]
    values = [[float(row[key]) for row in pair] for pair in known for key in keys[:2]]
    closest = min(values, key=lambda pair: abs(pair[1] - pair[0]) / pair[0])
    text = f"by the paper's measure our medians are lower in {sum(cells)} of {len(cells)} cells, "
    text += f"the closest {closest[1]:g} against {closest[0]:g}, each x 1e-3; "
    text += f"on fresh samples in {sum(clean)} of {len(clean)} functions"
    return text, "holds by its measure only" if 2 * sum(clean) <= len(clean) else "holds"


def tutorial(comparisons: Sequence[Comparison]) -> tuple:
    """The CNN of PyTorch's tutorial."""
    found = [each for each in comparisons if each.network == "CNN (tutorial)"]
    texts = [f"{each.treatment}: {difference_text(each.difference, 2)}" for each in found]
    if not texts:
        return "not run yet", "not tested"
    middle = mean_of([each.difference.mean for each in found])
    return f"Spinal − FC, {'; '.join(texts)}", "does not hold" if middle < 0 else "holds"


def art(printed: tuple[list[PaperRow], list[Row]], table: str) -> tuple:
    """The paper's best numbers of a table against the state of the art that its Table IV prints."""
    paper, numbers = printed
    known = {line["dataset"]: float(line["value"]) for line in numbers if line["table"] == "IV"}
    best: dict[str, float] = {}
    for row in paper:
        value = row.metric("accuracy_best_pct", "accuracy_pct")
        if row.table == table and row.head == "spinal" and value:
            best[row.dataset] = max(best.get(row.dataset, 0.0), float(value))
    pairs = {name: (value, known[SPELLINGS.get(name, name)]) for name, value in best.items()}
    above = [name for name, (value, other) in pairs.items() if value > other]
    ties = [name for name, (value, other) in pairs.items() if value == other]
    text = f"its Spinal bests are above Table IV on {', '.join(above) or 'no set'}"
    return text + (f", equal on {', '.join(ties)}" if ties else ""), "not tested"


def claim_rows(evidence: Any, regression: Sequence[Row]) -> list[Row]:
    """Every claim with its evidence (evidence.Evidence). Raises UserError for unknown evidence."""
    sources = {
        "saved": (saved, evidence.costs),
        "fewer": (fewer, evidence.costs),
        "lead": (lead, (evidence.identities, evidence.tuned)),
        "vgg5": (vgg5, evidence.comparisons),
        "table1": (table1, regression),
        "tutorial": (tutorial, evidence.comparisons),
        "gradients": (gradients_verdict, evidence.gradients),
        "art": (art, (evidence.paper, evidence.printed)),
    }
    rows = []
    for line in evidence.claims:
        row = {key: line[key] for key in CLAIMS}
        if line["evidence"]:
            name, *options = line["evidence"].split()
            if name not in sources:
                raise UserError(f"claims.csv names evidence that the report does not know: {name}")
            function, source = sources[name]
            here, verdict = function(source, *options)
            row["here"] = f"{here}. {line['here']}".removesuffix(". ")
            row["verdict"] = line["verdict"] or verdict
        rows.append(row)
    return rows
