"""Model responses on disk, so that no request is sent, or paid for, twice."""

import contextlib
import dataclasses
import hashlib
import json
import sqlite3
import threading
from types import TracebackType

from input_pipeline.captioning.prompts import Request
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import PathLike, is_local, to_path


@dataclasses.dataclass(frozen=True)
class Response:
    """A model's response, its time (UTC, ISO 8601), and its cost in tokens."""

    text: str
    time: str
    prompt_tokens: int
    answer_tokens: int


class ResponseCache:
    """SQLite file of responses; each is on disk before it is used, so a killed run loses none.

    The key is a hash of everything that determines a response: prompt version, model, settings, and
    the request, which contains the label set, the rejected captions and the seed.
    """

    def __init__(self, path: PathLike) -> None:
        """Opens or creates the file, on a local disk. Raises CorpusError if it is not a cache."""
        path = to_path(path)
        if not is_local(path):
            raise CorpusError(f"the cache {path} must be on a local disk: give --cache=FILE")
        self._lock = threading.Lock()  # one connection serves the threads in turn
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(key TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL) STRICT"
            )
        except (OSError, sqlite3.Error) as error:
            raise CorpusError(f"cannot use the cache {path}: {error}") from error

    def __enter__(self) -> "ResponseCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def get(self, scope: str, request: Request) -> Response | None:
        """The response to a request; `scope` names prompt version, model and settings."""
        with self._lock:
            row = self._connection.execute(
                "SELECT answer FROM answers WHERE key = ?", (_key(scope, request),)
            ).fetchone()
        return Response(**json.loads(row[0])) if row else None

    def put(self, scope: str, request: Request, response: Response) -> None:
        """Stores a response."""
        texts = (json.dumps(dataclasses.asdict(part)) for part in (request, response))
        with self._lock:
            self._connection.execute(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (_key(scope, request), *texts)
            )


def _key(scope: str, request: Request) -> str:
    content = json.dumps([scope, dataclasses.astuple(request)], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()
