"""Who may ask ``vitrail serve``: strangers, tokens, addresses, and what the command refuses to open."""

import json
import socket

import pytest

from command_line import vitrail
from served import FOX, serving
from vitrail.cli.serve import _bound
from vitrail.errors import ConfigError
from vitrail.serve.guard import own_hosts

STRANGE = {
    "another name of this machine": ("GET", {"host": "rebound.example:80"}, 403),
    "another port": ("GET", {"host": "127.0.0.1:1"}, 403),
    "another site's page": ("POST", {"origin": "http://evil.example"}, 403),
    "a page from a file": ("POST", {"origin": "null"}, 403),
    "another site's request": ("POST", {"origin": None, "sec_fetch_site": "cross-site"}, 403),
    "another port's page": ("GET", {"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"}, 403),
    "a form": ("POST", {"content_type": "application/x-www-form-urlencoded"}, 415),
    "a form's text": ("POST", {"content_type": "text/plain"}, 415),
    "another method": ("DELETE", {}, 405),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strangers_are_refused_at_every_address(served, name):
    method, headers, wanted = STRANGE[name]
    before = served.pictures().keys()
    for path in ("/api/pictures", "/api/state", "/parts/serve.js", "/nowhere"):
        assert served.request(method, path, json.dumps(FOX), **headers)[0] == wanted, path
    assert served.pictures().keys() == before


def test_a_link_from_elsewhere_may_open_the_page_and_nothing_else(served):
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert served.request("GET", "/", **link)[0] == 200
    assert served.request("GET", "/api/state", **link)[0] == 403


def test_every_answer_keeps_to_itself(served):
    for path in ("/", "/parts/serve.js", "/api/state", "/nowhere", "/parts/..%2fweb.py", "/parts/web.py"):
        headers = served.request("GET", path)[1]
        assert "frame-ancestors 'none'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    assert served.request("GET", "/parts/..%2fweb.py")[0] == served.request("GET", "/parts/web.py")[0] == 404


def test_a_long_body_is_not_read(served):
    body = json.dumps(FOX | {"prompt": "fox " * 50_000})
    assert served.request("POST", "/api/plan", body)[0] == 413
    with socket.create_connection(("127.0.0.1", served.port)) as wire:  # one that does not say how long it is
        head = f"POST /api/plan HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n"
        wire.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(5):
            wire.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
        assert b" 413 " in wire.recv(1000).splitlines()[0]


def test_who_does_not_know_the_token_sees_nothing(backbone, folder):
    token = "0123456789abcdef0123"
    with serving(backbone, folder, token=token, is_local=False) as served:
        for path in ("/", "/api/state", "/?token=wrong", "/api/state?token=" + token, "/parts/serve.js"):
            assert served.request("GET", path)[0] == 401, path
        status, headers, _ = served.request("GET", f"/?token={token}")
        assert status == 303 and "HttpOnly" in headers["set-cookie"] and "samesite=lax" in headers["set-cookie"].lower()
        cookie = headers["set-cookie"].partition(";")[0]
        assert served.request("GET", "/api/state", cookie=cookie)[0] == 200
        assert served.request("GET", "/api/state", authorization=f"Bearer {token}")[0] == 200
        assert served.request("GET", "/api/state", cookie=cookie, origin="http://evil.example")[0] == 403
        assert served.request("GET", "/api/state", cookie=f"{cookie.partition('=')[0]}=wrong")[0] == 401
        for odd in ("a[b]=1", "theme={dark: yes}", "lone"):  # of other programs on this host
            assert served.request("GET", "/api/state", cookie=f"{odd}; {cookie}")[0] == 200, odd
        other = {"cookie": cookie, "host": "127.0.0.1:1"}  # a server on another port, with a token of its own
        assert served.request("GET", "/api/state", **other)[0] == 401


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "others than this machine could make pictures"),
        (["--host", "192.0.2.1"], "set VITRAIL_TOKEN to 16 characters or more"),
        (["--token", "short"], "give 16 letters and digits or more"),
        (["--token", "ä" * 20], "give 16 letters and digits or more"),
        (["--host", "nowhere.invalid", "--token", "0123456789abcdef"], "--host nowhere.invalid"),
        (["--method", "multidifusion"], "did you mean 'multidiffusion'?"),
        (["--model", "nowhere/at-all"], "nowhere/at-all"),
        (["--port", "99999"], "--port 99999"),
    ],
)
def test_the_command_refuses_what_it_should_not_open(monkeypatch, capsys, words, told):
    answer = vitrail(monkeypatch, capsys, "serve", "--port", "0", *words)
    assert answer.code == 2 and told in answer.err


def test_an_empty_token_of_the_environment_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("VITRAIL_TOKEN", "")
    answer = vitrail(monkeypatch, capsys, "serve", "--port", "0", "--model", "nowhere/at-all")
    assert answer.code == 2 and "VITRAIL_TOKEN is set but empty" in answer.err


def test_a_port_is_ours_while_the_model_is_loaded():
    with _bound("127.0.0.1", 0) as ours, pytest.raises(ConfigError, match="another program listens there"):
        _bound("127.0.0.1", ours.getsockname()[1])


def test_port_80_is_left_out_by_browsers():
    assert {"127.0.0.1", "localhost:80", "[::1]"} <= own_hosts("127.0.0.1", 80)
    assert "127.0.0.1" not in own_hosts("127.0.0.1", 8080)


def test_who_comes_by_another_address_is_told_the_page_s_own(served):
    answer = served.request("GET", "/", host="127.0.0.1:1")
    assert answer[0] == 403 and f"open http://127.0.0.1:{served.port}/".encode() in answer[2]


@pytest.mark.parametrize(
    "path", ["/pictures/{}/picture.png", "/api/pictures/{}/preview.png", "/pictures/1/1-1/{}/0_0.webp"]
)
def test_a_number_too_long_to_be_read_is_no_address(served, path):
    assert served.request("GET", path.format("1" * 5000))[0] == 404


def test_who_leaves_in_the_middle_of_a_request_is_no_error(served, caplog):
    caplog.set_level("ERROR", logger="uvicorn.error")
    with socket.create_connection(("127.0.0.1", served.port)) as wire:
        head = f"POST /api/plan HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n"
        wire.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        served.get("/api/state")
    for _ in range(20):
        served.get("/api/state")
    assert "ClientDisconnect" not in caplog.text


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = vitrail(monkeypatch, capsys, "serve", "--port", str(taken.getsockname()[1]))
    assert answer.code == 2 and "another program listens there" in answer.err and "loading" not in answer.out
