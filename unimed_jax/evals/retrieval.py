"""Image-text retrieval on the texts that people wrote for the images of a converted corpus."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.sparse import csr_array

from input_pipeline.io.errors import ConfigError, UserError
from unimed_jax.evals.embeddings import Features
from unimed_jax.reporting import html_report
from unimed_jax.training.task import Evaluation, Params

Array = np.ndarray

_TIE = 1e-9  # cosines that are closer are equal
_ROWS, _COLUMNS = 1024, 8192  # similarities held at a time
_CAPTIONS = ("own", "all")
_DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


class Retrieval:
    """Evaluator ``kind='retrieval'``: recall at k from images to texts and from texts to images.

    The texts are the distinct captions of the split's samples; a text belongs to every image that
    has it. A query is answered at k if one of those that belong to it is among the k of highest
    cosine; others of equal cosine count as higher, so that equal embeddings earn nothing.
    """

    DEFAULTS: Mapping[str, Any] = {
        "path": ".",  # of the corpus, relative to data.root
        "split": "val",
        "source": "",  # the only one; empty: all
        "captions": "own",  # written by people for the image; or "all", made of labels among them
        "k": (1, 5, 10),
        "batch_size": 64,  # images or texts per device and step
    }

    def __init__(self, settings: ConfigDict, features: Features) -> None:
        """Reads the manifest. Raises UserError if it or a setting is not what it should be."""
        if settings.captions not in _CAPTIONS:
            raise ConfigError(
                f"config.evals: captions={settings.captions!r}; valid: {', '.join(_CAPTIONS)}"
            )
        self._settings, self._features = settings, features
        self._split = features.split(settings.path, settings.split)

    def __call__(self, params: Params) -> Evaluation:
        settings = self._settings
        embedded = self._features.images(params, self._split, settings.batch_size)
        own = [
            dict.fromkeys(
                text.strip()
                for text in s.texts[: s.num_own_texts if settings.captions == "own" else None]
            )
            if settings.source in ("", s.source)
            else {}
            for s in embedded.samples
        ]
        queries = [i for i, texts in enumerate(own) if texts]
        if not queries:
            raise UserError(
                f"retrieval: no sample of split {self._split.name!r} of {self._split.directory} "
                "has a text of its own; captions='all' takes those made of labels"
            )
        texts = {
            text: j for j, text in enumerate(dict.fromkeys(t for i in queries for t in own[i]))
        }
        belongs = csr_array(
            (
                np.ones(sum(len(own[i]) for i in queries), bool),
                [texts[t] for i in queries for t in own[i]],
                np.cumsum([0, *(len(own[i]) for i in queries)]),
            ),
            shape=(len(queries), len(texts)),
        )
        images = embedded.embeddings[queries]
        captions = self._features.texts(params, tuple(texts), settings.batch_size)
        ranks = {
            "image_to_text": best_ranks(images, captions, belongs),
            "text_to_image": best_ranks(captions, images, csr_array(belongs.T)),
        }
        chances = {"image_to_text": belongs, "text_to_image": csr_array(belongs.T)}
        metrics: dict[str, float] = {
            "num_images": float(len(queries)),
            "num_texts": float(len(texts)),
            "num_left_out": float(len(own) - len(queries)),
        }
        for name in _DIRECTIONS:
            for k in settings.k:
                metrics[f"{name}/recall@{k}"] = float(np.mean(ranks[name] <= k))
                metrics[f"{name}/chance@{k}"] = chance(chances[name], k)
            metrics[f"{name}/median_rank"] = float(np.median(ranks[name]))
        return Evaluation(
            metrics=metrics,
            table=_table(metrics, settings.k),
            sections=lambda: [_section(metrics, settings.k)],
        )


def best_ranks(queries: Array, candidates: Array, belongs: csr_array) -> Array:
    """Rank of the best candidate that belongs to each query, by cosine.

    Args:
      queries: (Q, E) unit vectors.
      candidates: (C, E) unit vectors.
      belongs: (Q, C) bool; at least one per row.

    Returns:
      (Q,) int64: 1 + the number of candidates that do not belong to the query and whose cosine is
      higher than, or equal to, that of the best which does. At most _ROWS x _COLUMNS similarities
      are held at a time.
    """
    rows, columns = belongs.nonzero()
    own = np.full(len(queries), -np.inf)
    for begin in range(0, len(rows), _ROWS):
        part = slice(begin, begin + _ROWS)
        left = queries[rows[part]].astype(np.float64)
        right = candidates[columns[part]].astype(np.float64)
        np.maximum.at(own, rows[part], (left * right).sum(1))
    ranks = np.ones(len(queries), np.int64)
    for top in range(0, len(queries), _ROWS):
        q = slice(top, top + _ROWS)
        for left in range(0, len(candidates), _COLUMNS):
            c = slice(left, left + _COLUMNS)
            cosines = queries[q].astype(np.float64) @ candidates[c].astype(np.float64).T
            cosines[belongs[q, c].nonzero()] = -np.inf
            ranks[q] += (cosines >= own[q, None] - _TIE).sum(1)
    return ranks


def chance(belongs: csr_array, k: int) -> float:
    """Expected recall at k of a random order: the mean of 1 - C(n - p, k) / C(n, k)."""
    num_candidates = belongs.shape[1]
    positives = np.diff(belongs.indptr)
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
        f"{metrics['num_left_out']:,.0f} images without a text are left out"
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
        f'<p class="note">{html.escape(_counts(metrics))}. Median rank: {ranks}. A text belongs to '
        "every image that has it; of equal cosines the wrong ones count as higher. The tick marks "
        "chance, the expected recall of a random order.</p>",
    )
