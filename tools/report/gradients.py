"""Does the gradient vanish? What gradients.csv (tools/measure_gradients.py) says."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from report.names import UserError
from report.tables import Columns, Row

VANISHED = 1e-3  # of the last hidden layer's norm, or less
ALIVE = 0.1  # or more
PLAIN, SPINAL = "plain 50x8", "spinal 50x8"
ALONE = "spinal chain alone 50x8"
NAMES = {
    PLAIN: "Plain chain, 50 layers of 8",
    SPINAL: "Spinal chain, 50 layers of 8",
    ALONE: "Spinal chain, gradient through the chain alone",
    "fc published": "Table I, FC 200-100",
    "spinal6x50 published": "Table I, Spinal 6 × 50, as released",
    "spinal6x50 corrected": "Table I, Spinal 6 × 50, corrected",
}
GRADIENTS: Columns = {
    "network": "Network",
    "weights": "First weights",
    "before": "First / last layer, untrained",
    "first": "after 1 epoch",
    "last": "after 20 epochs",
    "smallest": "Any layer / last, smallest median",
    "loss": "Loss: untrained; after 20 epochs",
}


def read_gradients(path: Path) -> list[Row]:
    """The lines of gradients.csv; none if there is no such file. Raises UserError."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = list(csv.DictReader(stream))
        for line in lines:
            numbers = [line[key] for key in ("layer", "epochs", "loss_median")]
            if not all(map(math.isfinite, map(float, [*numbers, line["relative_median"] or "0"]))):
                raise ValueError("a number is not finite")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        text = f"cannot read {path}: {error!r}; make it again with tools/measure_gradients.py"
        raise UserError(text) from None
    return lines


def medians(lines: Sequence[Row], network: str, **wanted: str) -> list[float]:
    """Relative norms, medians over seeds, of a network's lines that have these values."""
    wanted = {"network": network, "weights": "default"} | wanted
    return [
        float(line["relative_median"])
        for line in lines
        if line["relative_median"] and all(line[key] == value for key, value in wanted.items())
    ]


def short(values: Sequence[float]) -> str:
    """`1.1`, or `0.34 to 1.2` of several values."""
    if not values:
        return ""
    low, high = (f"{value:.2g}".replace("e-", "e−") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def gradient_rows(lines: Sequence[Row]) -> list[Row]:
    """One line of GRADIENTS for each network and kind of weights."""
    keys = dict.fromkeys((line["network"], line["weights"]) for line in lines)
    return [gradient_row(lines, *key) for key in keys]


def gradient_row(lines: Sequence[Row], network: str, weights: str) -> Row:
    """One line of GRADIENTS."""
    mine = [line for line in lines if (line["network"], line["weights"]) == (network, weights)]
    times = sorted({line["epochs"] for line in mine}, key=int)
    losses = [
        short([float(line["loss_median"]) for line in mine if line["epochs"] == time])
        for time in dict.fromkeys((times[0], times[-1]))
    ]
    row = {
        "network": NAMES.get(network, network),
        "weights": "He's" if weights == "He" else "PyTorch's",
        "smallest": short([min(medians(lines, network, weights=weights))]),
        "loss": "; ".join(losses),
    }
    for key, time in zip(("before", "first", "last"), times, strict=False):
        row[key] = short(medians(lines, network, weights=weights, layer="1", epochs=time))
    return row


def tables_networks(lines: Sequence[Row]) -> list[float]:
    """All layers of all networks of Table I, untrained and trained."""
    names = [name for name in NAMES if "published" in name or "corrected" in name]
    return [value for name in names for value in medians(lines, name)]


def spinal_medians(lines: Sequence[Row]) -> list[float]:
    """All layers of the deep Spinal chain, untrained and trained, with either kind of weights."""
    return [x for kind in ("default", "He") for x in medians(lines, SPINAL, weights=kind)]


def gradients_sentence(lines: Sequence[Row]) -> str:
    """What one sees in the table."""
    if not lines:
        return ""
    first = {"layer": "1", "epochs": "0"}
    plain = short(medians(lines, PLAIN, **first))
    later = short(medians(lines, PLAIN, layer="40", epochs="0"))
    he = short(medians(lines, PLAIN, weights="He", **first))
    he_trained = short(medians(lines, PLAIN, weights="He", layer="1", epochs="20"))
    spinal = short(spinal_medians(lines))
    alone = short(medians(lines, ALONE, **first))
    return (
        "0: below what single precision holds, or no path of active neurons. What one sees: in "
        f"the untrained plain chain it is {plain} in the first layer and {later} in layer 40 "
        f"(first layer with He's weights: {he}, after 20 epochs {he_trained}); in the layers of "
        f"the Spinal chain {spinal}, untrained and trained, with either kind of weights. Of the "
        f"untrained Spinal chain's first layer, {alone} comes through the chain: the rest comes by "
        "the layer's own connection to the output layer, as by any shortcut. In the networks of "
        f"Table I, untrained and trained, it is {short(tables_networks(lines))}, in FC alone "
        f"{short(medians(lines, 'fc published'))}: two hidden layers are too few to let it vanish."
    )


def gradients_verdict(lines: Sequence[Row]) -> tuple[str, str]:
    """The claim that no gradient vanishes: evidence and verdict."""
    spinal, plain = spinal_medians(lines), medians(lines, PLAIN, layer="1")
    shallow = medians(lines, "fc published")
    if not spinal or not plain or not shallow:
        return "not measured", "not tested"
    text = "gradient relative to that of the last hidden layer, medians, untrained and trained: "
    text += f"any layer of a Spinal chain of 50 {short(spinal)}; first layer of a plain chain "
    text += f"of 50 {short(plain)}; any layer of the FC network of Table I {short(shallow)}"
    if min(spinal) < ALIVE:
        return text, "does not hold"
    if max(plain) > VANISHED:
        return text, "holds; of a plain chain, too"
    if min(shallow) < ALIVE:
        return text, "holds"
    return text, "holds; at Table I's depth none vanishes in FC either"
