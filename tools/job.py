"""Runs the command that makes one or more logs, and remembers when it fails.

    python tools/job.py LOG... -- COMMAND...

The Makefile and tools/slurm.sh put this before each run. While the command runs, RUN.running beside
the log holds the name of the host and the process number, and its lock: a second job for the same
log on this host is refused. The command inherits the lock, so that it lasts as long as the run
itself, however either of them ends. Where a stopped or failed run leaves an unfinished log, the
file stays and says that it has ended.

The command's error output is passed on; if the command fails, its status, last message and command
line are kept in results/failed/SCRIPT/RUN.json, where `make status` and the summary of
`make reproduce-...` find them, until a later attempt succeeds. Fetching data is such a job, too;
its "log" is the file that says that the data are there. A run that was stopped (Ctrl-C, SIGTERM,
SIGHUP) did not fail: it goes on when it is started again. Exit status: the command's own, 128 + the
signal that ended it, or 2 for wrong use or where another job has the run.
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

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = [128 + number for number in SIGNALS]
ENDED = "ended\n"  # in place of the process and its host


def failure_of(log: Path) -> Path:
    """results/logs/SCRIPT/RUN.jsonl -> results/failed/SCRIPT/RUN.json"""
    return log.parent.parent.parent / "failed" / log.parent.name / f"{log.stem}.json"


def note_of(log: Path) -> Path:
    return log.with_suffix(".running")


def unfinished(log: Path) -> Path:
    return log.with_name(f"{log.name}.part")


class Taken(Exception):
    """Another job runs the same run."""


def take(log: Path) -> int:
    """The open note with its lock, written anew.

    Raises Taken, and OSError where the folder cannot be written.
    """
    note = note_of(log)
    note.parent.mkdir(parents=True, exist_ok=True)
    owner = ""
    for _ in range(5):  # `make status` looks by taking a lock for an instant
        handle = os.open(note, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have been removed before the lock was there.
            taken = not note.exists() or not os.path.samestat(os.fstat(handle), os.stat(note))
        except BlockingIOError:
            taken = True
            owner = os.read(handle, 200).decode(errors="replace").strip()
        except OSError:  # a file system without locks: twins are not told apart there
            taken = False
        if not taken:
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
            return handle
        os.close(handle)
        time.sleep(0.1)
    raise Taken(f"{owner or 'another job'} runs {log} already")


def leave(log: Path) -> None:
    """Removes the note; that of an unfinished run says instead that the job has ended."""
    note = note_of(log)
    with contextlib.suppress(OSError):  # a full disk: a note without a lock says the same here
        if not unfinished(log).exists():
            note.unlink(missing_ok=True)
            return
        ended = note.with_name(f"{note.name}.tmp")  # the old one may be locked for another moment
        ended.write_text(ENDED, encoding="utf-8")
        ended.replace(note)


def is_running(log: Path) -> bool | None:
    """Does a job on this host run it?

    None: there is no note, it is another host's, or the run went on by hand.
    """
    try:
        with note_of(log).open("r", encoding="utf-8", errors="replace") as note:
            said = note.read()
            if said == ENDED:
                written = unfinished(log).stat().st_mtime_ns
                return None if written > os.fstat(note.fileno()).st_mtime_ns else False
            if said.strip().partition(" on ")[2] != platform.node():
                return None
            fcntl.flock(note, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return None


def run(command: list[str], locks: list[int]) -> tuple[int, str]:
    """Exit status of the command, and the last line of its error output.

    Raises OSError if it cannot be started.
    """
    received, started = [], []

    def hand_on(number: int, _) -> None:
        received.append(number)
        for child in started:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGHUP, hand_on)
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to the command too
    child = subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=locks)
    started.append(child)
    for number in received:  # while it was being started
        child.send_signal(number)
    last = b""
    while piece := os.read(child.stderr.fileno(), 65536):
        os.write(2, piece)
        last = (last + piece)[-4000:]
    status = child.wait()
    said = last.decode(errors="replace").replace("\r", "\n").split("\n")
    lines = [line.strip() for line in said if line.strip()]
    return 128 - status if status < 0 else status, lines[-1] if lines else ""


def remember(failure: Path, status: int, reason: str, command: list[str]) -> None:
    """Writes the note of a failure, or says why it cannot be written."""
    if status > 128:
        reason = f"ended by {signal.Signals(status - 128).name}"
        if status == 128 + signal.SIGKILL:
            reason += " (too little memory?)"
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    record = {"status": status, "reason": reason, "command": command}
    record |= {"host": platform.node(), "time": now}
    try:
        failure.parent.mkdir(parents=True, exist_ok=True)
        temporary = failure.with_suffix(".tmp")
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
        temporary.replace(failure)
    except OSError as error:
        text = f"note: the failure could not be noted ({failure}: {error.strerror})"
        print(text, file=sys.stderr)


def perform(logs: list[Path], command: list[str]) -> int:
    """Runs the command with the locks of these logs. Exit status: see above."""
    locks = []
    try:
        for log in logs:
            locks.append(take(log))
        status, reason = run(command, locks)
    except Taken as taken:
        print(f"error: {taken}", file=sys.stderr)
        return 2
    except OSError as error:
        place = note_of(logs[len(locks)]) if len(locks) < len(logs) else command[0]
        status, reason = 127, f"error: {place} cannot be written or run ({error.strerror})"
        print(reason, file=sys.stderr)
    finally:
        for log in logs[: len(locks)]:
            leave(log)
    for log in logs:
        if status == 0 or log.exists():
            failure_of(log).unlink(missing_ok=True)
        elif status not in STOPPED:
            remember(failure_of(log), status, reason.removeprefix("error: "), command)
    return status


def main(argv: list[str]) -> int:
    """Exit status: see above."""
    split = argv.index("--") if "--" in argv else 0
    logs, command = [Path(name) for name in argv[:split]], argv[split + 1 :]
    if not logs or not command:
        print("error: wrong use: python tools/job.py LOG... -- COMMAND...", file=sys.stderr)
        return 2
    missing = [log for log in logs if not log.exists()]
    return perform(missing or logs, command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
