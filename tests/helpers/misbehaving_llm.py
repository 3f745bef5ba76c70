"""An OpenAI-compatible server on loopback that misbehaves on purpose, in a separate process.

    python tests/helpers/misbehaving_llm.py STATE_DIR [PLAN]

writes its port to STATE_DIR/port and a line per request to STATE_DIR/requests.jsonl. PLAN is what
the first requests meet, by commas: `429`, `500`, `404`, `close`, `hang` (for 5 s), `empty`; after
it, and for `ok`, it answers. `slow` in PLAN makes every answer take 0.1 s. Its first answer to a
label set has faults; asked again with reasons, it does better.
"""

import json
import pathlib
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATE = pathlib.Path(sys.argv[1])
PLAN = sys.argv[2].split(",") if len(sys.argv) > 2 else []
LOCK = threading.Lock()

GOOD = (
    "{modality} showing {label}.",
    "Typical appearance of {label} by {modality}.",
    "{label} is visible here, depicted by means of {modality}.",
    "An image in which one can see {label}.",
    "The diagnosis, made by {modality}, is {label}.",
    "Evidence of {label} was found on the {modality} study.",
    "Patient with {label}.",
    "Here {modality} is compatible with {label} and nothing else.",
    "Case of {label} from a teaching collection.",
    "Imaging by {modality} reveals a picture of {label} that is easy to recognise.",
    "In this example {label} can be identified at first glance.",
    "{modality} slice chosen because of {label}.",
)
FAULTY = (
    "{modality} without any sign of {label}.",  # negated
    "{modality} showing {label} and a pneumothorax.",  # adds a finding
    "Mammogram with {label}.",  # another modality
    "Figure 3 shows {label}.",  # what no label can tell
    "{modality} of a patient.",  # does not name it
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK, (STATE / "requests.jsonl").open("a+") as log:
            log.seek(0)
            number = sum(1 for _ in log)
            log.write(json.dumps({"path": self.path, **body}) + "\n")
        if "slow" in PLAN:
            time.sleep(0.1)
        action = PLAN[number] if number < len(PLAN) else "ok"
        if action in ("429", "500", "404"):
            self.reply(int(action), {"error": {"message": f"planned {action}"}})
        elif action == "close":
            self.close_connection = True
            self.connection.close()
        elif action == "hang":
            time.sleep(5)
        elif "messages" in body:
            text = "" if action == "empty" else self.chat(body["messages"])
            self.reply(200, self.completion({"message": {"role": "assistant", "content": text}}))
        else:
            text = "" if action == "empty" else self.complete(body["prompt"], body["seed"])
            self.reply(200, self.completion({"text": text}))

    def chat(self, messages):
        count = int(re.search(r"Write (\d+)", messages[0]["content"])[1])
        asked = messages[1]["content"]
        captions = self.fill(FAULTY + GOOD if "refused" not in asked else GOOD[::-1], asked)
        lines = [f"{n}. {caption}" for n, caption in enumerate(captions[:count], 1)]
        return "Here are the captions:\n\n" + "\n".join(lines)

    def complete(self, prompt, seed):
        captions = self.fill(FAULTY + GOOD, prompt)
        return f" {captions[seed % len(captions)]}"

    def fill(self, templates, asked):
        modality, label = re.findall(r"Modality: ([^.]*)\. Label: ([^.\n]*)\.", asked)[-1]
        return [t.format(modality=modality, label=label) for t in templates]

    def completion(self, choice):
        usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
        choices = [{"index": 0, "finish_reason": "stop", **choice}]
        return {"id": "x", "object": "x", "created": 0, "model": "m", "choices": choices} | {
            "usage": usage
        }

    def reply(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    (STATE / "port.tmp").write_text(str(server.server_port))
    (STATE / "port.tmp").rename(STATE / "port")
    server.serve_forever()
