"""The few answers of the Hugging Face Hub that reading a dataset's files takes, on loopback, from a local folder."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_REVISION = "0" * 40


class HubServer:
    """Serves `folder` as the dataset `name` ("org/name"), revision main. Starts at once; `stop` ends it."""

    def __init__(self, folder: Path, name: str) -> None:
        handler = type("Handler", (_Handler,), {"folder": folder, "name": name})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    name: str

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path in (f"/api/datasets/{self.name}", f"/api/datasets/{self.name}/revision/main"):
            self._send_json({"id": self.name, "sha": _REVISION, "siblings": [], "private": False})
        elif listed := re.fullmatch(f"/api/datasets/{self.name}/tree/main/?(.*)", path):
            self._send_tree(self.folder / listed[1], recursive="recursive=true" in self.path.lower())
        elif asked := re.fullmatch(f"/datasets/{self.name}/resolve/[^/]+/(.+)", path):
            self._send_file(self.folder / asked[1])
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send_tree(self, folder: Path, recursive: bool) -> None:
        if not folder.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        entries = sorted(folder.rglob("*") if recursive else folder.iterdir())
        self._send_json([self._describe(entry) for entry in entries])

    def _describe(self, entry: Path) -> dict:
        path = entry.relative_to(self.folder).as_posix()
        if entry.is_dir():
            return {"type": "directory", "oid": _REVISION, "size": 0, "path": path}
        return {"type": "file", "oid": _REVISION, "size": entry.stat().st_size, "path": path}

    def _send_file(self, file: Path) -> None:
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self._send(200, content, {})
            return
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        self._send(206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body)), "X-Repo-Commit": _REVISION}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""
