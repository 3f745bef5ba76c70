"""A generated folder of test sets in the layout of the published archive; images are noise."""

import csv
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

VIEWS = ("axial", "coronal", "sagittal")


class Archive:
    """Writes images and tables below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rng = np.random.default_rng(0)

    def image(self, name: str) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = self._rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).resize((14, 12), Image.Resampling.NEAREST).save(path)
        return name

    def table(self, name: str, *rows: tuple) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    def below(self, folder: str, name: str) -> str:
        """Writes the image folder/name, returns name."""
        self.image(f"{folder}/{name}")
        return name


def write_chexpert(a: Archive) -> None:
    """Columns in CheXpert's order, which differs from the labels' order, and multi-line texts."""
    names = ["Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion"]
    rows = []
    for i, name in enumerate(names):
        for j in range(2):
            path = f"CheXpert-v1.0-small/train/patient{i}{j}/study1/view1_frontal.jpg"
            a.below("chexpert", path)
            rows.append((len(rows), path, "F", *(float(n == name) for n in names), "two\nlines"))
    a.table("chexpert-5x200.csv", ("", "imgpath", "Sex", *names, "Report Impression"), *rows)


def write_binary(a: Archive) -> None:
    """The tables whose columns are told by their positions."""
    a.table(
        "rsna_custom_test_set/RSNA_pneumonia_balanced_testfile.csv",
        ("", "path", "Target"),
        *((i, a.below("rsna_custom_test_set", f"images/{i}.png"), i % 2) for i in range(6)),
    )
    a.table(
        "acl_mri/test_fold1.csv",
        ("filename", "acl_label"),
        *(
            (a.below("acl_mri", f"images/{i // 2}_sagittal_{i}.000000.png"), ("no", "yes")[i % 2])
            for i in range(6)
        ),
    )
    a.table(
        "meniscal_mri/meniscus_test_fold1.csv",
        ("img_dir", "label"),
        *(
            (a.below("meniscal_mri", f"images/{i // 2}_sagittal_{i}.000000.png"), "np"[i % 2])
            for i in range(6)
        ),
    )
    for folder, table, count in (("breast_us", "breast", 6), ("thyroid_us", "thyroid", 72)):
        a.table(
            f"{folder}/{table}_test_fold1.csv",
            ("filename", "label"),
            *(
                (a.below(folder, f"images/{i}_1.png"), "benign" if i < 3 else "malignant")
                for i in range(count)
            ),
        )


def write_medimeta(a: Archive) -> None:
    """TIFF images; rows of other splits, whose images are not in the archive."""
    tables = {f"organs_{view}": ("organ label", 11) for view in VIEWS}
    for folder, (task, classes) in {**tables, "dr_regular": ("DR level", 5)}.items():
        rows = [
            (a.below(folder, f"images/{i:06d}.tiff"), "test", i % classes) for i in range(classes)
        ]
        a.table(
            f"{folder}/annotations.csv",
            ("filepath", "split", f"tasks/{task}"),
            ("images/999999.tiff", "train", 0),
            *rows,
        )


def write_fundus(a: Archive) -> None:
    """FLAIR's tables, the label a Python list; ODIR lists an image twice."""

    def table(name: str, rows: list[tuple[str, str]]) -> None:
        lines = ((i, image, "['x']", f"['{label}']") for i, (image, label) in enumerate(rows))
        a.table(name, ("", "image", "atributes", "categories"), *lines)

    table(
        "25_REFUGE.csv",
        [
            (a.image(f"REFUGE-Training400/{c}000{i}.jpg"), label)
            for c, label in (("g", "glaucoma"), ("n", "no glaucoma"))
            for i in range(2)
        ],
    )
    names = {
        "A": "age related macular degeneration",
        "D": "diabetic retinopathy",
        "G": "glaucoma",
        "N": "normal",
    }
    table(
        "13_FIVES.csv",
        [
            (a.image(f"fives_retina/{part}/Original/{i}_{c}.png"), label)
            for i, (c, label) in enumerate(names.items())
            for part in ("train", "test")
        ],
    )
    folder = "08_ODIR-5K/preprocessed_images"
    rows = [
        (a.image(f"{folder}/{i}{j}_left.jpg"), label)
        for i, label in enumerate(("normal", "pathologic myopia", "cataract"))
        for j in range(2)
    ]
    table("08_ODIR200x3.csv", [*rows, rows[2]])


def write_pathology(a: Archive) -> None:
    for name in ("lung_aca", "lung_n", "lung_scc", "colon_aca", "colon_n"):
        for i in range(2):
            a.image(f"LC25000_test/{name}/{name}{i}.jpeg")
    for i in range(4):
        a.image(f"PCam_Test_preprocessed/{i}_{i % 2}.png")
    for name in ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"):
        a.image(f"CRC-VAL-HE-7K/{name}/{name}-1.tif")
    labels = ("Benign", "InSitu", "Invasive", "Normal")
    a.table(
        "BACH/microscopy_ground_truth.csv",
        *((a.below(f"BACH/{label}", f"b{i}.tif"), label) for i, label in enumerate(labels)),
    )
    labels = ("Non-Tumor", "Non-Viable-Tumor", "Viable", "viable: non-viable")
    a.table(
        "Osteosarcoma/annotations_final.csv",
        ("image", "class"),
        *((a.below("Osteosarcoma", f"set/{i}.jpg"), label) for i, label in enumerate(labels)),
    )
    tissues = ["necrosis", "muscle", "sweatglands", "vessel", "elastosis", "chondraltissue"]
    tissues += ["hairfollicle", "epidermis", "nerves", "subcutis", "dermis", "sebaceousglands"]
    skin = [f"{x}_{'skeletal' if x == 'muscle' else x}" for x in tissues]
    tumors = ["epithelial_sqcc", "melanoma_melanoma", "epithelial_bcc", "naevus_naevus"]
    labels = [f"nontumor_skin_{x}" for x in skin] + [f"tumor_skin_{x}" for x in tumors]
    rows = [
        (i, a.below("skin_tumor", f"data/tiles/{i}.jpg"), label, "Test")
        for i, label in enumerate(labels)
    ]
    header = ("", "file", "class", "set")
    train = (99, "data/tiles/absent.jpg", labels[-1], "Train")
    a.table("skin_tumor/data/tiles-v2.csv", header, train, *rows)
    a.table("skin_tumor/data/SkinTumorSubset.csv", header, train, *rows[-4:])


def write_beyond(a: Archive) -> None:
    """RadImageNet and SICAPv2."""
    a.table(
        "radimagenet/radimagenet_test_set_formatted.csv",
        ("image", "label"),
        *((f"['{a.below('radimagenet', f'{i}.png')}']", i) for i in (0, 84, 85, 136, 144, 164)),
    )
    a.table(
        "SICAPv2/test.csv",
        ("image_name", "NC", "G3", "G4", "G5"),
        *(
            (a.below("SICAPv2/images", f"p{i}_{i}.jpg"), *(int(c == i) for c in range(4)))
            for i in range(4)
        ),
    )


CHEXPERT_LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion",
    "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion",
    "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
NIH_LABELS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
    "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening",
    "Hernia",
)  # fmt: skip
VINDR_LABELS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture",
    "Consolidation", "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity",
    "Lung cavity", "Lung cyst", "Mediastinal shift", "Nodule/Mass", "Pleural effusion",
    "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture", "Other lesion",
    "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding",
)  # fmt: skip


def write_chest(root: Path) -> dict[str, tuple[list[str], np.ndarray]]:
    """The three chest X-ray sets with findings, as their owners lay them out.

    Returns family -> (ids of the images of the set, (N, F) labels in the order of the constants).
    """
    a, rng = Archive(root), np.random.default_rng(1)
    truth = {}

    labels = rng.integers(0, 2, (12, 14))
    top = "CheXpert-v1.0-small"
    names = [f"{top}/valid/patient{64541 + i // 2}/study1/view{i % 2 + 1}_frontal.jpg"
             for i in range(12)]  # fmt: skip
    rows = [(a.image(name), "Male", 70, "Frontal", "AP", *map(float, row))
            for name, row in zip(names, labels, strict=True)]  # fmt: skip
    lateral = (f"{top}/valid/patient64999/study1/view1_lateral.jpg", "Male", 7, "Lateral", "",
               *[0.0] * 14)  # fmt: skip
    header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)
    a.table(f"{top}/valid.csv", header, *rows[:5], lateral, *rows[5:])
    truth["chexpert14"] = (names, labels)

    labels = (rng.random((20, 14)) < 0.3).astype(int)
    folders = [f"nih/images_{i % 12 + 1:03d}/images" for i in range(20)]
    names = [f"{i // 3 + 1:08d}_{i % 3:03d}.png" for i in range(20)]
    for folder, name in zip(folders, names, strict=True):
        a.image(f"{folder}/{name}")
    rows = [
        (name, "|".join(np.array(NIH_LABELS)[row == 1]) or "No Finding", 0, i // 3 + 1, 57, "M",
         "PA", 2682, 2749, 0.143, 0.143)
        for i, (name, row) in enumerate(zip(names, labels, strict=True))
    ]  # fmt: skip
    header = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age",
              "Patient Gender", "View Position", "OriginalImage[Width", "Height]",
              "OriginalImagePixelSpacing[x", "y]")  # fmt: skip
    a.table("nih/Data_Entry_2017_v2020.csv", header, *rows)
    (root / "nih" / "test_list.txt").write_text("".join(f"{name}\n" for name in names[6:]))
    ids = [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)]
    truth["nih14"] = (ids[6:], labels[6:])

    labels = rng.integers(0, 2, (8, 28))
    names = [f"{i:032x}" for i in range(8)]
    for name in names:
        a.image(f"vindr-cxr/test/{name}.png")
    rows = [(name, *row) for name, row in zip(names, labels, strict=True)]
    a.table("vindr-cxr/annotations/image_labels_test.csv", ("image_id", *VINDR_LABELS), *rows)
    truth["vindr"] = ([f"vindr-cxr/test/{name}.png" for name in names], labels)
    return truth


def write_archive(root: Path) -> None:
    """All sets."""
    archive = Archive(root)
    for write in (
        write_chexpert,
        write_binary,
        write_medimeta,
        write_fundus,
        write_pathology,
        write_beyond,
    ):
        write(archive)


def write_large_pcam(root: Path, count: int) -> None:
    """Replaces PCAM by a set of `count` different images."""
    folder = root / "PCam_Test_preprocessed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{i:05d}_{i % 2}.png")
