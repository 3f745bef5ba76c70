"""Both volumetric tasks on the trainer: terms, stages, transfer, resumption, meshes, NIfTI out."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import nibabel
import numpy as np
import pytest
from helpers.recipes import load
from helpers.runs import ROOT, losses_of
from PIL import Image

from input_pipeline.io.errors import ConfigError, UserError
from unimed_jax import average, tasks, train
from unimed_jax import config as config_lib
from unimed_jax.distributed import sharding
from unimed_jax.inference.label_volumes import output_names
from unimed_jax.training import stages, train_step
from unimed_jax.weights.checkpoint import CheckpointReader


def tiny(variant="smoke,network=unetr", **changes):
    """A network of a few thousand parameters; ``changes``: keys with ``__`` for dots."""
    config = load("lwi_vms/phantoms", variant)
    config.update_from_flattened_dict(
        {
            "data.crop_size": (32, 16, 16),
            "num_train_steps": 4,
            "log_every_steps": 1,
            "checkpoint.every_steps": 2,
            "model.unetr.width": 8,
            "model.unetr.mlp_width": 8,
            "model.unetr.features": 2,
            "model.unetr_pp.stem": (1, 2, 2),
            "model.unetr_pp.features": 2,
            "model.unetr_pp.widths": (4, 4, 8, 8),
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
    )
    with config_lib.edit(config):
        for settings in config.data.raw.values():
            settings.update({"num_volumes": 4, "voxels": 24})
        if config.stages:
            config.stages.init.num_train_steps = 2
        if "inference" in config:
            config.inference.batch_size = 8
    return config


def paths(tree):
    return {sharding.path_string(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.random((2, 1, 32, 16, 16, 1)).astype(np.float32),
        "label": rng.integers(0, 3, (2, 1, 32, 16, 16)).astype(np.uint8),
        "seed": rng.integers(0, 2**32, (2, 3)).astype(np.uint32),
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of both stages on one device."""
    workdir = tmp_path_factory.mktemp("runs") / "learned"
    assert train.train_stages(tiny(), workdir, jax.devices()[:1])
    return workdir


@pytest.mark.parametrize("network", ["unetr", pytest.param("unetr_pp", marks=pytest.mark.slow)])
def test_the_first_stage_is_the_weighted_sum_of_both_objectives(batch, network):
    config = tiny(f"smoke,only=init,network={network}")
    config.pretext.loss_weights.update({"reconstruction": 0.5, "permutation": 2.0})
    config.pretext.num_sub_volumes = 2
    config_lib.validate(config, 1)
    task = tasks.create(config, "")
    params = jax.jit(task.init)(jax.random.key(0))
    (loss, terms), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
        params, batch, jax.random.key(1)
    )
    want = 0.5 * terms["reconstruction"] + 2 * terms["permutation"]
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    # four heads that know nothing yet
    assert float(terms["permutation"]) == pytest.approx(4 * np.log(2), rel=0.5)
    moved = {p for p in paths(grads) if np.any(_at(grads, p))}
    assert {f"order_heads/head{i}/kernel" for i in range(4)} <= moved
    assert "network/out1/kernel" in moved
    # the reconstruction is of the full resolution alone
    assert not {"network/out2/kernel", "network/out3/kernel"} & moved


def _at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return np.asarray(tree)


def test_the_input_is_shuffled_and_masked_depending_only_on_the_draw(batch):
    task = tasks.create(tiny("smoke,only=init,network=unetr"), "")
    images = batch["image"][:, 0]
    keys = jax.random.split(jax.random.key(0), 2)
    shuffled, seen, order = map(np.asarray, task.corrupt(images, keys))
    for b in range(2):
        want = np.concatenate([images[b, 16 * s : 16 * s + 16] for s in order[b]])
        np.testing.assert_array_equal(shuffled[b], want)
        hidden = seen[b] == 0
        np.testing.assert_array_equal(seen[b][~hidden], shuffled[b][~hidden])
        assert hidden.mean() == 0  # floor(0.4 * 2) cubes of 16 x 16 x 16
    config = tiny("smoke,only=init,network=unetr", pretext__mask_cube=(8, 4, 4))
    _, seen, _ = tasks.create(config, "").corrupt(images, keys)
    assert np.mean(np.asarray(seen) == 0) == pytest.approx(25 / 64)  # floor(0.4 * 64)
    alone = tasks.create(config, "").corrupt(images[1:], keys[1:])
    np.testing.assert_array_equal(alone[1][0], seen[1])


def test_the_second_stage_weighs_every_resolution(batch):
    config = tiny("smoke,network=unetr_pp,init=random", loss__outputs=(1.0, 0.5, 0.25))
    task = tasks.create(config, "")
    params = jax.jit(task.init)(jax.random.key(0))
    loss, terms = jax.jit(task.loss)(params, batch, jax.random.key(1))
    want = sum(w / 7 * terms[f"segmentation_{n}"] for n, w in ((1, 4), (2, 2), (3, 1)))
    assert float(loss) == pytest.approx(float(want), rel=1e-5)


@pytest.mark.slow
def test_one_command_runs_both_stages_and_lists_what_is_transferred(finished):
    first = finished / "stages" / "init"
    assert len(losses_of(first)) == 2 and len(losses_of(finished)) == 4
    results = json.loads((finished / "results.json").read_text())
    for name in ("lung", "lesion", "mean"):
        assert {f"segmentation/{name}/dice", f"segmentation/{name}/hd95_mm"} <= set(results)
    splits = json.loads((finished / "splits" / "segmentation.json").read_text())
    assert splits["evaluated"] == ["val"]
    assert len(splits["patients"]["val"]) == 1 and len(splits["patients"]["train"]) == 3
    report = (finished / "report.html").read_text()
    assert "Overlays" in report and "data:image" in report

    listed = json.loads((finished / "transfer.json").read_text())
    assert listed["new"] == ["network/out1/bias", "network/out1/kernel"]
    assert {n.split("/")[0] for n in listed["left"]} == {"network", "order_heads"}
    task = tasks.create(tiny(), str(finished))
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    assert set(listed["transferred"]) | set(listed["new"]) == paths(abstract)
    # the run began with these very weights
    learned = task.pretrained(abstract)
    reader = CheckpointReader(first, 2)
    stage = tasks.create(reader.config, str(first))
    own = reader.params(jax.eval_shape(stage.init, jax.random.key(0)))
    assert paths(learned) == set(listed["transferred"])
    for path in listed["transferred"]:
        np.testing.assert_array_equal(_at(learned, path), _at(own, path))
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    state = train_step.initial_state(task, train_step.TrainStep(task, tiny(), 4, mesh))
    start = sharding.select_leaves(state["params"], lambda path: path in set(listed["transferred"]))
    for path in listed["transferred"]:
        np.testing.assert_array_equal(_at(start, path), _at(own, path))


@pytest.mark.slow
def test_an_average_with_the_transferred_start_is_scored_on_volumes(finished, tmp_path):
    out, metric = tmp_path / "out", "segmentation/mean/dice"
    arguments = [str(finished), "--alpha=0,1", f"--metric={metric}", f"--out={out}"]
    assert average.main(arguments) == 0
    recipe = CheckpointReader(out).meta["average"]
    begun, trained = (row["score"] for row in recipe["evaluation"]["candidates"])
    assert trained == json.loads((finished / "results.json").read_text())[metric]
    assert recipe["inputs"][0]["share"] == float(trained > begun)
    assert recipe["evaluation"]["splits"] == ["val"]
    assert len(recipe["evaluation"]["corpora"]) == 1


@pytest.mark.slow
def test_a_finished_stage_is_skipped_and_the_rest_resumes_on_other_devices(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    before = (workdir / "stages" / "init" / "report.html").stat().st_mtime_ns
    assert train.train_stages(tiny(), workdir, jax.devices()[:2])
    assert (workdir / "stages" / "init" / "report.html").stat().st_mtime_ns == before
    once, again = losses_of(finished), losses_of(workdir)
    assert again.keys() == once.keys()
    for step in (3, 4):
        assert again[step] == pytest.approx(once[step], rel=1e-3)


@pytest.mark.slow
def test_an_interrupted_first_stage_resumes_before_the_second_begins(finished, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("config.json", "corpora", "stages"):
        source = finished / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, workdir / name)
    (workdir / "stages" / "init" / "results.json").unlink()
    assert train.train_stages(tiny(), workdir, jax.devices()[:1])
    for path in (workdir, workdir / "stages" / "init"):
        assert losses_of(path) == losses_of(finished / path.relative_to(workdir))


@pytest.mark.slow
def test_volumes_are_segmented_in_their_original_space(finished, tmp_path):
    rng = np.random.default_rng(0)
    affine = np.diag([-3.0, 4.0, 5.0, 1.0])
    broken = rng.random((20, 30, 18)).astype(np.float32)
    broken[3, 4, 5] = np.nan
    names = ("a/scan.nii.gz", "b/scan.nii.gz", "b.nii", "UPPER.NII.GZ")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(rng.random((20, 30, 18)).astype(np.float32), affine)
        nibabel.save(image, tmp_path / name)
    nibabel.save(nibabel.Nifti1Image(broken, affine), tmp_path / "broken.nii")
    (tmp_path / "text.nii").write_text("no volume")
    out = tmp_path / "out"
    inputs = [str(tmp_path / name) for name in (*names, "broken.nii", "text.nii")]
    command = [sys.executable, "-m", "unimed_jax.segment", f"--checkpoint={finished}", "--overlay",
               f"--out={out}", "--set=inference.overlap=0.0", *inputs]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, timeout=600, capture_output=True, text=True)
    assert done.returncode == 2
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("error: 2 of 6"))
    assert "broken.nii" in said and "NaN" in said and "cannot read the volume text.nii" in said
    with (out / "volumes.csv").open() as file:
        table = {row["labels"]: row for row in csv.DictReader(file)}
    assert list(table) == list(names)
    for name in names:
        found, given = nibabel.load(out / name), nibabel.load(tmp_path / name)
        assert found.shape == given.shape and found.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(found.affine, given.affine)
        labels = np.asarray(found.dataobj)
        assert set(np.unique(labels)) <= {0, 1, 2}
        for value, key in ((1, "lung_ml"), (2, "lesion_ml")):
            assert float(table[name][key]) == pytest.approx((labels == value).sum() * 60 / 1000)
        picture = out / "overlays" / name.replace(".nii.gz", "").replace(".NII.GZ", "")
        with Image.open(picture.with_name(f"{picture.name.removesuffix('.nii')}.png")) as image:
            assert image.width > 192
    gzipped = [name for name in names if (out / name).read_bytes()[:2] == b"\x1f\x8b"]
    assert gzipped == ["a/scan.nii.gz", "b/scan.nii.gz", "UPPER.NII.GZ"]
    assert not list(out.rglob("*unfinished*")) and not (out / "broken.nii").exists()


@pytest.mark.parametrize(
    ("volumes", "targets"),
    [
        (["/d/a.nii", "/d/b.nii.gz"], ["a.nii", "b.nii.gz"]),
        (["/d/p1/ct.nii", "/d/p2/ct.nii"], ["p1/ct.nii", "p2/ct.nii"]),
        (["/d/p1/x/ct.nii", "/d/p2/x/ct.nii", "/d/s.nii"], ["p1/x/ct.nii", "p2/x/ct.nii", "s.nii"]),
        (["/d/A.NII.GZ", "/d/b.mgz", "/d/c"], ["A.NII.GZ", "b.nii.gz", "c.nii.gz"]),
    ],
)
def test_every_volume_has_an_output_of_its_own(volumes, targets):
    assert list(map(str, output_names(list(map(Path, volumes))))) == targets


@pytest.mark.parametrize(
    ("volumes", "message"),
    [
        (["/d/a.nii", "/d/../d/a.nii"], "/d/a.nii is given twice"),
        (["/d/a.mgz", "/d/a.nii.gz"], "would be written to a.nii.gz"),
    ],
)
def test_volumes_that_would_share_an_output_are_refused(volumes, message):
    with pytest.raises(UserError, match=message):
        output_names(list(map(Path, volumes)))


def test_a_stage_has_the_keys_of_the_run_but_for_its_own(tmp_path):
    config = tiny(seed=5, optimizer__learning_rate=0.5, data__root="there")
    stage = stages.derived(config, "init", tmp_path)
    assert stage.task == "volumetric_init" and stage.num_train_steps == 2
    assert stage.seed == 5 and stage.optimizer.learning_rate == 0.5
    assert tuple(stage.data.crop_size) == (32, 16, 16) and stage.model.unetr.width == 8
    assert stage.data.root == str(tmp_path) and not stage.data.raw
    assert not stage.evals and not stage.stages and not stage.init.network
    with config_lib.edit(config):
        config.stages.init.colour = "red"
    with pytest.raises(ConfigError, match=r"config.stages.init.*config.colour"):
        stages.derived(config, "init", tmp_path)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_named(finished):
    task = tasks.create(tiny(init__network=str(finished), data__crop_size=(32, 32, 16)), "")
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    with pytest.raises(UserError, match=r"positional_embedding has shape \(2, 8\).*\(4, 8\)"):
        task.pretrained(abstract)


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        (
            "smoke",
            {"data__crop_size": (32, 24, 16)},
            r"data.crop_size=\(32, 24, 16\).*multiples of \(8, 16, 16\)",
        ),
        ("smoke,network=unetr", {"data__crop_size": (24, 16, 16)}, r"multiples of \(16, 16, 16\)"),
        ("smoke", {"model__network": "vnet"}, "model.network='vnet'"),
        ("smoke", {"data__spacing": (1.0, -1.0, 1.0)}, "data.spacing"),
        (
            "smoke",
            {"augmentation__rot90": 0.5, "data__crop_size": (32, 16, 32)},
            "augmentation.rot90",
        ),
        ("smoke", {"loss__dice": "cubed"}, "loss.dice='cubed'"),
        ("smoke", {"optimizer__accumulate_steps": 2}, "accumulate_steps"),
        ("smoke,only=init", {"pretext__num_sub_volumes": 3}, "pretext.num_sub_volumes=3"),
        ("smoke,only=init", {"pretext__mask_cube": (5, 4, 4)}, "pretext.mask_cube"),
        ("smoke,only=init", {"pretext__mask_ratio": 1.0}, "pretext.mask_ratio"),
        (
            "smoke,only=init",
            {"pretext__permutation_grouping": "height"},
            "permutation_grouping='height'",
        ),
        (
            "smoke,only=init",
            {
                "pretext__loss_weights__permutation": 0.0,
                "pretext__loss_weights__reconstruction": 0.0,
            },
            "pretext.loss_weights=",
        ),
    ],
)
def test_an_impossible_config_is_named(variant, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.validate(tiny(variant, **changes), 1)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("network=vnet", "no network=vnet; valid: unetr_pp, unetr"),
        ("init=found", "no init=found"),
        ("fold=3", "no fold=3; valid: 0, 1, 2"),
        ("only=both", "no only=both"),
        ("tiny", "no argument 'tiny'; valid: network, init, only, smoke, fold"),
    ],
)
def test_an_unknown_variant_is_refused(variant, message):
    with pytest.raises(ConfigError, match=message):
        load("lwi_vms/covid_ct", variant)


@pytest.mark.parametrize(
    "data", ["covid_ct", "brain_tissue", "spleen_ct", "spinal_cord", "synapse", "lung", "phantoms"]
)
@pytest.mark.parametrize("network", ["unetr", "unetr_pp"])
def test_every_data_set_makes_valid_configs(data, network, tmp_path):
    for more in ("", ",smoke", ",init=random", ",only=init"):
        config = load(f"lwi_vms/{data}", f"network={network}{more}")
        config_lib.validate(config, 1)
        for name in config.stages:
            config_lib.validate(stages.derived(config, name, tmp_path), 1)
    total = load(f"lwi_vms/{data}", f"network={network},init=random").num_train_steps
    learned = load(f"lwi_vms/{data}", f"network={network},init=learned")
    first = learned.stages.init.get("num_train_steps", 0)
    assert learned.num_train_steps + first == total  # an equal budget
