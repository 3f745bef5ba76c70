"""Caption providers: the grammar, or a language model behind an OpenAI-compatible endpoint."""

import dataclasses
import datetime
import itertools
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from input_pipeline.captioning import grammar, prompts
from input_pipeline.captioning.cache import Response, ResponseCache
from input_pipeline.captioning.label_sets import LabelSet
from input_pipeline.captioning.vocabulary import Vocabulary
from input_pipeline.io.errors import ConfigError, UserError

_SEEDS_PER_TURN = 1000  # more than any set has captions, so that turns do not share seeds


@dataclasses.dataclass(frozen=True)
class Proposal:
    """An unchecked caption and its origin; `time` is UTC, ISO 8601."""

    text: str
    seed: int
    time: str


class Provider(Protocol):
    """Proposes captions. Called from several threads."""

    name: str
    model: str
    prompt_version: str

    def propose(
        self, label_set: LabelSet, count: int, turn: int, refused: Mapping[str, str]
    ) -> Sequence[Proposal]:
        """About `count` captions; `refused` are those rejected in earlier turns, with reasons."""


def now() -> str:
    """UTC to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class TemplateProvider:
    """Captions from the grammar."""

    name = "template"
    model = ""

    def __init__(self, vocabulary: Vocabulary, seed: int, time: str | None = None) -> None:
        """`time` is that of the captions; None: now."""
        self.prompt_version = grammar.version()
        self._vocabulary = vocabulary
        self._seed = seed
        self._time = now() if time is None else time

    def propose(
        self, label_set: LabelSet, count: int, turn: int, refused: Mapping[str, str]
    ) -> Sequence[Proposal]:
        every = grammar.captions(label_set, self._vocabulary, self._seed)
        # Three times as many as requested: the checks reject few, and unused captions cost nothing.
        some = itertools.islice(every, 3 * count * turn, 3 * count * (turn + 1))
        return [Proposal(text, self._seed, self._time) for text in some]


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Settings of the requests to a model. `rate_limit`: requests per minute, 0 for none."""

    model: str
    base_url: str | None = None
    endpoint: str = "chat"
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    timeout: float = 120.0
    max_retries: int = 6
    rate_limit: float = 0.0


class ModelProvider:
    """Captions from a model behind an OpenAI-compatible endpoint, through the `openai` client.

    The client retries requests that time out, lose the connection, or return 408, 409, 429 or 5xx,
    with exponential back-off and according to the server's Retry-After. A request that still fails
    gives no captions and counts in `failed`; one that can never succeed ends the run.
    """

    name = "openai"

    def __init__(self, options: ModelOptions, cache: ResponseCache) -> None:
        """Raises ConfigError if the client is not installed or the endpoint is unknown."""
        try:
            import openai
        except ModuleNotFoundError as error:
            raise ConfigError(
                "--provider=openai needs the openai client: pip install 'unimed_jax[captions]'"
            ) from error
        if options.endpoint not in prompts.ENDPOINTS:
            raise ConfigError(f"endpoint {options.endpoint!r} unknown; valid: {prompts.ENDPOINTS}")
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=options.base_url,
            # local servers need no key, but the client requires one
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=options.timeout,
            max_retries=options.max_retries,
        )
        self.model = options.model
        self.prompt_version = prompts.version(options.endpoint)
        self._options = options
        self._cache = cache
        self._scope = (
            f"{self.prompt_version} {options.model} T={options.temperature} p={options.top_p}"
        )
        self._pace = _Pace(options.rate_limit)
        self._lock = threading.Lock()
        self.asked = self.cached = self.failed = self.prompt_tokens = self.answer_tokens = 0

    def first_requests(self, label_set: LabelSet, count: int) -> list[prompts.Request]:
        """The requests of the first turn, for an estimate of the cost."""
        return prompts.requests(self._options.endpoint, label_set, count, {}, self._options.seed)

    def is_cached(self, request: prompts.Request) -> bool:
        return self._cache.get(self._scope, request) is not None

    def propose(
        self, label_set: LabelSet, count: int, turn: int, refused: Mapping[str, str]
    ) -> Sequence[Proposal]:
        seed = self._options.seed + turn * _SEEDS_PER_TURN
        proposals = []
        for request in prompts.requests(self._options.endpoint, label_set, count, refused, seed):
            response = self._response(request)
            if response is not None:
                for text in prompts.captions(request, response.text):
                    proposals.append(Proposal(text, request.seed, response.time))
        return proposals

    def _response(self, request: prompts.Request) -> Response | None:
        cached = self._cache.get(self._scope, request)
        if cached is not None:
            with self._lock:
                self.cached += 1
            return cached
        self._pace.wait()
        try:
            response = self._ask(request)
        except (
            self._openai.APITimeoutError,
            self._openai.InternalServerError,
            self._openai.RateLimitError,
        ):
            with self._lock:
                self.failed += 1
            return None
        except self._openai.OpenAIError as error:
            where = self._options.base_url or "the default endpoint"
            raise UserError(
                f"{where}, model {self.model!r}: {error}; responses so far are cached, the same "
                "command continues"
            ) from error
        self._cache.put(self._scope, request, response)
        with self._lock:
            self.asked += 1
            self.prompt_tokens += response.prompt_tokens
            self.answer_tokens += response.answer_tokens
        return response

    def _ask(self, request: prompts.Request) -> Response:
        options = self._options
        text: str | None
        if request.endpoint == "chat":
            chat = self._client.chat.completions.create(
                messages=[
                    {"role": "system", "content": request.system},
                    {"role": "user", "content": request.text},
                ],
                model=options.model,
                max_tokens=request.max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                seed=request.seed,
            )
            text, usage = chat.choices[0].message.content if chat.choices else "", chat.usage
        else:
            completion = self._client.completions.create(
                prompt=request.text,
                stop=["\n"],
                model=options.model,
                max_tokens=request.max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                seed=request.seed,
            )
            text, usage = completion.choices[0].text if completion.choices else "", completion.usage
        return Response(
            text=text or "",
            time=now(),
            prompt_tokens=usage.prompt_tokens if usage else 0,
            answer_tokens=usage.completion_tokens if usage else 0,
        )


class _Pace:
    """Spaces calls evenly so that no more than `per_minute` begin in a minute."""

    def __init__(self, per_minute: float) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._interval
        time.sleep(max(0.0, start - time.monotonic()))
