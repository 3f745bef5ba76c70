"""Levers of the contrastive recipe on minimed, one by one, beside the plain recipe.

    python benchmarks/recipe_levers.py --data=DIR --levers=plain,positive --seeds=0,1,2 \\
        --steps=200 --runs=runs/levers --json=FILE

DIR holds the folders ``minimed`` and ``ood_dev``, each with a ``metadata.csv``. Every run is a
process that trains configs/minimed.py with the keys of a lever; finished runs are not repeated, and
interrupted ones resume. Each is scored zero-shot, by balanced accuracy:

- on ``val`` with the prompts of the recipe, which resemble its captions;
- on ``val`` and on ``ood_dev``, images of other sources, in ten styles of prompts that are in no
  caption. Two of them are bare ("a chest X-ray", "this is a chest X-ray").

Prints the means over tasks, and over seeds with their standard deviation, and what one step cost
relative to the plain recipe.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import recorded

LEVERS: dict[str, dict[str, object]] = {
    "plain": {},
    "ignored": {"loss.same_label": "ignored"},
    "positive": {"loss.same_label": "positive"},
    "overlap": {"loss.same_label": "overlap"},
    "words": {"captions.label_share": 0.3},
    "sentences": {"captions.sentence_share": 0.5},
    "half the patches": {"model.visual.patch_dropout": 0.5},
    "positive+words": {"loss.same_label": "positive", "captions.label_share": 0.3},
    "ignored+words": {"loss.same_label": "ignored", "captions.label_share": 0.3},
}

STYLES = {
    "bare": "a {}",
    "bare sentence": "this is a {}",
    "noun": "{}",
    "photo": "a photo of a {}",
    "medical image": "a medical image: {}",
    "shown": "{} is shown here",
    "patient": "image of a patient, {}",
    "diagnosis": "diagnosis: {}",
    "example": "a typical example of {}",
    "textbook": "figure from a textbook, {}",
}
BARE = ("bare", "bare sentence")

# task -> (field, source or None, label -> what it is called in a prompt)
Tasks = dict[str, tuple[str, str | None, dict[str, str]]]
MODALITIES = {
    "xray": "chest X-ray",
    "ct": "CT scan",
    "mri": "MRI of the brain",
    "ultrasound": "ultrasound image",
    "pathology": "histopathology slide",
    "fundus": "retinal fundus photograph",
}
VAL: Tasks = {
    "modality": ("modality", None, MODALITIES),
    "covid_chestxray_kermany": (
        "label",
        "covid_chestxray_kermany",
        {
            "normal": "normal chest X-ray",
            "bacterial pneumonia": "chest X-ray with bacterial pneumonia",
            "viral pneumonia": "chest X-ray with viral pneumonia",
        },
    ),
    "covid_ct": (
        "label",
        "covid_ct",
        {"COVID-19": "chest CT with COVID-19", "no COVID-19": "chest CT without COVID-19"},
    ),
    "brain_tumor_mri": (
        "label",
        "brain_tumor_mri",
        {
            "glioma": "brain MRI with glioma",
            "meningioma": "brain MRI with meningioma",
            "pituitary tumor": "brain MRI with pituitary tumor",
            "no tumor": "brain MRI without tumor",
        },
    ),
    "busi": (
        "label",
        "busi",
        {
            "benign": "breast ultrasound with benign lesion",
            "malignant": "breast ultrasound with malignant lesion",
            "normal": "normal breast ultrasound",
        },
    ),
    "lc25000_lung": (
        "label",
        "lc25000_lung",
        {
            "lung adenocarcinoma": "histology of lung adenocarcinoma",
            "lung squamous cell carcinoma": "histology of lung squamous cell carcinoma",
            "benign lung tissue": "histology of benign lung tissue",
        },
    ),
    "eye_disease": (
        "label",
        "eye_disease",
        {
            "normal": "normal fundus",
            "cataract": "fundus with cataract",
            "glaucoma": "fundus with glaucoma",
            "diabetic retinopathy": "fundus with diabetic retinopathy",
        },
    ),
}
OOD: Tasks = {
    "modality": ("modality", None, {k: v for k, v in MODALITIES.items() if k != "ct"}),
    "tumor": (
        "label",
        "brain_mri_kaggle",
        {"tumor": "brain MRI with tumor", "no tumor": "brain MRI without tumor"},
    ),
    "fundus": (
        "label",
        "retina_dataset",
        {"cataract": "fundus with cataract", "glaucoma": "fundus with glaucoma"},
    ),
    "covid": (
        "label",
        None,
        {"COVID-19": "chest X-ray with COVID-19", "No Finding": "normal chest X-ray"},
    ),
}


def prompt_set(name: str, tasks: Tasks) -> str:
    """The JSON of a prompt set with a task TASK@STYLE for every task and style."""
    entries = {}
    for (task, (field, source, words)), (style, template) in itertools.product(
        tasks.items(), STYLES.items()
    ):
        classes = {label: [template.format(noun)] for label, noun in words.items()}
        only = {"source": source} if source else {}
        entries[f"{task}@{style}"] = {"field": field, **only, "classes": classes}
    return json.dumps({"name": name, "version": 1, "tasks": entries})


def prepare(data: Path, root: Path) -> None:
    """Converts both folders below ``root``, and writes the prompt sets there."""
    for name, tasks in (("minimed", VAL), ("ood_dev", OOD)):
        (root / f"{name}.json").write_text(prompt_set(name, tasks))
    if not (root / "minimed" / "manifest.json").exists():
        captions = f"--captions={ROOT / 'configs' / 'captions' / 'minimed.json'}"
        convert(data / "minimed" / "metadata.csv", root / "minimed", captions)
    if not (root / "ood_dev" / "manifest.json").exists():
        with (data / "ood_dev" / "metadata.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        table = root / "ood_dev.csv"
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            for row in rows:  # every record needs a text; these are not trained on
                row |= {"image": str(data.absolute() / "ood_dev" / row["image"]), "text": "image"}
                writer.writerow(row)
        convert(table, root / "ood_dev")


def convert(table: Path, out: Path, *options: str) -> None:
    command = [sys.executable, "-m", "unimed_jax.cli", "convert", "csv"]
    subprocess.run([*command, f"--input={table}", f"--out={out}", *options], check=True, cwd=ROOT)


def train(root: Path, workdir: Path, lever: str, seed: int, steps: int) -> None:
    """Trains in this process, and scores at the end."""
    from unimed_jax import config as config_lib
    from unimed_jax import train as trainer

    config = config_lib.load(str(ROOT / "configs" / "minimed.py"))
    config.seed, config.num_train_steps = seed, steps
    config.data.root = str(root)
    config.data.sources.minimed.path = "minimed"
    config.eval_every_steps = config.checkpoint.every_steps = steps
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps // 4)
    with config_lib.edit(config):
        config.evals.zero_shot.path = "minimed"
        for name, path in (("val", "minimed"), ("ood", "ood_dev")):
            prompts = str(root / f"{path}.json")
            config.evals[name] = config_lib.evaluator("zero_shot", path=path, prompts=prompts)
    config.update_from_flattened_dict(LEVERS[lever])
    trainer.train(config, workdir)


def scores(results: dict[str, object]) -> dict[str, float]:
    """The columns of the table, from the metrics of a run."""

    def of(evaluator: str, tasks: Tasks, styles: tuple[str, ...]) -> list[float]:
        return [
            statistics.mean(
                results[f"{evaluator}/{task}@{style}/balanced_accuracy"] for task in tasks
            )
            for style in styles
        ]

    shipped = [results[f"zero_shot/{task}/balanced_accuracy"] for task in VAL]
    found = {"val": statistics.mean(shipped)}
    for name, evaluator, tasks in (("val", "val", VAL), ("ood", "ood", OOD)):
        by_style = of(evaluator, tasks, tuple(STYLES))
        found[f"{name} bare"] = statistics.mean(of(evaluator, tasks, BARE))
        found[f"{name} styles"] = statistics.mean(by_style)
        found[f"{name} spread"] = statistics.stdev(by_style)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of minimed and ood_dev")
    parser.add_argument("--runs", type=Path, default=Path("runs/levers"), help="folder of the runs")
    parser.add_argument(
        "--levers", default="plain", help=f"comma-separated, of: {', '.join(LEVERS)}"
    )
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--steps", type=int, default=200, help="800: the whole recipe")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--run", nargs=2, metavar=("LEVER", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3")
    root = args.runs / "data"
    if args.run:
        lever, seed = args.run
        train(root.absolute(), run_directory(args.runs, args.steps, lever, seed), lever,
              int(seed), args.steps)  # fmt: skip
        return
    names = args.levers.split(",")
    if unknown := sorted(set(names) - LEVERS.keys()):
        parser.error(f"unknown levers {unknown}; valid: {', '.join(LEVERS)}")
    root.mkdir(parents=True, exist_ok=True)
    prepare(args.data, root)
    rows = []
    for name in names:
        found = [finished_run(args, name, seed) for seed in args.seeds.split(",")]
        row: dict[str, object] = {"lever": name}
        for key in found[0]:
            values = [one[key] for one in found]
            row[key] = statistics.mean(values)
            row[f"{key} deviation"] = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
        print(name, *(f"{key} {row[key]:.3f}" for key in found[0]), sep="  ", flush=True)
    if args.json:
        command = f"python benchmarks/recipe_levers.py --data=DIR --levers={args.levers}"
        command += f" --seeds={args.seeds} --steps={args.steps}"
        columns = {key: {"label": key, "format": ".3f"} for key in rows[0]}
        columns["lever"] = {"label": "lever"}
        recorded.write_table(args.json, command, columns, rows)


def run_directory(runs: Path, steps: int, lever: str, seed: str) -> Path:
    return runs / f"{steps}" / lever / seed


def finished_run(args: argparse.Namespace, lever: str, seed: str) -> dict[str, float]:
    """Scores and rate of a run, which is made, or finished, if it is not there."""
    workdir = run_directory(args.runs, args.steps, lever, seed)
    if not (workdir / "results.json").exists():
        command = [sys.executable, __file__, "--run", lever, seed]
        command += [f"--runs={args.runs}", f"--steps={args.steps}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    steps = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    rates = [step["images_per_sec"] for step in steps if "images_per_sec" in step]
    found = scores(json.loads((workdir / "results.json").read_text()))
    return found | {"images_per_second": statistics.median(rates)}


if __name__ == "__main__":
    main()
