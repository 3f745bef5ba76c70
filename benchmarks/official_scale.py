"""Plans all thirteen parts at their true number of rows, from generated files in official layouts.

    python benchmarks/official_scale.py --out=scale.json

Each part is generated, planned and given its captions in a process of its own, whose peak memory is
reported, and removed before the next. Images are hard links to tiny JPEG files, so that planning
finds and sizes every one; nothing is decoded. Numbers of rows are those of the owners' tables, and
where these are not known, the upper end of the published corpus. Findings of chest X-rays are drawn
independently, which makes more distinct label sets than real reports have.
"""

import argparse
import csv
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import peak_memory
from PIL import Image

from input_pipeline.captioning.grammar_captions import GrammarCaptions
from input_pipeline.captioning.templates import CaptionTemplates
from input_pipeline.conversion import plan as plan_lib
from input_pipeline.conversion.official.findings import FINDINGS
from input_pipeline.conversion.sources import SOURCES
from input_pipeline.conversion.sources.base import CaptionedSource, CaptionOptions
from input_pipeline.conversion.unimed_parts import PARTS

_LINKS = 60_000  # to one file; file systems have a limit near 65,000
_SHARES = (0.09, 0.05, 0.12, 0.49, 0.04, 0.26, 0.07, 0.02, 0.16, 0.09, 0.40, 0.01, 0.04, 0.56)
_NIH = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
_FUNDUS = ("normal", "cataract", "glaucoma", "hard exudates", "moderate diabetic retinopathy")
_RETINA = {  # rows of the public lists
    "03_IDRID": 467,
    "04_RFMid": 3_200,
    "08_ODIR": 10_053,
    "09_PAPILA": 141,
    "10_PARAGUAY": 757,
    "11_STARE": 397,
    "12_ARIA": 129,
    "14_AGAR300": 28,
    "15_APTOS": 3_662,
    "16_FUND-OCT": 179,
    "17_DiaRetDB1": 86,
    "18_DRIONS-DB": 110,
    "19_Drishti-GS1": 101,
    "20_E-ophta": 463,
    "21_G1020": 1_020,
    "23_HRF": 45,
    "24_ORIGA": 650,
    "26_ROC": 100,
    "27_BRSET": 16_266,
    "29_AIROGS": 101_400,
    "30_SUSTech-SYSU": 1_219,
    "31_JICHI": 9_939,
    "32_CHAKSU": 1_344,
    "33_DR1-2": 2_013,
    "34_Cataract": 601,
    "35_ScarDat": 997,
}
_TEXT = "An invented description number {} of a figure, with some words about what it might show."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="some of the thirteen")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows")
    parser.add_argument("--out", type=Path, help="JSON of the results")
    parser.add_argument("--folder", type=Path, help="where to generate; default: temporary")
    parser.add_argument("--plan", nargs=2, help=argparse.SUPPRESS)  # key and folder: a child
    args = parser.parse_args()
    if args.plan:
        print(json.dumps(_plan(args.plan[0], Path(args.plan[1]))))
        return
    results = []
    for key in args.parts.split(","):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            raw = Path(folder) / "raw"
            start = time.monotonic()
            generated = GENERATORS[key](raw, args.scale)
            print(f"{key}: {generated} rows in {time.monotonic() - start:.0f} s", file=sys.stderr)
            command = [sys.executable, __file__, "--plan", key, str(raw)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result = {"part": key, "rows": generated, **json.loads(output)}
            accounted = result["accepted"] + result["rejected"] + result["merged"]
            if accounted != generated:
                sys.exit(f"error: {key}: {accounted} of {generated} rows are accounted for")
            results.append(result)
            print(json.dumps(result), file=sys.stderr)
            shutil.rmtree(raw)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")


def _plan(key: str, raw: Path) -> dict[str, float]:
    """Plans a part and gives every planned row its captions."""
    source = SOURCES[key]
    assert isinstance(source, CaptionedSource)
    captions = GrammarCaptions() if PARTS[key].released else CaptionTemplates()
    start = time.monotonic()
    conversion = source.open(source.options(raw), CaptionOptions(captions))
    with tempfile.TemporaryDirectory(dir=raw.parent) as folder:
        plan = plan_lib.build(
            Path(folder), key, conversion.rows, conversion.make_sample, num_shards=None, seed=0
        )
        planned = time.monotonic()
        peak_of_planning = peak_memory.of_this_process()
        num_captions = num_rows = without = 0
        for shard in plan.shards:
            for row in plan_lib.shard_rows(plan.directory, shard):
                made = captions.captions_of(row.source, row.modality, row.labels)
                num_rows += 1
                num_captions += len(row.texts) + len(row.released) + len(made)
                without += not (row.texts or row.released or made)
        captioned = time.monotonic()
    accepted = sum(plan.shards.values())
    read = accepted + plan.num_rejected + plan.num_merged
    return {
        "accepted": accepted,
        "rejected": plan.num_rejected,
        "merged": plan.num_merged,
        "plan_s": round(planned - start, 1),
        "plan_rows_s": round(read / (planned - start)),
        "plan_mb": round(peak_of_planning / 2**20),
        "captions": num_captions,
        "without_caption": without,
        "caption_rows_s": round(num_rows / (captioned - planned)),
        "caption_mb": round(peak_memory.of_this_process() / 2**20),
    }


# --- generating ---------------------------------------------------------------------------------


class _Images:
    """Hard links to tiny images, or to other files."""

    def __init__(self, raw: Path, contents: Iterable[Callable[[Path], None]] = ()) -> None:
        self._base = raw / ".linked"
        self._base.mkdir(parents=True, exist_ok=True)
        self._folders: set[Path] = set()
        self._made = 0
        self._contents = list(contents) or [_image]

    def put(self, path: Path) -> None:
        if path.parent not in self._folders:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folders.add(path.parent)
        number = self._made // _LINKS * len(self._contents) + self._made % len(self._contents)
        file = self._base / f"{id(self)}_{number}"
        if not file.exists():
            self._contents[self._made % len(self._contents)](file)
        os.link(file, path)
        self._made += 1


def _image(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


def _write(path: Path, header: list[str], rows: Iterable[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(itertools.chain([header], rows))


def _of(rows: int, scale: float) -> int:
    return max(2, round(rows * scale))


def _cells(draw: random.Random) -> list[object]:
    """Of the fourteen findings: 1, -1, 0 or empty."""
    others = ("", "", "", "0.0", "-1.0")
    return ["1.0" if draw.random() < share else draw.choice(others) for share in _SHARES]


def radimagenet(raw: Path, scale: float) -> int:
    images, total = _Images(raw), 0
    folders = [
        f"{modality}/{anatomy}/finding_{n}"
        for modality, anatomies in {"CT": ["abd", "lung"], "MR": ["knee", "spine", "brain"]}.items()
        for anatomy in anatomies
        for n in range(30)
    ]
    for split, rows in {"train": 1_048_500, "val": 150_000, "test": 150_000}.items():
        numbers = range(_of(rows, scale))
        names = [f"radiology_ai/{folders[n % 150]}/{split}{n:07}.png" for n in numbers]
        table = ([name, name.split("/")[3]] for name in names)
        _write(raw / f"RadiologyAI_{split}.csv", ["filename", "label"], table)
        for name in names:
            images.put(raw / name)
        total += len(names)
    return total


def chexpert(raw: Path, scale: float) -> int:
    images, draw, total = _Images(raw), random.Random(0), 0
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS]
    for split, rows in {"train": 223_414, "valid": 234}.items():
        table = []
        for n in range(_of(rows, scale)):
            view = "lateral" if n % 7 == 6 else "frontal"  # 32,387 are lateral
            patient = n * 64_540 // rows if split == "train" else 64_541 + n
            path = f"{split}/patient{patient:05}/study{n // 2 % 5}/view{n}_{view}.jpg"
            images.put(raw / "CheXpert-v1.0-small" / path)
            where = [f"CheXpert-v1.0-small/{path}", "Female", "68", view.title(), "AP"]
            table.append([*where, *_cells(draw)])
        _write(raw / f"CheXpert-v1.0-small/{split}.csv", header, table)
        total += len(table)
    return total


def chestxray8(raw: Path, scale: float) -> int:
    images, draw, rows = _Images(raw), random.Random(0), _of(112_120, scale)
    names = [f"{n // 4:08}_{n % 4:03}.png" for n in range(rows)]
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
    header += "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    table = []
    for n, name in enumerate(names):
        labels = draw.sample(_NIH, draw.choice((0, 0, 1, 1, 2, 3)))
        found = "|".join(sorted(labels)) or "No Finding"
        table.append([name, found, n % 4, n // 4, 58, "M", "PA", 2682, 2749, 0.143, 0.143])
        images.put(raw / f"images_{n % 12 + 1:03}/images" / name)
    _write(raw / "Data_Entry_2017_v2020.csv", header.split(","), table)
    num_test = _of(25_596, scale)
    (raw / "test_list.txt").write_text("\n".join(names[:num_test]))
    (raw / "train_val_list.txt").write_text("\n".join(names[num_test:]))
    return rows


def openi(raw: Path, scale: float) -> int:
    images, total, reports = _Images(raw), 0, _of(3_955, scale)
    (raw / "ecgen-radiology").mkdir(parents=True)
    for n in range(reports):
        num_images = 0 if n % 38 == 0 else 1 + n % 35 // 2 % 3
        ids = [f"CXR{n}_1_IM-{n:04}-{k}001" for k in range(num_images)]
        texts = "".join(
            f'<AbstractText Label="{label}">XXXX {_TEXT.format(n)}</AbstractText>'
            for label in ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION")
        )
        parents = "".join(f'<parentImage id="{name}"/>' for name in ids)
        report = f"<eCitation><Abstract>{texts}</Abstract>{parents}</eCitation>"
        (raw / f"ecgen-radiology/{n}.xml").write_text(report)
        for name in ids:
            images.put(raw / f"NLMCXR_png/{name}.png")
        total += max(1, len(ids))
    return total


def _report(path: Path) -> None:
    text = _TEXT.format(path.name.rpartition("_")[2])
    path.write_text(f" FINDINGS:\n {text * 3}\n\n IMPRESSION:\n ___ {text}\n")


def mimic_cxr(raw: Path, scale: float) -> int:
    images, reports, draw = _Images(raw), _Images(raw, [_report] * 50), random.Random(0)
    rows, studies = _of(377_110, scale), _of(227_835, scale)
    views = ("AP", "AP", "PA", "LATERAL", "AP", "PA", "LL", "")
    metadata, splits, last = [], [], -1
    for n in range(rows):
        study = n * studies // rows
        subject, number = 10_000_000 + study // 4 * 137, 50_000_000 + study
        dicom = f"{n:08x}-{n:08x}-00000000-00000000-00000000"
        folder = f"files/p{str(subject)[:2]}/p{subject}/s{number}"
        images.put(raw / folder / f"{dicom}.jpg")
        if study != last:
            reports.put(raw / f"{folder}.txt")
            last = study
        metadata.append([dicom, subject, number, "CHEST", draw.choice(views), 3056, 2544])
        splits.append([dicom, number, subject, "test" if study % 70 == 0 else "train"])
    header = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription"]
    header += ["ViewPosition", "Rows", "Columns"]
    _write(raw / "mimic-cxr-2.0.0-metadata.csv", header, metadata)
    split_header = ["dicom_id", "study_id", "subject_id", "split"]
    _write(raw / "mimic-cxr-2.0.0-split.csv", split_header, splits)
    labels = (
        [10_000_000 + study // 4 * 137, 50_000_000 + study, *_cells(draw)]
        for study in range(studies)
    )
    _write(raw / "mimic-cxr-2.0.0-chexpert.csv", ["subject_id", "study_id", *FINDINGS], labels)
    return rows


def rocov2(raw: Path, scale: float) -> int:
    images, draw, total = _Images(raw), random.Random(0), 0
    cuis = [f"C{n:07}" for n in range(1_900)] + ["C0040405", "C0024485", "C1306645"]
    _write(raw / "cui_mapping.csv", ["CUI", "Canonical name"], [[c, f"Concept {c}"] for c in cuis])
    for split, rows in {"train": 59_958, "valid": 9_904, "test": 9_927}.items():
        ids = [f"ROCOv2_2023_{split}_{n:06}" for n in range(_of(rows, scale))]
        captions = ([name, _TEXT.format(name)] for name in ids)
        _write(raw / f"{split}_captions.csv", ["ID", "Caption"], captions)
        concepts = ([name, ";".join(draw.sample(cuis, draw.randint(1, 6)))] for name in ids)
        _write(raw / f"{split}_concepts.csv", ["ID", "CUIs"], concepts)
        for name in ids:
            images.put(raw / split / f"{name}.jpg")
        total += len(ids)
    return total


def pmc_oa(raw: Path, scale: float) -> int:
    images, rows = _Images(raw), _of(1_645_000, scale)
    with (raw / "pmc_oa.jsonl").open("w") as file:
        for n in range(rows):
            name = f"PMC{n // 5}_Fig{n % 5}_0.jpg"
            file.write(json.dumps({"image": name, "caption": _TEXT.format(n)}) + "\n")
            images.put(raw / "caption_T060_filtered_top4_sep_v0_subfigures" / name)
    return rows


def llava_med_alignment(raw: Path, scale: float) -> int:
    rows = _of(468_000, scale)
    entries = (
        {
            "image": f"{20_000_000 + n}_F1.jpg",
            "conversatons": [{"value": "What is it?"}, {"value": _TEXT.format(n)}],
        }
        for n in range(rows)
    )
    images = _Images(raw)
    _write_array(raw / "llava_med_alignment_500k.json", entries)
    for n in range(rows):
        images.put(raw / f"images/{20_000_000 + n}_F1.jpg")
    return rows


def _write_array(path: Path, entries: Iterator[dict[str, object]]) -> None:
    with path.open("w") as file:
        file.write("[")
        for n, entry in enumerate(entries):
            file.write("," * bool(n) + json.dumps(entry))
        file.write("]")


def llava_med_hq60k(raw: Path, scale: float) -> int:
    images, rows = _Images(raw), _of(132_500, scale)  # two texts each
    content = {
        domain: [
            {
                "pair_id": f"{20_000_000 + n}_F1",
                "fig_caption": _TEXT.format(n),
                "in_text_mention": [{"tokens": f"Figure 1 shows number {n}."}],
            }
            for n in range(k, rows, 5)
        ]
        for k, domain in enumerate(("chest_xray", "ct_scan", "mri", "histology", "gross"))
    }
    (raw / "llava_med_instruct_fig_captions.json").write_text(json.dumps(content))
    for n in range(rows):
        images.put(raw / f"images/{20_000_000 + n}_F1.jpg")
    return rows


def quilt1m(raw: Path, scale: float) -> int:
    images, rows = _Images(raw), _of(1_017_712, scale)
    header = ["", "caption", "image_path", "subset", "split", "not_histology", "single_wsi"]

    def row(n: int) -> list[object]:
        text = "" if n % 1_500 == 0 else _TEXT.format(n)
        split = "val" if n % 80 == 0 else "train"
        return [n, text, f"video_{n * 2 // 3}.jpg", "quilt", split, n % 200 == 0, 0]

    _write(raw / "quilt_1M_lookup.csv", header, map(row, range(rows)))
    for n in range((rows - 1) * 2 // 3 + 1):
        images.put(raw / f"quilt_1m/video_{n}.jpg")
    return rows


def _retina(raw: Path, lists: dict[str, int], columns: Callable[[int], dict[str, object]]) -> int:
    images, total = _Images(raw), 0
    for name, rows in lists.items():
        paths = [f"{name}/images/{n}.jpg" for n in range(rows)]
        header = ["", "image", *columns(0)]
        table = ([n, path, *columns(n).values()] for n, path in enumerate(paths))
        _write(raw / f"Retina-Annotations/{name}.csv", header, table)
        for path in paths:
            images.put(raw / "Retina-Datasets" / path)
        total += rows
    return total


def retina_part1(raw: Path, scale: float) -> int:
    draw = random.Random(0)
    lists = {name: _of(rows, scale) for name, rows in _RETINA.items()}
    return _retina(
        raw,
        lists,
        lambda n: {"atributes": "[]", "categories": repr(draw.sample(_FUNDUS, 1 + (n % 4 == 0)))},
    )


def retina_part2(raw: Path, scale: float) -> int:
    return _retina(
        raw,
        {"06_DEN": _of(15_710, scale)},
        lambda n: {
            "atributes": "[]",
            "categories": repr([_FUNDUS[n % 5], f"{n % 90}-year-old female"][n % 47 == 0 :]),
        },
    )


def retina_part3(raw: Path, scale: float) -> int:
    return _retina(
        raw, {"39_MM_Retinal_dataset": _of(2_167, scale)}, lambda n: {"caption": _TEXT.format(n)}
    )


GENERATORS: dict[str, Callable[[Path, float], int]] = {
    function.__name__: function
    for function in (
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

if __name__ == "__main__":
    main()
