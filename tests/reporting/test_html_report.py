import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from helpers.html_page import Page
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_auc_score

from input_pipeline.io.errors import UserError
from unimed_jax.evals import classification_report
from unimed_jax.evals.classification import (
    ClassificationResult,
    calibration,
    expected_calibration_error,
    roc_curve,
)
from unimed_jax.reporting import html_report

CHARTS = (
    html_report.Chart("Loss", "loss"),
    html_report.Chart("Balanced accuracy", "zero_shot/*/balanced_accuracy", (0.0, 1.0)),
    html_report.Chart("Learning rate", "learning_rate", (0.0, None)),
    html_report.Chart("Gradient norm", "grad_norm", (0.0, None)),
    html_report.Chart("Logit scale", "logit_scale"),
    html_report.Chart("Images per second", "images_per_sec", (0.0, None)),
)


def classification(task="brain", classes=("glioma", "no tumor", "meningioma"), num_left_out=7):
    # true 0 0 0 0 1 1, predicted 0 0 0 1 1 1: recalls 0.75 and 1, the third class does not occur
    logits = np.array([[4, 0, 0]] * 3 + [[0, 4, 0]] * 3, np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1], np.int32)
    ids = tuple(f"{task}/{i}" for i in range(6))
    return ClassificationResult(task, classes, ids, labels, logits, num_left_out)


HISTORY = [
    {"step": 10, "loss": 2.5, "learning_rate": 1e-4},
    {"step": 20, "loss": float("nan")},
    {"step": 20, "zero_shot/brain/balanced_accuracy": 0.5, "zero_shot/a<b/balanced_accuracy": 0.25},
    {"step": 30, "loss": 1.5},
]


def test_bars_are_as_long_as_their_numbers():
    page = Page(html_report.bars([("a<b", 0.2, "20 %"), ("c", 0.5, "50 %"), ("d", 0.0, "0 %")]))
    widths = [attributes["style"] for tag, attributes in page.tags if tag == "i"]
    assert widths == ["width:40.0%", "width:100.0%", "width:0.0%"]
    assert "".join(page.text) == "a<b20 %c50 %d0 %"


def write(tmp_path, *sections, title="a title"):
    path = tmp_path / "report.html"
    html_report.write_report(path, title, sections)
    return Page(path.read_text(encoding="utf-8"))


def test_scores_and_counts_are_in_the_tables(tmp_path):
    results = [classification()]
    page = write(
        tmp_path,
        classification_report.classification_section(results),
        classification_report.confusion_section(results),
    )
    # class 0: positives 4 4 4 -4ish, negatives -4ish: 3 of 4 pairs right, one tied -> 0.875;
    # class 1 mirrors it
    brain = ["brain", "0.875", "0.333", "0.833", "0.875", "3", "6", "7"]
    assert page.rows[:2] == [
        ["Task", "Balanced accuracy", "Chance", "Accuracy", "AUC", "Classes", "Images", "Left out"],
        brain,
    ]
    assert page.rows[2] == [
        "true \\ predicted",
        "glioma",
        "no tumor",
        "meningioma",
        "recall",
        "images",
    ]
    assert page.rows[3:] == [
        ["glioma", "3", "1", "·", "0.75", "4"],
        ["no tumor", "·", "2", "·", "1.00", "2"],
        ["meningioma", "·", "·", "·", "—", "0"],
    ]


def test_the_file_is_self_contained_and_well_formed(tmp_path):
    image = np.zeros((4, 6, 3), np.uint8)
    item = classification_report.GalleryItem("brain", "id", image, "glioma", (("glioma", 0.9),))
    page = write(
        tmp_path,
        html_report.summary_section({"Steps": "400"}),
        html_report.curves_section(HISTORY, CHARTS),
        classification_report.gallery_section([item]),
        html_report.config_section({"seed": 0}),
    )
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href"):
            kinds = ("#", "data:image/png;base64,", "data:image/svg+xml;base64,")
            assert attributes.get(name, "#").startswith(kinds)
    style = (tmp_path / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme" in style
    targets = [a["href"][1:] for t, a in page.tags if t == "a" and a["href"].startswith("#")]
    assert targets == [a["id"] for t, a in page.tags if t == "section"] and len(targets) == 4
    assert "Steps" in page.text and "400" in page.text


def test_everything_that_is_not_ours_is_escaped(tmp_path):
    evil = "<script>alert('\"&x')</script>"
    results = [classification(evil, (evil + "0", evil + "1", "c"))]
    image = np.zeros((2, 2, 3), np.uint8)
    page = write(
        tmp_path,
        html_report.summary_section({evil: evil}, title=evil),
        classification_report.classification_section(results),
        classification_report.confusion_section(results),
        html_report.curves_section(
            [{"step": 1, f"zero_shot/{n}/balanced_accuracy": 0.5} for n in (evil, "x")], CHARTS
        ),
        classification_report.gallery_section(
            [classification_report.GalleryItem(evil, evil, image, evil, ((evil, 0.5),))]
        ),
        html_report.config_section({evil: evil}),
        title=evil,
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert sum(evil in text for text in page.text) >= 14
    assert page.images[0]["alt"] == evil


def test_curves_draw_what_was_logged_and_only_that(tmp_path):
    page = write(tmp_path, html_report.curves_section(HISTORY, CHARTS))
    captions = [t for t in page.text if t in {c.title for c in CHARTS}]
    # the title of a chart stands at its y axis, too
    assert list(dict.fromkeys(captions)) == ["Loss", "Balanced accuracy", "Learning rate"]
    assert "1.5" in page.text  # the last loss stands beside its caption
    assert {"brain", "a<b"} <= set(page.text)  # the legend names what the wildcard stands for
    tips = [t for t in page.text if ", step " in t]
    assert tips == ["loss, step 10: 2.5", "loss, step 30: 1.5"]
    # what was measured once is a number, not a chart of one point
    once = [row for row in page.rows if row != ["", ""]]
    assert once == [["brain", "0.5"], ["a<b", "0.25"], ["learning_rate", "0.0001"]]
    assert {"step 20", "step 10"} <= set(page.text)


def test_axes_have_titles(tmp_path):
    page = write(tmp_path, html_report.curves_section(HISTORY, CHARTS[:1]))
    assert page.text.count("step") == 1 and page.text.count("Loss") == 2  # caption and axis


def test_a_saved_figure_is_a_whole_svg_file_in_colour():
    chart = html_report.curves_section(HISTORY, CHARTS[:1]).html
    (uri,) = re.findall(r'download="chart.svg" href="data:image/svg\+xml;base64,([^"]+)"', chart)
    svg = base64.b64decode(uri).decode()
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox")
    style = root.find("{http://www.w3.org/2000/svg}style").text
    assert "var(--" not in style and ".chart path.line-0{stroke:#0b6a72}" in style


def test_roc_and_reliability_are_those_of_scikit_learn(tmp_path):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 3)).astype(np.float32)
    labels = np.where(rng.random(200) < 0.5, logits.argmax(1), rng.integers(0, 3, 200))
    ids = tuple(map(str, range(200)))
    result = ClassificationResult("t", ("a", "b", "c"), ids, labels, logits)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for index in range(3):
        false, true = roc_curve(result, index)
        expected = roc_auc_score(labels == index, probability[:, index])
        assert np.trapezoid(true, false) == pytest.approx(expected, abs=1e-6)
    means, shares, counts = calibration(result)
    right, confidence = labels == logits.argmax(1), probability.max(1)
    expected_shares, expected_means = calibration_curve(right, confidence, n_bins=10)
    np.testing.assert_allclose(means, expected_means, atol=1e-6)
    np.testing.assert_allclose(shares, expected_shares, atol=1e-6)
    error = np.sum(np.abs(expected_shares - expected_means) * counts) / 200
    assert expected_calibration_error(result) == pytest.approx(error, abs=1e-6)
    page = write(tmp_path, classification_report.curves_section([result]))
    assert {"t: ROC", "t: reliability", "false positive rate", "a", "c"} <= set(page.text)
    one_class = ClassificationResult("t", ("a", "b"), ids[:2], labels[:2] * 0, logits[:2, :2])
    assert "No task has samples" in classification_report.curves_section([one_class]).html


def test_a_task_can_choose_its_own_charts(tmp_path):
    history = [
        {"step": step, "val/liver/dice": 0.25, "val/all/dice": 0.5, "val/all/dice2": 1.0}
        for step in (1, 2)
    ]
    section = html_report.curves_section(
        history, [html_report.Chart("Dice", "val/*/dice")], title="Curves"
    )
    pair = html_report.curves_section(history, [html_report.Chart("Any", "v*/*/dice")])
    assert "<title>al / liver, step 1: 0.25</title>" in pair.html
    page = write(tmp_path, section, html_report.Section("Mine", "<p>own <b>html</b></p>"))
    tips = [t for t in page.text if ", step " in t]
    assert tips[::2] == ["liver, step 1: 0.25", "all, step 1: 0.5"]
    assert {"Curves", "Dice", "Mine", "html"} <= set(page.text)


def test_the_gallery_marks_right_and_wrong_and_keeps_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    items = [
        classification_report.GalleryItem("t", "a", image, "ct", (("ct", 0.7), ("mri", 0.3))),
        classification_report.GalleryItem("t", "b", image, "ct", (("mri", 0.6), ("ct", 0.4))),
    ]
    page = write(tmp_path, classification_report.gallery_section(items))
    cards = [a["class"] for tag, a in page.tags if tag == "article"]
    assert cards == ["hit", "miss"]
    assert [t for t in page.text if t in ("✓ right", "✗ wrong")] == ["✓ right", "✗ wrong"]
    assert [t for t in page.text if t.endswith("%")] == ["70%", "30%", "60%", "40%"]
    assert [a["class"] for tag, a in page.tags if tag == "li"] == ["true", "other", "other", "true"]
    png = base64.b64decode(page.images[0]["src"].split(",")[1])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), image)


def test_large_images_are_scaled_down():
    def embedded(image):
        return Image.open(io.BytesIO(base64.b64decode(html_report.image_uri(image).split(",")[1])))

    assert embedded(np.zeros((512, 1024, 3), np.uint8)).size == (256, 128)
    with pytest.raises(ValueError, match=r"got float32 \(4, 4, 3\)"):
        html_report.image_uri(np.zeros((4, 4, 3), np.float32))


def test_empty_inputs_say_so(tmp_path):
    page = write(
        tmp_path,
        html_report.curves_section([], CHARTS),
        classification_report.classification_section([]),
        classification_report.gallery_section([]),
    )
    expected = {"Nothing was logged.", "No task was evaluated.", "No image was kept."}
    assert expected <= set(page.text)


def test_a_task_without_samples_is_shown_with_dashes(tmp_path):
    empty = ClassificationResult(
        "none", ("a", "b"), (), np.zeros(0, np.int32), np.zeros((0, 2), np.float32), 3
    )
    page = write(
        tmp_path,
        classification_report.classification_section([empty]),
        classification_report.confusion_section([empty]),
    )
    assert page.rows[1] == ["none", "—", "0.500", "—", "—", "2", "0", "3"]


def names(directory):
    return [path.name for path in directory.iterdir()]


def test_a_failed_write_leaves_the_old_report(tmp_path):
    path = tmp_path / "report.html"
    html_report.write_report(path, "old", [])
    old = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):  # dies while the temporary file is being written
        html_report.write_report(path, "lone surrogate \ud800", [])
    assert path.read_bytes() == old and names(tmp_path) == ["report.html"]
    html_report.write_report(path, "new", [])
    assert b"<h1>new</h1>" in path.read_bytes() and names(tmp_path) == ["report.html"]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/report\.html: "):
        html_report.write_report(tmp_path / "file" / "report.html", "t", [])


def test_same_arguments_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        sections = [
            html_report.curves_section(HISTORY, CHARTS),
            classification_report.classification_section([classification()]),
        ]
        html_report.write_report(tmp_path / name, "t", sections)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_results_table():
    logits = np.zeros((1, 2), np.float32)
    lone = ClassificationResult("x", ("a", "b"), ("i",), np.zeros(1, np.int32), logits)
    assert classification_report.results_table([classification(), lone]).splitlines() == [
        "task   classes  images  left out  chance  bal. acc.  accuracy    AUC",
        "--------------------------------------------------------------------",
        "brain        3       6         7   0.333      0.875     0.833  0.875",
        "x            2       1         0   0.500      1.000     1.000      -",
    ]


def test_cells_of_a_table_are_emphasised_and_escaped():
    table = html_report.table(["", "a"], [["x", "1"], ["y", "<2>"]], bold={(1, 1)})
    assert table.count("<b>") == 1 and "<td><b>&lt;2&gt;</b></td>" in table
