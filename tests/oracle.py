"""A small OpenAI-like server on loopback for tests of teachers and of synth: answers by a script, and remembers.

As a program (`python oracle.py LOG`) it prints its address, serves until its standard input is closed, and appends a
line to LOG for each request it has read and for each answer it has sent whole.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

WORDS = """river stone cloud letter market garden engine window forest captain basket lantern mirror planet teacher
island camera doctor bridge candle pepper violin museum ladder pocket desert button wallet saddle tunnel harbor pencil
""".split()  # noqa: SIM905


def completion(text, finish="stop", prompt_tokens=20, completion_tokens=None):
    """A chat completion as OpenAI spells it."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens or len(text.split()) + 1}
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


def inventive(body):
    """Text that depends on the request alone: a list of tasks where one is asked for, else a sentence."""
    asked = json.dumps(body, sort_keys=True)
    digest = hashlib.sha256(asked.encode()).digest()

    def sentence(start, count=9):
        return " ".join(WORDS[digest[(start + place) % 32] % len(WORDS)] for place in range(count))

    if "List three questions" in body["messages"][-1]["content"]:
        return completion("\n".join(f"{n}. What of the {sentence(5 * n)}?" for n in range(1, 4)))
    if "List" in body["messages"][-1]["content"]:
        return completion("\n".join(f"{n}. Write about the {sentence(5 * n)}." for n in range(1, 4)))
    return completion(f"It was the {sentence(0)}, and then {sentence(9)}.")


def chatty(root, name="tiny"):
    """A run of an untrained model over bytes that chats after a fashion."""
    import torch

    from nomoat.core import checkpoint
    from nomoat.core.budget import Budget
    from nomoat.core.recipe import Recipe
    from nomoat.core.run import Run
    from nomoat.data.text import Text
    from nomoat.data.tokenizer import ByteTokenizer
    from nomoat.families.lm import LM
    from nomoat.nn.backbone import Backbone

    recipe = Recipe("tiny", LM(257, 256, Backbone(width=32, depth=2, heads=2)), Text("none"), Budget.parse("1steps"), 1)
    run = Run.create(root, name, recipe)
    torch.manual_seed(0)
    family = recipe.build()
    for weight in family.parameters():
        weight.data += 0.2 * torch.randn(weight.shape)
    checkpoint.save(run.checkpoints, 1, {"weights": family.state_dict()}, {})
    ByteTokenizer().save(run.path / "tokenizer.json")
    run.mark("done")
    return run


class Oracle(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append(body)
            server.heads.append(dict(self.headers))
            server.under_way += 1
            server.most = max(server.most, server.under_way)
        server.tell("asked", body)
        try:
            time.sleep(server.pause)
            said = server.script(body)
            if callable(said):
                said(self)
            elif isinstance(said, tuple):
                self.give(*said)
            else:
                self.give(200, json.dumps(said))
        finally:
            with server.lock:
                server.under_way -= 1

    def give(self, status, text, head=(), cut=None):
        data = text.encode()
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data))), *head):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[:cut])
        self.wfile.flush()
        if cut is not None:
            self.close_connection = True

    def handle(self):
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script, pause=0.0, log=None):
        super().__init__(("127.0.0.1", 0), Oracle)
        self.script, self.pause, self.log = script, pause, log
        self.asked, self.heads, self.lock = [], [], threading.Lock()
        self.under_way = self.most = 0
        self.where = f"http://127.0.0.1:{self.server_port}/v1#tiny"

    def tell(self, what, body):
        if self.log:
            with self.lock, Path(self.log).open("a") as file:
                file.write(json.dumps([what, hashlib.sha256(json.dumps(body).encode()).hexdigest()]) + "\n")

    def handle_error(self, request, client_address):
        pass


@contextmanager
def oracle(script=inventive, pause=0.0):
    """A server whose `script` turns a request's body into a completion, (status, text, headers, cut) or a function."""
    server = Server(script, pause)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield SimpleNamespace(where=server.where, asked=server.asked, heads=server.heads, server=server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    made = Server(inventive, float(sys.argv[2]) if len(sys.argv) > 2 else 0.0, sys.argv[1])
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    sys.stdout.write(made.where + "\n")
    sys.stdout.flush()
    sys.stdin.read()
