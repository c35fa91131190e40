"""Where runs are kept: places, files that appear whole or not at all, and locks."""

from proxscore.storage.files import exists, put, read, replacing, replacing_folder, write
from proxscore.storage.lock import HeldError, Lock, LostError
from proxscore.storage.places import UNREACHABLE, filesystem

__all__ = [
    "UNREACHABLE",
    "HeldError",
    "Lock",
    "LostError",
    "exists",
    "filesystem",
    "put",
    "read",
    "replacing",
    "replacing_folder",
    "write",
]
