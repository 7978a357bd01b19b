"""Is training in bf16 as accurate as in fp32? From the committed logs: python tools/precision.py [--results-dir results]

Pairs runs that are equal in script, seed, data and every setting but the precision, and writes results/precision.md: the
mean difference of the selected test accuracy with a 95 % t interval, beside the scatter that seeds alone cause, and the ratio
of the measured times. This page is what `default_precision` of the scripts rests on. A pure function of the logs.
"""
from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FEWEST = 5  # paired seeds
# 97.5 % quantile of Student's t by degrees of freedom, as in any table; beyond: the next smaller one, which is wider
STUDENT = {4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042}


def read(path: Path) -> tuple[dict, dict] | None:
    """First and last line of a finished image run; None for anything else (the report names damaged logs)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        start, end = json.loads(lines[0]), json.loads(lines[-1])
        return (start, end) if "selected_test_accuracy_pct" in end and "precision" in start["settings"] else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def pairs_of(folder: Path) -> dict[tuple, dict[int, dict[str, tuple[float, float]]]]:
    """(script, settings without precision, data): seed: precision: (accuracy in per cent, seconds)."""
    groups = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.glob("*/*.jsonl")):
        run = read(path)
        if run is None:
            continue
        start, end = run
        settings = {key: value for key, value in start["settings"].items() if key != "precision"}
        key = start["script"], json.dumps(settings, sort_keys=True), start["data"]["sha256"], start["provenance"]["device"]
        groups[key][start["seed"]].setdefault(start["settings"]["precision"],
                                              (end["selected_test_accuracy_pct"], end["seconds"]))
    return groups


def rows_of(groups: dict) -> list[str]:
    """A line of the table for each group with runs in both precisions."""
    rows = []
    for (script, settings, _, device), seeds in sorted(groups.items()):
        both = [seeds[seed] for seed in sorted(seeds) if len(seeds[seed]) == 2]
        if len(both) < FEWEST:
            continue
        settings = json.loads(settings)
        differences = [run["bf16"][0] - run["fp32"][0] for run in both]
        mean, spread = statistics.mean(differences), statistics.stdev(differences)
        quantile = STUDENT[max(degrees for degrees in STUDENT if degrees <= len(both) - 1)]
        half = quantile * spread / math.sqrt(len(both))
        scatter = statistics.stdev(run["fp32"][0] for run in both)
        images = f"first {settings['limit']:,}" if settings.get("limit") else "all"
        head = "FC" if settings["head"] == "fc" else f"Spinal {settings['layers']} × {settings['width']}"
        verdict = "not to be told apart" if mean - half <= 0 <= mean + half else "differs"
        times = statistics.median(run["fp32"][1] / run["bf16"][1] for run in both)
        rows.append(f"| {settings['dataset']} | {settings['network']} | {head} | {images} | {settings['epochs']} | {device} | "
                    f"{len(both)} | {statistics.mean(run['fp32'][0] for run in both):.2f} ± {scatter:.2f} | "
                    f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f}) | {verdict} | {times:.2f} |")
    return rows


def page(rows: list[str]) -> str:
    head = ("# Precision: bf16 against fp32\n\nMade by `make tables` from the logs: runs that differ in nothing but the precision, paired "
            f"by seed; groups of at least {FEWEST} pairs.\nDifference: bf16 minus fp32 in points of test accuracy, with the 95 % t "
            "interval of the mean. \"Not to be told apart\": that interval\ncontains zero; what it contains besides is what "
            "these runs cannot exclude. Times: median of fp32's seconds over bf16's, measured\nwith other jobs on the "
            "same machine (`make bench` measures speed). A network whose two heads are here on a device may take\n"
            "bf16 as its default there.\n\n")
    columns = ("| Data set | Network | Head | Images | Epochs | Device | Pairs | fp32, % (± scatter of seeds) | Difference | Verdict | "
               "Times faster |\n|---|---|---|---|---:|---|---:|---:|---:|---|---:|\n")
    return head + (columns + "\n".join(rows) if rows else "No such runs yet.") + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=ROOT / "results")
    folder = parser.parse_args(argv).results_dir
    (folder / "precision.md").write_text(page(rows_of(pairs_of(folder / "logs"))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
