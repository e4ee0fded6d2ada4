# SPDX-License-Identifier: Apache-2.0
"""TLS: both sides do everything that they may, in seeded orders, and every invariant is checked."""

import asyncio
import os
import random
import ssl

import pytest
from loops import collect_errors, run_on_thread, socket_pair
from tls import begin_connecting, client_context, server_context

SEEDS = [int(os.environ["GOSSAMER_SEED"])] if "GOSSAMER_SEED" in os.environ else range(40)


class Side(asyncio.Protocol):
    """One side of a connection; checks in which order it is called."""

    def __init__(self, order):
        self.order = order
        self.sent = bytearray()
        self.received = bytearray()
        self.state = "new"
        self.is_paused = False
        self.error = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        assert "new" == self.state
        self.state = "made"
        self.transport = transport

    def data_received(self, data):
        assert "made" == self.state
        assert data
        self.received += data
        if self.order.random() < 0.1:
            self.act()

    def eof_received(self):
        assert "made" == self.state
        self.state = "eof"

    def pause_writing(self):
        assert not self.is_paused
        self.is_paused = True

    def resume_writing(self):
        assert self.is_paused
        self.is_paused = False

    def connection_lost(self, error):
        assert self.state in ("made", "eof")
        self.state = "lost"
        self.error = error
        self.lost.set_result(None)

    def act(self):
        """Do one of what a program may do."""
        if self.state == "lost" or self.transport.is_closing():
            return
        choice = self.order.randrange(12)
        if choice < 6:
            size = self.order.choice((1, 100, 16384, 70_000, 400_000))
            data = self.order.randbytes(size)
            self.sent += data
            if choice < 4:
                self.transport.write(self.order.choice((bytes, bytearray, memoryview))(data))
            else:
                cut = self.order.randrange(size)
                self.transport.writelines([data[:cut], data[cut:]])
        elif choice < 8:
            self.transport.pause_reading()
        elif choice < 11:
            self.transport.resume_reading()
        else:
            self.transport.set_write_buffer_limits(self.order.choice((0, 1000, None)))


async def run_one(order):
    contexts = collect_errors()
    with socket_pair() as (left, right):
        for sock in (left, right):
            if order.random() < 0.5:
                sock.setsockopt(1, 7, 4096)  # SO_SNDBUF
        maximum = order.choice((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3))
        serving = begin_connecting(left, lambda: Side(order), server_side=True, context=server_context(maximum))
        calling = begin_connecting(right, lambda: Side(order), server_side=False, context=client_context())
        (_, server), (_, client) = await serving, await calling
        sides = [server, client]
        for _ in range(order.randrange(60)):
            order.choice(sides).act()
            for _ in range(order.randrange(4)):
                await asyncio.sleep(0)
        end = order.choice(("read everything, close", "close", "both close", "abort"))
        first, second = sides if order.random() < 0.5 else reversed(sides)
        if end == "read everything, close":
            for side in sides:
                side.transport.resume_reading()
            while (len(first.received), len(second.received)) != (len(second.sent), len(first.sent)):
                for side in sides:
                    side.transport.resume_reading()  # act() in data_received() may have paused
                await asyncio.sleep(0)
        if end == "abort":
            first.transport.abort()
        else:
            first.transport.close()
        if end == "both close":
            second.transport.close()
        while not (first.lost.done() and second.lost.done()):
            for side in sides:
                side.transport.resume_reading()
            await asyncio.sleep(0)

        assert first.sent.startswith(second.received)
        assert second.sent.startswith(first.received)
        if end == "read everything, close":
            assert (first.sent, second.sent) == (second.received, first.received)
            assert (None, None) == (first.error, second.error)
            assert "eof" != second.state
        assert [0, 0] == [side.transport.get_write_buffer_size() for side in sides]
    assert [] == contexts


@pytest.mark.parametrize("seed", SEEDS)
def test_every_order_keeps_the_data_and_the_order_of_calls(seed):
    """A failure is repeated with GOSSAMER_SEED=seed."""
    run_on_thread(run_one(random.Random(seed)))
