"""Runs a command on a free GPU: python tools/slot.py COMMAND...

The Makefile puts this before each script where there are GPUs, so that `make -j16 reproduce-all` spreads its jobs over
them. GPUS names them (`0 1`, or UUIDs; the Makefile asks nvidia-smi), JOBS_PER_GPU how many jobs share one (1). Each
such place has a lock file in SLOTS (a folder in the temporary directory, one for each user); whoever holds its lock has
the place, others wait. The command takes this program's place (exec): its exit status and signals are its own, and
however it ends, the system undoes the lock. Without GPUS, the command runs at once.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import tempfile
import time
from pathlib import Path

WAIT = 0.5  # seconds between looks at occupied places


def places() -> list[tuple[str, Path]]:
    """(GPU, lock file) of each place: all first places before the second ones, to spread jobs. Raises ValueError."""
    gpus = [name for name in re.split(r"[\s,]+", os.environ.get("GPUS", "")) if name]
    each = os.environ.get("JOBS_PER_GPU") or "1"
    if not each.isascii() or not each.isdigit() or int(each) < 1:
        raise ValueError(f"JOBS_PER_GPU must be a whole number, 1 or more, not {each!r}")
    if bad := [name for name in gpus if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name)]:
        raise ValueError(f"GPUS must be numbers or UUIDs of GPUS, not {bad[0]!r}")
    folder = Path(os.environ.get("SLOTS") or Path(tempfile.gettempdir()) / f"spinalnet-slots-{os.getuid()}")
    return [
        (gpu, folder / f"{gpu.replace('/', '_')}.{place}") for place in range(int(each)) for gpu in dict.fromkeys(gpus)
    ]


def take(slots: list[tuple[str, Path]]) -> str:
    """Waits for a free place and keeps its lock, also over exec. Returns the GPU."""
    slots[0][1].parent.mkdir(parents=True, exist_ok=True)
    while True:
        for gpu, path in slots:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            os.set_inheritable(handle, True)
            return gpu
        time.sleep(WAIT)


def main(argv: list[str]) -> int:
    if not argv:
        print("error: no command: python tools/slot.py COMMAND...", file=sys.stderr)
        return 2
    try:
        if slots := places():
            os.environ["CUDA_VISIBLE_DEVICES"] = take(slots)
        os.execvp(argv[0], argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {argv[0]} cannot be run ({error.strerror})", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
