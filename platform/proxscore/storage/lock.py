"""A lock beside what it protects, on a local disk, a network file system or an object store.

Whoever wants the lock writes a claim of its own, ``lock-<token>.json``, and then looks for others. It has the lock if there is
none. Of two that claim at the same time the later one of them to write sees the other, so that never both have it; where each
sees the other, the smaller token stays and the other one withdraws for a moment. The store must show to all what was written
before (as disks, S3, GCS and Azure do). Where it shows a file while it is written (fsspec's memory, SFTP, HDFS), what is no claim
yet is read again until it is one.

A claim is renewed while its owner lives. It is dead, and taken over, when its process on the same machine is gone, or, seen
from another machine, when it was not renewed for a minute and is not while one watches.
"""

from __future__ import annotations

import getpass
import json
import os
import random
import secrets
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

import psutil
from pyarrow.fs import FileSelector

from proxscore.storage.files import put, read
from proxscore.storage.places import UNREACHABLE, filesystem

PREFIX, SUFFIX = "lock-", ".json"
WRITTEN = 2.0  # seconds after which a file that is no claim is not being written: it is nothing of ours


class HeldError(RuntimeError):
    """Someone else has the lock; the message says who, since when."""


class LostError(RuntimeError):
    """The lock was taken over or removed while this process had it."""


@dataclass(frozen=True)
class Claim:
    """The content of a claim's file.

    Attributes:
        owner: user and host, for people.
        machine: on which ``pid`` is the number of a process.
        started: when that process began: numbers are used again.
        since: when the lock was claimed, for people.
        renewed: when it was last (s since 1970, by the owner's clock).
        held: whether the owner has the lock, or looks for others still.
    """

    token: str
    owner: str
    machine: str
    pid: int
    started: float
    since: str
    renewed: float
    held: bool = False

    def describe(self) -> str:
        return f"{self.owner} (process {self.pid}) since {self.since}"


class Lock:
    """A context that one process at a time is in.

    Args:
        folder: a path or URI; exists.
        beat: seconds between renewals.
        dead: seconds after which a claim that is not renewed is suspected.

    Raises:
        HeldError: on entering: someone else has it.
        LostError: on leaving: it was taken over, for example because this machine slept.
        UNREACHABLE: the folder cannot be written.
    """

    def __init__(self, folder: str, *, beat: float = 10.0, dead: float = 60.0) -> None:
        self.files, root = filesystem(folder)
        self.root, self.beat, self.dead = root.rstrip("/"), beat, dead
        self.lost = False
        self._foreign: set[str] = set()
        self._claim: Claim | None = None
        self._left = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Lock:
        end = time.monotonic() + 30.0  # for those that claim at the same time
        self._left.clear()
        self._write(_own_claim())
        try:
            while True:
                others = self._others()
                if not others:
                    break
                held = [claim for claim in others if claim.held]
                if held or time.monotonic() > end:
                    raise HeldError((held or others)[0].describe())
                assert self._claim is not None
                if any(claim.token < self._claim.token for claim in others):
                    self._remove(self._claim.token)
                    time.sleep(random.uniform(0.2, 1.0))
                    self._write(_own_claim())
                else:
                    time.sleep(0.1)
            assert self._claim is not None
            self._write(replace(self._claim, held=True))
        except BaseException:
            self._release()
            raise
        self._beating = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._beating is not None:
            self._beating.join(timeout=5.0)  # a store that does not answer holds up nobody
        self._release()
        if self.lost:
            raise LostError(f"the lock in {self.root} was taken over or removed meanwhile") from error

    def _others(self) -> list[Claim]:
        """Claims of the living; those of the dead are removed."""
        found = []
        for info in self.files.get_file_info(FileSelector(self.root, allow_not_found=True)):
            token = info.base_name.removeprefix(PREFIX).removesuffix(SUFFIX)
            if info.base_name != f"{PREFIX}{token}{SUFFIX}" or (self._claim and token == self._claim.token):
                continue
            claim = None if token in self._foreign else self._read(token)
            if claim is None:
                continue
            if self._alive(claim):
                found.append(claim)
            else:
                self._remove(token)
        return sorted(found, key=lambda claim: claim.token)

    def _alive(self, claim: Claim) -> bool:
        if claim.machine == machine():
            return _runs(claim.pid, claim.started)
        if abs(time.time() - claim.renewed) <= self.dead:
            return True
        time.sleep(2 * self.beat)  # clocks differ: is it renewed?
        now = self._read(claim.token)
        return now is not None and now.renewed != claim.renewed

    def _renew(self) -> None:
        while not self._left.wait(self.beat):
            assert self._claim is not None
            try:
                held = self._read(self._claim.token)
                if held is None and not self._left.is_set():
                    self.lost = True
                    os.kill(os.getpid(), signal.SIGINT)  # end the work, wherever the main thread is
                    return
                self._write(replace(self._claim, renewed=time.time()))
            except UNREACHABLE as error:  # it is tried again; if that takes long, another machine may take over
                print(f"the lock in {self.root} cannot be renewed: {' '.join(str(error).split())}", file=sys.stderr)

    def _write(self, claim: Claim) -> None:
        self._claim = claim
        put(self.files, self._path(claim.token), json.dumps(asdict(claim)))

    def _read(self, token: str) -> Claim | None:
        """A claim; none: it is gone, or what is there is nothing of ours, which need not be waited for again."""
        end = time.monotonic() + WRITTEN
        while (content := read(self.files, self._path(token))) is not None:
            try:
                return Claim(**json.loads(content))
            except (ValueError, TypeError):
                if time.monotonic() > end:
                    self._foreign.add(token)
                    return None
                time.sleep(random.uniform(0.01, 0.05))
        return None

    def _release(self) -> None:
        if self._claim is not None:
            self._remove(self._claim.token)
            self._claim = None

    def _remove(self, token: str) -> None:
        try:
            self.files.delete_file(self._path(token))
        except FileNotFoundError:  # by someone who took over
            return

    def _path(self, token: str) -> str:
        return f"{self.root}/{PREFIX}{token}{SUFFIX}"


def machine() -> str:
    """What tells apart machines, their restarts, and containers: where a process's number means something."""
    boot, container = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    if boot.exists() and container.is_symlink():  # on Linux
        parts += [boot.read_text().strip(), os.readlink(container)]
    return " ".join(parts)


def _own_claim() -> Claim:
    now = time.time()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    since = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(now))
    pid = os.getpid()
    return Claim(secrets.token_hex(8), f"{user}@{socket.gethostname()}", machine(), pid, _began(pid), since, now)


def _runs(pid: int, started: float) -> bool:
    """Whether a process of this machine is the one that began then, and runs."""
    if not psutil.pid_exists(pid):
        return False
    try:
        return _began(pid) == started and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):  # another user's, which shows no more than that it is there; or just gone
        return psutil.pid_exists(pid)


def _began(pid: int) -> float:
    """When a process began, as a number that does not change while it runs."""
    status = Path(f"/proc/{pid}/stat")
    if status.exists():  # in ticks since the start of the machine: a clock that is set does not move it
        return float(status.read_text().rpartition(")")[2].split()[19])
    return float(psutil.Process(pid).create_time())
