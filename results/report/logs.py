"""Logs of runs: the schema (results/SCHEMA.md), checking and reading."""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
TABULAR_EPOCH = EPOCH | {"heldout_mse": NULLABLE}
TABULAR_END = END | {"best_epoch": COUNT, "heldout_mse": NULLABLE, "test_mse": NULLABLE, "test_r2": NULLABLE}
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
        if self.regression:
            return self.value("test_mse" if is_tabular(self.settings) else "clean_mse")
        if self.script == "tl_caltech101" and self.settings["protocol"] == "published":  # the paper prints this one (Q7)
            return self.end["best_heldout_accuracy_pct"]
        return self.end["selected_test_accuracy_pct"]

    def value(self, key: str) -> float:
        """A number of the end line, infinite where it is null."""
        number = self.end[key]
        return math.inf if number is None else number

    @property
    def data_key(self) -> str:
        """What must be equal for an average. Synthetic data are drawn from the seed, so seeds differ by design."""
        return "" if self.regression and not is_tabular(self.settings) else self.data["sha256"]


def canonical(value: Any) -> str:
    """Text that is equal for equal JSON values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True)


def is_regression(settings: dict[str, Any]) -> bool:
    """Whether a run is measured by an error, not by an accuracy: only regressions report a minimum or use synthetic data."""
    return settings["selection"] == "minimum" or settings["dataset"] == "synthetic" or is_tabular(settings)


def is_tabular(settings: dict[str, Any]) -> bool:
    """A run on a table of somebody's own (Regression/tabular.py)."""
    return settings.get("task") == "tabular"


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
    settings = start["settings"]
    kinds = REGRESSION_END if is_regression(settings) else end_keys(split)
    check_keys(line, end, TABULAR_END if is_tabular(settings) else kinds)
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

    if is_tabular(settings):
        known = [value for value in values if value is not None]
        if known and not same(end["heldout_mse"], min(known)):
            raise BadLog(line, f"heldout_mse is {end['heldout_mse']}, the epoch lines say {min(known)}")
        return
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
    split = "heldout" if settings["selection"] == "heldout" else "test"
    kinds = TABULAR_EPOCH if is_tabular(settings) else REGRESSION_EPOCH if regression else epoch_keys(split)
    shown, tracked = ("clean_mse", "last_batch_mse") if regression else (f"{split}_accuracy_pct",) * 2
    if is_tabular(settings):
        shown = tracked = "heldout_mse"
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
