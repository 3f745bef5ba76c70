"""A small Google Cloud Storage server for tests, on loopback: buckets in memory, real clients.

Three clients use it: gcsfs (STORAGE_EMULATOR_HOST), tensorstore, which writes the arrays of
checkpoints (TENSORSTORE_GCS_HTTP_URL), and TensorFlow, whose Google
addresses are fixed but which uses a proxy (https_proxy): the server is that proxy as well, responds
for Google's hosts with its certificate (CURL_CA_BUNDLE), and refuses every other host.

As with Google, an object appears when its upload ends, and not at all if the client dies; a prefix
is not a directory; ifGenerationMatch is obeyed.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import re
import ssl
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import google_crc32c
import trustme

_HOSTS = ("storage.googleapis.com", "www.googleapis.com")


@dataclass
class Storage:
    """State and requests of the server: `objects` is name -> content of one bucket."""

    address: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    uploads: dict[str, tuple[str, str, bytearray]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    refused_hosts: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    hold: Callable[[], bool] | None = None  # uploads wait, unread, while it says so
    held: threading.Event = field(default_factory=threading.Event)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    lock: Any = field(default_factory=threading.RLock)

    def put(self, name: str, content: bytes, generation_match: str = "") -> bool:
        """Replaces an object at once; False if it is not of the generation that it must have."""
        with self.lock:
            if generation_match and int(generation_match) != self.generations.get(name, 0):
                return False
            self.objects[name] = bytes(content)
            self.generations[name] = next(self.numbers)
            return True

    def put_folder(self, folder: Path, prefix: str) -> None:
        """Copies a local folder into the bucket."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def below(self, prefix: str) -> dict[str, bytes]:
        """The objects whose names begin with a prefix, by the rest of their names."""
        with self.lock:
            found = {k: v for k, v in self.objects.items() if k.startswith(prefix)}
        return {name.removeprefix(prefix): content for name, content in sorted(found.items())}


class _Handler(BaseHTTPRequestHandler):
    storage: Storage
    bucket: str
    tls: ssl.SSLContext
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    # --- the proxy --------------------------------------------------------------------------------

    def do_CONNECT(self) -> None:
        host = self.path.partition(":")[0]
        if host not in _HOSTS:
            self.storage.refused_hosts.append(host)
            self._answer(b"", 403)
            return
        self.send_response(200)
        self.end_headers()
        self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    # --- answers ----------------------------------------------------------------------------------

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, message: str) -> None:
        self._answer({"error": {"code": status, "message": message}}, status)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        size = int(self.headers.get("Content-Length") or 0)
        if len(body := self.rfile.read(size)) < size:
            raise ConnectionResetError("the client went away")
        return body

    def _resource(self, name: str) -> dict[str, Any]:
        content = self.storage.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket,
            "size": str(len(content)),
            "generation": str(self.storage.generations[name]),
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "crc32c": base64.b64encode(google_crc32c.Checksum(content).digest()).decode(),
        }

    # --- requests ---------------------------------------------------------------------------------

    def _handle(self) -> None:
        if self.path.startswith("/upload"):
            while self.storage.hold and self.storage.hold():
                self.storage.held.set()
                time.sleep(0.01)
        self._request_body = self._body()
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        self.storage.requests.append(f"{self.command} {self.path}")
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(/o)?(?:/(.+))?", url.path)
        if found:
            kind, bucket, listing, rest = found.groups()
        else:  # the XML API, by which TensorFlow reads
            kind, listing = "/xml", "/o"
            bucket, _, rest = url.path.removeprefix("/").partition("/")
        bucket = urllib.parse.unquote(bucket)
        with self.storage.lock:
            if bucket != self.bucket:
                self._fail(404, f"The specified bucket does not exist: {bucket}")
            elif kind == "/upload":
                self._upload(query)
            elif not listing and not rest:
                self._answer({"kind": "storage#bucket", "name": bucket, "location": "US"})
            elif not rest:
                self._list(query)
            elif copied := re.fullmatch(r"(.+)/(?:rewriteTo|copyTo)/b/[^/]+/o/(.+)", rest):
                self._copy(*map(urllib.parse.unquote, copied.groups()), query)
            else:
                media = kind in ("/xml", "/download") or query.get("alt") == "media"
                self._object(urllib.parse.unquote(rest), media, query)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _object(self, name: str, media: bool, query: dict[str, str]) -> None:
        if self.command == "PUT":
            self.storage.put(name, self._request_body)
            self._answer(b"")
        elif name not in self.storage.objects:
            self._fail(404, f"No such object: {self.bucket}/{name}")
        elif self.command == "DELETE":
            match = query.get("ifGenerationMatch", "")
            if match and int(match) != self.storage.generations[name]:
                self._fail(412, "Precondition Failed")
                return
            del self.storage.objects[name], self.storage.generations[name]
            self._answer(b"", 204)
        elif not media:
            self._answer(self._resource(name))
        else:
            self._read(name)

    def _read(self, name: str) -> None:
        content, total = self.storage.objects[name], len(self.storage.objects[name])
        headers = {
            "ETag": '"x"',
            "x_goog_generation": str(self.storage.generations[name]),
            "x_goog_stored_content_length": str(total),
        }
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            self._answer(content, **headers)
            return
        if span[1]:
            begin, end = int(span[1]), min(int(span[2] or total - 1), total - 1)
        else:
            begin, end = max(total - int(span[2]), 0), total - 1
        if begin >= total:
            self._answer(b"", 416, Content_Range=f"bytes */{total}")
            return
        headers["Content_Range"] = f"bytes {begin}-{end}/{total}"
        self._answer(content[begin : end + 1], 206, **headers)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, end = query.get("startOffset", ""), query.get("endOffset", "")
        entries: dict[str, bool] = {}  # name -> whether it is a prefix
        for name in sorted(self.storage.objects):
            if not name.startswith(prefix) or name < first or (end and name >= end):
                continue
            head, found, _ = name.removeprefix(prefix).partition(delimiter or "\0")
            entries[prefix + head + delimiter if found else name] = bool(found)
        token, limit = query.get("pageToken", ""), int(query.get("maxResults", 1000))
        rest = [name for name in entries if name > token]
        page = {
            "kind": "storage#objects",
            "items": [self._resource(name) for name in rest[:limit] if not entries[name]],
            "prefixes": [name for name in rest[:limit] if entries[name]],
        }
        if len(rest) > limit:
            page["nextPageToken"] = rest[limit - 1]
        self._answer({key: value for key, value in page.items() if value})

    def _copy(self, source: str, target: str, query: dict[str, str]) -> None:
        if source not in self.storage.objects:
            self._fail(404, f"No such object: {self.bucket}/{source}")
            return
        self._stored(target, self.storage.objects[source], query, done=True)

    def _stored(self, name: str, content: bytes, query: dict[str, str], done: bool = False) -> None:
        if not self.storage.put(name, content, query.get("ifGenerationMatch", "")):
            self._fail(412, "At least one of the pre-conditions you specified did not hold.")
            return
        resource = self._resource(name)
        self._answer({"done": True, "resource": resource} if done else resource)

    def _upload(self, query: dict[str, str]) -> None:
        body, kind = self._request_body, query.get("uploadType", "")
        if key := query.get("upload_id"):
            self._continue(key, body, query)
        elif kind == "media":
            self._stored(query["name"], body, query)
        elif kind == "multipart":
            boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, head, rest = body.split(b"--" + boundary, 2)
            name = json.loads(re.split(rb"\r?\n\r?\n", head, maxsplit=1)[1])["name"]
            content = re.split(rb"\r?\n\r?\n", rest, maxsplit=1)[1]
            content = re.sub(rb"\r?\n--" + re.escape(boundary) + rb"--\s*\Z", b"", content)
            self._stored(name, content, query)
        else:  # resumable
            name = query.get("name") or json.loads(body)["name"]
            key = str(next(self.storage.numbers))
            match = query.get("ifGenerationMatch", "")
            self.storage.uploads[key] = (name, match, bytearray())
            host = f"{'https' if isinstance(self.connection, ssl.SSLSocket) else 'http'}://"
            host += self.headers["Host"]
            location = f"{host}/upload/storage/v1/b/{self.bucket}/o?upload_id={key}"
            self._answer(b"", Location=location)

    def _continue(self, key: str, body: bytes, query: dict[str, str]) -> None:
        name, match, received = self.storage.uploads[key]
        span = re.fullmatch(
            r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range", "")
        )
        if span is None or span[1] is not None:
            del received[int(span[1]) if span else 0 :]
            received += body
        if span is None or (span[3] != "*" and int(span[3]) == len(received)):
            del self.storage.uploads[key]
            self._stored(name, bytes(received), {"ifGenerationMatch": match})
            return
        so_far = {"Range": f"bytes=0-{len(received) - 1}"} if received else {}
        self._answer(b"", 308, **so_far)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients are killed, or lose interest
            super().handle_error(request, client_address)


@contextlib.contextmanager
def storage_server(directory: Path, bucket: str = "bucket") -> Iterator[Storage]:
    """A server with one empty bucket; `directory` takes the certificate.

    `environment` of what it gives are the variables by which all three clients find it, and by
    which they look for no credentials elsewhere.
    """
    authority = trustme.CA()
    certificates = directory / "authority.pem"
    authority.cert_pem.write_to_path(str(certificates))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*_HOSTS).configure_cert(context)
    storage = Storage()
    names = {"storage": storage, "bucket": bucket, "tls": context}
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), names))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    storage.address = f"http://127.0.0.1:{server.server_port}"
    storage.environment = {
        "STORAGE_EMULATOR_HOST": storage.address,
        "TENSORSTORE_GCS_HTTP_URL": storage.address,
        "https_proxy": storage.address,
        "no_proxy": "localhost,127.0.0.1",  # gRPC, as between Beam's processes, knows proxies too
        "CURL_CA_BUNDLE": str(certificates),
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        "NO_GCE_CHECK": "true",
        # asks a gRPC service what kind the bucket is
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()
