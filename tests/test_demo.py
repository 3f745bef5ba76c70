"""The demo page: a real server, asked over HTTP and, where there is one, by a browser."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import gradio_client
import numpy as np
import pytest
from helpers.dicom_files import dicom_file
from helpers.runs import ROOT
from helpers.small_model import write_export
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import unimed_jax
from input_pipeline import phantoms
from input_pipeline.io import images
from input_pipeline.io.errors import UserError
from unimed_jax.demo import LABELS, draw_phantom, parse_labels

# --- labels --------------------------------------------------------------------------------------


def test_labels_are_lines_of_a_name_and_prompts():
    assert parse_labels(" a: x | y \n\n no colon | two\nb:z: with colon|\n") == {
        "a": ("x", "y"),
        "no colon | two": ("no colon", "two"),
        "b": ("z: with colon",),
    }
    assert list(parse_labels(LABELS)) == [
        "X-ray", "CT", "MRI", "ultrasound", "histopathology", "fundus"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least two labels, one per line; found 0"),
        ("one: x", "found 1"),
        ("a: x\n: y", "line 2: ': y' has no name"),
        ("a:\nb: y", "line 1: 'a:' has no prompt"),
        ("a: | \nb: y", r"line 1: 'a: \|' has no prompt"),
        ("|\nb: y", r"line 1: '\|' has no name"),
        ("a: x\nb: y\n a: z", "line 3: 'a' appears twice"),
        ("a: x\nb: " + "y" * 20_000, "20,008 characters; at most 20,000"),
        ("\n".join(f"{n}: x" for n in range(201)), "201 labels with 201 prompts; at most 200"),
        ("a: x\nb: " + "y|" * 500, "2 labels with 501 prompts; at most 200 and 500"),
    ],
)
def test_wrong_labels_are_named_by_line(text, message):
    with pytest.raises(UserError, match=message):
        parse_labels(text)


_words = st.text(
    st.characters(exclude_characters=":|", categories=["L", "N", "P", "S"]), min_size=1
)


@given(st.dictionaries(_words, st.lists(_words, min_size=1, max_size=3), min_size=2, max_size=5))
def test_labels_that_are_written_are_read(classes):
    text = "\n".join(f"{name} : {' | '.join(prompts)}" for name, prompts in classes.items())
    assert parse_labels(text) == {name: tuple(prompts) for name, prompts in classes.items()}


@given(st.text(st.sampled_from("ab:| \n")))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(UserError):
        classes = parse_labels(text)
        assert len(classes) >= 2
        assert all(name and prompts and all(prompts) for name, prompts in classes.items())


def test_a_phantom_is_drawn_with_what_it_shows():
    image, caption = draw_phantom(np.random.default_rng(0))
    assert image.size == (256, 256)
    _, modality, finding = caption.split("; ")
    assert finding in phantoms.FINDINGS[modality]


# --- the server ----------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _command(checkpoint: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "unimed_jax.demo", f"--checkpoint={checkpoint}", f"--port={port}"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("export"), text={"context_length": 32})


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server puts its temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def address(checkpoint: Path, temporary: Path) -> Iterator[str]:
    """Of a server in a process of its own."""
    process = subprocess.Popen(
        _command(checkpoint, port := _free_port()),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=(log := temporary.with_suffix(".log")).open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 240
        while f"http://127.0.0.1:{port}" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def client(address: str) -> gradio_client.Client:
    """A new visitor."""
    return gradio_client.Client(address, verbose=False)


def _read(client: gradio_client.Client, path: Path) -> tuple[str, str]:
    """Uploads a file; returns the picture and the message that the page then shows."""
    upload, figure, problem, answer = client.predict(
        gradio_client.handle_file(str(path)), api_name="/read"
    )
    assert upload is None and not answer
    return figure, problem


def _classify(client: gradio_client.Client, labels: str) -> tuple[str, dict[str, float]]:
    problem, answer = client.predict(labels, api_name="/classify")
    return problem, {c["label"]: c["confidence"] for c in answer.get("confidences", ())}


def _phantom(path: Path) -> Path:
    row = phantoms.PhantomRow("demo", "mri", "tumor", 0, seed=0, image_size=96)
    path.write_bytes(phantoms.make_sample(row).image)
    return path


def _images(folder: Path) -> dict[Path, str]:
    """Files of several kinds, with what the page says of them."""
    deep = (np.arange(60 * 80).reshape(60, 80) * 13).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    (folder / "slice.dcm").write_bytes(dicom_file(deep))
    return {
        _phantom(folder / "phantom.jpg"): "phantom.jpg; 96 x 96 pixels",
        folder / "deep.png": "deep.png; 80 x 60 pixels; 16-bit grey scaled to 8 bit",
        folder / "slice.dcm": "slice.dcm; 80 x 60 pixels; DICOM stored as PNG; ",
    }


@pytest.mark.slow
def test_the_page_predicts_as_the_python_api_does(client, checkpoint, tmp_path):
    model = unimed_jax.load(checkpoint)
    classes = parse_labels(LABELS)
    for path, caption in _images(tmp_path).items():
        figure, problem = _read(client, path)
        assert problem == "" and f"<figcaption>{caption}" in figure
        for labels in (LABELS, "one: a\ntwo: b | c"):
            problem, answer = _classify(client, labels)
            assert problem == ""
            picture, _ = images.decode(path.read_bytes())
            classes = parse_labels(labels)
            (expected,) = model.classify([picture], classes)
            assert answer == pytest.approx(expected, abs=1e-5)
            assert sum(answer.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_limits_hold_for_requests_that_do_not_come_from_the_page(client, tmp_path):
    _read(client, _phantom(tmp_path / "phantom.jpg"))
    began = time.monotonic()
    problem, answer = _classify(client, "a: b\nc: d\n" * 500_000)  # 5 MB
    assert "5,000,000 characters; at most 20,000" in problem and not answer
    assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_phantom_is_drawn_for_those_who_have_no_image(client):
    figure, problem, answer = client.predict(api_name="/draw")
    assert "nobody&#x27;s image" in figure and problem == "" and not answer
    assert _classify(client, LABELS)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"not a picture", "text.png: not an image, or of an unknown format"),
        ("cut.jpg", None, "cut.jpg: the image cannot be decoded"),
        ("empty.png", b"", "empty.png: the image file is empty"),
        ("scan.dcm", b"\0" * 128 + b"DICM", "scan.dcm: "),
        (
            "line.ppm",
            b"P6 900 1 255 " + bytes(2700),
            "cannot read the image: the image is 900 x 1 pixels: too elongated",
        ),
    ],
)
def test_a_bad_file_gives_a_message_and_is_not_taken_for_the_one_before(
    client, tmp_path, name, content, message
):
    good = _phantom(tmp_path / "good.jpg")
    _read(client, good)
    bad = tmp_path / name
    bad.write_bytes(good.read_bytes()[:900] if content is None else content)
    figure, problem = _read(client, bad)
    assert figure == "" and f'role="alert">{message}' in problem
    assert "Traceback" not in problem
    problem, answer = _classify(client, LABELS)
    assert "no image yet" in problem and not answer


@pytest.mark.slow
def test_wrong_labels_give_a_message_and_the_image_stays(client, tmp_path):
    _read(client, _phantom(tmp_path / "good.jpg"))
    problem, answer = _classify(client, "<b>: x\n<b>: y")
    assert "line 2: &#x27;&lt;b&gt;&#x27; appears twice" in problem and not answer
    assert _classify(client, LABELS)[1]


@pytest.mark.slow
def test_visitors_do_not_see_each_other(address, tmp_path):
    one, two = (gradio_client.Client(address, verbose=False) for _ in range(2))
    _read(one, _phantom(tmp_path / "good.jpg"))
    assert "no image yet" in _classify(two, LABELS)[0]
    assert _classify(one, LABELS)[1]


@pytest.mark.slow
def test_no_upload_is_stored(client, temporary, tmp_path):
    _read(client, _phantom(tmp_path / "good.jpg"))
    _classify(client, LABELS)
    assert [p for p in temporary.rglob("*") if p.is_file() and p.stat().st_size] == []


@pytest.mark.slow
def test_files_of_the_server_cannot_be_named_as_uploads(address, tmp_path):
    """What is read is deleted: a request must not choose which file that is."""
    secret = _phantom(tmp_path / "secret.jpg")
    data = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    call = f"{address}/gradio_api/call/read"
    body = json.dumps({"data": [data]}).encode()
    request = urllib.request.Request(call, body, {"Content-Type": "application/json"})
    with contextlib.suppress(urllib.error.HTTPError):
        event = json.load(urllib.request.urlopen(request, timeout=60))["event_id"]
        answer = urllib.request.urlopen(f"{call}/{event}", timeout=60).read().decode()
        assert "event: error" in answer and "figcaption" not in answer
    assert secret.is_file()


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = subprocess.run(_command(checkpoint, port), cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == f"error: --port={port} is not available: another program may use it\n"


# --- a browser -----------------------------------------------------------------------------------

_BROWSER, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator["webdriver.Chrome"]:  # noqa: F821
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 "no-first-run", "window-size=1200,900"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_DRIVER))
    yield driver
    driver.quit()


@pytest.mark.slow
@pytest.mark.skipif(not (_BROWSER and _DRIVER), reason="no chromium and chromedriver installed")
def test_in_a_browser(browser, address, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def wait(selector: str, text: str = "") -> str:
        """The text of the first element that matches, as soon as it holds `text`."""

        def found(driver):
            elements = driver.find_elements(By.CSS_SELECTOR, selector)
            return next((e.text for e in elements if text in e.text), None) if elements else None

        return WebDriverWait(browser, 60).until(found)

    def upload(path: Path) -> None:
        browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(path))

    def click(text: str) -> None:
        buttons = browser.find_elements(By.TAG_NAME, "button")
        next(b for b in buttons if b.text == text).click()

    browser.get(address)
    wait("button", "Classify")
    assert "Research software, not a medical device." in wait("body")

    upload(_phantom(tmp_path / "good.jpg"))
    wait("figcaption", "good.jpg; 96 x 96 pixels")
    click("Classify")
    page = wait("body", "%")
    shares = [int(word[:-1]) for word in page.split() if word.endswith("%")]
    assert len(shares) == 6 and abs(sum(shares) - 100) <= 3

    (tmp_path / "bad.png").write_bytes(b"not a picture")
    upload(tmp_path / "bad.png")
    wait("[role=alert]", "bad.png: not an image, or of an unknown format")
    assert browser.find_elements(By.TAG_NAME, "figcaption") == []
    assert "%" not in wait("body")

    labels = browser.find_element(By.TAG_NAME, "textarea")
    labels.clear()
    labels.send_keys("<i>{{1}} ${2}: a\nother: ")
    click("Draw a phantom")
    wait("figcaption", "nobody's image")
    click("Classify")
    wait("[role=alert]", "line 2: 'other:' has no prompt")
    labels.send_keys("x\n<i>{{1}} ${2}: b")
    click("Classify")
    wait("[role=alert]", "line 3: '<i>{{1}} ${2}' appears twice")

    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert len(asked) > 5
    foreign = {url for url in asked if not url.startswith((address, "data:", "blob:"))}
    assert foreign == set()
    errors = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert errors == []
