"""Tables of label sets, prompts and responses, and the look-up of captions at conversion."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.captioning import label_sets, prompts, templates
from input_pipeline.captioning.label_sets import LabelSet
from input_pipeline.captioning.templates import Caption, Provenance
from input_pipeline.io.errors import CorpusError


def test_distinct_sets_of_an_image_table(tmp_path):
    (tmp_path / "t.csv").write_text(
        "image,label,modality,source,severity\n"
        "a.jpg,edema|effusion,xray,s,Mild\n"
        "b.jpg,effusion|edema,xray,s,mild\n"
        "c.jpg,edema,xray,s,\n"
        "d.jpg,,xray,s,\n"
        "e.jpg,edema|severity=mild,xray,s,\n"
    )
    found = label_sets.read(tmp_path / "t.csv", "|")
    assert found == [
        LabelSet("xray", ("edema", "effusion"), "s", (("severity", "mild"),)),
        LabelSet("xray", ("edema",), "s"),
        LabelSet("xray", ("edema",), "s", (("severity", "mild"),)),
    ]
    lines = [{"labels": ["edema", "effusion"], "modality": "xray", "view": None}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert label_sets.read(tmp_path / "t.jsonl") == [LabelSet("xray", ("edema", "effusion"))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "label,source\na,b\n", "row 1: no column modality; found"),
        ("t.csv", "modality\nct\n", "no column labels"),
        ("t.csv", "label,modality\na,\n", "labels and no modality"),
        ("t.csv", "label,modality\n,ct\n", "no row with a label"),
        ("t.csv", "label,modality\na\n", "line 2: 1 fields, but the header has 2"),
        ("t.jsonl", "{}\n[]\n", "line 1: no column"),
        ("t.jsonl", '{"label": {"a": 1}, "modality": "ct"}\n', "expected a text"),
        ("t.jsonl", "{\n", "line 1"),
        ("none.csv", None, "cannot read"),
    ],
)
def test_bad_tables_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=message):
        label_sets.read(tmp_path / name)


# --- prompts ------------------------------------------------------------------------------------


def request(endpoint="chat", count=3, refused=None):
    return prompts.requests(endpoint, LabelSet("ct", ("a",)), count, refused or {}, 5)


def test_requests_contain_the_label_and_the_reasons_and_differ_in_seed():
    (chat,) = request(refused={"bad one": "adds b"})
    assert "Write 3 captions" in chat.system and chat.text.startswith("Modality: ct. Label: a.")
    assert "bad one (adds b)" in chat.text
    completions = request("completion", refused={"bad one": "adds b"})
    assert [r.seed for r in completions] == [5, 6, 7]
    assert completions[0].text.endswith("Modality: ct. Label: a.\nCaption:")
    plain = request("completion")[0].text
    assert completions[0].text.startswith(plain[: plain.rindex("Modality")]), "cacheable prefix"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("1. One here.\n2) Two here.\n", ["One here.", "Two here."]),
        ("Here are three captions:\n- One.\n* Two.\n• Three.", ["One.", "Two.", "Three."]),
        ('```json\n["One.", "Two."]\n```', ["One.", "Two."]),
        ('"Quoted."\n\n“Curly.”', ["Quoted.", "Curly."]),
        ('CT [ "sic" of the chest.', ['CT [ "sic" of the chest.']),
        ("3D CT of a bone.\n10 mm CT slice.", ["3D CT of a bone.", "10 mm CT slice."]),
        ("", []),
    ],
)
def test_captions_are_parsed_from_responses(response, expected):
    assert prompts.captions(request()[0], response) == expected


def test_a_completion_is_one_line():
    (first, *_) = request("completion")
    assert prompts.captions(first, ' "A caption."\nModality: mri') == ["A caption."]
    assert prompts.captions(first, "  \n") == []


@given(st.text(max_size=300))
def test_any_response_gives_clean_lines(response):
    for endpoint in prompts.ENDPOINTS:
        for caption in prompts.captions(request(endpoint)[0], response):
            assert caption and caption == " ".join(caption.split())


# --- the caption file ---------------------------------------------------------------------------


def caption(text):
    return Caption(
        text, Provenance("openai", "chat-1", "m", 3, "2026-01-01T00:00:00Z", ("length",))
    )


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "c.json"
    sets = [
        (LabelSet("xray", ("edema", "effusion"), "s"), [caption("both in s")]),
        (LabelSet("xray", ("effusion", "edema")), [caption("both")]),
        (LabelSet("xray", ("edema",)), [caption("edema")]),
        (LabelSet("xray", ("edema",), "", (("severity", "mild"),)), [caption("mild edema")]),
        (LabelSet("xray", ("hernia",)), []),
    ]
    templates.save_label_sets(path, sets)
    content = json.loads(path.read_text())
    content["modalities"] = {"xray": {"*": ["{label} template"]}}
    path.write_text(json.dumps(content))
    return templates.load(path)


@pytest.mark.parametrize(
    ("source", "labels", "expected"),
    [
        ("s", ["effusion", "edema"], ["both in s"]),  # the order of labels plays no part
        ("t", ["edema", "effusion"], ["both"]),
        ("s", ["edema"], ["edema"]),
        ("s", ["edema", "severity=mild"], ["mild edema"]),
        ("s", ["edema", "severity=severe"], ["edema"]),  # true as well, if it says less
        ("s", ["edema", "fracture"], ["edema", "fracture template"]),
        ("s", ["hernia"], ["hernia template"]),
        ("s", [], []),
    ],
)
def test_the_set_comes_before_its_labels(captions, source, labels, expected):
    assert [c.text for c in captions.captions_of(source, "xray", labels)] == expected


def test_provenance_survives_the_file(captions):
    (found,) = captions.captions_of("s", "xray", ["edema"])
    assert found == caption("edema")
    assert json.loads(found.provenance.as_json) == {
        "provider": "openai",
        "prompt_version": "chat-1",
        "model": "m",
        "seed": 3,
        "time": "2026-01-01T00:00:00Z",
        "checks": ["length"],
    }
    (template,) = captions.captions_of("s", "xray", ["fracture"])
    assert template.provenance.provider == "templates"
    assert template.provenance.prompt_version.startswith("sha256-")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"labels": ["a"], "captions": []}, 'needs "modality"'),
        ({"modality": "ct", "labels": "a", "captions": []}, '"label_sets" / 0 needs'),
        ({"modality": "ct", "labels": ["a"]}, 'needs "captions"'),
        ({"modality": "ct", "labels": ["a"], "captions": ["t"]}, "has a caption that is not"),
        (
            {"modality": "ct", "labels": ["a"], "captions": [{"text": "t", "provenance": 1}]},
            "has a caption that is not",
        ),
        ({"modality": "ct", "labels": ["a"], "captions": [], "x": 1}, "keys"),
    ],
)
def test_bad_label_sets_are_named(tmp_path, entry, message):
    content = {"version": 2, "label_sets": [entry], "provenance": [{"provider": "p"}]}
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match=message):
        templates.load(tmp_path / "c.json")
    (tmp_path / "c.json").write_text('{"version": 2, "provenance": [{"model": "m"}]}')
    with pytest.raises(CorpusError, match='"provenance" / 0'):
        templates.load(tmp_path / "c.json")
