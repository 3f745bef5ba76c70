"""A small Hugging Face hub for tests: create, commit, list, download, on loopback.

It serves the real client (HF_ENDPOINT) without network. Files are part of the commit ("regular"
upload), as for small files in the real hub.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, dict[str, bytes]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        if self.headers.get("Authorization") != "Bearer hf_test":
            self._answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            request = json.loads(body)
            name = "/".join(filter(None, (request.get("organization"), request["name"])))
            self.repositories.setdefault(name, {})
            self._answer({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            self._answer({"files": files})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[found[1]][line["value"]["path"]] = content
            url = f"http://{self.headers['Host']}/{found[1]}/commit/{_COMMIT}"
            self._answer({"success": True, "commitOid": _COMMIT, "commitUrl": url})
        else:
            self._answer({})  # the check of the model card's header

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree/.+|/revision/.+|)", path)
        download = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if listing and listing[1] in self.repositories:
            files = self.repositories[listing[1]]
            if listing[2].startswith("/tree"):
                self._answer([_describe(name, files[name]) for name in files])
            else:
                siblings = [{"rfilename": name} for name in files]
                self._answer({"id": listing[1], "sha": _COMMIT, "siblings": siblings})
        elif download and download[2] in self.repositories.get(download[1], {}):
            content = self.repositories[download[1]][download[2]]
            self._answer(content, ETag=f'"{_digest(content)}"', X_Repo_Commit=_COMMIT)
        else:
            kind = "EntryNotFound" if download else "RepoNotFound"
            self._answer({"error": kind}, 404, X_Error_Code=kind)

    do_HEAD = do_GET


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _describe(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}


@contextlib.contextmanager
def hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """(its address, its repositories: name -> file -> content)."""
    repositories: dict[str, dict[str, bytes]] = {}
    handler = type("Handler", (_Handler,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories
    finally:
        server.shutdown()
