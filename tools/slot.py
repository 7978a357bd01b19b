"""Runs a command on a free GPU.

    python tools/slot.py COMMAND...    waits for a place on one of the GPUs, and runs it there
    python tools/slot.py --gpus        prints the GPUs that may be used, in one line

The Makefile puts this before each script where there are GPUs, so that `make -j16 reproduce-all`
spreads its jobs over them. GPUS names them (`0 1`, UUIDs or MIG names); without it, they are those
of CUDA_VISIBLE_DEVICES, and without that those of nvidia-smi. JOBS_PER_GPU says how many jobs share
one (1). Each such place has a lock file in SLOTS (a folder in the temporary directory, one for each
user); whoever holds its lock has the place, others wait. The command takes this program's place
(exec): its exit status and signals are its own, and however it ends, the system undoes the lock.
It gets one thread, unless OMP_NUM_THREADS says something else. Without GPUs it runs at once.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAIT = 0.5  # seconds between looks at occupied places
NAME = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")


def gpus_of_nvidia_smi() -> list[str]:
    """None where it is missing, fails or prints anything that is no number (an error, say)."""
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    names = done.stdout.split()
    if done.returncode or not all(name.isdigit() for name in names):
        return []
    return names


def usable_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus_of_nvidia_smi()
    names = [name.strip() for name in visible.split(",")]
    return list(itertools.takewhile(NAME.fullmatch, names))  # like CUDA: -1 ends the list


def places() -> list[tuple[str, Path]]:
    """(GPU, lock file) of each place: all first places before the second ones, to spread jobs.

    Raises ValueError for settings that make no sense.
    """
    gpus = usable_gpus()
    if "GPUS" in os.environ:
        gpus = [name for name in re.split(r"[\s,]+", os.environ["GPUS"]) if name]
    each = os.environ.get("JOBS_PER_GPU") or "1"
    if not each.isascii() or not each.isdigit() or int(each) < 1:
        raise ValueError(f"JOBS_PER_GPU must be a whole number, 1 or more, not {each!r}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    for name in gpus:
        if not NAME.fullmatch(name):
            raise ValueError(f"GPUS must be numbers or UUIDs of GPUs, not {name!r}")
        if visible is not None and name not in usable_gpus():
            raise ValueError(f"GPUS has {name}, but CUDA_VISIBLE_DEVICES is {visible!r}")
    default = Path(tempfile.gettempdir()) / f"spinalnet-slots-{os.getuid()}"
    folder = Path(os.environ.get("SLOTS") or default)
    found = []
    for place in range(int(each)):
        for gpu in dict.fromkeys(gpus):
            found.append((gpu, folder / f"{gpu.replace('/', '_')}.{place}"))
    return found


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
    if argv == ["--gpus"]:
        print(*usable_gpus())
        return 0
    if not argv:
        print("error: no command: python tools/slot.py COMMAND...", file=sys.stderr)
        return 2
    try:
        slots = places()
        if slots:
            os.environ["CUDA_VISIBLE_DEVICES"] = take(slots)
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.execvp(argv[0], argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {argv[0]} cannot be run ({error.strerror})", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
