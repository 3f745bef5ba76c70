"""PubMed Central's open-data bucket on loopback: moto's S3 server behind a proxy with faults."""

import contextlib
import hashlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "pmc-oa-opendata"
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
INTERNAL = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>InternalError</Code>'
    b"<Message>We encountered an internal error.</Message></Error>"
)


@dataclass
class Server:
    """The server's state.

    Attributes:
      address: URL of the proxy.
      requests: (time of arrival, path with query) of every request.
      fault: path -> what to do instead of the right answer: `slow`, `error`, `cut`, `other`,
        `close`; or nothing.
      delay: seconds until a request is answered.
      most_at_once: of the requests.
    """

    address: str
    client: Any
    requests: list[tuple[float, str]] = field(default_factory=list)
    fault: Callable[[str], str | None] = lambda path: None
    delay: float = 0.0
    at_once: int = 0
    most_at_once: int = 0
    lock: Any = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": self.address,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def reset(self) -> None:
        """Empties the bucket and forgets everything."""
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for found in page.get("Contents", ()):
                self.client.delete_object(Bucket=BUCKET, Key=found["Key"])
        self.requests.clear()
        self.fault, self.delay, self.most_at_once = lambda path: None, 0.0, 0

    def put(self, key: str, content: bytes) -> str:
        """Puts an object; returns its URL as the metadata of articles have it."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content, ACL="public-read")
        return f"s3://{BUCKET}/{key}?md5={hashlib.md5(content).hexdigest()}"

    def put_article(
        self, article: str, media: dict[str, bytes], xml: str = "", version: int = 1, **facts: Any
    ) -> None:
        """Puts a version of an article, in the bucket's layout since 2026."""
        name = f"{article}.{version}"
        urls = [self.put(f"{name}/{file}", content) for file, content in media.items()]
        text = xml or "<article><body/></article>"
        described = {
            "pmcid": article,
            "version": version,
            "is_pmc_openaccess": True,
            "is_manuscript": False,
            "is_historical_ocr": False,
            "is_retracted": False,
            "license_code": "CC BY",
            "xml_url": self.put(f"{name}/{name}.xml", text.encode()),
            "text_url": self.put(f"{name}/{name}.txt", b"text"),
            "media_urls": urls,
            **facts,
        }
        for key in (f"{name}/{name}.json", f"metadata/{name}.json"):
            self.put(key, json.dumps(described).encode())

    def asked(self, part: str = "") -> list[str]:
        """Keys of the objects that were asked for, in order, if they contain a text."""
        paths = [path.partition("?")[0].removeprefix(f"/{BUCKET}") for _, path in self.requests]
        return [path.lstrip("/") for path in paths if part in path and path.strip("/")]


@contextlib.contextmanager
def pmc_server() -> Iterator[Server]:
    """A bucket on loopback; empty."""
    import boto3
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    client.create_bucket(Bucket=BUCKET)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None: ...

        def do_GET(self) -> None:
            with server.lock:
                server.requests.append((time.monotonic(), self.path))
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
                fault = server.fault(self.path)
            try:
                time.sleep(server.delay)
                self._answer(fault)
            finally:
                with server.lock:
                    server.at_once -= 1

        def _answer(self, fault: str | None) -> None:
            if fault in ("slow", "error"):
                body = SLOW_DOWN if fault == "slow" else INTERNAL
                self._send(503 if fault == "slow" else 500, {}, body, len(body))
                return
            if fault == "close":
                self.close_connection = True
                self.connection.close()
                return
            upstream = http.client.HTTPConnection(host, port)
            # as anonymous clients send it: no Authorization
            upstream.request("GET", self.path, headers={"Host": self.headers["Host"]})
            answer = upstream.getresponse()
            body = answer.read()
            headers = {"Content-Type": answer.getheader("Content-Type") or ""}
            size = len(body)
            if fault == "cut":
                body, self.close_connection = body[: size // 2], True
            elif fault == "other":
                body = bytes(size)
            self._send(answer.status, headers, body, size)
            upstream.close()

        def _send(self, status: int, headers: dict[str, str], body: bytes, size: int) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(size)}.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a killed client
                self.wfile.write(body)

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    server = Server(f"http://127.0.0.1:{proxy.server_port}", client)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()
