"""Logs of runs: reading and checking what results/SCHEMA.md says, schemas 1 to 3."""

import base64
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from report.settings import (
    VERIFIED,
    canonical,
    common_settings,
    data_key,
    is_regression,
    is_tabular,
)

SCHEMAS = (1, 2, 3)
LARGEST = 1e60  # a number beyond it is nonsense here, and its square would overflow


WORDS = {  # what a value must be, by the kinds that check_keys names
    "count": "an integer, 0 or more",
    "number": "a finite number",
    "nullable": "a finite number or null",
    "accuracy": "a number from 0 to 100",
    "text": "a string",
    "filled": "a string that is not empty",
    "object": "an object",
    "texts": "a list of strings",
    "boolean": "true or false",
    "any": "anything",
}
TYPES = {"text": str, "filled": str, "object": dict, "texts": list, "boolean": bool}
RANGES = {"count": (0, LARGEST), "number": (-LARGEST, LARGEST), "accuracy": (0, 100)}


def fits(value: Any, kind: str) -> bool:
    """Whether a value is what this kind wants; JSON's true is no number here."""
    if kind == "any" or (kind == "nullable" and value is None):
        return True
    if kind in TYPES:
        texts = kind != "texts" or type(value) is list and all(type(x) is str for x in value)
        return type(value) is TYPES[kind] and texts and not (kind == "filled" and value == "")
    low, high = RANGES[kind.replace("nullable", "number")]
    return type(value) in ((int,) if kind == "count" else (int, float)) and low <= value <= high


START = (
    "schema:count script:text run:text seed:count settings:object departures:texts "
    "parameters:count fc_multiplications:count data:object provenance:object"
)
SETTINGS = (
    "dataset:text network:text head:text layers:count width:count protocol:text epochs:count "
    "batch_size:count learning_rate:number selection:text precision:text"
)
ALLOWED = {
    "head": ("fc", "spinal", "linear"),  # linear: tools/linear_head.py
    "precision": ("fp32", "ieee", "bf16"),
    "selection": ("last", "best_test", "heldout", "minimum"),
}
DATA = "train:count heldout:count test:count sha256:filled official:boolean"
PROVENANCE = "script_sha256:text device:filled device_name:text threads:count versions:object"
EPOCH = "learning_rate:number train_loss:nullable seconds:number"
END = "epochs:count seconds:number"


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
    """One finished run. `curve`: watched accuracy of images, clean MSE of a regression by epoch."""

    path: str
    start: dict[str, Any]
    end: dict[str, Any]
    curve: list[float] = field(repr=False)
    resumes: list[dict[str, Any]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.settings = common_settings(self.start)
        self.settings_text = canonical(self.settings)
        self.seed, self.script = self.start["seed"], self.start["script"]
        self.data, self.departures = self.start["data"], list(self.start["departures"])
        self.head = self.start["run"].split("-")[1]  # `fc`, `fc26`, `spinal6x8`
        # Whatever its script thought: another precision or width is another experiment.
        for key, departs in (
            ("precision", self.settings["precision"] != "fp32"),
            ("width", self.head[2:].isdigit()),
        ):
            if departs and key not in self.departures:
                self.departures.append(key)
        self.regression = is_regression(self.settings)

    @property
    def score(self) -> float:
        """The number that tables report; a regression that diverged counts as infinite."""
        if self.regression:
            return self.value("test_mse" if is_tabular(self.settings) else "clean_mse")
        if self.script == "tl_caltech101" and self.settings["protocol"] == "published":
            return self.end["best_heldout_accuracy_pct"]  # what the paper prints
        return self.end["selected_test_accuracy_pct"]

    def value(self, key: str) -> float:
        """A number of the end line, infinite where it is null."""
        return math.inf if self.end[key] is None else self.end[key]

    @property
    def provenances(self) -> list[dict[str, Any]]:
        """Where the run began and where it went on."""
        return [self.start["provenance"], *(line["provenance"] for line in self.resumes)]

    @property
    def device(self) -> str:
        """Kind of device: `cpu`, `cuda`; `cpu and cuda` if the run moved."""
        kinds = {each["device"].split(":")[0] for each in self.provenances}
        return " and ".join(sorted(kinds))

    @property
    def data_key(self) -> str:
        """What must be equal for an average. Synthetic data are drawn from the seed."""
        if self.regression and not is_tabular(self.settings):
            return ""
        return data_key(self.data["sha256"])

    @property
    def experiment(self) -> tuple[str, str, str]:
        """Runs may be averaged only if this is equal."""
        return self.settings_text, self.data_key, self.device

    @property
    def verified(self) -> bool:
        """Whether the data are known to be the official ones, not only as many as these."""
        if "verified" in self.data:
            return self.data["verified"] is True
        return self.data["sha256"] in VERIFIED or self.regression


def check_keys(line: int, record: dict[str, Any], spec: str, where: str = "") -> None:
    """Every key of `spec` (key:kind ...) is there and is what it must be."""
    for part in spec.split():
        key, _, kind = part.partition(":")
        if key not in record:
            raise BadLog(line, f"{where}{key} is missing")
        if not fits(record[key], kind):
            raise BadLog(line, f"{where}{key} is not {WORDS[kind]}")


def refuse_constant(name: str) -> None:
    """NaN and Infinity are no JSON."""
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(parse_constant=refuse_constant)


def parse_line(line: int, text: bytes, last: bool) -> dict[str, Any]:
    """One JSON object with an `event`."""
    try:
        record = DECODER.decode(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadLog(line, "not UTF-8") from None
    except (ValueError, RecursionError):
        cut = " (last line, the log may be cut off)" if last else ""
        raise BadLog(line, f"not JSON{cut}") from None
    if type(record) is not dict or type(record.get("event")) is not str:
        raise BadLog(line, "not a log line: no object with an event")
    return record


def are_stages(value: Any) -> bool:
    """A list of (rate or factor, epochs or part of them)."""
    pairs = value if type(value) is list else []
    return pairs != [] and all(
        type(pair) is list and len(pair) == 2 and all(fits(x, "number") for x in pair)
        for pair in pairs
    )


def check_settings(start: dict[str, Any]) -> None:
    """The settings, and the head that the name of the run says."""
    settings = start["settings"]
    check_keys(1, settings, SETTINGS, "settings.")
    if settings["dataset"] == "synthetic":
        check_keys(1, settings, "function:text noise:text", "settings.")
    if "stages" not in settings:  # transfer scripts know one optimiser and one rule
        check_keys(1, settings, "optimizer:any rate_rule:any", "settings.")
    elif not are_stages(settings["stages"]) or not settings["learning_rate"]:
        raise BadLog(1, "settings.stages is not a list of pairs of numbers above 0")
    for key, allowed in ALLOWED.items():
        if settings[key] not in allowed:
            raise BadLog(1, f"settings.{key} is none of {', '.join(allowed)}")
    head = "linear" if settings["head"] == "linear" else f"fc({settings['width']})?"
    if settings["head"] == "spinal":
        head = f"spinal{settings['layers']}x{settings['width']}"
    network, protocol = (re.escape(settings[key]) for key in ("network", "protocol"))
    name = f"{network}-{head}-{protocol}-(.*-)?s{start['seed']}"
    if not re.fullmatch(name, start["run"], re.DOTALL):
        raise BadLog(1, "the name of the run does not fit its settings and seed")


def check_start(start: dict[str, Any], script: str, run: str) -> None:
    """The first line, and that the file's folder and name say what it says."""
    if start["event"] != "start":
        raise BadLog(1, "the first line is not a start line")
    check_keys(1, start, START)
    if start["schema"] not in SCHEMAS:
        raise BadLog(1, f"schema {start['schema']}, this program reads schemas 1 to {SCHEMAS[-1]}")
    check_settings(start)
    verified = " verified:boolean" if start["schema"] >= 3 and "verified" in start["data"] else ""
    check_keys(1, start["data"], DATA + verified, "data.")
    check_keys(1, start["provenance"], PROVENANCE, "provenance.")
    if start["script"] != script:
        raise BadLog(1, f"the log of script {start['script']} lies in the folder {script}")
    if start["run"] != run:
        raise BadLog(1, f"the log of run {start['run']} has the file name {run}")


@dataclass(frozen=True)
class Form:
    """Which keys the lines of a kind of run have."""

    epoch: str
    end: str
    shown: str  # what the curve is made of
    tracked: str  # what the end line repeats from the epoch lines


def form_of(settings: dict[str, Any]) -> Form:
    """The form of a run with these settings."""
    if is_tabular(settings):
        epoch, end = f"{EPOCH} heldout_mse:nullable", f"{END} best_epoch:count"
        end += " heldout_mse:nullable test_mse:nullable test_r2:nullable"
        return Form(epoch, end, "heldout_mse", "heldout_mse")
    if is_regression(settings):
        losses = "train_mse:nullable clean_mse:nullable"
        minima = "min_last_batch_mse_100:nullable min_last_batch_mse_200:nullable"
        end = f"{END} {minima} {losses} noise_variance:number"
        epoch = f"{EPOCH} last_batch_mse:nullable {losses}"
        return Form(epoch, end, "clean_mse", "last_batch_mse")
    split = "heldout" if settings["selection"] == "heldout" else "test"
    watched = f"{split}_accuracy_pct"
    end = f"{END} best_epoch:count best_{watched}:accuracy last_test_accuracy_pct:accuracy"
    end += " selected_epoch:count selected_test_accuracy_pct:accuracy"
    epoch = f"{EPOCH} {split}_loss:nullable {watched}:accuracy"
    return Form(epoch, end, watched, watched)


def expected_numbers(
    settings: dict[str, Any], tracked: str, values: list[Any], best_epoch: int
) -> dict[str, float]:
    """Numbers of the end line that follow from the epoch lines."""
    known = [value for value in values if value is not None]
    if is_tabular(settings):
        return {"heldout_mse": min(known)} if known else {}
    if is_regression(settings):
        first = {limit: [x for x in values[:limit] if x is not None] for limit in (100, 200)}
        return {
            f"min_last_batch_mse_{limit}": min(first[limit])
            for limit in (100, 200)
            if len(values) >= limit and first[limit]
        }
    if settings.get("best_of_stage") and 0 < best_epoch <= len(values):
        values = values[best_epoch - 1 :]  # an earlier stage may have been better
    numbers = {f"best_{tracked}": max(values)}
    if tracked == "test_accuracy_pct":
        selected = values[-1] if settings["selection"] == "last" else max(values)
        numbers |= {"last_test_accuracy_pct": values[-1], "selected_test_accuracy_pct": selected}
    return numbers


def check_bits(line: int, end: dict[str, Any], test: int) -> None:
    """`test_correct` holds one bit a test image, as many of them 1 as the accuracy says."""
    try:
        data = base64.b64decode(end["test_correct"], validate=True)
    except (ValueError, TypeError):
        raise BadLog(line, "test_correct is not base64") from None
    right = int.from_bytes(data, "big").bit_count()
    accuracy = end["selected_test_accuracy_pct"]
    fits = len(data) == math.ceil(test / 8) and test > 0
    if not fits or not math.isclose(100 * right / test, accuracy, rel_tol=2e-5, abs_tol=1e-9):
        raise BadLog(line, f"test_correct does not give {accuracy} % of {test} images")


def check_end(line: int, end: dict[str, Any], start: dict[str, Any], values: list[Any]) -> None:
    """The last line: its numbers are those of the epoch lines (which hold six digits)."""
    settings = start["settings"]
    form = form_of(settings)
    check_keys(line, end, form.end)
    if end.get("outcome") not in ("finished", "diverged"):
        raise BadLog(line, "outcome is neither finished nor diverged")
    count = len(values)
    if end["epochs"] != count:
        raise BadLog(line, f"the end line counts {end['epochs']} epochs, the log has {count}")
    if end["outcome"] == "finished" and count != settings["epochs"]:
        wanted = settings["epochs"]
        raise BadLog(line, f"finished after {count} epochs, settings.epochs is {wanted}")
    expected = expected_numbers(settings, form.tracked, values, end.get("best_epoch", 0))
    for key, value in expected.items():
        if end[key] is None or not math.isclose(end[key], value, rel_tol=2e-5):
            raise BadLog(line, f"{key} is {end[key]}, the epoch lines say {value}")
    if "test_correct" in end and not is_regression(settings):
        check_bits(line, end, start["data"]["test"])


def lines_of(path: Path) -> list[bytes]:
    """The lines of a log."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise BadLog(1, f"cannot be read: {error.strerror}") from None
    if lines[-1].strip() == b"":
        lines.pop()
    if not lines:
        raise BadLog(1, "empty file: the run was cut off, run it again with --overwrite")
    return lines


def read_log(path: Path, label: str, script: str) -> Log:
    """One finished log, checked line by line; raises BadLog."""
    lines = lines_of(path)
    start = parse_line(1, lines[0], len(lines) == 1)
    check_start(start, script, path.name.removesuffix(".jsonl"))
    form = form_of(start["settings"])
    curve, values, resumes, end = [], [], [], None
    for number, text in enumerate(lines[1:], 2):
        if end is not None:
            raise BadLog(number, "lines after the end line")
        record = parse_line(number, text, number == len(lines))
        if record["event"] == "end":
            end = record
        elif record["event"] == "resume":
            check_keys(number, record, "epoch:count provenance:object")
            check_keys(number, record["provenance"], PROVENANCE, "provenance.")
            resumes.append(record)
        elif record["event"] != "epoch":
            raise BadLog(number, "none of an epoch, a resume and an end line")
        elif type(record.get("epoch")) is not int or record["epoch"] != len(values) + 1:
            raise BadLog(number, f"epoch {len(values) + 1} is missing")
        else:
            check_keys(number, record, form.epoch)
            shown = record[form.shown]
            curve.append(math.nan if shown is None else shown)
            values.append(record[form.tracked])
    if end is None:
        raise BadLog(len(lines), "no end line")
    if not values:
        raise BadLog(len(lines), "no epoch line")
    check_end(len(lines), end, start, values)
    return Log(label, start, end, curve, resumes)


def log_files(folder: Path) -> list[Path]:
    """Logs and unfinished logs below a folder, through linked folders too, each folder once."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place, name) for name in names if name.endswith((".jsonl", ".jsonl.part"))]
    return sorted(found, key=by_folder_and_length)


def by_folder_and_length(path: Path) -> tuple:
    """Of duplicates the shortest name comes first."""
    return path.parent, len(path.name), path.name


def read_logs(folder: Path) -> tuple[list[Log], list[Finding]]:
    """Every usable log below `folder`, and a finding for each of the others."""
    logs, findings, seen = [], [], {}
    for path in log_files(folder):
        label = path.relative_to(folder.parent).as_posix()
        if path.name.endswith(".jsonl.part"):
            findings.append(Finding(label, 1, "unfinished run"))
            continue
        try:
            log = read_log(path, label, path.relative_to(folder).parent.as_posix())
            identity = (log.script, log.seed, *log.experiment)
            if identity in seen:
                raise BadLog(1, f"duplicate of {seen[identity]} (same settings, seed and data)")
        except BadLog as bad:
            findings.append(Finding(label, bad.line, bad.reason))
        else:
            seen[identity] = label
            logs.append(log)
    return logs, findings
