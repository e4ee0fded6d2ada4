# SPDX-License-Identifier: Apache-2.0
"""select.select, poll and epoll objects, and selectors, on virtual threads."""

import contextlib
import errno
import os
import select
import selectors
import socket
from select import select as bound_early

import gossamer as gs
import pytest
from gossamer import _core
from waits import assert_is_cancelled, assert_parks, error_of, fill, on_os_thread, pipe, pipe_ends, settle, virtually

__all__ = ["pipe_ends"]


def by_select(fd, seconds=None):
    return select.select([fd], [], [], seconds)[0]


def by_poll(fd, seconds=None):
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return [found for found, _mask in poller.poll(None if seconds is None else seconds * 1000)]


def by_epoll(fd, seconds=None):
    with select.epoll() as poller:
        poller.register(fd, select.EPOLLIN)
        return [found for found, _mask in poller.poll(seconds)]


def by_selector(kind):
    def wait(fd, seconds=None):
        with kind() as selector:
            selector.register(fd, selectors.EVENT_READ)
            return [key.fd for key, _mask in selector.select(seconds)]

    return wait


WAITS = [
    pytest.param(by_select, id="select"),
    pytest.param(by_poll, id="poll"),
    pytest.param(by_epoll, id="epoll"),
    pytest.param(by_selector(selectors.SelectSelector), id="SelectSelector"),
    pytest.param(by_selector(selectors.PollSelector), id="PollSelector"),
    pytest.param(by_selector(selectors.EpollSelector), id="EpollSelector"),
]


@pytest.mark.parametrize("wait", WAITS)
def test_wait_parks_until_a_descriptor_is_readable(wait, pipe_ends):
    reader, writer = pipe_ends

    @virtually
    def test():
        found = assert_parks(lambda: wait(reader), lambda: os.write(writer, b"x"))

        assert [reader] == found

    test()


@pytest.mark.parametrize("wait", WAITS)
@virtually
def test_wait_is_cancelled_at_the_park(wait):
    with pipe() as (reader, writer):
        assert_is_cancelled(lambda: wait(reader))

        os.write(writer, b"x")
        assert [reader] == wait(reader)


@pytest.mark.parametrize("wait", WAITS)
@virtually
def test_wait_times_out_while_others_run(wait):
    with pipe() as (reader, _writer):
        assert [] == assert_parks(lambda: wait(reader, 0.01), lambda: None)


@pytest.mark.parametrize("wait", WAITS)
@virtually
def test_wait_for_what_is_ready_does_not_park(wait):
    with pipe() as (reader, writer):
        os.write(writer, b"x")
        before = _core.statistics()["parks"]

        assert [reader] == wait(reader)

        assert before == _core.statistics()["parks"]


@pytest.mark.parametrize("wait", WAITS)
@virtually
def test_time_out_of_zero_does_not_park(wait):
    with pipe() as (reader, _writer):
        before = _core.statistics()["parks"]

        assert [] == wait(reader, 0)

        assert before == _core.statistics()["parks"]


@pytest.mark.parametrize("wait", WAITS)
@virtually
def test_os_thread_beside_virtual_ones_waits_as_always(wait):
    with pipe() as (reader, writer):
        found = on_os_thread(wait, reader)

        os.write(writer, b"x")

        assert [reader] == found()


BAD_CALLS = [
    pytest.param(lambda: select.select([], [], [], -1), id="select, negative"),
    pytest.param(lambda: select.select([], [], [], "1"), id="select, a string"),
    pytest.param(lambda: select.select([], [], [], float("nan")), id="select, NaN"),
    pytest.param(lambda: select.select([], [], [], 1e300), id="select, too long"),
    pytest.param(lambda: select.select([], [], [], 1 << 100), id="select, a huge int"),
    pytest.param(lambda: select.select([], [], 1), id="select, no sequence"),
    pytest.param(lambda: select.select([], []), id="select, too few"),
    pytest.param(lambda: select.select([-1], [], [], 1), id="select, a negative descriptor"),
    pytest.param(lambda: select.select([object()], [], [], 1), id="select, no descriptor"),
    pytest.param(lambda: select.select([4095], [], [], 1), id="select, beyond FD_SETSIZE"),
    pytest.param(lambda: select.poll().poll("1"), id="poll, a string"),
    pytest.param(lambda: select.poll().poll(1 << 100), id="poll, too long"),
    pytest.param(lambda: select.poll().poll(float("nan")), id="poll, NaN"),
    pytest.param(lambda: select.poll().poll(1, 2), id="poll, too many"),
    pytest.param(lambda: select.epoll().poll("1"), id="epoll, a string"),
    pytest.param(lambda: select.epoll().poll(1e10), id="epoll, too long"),
    pytest.param(lambda: select.epoll().poll(1, -2), id="epoll, maxevents"),
    pytest.param(lambda: select.epoll().poll(times=1), id="epoll, an unknown keyword"),
]


@pytest.mark.parametrize("call", BAD_CALLS)
def test_refused_arguments_are_refused_in_the_same_words(call):
    plain = error_of(call)
    virtual = []

    virtually(lambda: virtual.append(error_of(call)))()

    assert plain is not None
    assert [plain] == virtual


@pytest.mark.parametrize("timeout", [None, -1, -0.5, -1000])
@virtually
def test_negative_time_out_of_poll_is_for_ever(timeout):
    with pipe() as (reader, writer):
        poller = select.poll()
        poller.register(reader, select.POLLIN)

        found = assert_parks(lambda: poller.poll(timeout), lambda: os.write(writer, b"x"))

        assert [(reader, select.POLLIN)] == found


@pytest.mark.parametrize("arguments", [{}, {"timeout": None}, {"timeout": -1}, {"maxevents": 1}])
@virtually
def test_epoll_takes_its_arguments_by_keyword(arguments):
    with pipe() as (reader, writer), select.epoll() as poller:
        poller.register(reader, select.EPOLLIN)

        found = assert_parks(lambda: poller.poll(**arguments), lambda: os.write(writer, b"x"))

        assert [(reader, select.EPOLLIN)] == found


def test_objects_and_names_from_before_the_start_park(pipe_ends):
    reader, writer = pipe_ends
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    nested = select.epoll()
    nested.register(reader, select.EPOLLIN)

    @virtually
    def test():
        for wait in (lambda: bound_early([reader], [], []), poller.poll, nested.poll):
            assert assert_parks(wait, lambda: os.write(writer, b"x"))
            os.read(reader, 1)

    with nested:
        test()


@virtually
def test_select_parks_until_a_full_pipe_has_room():
    with pipe() as (reader, writer):
        size = fill(writer)

        found = assert_parks(lambda: select.select([], [writer], []), lambda: os.read(reader, size))

        assert ([], [writer], []) == found


@virtually
def test_select_parks_until_urgent_data_comes():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right = listener.accept()[0]
        with left, right:
            found = assert_parks(lambda: select.select([], [], [left]), lambda: right.send(b"!", socket.MSG_OOB))

            assert ([], [], [left]) == found


@virtually
def test_select_reads_an_iterator_once():
    with pipe() as (reader, writer):
        found = assert_parks(lambda: select.select(iter([reader]), iter(()), ()), lambda: os.write(writer, b"x"))

        assert ([reader], [], []) == found


@virtually
def test_select_of_nothing_sleeps():
    assert ([], [], []) == assert_parks(lambda: select.select([], [], [], 0.01), lambda: None)


@virtually
def test_descriptor_that_does_not_count_does_not_make_select_spin():
    """The reactor reports a hang-up to every waiter, but select's third set does not count one."""
    with pipe() as (reader, writer), open(__file__, "rb") as regular:
        os.close(writer)
        before = _core.statistics()["parks"]

        assert ([], [], []) == select.select([], [], [reader, regular], 0.02)

        assert 3 >= _core.statistics()["parks"] - before


@virtually
def test_unread_data_does_not_make_a_wait_for_the_peers_end_spin():
    left, right = socket.socketpair()
    with left, right:
        right.send(b"unread")
        poller = select.poll()
        poller.register(left, select.POLLRDHUP)
        before = _core.statistics()["parks"]

        assert [] == poller.poll(20)
        assert 3 >= _core.statistics()["parks"] - before

        found = assert_parks(poller.poll, lambda: right.shutdown(socket.SHUT_WR))
        assert [(left.fileno(), select.POLLRDHUP)] == found


@pytest.mark.parametrize("wait", WAITS[:2])  # epoll refuses regular files
@virtually
def test_regular_file_is_always_ready(wait):
    with open(__file__, "rb") as file:
        assert [file.fileno()] == wait(file.fileno())


@virtually
def test_one_of_many_descriptors_wakes():
    with contextlib.ExitStack() as stack:
        pipes = [stack.enter_context(pipe()) for _ in range(100)]
        readers = [reader for reader, _writer in pipes]

        found = assert_parks(lambda: select.select(readers, [], []), lambda: os.write(pipes[57][1], b"x"))

        assert ([pipes[57][0]], [], []) == found


@virtually
def test_two_virtual_threads_wait_for_one_descriptor():
    with pipe() as (reader, writer):
        with gs.scope() as scope:
            tasks = [scope.spawn(wait, reader) for wait in (by_select, by_poll, by_epoll)]
            settle()
            os.write(writer, b"x")

        assert [[reader]] * 3 == [task.result() for task in tasks]


@virtually
def test_epoll_waits_for_an_epoll():
    with pipe() as (reader, writer), select.epoll() as inner, select.epoll() as outer:
        inner.register(reader, select.EPOLLIN)
        outer.register(inner, select.EPOLLIN)

        found = assert_parks(outer.poll, lambda: os.write(writer, b"x"))

        assert [(inner.fileno(), select.EPOLLIN)] == found


@virtually
def test_descriptor_registered_while_epoll_waits_wakes_it():
    with pipe() as (reader, writer), select.epoll() as poller:
        os.write(writer, b"x")

        found = assert_parks(poller.poll, lambda: poller.register(reader, select.EPOLLIN))

        assert [(reader, select.EPOLLIN)] == found


@virtually
def test_second_poll_of_one_object_is_refused_while_the_first_waits():
    with pipe() as (reader, writer):
        poller = select.poll()
        poller.register(reader, select.POLLIN)

        def wake():
            with pytest.raises(RuntimeError, match="concurrent poll"):
                poller.poll()
            os.write(writer, b"x")

        assert [(reader, select.POLLIN)] == assert_parks(poller.poll, wake)
        assert [(reader, select.POLLIN)] == poller.poll()


@virtually
def test_cancelled_poll_leaves_its_object_usable():
    with pipe() as (reader, writer):
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        assert_is_cancelled(poller.poll)

        os.write(writer, b"x")

        assert [(reader, select.POLLIN)] == poller.poll()


@virtually
def test_closing_a_descriptor_ends_select_with_an_error():
    with pipe() as (reader, _writer):

        def wait():
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                select.select([reader], [], [])
            return caught.value.errno

        assert errno.EBADF == assert_parks(wait, lambda: os.close(reader))


@virtually
def test_closing_a_descriptor_ends_poll():
    with pipe() as (reader, _writer):
        poller = select.poll()
        poller.register(reader, select.POLLIN)

        assert [(reader, select.POLLNVAL)] == assert_parks(poller.poll, lambda: os.close(reader))


@virtually
def test_closing_an_epoll_ends_its_poll():
    poller = select.epoll()

    def wait():
        with pytest.raises(ValueError, match="closed epoll"):
            poller.poll()

    assert_parks(wait, poller.close)


@virtually
def test_forgotten_descriptors_do_not_keep_a_wait_alive():
    """A wait that was satisfied through one descriptor leaves no waiter behind on the others."""
    with pipe() as (reader, writer), pipe() as (other, _other_writer):
        assert_parks(lambda: select.select([reader, other], [], []), lambda: os.write(writer, b"x"))

        os.close(other)  # would wake a waiter that is gone
        settle()
