"""Logs of runs: the schema (results/SCHEMA.md), checking and reading."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 2
LARGEST = 1e60  # a number beyond it is nonsense here, and its square would overflow


def is_number(value: Any) -> bool:
    return (
        type(value) in (int, float) and -LARGEST < value < LARGEST
    )  # false for NaN and infinities


KINDS = {  # what a value must be, and the words that name it
    "count": (lambda value: type(value) is int and 0 <= value < LARGEST, "an integer, 0 or more"),
    "number": (is_number, "a finite number"),
    "nullable": (lambda value: value is None or is_number(value), "a finite number or null"),
    "accuracy": (
        lambda value: type(value) in (int, float) and 0 <= value <= 100,
        "a number from 0 to 100",
    ),
    "text": (lambda value: type(value) is str, "a string"),
    "filled": (lambda value: type(value) is str and value != "", "a string that is not empty"),
    "object": (lambda value: type(value) is dict, "an object"),
    "texts": (
        lambda value: type(value) is list and all(type(text) is str for text in value),
        "a list of strings",
    ),
    "boolean": (lambda value: type(value) is bool, "true or false"),
    "any": (lambda value: True, "anything"),
}
START = (
    "schema:count script:text run:text seed:count settings:object departures:texts parameters:count "
    "fc_multiplications:count data:object provenance:object"
)
SETTINGS = (
    "dataset:text network:text head:text layers:count width:count protocol:text epochs:count batch_size:count "
    "learning_rate:number optimizer:any rate_rule:any selection:text precision:text"
)
ALLOWED = {
    "head": ("fc", "spinal"),
    "protocol": ("published", "corrected"),
    "precision": ("fp32", "bf16"),
    "selection": ("last", "best_test", "heldout", "minimum"),
}
DATA = "train:count heldout:count test:count sha256:filled official:boolean"
PROVENANCE = "script_sha256:text device:text device_name:text threads:count versions:object"
EPOCH = "learning_rate:number train_loss:nullable seconds:number"
END = "epochs:count seconds:number"
REGRESSION = (
    f"{EPOCH} last_batch_mse:nullable train_mse:nullable clean_mse:nullable",
    f"{END} min_last_batch_mse_100:nullable min_last_batch_mse_200:nullable train_mse:nullable "
    "clean_mse:nullable noise_variance:number",
)
TABULAR = (
    f"{EPOCH} heldout_mse:nullable",
    f"{END} best_epoch:count heldout_mse:nullable test_mse:nullable test_r2:nullable",
)
IMAGES = (
    "{EPOCH} {split}_loss:nullable {split}_accuracy_pct:accuracy",
    "{END} best_epoch:count best_{split}_accuracy_pct:accuracy last_test_accuracy_pct:accuracy "
    "selected_epoch:count selected_test_accuracy_pct:accuracy",
)


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
        self.settings, self.seed, self.script = (
            self.start["settings"],
            self.start["seed"],
            self.start["script"],
        )
        self.data, self.departures = self.start["data"], list(self.start["departures"])
        if (
            self.settings["precision"] != "fp32" and "precision" not in self.departures
        ):  # whatever its script thought
            self.departures.append("precision")
        self.regression = is_regression(self.settings)
        self.settings_text = canonical(self.settings)

    @property
    def score(self) -> float:
        """The number that tables report; a regression that diverged counts as infinite, not as absent."""
        if self.regression:
            return self.value("test_mse" if is_tabular(self.settings) else "clean_mse")
        if (
            self.script == "tl_caltech101" and self.settings["protocol"] == "published"
        ):  # the paper prints this one
            return self.end["best_heldout_accuracy_pct"]
        return self.end["selected_test_accuracy_pct"]

    def value(self, key: str) -> float:
        """A number of the end line, infinite where it is null."""
        return math.inf if self.end[key] is None else self.end[key]

    @property
    def data_key(self) -> str:
        """What must be equal for an average. Synthetic data are drawn from the seed, so seeds differ by design."""
        return "" if self.regression and not is_tabular(self.settings) else self.data["sha256"]


def canonical(value: Any) -> str:
    """Text that is equal for equal JSON values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def is_regression(settings: dict[str, Any]) -> bool:
    """Whether a run is measured by an error: only regressions report a minimum or use synthetic data."""
    return (
        settings["selection"] == "minimum"
        or settings["dataset"] == "synthetic"
        or is_tabular(settings)
    )


def is_tabular(settings: dict[str, Any]) -> bool:
    """A run on a table of somebody's own (Regression/tabular.py)."""
    return settings.get("task") == "tabular"


def head_label(settings: dict[str, Any]) -> str:
    """`fc` or `spinal6x8`, as in file names."""
    return "fc" if settings["head"] == "fc" else f"spinal{settings['layers']}x{settings['width']}"


def check_keys(line: int, record: dict[str, Any], spec: str, where: str = "") -> None:
    """Every key of `spec` (key:kind ...) is there and is what it must be; other keys are not read."""
    for part in spec.split():
        key, _, kind = part.partition(":")
        if key not in record:
            raise BadLog(line, f"{where}{key} is missing")
        if not KINDS[kind][0](record[key]):
            raise BadLog(line, f"{where}{key} is not {KINDS[kind][1]}")


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(parse_constant=refuse_constant)


def parse_line(line: int, text: bytes, last: bool) -> dict[str, Any]:
    """One JSON object with an `event`."""
    try:
        record = DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadLog(line, "not UTF-8") from None
    except (ValueError, RecursionError):
        raise BadLog(
            line, "not JSON" + (" (last line, the log may be cut off)" if last else "")
        ) from None
    if type(record) is not dict or type(record.get("event")) is not str:
        raise BadLog(line, "not a log line: no object with an event")
    return record


def check_start(start: dict[str, Any], script: str, run: str) -> None:
    """The first line, and that the file's folder and name say what it says."""
    if start["event"] != "start":
        raise BadLog(1, "the first line is not a start line")
    check_keys(1, start, START)
    if start["schema"] != SCHEMA:
        raise BadLog(1, f"schema {start['schema']}, this program reads schema {SCHEMA}")
    settings = start["settings"]
    check_keys(1, settings, SETTINGS, "settings.")
    check_keys(
        1,
        settings,
        "function:text noise:text" if settings["dataset"] == "synthetic" else "",
        "settings.",
    )
    for key, allowed in ALLOWED.items():
        if settings[key] not in allowed:
            raise BadLog(1, f"settings.{key} is none of {', '.join(allowed)}")
    check_keys(1, start["data"], DATA, "data.")
    check_keys(1, start["provenance"], PROVENANCE, "provenance.")
    if start["script"] != script:
        raise BadLog(1, f"the log of script {start['script']} lies in the folder {script}")
    if start["run"] != run:
        raise BadLog(1, f"the log of run {start['run']} has the file name {run}")
    name = f"{settings['network']}-{head_label(settings)}-{settings['protocol']}"
    if not (run.startswith(f"{name}-") and run.endswith(f"-s{start['seed']}")):
        raise BadLog(1, f"the name does not fit the settings: expected {name}-...-s{start['seed']}")


def check_end(
    line: int, end: dict[str, Any], settings: dict[str, Any], split: str, values: list[Any]
) -> None:
    """The last line: its numbers are those of the epoch lines (which hold six digits)."""
    if end.get("outcome") not in ("finished", "diverged"):
        raise BadLog(line, "outcome is neither finished nor diverged")
    check_keys(line, end, "diverged_epoch:count" if end["outcome"] == "diverged" else "")
    if end["epochs"] != len(values):
        raise BadLog(line, f"the end line counts {end['epochs']} epochs, the log has {len(values)}")
    if end["outcome"] == "finished" and len(values) != settings["epochs"]:
        raise BadLog(
            line, f"finished after {len(values)} epochs, settings.epochs is {settings['epochs']}"
        )
    known = [value for value in values if value is not None]
    expected: dict[str, float] = {}
    if is_tabular(settings):
        expected = {"heldout_mse": min(known)} if known else {}
    elif is_regression(settings):
        for limit in (100, 200):
            if len(values) >= limit and (
                first := [value for value in values[:limit] if value is not None]
            ):
                expected[f"min_last_batch_mse_{limit}"] = min(first)
    else:
        expected[f"best_{split}_accuracy_pct"] = max(values)
        if split == "test":
            expected["last_test_accuracy_pct"] = values[-1]
            expected["selected_test_accuracy_pct"] = (
                values[-1] if settings["selection"] == "last" else max(values)
            )
    for key, value in expected.items():
        if end[key] is None or not math.isclose(end[key], value, rel_tol=2e-5):
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
    split = "heldout" if settings["selection"] == "heldout" else "test"
    if is_tabular(settings):
        specs, shown, tracked = TABULAR, "heldout_mse", "heldout_mse"
    elif is_regression(settings):
        specs, shown, tracked = REGRESSION, "clean_mse", "last_batch_mse"
    else:
        specs = [spec.format(EPOCH=EPOCH, END=END, split=split) for spec in IMAGES]
        shown = tracked = f"{split}_accuracy_pct"
    curve, values = [], []
    for number, text in enumerate(lines[1:], 2):
        record = parse_line(number, text, number == len(lines))
        if record["event"] == "end":
            break
        if record["event"] != "epoch":
            raise BadLog(number, "neither an epoch line nor an end line")
        if record.get("epoch") != number - 1 or type(record["epoch"]) is not int:
            raise BadLog(number, f"epoch {number - 1} is missing")
        check_keys(number, record, specs[0])
        curve.append(math.nan if record[shown] is None else record[shown])
        values.append(record[tracked])
    else:
        raise BadLog(len(lines), "no end line")
    if number != len(lines):
        raise BadLog(number + 1, "lines after the end line")
    if not values:
        raise BadLog(number, "no epoch line")
    check_keys(number, record, specs[1])
    check_end(number, record, settings, split, values)
    return Log(label, start, record, curve)


def read_logs(folder: Path) -> tuple[list[Log], list[Finding]]:
    """Every usable log below `folder`, and a finding for each of the others; of duplicates the shortest name stays."""
    logs, findings, seen = [], [], {}
    for path in sorted(
        folder.rglob("*.jsonl*"), key=lambda path: (path.parent, len(path.name), path.name)
    ):
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
