"""A hub of models on this machine, as far as the hub's library asks for it; prints its port, then every request."""

import json
import sys
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40
ERRORS = {  # name of a model -> status and code, as the hub answers
    "missing": (401, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "broken": (500, ""),
}


class Handler(BaseHTTPRequestHandler):
    """Models lie in folders `org/name` below the working directory, one commit each."""

    def do_GET(self):
        self.answer(with_body=True)

    def do_HEAD(self):
        self.answer(with_body=False)

    def answer(self, with_body):
        print(self.command, self.path, flush=True)
        words = self.path.partition("?")[0].strip("/").split("/")
        model, rest = (words[2:4], words[4:]) if words[0] == "api" else (words[:2], words[2:])
        status, code = ERRORS.get(model[1], (200, ""))
        folder, revision = Path(*model), rest[1] if len(rest) > 1 else "main"
        if status == 200 and not folder.is_dir():
            status, code = 404, "RepoNotFound"
        if status == 200 and revision not in ("main", COMMIT):
            status, code = 404, "RevisionNotFound"
        if status != 200:
            self.send(status, b"", {"X-Error-Code": code} if code else {}, with_body)
        elif words[0] == "api":
            self.send(200, self.listing(folder, "tree" in rest), {"Content-Type": "application/json"}, with_body)
        else:
            self.send_file(folder.joinpath(*rest[2:]), with_body)

    def listing(self, folder, is_tree):
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if is_tree:
            rows = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
            return json.dumps(rows).encode()
        siblings = [{"rfilename": name} for name in names]
        return json.dumps({"id": str(folder), "sha": COMMIT, "siblings": siblings}).encode()

    def send_file(self, path, with_body):
        if not path.is_file():
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, with_body)
            return
        data = path.read_bytes()
        self.send(200, data, {"ETag": f'"{sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, with_body)

    def send(self, status, body, headers, with_body):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    sys.exit(server.serve_forever())
