"""The command ``unimed-jax``: what it lists, what it starts, and what it refuses."""

import subprocess
import sys
import time

import pytest
from helpers.corpora import REPO

from unimed_jax import cli
from unimed_jax.distributed import process
from unimed_jax.version import __version__

ABSL = {"train", "evaluate", "segment", "export", "compile-report"}


def run(*arguments: str, program: tuple[str, ...] = ("-m", "unimed_jax.cli")) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *program, *arguments], cwd=REPO, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_help_lists_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, summary) in cli.COMMANDS.items():
        assert f"  {name} " in text and summary in text
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"unimed-jax {__version__}\n"


def test_an_unknown_command_is_one_line_with_a_suggestion(capsys):
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == ("error: unknown command 'trian'; did you mean 'train'?\n")
    assert cli.main(["xyz"]) == 2
    assert "valid: fetch, convert, caption" in capsys.readouterr().err


def assert_teaches(name: str, text: str) -> None:
    assert f"unimed-jax {name} " in text  # an example
    assert "--" in text


@pytest.mark.parametrize("name", sorted(set(cli.COMMANDS) - ABSL))
def test_help_of_a_command_teaches(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [*sys.argv])  # which the command changes
    with pytest.raises(SystemExit) as done:
        cli.main([name, "--help"])
    assert done.value.code in (0, None)
    assert_teaches(name, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ABSL))
def test_help_of_a_command_with_absl_flags_teaches(name):
    """In processes: each defines flags of the same names."""
    status, text = run(name, "--help")
    assert status == 0, text
    assert_teaches(name, text)


def test_silent_work_is_announced(capsys):
    with process.announced("compiling", every=0.05):
        time.sleep(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert lines and set(lines) == {"compiling: 0 s"}
    with process.announced("compiling", every=0.05):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().out == ""


def test_help_of_train_lists_the_keys_of_a_recipe():
    status, text = run("train", "--config=configs/quickstart.py:smoke", "--help")
    assert status == 0
    assert "--workdir: " in text
    assert "  num_train_steps=20\n" in text


def test_doors_of_the_checkout_start_the_same_commands():
    expected = run("compare", "--help")[1]
    status, text = run("--help", program=("tools/compare_results.py",))
    assert status == 0
    assert text.startswith("usage: compare_results.py")
    assert text.partition("options:")[2] == expected.partition("options:")[2] != ""
