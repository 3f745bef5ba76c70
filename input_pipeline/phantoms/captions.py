"""Captions of phantoms: a frame, filled with a name of the examination and a phrase.

No phrase negates a finding by name ("no tumor"): a text tower trained for minutes reads words, not
negations.
"""

import itertools
import re
import string

import numpy as np

from input_pipeline.phantoms.drawings import SIDES, SIZES, Slots

CAPTIONS_PER_SAMPLE = 5

_FRAMES = (
    "{exam} showing {phrase}",
    "{exam} with {phrase}",
    "{phrase} in this {exam}",
    "this {exam} shows {phrase}",
    "{exam}: {phrase}",
    "picture of this {exam} with {phrase}",
)

_EXAMS: dict[str, tuple[str, ...]] = {
    "xray": ("chest x-ray phantom", "frontal chest radiograph phantom", "phantom x-ray"),
    "ct": ("chest ct phantom", "axial ct phantom", "phantom computed tomography ct slice"),
    "mri": (
        "brain mri phantom",
        "axial mri phantom",
        "magnetic resonance mri phantom of the brain",
    ),
    "ultrasound": ("breast ultrasound phantom", "phantom ultrasound", "phantom breast sonogram"),
    "pathology": ("pathology phantom", "phantom histopathology slide", "h&e histology phantom"),
    "fundus": ("fundus phantom", "phantom fundus photograph", "retinal fundus phantom"),
}

_PHRASES: dict[tuple[str, str], tuple[str, ...]] = {
    ("xray", "normal"): (
        "normal lungs",
        "clear normal lungs on both sides",
        "a normal chest",
        "no finding, normal lungs and heart",
    ),
    ("xray", "pleural effusion"): (
        "a pleural effusion",
        "a {side} pleural effusion",
        "a {size} pleural effusion on the {side}",
        "{side} pleural fluid, a {size} effusion",
    ),
    ("xray", "nodule"): (
        "a lung nodule",
        "a {size} nodule in the {side} lung",
        "a round nodule on the {side}",
        "a {size} pulmonary nodule",
    ),
    ("ct", "normal"): (
        "normal lungs",
        "clear normal lungs on both sides",
        "a normal chest",
        "no finding, normal lungs and heart",
    ),
    ("ct", "nodule"): (
        "a lung nodule",
        "a {size} nodule in the {side} lung",
        "a round nodule on the {side}",
        "a {size} pulmonary nodule",
    ),
    ("ct", "consolidation"): (
        "lung consolidation",
        "consolidation of the {side} lung",
        "a {size} consolidation on the {side}",
        "dependent consolidation in the {side} lung",
    ),
    ("mri", "normal"): (
        "a normal brain",
        "a normal brain with narrow ventricles",
        "no finding, a normal brain",
        "normal white and gray matter",
    ),
    ("mri", "tumor"): (
        "a brain tumor",
        "a {size} tumor in the {side} hemisphere",
        "a ring enhancing tumor on the {side}",
        "a {size} tumor with edema",
    ),
    ("mri", "enlarged ventricles"): (
        "enlarged ventricles",
        "enlarged lateral ventricles",
        "wide ventricles, enlarged on both sides",
        "hydrocephalus with enlarged ventricles",
    ),
    ("ultrasound", "normal"): (
        "normal breast tissue",
        "normal tissue layers",
        "even layers of normal tissue",
        "no finding, normal tissue",
    ),
    ("ultrasound", "cyst"): (
        "a cyst",
        "a {size} simple cyst",
        "a black cyst with posterior enhancement",
        "a {size} anechoic cyst",
    ),
    ("ultrasound", "solid mass"): (
        "a solid mass",
        "a {size} solid mass",
        "an irregular solid mass with posterior shadow",
        "a {size} hypoechoic solid mass",
    ),
    ("pathology", "benign"): (
        "benign tissue",
        "benign glands with small regular nuclei",
        "regular benign glands",
        "a benign pattern of round glands",
    ),
    ("pathology", "malignant"): (
        "malignant tissue",
        "crowded large nuclei, a malignant pattern",
        "a malignant pattern of dark irregular nuclei",
        "malignant tissue without glands",
    ),
    ("fundus", "healthy"): (
        "a healthy retina",
        "a healthy {eye} eye",
        "a healthy optic disc and clear retina",
        "no finding, a healthy {eye} eye",
    ),
    ("fundus", "hemorrhages"): (
        "retinal hemorrhages",
        "{size} retinal hemorrhages in the {eye} eye",
        "dark red hemorrhages",
        "hemorrhages in the {eye} eye",
    ),
    ("fundus", "enlarged cup"): (
        "an enlarged cup",
        "an enlarged optic cup in the {eye} eye",
        "an enlarged pale cup of the optic disc",
        "glaucoma with an enlarged cup",
    ),
}


def draw_captions(
    rng: np.random.Generator, modality: str, finding: str, slots: Slots
) -> tuple[str, ...]:
    templates = list(itertools.product(_FRAMES, _EXAMS[modality], _PHRASES[modality, finding]))
    chosen = rng.choice(len(templates), CAPTIONS_PER_SAMPLE, replace=False)
    return tuple(
        frame.format(exam=exam, phrase=phrase.format(**slots))
        for frame, exam, phrase in (templates[i] for i in chosen)
    )


def _words(template: str) -> list[str]:
    """The words of a text or template as BERT's basic tokenizer splits them, slots left out."""
    return re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", template.lower()))


def vocabulary() -> tuple[str, ...]:
    """The BERT WordPiece vocabulary of the captions, in id order.

    Ids 0 to 4 are the special tokens; then every printable ASCII character, alone and as a
    continuation, so that no ASCII text needs [UNK]; then every word that a caption can hold.
    """
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    characters = sorted(string.ascii_letters + string.digits + string.punctuation)
    texts = [
        *_FRAMES,
        *itertools.chain(*_EXAMS.values(), *_PHRASES.values()),
        *SIDES,
        *SIZES,
    ]
    words = {word for text in texts for word in _words(text) if len(word) > 1}
    return (*specials, *characters, *(f"##{c}" for c in characters), *sorted(words))
