"""tools/caption_labels.py: labels in, checked captions out, with a real server that misbehaves."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from input_pipeline.captioning import checks, label_sets, templates, vocabulary

pytest.importorskip("openai", reason="the extra [captions] is not installed")

REPO = Path(__file__).parents[3]
TOOL = REPO / "tools" / "caption_labels.py"
_spec = importlib.util.spec_from_file_location("caption_labels", TOOL)
caption_labels = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(caption_labels)

LABELS = [
    {"modality": "mri", "labels": "meningioma", "laterality": ""},
    {"modality": "ct", "labels": "kidney stone", "laterality": "right"},
    {"modality": "fundus", "labels": "glaucoma", "laterality": ""},
    {"modality": "fundus", "labels": "no cataract", "laterality": ""},
]


@pytest.fixture
def table(tmp_path):
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, LABELS[0])
        writer.writeheader()
        writer.writerows([*LABELS, LABELS[0]])
    return tmp_path / "labels.csv"


class Server:
    def __init__(self, directory, plan):
        directory.mkdir()
        self.log = directory / "requests.jsonl"
        command = [
            sys.executable,
            str(REPO / "tests" / "helpers" / "misbehaving_llm.py"),
            str(directory),
            plan,
        ]
        self.process = subprocess.Popen(command)
        deadline = time.monotonic() + 30
        while not (directory / "port").exists():
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{(directory / 'port').read_text()}/v1"

    @property
    def requests(self):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(plan="ok"):
        servers.append(Server(tmp_path / f"server{len(servers)}", plan))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()


def run(table, out, *flags):
    return caption_labels.main([f"--labels={table}", f"--out={out}", *flags])


def ask(table, out, server, *flags):
    flags = ("--provider=openai", "--model=m", f"--base_url={server.url}", *flags)
    return run(table, out, *flags)


def texts(out):
    """Captions by label, without provenance."""
    entries = json.loads(out.read_text())["label_sets"]
    return {tuple(e["labels"]): [c["text"] for c in e["captions"]] for e in entries}


def report(out):
    return json.loads(out.with_name(out.stem + ".report.json").read_text())


def assert_all_pass(out):
    words = vocabulary.load()
    for entry in json.loads(out.read_text())["label_sets"]:
        label_set = label_sets.LabelSet(
            entry["modality"], tuple(entry["labels"]), "", tuple(entry["attributes"].items())
        )
        captions = [c["text"] for c in entry["captions"]]
        for number, caption in enumerate(captions):
            context = checks.Context(label_set, words, captions[:number])
            assert checks.refusals(caption, context) == {}


def test_templates_give_ten_captions_per_set_with_provenance(table, tmp_path, capsys):
    out = tmp_path / "c.json"
    assert run(table, out, "--provider=template") == 0
    found = texts(out)
    assert {len(set(captions)) for captions in found.values()} == {10} and len(found) == 4
    assert_all_pass(out)
    (provenance,) = json.loads(out.read_text())["provenance"]
    assert provenance["provider"] == "template" and provenance["prompt_version"] == "grammar-1"
    assert provenance["checks"] == list(checks.CHECKS) and provenance["seed"] == 0
    assert "4 label sets, 4 complete" in capsys.readouterr().out
    run(table, tmp_path / "again.json", "--provider=template")
    run(table, tmp_path / "other.json", "--provider=template", "--seed=1")
    assert texts(tmp_path / "again.json") == found != texts(tmp_path / "other.json")


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
def test_faulty_captions_are_requested_again_and_a_second_run_sends_no_requests(
    table, tmp_path, serve, capsys, endpoint
):
    server, out = serve(), tmp_path / "c.json"
    flags = (f"--endpoint={endpoint}", "--num_captions=6", "--max_turns=4", "--price_in=2")
    assert ask(table, out, server, *flags) == 0
    output = capsys.readouterr().out
    assert "estimate for 4 label sets" in output and output.index("estimate") < output.index(
        "check"
    )
    first = texts(out)
    assert {len(set(captions)) for captions in first.values()} == {6}
    assert_all_pass(out)
    counts = report(out)["checks"]
    for name in ("modality", "negation", "additions", "finding"):
        assert counts[name]["refused"] > 0, name
    asked = server.requests
    assert {r["path"] for r in asked} == {
        "/v1/chat/completions" if endpoint == "chat" else "/v1/completions"
    }
    again = [r["messages"][1]["content"] if endpoint == "chat" else r["prompt"] for r in asked]
    assert any("which the label does not have" in text for text in again)
    assert report(out)["usage"]["cost"] == pytest.approx(len(asked) * 100 * 2 / 1e6)

    before = out.read_bytes()
    assert ask(table, out, server, *flags) == 0
    assert len(server.requests) == len(asked)
    assert out.read_bytes() == before, "the same answers, times included"
    assert report(out)["usage"]["requests"] == 0 and report(out)["usage"]["cost"] == 0


def test_errors_of_the_server_are_survived(table, tmp_path, serve):
    server = serve("429,500,close,hang,empty")
    flags = ("--num_captions=4", "--timeout=1", "--concurrency=2", "--max_turns=4")
    assert ask(table, tmp_path / "c.json", server, *flags) == 0
    assert {len(captions) for captions in texts(tmp_path / "c.json").values()} == {4}
    assert report(tmp_path / "c.json")["usage"]["failed_requests"] == 0


def test_captions_that_still_fail_go_through_review(table, tmp_path, serve, capsys):
    server, out = serve(), tmp_path / "c.json"
    flags = ("--num_captions=6", "--max_turns=1")
    assert ask(table, out, server, *flags) == 0
    assert "refused captions of incomplete sets to review" in capsys.readouterr().out
    lines = [json.loads(x) for x in (tmp_path / "c.review.jsonl").read_text().splitlines()]
    assert len(lines) >= 15 and all(line["reasons"] for line in lines)
    assert texts(out)[("meningioma",)] == ["mri showing meningioma."]

    lines[0] |= {"decision": "accept", "text": "A brain with a meningioma in it."}
    lines[1] |= {"decision": "accept"}  # as it is: the person knows better than the check
    lines[2] |= {"decision": "reject"}
    reviewed = tmp_path / "reviewed.jsonl"
    reviewed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = ("--num_captions=9", "--max_turns=1")
    assert ask(table, out, server, *more, f"--reviewed={reviewed}") == 0
    content = json.loads(out.read_text())
    captions = content["label_sets"][0]["captions"]
    provenance = [content["provenance"][c["provenance"]] for c in captions]
    assert captions[0]["text"] == "A brain with a meningioma in it."
    assert provenance[0]["reviewed"] and provenance[0]["checks"] == list(checks.CHECKS)
    assert captions[1]["text"] == lines[1]["text"]
    assert set(checks.CHECKS) - set(provenance[1]["checks"]) == set(lines[1]["reasons"])
    assert "reviewed" not in provenance[2]
    assert report(out)["reviewed"] == 2

    reviewed.replace(tmp_path / "c.review.jsonl")  # decided in place: not to be lost
    capsys.readouterr()
    assert ask(table, out, server, *more) == 2
    assert "c.review.jsonl holds a person's decisions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"decision": "yes", "text": "t", "modality": "ct", "labels": ["a"]}', "decision 'yes'"),
        ('{"decision": "accept", "text": "t", "labels": ["a"]}', "modality"),
        ('{"decision": "accept", "text": " ", "modality": "ct", "labels": ["a"]}', "no text"),
        ("[1]", "not a reviewed caption"),
    ],
)
def test_a_bad_review_line_is_named(table, tmp_path, capsys, line, message):
    (tmp_path / "r.jsonl").write_text("\n" + line + "\n")
    flags = ("--provider=template", f"--reviewed={tmp_path / 'r.jsonl'}")
    assert run(table, tmp_path / "c.json", *flags) == 2
    error = capsys.readouterr().err
    assert "r.jsonl, line 2" in error and message in error


def test_an_endpoint_that_cannot_serve_ends_the_run_with_one_line(table, tmp_path, serve, capsys):
    server = serve("404,404,404,404")
    assert ask(table, tmp_path / "c.json", server) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: http://127.0.0.1") and "planned 404" in error
    assert not (tmp_path / "c.json").exists()
    assert run(table, tmp_path / "c.json", "--provider=openai") == 2
    assert "--model" in capsys.readouterr().err


def test_the_rate_limit_spaces_requests(table, tmp_path, serve):
    start = time.monotonic()
    ask(
        table, tmp_path / "c.json", serve(), "--num_captions=2", "--max_turns=1", "--rate_limit=240"
    )
    assert time.monotonic() - start >= 3 * 0.25  # four requests


def test_estimate_only_asks_nothing(table, tmp_path, serve, capsys):
    server = serve()
    assert ask(table, tmp_path / "c.json", server, "--estimate_only") == 0
    assert "4 requests (0 more are cached)" in capsys.readouterr().out
    assert server.requests == [] and not (tmp_path / "c.json").exists()


@pytest.mark.slow  # starts the tool in a process of its own
def test_a_killed_run_continues_without_asking_twice(table, tmp_path, serve):
    server = serve("slow")
    flags = ["--endpoint=completion", "--num_captions=8", "--max_turns=2", "--concurrency=2"]
    whole = tmp_path / "whole.json"
    assert ask(table, whole, server, *flags) == 0
    needed = len(server.requests)

    out = tmp_path / "c.json"
    command = [sys.executable, str(TOOL), f"--labels={table}", f"--out={out}", "--provider=openai"]
    process = subprocess.Popen(
        [*command, "--model=m", f"--base_url={server.url}", *flags],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(server.requests) < needed + 10:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert ask(table, out, server, *flags) == 0
    assert texts(out) == texts(whole)
    assert needed <= len(server.requests) - needed <= needed + 2, "at most those in flight are lost"


def test_the_result_is_what_conversion_reads(table, tmp_path):
    run(table, tmp_path / "c.json", "--provider=template")
    captions = templates.load(tmp_path / "c.json")
    found = captions.captions_of("any source", "mri", ("meningioma",))
    assert len(found) == 10 and found[0].provenance.provider == "template"
    right = captions.captions_of("s", "ct", ("kidney stone", "laterality=right"))
    assert len(right) == 10 and captions.captions_of("s", "ct", ("kidney stone",)) == ()
