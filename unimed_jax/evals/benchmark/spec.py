"""Benchmark suites as data: `suites/NAME.toml` lists sets, `suites/sets/KEY.toml` describes one.

The file of a set lists its classes in label order with their prompts, the location of its files in
a test archive, its metric, and known facts. The prompts of a class are the set's `templates`,
filled with the `phrase` of the class, then the `prompts` of the class.
"""

import dataclasses
import hashlib
import importlib.resources
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from input_pipeline.io.errors import ConfigError
from unimed_jax.evals.prompt_sets import PromptTask

METRICS = ("accuracy", "auc")
MODALITIES = {
    "xray": "X-ray",
    "ct": "CT",
    "mri": "MRI",
    "ultrasound": "Ultrasound",
    "fundus": "Fundus",
    "histopathology": "Histopathology",
    "mixed": "Mixed",
}
ON_BAD_IMAGE = ("stop", "count")
ACCESS = {
    "public": "a public download",
    "registration": "after registration",
    "request": "on request",
}
HEADERS = ("always", "maybe")
CELLS = ("present", "absent", "left_out")


@dataclass(frozen=True)
class CsvLayout:
    """A table with a row per image.

    Attributes:
      path: path of the table, relative to the data root; of several, the first that exists is read.
      image: column of the image path: its name, or its position from 0 where names are not public.
      label: column of the label; not with `one_hot`.
      positions: name of a column -> its position from 0, by which the published reader counts; it
        is read where a table has no such name.
      one_hot: columns of which the one that is 1 is the class; they are in label order.
      labels: 'names' (the `label` of each class) or 'index' (class numbers).
      images: folders of the image paths, relative to the data root, one per `path`; '{label}'
        stands for the label. Empty: the folder of the table.
      where: column -> value that a row must have to belong to the set.
      ignore: labels that are in the table but not in the set.
      header: 'always' (the first line names the columns) or 'maybe' (unless its label is a class).
      group: regular expression whose first group, found in an image path, is the patient or exam.
      group_columns: columns of the patient or exam; the first that a table has comes before
        `group`.
    """

    path: tuple[str, ...]
    image: str | int
    label: str | int | None = None
    positions: Mapping[str, int] = field(default_factory=dict)
    one_hot: tuple[str, ...] = ()
    labels: str = "names"
    images: tuple[str, ...] = ()
    where: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    header: str = "always"
    group: str = ""
    group_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class FilesLayout:
    """A folder in which the path of an image determines its class.

    Attributes:
      path: path of the folder below the data root; of several, the first that exists is read.
      pattern: regular expression for a whole path below it, with a group named `label`.
      labels, ignore, group: as in CsvLayout.
    """

    path: tuple[str, ...]
    pattern: str
    labels: str = "names"
    ignore: tuple[str, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class FindingsLayout:
    """A table with a row per image that says of several findings whether they are present.

    Attributes:
      path, where, group, group_columns: as in CsvLayout.
      image: column of the image.
      images: folders of the images, relative to the data root, one per `path`. One with a `*` is a
        pattern: each image is looked for by its name in all folders that match it.
      suffixes: what follows the cell of the image in the name of the file; the first that exists.
      listed: a file beside the table with the names of the images that belong to the set, one per
        line; '' for all.
      joined: column that holds the findings that are present, joined by '|'; '' where each finding
        has its own column of 1, 0, -1 (uncertain) or nothing.
      uncertain, empty: what such a cell means: 'present', 'absent' or 'left_out' (of the scores of
        that finding).
    """

    path: tuple[str, ...]
    image: str
    images: tuple[str, ...]
    suffixes: tuple[str, ...] = ("",)
    listed: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    joined: str = ""
    uncertain: str = "left_out"
    empty: str = "absent"
    group: str = ""
    group_columns: tuple[str, ...] = ()


Layout = CsvLayout | FilesLayout | FindingsLayout


@dataclass(frozen=True)
class TfdsLayout:
    """A data set of TFDS, prepared below the data root; labels are numbered as the classes are."""

    dataset: str
    split: str


_LAYOUTS: Mapping[str, type] = {
    "csv": CsvLayout,
    "files": FilesLayout,
    "findings": FindingsLayout,
}


@dataclass(frozen=True)
class Source:
    """Where a user gets the files of a set.

    Attributes:
      url: the owner's page.
      access: one of ACCESS.
      licence: of the images, as far as it is known.
      steps: commands and sentences that lay the files out; SETS stands for the data root.
    """

    url: str
    access: str
    licence: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class SetClass:
    """A class. `label` is what the files call it, `modality` is given where a set mixes them."""

    name: str
    label: str
    prompts: tuple[str, ...]
    modality: str = ""


@dataclass(frozen=True)
class SetSpec:
    """One evaluation set. A file with findings makes one of each: absent (0) or present (1).

    Attributes:
      key: name in suites, results and file names; of a finding FAMILY.FINDING.
      family: the file's name, for a finding; else ''.
      finding: the finding's name in the table, for a finding; else ''.
      metric: the score that is published for it: 'accuracy', or 'auc' of two classes.
      num_images: the known number of rows of the set; None: unknown.
      paper_prompts: prompts per class in the paper's protocol, if not all.
      leak: the images that are in UniMed's training data; '' if none are known to be.
      published: model -> score in percent.
      sha256: of the file.
    """

    key: str
    title: str
    modality: str
    metric: str
    classes: tuple[SetClass, ...]
    layout: Layout
    source: Source
    family: str = ""
    finding: str = ""
    tfds: TfdsLayout | None = None
    num_images: int | None = None
    paper_prompts: int | None = None
    leak: str = ""
    notes: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""

    @property
    def file_labels(self) -> tuple[str, ...]:
        """What the files call each class."""
        if isinstance(self.layout, FindingsLayout):
            return ("0", "1")
        one_hot = isinstance(self.layout, CsvLayout) and bool(self.layout.one_hot)
        by_index = one_hot or self.layout.labels == "index"
        return tuple(str(i) if by_index else c.label for i, c in enumerate(self.classes))

    @property
    def prompts(self) -> PromptTask:
        """The packaged prompts as a zero-shot task."""
        return PromptTask(
            name=self.key,
            field="label",
            source=None,
            classes=tuple(c.name for c in self.classes),
            prompts=tuple(c.prompts for c in self.classes),
        )


@dataclass(frozen=True)
class Suite:
    """Sets in order.

    Attributes:
      sets: the sets to evaluate.
      not_chosen: the other sets of the suite, which means must name.
      on_bad_image: the effect of an image that does not decode: 'stop' ends the run; 'count' lists
        it, leaves it out of the scores, and calls its set incomplete.
      published: model -> {modality or 'mean': percent}.
    """

    name: str
    title: str
    sets: tuple[SetSpec, ...]
    not_chosen: tuple[SetSpec, ...] = ()
    on_bad_image: str = "count"
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def suite_names() -> tuple[str, ...]:
    """The names of the suites in the package."""
    return tuple(sorted(f.name[:-5] for f in _folder().iterdir() if f.name.endswith(".toml")))


def load_suite(name: str, keys: Sequence[str] = ()) -> Suite:
    """A packaged suite.

    Args:
      name: one of `suite_names()`.
      keys: keys of the sets to evaluate, or of families of findings; empty: all.

    Raises:
      ConfigError: no such suite, or no set with such a key.
    """
    if name not in suite_names():
        raise ConfigError(f"--suite={name}: no such suite; there are {', '.join(suite_names())}")
    content = tomllib.loads((_folder() / f"{name}.toml").read_text("utf-8"))
    specs = [
        spec
        for key in content["sets"]
        for spec in parse_sets((_folder() / "sets" / f"{key}.toml").read_bytes(), f"{key}.toml")
    ]
    names = {name for spec in specs for name in (spec.key, spec.family)}
    if unknown := [key for key in keys if key not in names]:
        known = ", ".join(content["sets"])
        raise ConfigError(f"--suite.sets={unknown[0]}: {name} has no such set; it has {known}")
    chosen = [spec for spec in specs if not keys or spec.key in keys or spec.family in keys]
    return Suite(
        name,
        content["title"],
        sets=tuple(chosen),
        not_chosen=tuple(spec for spec in specs if spec not in chosen),
        on_bad_image=content["on_bad_image"],
        published=content.get("published", {}),
    )


def all_set_keys() -> frozenset[str]:
    """The keys of the sets of all suites in the package."""
    return frozenset(spec.key for name in suite_names() for spec in load_suite(name).sets)


def parse_sets(content: bytes, file: str) -> tuple[SetSpec, ...]:
    """The set of a file, or one for each of its findings.

    Args:
      content: of the file.
      file: its name, KEY.toml, for messages too.

    Raises:
      ConfigError: what is wrong, by file and key.
    """
    try:
        data = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    layout = data.get("layout")
    if not isinstance(layout, dict) or layout.get("kind") not in _LAYOUTS:
        raise ConfigError(f"{file}: layout.kind must be one of {', '.join(_LAYOUTS)}")
    kind = _LAYOUTS[layout.pop("kind")]
    for key in ("path", "images"):
        if isinstance(layout.get(key), str):
            layout[key] = [layout[key]]
    data["layout"] = _build(kind, layout, f"{file}: layout")
    for key, part in (("source", Source), ("tfds", TfdsLayout)):
        if key in data:
            if not isinstance(data[key], dict):
                raise ConfigError(f"{file}: {key}: must be a table")
            data[key] = _build(part, data[key], f"{file}: {key}")
    derived = {"sha256": hashlib.sha256(content).hexdigest()}
    key = file.removesuffix(".toml")
    if kind is FindingsLayout:
        specs = _findings(data, key, derived, file)
    else:
        templates = data.pop("templates", ())
        data["classes"] = tuple(
            _class(item, templates, f"{file}: classes[{i}]")
            for i, item in enumerate(data.get("classes", ()))
        )
        specs = (_build(SetSpec, data, file, key=key, family="", finding="", **derived),)
    for spec in specs:
        _check(spec, file)
    return specs


def _findings(
    data: dict[str, Any], family: str, derived: Mapping[str, Any], file: str
) -> tuple[SetSpec, ...]:
    """A set for each finding of a file, whose classes are 'absent' and 'present'."""
    templates = {name: data.pop(name, ()) for name in ("absent", "present")}
    specs = []
    for i, item in enumerate(data.pop("findings", ())):
        where = f"{file}: findings[{i}]"
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ConfigError(f"{where}: must be a table with a name")
        name, phrase = item["name"], item.get("phrase", "")
        if unknown := sorted(item.keys() - {"name", "label", "phrase", *templates}):
            raise ConfigError(f"{where} ({name}): unknown key {unknown[0]!r}")
        classes = []
        for label, word in enumerate(templates):
            filled = {"name": word, "label": str(label), "prompts": item.get(word, ())}
            if phrase:
                filled["phrase"] = phrase
            given = templates[word] if phrase else ()
            classes.append(_class(filled, given, f"{where} ({name})"))
        slug = re.sub(r"\W+", "_", name.lower()).strip("_")
        specs.append(
            _build(
                SetSpec,
                data | {"title": f"{data.get('title')}: {name}"},
                file,
                key=f"{family}.{slug}",
                metric="auc",
                classes=tuple(classes),
                family=family,
                finding=item.get("label", name),
                **derived,
            )
        )
    if len({spec.key for spec in specs}) < max(len(specs), 1):
        raise ConfigError(f"{file}: findings: need at least one, of different names")
    return tuple(specs)


def _folder() -> Any:
    return importlib.resources.files("unimed_jax.evals.benchmark") / "suites"


def _class(item: Any, templates: Sequence[str], where: str) -> SetClass:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ConfigError(f"{where}: must be a table with a name")
    item = dict(item)
    phrase = item.pop("phrase", "")
    if bool(templates) != bool(phrase):
        raise ConfigError(f"{where} ({item['name']}): phrase and templates need each other")
    filled = (template.replace("{phrase}", phrase) for template in templates)
    prompts = [text[0].upper() + text[1:] for text in filled] + list(item.pop("prompts", ()))
    if not prompts:
        raise ConfigError(f"{where} ({item['name']}): no prompts")
    item.setdefault("label", item["name"])
    return _build(SetClass, item | {"prompts": prompts}, where)


def _build(kind: type, values: Mapping[str, Any], where: str, **derived: Any) -> Any:
    """A dataclass of a TOML table: no unknown keys, none missing, lists as tuples.

    `derived` are the fields that do not come from the table.
    """
    known = {f.name: f for f in dataclasses.fields(kind) if f.name not in derived}
    if unknown := sorted(values.keys() - known.keys()):
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    required = {
        name
        for name, f in known.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - values.keys()):
        raise ConfigError(f"{where}: misses {missing[0]!r}")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind(**given, **derived)


def _check(spec: SetSpec, file: str) -> None:
    names, labels = [c.name for c in spec.classes], [c.label for c in spec.classes]
    if len(names) < 2 or len(set(names)) < len(names) or len(set(labels)) < len(labels):
        raise ConfigError(f"{file}: classes: need at least two, of different names and labels")
    if spec.metric not in METRICS or (spec.metric == "auc" and len(names) != 2):
        raise ConfigError(f"{file}: metric: must be accuracy or, for two classes, auc")
    if unknown := {spec.modality, *(c.modality for c in spec.classes if c.modality)} - set(
        MODALITIES
    ):
        raise ConfigError(f"{file}: modality: {min(unknown)!r}; valid: {', '.join(MODALITIES)}")
    if spec.source.access not in ACCESS:
        raise ConfigError(f"{file}: source.access: must be one of {', '.join(ACCESS)}")
    layout = spec.layout
    if isinstance(layout, FindingsLayout):
        if len(layout.images) != len(layout.path):
            raise ConfigError(f"{file}: layout.images: must name a folder for each path")
        for key in ("uncertain", "empty"):
            if getattr(layout, key) not in CELLS:
                raise ConfigError(f"{file}: layout.{key}: must be one of {', '.join(CELLS)}")
    elif layout.labels not in ("names", "index"):
        raise ConfigError(f"{file}: layout.labels: is {layout.labels!r}, must be names or index")
    try:
        groups = re.compile(layout.group).groups if layout.group else 1
        if isinstance(layout, FilesLayout) and "label" not in re.compile(layout.pattern).groupindex:
            raise re.error("it has no group named label")
    except re.error as error:
        raise ConfigError(f"{file}: layout: bad regular expression: {error}") from error
    if groups < 1:
        raise ConfigError(f"{file}: layout.group: has no group in parentheses")
    if isinstance(layout, CsvLayout):
        if (layout.label is None) == (not layout.one_hot):
            raise ConfigError(f"{file}: layout: needs either label or one_hot")
        if layout.one_hot and len(layout.one_hot) != len(names):
            raise ConfigError(f"{file}: layout.one_hot: must name {len(names)} columns")
        if layout.images and len(layout.images) != len(layout.path):
            raise ConfigError(f"{file}: layout.images: must name a folder for each path")
        if layout.header not in HEADERS:
            raise ConfigError(f"{file}: layout.header: is {layout.header!r}; valid: always, maybe")
        by_position = isinstance(layout.image, int) and isinstance(layout.label, int)
        if layout.header == "maybe" and (not by_position or layout.where or layout.group_columns):
            raise ConfigError(f"{file}: layout: with header = 'maybe', columns are positions")
