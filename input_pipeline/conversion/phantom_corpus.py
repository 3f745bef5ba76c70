"""The generated corpus of the quickstart and the tests: phantoms in TFRecord shards."""

from input_pipeline import phantoms
from input_pipeline.conversion.executors import Local
from input_pipeline.conversion.planned_rows import PlannedRow
from input_pipeline.conversion.sources.base import Conversion
from input_pipeline.conversion.write_shards import write_corpus
from input_pipeline.io.files import PathLike, to_path, write_text_atomically
from input_pipeline.manifest import Manifest
from input_pipeline.phantoms.captions import vocabulary


def write_phantoms(
    out_dir: PathLike,
    *,
    num_train_per_class: int,
    num_val_per_class: int,
    image_size: int = 72,
    seed: int = 0,
    workers: int = 1,
) -> Manifest:
    """Writes the corpus with splits ``train`` and ``val``, and its vocabulary ``vocab.txt``.

    Args:
      num_train_per_class: phantoms of each modality and finding, of which there are 17.
      num_val_per_class: the same for ``val``.
      image_size: side of the square images, in pixels.
      seed: seed of the phantoms.
      workers: number of processes; the files do not depend on it.
    """
    out_dir = to_path(out_dir)
    num_per_class = {"train": num_train_per_class, "val": num_val_per_class}
    conversion = Conversion(
        "phantoms",
        [
            PlannedRow(row, split, row.id)
            for split, part in phantoms.rows(
                num_per_class, image_size=image_size, seed=seed
            ).items()
            for row in part
        ],
        phantoms.make_sample,
    )
    manifest = write_corpus(
        out_dir,
        conversion,
        num_shards={"train": 4, "val": 1},
        seed=seed,
        executor=Local(workers),
    )
    write_text_atomically(out_dir / "vocab.txt", "".join(f"{entry}\n" for entry in vocabulary()))
    return manifest
