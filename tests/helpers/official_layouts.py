"""Small folders as the owners of UniMed's parts distribute them, with invented images and texts."""

import gzip

from helpers.unimed_layouts import HEX, put_csv, put_image, put_json

from input_pipeline.conversion.official.findings import FINDINGS

CHEXPERT_HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS]


def cells(**values):
    """Cells of the fourteen findings; names as keywords, with underscores."""
    return [values.get(finding.replace(" ", "_"), "") for finding in FINDINGS]


CHEXPERT_ROWS = {
    "train": [
        ("train/patient00001/study1/view1_frontal.jpg", "Frontal", "AP", cells(No_Finding="1.0")),
        (
            "train/patient00002/study1/view1_frontal.jpg",
            "Frontal",
            "PA",
            cells(Edema="1.0", Cardiomegaly="-1.0", Fracture="0.0"),
        ),
        ("train/patient00002/study1/view2_lateral.jpg", "Lateral", "", cells(Edema="1.0")),
        ("train/patient00003/study2/view1_frontal.jpg", "Frontal", "AP", cells(Edema="-1.0")),
    ],
    "valid": [
        (
            "valid/patient64541/study1/view1_frontal.jpg",
            "Frontal",
            "AP",
            ["0.0"] * 13 + ["1.0"],
        )
    ],
}


def chexpert(raw, folder="CheXpert-v1.0-small", stated="CheXpert-v1.0-small"):
    """`stated` is the folder in the paths of the table, which may not be that on the disk."""
    for split, rows in CHEXPERT_ROWS.items():
        table = [
            [f"{stated}/{path}", "Female", "68", view, side, *found]
            for path, view, side, found in rows
        ]
        put_csv(raw / folder / f"{split}.csv", CHEXPERT_HEADER, table)
        for n, (path, *_) in enumerate(rows):
            put_image(raw / folder / path, n)


NIH_HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"  # noqa: E501
NIH_ROWS = {
    "00000001_000.png": "Cardiomegaly",
    "00000001_001.png": "Cardiomegaly|Emphysema",
    "00000002_000.png": "No Finding",
    "00000003_000.png": "Pleural_Thickening",
    "00000004_000.png": "Infiltration|Mass",
}


def chestxray8(raw, version="_v2020", top="", in_one_folder=False):
    """Rows of the table of 2017 end in a comma, and ages have a unit."""
    old = not version
    end, age = ("," * old), ("058Y" if old else "58")
    lines = [NIH_HEADER + end]
    for n, (name, found) in enumerate(NIH_ROWS.items()):
        lines.append(f"{name},{found},{n},{int(name[:8])},{age},M,PA,2682,2749,0.143,0.143{end}")
        folder = "images" if in_one_folder else f"images_{n % 3 + 1:03}/images"
        put_image(raw / top / folder / name, n, "PNG")
    ends = "\n" if old else "\r\n"
    (raw / top / f"Data_Entry_2017{version}.csv").write_bytes(
        "".join(f"{line}{ends}" for line in lines).encode()
    )
    names = list(NIH_ROWS)
    (raw / top / "train_val_list.txt").write_text("\n".join(names[:3]))
    (raw / top / "test_list.txt").write_bytes("\r\n".join(names[3:]).encode())


def openi_report(sections, images):
    texts = "".join(
        f'<AbstractText Label="{label}">{text}</AbstractText>' for label, text in sections.items()
    )
    found = "".join(
        f'<parentImage id="{image}"><figureId>F1</figureId><panel type="single">'
        f"<url>/invented/{image}.jpg</url></panel></parentImage>"
        for image in images
    )
    return (
        "<?xml version='1.0' encoding='utf-8'?>\n<eCitation><meta type=\"rr\"/><MedlineCitation>"
        f"<Article><Abstract>{texts}</Abstract></Article></MedlineCitation>"
        f"<MeSH><major>normal</major></MeSH>{found}</eCitation>"
    )


OPENI_REPORTS = {
    "1.xml": (
        {
            "COMPARISON": "None.",
            "FINDINGS": "Invented lungs &lt;5 mm. XXXX heart.",
            "IMPRESSION": "Nothing invented.",
        },
        ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"],
    ),
    "2.xml": (
        {"INDICATION": "XXXX-year-old", "FINDINGS": "", "IMPRESSION": "Only an impression."},
        ["CXR2_IM-0652-1001"],
    ),
    "3.xml": ({"FINDINGS": "Invented.", "IMPRESSION": "Invented."}, ["CXR3_1_IM-1384-1001"]),
    "4.xml": ({"FINDINGS": "No image."}, []),
    "5.xml": ({"COMPARISON": "None.", "FINDINGS": "XXXX."}, ["CXR5_IM-2117-1003002"]),
}


def openi(raw, reports="ecgen-radiology", images="NLMCXR_png"):
    (raw / reports).mkdir(parents=True, exist_ok=True)
    for name, (sections, ids) in OPENI_REPORTS.items():
        (raw / reports / name).write_text(openi_report(sections, ids), encoding="utf-8")
        for n, image in enumerate(ids):
            put_image(raw / images / f"{image}.png", n, "PNG")


MIMIC_STUDIES = (50414267, 53189527, 53911762, 56699142)
MIMIC_VIEWS = [("AP", 0), ("PA", 1), ("LATERAL", 1), ("", 1), ("AP", 2), ("PA", 3), ("PA", 3)]
MIMIC_REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with an invented cough

 FINDINGS:

 Invented lungs are clear since ___.
 LUNGS: No focus: none.

 IMPRESSION:

 1. Nothing invented.
 2. No change.

 NOTIFICATION:  Dr. ___ was told.
"""


def mimic_name(n):
    return f"{n}{HEX[1:]}"


def mimic_cxr(raw, top="", reports="", packed=True):
    """Study 0 has a report and labels, 1 labels, 2 neither, 3 (validation) a report."""
    metadata, splits = [], []
    for n, (view, study) in enumerate(MIMIC_VIEWS):
        subject, study_id = 10000032 + study, MIMIC_STUDIES[study]
        metadata.append([mimic_name(n), subject, study_id, "CHEST (PA, LAT)", view, 3056, 2544])
        splits.append([mimic_name(n), study_id, subject, "validate" if study == 3 else "train"])
        folder = raw / top / f"files/p10/p{subject}/s{study_id}"
        put_image(folder / f"{mimic_name(n)}.jpg", n)
    found = [
        [10000032, MIMIC_STUDIES[0], *cells(Edema="1.0", Pneumonia="-1.0")],
        [10000033, MIMIC_STUDIES[1], *cells(No_Finding="1.0")],
        [10000034, MIMIC_STUDIES[2], *cells(Edema="0.0")],
    ]
    tables = {
        "metadata": [
            [
                "dicom_id",
                "subject_id",
                "study_id",
                "PerformedProcedureStepDescription",
                "ViewPosition",
                "Rows",
                "Columns",
            ],
            *metadata,
        ],
        "chexpert": [["subject_id", "study_id", *FINDINGS], *found],
        "split": [["dicom_id", "study_id", "subject_id", "split"], *splits],
    }
    for name, rows in tables.items():
        path = raw / top / f"mimic-cxr-2.0.0-{name}.csv"
        put_csv(path, rows[0], rows[1:])
        if packed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    for study in (0, 3):
        folder = raw / (reports or f"{top}/files".strip("/")) / f"p10/p{10000032 + study}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"s{MIMIC_STUDIES[study]}.txt").write_text(MIMIC_REPORT)


RADIMAGENET_ROWS = {
    "train": ["CT/abd/normal/abd-normal023599.png", "MR/knee/acl_tear/knee-acl000001.png"],
    "val": ["US/gb/gallstone/gb-gallstone000002.png"],
    "test": ["CT/lung/nodule/lung-nodule000003.png"],
}


def radimagenet(raw, top="radimagenet"):
    for split, images in RADIMAGENET_ROWS.items():
        rows = [[f"radiology_ai/{image}", image.split("/")[2]] for image in images]
        put_csv(raw / top / f"RadiologyAI_{split}.csv", ["filename", "label"], rows)
        for n, image in enumerate(images):
            put_image(raw / top / "radiology_ai" / image, n, "PNG")
    put_csv(raw / top / "other.csv", ["name"], [["not a list"]])


RETINA_LISTS = {
    "08_ODIR.csv": [
        ("08_ODIR-5K/preprocessed_images/0_right.jpg", ["normal"]),
        ("08_ODIR-5K/preprocessed_images/1_left.jpg", ["cataract", "hard exudates"]),
    ],
    "15_APTOS.csv": [("15_APTOS/train_images/000c1434d8d7.png", ["moderate diabetic retinopathy"])],
    "06_DEN.csv": [("06_DEN/eyenet0420/train_set/1.jpg", ["drusen"])],
    "13_FIVES.csv": [("13_FIVES/1.png", ["glaucoma"])],
}


def retina_part1(raw, annotations="Retina-Annotations", images="Retina-Datasets"):
    for name, rows in RETINA_LISTS.items():
        table = [[n, image, "[]", repr(found)] for n, (image, found) in enumerate(rows)]
        put_csv(raw / annotations / name, ["", "image", "atributes", "categories"], table)
        for n, (image, _) in enumerate(rows):
            put_image(raw / images / image, n)


def chexpert_batches(raw, top="chexpertchestxrays-u20210408"):
    """The full version: tables and `valid` in batch 1, the patients of `train` in 2 to 4."""
    first = raw / top / "CheXpert-v1.0 batch 1 (validate & csv)"
    for split, rows in CHEXPERT_ROWS.items():
        table = [
            [f"CheXpert-v1.0/{path}", "Male", "3", view, side, *x] for path, view, side, x in rows
        ]
        put_csv(first / f"{split}.csv", CHEXPERT_HEADER, table)
        for n, (path, *_) in enumerate(rows):
            number = int(path.split("patient")[1][:5])
            batch = f"CheXpert-v1.0 batch {number + 1} (train {number})"
            folder = first if split == "valid" else raw / top / batch
            put_image(folder / path.removeprefix("train/"), n)


ROCOV2_CONCEPTS = {
    "train": {1: "C0040405;C0023884", 2: "C0040405;C1306645", 3: ""},
    "valid": {1: "C0024485"},
    "test": {1: "C0041618;C9999999"},
}


def rocov2(raw, top="ROCOv2", images="{0}"):
    for split, concepts in ROCOV2_CONCEPTS.items():
        ids = [f"ROCOv2_2023_{split}_{n:06}" for n in concepts]
        captions = [[name, f"Invented figure of {split}, {name[-1]}."] for name in ids]
        put_csv(raw / top / f"{split}_captions.csv", ["ID", "Caption"], captions)
        found = [[name, cuis] for name, cuis in zip(ids, concepts.values(), strict=True) if cuis]
        put_csv(raw / top / f"{split}_concepts.csv", ["ID", "CUIs"], found)
        manual = [[name, "C0040405"] for name in ids if split == "train"]
        put_csv(raw / top / f"{split}_concepts_manual.csv", ["ID", "CUIs"], manual)
        for n, name in enumerate(ids):
            put_image(raw / top / images.format(split) / f"{name}.jpg", n)
    names = [["C0040405", "X-Ray Computed Tomography"], ["C0023884", "Liver"]]
    put_csv(raw / top / "cui_mapping.csv", ["CUI", "Canonical name"], names)


def llava_med_alignment(raw):
    """Microsoft's own file, in which the key of the turns is misspelt; images are named by PMID."""
    names = [f"2434498{n}_F{n}" for n in range(3)]
    entries = [
        {
            "id": name,
            "image": f"{name}.jpg",
            "domain": {"ct_scan": True, "mri": False},
            "conversatons": [
                {"from": "human", "value": "Describe it.\n<image>"},
                {"from": "gpt", "value": f"Invented description {name}."},
            ],
        }
        for name in names
    ]
    put_json(raw / "data/alignment/llava_med_alignment_500k.json", entries)
    for n, name in enumerate(names):
        put_image(raw / "data/images" / f"{name}.jpg", n)
