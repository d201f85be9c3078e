"""Locust users: a closed loop (each user sends when its last answer is whole) and a Poisson clock (an open loop)."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import gevent
from gevent.pool import Group
from locust import User, task
from locust.exception import StopUser

from shardyard.perf.desk import Desk, Ticket
from shardyard.perf.grpc_lane import GrpcLane
from shardyard.perf.http_lane import HttpLane
from shardyard.perf.lane import Exchange, Lane, LaneError, Unreachable
from shardyard.perf.plan import Plan

__all__ = ["ARRIVALS", "ClosedLoopUser", "PoissonUser"]

LANES: dict[str, Callable[[Plan], Lane]] = {"grpc": GrpcLane, "http": HttpLane}
#: What locust shows as the request's type.
TYPES = {"grpc": "gRPC", "http": "SSE"}
#: Seconds that a user waits after it found nobody there, or a dead endpoint would be asked thousands of times a second.
RETRY_S = 0.2


class _LoadUser(User):  # type: ignore[misc]
    """What both kinds share. ``desk`` is set on the class, before the users start."""

    abstract = True
    desk: Desk

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.idle: list[Lane] = []

    def lane(self) -> Lane:
        """Return a lane that no request is using."""
        return self.idle.pop() if self.idle else LANES[self.desk.plan.protocol](self.desk.plan)

    def send(self, ticket: Ticket) -> None:
        """Carry one request from connection to answer, and hand it in."""
        exchange = Exchange()
        lane = self.lane()
        request = lane.encode(ticket.prompt)
        try:
            lane.ready()
            lane.exchange(request, exchange)
        except LaneError as error:
            exchange.error = error
            exchange.start_ns = exchange.start_ns or perf_counter_ns()
            exchange.end_ns = exchange.end_ns or perf_counter_ns()
        finally:
            self.idle.append(lane)
        self.desk.settle(ticket, exchange)
        if not ticket.warmup:
            self._fire(lane, exchange)
        if isinstance(exchange.error, Unreachable):
            gevent.sleep(RETRY_S)

    def _fire(self, lane: Lane, exchange: Exchange) -> None:
        """Tell locust's own statistics. They see chunks, not tokens; the report counts tokens after the run."""
        came = [when for when, text in lane.texts(exchange) if text]
        times = {"e2e": exchange.end_ns - exchange.start_ns}
        if exchange.error is None and came:
            times = {"ttft": came[0] - exchange.start_ns, "e2e": came[-1] - exchange.start_ns}
        if exchange.error is None and len(came) > 1:
            times["itl"] = (came[-1] - came[0]) // (len(came) - 1)
        for name, nanoseconds in times.items():
            self.environment.events.request.fire(
                request_type=TYPES[self.desk.plan.protocol],
                name=name,
                response_time=nanoseconds / 1e6,
                response_length=len(came),
                exception=exchange.error,
                context={},
            )

    def on_stop(self) -> None:
        """Close every connection."""
        for lane in self.idle:
            lane.close()


class ClosedLoopUser(_LoadUser):
    """One request in flight, always."""

    abstract = True

    @task  # type: ignore[untyped-decorator]
    def one(self) -> None:
        """Send the next request."""
        ticket = self.desk.take_warmup()
        if ticket is None:
            self.desk.wait_until_warm()
            ticket = self.desk.take()
        if ticket is None:
            raise StopUser
        self.send(ticket)


class PoissonUser(_LoadUser):
    """Starts each request when it is due, whether or not earlier ones have been answered."""

    abstract = True

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.requests = Group()

    @task  # type: ignore[untyped-decorator]
    def clock(self) -> None:
        """Warm up, then start requests by the clock until there are no more."""
        self._warm_up()
        for due_ns in self.desk.due_times():
            gevent.sleep(max(0.0, (due_ns - perf_counter_ns()) / 1e9))
            ticket = self.desk.take(due_ns)
            if ticket is None:
                break
            self.requests.spawn(self.send, ticket)
        self.requests.join()
        self.desk.take()  # nothing is left: the desk may close
        raise StopUser

    def _warm_up(self) -> None:
        """Send the warm-up requests over as many connections as ``concurrency`` says; they stay open for the rest."""
        for _ in range(self.desk.plan.concurrency):
            self.requests.spawn(self._send_warmups)
        self.requests.join()
        self.desk.wait_until_warm()

    def _send_warmups(self) -> None:
        while ticket := self.desk.take_warmup():
            self.send(ticket)

    def on_stop(self) -> None:
        """End every open request, then close the connections."""
        self.requests.kill()
        super().on_stop()


ARRIVALS: dict[str, type[_LoadUser]] = {"closed": ClosedLoopUser, "poisson": PoissonUser}
