"""Credentials leave the process in no text; a masked URI is completed from the environment, or refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import yaml

from proxscore import config as configuration
from proxscore.config import Config, ConfigError, TrackingConfig, masked
from proxscore.tracking import TrackedRun, browse, tracking_uri
from proxscore.training.ray.reports import last_line

SECRET = "s3cr3t"
URIS = [
    f"http://ada:{SECRET}@host:5000/path",
    f"https://{SECRET}@host",
    f"postgresql+psycopg2://ada:{SECRET}/%40@x@host:5432/db?sslmode=require",
    f"mysql://ada:{SECRET}@host/db",
    f"https://host/?token={SECRET}&x=1",
    f"mssql://host/db?trusted=no;password={SECRET}",
    f"s3://key:{SECRET}@bucket/runs",
    f"abfs://container@account/path?sig={SECRET}",
]

#: Passwords with what should have been encoded, and other names of secrets.
UNUSUAL = [
    f"http://bob:se#{SECRET}@127.0.0.1:1",
    f"http://u:p/{SECRET}@h",
    f"http://u:p?{SECRET}@h",
    f"http://u:{SECRET}/x?y#z w@h/path",
    f"mysql+pymysql://root:pw {SECRET}@h/db",
    f"mysql+pymysql://root:p@w {SECRET}@x@h/db",
    f"mysql://root:12/{SECRET}@h/db",
    f"http://u:pw, {SECRET}@h/db",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BX%7D%3BPWD%3D{SECRET}%3B",
    f"mssql+pyodbc:///?odbc_connect=DRIVER={{ODBC Driver 17}};UID=sa;PWD={SECRET}&x;y",
    f"https://host/?api-key={SECRET}&x=1",
    f"https://host/?x=1&pass={SECRET}",
    f"https://host/?x=1&password=a#{SECRET}",
    f"//u:{SECRET}@h",
    f"s3://bucket/?secret_key='a&{SECRET}'",
]


@pytest.mark.parametrize("uri", UNUSUAL)
@pytest.mark.parametrize(
    "text", ["{}", "tracking.uri {}: cannot be used: 'x'@'y'", '["{}", "a b"]', '{{"a":"{}","b":1}}']
)
def test_what_may_be_a_password_is_masked(uri: str, text: str) -> None:
    shown = masked(text.format(uri))
    assert SECRET not in shown
    assert masked(shown) == shown
    assert shown.endswith(text.format(uri).partition(uri)[2])


@pytest.mark.parametrize("uri", URIS + UNUSUAL)
def test_no_text_of_a_configuration_has_the_credentials_of_a_uri(uri: str) -> None:
    config = configuration.load(overrides=[f"tracking.uri={json.dumps(uri)}", f"training.storage={json.dumps(uri)}"])
    texts = [
        configuration.dump(config),
        config.model_dump_json(),
        str(config.model_dump()),
        str(configuration.flatten(config)),
        json.dumps(configuration.flatten(config.tracking)),
        repr(config),
        str(config),
        str({"config": config}),
        f"{config.tracking}",
    ]
    assert not [text for text in texts if SECRET in text]
    assert config.tracking.uri == uri  # within the process it is whole
    assert configuration.parse(configuration.plain(config)) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert configuration.parse(yaml.safe_load(configuration.dump(config))).tracking.uri == masked(uri)
    assert masked(masked(uri)) == masked(uri)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/a@b",
        "s3://bucket/user@host",
        "sqlite:////a/b@c.db",
        "a:b@c",
        "~/x",
        "a//b@c",
        "http://[::1]:5000/a@b",
        "mysql://host:3306/db: cannot be used: Access denied for 'root'@'localhost'",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert masked(text) == text


def test_refusals_and_errors_do_not_show_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        configuration.load(overrides=[f"tracking={URIS[0]}"])
    assert SECRET not in str(refused.value)
    with pytest.raises(ConfigError, match=r"tracking.uri http://\*\*\*@127.0.0.1:9: cannot be used") as away:
        TrackedRun(f"http://ada:{SECRET}@127.0.0.1:9", "x", "a run")
    error: BaseException | None = away.value
    while error is not None:  # as a traceback shows them
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__


def saved(uri: str) -> Config:
    """The configuration that a saved file gives back."""
    config = configuration.load(overrides=[f"tracking.uri={json.dumps(uri)}"])
    return configuration.parse(yaml.safe_load(configuration.dump(config)))


def test_a_saved_configuration_takes_its_credentials_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for uri in URIS[:4]:
        with pytest.raises(ConfigError, match=r"give them by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
            tracking_uri(saved(uri).tracking)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", f"{SECRET}/@")
    assert tracking_uri(saved(URIS[0]).tracking) == "http://host:5000/path"  # MLflow adds them to its requests
    assert tracking_uri(saved(URIS[3]).tracking) == f"mysql://ada:{SECRET}%2F%40@host/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URIS[4])
    assert tracking_uri(saved(URIS[4]).tracking) == URIS[4]


def test_a_uri_from_the_environment_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URIS[0])
    assert tracking_uri(TrackingConfig()) == URIS[0]


def test_the_last_line_of_a_workers_error_keeps_them_out() -> None:
    assert SECRET not in last_line(RuntimeError(f"Traceback\n  in worker: {URIS[0]}"))


def test_the_address_to_browse_has_no_credentials_and_needs_no_server() -> None:
    away = "http://someone:secret@127.0.0.1:9/mlflow/"
    assert browse(TrackingConfig(uri=away)) == "http://127.0.0.1:9/mlflow/#/experiments?workflowType=machine_learning"
    assert browse(TrackingConfig(uri=away), "0" * 32) == browse(TrackingConfig(uri=away))
