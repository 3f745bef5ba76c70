"""Each check accepts what is right and gives its reason for what is wrong."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from input_pipeline.captioning import checks, grammar, vocabulary
from input_pipeline.captioning.label_sets import ATTRIBUTES, LabelSet
from input_pipeline.io.errors import CorpusError

WORDS = vocabulary.load()


def failed(caption, *labels, modality="xray", siblings=(), **attributes):
    label_set = LabelSet(modality, labels, "", tuple(attributes.items()))
    return checks.refusals(caption, checks.Context(label_set, WORDS, siblings))


@pytest.mark.parametrize(
    ("caption", "labels", "modality"),
    [
        ("Chest X-ray with a pleural effusion.", ["Pleural Effusion"], "xray"),
        ("An enlarged heart and pleural fluid.", ["cardiomegaly", "effusion"], "xray"),
        ("Chest X-ray of COVID-19, a viral pneumonia with opacities.", ["COVID-19"], "xray"),
        ("No pneumothorax; normal chest radiograph.", ["normal"], "xray"),
        ("Lungs without effusion, mass or other abnormality.", ["No Finding"], "xray"),
        ("CT negative for coronavirus infection.", ["no COVID-19"], "ct"),
        ("COVID-19 is excluded on this CT.", ["no COVID-19"], "ct"),
        ("Brain MRI with a meningioma, a tumour.", ["meningioma"], "mri"),
        ("Histology slide of benign lung tissue.", ["benign lung tissue"], "pathology"),
        ("Fundus image without diabetic eye disease.", ["no diabetic retinopathy"], "fundus"),
        ("Fundus photograph with mild NPDR.", ["mild diabetic retinopathy"], "fundus"),
        ("Retina with several microaneurysms.", ["microaneurysms"], "fundus"),
        ("Scan with a blorbitis of the wrist.", ["blorbitis"], "xray"),  # a label no table knows
        ("Pneumothoraces on X-ray.", ["pneumothorax"], "xray"),
    ],
)
def test_good_captions_pass(caption, labels, modality):
    assert failed(caption, *labels, modality=modality) == {}


@pytest.mark.parametrize(
    ("check", "caption", "labels", "reason"),
    [
        ("finding", "Chest X-ray of a patient.", ["pneumothorax"], "does not name pneumothorax"),
        ("finding", "X-ray with edema and nothing else.", ["edema", "fracture"], "fracture"),
        ("finding", "X-ray of the chest, frontal.", ["normal"], "normal"),
        ("finding", "X-ray of the chest, frontal.", ["no COVID-19"], "no COVID-19"),
        ("negation", "X-ray without pneumothorax.", ["pneumothorax"], "denies pneumothorax"),
        ("negation", "X-ray: pneumothorax was ruled out.", ["pneumothorax"], "denies"),
        ("negation", "Healthy chest X-ray, pneumothorax.", ["pneumothorax"], "says healthy"),
        ("negation", "X-ray with edema and a normal heart.", ["edema"], "says normal"),
        ("negation", "Normal lungs, no COVID-19.", ["no COVID-19"], "says normal"),
        ("negation", "X-ray with COVID-19 pneumonia.", ["no COVID-19"], "which the label denies"),
        ("additions", "X-ray with edema and a fracture.", ["edema"], "adds fracture"),
        ("additions", "Normal X-ray apart from a nodule.", ["normal"], "adds nodule"),
        ("additions", "X-ray with edema, no fracture.", ["edema"], "denies fracture"),
        ("additions", "X-ray with edema and perichondritis.", ["edema"], "adds perichondritis"),
        ("additions", "MRI of a brain tumor, a glioma.", ["brain tumor"], "adds glioma"),
        ("additions", "Figure 2: X-ray with edema.", ["edema"], "a figure reference"),
        ("additions", "X-ray of a 45-year-old with edema.", ["edema"], "an age"),
        ("additions", "X-ray of a woman with edema.", ["edema"], "a person"),
        ("additions", "X-ray with edema (arrows).", ["edema"], "a marker"),
        ("additions", "X-ray with a 3 cm nodule.", ["nodule"], "a measurement"),
        ("modality", "Chest CT with edema.", ["edema"], "names ct, but the modality is xray"),
        ("attributes", "X-ray with severe edema.", ["edema"], "does not say"),
        ("attributes", "X-ray with a left effusion.", ["effusion"], "laterality"),
        ("length", "Edema.", ["edema"], "has 1 words"),
        ("length", "X-ray with edema " + "and so on " * 20, ["edema"], "words instead of"),
    ],
)
def test_bad_captions_are_refused_with_the_reason(check, caption, labels, reason):
    assert reason in failed(caption, *labels).get(check, ""), failed(caption, *labels)


def test_captions_may_mention_but_not_contradict_attributes_of_the_set():
    known = {"laterality": "right", "severity": "mild", "view": "frontal", "age_group": "child"}
    assert failed("Frontal X-ray of a child: mild right-sided effusion.", "effusion", **known) == {}
    for wrong in ("left effusion", "severe effusion", "effusion, lateral view", "adult effusion"):
        assert set(failed(f"X-ray with {wrong}.", "effusion", **known)) == {"attributes"}, wrong
    brain = failed(
        "Frontal chest X-ray with meningioma.", "meningioma", modality="mri", anatomy="brain"
    )
    assert set(brain) == {"modality", "attributes"}  # what the small model really wrote
    assert failed("Wrist X-ray, a fracture.", "fracture", anatomy="wrist") == {}


def test_near_duplicates_are_refused():
    siblings = ["Chest X-ray showing a large pleural effusion today."]
    for caption in (siblings[0], "chest x ray showing a large pleural effusion, today"):
        assert "nearly the same" in failed(caption, "effusion", siblings=siblings)["distinct"]
    assert failed("An effusion can be seen on this film.", "effusion", siblings=siblings) == {}


FINDINGS = sorted(WORDS.content["findings"])


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(st.sampled_from(FINDINGS), min_size=1, max_size=3, unique=True),
    modality=st.sampled_from([*sorted(WORDS.content["modalities"]), "spectroscopy"]),
    seed=st.integers(0, 5),
)
def test_the_grammar_satisfies_the_checks_for_every_finding(labels, modality, seed):
    label_set = LabelSet(modality, tuple(labels))
    claim = WORDS.claim(label_set)
    kinds = {broad for name in claim.present for broad in WORDS.broader(name)}
    grades = [WORDS.attributes(LabelSet(modality, (label,))).get("severity") for label in labels]
    # else the labels contradict each other
    assume(not kinds & set(claim.absent) and len(set(grades) - {None}) < 2)
    accepted = []
    for caption in grammar.captions(label_set, WORDS, seed):
        if not failed(caption, *labels, modality=modality, siblings=accepted):
            accepted.append(caption)
        if len(accepted) == 15:
            break
    assert len(accepted) == 15, accepted


ORGANS = json.loads((Path(grammar.__file__).parent / "data/grammar.json").read_text())["organs"]


@pytest.mark.parametrize("organ", ORGANS)
def test_a_label_that_is_an_organ_becomes_no_disease(organ):
    """As RadImageNet labels ultrasound: `pancreas`, without a finding."""
    label_set = LabelSet("ultrasound", (organ,))
    captions = list(itertools.islice(grammar.captions(label_set, WORDS, 0), 40))
    disease = ("patient with", "finding", "diagnosis", "evidence", "case of", "consistent")
    for caption in captions:
        assert organ in caption.lower() and not any(word in caption for word in disease)
        assert not set(failed(caption, organ, modality="ultrasound")) - {"distinct"}
    both = next(grammar.captions(LabelSet("ultrasound", (organ, "cyst")), WORDS, 0))
    assert " and the " not in both


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_the_grammar_mentions_the_attributes(attribute):
    for value in WORDS.content["attributes"][attribute]["values"]:
        label_set = LabelSet("xray", ("effusion",), "", ((attribute, value),))
        captions = list(grammar.captions(label_set, WORDS, 0))[:10]
        for caption in captions:
            terms = WORDS.content["attributes"][attribute]["values"][value]
            assert WORDS.terms_in(caption, terms), caption
            assert not set(failed(caption, "effusion", **{attribute: value})) - {"distinct"}


@given(st.text(max_size=200))
def test_no_text_breaks_a_check(text):
    failed(text, "pneumothorax", "no edema", laterality="left")


def test_grades_of_diabetic_retinopathy_get_fifteen():
    for grade in ("mild NPDR", "proliferative diabetic retinopathy", "no diabetic retinopathy"):
        assert WORDS.num_captions(LabelSet("fundus", (grade,)), 10) == 15
    assert WORDS.num_captions(LabelSet("fundus", ("diabetic retinopathy",)), 10) == 10


def test_a_user_can_add_findings(tmp_path):
    path = tmp_path / "v.json"
    added = {"version": 1, "findings": {"blorbitis": {"synonyms": ["blorb"], "is_a": ["mass"]}}}
    path.write_text(json.dumps(added))
    context = checks.Context(LabelSet("xray", ("Blorbitis",)), vocabulary.load(path))
    assert checks.refusals("X-ray with a blorb, a mass.", context) == {}
    path.write_text(json.dumps({"version": 1, "findings": {"x": {"synonyms": [], "is_a": ["y"]}}}))
    with pytest.raises(CorpusError, match="'y' is no finding of the table"):
        vocabulary.load(path)
    path.write_text(json.dumps({"version": 1, "negation": {}}))
    with pytest.raises(CorpusError, match="'negation' must be one of"):
        vocabulary.load(path)
    path.write_text(json.dumps({"version": 1, "findings": {"x": {"synonym": []}}}))
    with pytest.raises(CorpusError, match='needs "synonyms"'):
        vocabulary.load(path)


def test_the_built_in_table_is_sound():
    findings = WORDS.content["findings"]
    for name, entry in findings.items():
        assert {*entry.get("is_a", ()), *filter(None, [entry.get("negates")])} <= findings.keys(), (
            name
        )
