"""Descriptions of the thirteen parts of the UniMed corpus, for `sources/unimed.py`.

Each part is converted to a corpus directory with the name of its key. Where the header of a file is
not publicly known, a column is given by position and its cells are checked. Counts are those of the
published corpus (shards of 1,000 pairs, the last one shorter).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from input_pipeline.conversion.annotations import Layout, PartOptions
from input_pipeline.conversion.official import (
    chexpert,
    mimic,
    nih,
    openi,
    radimagenet,
    retina,
    rocov2,
)
from input_pipeline.conversion.official.attributes import AttributeOptions
from input_pipeline.conversion.official.findings import FindingOptions
from input_pipeline.conversion.official.splits import SplitFile

# a header name, a position from 0, or a JSON path such as "answers|replies.1.value"; | separates
# names of which a file has one
Column = str | int


@dataclass(frozen=True)
class Expected:
    """Numbers in the published corpus: of samples, or of original captions."""

    low: int
    high: int
    of: str = "samples"


@dataclass(frozen=True)
class TarLayout:
    """The layout of captions in the published tars: joined by a separator, in this order.

    `num_original` leading pieces, or with `report_last` the text after the last separator, are
    original texts; `absent` marks a missing one. `num_generated` of the other pieces are captions
    (None: all). `folders` are the names of the folders of tars.
    """

    folders: tuple[str, ...]
    separator: str = ""
    num_original: int = 0
    report_last: bool = False
    absent: str = ""
    num_generated: int | None = None


@dataclass(frozen=True)
class UnimedPart:
    """One part of the corpus.

    Attributes:
      title: name of the part for messages.
      modality: modality of a row, unless `modality_by_path` (regex -> modality) or
        `modality_by_key` (key of the JSON array -> modality) gives another.
      caption_rule: how training draws captions (`caption_sampling.py`).
      access: where to get the data.
      licence: the known terms of use.
      format: csv, jsonl, or json:KEY, the array of a JSON file under KEY (empty: the file is the
        array; *: the arrays under every key).
      annotations: paths or globs below --raw; the first that exists is read; of a glob, all files.
        Empty if `official` reads all there is.
      own_annotations: the owner's file in the format of `annotations`, if that is derived from it.
      left_out: annotation files of the glob that are not read, with the reason.
      image: column of the image; `image_path` transforms it to a path.
      image_folders: possible folders of the images below --raw; the one with most images is used.
      image_subfolders: regex of the folders in it that hold images of this part, if others hold
        those of other parts.
      path_prefixes: leading parts of image paths that may be absent on disk.
      texts: columns of texts that people wrote.
      labels: column of class names.
      released: column of the published generated captions; `num_released` is their number.
      released_file: (path, key) of a JSON array of them, in the order of the annotations.
      several_texts_per_image: rows of one image differ by their text; their ids end in its hash.
      published_pairs: the texts of a row were pairs of their own in the published corpus.
      identity: regex on a path; `key` names the image, `group` the patient or article.
      split_column, split_by_path, split_file: location of the official split.
      noise: regex of labels to ignore; with `last_label`, only the last other label is kept.
      label_caption: template of a caption from the label, if the labels are the only text.
      note_by_path: regex -> note to be counted.
      note_by_column: column that may be missing -> note to be counted where it is 1 or true.
      told_by: column that tells these annotations from official ones of the same name.
      official: layouts in which the owner distributes the part, if `annotations` are files that
        UniMed's authors derived from them.
      options: flags of the part.
    """

    title: str
    modality: str
    caption_rule: str
    access: str
    licence: str
    expected: Expected
    image_folders: tuple[str, ...]
    tar: TarLayout
    format: str = "csv"
    annotations: tuple[str, ...] = ()
    own_annotations: tuple[str, ...] = ()
    image: Column = ""
    image_path: str = "{}"
    image_subfolders: str = ""
    path_prefixes: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    texts: tuple[Column, ...] = ()
    labels: Column | None = None
    released: Column | None = None
    released_file: tuple[tuple[str, ...], str] | None = None
    num_released: int = 10
    several_texts_per_image: bool = False
    published_pairs: bool = False
    identity: str = r"(?P<key>.+)"
    modality_by_path: Mapping[str, str] = field(default_factory=dict)
    modality_by_key: Mapping[str, str] = field(default_factory=dict)
    split_column: Column | None = None
    split_by_path: Mapping[str, str] = field(default_factory=dict)
    split_file: SplitFile | None = None
    noise: str = ""
    last_label: bool = False
    label_caption: str = ""
    note_by_path: Mapping[str, str] = field(default_factory=dict)
    note_by_column: Mapping[str, str] = field(default_factory=dict)
    told_by: str = ""
    official: tuple[Layout, ...] = ()
    options: type[PartOptions] = PartOptions


def _below(folders: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """Paths of files in --raw or in a folder of it."""
    return tuple(f"{folder}{name}" for name in names for folder in ("", *folders))


_PMC = r"(?P<key>(?P<group>PMC\d+)?[^/]*)\.\w+$"
_LLAVA = r"(?P<key>(?P<group>PMC\d+|\d+(?=_))?[^/]*)\.\w+$"  # files are named by PMID
_PMC_TERMS = "open download; the licence of each PubMed Central article applies"
_LLAVA_TERMS = "CC BY-NC 4.0, research only; images are those of PubMed Central articles"
_LLAVA_FOLDERS = ("llava_med/", "data/")
_LLAVA_ACCESS = "https://github.com/microsoft/LLaVA-Med, images by `unimed-jax fetch pmc`"
_SPLIT_NAMES = ("mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-split.csv.gz")

PARTS: Mapping[str, UnimedPart] = {
    "radimagenet": UnimedPart(
        title="RadImageNet",
        modality="radiology",
        modality_by_path={r"(^|/)CT/": "ct", r"(^|/)MR/": "mri", r"(^|/)US/": "ultrasound"},
        caption_rule="uniform",  # one of 10 per label
        access="https://www.radimagenet.com/ (request form)",
        licence="on request; terms with the data",
        expected=Expected(1_048_001, 1_049_000),
        format="csv",
        annotations=_below(
            ("radiology_ai/", "radimagenet/radiology_ai/", "radimagenet/"),
            "radimagenet_with_captions_training_set.csv",
        ),
        image=0,
        labels=1,
        released=2,
        image_folders=radimagenet.FOLDERS,
        path_prefixes=radimagenet.PREFIXES,
        tar=TarLayout(("radimagenet_webdataset",), "_radimagenet_"),
        official=(radimagenet.LAYOUT,),
    ),
    "chexpert": UnimedPart(
        title="CheXpert",
        modality="xray",
        caption_rule="uniform",  # one of 10 per label set
        access="https://stanfordmlgroup.github.io/competitions/chexpert/ (also Kaggle)",
        licence="Stanford research use agreement",
        expected=Expected(211_001, 212_000),
        format="csv",
        annotations=_below(
            ("CheXpert-v1.0-small/",), "chexpert_with_captions_only_frontal_view.csv"
        ),
        image=0,
        labels=1,
        released=2,
        image_folders=("", "CheXpert-v1.0-small"),
        path_prefixes=("CheXpert-v1.0-small/", "CheXpert-v1.0/"),
        identity=r"(?P<key>(?P<group>patient\d+)/study\d+/view\d+_\w+)\.\w+",
        split_by_path={r"(^|/)valid/": "val", r"(^|/)test/": "test"},
        note_by_path={r"_lateral\.": "lateral view in a part said to be frontal"},
        tar=TarLayout(("chexpert_webdataset",), "_chexpert_"),
        official=(chexpert.LAYOUT,),
        options=FindingOptions,
    ),
    "openi": UnimedPart(
        title="Open-I (Indiana University chest X-rays)",
        modality="xray",
        # an original: the caption, or findings and impression; three rewritten ones stay unused
        caption_rule="original:1",
        access="https://openi.nlm.nih.gov/imgs/collections/NLMCXR_png.tgz",
        licence="open download",
        expected=Expected(6_001, 7_000),
        format="json:annotations",
        annotations=_below(("openI/", "openi/", "OpenI/"), "filter_cap.json"),
        image="image_id",
        image_path="{}.png",
        texts=("caption",),
        released_file=(
            _below(("openI/", "openi/", "OpenI/"), "openai_refined_concepts.json"),
            "refined_captions",
        ),
        num_released=3,
        image_folders=_below(("openI/", "openi/", "OpenI/"), "image"),
        identity=r"(?P<key>(?P<group>CXR\d+)_[^/]*)\.(?i:png)$",
        tar=TarLayout(("openi_webdataset",), "_openi_", num_original=1),
        official=(openi.LAYOUT,),
    ),
    "chestxray8": UnimedPart(
        title="NIH ChestX-ray8 / ChestX-ray14",
        modality="xray",
        caption_rule="uniform",  # one of 10 per label set
        access="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        licence="open download",
        expected=Expected(112_001, 113_000),
        format="csv",
        annotations=_below(("chest_xray8/",), "Chest-Xray8_with_captions.csv"),
        image=0,
        labels=1,
        released=2,
        image_folders=_below(("chest_xray8/",), "images"),
        path_prefixes=("images/",),
        identity=r"(?P<key>(?P<group>\d{8})_\d{3})\.(?i:png)",
        split_file=SplitFile(
            _below(nih.FOLDERS, "test_list.txt", "test_list_NIH.txt"),
            split="test",
            train_paths=_below(nih.FOLDERS, "train_val_list.txt", "train_val_list_NIH.txt"),
        ),
        tar=TarLayout(("chest_xray8_webdataset",), "_chestxray8_"),
        official=(nih.LAYOUT,),
        options=AttributeOptions,
    ),
    "mimic_cxr": UnimedPart(
        title="MIMIC-CXR-JPG",
        modality="xray",
        caption_rule="original:1",  # the report where there is one, else one of 10
        access="https://physionet.org/content/mimic-cxr-jpg/2.1.0/",
        licence="PhysioNet credentialed access; converted corpora and captions inherit it",
        expected=Expected(269_001, 270_000),
        format="csv",
        annotations=_below(
            ("mimic-cxr-jpg/", "2.0.0/", "mimic-cxr-jpg/2.0.0/", "2.1.0/", "mimic-cxr-jpg/2.1.0/"),
            "mimic_cxr_with_captions_and_reports_only_frontal_view.csv",
        ),
        image=0,
        labels=1,
        released=2,
        texts=(3,),
        image_folders=tuple(
            f"{top}{version}files"
            for top in ("", "mimic-cxr-jpg/")
            for version in ("", "2.0.0/", "2.1.0/")
        ),
        path_prefixes=tuple(
            f"{top}{version}files/"
            for top in ("mimic-cxr-jpg/", "")
            for version in ("2.0.0/", "2.1.0/", "")
        ),
        identity=r"(?P<group>p\d{8})/s\d+/(?P<key>[0-9a-f]{8}(?:-[0-9a-f]{8}){4})",
        split_file=SplitFile(
            tuple(f"{folder}{name}" for name in _SPLIT_NAMES for folder in mimic.FOLDERS),
            key_column="dicom_id",
            split_column="split",
        ),
        tar=TarLayout(
            ("mimic_cxr_webdataset", "mimic_cxr"),
            "_mimiccxr_",
            report_last=True,
            absent="noreportpresent",
        ),
        official=(mimic.LAYOUT,),
        options=mimic.MimicOptions,
    ),
    "rocov2": UnimedPart(
        title="ROCOv2",
        modality="radiology",
        caption_rule="original:1",  # the caption; concepts are labels beside it
        access="https://zenodo.org/records/8333645",
        licence="open download; a public copy lists CC BY-NC-SA 4.0",
        expected=Expected(60_001, 61_000),  # train
        labels="CUIs",
        image_folders=_below(rocov2.FOLDERS[1:], "train", "valid", "test"),
        official=(rocov2.LAYOUT,),
        tar=TarLayout(("rocov2_webdataset", "roco_webdataset"), num_original=1),
    ),
    "pmc_oa": UnimedPart(
        title="PMC-OA (PMC-CLIP)",
        modality="figure",
        caption_rule="uniform",  # one original caption
        access="https://huggingface.co/datasets/axiong/pmc_oa",
        licence=_PMC_TERMS,
        expected=Expected(1_644_001, 1_645_000),
        format="jsonl",
        annotations=_below(("pmc_oa/",), "pmc_oa.jsonl"),
        image="image",
        texts=("caption",),
        image_folders=_below(("pmc_oa/",), "caption_T060_filtered_top4_sep_v0_subfigures"),
        identity=_PMC,
        tar=TarLayout(("pmc_oa_webdataset", "pmc_clip_webdataset"), num_original=1),
    ),
    "llava_med_alignment": UnimedPart(
        title="LLaVA-Med alignment",
        modality="figure",
        caption_rule="uniform",  # one original caption
        access=_LLAVA_ACCESS,
        licence=_LLAVA_TERMS,
        expected=Expected(467_001, 468_000),
        format="json:",
        annotations=_below(("llava_med/",), "llava_med_alignment_500k_filtered.json"),
        own_annotations=_below(
            (*_LLAVA_FOLDERS, "alignment/", "data/alignment/"),
            "llava_med_alignment_500k.json",
        ),
        image="image",
        texts=("conversations|conversatons.1.value",),  # the owner's file has the second name
        several_texts_per_image=True,
        image_folders=_below(_LLAVA_FOLDERS, "images"),
        identity=_LLAVA,
        tar=TarLayout(
            ("llava_med_alignment_webdataset", "llava_med_alignment_set_webdataset"),
            num_original=1,
        ),
    ),
    "llava_med_hq60k": UnimedPart(
        title="LLaVA-Med HQ-60k",
        modality="figure",
        modality_by_key={
            "chest_xray": "xray",
            "ct_scan": "ct",
            "mri": "mri",
            "histology": "pathology",
        },
        caption_rule="uniform",  # figure caption and first in-text mention, in one sample
        access=_LLAVA_ACCESS,
        licence=_LLAVA_TERMS,
        # published as two pairs of the same image, here two texts of one sample, unless --corpus
        expected=Expected(264_001, 265_000, of="original captions"),
        format="json:*",
        annotations=_below(
            (*_LLAVA_FOLDERS, "instruct/", "data/instruct/"), "llava_med_instruct_fig_captions.json"
        ),
        image="pair_id",
        image_path="{}.jpg",
        texts=("fig_caption", "in_text_mention.0.tokens"),
        published_pairs=True,
        image_folders=_below(_LLAVA_FOLDERS, "images"),
        identity=_LLAVA,
        tar=TarLayout(
            ("llava_med_instruct_webdataset", "llava_med_hq_60k_set_webdataset"), num_original=1
        ),
    ),
    "quilt1m": UnimedPart(
        title="Quilt-1M",
        modality="pathology",
        caption_rule="uniform",  # one original caption
        access="https://zenodo.org/records/8239942 (request)",
        licence="restricted, research use, no redistribution",
        expected=Expected(1_017_001, 1_018_000),
        format="csv",
        annotations=_below(("Quilt/",), "quilt_1M_lookup.csv"),
        image="image_path",
        texts=("caption",),
        several_texts_per_image=True,
        image_folders=_below(("Quilt/",), "quilt_1m"),
        identity=r"(?P<key>(?P<group>.+))",
        split_column="split",
        note_by_column={
            "not_histology": "marked as no histology by Quilt itself",
            "single_wsi": "marked as a single whole-slide image by Quilt itself",
        },
        tar=TarLayout(("quilt_1m_webdataset", "quilt_webdataset"), num_original=1),
    ),
    "retina_part1": UnimedPart(
        title="Retina part 1 (label-only fundus sets)",
        modality="fundus",
        caption_rule="uniform",  # one of 10, or of 15 for grades of diabetic retinopathy
        access="26 public sets; docs/guides/converting.md",
        licence="differs per set; 27_BRSET is PhysioNet credentialed",
        expected=Expected(0, 155_000),
        format="csv",
        annotations=("Retina-Annotations/*.csv",),
        left_out={
            "06_DEN.csv": "part retina_part2",
            "39_MM_Retinal_dataset.csv": "part retina_part3",
            "28_OIA-DDR_revised.csv": "not in the published part",
            "07_LAG_revised.csv": "not in the published part",
            "01_EYEPACS_revised.csv": "not in the published part",
        },
        image="filename",
        told_by="filename",
        labels="categories",
        released="captions",
        official=(retina.LAYOUT,),
        image_folders=("Retina-Datasets", ""),
        image_subfolders=r"(?!06_|13_|25_|39_)\d\d_",
        path_prefixes=("Retina-Datasets/",),
        identity=r"(?P<key>08_ODIR-5K/(?:.*/)?(?P<group>\d+)_(?:left|right)|\d\d_[^/]+/.+)\.\w+$",
        # the eleventh piece is the sentence-level caption, which training never draws
        tar=TarLayout(("retina_part1_webdataset",), "_all_retina_merged_", num_generated=10),
    ),
    "retina_part2": UnimedPart(
        title="Retina part 2 (DEN, DeepOpht)",
        modality="fundus",
        caption_rule="uniform",  # one made of a keyword
        access="https://github.com/Jhhuangkay/DeepOpht-Medical-Report-Generation-for-Retinal-"
        "Images-via-Deep-Models-and-Visual-Explanation",
        licence="not stated",
        expected=Expected(0, 13_000),
        format="csv",
        annotations=("Retina-Annotations/06_DEN.csv",),
        image="image",
        labels="categories",
        noise=r"year|//",
        last_label=True,
        label_caption="Retinal fundus image: {}.",
        image_folders=("Retina-Datasets", ""),
        image_subfolders="06_",
        path_prefixes=("Retina-Datasets/",),
        tar=TarLayout(("retina_part2_webdataset",)),
    ),
    "retina_part3": UnimedPart(
        title="Retina part 3 (MM-Retinal)",
        modality="fundus",
        caption_rule="uniform",  # one original caption
        access="https://github.com/lxirich/MM-Retinal",
        licence="scanned from textbooks: rights unclear",
        expected=Expected(0, 6_000),
        format="csv",
        annotations=("Retina-Annotations/39_MM_Retinal_dataset.csv",),
        image="image",
        texts=("caption",),
        image_folders=("Retina-Datasets", ""),
        image_subfolders="39_",
        path_prefixes=("Retina-Datasets/",),
        tar=TarLayout(("retina_part3_webdataset",), num_original=1),
    ),
}
