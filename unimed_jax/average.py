"""Averages the weights of checkpoints of one model: no training, and no cost at inference.

    unimed-jax average runs/a --last=3 --out=averages/a
    unimed-jax average runs/a runs/b runs/c --greedy --metric='zero_shot/*/balanced_accuracy' \\
        --out=averages/soup
    unimed-jax average runs/a --alpha=0,0.25,0.5,0.75,1 --metric=zero_shot/modality/balanced_accuracy \\
        --out=averages/wise

CHECKPOINT is a work directory or one folder below its checkpoints/. The average is uniform; or, with
--greedy, of those that raise a score (model soups); or, with --alpha, between the weights that the run
started from (0) and what it became (1) (WiSE-FT). --out is a directory that every command takes for a
run, and what it is made of and by which scores it was chosen stands in the model card that export
writes. More: docs/guides/weights.md.
"""  # noqa: E501

import argparse
import fnmatch
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from input_pipeline import manifest
from input_pipeline.io import cli, files
from input_pipeline.io.errors import UserError
from unimed_jax import config as config_lib
from unimed_jax import tasks
from unimed_jax.distributed import sharding
from unimed_jax.evals import registry
from unimed_jax.evals.failures import Failures
from unimed_jax.evals.results import evaluate, named_metrics
from unimed_jax.models.config import ModelConfig
from unimed_jax.training import data_location
from unimed_jax.training.task import Task
from unimed_jax.training.train_step import TrainStep, initial_state
from unimed_jax.weights import averaging, model_directory
from unimed_jax.weights.checkpoint import WEIGHTS, CheckpointReader, is_ours, make_meta
from unimed_jax.weights.loader import open_weights
from unimed_jax.weights.pretrained import part_of
from unimed_jax.weights.uri import resolve

# keys of a model in which runs may differ whose weights are averaged
_FREE_KEYS = (
    "model.compute_dtype",
    "model.logit_bias_init",
    "model.logit_scale_init",
    "model.text.bucket_groups",
    "model.text.buckets",
    "model.text.dropout",
    "model.visual.patch_dropout",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2: the input is invalid)."""
    args = _parser().parse_args(argv)
    return cli.run(lambda: _average(args))


def _average(args: argparse.Namespace) -> None:
    alphas = _alphas(args)
    if (args.greedy or len(alphas) > 1) and not args.metric:
        raise UserError("--greedy and several --alpha are chosen by a score: give --metric")
    if args.last < 0:
        raise UserError(f"--last={args.last}: expected a number of checkpoints, at least 1")
    out = args.out.absolute()
    files.require_free(out)  # before anything is evaluated
    inputs = _Inputs(args.checkpoints, args.last, args.weights)
    if args.greedy and len(inputs.readers) < 2:
        raise UserError("--greedy needs two checkpoints at least; see --last")
    judge = _Judge(inputs, args) if args.metric else None
    if args.greedy:
        assert judge
        params, shares, final = _greedy(inputs, judge)
    elif alphas:
        name, begun = _start(inputs, args.start)
        start = {"name": name, "sha256": averaging.sha256(begun)}
        params, shares, final = _interpolate(inputs, begun, alphas, judge)
    else:
        params, shares, final = _uniform(inputs, judge)
    recipe: dict[str, Any] = {
        "method": "greedy" if args.greedy else "wise_ft" if alphas else "uniform",
        "inputs": inputs.description(shares),
    }
    if alphas:
        recipe["start"] = start | {"share": 1 - math.fsum(shares)}
    if judge:
        recipe["evaluation"] = judge.description(final)
        recipe["scores"] = judge.rows[final][1]
    first = inputs.readers[0]
    meta = make_meta(first.config, first.meta["identity"]) | {"average": recipe}
    if inputs.parts is not None:
        meta["parts"] = list(inputs.parts)

    def save_assets(directory: Any) -> None:
        if inputs.parts is None or "text" in inputs.parts:
            inputs.task.save_assets(str(directory))

    model_directory.write(out, params, first.config, meta, save_assets)
    print(_summary(recipe, args.out))


def _alphas(args: argparse.Namespace) -> list[float]:
    if args.start and not args.alpha:
        raise UserError("--start needs --alpha, the share of the checkpoint")
    if args.greedy and args.alpha:
        raise UserError("--greedy and --alpha exclude each other: average twice")
    try:
        alphas = [float(value) for value in args.alpha.split(",")] if args.alpha else []
    except ValueError:
        alphas = [math.nan]
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise UserError(f"--alpha={args.alpha}: expected numbers of 0 to 1, such as 0.25,0.5")
    return alphas


# --- the checkpoints ------------------------------------------------------------------------------


class _Inputs:
    """The checkpoints that are averaged, all of one model.

    Attributes:
      readers: one per checkpoint.
      names: what they are called in the record: number, run, step, and weights.
      hashes: SHA-256 of the parameters that have been read, by index.
      parts: the parts of the model that they hold; None: all.
      task: of the first one's config.
      abstract: shapes and dtypes of the parameters.
    """

    def __init__(self, paths: Sequence[str], last: int, weights: str | None) -> None:
        self.readers: list[CheckpointReader] = []
        for path in paths:
            reader = CheckpointReader(resolve(path), weights=weights)
            steps = [reader.step]
            if last:
                steps = reader.steps[-last:]
                if len(steps) < last:
                    raise UserError(
                        f"--last={last}: {reader.workdir} has the checkpoints {reader.steps}; "
                        "config.checkpoint.keep says how many a run keeps"
                    )
            self.readers += [CheckpointReader(reader.workdir, step, weights) for step in steps]
        paths = [str(reader.path) for reader in self.readers]
        for path in paths:
            if paths.count(path) > 1:
                raise UserError(f"{path} is given twice")
        self.names = [
            f"{number}. {reader.workdir.name}, step {reader.step}"
            + (f" ({reader.weights})" if reader.holds_ema else "")
            for number, reader in enumerate(self.readers, 1)
        ]
        first = self.readers[0]
        for other in self.readers[1:]:
            _check_same_model(first, other)
        self.parts: tuple[str, ...] | None = first.meta.get("parts")
        self.task: Task = tasks.create(first.config, str(first.workdir))
        self.abstract = jax.eval_shape(self.task.init, jax.random.key(0))
        if self.parts is not None:
            self.abstract = {k: x for k, x in self.abstract.items() if part_of(k) in self.parts}
        self.hashes: dict[int, str] = {}

    def read(self, index: int) -> Any:
        """The parameters of a checkpoint, in host memory."""
        params = self.readers[index].params(self.abstract)
        if index not in self.hashes:
            self.hashes[index] = averaging.sha256(params)
        return params

    def terms(self, total: float = 1.0) -> Iterator[tuple[float, Any]]:
        """Equal shares of all checkpoints, which add up to ``total``."""
        for index in range(len(self.readers)):
            yield total / len(self.readers), self.read(index)

    def description(self, shares: Sequence[float]) -> list[dict[str, Any]]:
        """The checkpoints and their shares in an average, for the record."""
        return [
            {
                "name": self.names[index],
                "weights": reader.weights,
                "sha256": self.hashes[index],
                "share": share,
            }
            for index, (reader, share) in enumerate(zip(self.readers, shares, strict=True))
        ]


def _check_same_model(first: CheckpointReader, other: CheckpointReader) -> None:
    changed = [
        line
        for line in config_lib.differences(first.config, other.config)
        if line.startswith(("task: ", "model.")) and line.partition(":")[0] not in _FREE_KEYS
    ]
    for key in ("identity", "parts"):
        if first.meta.get(key) != other.meta.get(key):
            changed.append(f"{key}: {first.meta.get(key)} -> {other.meta.get(key)}")
    if changed:
        raise UserError(
            f"{other.path} is of another model than {first.path} ({'; '.join(changed)}); weights "
            "of one model can be averaged"
        )


def _start(inputs: _Inputs, uri: str) -> tuple[str, Any]:
    """The name and the parameters of what a run started from.

    Without a URI they are made again, by the seed and ``init`` of its config: the same to rounding,
    which depends on the mesh.
    """
    reader = inputs.readers[0]
    config = reader.config
    if uri:
        path = resolve(uri)
        if is_ours(path):
            begun = CheckpointReader(path)
            _check_same_model(reader, begun)
            return f"{begun.workdir.name}, step {begun.step}", begun.params(inputs.abstract)
        if config.task != "contrastive":
            raise UserError(f"--start={uri}: a run of {config.task} can start from its like alone")
        model_config = ModelConfig.from_mapping(config.model)
        name = path.name if files.to_path(uri).exists() else uri
        return name, open_weights(uri).params(inputs.abstract, model_config)
    if inputs.parts is not None:
        raise UserError(f"{reader.path} was imported, not trained: give --start")
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.local_devices()[:1])
    state = initial_state(inputs.task, TrainStep(inputs.task, config, 1, mesh))
    return "the start of the run", jax.device_get(state["params"])


# --- the scores -----------------------------------------------------------------------------------


class _Judge:
    """Scores parameters on a corpus.

    Attributes:
      rows: name of a candidate -> its score and all metrics, in the order of evaluation.
    """

    def __init__(self, inputs: _Inputs, args: argparse.Namespace) -> None:
        config, workdir = inputs.readers[0].config, str(inputs.readers[0].workdir)
        if args.data:
            config.data.root = args.data
        valid = tasks.task_class(config.task).evaluator_classes
        registry.choose(config, valid, args.evals.split(",") if args.evals else [], args.prompts)
        for key, value in map(config_lib.parse_assignment, args.set):
            config_lib.assign(config, key, value)
        self._metric: str = args.metric
        self._config, self._root = config, data_location.prepare(config, workdir)
        task = tasks.create(config, workdir)
        mesh = sharding.make_mesh({"data": jax.device_count(), "fsdp": 1, "tensor": 1})
        self._evaluators, self._abstract = task.evaluators(mesh), inputs.abstract
        state = {"params": inputs.abstract}
        self._shardings = sharding.state_shardings(state, task.parameter_axes, mesh)["params"]
        self.rows: dict[str, tuple[float, Mapping[str, float]]] = {}

    def __call__(self, name: str, params: Any) -> float:
        """The mean of the metrics that ``--metric`` names; ``name`` is that of the candidate."""
        params = averaging.cast(params, self._abstract)
        failures = Failures()
        placed = sharding.place_like(params, self._shardings)
        metrics = named_metrics(evaluate(self._evaluators, placed, failures))
        if failures.reasons:
            raise UserError("; ".join(f"{n}: {why}" for n, why in failures.reasons.items()))
        chosen = fnmatch.filter(metrics, self._metric)
        if not chosen:
            raise UserError(f"--metric={self._metric} is none of: {', '.join(metrics)}")
        score = math.fsum(metrics[metric] for metric in chosen) / len(chosen)
        if not math.isfinite(score):
            raise UserError(f"{name}: {self._metric} is {score}")
        defined = {key: float(x) for key, x in metrics.items() if math.isfinite(x)}
        self.rows[name] = (score, defined)
        print(f"{name}: {self._metric} {score:.4f}", flush=True)
        return score

    def description(self, final: str) -> dict[str, Any]:
        """What was scored on what, for the record; ``final`` is the candidate that was taken."""
        evaluators = json.loads(config_lib.to_json(self._config))["evals"]
        paths = {path: files.under(self._root, path) for path in _values(evaluators, "path")}
        corpora = {p: f for p, f in paths.items() if (f / manifest.FILE_NAME).is_file()}
        splits = {*_values(evaluators, "split")}.union(*_values(evaluators, "splits"))
        return {
            "metric": self._metric,
            "metrics": fnmatch.filter(self.rows[final][1], self._metric),
            "evaluators": evaluators,
            "corpora": {
                path: {"name": folder.name, "sha256": manifest.load(folder).fingerprint}
                for path, folder in sorted(corpora.items())
            },
            "splits": sorted(splits),
            "candidates": [
                {"name": name, "score": score, "taken": name == final}
                for name, (score, _) in self.rows.items()
            ],
        }


def _values(settings: Mapping[str, Any], key: str) -> Iterator[Any]:
    """The values of a key in nested settings."""
    for name, value in settings.items():
        if name == key:
            yield value
        elif isinstance(value, Mapping):
            yield from _values(value, key)


# --- the averages ---------------------------------------------------------------------------------

_Averaged = tuple[Any, list[float], str]  # parameters, share of every input, name in _Judge.rows


def _uniform(inputs: _Inputs, judge: _Judge | None) -> _Averaged:
    count = len(inputs.readers)
    params = averaging.cast(averaging.combine(inputs.terms()), inputs.abstract)
    name = "the average"
    if judge:
        for index, alone in enumerate(inputs.names):
            judge(alone, inputs.read(index))
        judge(name, params)
    return params, [1 / count] * count, name


def _interpolate(
    inputs: _Inputs, begun: Any, alphas: Sequence[float], judge: _Judge | None
) -> _Averaged:
    tuned = averaging.combine(inputs.terms())

    def at(alpha: float) -> Any:
        mixed = averaging.combine([(1 - alpha, begun), (alpha, tuned)])
        return averaging.cast(mixed, inputs.abstract)

    best = alphas[0]
    if judge:
        scores = {alpha: judge(f"alpha {alpha:g}", at(alpha)) for alpha in alphas}
        best = max(scores, key=lambda alpha: scores[alpha])
    count = len(inputs.readers)
    return at(best), [best / count] * count, f"alpha {best:g}"


def _greedy(inputs: _Inputs, judge: _Judge) -> _Averaged:
    scores = [judge(name, inputs.read(index)) for index, name in enumerate(inputs.names)]

    def with_candidate(index: int) -> str:
        return f"soup with {inputs.names[index]}"

    soup = averaging.greedy_soup(
        scores, inputs.read, lambda params, index: judge(with_candidate(index), params)
    )
    last = soup.chosen[-1]
    final = with_candidate(last) if len(soup.chosen) > 1 else inputs.names[last]
    share = 1 / len(soup.chosen)
    shares = [share if index in soup.chosen else 0.0 for index in range(len(scores))]
    return averaging.cast(soup.params, inputs.abstract), shares, final


def _summary(recipe: Mapping[str, Any], out: files.AnyPath) -> str:
    terms = [*recipe["inputs"], *([recipe["start"]] if "start" in recipe else [])]
    made_of = ", ".join(f"{term['share']:.3g} x [{term['name']}]" for term in terms)
    return f"{recipe['method']}: {made_of} -> {out}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoints", metavar="CHECKPOINT", nargs="+", help="work directory, or one checkpoint")
    add("--out", type=files.flag, required=True, help="directory to write")
    add("--last", type=int, default=0, metavar="N", help="the newest N of every work directory")
    add("--weights", choices=WEIGHTS, help="of runs with optimizer.ema_decay (ema)")
    add("--greedy", action="store_true", help="a greedy soup")
    add("--alpha", default="", metavar="A,B", help="share of the checkpoint beside its start")
    add("--start", default="", metavar="URI", help="weights for --alpha 0 (the start of the run)")
    add("--metric", default="", help="score, higher is better; of several (with *) the mean")
    add("--data", default="", help="corpus root in place of the run's")
    add("--evals", default="", metavar="A,B", help="evaluators in place of the config's")
    add("--prompts", default="", help="prompt set for every evaluator")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config; repeatable")
    return parser


if __name__ == "__main__":
    sys.exit(main())
