"""A Hugging Face hub on loopback: folders as its models and data sets, by the part of its HTTP that clients use."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """What is served. A repository's commit is a digest of its files, and an older one is gone.

    Args:
        models, datasets: `owner/name` → folder.

    Attributes:
        asked: Method and path of each request so far.
    """

    def __init__(self, models: Mapping[str, Path], datasets: Mapping[str, Path]) -> None:
        self.repos = [("/api/models/", "/", models), ("/api/datasets/", "/datasets/", datasets)]
        self.asked: list[str] = []

    def answer(self, path: str, body: bytes) -> tuple[dict[str, str], bytes] | None:
        """Headers and content; None where there is nothing."""
        for about, files, folders in self.repos:
            for name, folder in folders.items():
                if path.startswith(f"{about}{name}"):
                    found = self.describe(name, folder, path.removeprefix(f"{about}{name}").strip("/"), body)
                    return None if found is None else ({"Content-Type": "application/json"}, json.dumps(found).encode())
                if path.startswith(f"{files}{name}/resolve/"):
                    file = folder / path.split("/resolve/", 1)[1].split("/", 1)[1]
                    if not file.is_file():
                        return None
                    data = file.read_bytes()
                    return {"ETag": f'"{digest(data)}"', "X-Repo-Commit": self.commit(folder)}, data
        return None

    def has(self, path: str) -> bool:
        """Whether the path is one of a repository that is served."""
        return any(
            path.startswith(f"{part}{name}/") for *parts, repos in self.repos for part in parts for name in repos
        )

    def commit(self, folder: Path) -> str:
        return digest(b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()))

    def describe(self, name: str, folder: Path, rest: str, body: bytes) -> Any:
        """A repository, or some of its files."""
        files = {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
        if rest.startswith(("tree/", "paths-info/")):
            wanted = json.loads(body)["paths"] if body else list(files)
            return [
                {"type": "file", "path": path, "size": len(data), "oid": digest(data)}
                for path, data in files.items()
                if path in wanted
            ]
        if rest and not rest.startswith("revision/"):
            return None
        return {"id": name, "sha": self.commit(folder), "siblings": [{"rfilename": path} for path in files], "tags": []}


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Its address, while it is up."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = hub.answer(path, body)
            headers, data = found or ({"X-Error-Code": "EntryNotFound" if hub.has(path) else "RepoNotFound"}, b"")
            self.send_response(200 if found else 404)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_HEAD = do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
