"""Learned against random initialization, with either pretext loss and both: equal steps, seeds.

    python benchmarks/volumetric_ablation.py --root=SEG3D --out=runs/lwi [--steps=600] [--seeds=3]
        [--data=covid_ct] [--network=unetr_pp] [--fold=1] [--arms=random,both,...] [--evals=3]
        [--set KEY=VALUE ...]

Every arm takes the same total number of optimizer steps of configs/lwi_vms/; with a pretext stage,
that stage takes a third of them. Runs follow each other, seed by seed; a finished run is skipped,
an interrupted one resumes. After each, writes OUT/table.md (mean and standard deviation over seeds
of Dice and HD95 on held-out patients, and the time of a step), OUT/runs.csv, and OUT/curves.html
(Dice over the steps of both stages). Overlays are in the report of every run.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]

import ablation
from ablation import Row, grouped

from unimed_jax.reporting import charts, html_report

LEARNED_SHARE = 1 / 3

# arm -> weights of the losses of the pretext stage; None: no pretext stage
ARMS: Mapping[str, Mapping[str, float] | None] = {
    "random": None,
    "both": {"permutation": 1.0, "reconstruction": 1.0},
    "permutation": {"permutation": 1.0, "reconstruction": 0.0},
    "reconstruction": {"permutation": 0.0, "reconstruction": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="", help="folder of the 3-D sets; phantoms need none")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="covid_ct")
    parser.add_argument("--network", default="unetr_pp")
    parser.add_argument("--fold", default="", help="of a data set with several folds")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--evals", type=int, default=3, help="evaluations during the second stage")
    parser.add_argument("--variant", default="", help="more of the recipe's variant: smoke")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the config")
    args = parser.parse_args()
    scores: list[Row] = []
    curves: list[Row] = []
    for seed in range(args.seeds):
        for arm in args.arms.split(","):
            workdir = args.out / f"{arm}_{seed}"
            print(f"== {arm}, seed {seed}", flush=True)
            train(args, arm, seed, workdir)
            scores += read_scores(arm, seed, workdir)
            curves += read_curves(arm, seed, workdir, first_steps(args, arm))
            write(args.out, scores, curves)


def first_steps(args: argparse.Namespace, arm: str) -> int:
    """Steps of the first stage."""
    return round(args.steps * LEARNED_SHARE) if ARMS[arm] else 0


def train(args: argparse.Namespace, arm: str, seed: int, workdir: Path) -> None:
    weights, first = ARMS[arm], first_steps(args, arm)
    init = "learned" if weights else "random"
    arguments = [f"network={args.network}", f"init={init}"]
    if args.fold:
        arguments.append(f"fold={args.fold}")
    steps = args.steps - first
    settings = {
        "data.root": args.root,
        "seed": str(seed),
        "num_train_steps": str(steps),
        "eval_every_steps": str(-(-steps // args.evals)),
        "checkpoint.every_steps": str(max(steps // 4, 1)),
        **({"stages.init.num_train_steps": str(first)} if weights else {}),
        **{
            f"stages.init.pretext.loss_weights.{term}": str(value)
            for term, value in (weights or {}).items()
        },
    }
    variant = ",".join([*arguments, *filter(None, [args.variant])])
    # a short run is longer in the compiler than in its steps, which become no slower by this
    compiler = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1".strip()
    flags = {"XLA_FLAGS": compiler}
    ablation.train(f"configs/lwi_vms/{args.data}.py:{variant}", settings, args.set, workdir, flags)


def read_scores(arm: str, seed: int, workdir: Path) -> Iterable[Row]:
    """A row per class of one run."""
    results = json.loads((workdir / "results.json").read_text())
    for key, dice in results.items():
        name = key.removeprefix("segmentation/").removesuffix("/dice")
        if key != f"segmentation/{name}/dice" or name == "mean":
            continue
        yield {
            "class": name,
            "arm": arm,
            "seed": seed,
            "dice": dice,
            "hd95_mm": results[f"segmentation/{name}/hd95_mm"],
            "step_seconds": ablation.step_seconds(workdir),
        }


def read_curves(arm: str, seed: int, workdir: Path, offset: int) -> Iterable[Row]:
    """A row per evaluation; steps count from the beginning of the first stage."""
    for row in ablation.metrics_of(workdir):
        for key, value in row.items():
            if key.endswith("/dice") and not key.endswith("/mean/dice"):
                name = key.split("/")[1]
                yield {"class": name, "arm": arm, "seed": seed,
                       "step": offset + int(row["step"]), "dice": value}  # fmt: skip


def write(out: Path, scores: Sequence[Row], curves: Sequence[Row]) -> None:
    ablation.write_rows(out / "runs.csv", scores)
    lines = [
        "| class | weights | seeds | Dice | HD95, mm | s / step |",
        "|---|---|---|---|---|---|",
    ]
    for (name, arm), rows in in_order(scores, ("class", "arm")).items():
        seconds = statistics.median(float(row["step_seconds"]) for row in rows)
        lines.append(
            f"| {name} | {arm} | {len(rows)} | {ablation.spread(rows, 'dice', 3)} | "
            f"{ablation.spread(rows, 'hd95_mm', 1)} | {seconds:.2f} |"
        )
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sections = []
    for (name,), rows in in_order(curves, ("class",)).items():
        series = {
            str(arm): [
                (float(step), statistics.mean(float(r["dice"]) for r in at))
                for (step,), at in in_order(own, ("step",)).items()
            ]
            for (arm,), own in in_order(rows, ("arm",)).items()
        }
        chart = charts.line_chart(series, (0.0, 1.0))
        sections.append(
            html_report.Section(f"Dice, {name}", html_report.legend(list(series)) + chart)
        )
    html_report.write_report(out / "curves.html", "Dice over all steps, mean over seeds", sections)


def in_order(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[object, ...], list[Row]]:
    return dict(sorted(grouped(rows, keys).items(), key=lambda item: item[0]))


if __name__ == "__main__":
    main()
