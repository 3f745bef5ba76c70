"""The model card of an exported checkpoint: what it is, how to open it, how good it is."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.conversion.unimed_parts import PARTS
from unimed_jax.models.config import ModelConfig
from unimed_jax.version import __version__
from unimed_jax.weights.pretrained import Pretrained

_TEMPLATE = """\
---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags: [clip, medical, unimed_jax]
---

# {name}

A medical CLIP: {visual}, with a BERT of {text.layers} layers of width {text.width}, embeddings of
{config.embed_dim}. Exported by unimed_jax {version} from {source}.

For research. It is no medical device, and its probabilities are no diagnoses.

## Opening it

```python
import json, open_clip
d = "DIR"  # where this file is
text = json.load(open(f"{{d}}/open_clip_config.json"))["model_cfg"]["text_cfg"]
text["hf_model_name"] = d  # open_clip looks BERT's configuration up by a path
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{d}}", text_cfg=text)
tokenizer = open_clip.get_tokenizer(f"local-dir:{{d}}")
```

In JAX: `unimed_jax.load("DIR")`.

## Evaluation

{scores}
{average}
## Data

{data}

## Configuration

```json
{model}
```
"""


def text(pretrained: Pretrained, config: ModelConfig, out: Path) -> str:
    """The content of README.md.

    Args:
        pretrained: the weights; `record` describes their training.
        config: the config of the model.
        out: the final directory of the export.
    """
    visual = config.visual
    return _TEMPLATE.format(
        name=out.name,
        visual=f"a vision transformer of {visual.layers} layers of width {visual.width}, "
        f"patch {visual.patch_size} at {visual.image_size} px",
        text=config.text,
        config=config,
        version=__version__,
        source=_source(pretrained),
        scores=_scores(pretrained.record.get("scores", {})),
        average=_average(pretrained.record.get("average", {})),
        data=_data(pretrained.record.get("config", {})),
        model=json.dumps(dataclasses.asdict(config), indent=2),
    )


def _source(pretrained: Pretrained) -> str:
    record = pretrained.record
    if record.get("average"):
        return "an average of checkpoints, described below"
    if "step" in record:
        run = f"step {record['step']} of a training run"
        decay = record["config"]["optimizer"].get("ema_decay", 0.0)
        if record["weights"] == "ema":
            return f"{run}: the moving average of its weights (EMA, decay {decay:g})"
        return f"{run}: its newest weights, not their moving average" if decay else run
    return f"`{Path(pretrained.source).name}` ({pretrained.kind})"


def _scores(scores: Mapping[str, float]) -> str:
    """A table of the evaluators' metrics, one row per task."""
    rows: dict[str, dict[str, float]] = {}
    for key, value in scores.items():
        task, _, metric = key.rpartition("/")
        if task:
            rows.setdefault(task, {})[metric] = value
    if not rows:
        return "This checkpoint was not evaluated."
    columns = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    lines = [f"| task | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for task, row in rows.items():
        cells = (f"{row[column]:.4g}" if column in row else "" for column in columns)
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


_METHODS = {
    "uniform": "The uniform average of checkpoints (arXiv 1803.05407, 2209.14981).",
    "greedy": "A greedy soup of checkpoints (arXiv 2203.05482): the best one, and every other one "
    "that did not lower the score of the average.",
    "wise_ft": "An average of the weights that a run started from and what it became (WiSE-FT, "
    "arXiv 2109.01903).",
}


def _average(average: Mapping[str, Any]) -> str:
    """The section on what the weights are an average of, and by which scores; "" if of nothing."""
    if not average:
        return ""
    lines = ["", "## Average", "", _METHODS[average["method"]], ""]
    lines += ["| share | weights | SHA-256 |", "|---|---|---|"]
    terms = [*([average["start"]] if "start" in average else []), *average["inputs"]]
    for term in terms:
        lines.append(f"| {term['share']:.4g} | {term['name']} | `{term['sha256']}` |")
    evaluation = average.get("evaluation")
    if evaluation is None:
        return "\n".join([*lines, "", "No evaluation was made of it.", ""])
    corpora = [f"`{corpus['name']}`" for corpus in evaluation["corpora"].values()]
    where = f"split {', '.join(evaluation['splits'])} of "
    metrics = evaluation["metrics"]
    mean = f", the mean of {len(metrics)} metrics" if len(metrics) > 1 else ""
    lines += [
        "",
        f"Chosen by `{evaluation['metric']}`{mean}, on {where}{', '.join(corpora)}. Scores on data "
        "that chose them are too high; measure the model on other data.",
        "",
        "| candidate | score | taken |",
        "|---|---|---|",
    ]
    for row in evaluation["candidates"]:
        lines.append(f"| {row['name']} | {row['score']:.4g} | {'yes' if row['taken'] else ''} |")
    return "\n".join([*lines, ""])


def _data(config: Mapping[str, Any]) -> str:
    sources = config.get("data", {}).get("sources", {})
    if not sources:
        return "What it was trained on is not recorded in the weights; see their source."
    lines = ["Trained on these sources; their licences bind the use of the weights as well:", ""]
    for name in sources:
        part = PARTS.get(name)
        lines.append(f"- `{name}`" + (f": {part.title}; {part.licence}" if part else ""))
    starts = {k: v for k, v in config.get("init", {}).items() if v and k != "expected"}
    if starts:
        lines += ["", "It started from: " + ", ".join(f"{k} `{v}`" for k, v in starts.items())]
    return "\n".join(lines)
