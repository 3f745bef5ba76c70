"""Small folders in the exact layout of each UniMed part, with invented images and texts."""

import csv
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

HEX = "0123abcd-4567ef01-89ab2345-cdef6789-01234567"  # as MIMIC names an image


def encoded(seed=0, format_="JPEG", size=(20, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_)
    return buffer.getvalue()


def put_image(path: Path, seed=0, format_="JPEG", size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed, format_, size))


def put_csv(path: Path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def put_json(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def captions(word, count=10):
    return [f"Invented caption {n} with {word}." for n in range(count)]


def _labelled(path, images, label):
    """The CSV of a label-only part: list literals by position, under a header of no meaning."""
    rows = [
        [repr([image]), repr([f"{label} {n}"]), repr(captions(f"{label} {n}"))]
        for n, image in enumerate(images)
    ]
    put_csv(path, ["a", "b", "c"], rows)


def radimagenet(raw):
    images = ["CT/abd/x/1.png", "MR/knee/y/2.png", "US/liver/z/3.png"]
    for n, image in enumerate(images):
        put_image(raw / "radimagenet" / "radiology_ai" / image, n, "PNG")
    path = raw / "radimagenet/radiology_ai/radimagenet_with_captions_training_set.csv"
    _labelled(path, [f"radiology_ai/{image}" for image in images], "finding")


def chexpert(raw):
    images = ["train/patient00001/study1/view1_frontal.jpg"]
    images += ["train/patient00002/study1/view1_frontal.jpg"]
    images += ["train/patient00002/study1/view2_lateral.jpg"]
    images += ["valid/patient64541/study1/view1_frontal.jpg"]
    for n, image in enumerate(images):
        put_image(raw / "CheXpert-v1.0-small" / image, n)
    path = raw / "CheXpert-v1.0-small/chexpert_with_captions_only_frontal_view.csv"
    _labelled(path, [f"CheXpert-v1.0-small/{image}" for image in images], "opacity")


def openi(raw):
    ids = [f"CXR{n}_1_IM-000{n}-1001" for n in range(3)]
    for n, name in enumerate(ids):
        put_image(raw / "openI/image" / f"{name}.png", n, "PNG")
    entries = [{"image_id": name, "caption": f"Invented report {name}"} for name in ids]
    put_json(raw / "openI/filter_cap.json", {"info": {"n": 3}, "annotations": entries})
    refined = {"refined_captions": [captions(name, 3) for name in ids]}
    put_json(raw / "openI/openai_refined_concepts.json", refined)


def chestxray8(raw):
    images = [f"0000000{n}_00{k}.png" for n in (1, 2) for k in (0, 1)]
    for n, image in enumerate(images):
        put_image(raw / "chest_xray8/images" / image, n, "PNG")
    _labelled(raw / "chest_xray8/Chest-Xray8_with_captions.csv", images, "nodule")
    (raw / "chest_xray8/test_list.txt").write_text("00000002_000.png\n00000002_001.png\n")


def mimic_cxr(raw):
    root = raw / "mimic-cxr-jpg/2.0.0"
    names = [f"{n}{HEX[1:]}" for n in range(4)]
    images = [f"p10/p1000000{n}/s5000000{n}/{name}.jpg" for n, name in enumerate(names)]
    for n, image in enumerate(images[:3]):  # the fourth is missing on disk
        put_image(root / "files" / image, n)
    rows = [
        [repr([f"2.0.0/files/{image}"]), repr(["edema"]), repr(captions("edema")), report]
        for image, report in zip(images, ("Invented report.", "", "", ""), strict=True)
    ]
    path = root / "mimic_cxr_with_captions_and_reports_only_frontal_view.csv"
    put_csv(path, ["a", "b", "c", "d"], rows)
    splits = ("train", "train", "validate", "train")
    rows = [[name, "s", "p", split] for name, split in zip(names, splits, strict=True)]
    header = ["dicom_id", "study_id", "subject_id", "split"]
    put_csv(root / "mimic-cxr-2.0.0-split.csv", header, rows)


def rocov2(raw):
    ids = [f"ROCOv2_2023_train_00000{n}" for n in range(3)]
    for n, name in enumerate(ids):
        put_image(raw / "ROCOV2/train" / f"{name}.jpg", n)
    rows = [[name, f"  Invented figure {name}\n"] for name in ids]
    put_csv(raw / "ROCOV2/train_captions.csv", ["ID", "Caption"], rows)
    put_csv(raw / "ROCOV2/train_concepts.csv", ["ID", "CUIs"], [[ids[0], "C0040405"]])


def pmc_oa(raw):
    folder = raw / "pmc_oa"
    names = [f"PMC10{n}_Fig1_{n}.jpg" for n in range(3)]
    for n, name in enumerate(names):
        put_image(folder / "caption_T060_filtered_top4_sep_v0_subfigures" / name, n)
    lines = [
        json.dumps({"image": n, "caption": f"Invented figure {n}", "alignment": 1}) for n in names
    ]
    (folder / "pmc_oa.jsonl").write_text("\n".join(lines) + "\n")


def llava_med_alignment(raw):
    names = [f"PMC20{n}_F1.jpg" for n in range(3)]
    for n, name in enumerate(names[:2]):
        put_image(raw / "llava_med/images" / name, n)
    entries = [
        {
            "id": name,
            "image": name,
            "conversations": [
                {"from": "human", "value": "What is it?"},
                {"value": f" Shown {name} "},
            ],
        }
        for name in names
    ]
    entries.append(entries[0] | {"conversations": [{}, {"value": "The same image, other words"}]})
    put_json(raw / "llava_med/llava_med_alignment_500k_filtered.json", entries)


def llava_med_hq60k(raw):
    ids = [f"PMC30{n}_F1" for n in range(4)]
    for n, name in enumerate(ids):
        put_image(raw / "llava_med/images" / f"{name}.jpg", n)
    mention = [{"tokens": "The figure is mentioned here."}, {"tokens": "A second mention, unused."}]
    entries = [
        {"pair_id": ids[0], "fig_caption": "Caption zero", "in_text_mention": mention},
        {"pair_id": ids[1], "fig_caption": "Caption one", "in_text_mention": None},
        {"pair_id": ids[2], "fig_caption": float("nan"), "in_text_mention": mention},
        {"pair_id": ids[3], "fig_caption": float("nan"), "in_text_mention": None},
    ]
    content = {"chest_xray": entries[:2], "histology": entries[2:3], "gross": entries[3:]}
    put_json(raw / "llava_med/llava_med_instruct_fig_captions.json", content)


def quilt1m(raw):
    for n in range(3):
        put_image(raw / "Quilt/quilt_1m" / f"vid_{n}.jpg", n)
    rows = [
        ["0", "Invented caption a", "vid_0.jpg", "quilt", "train"],
        ["1", "Invented caption b", "vid_0.jpg", "quilt", "train"],
        ["2", "Invented caption a", "vid_0.jpg", "quilt", "train"],
        ["3", "Invented caption c", "vid_1.jpg", "pubmed", "val"],
        ["4", "", "vid_2.jpg", "laion", "train"],
    ]
    put_csv(
        raw / "Quilt/quilt_1M_lookup.csv", ["", "caption", "image_path", "subset", "split"], rows
    )


def retina_part1(raw):
    sets = {
        "08_ODIR-5K": ["08_ODIR-5K/ODIR-5K/1_left.jpg", "08_ODIR-5K/ODIR-5K/1_right.jpg"],
        "11_STARE": ["11_STARE/im0001.ppm"],
        "18_DRIONS-DB": ["18_DRIONS-DB/a.jpg"],
        "34_Cataract": ["34_Cataract/b.png"],
    }
    classes = {"18_DRIONS-DB": "no cataract", "34_Cataract": "Cataract."}
    header = ["image", "filename", "categories", "captions", "sentence_level_captions"]
    for name, images in sets.items():
        rows = []
        for n, image in enumerate(images):
            put_image(raw / "Retina-Datasets" / image, n, "PPM" if "ppm" in image else "JPEG")
            label = classes.get(name, "normal")
            texts = repr(captions(label, 9 if name == "11_STARE" else 10))
            rows.append(["", image, repr([label]), texts, "A sentence-level caption."])
        put_csv(raw / "Retina-Annotations" / f"{name}.csv", header, rows)
    put_csv(raw / "Retina-Annotations" / "07_LAG_revised.csv", header, [["", "x", "", "", ""]])


def retina_part2(raw):
    rows = [
        ["06_DEN/eyenet0420/train_set/1.jpg", repr(["wet macula", "drusen", "60 year old"]), "[]"],
        ["06_DEN/eyenet0420/train_set/2.jpg", repr(["60 year old", "a//b"]), "[]"],
        ["06_DEN/eyenet0420/train_set/3.jpg", "__import__('os').abort()", "[]"],
    ]
    for n, row in enumerate(rows):
        put_image(raw / "Retina-Datasets" / row[0], n)
    put_csv(raw / "Retina-Annotations/06_DEN.csv", ["image", "categories", "atributes"], rows)


def retina_part3(raw):
    images = [f"39_MM_Retinal_dataset/CFP/{n}.jpg" for n in range(2)]
    for n, image in enumerate(images):
        put_image(raw / "Retina-Datasets" / image, n)
    rows = [[images[0], "An invented fundus description."], [images[1], ""]]
    put_csv(raw / "Retina-Annotations/39_MM_Retinal_dataset.csv", ["image", "caption"], rows)


BUILDERS = {
    build.__name__: build
    for build in (
        radimagenet,
        chexpert,
        openi,
        chestxray8,
        mimic_cxr,
        rocov2,
        pmc_oa,
        llava_med_alignment,
        llava_med_hq60k,
        quilt1m,
        retina_part1,
        retina_part2,
        retina_part3,
    )
}
