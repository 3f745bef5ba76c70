"""Draws the diagrams of the documentation as SVG: python docs/scripts/diagrams.py"""

from pathlib import Path

from svg import AMBER, BLUE, GREY, INK, MUTED, ROSE, TEAL, VIOLET, Colour, Svg

IMAGES = Path(__file__).resolve().parents[1] / "images"


def data_flow() -> None:
    svg = Svg(1120, 418, "From raw data to an evaluated, exported model")
    svg.text(
        28, 36, "From raw data to an evaluated, exported model", 17, weight=650, anchor="start"
    )
    y, height = 82, 104
    svg.box(
        28,
        y,
        176,
        height,
        "Raw data",
        ("CSV, folders, tars, TFDS", "DICOM, TIFF, NIfTI", "UniMed parts"),
        GREY,
    )
    svg.box(
        288,
        y,
        176,
        height,
        "Corpus",
        ("TFRecord shards", "manifest, checksums", "rejected.jsonl"),
        TEAL,
    )
    svg.box(
        548,
        y,
        176,
        height,
        "Batches",
        ("decode, crop, caption", "tokenise, prefetch", "addressed by step"),
        TEAL,
    )
    svg.box(
        808,
        y,
        284,
        height,
        "Train step",
        ("task loss, gradients, optimizer", "jitted, sharded over data x fsdp x tensor"),
        BLUE,
    )
    svg.arrow((204, 134), (288, 134), label="convert")
    svg.arrow((464, 134), (548, 134), label="read")
    svg.arrow((724, 134), (808, 134), label="place")
    svg.box(
        808,
        262,
        284,
        104,
        "Work directory",
        ("checkpoints (Orbax), metrics.jsonl", "results.json, report.html"),
        AMBER,
    )
    svg.arrow((980, 186), (980, 262))
    svg.text(990, 229, "save", 12.5, fill=MUTED, mono=True, anchor="start")
    svg.arrow((920, 262), (920, 186), dashed=True)
    svg.text(910, 229, "resume", 12.5, fill=MUTED, mono=True, anchor="end")
    svg.box(
        548,
        262,
        176,
        104,
        "Evaluation",
        ("zero-shot, probes", "retrieval, 21-set suite", "segmentation"),
        VIOLET,
    )
    svg.box(
        288,
        262,
        176,
        104,
        "Export",
        ("open_clip directory", "UniMed-CLIP .pt", "verified in PyTorch"),
        VIOLET,
    )
    svg.box(
        28,
        262,
        176,
        104,
        "Use",
        ("unimed_jax.load", "demo page, notebooks", "segment volumes"),
        VIOLET,
    )
    svg.arrow((808, 314), (724, 314), label="evaluate")
    svg.arrow((950, 366), (950, 396), (376, 396), (376, 366))
    svg.text(663, 388, "export", 12.5, fill=MUTED, mono=True)
    svg.arrow((288, 314), (204, 314), label="load")
    svg.save(IMAGES / "data_flow.svg")


def mesh() -> None:
    svg = Svg(1120, 470, "Eight devices as a 2 x 2 x 2 mesh")
    svg.text(
        28, 36, "Eight devices as a mesh: data=2, fsdp=2, tensor=2", 17, weight=650, anchor="start"
    )
    # devices
    x0, y0, size, gap = 78, 106, 92, 10
    quarter = (BLUE, TEAL, AMBER, VIOLET)
    for data in range(2):
        left = x0 + data * 250
        svg.text(left + size + gap / 2, 78, f"data {data}", 14, weight=600)
        for fsdp in range(2):
            for tensor in range(2):
                x, y = left + tensor * (size + gap), y0 + fsdp * (size + gap)
                rows = 2 * data + fsdp
                svg.box(
                    x,
                    y,
                    size,
                    size,
                    f"device {4 * data + 2 * fsdp + tensor}",
                    (f"rows {rows + 1}/4",),
                    quarter[rows],
                )
    for fsdp in range(2):
        svg.text(
            66,
            y0 + fsdp * (size + gap) + size / 2 + 5,
            f"fsdp {fsdp}",
            12.5,
            fill=MUTED,
            anchor="end",
        )
    for data in range(2):
        for tensor in range(2):
            svg.text(
                x0 + data * 250 + tensor * (size + gap) + size / 2,
                322,
                f"tensor {tensor}",
                12.5,
                fill=MUTED,
            )
    # the batch
    svg.text(28, 362, "Batch: rows are divided over data and fsdp", 14, weight=600, anchor="start")
    for rows in range(4):
        svg.rect(28 + rows * 125, 376, 119, 40, quarter[rows], radius=6)
        svg.text(28 + rows * 125 + 59.5, 401, f"rows {rows + 1}/4", 13)
    svg.text(
        28,
        442,
        "Devices of one colour see the same rows and share the work on them.",
        13,
        fill=MUTED,
        anchor="start",
    )
    # a weight
    svg.line(572, 60, 572, 442, "#d5dce4")
    svg.text(
        604, 78, "A weight (embed x mlp) on one copy of the model", 14, weight=600, anchor="start"
    )
    wx, wy, ww, wh = 668, 112, 200, 160
    shades: tuple[Colour, ...] = (
        ("#dbe7fb", "#3366cc"),
        ("#c3d6f7", "#3366cc"),
        ("#abc5f3", "#3366cc"),
        ("#93b3ee", "#3366cc"),
    )
    for fsdp in range(2):
        for tensor in range(2):
            x, y = wx + tensor * ww / 2, wy + fsdp * wh / 2
            svg.rect(x, y, ww / 2 - 3, wh / 2 - 3, shades[2 * fsdp + tensor], radius=4)
            svg.text(x + ww / 4, y + wh / 4 - 3, f"fsdp {fsdp}", 12.5)
            svg.text(x + ww / 4, y + wh / 4 + 14, f"tensor {tensor}", 12.5)
    svg.text(wx + ww / 2, wy - 10, "mlp → tensor", 13, fill=MUTED)
    svg.text(wx - 8, wy + wh / 2 - 4, "embed", 13, fill=MUTED, anchor="end")
    svg.text(wx - 8, wy + wh / 2 + 13, "→ fsdp", 13, fill=MUTED, anchor="end")
    for number, line in enumerate(
        (
            "Optimizer moments follow",
            "their parameter. Every",
            "data copy holds the same",
            "four shards.",
        )
    ):
        svg.text(894, 158 + 21 * number, line, 13.5, fill=MUTED, anchor="start")
    svg.text(604, 312, "Rules: logical axis → mesh axis", 14, weight=600, anchor="start")
    for number, (logical, axis) in enumerate(
        (
            ("rows of a batch", "data, fsdp"),
            ("embed (model width)", "fsdp"),
            ("heads, mlp, vocab", "tensor"),
            ("layers, head_dim, positions, patch, joint", "not divided"),
        )
    ):
        y = 340 + 27 * number
        svg.text(604, y, logical, 13.5, anchor="start")
        svg.text(900, y, "→", 13.5, fill=MUTED)
        svg.text(922, y, axis, 13.5, anchor="start", weight=600)
    svg.save(IMAGES / "mesh.svg")


def resume() -> None:
    svg = Svg(1120, 384, "A resumed run sees the batches of an uninterrupted one")
    svg.text(
        28,
        36,
        "A resumed run sees the same batches as an uninterrupted one",
        17,
        weight=650,
        anchor="start",
    )
    colours = (BLUE, TEAL, AMBER, VIOLET, ROSE, GREY)
    cell, x0 = 74, 168

    def batch(step: int, y: float, *, faded: bool = False) -> None:
        colour = colours[(step * 5 + 1) % 6]
        svg.rect(x0 + (step - 1) * cell, y, cell - 8, 46, colour, radius=6, dashed=faded)
        svg.text(
            x0 + (step - 1) * cell + (cell - 8) / 2,
            y + 29,
            f"b{step}",
            15,
            weight=600,
            fill=MUTED if faded else INK,
        )

    for step in range(1, 13):
        svg.text(x0 + (step - 1) * cell + (cell - 8) / 2, 74, str(step), 12.5, fill=MUTED)
        batch(step, 88)
    svg.text(148, 74, "step", 12.5, fill=MUTED, anchor="end")
    svg.text(148, 117, "uninterrupted", 14, weight=600, anchor="end")
    svg.text(148, 193, "killed", 14, weight=600, anchor="end")
    for step in range(1, 7):
        batch(step, 164, faded=step > 4)
    x_kill = x0 + 6 * cell + 2
    svg.text(x_kill + 2, 195, "✕", 24, fill=ROSE[1], weight=700, anchor="start")
    svg.text(x_kill + 34, 193, "SIGKILL after step 6", 13.5, fill=MUTED, anchor="start")
    svg.text(148, 285, "started again", 14, weight=600, anchor="end")
    for step in range(5, 13):
        batch(step, 256)
    x_save = x0 + 4 * cell - 4
    svg.line(x_save, 156, x_save, 310, AMBER[1])
    svg.text(x_save - 8, 234, "checkpoint at step 4", 13.5, fill=AMBER[1], anchor="end", weight=600)
    svg.text(
        x_save + 8,
        234,
        "steps 5 and 6 are computed again, with the same losses",
        13.5,
        fill=MUTED,
        anchor="start",
    )
    svg.text(
        28,
        348,
        "batch(step) is a function of config, seed and step",
        15,
        anchor="start",
        weight=600,
    )
    svg.text(
        470,
        348,
        "No iterator state is saved, so hosts and mesh may change.",
        14,
        fill=MUTED,
        anchor="start",
    )
    svg.save(IMAGES / "resume.svg")


def packages() -> None:
    svg = Svg(1120, 702, "Packages in layers")
    svg.text(
        28,
        36,
        "Packages in layers: imports point down or sideways, never up",
        17,
        weight=650,
        anchor="start",
    )

    def band(
        y: float, height: float, title: str, colour: Colour, rows: list[list[tuple[str, str]]]
    ) -> None:
        svg.rect(28, y, 1064, height, (colour[0], colour[1]), radius=10, opacity=0.55)
        svg.text(46, y + 25, title, 14.5, weight=650, anchor="start", mono=True)
        for line, row in enumerate(rows):
            width = (1064 - 36 - 12 * (len(row) - 1)) / len(row)
            for place, (name, what) in enumerate(row):
                x, top = 46 + place * (width + 12), y + 38 + line * 62
                svg.rect(x, top, width, 52, ("#ffffff", colour[1]), radius=7, stroke_width=1.1)
                svg.text(x + width / 2, top + 22, name, 13.5, weight=600, mono=True)
                svg.text(x + width / 2, top + 41, what, 12, fill=MUTED)

    band(
        52,
        104,
        "checkout only",
        GREY,
        [
            [
                ("configs/", "recipes"),
                ("benchmarks/", "measurements"),
                ("colab/", "notebooks"),
                ("tests/", "mirror the packages"),
            ]
        ],
    )
    band(
        168,
        354,
        "unimed_jax",
        BLUE,
        [
            [
                ("train · evaluate · export · segment · demo", "commands"),
                ("aot", "steps compiled for TPUs"),
            ],
            [("tasks", "what is trained"), ("evals", "scores"), ("exporting", "to open_clip")],
            [
                ("training", "step, loader, optimizer"),
                ("inference", "load, sliding window"),
                ("augmentation", "as JAX operations"),
            ],
            [("weights", "checkpoints and published weights"), ("models", "towers, U-Nets, UNETR")],
            [
                ("losses", "contrastive, Dice"),
                ("reporting", "HTML, charts"),
                ("monitoring", "metrics, profiles"),
                ("distributed", "mesh, processes"),
                ("config", "keys, checks"),
            ],
        ],
    )
    band(
        534,
        150,
        "input_pipeline",
        TEAL,
        [
            [
                ("conversion", "raw data → shards"),
                ("captioning", "captions for labels"),
                ("inspection", "duplicates, leaks"),
                ("phantoms", "generated images"),
                ("dataset, records, …", "the read path"),
            ],
        ],
    )
    svg.rect(46, 634, 1028, 38, ("#ffffff", TEAL[1]), radius=7, stroke_width=1.1)
    svg.text(560, 658, "io — disks and buckets, errors, images, NIfTI", 13, mono=True)
    svg.save(IMAGES / "packages.svg")


if __name__ == "__main__":
    data_flow()
    mesh()
    resume()
    packages()
