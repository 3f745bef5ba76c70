"""A corpus made of damaged files: the rows are counted, and training reads what was written."""

import csv
import warnings

import pytest
from helpers import corpora, damaged_images

from input_pipeline import dataset, manifest, records, transforms


@pytest.mark.slow
def test_training_reads_every_sample_of_a_corpus_of_damaged_files(tmp_path):
    files = {f"{n}.png": data for n, (_, data) in enumerate(damaged_images.damaged(180, seed=2))}
    files |= {f"ok{n}.jpg": data for n, data in enumerate(damaged_images.valid().values())}
    with (tmp_path / "table.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("image", "modality", "text"))
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
            writer.writerow((name, "ct", f"picture {name}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (
            corpora.convert(
                "csv",
                tmp_path / "out",
                f"--input={tmp_path / 'table.csv'}",
                "--max_rejected=0.9",
                "--source=fuzz",
            )
            == 0
        )
    content = manifest.load(tmp_path / "out")
    assert content.read == len(files) == content.written + content.rejected
    assert content.rejected == len(corpora.rejections(tmp_path / "out"))
    assert len(damaged_images.valid()) < content.written < len(files) - 45

    def decode(serialized, seeds, sources):
        samples = records.parse(serialized)
        images = transforms.resize_and_center_crops(samples["image"], 16)
        return {"id": samples["id"], "image": images}

    batches = dataset.evaluation_batches(
        str(tmp_path / "out"), content, "train", decode, batch_size=1
    )
    valid = [bool(batch["valid"][0]) for batch in batches]
    assert valid == [True] * content.written
