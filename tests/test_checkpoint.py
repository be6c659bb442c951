"""Checkpoints: every call that can fail is made to fail, every byte that can be wrong is made wrong."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nomoat.core import checkpoint
from nomoat.core.errors import CheckpointError
from nomoat.core.tensors import _TYPES as TENSOR_TYPES

CALLS = ("write", "fsync", "rename", "mkdir", "open", "unlink", "rmdir")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it and tidy up."""


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether fsync is called, and what happens when it fails, is tested; what the disk does then cannot be."""
    monkeypatch.setattr(os, "fsync", lambda handle: os.fstat(handle))


def two_steps(tmp_path: Path, number: int) -> Path:
    """A folder that holds steps 1 and 2."""
    if not (tmp_path / "0").exists():
        save(tmp_path / "0", 1)
        save(tmp_path / "0", 2)
    return Path(shutil.copytree(tmp_path / "0", tmp_path / str(number)))


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    weights = {"a": torch.full((3, 4), float(step)), "b": torch.arange(5) + step, "half": torch.ones(7).bfloat16()}
    return {"weights": weights, "optimizer": {"m": torch.full((2,), step / 3)}}


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, step, tensors(step), {"step": step, "rate": 0.1}, keep)


def assert_whole(path: Path, step: int) -> None:
    assert checkpoint.verify(path) is None
    assert checkpoint.state(path) == {"step": step, "rate": 0.1}
    for group, named in tensors(step).items():
        read = checkpoint.read(path, group)
        assert read.keys() == named.keys()
        assert all(torch.equal(read[name], named[name]) and read[name].dtype == named[name].dtype for name in named)


def fail_at(
    monkeypatch: pytest.MonkeyPatch, number: int, error: Callable[[], BaseException], lasting: bool
) -> list[str]:
    """Let the `number`-th of all calls in CALLS fail, and every later one too if `lasting`; returns what was called."""
    made: list[str] = []

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            made.append(name)
            if len(made) == number or (lasting and len(made) > number):
                raise error()
            return real(*arguments, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, failing(name))
    return made


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    assert path == tmp_path / "step-7"
    assert checkpoint.groups(path) == ["optimizer", "weights"]
    found = checkpoint.latest(tmp_path)
    assert found == checkpoint.Found(7, path)
    assert_whole(path, 7)


@pytest.mark.parametrize("dtype", [*TENSOR_TYPES], ids=str)
def test_every_type_and_shape_comes_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    named = {
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
        "turned": torch.arange(6).reshape(2, 3).to(dtype).T,
        "one": torch.tensor([1]).to(dtype),
        "byte": torch.ones(3, dtype=torch.uint8),
    }
    path = checkpoint.save(tmp_path, 1, {"weights": named}, {})
    for read in (checkpoint.read(path, "weights"), load_file(path / "weights.safetensors")):
        assert {name: (item.dtype, item.tolist()) for name, item in read.items()} == {
            name: (item.dtype, item.tolist()) for name, item in named.items()
        }


def test_shared_memory_is_kept_once_and_shared_again(tmp_path: Path) -> None:
    table = torch.randn(100, 8)
    path = checkpoint.save(tmp_path, 1, {"weights": {"embed": table, "head": table, "row": table[:1]}}, {})
    read = checkpoint.read(path, "weights")
    assert (path / "weights.safetensors").stat().st_size < 1.5 * table.numel() * 4
    assert torch.equal(read["head"], table)
    assert torch.equal(read["row"], table[:1])
    assert read["embed"].data_ptr() == read["head"].data_ptr()


def test_what_is_read_does_not_hang_on_the_file(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    read = checkpoint.read(path, "weights")
    (path / "weights.safetensors").write_bytes(b"")
    assert torch.equal(read["a"], tensors(1)["weights"]["a"])


@pytest.mark.parametrize(
    ("code", "lasting"), [(errno.ENOSPC, False), (errno.EIO, True)], ids=["ENOSPC once", "EIO from then on"]
)
def test_a_full_or_broken_disk_at_any_call_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, lasting: bool
) -> None:
    for number in range(1, 500):
        folder = two_steps(tmp_path, number)
        with monkeypatch.context() as patch:
            made = fail_at(patch, number, lambda: OSError(code, os.strerror(code)), lasting)
            try:
                save(folder, 3)
                failed = False
            except CheckpointError as error:
                failed = True
                assert os.strerror(code) in error.why
                assert error.fix
        if len(made) < number:
            assert not failed
            break
        assert failed or made[number - 1] == "mkdir"  # the folder was there already
        found = checkpoint.latest(folder)
        assert found is not None
        assert not found.damaged
        assert found.step == 3 if not failed else found.step in (2, 3)
        assert_whole(found.path, found.step)
        if found.step == 2:
            assert_whole(folder / "step-1", 1)
        if not lasting:
            assert not (folder / "step-3.tmp").exists()
        assert_whole(save(folder, 4), 4)  # and the next save works, and sweeps
        assert not list(folder.glob("*.tmp"))
        assert len(list(folder.iterdir())) == 2
    else:
        pytest.fail("the calls never end")
    assert set(made) == set(CALLS)
    assert number > 30


def test_a_kill_at_any_call_leaves_a_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 500):
        folder = two_steps(tmp_path, number)
        with monkeypatch.context() as patch:
            made = fail_at(patch, number, Killed, lasting=True)
            with suppress(Killed):
                save(folder, 3)
        if len(made) < number:
            break
        found = checkpoint.latest(folder)
        assert found is not None
        assert not found.damaged
        assert_whole(found.path, found.step)
        assert_whole(save(folder, 4), 4)
        assert len(list(folder.iterdir())) == 2
    assert number > 30


def test_a_kill_while_a_step_is_saved_again_keeps_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 500):
        folder = tmp_path / str(number)
        save(folder, 3)
        with monkeypatch.context() as patch:
            made = fail_at(patch, number, Killed, lasting=True)
            with suppress(Killed):
                save(folder, 3)
        found = checkpoint.latest(folder)
        assert found is not None
        assert found.step == 3
        assert_whole(found.path, 3)
        save(folder, 3)
        assert [path.name for path in folder.iterdir()] == ["step-3"]
        if len(made) < number:
            break
    assert number > 30


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    save(tmp_path, 0)
    last = 0
    for number in range(20):
        child = os.fork()
        if child == 0:
            step = last
            while True:
                step += 1
                save(tmp_path, step)
        time.sleep(0.003 + 0.002 * number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = checkpoint.latest(tmp_path)
        assert found is not None
        assert not found.damaged
        assert found.step >= last
        assert_whole(found.path, found.step)
        last = found.step
    assert last >= 10


def test_a_real_limit_of_the_system_is_reported_and_tidied_up(tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written") as caught:
            checkpoint.save(tmp_path, 2, {"weights": {"a": torch.zeros(1 << 20)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "too large" in caught.value.why
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert_whole(tmp_path / "step-1", 1)


def test_too_little_room_is_said_before_the_disk_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(CheckpointError, match="0 MB left"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    flipped = 0
    for file in path.iterdir():
        content = file.read_bytes()
        for place in range(len(content)):
            wrong = bytearray(content)
            wrong[place] ^= 1 << (place % 8)
            file.write_bytes(wrong)
            assert checkpoint.verify(path) is not None, (file.name, place)
            flipped += 1
        file.write_bytes(content)
    assert flipped > 500
    assert_whole(path, 1)


def test_every_truncation_and_a_byte_too_many_are_found(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for file in path.iterdir():
        content = file.read_bytes()
        for wrong in (*(content[:length] for length in range(len(content))), content + b"\0", content + b"\n"):
            file.write_bytes(wrong)
            assert checkpoint.verify(path) is not None, (file.name, len(wrong))
        file.unlink()
        assert checkpoint.verify(path) is not None, file.name
        file.write_bytes(content)
    assert_whole(path, 1)


def test_reading_verifies_too(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    flip(path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights.safetensors is not what was written"):
        checkpoint.read(path, "weights")
    assert checkpoint.read(path, "optimizer")
    flip(path / "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        checkpoint.state(path)
    with pytest.raises(CheckpointError, match="has no ema"):
        checkpoint.read(path, "ema")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_tampered_checkpoint_falls_back_and_says_so(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    flip(tmp_path / "step-2" / "weights.safetensors")
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert (found.step, [path.name for path, _ in found.damaged]) == (1, ["step-2"])
    assert found.warnings() == [
        "Checkpoint step-2 is damaged (weights.safetensors is not what was written: its SHA-256 differs); "
        "going back to step 1, the last good one."
    ]


def test_a_renamed_checkpoint_is_no_later_one(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "step-9")
    with pytest.raises(CheckpointError, match="says step 9, its manifest step 1"):
        checkpoint.latest(tmp_path)


def test_where_all_are_damaged_nothing_starts_anew_in_silence(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "nowhere") is None
    save(tmp_path, 1)
    (tmp_path / "step-1" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is intact"):
        checkpoint.latest(tmp_path)


def test_the_last_good_ones_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-4", "step-5", "step-6"]


def test_no_good_one_is_deleted_for_the_sake_of_a_torn_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    with (tmp_path / "step-2" / "weights.safetensors").open("ab") as file:
        file.truncate(10)
    save(tmp_path, 3)
    assert (tmp_path / "step-1").exists()
    save(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-4"]


def test_a_step_saved_again_after_damage_is_the_new_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    flip(tmp_path / "step-2" / "weights.safetensors")
    assert_whole(save(tmp_path, 2), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-x").mkdir()
    for step in range(4):
        save(tmp_path, step)
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "step-x").exists()


def test_a_state_that_is_no_json_touches_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "new", 1, {}, {"what": object()})
    assert not (tmp_path / "new").exists()
