"""docs/extending.md is executed: its files and lines are added to a copy, and its commands run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.corpora import REPO
from helpers.runs import xla_flags

from input_pipeline import phantoms
from unimed_jax.monitoring.metrics import read_metrics

PAGE = REPO / "docs" / "extending.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(title, content) of the page's code blocks in that language."""
    for found, title, content in BLOCK.findall(PAGE.read_text("utf-8")):
        if found == language:
            yield title, content


def apply_diff(text: str, diff: str) -> str:
    """Adds "+" lines after, and replaces "-" lines at, the place of the context line above."""
    lines = text.splitlines()
    position = None
    for line in diff.splitlines():
        mark, content = line[0], line[1:]
        if mark == "+":
            if position is None:  # before the context line that follows
                position = lines.index(diff.splitlines()[1][1:])
            lines.insert(position, content)
            position += 1
        else:
            position = lines.index(content, position or 0)
            if mark == "-":
                del lines[position]
            else:
                position += 1
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout with everything of the page added, and images to convert."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in ("unimed_jax", "input_pipeline", "configs"):
        shutil.copytree(REPO / folder, copy / folder)
    for language in ("python", "toml"):
        for title, content in blocks(language):
            assert not (copy / title).exists(), title
            (copy / title).write_text(content)
    for title, diff in blocks("diff"):
        file = copy / title
        file.write_text(apply_diff(file.read_text(), diff))
    (copy / "images" / "test").mkdir(parents=True)
    for label in ("normal", "nodule"):
        for number in range(4):
            row = phantoms.PhantomRow("train", "ct", label, number, seed=0, image_size=64)
            image = phantoms.make_sample(row).image
            (copy / "images" / "test" / f"p{number}_{label}_{number}.png").write_bytes(image)
    (copy / "images" / "notes.png").write_bytes(b"")
    templates = {"version": 1, "modalities": {"ct": {"*": ["a CT slice with {label}"]}}}
    (copy / "captions.json").write_text(json.dumps(templates))
    return copy


def commands() -> list[str]:
    return [line for _, content in blocks("bash") for line in content.splitlines()]


def test_the_page_shows_one_example_of_each_kind():
    titles = [title for language in ("python", "diff", "toml") for title, _ in blocks(language)]
    for folder in ("losses", "models", "evals", "tasks", "benchmark/suites/sets"):
        assert any(f"unimed_jax/{folder}/" in t or f"/{folder}/" in t for t in titles), folder
    assert any("conversion/sources/" in title for title in titles)
    assert len(commands()) == 6


@pytest.mark.slow
def test_the_examples_run(checkout):
    environment = {**os.environ, "PYTHONPATH": str(checkout), "XLA_FLAGS": xla_flags(1)}
    for command in commands():
        name, *arguments = shlex.split(command)
        assert name == "unimed-jax"
        done = subprocess.run(
            [sys.executable, "-m", "unimed_jax.cli", *arguments],
            cwd=checkout, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

    margin = read_metrics(checkout / "runs/margin/metrics.jsonl")
    assert margin[-1]["loss"] < margin[0]["loss"]
    assert (checkout / "runs/patch_mlp/report.html").is_file()
    scores = json.loads((checkout / "eval/uniformity/results.json").read_text())
    assert 0 <= scores["uniformity/alignment"] <= 4 and scores["uniformity/uniformity"] < 0
    assert "accuracy" in read_metrics(checkout / "runs/modalities/metrics.jsonl")[-1]
    report = json.loads((checkout / "corpora/file_names/conversion.json").read_text())
    assert report["written"] == 8 and report["rejected"] == 1
    results = json.loads((checkout / "eval/clinic/results.json").read_text())
    assert "clinic_ct" in json.dumps(results)
