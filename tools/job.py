"""Runs the command of one log, and remembers when it fails: python tools/job.py LOG COMMAND...

The Makefile puts this before each run. The command's error output is passed on; if the command fails, its status, last message
and command line are kept in results/failed/SCRIPT/RUN.json, where `make status` and the summary of `make reproduce-...` find
them, until a later attempt succeeds. A run that was stopped (Ctrl-C, SIGTERM) did not fail: it goes on when it is started again.
Exit status: the command's own, 128 + the signal that ended it, or 2 for wrong use.
"""
from __future__ import annotations

import datetime
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def failure_of(log: Path) -> Path:
    """results/logs/SCRIPT/RUN.jsonl -> results/failed/SCRIPT/RUN.json"""
    return log.parent.parent.parent / "failed" / log.parent.name / f"{log.stem}.json"


def run(command: list[str]) -> tuple[int, str]:
    """(exit status, last line of its error output) of the command. Raises OSError if it cannot be started."""
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: child.send_signal(number))
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to the command too
    last = b""
    while piece := os.read(child.stderr.fileno(), 65536):
        os.write(2, piece)
        last = (last + piece)[-4000:]
    status = child.wait()
    lines = [line.strip() for line in last.decode(errors="replace").replace("\r", "\n").split("\n") if line.strip()]
    return 128 - status if status < 0 else status, lines[-1] if lines else ""


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        print("error: no command: python tools/job.py LOG COMMAND...", file=sys.stderr)
        return 2
    failure, command = failure_of(Path(argv[0])), argv[1:]
    try:
        status, reason = run(command)
    except OSError as error:
        status, reason = 127, f"error: {command[0]} cannot be run ({error.strerror})"
        print(reason, file=sys.stderr)
    if status == 0:
        failure.unlink(missing_ok=True)
    elif status not in STOPPED:
        if status > 128:
            reason = f"ended by {signal.Signals(status - 128).name}" + " (too little memory?)" * (status == 137)
        record = {"status": status, "reason": reason.removeprefix("error: "), "command": command, "host": platform.node(),
                  "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
        try:
            failure.parent.mkdir(parents=True, exist_ok=True)
            temporary = failure.with_suffix(".tmp")
            temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
            temporary.replace(failure)
        except OSError as error:
            print(f"note: the failure could not be noted ({failure}: {error.strerror})", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
