# SPDX-License-Identifier: Apache-2.0
"""Uses every public name as a program would; a type checker in strict mode must agree with each `assert_type`.

It is checked and never run, so that what a function does plays no part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Protocol, assert_type, overload

import gossamer as gs


async def fetch_async(url: str) -> bytes:
    return url.encode()


def fetch(url: str, *, retries: int = 3) -> bytes:
    return url.encode() * retries


def main(count: int) -> str:
    with gs.scope(timeout=5) as scope:
        assert_type(scope, gs.Scope)
        task = scope.spawn(fetch, "https://example.org", retries=1)
        assert_type(task, gs.Task[bytes])
        assert_type(task.result(timeout=1.5), bytes)
        assert_type(task.exception(), BaseException | None)
        assert_type(task.cancel(), bool)
        assert_type(task.done(), bool)
        assert_type(task.cancelled(), bool)
        assert_type(task.ident, int | None)
        assert_type(scope.spawn(fetch_async, "https://example.org"), gs.Task[bytes])
        assert_type(scope.spawn(fetch, "https://example.org", stack_size=1 << 20), gs.Task[bytes])
        scope.spawn(fetch)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
        scope.spawn(fetch, 1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert_type(scope.live_tasks, int)
        assert_type(scope.cancelled, bool)
        scope.cancel()
    with gs.timeout(2), gs.shield(), gs.no_switch(), gs.blocking_in_tasks("park"):
        gs.checkpoint()
        gs.sleep(0.1)
    assert_type(gs.current(), gs.Task[Any] | None)
    return str(count)


def several(urls: list[str], tasks: list[gs.Task[bytes]]) -> None:
    assert_type(list(gs.map(fetch, urls, limit=10, as_completed=True)), list[bytes])
    assert_type(list(gs.map(fetch_async, urls)), list[bytes])
    done, not_done = gs.wait(tasks, timeout=1, return_when="FIRST_COMPLETED")
    assert_type(done, set[gs.Task[bytes]])
    assert_type(not_done, set[gs.Task[bytes]])
    assert_type(list(gs.as_completed(tasks)), list[gs.Task[bytes]])
    assert_type(gs.race(lambda: 1, lambda: 2), int)
    with gs.VirtualThreadPoolExecutor() as executor:
        assert_type(list(executor.map(fetch, urls)), list[bytes])


def look() -> None:
    for thread in gs.snapshot():
        assert_type(thread, gs.ThreadSnapshot)
        assert_type(thread.name, str)
        assert_type(thread.task, gs.Task[Any] | None)
    gs.dump()


async def wait_for(task: gs.Task[bytes]) -> None:
    assert_type(await task, bytes)


async def main_coroutine() -> int:
    async with gs.scope() as scope:
        scope.spawn(fetch, "https://example.org")
    return 1


def enter() -> None:
    try:
        assert_type(gs.run(main, 3), str)
        assert_type(gs.run(main_coroutine), int)
    except gs.DeadlockError as error:
        assert_type(str(error), str)
    gs.run(main, "3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


def loops() -> None:
    with asyncio.Runner(loop_factory=gs.new_event_loop) as runner:
        assert_type(runner.run(fetch_async("https://example.org")), bytes)
    loop: asyncio.AbstractEventLoop = gs.new_event_loop(blocking="park")
    assert_type(loop.call_soon(fetch, "https://example.org"), asyncio.Handle)
    loop.call_soon(fetch, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loop.close()
    assert_type(gs.run(fetch_async, "https://example.org"), bytes)
    asyncio.set_event_loop_policy(gs.EventLoopPolicy())  # pyright: ignore[reportDeprecated]


class Client:
    """Plain methods of each kind."""

    def get(self, url: str) -> bytes:
        return url.encode()

    @classmethod
    def open(cls, address: str) -> Client:
        return cls()

    @staticmethod
    def quote(text: str, safe: str = "/") -> str:
        return text + safe

    @contextmanager
    def transaction(self, name: str) -> Generator[int]:
        yield len(name)

    @gs.asyncify
    def decorated(self, count: int) -> str:
        return str(count)

    def __call__(self, number: int) -> float:
        return number / 2


class AsyncClient:
    """Async methods of each kind."""

    async def get(self, url: str) -> bytes:
        return url.encode()

    @classmethod
    async def open(cls, address: str) -> AsyncClient:
        return cls()

    @staticmethod
    async def quote(text: str, safe: str = "/") -> str:
        return text + safe

    @asynccontextmanager
    async def transaction(self, name: str) -> AsyncGenerator[int]:
        yield len(name)

    async def lines(self, limit: int) -> AsyncIterator[str]:
        yield str(limit)

    async def numbers(self, limit: int) -> AsyncGenerator[int]:
        yield limit

    @gs.syncify
    async def decorated(self, count: int) -> str:
        return str(count)

    async def __call__(self, number: int) -> float:
        return number / 2


class Cursor:
    """A context manager and iterator."""

    async def __aenter__(self) -> Cursor:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None

    def __aiter__(self) -> Cursor:
        return self

    async def __anext__(self) -> int:
        raise StopAsyncIteration


@overload
def parse(text: str) -> int: ...
@overload
def parse(text: bytes) -> float: ...
def parse(text: str | bytes) -> float:
    return int(text)


def first[T](items: list[T]) -> T:
    return items[0]


async def first_async[T](items: list[T]) -> T:
    return items[0]


class Named(Protocol):
    """A callable whose argument has a name."""

    def __call__(self, *, name: str) -> Coroutine[Any, Any, int]: ...


async def by_name(*, name: str) -> int:
    return len(name)


def cross(iterator: Iterator[int], lock: AbstractContextManager[str]) -> None:
    assert_type(gs.await_(fetch_async("https://example.org")), bytes)
    assert_type(gs.syncify(fetch_async)("https://example.org"), bytes)
    assert_type(gs.await_(gs.asyncify(fetch)("https://example.org")), bytes)
    assert_type(gs.asyncify(iterator), AsyncIterator[int])
    assert_type(gs.asyncify(lock), AbstractAsyncContextManager[str])
    assert_type(gs.syncify(gs.asyncify(iterator)), Iterator[int])
    assert_type(gs.syncify(gs.asyncify(lock)), AbstractContextManager[str])
    gs.syncify(fetch_async)(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gs.asyncify(7)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    gs.syncify(fetch)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def cross_to_async(client: Client) -> None:
    assert_type(await gs.asyncify(fetch)("https://example.org", retries=1), bytes)
    assert_type(await gs.asyncify(client.get)("https://example.org"), bytes)
    assert_type(await gs.asyncify(Client.get)(client, "https://example.org"), bytes)
    assert_type(await gs.asyncify(Client.open)("example.org"), Client)
    assert_type(await gs.asyncify(Client)(), Client)
    assert_type(await gs.asyncify(Client.quote)("text", safe=""), str)
    assert_type(await gs.asyncify(client)(7), float)
    assert_type(await gs.asyncify(partial(fetch, retries=1))("https://example.org"), bytes)
    assert_type(await client.decorated(7), str)
    assert_type(await gs.asyncify(first)([1]), int)
    assert_type(await gs.asyncify(lambda: 7)(), int)
    async with gs.asyncify(client.transaction("name")) as number, gs.asyncify(open("/dev/null")) as file:
        assert_type(number, int)
        assert_type(file.read(), str)
    async for number in gs.asyncify(iter([1])):
        assert_type(number, int)
    async for number in gs.asyncify([1]):
        assert_type(number, int)
    async with gs.asyncify(open("/dev/null")) as file:
        async for line in gs.asyncify(file):
            assert_type(line, str)
    parsed: Callable[[str], Coroutine[Any, Any, int]] = gs.asyncify(parse)
    assert_type(await parsed("7"), int)
    await gs.asyncify(client.get)(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await gs.asyncify(Client.quote)("text", unsafe=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.decorated("7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def cross_to_plain(client: AsyncClient) -> None:
    assert_type(gs.syncify(client.get)("https://example.org"), bytes)
    assert_type(gs.syncify(AsyncClient.get)(client, "https://example.org"), bytes)
    assert_type(gs.syncify(AsyncClient.open)("example.org"), AsyncClient)
    assert_type(gs.syncify(AsyncClient.quote)("text", safe=""), str)
    assert_type(gs.syncify(client)(7), float)
    assert_type(gs.syncify(partial(fetch_async))("https://example.org"), bytes)
    assert_type(client.decorated(7), str)
    assert_type(gs.syncify(first_async)([1]), int)
    with gs.syncify(client.transaction("name")) as number, gs.syncify(client.transaction)("name") as other:
        assert_type(number, int)
        assert_type(other, int)
    with gs.syncify(asyncio.TaskGroup()) as group:
        assert_type(group, asyncio.TaskGroup)
    assert_type(list(gs.syncify(client.lines)(2)), list[str])
    assert_type(list(gs.syncify(client.numbers)(2)), list[int])
    assert_type(list(gs.syncify(client.lines(2))), list[str])
    with gs.syncify(Cursor()) as cursor:
        assert_type(cursor, Cursor)
        assert_type(list(gs.syncify(cursor)), list[int])
    named: Named = by_name
    assert_type(gs.syncify(named)(name="name"), int)
    gs.syncify(client.get)(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    gs.syncify(named)("name")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.decorated("7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
