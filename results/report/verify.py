"""Run a committed log's run again and compare it line by line."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report.facts import FOLDERS, UserError

ROOT = Path(__file__).resolve().parents[2]
UNTIMED = {"seconds", "peak_memory_bytes"}  # differ from run to run
NAMES = {"run", "departures", "provenance"}  # of the first line: names of what the settings say, and where it ran
SET_UP = ("device", "device_name", "threads", "versions")  # equal: the same bits
# Settings that have a flag of their own, and when it is given: always, or only where the log departs in it.
FLAGS = {"network": "--network", "protocol": "--protocol", "epochs": "--epochs", "batch_size": "--batch-size",
         "learning_rate": "--lr", "precision": "--precision", "limit": "--limit", "function": "--function", "noise": "--noise",
         "fc_dropout": "--fc-dropout", "test": "--test", "weights": "--weights", "image_size": "--image-size", "flavour": "--flavour",
         "accumulate": "--accumulate"}
IF_DEPARTED = {"fc_dropout", "image_size", "flavour", "accumulate", "batch_size", "epochs", "learning_rate", "weights"}


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a finished log. Raises UserError."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if len(lines) < 2 or lines[0]["event"] != "start" or lines[-1]["event"] != "end":
            raise ValueError("no finished log")
        lines[0]["settings"]["head"], lines[0]["provenance"]["threads"], lines[0]["script"]
        return lines
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} cannot be verified: {getattr(error, 'strerror', None) or error}") from None


def script_of(start: dict[str, Any]) -> Path:
    """The script that wrote a log. Raises UserError if this collection has none of that name."""
    name = str(start["script"])
    path = ROOT / FOLDERS.get(name, FOLDERS.get(name.split("_")[0], "MNIST")) / f"{name}.py"
    found = [path] if path.is_file() else sorted(ROOT.glob(f"*/{Path(name).name}.py"))
    if not found:
        raise UserError(f"there is no script {name}.py in this collection")
    return found[0]


def arguments(start: dict[str, Any], help_text: str) -> list[str]:
    """The command line that a log's first line stands for; flags that the script does not have are left out."""
    settings, departures = start["settings"], set(start["departures"])
    parts = ["--head", settings["head"], "--seed", str(start["seed"])]
    if settings["head"] == "spinal" and "--layers" in help_text and settings["network"] != "arch2":
        parts += ["--layers", str(settings["layers"]), "--width", str(settings["width"])]
    for key, flag in FLAGS.items():
        departed = key in departures or key == "learning_rate" and "lr" in departures
        if settings.get(key) is not None and flag in help_text and (departed or key not in IF_DEPARTED):
            parts += [flag, str(settings[key])]
    return parts


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    drop = UNTIMED | (NAMES if line["event"] == "start" else set())
    return {key: value for key, value in line.items() if key not in drop}


def differences(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[tuple[int, str, Any, Any]]:
    """(line, key, logged, now) of everything that differs, times and names aside."""
    found = [] if len(old) == len(new) else [(min(len(old), len(new)) + 1, "number of lines", len(old), len(new))]
    for number, (before, after) in enumerate(zip(map(without_times, old), map(without_times, new)), start=1):
        if number == 1:  # the settings one by one; keys that only newer scripts log are no difference
            before, after = (line | line.pop("settings") | line.pop("data") for line in (before, after))
        found += [(number, key, value, after.get(key)) for key, value in before.items() if after.get(key) != value]
    return found


def verify(path: Path, data_dir: Path) -> int:
    """Prints the comparison. Exit status: 0 the same, 1 not the same; UserError where it cannot be run."""
    old = read(path)
    start, script = old[0], script_of(old[0])
    environment = {**os.environ, "OMP_NUM_THREADS": str(start["provenance"]["threads"]), "CUDA_VISIBLE_DEVICES": ""}
    help_text = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, env=environment).stdout
    command = [sys.executable, str(script), *arguments(start, help_text)]
    for flag, value in (("--data-dir", str(data_dir)), ("--device", "cpu")):
        command += [flag, value] if flag in help_text else []
    command += [flag for flag in ("--no-download", "--quiet") if flag in help_text]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, "--results-dir", folder], capture_output=True, text=True, env=environment)
        logs = list(Path(folder).glob("logs/*/*.jsonl"))
        if done.returncode or len(logs) != 1:
            raise UserError(f"the run could not be repeated: {(done.stderr.strip().splitlines() or ['no log came out'])[-1]}")
        new = read(logs[0])
    found = differences(old, new)
    same_place = all(start["provenance"].get(key) == new[0]["provenance"].get(key) for key in SET_UP)
    if not found:
        print(f"{path}: {len(old)} lines, the same, times aside")
        return 0
    for line, key, logged, now in found[:5]:
        print(f"{path}:{line}: {key} {logged!r}, now {now!r}")
    gap = max((abs(logged - now) for _, key, logged, now in found if key.endswith("_accuracy_pct") and now is not None
               and logged is not None), default=0.0)
    fixed = [item for item in found if item[0] == 1 or item[1] == "number of lines"]
    print(f"{path}: {len(found)} values differ; largest difference of an accuracy {gap:.4g} points")
    if same_place or fixed:
        return 1
    print("This is another processor, number of threads or version than the log's, where other bits are to be expected; "
          "settings, counts and data are the same.")
    return 0
