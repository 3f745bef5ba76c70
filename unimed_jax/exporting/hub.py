"""Uploads an exported directory to the Hugging Face hub."""

import json
from pathlib import Path

from input_pipeline.io.errors import UserError
from unimed_jax.exporting.open_clip_directory import CONFIG_FILE


def push(directory: Path, name: str) -> str:
    """Creates the repository if there is none, and commits all files; returns its id.

    In the repository, BERT's config.json is looked up by the repository's id, so that
    `open_clip.create_model_and_transforms("hf-hub:NAME")` needs nothing else.

    Args:
        directory: as `export` wrote it.
        name: ORG/NAME.

    Raises:
        UserError: not logged in (`hf auth login`, or HF_TOKEN), no such organisation, no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    config = json.loads((directory / CONFIG_FILE).read_text("utf-8"))
    config["model_cfg"]["text_cfg"] |= {"hf_model_name": name, "hf_tokenizer_name": name}
    contents = {file.name: file for file in sorted(directory.iterdir())}
    operations = [
        CommitOperationAdd(
            file,
            (json.dumps(config, indent=2) + "\n").encode() if file == CONFIG_FILE else str(path),
        )
        for file, path in contents.items()
    ]
    api = HfApi()
    try:
        repository = api.create_repo(name, exist_ok=True).repo_id
        api.create_commit(repository, operations, commit_message="Export of unimed_jax")
    except Exception as error:  # of many kinds: hub, HTTP client, OS, bad names
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{directory} is written, but cannot be pushed to {name}: {reason}"
        ) from error
    return repository
