"""The source `tfds`: a data set that TensorFlow Datasets has prepared as TFRecord files.

Images are neither decoded nor copied beforehand: a row holds the location of the encoded image in
the files of the data set.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

from input_pipeline.conversion.planned_rows import SourceRow
from input_pipeline.conversion.sources.base import OpenedSource, corpus_name
from input_pipeline.io.errors import CorpusError
from input_pipeline.io.files import AnyPath, to_path

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_RECORD_HEADER, _RECORD_FOOTER = 12, 4  # bytes: length and its checksum; checksum of the data


@dataclass(frozen=True)
class TfdsOptions:
    """Flags of the `tfds` source."""

    dataset: Annotated[str, "NAME, NAME/CONFIG or NAME:VERSION"]
    modality: Annotated[
        str, "modality of all images: xray, ct, mri, ultrasound, pathology, fundus, ..."
    ]
    data_dir: Annotated[AnyPath | None, "folder of prepared data sets (TFDS' default)"] = None
    image_key: Annotated[str, "feature of the image (image)"] = "image"
    label_key: Annotated[str, "feature of the label or labels (label)"] = "label"
    text_key: Annotated[str | None, "feature of an original text about the image (none)"] = None
    group_key: Annotated[str | None, "feature of the patient or study (none)"] = None
    source: Annotated[str | None, "name of the collection (name of the data set)"] = None


def open_tfds(options: TfdsOptions) -> OpenedSource:
    """All splits under their names; `validation` becomes `val`."""
    import tensorflow_datasets as tfds

    try:
        data_dir = None if options.data_dir is None else str(options.data_dir)
        builder = tfds.builder(options.dataset, data_dir=data_dir, try_gcs=False)
        splits = builder.info.splits
    except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CorpusError(f"--dataset={options.dataset}: {reason}") from error
    if not splits:
        raise CorpusError(
            f"{options.dataset} is not prepared in {builder.data_dir}; prepare it with `tfds build "
            f"{options.dataset}`, or give its --data_dir"
        )
    if (file_format := builder.info.file_format) != tfds.core.FileFormat.TFRECORD:
        raise CorpusError(
            f"{options.dataset} is prepared as {file_format.value}; prepare it with `tfds build "
            f"{options.dataset} --file_format=tfrecord`"
        )
    for key in (options.image_key, options.label_key, options.text_key, options.group_key):
        if key and key not in builder.info.features:
            features = sorted(builder.info.features)
            raise CorpusError(f"{options.dataset} has no feature {key!r}; found {features}")
    name = corpus_name(options.source or builder.name)
    metadata = {
        "dataset": builder.info.full_name,
        "licence": builder.info.redistribution_info.license,
    }
    return OpenedSource(to_path(builder.data_dir), name, _rows(options, builder, name), metadata)


def _rows(
    options: TfdsOptions, builder: "tfds.core.DatasetBuilder", source: str
) -> Iterator[SourceRow]:
    import tensorflow as tf

    number = 0
    for split, info in builder.info.splits.items():
        index = 0
        for path in info.filepaths:
            offset = 0
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                number += 1
                features = tf.train.Example.FromString(record).features.feature
                (image,) = features[options.image_key].bytes_list.value
                begin = offset + _RECORD_HEADER + record.index(image)
                offset += _RECORD_HEADER + len(record) + _RECORD_FOOTER
                yield SourceRow(
                    row=number,
                    id=f"{source}/{split}/{index:08d}",
                    image=PurePath(path).name,
                    texts=_texts(builder, features, options.text_key),
                    labels=_texts(builder, features, options.label_key),
                    modality=options.modality,
                    source=source,
                    split="val" if split == "validation" else split,
                    group=" ".join(_texts(builder, features, options.group_key)),
                    span=(begin, len(image)),
                )
                index += 1


def _texts(builder: "tfds.core.DatasetBuilder", features: Any, key: str | None) -> tuple[str, ...]:
    """The values of a feature as texts: class names, or the values themselves."""
    if key is None:
        return ()
    stored = features[key]
    names = builder.info.features[key]
    names = getattr(names, "feature", names)  # of a sequence
    if stored.int64_list.value:
        if hasattr(names, "int2str"):
            return tuple(names.int2str(value) for value in stored.int64_list.value if value >= 0)
        return tuple(str(value) for value in stored.int64_list.value)
    texts = (" ".join(value.decode("utf-8").split()) for value in stored.bytes_list.value)
    return tuple(text for text in texts if text)
