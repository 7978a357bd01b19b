"""tools/gpu_quarter_hour.py with runs that only pretend, and in small with the real ones."""

import json
import stat
import sys
import tarfile
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import gpu_quarter_hour as tool  # noqa: E402
from made_up_data import write_data  # noqa: E402

CARD = "Pretended GPU"
RUN = """
import json, sys, time
from pathlib import Path
script, head, seed, seconds, folder = sys.argv[1:]
name = {"fc": "vgg5-fc", "spinal": "vgg5-spinal4x128"}[head] + f"-published-s{seed}"
log = Path(folder) / script / f"{name}.jsonl"
part = log.with_suffix(".jsonl.part")
log.parent.mkdir(parents=True, exist_ok=True)
start = {"event": "start", "settings": {"epochs": 10}}
lines = [start | {"provenance": {"device_name": "Pretended GPU"}}]
if part.exists():
    lines = [json.loads(line) for line in part.read_text().splitlines()]
part.write_text("".join(json.dumps(line) + "\\n" for line in lines))
try:
    while len(lines) < 11:
        time.sleep(float(seconds))
        lines.append({"event": "epoch", "epoch": len(lines)})
        part.write_text("".join(json.dumps(line) + "\\n" for line in lines))
except KeyboardInterrupt:
    sys.exit(130)
lines.append({"event": "end", "selected_test_accuracy_pct": 50.0})
part.write_text("".join(json.dumps(line) + "\\n" for line in lines))
part.rename(log)
"""


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A machine without MPS, whose runs pretend: ten epochs each. Returns what calls the tool."""
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def call(verb: str, seconds: float, epoch: float, work: str = "work", **more) -> int:
        def start_run(session, run, environment):
            command = [sys.executable, "-S", str(tmp_path / "run.py"), run.script, run.head]
            command += [str(run.seed), str(epoch), str(session.logs)]
            return tool.start(session, command, environment)

        def look_at_machine(session) -> str:
            session.device = CARD
            return CARD

        monkeypatch.setattr(tool, "start_run", start_run)
        monkeypatch.setattr(tool, "look_at_machine", look_at_machine)
        monkeypatch.setattr(tool, "RESERVE", 0.0)
        line = [verb, "--seconds", str(seconds), "--out", str(tmp_path / "out")]
        line += ["--reference", str(tmp_path / "reference")]
        for key, value in more.items():
            line += [f"--{key.replace('_', '-')}", str(value)]
        return tool.main([*line, "--work", str(tmp_path / work)])

    return call


def names(folder: Path) -> list[str]:
    with tarfile.open(folder / "out/logs.tar") as archive:
        return sorted(archive.getnames())


def finished(seed: int) -> list[str]:
    return [f"logs/fashion_mnist/vgg5-{x}-published-s{seed}.jsonl" for x in tool.HEADS.values()]


def test_train_takes_the_lowest_seeds_and_goes_on(box, tmp_path):
    """Without MPS, one pair after the other; a second call takes the next seed."""
    assert box("train", 30, 0.01, pair_seconds=12) == 0  # 0.92 x 30 / 12: two pairs
    assert names(tmp_path) == sorted(finished(0) + finished(1))
    page = (tmp_path / "out/summary.md").read_text()
    assert "no daemon" in page and "2 pairs of 12 s each" in page
    assert "4 of 4 runs finished; pairs stopped for time: 0" in page
    assert f"| {finished(0)[0][5:-6]} | 50.00 |" in page
    assert box("train", 30, 0.01, pair_seconds=20) == 0
    assert names(tmp_path) == sorted(finished(0) + finished(1) + finished(2))
    assert box("train", 1, 0.01, pair_seconds=20) == 1
    assert "there is no time for a pair" in (tmp_path / "out/summary.md").read_text()


def test_a_pair_too_many_is_stopped(box, tmp_path, monkeypatch):
    """Three pairs under MPS need more than the time: at a quarter the youngest goes."""
    daemon, heard = tmp_path / "bin/nvidia-cuda-mps-control", tmp_path / "mps.txt"
    script = f'echo "$@" >>{heard}\n[ "$1" = -d ] || /bin/cat >>{heard}'
    daemon.write_text(f"#!/bin/sh\n{script}\n")
    daemon.chmod(daemon.stat().st_mode | stat.S_IXUSR)
    paces = []

    def will_finish(session, pairs, *rest) -> bool:
        paces.append(len(pairs))
        return len(pairs) < 3

    monkeypatch.setattr(tool, "will_finish", will_finish)
    assert box("train", 16, 0.6, pair_seconds=4.8) == 0
    assert paces == [3]
    assert names(tmp_path) == sorted(finished(0) + finished(1))
    assert "pairs stopped for time: 1" in (tmp_path / "out/summary.md").read_text()
    part = tmp_path / "work/results/logs/fashion_mnist/vgg5-fc-published-s2.jsonl.part"
    assert part.exists()  # a second call on this machine goes on with it
    assert heard.read_text().split() == ["-d", "quit"]


def test_a_second_call_on_a_fresh_machine(box, tmp_path):
    """Nothing is left of the first machine but what was taken home, and merged."""
    assert box("train", 30, 0.01, work="first", pair_seconds=20) == 0
    merge = ["merge", "--out", str(tmp_path / "out"), "--reference", str(tmp_path / "reference")]
    assert tool.main(merge) == 0
    assert box("train", 30, 0.01, work="second", pair_seconds=20) == 0
    assert names(tmp_path) == sorted(finished(1))  # this machine's logs alone
    assert tool.main(merge) == 0
    logs = (tmp_path / "reference").rglob("*.jsonl")
    found = sorted(str(x.relative_to(tmp_path / "reference")) for x in logs)
    assert found == sorted(finished(0) + finished(1))


def test_another_card_trains_the_other_set(box, tmp_path, capsys):
    """A row is never continued on another device."""
    log = tmp_path / "reference" / finished(0)[0]
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"event": "start", "provenance": {"device_name": "another"}}))
    assert box("train", 30, 0.01, pair_seconds=20) == 0
    page = (tmp_path / "out/summary.md").read_text()
    assert "VGG-5 on fashion_mnist | 0 | no run: its row has logs of another" in page
    assert names(tmp_path) == sorted(x.replace("fashion_", "") for x in finished(0))


def test_what_will_finish(tmp_path):
    args = tool.parse_arguments(["train", "--out", str(tmp_path), "--work", str(tmp_path)])
    session = tool.Session(args)
    run = tool.Vgg5("mnist", "fc", 0)
    lines = [{"event": "start", "settings": {"epochs": 10}}] + [{"event": "epoch"}] * 4
    part = session.logs / "mnist/vgg5-fc-published-s0.jsonl.part"
    part.parent.mkdir(parents=True)
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    now = session.began
    for before, seconds, expected in ((2, 100, True), (2, 20, False), (4, 10_000, False)):
        found = tool.will_finish(session, [[run]], {run: before}, now - 10, now + seconds)
        assert found == expected  # six epochs are left; those since `began` give the pace


def test_a_failing_smoke_run_ends_the_check(box, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "SMOKE", "raise RuntimeError('no kernel image')")
    assert box("check", 60, 0.01) == 1
    page = (tmp_path / "out/summary.md").read_text()
    assert "Traceback" in page and "RuntimeError: no kernel image" in page
    assert "| tests |" not in page and names(tmp_path) == []


def test_runs_at_once_are_timed(box, tmp_path, monkeypatch):
    """Their epochs, and that `train` goes on with them."""
    monkeypatch.setattr(tool, "check", lambda session: session.stage("at once", 0, at_once))

    def at_once(session) -> str:
        assert tool.time_runs_at_once(session, 2, 1, True) == "left out: no MPS"
        return tool.time_runs_at_once(session, 2, 4, False)

    assert box("check", 60, 0.5) == 0
    (row,) = json.loads((tmp_path / "out/speed.json").read_text())["at_once"]
    assert 0.4 < row["pair_epoch_seconds"] < 1.5 and row["runs"] == 2
    assert names(tmp_path) == [] and box("train", 30, 0.01, pair_seconds=20) == 0
    assert names(tmp_path) == sorted(finished(0))


def test_merge(box, tmp_path, capsys):
    assert box("train", 30, 0.01, pair_seconds=20) == 0
    reference = tmp_path / "reference"
    line = ["merge", "--out", str(tmp_path / "out"), "--reference", str(reference)]
    assert tool.main(line) == 0 and "2 new logs" in capsys.readouterr().out
    assert sorted(str(x.relative_to(reference)) for x in reference.rglob("*.jsonl")) == finished(0)
    assert tool.main(line) == 0 and "0 new logs" in capsys.readouterr().out
    log = reference / finished(0)[0]
    text = log.read_text()
    log.write_text(text.replace("50.0", "51.0"))
    assert tool.main(line) == 2 and "is there and differs" in capsys.readouterr().err
    log.unlink()
    log.with_name(log.name.replace("s0", "s7")).write_text(text.replace(CARD, "another"))
    assert tool.main(line) == 2 and "has logs of another" in capsys.readouterr().err
    assert not log.exists()


@pytest.mark.slow
def test_the_rehearsal(tmp_path):
    """Both verbs with the real command lines, in small, on a CPU."""
    data, out = tmp_path / "data", tmp_path / "out"
    write_data(data, "MNIST/mnist", "MNIST/fashion_mnist", train=600, test=1000)
    line = ["--rehearse", "--out", str(out), "--work", str(tmp_path / "work")]
    line += ["--data-dir", str(data)]
    assert tool.main(["check", "--seconds", "3000", *line]) == 0, (out / "summary.md").read_text()
    speed = json.loads((out / "speed.json").read_text())
    assert len(speed["steps"]) == 12 and len(speed["at_once"]) == 1 and speed["bench"]["rows"]
    assert (out / "tests.xml").exists()
    assert tool.main(["train", "--seconds", "900", "--pair-seconds", "800", *line]) == 0
    with tarfile.open(out / "logs.tar") as archive:
        found = [x for x in archive.getnames() if "vgg5" in x]
    assert len(found) in (2, 4)  # the first pair may have finished while it was timed
    assert len(list(out.iterdir())) == 4
