"""The page of ``vitrail serve`` on a real port, asked as a browser or a stranger would ask."""

import http.client
import json
import threading
import time
from contextlib import contextmanager

import uvicorn

from vitrail.serve.guard import own_hosts
from vitrail.serve.studio import Studio
from vitrail.serve.web import application

FOX = {"prompt": "a fox", "method": "multidiffusion", "width": 152, "height": 104, "num_inference_steps": 3, "seed": 5}
LONG = FOX | {"num_inference_steps": 60}
WAIT = 60  # seconds at most, for what takes some


class Served:
    """A server that runs, and requests to it."""

    def __init__(self, studio, port):
        self.studio, self.port = studio, port

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def request(self, method, path, body=None, **headers):
        """(status, headers, body) of one request; headers are written with underscores, None leaves one out."""
        own = {"host": f"127.0.0.1:{self.port}"}
        if method == "POST":
            own |= {"content-type": "application/json", "origin": self.url}
        given = own | {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        try:
            connection.request(method, path, body, {name: value for name, value in given.items() if value is not None})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def get(self, path):
        status, _, body = self.request("GET", path)
        assert status == 200, body
        return body

    def post(self, path, wish=None):
        """(status, answer) as JSON."""
        status, _, body = self.request("POST", path, json.dumps({} if wish is None else wish))
        return status, json.loads(body)

    def pictures(self):
        return {each["number"]: each for each in json.loads(self.get("/api/state"))["pictures"]}

    def until(self, number, condition):
        """A picture, once the condition holds of it."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            picture = self.pictures()[number]
            if condition(picture):
                return picture
            time.sleep(0.02)
        raise AssertionError(f"it did not come so far: {picture}")

    def ended(self, number):
        return self.until(number, lambda picture: picture["status"] not in ("running", "stopping"))

    def make(self, wish):
        """A picture from its wish to its end."""
        status, told = self.post("/api/pictures", wish)
        assert status == 202, told
        return self.ended(told["number"])


@contextmanager
def serving(backbone, model, token=None, is_local=True, port=0):
    """A server, on a free port or one that was free before, as long as the block."""
    studio, ports = Studio(backbone, str(model)), []
    listener = uvicorn.Config(app=None, port=port, log_level="critical").bind_socket()
    ports.append(listener.getsockname()[1])
    hosts = own_hosts("127.0.0.1", ports[0]) if is_local else None
    app = application(studio, "multidiffusion", hosts, token)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Served(studio, ports[0])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        studio.close()
