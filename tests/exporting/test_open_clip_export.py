"""The export, opened by stock open_clip in a separate process, and read back by this package."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.hub_server import hub
from helpers.runs import ROOT
from helpers.small_model import random_params, small_config

import unimed_jax
from input_pipeline.io.errors import UserError
from unimed_jax.config import base_config
from unimed_jax.exporting import open_clip_directory, open_clip_export
from unimed_jax.inference.dual_encoder import Model, preprocess
from unimed_jax.models import dual_encoder
from unimed_jax.weights import layouts, loader
from unimed_jax.weights.checkpoint import Checkpoints, make_meta
from unimed_jax.weights.formats import open_pretrained
from unimed_jax.weights.lazy_tensors import LazyTensor
from unimed_jax.weights.mapping import to_params

_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "chest", "x", "-", "ray", "of", "##s"]
_WORDS += [f"[unused{i}]" for i in range(99 - len(_WORDS))]
_VARIANTS = (
    {},
    {
        "visual": {"activation": "gelu", "heads": 4, "mlp_width": 80, "layer_norm_eps": 1e-3},
        "text": {"projection": "linear", "activation": "gelu_tanh", "layer_norm_eps": 1e-3},
        "logit_bias_init": -10.0,
    },
    {
        "visual": {"activation": "gelu_tanh", "layers": 1},
        "text": {"projection": "none", "width": 24, "layers": 1, "pad_id": 3},
    },
    {
        "visual": {"variant": "timm", "activation": "gelu", "layer_norm_eps": 1e-6, "heads": 3}
        | {"width": 192, "layers": 12, "mlp_width": 768, "patch_size": 16, "image_size": 224},
    },
)


def _tokenizer(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "vocab.txt").write_text("\n".join(_WORDS) + "\n", encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, dict, dict]:
    """(model, params) of each variant, the inputs, and open_clip's outputs for the exports."""
    root = tmp_path_factory.mktemp("open_clip")
    rng = np.random.default_rng(1)
    ids = rng.integers(4, 99, (6, 16))
    ids[0, 2:] = ids[1, 9:] = 0
    ids[2, 5:] = 3
    inputs = {
        "images": rng.integers(0, 256, (6, 32, 32, 3), np.uint8),
        "ids": ids,
        "text": np.array("Chest X-rays of Zebras"),
    }
    np.savez(root / "in.npz", **inputs)
    ours, directories = [], []
    for i, changes in enumerate(_VARIANTS):
        model = dual_encoder.build(small_config(**changes))
        params = random_params(model)
        ours.append((model, params))
        directory = root / f"export_{i}"
        directory.mkdir()
        tokenizer = _tokenizer(root / f"tokenizer_{i}")
        opened = loader.of_params(params, model.config, source="test", tokenizer=str(tokenizer))
        open_clip_directory.write(directory, opened, model.config, tokenizer, str(directory))
        directories.append(directory)
    script = Path(__file__).parents[1] / "helpers" / "open_clip_reference.py"
    command = [sys.executable, script, root / "in.npz", root / "out.npz", *directories]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr[-3000:]
    return ours, inputs, dict(np.load(root / "out.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", range(len(_VARIANTS)))
def test_embeddings_agree_with_open_clip(reference: tuple, variant: int) -> None:
    ours, inputs, theirs = reference
    model, params = ours[variant]
    size = model.config.visual.image_size
    images = np.stack([preprocess(image, size) for image in inputs["images"]])
    for tower, got in (
        ("image", jax.jit(model.encode_image)(params, images)),
        ("text", jax.jit(model.encode_text)(params, inputs["ids"].astype(np.int32))),
    ):
        unit = got / np.linalg.norm(got, axis=-1, keepdims=True)
        np.testing.assert_allclose(unit, theirs[f"{tower}/{variant}"], atol=2e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("variant", range(len(_VARIANTS)))
def test_stock_open_clip_returns_the_same_bits(reference: tuple, variant: int) -> None:
    ours, _, theirs = reference
    model, params = ours[variant]
    prefix = f"state/{variant}/"
    state = {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}
    tensors = {name: LazyTensor.of(tensor) for name, tensor in state.items()}
    layout = layouts.open_clip(model.config.visual.variant)
    read = to_params(tensors, layout, params, "state dict")
    assert jax.tree.structure(read) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.slow
def test_exported_tokenizer_is_the_one_given(reference: tuple) -> None:
    _, _, theirs = reference
    expected = [2, 5, 6, 7, 8, 10, 9, 1, 3, 0, 0, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(theirs["ids/0"], [expected])


# --- from a checkpoint, through the command -----------------------------------------------------


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: two checkpoints of a small model, tokenizer, scores."""
    workdir = tmp_path_factory.mktemp("run")
    config = base_config("contrastive")
    config.model.update(small_config())
    model = dual_encoder.build(config.model)
    checkpoints = Checkpoints(workdir, keep=2)
    for step in (10, 20):
        state = {"params": random_params(model, seed=step)}
        checkpoints.save(step, state, {}, make_meta(config, {}))
    checkpoints.close()
    _tokenizer(workdir / "tokenizer")
    scores = {"step": 20, "loss": 1.0, "zero_shot/modality/balanced_accuracy": 0.875}
    (workdir / "metrics.jsonl").write_text(json.dumps(scores) + "\n")
    return workdir


def _equal(a: Model, b: Model) -> None:
    jax.tree.map(np.testing.assert_array_equal, a._params, b._params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"), [("open_clip_pt", "model.pt"), ("unimed_pt", "model.pt"), ("open_clip", "")]
)
def test_export_verifies_and_reads_back_bit_for_bit(
    run_directory: Path, tmp_path: Path, name: str, file: str
) -> None:
    out = tmp_path / "moved" / name
    command = [sys.executable, "tools/export_open_clip.py", f"--checkpoint={run_directory}"]
    command += [f"--out={out}", f"--format={name}", "--step=20"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert re.match(r"Verified: .* visual \d\.\de-\d\d, text .* token ids are equal", run.stdout)
    original = unimed_jax.load(run_directory)
    _equal(unimed_jax.load(out), original)
    if file:
        kind = open_pretrained(out / file).kind
        assert kind == ("UniMed-CLIP" if name == "unimed_pt" else "open_clip")
        sizes = {"text.heads": 4, "visual.heads": 2, "visual.activation": "quick_gelu"}
        _equal(unimed_jax.load(out / file, overrides=sizes), original)
    card = (out / "README.md").read_text()
    assert "| zero_shot/modality | 0.875 |" in card
    assert run.stdout.splitlines()[0] in card

    assert str(tmp_path) not in card

    # after a move, too, it opens as the model card describes
    moved = tmp_path / "elsewhere"
    out.rename(moved)
    script = card.split("```python\n")[1].split("```")[0].replace('"DIR"', repr(str(moved)))
    script += "\nprint(type(model).__name__, tokenizer.context_length)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout.split() == ["CustomTextCLIP", "16"], run.stderr[-2000:]


def test_without_torch_it_says_that_nothing_was_verified(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_clip_export.importlib.util, "find_spec", lambda name: None)
    said = open_clip_export.export(run_directory, tmp_path / "out", step=10)
    assert said == "Not verified: torch and open_clip were not installed"
    assert said in (tmp_path / "out" / "README.md").read_text()
    _equal(unimed_jax.load(tmp_path / "out"), unimed_jax.load(run_directory, step=10))
    with pytest.raises(UserError, match=r"--format=unimed_pt needs torch: pip install"):
        open_clip_export.export(run_directory, tmp_path / "other", format="unimed_pt")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_embeddings_that_differ_leave_nothing(
    run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_clip_export, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match="normalised embeddings differ by visual"):
        open_clip_export.export(run_directory, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_export_is_whole_or_not_at_all(run_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer exists and is not an empty directory"):
        open_clip_export.export(run_directory, run_directory / "tokenizer")
    (tmp_path / "empty").mkdir()
    model = dual_encoder.build(small_config())
    opened = loader.of_params(random_params(model), model.config, source="x", tokenizer="y")
    with pytest.raises(UserError, match=r"empty holds neither tokenizer\.json nor vocab\.txt"):
        open_clip_directory.write(tmp_path, opened, model.config, tmp_path / "empty", "z")
    with pytest.raises(UserError, match=r"no complete checkpoint of step 11 .*steps: \[10, 20\]"):
        open_clip_export.export(run_directory, tmp_path / "out", step=11)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


# --- import as a command ------------------------------------------------------------------------


class _RunsCode:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self._path}",)


def _import(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/import_weights.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.slow
def test_import_export_import(run_directory: Path, tmp_path: Path) -> None:
    open_clip_export.export(run_directory, tmp_path / "exported")
    run = _import(tmp_path / "exported", f"--out={tmp_path / 'imported'}")
    assert run.returncode == 0, run.stderr
    assert "open_clip: visual 33,248, text 61,680 parameters" in run.stdout
    original = unimed_jax.load(run_directory)
    imported = unimed_jax.load(tmp_path / "imported")
    _equal(imported, original)
    assert imported.config == original.config
    open_clip_export.export(tmp_path / "imported", tmp_path / "again")
    _equal(unimed_jax.load(tmp_path / "again"), original)

    run = _import(tmp_path / "exported", f"--out={tmp_path / 'visual'}", "--towers=visual")
    assert run.returncode == 0, run.stderr
    image = np.zeros((9, 5, 3), np.uint8)
    only_visual = unimed_jax.load(tmp_path / "visual")
    np.testing.assert_array_equal(only_visual.encode_image(image), original.encode_image(image))
    with pytest.raises(UserError, match="has no tokenizer"):
        only_visual.encode_text("x")


@pytest.mark.slow
def test_import_of_wrong_files_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with (tmp_path / "evil.pt").open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {}, {"state_dict": _RunsCode(ran)}, []):
            pickle.dump(part, file, protocol=2)
    (tmp_path / "text.pt").write_text("not found")
    for source, message in (
        ("evil.pt", "asks to load posix.system, which is no tensor: refused"),
        ("text.pt", "is no file of torch.save"),
        ("absent.pt", "no file or directory"),
    ):
        run = _import(tmp_path / source, f"--out={tmp_path / 'out'}")
        assert run.returncode == 2
        assert len(run.stderr.splitlines()) == 1
        assert message in run.stderr
    assert not ran.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pt", "text.pt"]


# --- the hub ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pushed_to_a_hub_it_opens_by_its_name(run_directory: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "unimed_jax.export", f"--checkpoint={run_directory}"]
    with hub() as (address, repositories):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")}
        environment.pop("HF_TOKEN", None)

        def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess:
            return subprocess.run(
                arguments, capture_output=True, text=True, cwd=ROOT, env={**environment, **changes}
            )

        refused = run(*command, f"--out={out}", "--push=clinic/small-clip")
        assert refused.returncode == 2
        assert f"{out} is written, but cannot be pushed to clinic/small-clip" in refused.stderr

        pushed = run(
            *command, f"--out={tmp_path / 'again'}", "--push=clinic/small-clip", HF_TOKEN="hf_test"
        )
        assert pushed.returncode == 0, pushed.stderr[-2000:]
        assert "hf-hub:clinic/small-clip" in pushed.stdout
        files = repositories["clinic/small-clip"]
        assert files.keys() == {path.name for path in out.iterdir()}
        assert str(tmp_path).encode() not in files["open_clip_config.json"]

        name = "hf-hub:clinic/small-clip"
        opened = run(
            sys.executable,
            "-c",
            "import open_clip\n"
            f"model, _, _ = open_clip.create_model_and_transforms({name!r})\n"
            f"tokenizer = open_clip.get_tokenizer({name!r})\n"
            "print(type(model).__name__, tokenizer(['chest']).tolist()[0][:4])",
        )
        assert opened.stdout.strip() == "CustomTextCLIP [2, 5, 3, 0]", opened.stderr[-2000:]

        load = (
            "import unimed_jax; print(unimed_jax.load('clinic/small-clip').encode_text('x')[0, 0])"
        )
        found = run(sys.executable, "-c", load)
        expected = unimed_jax.load(run_directory).encode_text("x")[0, 0]
        assert float(found.stdout) == pytest.approx(float(expected), abs=1e-6), found.stderr[-2000:]
