"""TFDS metadata beside the shards, so that `tfds.builder_from_directory(DIR)` reads a corpus.

Written by functions of TFDS; importing it takes seconds, so only `write` does.
"""

import contextlib
import io
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from input_pipeline.io.files import AnyPath, write_bytes_atomically
from input_pipeline.manifest import Manifest

FILE_NAMES = ("dataset_info.json", "features.json")


def write(directory: AnyPath, manifest: Manifest, features: Mapping[str, Any]) -> None:
    """Writes `dataset_info.json` and `features.json` for the shards that `manifest` lists.

    `features` are those of the schema (`records.Schema.tfds_features`).
    """
    import tensorflow_datasets as tfds

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
            for shard in split.shards:  # TFDS checks the names, not the contents
                (pathlib.Path(folder) / shard.file).touch()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints its progress
            tfds.folder_dataset.write_metadata(
                data_dir=folder,
                features=tfds.features.FeaturesDict(dict(features)),
                split_infos=splits,
                filename_template=template,
                check_data=False,
            )
        for name in FILE_NAMES:
            write_bytes_atomically(directory / name, (pathlib.Path(folder) / name).read_bytes())
