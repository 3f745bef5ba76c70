"""Image-text retrieval on the original captions of a converted corpus."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict
from scipy.sparse import csr_array

from input_pipeline.io.errors import UserError
from unimed_jax.evals.embeddings import CorpusEmbedder, SampleMetadata
from unimed_jax.reporting import html_report
from unimed_jax.training.task import Evaluation, Params

Array = np.ndarray

_TIE = 1e-9  # cosines that are closer are equal
_ROWS, _COLUMNS = 1024, 8192  # similarities held at a time
_DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


class Retrieval:
    """Evaluator ``kind='retrieval'``: recall at k from images to texts and from texts to images.

    The texts are the distinct captions of the split's samples; a text matches every image that has
    it. A query is a hit at k if one of its matches is among the k candidates of highest cosine;
    others of equal cosine are ranked higher, so that constant embeddings score nothing.
    """

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "path": ".",  # corpus directory, relative to data.root
        "split": "val",
        "source": "",  # the only source; empty: all
        "captions": "own",  # original captions; or "all", with those made from labels
        "k": (1, 5, 10),
        "batch_size": 64,  # images or texts per device and step
    }

    CHOICES: Mapping[str, Sequence[str]] = {"captions": ("own", "all")}

    def __init__(self, name: str, settings: ConfigDict, embedder: CorpusEmbedder) -> None:
        """Reads the manifest. Raises CorpusError if it is not what it should be."""
        del name
        self._settings, self._embedder = settings, embedder
        self._split = embedder.split(settings.path, settings.split)

    def __call__(self, params: Params) -> Evaluation:
        settings = self._settings
        embeddings = self._embedder.images(params, self._split, settings.batch_size)
        captions = [self._captions(sample) for sample in embeddings.samples]
        queries = [i for i, texts in enumerate(captions) if texts]
        if not queries:
            raise UserError(
                f"retrieval: no sample of split {self._split.name!r} of {self._split.directory} "
                "has an original caption; captions='all' adds those made from labels"
            )
        texts = {
            text: j for j, text in enumerate(dict.fromkeys(t for i in queries for t in captions[i]))
        }
        image_to_text = csr_array(
            (
                np.ones(sum(len(captions[i]) for i in queries), bool),
                [texts[t] for i in queries for t in captions[i]],
                np.cumsum([0, *(len(captions[i]) for i in queries)]),
            ),
            shape=(len(queries), len(texts)),
        )
        matches = {"image_to_text": image_to_text, "text_to_image": csr_array(image_to_text.T)}
        image_vectors = embeddings.vectors[queries]
        text_vectors = self._embedder.texts(params, tuple(texts), settings.batch_size)
        ranks = {
            "image_to_text": best_ranks(image_vectors, text_vectors, matches["image_to_text"]),
            "text_to_image": best_ranks(text_vectors, image_vectors, matches["text_to_image"]),
        }
        metrics: dict[str, float] = {
            "num_images": float(len(queries)),
            "num_texts": float(len(texts)),
            "num_left_out": float(len(captions) - len(queries) + len(embeddings.left_out)),
        }
        for name in _DIRECTIONS:
            for k in settings.k:
                metrics[f"{name}/recall@{k}"] = float(np.mean(ranks[name] <= k))
                metrics[f"{name}/chance@{k}"] = chance(matches[name], k)
            metrics[f"{name}/median_rank"] = float(np.median(ranks[name]))
        return Evaluation(
            metrics=metrics,
            headline=[
                f"{direction}/recall@{settings.k[0]}"
                for direction in ("image_to_text", "text_to_image")
            ],
            table=_table(metrics, settings.k),
            sections=lambda: [_section(metrics, settings.k)],
        )

    def _captions(self, sample: SampleMetadata) -> dict[str, None]:
        """The distinct captions of a sample that take part, in their order."""
        if self._settings.source not in ("", sample.source):
            return {}
        last = sample.num_original_captions if self._settings.captions == "own" else None
        return dict.fromkeys(text.strip() for text in sample.captions[:last])


def best_ranks(queries: Array, candidates: Array, matches: csr_array) -> Array:
    """Rank of the best match of each query, by cosine.

    Args:
      queries: (Q, E) unit vectors.
      candidates: (C, E) unit vectors.
      matches: (Q, C) bool, the candidates that match a query; at least one per row.

    Returns:
      (Q,) int64: 1 + the number of candidates that do not match the query and whose cosine is
      higher than, or equal to, that of its best match. At most _ROWS x _COLUMNS similarities are
      held at a time.
    """
    rows, columns = matches.nonzero()
    best = np.full(len(queries), -np.inf)
    for begin in range(0, len(rows), _ROWS):
        part = slice(begin, begin + _ROWS)
        left = queries[rows[part]].astype(np.float64)
        right = candidates[columns[part]].astype(np.float64)
        np.maximum.at(best, rows[part], (left * right).sum(1))
    ranks = np.ones(len(queries), np.int64)
    for top in range(0, len(queries), _ROWS):
        q = slice(top, top + _ROWS)
        for left in range(0, len(candidates), _COLUMNS):
            c = slice(left, left + _COLUMNS)
            cosines = queries[q].astype(np.float64) @ candidates[c].astype(np.float64).T
            cosines[matches[q, c].nonzero()] = -np.inf
            ranks[q] += (cosines >= best[q, None] - _TIE).sum(1)
    return ranks


def chance(matches: csr_array, k: int) -> float:
    """Expected recall at k of a random order: the mean of 1 - C(n - p, k) / C(n, k)."""
    num_candidates = matches.shape[1]
    positives = np.diff(matches.indptr)
    j = np.arange(min(k, num_candidates))[:, None]
    missed = np.clip((num_candidates - positives - j) / (num_candidates - j), 0, 1).prod(0)
    return float(np.mean(1 - missed))


def _table(metrics: Mapping[str, float], ks: Sequence[int]) -> str:
    rows = [["", *(f"R@{k}" for k in ks), "median rank", *(f"chance@{k}" for k in ks)]]
    for name, title in _DIRECTIONS.items():
        recalls, chances = (
            [f"{metrics[f'{name}/{kind}@{k}']:.3f}" for k in ks] for kind in ("recall", "chance")
        )
        rows.append([title, *recalls, f"{metrics[f'{name}/median_rank']:g}", *chances])
    return f"{html_report.text_table(rows)}\n{_counts(metrics)}"


def _counts(metrics: Mapping[str, float]) -> str:
    return (
        f"{metrics['num_images']:,.0f} images, {metrics['num_texts']:,.0f} distinct texts; "
        f"{metrics['num_left_out']:,.0f} images without a text, or unreadable, are left out"
    )


def _section(metrics: Mapping[str, float], ks: Sequence[int]) -> html_report.Section:
    rows = "".join(
        f'<tr><th scope="row">{title}</th><td>{k}</td>'
        "<td>"
        f"{html_report.meter(metrics[f'{name}/recall@{k}'], metrics[f'{name}/chance@{k}'])}"
        "</td>"
        f"<td>{metrics[f'{name}/chance@{k}']:.3f}</td></tr>"
        for name, title in _DIRECTIONS.items()
        for k in ks
    )
    ranks = ", ".join(
        f"{title} {metrics[f'{name}/median_rank']:g}" for name, title in _DIRECTIONS.items()
    )
    return html_report.Section(
        "Retrieval",
        '<div class="scroll"><table class="scores"><thead><tr><th>Direction</th><th>k</th>'
        '<th class="wide">Recall at k</th><th>Chance</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="note">{html.escape(_counts(metrics))}. Median rank: {ranks}. A text matches '
        "every image that has it; of equal cosines the wrong ones are ranked higher. The tick "
        "marks chance, the expected recall of a random order.</p>",
    )
