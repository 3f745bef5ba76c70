"""TFDS metadata beside the shards, so that `tfds.builder_from_directory(DIR)` reads a corpus.

Written by TFDS' own functions; importing it takes seconds, which is why only `write` does so.
"""

import contextlib
import io
import pathlib
import tempfile

from input_pipeline.files import AnyPath, write_bytes_atomically
from input_pipeline.manifest import Manifest

FILE_NAMES = ("dataset_info.json", "features.json")


def write(directory: AnyPath, manifest: Manifest) -> None:
    """Writes `dataset_info.json` and `features.json` for the shards that `manifest` lists."""
    import numpy as np
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(
        {
            "id": text,
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": tfds.features.Sequence(text),
            "num_original_captions": tfds.features.Scalar(np.int64),
            "provenance": tfds.features.Sequence(text),
            "provenance_index": tfds.features.Sequence(np.int64),
            "labels": tfds.features.Sequence(text),
            "modality": text,
            "source": text,
            "group": text,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder,
            template="{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}",
            dataset_name=manifest.name,
            filetype_suffix="tfrecord",
        )
        splits = [
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[shard.num_samples for shard in split.shards],
                num_bytes=sum(shard.num_bytes for shard in split.shards),
                filename_template=template,
            )
            for name, split in manifest.splits.items()
        ]
        for split in manifest.splits.values():
            for shard in split.shards:  # TFDS looks for the names, not into the files
                (pathlib.Path(folder) / shard.file).touch()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints its progress
            tfds.folder_dataset.write_metadata(
                data_dir=folder,
                features=features,
                split_infos=splits,
                filename_template=template,
                check_data=False,
            )
        for name in FILE_NAMES:
            write_bytes_atomically(directory / name, (pathlib.Path(folder) / name).read_bytes())
