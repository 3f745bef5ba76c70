"""With and without text guidance and each augmentation: equal steps, several seeds, one table.

    python benchmarks/segmentation_ablation.py --root=SEG2D --out=runs/ablation [--steps=400]
        [--seeds=3] [--pairs=fundus_vessels:drive,...] [--arms=full,no_guidance,...]
        [--set KEY=VALUE ...]

Every arm sees the same images in the same order for the same number of optimizer steps of
configs/lg_sdg/. Runs follow each other; a finished run is skipped, an interrupted one resumes.
Writes OUT/table.md (mean and standard deviation over seeds of Dice and
HD95 on every target) and OUT/runs.csv, which also has the time of a step.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ablation

# arm -> what it changes of the full method: guidance, both location-scale views fused, Fourier view
FULL = {"augmentation.fourier": "True"}
ARMS: Mapping[str, Mapping[str, str]] = {
    "full": FULL,
    "no_guidance": {**FULL, "guidance.weight": "0.0"},
    "no_fourier": {},
    "no_fusion": {**FULL, "augmentation.fusion_grid": "0"},
    "no_local": {**FULL, "augmentation.location_scale": "global"},
    "no_location_scale": {**FULL, "augmentation.location_scale": "none"},
    "guidance_only": {"augmentation.location_scale": "none"},
    "plain": {"augmentation.location_scale": "none", "guidance.weight": "0.0"},
}
PAIRS = (
    "fundus_vessels:drive,fundus_vessels:chase,"
    "brain_tumor:brisc_t1,brain_tumor:brats_flair,brain_tumor:mets_t2"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="", help="folder of the 2-D sets; phantoms need none")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", default=PAIRS, help="data:source,...")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--variant", default="", help="more of the recipe's variant: smoke")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the config")
    args = parser.parse_args()
    runs = []
    for pair in args.pairs.split(","):
        for seed in range(args.seeds):
            for arm in args.arms.split(","):
                workdir = args.out / pair.replace(":", "_") / f"{arm}_{seed}"
                print(f"== {pair}, {arm}, seed {seed}", flush=True)
                train(args, pair, arm, seed, workdir)
                runs += read(pair, arm, seed, workdir)
                write(args.out, runs)


def train(args: argparse.Namespace, pair: str, arm: str, seed: int, workdir: Path) -> None:
    data, source = pair.split(":")
    variant = ",".join(filter(None, (f"source={source}", args.variant)))
    settings = {
        "data.root": args.root,
        "seed": str(seed),
        "num_train_steps": str(args.steps),
        "checkpoint.every_steps": str(max(args.steps // 4, 1)),
        "checkpoint.keep": "1",
        **ARMS[arm],
    }
    ablation.train(f"configs/lg_sdg/{data}.py:{variant}", settings, args.set, workdir)


def read(pair: str, arm: str, seed: int, workdir: Path) -> list[dict[str, object]]:
    """A row per target and class of one run."""
    results = json.loads((workdir / "results.json").read_text())
    rows = []
    for key, dice in results.items():
        prefix, _, score = key.rpartition("/")
        if score != "dice" or prefix.endswith("/mean"):
            continue
        _, target, name = prefix.split("/")
        rows.append(
            {
                "pair": pair,
                "target": target,
                "class": name,
                "arm": arm,
                "seed": seed,
                "dice": dice,
                "hd95": results[f"{prefix}/hd95"],
                "step_seconds": ablation.step_seconds(workdir),
            }
        )
    return rows


def write(out: Path, runs: Sequence[Mapping[str, object]]) -> None:
    ablation.write_rows(out / "runs.csv", runs)
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    places = ablation.grouped(runs, ("pair", "target", "class"))
    lines = []
    for score, title, decimals in (("dice", "Dice", 3), ("hd95", "HD95", 1)):
        lines += [f"{title}, mean ± standard deviation over seeds", ""]
        lines.append(f"| source → target | class | {' | '.join(map(str, arms))} |")
        lines.append("|" + "---|" * (2 + len(arms)))
        for (pair, target, name), rows in places.items():
            source = str(pair).split(":")[1]
            where = f"{source} → {target}" + (" (held out)" if source == target else "")
            by_arm = ablation.grouped(rows, ("arm",))
            cells = [ablation.spread(by_arm.get((arm,), []), score, decimals) for arm in arms]
            lines.append(f"| {where} | {name} | {' | '.join(cells)} |")
        lines.append("")
    (out / "table.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
