"""Hands out requests to the users, counts what becomes of them, and decides when a load test is over."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter_ns

from gevent.event import Event

from shardyard.perf.lane import Exchange, Unreachable
from shardyard.perf.plan import Plan
from shardyard.perf.workload import Prompt, Workload

__all__ = ["Desk", "Ticket"]


@dataclass(frozen=True)
class Ticket:
    """One request to send. ``due_ns`` is when an open loop wants it to start."""

    index: int
    prompt: Prompt
    warmup: bool
    due_ns: int | None = None


class Desk:
    """Warm-up first; the measured part starts when the last warm-up request has ended.

    The test is over when the requests or the seconds have run out, or when it has no hope left: so many requests in a
    row failed that the endpoint is gone or refuses all of them.
    """

    def __init__(self, plan: Plan, workload: Workload) -> None:
        self.plan = plan
        self.workload = workload
        self.done: list[tuple[Ticket, Exchange]] = []
        self.aborted: str | None = None
        self.started_ns = 0
        self.in_flight = self.completed = self.errors = 0
        self._warmup = deque(enumerate(workload.warmup))
        self._warmups_open = len(workload.warmup)
        self._warm = Event()
        self._measured: Iterator[tuple[int, Prompt]] = enumerate(workload.prompts)
        if self._repeats():
            self._measured = itertools.cycle(self._measured)
        self._exhausted = False
        self._failed_in_a_row = self._unreachable_in_a_row = 0
        if not workload.warmup:
            self._begin()

    def _repeats(self) -> bool:
        """Prompts are used again only where their number is not known beforehand."""
        return self.plan.endless or (self.plan.arrival == "closed" and self.plan.requests is None)

    @property
    def finished(self) -> bool:
        """No request is open and none will be handed out."""
        return self.over and not self.in_flight

    @property
    def over(self) -> bool:
        """No request will be handed out any more."""
        return self._exhausted or self.aborted is not None

    def take_warmup(self) -> Ticket | None:
        """Return a warm-up request; None when there is none left."""
        if self.over or not self._warmup:
            return None
        index, prompt = self._warmup.popleft()
        self.in_flight += 1
        return Ticket(index, prompt, warmup=True)

    def wait_until_warm(self) -> None:
        """Wait until every warm-up request has ended."""
        self._warm.wait()

    def take(self, due_ns: int | None = None) -> Ticket | None:
        """Return a measured request; None when the test is over."""
        if not self.over and self._seconds_left():
            for index, prompt in self._measured:
                self.in_flight += 1
                return Ticket(index, prompt, warmup=False, due_ns=due_ns)
        self._exhausted = True
        return None

    def due_times(self) -> Iterator[int]:
        """Yield when each request of an open loop is due, on ``perf_counter_ns``'s clock."""
        times = self._endless_arrivals() if self.plan.endless else iter(self.workload.arrivals_s)
        for seconds in times:
            yield self.started_ns + int(seconds * 1e9)

    def _endless_arrivals(self) -> Iterator[float]:
        rng = random.Random(self.plan.seed)
        return itertools.accumulate(rng.expovariate(self.plan.rate or 1.0) for _ in itertools.count())

    def settle(self, ticket: Ticket, exchange: Exchange) -> None:
        """Take a request back that has ended."""
        self.in_flight -= 1
        if not self.plan.endless:
            self.done.append((ticket, exchange))
        self._count_failure(exchange)
        if ticket.warmup:
            self._warmups_open -= 1
            if not self._warmups_open:
                self._begin()
            return
        self.completed += 1
        self.errors += exchange.error is not None

    def _begin(self) -> None:
        self.started_ns = perf_counter_ns()
        self._warm.set()

    def _seconds_left(self) -> bool:
        if self.plan.duration_s is None or self.plan.endless:
            return True
        return perf_counter_ns() - self.started_ns < self.plan.duration_s * 1e9

    def _count_failure(self, exchange: Exchange) -> None:
        """Give up after so many failures in a row; one success starts the count anew."""
        if exchange.error is None:
            self._failed_in_a_row = self._unreachable_in_a_row = 0
            return
        self._failed_in_a_row += 1
        self._unreachable_in_a_row += isinstance(exchange.error, Unreachable)
        users = self.plan.concurrency
        hopeless = self._unreachable_in_a_row >= max(3, users) or self._failed_in_a_row >= max(10, 2 * users)
        if hopeless and not self.plan.endless and self.aborted is None:
            self.aborted = f"{self._failed_in_a_row} requests in a row failed, the last with: {exchange.error}"
            self._warm.set()
