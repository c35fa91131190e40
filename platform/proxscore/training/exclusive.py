"""One job at a time works on a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pyarrow.fs import LocalFileSystem

from proxscore.config import ConfigError
from proxscore.config.files import tell_if_it_vanishes
from proxscore.storage import UNREACHABLE, HeldError, Lock, LostError, filesystem


@contextmanager
def exclusive(storage: str, folders: Sequence[str]) -> Iterator[None]:
    """Within the context, no other job works in some folders of a storage; see :class:`proxscore.storage.Lock`.

    Folders that were made for it and hold nothing at its end are removed again. A storage that does not outlive a submitted job
    is named in a line.

    Raises:
        ConfigError: another one does; names who, since when. Or the storage cannot be written.
    """
    tell_if_it_vanishes("training.storage", storage)
    with ExitStack() as stack:
        for folder in folders:
            try:
                files, root = filesystem(storage)
                path = f"{root.rstrip('/')}/{folder}"
                if isinstance(files, LocalFileSystem):
                    stack.callback(_tidy, [each for each in (Path(path), *Path(path).parents) if not each.exists()])
                files.create_dir(path, recursive=True)
                stack.enter_context(Lock(f"{storage.rstrip('/')}/{folder}"))
            except HeldError as owner:
                raise ConfigError(
                    f"{folder} in {storage} is in the hands of another job, of {owner}: wait for it, or take another name"
                ) from None
            except UNREACHABLE as error:
                raise ConfigError(
                    f"training.storage {storage}: cannot be written: {' '.join(str(error).split())}"
                ) from error
        try:
            yield
        except KeyboardInterrupt as interrupt:
            try:
                stack.close()
            except LostError as lost:  # which has sent the interrupt
                raise ConfigError(f"{lost}: another job may be at work there") from interrupt
            raise


def _tidy(folders: Sequence[Path]) -> None:
    """Remove those of some folders, each within the next, that are empty."""
    for folder in folders:
        with suppress(OSError):  # something is in it
            folder.rmdir()
