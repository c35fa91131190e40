"""A run in MLflow whose status is true whatever happens."""

from __future__ import annotations

import getpass
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlflow.entities import DatasetInput, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from proxscore.config import MASK, ConfigError, TrackingConfig, expanded, masked
from proxscore.config.files import tell_if_it_vanishes
from proxscore.tracking.client import Client
from proxscore.tracking.databases import SQLITE, check_place, database, sqlite_uri
from proxscore.tracking.names import EXPERIMENT_TAGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a server or database that cannot be used raises; ValueError: of a malformed URI, ImportError: its driver is missing.
UNREACHABLE = (MlflowException, SQLAlchemyError, OSError, ValueError, ImportError)
PARENT = "mlflow.parentRunId"  # MLflow's tag, by which its pages nest runs
NOTE = "mlflow.note.content"  # and the one with the text on a run's page
NOT_FINITE = "not_finite"  # the tag that names metrics without a number
PATIENCE = 600.0  # seconds for which a run that has begun waits for its server
FAREWELL = 5.0  # seconds that an interrupted run takes to say so
AFTER_FAILURE = 20.0  # and one that failed


def tracking_uri(config: TrackingConfig) -> str:
    """Where runs are recorded: the setting, else ``MLFLOW_TRACKING_URI``, else SQLite in the current folder.

    Raises:
        ConfigError: the setting comes from a file that keeps no credentials, and the environment has none either.
    """
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(Path.cwd() / "mlflow.db")
    if uri.startswith(f"{SQLITE}~"):
        uri = sqlite_uri(expanded(uri.removeprefix(SQLITE)))
    return _completed(uri) if MASK in uri else uri


def _completed(uri: str) -> str:
    """A masked URI with the environment's credentials; MLflow itself reads those of a server."""
    whole, token = os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("MLFLOW_TRACKING_TOKEN")
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    server = uri.startswith(("http://", "https://"))
    if masked(whole) == uri and whole != uri:
        return whole
    if f"://{MASK}@" in uri and ((user and password) or (server and token)):
        named = "" if server else f"{quote(str(user), safe='')}:{quote(str(password), safe='')}@"
        uri = uri.replace(f"{MASK}@", named, 1)
    if MASK in uri:
        raise ConfigError(
            f"tracking.uri {uri}: no file keeps its credentials: give them by MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or the whole URI anew"
        )
    return uri


def check_server(uri: str) -> None:
    """The tracking server or database answers. A database that does not exist yet is made when the first run begins.

    Raises:
        ConfigError: it does not.
    """
    try:
        path = database(uri)
        if path is not None:
            check_place(path)
            tell_if_it_vanishes("tracking.uri", str(path))
        if path is None or path.exists():
            Client(uri).search_experiments(max_results=1)
    except UNREACHABLE as error:
        raise _unusable(uri, error) from error


def _unusable(uri: str, error: Exception) -> ConfigError:
    return ConfigError(masked(f"tracking.uri {uri}: cannot be used: {' '.join(str(error).split())[:200]}"))


class TrackedRun:
    """One MLflow run, driven through the client: no global state, so several may be open.

    Args:
        uri: of the tracking server or database.
        experiment: its name; made if it does not exist.
        name: of the run.
        run_id: of an earlier run to continue.

    Raises:
        ConfigError: the server or database cannot be reached.
    """

    def __init__(self, uri: str, experiment: str, name: str, run_id: str | None = None) -> None:
        self.uri = uri
        try:
            self.client = Client(uri)
            self.experiment_id = self._experiment(experiment)
            if run_id is not None and not self._exists(run_id):
                run_id = None
            self.run_id = run_id or self.client.create_run(self.experiment_id, run_name=name).info.run_id
            self.client.patience = PATIENCE
        except UNREACHABLE as error:
            raise _unusable(uri, error) from error

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        # A database has no artifact store of its own: keep artifacts beside it, not where the first user happened to be.
        path = database(self.uri)
        location = None if path is None else (path.resolve().parent / "mlartifacts").as_uri()
        try:
            return self.client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
        except MlflowException:  # made by someone else meanwhile
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def _exists(self, run_id: str) -> bool:
        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    @contextmanager
    def running(self) -> Iterator[TrackedRun]:
        """RUNNING within the context; then FINISHED, FAILED (tag ``failure`` says why; ``diverged``: its numbers were no
        longer finite) or KILLED (Ctrl-C, SIGTERM). A server that is away delays none of these by more than seconds.
        """
        with _interrupts() as arrived:
            try:
                self.client.update_run(self.run_id, status="RUNNING")
                yield self
                data = self.client.get_run(self.run_id).data
                if found := not_finite(data.metrics):
                    self.client.set_tag(self.run_id, NOT_FINITE, found[:5000])
                mended = {"failure", "diverged"} | (set() if found else {NOT_FINITE})  # of an attempt before this one
                for tag in mended & set(data.tags):
                    self.client.delete_tag(self.run_id, tag)
                self.client.set_terminated(self.run_id, status="FINISHED")
            except (KeyboardInterrupt, SystemExit):
                arrived()
                self.client.hurry(FAREWELL)
                self._leave("KILLED", {})
                raise
            except BaseException as error:
                reason = masked(" ".join(str(error).split()) or type(error).__name__)
                tags = {"failure": reason[:5000]}
                if isinstance(error, FloatingPointError):
                    tags["diverged"] = "true"
                self.client.hurry(AFTER_FAILURE)
                self._leave("FAILED", tags)
                raise

    def _leave(self, status: str, tags: Mapping[str, str]) -> None:
        """Say how the run ended, if the server can be told; why it ended matters more than that it cannot."""
        try:
            for key, value in tags.items():
                self.client.set_tag(self.run_id, key, value)
            self.client.set_terminated(self.run_id, status=status)
        except UNREACHABLE as error:
            why = masked(" ".join(str(error).split())[:200])
            print(f"run {self.run_id} is not marked {status}: {masked(self.uri)}: {why}", file=sys.stderr, flush=True)

    def describe(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Record the resolved configuration as params (once: a continued run keeps its own) and facts as tags."""
        held = self.client.get_run(self.run_id).data.params
        new = [Param(key, str(value)) for key, value in params.items() if key not in held]
        for first in range(0, len(new), 100):  # MLflow's limit for one batch
            self.client.log_batch(self.run_id, params=new[first : first + 100])
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def metrics(self, values: Mapping[str, float], model_id: str | None = None) -> None:
        """Final values, such as ``test/nll``; one that the run has already, of an attempt that was killed, is no second point.

        Args:
            model_id: of the run's model, whose values they are, too.
        """
        held = self.client.get_run(self.run_id).data.metrics
        for name, value in values.items():
            if name not in held or not (held[name] == value or (math.isnan(held[name]) and math.isnan(value))):
                self.client.log_metric(self.run_id, name, value, model_id=model_id)

    def datasets(self, inputs: Sequence[DatasetInput]) -> None:
        """The data sets that the run used; a continued run keeps its own."""
        held = self.client.get_run(self.run_id).inputs
        if not (held and held.dataset_inputs):
            self.client.log_inputs(self.run_id, list(inputs))

    def figure(self, figure: Figure, path: str) -> None:
        """A figure as an artifact."""
        self.client.log_figure(self.run_id, figure, path)

    def text(self, text: str, path: str) -> None:
        """A text as an artifact."""
        self.client.log_text(self.run_id, text, path)

    def artifacts(self, folder: Path, path: str) -> None:
        """A folder's files as artifacts under ``path``."""
        self.client.log_artifacts(self.run_id, str(folder), path)


def not_finite(metrics: Mapping[str, float]) -> str:
    """What is to say of metrics that are no numbers: MLflow's pages leave out NaN, and show 1.8e308 for infinity."""
    words = {name: "NaN" if math.isnan(value) else "infinite" for name, value in sorted(metrics.items())}
    return ", ".join(f"{name}: {word}" for name, word in words.items() if not abs(metrics[name]) < sys.float_info.max)


@contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Within the context, SIGTERM (``ray job stop``, a scheduler's eviction) raises KeyboardInterrupt as Ctrl-C does.

    Either is sent again every second until it has arrived: one that is raised within a destructor or a weak reference's
    callback is lost. Yields what to call when it has.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    again: list[threading.Timer] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
        again.append(timer)
        raise KeyboardInterrupt

    def arrived() -> None:
        for timer in again:
            timer.cancel()

    def unraisable(args: Any) -> None:
        if not isinstance(args.exc_value, KeyboardInterrupt):  # that comes again: no need to tell
            hook(args)

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield arrived
    finally:
        arrived()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def source_tags() -> dict[str, str]:
    """Who ran which command, as MLflow's pages show it, on a machine or as a submitted job."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user that no file names
        user = str(os.getuid())
    submitted = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") is not None
    command = masked(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))[:500]
    kind = "JOB" if submitted else "LOCAL"
    # MLflow's pages show of a source what follows its last slash: the arguments have a tag of their own.
    source = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": kind}
    return {"mlflow.user": user, "command": command} | source | git_tags()


def git_tags() -> dict[str, str]:
    """The commit of the code, and whether it was changed since; empty outside a git checkout."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": commit.stdout.strip(), "git.dirty": str(bool(status.stdout.strip())).lower()}
