# SPDX-License-Identifier: Apache-2.0
"""An event loop on the hub: callbacks, timers, wake-ups, and who runs beside it."""

import asyncio
import contextvars
import gc
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import gossamer as gs
import pytest
from gossamer import _core
from gossamer.testing import settle, virtual_clock
from loops import both_ways, collect_errors, forget, new_loop, on_loop, run_on_thread, run_virtually, socket_pair

# ---- handles and order ----


@on_loop
async def test_handles_are_asyncios():
    loop = asyncio.get_running_loop()

    soon, later = loop.call_soon(print), loop.call_later(60, print)
    later.cancel()
    soon.cancel()

    assert isinstance(loop, asyncio.AbstractEventLoop)
    assert isinstance(soon, asyncio.Handle)
    assert isinstance(later, asyncio.TimerHandle)
    assert later.when() > loop.time()
    assert later.cancelled()
    assert "cancelled" in repr(soon)


@on_loop
async def test_calls_take_their_arguments_by_name_too():
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    called = []
    done = asyncio.Event()

    loop.call_soon(callback=lambda: called.append("soon"))
    loop.call_soon_threadsafe(callback=lambda: called.append("from a thread"))
    loop.call_at(callback=lambda: called.append("at"), when=0)
    loop.call_later(0, callback=done.set, context=context)
    await done.wait()

    assert ["soon", "from a thread", "at"] == called
    with pytest.raises(TypeError, match=r"call_later.* missing .*'callback'"):
        loop.call_later(delay=1)
    with pytest.raises(TypeError, match=r"call_later.* missing .*'delay'"):
        loop.call_later(callback=print)
    with pytest.raises(TypeError, match=r"call_at.* multiple values for argument 'when'"):
        loop.call_at(1, print, when=1)
    with pytest.raises(TypeError, match=r"call_soon.* unexpected keyword argument 'delay'"):
        loop.call_soon(print, delay=1)


@on_loop
async def test_callbacks_are_called_in_the_order_they_were_made():
    loop = asyncio.get_running_loop()
    order = []
    done = loop.create_future()

    loop.call_soon(order.append, 1)
    loop.call_soon_threadsafe(order.append, 2)
    loop.call_soon(order.append, 3)
    loop.call_soon(done.set_result, None)
    await done

    assert [1, 2, 3] == order


def test_what_another_thread_sent_before_the_loop_ran_keeps_its_place():
    order = []
    with new_loop() as loop:
        sender = threading.Thread(target=loop.call_soon_threadsafe, args=(order.append, 1))
        sender.start()
        sender.join()
        loop.call_soon(order.append, 2)
        loop.call_soon(loop.stop)

        loop.run_forever()

    assert [1, 2] == order


@on_loop
async def test_a_callback_that_is_cancelled_by_an_earlier_one_is_not_called():
    loop = asyncio.get_running_loop()
    called = []

    loop.call_soon(lambda: second.cancel())
    second = loop.call_soon(called.append, 2)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert [] == called


@on_loop
async def test_callbacks_run_in_the_context_they_were_made_in():
    loop = asyncio.get_running_loop()
    variable = contextvars.ContextVar("variable")
    seen = []

    variable.set("made here")
    loop.call_soon(lambda: seen.append(variable.get()))
    variable.set("changed later")
    other = contextvars.Context()
    other.run(variable.set, "another")
    loop.call_soon(lambda: seen.append(variable.get()), context=other)
    await asyncio.sleep(0)

    assert ["made here", "another"] == seen


@on_loop
async def test_an_error_of_a_callback_goes_to_the_exception_handler_and_the_loop_goes_on():
    loop = asyncio.get_running_loop()
    contexts = collect_errors()

    handle = loop.call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    (context,) = contexts
    assert handle is context["handle"]
    assert isinstance(context["exception"], ZeroDivisionError)
    assert "<lambda>" in context["message"]


@both_ways
def test_system_exit_of_a_callback_ends_the_run(run):
    async def main():
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        await asyncio.sleep(60)

    with pytest.raises(SystemExit):
        run(main())


@on_loop
async def test_a_handle_made_in_debug_mode_knows_where():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)

    handle = loop.call_soon(print)
    handle.cancel()

    assert f"created at {__file__}" in repr(handle)
    assert "print" in repr(handle)


@on_loop
async def test_in_debug_mode_a_frame_that_is_kept_does_not_keep_what_it_called():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    frames = []

    class Argument:
        pass

    argument = Argument()
    known = weakref.ref(argument)
    loop.call_soon(lambda _argument: frames.append(sys._getframe(1)), argument)
    del argument
    await asyncio.sleep(0)

    assert frames
    assert known() is None


@on_loop
async def test_debug_mode_refuses_a_coroutine_function_as_a_callback():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)

    async def coroutine_function():
        pass

    with pytest.raises(TypeError, match="coroutines cannot be used with call_soon"):
        loop.call_soon(coroutine_function)


# ---- timers ----


def test_timers_fire_in_the_order_of_their_times():
    async def main():
        loop = asyncio.get_running_loop()
        order = []
        for delay in (3, 1, 2):
            loop.call_later(delay, order.append, delay)
        loop.call_later(1.5, loop.call_soon, order.append, "soon")
        await asyncio.sleep(4)
        return order

    def virtual():
        with virtual_clock() as clock:
            return run_on_thread(main()), clock.elapsed

    assert ([1, "soon", 2, 3], pytest.approx(4)) == gs.run(virtual)


def test_a_cancelled_timer_is_not_waited_for():
    async def main():
        loop = asyncio.get_running_loop()
        loop.call_later(3600, print).cancel()
        await asyncio.sleep(1)

    def virtual():
        with virtual_clock() as clock:
            run_on_thread(main())
            return clock.elapsed

    assert pytest.approx(1) == gs.run(virtual)


def test_a_cancelled_timer_lets_go_of_its_callback():
    class Callback:
        def __call__(self):
            pass

    with new_loop() as loop:
        callback = Callback()
        gone = weakref.ref(callback)
        handle = loop.call_later(3600, callback)
        del callback

        handle.cancel()

        assert gone() is None


# ---- who runs beside it ----


def test_other_virtual_threads_run_while_a_loop_is_idle():
    async def wait(event):
        await event.wait()
        return "woken"

    def main():
        with gs.scope() as scope:
            event = asyncio.Event()
            loop = gs.new_event_loop()
            task = scope.spawn(loop.run_until_complete, wait(event))
            settle()
            assert "something for its event loop to do" in [entry[2] for entry in _core.threads()]
            loop.call_soon_threadsafe(event.set)
            result = task.result()
            loop.close()
            return result

    assert "woken" == gs.run(main)


def test_other_virtual_threads_get_their_turn_while_a_loop_is_busy():
    async def spin(stop):
        while not stop:
            await asyncio.sleep(0)

    def main():
        stop = []
        with gs.scope() as scope:
            scope.spawn(run_on_thread, spin(stop))
            gs.checkpoint()
            stop.append(True)

    gs.run(main)


def test_a_busy_loop_seldom_asks_the_kernel():
    turns = 20_000

    async def main():
        loop = asyncio.get_running_loop()
        with socket_pair() as (left, _right):
            loop.add_reader(left, print)  # else there is nothing to ask for
            before = _core.statistics()["polls"]
            for _ in range(turns):
                await asyncio.sleep(0)
            polls = _core.statistics()["polls"] - before
            loop.remove_reader(left)
        return polls

    assert turns / 16 + 2 >= run_virtually(main()) > 0


def test_loops_of_two_virtual_threads_talk_to_each_other():
    async def ask(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"question\n")
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer

    async def answer(ports, asked):
        async def serve(reader, writer):
            writer.write(b"answer to " + await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        ports.put(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, asked.wait)
        server.close()

    def main():
        ports, asked = queue.SimpleQueue(), threading.Event()
        with gs.scope() as scope:
            scope.spawn(run_on_thread, answer(ports, asked))
            asker = scope.spawn(lambda: run_on_thread(ask(ports.get())))
            result = asker.result()
            asked.set()
        return result

    assert b"answer to question\n" == gs.run(main)


def test_a_stock_loop_and_ours_run_beside_each_other():
    async def pass_ball(mine, theirs):
        for _ in range(10):
            await asyncio.to_thread(mine.acquire)
            theirs.release()

    def main():
        left, right = threading.Semaphore(1), threading.Semaphore(0)
        with gs.scope() as scope:
            scope.spawn(run_on_thread, pass_ball(left, right))
            scope.spawn(lambda: asyncio.run(pass_ball(right, left)))

    gs.run(main)


def test_a_loop_runs_on_one_hub_after_another():
    with socket_pair() as (left, right), new_loop() as loop:

        async def receive():
            ready = loop.create_future()
            loop.add_reader(left, lambda: ready.done() or ready.set_result(None))
            await ready
            loop.remove_reader(left)
            return left.recv(10)

        right.send(b"first")
        assert b"first" == loop.run_until_complete(receive())
        right.send(b"second")
        assert b"second" == gs.run(loop.run_until_complete, receive())
        right.send(b"third")
        assert b"third" == loop.run_until_complete(receive())


def test_gossamer_runs_a_coroutine_function_on_its_own_loop():
    async def main():
        return type(asyncio.get_running_loop())

    assert issubclass(gs.run(main), _core.EventLoopBase)


# ---- wake-ups ----


@on_loop
async def test_an_os_thread_wakes_an_idle_loop():
    loop = asyncio.get_running_loop()
    woken = loop.create_future()

    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(woken.set_result, "woken"))
    loop.call_soon(thread.start)

    assert "woken" == await woken
    thread.join()


def test_many_threads_wake_a_loop_and_nothing_is_lost():
    each, senders = 2_000, 4

    async def main():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        count = 0

        def receive():
            nonlocal count
            count += 1
            if count == each * senders:
                done.set_result(None)

        def send():
            for _ in range(each):
                loop.call_soon_threadsafe(receive)

        threads = [threading.Thread(target=send) for _ in range(senders)]
        for thread in threads:
            thread.start()
        await done
        for thread in threads:
            thread.join()
        return count

    assert each * senders == run_on_thread(main())


def test_call_soon_of_another_virtual_thread_wakes_an_idle_loop():
    def main():
        loop = gs.new_event_loop()
        future = loop.create_future()
        with gs.scope() as scope:
            task = scope.spawn(loop.run_until_complete, future)
            settle()
            future.set_result("set from outside")
            result = task.result()
        loop.close()
        return result

    assert "set from outside" == gs.run(main)


# ---- signals ----


@both_ways
def test_a_signal_handler_of_the_loop_is_called_in_the_loop(run):
    async def main():
        loop = asyncio.get_running_loop()
        came = loop.create_future()
        loop.add_signal_handler(signal.SIGUSR1, came.set_result, "came")
        loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
        result = await came
        assert loop.remove_signal_handler(signal.SIGUSR1)
        return result

    assert "came" == run(main())
    assert signal.SIG_DFL == signal.getsignal(signal.SIGUSR1)


@both_ways
def test_an_interrupt_cancels_the_main_task_which_cleans_up(run):
    cleaned = []

    async def main():
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        run(main())

    assert [True] == cleaned


def test_signal_handlers_need_the_main_thread():
    async def main():
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)

    def virtual():
        with gs.scope() as scope:
            scope.spawn(run_on_thread, main())

    gs.run(virtual)


# ---- cancellation, deadlock ----


def test_a_timeout_around_a_loop_cancels_its_tasks_which_clean_up():
    cleaned = []

    async def main():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(1)
            cleaned.append(True)

    def virtual():
        with virtual_clock(), pytest.raises(TimeoutError), gs.timeout(5):
            run_on_thread(main())

    gs.run(virtual)
    assert [True] == cleaned


def test_a_loop_that_nothing_can_wake_is_a_deadlock():
    with new_loop() as loop, pytest.raises(gs.DeadlockError, match="something for its event loop to do"):
        gs.run(loop.run_until_complete, loop.create_future())


# ---- the end ----


def test_a_loop_that_was_not_closed_warns():
    loops = [gs.new_event_loop()]

    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        forget(loops)


def test_a_forgotten_loop_with_callbacks_is_collected():
    loop = gs.new_event_loop()
    loop.call_soon(loop.stop)
    loop.call_later(3600, loop.stop)
    gone = weakref.ref(loop)
    loops = [loop]
    del loop

    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        forget(loops)

    assert gone() is None


def test_closing_forgets_what_was_queued():
    called = []
    loop = gs.new_event_loop()
    loop.call_soon(called.append, 1)
    loop.call_later(0, called.append, 2)
    loop.call_soon_threadsafe(called.append, 3)

    loop.close()

    assert [] == called
    for method in (loop.call_soon, loop.call_soon_threadsafe):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            method(print)


def test_a_closed_loop_cannot_be_run():
    loop = gs.new_event_loop()
    loop.close()

    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.run_forever()


def test_a_loop_cannot_be_run_inside_another():
    async def main():
        with new_loop() as inner, pytest.raises(RuntimeError, match="another loop is running"):
            inner.run_forever()

    run_on_thread(main())


def test_handles_and_futures_do_not_leak():
    async def work():
        for _ in range(200):
            asyncio.get_running_loop().call_later(60, print).cancel()
            await asyncio.sleep(0)

    def count():
        gc.collect()
        return len(gc.get_objects())

    run_on_thread(work())
    before = count()
    for _ in range(5):
        run_on_thread(work())

    assert count() - before < 200  # one handle a step would be 1000


# ---- children, executors, the policy ----


@on_loop
async def test_a_subprocess_ends_and_the_programs_sigchld_handler_stays():
    seen = []
    previous = signal.signal(signal.SIGCHLD, lambda *_: seen.append(True))
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(input() * 2)", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        output, _ = await process.communicate(b"ab\n")
        assert (b"abab\n", 0) == (output, process.returncode)
        assert seen
    finally:
        assert "<lambda>" in signal.signal(signal.SIGCHLD, previous).__qualname__


@on_loop
async def test_names_are_resolved_and_executors_work():
    loop = asyncio.get_running_loop()

    assert await loop.getaddrinfo("127.0.0.1", 80)
    assert threading.main_thread().ident != await asyncio.to_thread(threading.get_ident)


@pytest.mark.skipif(sys.version_info >= (3, 16), reason="no policies any more")
def test_the_policy_makes_loops_of_ours():
    program = """
        import asyncio, warnings
        import gossamer
        warnings.simplefilter("ignore")
        asyncio.set_event_loop_policy(gossamer.EventLoopPolicy())
        async def main():
            return type(asyncio.get_running_loop()).__module__
        print(asyncio.run(main()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=60
    )

    assert "gossamer._event_loop\n" == done.stdout


def test_asyncio_is_not_imported_before_a_loop_is_asked_for():
    program = "import sys, gossamer; sys.exit('asyncio' in sys.modules)"

    assert 0 == subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode


def test_a_loop_decides_what_a_blocking_call_in_its_tasks_does():
    async def main():
        other = asyncio.create_task(asyncio.sleep(0, "ran"))
        time.sleep(0.001)
        return other.done()

    def run_with(blocking):
        with asyncio.Runner(loop_factory=lambda: gs.new_event_loop(blocking=blocking)) as runner:
            return runner.run(main())

    assert run_with("park")
    assert not run_with("block")
    with pytest.raises(RuntimeError, match="sleep"):
        run_with("error")
    with pytest.raises(ValueError, match="'park', 'block', 'error'"):
        gs.new_event_loop(blocking="wait")


@on_loop
async def test_the_clock_is_times_monotonic():
    loop = asyncio.get_running_loop()

    before, between, after = time.monotonic(), loop.time(), time.monotonic()

    assert before <= between <= after
