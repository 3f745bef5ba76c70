"""Writes captions for labels: from a grammar, or from a language model.

    unimed-jax caption --labels=table.csv --out=captions.json --provider=template
    unimed-jax caption --labels=table.csv --out=captions.json --provider=openai \\
        --base_url=http://127.0.0.1:8000/v1 --model=NAME

The labels are the distinct label sets of a CSV or JSONL file, which may be a table of images. Every
caption is checked before it is accepted; rejected ones are requested again with the reason, and the
rejected captions of incomplete sets go to the review file. `unimed-jax convert --captions=FILE`
reads the result. Responses are cached: the same command resumes an interrupted run, and costs
nothing when it is complete. A key, if the endpoint needs one, is read from OPENAI_API_KEY.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

from input_pipeline.captioning import (
    generate,
    label_sets,
    prompts,
    providers,
    review,
    templates,
    vocabulary,
)
from input_pipeline.captioning.cache import ResponseCache
from input_pipeline.io import cli, files
from input_pipeline.io.errors import ConfigError, UserError
from input_pipeline.io.files import write_text_atomically


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2: the input is invalid)."""
    args = _parser().parse_args(argv)
    return cli.run(lambda: _caption(args), "interrupted; the same command continues")


def _caption(args: argparse.Namespace) -> None:
    review_file = args.review or _beside(args.out, ".review.jsonl")
    if review.has_decisions(review_file):
        raise UserError(
            f"{review_file} holds a person's decisions and would be replaced: give it back with "
            "--reviewed and name another file with --review"
        )
    words = vocabulary.load(args.vocabulary)
    sets = label_sets.read(args.labels, args.label_separator)
    reviewed = review.read(args.reviewed, words) if args.reviewed else {}
    settings = generate.Settings(
        num_captions=args.num_captions,
        max_turns=args.max_turns,
        min_words=args.min_words,
        max_words=args.max_words,
        concurrency=args.concurrency,
    )
    usage: dict[str, float] = {}
    if args.provider == "template":
        grammar = providers.TemplateProvider(words, args.seed)
        results = generate.generate(sets, grammar, words, settings, reviewed)
    else:
        if not args.model:
            raise ConfigError("--provider=openai needs --model=NAME, as the endpoint calls it")
        with ResponseCache(args.cache or _beside(args.out, ".cache.sqlite")) as cache:
            provider = providers.ModelProvider(_model_options(args), cache)
            _print_estimate(provider, sets, words, settings, reviewed, args)
            if args.estimate_only:
                return
            results = generate.generate(sets, provider, words, settings, reviewed, progress=True)
        cost = _cost(provider.prompt_tokens, provider.answer_tokens, args)
        usage = {
            "requests": provider.asked,
            "cached_requests": provider.cached,
            "failed_requests": provider.failed,
            "prompt_tokens": provider.prompt_tokens,
            "answer_tokens": provider.answer_tokens,
            "cost": cost,
        }
    templates.save_label_sets(args.out, ((r.label_set, r.accepted) for r in results))
    open_captions = review.write(review_file, results)
    statistics = generate.statistics(results) | {"usage": usage}
    report = _beside(args.out, ".report.json")
    write_text_atomically(report, json.dumps(statistics, indent=1) + "\n")
    _print_statistics(statistics)
    print(f"captions: {args.out}; report: {report}")
    if open_captions:
        print(f"{open_captions} refused captions of incomplete sets to review: {review_file}")


def _model_options(args: argparse.Namespace) -> providers.ModelOptions:
    return providers.ModelOptions(
        model=args.model,
        base_url=args.base_url,
        endpoint=args.endpoint,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        timeout=args.timeout,
        max_retries=args.max_retries,
        rate_limit=args.rate_limit,
    )


def _print_estimate(
    provider: providers.ModelProvider,
    sets: Sequence[label_sets.LabelSet],
    words: vocabulary.Vocabulary,
    settings: generate.Settings,
    reviewed: Mapping[str, Sequence[templates.Caption]],
    args: argparse.Namespace,
) -> None:
    asked = cached = prompt_tokens = answer_tokens = 0
    for label_set in sets:
        wanted = words.num_captions(label_set, settings.num_captions)
        missing = max(wanted - len(reviewed.get(label_set.key, ())), 0)
        for request in provider.first_requests(label_set, missing) if missing else ():
            if provider.is_cached(request):
                cached += 1
            else:
                asked += 1
                prompt_tokens += request.num_prompt_tokens
                answer_tokens += request.num_captions * prompts.TYPICAL_CAPTION_TOKENS
    cost = _cost(prompt_tokens, answer_tokens, args)
    print(
        f"estimate for {len(sets)} label sets: {asked} requests ({cached} more are cached), "
        f"{prompt_tokens} prompt and {answer_tokens} response tokens, cost {cost:.2f}; at most "
        f"{settings.max_turns} times that, if every caption is refused",
        flush=True,
    )


def _cost(prompt_tokens: int, answer_tokens: int, args: argparse.Namespace) -> float:
    return (prompt_tokens * args.price_in + answer_tokens * args.price_out) / 1e6


def _print_statistics(statistics: Mapping) -> None:
    print(
        f"{statistics['label_sets']} label sets, {statistics['complete_sets']} complete; captions: "
        f"{statistics['wanted']} wanted, {statistics['reviewed']} reviewed, "
        f"{statistics['accepted']} of {statistics['checked']} checked accepted"
    )
    if usage := statistics["usage"]:
        print(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in usage.items()))
    print(f"{'check':<12}{'refused':>9}{'accepted share':>17}")
    for name, counts in statistics["checks"].items():
        share = "-" if counts["accepted_share"] is None else f"{counts['accepted_share']:.3f}"
        print(f"{name:<12}{counts['refused']:>9}{share:>17}")


def _beside(out: files.AnyPath, ending: str) -> files.AnyPath:
    return out.with_name(out.name.removesuffix(".json") + ending)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    path, add = files.flag, parser.add_argument
    add("--labels", type=path, required=True, help="CSV or JSONL of label sets, or of images")
    add("--label_separator", help="separator of labels in one cell; default: one label per cell")
    add("--out", type=path, required=True, help="caption file for `unimed-jax convert --captions`")
    add("--provider", required=True, choices=("template", "openai"))
    add(
        "--num_captions",
        type=int,
        default=10,
        help="captions per set; default 10, 15 for DR grades",
    )
    add("--seed", type=int, default=0, help="seed of the captions; default 0")
    add("--vocabulary", type=path, help="JSON of findings and synonyms to add to the built-in ones")
    add("--reviewed", type=path, help="review file with decisions; its captions come first")
    add("--review", type=path, help="file of rejected captions; default: OUT.review.jsonl")
    add("--max_turns", type=int, default=3, help="requests per set; default 3")
    add("--min_words", type=int, default=3, help="shortest caption; default 3")
    add("--max_words", type=int, default=40, help="longest caption; default 40")
    model = parser.add_argument_group("with --provider=openai").add_argument
    model("--base_url", help="URL of the endpoint, ending in /v1; default: OpenAI's")
    model("--model", help="name of the model at the endpoint")
    model(
        "--endpoint",
        choices=prompts.ENDPOINTS,
        default="chat",
        help="kind of endpoint; default chat",
    )
    model("--temperature", type=float, default=0.8, help="sampling temperature; default 0.8")
    model("--top_p", type=float, default=0.95, help="nucleus sampling; default 0.95")
    model("--concurrency", type=int, default=8, help="label sets processed at a time; default 8")
    model("--rate_limit", type=float, default=0, help="requests per minute; default: none")
    model("--timeout", type=float, default=120, help="timeout of a request in seconds; default 120")
    model("--max_retries", type=int, default=6, help="retries of a request; default 6")
    model(
        "--price_in",
        type=float,
        default=0,
        help="price per million prompt tokens, for the estimate",
    )
    model("--price_out", type=float, default=0, help="price per million response tokens")
    model("--estimate_only", action="store_true", help="print the estimate and stop")
    model("--cache", type=path, help="cache of responses; default: OUT.cache.sqlite")
    return parser


if __name__ == "__main__":
    sys.exit(main())
