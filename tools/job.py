"""Runs the command of one log, and remembers when it fails: python tools/job.py LOG COMMAND...

The Makefile and tools/slurm.py put this before each run. While the command runs, RUN.running beside the log holds the
name of the host and the process number, and its lock: a second job for the same log on this host is refused. The
command inherits the lock, so that it lasts as long as the run itself, however either of them ends. Where a stopped or
failed run leaves an unfinished log, the file stays and says that it has ended.

The command's error output is passed on; if the command fails, its status, last message and command line are kept in
results/failed/SCRIPT/RUN.json, where `make status` and the summary of `make reproduce-...` find them, until a later
attempt succeeds. A run that was stopped (Ctrl-C, SIGTERM) did not fail: it goes on when it is started again. Exit
status: the command's own, 128 + the signal that ended it, or 2 for wrong use or where another job has the run.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
ENDED = "ended\n"  # in place of the process and its host


def failure_of(log: Path) -> Path:
    """results/logs/SCRIPT/RUN.jsonl -> results/failed/SCRIPT/RUN.json"""
    return log.parent.parent.parent / "failed" / log.parent.name / f"{log.stem}.json"


class Taken(Exception):
    """Another job runs the same run."""


def note_of(log: Path) -> Path:
    return log.with_suffix(".running")


def take(note: Path) -> int:
    """The open note with its lock, written anew. Raises Taken; OSError where the folder cannot be written."""
    note.parent.mkdir(parents=True, exist_ok=True)
    owner = ""
    for _ in range(5):  # `make status` looks by taking a lock for an instant
        handle = os.open(note, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = not note.exists() or not os.path.samestat(os.fstat(handle), os.stat(note))  # removed in between
        except BlockingIOError:
            taken, owner = True, os.read(handle, 200).decode(errors="replace").strip()
        except OSError:  # a file system without locks: twins are not told apart there
            taken = False
        if not taken:
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
            return handle
        os.close(handle)
        time.sleep(0.1)
    raise Taken(owner or "another job")


def leave(log: Path) -> None:
    """Removes the note; of an unfinished run it says instead that the job has ended, whose last line may be young."""
    note, part = note_of(log), log.with_name(f"{log.name}.part")
    with contextlib.suppress(OSError):  # a full disk: the old note without its lock says the same on this host
        if part.exists():
            ended = note.with_name(f"{note.name}.tmp")  # a new file: the old one may be locked for another moment
            ended.write_text(ENDED, encoding="utf-8")
            ended.replace(note)
        else:
            note.unlink(missing_ok=True)


def is_running(log: Path) -> bool | None:
    """Does a job on this host run it? None: there is no note, it is another host's, or the run went on by hand."""
    try:
        with note_of(log).open("r", encoding="utf-8", errors="replace") as note:
            said = note.read()
            if said == ENDED:
                later = log.with_name(f"{log.name}.part").stat().st_mtime_ns > os.fstat(note.fileno()).st_mtime_ns
                return None if later else False
            if said.strip().partition(" on ")[2] != platform.node():
                return None
            fcntl.flock(note, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return None


def run(command: list[str], lock: int) -> tuple[int, str]:
    """(exit status, last line of its error output) of the command. Raises OSError if it cannot be started."""
    child = subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=[lock])
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


def remember(failure: Path, status: int, reason: str, command: list[str]) -> None:
    if status > 128:
        reason = f"ended by {signal.Signals(status - 128).name}" + " (too little memory?)" * (status == 137)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    record = {"status": status, "reason": reason, "command": command, "host": platform.node(), "time": now}
    try:
        failure.parent.mkdir(parents=True, exist_ok=True)
        temporary = failure.with_suffix(".tmp")
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
        temporary.replace(failure)
    except OSError as error:
        print(f"note: the failure could not be noted ({failure}: {error.strerror})", file=sys.stderr)


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        print("error: no command: python tools/job.py LOG COMMAND...", file=sys.stderr)
        return 2
    log, command = Path(argv[0]), argv[1:]
    try:
        lock = take(note_of(log))
    except Taken as owner:
        print(f"error: {owner} runs {log} already", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {note_of(log)} cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    try:
        status, reason = run(command, lock)
    except OSError as error:
        status, reason = 127, f"error: {command[0]} cannot be run ({error.strerror})"
        print(reason, file=sys.stderr)
    finally:
        leave(log)
    if status == 0:
        failure_of(log).unlink(missing_ok=True)
    elif status not in STOPPED:
        remember(failure_of(log), status, reason.removeprefix("error: "), command)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
