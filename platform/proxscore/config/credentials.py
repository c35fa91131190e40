"""Passwords and tokens in URIs: masked wherever a configuration or a message leaves the process.

A URI stands amid other text, and its password may hold what should have been encoded: slashes, ``?``, ``#``, blanks. What may be
a password is taken for one. Only a port and a path after it (``host:5000/a@b``) are told from a password (``user:pa/ss@host``).
"""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
_CLOSED = r"['\"](?:[\s,}:)\]]|$)"  # the end of a quoted text
_PROSE = rf"[:,;.)\]]\s|{_CLOSED}"  # where a sentence goes on behind a URI
_PASSWORD = rf"(?:(?!{_PROSE}|{_SCHEME})[^\n])*@"  # up to the last @ of the URI
_NAME = r"[^:/?#@\[\s]*:"
_USER = re.compile(
    rf"""((?P<database>(?:postgres|mysql|mariadb|mssql|oracle|cockroach)[\w+.-]*://)|{_SCHEME}|(?<![\w:/])//)
    (?:(?(database)|(?!{_NAME}\d{{1,5}}/)){_NAME}(?!\s){_PASSWORD}  # a database's password may begin as a port and a path do
    |{_NAME}(?!\s|\d{{1,5}}(?:\W|$))[^\n@]*@  # one that looks like the end of a URI
    |(?:[^/?\#@\s]*@)+)""",
    re.IGNORECASE | re.VERBOSE,
)
_SECRET = r"token|pass|pwd|secret|signature|credential|access[-_]?key|api[-_]?key"
_QUERY = re.compile(
    rf"""([?&;](?:[\w.%-]*(?:{_SECRET})[\w.%-]*|sig|key|auth)=)(?:'[^'\n]*'|"[^"\n]*"|(?:(?!{_PROSE})[^&;'"\s])*)""",
    re.IGNORECASE,
)
#: A whole connection string of ODBC's, with its own separators.
_ODBC = re.compile(rf"([?&;]odbc_connect=)(?:(?!:\s|{_CLOSED})[^\n])*", re.IGNORECASE)


def masked(text: str) -> str:
    """A text in which URIs keep neither user and password nor a token of their query; what it masks again stays the same."""
    if "//" not in text:
        return text
    text = _ODBC.sub(rf"\g<1>{MASK}", _USER.sub(rf"\g<1>{MASK}@", text))
    return _QUERY.sub(rf"\g<1>{MASK}", text)


def masked_tree(value: Any) -> Any:
    """The same for all texts in lists and dictionaries."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {masked_tree(key): masked_tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(masked_tree(inner) for inner in value)
    return value
