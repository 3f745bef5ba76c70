import hashlib
import json
import os

import numpy as np
import pytest

from input_pipeline.io.errors import ConfigError
from unimed_jax.evals import prompt_sets
from unimed_jax.evals.classification import class_embeddings

VALID = {
    "name": "tiny",
    "version": 3,
    "tasks": {
        "modality": {
            "field": "modality",
            "classes": {"ct": ["a CT"], "xray": ["an X-ray", "a film"]},
        },
        "busi": {
            "field": "label",
            "source": "busi",
            "classes": {"benign": ["benign mass"], "malignant": ["cancer"]},
        },
    },
}


def edited(path, value):
    """VALID with the value at the dotted path replaced (or, if value is ..., removed)."""
    data = json.loads(json.dumps(VALID))
    *parents, last = path.split(".")
    node = data
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return json.dumps(data).encode()


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(VALID))
    for given in (path, str(path)):
        prompts = prompt_sets.load_prompts(given)
        assert (prompts.name, prompts.version) == ("tiny", 3)
        assert prompts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    modality, busi = prompts.tasks
    assert modality == prompt_sets.PromptTask(
        "modality", "modality", None, ("ct", "xray"), (("a CT",), ("an X-ray", "a film"))
    )
    assert busi.source == "busi"
    assert modality.sentences == ("a CT", "an X-ray", "a film")
    assert modality.class_index == (0, 1, 1)
    assert class_embeddings(np.eye(3), modality.class_index).shape == (2, 3)


def test_which_samples_a_task_judges():
    modality, busi = prompt_sets.parse_prompts(json.dumps(VALID).encode(), "f").tasks
    assert modality.includes("anything") and modality.class_of("xray", ()) == 1
    assert modality.class_of("mri", ("ct",)) is None
    assert busi.includes("busi") and not busi.includes("busi2")
    assert busi.class_of("ultrasound", ("left breast", "malignant")) == 1
    assert busi.class_of("ultrasound", ("normal",)) is None
    assert busi.class_of("ultrasound", ("benign", "malignant")) is None  # ambiguous


def test_every_packaged_set_is_valid_and_named_after_its_file():
    for name in prompt_sets.packaged_names():
        assert prompt_sets.load_prompts(name).name == name


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(
        ConfigError, match="there is no packaged prompt set 'phantom'; valid:"
    ) as error:
        prompt_sets.load_prompts("phantom")
    for name in prompt_sets.packaged_names():
        assert repr(name) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"cannot read the prompt file .*none\.json: No such file"
    ):
        prompt_sets.load_prompts(os.fspath(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "p.json: not valid JSON: "),
        (b"\xff\xfe\x00", "p.json: not valid JSON: "),
        (b'{"name": "a", "name": "b"}', "not valid JSON: key 'name' occurs twice"),
        (b"[]", "p.json: top level: must be an object, got list"),
        (edited("version", ...), "top level: lacks 'version'"),
        (edited("version", "1"), "version: must be an integer, got '1'"),
        (edited("version", True), "version: must be an integer, got True"),
        (edited("name", " "), "name: must be a non-empty string, got ' '"),
        (
            edited("extra", 1),
            "top level: has unknown key 'extra'; valid: 'name', 'tasks', 'version'",
        ),
        (edited("tasks", {}), "tasks: must be an object with at least one task"),
        (edited("tasks.busi", []), "tasks.busi: must be an object, got list"),
        (
            edited("tasks.busi.feild", 1),
            "tasks.busi: has unknown key 'feild'; valid: 'classes', 'field'",
        ),
        (
            edited("tasks.busi.field", "labels"),
            "tasks.busi.field: must be one of 'modality', 'label', got 'labels'",
        ),
        (
            edited("tasks.busi.source", None),
            "tasks.busi.source: must be a non-empty string, got None",
        ),
        (
            edited("tasks.busi.classes", {"a": ["b"]}),
            "tasks.busi.classes: must map at least two classes",
        ),
        (
            edited("tasks.busi.classes.benign", []),
            "tasks.busi.classes.benign: must be a list of at least one",
        ),
        (edited("tasks.busi.classes.benign", "x"), "tasks.busi.classes.benign: must be a list"),
        (
            edited("tasks.busi.classes.benign", ["x", ""]),
            r"tasks.busi.classes.benign\[1\]: must be a non-empty",
        ),
        (edited("tasks.busi.classes.benign", [7]), r"tasks.busi.classes.benign\[0\]: .*, got 7"),
    ],
)
def test_a_broken_file_is_refused_with_file_and_key(content, message):
    with pytest.raises(ConfigError, match=message) as error:
        prompt_sets.parse_prompts(content, "p.json")
    assert str(error.value).startswith("p.json: ") and "\n" not in str(error.value)
