"""A small HTTP server that speaks the part of the Hub's API that is needed."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote

import torch
import yaml
from huggingface_hub import constants

from lcfbench.adapters.config import CARD, CONFIG, WEIGHTS
from lcfbench.sources import hub

LARGE = (".safetensors", ".parquet")  # stored as LFS stores them
EMPTY = "0" * 40  # the commit of a repository without files


class Server:
    """Repositories in memory: `token` writes, `reader` reads. `damage` changes a download.

    A data set is called `datasets/ORG/NAME`. breaks: requests ("POST …/commit") that are answered so.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.damage = lambda path, data: data
        self.breaks: dict[str, int] = {}
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self, b"")

            do_HEAD = do_GET  # noqa: N815

            def do_POST(self):
                server.answer(self, self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            do_PUT = do_POST  # noqa: N815

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return repo["commits"][repo["branches"][branch]]

    def change(self, repo_id: str, **files: bytes | None) -> None:
        """A commit behind our back: `config` and `weights` changed, or gone where None."""
        new = self.files(repo_id) | {
            {"config": CONFIG, "weights": WEIGHTS}[name]: data for name, data in files.items()
        }
        sha = hashlib.sha1(repr(files).encode()).hexdigest()
        self.repos[repo_id]["commits"][sha] = {name: data for name, data in new.items() if data is not None}
        self.repos[repo_id]["branches"]["main"] = sha

    def answer(self, to: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        path, _, query = to.path.partition("?")
        self.asked.append(f"{to.command} {path}")
        token = (to.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path == "/api/models":
            code, data, headers = 200, self.listed(parse_qs(query).get("filter", [])), {}
        elif broken := next((c for part, c in self.breaks.items() if part in f"{to.command} {path}"), 0):
            code, data, headers = broken, {"error": "broken"}, {}
        else:
            code, data, headers = self.route(to.command, path, token, body)
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        to.send_response(code)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            to.send_header(name, value)
        to.end_headers()
        if to.command != "HEAD":
            to.wfile.write(data)

    def listed(self, tags: list[str]) -> list[dict]:
        """The public repositories with these tags; those of a card are its own and its base models."""
        found = []
        for repo_id, repo in self.repos.items():
            if repo_id.startswith("datasets/"):
                continue
            about = front_matter(self.files(repo_id))
            own = [*about.get("tags", []), *(f"base_model:{name}" for name in about.get("base_model", []))]
            own = repo.get("tags", own)
            if set(tags) <= set(own) and not repo["private"]:
                facts = {"id": repo.get("listed_as", repo_id), "sha": repo["branches"]["main"], "tags": own}
                found.append(facts | {"lastModified": repo.get("changed", "2026-01-01T00:00:00.000Z")})
        return found

    def route(self, verb: str, path: str, token: str, body: bytes) -> tuple[int, object, dict[str, str]]:
        if verb == "POST" and path == "/api/validate-yaml":
            text = json.loads(body)["content"]
            yaml.safe_load(text.split("---\n")[1])
            return 200, {"errors": [], "warnings": []}, {}
        if verb != "GET" and verb != "HEAD" and token != "token" and not path.startswith("/upload/"):
            known = token == "reader"
            return (
                (403, {"error": "no"}, {"X-Error-Message": "no write access"})
                if known
                else (401, {"error": "who"}, {})
            )
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked['organization']}/{asked['name']}"
            repo_id = f"datasets/{repo_id}" if asked.get("type") == "dataset" else repo_id
            made = {"url": f"{self.url}/{repo_id}", "id": repo_id}
            if repo_id in self.repos:
                return 409, made | {"error": "exists"}, {}
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.repos[repo_id] = {"private": private, "branches": {"main": EMPTY}, "commits": {EMPTY: {}}}
            return 200, made, {}
        if path.startswith("/upload/"):
            self.blobs[path.rpartition("/")[2]] = body
            return 200, {}, {}
        found = re.fullmatch(
            r"/(?:api/(?:models/|(?=datasets/)))?((?:datasets/)?[\w.-]+/[\w-]+)"
            r"(?:\.git/info/lfs/objects/(batch)|/([\w-]+)(?:/([^/]+)(?:/(.+))?)?)?",
            path,
        )
        assert found, path
        repo_id, batch, action, revision, name = found.groups()
        revision, name = (unquote(part) if part else part for part in (revision, name))
        repo = self.repos.get(repo_id)
        if repo is None or (repo["private"] and token not in ("token", "reader")):
            return (
                (404 if token in ("token", "reader") else 401),
                {"error": "Repository not found"},
                {"X-Error-Code": "RepoNotFound"},
            )
        if batch:
            objects = [
                o | {"actions": {"upload": {"href": f"{self.url}/upload/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}, {}
        if action == "branch":
            return (409, {}, {}) if repo["branches"].setdefault(revision, EMPTY) != EMPTY else (200, {}, {})
        if action == "preupload":
            asked = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"}
                for f in asked
            ]
            return 200, {"files": [m | {"shouldIgnore": False} for m in modes]}, {}
        if action == "commit":
            if revision not in repo["branches"]:
                return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
            asked = [json.loads(line)["value"] for line in body.splitlines()]
            if asked[0].get("parentCommit") not in (None, repo["branches"][revision]):
                return 412, {"error": "A commit has happened since."}, {}
            files = dict(repo["commits"][repo["branches"][revision]])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    files[line["value"]["path"]] = self.blobs[line["value"]["oid"]]
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            sha = hashlib.sha1(body).hexdigest()
            repo["branches"][revision], repo["commits"][sha] = sha, files
            return (
                200,
                {"commitUrl": f"{self.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True},
                {},
            )
        if action == "refs":
            names = [
                {"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo["branches"].items()
            ]
            tags = [
                {"name": n, "ref": f"refs/tags/{n}", "targetCommit": c}
                for n, c in repo.get("tagged", {}).items()
            ]
            return 200, {"branches": names, "tags": tags, "converts": []}, {}
        if action == "commits":
            about = {"title": "", "message": "", "date": "2026-01-01T00:00:00.000Z", "authors": []}
            return 200, [about | {"id": sha} for sha in repo["commits"]], {}
        sha = (repo["branches"] | repo.get("tagged", {})).get(revision or "main", revision)
        if sha not in repo["commits"]:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        here = repo["commits"][sha]
        if action == "tree":
            return self.tree(here, name)
        if action == "paths-info":
            form = parse_qs(body.decode()) if not body.startswith(b"{") else json.loads(body)
            return 200, [entry(n, here[n]) for n in form.get("paths", []) if n in here], {}
        if action == "resolve":
            whole = repo["commits"][sha].get(name)
            if whole is None:
                return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            tag = entry(name, whole).get("lfs", {}).get("oid") or hashlib.sha1(whole).hexdigest()
            return 200, self.damage(name, whole), {"ETag": f'"{tag}"', "X-Repo-Commit": sha}
        if action == "parquet" or action not in (None, "revision"):
            return 404, {"error": f"nothing at {path}"}, {}
        about = {"id": repo_id.removeprefix("datasets/"), "sha": sha, "private": repo["private"]}
        about |= {"siblings": [{"rfilename": n} for n in here], "tags": [], "gated": False, "disabled": False}
        return 200, about | {"lastModified": "2026-01-01T00:00:00.000Z", "cardData": front_matter(here)}, {}

    def tree(self, files: dict[str, bytes], folder: str | None) -> tuple[int, object, dict[str, str]]:
        """The files below a folder, whatever their depth, and the folders; 404 where it is not there."""
        begin = f"{folder.strip('/')}/" if folder else ""
        inside = {n: d for n, d in files.items() if n.startswith(begin)}
        if begin and not inside:
            return 404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"}
        parents = {str(p) for n in inside for p in PurePosixPath(n).parents if str(p) != "."}
        folders = [{"type": "directory", "path": p, "size": 0, "oid": ""} for p in sorted(parents)]
        return (
            200,
            [*(f for f in folders if f["path"].startswith(begin)), *map(entry, inside, inside.values())],
            {},
        )


def front_matter(files: dict[str, bytes]) -> dict:
    """The metadata of a card."""
    card = files.get(CARD, b"").decode()
    return yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else {}


def entry(name: str, data: bytes) -> dict:
    """A line of a repository's tree."""
    out = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    if name.endswith(LARGE):
        out["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return out


@contextmanager
def served(monkeypatch, tmp_path) -> Iterator[Server]:
    """A Hub of our own, an empty cache, no token, no mirror; the working folder is `tmp_path`."""
    torch.set_num_threads(1)
    made = Server()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LCFBENCH_MIRROR", "LCFBENCH_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LCFBENCH_CACHE", str(tmp_path / "cache"))
    for name, value in {
        "ENDPOINT": made.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": made.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hub, "_down", {})
    monkeypatch.chdir(tmp_path)
    yield made
    made.http.shutdown()
    made.http.server_close()
