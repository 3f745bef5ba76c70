"""A web page that classifies an image among labels written by the visitor.

    pip install 'unimed_jax[demo]'
    unimed-jax demo --checkpoint=PATH_OR_HUB_ID [--port=7860]

--checkpoint is anything that unimed_jax.load reads. Only this machine can open the page; set
GRADIO_SERVER_NAME=0.0.0.0 in the environment to serve others. The page loads nothing from the
internet and sends nothing. An upload is deleted as soon as it is read; its pixels stay in memory
until the visitor leaves.
"""

import argparse
import html
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from input_pipeline import phantoms
from input_pipeline.io import cli, images
from input_pipeline.io.errors import UserError
from unimed_jax.distributed import process
from unimed_jax.inference import dual_encoder
from unimed_jax.reporting import html_report

if TYPE_CHECKING:
    import gradio


LABELS = """\
X-ray: a chest x-ray | a frontal chest radiograph
CT: a chest ct | an axial ct slice
MRI: a brain mri | an axial mri slice
ultrasound: a breast ultrasound | a sonogram
histopathology: a histopathology slide | h&e histology
fundus: a fundus photograph | a picture of the retina"""

_NOTICE = (
    "**Research software, not a medical device.** The probabilities are relative to the labels "
    "given: they sum to 1 even if none of them fits, and depend on the wording. The "
    "image is not stored."
)
_MAX_UPLOAD = "100mb"
_PREVIEW_SIDE, _PHANTOM_SIDE = 512, 256
# Limits that hold for every request, whatever sends it.
_MAX_LABEL_TEXT, _MAX_LABELS, _MAX_PROMPTS = 20_000, 200, 500
_UNREAD_SECONDS = 600  # an upload that was never read is deleted after this time
_CSS = ".alert { border-left: 4px solid #b4451d; padding: 8px 14px; } figure { margin: 0; }"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2: the user's input is at fault)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="work directory, checkpoint or weights")
    parser.add_argument("--port", type=int, default=7860, help="port of the page (default: 7860)")
    args = parser.parse_args(argv)
    return cli.run(lambda: _demo(args.checkpoint, args.port), "the page is closed")


def _demo(checkpoint: str, port: int) -> None:
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("the demo needs gradio: pip install 'unimed_jax[demo]'") from error
    model = dual_encoder.load(checkpoint)
    # Compile, and refuse weights with one tower only, before the first visitor waits.
    model.classify(np.zeros((8, 8), np.uint8), parse_labels(LABELS))
    with tempfile.TemporaryDirectory() as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        # visitors need not know where it lies on this machine
        name = Path(checkpoint).resolve().name if Path(checkpoint).exists() else checkpoint
        serve(build(model, name), port)


def serve(page: "gradio.Blocks", port: int) -> None:
    """Serves the page until the process is interrupted.

    Raises:
      UserError: the port is taken.
    """
    import gradio as gr

    font, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # no web fonts
    theme = gr.themes.Base(primary_hue="teal", font=font, font_mono=mono).set(
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
    )
    try:
        _, address, _ = page.launch(
            server_port=port,
            share=False,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            max_file_size=_MAX_UPLOAD,
            footer_links=[],
            css=_CSS,
            theme=theme,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"--port={port} is not available: another program may use it") from error
    process.log(f"the page is at {address} (Ctrl-C ends it)")
    page.block_thread()


def build(model: dual_encoder.Model, name: str) -> "gradio.Blocks":
    """The page of a model with both towers; ``name`` is shown on it."""
    import gradio as gr

    size = model.config.visual.image_size

    def show(image: Image.Image, caption: str) -> tuple[np.ndarray, str]:
        picture = np.asarray(image.convert("RGB"))
        uri = html_report.image_uri(picture, _PREVIEW_SIDE, lossless=False)
        caption = html.escape(caption)
        figure = f'<figure><img src="{uri}" alt=""><figcaption>{caption}</figcaption></figure>'
        return dual_encoder.preprocess(image, size), figure

    def read(upload: str | None) -> tuple:
        """Reads an upload; its file is deleted at once."""
        try:
            if upload is None:
                raise UserError("no file was uploaded")
            square, figure = show(*open_upload(Path(upload)))
        except UserError as error:
            return None, None, "", _alert(error), None
        return None, square, figure, "", None

    def draw() -> tuple:
        image, caption = draw_phantom(np.random.default_rng())
        return *show(image, caption), "", None

    def classify(square: np.ndarray | None, labels: str) -> tuple:
        try:
            if square is None:
                raise UserError("no image yet: upload one, or draw a phantom")
            classes = parse_labels(labels)
            (probabilities,) = model.classify(square, classes)
        except UserError as error:
            return _alert(error), None
        return "", probabilities

    with gr.Blocks(
        title="unimed_jax", analytics_enabled=False, delete_cache=(_UNREAD_SECONDS, _UNREAD_SECONDS)
    ) as page:
        gr.Markdown(f"# Zero-shot classification\n\nModel: `{name}`\n\n{_NOTICE}")
        square = gr.State()
        with gr.Row():
            with gr.Column():
                upload = gr.File(label="Image: JPEG, PNG, TIFF, DICOM, ...", height=140)
                phantom = gr.Button("Draw a phantom", variant="secondary")
                figure = gr.HTML()
            with gr.Column():
                labels = gr.Textbox(
                    LABELS,
                    label="Labels",
                    info="One per line. 'name: prompt | prompt' averages several prompts; a line "
                    "without a colon is its own prompt.",
                    lines=6,
                    max_lines=20,
                    max_length=_MAX_LABEL_TEXT,
                )
                button = gr.Button("Classify", variant="primary")
                problem = gr.HTML()
                answer = gr.Label(label="Probabilities")
        upload.upload(read, upload, [upload, square, figure, problem, answer])
        phantom.click(draw, None, [square, figure, problem, answer])
        button.click(classify, [square, labels], [problem, answer])
    return page


def parse_labels(text: str) -> dict[str, tuple[str, ...]]:
    """Parses lines ``name: prompt | prompt`` or ``prompt`` into label -> prompts.

    Raises:
      UserError: a line without a name or prompt, a name given twice, fewer than two labels, or more
        text, labels or prompts than the page takes; the message names the line.
    """
    if len(text) > _MAX_LABEL_TEXT:
        raise UserError(f"the labels have {len(text):,} characters; at most {_MAX_LABEL_TEXT:,}")
    classes: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, colon, rest = (part.strip() for part in line.partition(":"))
        prompts = tuple(filter(None, (p.strip() for p in (rest if colon else name).split("|"))))
        name = name if colon else " | ".join(prompts)
        if not name or not prompts:
            raise UserError(
                f"labels, line {number}: {line.strip()!r} has no {'prompt' if name else 'name'}; "
                "expected 'name: prompt | prompt' or a prompt alone"
            )
        if name in classes:
            raise UserError(f"labels, line {number}: {name!r} appears twice")
        classes[name] = prompts
    num_prompts = sum(map(len, classes.values()))
    if len(classes) > _MAX_LABELS or num_prompts > _MAX_PROMPTS:
        raise UserError(
            f"{len(classes)} labels with {num_prompts} prompts; at most {_MAX_LABELS} and "
            f"{_MAX_PROMPTS}"
        )
    if len(classes) < 2:
        raise UserError(f"give at least two labels, one per line; found {len(classes)}")
    return classes


def open_upload(path: Path) -> tuple[Image.Image, str]:
    """Decodes an uploaded file as conversion does, and deletes it.

    Returns:
      The image and a caption.

    Raises:
      UserError: the file is not an image, too large or too elongated; the message names it.
    """
    data = path.read_bytes()
    path.unlink()
    try:
        image, notes = images.decode(data)
    except UserError:  # a package is missing
        raise
    except ValueError as error:
        raise UserError(f"{path.name}: {error}") from error
    size = f"{image.width} x {image.height} pixels"
    return image, "; ".join([path.name, size, *notes])


def draw_phantom(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A generated image for visitors who have none at hand, and its caption."""
    modality = str(rng.choice(list(phantoms.FINDINGS)))
    finding = str(rng.choice(phantoms.FINDINGS[modality]))
    row = phantoms.PhantomRow(
        "demo", modality, finding, int(rng.integers(1_000_000)), seed=0, image_size=_PHANTOM_SIDE
    )
    image, _ = images.decode(phantoms.make_sample(row).image)
    return image, f"phantom, nobody's image; {modality}; {finding}"


def _alert(error: UserError) -> str:
    return f'<p class="alert" role="alert">{html.escape(str(error))}</p>'


if __name__ == "__main__":
    sys.exit(main())
