"""Takes the picture of a report in headless Chromium.

    unimed-jax train --config=configs/quickstart.py --workdir=runs/quickstart
    python docs/scripts/screenshot.py runs/quickstart/report.html docs/images/report.jpg

The picture in the guide on inspection is made of phantoms as well:

    unimed-jax inspect runs/quickstart/phantoms --out=inspection --text_images=0
    python docs/scripts/screenshot.py inspection/report.html docs/images/inspection.jpg
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="an HTML file made of phantoms only")
    parser.add_argument("out", type=Path, help=".jpg")
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=1000, help="pixels from the top")
    parser.add_argument("--top", type=int, default=0, help="pixels left out at the top")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "shot.png"
        subprocess.run(
            [
                "chromium",
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--virtual-time-budget=3000",
                f"--window-size={args.width},{args.top + args.height}",
                f"--screenshot={shot}",
                args.report.resolve().as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        image = Image.open(shot).convert("RGB")
    box = (0, args.top, args.width, args.top + args.height)
    image.crop(box).save(args.out, quality=85, optimize=True)
    print(f"written: {args.out}, {args.out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
