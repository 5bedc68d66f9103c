"""A model that can only be queried: a Python function or an HTTP endpoint, with batching, a budget, a cache, retries and a canary.

>>> box = BlackBox(lambda x: x.sum(1, keepdim=True), rows=2, budget=5)
>>> box(torch.ones(5, 3)).flatten().tolist(), box.rows, box.calls
([3.0, 3.0, 3.0, 3.0, 3.0], 5, 3)
>>> box(torch.ones(1, 3))
Traceback (most recent call last):
    ...
probatum.errors.ProbatumError: the budget of 5 queries is spent: 5 asked, 1 more wanted
"""

import hashlib
import http.client
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from probatum.errors import ProbatumError
from probatum.zeroth.meter import Queries

__all__ = ["BlackBox"]


class BlackBox:
    """Calls `target` on rows of a batch: (N, ...) -> (N, ...), float32, without gradients.

    Args:
        target: a function of a tensor, or the address of an endpoint (http:// or https://) that takes POST of {"inputs": rows} and
            answers {"outputs": rows}, both nested lists.
        rows: most rows a call or request takes.
        budget: rows that may be sent in all, retries included; None counts only. What would exceed it is not sent.
        cache: answers kept, by the bytes of a row; the oldest go first, 0 keeps none. With it a call that failed half way asks only
            for the rest when it is repeated, and equal rows are asked once.
        retries: further tries after a time-out, a lost connection, or status 429 or 5xx.
        timeout: seconds a request may take. backoff: seconds before the first retry, doubled each time (Retry-After wins).
        canary: a few rows whose answers are asked twice at once: if they differ, the target is no function of its input. `check()`
            asks again and raises if the answers have drifted.
        every: check the canary after so many rows; 0 leaves it to the caller.
        encode, decode: for endpoints that speak otherwise: rows -> bytes of the body, bytes of the answer -> nested list.
        headers: sent with each request (a key for the service).
    Raises:
        ProbatumError: answers of another number of rows or that are not finite, a target that answers differently twice, a spent
            budget, an endpoint that stays unreachable.
    """

    def __init__(
        self,
        target: Callable[[Tensor], Any] | str,
        *,
        rows: int = 1024,
        budget: int | None = None,
        cache: int = 0,
        retries: int = 4,
        timeout: float = 30.0,
        backoff: float = 0.5,
        canary: Tensor | None = None,
        every: int = 0,
        encode: Callable[[Tensor], bytes] | None = None,
        decode: Callable[[bytes], Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        if isinstance(target, str) and not target.startswith(("http://", "https://")):
            raise ProbatumError(f"target must be a function or an http:// or https:// address, got {target!r}")
        if not isinstance(target, str) and not callable(target):
            raise ProbatumError(f"target must be a function or an address, got {type(target).__name__}")
        for name, value, least in (("rows", rows, 1), ("cache", cache, 0), ("retries", retries, 0), ("every", every, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ProbatumError(f"{name} must be an integer of {least} or more, got {value!r}")
        if not 0 < timeout < math.inf or not 0 <= backoff < math.inf:
            raise ProbatumError(f"timeout must be above 0 and backoff 0 or more (seconds), got {timeout!r} and {backoff!r}")
        if every and canary is None:
            raise ProbatumError("every needs a canary to check")
        self.target, self.size, self.retries, self.timeout, self.backoff = target, rows, retries, timeout, backoff
        self.every, self.retried = every, 0
        self._encode, self._decode, self._headers = encode or _to_json, decode or _from_json, headers or {}
        self._queries = Queries(self._send, budget)
        self._limit, self._cache = cache, OrderedDict[bytes, Tensor]()
        self._canary, self._known, self._checked = canary, None, 0  # type: ignore[var-annotated]
        if canary is not None:
            first, second = self._ask(canary), self._ask(canary)
            if not torch.equal(first, second):
                raise ProbatumError(
                    f"the target is not deterministic: the canary's answers differ by up to {float((first - second).abs().max()):.3g} "
                    "between two calls; neither differences nor certificates mean anything then"
                )
            self._known, self._checked = first, self.rows

    @property
    def rows(self) -> int:
        """Rows sent so far, retries and canaries included."""
        return self._queries.rows

    @property
    def calls(self) -> int:
        """Calls or requests so far."""
        return self._queries.calls

    @property
    def budget(self) -> int | None:
        return self._queries.budget

    def __call__(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, ...): answers in the order of the rows."""
        if x.ndim < 1 or not len(x):
            raise ProbatumError(f"x must be (rows, ...) with a row at least, got {list(x.shape)}")
        if self.every and self.rows - self._checked >= self.every:
            self.check()
        if not self._limit:
            return torch.cat([self._ask(part) for part in x.detach().split(self.size)])
        return self._through_cache(x.detach())

    def check(self) -> None:
        """Ask for the canary again.

        Raises:
            ProbatumError: its answers are not those of the beginning: the model behind the target has changed.
        """
        if self._canary is None or self._known is None:
            raise ProbatumError("there is no canary to check: give one when the black box is made")
        now = self._ask(self._canary)
        self._checked = self.rows
        if now.shape != self._known.shape or not torch.equal(now, self._known):
            off = float((now - self._known).abs().max()) if now.shape == self._known.shape else math.nan
            raise ProbatumError(
                f"the target has drifted: the canary's answers differ from the first by up to {off:.3g}; what was trained or certified "
                "so far holds for the old version only"
            )

    def _through_cache(self, x: Tensor) -> Tensor:
        keys = [hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest() for row in x.cpu().contiguous()]
        answers = {key: self._cache[key] for key in dict.fromkeys(keys) if key in self._cache}
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in answers}
        missing = sorted(first.items(), key=lambda pair: pair[1])
        for at in range(0, len(missing), self.size):
            some = missing[at : at + self.size]
            for (key, _), row in zip(some, self._ask(x[[i for _, i in some]]), strict=True):
                answers[key] = self._cache[key] = row
            while len(self._cache) > self._limit:
                self._cache.popitem(last=False)
        return torch.stack([answers[key] for key in keys])

    def _ask(self, x: Tensor) -> Tensor:
        """One call of at most `size` rows, tried again where that can help."""
        for attempt in range(self.retries + 1):
            try:
                return self._checked_rows(self._queries(x), x)
            except _Again as error:
                if attempt == self.retries:
                    raise ProbatumError(
                        f"{self.target} did not answer in {attempt + 1} tries ({error}); {self.rows} rows were sent: with cache=N, the "
                        "same call later asks only for what is missing"
                    ) from None
                self.retried += 1
                time.sleep(error.wait if error.wait is not None else self.backoff * 2**attempt)
        raise AssertionError

    def _send(self, x: Tensor) -> Any:
        """Once, unchecked."""
        if not isinstance(self.target, str):
            with torch.no_grad():
                return self.target(x)
        request = Request(self.target, self._encode(x), {"Content-Type": "application/json", **self._headers}, method="POST")
        try:
            with urlopen(request, timeout=self.timeout) as answer:
                content = answer.read()
        except HTTPError as error:
            error.close()
            if error.code == 429 or error.code >= 500:
                raise _Again(f"status {error.code}", error.headers.get("Retry-After")) from None
            raise ProbatumError(f"{self.target} refused the request: status {error.code} {error.reason}") from None
        except (TimeoutError, URLError, http.client.HTTPException, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise _Again(f"no answer in {self.timeout:g} s" if isinstance(reason, TimeoutError) else str(reason)) from None
        try:
            return torch.tensor(self._decode(content), dtype=torch.float32, device=x.device)
        except (ValueError, TypeError, KeyError) as error:
            raise ProbatumError(f"{self.target} answered something else than rows of numbers: {content[:80]!r}") from error

    def _checked_rows(self, answer: Any, x: Tensor) -> Tensor:
        if not isinstance(answer, Tensor):
            answer = torch.as_tensor(answer)
        if answer.ndim < 1 or len(answer) != len(x):
            raise ProbatumError(f"the target must answer one row a row, got {list(answer.shape)} for {len(x)} rows")
        answer = answer.detach().to(torch.float32)
        if not torch.isfinite(answer).all():
            raise ProbatumError(f"the target answered {int((~torch.isfinite(answer)).sum())} values that are not finite")
        return answer


class _Again(Exception):
    """A failure that may pass."""

    def __init__(self, why: str, wait: str | None = None) -> None:
        super().__init__(why)
        self.wait = float(wait) if wait is not None and wait.isdecimal() else None


def _to_json(x: Tensor) -> bytes:
    return json.dumps({"inputs": x.tolist()}).encode()


def _from_json(content: bytes) -> Any:
    return json.loads(content)["outputs"]
