"""The sources that can be converted: each is one entry of ``SOURCES``.

An entry names a dataclass of options and a function that opens the source. Every field of the
options becomes a flag of ``tools/convert_corpus.py``, with its annotation as the help text. Rows
hold the locations of images, not pixels: images are read in many processes, when the shards are
written.
"""

from collections.abc import Mapping

from input_pipeline.conversion.sources import (
    folder,
    mask_phantoms,
    mask_table,
    masks,
    nifti_slices,
    nifti_volumes,
    tables,
    tfds,
    unimed,
    volume_phantoms,
    webdataset,
)
from input_pipeline.conversion.sources.base import CaptionedSource, Source
from input_pipeline.conversion.unimed_parts import PARTS

SOURCES: Mapping[str, Source] = {
    "csv": CaptionedSource(
        "a CSV of image paths, labels and texts", tables.TableOptions, tables.open_csv
    ),
    "jsonl": CaptionedSource(
        "JSON Lines of image paths, labels and texts", tables.TableOptions, tables.open_jsonl
    ),
    "folder": CaptionedSource(
        "a folder of images per class", folder.FolderOptions, folder.open_folder
    ),
    "webdataset": CaptionedSource(
        "tars of images and texts, as open_clip and UniMed write them",
        webdataset.TarOptions,
        webdataset.open_tars,
    ),
    "tfds": CaptionedSource(
        "a labelled data set of TensorFlow Datasets (also tfds:NAME)",
        tfds.TfdsOptions,
        tfds.open_tfds,
    ),
    "masks": Source(
        "a folder of images and one of masks, for segmentation",
        masks.MaskOptions,
        masks.open_masks,
    ),
    "mask_table": Source(
        "a CSV of images and masks, for segmentation",
        mask_table.MaskTableOptions,
        mask_table.open_mask_table,
    ),
    "nifti_slices": Source(
        "slices of NIfTI volumes with label volumes, for segmentation",
        nifti_slices.NiftiOptions,
        nifti_slices.open_nifti,
    ),
    "mask_phantoms": Source(
        "generated images with masks, in one of two styles",
        mask_phantoms.PhantomOptions,
        mask_phantoms.open_phantoms,
    ),
    "nifti_volumes": Source(
        "NIfTI volumes with label volumes (MSD, BTCV, folders), for segmentation",
        nifti_volumes.VolumeOptions,
        nifti_volumes.open_volumes,
        nifti_volumes.__doc__,
    ),
    "volume_phantoms": Source(
        "generated volumes with labels",
        volume_phantoms.VolumePhantomOptions,
        volume_phantoms.open_phantoms,
    ),
    **{key: unimed.source(key, part) for key, part in PARTS.items()},
}
