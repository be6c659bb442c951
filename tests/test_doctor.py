"""doctor: what it says of a machine, and that each ailment comes with the line that mends it."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from nomoat.cli import main
from nomoat.core.errors import ConfigError
from nomoat.doctor import TORCH, build, disk, examine, python, runs_folder


def test_cuda_build_without_a_card_names_the_cpu_index():
    finding = build("2.13.0", "12.8", ["cpu"], "")
    assert not finding.ok
    assert "no GPU" in finding.value
    assert "download.pytorch.org/whl/cpu" in finding.fix


def test_cpu_build_with_a_card_names_the_gpu_build():
    finding = build("2.13.0+cpu", None, ["cpu"], "NVIDIA")
    assert not finding.ok
    assert "--force-reinstall" in finding.fix
    assert "whl/cpu" not in finding.fix


def test_cuda_build_that_cannot_reach_its_card_blames_the_driver():
    finding = build("2.13.0", "12.8", ["cpu"], "NVIDIA")
    assert not finding.ok
    assert "driver" in finding.fix


@pytest.mark.parametrize(
    ("cuda", "present", "card"), [(None, ["cpu"], ""), ("12.8", ["cuda", "cpu"], "NVIDIA"), (None, ["mps", "cpu"], "")]
)
def test_a_fitting_build_is_left_alone(cuda, present, card):
    finding = build("2.13.0", cuda, present, card)
    assert finding.ok
    assert finding.fix == ""


def test_the_pin_is_the_package_s_own():
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert TORCH.strip("'") in pyproject


def test_old_python_is_named():
    assert not python((3, 10, 4)).ok
    assert python((3, 11, 0)).ok


def test_full_disk_is_named(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10, 9, 1))
    finding = disk(tmp_path / "not" / "there")
    assert not finding.ok
    assert "NOMOAT_RUNS" in finding.fix


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    assert not runs_folder(tmp_path / "runs").ok
    tmp_path.chmod(0o700)


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path):
    assert runs_folder(tmp_path / "runs").ok
    assert not (tmp_path / "runs").exists()


def test_examine_finds_this_machine_usable(tmp_path, monkeypatch):
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path))
    found = {finding.name: finding for finding in examine("cpu", speed=False)}
    assert {"python", "torch", "device", "cores", "memory", "disk", "runs", "allocator", "energy"} <= set(found)
    assert found["python"].ok
    assert found["runs"].ok


def test_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="gpu"):
        examine("gpu", speed=False)


def test_the_command_measures_the_speed(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NOMOAT_RUNS", str(tmp_path))
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    *findings, result = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert all(line["kind"] == "finding" for line in findings)
    assert any(line["name"] == "speed" and "GFLOP/s" in line["value"] for line in findings)
    assert result["kind"] == "result"
