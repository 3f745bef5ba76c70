"""Labels as a user gives them, checked: a list of labels, or names with their prompts."""

from collections.abc import Mapping, Sequence

from input_pipeline.io.errors import UserError

Labels = Mapping[str, str | Sequence[str]] | Sequence[str]


def class_prompts(labels: Labels) -> dict[str, tuple[str, ...]]:
    """Class name -> its prompts, in the given order.

    Args:
      labels: name -> prompt or prompts; or a list of labels, each its own prompt.

    Raises:
      UserError: fewer than two classes, a name twice, or a name or prompt without a letter or
        digit; the message names it.
    """
    if isinstance(labels, str):
        raise UserError(f"labels={labels!r} is one text: give a list of labels, or name -> prompts")
    pairs = labels.items() if isinstance(labels, Mapping) else [(label, label) for label in labels]
    classes: dict[str, tuple[str, ...]] = {}
    for number, (name, prompts) in enumerate(pairs, start=1):
        if not _is_text(name):
            raise UserError(f"label {number} is {name!r}: expected a text with a letter or digit")
        if name in classes:
            raise UserError(f"label {number}: {name!r} appears twice")
        classes[name] = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if not classes[name]:
            raise UserError(f"label {number}: {name!r} has no prompt")
        for prompt in classes[name]:
            if not _is_text(prompt):
                raise UserError(
                    f"label {number}: {name!r} has the prompt {prompt!r}; expected a text with a "
                    "letter or digit"
                )
    if len(classes) < 2:
        raise UserError(
            f"give at least two labels, found {len(classes)}: probabilities are relative to the "
            "other labels"
        )
    return classes


def _is_text(value: object) -> bool:
    return isinstance(value, str) and any(character.isalnum() for character in value)
