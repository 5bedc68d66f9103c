"""Models that can only be queried: a function, and an endpoint on a local server that counts what it receives."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from probatum import ProbatumError
from probatum.zeroth.black_box import BlackBox


@pytest.fixture
def server():
    """An endpoint that doubles; `server.plan` holds what the next requests meet instead: a status, "slow", "close", or an answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            httpd.received += len(rows)
            httpd.requests += 1
            step = httpd.plan.pop(0) if httpd.plan else None
            if step == "slow":
                time.sleep(0.4)
            if step == "close":
                return
            if isinstance(step, int):
                self.send_response(step)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            answer = [[httpd.factor * v for v in row] for row in rows] if not isinstance(step, bytes) else None
            body = step if isinstance(step, bytes) else json.dumps({"outputs": answer}).encode()
            try:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the client gave up on a slow answer

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.received, httpd.requests, httpd.plan, httpd.factor = 0, 0, [], 2
    httpd.address = f"http://127.0.0.1:{httpd.server_port}/"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


X = torch.arange(14.0).view(7, 2)


def test_an_endpoint_is_asked_in_batches_and_counts_the_rows_that_we_count(server):
    box = BlackBox(server.address, rows=3)
    assert torch.equal(box(X), 2 * X)
    assert (box.rows, box.calls) == (server.received, server.requests) == (7, 3)


@pytest.mark.parametrize("trouble", [503, 429, "slow", "close"])
def test_what_may_pass_is_tried_again_and_every_try_is_counted(server, trouble):
    server.plan = [trouble, trouble]
    box = BlackBox(server.address, timeout=0.2 if trouble == "slow" else 5, backoff=0.01)
    assert torch.equal(box(X), 2 * X)
    assert box.retried == 2 and box.rows == server.received == 21


def test_a_dead_endpoint_is_named_after_the_last_try_and_a_refusal_at_once(server):
    server.plan = [500] * 3
    box = BlackBox(server.address, retries=2, backoff=0)
    with pytest.raises(ProbatumError, match=r"did not answer in 3 tries \(status 500\); 21 rows were sent"):
        box(X)
    server.plan = [403]
    with pytest.raises(ProbatumError, match="refused the request: status 403"):
        box(X)
    assert server.requests == 4


def test_with_a_cache_a_call_that_failed_goes_on_where_it_stopped(server):
    server.plan = [None, None, 500, 500]
    box = BlackBox(server.address, rows=2, retries=1, backoff=0, cache=100)
    with pytest.raises(ProbatumError, match="did not answer"):
        box(X)
    assert server.received == 8
    assert torch.equal(box(X), 2 * X) and server.received == 8 + 3
    assert torch.equal(box(torch.cat([X, X]).flip(0)), 2 * torch.cat([X, X]).flip(0)) and server.received == 11


def test_the_budget_is_hard(server):
    box = BlackBox(server.address, rows=3, budget=5)
    with pytest.raises(ProbatumError, match="budget of 5 queries is spent: 3 asked, 3 more wanted"):
        box(X)
    assert server.received == box.rows == 3


def test_an_old_cache_entry_gives_way():
    asked = []
    box = BlackBox(lambda x: asked.append(len(x)) or x, cache=2)
    for row in (0, 1, 2, 2, 0):
        box(X[row : row + 1])
    assert len(asked) == 4


def test_a_canary_notices_drift_and_chance(server):
    box = BlackBox(server.address, canary=X[:2], every=5)
    assert box.rows == server.received == 4
    box(X)
    server.factor = 3
    with pytest.raises(ProbatumError, match="drifted"):
        box(X)
    with pytest.raises(ProbatumError, match="not deterministic"):
        BlackBox(lambda x: x + torch.rand(len(x), 1), canary=X)
    with pytest.raises(ProbatumError, match="no canary"):
        BlackBox(server.address).check()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"outputs": [[1]]}', r"one row a row, got \[1, 1\] for 7 rows"),
        (b"{}", "something else than rows"),
        (b"<html>", "something else than rows"),
        (b'{"outputs": [[NaN],[1],[1],[1],[1],[1],[1]]}', "1 values that are not finite"),
    ],
)
def test_answers_that_are_none(server, answer, message):
    server.plan = [answer]
    with pytest.raises(ProbatumError, match=message):
        BlackBox(server.address)(X)


def test_own_encoding_and_headers(server):
    box = BlackBox(
        server.address, encode=lambda x: json.dumps({"inputs": (x + 1).tolist()}).encode(),
        decode=lambda content: [row[:1] for row in json.loads(content)["outputs"]],
    )  # fmt: skip
    assert torch.equal(box(X), 2 * (X[:, :1] + 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "ftp://x"}, "http:// or https://"),
        ({"target": 3}, "function or an address"),
        ({"rows": 0}, "rows must be"),
        ({"cache": -1}, "cache must be"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"every": 3}, "needs a canary"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ProbatumError, match=message):
        BlackBox(**{"target": lambda x: x, **arguments})


def test_no_rows():
    with pytest.raises(ProbatumError, match="a row at least"):
        BlackBox(lambda x: x)(X[:0])
