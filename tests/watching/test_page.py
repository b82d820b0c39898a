"""The local page: for this machine alone, escaped, without scripts; and what a browser shows of it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcfbench.errors import UserError
from lcfbench.watching.page import Server
from lcfbench.watching.results import Watched
from tests.helpers import invoke
from tests.watching.test_follow import begin, fill

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    out = tmp_path_factory.mktemp("runs")
    going = begin(out, 40, mode="t2t", control="deranged")
    fill(going, range(12))
    done = begin(out, 40)
    fill(done, range(40))
    done.finish({"documents_per_second": 12.5})
    hostile = begin(out, 2, task=HOSTILE, mode="</td>")
    fill(hostile, range(2))
    hostile.close()
    made = Server(Watched([out]), 0, 1.0)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()
    going.close()


def ask(server: Server, path: str = "/", host: str | None = None, method: str = "GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_the_page_says_what_is_known(server) -> None:
    status, text, headers = ask(server)
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    for part in ("12/40", "40/40", "50.0 ± 14.8", "running", "complete", "stopped", "http-equiv=refresh"):
        assert part in text
    assert "<script" not in text and "&lt;script&gt;" in text and "&lt;/td&gt;" in text
    assert "http://" not in text and "https://" not in text and " src=" not in text
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_the_same_facts_as_json(server) -> None:
    status, text, _ = ask(server, "/runs.json")
    runs = {run["mode"]: run for run in json.loads(text)["runs"]}
    assert status == 200 and runs["t2t"]["done"] == 12 and runs["t2t"]["left"] == 28


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example:8111", "a:b:1"],
)
def test_another_name_is_refused(server, host) -> None:
    status, text, _ = ask(server, "/", host)
    assert status == 403 and "runs in" not in text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "localhost:1"])
def test_this_machine_s_names_are_served(server, host) -> None:
    assert ask(server, "/", host)[0] == 200


def test_other_paths_and_methods(server) -> None:
    for path in ("/../../etc/passwd", "/x", "/runs.json/.."):
        assert ask(server, path)[0] == 404
    assert ask(server, method="POST")[0] == 501
    status, text, headers = ask(server, method="HEAD")
    assert (status, text) == (200, "") and int(headers["Content-Length"]) > 1000


def test_it_listens_on_this_machine_alone(server) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_one_line(server, tmp_path, capsys, monkeypatch) -> None:
    with pytest.raises(UserError, match="--port 0"):
        Server(Watched([tmp_path]), server.server_port, 1.0)
    code, _, err = invoke(capsys, monkeypatch, "watch", tmp_path, "--serve", "--port", server.server_port)
    assert code == 2 and len(err.splitlines()) == 1
    code, _, err = invoke(capsys, monkeypatch, "watch", "--serve", "8080")
    assert code == 2 and "--port 8080" in err


CHROMIUM = os.environ.get("CHROMIUM") or next(
    (p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (set CHROMIUM to one)")
@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_and_asks_again(server, scripts, width) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, java_script_enabled=scripts)
        noise: list[str] = []
        page.on("console", lambda message: noise.append(message.text))
        page.goto(server.url)
        assert page.locator("tbody tr").count() == 3
        assert page.locator("td.running").inner_text() == "running"
        with page.expect_navigation(timeout=5000):  # by itself
            pass
        if (folder := os.environ.get("LCFBENCH_SCREENSHOTS")) and scripts:
            page.screenshot(path=str(Path(folder) / f"watch-{width}.png"))
        overflow = page.locator("body").bounding_box()["width"] > width
        browser.close()
    assert not overflow
    assert not [text for text in noise if "favicon" not in text]
