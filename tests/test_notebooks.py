"""The Colab notebooks, run from top to bottom in a kernel, as a reader does."""

import json
import os
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from helpers.runs import ROOT, write_recipe, xla_flags
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`colab/` in a checkout of its own, so that what the notebooks write is not in ours."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "tools"):
        (checkout / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "colab", checkout / "colab", ignore=shutil.ignore_patterns("runs"))
    return checkout / "colab"


def _execute(folder: Path, name: str, results: str, **settings: str) -> dict:
    """Runs a notebook with other settings; returns the value of an expression at its end."""
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    (place,) = (
        i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ())
    )
    lines = "\n".join(f"{key} = {value!r}" for key, value in settings.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(lines))
    end = f"print(json.dumps({results}))"
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\n\n{end}"))
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(1)})
    return json.loads(notebook.cells[-1].outputs[-1].text)


@pytest.fixture(scope="module")
def zero_shot(folder: Path, phantom_corpus: Path) -> dict:
    """What zero_shot.ipynb finds with a model that it trains: of 53,057 parameters, in seconds."""
    recipe = write_recipe(
        folder / "recipe.py",
        phantom_corpus,
        num_train_steps=200,
        batch_size=32,
        log_every_steps=50,
        checkpoint__every_steps=200,
        optimizer__learning_rate=3e-3,
        optimizer__warmup_steps=20,
    )
    results = (
        "{'titles': titles, 'classes': list(CLASSES), 'prompts': prompts, "
        "'probabilities': probabilities.tolist(), 'cosines': cosines.tolist(), "
        "'predictions': {k: v.tolist() for k, v in predictions.items()}}"
    )
    return _execute(folder, "zero_shot", results, TRAINING=f"--config={recipe}")


@pytest.mark.slow
def test_zero_shot(zero_shot, folder):
    probabilities = np.array(zero_shot["probabilities"])
    assert probabilities.shape == (6, 6)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert np.shape(zero_shot["cosines"]) == (6, len(zero_shot["prompts"]))
    assert np.abs(zero_shot["cosines"]).max() <= 1 + 1e-5
    names = np.array(zero_shot["classes"])
    assert zero_shot["predictions"]["all prompts"] == names[probabilities.argmax(1)].tolist()
    # one phantom of each modality, in the order of the classes; chance is one in six
    assert (probabilities.argmax(1) == np.arange(6)).sum() >= 3
    scores = json.loads((folder / "runs/quickstart/results.json").read_text())
    assert scores["zero_shot/modality/balanced_accuracy"] > 0.6


@pytest.mark.slow
def test_zero_shot_of_files(zero_shot, folder, tmp_path):
    """One's own images, one of them 16-bit, and a model by its path."""
    pictures = tmp_path / "my images"
    pictures.mkdir()
    Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60) * 20).save(pictures / "a.png")
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(pictures / "b.jpg")
    settings = {"MODEL": "runs/quickstart", "IMAGES": str(pictures)}
    found = _execute(
        folder, "zero_shot", "[titles, probabilities.sum(axis=1).tolist()]", **settings
    )
    assert found[0] == ["a.png", "b.jpg"]
    np.testing.assert_allclose(found[1], 1, atol=1e-5)


@pytest.mark.slow
def test_evaluate(zero_shot, folder):
    """With the model that the other notebook trained."""
    results = (
        "{'table': json.loads(table.to_json(orient='index')), 'ours': ours, "
        "'published': published.T.to_dict(), 'beside': list(beside), "
        "'recall': np.diag(shares).tolist(), 'wrong': len(wrong), 'counts': counts.tolist()}"
    )
    found = _execute(folder, "evaluate", results, MODEL="runs/quickstart")
    assert list(found["table"]) == ["breast_us", "refuge_retina", "PCAM"]
    assert found["ours"] == "quickstart on phantoms"
    assert found["published"]["breast_us"]["UniMed-CLIP ViT-B/16"] == 66.31
    assert found["beside"] == []  # phantoms are not compared with what is published
    for row in found["table"].values():
        assert row["images"] == 48
        assert row["low"] <= row["quickstart on phantoms"] <= row["high"]
    # the same images through the corpus and from Python
    scores = json.loads((folder / "eval/own/results.json").read_text())
    mean = np.mean(found["recall"])
    assert scores["zero_shot/own/num_samples"] == 60 == np.sum(found["counts"])
    # one image may fall to another side: TensorFlow's resize and Pillow's differ by 0.001 grey
    assert scores["zero_shot/own/balanced_accuracy"] == pytest.approx(mean, abs=1 / 60 + 1e-6)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_one_run_and_are_small(path):
    """Run anew with `jupyter execute --inplace colab/*.ipynb` after a change."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    assert any("image/jpeg" in o.get("data", {}) for cell in code for o in cell.outputs)
    assert path.stat().st_size < 300_000
    text = json.dumps([cell.outputs for cell in code])
    for private in ("/tmp/", "/home/", "/root/", "/work/"):
        assert private not in text
