"""The run's store: what it keeps, who may come in, and what happens to a word that nobody understands."""

import contextlib
import json
import socket
import threading
import time

import pytest

from vitrail.comm.backends.key_store import LOOPBACK, StoreClient, StoreServer, listener_at, unpacked
from vitrail.comm.backends.process_group_store import Beat, StoreLine, read_abort, read_beats, understood, write_abort
from vitrail.comm.backends.store_wire import LARGEST, ForeignRunError, enter, receive, send
from vitrail.comm.transport import Abort
from vitrail.errors import CommError

PATIENCE_S = 100.0


@pytest.fixture
def server():
    made = StoreServer(listener_at(), "secret", "SLURM job 17, step 0")
    yield made
    made.close()


@pytest.fixture
def client(server):
    made = StoreClient(LOOPBACK, server.port, "secret", "a rank", PATIENCE_S)
    yield made
    made.close()


def wait_until(happened):
    limit = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.01)


# ---------------------------------------------------------------------- what it keeps


def test_a_word_is_what_was_written_last_and_parts_are_apart(server, client):
    one, two = client.words.within("one"), client.words.within("two")
    assert one.get("a") is None
    one.set("a", b"\0\xff")
    two.set("a", "")
    assert one.get("a") == b"\0\xff" and two.get("a") == b""
    assert server.words.within("one").get("a") == b"\0\xff"  # the keeper's own way
    assert one.drop("a") and not one.drop("a")
    assert one.get("a") is None
    assert [one.add("n", 2), one.add("n", -5)] == [2, -3]


def test_of_many_who_swap_one_wins_and_all_learn_who(server):
    found = []

    def swap(number):
        client = StoreClient(LOOPBACK, server.port, "secret", "a rank", PATIENCE_S)
        found.append(client.words.swap("abort", b"", str(number).encode()))
        client.close()

    threads = [threading.Thread(target=swap, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert len(found) == 8 and len(set(found)) == 1
    assert server.words.swap("abort", found[0], b"next") == b"next"


def test_threads_may_share_a_connection(client):
    def add():
        for _ in range(50):
            client.words.add("n", 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert client.words.add("n", 0) == 200


def test_the_end_of_the_keeper_is_seen_at_once(server, client):
    server.close()
    with pytest.raises(ConnectionError):
        client.words.get("a")


# ---------------------------------------------------------------------- who may come in


def test_a_stranger_is_refused_by_name_and_learns_nothing(server, client):
    client.words.set("abort", "private")
    with pytest.raises(CommError, match=r"kept by SLURM job 17, step 0.*not by this run \(job 18\).*MASTER_PORT"):
        StoreClient(LOOPBACK, server.port, "guess", "job 18", 10.0)
    assert set(server.strangers) == {"job 18"}
    assert client.words.get("abort") == b"private"


@pytest.mark.parametrize("answer", [[b"", b"", b""], [b"only one"], [b"1" * 32, b"2" * 32, b"x\x1b[2J"]])
def test_whoever_cannot_prove_is_not_answered(server, answer):
    with socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S) as stranger:
        receive(stranger)
        send(stranger, answer)
        assert receive(stranger) == [b"no"]
        send(stranger, [b"set", b"abort", b"x"])
        with pytest.raises(ConnectionError):
            receive(stranger)
    assert server.words.get("abort") is None
    assert "\x1b" not in "".join(server.strangers)


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"\xff" * 5000])
def test_noise_and_silence_keep_nobody_waiting(server, noise):
    with socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S) as stranger:
        stranger.sendall(noise)
        friend = StoreClient(LOOPBACK, server.port, "secret", "a rank", PATIENCE_S)
        friend.words.set("a", "b")
        friend.close()
    assert server.words.get("a") == b"b"


def test_a_false_keeper_is_found_out():
    """It says what a keeper says, and knows no secret: a rank must not believe its words."""
    with socket.create_server((LOOPBACK, 0)) as false:

        def pretend():
            guest, _ = false.accept()
            with guest:
                send(guest, [b"vitrail store 1", b"0" * 32, b"your run"])
                receive(guest)
                send(guest, [b"yes", b"0" * 32])

        threading.Thread(target=pretend, daemon=True).start()
        with socket.create_connection(false.getsockname(), timeout=PATIENCE_S) as rank, pytest.raises(ForeignRunError):
            enter(rank, "secret", "a rank")


def test_a_member_that_sends_nonsense_loses_its_own_connection_only(server, client):
    with socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S) as other:
        enter(other, "secret", "another rank")
        send(other, [b"explode", b"a"])
        with pytest.raises(ConnectionError):
            receive(other)
    client.words.set("a", "b")
    assert client.words.get("a") == b"b"


@pytest.mark.parametrize("fields", [[b"no such", b"a"], [b"set", b"a"], [b"get"]])
def test_what_is_no_operation_is_refused(fields):
    with pytest.raises(ValueError, match="no operation"):
        unpacked(fields)


def test_a_frame_is_as_large_as_it_may_be():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall((LARGEST + 1).to_bytes(4, "big"))
        with pytest.raises(ConnectionError, match="at most"):
            receive(theirs)


# ---------------------------------------------------------------------- ports and addresses


def test_it_listens_on_one_address_only():
    with listener_at() as listener:
        assert listener.getsockname()[0] == LOOPBACK


def test_two_runs_at_one_port_name_each_other_and_the_remedy(server):
    with pytest.raises(CommError, match=r"kept by SLURM job 17, step 0; .*MASTER_PORT"):
        listener_at(LOOPBACK, server.port)


def test_a_port_that_something_else_keeps_is_said(monkeypatch):
    with socket.create_server((LOOPBACK, 0)) as other:

        def speak():
            with contextlib.suppress(OSError):  # who hears no proof hangs up, and so does the test
                while True:
                    guest, _ = other.accept()
                    with guest, contextlib.suppress(OSError):
                        guest.sendall(b"220 mail.example.org ready\r\n" * 50)

        threading.Thread(target=speak, daemon=True).start()
        with pytest.raises(CommError, match=r"kept by something that is no run's store.*MASTER_PORT"):
            StoreClient(LOOPBACK, other.getsockname()[1], "secret", "a rank", 10.0)


def test_an_address_of_another_host_is_refused():
    with pytest.raises(CommError, match="set MASTER_ADDR to an address of the host of rank 0"):
        listener_at("192.0.2.1", 0)  # of documentation, nobody's


# ---------------------------------------------------------------------- words that nobody understands

FOREIGN = [b"no JSON", b"\xff\xfe", b"[]", b"3", b'{"culprit": 1}', b'{"culprit": "1", "reason": 2}', b'{"other": 1}']


@pytest.mark.parametrize("word", FOREIGN)
def test_an_abort_that_cannot_be_read_ends_the_run_by_name(word):
    abort = understood(word)
    assert abort.culprit == 0 and "an abort that no rank of this version wrote" in abort.reason


def test_no_abort_is_none(server):
    assert read_abort(server.words) is None
    assert write_abort(server.words, Abort(1, "a bad day")) == Abort(1, "a bad day")
    assert write_abort(server.words, Abort(0, "a worse one")) == Abort(1, "a bad day") == read_abort(server.words)


@pytest.mark.parametrize("word", [*FOREIGN, b'{"posted": "x"}', b'{"time": null}'])
def test_a_heartbeat_that_cannot_be_read_tells_nothing(server, word):
    server.words.set("beat/0", word)
    server.words.set("beat/1", json.dumps({"posted": 3, "note": "step 1", "time": 2.0}))
    assert read_beats(server.words, 2) == [Beat(), Beat(3, "step 1", 2.0)]


@pytest.mark.parametrize("word", FOREIGN)
def test_a_foreign_word_never_ends_the_thread_that_watches(server, client, word):
    line = StoreLine(client.words, 1, 2, Abort(0, "lost"))
    server.words.set("beat/0", word)
    line.tell("step 1")
    assert line.behind()[0] == 0  # of which nothing can be known
    server.words.set("abort", word)
    wait_until(lambda: line.abort is not None)
    line.tell("step 2")
    wait_until(lambda: read_beats(server.words, 2)[1].note == "step 2")  # it lives
    line.close()


def test_a_store_that_does_not_answer_blames_no_rank():
    """As one that was stopped."""
    answered = threading.Event()

    def ask(operations):
        answered.wait(PATIENCE_S)
        return [None] * len(operations)

    from vitrail.comm.backends.key_store import Words

    line = StoreLine(Words(ask), 0, 2, Abort(0, "lost"))
    assert line.absent("the start") is None
    answered.set()
    assert line.absent("the start") == [0, 1]
    line.close()
