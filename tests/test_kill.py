"""SIGKILL at random moments, also in the middle of saving: nothing is lost, and the end is the same bit for bit.

20 kills here; NOMOAT_KILLS=200 for the long proof.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from kill_host import made

from nomoat.core import checkpoint
from nomoat.core.run import Run
from nomoat.train.loop import train

KILLS = int(os.environ.get("NOMOAT_KILLS", "20"))
QUIET = ("time", "seconds", "tokens_per_second", "seconds_left")


def test_nothing_is_lost_by_sigkill(tmp_path):
    whole = Run.create(tmp_path, "whole", made())
    train(whole.recipe, whole)
    expected = checkpoint.latest(whole.checkpoints).path
    host = Path(__file__).with_name("kill_host.py")
    done = subprocess.run(
        [sys.executable, str(host), str(tmp_path), str(KILLS), "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] >= KILLS
    assert told["while_saving"] >= KILLS // 5, "too few of the kills came while saving"
    steps = [{name: value for name, value in e.items() if name not in QUIET} for e in whole.metrics("step")]
    for path in told["runs"]:
        run = Run.open(path)
        assert run.status == "done"
        found = checkpoint.latest(run.checkpoints)
        assert found.step == 40
        assert not found.damaged
        for group in checkpoint.groups(expected):
            first, second = checkpoint.read(expected, group), checkpoint.read(found.path, group)
            assert all(torch.equal(first[name], second[name]) for name in first), group
        assert [{n: v for n, v in e.items() if n not in QUIET} for e in run.metrics("step")] == steps
