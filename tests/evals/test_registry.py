"""Evaluators of a corpus through the command: zero-shot, probes and retrieval on any weights."""

import collections
import csv
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from helpers import corpora
from helpers.html_page import Page
from helpers.runs import xla_flags
from helpers.small_model import write_export
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from input_pipeline import transforms
from input_pipeline.conversion.planned_rows import PlannedRow
from input_pipeline.conversion.sources.base import Conversion
from input_pipeline.conversion.write_shards import write_corpus
from input_pipeline.io.errors import ConfigError, UserError
from unimed_jax import evaluate
from unimed_jax.evals.embeddings import CorpusEmbedder
from unimed_jax.inference import dual_encoder

KINDS = ["zero_shot", "linear_probe", "few_shot", "retrieval"]
SMALL = [
    "evals.linear_probe.percentages=(2.0,20.0,100.0)",
    "evals.linear_probe.draws=2",
    "evals.few_shot.draws=2",
    "evals.few_shot.shots=(1,4)",
    *(f"evals.{kind}_probe.c_grid=(1.0,1e3)" for kind in ("linear",)),
    "evals.few_shot.c_grid=(1.0,1e3)",
    *(f"evals.{kind}.batch_size=4" for kind in KINDS),
]
CLASSES = {"shapes": ("disc", "ring", "square"), "stripes": ("flat", "steep")}


def draw(rng, label):
    """A noisy 40 x 40 picture of a class."""
    y, x = np.mgrid[:40, :40] - 20.0
    radius = np.hypot(x, y)
    mask = {
        "disc": radius < 12,
        "ring": (radius > 8) & (radius < 14),
        "square": np.maximum(abs(x), abs(y)) < 9,
        "flat": np.sin(y) > 0,
        "steep": np.sin(x) > 0,
    }[label]
    grey = 60 + 90 * mask[..., None] + rng.normal(0, 25, (40, 40, 3))
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """200 training and 45 test images of two sources, two of a patient; some have own texts."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    rows = []
    for split, repeats in (("train", 40), ("val", 9)):
        for source, labels in CLASSES.items():
            for label in labels:
                for i in range(repeats):
                    name = f"{source}/{label}-{split}-{i}.png"
                    (root / source).mkdir(exist_ok=True)
                    draw(rng, label).save(root / name)
                    text = f"a {label} of kind {'abcde'[i // 2 % 5]}" if source == "shapes" else ""
                    patient = f"{label}-{split}-{i // 2}"
                    modality = "ct" if source == "shapes" else "mri"
                    rows.append((name, modality, source, split, label, text, patient))
    with (root / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "modality", "source", "split", "label", "text", "group"))
        writer.writerows(rows)
    captions = {
        "version": 1,
        "sources": {
            source: {label: [f"{label} template"] for label in labels}
            for source, labels in CLASSES.items()
        },
    }
    (root / "captions.json").write_text(json.dumps(captions))
    flags = (f"--input={root / 'table.csv'}", f"--captions={root / 'captions.json'}")
    assert corpora.convert("csv", root / "corpus", *flags) == 0
    return root / "corpus"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    tasks = {
        source: {"field": "label", "source": source, "classes": {c: [f"a {c}"] for c in labels}}
        for source, labels in CLASSES.items()
    }
    path.write_text(json.dumps({"name": "shapes", "version": 1, "tasks": tasks}))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), text={"context_length": 32})


def flags_of(checkpoint, corpus, out, prompts="", evals=KINDS, settings=SMALL, **more):
    given = {"checkpoint": str(checkpoint), "data": str(corpus), "out": str(out)}
    given |= {"prompts": str(prompts), "evals": list(evals), "set": list(settings)}
    return given | {"cache": "", "suite": None, "list": False} | more


def run(*args, **more) -> dict:
    """Runs the command in this process, on eight devices; returns results.json."""
    flags = flags_of(*args, **more)
    evaluate.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**flags):
        evaluate._main(["evaluate"])
    return json.loads((Path(flags["out"]) / "results.json").read_text())


def start(*args, devices: int, **environment) -> subprocess.Popen:
    """The command as a process of its own."""
    flags = flags_of(*args)
    command = [sys.executable, "-m", "unimed_jax.evaluate"]
    for name in ("checkpoint", "data", "out", "prompts"):
        command.append(f"--{name}={flags[name]}")
    command.append(f"--evals={','.join(flags['evals'])}")
    command += [f"--set={text}" for text in flags["set"]]
    return subprocess.Popen(
        command,
        env={**os.environ, "XLA_FLAGS": xla_flags(devices), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def out(checkpoint, corpus, prompts, tmp_path_factory) -> Path:
    """What all four evaluators left on eight devices."""
    directory = tmp_path_factory.mktemp("out")
    run(checkpoint, corpus, directory, prompts)
    return directory


def results(out: Path) -> dict[str, float]:
    return json.loads((out / "results.json").read_text())


def kept(out: Path, split: str) -> dict[str, np.ndarray]:
    """id -> embedding, from the file of a split."""
    (path,) = (out / "embeddings").rglob(f"*-{split}-*.npz")
    with np.load(path) as file:
        return dict(zip(file["ids"].tolist(), file["embeddings"], strict=True))


def same_files(a: Path, b: Path) -> None:
    for name in ("results.json", "splits/linear_probe.json", "splits/few_shot.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.slow
def test_one_device_and_two_processes_give_the_same_results(
    out, checkpoint, corpus, prompts, tmp_path
):
    one = start(checkpoint, corpus, tmp_path / "one", prompts, devices=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    finish(one)
    two = [
        start(
            checkpoint,
            corpus,
            tmp_path / "two",
            prompts,
            devices=4,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    for process in two:
        finish(process)
    same_files(tmp_path / "one", out)
    same_files(tmp_path / "two", out)


@pytest.mark.slow
def test_embeddings_are_those_of_the_model_in_python(out, checkpoint, corpus):
    samples = list(corpora.samples_of(corpus, "val").values())
    images = tf.constant([sample.image for sample in samples])
    pixels = transforms.resize_and_center_crops(images, 32).numpy()
    expected = dual_encoder.load(checkpoint).encode_image([*pixels])
    found = kept(out, "val")
    assert len(found) == len(samples) == 45  # 45 rows in batches of 4 on 8 devices: 19 are filling
    np.testing.assert_allclose([found[s.id] for s in samples], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear_probe", "few_shot"])
def test_probes_are_those_of_scikit_learn_on_the_kept_splits(kind, out, corpus):
    vectors = kept(out, "train") | kept(out, "val")
    samples = corpora.samples(corpus)
    found = results(out)
    content = json.loads((out / "splits" / f"{kind}.json").read_text())
    assert content["tasks"].keys() == {"modality", "shapes", "stripes"}
    for name, task in content["tasks"].items():

        def data(ids, split, name=name, task=task):
            chosen = [samples[split][i] for i in ids]
            labels = [s.modality if name == "modality" else s.labels[0] for s in chosen]
            x = np.stack([vectors[i] for i in ids]).astype(np.float64)
            return x, np.array([task["classes"].index(label) for label in labels])

        tested = [i for i, s in samples["val"].items() if name == "modality" or s.source == name]
        x_test, y_test = data(tested, "val")
        x_val, y_val = data(task["validation"], "train")
        for budget, draws in task["subsets"].items():
            scores = []
            for ids in draws:
                best = None
                apart = [i for i in ids if i not in set(task["validation"])]
                for c in (1.0, 1e3):
                    model = LogisticRegression(C=c, max_iter=1000).fit(*data(apart, "train"))
                    score = balanced_accuracy_score(y_val, model.predict(x_val))
                    if best is None or score > best[0]:
                        best = score, c
                model = LogisticRegression(C=best[1], max_iter=1000).fit(*data(ids, "train"))
                auc = (
                    roc_auc_score(y_test, model.decision_function(x_test))
                    if len(task["classes"]) == 2
                    else np.nan
                )
                scores.append((balanced_accuracy_score(y_test, model.predict(x_test)), auc))
            accuracy, auc = np.mean(scores, axis=0)
            key = f"{kind}/{name}/{budget}"
            assert found[f"{key}/balanced_accuracy"] == pytest.approx(accuracy, abs=1e-12), key
            if not np.isnan(auc):
                assert found[f"{key}/auc"] == pytest.approx(auc, abs=1e-12), key
            if len(draws) > 1:
                deviation = np.std([a for a, _ in scores], ddof=1)
                assert found[f"{key}/balanced_accuracy_std"] == pytest.approx(deviation, abs=1e-12)


@pytest.mark.slow
def test_subsets_are_stratified_and_apart_from_validation_and_test(out, corpus):
    samples = corpora.samples(corpus)
    content = json.loads((out / "splits" / "linear_probe.json").read_text())
    task = content["tasks"]["shapes"]
    group = {i: s.group for i, s in samples["train"].items()}
    validation = {group[i] for i in task["validation"]}
    for draws in (task["subsets"]["20pct"],):
        for ids in draws:
            labels = collections.Counter(samples["train"][i].labels[0] for i in ids)
            assert set(labels.values()) == {8}
            assert not {group[i] for i in ids} & validation
    assert len(task["subsets"]["20pct"]) == 2 and len(task["subsets"]["100pct"]) == 1
    assert set(task["subsets"]["100pct"][0]) == {
        i for i, s in samples["train"].items() if s.source == "shapes"
    }
    found = results(out)
    assert found["linear_probe/shapes/100pct/num_train"] == 120
    low, high = (
        found[f"linear_probe/shapes/100pct/balanced_accuracy_{e}"] for e in ("low", "high")
    )
    assert low <= found["linear_probe/shapes/100pct/balanced_accuracy"] <= high


@pytest.mark.slow
def test_retrieval_is_that_of_a_brute_force(out, checkpoint, corpus):
    vectors = kept(out, "val")
    own = {s.id: s.captions[0] for s in corpora.samples_of(corpus, "val").values()
           if s.num_original_captions}  # fmt: skip
    texts = list(dict.fromkeys(own.values()))
    assert (len(own), len(texts)) == (27, 15)
    text_vectors = dual_encoder.load(checkpoint).encode_text(texts).astype(np.float64)
    image_vectors = np.stack([vectors[i] for i in own]).astype(np.float64)
    cosines = image_vectors @ text_vectors.T
    hits = np.array([[own[i] == text for text in texts] for i in own])
    found = results(out)
    assert found["retrieval/num_left_out"] == 18
    for name, scores, right in (
        ("image_to_text", cosines, hits),
        ("text_to_image", cosines.T, hits.T),
    ):
        for k in (1, 5, 10):
            top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            recall = np.mean(np.take_along_axis(right, top, 1).any(1))
            assert found[f"retrieval/{name}/recall@{k}"] == pytest.approx(recall), (name, k)


@pytest.mark.slow
def test_images_are_embedded_once(checkpoint, corpus, prompts, out, tmp_path, monkeypatch):
    passes = []
    embed = CorpusEmbedder._embed_images

    def counting(self, params, split, *rest):
        passes.append(split.name)
        return embed(self, params, split, *rest)

    monkeypatch.setattr(CorpusEmbedder, "_embed_images", counting)
    cache = str(tmp_path / "cache")
    first = run(checkpoint, corpus, tmp_path / "first", prompts, cache=cache)
    assert sorted(passes) == ["train", "val"]  # for four evaluators
    again = run(checkpoint, corpus, tmp_path / "again", prompts, cache=cache)
    assert sorted(passes) == ["train", "val"]
    assert first == again == results(out)


@pytest.mark.slow
def test_kept_splits_are_used_again(out, checkpoint, corpus, tmp_path):
    cache = str(out / "embeddings")
    file = out / "splits" / "few_shot.json"
    settings = [*(s for s in SMALL if "few_shot" in s), "evals.few_shot.seed=7"]
    other = run(checkpoint, corpus, tmp_path / "a", evals=["few_shot"], settings=settings,
                cache=cache)  # fmt: skip
    settings.append(f"evals.few_shot.splits={file}")
    same = run(checkpoint, corpus, tmp_path / "b", evals=["few_shot"], settings=settings,
               cache=cache)  # fmt: skip
    expected = {k: v for k, v in results(out).items() if k.startswith("few_shot/")}
    assert same == expected != other
    content = json.loads(file.read_text())
    content["tasks"]["shapes"]["subsets"]["1shot"][1][0] = "nobody"
    for change, message in (
        (lambda c: c, r"splits.json: task 'shapes': sample 'nobody' is not in the training data"),
        (lambda c: c["tasks"]["modality"]["classes"].reverse(), r"'modality' has the classes mri"),
        (lambda c: c["tasks"].pop("modality"), r"splits.json has no task 'modality', only shapes"),
    ):
        change(content)
        (tmp_path / "splits.json").write_text(json.dumps(content))
        settings[-1] = f"evals.few_shot.splits={tmp_path / 'splits.json'}"
        with pytest.raises(UserError, match=message):
            run(checkpoint, corpus, tmp_path / "c", evals=["few_shot"], settings=settings,
                cache=cache)  # fmt: skip


@pytest.mark.slow
def test_what_the_report_says(out, capsys):
    page = Page((out / "report.html").read_text())
    text = " ".join(" ".join(page.text).split())
    for title in ("Linear probe", "Few-shot probe", "Retrieval", "Zero-shot classification"):
        assert title in text
    assert "modality: 2pct" not in text and "stripes" in text
    # two of probes, and ROC and reliability of two zero-shot tasks
    assert sum(tag == "svg" for tag, _ in page.tags) == 2 + 2 * 2
    assert (
        "27 images, 15 distinct texts; 18 images without a text, or unreadable, are left out"
        in text
    )


@pytest.mark.slow
def test_an_image_tower_alone_is_probed(checkpoint, corpus, tmp_path):
    command = [sys.executable, "tools/import_weights.py", str(checkpoint), "--towers=visual"]
    root = Path(__file__).parents[2]
    subprocess.run([*command, f"--out={tmp_path / 'tower'}"], cwd=root, check=True, timeout=300)
    settings = [s for s in SMALL if "few_shot" in s]
    found = run(tmp_path / "tower", corpus, tmp_path / "out", evals=["few_shot"],
                settings=settings)  # fmt: skip
    assert 0 <= found["few_shot/shapes/4shot/accuracy"] <= 1
    with pytest.raises(UserError, match="the weights have no text tower, which this evaluator"):
        run(tmp_path / "tower", corpus, tmp_path / "out", evals=["retrieval"], settings=[])


def test_mistakes_are_named_before_a_pass(checkpoint, corpus, tmp_path):
    def message(evals, *settings, **more) -> str:
        with pytest.raises(UserError) as error:
            run(checkpoint, corpus, tmp_path, evals=evals, settings=settings, **more)
        return str(error.value)

    assert "kind='zero'; valid: zero_shot, linear_probe" in message(["zero"])
    assert "the keys of config.evals.few_shot are: " in message(
        ["few_shot"], "evals.few_shot.shot=(1,)"
    )
    assert "draws='many'" in message(["few_shot"], "evals.few_shot.draws=many")
    assert "expected KEY=VALUE" in message(["few_shot"], "evals.few_shot.draws")
    assert "unknown key config.evals.retrieval.k" in message(["few_shot"], "evals.retrieval.k=1")
    assert "config.evals.retrieval.captions='mine' is not possible; valid: 'own', 'all'" in message(
        ["retrieval"], "evals.retrieval.captions=mine"
    )
    assert "no split 'test'; it has ['train', 'val']" in message(
        ["few_shot"], "evals.few_shot.split=test"
    )
    assert "batch_size=0" in message(["few_shot"], "evals.few_shot.batch_size=0")
    assert "no packaged prompt set 'none'" in message([], prompts="none")


def test_a_budget_that_a_class_cannot_fill_is_reported(checkpoint, corpus, tmp_path, capsys):
    settings = [s for s in SMALL if "few_shot" in s and "shots" not in s]
    found = run(checkpoint, corpus, tmp_path, evals=["few_shot"],
                settings=[*settings, "evals.few_shot.shots=(4,50)"])  # fmt: skip
    assert "few_shot/modality/50shot/auc" in found  # 80 and 120 images
    assert "few_shot/shapes/4shot/auc" in found and "few_shot/shapes/50shot/auc" not in found
    assert "few_shot/mean/4shot/balanced_accuracy" in found
    assert "few_shot/mean/50shot/balanced_accuracy" not in found
    printed = capsys.readouterr().out
    assert "shapes: 50shot not run: class 'disc' has only 40 samples" in printed
    settings.append("evals.few_shot.shots=(1,)")
    wrong = {"field": "label", "source": "shapes", "classes": {"disc": ["a"], "cone": ["b"]}}
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps({"name": "w", "version": 1, "tasks": {"shapes": wrong}}))
    with pytest.raises(UserError, match="class 'cone' does not occur in split 'train'"):
        run(checkpoint, corpus, tmp_path, evals=["few_shot"],
            settings=[*settings, f"evals.few_shot.tasks={file}"])  # fmt: skip
    assert issubclass(ConfigError, UserError)


def test_without_prompts_the_labels_of_the_corpus_are_the_classes(checkpoint, corpus, tmp_path):
    only = {"evals": ["zero_shot"], "settings": ()}
    made = run(checkpoint, corpus, tmp_path / "made", **only)
    file = tmp_path / "made/prompts/zero_shot.json"
    tasks = json.loads(file.read_text())["tasks"]
    classes = {name: tuple(sorted(task["classes"])) for name, task in tasks.items()}
    assert classes == {"modality": ("ct", "mri"), **CLASSES}
    assert all(len(set(p)) >= 4 for task in tasks.values() for p in task["classes"].values())
    assert made["zero_shot/modality/num_samples"] == 45
    assert made["zero_shot/shapes/num_samples"] == 27
    # the file that it leaves is a prompt file, to be edited
    assert run(checkpoint, corpus, tmp_path / "given", file, **only) == made


def test_tasks_without_samples_are_left_out_and_no_task_at_all_is_refused(
    checkpoint, corpus, tmp_path, capsys
):
    task = {"field": "label", "classes": {"steep": ["steep stripes"], "flat": ["flat stripes"]}}
    tasks = {"stripes": task | {"source": "stripes"}, "elsewhere": task | {"source": "clinic"}}
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"name": "x", "version": 1, "tasks": tasks}))
    only = {"evals": ["zero_shot"], "settings": ()}
    scores = run(checkpoint, corpus, tmp_path / "out", file, **only)
    assert "for elsewhere; left out" in capsys.readouterr().out
    assert scores["zero_shot/stripes/num_samples"] == 18
    assert not any("elsewhere" in name for name in scores)

    del tasks["stripes"]
    file.write_text(json.dumps({"name": "x", "version": 1, "tasks": tasks}))
    with pytest.raises(ConfigError, match=r"none of the tasks of .* has a sample in split 'val'"):
        run(checkpoint, corpus, tmp_path / "none", file, **only)


@pytest.mark.slow
def test_images_that_do_not_decode_count_as_left_out(checkpoint, corpus, prompts, tmp_path, capsys):
    samples = list(corpora.samples_of(corpus, "val").values())
    bad = [s.id for s in samples if s.source == "shapes" and s.num_original_captions][:2]
    damaged = [dataclasses.replace(s, image=s.image[:99]) if s.id in bad else s for s in samples]
    # conversion would reject them
    rows = [PlannedRow(s, "val", s.id) for s in samples]
    write_corpus(tmp_path / "corpus", Conversion("shapes", rows, as_it_is), num_shards=1)
    corpora.replace_records(tmp_path / "corpus", "val", damaged)
    scores = run(checkpoint, tmp_path / "corpus", tmp_path / "out", prompts,
                 evals=["zero_shot", "retrieval"], settings=())  # fmt: skip
    assert scores["zero_shot/shapes/num_samples"] == 25
    assert scores["retrieval/num_left_out"] == 18 + 2
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    (shapes,) = (line for line in table if line[:2] == ["shapes", "3"])
    assert shapes[2:4] == ["25", "2"]  # images, left out


def as_it_is(sample):
    return sample
