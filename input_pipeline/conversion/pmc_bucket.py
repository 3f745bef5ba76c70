"""The open-data bucket of PubMed Central on S3, which holds the files of every article one by one.

PMC's FTP packages ended in August 2026. Since then, version V of article PMC123 is the folder
`PMC123.V/` of the bucket `pmc-oa-opendata`, and `metadata/PMC123.V.json` describes it: its terms,
and the URL of every file with its MD5 in the query (https://pmc.ncbi.nlm.nih.gov/tools/pmcaws/).
Access is anonymous. `AWS_ENDPOINT_URL_S3` in the environment names another server of the protocol.
"""

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import re
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from input_pipeline.io.errors import UserError

BUCKET = "pmc-oa-opendata"
_REGION = "us-east-1"
_ATTEMPTS = 4  # of an object whose body is cut off or has another checksum
_REQUEST_ATTEMPTS = 8  # of a request that the server refuses for now (500, 503 SlowDown, ...)
_CONNECT_SECONDS, _READ_SECONDS = 15, 60
_GONE = ("NoSuchKey", "404", "NotFound")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".tif", ".tiff", ".webp")  # the first is preferred
_HREF = "{http://www.w3.org/1999/xlink}href"


class Gone(Exception):
    """What is asked for is not in the bucket; the text says what, for the list of what is gone."""


class Unavailable(Exception):
    """The bucket did not deliver something that it should have, in spite of several attempts."""


@dataclasses.dataclass(frozen=True)
class Object:
    """A file of an article: its key, and its MD5 (hex), empty if unknown."""

    key: str
    md5: str

    @property
    def name(self) -> str:
        """The file name."""
        return self.key.rpartition("/")[2]


@dataclasses.dataclass(frozen=True)
class Article:
    """A version of an article.

    Attributes:
      version: `PMC123.1`.
      licence: as the metadata call it, such as `CC BY`.
      retracted: whether the article was retracted.
      xml: its text; None if there is none.
      media: its figures and supplements.
    """

    version: str
    licence: str
    retracted: bool
    xml: Object | None
    media: tuple[Object, ...]

    def figure(self, name: str) -> Object | None:
        """The image of a file name, whose suffix and case may have changed, or of its stem."""
        exact = [media for media in self.media if media.name == name]
        stem = pathlib.PurePosixPath(name).stem if is_image_name(name) else name
        ranked = {
            _SUFFIXES.index(found.suffix.lower()): media
            for media in reversed(self.media)
            if is_image_name(media.name)
            and (found := pathlib.PurePosixPath(media.name)).stem.lower() == stem.lower()
        }
        return exact[0] if exact else ranked.get(min(ranked, default=-1))


def is_image_name(name: str) -> bool:
    """Whether a name ends as those of images do."""
    return pathlib.PurePosixPath(name).suffix.lower() in _SUFFIXES


class Pacer:
    """Spaces calls evenly in time, over all threads: at most ``per_second`` of them."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._next = time.monotonic()
        self._lock = threading.Lock()
        self.calls = 0

    def wait(self, **_: Any) -> None:
        """Returns when the next call is due. Its keywords are those of botocore's events."""
        with self._lock:
            self.calls += 1
            now = time.monotonic()
            due = max(self._next, now)
            self._next = due + self._interval
        time.sleep(due - now)


class PmcBucket:
    """Reads articles; safe to use from several threads.

    Attributes:
      pacer: counts and spaces the requests, repeated ones as well.
    """

    def __init__(
        self, bucket: str = BUCKET, requests_per_second: float = 50, connections: int = 16
    ) -> None:
        """Opens the bucket. Raises UserError without boto3, or if the bucket cannot be listed."""
        if importlib.util.find_spec("boto3") is None:
            raise UserError("fetch pmc needs the package boto3: pip install 'unimed_jax[pmc]'")
        import boto3
        import botocore
        from botocore import exceptions

        self._errors = exceptions
        self._name = bucket
        self.pacer = Pacer(requests_per_second)
        self._client = boto3.session.Session().client(
            "s3",
            region_name=_REGION,
            config=botocore.config.Config(
                signature_version=botocore.UNSIGNED,
                max_pool_connections=connections,
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                # slows down when the server asks to
                retries={"mode": "adaptive", "total_max_attempts": _REQUEST_ATTEMPTS},
            ),
        )
        self._client.meta.events.register("before-send.s3", self.pacer.wait)
        try:
            self._client.list_objects_v2(Bucket=bucket, MaxKeys=1)
        except (exceptions.ClientError, exceptions.BotoCoreError) as error:
            raise UserError(f"cannot list s3://{bucket}: {error}; check the network") from error

    def versions(self, article: str) -> list[str]:
        """The versions of an article, `PMC123.2` before `PMC123.1`; empty if there are none."""
        versions: list[str] = []
        more: Mapping[str, str] = {}
        while True:
            page = self._call(
                self._client.list_objects_v2,
                Bucket=self._name,
                Prefix=f"{article}.",
                Delimiter="/",
                **more,
            )
            versions += [entry["Prefix"].rstrip("/") for entry in page.get("CommonPrefixes", ())]
            if not page.get("IsTruncated"):
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
        numbered = [v for v in versions if re.fullmatch(rf"{article}\.\d+", v)]
        return sorted(numbered, key=lambda version: -int(version.rpartition(".")[2]))

    def article(self, version: str) -> Article:
        """A version by its name. Raises Gone, Unavailable."""
        data = self.read(Object(f"metadata/{version}.json", ""))
        try:
            found = json.loads(data)
            xml = found.get("xml_url")
            return Article(
                version,
                str(found.get("license_code") or ""),
                found.get("is_retracted") is True,
                self._object(xml) if xml else None,
                tuple(map(self._object, found.get("media_urls") or ())),
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise Unavailable(
                f"metadata/{version}.json is not of the known form: {error}"
            ) from error

    def read(self, wanted: Object) -> bytes:
        """The bytes of an object, compared with its MD5. Raises Gone, Unavailable."""
        problem = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(0.25 * 2**attempt)
            response = self._call(self._client.get_object, Bucket=self._name, Key=wanted.key)
            try:
                data = response["Body"].read()
            except self._errors.BotoCoreError as error:  # the connection broke, or stood still
                problem = f"{wanted.key}: {error}"
                continue
            if not wanted.md5 or hashlib.md5(data, usedforsecurity=False).hexdigest() == wanted.md5:
                return data
            problem = f"{wanted.key}: {len(data)} bytes whose MD5 is not {wanted.md5}"
        raise Unavailable(problem)

    def _call(self, method: Any, **request: Any) -> Any:
        try:
            return method(**request)
        except self._errors.ClientError as error:
            if error.response.get("Error", {}).get("Code") in _GONE:
                raise Gone(f"{request.get('Key')} is not in the bucket") from error
            raise Unavailable(f"{request.get('Key') or request.get('Prefix')}: {error}") from error
        except self._errors.BotoCoreError as error:
            raise Unavailable(f"{request.get('Key') or request.get('Prefix')}: {error}") from error

    def _object(self, url: str) -> Object:
        """The object of `s3://BUCKET/KEY?md5=...`. Raises ValueError for another bucket."""
        location, _, query = url.partition("?")
        key = location.removeprefix(f"s3://{BUCKET}/")
        if key == location:
            raise ValueError(f"{url} is not in s3://{BUCKET}")
        return Object(key, dict(urllib.parse.parse_qsl(query)).get("md5", "").lower())


def figure_files(xml: bytes) -> dict[str, str]:
    """Id of a figure in the text of an article -> name of its graphic, often without a suffix.

    Raises ValueError for a text that is no XML.
    """
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"its XML cannot be read: {error}") from error
    found = {}
    for figure in root.iter("fig"):
        names = (graphic.get(_HREF) for graphic in figure.iter("graphic"))
        if (name := next(filter(None, names), None)) and (identity := figure.get("id")):
            found[identity] = name
    return found
