"""Images per second of unimed_jax and of stock open_clip, side by side, from files to embeddings.

    python benchmarks/evaluation_speed.py --images=FOLDER
    python benchmarks/evaluation_speed.py --images=FOLDER --model=exports/mine --rounds=9

Decoding and preprocessing are included, as a user would run them: open_clip with its transform in
torch's DataLoader, without workers and with one per core; unimed_jax by `encode_image` on paths.
Each is a separate process on the same cores and embeds the same files; their rounds alternate.
unimed_jax chooses its batch size. Without --model, a ViT-B/16 with random weights is exported
first. Needs the extra [torch].
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import interleave

os.environ["HF_HUB_OFFLINE"] = "1"
CONTENDERS = ("open_clip", "open_clip_workers", "unimed_jax")
KINDS = (".jpg", ".jpeg", ".png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--model", type=Path, help="export; a random ViT-B/16")
    parser.add_argument("--num", type=int, default=128, help="images per round")
    parser.add_argument("--batch_size", type=int, default=32, help="batch size of open_clip")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each")
    parser.add_argument("--side", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    files = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in KINDS)
    files = files[:: max(len(files) // args.num, 1)][: args.num]
    if not files:
        sys.exit(f"error: no image below {args.images}")
    if args.side:
        run_side(args.side, args.model, files, args.batch_size)
        return
    with contextlib.ExitStack() as stack:
        if not args.model:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            args.model = random_export(scratch)
        compare(args, len(files))


def random_export(scratch: Path) -> Path:
    """Exports a ViT-B/16 + BERT-base with random weights."""
    import porting

    porting.in_own_process(porting.write_checkpoint, porting.MODELS["b16_base"], scratch / "run")
    command = ("tools/export_open_clip.py", f"--checkpoint={scratch / 'run'}")
    porting.measured("export", *command, f"--out={scratch / 'exported'}")
    return scratch / "exported"


def compare(args: argparse.Namespace, count: int) -> None:
    """Starts the contenders, alternates their rounds, prints their speeds."""
    flags = [f"--{name}={getattr(args, name)}" for name in ("images", "model", "num", "batch_size")]
    commands = {name: (sys.executable, __file__, f"--side={name}", *flags) for name in CONTENDERS}
    seconds = {n: t.wall for n, t in interleave.compare(commands, args.rounds).items()}
    print(f"{count} images per round, {args.rounds} rounds, {len(os.sched_getaffinity(0))} cores")
    print(
        "| | images/s, median | slowest to fastest | unimed_jax / this, median |\n|---|---|---|---|"
    )
    for name, times in seconds.items():
        ratios = [t / ours for t, ours in zip(times, seconds["unimed_jax"], strict=True)]
        print(
            f"| {name} | {count / statistics.median(times):.2f} | {count / max(times):.2f} to "
            f"{count / min(times):.2f} | {statistics.median(ratios):.3f} |"
        )


def run_side(side: str, model: Path, files: list[Path], batch_size: int) -> None:
    """Serves rounds that embed the files."""
    prepare = load_unimed_jax if side == "unimed_jax" else load_open_clip
    interleave.serve_rounds(prepare(model, files, batch_size, side))


def load_open_clip(
    model: Path, files: list[Path], batch_size: int, side: str
) -> Callable[[], None]:
    import open_clip
    import torch
    from PIL import Image

    name = f"local-dir:{model.absolute()}"
    network, _, transform = open_clip.create_model_and_transforms(name)
    network.eval()

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(files[index]))

    workers = len(os.sched_getaffinity(0)) if side == "open_clip_workers" else 0
    loader = torch.utils.data.DataLoader(
        Images(), batch_size, num_workers=workers, persistent_workers=workers > 0
    )

    @torch.inference_mode()
    def embed() -> None:
        found = [network.encode_image(batch, normalize=True).numpy() for batch in loader]
        assert sum(map(len, found)) == len(files)

    return embed


def load_unimed_jax(
    model: Path, files: list[Path], batch_size: int, side: str
) -> Callable[[], None]:
    del batch_size, side
    import unimed_jax

    loaded = unimed_jax.load(model)

    def embed() -> None:
        assert len(loaded.encode_image(files)) == len(files)

    return embed


if __name__ == "__main__":
    main()
