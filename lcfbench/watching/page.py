"""A local page of the followed runs: one HTML file without scripts that asks for itself again.

>>> server = Server(Watched([Path("results")]), port=0, seconds=2.0)             # doctest: +SKIP
>>> server.url; server.serve_forever()                                             # doctest: +SKIP

It listens on 127.0.0.1 alone and answers only requests that name this machine, so that a page of
another site cannot read it under a name of its own.
"""

from __future__ import annotations

import json
import threading
import time
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lcfbench.errors import UserError
from lcfbench.watching.follow import RunView
from lcfbench.watching.results import Watched
from lcfbench.watching.table import COLUMNS, cells, names

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --run: #2a7; --warn: #b80; --bad: #c33; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.2rem; margin: 0 0 .2rem; } p { margin: .2rem 0 1rem; opacity: .75; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { padding: .4rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td { font-variant-numeric: tabular-nums; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
small { display: block; opacity: .7; } progress { width: 8rem; height: .5rem; display: block; }
progress { margin-left: auto; accent-color: var(--run); }
.new, .running { color: var(--run); } .stale, .stopped, .interrupted { color: var(--warn); }
.failed, .damaged, .unreadable { color: var(--bad); }
"""


def page(views: list[RunView], hidden: int, where: str, seconds: float) -> str:
    """The page as HTML. seconds: after which a browser asks again."""
    heads = "".join(f"<th scope=col>{escape(column.name)}</th>" for column in COLUMNS)
    rows = "\n".join(_row(view, name) for view, name in zip(views, names(views), strict=True))
    live = sum(view.state in ("new", "running") for view in views)
    more = f"; {hidden:,} older runs are not shown" if hidden else ""
    told = f"{len(views):,} runs, {live:,} of them going on{more}. {time.strftime('%H:%M:%S')}"
    return f"""<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv=refresh content="{max(1, round(seconds))}"><title>{live} running · lcfbench</title>
<style>{STYLE}</style></head><body><h1>lcfbench: runs in {escape(where)}</h1><p>{told}</p>
<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>
{rows or f"<tr><td colspan={len(COLUMNS)}>no runs yet</td></tr>"}
</tbody></table></div></body></html>
"""


def _row(view: RunView, name: str) -> str:
    first, state, score, count, *rest = map(escape, cells(view, name))
    note = f"<small>{escape(view.note)}</small>" if view.note else ""
    bar = f"<progress max={view.planned} value={view.done}></progress>" if view.planned else ""
    cell = f'<td class="{escape(view.state.split()[0] if view.state else "")}">{state}</td>'
    others = "".join(f"<td>{text}</td>" for text in rest)
    title = f"<td>{first}<small>{escape(view.run_id)}</small>{note}</td>"
    return f"<tr>{title}{cell}<td>{score}</td><td>{count}{bar}</td>{others}</tr>"


class Server(ThreadingHTTPServer):
    """Serves the page at `/` and the same facts at `/runs.json`. Raises UserError for a port in use."""

    daemon_threads = True

    def __init__(self, watched: Watched, port: int, seconds: float) -> None:
        self.watched, self.seconds = watched, seconds
        self._lock, self._at = threading.Lock(), 0.0
        self._views: list[RunView] = []
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            what = f"port {port} cannot be used ({getattr(error, 'strerror', None) or error})."
            raise UserError(what, "Name another with --port, or --port 0 for any that is free.") from error

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def views(self) -> list[RunView]:
        """The runs, read again at most once in `seconds`, however many browsers ask."""
        with self._lock:
            if time.monotonic() - self._at >= min(self.seconds, 1.0) or not self._at:
                self._views, self._at = self.watched.refresh(), time.monotonic()
            return self._views


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: Server
    timeout = 10

    def do_GET(self) -> None:
        host = (self.headers.get("Host") or "").rpartition(":")
        if (host[0] or host[2]) not in NAMES:
            self._answer(403, "text/plain", "This page is for this machine alone.\n")
        elif self.path.partition("?")[0] == "/":
            views, where = self.server.views(), ", ".join(map(str, self.server.watched.paths))
            made = page(views, self.server.watched.hidden, where, self.server.seconds)
            self._answer(200, "text/html", made)
        elif self.path == "/runs.json":
            records = [view.record() for view in self.server.views()]
            self._answer(200, "application/json", json.dumps({"runs": records}, ensure_ascii=False))
        else:
            self._answer(404, "text/plain", "There is / and /runs.json.\n")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, code: int, kind: str, text: str) -> None:
        data = text.encode("utf-8", "replace")
        self.send_response(code)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def version_string(self) -> str:
        return "lcfbench"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
