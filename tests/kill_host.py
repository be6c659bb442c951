"""Started by test_kill.py: imports torch once, then forks one training after another and kills each with SIGKILL.

    python kill_host.py FOLDER KILLS SEED

A child dies in one of two ways, drawn at random: by itself, at the n-th system call that writes to the disk from now on
(open, write, fsync, rename, remove: most of them while saving), or from outside, after a random time. The next child
resumes the run, as `nomoat resume` would. Ends with one JSON line: how many were killed, and how often while saving.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from toys import recipe

from nomoat.core.run import Run
from nomoat.train.loop import train

torch.set_num_threads(1)  # a forked child has no other threads

CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "rmdir")


def made():
    return recipe("noisy", budget="40steps", ema=0.9, keep_every_seconds=0.0)


def die_at_call(number):
    """SIGKILL in the middle of the n-th call; a write has put half of its bytes down by then."""
    left = [number]

    def deadly(name):
        real = getattr(os, name)

        def call(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                if name == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        setattr(os, name, call)

    for name in CALLS:
        deadly(name)


def child(path, calls):
    try:
        if calls:
            die_at_call(calls)
        run = Run.open(path)
        train(run.recipe, run)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def main(folder, kills, seed):
    chance = random.Random(seed)
    killed = saving = 0
    paths = []
    warm = Run.create(folder / "warm", "warm", made())  # what is imported late need not be imported by every child
    train(warm.recipe, warm)
    while killed < kills:
        run = Run.create(folder, "victim", made())
        status = -1
        while status != 0:
            by_itself = chance.random() < 0.5
            pid = os.fork()
            if pid == 0:
                child(run.path, chance.randint(1, 250) if by_itself else 0)
            if not by_itself:
                time.sleep(chance.uniform(0.02, 0.4))
                os.kill(pid, signal.SIGKILL) if killed < kills else None
            _, status = os.waitpid(pid, 0)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                raise SystemExit("a child ended with an error")
            if status:
                killed += 1
                saving += any(run.checkpoints.glob("*.tmp"))
        paths.append(str(run.path))
    sys.stdout.write(json.dumps({"killed": killed, "while_saving": saving, "runs": paths}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
