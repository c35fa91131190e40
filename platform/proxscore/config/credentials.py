"""Passwords and tokens in URIs: masked wherever a configuration or a message leaves the process."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
_URI = re.compile(rf"{_SCHEME}(?:(?!{_SCHEME})\S)+")  # several may follow each other without a space
#: ``user:password@`` after the scheme. A database's password may hold slashes and more (SQLAlchemy reads it to the last @).
_DATABASE = re.compile(r"^((?:postgres|mysql|mariadb|mssql|oracle|cockroach)[^:]*://)[^/:@]*(?::.*)?@", re.IGNORECASE)
_USER = re.compile(r"^([^:]+://)(?:[^/?#@]*@)+")
_QUERY = re.compile(
    r"([?&;](?:[\w.-]*(?:token|passw|pwd|secret|signature|credential|access_?key|api_?key)[\w.-]*|sig|key|auth)=)[^&;#'\"]*",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """A text in which URIs keep neither user and password nor a token of their query; what it masks again stays the same."""
    return _URI.sub(lambda found: _masked_uri(found[0]), text) if "://" in text else text


def _masked_uri(uri: str) -> str:
    pattern = _DATABASE if _DATABASE.match(uri) else _USER
    return _QUERY.sub(rf"\g<1>{MASK}", pattern.sub(rf"\g<1>{MASK}@", uri))


def masked_tree(value: Any) -> Any:
    """The same for all texts in lists and dictionaries."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {masked_tree(key): masked_tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(masked_tree(inner) for inner in value)
    return value
