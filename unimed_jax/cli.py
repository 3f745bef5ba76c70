"""The command ``unimed-jax``: one entry per task, each with its ``--help``.

    unimed-jax train --config=configs/quickstart.py --workdir=runs/quickstart
    unimed-jax evaluate --help

Every command is a module of this package with ``main(argv) -> int | None``; only the one that is
asked for is imported.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

from unimed_jax.version import __version__

# command -> (module, one line of help), in the order of a project's life
COMMANDS: dict[str, tuple[str, str]] = {
    "fetch": ("fetch_data", "bring the figures of PubMed Central that parts of UniMed name"),
    "convert": ("convert_corpus", "write a TFRecord corpus from images, labels and texts"),
    "caption": ("caption_labels", "write captions for labels, by a grammar or a language model"),
    "corpus-status": ("corpus_status", "show which of the thirteen parts are there, or missing"),
    "inspect": ("inspect_corpus", "find duplicates, leaks and burned-in text in a corpus"),
    "train": ("train", "train any task from a recipe; resume a run that was interrupted"),
    "evaluate": ("evaluate", "zero-shot, probes and retrieval on a corpus, or a benchmark suite"),
    "compare": ("compare_results", "put results of several evaluations side by side"),
    "segment": ("segment", "segment NIfTI volumes with a trained run"),
    "demo": ("demo", "serve a web page that classifies images among labels of your own"),
    "import": ("import_weights", "turn published weights into a checkpoint"),
    "average": ("average", "average the weights of checkpoints: uniform, greedy soup, WiSE-FT"),
    "export": ("export", "write a checkpoint for PyTorch: open_clip opens it"),
    "compile-report": ("compile_report", "see whether a recipe fits a TPU slice, without a TPU"),
}


def help_text() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: unimed-jax COMMAND [ARGUMENTS ...]\n\n"
        "Medical vision-language pretraining in JAX.\n\n"
        f"commands:\n{rows}\n\n"
        "unimed-jax COMMAND --help explains a command; unimed-jax --version prints the version."
    )


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs one command.

    Args:
      argv: the arguments without the program's name; None: those of the process.

    Returns:
      The exit status of the command; 2 for an unknown command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"unimed-jax {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}; {hint}", file=sys.stderr)
        return 2
    sys.argv[0] = f"unimed-jax {name}"  # the name in usage lines
    module = importlib.import_module(f"unimed_jax.{COMMANDS[name][0]}")
    return module.main(rest)


if __name__ == "__main__":
    sys.exit(main())
