"""The dashboard in headless Chromium; run as a script, it takes the screenshot of the README.

python tests/dashboard/test_browser.py sqlite:///STORE.db docs/front.png
"""

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
)
PATIENCE_S = 60
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 21, 28)"}
# Where each point of the front is on the screen, from plotly's own axes; the most isolated one.
LONELIEST = """() => {
  const chart = document.querySelector('.js-plotly-plot'), layout = chart._fullLayout
  const area = chart.querySelector('.nsewdrag').getBoundingClientRect()
  const index = chart.data.findIndex(trace => trace.name === 'front')
  const points = chart.calcdata[index].map(point => ({
    x: area.left + layout.xaxis.c2p(point.x), y: area.top + layout.yaxis.c2p(point.y),
    key: chart.data[index].customdata[point.i][0]}))
  const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y)
  const room = a => Math.min(...points.filter(b => b !== a).map(b => distance(a, b)))
  return points.reduce((best, point) => room(point) > room(best) ? point : best)
}"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]


@contextmanager
def served(store_url: str, folder: Path) -> Iterator[int]:
    """The port of a dashboard on the store, started in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(files("archfront.dashboard") / "app.py")
    where = ["--server.port", str(port), "--server.address", "127.0.0.1"]
    with subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", script, *where],
        env={**os.environ, "ARCHFRONT_STORE": store_url},
        cwd=folder,
        stdout=subprocess.DEVNULL,
    ) as server:
        try:
            _wait_for(port)
            yield port
        finally:
            server.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"no dashboard on port {port} within {PATIENCE_S} s")


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def open_front(page: Page, port: int, address: str = "") -> None:
    """Go to the front page and wait until the chart and the details are drawn."""
    page.goto(f"http://127.0.0.1:{port}/{address}")
    page.locator(".js-plotly-plot .scatterlayer .points path").first.wait_for(
        timeout=PATIENCE_S * 1e3
    )
    expect(page.get_by_test_id("stCode").last).to_contain_text("schema_version")


@pytest.fixture(scope="module")
def port(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with served(store_url, tmp_path_factory.mktemp("elsewhere")) as port:
        yield port


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(params=["light", "dark"])
def page(browser: Browser, port: int, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The front page in a theme; in the end no request failed or left the machine."""
    context = browser.new_context(
        color_scheme=request.param, viewport={"width": 1400, "height": 1300}
    )
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:"))
            else wrong.append(f"left the machine: {request.url}")
        ),
    )
    open_front(page, port, "?study=tiny-1")
    app = page.get_by_test_id("stApp")
    expect(app).to_have_css("background-color", BACKGROUNDS[request.param])
    yield page
    context.close()
    assert wrong == []


def test_a_clicked_point_is_shown_and_downloaded(page: Page, tmp_path: Path):
    point = page.evaluate(LONELIEST)
    page.mouse.move(point["x"] - 2, point["y"])
    page.mouse.move(point["x"], point["y"])
    page.wait_for_timeout(300)  # plotly clicks only what it has seen hovered
    page.mouse.click(point["x"], point["y"])
    expect(page.get_by_role("heading", name=point["key"])).to_be_visible()
    expect(page).to_have_url(re.compile(f"key={point['key']}"))
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Download {point['key']}.yaml").click()
    assert download.value.suggested_filename == f"{point['key']}.yaml"
    assert yaml.safe_load(download.value.path().read_text())["key"] == point["key"]
    page.screenshot(path=tmp_path / "front.png", full_page=True)


@pytest.mark.parametrize("page", ["light"], indirect=True)
def test_failed_trials_and_the_studies_page_open_with_one_click(page: Page, tmp_path: Path):
    page.get_by_role("tab", name="Failed and rejected").click()
    page.get_by_test_id("stDataFrame").locator("visible=true").first.wait_for()
    page.screenshot(path=tmp_path / "failures.png")
    page.get_by_role("link", name="Studies").click()
    expect(page.get_by_role("heading", name="tiny-1")).to_be_visible()
    page.locator(".js-plotly-plot .scatterlayer path").first.wait_for()
    page.screenshot(path=tmp_path / "studies.png")
    page.get_by_role("link", name="Show its front").click()
    expect(page.get_by_test_id("stCode").last).to_contain_text("schema_version")


def test_a_foreign_host_name_gets_status_403(port: int):
    def status(host: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request(
            "GET",
            "/_stcore/stream",
            headers={
                "Host": host,
                "Origin": f"http://{host}",
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "c2l4dGVlbiBieXRlcy4uLg==",
            },
        )
        try:
            return connection.getresponse().status
        finally:
            connection.close()

    assert status(f"localhost:{port}") == 101
    assert status(f"rebound.example:{port}") == 403


def screenshot(store_url: str, output: Path) -> None:
    with served(store_url, Path.cwd()) as port, chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1080}, color_scheme="light")
        open_front(page, port)
        page.wait_for_timeout(1500)
        page.screenshot(path=output)


if __name__ == "__main__":
    screenshot(sys.argv[1], Path(sys.argv[2]))
