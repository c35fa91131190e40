"""A run's status in a real SQLite MLflow: FINISHED, FAILED or KILLED, whatever ended it."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Metric

from proxscore.config import ConfigError, TrackingConfig
from proxscore.tracking import TrackedRun, tracking_uri


def new(uri: str, run_id: str | None = None) -> TrackedRun:
    return TrackedRun(uri, "statuses", "a run", run_id)


def status(run: TrackedRun) -> str:
    return str(MlflowClient(run.uri).get_run(run.run_id).info.status)


def test_a_run_is_running_and_then_finished(uri: str) -> None:
    run = new(uri)
    with run.running():
        assert status(run) == "RUNNING"
    assert status(run) == "FINISHED"
    info = MlflowClient(uri).get_run(run.run_id).info
    assert info.end_time is not None
    assert info.run_name == "a run"


def test_an_error_ends_a_run_as_failed_with_its_reason_in_one_line_as_a_tag(uri: str) -> None:
    run = new(uri)
    with pytest.raises(FloatingPointError), run.running():
        raise FloatingPointError("10 steps in a row\n  were bad")
    assert status(run) == "FAILED"
    assert MlflowClient(uri).get_run(run.run_id).data.tags["failure"] == "10 steps in a row were bad"


def test_an_error_without_a_message_is_named_by_its_class(uri: str) -> None:
    run = new(uri)
    with pytest.raises(MemoryError), run.running():
        raise MemoryError
    assert MlflowClient(uri).get_run(run.run_id).data.tags["failure"] == "MemoryError"


def test_a_failed_run_that_is_continued_and_finishes_bears_no_failure(uri: str) -> None:
    run = new(uri)
    with pytest.raises(ValueError, match="first"), run.running():
        raise ValueError("first attempt")
    again = new(uri, run.run_id)
    assert again.run_id == run.run_id
    with again.running():
        assert status(again) == "RUNNING"
    assert status(run) == "FINISHED"
    assert "failure" not in MlflowClient(uri).get_run(run.run_id).data.tags


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_or_a_termination_ends_a_run_as_killed(uri: str, number: signal.Signals) -> None:
    run = new(uri)
    before = signal.getsignal(signal.SIGTERM)

    def interrupted() -> None:
        with run.running():
            os.kill(os.getpid(), number)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert status(run) == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_is_lost_in_a_destructor_arrives_later(uri: str, number: signal.Signals) -> None:
    """What a destructor raises is ignored: the second delivery, a second later, ends the run."""

    class Deaf:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.1)  # the handler runs here

    run = new(uri)

    def interrupted() -> None:
        with run.running():
            Deaf()
            lost.append(True)
            time.sleep(20)

    lost: list[bool] = []
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert lost
    assert time.monotonic() - started < 15
    assert status(run) == "KILLED"


@pytest.mark.parametrize("moment", ["before_cursor_execute", "after_cursor_execute"])
@pytest.mark.parametrize("statement", [1, 3, 5])
def test_an_interrupt_in_the_middle_of_a_write_ends_the_run_as_killed(
    uri: str, moment: str, statement: int, request: pytest.FixtureRequest
) -> None:
    """At each of several SQL statements about metrics: the points are all there or none, and the database is not locked."""
    run = new(uri)
    met: list[str] = []

    def interrupt(connection: Any, cursor: Any, sql: str, *_: Any) -> None:
        if "metrics" in sql:
            met.append(sql)
            if len(met) == statement:
                os.kill(os.getpid(), signal.SIGINT)

    def interrupted() -> None:
        with run.running():
            run.client.log_batch(run.run_id, metrics=[Metric(f"metric {n}", n, 0, 1) for n in range(300)])
            time.sleep(5)

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, moment, interrupt)
    request.addfinalizer(lambda: sqlalchemy.event.remove(sqlalchemy.engine.Engine, moment, interrupt))
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(met) >= statement
    assert status(run) == "KILLED"
    assert len(MlflowClient(uri).get_run(run.run_id).data.metrics) in (0, 300)


def test_a_run_that_exits_is_killed(uri: str) -> None:
    run = new(uri)
    with pytest.raises(SystemExit), run.running():
        raise SystemExit(1)
    assert status(run) == "KILLED"


def test_a_run_that_was_deleted_is_not_continued(uri: str) -> None:
    run = new(uri)
    MlflowClient(uri).delete_run(run.run_id)
    assert new(uri, run.run_id).run_id != run.run_id
    assert new(uri, "0" * 32).run_id != "0" * 32


def test_params_keep_their_first_value_and_tags_take_their_last(uri: str) -> None:
    run = new(uri)
    run.describe({f"key.{n}": n for n in range(250)}, {"version.torch": "1"})
    run.describe({"key.0": "another", "key.250": None}, {"version.torch": "2"})
    data = MlflowClient(uri).get_run(run.run_id).data
    assert data.params == {f"key.{n}": str(n) for n in range(250)} | {"key.250": "None"}
    assert data.tags["version.torch"] == "2"


def test_artifacts_lie_beside_the_database_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    for folder in (place, elsewhere):
        folder.mkdir()
    monkeypatch.chdir(elsewhere)
    run = TrackedRun(f"sqlite:///{place / 'mlflow.db'}", "artifacts", "a run")
    (place / "notes").mkdir()
    (place / "notes" / "one.txt").write_text("one")
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    run.artifacts(place / "notes", "notes")
    run.figure(figure, "figures/line.png")
    plt.close(figure)
    assert not list(elsewhere.iterdir())
    found = sorted(path.relative_to(place / "mlartifacts").parts[-2:] for path in place.rglob("mlartifacts/**/*.*"))
    assert found == [("figures", "line.png"), ("notes", "one.txt")]
    assert run.client.list_artifacts(run.run_id, "figures")[0].path == "figures/line.png"


def test_the_uri_is_the_setting_else_the_environments_else_a_database_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere.db")
    assert tracking_uri(TrackingConfig(uri="sqlite:///mine.db")) == "sqlite:///mine.db"
    assert tracking_uri(TrackingConfig()) == "sqlite:////elsewhere.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("kind", ["no folder", "no database", "no server", "no scheme"])
def test_a_place_that_cannot_be_used_is_refused_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.db").write_text("this is no database " * 100)
    uris = {
        "no folder": f"sqlite:///{tmp_path / 'text.db' / 'mlflow.db'}",
        "no database": f"sqlite:///{tmp_path / 'text.db'}",
        "no server": "http://127.0.0.1:9",  # the discard port: nothing listens there
        "no scheme": "nowhere://here",
    }
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"^tracking\.uri .*: cannot be used: ") as refusal:
        TrackedRun(uris[kind], "statuses", "a run")
    assert "\n" not in str(refusal.value)
    assert uris[kind] in str(refusal.value)


def test_the_database_is_one_that_sqlite_itself_reads(uri: str) -> None:
    run = new(uri)
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        assert database.execute("select name from runs where run_uuid = ?", [run.run_id]).fetchall() == [("a run",)]


def test_metrics_without_a_number_are_named_by_a_tag_until_they_have_one(uri: str) -> None:
    run = new(uri)
    with run.running():
        run.metrics({"test/ece": math.nan, "test/nll": 0.5, "test/worst": math.inf, "test/least": -math.inf})
    tags = MlflowClient(uri).get_run(run.run_id).data.tags
    assert tags["not_finite"] == "test/ece: NaN, test/least: infinite, test/worst: infinite"
    with new(uri, run.run_id).running() as again:
        again.metrics({"test/ece": 0.1, "test/worst": 1.0, "test/least": 0.0})
    assert "not_finite" not in MlflowClient(uri).get_run(run.run_id).data.tags
