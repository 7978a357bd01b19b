"""tools/rerun.py: the command read out of a log's name makes that log, and differences are seen."""

import json
import sys
from pathlib import Path

import pytest

from conftest import ROOT, load_script

sys.path.insert(0, str(ROOT / "tools"))
import rerun

LOGS = sorted((ROOT / "results/reference/logs").glob("*/*.jsonl"))
KINDS = {(log.parent.name, rerun.kind_of(log)): log for log in reversed(LOGS)}


@pytest.mark.parametrize("key", sorted(KINDS), ids="/".join)
def test_command_asks_for_the_settings_in_the_log(key):
    log = KINDS[key]
    script, *flags = rerun.command(log)
    start = rerun.lines_of(log)[0]
    module = load_script(Path(script).relative_to(ROOT).with_suffix("").as_posix())
    args = module.parse_arguments(flags)
    args = args[0] if isinstance(args, tuple) else args
    settings = start["settings"]
    assert args.head == settings["head"] and args.seed == start["seed"]
    for name in ("protocol", "network", "function", "noise"):
        assert getattr(args, name, settings.get(name)) == settings.get(name), name
    for name in start["departures"]:
        assert getattr(args, name) == settings[name], name
    if settings["head"] == "spinal":
        assert getattr(args, "layers", None) in (None, settings["layers"])
        assert getattr(args, "width", None) in (None, settings["width"])
    assert getattr(args, "fc_dropout", None) in (None, settings.get("fc_dropout"))
    foreign = not start["data"]["official"] and not start["script"].startswith("tl_")
    place = "SUBSET" if foreign else "DATA"
    assert str(getattr(args, "data_dir", place)) in (place, "data")  # tables: none of these


def test_neighbouring_seeds_of_one_kind_share_a_process():
    names = [f"a-s{seed}" for seed in (0, 1, 2, 4)] + [f"b-s{seed}" for seed in range(5, 12)]
    logs = [Path(f"mnist/{name}.jsonl") for name in names]
    parts = rerun.groups(logs)
    assert sum(parts, []) == logs and [len(part) for part in parts] == [3, 1, 5, 2]


def changed(old: Path, new: Path, **end) -> Path:
    """A copy with another start line or last line."""
    lines = rerun.lines_of(old)
    for key, value in end.items():
        place = lines[-1] if key in lines[-1] else lines[0]["provenance"]
        place = lines[0]["settings"] if key == "precision" else place
        place[key] = value
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return new


def test_only_another_processor_may_be_close(tmp_path):
    old = next(log for log in LOGS if log.name == "cnn-fc-published-s0.jsonl")
    new = tmp_path / "new-s0.jsonl"
    value = rerun.result_of(old)
    assert rerun.judge(old, None)[0] == "not run again"
    assert rerun.judge(old, changed(old, new, seconds=1.0, ended="now"))[0] == "equal"
    near = {"selected_test_accuracy_pct": value + 0.01}
    state, said = rerun.judge(old, changed(old, new, **near))
    assert state == "different" and f"{value} is now {value + 0.01}" in said
    assert rerun.judge(old, changed(old, new, **near, device_name="B"))[0] == "close"
    far = {"selected_test_accuracy_pct": value - 9}
    assert rerun.judge(old, changed(old, new, **far, device_name="B"))[0] == "different"
    state, said = rerun.judge(old, changed(old, new, precision="bf16"))
    assert (state, said) == ("different", "precision: fp32 is now bf16")


def test_the_table_counts_runs_of_the_present_text_only(tmp_path, monkeypatch):
    old = LOGS[0]
    new = tmp_path / old.parent.name / rerun.kind_of(old) / "logs" / old.parent.name / old.name
    new.parent.mkdir(parents=True)
    changed(old, new)
    assert "| all |  | 0 | 0 | 0 | 1 |" in rerun.compare(tmp_path, [old])
    monkeypatch.setattr(rerun.hashlib, "sha256", Fake)
    changed(old, new, script_sha256="0" * 16)
    assert "| all |  | 1 | 0 | 0 | 0 |" in rerun.compare(tmp_path, [old])


class Fake:
    """A hash of anything."""

    def __init__(self, text: bytes):
        self.text = text

    def hexdigest(self) -> str:
        return "0" * 64
