"""The loop: request captions, check them, and request the missing ones with the reasons."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from tqdm import tqdm

from input_pipeline.captioning import checks
from input_pipeline.captioning.label_sets import LabelSet
from input_pipeline.captioning.providers import Proposal, Provider
from input_pipeline.captioning.templates import Caption, Provenance
from input_pipeline.captioning.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Settings:
    """`num_captions` per set (more where the vocabulary says so), requested in `max_turns`."""

    num_captions: int = 10
    max_turns: int = 3
    min_words: int = 3
    max_words: int = 40
    concurrency: int = 8


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A caption that failed checks: name of the check -> reason."""

    caption: Caption
    reasons: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Captioned:
    """The captions of a label set; `wanted` is the requested number."""

    label_set: LabelSet
    wanted: int
    accepted: tuple[Caption, ...]
    refused: tuple[Refusal, ...]


def generate(
    label_sets: Sequence[LabelSet],
    provider: Provider,
    vocabulary: Vocabulary,
    settings: Settings,
    reviewed: Mapping[str, Sequence[Caption]] | None = None,
    progress: bool = False,
) -> list[Captioned]:
    """Captions of every label set, in their order, for any concurrency.

    Args:
      reviewed: captions that a person accepted, by `LabelSet.key`; they come first and are
        part of the total.
    """
    reviewed = reviewed or {}

    def caption(label_set: LabelSet) -> Captioned:
        known = reviewed.get(label_set.key, ())
        return caption_one(label_set, provider, vocabulary, settings, known)

    with concurrent.futures.ThreadPoolExecutor(settings.concurrency) as pool:
        futures = [pool.submit(caption, label_set) for label_set in label_sets]
        try:
            done = concurrent.futures.as_completed(futures)
            for future in tqdm(done, total=len(futures), unit=" sets", disable=not progress):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


def caption_one(
    label_set: LabelSet,
    provider: Provider,
    vocabulary: Vocabulary,
    settings: Settings,
    reviewed: Sequence[Caption] = (),
) -> Captioned:
    """The loop for one set."""
    wanted = vocabulary.num_captions(label_set, settings.num_captions)
    accepted = list(reviewed)
    refused: list[Refusal] = []
    reasons: dict[str, str] = {}
    for turn in range(settings.max_turns):
        missing = wanted - len(accepted)
        if missing <= 0:
            break
        for proposal in provider.propose(label_set, missing, turn, dict(reasons)):
            if len(accepted) == wanted:
                break
            siblings = [caption.text for caption in accepted]
            context = checks.Context(
                label_set, vocabulary, siblings, settings.min_words, settings.max_words
            )
            failed = checks.refusals(proposal.text, context)
            caption = _with_provenance(proposal, provider, failed)
            if failed:
                refused.append(Refusal(caption, failed))
                reasons[proposal.text] = "; ".join(failed.values())
            else:
                accepted.append(caption)
    return Captioned(label_set, wanted, tuple(accepted), tuple(refused))


def _with_provenance(proposal: Proposal, provider: Provider, failed: Mapping[str, str]) -> Caption:
    provenance = Provenance(
        provider=provider.name,
        prompt_version=provider.prompt_version,
        model=provider.model,
        seed=proposal.seed,
        time=proposal.time,
        checks=tuple(name for name in checks.CHECKS if name not in failed),
    )
    return Caption(proposal.text, provenance)


def statistics(results: Iterable[Captioned]) -> dict[str, object]:
    """Counts of a run for the report: checked captions, and rejections by each check."""
    failed: collections.Counter[str] = collections.Counter()
    results = list(results)
    for result in results:
        for refusal in result.refused:
            failed.update(refusal.reasons.keys())
    refused = sum(len(result.refused) for result in results)
    reviewed = sum(c.provenance.reviewed for r in results for c in r.accepted)
    accepted = sum(len(result.accepted) for result in results) - reviewed
    checked = accepted + refused
    return {
        "label_sets": len(results),
        "complete_sets": sum(len(r.accepted) >= r.wanted for r in results),
        "wanted": sum(r.wanted for r in results),
        "reviewed": reviewed,
        "checked": checked,
        "accepted": accepted,
        "checks": {
            name: {
                "refused": failed[name],
                "accepted_share": round(1 - failed[name] / checked, 4) if checked else None,
            }
            for name in checks.CHECKS
        },
    }
