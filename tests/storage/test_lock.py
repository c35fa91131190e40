"""The lock beside a run: one owner at a time, on disks and object stores, and no longer than it lives."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxscore.config import ConfigError
from proxscore.storage import HeldError, Lock, LostError, filesystem, put, read
from proxscore.storage import lock as locks
from proxscore.training.exclusive import exclusive

OWNER = """
import sys, time
from proxscore.storage import Lock
with Lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=["local", "objects"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on a disk, and one of a store without renames and without exclusive creation."""
    place = str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"
    files, root = filesystem(place)
    files.create_dir(root, recursive=True)
    return place


def owner(folder: str) -> subprocess.Popen[str]:
    """Another process, which has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def claims(folder: str) -> list[str]:
    files, root = filesystem(folder)
    return [info.base_name for info in files.get_file_info(locks.FileSelector(root))]


def elsewhere(folder: str, renewed: float, token: str = "0") -> locks.Claim:
    """A claim of a process on another machine."""
    claim = dataclasses.replace(
        locks._own_claim(), token=token, owner="ada@other", machine="other", renewed=renewed, held=True
    )
    files, root = filesystem(folder)
    put(files, f"{root}/lock-{token}.json", json.dumps(dataclasses.asdict(claim)))
    return claim


def test_the_second_is_refused_with_who_has_it_since_when_and_the_lock_is_free_after(folder: str) -> None:
    with Lock(folder), pytest.raises(HeldError, match=r"^\S+@\S+ \(process \d+\) since \d{4}-\d\d-\d\d "), Lock(folder):
        pass
    with Lock(folder):
        pass
    assert claims(folder) == []


def test_a_lock_is_free_after_an_error(folder: str) -> None:
    with pytest.raises(ZeroDivisionError), Lock(folder):
        raise ZeroDivisionError
    assert claims(folder) == []


def test_a_killed_owners_lock_is_taken_over_at_once(tmp_path: Path) -> None:
    process = owner(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"another job, of \S+ \(process {process.pid}\) since .*: wait for it"):
        exclusive(str(tmp_path.parent), [tmp_path.name]).__enter__()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    started = time.monotonic()
    with exclusive(str(tmp_path.parent), [tmp_path.name]):
        assert time.monotonic() - started < 5
    assert claims(str(tmp_path)) == []


def test_the_number_of_a_dead_process_may_be_used_again(tmp_path: Path) -> None:
    claim = dataclasses.replace(locks._own_claim(), token="0", held=True, started=locks._own_claim().started - 1)
    (tmp_path / "lock-0.json").write_text(json.dumps(dataclasses.asdict(claim)))
    with Lock(str(tmp_path)):
        assert not (tmp_path / "lock-0.json").exists()


def test_of_another_machine_a_claim_that_is_renewed_lives_whatever_its_clock_says(folder: str) -> None:
    claim = elsewhere(folder, renewed=time.time() - 5000.0)
    files, root = filesystem(folder)
    done = threading.Event()

    def renew() -> None:
        for beat in range(1000):
            if done.wait(0.02):
                return
            renewed = dataclasses.replace(claim, renewed=claim.renewed + beat)
            put(files, f"{root}/lock-0.json", json.dumps(dataclasses.asdict(renewed)))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(HeldError, match="ada@other"), Lock(folder, beat=0.1, dead=0.2):
            pass
    finally:
        done.set()
        thread.join()
    with Lock(folder, beat=0.1, dead=0.2):  # and is dead when it is not
        assert len(claims(folder)) == 1


def test_a_held_lock_is_renewed(folder: str) -> None:
    files, root = filesystem(folder)

    def renewed() -> float:
        content = read(files, f"{root}/{claims(folder)[0]}")
        assert content is not None
        return float(json.loads(content)["renewed"])

    with Lock(folder, beat=0.05):
        first = renewed()
        end = time.monotonic() + 10
        while renewed() == first:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_who_loses_the_lock_is_told(tmp_path: Path) -> None:
    def lose() -> None:
        with Lock(str(tmp_path), beat=0.05):
            (claim,) = tmp_path.glob("lock-*")
            claim.unlink()
            with pytest.raises(KeyboardInterrupt):
                time.sleep(10)

    with pytest.raises(LostError, match="taken over or removed"):
        lose()


def test_of_many_at_once_one_has_it(folder: str) -> None:
    inside, most, entered = 0, 0, 0
    counting, start = threading.Lock(), threading.Barrier(6)

    def compete(number: int) -> None:
        nonlocal inside, most, entered
        start.wait()
        for _ in range(3):
            try:
                with Lock(folder):
                    with counting:
                        inside, entered = inside + 1, entered + 1
                        most = max(most, inside)
                    time.sleep(0.01)
                    with counting:
                        inside -= 1
            except HeldError:
                time.sleep(0.01)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(compete, range(6)))
    assert most == 1
    assert entered >= 1
    assert claims(folder) == []


def test_a_claim_that_is_seen_half_written_counts(folder: str) -> None:
    claim = dataclasses.asdict(elsewhere(folder, time.time()))
    files, root = filesystem(folder)
    place = f"{root}/lock-0.json"
    whole = json.dumps(claim)
    put(files, place, whole[: len(whole) // 2])  # as a store shows it that does not keep back what is being written
    written = threading.Timer(0.3, put, (files, place, whole))
    written.start()
    try:
        with pytest.raises(HeldError, match="ada@other"), Lock(folder):
            pass
    finally:
        written.join()


def test_a_refusal_is_one_line_and_frees_what_was_locked_before_it(tmp_path: Path) -> None:
    with exclusive(str(tmp_path), ["b"]):
        with pytest.raises(ConfigError) as refused, exclusive(str(tmp_path), ["a", "b"]):
            pass
        assert re.fullmatch(r"b in \S+ is in the hands of another job, of .*", str(refused.value))
        with exclusive(str(tmp_path), ["a"]):
            pass
