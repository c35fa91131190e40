"""Whether a storage can be written from one node, and read from another.

A node's process imports this module, and not torch: its answer takes no longer than it must.
"""

from __future__ import annotations

from proxscore.storage.places import UNREACHABLE, filesystem


def probe_storage(storage: str, name: str) -> str | None:
    """Write a small file into a storage folder, as a worker would, and say what went wrong, if anything."""
    try:
        files, root = filesystem(storage)
        files.create_dir(root, recursive=True)
        with files.open_output_stream(f"{root.rstrip('/')}/{name}") as stream:
            stream.write(b"probe")
    except UNREACHABLE as error:
        return " ".join(str(error).split())[:200]
    return None


def take_probe(storage: str, name: str) -> bool:
    """Remove the file that :func:`probe_storage` has written, and say whether it was there."""
    files, root = filesystem(storage)
    path = f"{root.rstrip('/')}/{name}"
    try:
        files.delete_file(path)
    except OSError:
        return False
    return True
