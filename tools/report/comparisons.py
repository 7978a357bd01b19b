"""Spinal against FC, seed by seed: all pairs of heads whose runs differ in nothing but the head."""

import base64
import functools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import sub

from report.inference import Difference, paired, paired_difference
from report.logs import Log
from report.names import network_name, script_order
from report.paper import PaperRow, printed_difference
from report.rows import NO_DROPOUT, RELEASED, WORDS, dropout_words, heads_differ, seed_of
from report.settings import HEAD_KEYS, canonical

SHOWN = {"epochs", "limit", "precision", "protocol", "fc_dropout", "width", "train_mode_epochs"}
NO_DROPOUT_RELEASED = RELEASED + NO_DROPOUT


@dataclass(frozen=True)
class Comparison:
    """The pairs of a Spinal and an FC head. `experiment`: all that both share, dropout aside."""

    experiment: tuple
    treatment: str
    spinal: tuple[Log, ...]
    fc: tuple[Log, ...]
    paper_difference: float | None  # of this head on the complete data

    @functools.cached_property
    def difference(self) -> Difference:
        return paired_difference(self.spinal, self.fc)

    @property
    def pairs(self) -> list[tuple[Log, Log]]:
        return paired(self.spinal, self.fc)

    @property
    def first(self) -> Log:
        return self.spinal[0]

    @property
    def script(self) -> str:
        return self.first.script

    @property
    def dataset(self) -> str:
        """With what is not the complete official data."""
        return dataset_of(self.first)

    @property
    def network(self) -> str:
        return network_name(self.first.settings["network"])

    @property
    def size(self) -> str:
        """`6 × 8`."""
        return f"{self.first.settings['layers']} × {self.first.settings['width']}"

    @property
    def heads(self) -> str:
        """`6 × 8`, or `6 × 8 − FC 26` where the FC head is not the default one."""
        width = self.fc[0].head[2:]
        return self.size + (f" − FC {width}" if width else "")

    @property
    def complete(self) -> bool:
        """On all of the official data."""
        return self.first.data["official"] and not self.first.settings.get("limit")

    @property
    def setting(self) -> str:
        """Images, epochs and precision."""
        data, settings = self.first.data, self.first.settings
        images = f"{data['train']:,} / {data['test']:,}"
        return f"{images}, {settings['epochs']} epochs, {settings['precision']}"


def dataset_of(log: Log) -> str:
    """The set of a run, and what it is if not the complete official one."""
    name = log.settings["dataset"]
    if log.script == "tabular":
        return name
    if not log.data["official"]:
        return f"{name}, a part"
    if log.settings.get("limit"):
        return f"{name}, {log.settings['limit']:,} images"
    return name + ("" if log.verified else " (data not verified)")


def shared_settings(log: Log) -> tuple:
    """All that two heads must have in common to be compared."""
    rest = {key: value for key, value in log.settings.items() if key not in HEAD_KEYS}
    return log.script, log.settings["network"], canonical(rest), log.data_key, log.device


def treatment_of(spinal: Log, fc: Log) -> str:
    """How the heads are treated; nothing if they differ in dropout by a choice of ours."""
    p, q = (log.settings.get("fc_dropout") for log in (spinal, fc))
    chosen = "fc_dropout" in spinal.departures or "fc_dropout" in fc.departures
    protocol = spinal.settings["protocol"]
    words = WORDS.get(protocol, f"recipe {protocol}")
    if "train_mode_epochs" in fc.departures:
        words += ", FC in training mode"
    if others := sorted({*spinal.departures, *fc.departures} - SHOWN):
        words += f", departs in {', '.join(others)}"
    if p != q:
        return "" if chosen else words
    return words + dropout_words(p) if chosen or heads_differ(spinal) else words


def comparisons_of(logs: Sequence[Log], paper: list[PaperRow]) -> list[Comparison]:
    """Every comparison of images, in the order of reading."""
    experiments: dict[tuple, dict[tuple, list[Log]]] = defaultdict(lambda: defaultdict(list))
    for log in sorted(logs, key=seed_of):
        if not log.regression:
            heads = experiments[shared_settings(log)]
            heads[log.settings["head"], log.head, log.settings_text].append(log)
    found = []
    for experiment, heads in experiments.items():
        spinals = [members for key, members in heads.items() if key[0] == "spinal"]
        defaults = [members for key, members in heads.items() if key[0] == "fc"]
        for spinal, fc in ((spinal, fc) for spinal in spinals for fc in defaults):
            treatment = treatment_of(spinal[0], fc[0])
            if treatment and paired(spinal, fc):
                printed = paper_difference(spinal[0], paper)
                item = Comparison(experiment, treatment, tuple(spinal), tuple(fc), printed)
                found.append(item)
    return sorted(found, key=reading_order)


def paper_difference(spinal: Log, paper: list[PaperRow]) -> float | None:
    """What the paper prints for this head, whatever part of the data these runs have."""
    key = (spinal.script, spinal.settings["network"], "spinal")
    for row in paper:
        if (row.script, row.network, row.head) == key and row.describes(spinal.settings):
            return printed_difference(row, paper)
    return None


def reading_order(item: Comparison) -> tuple:
    """Sets in the paper's order, heads by size, as released before corrected."""
    settings = item.first.settings
    sizes = settings["layers"], settings["width"], item.fc[0].settings["width"]
    part = not item.complete
    epochs = settings["epochs"], settings["precision"], item.first.data["train"]
    corrected = settings["protocol"] != "published"
    order = (script_order(item.script), settings["network"], part, sizes)
    return *order, corrected, item.treatment, epochs, item.experiment


def right_images(log: Log) -> list[int]:
    """Of each test image: 1 if it was classified rightly, else 0. Empty if the log does not say."""
    data = base64.b64decode(log.end.get("test_correct", ""))
    bits = [byte >> (7 - place) & 1 for byte in data for place in range(8)]
    return bits[: log.data["test"]]


def image_standard_error(runs: Sequence[tuple[Log, Log]]) -> float | None:
    """By how much other test images would move the difference of these pairs, in points.

    The standard error, over test images, of the difference's mean over seeds; None if a log does
    not say which images were right.
    """
    pairs = [(right_images(ours), right_images(theirs)) for ours, theirs in runs]
    if not pairs or not all(ours and theirs for ours, theirs in pairs):
        return None
    images = zip(*[map(sub, ours, theirs) for ours, theirs in pairs], strict=True)
    differences = [sum(image) / len(pairs) for image in images]
    return 100 * statistics.stdev(differences) / math.sqrt(len(differences))


@dataclass(frozen=True)
class Identity:
    """As released = what FC gains without its dropout + what is left of the lead then."""

    released: Comparison
    left: Comparison  # without dropout in either head

    @functools.cached_property
    def gain(self) -> Difference:
        return paired_difference(self.left.fc, self.released.fc)


def as_released(item: Comparison) -> bool:
    """The small CNN, with nothing changed but its dropout."""
    departures = {*item.first.departures, *item.fc[0].departures}
    return heads_differ(item.first) and departures <= {"fc_dropout"}


def identities_of(comparisons: Sequence[Comparison]) -> list[Identity]:
    """Of the small CNN: the lead as released in two parts, where there are runs for both."""
    left = {
        (item.experiment, item.heads): item
        for item in comparisons
        if item.treatment == NO_DROPOUT_RELEASED and as_released(item)
    }
    return [
        Identity(item, left[item.experiment, item.heads])
        for item in comparisons
        if item.treatment == RELEASED and (item.experiment, item.heads) in left
    ]
