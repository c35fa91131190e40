"""What a person sees of a recorded sweep: a real MLflow server in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from small_sweeps import settings

from proxscore.config import TrackingConfig
from proxscore.experiments.sweep import job, recording
from proxscore.experiments.sweep.choice import Candidate
from proxscore.experiments.sweep.ledger import Ledger, Trial
from proxscore.experiments.sweep.plan import plan
from proxscore.experiments.sweep.space import applied
from proxscore.tracking import Recorder, TrackedRun, browse
from proxscore.tracking.browsing import HERE

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH"),
]

WAIT_MS = 60_000  # for anything to appear; a page takes a second, but half a minute where all cores are busy
START_S = 150.0  # for the server to answer; the same holds
FLAGS = (
    "--no-sandbox",  # there is none for root, as in a container
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The tracking URI and the parent run's ID of a sweep: its trials are made up, what records them is not."""
    folder = tmp_path_factory.mktemp("recorded")
    planned = plan(*settings(folder, trials=6, seeds=[0]))
    ledger = Ledger(planned.folder, planned.settings())
    with recording.recorded(planned, ledger) as kept:
        for number, (status, last) in enumerate(
            [("finished", 0.5), ("stopped", 0.9), ("finished", 0.3), ("finished", 0.4), ("finished", 0.6)]
        ):
            params = {"method.max_mean_step": 0.1 * number, "method.penalty.mean": 2.0 / number} if number else {}
            trial = ledger.add(Trial(number, params=params, epochs=4.0, seconds=60.0))
            kept.begin(trial, applied(planned.config, trial.params))
            for epoch in (1.0, 2.0) if status == "stopped" else (1.0, 2.0, 3.0):
                trial.report({"epoch": epoch, "nll": last + 1 / epoch, "ece": 0.1})
            trial.status = status  # type: ignore[assignment]
            trial.final = {"nll": last, "ece": 0.05} if status == "finished" else {}
            kept.ended(trial)
        best = sorted(ledger.of("search", "finished"), key=lambda trial: trial.value("nll"))
        job.leave_figures(planned, ledger, kept, best)
        job.keep_winner(planned, ledger, kept, [Candidate(f"trial {best[0].number}", best[0].params, best[:1])])
    assert planned.config.tracking.uri is not None
    return planned.config.tracking.uri, kept.parent.run_id


@pytest.fixture(scope="module")
def parent(recorded: tuple[str, str]) -> Run:
    uri, run_id = recorded
    return MlflowClient(uri).get_run(run_id)


@pytest.fixture(scope="module")
def trials(recorded: tuple[str, str], parent: Run) -> list[Run]:
    uri, run_id = recorded
    return MlflowClient(uri).search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")


@pytest.fixture(scope="module")
def stopped(trials: list[Run]) -> Run:
    """A trial that was stopped early."""
    return next(trial for trial in trials if trial.info.status == "KILLED")


@pytest.fixture(scope="module")
def server(recorded: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of ``mlflow server`` over the sweep's database."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # it starts uvicorn by name
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes that nothing here needs
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", recorded[0], "--workers", "1"),
                *("--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)),
            ],
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}", process, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start: {log.read_text()}")


@pytest.fixture(scope="module")
def browser(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """Chromium with an empty profile, that reaches the server and no other host. One for all tests: it keeps the
    scripts of the pages, which take longest to load."""
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            timeout=WAIT_MS,
            viewport={"width": 1920, "height": 1080},
            locale="en-US",
        )
        context.set_default_timeout(WAIT_MS)
        context.route(
            lambda url: not url.startswith(f"{server}/"),  # fonts and the like: nothing may wait for the network
            lambda route: route.abort(),
        )
        yield context
        context.close()


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def open_run(page: Page, server: str, run: Run) -> Locator:
    """Open the page of a run; return its main part when it shows the run's name."""
    page.goto(f"{server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning")
    main = page.get_by_role("main")
    main.get_by_role("heading", name=run.info.run_name, exact=True).wait_for()
    return main


def tag(main: Locator, run: Run, key: str) -> Locator:
    """The place where a run's page shows one of the run's tags."""
    return main.get_by_text(re.compile(rf"^{re.escape(key)}\s*:\s*{re.escape(run.data.tags[key])}$"))


def keep(page: Page, shown: Locator, path: Path) -> None:
    """Save a picture of the page for people; what matters in it must not be blank.

    The frame around it always has many colours, so only the part that is meant counts.
    """
    box = shown.bounding_box()
    assert box is not None
    page.screenshot(path=path)
    assert path.stat().st_size > 10_000, path
    with Image.open(path) as picture:
        part = picture.convert("RGB").crop(
            (int(box["x"]), int(box["y"]), int(box["x"] + box["width"]), int(box["y"] + box["height"]))
        )
    colours = part.getcolors(maxcolors=part.width * part.height)
    assert colours is not None
    assert len(colours) > 16, path


def test_the_runs_page_nests_the_trials_under_their_sweep_and_marks_those_stopped_early(
    page: Page, server: str, parent: Run, trials: list[Run], tmp_path: Path
) -> None:
    page.goto(f"{server}/#/experiments/{parent.info.experiment_id}/runs?workflowType=machine_learning")
    links = {run.info.run_id: page.get_by_role("link", name=run.info.run_name, exact=True) for run in [parent, *trials]}
    sweep = links.pop(parent.info.run_id)
    sweep.wait_for()
    assert not any(link.is_visible() for link in links.values())

    page.get_by_role("gridcell").filter(has=sweep).get_by_role("button").click()  # the sign before the name
    left = sweep.bounding_box()
    assert left is not None
    signs: dict[str, set[str]] = {}
    for trial in trials:
        link = links[trial.info.run_id]
        link.wait_for()
        box = link.bounding_box()
        assert box is not None
        assert box["x"] > left["x"]  # indented
        # The status has no text here: a drawing in the column of dates, the last of those that stay when one scrolls.
        created = page.get_by_role("row").filter(has=link).get_by_role("gridcell").last
        signs.setdefault(trial.info.status, set()).add(created.locator("svg").inner_html())
    assert {status: len(drawings) for status, drawings in signs.items()} == {"FINISHED": 1, "KILLED": 1}
    assert signs["FINISHED"] != signs["KILLED"]
    keep(page, page.get_by_role("main"), tmp_path / "runs.png")


def test_the_page_of_a_trial_stopped_early_says_so_and_when(
    page: Page, server: str, parent: Run, stopped: Run, tmp_path: Path
) -> None:
    main = open_run(page, server, stopped)
    main.get_by_text("Killed", exact=True).wait_for()
    tag(main, stopped, "tune.status").wait_for()
    assert stopped.data.tags["tune.status"].startswith("stopped at epoch")
    main.get_by_role("link", name=parent.info.run_name, exact=True).wait_for()  # the way back
    keep(page, main, tmp_path / "stopped.png")


def test_the_page_of_a_sweep_names_its_best_trial_and_links_to_it(
    page: Page, server: str, parent: Run, trials: list[Run], tmp_path: Path
) -> None:
    main = open_run(page, server, parent)
    main.get_by_text("Finished", exact=True).wait_for()
    tag(main, parent, "best.trial").wait_for()
    tag(main, parent, "best.run_id").wait_for()
    (best,) = (trial for trial in trials if trial.info.run_id == parent.data.tags["best.run_id"])
    main.get_by_role("link", name=best.info.run_name, exact=True).wait_for()
    keep(page, main, tmp_path / "sweep.png")


def test_what_browse_prints_opens_the_page_of_the_run_among_those_of_machine_learning(
    page: Page, server: str, recorded: tuple[str, str], parent: Run
) -> None:
    served = browse(TrackingConfig(uri=server), parent.info.run_id)
    command, address = browse(TrackingConfig(uri=recorded[0]), parent.info.run_id).splitlines()
    assert command.endswith(f"mlflow ui --backend-store-uri {recorded[0]}")
    assert address.split()[:3] == ["#", "then", "open"]
    for each in (served, address.split()[3].replace(HERE, server)):
        page.goto("about:blank")
        page.goto(each)
        page.get_by_role("main").get_by_role("heading", name=parent.info.run_name, exact=True).wait_for()
        page.get_by_role("link", name="Runs", exact=True).first.wait_for()
        assert not page.get_by_text("Evaluation runs", exact=True).is_visible()  # of the pages about language models


def test_the_page_of_a_run_tells_of_metrics_that_are_no_numbers(
    page: Page, server: str, recorded: tuple[str, str]
) -> None:
    made = TrackedRun(recorded[0], "numbers", "a run without an ECE")
    with made.running():
        made.metrics({"test/nll": 0.5, "test/ece": float("nan")})
    run = MlflowClient(recorded[0]).get_run(made.run_id)
    main = open_run(page, server, run)
    main.get_by_text("test/nll", exact=True).wait_for()
    assert not main.get_by_text("test/ece", exact=True).is_visible()  # what MLflow does of itself
    tag(main, run, "not_finite").wait_for()


def test_the_charts_of_a_run_begin_with_its_nll(page: Page, server: str, recorded: tuple[str, str]) -> None:
    made = TrackedRun(recorded[0], "charts", "a run with charts")
    resources = {"rows_per_second": 50.0, "peak_memory_gb": 0.1, "seconds_data": 0.1}
    payload = {"step": 2, "total_steps": 2, "epoch": 1.0, "seconds": 1.0, "checkpoint": False, "resources": resources}
    payload["records"] = [{"step": step, "train/nll": 1.0 / step, "kappa_mean": 2.0} for step in (1, 2)]
    payload["metrics"] = {"validation/nll": 0.5, "validation/ece": 0.1}
    with made.running():
        Recorder(recorded[0], made.run_id, "a run", None)([payload])
        made.metrics({"test/nll": 0.5, "shifted/noisy/nll": 0.7, "parameters": 10.0, "verdict/k": 1.0})
    page.goto(browse(TrackingConfig(uri=server), made.run_id).replace("?", "/model-metrics?"))
    main = page.get_by_role("main")
    main.get_by_text("nll", exact=True).wait_for()
    groups = re.findall(r"^(\S.*)\n+\(\d+\)$", main.inner_text(), re.MULTILINE)
    told = ["posterior", "shifted/noisy", "test", "time", "train", "validation", "verdict"]
    assert groups == ["nll", *told, "Model metrics"]  # figures of ranks are on the page of system metrics


def test_the_artifacts_of_a_sweep_show_its_figures(
    page: Page, server: str, recorded: tuple[str, str], parent: Run, tmp_path: Path
) -> None:
    main = open_run(page, server, parent)
    main.get_by_role("tab", name="Artifacts").click()
    for name in ("config.yaml", "leaderboard.md", "trials.csv"):
        main.get_by_text(name, exact=True).wait_for()
    main.get_by_text("figures", exact=True).click()
    paths = [artifact.path for artifact in MlflowClient(recorded[0]).list_artifacts(parent.info.run_id, "figures")]
    assert paths
    for path in paths:
        main.get_by_text(Path(path).name, exact=True).click()
        figure = main.get_by_role("img", name=path, exact=True)
        figure.wait_for()
        # A picture that cannot be read is an element too: only decoding tells.
        assert figure.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0, path
        keep(page, figure, tmp_path / Path(path).name)
