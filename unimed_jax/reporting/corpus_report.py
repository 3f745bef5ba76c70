"""The inspection report of a corpus: contents, duplicates, leaks, burned-in text."""

import collections
import dataclasses
import html
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from input_pipeline.inspection.burned_in import BurnedInText
from input_pipeline.inspection.duplicates import Group, Leak
from input_pipeline.inspection.scan import ScannedImage
from unimed_jax.reporting import charts
from unimed_jax.reporting.html_report import Section, bars, image_uri, summary_section, table

_MAX_LABELS = 20  # of a part, in the chart
_MAX_REASONS = 30
_PICTURE_SIDE = 160  # pixels


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The content of a report.

    Attributes:
      images: images of the inspected corpora.
      evaluation: images of the corpora given as ``--against``.
      groups: groups of equal or nearly equal images, as indices into ``images``.
      leaks: images that are in an evaluation set.
      split_leaks: indices of ``train`` images that are in another split, too.
      length_unit: unit of ``ScannedImage.caption_lengths``, "tokens" or "words".
      context_length: training truncates longer captions; None if unknown.
      rejections: reason -> number of rows, from the conversion.
      num_read: number of rows that the conversion read.
      burned_in: index into ``images`` -> detected text, for the examined images.
      samples: indices of the images on the sample sheets.
      pixels: index into ``images`` -> uint8 (H, W, 3), for the images to show.
      evaluation_pixels: index into ``evaluation`` -> uint8 (H, W, 3).
    """

    images: Sequence[ScannedImage]
    evaluation: Sequence[ScannedImage]
    groups: Sequence[Group]
    leaks: Sequence[Leak]
    split_leaks: Sequence[int]
    length_unit: str
    context_length: int | None
    rejections: Mapping[str, int]
    num_read: int
    burned_in: Mapping[int, BurnedInText]
    samples: Sequence[int]
    pixels: Mapping[int, np.ndarray]
    evaluation_pixels: Mapping[int, np.ndarray]


def sections(inspection: Inspection) -> list[Section]:
    """The sections of the report, in order."""
    return [
        _summary(inspection),
        _parts(inspection),
        _distributions(inspection),
        _labels(inspection),
        _duplicates(inspection),
        _leaks(inspection),
        _burned_in(inspection),
        _rejected(inspection),
        _sheets(inspection),
    ]


def reason_of(text: str) -> str:
    """The reason of a rejection without the details of its row, so that reasons can be counted.

    Quoted names become '…' and numbers become N; advice after ": add " is cut.
    """
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "…", text)
    return re.sub(r"\d+", "N", text).split(": add ")[0][:160]


def truncated_share(images: Iterable[ScannedImage], context_length: int) -> float:
    """Fraction of captions that exceed the context length."""
    lengths = [length for image in images for length in image.caption_lengths]
    return sum(length > context_length for length in lengths) / len(lengths) if lengths else 0.0


def _by_part(images: Sequence[ScannedImage]) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        parts.setdefault(image.source, []).append(index)
    return dict(sorted(parts.items()))


def _in_groups(inspection: Inspection) -> set[int]:
    return {index for group in inspection.groups for index in group.members}


def _summary(inspection: Inspection) -> Section:
    images = inspection.images
    surplus = sum(len(group.members) - 1 for group in inspection.groups)
    figures = {
        "Images": f"{len(images):,}",
        "Parts": f"{len(_by_part(images)):,}",
        "Modalities": f"{len({image.modality for image in images}):,}",
        "Labels": f"{len({label for image in images for label in image.labels}):,}",
        "Surplus copies": f"{surplus:,} ({surplus / max(len(images), 1):.1%})",
        "Training images in another split": f"{len(inspection.split_leaks):,}",
    }
    if inspection.evaluation:
        figures["Images in an evaluation set"] = f"{len(inspection.leaks):,}"
    if inspection.context_length:
        share = truncated_share(images, inspection.context_length)
        figures[f"Captions over {inspection.context_length} tokens"] = f"{share:.2%}"
    figures["Rows rejected"] = f"{sum(inspection.rejections.values()):,}"
    if inspection.burned_in:
        with_text = sum(bool(text.texts) for text in inspection.burned_in.values())
        figures["Examined images with text"] = f"{with_text:,} of {len(inspection.burned_in):,}"
    return summary_section(figures)


def _parts(inspection: Inspection) -> Section:
    images, doubled = inspection.images, _in_groups(inspection)
    rows = []
    for part, members in _by_part(images).items():
        part_images = [images[index] for index in members]
        splits = collections.Counter(image.split or "-" for image in part_images)
        lengths = [length for image in part_images for length in image.caption_lengths]
        row = [
            part,
            ", ".join(sorted({image.modality for image in part_images})),
            f"{len(part_images):,}",
            ", ".join(f"{name} {count:,}" for name, count in sorted(splits.items())),
            f"{len({label for image in part_images for label in image.labels}):,}",
            f"{len(lengths) / len(part_images):.1f}",
            f"{np.median(lengths):.0f}" if lengths else "—",
        ]
        if inspection.context_length:
            row.append(f"{truncated_share(part_images, inspection.context_length):.2%}")
        side = np.median([min(image.width, image.height) for image in part_images])
        row += [f"{side:.0f}", f"{sum(i in doubled for i in members) / len(part_images):.1%}"]
        rows.append(row)
    header = ["Part", "Modality", "Images", "Splits", "Labels", "Captions / image"]
    header.append(f"Median {inspection.length_unit}")
    if inspection.context_length:
        header.append("Truncated")
    header += ["Median short side", "In duplicates"]
    return Section("Parts", table(header, rows, compact=True))


def _distributions(inspection: Inspection) -> Section:
    images = inspection.images
    short = [min(image.width, image.height) for image in images]
    lengths = [length for image in images for length in image.caption_lengths]
    shapes = [image.width / image.height for image in images]
    figures = [
        ("Short side", _histogram(short, "pixels", "images")),
        ("Shape", _histogram(shapes, "width / height", "images")),
        (
            "Caption length",
            _histogram(lengths, inspection.length_unit, "captions", inspection.context_length),
        ),
    ]
    body = "".join(
        f"<figure><figcaption>{html.escape(title)}</figcaption>{chart}</figure>"
        for title, chart in figures
    )
    note = "The last bin holds all values above the 99.5th percentile."
    if inspection.context_length:
        note += f" Dashed, if in range: the context length, {inspection.context_length}."
    return Section(
        "Sizes and lengths", f'<div class="curves">{body}</div><p class="note">{note}</p>'
    )


def _histogram(
    values: Sequence[float], x_label: str, y_label: str, marker: float | None = None
) -> str:
    if not len(values):
        return '<p class="empty">Nothing to show.</p>'
    low, high = float(np.min(values)), float(np.percentile(values, 99.5))
    if high <= low:
        low, high = low - 0.5, low + 0.5
    counts, edges = np.histogram(np.clip(values, low, high), bins=40, range=(low, high))
    seen = marker if marker is not None and low <= marker <= high else None
    return charts.histogram(edges.tolist(), counts.tolist(), seen, x_label=x_label, y_label=y_label)


def _labels(inspection: Inspection) -> Section:
    images = inspection.images
    parts = [("Modality", collections.Counter(image.modality or "-" for image in images))]
    for part, members in _by_part(images).items():
        parts.append((part, collections.Counter(x for i in members for x in images[i].labels)))
    body = []
    for title, counter in parts:
        if not counter:
            continue
        shown = counter.most_common(_MAX_LABELS)
        shown_bars = bars([(name, count, f"{count:,}") for name, count in shown])
        rest = len(counter) - len(shown)
        more = f'<p class="note">and {rest:,} more labels</p>' if rest else ""
        body.append(f"<h3>{html.escape(title)}</h3>{shown_bars}{more}")
    return Section("Modalities and labels", "".join(body))


def _duplicates(inspection: Inspection) -> Section:
    images = inspection.images
    if not inspection.groups:
        return Section("Duplicates", '<p class="empty">No two images are alike.</p>')
    by_parts: dict[str, list[Group]] = {}
    for group in inspection.groups:
        parts = " + ".join(sorted({images[index].source for index in group.members}))
        by_parts.setdefault(parts, []).append(group)
    rows = [
        [
            parts,
            f"{len(duplicates):,}",
            f"{sum(group.exact for group in duplicates):,}",
            f"{sum(len(group.members) for group in duplicates):,}",
            f"{max(len(group.members) for group in duplicates):,}",
            f"{sum(len({images[i].labels for i in g.members}) > 1 for g in duplicates):,}",
        ]
        for parts, duplicates in sorted(by_parts.items(), key=lambda item: -len(item[1]))
    ]
    header = ["Parts", "Groups", "Identical files", "Images", "Largest", "With different labels"]
    shown = [
        f"<p>{len(group.members)} images, {'equal' if group.exact else 'nearly equal'}</p>"
        + "".join(
            _thumbnail(inspection.pixels[index], images[index])
            for index in group.members
            if index in inspection.pixels
        )
        for group in inspection.groups
        if all(index in inspection.pixels for index in group.members[:2])
    ]
    pairs = "".join(f'<div class="pair">{pair}</div>' for pair in shown)
    note = (
        "Near duplicates differ in few bits of a perceptual hash: re-encoded, resized or "
        "brightened copies. Mirrored, rotated and cropped copies are not detected. "
        "duplicates.jsonl lists all groups."
    )
    return Section(
        "Duplicates",
        f'{table(header, rows)}<div class="pairs">{pairs}</div><p class="note">{note}</p>',
    )


def _leaks(inspection: Inspection) -> Section:
    images, evaluation = inspection.images, inspection.evaluation
    body = [
        f"<p>{len(inspection.split_leaks):,} images of a training split have a (near) copy in "
        "another split.</p>"
    ]
    if evaluation:
        counts = collections.Counter(
            evaluation[leak.evaluation].corpus for leak in inspection.leaks
        )
        sizes = collections.Counter(image.corpus for image in evaluation)
        hit = {(evaluation[x.evaluation].corpus, x.evaluation) for x in inspection.leaks}
        rows = [
            [name, f"{size:,}", f"{sum(c == name for c, _ in hit):,}", f"{counts[name]:,}"]
            for name, size in sizes.items()
        ]
        body.append(
            table(["Evaluation set", "Images", "Found in corpus", "Corpus images to exclude"], rows)
        )
        shown = inspection.evaluation_pixels
        pairs = "".join(
            f'<div class="pair"><p>{leak.distance} bits apart</p>'
            f"{_thumbnail(inspection.pixels[leak.image], images[leak.image])}"
            f"{_thumbnail(shown[leak.evaluation], evaluation[leak.evaluation])}</div>"
            for leak in inspection.leaks
            if leak.image in inspection.pixels and leak.evaluation in shown
        )
        body.append(f'<div class="pairs">{pairs}</div>')
    body.append(
        '<p class="note">exclude.jsonl lists them; unimed-jax convert --exclude=exclude.jsonl '
        "leaves them out.</p>"
    )
    return Section("Leaks", "".join(body))


def _burned_in(inspection: Inspection) -> Section:
    if not inspection.burned_in:
        return Section("Burned-in text", '<p class="empty">No image was examined.</p>')
    images = inspection.images
    looked: dict[str, list[int]] = {}
    for index in inspection.burned_in:
        looked.setdefault(images[index].source, []).append(index)
    rows = []
    for part, members in sorted(looked.items()):
        texts = [inspection.burned_in[index] for index in members]
        rows.append(
            [
                part,
                f"{len(members):,}",
                f"{sum(bool(text.texts) for text in texts):,}",
                f"{sum(text.like_identifier for text in texts):,}",
            ]
        )
    header = ["Part", "Examined", "With text", "Date, number or name"]
    ranked = sorted(inspection.burned_in.items(), key=lambda item: not item[1].like_identifier)
    figures = "".join(
        _thumbnail(inspection.pixels[index], images[index], " · ".join(text.texts))
        for index, text in ranked
        if text.texts and index in inspection.pixels
    )
    note = (
        "Detected by RapidOCR in a sample of each part. It misses small, faint and handwritten "
        "text, so no detection is no proof. burned_in.jsonl lists the detected text."
    )
    return Section(
        "Burned-in text",
        f'{table(header, rows)}<div class="sheet" style="margin-top:16px">{figures}</div>'
        f'<p class="note">{note}</p>',
    )


def _rejected(inspection: Inspection) -> Section:
    rejected = sum(inspection.rejections.values())
    if not rejected:
        return Section("Rejected rows", '<p class="empty">No row was rejected.</p>')
    ranked = collections.Counter(inspection.rejections).most_common()
    rows = [[reason, f"{count:,}"] for reason, count in ranked[:_MAX_REASONS]]
    note = (
        f"{rejected:,} of {inspection.num_read:,} rows read ({rejected / inspection.num_read:.2%})"
    )
    if len(ranked) > _MAX_REASONS:
        note += f"; {len(ranked) - _MAX_REASONS} rarer reasons are not shown"
    return Section(
        "Rejected rows",
        f'{table(["Reason", "Rows"], rows)}<p class="note">{note}. '
        "rejected.jsonl of the corpus lists every row.</p>",
    )


def _sheets(inspection: Inspection) -> Section:
    images = inspection.images
    parts: dict[str, list[str]] = {}
    for index in inspection.samples:
        image = images[index]
        caption = " · ".join(filter(None, [", ".join(image.labels), image.split]))
        thumbnail = _thumbnail(inspection.pixels[index], image, caption)
        parts.setdefault(image.source, []).append(thumbnail)
    body = "".join(
        f'<h3>{html.escape(part)}</h3><div class="sheet">{"".join(thumbnails)}</div>'
        for part, thumbnails in sorted(parts.items())
    )
    return Section("Sample sheets", body)


def _thumbnail(pixels: np.ndarray, image: ScannedImage, caption: str | None = None) -> str:
    if caption is None:
        where = " / ".join(filter(None, [image.source, image.split]))
        caption = " · ".join(filter(None, [", ".join(image.labels), where]))
    uri = image_uri(pixels, _PICTURE_SIDE, lossless=False)
    return (
        f'<figure><img src="{uri}" alt="{html.escape(image.id)}" title="{html.escape(image.id)}" '
        f'loading="lazy"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )
