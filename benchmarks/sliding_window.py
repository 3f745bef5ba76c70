"""Peak memory and time per volume of the sliding window, beside MONAI's on the same machine.

    python benchmarks/sliding_window.py [--depths=64,128,256] [--plane=160] [--volume=FILE.nii.gz]

The same UNETR (12 layers of width 96, 14 outputs) on windows of 32 x 64 x 64 with half overlap and
Gaussian weights, from a NIfTI file to a NIfTI file of labels; in JAX here, in torch with MONAI's
`sliding_window_inference` there, one after the other, each in a process of its own, on all cores.
Volumes are noise of the given depths, or copies of --volume put on top of each other. `extra` is
the peak of resident memory during the volume above what was resident after a first window.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

WINDOW = (32, 64, 64)
OUTPUTS, WIDTH, MLP, HEADS, FEATURES = 14, 96, 192, 4, 8
OVERLAP, BATCH = 0.5, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", default="64,128,256")
    parser.add_argument("--plane", type=int, default=160)
    parser.add_argument("--volume", type=Path, help="NIfTI file to take slices from")
    parser.add_argument("--worker", choices=("unimed_jax", "monai"), help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work = {"unimed_jax": run_ours, "monai": run_monai}[args.worker]
        print(json.dumps(work(args.input)))
        return
    print("| volume | library | s per volume | peak, MB | extra, MB |")
    print("|---|---|---|---|---|", flush=True)
    for depth in map(int, args.depths.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "volume.nii"
            shape = write_volume(path, depth, args.plane, args.volume)
            for library in ("unimed_jax", "monai"):
                command = [sys.executable, __file__, f"--worker={library}", f"--input={path}"]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found = json.loads(output.stdout.splitlines()[-1])
                print(
                    f"| {' x '.join(map(str, shape))} | {library} | {found['seconds']:.1f} | "
                    f"{found['peak'] / 1e6:.0f} | {found['extra'] / 1e6:.0f} |",
                    flush=True,
                )


def write_volume(path: Path, depth: int, plane: int, source: Path | None) -> tuple[int, ...]:
    import nibabel

    if source is None:
        values = np.random.default_rng(0).integers(0, 1000, (plane, plane, depth), np.int16)
    else:
        slices = np.asarray(nibabel.load(source).dataobj)
        values = np.tile(slices, (1, 1, -(-depth // slices.shape[2])))[..., :depth]
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return values.shape[::-1]


def measured(first: Callable[[], None], volume: Callable[[], None]) -> dict[str, float]:
    """Time and peak memory of ``volume``, after ``first``, which compiles and allocates."""
    first()
    process, peak, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    volume()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"seconds": seconds, "peak": peak[0], "extra": peak[0] - before}


def run_ours(path: Path) -> dict[str, float]:
    import jax

    from input_pipeline.io.intensity_windows import Window
    from input_pipeline.io.nifti import LabelWriter, NiftiVolume
    from unimed_jax.distributed import cpu_allocator, sharding
    from unimed_jax.inference.volume_segmenter import Segmenter
    from unimed_jax.models.unetr import UNETRConfig
    from unimed_jax.models.volumetric import VolumetricConfig, VolumetricModel
    from unimed_jax.segment import WindowedVolume

    cpu_allocator.tune_malloc()  # as unimed_jax.segment does
    sizes = UNETRConfig(width=WIDTH, heads=HEADS, mlp_width=MLP, features=FEATURES)
    model = VolumetricModel(VolumetricConfig("unetr", sizes, WINDOW, num_outputs=OUTPUTS))
    params = jax.jit(model.init)(jax.random.key(0))

    def predict(params: object, images: jax.Array) -> jax.Array:
        return jax.nn.softmax(model.apply(params, images, train=False)[0].logits[0])

    mesh = sharding.make_mesh({"data": jax.device_count(), "fsdp": 1, "tensor": 1})
    segmenter = Segmenter(predict, WINDOW, (0.0, 0.0, 0.0), mesh, overlap=OVERLAP, batch_size=BATCH)

    class OneWindow:
        shape, spacing = WINDOW, (1.0, 1.0, 1.0)

        def read(self, start: int, stop: int) -> np.ndarray:
            return np.zeros((stop - start, *WINDOW[1:]), np.float32)

    def volume() -> None:
        opened = NiftiVolume(path)
        writer = LabelWriter(path.with_name("labels.nii"), opened)
        start = 0
        for labels in segmenter.labels(params, WindowedVolume(opened, Window(0, 1000))):
            writer.write(start, labels)
            start += len(labels)
        writer.close()

    return measured(lambda: list(segmenter.labels(params, OneWindow())) and None, volume)


def run_monai(path: Path) -> dict[str, float]:
    import nibabel
    import torch
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import UNETR

    model = UNETR(1, OUTPUTS, WINDOW, FEATURES, WIDTH, MLP, HEADS, proj_type="perceptron").eval()

    def segment(values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found = sliding_window_inference(
                values[None, None], WINDOW, BATCH, lambda x: torch.softmax(model(x), dim=1),
                overlap=OVERLAP, mode="gaussian",
            )  # fmt: skip
        return found[0].argmax(0)

    def volume() -> None:
        image = nibabel.load(path)
        values = image.get_fdata(dtype=np.float32).transpose(2, 1, 0)
        values = torch.tensor(np.clip(values / 1000, 0, 1))
        labels = segment(values).numpy().astype(np.uint8).transpose(2, 1, 0)
        nibabel.save(nibabel.Nifti1Image(labels, image.affine), path.with_name("labels.nii"))

    return measured(lambda: segment(torch.zeros(WINDOW)) is None, volume)


if __name__ == "__main__":
    main()
