"""tools/rerun.py: the command read out of a log's name makes that log, and each number that differs is seen."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest

from conftest import ROOT, load_script

sys.path.insert(0, str(ROOT / "tools"))
import rerun

LOGS = sorted((ROOT / "results/reference/logs").glob("*/*.jsonl"))
KINDS = {(log.parent.name, rerun.kind_of(log)): log for log in reversed(LOGS)}


@pytest.mark.parametrize("log", [KINDS[key] for key in sorted(KINDS)], ids=lambda log: f"{log.parent.name}/{log.stem}")
def test_command_asks_for_the_settings_in_the_log(log):
    script, *flags = rerun.command(log, ROOT, Path("results"), Path("data"), Path("data/subset"))
    start, place = rerun.lines_of(log)[0], Path(script).relative_to(ROOT).with_suffix("")
    asked = load_script(place.as_posix()).parse_arguments(flags)
    options, recipe = asked if isinstance(asked, tuple) else (asked, {})
    settings = start["settings"]
    assert settings["protocol"] == getattr(options, "protocol", settings["protocol"])
    assert settings["head"] == options.head and options.seed == start["seed"]
    for key in ("epochs", "batch_size", "learning_rate", "precision", "limit"):
        if key in recipe:
            assert recipe[key] == settings.get(key), key
    if settings["head"] == "spinal" and "spinal" in recipe:
        assert list(recipe["spinal"][:2]) == [settings["layers"], settings["width"]]
    if settings["dataset"] == "synthetic":
        assert (options.function, options.noise) == (settings["function"], settings["noise"])
    if "data_dir" in options:
        foreign = not start["data"]["official"] and not start["script"].startswith("tl_")
        assert options.data_dir == Path("data/subset" if foreign else "data")


def test_neighbouring_seeds_of_one_kind_share_a_process():
    logs = [
        Path(f"mnist/{kind}-s{seed}.jsonl")
        for kind, seeds in (("a", (0, 1, 2, 4)), ("b", range(5, 12)))
        for seed in seeds
    ]
    parts = rerun.processes(logs)
    assert [log for part in parts for log in part] == logs
    assert [len(part) for part in parts] == [3, 1, 5, 2]


def test_compare_sees_one_changed_digit_and_nothing_else(tmp_path, capsys):
    old = next(log for log in LOGS if rerun.current(log))
    new = tmp_path / "results/logs" / old.parent.name / old.name
    new.parent.mkdir(parents=True)
    page = tmp_path / "page.md"
    page.write_text("First words.\n\n| script | an old table |\n")
    options = argparse.Namespace(work=tmp_path, old=None, all=True, write=page)
    for change, expected in (
        (None, "| all | | 1 | 0 |"),
        ("seconds", "| all | | 1 | 0 |"),
        ("epoch", "| all | | 0 | 1 |"),
    ):
        shutil.copyfile(old, new)
        if change:
            lines = new.read_text().splitlines()
            record = json.loads(lines[1])
            record[change] += 1
            new.write_text("\n".join([lines[0], json.dumps(record), *lines[2:]]) + "\n")
        rerun.compare(options)
        assert expected in capsys.readouterr().out
        assert page.read_text().startswith("First words.\n\n| script | runs |") and expected in page.read_text()


def test_a_log_in_another_precision_is_different_and_says_so(tmp_path):
    old = next(log for log in LOGS if rerun.lines_of(log)[0]["settings"].get("precision") == "fp32")
    new = tmp_path / "new.jsonl"
    new.write_text(old.read_text().replace('"precision": "fp32"', '"precision": "bf16"'))
    assert rerun.differences(old, new) == ["precision: fp32 is now bf16"]
