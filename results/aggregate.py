"""Make the tables, the figures and the report of this collection from the logs of the runs.

    python results/aggregate.py [--results-dir results] [--paper results/paper.csv] [--check]

Reads `logs/**/*.jsonl` of the results folder and `paper.csv`, nothing else. Writes `tables/`, `figures/` and `README.md` there,
and the part of the README.md beside that folder that is fenced for it. It is a pure function of what it reads: the same logs give the same bytes, on the same matplotlib also the figures.
A log that breaks `SCHEMA.md`, repeats another or is unfinished is named on stderr and in the report and left out; it never
stops the program. Runs are averaged only if their settings and their data are equal.

`--check` writes nothing and ends with status 1 if tables or report on disk are not those of the logs (figures are not
compared: their bytes depend on the version of matplotlib). Exit status: 0 done, 1 --check found a difference, 2 user error.

Needs numpy and matplotlib. scipy would give the t distribution, but is a large dependency for one function of 20 lines.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import math
import statistics
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

# ---- Facts ----

NOISE_VARIANCE = 0.04 / 12  # of 0.2 * uniform[0, 1), Table I
PAPER_RUNS = 10  # "average of ten runs", Table II
PAPER_ROUNDING = 0.005  # averages are printed with two decimals
FEWEST_RUNS = 3  # for a verdict on accuracies
FEWEST_SEEDS = 5  # for a verdict on Table I, whose numbers are of one seed (Q9)
CONFIDENCE = 0.95
FUNCTIONS = {"sum": "sum", "sinsum": "sine of sum", "product": "product", "sinproduct": "sine of product"}
NETWORKS = {"cnn": "CNN", "vgg5": "VGG-5", "vgg11": "VGG-11", "vgg13": "VGG-13", "vgg16": "VGG-16", "vgg19": "VGG-19",
            "resnet18": "ResNet-18", "resnet34": "ResNet-34", "densenet": "DenseNet", "vgg19_bn": "VGG-19_bn",
            "wide_resnet101_2": "Wide_ResNet-101_2", "mlp": "MLP"}
SCRIPT_ORDER = ("mnist", "fashion_mnist", "kmnist", "qmnist", "emnist_digits", "emnist_letters", "emnist_balanced", "cifar10",
                "cifar100")  # of panels
FOLDERS = {"emnist": "EMNIST", "cifar10": "CIFAR", "cifar100": "CIFAR", "synthetic": "Regression", "tl": "Transfer_Learning"}
PAPER_COLUMNS = {"table", "dataset", "script", "network", "head", "layers", "width", "function", "metric", "value", "epochs"}
HEAD_KEYS = {"head", "layers", "width", "fc_dropout"}  # settings that belong to a head: published heads differ in dropout


class UserError(Exception):
    """Something the user can mend; printed as one sentence, exit status 2."""


# ---- The schema of a log, as results/SCHEMA.md has it ----

LARGEST = 1e60  # a number beyond it is nonsense here, and its square would overflow


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST < value < LARGEST  # false for NaN and infinities


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_accuracy(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_fingerprint(value: Any) -> bool:
    return type(value) is str and value != ""


class Kind(NamedTuple):
    """What a value must be, and the words that name it."""
    test: Callable[[Any], bool]
    words: str


COUNT, NUMBER = Kind(_is_count, "an integer, 0 or more"), Kind(_is_number, "a finite number")
NULLABLE, ACCURACY = Kind(_is_number_or_null, "a finite number or null"), Kind(_is_accuracy, "a number from 0 to 100")
TEXT, FINGERPRINT = Kind(_is_text, "a string"), Kind(_is_fingerprint, "a string that is not empty")
OBJECT, ANYTHING = Kind(lambda value: type(value) is dict, "an object"), Kind(lambda value: True, "anything")
TEXTS = Kind(lambda value: type(value) is list and all(map(_is_text, value)), "a list of strings")
BOOLEAN = Kind(lambda value: type(value) is bool, "true or false")
TEXT_OR_NULL = Kind(lambda value: value is None or type(value) is str, "a string or null")

START = {"schema": COUNT, "script": TEXT, "run": TEXT, "seed": COUNT, "settings": OBJECT, "departures": TEXTS,
         "parameters": COUNT, "fc_multiplications": COUNT, "data": OBJECT, "provenance": OBJECT}
SETTINGS = {"dataset": TEXT, "network": TEXT, "head": TEXT, "layers": COUNT, "width": COUNT, "protocol": TEXT, "epochs": COUNT,
            "batch_size": COUNT, "learning_rate": NUMBER, "optimizer": ANYTHING, "rate_rule": ANYTHING, "selection": TEXT,
            "precision": TEXT}
TARGET_SETTINGS = {"function": TEXT, "noise": TEXT}  # of the synthetic regression
DATA = {"train": COUNT, "heldout": COUNT, "test": COUNT, "sha256": FINGERPRINT, "official": BOOLEAN}
PROVENANCE = {"script_sha256": TEXT, "git_revision": TEXT_OR_NULL, "device": TEXT, "device_name": TEXT, "threads": COUNT,
              "versions": OBJECT, "started": TEXT}
ALLOWED = {"head": ("fc", "spinal"), "protocol": ("published", "corrected"),
           "selection": ("last", "best_test", "heldout", "minimum"), "precision": ("fp32", "bf16")}
EPOCH = {"learning_rate": NUMBER, "train_loss": NULLABLE, "seconds": NUMBER}
REGRESSION_EPOCH = EPOCH | {"last_batch_mse": NULLABLE, "train_mse": NULLABLE, "clean_mse": NULLABLE}
END = {"outcome": TEXT, "epochs": COUNT, "seconds": NUMBER, "peak_memory_bytes": NULLABLE}
REGRESSION_END = END | {"min_last_batch_mse_100": NULLABLE, "min_last_batch_mse_200": NULLABLE, "train_mse": NULLABLE,
                        "clean_mse": NULLABLE, "noise_variance": NUMBER}


def epoch_keys(split: str) -> dict[str, Kind]:
    """Keys of an epoch line of an image run that watches `split` (test or heldout)."""
    return EPOCH | {f"{split}_loss": NULLABLE, f"{split}_accuracy_pct": ACCURACY}


def end_keys(split: str) -> dict[str, Kind]:
    """Keys of the end line of an image run."""
    return END | {"best_epoch": COUNT, f"best_{split}_accuracy_pct": ACCURACY, "last_test_accuracy_pct": ACCURACY,
                  "selected_epoch": COUNT, "selected_test_accuracy_pct": ACCURACY}


@dataclass(frozen=True)
class Finding:
    """A log, or a part of it, that no table uses, and why."""
    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}; left out"


class BadLog(Exception):
    """A log that SCHEMA.md does not allow: line number and reason."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


@dataclass
class Log:
    """One finished run. `curve` is one number an epoch: watched accuracy of images, clean MSE of a regression."""
    path: str
    start: dict[str, Any]
    end: dict[str, Any]
    curve: list[float] = field(repr=False)

    def __post_init__(self) -> None:
        self.settings, self.seed, self.script = self.start["settings"], self.start["seed"], self.start["script"]
        self.data, self.departures = self.start["data"], self.start["departures"]
        self.regression = is_regression(self.settings)
        self.settings_text = canonical(self.settings)

    @property
    def score(self) -> float:
        """The number that tables report; a regression that diverged counts as infinite, not as absent."""
        return self.value("clean_mse") if self.regression else self.end["selected_test_accuracy_pct"]

    def value(self, key: str) -> float:
        """A number of the end line, infinite where it is null."""
        number = self.end[key]
        return math.inf if number is None else number

    @property
    def data_key(self) -> str:
        """What must be equal for an average. Synthetic data are drawn from the seed, so seeds differ by design."""
        return "" if self.regression else self.data["sha256"]


def canonical(value: Any) -> str:
    """Text that is equal for equal JSON values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def is_regression(settings: dict[str, Any]) -> bool:
    """Only regressions report a minimum, and only they use synthetic data."""
    return settings["selection"] == "minimum" or settings["dataset"] == "synthetic"


# ---- Reading logs ----

def check_keys(line: int, record: dict[str, Any], kinds: dict[str, Kind], where: str = "") -> None:
    """Every key is there and is what it must be. Keys that the schema does not name are not read."""
    for key, kind in kinds.items():
        if key not in record:
            raise BadLog(line, f"{where}{key} is missing")
        if not kind.test(record[key]):
            raise BadLog(line, f"{where}{key} is not {kind.words}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_line(line: int, text: bytes, last: bool) -> dict[str, Any]:
    """One JSON object with an `event`."""
    try:
        record = DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadLog(line, "not UTF-8") from None
    except (ValueError, RecursionError):
        raise BadLog(line, "not JSON" + (" (last line, the log may be cut off)" if last else "")) from None
    if type(record) is not dict or type(record.get("event")) is not str:
        raise BadLog(line, "not a log line: no object with an event")
    return record


def check_start(start: dict[str, Any], script: str, run: str) -> None:
    """The first line, and that the file's folder and name say what it says."""
    if start["event"] != "start":
        raise BadLog(1, "the first line is not a start line")
    check_keys(1, start, START)
    if start["schema"] != 1:
        raise BadLog(1, f"schema {start['schema']}, this program reads schema 1")
    settings = start["settings"]
    check_keys(1, settings, SETTINGS, "settings.")
    for key, allowed in ALLOWED.items():
        if settings[key] not in allowed:
            raise BadLog(1, f"settings.{key} is none of {', '.join(allowed)}")
    if settings["dataset"] == "synthetic":
        check_keys(1, settings, TARGET_SETTINGS, "settings.")
    check_keys(1, start["data"], DATA, "data.")
    check_keys(1, start["provenance"], PROVENANCE, "provenance.")
    if start["script"] != script:
        raise BadLog(1, f"the log of script {start['script']} lies in the folder {script}")
    if start["run"] != run:
        raise BadLog(1, f"the log of run {start['run']} has the file name {run}")
    name = f"{settings['network']}-{head_label(settings)}-{settings['protocol']}"
    if not (run.startswith(f"{name}-") and run.endswith(f"-s{start['seed']}")):
        raise BadLog(1, f"the name does not fit the settings: expected {name}-...-s{start['seed']}")


def head_label(settings: dict[str, Any]) -> str:
    """`fc` or `spinal6x8`, as in file names."""
    return "fc" if settings["head"] == "fc" else f"spinal{settings['layers']}x{settings['width']}"


def check_end(line: int, end: dict[str, Any], start: dict[str, Any], split: str, epochs: int) -> None:
    """The last line, and that it agrees with the number of epoch lines."""
    check_keys(line, end, REGRESSION_END if is_regression(start["settings"]) else end_keys(split))
    if end["outcome"] not in ("finished", "diverged"):
        raise BadLog(line, "outcome is neither finished nor diverged")
    if end["outcome"] == "diverged":
        check_keys(line, end, {"diverged_epoch": COUNT})
    if end["epochs"] != epochs:
        raise BadLog(line, f"the end line counts {end['epochs']} epochs, the log has {epochs}")
    if end["outcome"] == "finished" and epochs != start["settings"]["epochs"]:
        raise BadLog(line, f"finished after {epochs} epochs, settings.epochs is {start['settings']['epochs']}")


def check_outcome(line: int, end: dict[str, Any], settings: dict[str, Any], split: str, values: list[Any]) -> None:
    """The numbers of the end line are those of the epoch lines (which hold six digits)."""
    def same(left: float | None, right: float | None) -> bool:
        return left == right or None not in (left, right) and math.isclose(left, right, rel_tol=2e-5)

    if is_regression(settings):
        for limit in (100, 200):
            known = [value for value in values[:limit] if value is not None]
            expected = min(known) if known and len(values) >= limit else None
            stored = end[f"min_last_batch_mse_{limit}"]
            if expected is not None and not same(stored, expected):
                raise BadLog(line, f"min_last_batch_mse_{limit} is not the minimum of the epoch lines")
        return
    expected = {f"best_{split}_accuracy_pct": max(values)}
    if split == "test":
        expected["last_test_accuracy_pct"] = values[-1]
        expected["selected_test_accuracy_pct"] = values[-1] if settings["selection"] == "last" else max(values)
    for key, value in expected.items():
        if not same(end[key], value):
            raise BadLog(line, f"{key} is {end[key]}, the epoch lines say {value}")


def read_log(path: Path, label: str, script: str) -> Log:
    """One finished log, checked line by line; raises BadLog."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise BadLog(1, f"cannot be read: {error.strerror}") from None
    if lines[-1] == b"":
        lines.pop()
    if not lines:
        raise BadLog(1, "empty file")
    start = parse_line(1, lines[0], len(lines) == 1)
    check_start(start, script, path.name.removesuffix(".jsonl"))
    settings = start["settings"]
    regression = is_regression(settings)
    split = "test" if settings["protocol"] == "published" else "heldout"
    kinds = REGRESSION_EPOCH if regression else epoch_keys(split)
    shown, tracked = ("clean_mse", "last_batch_mse") if regression else (f"{split}_accuracy_pct",) * 2
    curve, values = [], []
    for number, text in enumerate(lines[1:], 2):
        record = parse_line(number, text, number == len(lines))
        if record["event"] == "end":
            break
        if record["event"] != "epoch":
            raise BadLog(number, "neither an epoch line nor an end line")
        if record.get("epoch") != number - 1 or type(record["epoch"]) is not int:
            raise BadLog(number, f"epoch {number - 1} is missing")
        check_keys(number, record, kinds)
        curve.append(math.nan if record[shown] is None else record[shown])
        values.append(record[tracked])
    else:
        raise BadLog(len(lines), "no end line")
    if number != len(lines):
        raise BadLog(number + 1, "lines after the end line")
    if not values:
        raise BadLog(number, "no epoch line")
    check_end(number, record, start, split, len(values))
    check_outcome(number, record, settings, split, values)
    return Log(label, start, record, curve)


def read_logs(folder: Path) -> tuple[list[Log], list[Finding]]:
    """Every usable log below `folder`, and a finding for each of the others; of duplicates the shortest name stays."""
    logs, findings, seen = [], [], {}
    for path in sorted(folder.rglob("*.jsonl*"), key=lambda path: (path.parent, len(path.name), path.name)):
        label = path.relative_to(folder.parent).as_posix()
        if path.name.endswith(".jsonl.part"):
            findings.append(Finding(label, 1, "unfinished run"))
        if not path.name.endswith(".jsonl"):
            continue
        try:
            log = read_log(path, label, path.relative_to(folder).parent.as_posix())
            identity = (log.script, log.settings_text, log.seed, log.data_key)
            if identity in seen:
                raise BadLog(1, f"duplicate of {seen[identity]} (same settings, seed and data)")
        except BadLog as bad:
            findings.append(Finding(label, bad.line, bad.reason))
        else:
            seen[identity] = label
            logs.append(log)
    return logs, findings


# ---- The paper ----

@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper. `values` maps (metric, epochs) to the number as printed."""
    table: str
    dataset: str
    script: str
    network: str
    head: str
    layers: int | None
    width: int | None
    function: str
    values: dict[tuple[str, str], str] = field(hash=False, compare=False)

    def metric(self, *names: str) -> str:
        """The first of these metrics that the paper prints, else an empty string."""
        return next((value for name in names for (metric, _), value in self.values.items() if metric == name), "")

    @property
    def epochs(self) -> str:
        """As printed; Table I prints the state at 100 and at 200 of 200 epochs."""
        return max((epochs for _, epochs in self.values), key=lambda text: (len(text), text))

    def describes(self, settings: dict[str, Any]) -> bool:
        """Whether a run with these settings is a run of this row; sizes that the paper does not print are free."""
        return (self.layers in (None, settings["layers"]) and self.width in (None, settings["width"])
                and self.function in ("", settings.get("function")))


def read_paper(path: Path) -> list[PaperRow]:
    """The rows of paper.csv, in their order; raises UserError."""
    rows: dict[tuple, PaperRow] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := PAPER_COLUMNS - set(reader.fieldnames or ()):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            for record in reader:
                sizes = [int(record[key]) if record[key] else None for key in ("layers", "width")]
                key = (record["table"], record["dataset"], record["script"], record["network"], record["head"], *sizes,
                       record["function"])
                row = rows.setdefault(key, PaperRow(*key, values={}))
                row.values[record["metric"], record["epochs"]] = record["value"]
                float(record["value"].rstrip("kM"))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return list(rows.values())


# ---- Statistics ----

def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only on the other side
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1000):
        for factor in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                       -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):
            d, c = 1 / (1 + factor * d), 1 + factor / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction


@functools.lru_cache(maxsize=None)
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = confidence for Student's distribution, by bisection of its distribution function."""
    low, high = 0.0, 1e9
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if incomplete_beta(degrees / 2, 0.5, degrees / (degrees + middle * middle)) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def mean_of(values: Sequence[float]) -> float:
    """Mean, independent of the order."""
    return math.fsum(values) / len(values)


def std_of(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); none for a single value or one that diverged."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def half_width(values: Sequence[float], further: float, resolution: float) -> float:
    """t(n - 1) s sqrt(1/n + further). A spread below the weight of one test image cannot be told from one image."""
    spread = max(std_of(values), resolution)
    return t_quantile(len(values) - 1) * spread * math.sqrt(1 / len(values) + further)


class Difference(NamedTuple):
    """Mean of Spinal minus FC over seeds that have both, with its confidence interval (none below two pairs)."""
    pairs: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def paired_difference(spinal: Iterable[Log], default: Iterable[Log]) -> Difference:
    """Runs of one seed saw the same batches, so the seed's share of the scatter cancels in the difference."""
    partner = {log.seed: log for log in default}
    pairs = [(log, partner[log.seed]) for log in spinal
             if log.seed in partner and log.data["sha256"] == partner[log.seed].data["sha256"]]
    differences = [ours.score - theirs.score for ours, theirs in pairs]
    if not differences or not all(map(math.isfinite, differences)):
        return Difference(len(differences))
    mean = mean_of(differences)
    if len(differences) == 1:
        return Difference(1, mean)
    half = half_width(differences, 0, resolution_of(pairs[0][0]))
    return Difference(len(differences), mean, mean - half, mean + half)


def resolution_of(log: Log) -> float:
    """What one test image weighs, in points of accuracy."""
    return 0.0 if log.regression else 100 / max(log.data["test"], 1)


def error_reduction(better: float, base: float) -> float | None:
    """By how many per cent the error falls from accuracy `base` to `better`."""
    return 100 * (better - base) / (100 - base) if base < 100 else None


def judge_mean(values: Sequence[float], printed: str, resolution: float) -> str:
    """Verdict on a row: is the paper's average what ten more runs of ours might give?"""
    if not values:
        return "not yet run"
    if not printed:
        return "not comparable"
    if len(values) < FEWEST_RUNS:
        return "not judged"
    distance = mean_of(values) - float(printed)
    if abs(distance) <= half_width(values, 1 / PAPER_RUNS, resolution) + PAPER_ROUNDING:
        return "reproduced"
    return f"not reproduced: ours {'higher' if distance > 0 else 'lower'} by {abs(distance):.2f}"


def judge_claim(difference: Difference) -> str:
    """Verdict on "Spinal beats FC"."""
    if difference.pairs == 0:
        return "not yet run"
    if difference.pairs < FEWEST_RUNS or difference.low is None:
        return "not judged"
    if difference.low > 0:
        return "yes"
    return "no (FC better)" if difference.high < 0 else "undecided"


# ---- Which run belongs to which row ----

@dataclass
class Cells:
    """Runs by (row of the paper, variant), the others, and what was left out or deserves a note."""
    runs: dict[tuple[PaperRow, str], list[Log]]
    others: list[tuple[Log, str]]
    findings: list[Finding]
    notes: list[str]

    def of(self, row: PaperRow, variant: str) -> list[Log]:
        """The averaged runs of a row, by seed."""
        return self.runs.get((row, variant), [])


def variant_of(log: Log) -> str:
    """The protocol; Table I tells the two shapes of the noise apart, Table II corrected runs without FC dropout."""
    if log.regression:
        return log.settings["protocol"] + ("-broadcast" if log.settings["noise"] == "broadcast" else "")
    return log.settings["protocol"] + ("-nodropout" if without_dropout(log) else "")


def without_dropout(log: Log) -> bool:
    """Is this a corrected run with `--fc-dropout 0`? Both heads without dropout: the other way to treat them equally (Q5)."""
    return log.settings["protocol"] == "corrected" and "fc_dropout" in log.departures and log.settings.get("fc_dropout") == 0


def place(log: Log, rows: Sequence[PaperRow]) -> tuple[PaperRow | None, str]:
    """The row of the paper that this run belongs to, or none and the reason."""
    own_columns = {"noise"} if log.regression else {"fc_dropout"} if without_dropout(log) else set()
    departures = [key for key in log.departures if key not in own_columns]
    if departures:
        return None, "departs in " + ", ".join(departures)
    if log.settings.get("limit"):
        return None, f"limit {log.settings['limit']}"
    if not log.data["official"]:
        return None, "data are not the complete official set"
    row = next((row for row in rows if row.describes(log.settings)), None)
    if row is None:
        return None, "the paper has no such row"
    if str(log.settings["epochs"]) != row.epochs:
        return None, f"{log.settings['epochs']} epochs, the paper prints {row.epochs}"
    return row, ""


def differing_keys(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """Keys whose values are not the same."""
    return sorted(key for key in left.keys() | right.keys() if canonical(left.get(key)) != canonical(right.get(key)))


def largest_group(logs: list[Log], place_name: str) -> tuple[list[Log], list[Finding]]:
    """The largest group with equal settings and data (ties: first in sorted order); the others are left out by name."""
    groups: dict[tuple[str, str], list[Log]] = defaultdict(list)
    for log in logs:
        groups[log.settings_text, log.data_key].append(log)
    chosen = groups[min(groups, key=lambda key: (-len(groups[key]), key))]
    findings = []
    for group in groups.values():
        if group is not chosen:
            keys = differing_keys(chosen[0].settings, group[0].settings)
            keys += ["data.sha256"] if chosen[0].data_key != group[0].data_key else []
            reason = f"another experiment than the {len(chosen)} runs averaged in {place_name}: differs in {', '.join(keys)}"
            findings += [Finding(log.path, 1, reason) for log in group]
    return sorted(chosen, key=lambda log: log.seed), findings


def provenance_note(name: str, logs: list[Log]) -> str | None:
    """What differs between averaged runs without deciding their numbers."""
    parts = []
    for key in ("script_sha256", "device_name", "versions"):
        values = Counter(log.start["provenance"][key][:8] if key == "script_sha256" else
                         canonical(log.start["provenance"][key]).strip('"') for log in logs)
        if len(values) > 1:
            parts.append(f"{key}: " + ", ".join(f"{value} ({count} runs)" for value, count in sorted(values.items())))
    return f"{name}: {'; '.join(parts)}" if parts else None


def sort_into_cells(logs: list[Log], paper: list[PaperRow]) -> Cells:
    """Every log into a row of the paper or among the others."""
    index: dict[tuple[str, str, str], list[PaperRow]] = defaultdict(list)
    for row in paper:
        index[row.script, row.network, row.head].append(row)
    gathered: dict[tuple[PaperRow, str], list[Log]] = defaultdict(list)
    cells = Cells({}, [], [], [])
    for log in logs:
        row, reason = place(log, index[log.script, log.settings["network"], log.settings["head"]])
        if row is None:
            cells.others.append((log, reason))
        else:
            gathered[row, variant_of(log)].append(log)
    for (row, variant), members in gathered.items():
        name = " ".join(filter(None, (row.script, row.function, NETWORKS.get(row.network, row.network), head_name(row), variant)))
        kept, findings = largest_group(members, name)
        cells.runs[row, variant] = kept
        cells.findings += findings
        if note := provenance_note(name, kept):
            cells.notes.append(note)
    cells.findings.sort(key=lambda finding: finding.path)
    cells.notes.sort()
    return cells


def head_name(row: PaperRow) -> str:
    """`FC` or `Spinal 6 × 8`."""
    return "FC" if row.head == "fc" else f"Spinal {row.layers} × {row.width}"


# ---- Tables ----

class Column(NamedTuple):
    """A column of a table: key of the row, heading, and the heading that it shares with its neighbours."""
    key: str
    heading: str
    group: str = ""


Row = dict[str, str]
VARIANTS = {"": "published", "corrected_": "corrected", "nodropout_": "corrected-nodropout"}  # of Table II: prefix of its keys

ROW_COLUMNS = [Column("dataset", "Data set"), Column("network", "Network"), Column("head", "Head")]
ACCURACY_COLUMNS = ROW_COLUMNS + [
    Column("epochs", "Epochs"),
    Column("paper_mean", "mean", "Paper"), Column("paper_best", "best", "Paper"),
    Column("paper_error_reduction", "error red., %", "Paper"), Column("parameters_printed", "parameters", "Paper"),
    Column("runs", "n", "Ours"), Column("mean_cell", "mean ± std", "Ours"), Column("best", "best", "Ours"),
    Column("error_reduction", "error red., %", "Ours"), Column("parameters", "parameters", "Ours"),
    Column("verdict", "Verdict"),
]
PAIR_COLUMNS = ROW_COLUMNS + [
    Column("fc_multiplications", "FC mult."), Column("fc_saving", "fewer, %"),
    Column("paper_difference", "Paper"), Column("difference_cell", "Published"), Column("corrected_difference_cell", "Corrected"),
    Column("nodropout_difference_cell", "Corrected, no FC dropout"), Column("spinal_beats_fc", "published", "Spinal beats FC?"),
    Column("corrected_spinal_beats_fc", "corrected", "Spinal beats FC?"),
    Column("nodropout_spinal_beats_fc", "no FC dropout", "Spinal beats FC?"),
]
ACCURACY_CSV = [
    "table", "dataset", "script", "network", "head", "epochs", "paper_mean", "paper_best", "paper_error_reduction", "runs", "mean",
    "best", "std", "error_reduction", "difference", "difference_low", "difference_high", "pairs", "corrected_runs",
    "corrected_mean", "corrected_std", "corrected_difference", "corrected_difference_low", "corrected_difference_high",
    "corrected_pairs", "nodropout_runs", "nodropout_mean", "nodropout_std", "nodropout_difference", "nodropout_difference_low",
    "nodropout_difference_high", "nodropout_pairs", "parameters_printed", "parameters", "fc_multiplications", "fc_saving",
    "tolerance", "verdict", "spinal_beats_fc", "corrected_spinal_beats_fc", "nodropout_spinal_beats_fc"]


def number(value: float | None, digits: int, sign: str = "") -> str:
    """A number with fixed digits; empty if there is none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "diverged"
    text = f"{value:{sign}.{digits}f}"
    return text.replace("-", "−")


def difference_fields(prefix: str, difference: Difference) -> Row:
    """A paired difference in parts for the CSV, and as one cell for reading."""
    low, high = number(difference.low, 3, "+"), number(difference.high, 3, "+")
    cell = number(difference.mean, 3, "+")
    cell += f" [{low}, {high}]" if low else ""
    return {f"{prefix}difference": number(difference.mean, 3), f"{prefix}difference_low": number(difference.low, 3),
            f"{prefix}difference_high": number(difference.high, 3), f"{prefix}pairs": str(difference.pairs),
            f"{prefix}difference_cell": f"{cell} ({difference.pairs})" if difference.pairs else ""}


def accuracy_row(row: PaperRow, default: PaperRow | None, cells: Cells) -> Row:
    """One row of Table II or III: the paper's numbers, ours, the corrected protocol, the verdicts."""
    logs, others = cells.of(row, "published"), {prefix: cells.of(row, variant) for prefix, variant in VARIANTS.items() if prefix}
    values = [log.score for log in logs]
    paper_mean = row.metric("accuracy_avg_pct")
    resolution = resolution_of(logs[0]) if logs else 0.0
    fields = {
        "table": row.table, "dataset": row.dataset, "script": row.script, "network": NETWORKS.get(row.network, row.network),
        "head": head_name(row), "epochs": row.epochs, "paper_mean": paper_mean,
        "paper_best": row.metric("accuracy_best_pct", "accuracy_pct"),
        "paper_error_reduction": row.metric("error_reduction_best_pct_printed", "error_reduction_pct_printed"),
        "parameters_printed": row.metric("parameters_printed"), "runs": str(len(logs)),
        "verdict": judge_mean(values, paper_mean, resolution),
    }
    if logs:
        fields |= {"mean": number(mean_of(values), 3), "best": number(max(values), 2), "std": number(std_of(values), 3)}
        fields["mean_cell"] = number(mean_of(values), 2) + (f" ± {number(std_of(values), 2)}" if len(values) > 1 else "")
    if len(logs) >= FEWEST_RUNS:
        fields["tolerance"] = number(half_width(values, 1 / PAPER_RUNS, resolution) + PAPER_ROUNDING, 3)
    for prefix, members in others.items():
        fields[f"{prefix}runs"] = str(len(members))
        if members:
            scores = [log.score for log in members]
            fields |= {f"{prefix}mean": number(mean_of(scores), 3), f"{prefix}std": number(std_of(scores), 3)}
    if counted := logs or next(filter(None, others.values()), []):
        for key in ("parameters", "fc_multiplications"):
            fields[key] = " / ".join(f"{count:,}" for count in sorted({log.start[key] for log in counted}))
    if row.head == "spinal" and default is not None:
        fields |= comparison_fields(row, default, cells)
    return fields


def comparison_fields(row: PaperRow, default: PaperRow, cells: Cells) -> Row:
    """Spinal against the FC head of the same network: in the paper, and in ours under each protocol."""
    fields: Row = {}
    for prefix, variant in VARIANTS.items():
        difference = paired_difference(cells.of(row, variant), cells.of(default, variant))
        fields |= difference_fields(prefix, difference) | {f"{prefix}spinal_beats_fc": judge_claim(difference)}
    paper, paper_default = row.metric("accuracy_avg_pct"), default.metric("accuracy_avg_pct")
    if paper and paper_default:
        fields["paper_difference"] = number(float(paper) - float(paper_default), 2, "+")
    logs, baseline = cells.of(row, "published"), cells.of(default, "published")
    if logs and baseline:
        reduction = error_reduction(max(log.score for log in logs), max(log.score for log in baseline))
        fields["error_reduction"] = number(reduction, 1)
        ours, theirs = (group[0].start["fc_multiplications"] for group in (logs, baseline))
        fields["fc_saving"] = number(100 - 100 * ours / theirs, 1)
    return fields


def accuracy_rows(paper: list[PaperRow], cells: Cells, *tables: str) -> list[Row]:
    """The rows of these tables of the paper, in the paper's order."""
    defaults = {(row.table, row.script, row.network): row for row in paper if row.head == "fc"}
    return [accuracy_row(row, defaults.get((row.table, row.script, row.network)), cells)
            for table in tables for row in paper if row.table == table]


TARGET_COLUMNS = [Column("function", "Function"), Column("head", "Head")]
REGRESSION_COLUMNS = TARGET_COLUMNS + [
    Column("paper_100_cell", "@100", "Paper"), Column("paper_200_cell", "@200", "Paper"), Column("runs", "n", "Ours"),
    Column("minimum_100_cell", "@100", "Ours"), Column("minimum_200_cell", "@200", "Ours"),
    Column("verdict_100", "@100", "Verdict"), Column("verdict_200", "@200", "Verdict"),
    Column("paper_winner", "paper", "Lower @200"), Column("spinal_wins", "ours", "Lower @200"),
]
LEARNT_COLUMNS = TARGET_COLUMNS + [
    Column("broadcast_runs", "n", "Broadcast noise"), Column("broadcast_200_cell", "minimum @200", "Broadcast noise"),
    Column("corrected_runs", "n", "Corrected"), Column("train_mse_cell", "train_mse", "Corrected"),
    Column("clean_mse_cell", "clean_mse", "Corrected"), Column("corrected_spinal_wins", "lower clean_mse", "Corrected"),
]
REGRESSION_CSV = [
    "table", "function", "head", "paper_100", "paper_200", "runs", "minimum_100_median", "minimum_100_mean", "minimum_100_low",
    "minimum_100_high", "minimum_200_median", "minimum_200_mean", "minimum_200_low", "minimum_200_high", "broadcast_runs",
    "broadcast_200_median", "broadcast_200_mean", "broadcast_200_low", "broadcast_200_high", "corrected_runs", "train_mse_mean",
    "train_mse_std", "clean_mse_mean", "clean_mse_std", "verdict_100", "verdict_200", "paper_winner", "spinal_wins",
    "corrected_spinal_wins"]


def dagger(value: float | None, text: str, floor: float = NOISE_VARIANCE) -> str:
    """Marks an MSE (in units of 1e-3) below the noise variance."""
    return text + "†" if value is not None and value < 1000 * floor else text


def spread_fields(prefix: str, values: list[float], floor: float = NOISE_VARIANCE) -> Row:
    """Median, mean and range of minima, in parts and as one cell; the values come in units of 1e-3."""
    if not values:
        return {}
    parts = (statistics.median(values), mean_of(values), min(values), max(values))
    median, mean, low, high = (number(value, 3) for value in parts)
    return {f"{prefix}_median": median, f"{prefix}_mean": mean, f"{prefix}_low": low, f"{prefix}_high": high,
            f"{prefix}_cell": f"{dagger(parts[0], median, floor)} [{low}, {high}]"}


def judge_spread(values: list[float], printed: str) -> str:
    """Verdict on a cell of Table I: is the one value of the paper within our seeds?"""
    if not values:
        return "not yet run"
    if len(values) < FEWEST_SEEDS:
        return "not judged"
    if float(printed) < min(values):
        return "outside: the paper below all our seeds"
    return "outside: the paper above all our seeds" if float(printed) > max(values) else "within our spread"


def seeds_won(spinal: list[Log], default: list[Log], key: str) -> str:
    """In how many paired seeds the Spinal head has the lower MSE."""
    partner = {log.seed: log for log in default}
    pairs = [(log.value(key), partner[log.seed].value(key)) for log in spinal if log.seed in partner]
    return f"Spinal in {sum(ours < theirs for ours, theirs in pairs)} of {len(pairs)}" if pairs else ""


def minima(logs: list[Log], epochs: str) -> list[float]:
    """Minimum of the last-batch loss over these epochs, in units of 1e-3, one a seed."""
    return [1000 * log.value(f"min_last_batch_mse_{epochs}") for log in logs]


def regression_row(row: PaperRow, default: PaperRow | None, cells: Cells) -> Row:
    """One row of Table I: the paper's minima, ours with both shapes of noise, and what the networks really learnt."""
    logs, corrected = cells.of(row, "published"), cells.of(row, "corrected")
    broadcast = cells.of(row, "published-broadcast")
    fields = {"table": "I", "function": FUNCTIONS.get(row.function, row.function), "head": head_name(row),
              "runs": str(len(logs)), "broadcast_runs": str(len(broadcast)), "corrected_runs": str(len(corrected))}
    for epochs in ("100", "200"):
        printed = row.values.get(("min_mse_x1e-3", epochs), "")
        values = minima(logs, epochs)
        fields |= {f"paper_{epochs}": printed, f"paper_{epochs}_cell": dagger(float(printed), printed) if printed else "",
                   f"verdict_{epochs}": judge_spread(values, printed) if printed else "not comparable"}
        fields |= spread_fields(f"minimum_{epochs}", values)
    fields |= spread_fields("broadcast_200", minima(broadcast, "200"), 0.0)
    for key in ("train_mse", "clean_mse") if corrected else ():
        values = [1000 * log.value(key) for log in corrected]
        mean, std = number(mean_of(values), 3), number(std_of(values), 3)
        marked = dagger(mean_of(values), mean) if key == "train_mse" else mean
        fields |= {f"{key}_mean": mean, f"{key}_std": std, f"{key}_cell": f"{marked} ± {std}" if std else marked}
    if row.head == "spinal" and default is not None:
        ours, theirs = (float(which.values["min_mse_x1e-3", "200"]) for which in (row, default))
        fields |= {"paper_winner": "tie" if ours == theirs else "Spinal" if ours < theirs else "FC",
                   "spinal_wins": seeds_won(logs, cells.of(default, "published"), "min_last_batch_mse_200"),
                   "corrected_spinal_wins": seeds_won(corrected, cells.of(default, "corrected"), "clean_mse")}
    return fields


def regression_rows(paper: list[PaperRow], cells: Cells) -> list[Row]:
    """Table I, the two heads of a function one after the other."""
    rows = [row for row in paper if row.table == "I"]
    defaults = {row.function: row for row in rows if row.head == "fc"}
    order = {function: index for index, function in enumerate(FUNCTIONS)}
    rows.sort(key=lambda row: (order.get(row.function, len(order)), row.head))
    return [regression_row(row, defaults.get(row.function), cells) for row in rows]


OTHER_COLUMNS = [
    Column("script", "Script"), Column("dataset", "Data set"), Column("network", "Network"), Column("head", "Head"),
    Column("protocol", "Protocol"), Column("reason", "Why it is not a row of the paper"), Column("epochs", "Epochs"),
    Column("sizes", "Train / held out / test"), Column("fingerprint", "Data"), Column("metric", "Metric"), Column("runs", "n"),
    Column("mean", "Mean"), Column("best", "Best"), Column("std", "Std"),
    Column("difference_cell", "Spinal − FC [95 %] (pairs)"), Column("parameters", "Parameters"),
    Column("fc_multiplications", "FC mult."),
]
OTHER_CSV = [
    "script", "dataset", "network", "head", "protocol", "reason", "epochs", "train", "heldout", "test", "sha256", "metric", "runs",
    "mean", "best", "std", "difference", "difference_low", "difference_high", "pairs", "parameters", "fc_multiplications"]


def other_groups(others: list[tuple[Log, str]]) -> dict[tuple, list[Log]]:
    """Runs outside the paper's rows, by everything that must be equal for an average; the heads of a setting are neighbours."""
    groups: dict[tuple, list[Log]] = defaultdict(list)
    for log, reason in others:
        shared = canonical({key: value for key, value in log.settings.items() if key not in HEAD_KEYS})
        groups[log.script, log.settings["network"], log.settings["protocol"], shared, log.data_key, reason,
               log.settings["head"], log.settings_text].append(log)
    def reading_order(key: tuple) -> tuple:
        script, network, protocol, _, data_key, reason, head, _ = key
        settings = groups[key][0].settings
        return script, network, protocol, reason, data_key, head, settings["layers"], settings["width"], key

    return {key: sorted(groups[key], key=lambda log: log.seed) for key in sorted(groups, key=reading_order)}


def other_row(key: tuple, logs: list[Log], baseline: list[Log]) -> Row:
    """One group of runs that are not comparable with the paper, labelled for what they are."""
    first, reason = logs[0], key[5]
    digits = 6 if first.regression else 3
    values = [log.score for log in logs]
    function = first.settings.get("function")
    fields = {
        "script": first.script, "dataset": first.settings["dataset"] + (f" {function}" if function else ""),
        "network": first.settings["network"], "head": head_label(first.settings), "protocol": variant_of(first),
        "reason": reason, "epochs": str(first.settings["epochs"]), "sha256": first.data_key or "by seed",
        "fingerprint": first.data_key[:8] or "by seed", "runs": str(len(logs)),
        "metric": "clean_mse" if first.regression else "test accuracy, %",
        "sizes": " / ".join(str(first.data[part]) for part in ("train", "heldout", "test")),
        "mean": number(mean_of(values), digits), "std": number(std_of(values), digits),
        "best": number(min(values) if first.regression else max(values), digits),
    }
    fields |= {part: str(first.data[part]) for part in ("train", "heldout", "test")}
    fields |= {key: f"{first.start[key]:,}" for key in ("parameters", "fc_multiplications")}
    if first.settings["head"] == "spinal":
        fields |= difference_fields("", paired_difference(logs, baseline))
    return fields


def other_rows(others: list[tuple[Log, str]]) -> list[Row]:
    """Every group of runs outside the paper's rows; the FC runs of the same settings and data are the baseline."""
    groups = other_groups(others)
    defaults: dict[tuple, list[list[Log]]] = defaultdict(list)
    for key, logs in groups.items():
        if key[6] == "fc":
            defaults[key[:6]].append(logs)
    return [other_row(key, logs, baseline_of(logs, defaults[key[:6]])) for key, logs in groups.items()]


def baseline_of(logs: list[Log], candidates: list[list[Log]]) -> list[Log]:
    """The only group of FC runs; of several, the one with the dropout of these runs, else none."""
    if len(candidates) == 1:
        return candidates[0]
    dropout = logs[0].settings.get("fc_dropout")
    return next((group for group in candidates if group[0].settings.get("fc_dropout") == dropout), [])


COST_COLUMNS = [
    Column("dataset", "Data set"), Column("network", "Network"), Column("head", "Spinal head"), Column("protocol", "Protocol"),
    Column("fc_parameters", "FC", "Parameters"), Column("parameters", "Spinal", "Parameters"),
    Column("fc_multiplications", "FC", "FC multiplications"), Column("spinal_multiplications", "Spinal", "FC multiplications"),
    Column("ratio", "Spinal / FC", "FC multiplications"),
]


def cost_rows(logs: Iterable[Log]) -> list[Row]:
    """What each Spinal head costs beside the FC head of its network, as the scripts counted it, whatever the run was for."""
    counts: dict[tuple, dict[tuple, tuple[int, int]]] = defaultdict(dict)
    for log in logs:
        settings = log.settings
        counts[settings["dataset"], settings["network"], settings["protocol"]][
            settings["head"], settings["layers"], settings["width"]] = (log.start["parameters"], log.start["fc_multiplications"])
    rows: dict[str, Row] = {}  # both protocols mostly count the same
    for (dataset, network, protocol), heads in sorted(counts.items(), key=lambda item: (*item[0][:2], item[0][2] != "published")):
        default = next((cost for head, cost in heads.items() if head[0] == "fc"), None)
        for (head, layers, width), (parameters, multiplications) in sorted(heads.items()):
            if head == "spinal" and default and default[1]:
                row = {"dataset": dataset, "network": NETWORKS.get(network, network), "head": f"{layers} × {width}",
                       "fc_parameters": f"{default[0]:,}", "parameters": f"{parameters:,}",
                       "fc_multiplications": f"{default[1]:,}", "spinal_multiplications": f"{multiplications:,}",
                       "ratio": number(multiplications / default[1], 2 if multiplications < 10 * default[1] else 0)}
                same = rows.setdefault(canonical(row), row | {"protocol": ""})
                same["protocol"] += f"{', ' * bool(same['protocol'])}{protocol}"
    return list(rows.values())


# ---- Formats ----

def markdown_text(text: str) -> str:
    """Text that a Markdown table takes as it is."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def markdown(columns: list[Column], rows: list[Row]) -> str:
    """A Markdown table; what is missing is a dash."""
    headings = [f"{column.group}: {column.heading}" if column.group else column.heading for column in columns]
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(markdown_text(row.get(column.key, "")) or "–" for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


TEX = {"\\": r"\textbackslash{}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
       "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$", "×": r"$\times$",
       "†": r"\textsuperscript{\textdagger}", "–": "--", "<": "$<$", ">": "$>$", "[": "{[}", "]": "{]}"}


def tex_text(text: str) -> str:
    """Text with everything escaped that LaTeX would read as a command."""
    return "".join(TEX.get(character, character) for character in text)


def tex_groups(columns: list[Column]) -> Iterator[tuple[str, int, int]]:
    """Runs of neighbouring columns with one group: heading, first and last column (from 1)."""
    first = 0
    while first < len(columns):
        last = first
        while last + 1 < len(columns) and columns[last + 1].group == columns[first].group:
            last += 1
        yield columns[first].group, first + 1, last + 1
        first = last + 1


def latex(columns: list[Column], rows: list[Row]) -> str:
    """A booktabs tabular without float, for \\input; a thin rule where the first column changes."""
    groups = list(tex_groups(columns))
    lines = ["% made by results/aggregate.py; needs booktabs", r"\begin{tabular}{" + "l" * len(columns) + "}", r"\toprule"]
    lines.append(" & ".join(rf"\multicolumn{{{last - first + 1}}}{{l}}{{{tex_text(group)}}}" for group, first, last in groups)
                 + r" \\")
    lines.append(" ".join(rf"\cmidrule(lr){{{first}-{last}}}" for group, first, last in groups if group))
    lines += [" & ".join(tex_text(column.heading) for column in columns) + r" \\", r"\midrule"]
    for previous, row in zip([None, *rows], rows):
        if previous is not None and previous.get(columns[0].key) != row.get(columns[0].key):
            lines.append(r"\addlinespace")
        lines.append(" & ".join(tex_text(row.get(column.key, "") or "–") for column in columns) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def comma_separated(keys: list[str], rows: list[Row]) -> str:
    """A CSV for programs: no thousands separators, ASCII minus, empty where nothing is known."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow([plain(key, row.get(key, "")) for key in keys])
    return stream.getvalue()


def plain(key: str, text: str) -> str:
    """A cell as programs like it."""
    if key in ("parameters", "fc_multiplications"):
        text = text.replace(",", "")
    return text.replace("−", "-").replace("×", "x")


DOCUMENT = r"""% made by results/aggregate.py: all tables, one page each; compile in this folder
\documentclass[a4paper]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{textcomp}
\usepackage{booktabs,graphicx}
\usepackage[landscape,margin=1cm]{geometry}
\pagestyle{empty}
\begin{document}
\noindent\resizebox{\linewidth}{!}{\input{table1.tex}}

\bigskip
\noindent\resizebox{0.7\linewidth}{!}{\input{table1_learnt.tex}}\clearpage
\noindent\resizebox*{!}{0.95\textheight}{\input{table2.tex}}\clearpage
\noindent\resizebox{\linewidth}{!}{\input{table2_pairs.tex}}\clearpage
\noindent\resizebox*{!}{0.95\textheight}{\input{table3.tex}}
\end{document}
"""

# ---- Report ----

LEARNT_PREFACE = """\
What the networks learnt, mean ± std over seeds × 1e-3. A constant scores the variance of the function: 8,000 for the sum, 500
for its sine, 1,000 for the product; in the 1,000 samples of seed 0 (spec) 7,160, 506, 421, and 41.6 for the sine of the product.
"""
PAIRS_PREFACE = """\
Spinal minus FC in points of test accuracy: mean over seeds [95 % interval] (pairs of runs). Paper: difference of its averages.
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
  std (sample, n − 1) are over seeds. A diverged run counts with its accuracy.
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


def figures_section(names: Iterable[str]) -> str:
    """Links to the figures that there are."""
    captions = {"training_curves": "Test accuracy by epoch, published protocol: mean over seeds, band ± 1 std",
                "regression_curves": "Clean MSE by epoch, corrected protocol: median over seeds, band from quartile to quartile",
                "training_curves_other": "Runs that are not comparable with the paper: accuracy by epoch, mean ± 1 std"}
    lines = [f"[![{captions[name]}](figures/{name}.png)](figures/{name}.svg)\n\n{captions[name]}.\n" for name in names]
    return "## Figures\n\n" + ("\n".join(lines) if lines else "None yet.\n")


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


def report(paper: list[PaperRow], cells: Cells, findings: list[Finding], tables: dict[str, list[Row]],
           figures: Iterable[str]) -> str:
    """The whole of results/README.md."""
    used = sum(map(len, cells.runs.values()))
    commands = dict.fromkeys(command(row, variant, cells.of(row, variant)) for row in paper
                             for variant in ("published", "published-broadcast", "corrected", "corrected-nodropout")
                             if cells.of(row, variant))
    missing = len(tables["table2"]) - len(ran(tables["table2"]))
    parts = [
        "# Results: SpinalNet (arXiv 2007.03347), the paper's numbers beside ours\n",
        "Made by `python results/aggregate.py` from `logs/` (format: [SCHEMA.md](SCHEMA.md)) and [paper.csv](paper.csv); edits here "
        "are lost.\nEach table is also in `tables/` as Markdown, LaTeX and CSV (`tables/tables.tex` sets all of them).\n",
        "## In plain words\n", in_plain_words(tables),
        "## Table II: accuracy from random initialisation\n", RULES,
        "Rows marked *(arXiv v2 only)* were printed in v2 and dropped from v3. v2 prints one accuracy a row, shown here under best: "
        "in the rows that both versions print it is v3's best.\n",
        f"{missing} of {len(tables['table2'])} rows have no run yet; [tables/table2.md](tables/table2.md) shows them too.\n",
        second_table(tables["table2"]), "## Table I: regression\n", NOISE_PASSAGE,
        first_table(tables["table1"]),
        "## Cost of the heads\n", "Counted by the scripts for one sample; every network of which both heads were run, if only "
        "for a moment.\n", markdown(COST_COLUMNS, tables["cost"]),
        "## Table III: transferred initialisation\n", "See [tables/table3.md](tables/table3.md).\n",
        "## Other runs\n", f"{len(tables['other_runs'])} groups of runs that no row of the paper can be compared with: "
        "[tables/other_runs.md](tables/other_runs.md).\n",
        figures_section(figures), "## Repeat a row\n",
        "Rows that have runs, each with its command:\n\n```\n" + "\n".join(commands) + "\n```\n" if commands else "No runs yet.\n",
        findings_section(findings, cells.notes, used, len(cells.others)),
    ]
    return "\n".join(parts)


def render(paper: list[PaperRow], cells: Cells, findings: list[Finding]) -> dict[str, str]:
    """Every text file that this program writes, by its path in the results folder."""
    second = accuracy_rows(paper, cells, "II", "II (v2 only)")
    for row in second:
        row["dataset"] += " (arXiv v2 only)" if row["table"] != "II" else ""
    tables = {"table1": regression_rows(paper, cells), "table2": second, "table3": accuracy_rows(paper, cells, "III"),
              "table1_learnt": regression_rows(paper, cells), "table2_pairs": [row for row in second if "difference_cell" in row], "other_runs": other_rows(cells.others),
              "cost": cost_rows([*(log for logs in cells.runs.values() for log in logs), *(log for log, _ in cells.others)])}
    forms = {"table1": (REGRESSION_COLUMNS, REGRESSION_CSV, NOISE_PASSAGE), "table2": (ACCURACY_COLUMNS, ACCURACY_CSV, RULES),
             "table1_learnt": (LEARNT_COLUMNS, None, LEARNT_PREFACE), "table2_pairs": (PAIR_COLUMNS, None, PAIRS_PREFACE),
             "table3": (ACCURACY_COLUMNS, ACCURACY_CSV, RULES),
             "other_runs": (OTHER_COLUMNS, OTHER_CSV, "Runs that depart from the paper's rows or use other data. "
                            "Not comparable with any number of the paper.\n")}
    texts = {"README.md": report(paper, cells, findings, tables, figures_of(cells)),
             "front page": "\n".join([in_plain_words(tables), FRONT_SECOND, second_table(second), FRONT_FIRST,
                                       first_table(tables["table1"])])}
    for name, (columns, keys, preface) in forms.items():
        texts[f"tables/{name}.md"] = preface + "\n" + markdown(columns, tables[name])
        if keys:
            texts[f"tables/{name}.csv"] = comma_separated(keys, tables[name])
        if name != "other_runs":
            texts[f"tables/{name}.tex"] = latex(columns, tables[name])
    return texts | {"tables/tables.tex": DOCUMENT}


# ---- Figures ----

class Line(NamedTuple):
    """One curve of a panel: its label and the curves of its runs."""
    label: str
    curves: list[list[float]]


Panels = dict[str, list[Line]]
FIGURES = ("training_curves", "regression_curves", "training_curves_other")
STYLES = [("#000000", "-"), ("#D55E00", "--"), ("#0072B2", "-."), ("#009E73", ":"), ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)))]  # Okabe-Ito


def panels_of(cells: Cells, name: str) -> Panels:
    """The panels of a figure in fixed order; FC comes first in each."""
    panels: Panels = defaultdict(list)
    if name == "training_curves_other":
        for key, logs in other_groups(cells.others).items():
            first = logs[0]
            if not first.regression:
                watched = "published" if key[2] == "published" else "corrected, held-out images"
                title = (f"{first.settings['dataset']}, {key[1]} ({watched})\n"
                         f"{key[5]}; {first.settings['epochs']} epochs, {first.data['train']} images")
                panels[title].append(Line(head_label(first.settings).upper() if key[6] == "fc" else
                                          f"Spinal {first.settings['layers']} × {first.settings['width']}",
                                          [log.curve for log in logs]))
        return dict(panels)
    regression = name == "regression_curves"
    variant = "corrected" if regression else "published"
    for (row, kind), logs in sorted(cells.runs.items(), key=lambda item: cell_order(item[0][0])):
        if kind == variant and (row.table == "I") == regression:
            title = FUNCTIONS.get(row.function, row.function) if regression else f"{row.dataset}, {NETWORKS[row.network]}"
            panels[title].append(Line(head_name(row), [log.curve for log in logs]))
    return dict(panels)


def cell_order(row: PaperRow) -> tuple:
    """Tables, then functions or data sets in the paper's order, then FC before Spinal heads by width."""
    functions, scripts = list(FUNCTIONS), SCRIPT_ORDER
    return (row.table == "III", scripts.index(row.script) if row.script in scripts else len(scripts), row.script,
            functions.index(row.function) if row.function in functions else 0, row.network, row.head, row.layers or 0,
            row.width or 0)


def figures_of(cells: Cells) -> list[str]:
    """Names of the figures for which there are runs."""
    return [name for name in FIGURES if panels_of(cells, name)]


def padded(curves: list[list[float]]) -> Any:
    """Curves (runs, epochs) as an array, with NaN after the end of a diverged run."""
    import numpy
    array = numpy.full((len(curves), max(map(len, curves))), numpy.nan)
    for row, curve in zip(array, curves):
        row[:len(curve)] = curve
    return array


def draw_panel(axes: Any, lines: list[Line], regression: bool) -> None:
    """One panel: centre and band of each head."""
    import numpy
    floors = []
    for index, line in enumerate(lines):
        colour, dashes = STYLES[index % len(STYLES)]
        values = padded(line.curves)
        values = values[:, ~numpy.isnan(values).all(axis=0)]
        if not values.size:
            continue
        epochs = numpy.arange(1, values.shape[1] + 1)
        if regression:
            centre = numpy.nanmedian(values, axis=0)
            low, high = numpy.nanquantile(values, (0.25, 0.75), axis=0)
        else:
            centre = numpy.nanmean(values, axis=0)
            spread = numpy.nanstd(values, axis=0) * math.sqrt(len(values) / max(len(values) - 1, 1))
            low, high = centre - spread, centre + spread
        axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
        marker = {"marker": "o", "markersize": 2.5} if len(epochs) < 15 else {}
        axes.plot(epochs, centre, color=colour, linestyle=dashes, linewidth=1.1, label=f"{line.label} (n = {len(values)})", **marker)
        floors.append(min(low[len(epochs) // 10:] if len(epochs) > 20 else low))
    if floors and not regression:  # the first epochs of long runs would flatten all that matters
        top = axes.get_ylim()[1]
        axes.set_ylim(min(floors) - 0.04 * (top - min(floors)), top)


def draw(cells: Cells, name: str, folder: Path) -> None:
    """One figure as SVG and PNG, with nothing in them that changes from day to day."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    panels, regression = panels_of(cells, name), name == "regression_curves"
    columns = min(len(panels), 2 if regression else 4)
    rows = math.ceil(len(panels) / columns)
    with pyplot.rc_context(matplotlib.rcParamsDefault | {"svg.hashsalt": "spinalnet", "font.size": 8, "axes.spines.top": False,
                                                        "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure, grid = pyplot.subplots(rows, columns, figsize=(max(3.1 * columns, 4.2), 2.3 * rows), squeeze=False,
                                       layout="constrained")
        for axes in grid.flat[len(panels):]:
            axes.set_visible(False)
        for axes, (title, lines) in zip(grid.flat, panels.items()):
            draw_panel(axes, lines, regression)
            if regression:
                axes.set_yscale("log")
                axes.yaxis.set_minor_formatter("")
                axes.axhline(NOISE_VARIANCE, color="#666666", linewidth=0.8, label="noise variance 0.04/12")
            axes.set_title("\n".join(textwrap.fill(line, 46) for line in title.split("\n")), fontsize=8 if "\n" not in title else 7)
            axes.set_xlabel("epoch")
            axes.set_ylabel("clean MSE" if regression else "accuracy, %")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(fontsize=6.5, frameon=False, loc="lower right" if name == "training_curves" else "best")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
        figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
        pyplot.close(figure)


def write_figures(cells: Cells, folder: Path) -> None:
    """All figures; one that has no runs any more is removed, lest it outlive its logs."""
    folder.mkdir(parents=True, exist_ok=True)
    present = figures_of(cells)
    for name in FIGURES:
        if name in present:
            draw(cells, name, folder)
        else:
            for suffix in ("svg", "png"):
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)


# ---- Command line ----

def encoded(text: str) -> bytes:
    """UTF-8; a lone surrogate in somebody's log or file name must not stop the report."""
    return text.encode("utf-8", "backslashreplace")


def differing_files(folder: Path, texts: dict[str, str]) -> list[str]:
    """Files on disk that are not what the logs give."""
    return [name for name, text in sorted(texts.items())
            if not (folder / name).is_file() or (folder / name).read_bytes() != encoded(text)]


FENCE = ("<!-- begin: made by make tables -->\n", "<!-- end: made by make tables -->")


def front_page(path: Path, text: str) -> str | None:
    """The README of the collection with `text` between its fences; none if there is no such page or fence."""
    if not path.is_file():
        return None
    before, begin, rest = path.read_text(encoding="utf-8").partition(FENCE[0])
    _, end, after = rest.partition(FENCE[1])
    return before + begin + text + end + after if begin and end else None


def aggregate(folder: Path, paper_csv: Path, check: bool) -> int:
    """Read, sort, write (or compare); returns the exit status."""
    if not folder.is_dir():
        raise UserError(f"there is no results folder {folder}")
    paper = read_paper(paper_csv)
    logs, findings = read_logs(folder / "logs")
    cells = sort_into_cells(logs, paper)
    findings = sorted(findings + cells.findings, key=lambda finding: finding.path)
    for finding in findings:
        print(encoded(f"{folder.as_posix()}/{finding}").decode(), file=sys.stderr)
    texts = render(paper, cells, findings)
    if page := front_page(folder / "../README.md", texts.pop("front page")):
        texts["../README.md"] = page
    if check:
        differing = differing_files(folder, texts)
        for name in differing:
            print(f"{folder / name} is not what the logs give; run: python results/aggregate.py")
        return 1 if differing else 0
    for name, text in texts.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoded(text))
    write_figures(cells, folder / "figures")
    print(f"{len(logs) - len(cells.findings)} runs counted, {len(findings)} logs left out; see {folder / 'README.md'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=Path("results"), help="folder with logs/ (default: results)")
    parser.add_argument("--paper", type=Path, default=Path(__file__).resolve().parent / "paper.csv",
                        help="the paper's numbers (default: beside this program)")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if tables or report are out of date")
    arguments = parser.parse_args(argv)
    try:
        return aggregate(arguments.results_dir, arguments.paper, arguments.check)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
