"""An evaluator that fails, or a set of a suite, does not take the results of the others with it."""

import contextlib
import traceback
from collections.abc import Iterator, Mapping

import jax

from input_pipeline.io.errors import UserError
from input_pipeline.io.library_errors import explain
from unimed_jax.distributed import process

FAILED = "failed"  # the entry EVALUATOR/failed of results.json holds the reason

# the hosts of a job fail together within this time, or one alone has a problem
_TOGETHER_SECONDS = 60


class EvaluationFailed(UserError):
    """Some evaluators failed; the results of the others are written."""


class Failures:
    """What failed in an evaluation.

    Attributes:
      reasons: name of the evaluator or set -> why, in one line.
    """

    def __init__(self, reasons: Mapping[str, str] | None = None) -> None:
        self.reasons: dict[str, str] = dict(reasons or {})

    @contextlib.contextmanager
    def catching(self, name: str) -> Iterator[None]:
        """Records and logs an error of the block, and goes on.

        In a job of several processes, only what fails in all of them is caught: if one is missing,
        the others wait for it in a collective, and the job has to end.
        """
        try:
            yield
        except Exception as error:
            if jax.process_count() > 1:
                if not isinstance(error, UserError):
                    raise
                _require_all(name, error)
            reason = explain(error)
            if reason is None:  # a fault of the program: its traceback is wanted
                traceback.print_exc()
                reason = repr(error)
            self.reasons[name] = " ".join(reason.split())
            process.log(f"{name} failed: {self.reasons[name]}")

    def raise_any(self, results: object) -> None:
        """Waits until all processes are here, and raises EvaluationFailed if something failed.

        By then, process 0 has written the other results to the path ``results``.
        """
        process.wait_for_all("results are written")
        if self.reasons:
            failed = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
            raise EvaluationFailed(f"evaluation failed of {failed}; all other results: {results}")


def _require_all(name: str, error: UserError) -> None:
    """Returns if all processes call it within a minute; otherwise raises ``error``."""
    try:
        process.wait_for_all(f"the failure of {name}", _TOGETHER_SECONDS)
    except Exception:  # of JAX's coordination service: another process did not arrive
        raise error from None
