"""Names of classes travel with a posterior: data that name theirs otherwise would be scored by the wrong labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from proxscore.config import ConfigError

log = logging.getLogger(__name__)

_SHOWN = 5  # names in a message


def check_class_names(names: Sequence[str], trained: Mapping[str, Any]) -> None:
    """Compare the classes of data with those that a network was trained on.

    Where one of the two has no names, only their numbers, the counts have to agree, and a warning says what was not compared.

    Args:
        names: of the data's classes, in the order of their labels.
        trained: what a saved posterior says of the data that it was trained on: ``class_names``, or of an older one ``classes``,
            their number.

    Raises:
        ConfigError: there are others, or the same in another order.
    """
    old = trained.get("class_names")
    old = [str(name) for name in old] if isinstance(old, list) else None
    count = len(old) if old is not None else trained.get("classes")
    if old is not None and not (_nameless(old) or _nameless(names)):
        _compare(list(names), old)
        return
    if isinstance(count, int) and count != len(names):
        raise ConfigError(f"task.data has {len(names)} classes; the posterior was trained on {count}")
    if old is None:
        log.warning(
            "the posterior does not say what its %d classes are named: their order is taken to be that here", len(names)
        )
    elif list(names) != old:
        who = "the posterior's classes" if _nameless(old) else "the classes of task.data"
        log.warning("%s are numbers without names: their order is taken to be the same", who)


def _compare(names: list[str], old: list[str]) -> None:
    if names == old:
        return
    here, there = set(names), set(old)
    missing, extra = [name for name in old if name not in here], [name for name in names if name not in there]
    if not missing and not extra and len(names) == len(old):
        place = next(place for place, (new, was) in enumerate(zip(names, old, strict=True)) if new != was)
        raise ConfigError(
            "task.data has the classes that the posterior was trained on, the same names in another order: class "
            f"{place} is {names[place]!r} here and was {old[place]!r}"
        )
    found = [f"{what} {_listed(some)}" for what, some in (("missing", missing), ("extra", extra)) if some]
    shown = "; ".join(found) or f"{len(names)} here, {len(old)} there"
    raise ConfigError(f"task.data has other classes than the posterior was trained on: {shown}")


def _nameless(names: Sequence[str]) -> bool:
    """Whether names are the numbers of their places, as of data that bring none."""
    return all(name == str(place) for place, name in enumerate(names))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
