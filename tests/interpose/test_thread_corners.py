# SPDX-License-Identifier: Apache-2.0
"""The seldom used parts of `_thread` and `threading` do the same for virtual threads as for threads.

Each program runs twice, by `python` and by `gossamer run`, where its threads are virtual: what it prints, on both
standard streams, and its exit code are the same. It prints no identities and no times.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import gossamer as gs
import pytest

PRELUDE = """
import _thread, atexit, os, re, signal, sys, threading, time

def started(function, *args, **options):
    thread = threading.Thread(target=function, args=args, **options)
    thread.start()
    return thread

def attempt(function, *args, **keywords):
    try:
        print(function(*args, **keywords))
    except BaseException as error:
        print(type(error).__name__, error)
"""

is_313 = pytest.mark.skipif(sys.version_info < (3, 13), reason="from 3.13 on")


def run_both(tmp_path, program: str) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    path = tmp_path / "script.py"
    path.write_text(PRELUDE + textwrap.dedent(program))
    return tuple(
        subprocess.run(
            [sys.executable, "-X", "faulthandler", *launcher, path],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for launcher in ((), ("-m", "gossamer", "run"))
    )


@pytest.fixture
def prints(tmp_path):
    """Runs a program both ways, compares, and returns the lines of its standard output."""

    def compare(program: str) -> list[str]:
        plain, virtual = run_both(tmp_path, program)
        assert (plain.returncode, plain.stdout) == (virtual.returncode, virtual.stdout), virtual.stderr
        without_addresses = [re.sub("0x[0-9a-f]+", "0x", each.stderr) for each in (plain, virtual)]
        assert without_addresses[0] == without_addresses[1]
        return virtual.stdout.splitlines()

    return compare


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="3.12 alone has it")
def test_lock_of_set_sentinel_is_released_at_the_end_of_its_thread(prints):
    assert ["False True", "True", "True"] == prints("""
        def body():
            local.value = Tracked()
            sentinels.append(_thread._set_sentinel())
            sentinels[0].acquire()
            is_up.set()
            go.wait()

        class Tracked:
            def __del__(self):
                print(sentinels[0].locked())  # thread-local data dies before the thread counts as ended

        local, sentinels, is_up, go = threading.local(), [], threading.Event(), threading.Event()
        _thread.start_new_thread(body, ())
        is_up.wait()
        print(sentinels[0].acquire(timeout=0.001), sentinels[0].locked())
        go.set()
        print(sentinels[0].acquire())
        """)


def test_count_is_of_threads_that_were_started_and_have_not_ended(prints):
    assert ["0", "3", "1 3", "0"] == prints("""
        gates = [threading.Event() for _ in range(3)]
        print(_thread._count())
        threads = [started(gate.wait) for gate in gates]
        print(_thread._count())
        for gate, thread in zip(gates[:2], threads):
            gate.set()
            thread.join()
        print(_thread._count(), end=" ")
        more = [started(gates[2].wait) for _ in range(2)]
        print(_thread._count())
        gates[2].set()
        for thread in threads + more:
            thread.join()
        print(_thread._count())
        """)


def test_stack_size_is_kept_checked_and_given_back(prints):
    """Asking for it without an argument sets the default again, as it always has."""
    assert ["0", "262144", "ValueError", "524288", "0", "0"] == prints("""
        print(threading.stack_size(262144))
        started(lambda: print(threading.stack_size(524288))).join()
        try:
            threading.stack_size(1000)
        except ValueError:
            print("ValueError")
        print(threading.stack_size())
        print(threading.stack_size())
        print(threading.stack_size(0))
        """)


def test_private_methods_of_rlock(prints):
    lines = prints("""
        lock = threading.RLock()
        attempt(lock._release_save)
        attempt(lock.release)
        print(lock._is_owned())
        lock.acquire(); lock.acquire()
        print(lock._is_owned(), f"owner={threading.get_ident()} count=2" in repr(lock))
        if hasattr(lock, "_recursion_count"):
            print(lock._recursion_count())

        def other():
            print(lock._is_owned(), lock.acquire(blocking=False), lock.acquire(timeout=0.001))
            attempt(lock.release)
            if hasattr(lock, "_recursion_count"):
                print(lock._recursion_count())
        started(other).join()

        saved = lock._release_save()
        print(saved[0], saved[1] == threading.get_ident(), lock._is_owned())

        def taker():
            with lock:
                print(lock._is_owned(), f"owner={threading.get_ident()} count=1" in repr(lock))
                is_taken.set()
                go.wait()
        is_taken, go = threading.Event(), threading.Event()
        thread = started(taker)
        is_taken.wait()
        threading.Timer(0.001, go.set).start()
        lock._acquire_restore(saved)
        thread.join()
        print(lock._is_owned(), "count=2" in repr(lock))
        lock.release(); lock.release()
        attempt(lock.release)
        lock.acquire()
        lock._at_fork_reinit()
        print(lock._is_owned(), lock.acquire(blocking=False))
        """)

    assert "True True" == lines[3]


def test_rlock_of_one_thread_restored_by_another_is_that_ones(prints):
    """As Condition could, but nobody does: the words that were saved say whose the lock is."""
    assert ["True", "RuntimeError cannot release un-acquired lock"] == prints("""
        lock, saved = threading.RLock(), []
        def save():
            lock.acquire()
            saved.append(lock._release_save())
            is_saved.set()
            is_restored.wait()
            print(lock._is_owned())
            lock.release()
        is_saved, is_restored = threading.Event(), threading.Event()
        thread = started(save)
        is_saved.wait()
        lock._acquire_restore(saved[0])
        is_restored.set()
        thread.join()
        attempt(lock.release)
        """)


def test_uncaught_error_of_a_thread_reaches_the_excepthook_with_its_thread(prints):
    """The default one's text is compared too, traceback and all."""
    assert ["ValueError invalid literal for int() with base 10: 'seen' True", "SystemExit is silent"] == prints("""
        def fail():
            raise ValueError("told")

        started(fail, name="worker").join()

        def hook(args):
            print(args.exc_type.__name__, args.exc_value, args.thread is thread)

        threading.excepthook = hook
        thread = threading.Thread(target=int, args=("seen",))
        thread.start()
        thread.join()
        threading.excepthook = threading.__excepthook__
        started(sys.exit, 3).join()
        started(_thread.exit).join()
        print("SystemExit is silent")

        def broken(args):
            raise KeyError("in the hook")
        threading.excepthook = broken
        started(fail).join()
        sys.stderr.flush()
        os._exit(0)
        """)


def test_uncaught_error_of_a_bare_thread_is_reported_as_unraisable(prints):
    assert ["ended"] == prints("""
        def fail():
            raise ValueError("told")

        def report(args):
            sys.__unraisablehook__(args)
            ended.release()
        ended = _thread.allocate_lock()
        ended.acquire()
        sys.unraisablehook = report
        _thread.start_new_thread(fail, ())
        ended.acquire()
        print("ended")
        sys.stderr.flush()
        os._exit(0)
        """)


def test_arguments_of_start_new_thread_are_checked(prints):
    prints("""
        attempt(_thread.start_new_thread)
        attempt(_thread.start_new_thread, 1, ())
        attempt(_thread.start_new_thread, print, [])
        attempt(_thread.start_new_thread, print, (), [])
        attempt(_thread.interrupt_main, -1)
        attempt(_thread.get_ident, 1)
        attempt(threading.stack_size, "big")
        attempt(threading.RLock().acquire, True, -2)
        attempt(threading.Lock().acquire, False, 1)
        try:
            threading.Lock().acquire(timeout=1e100)
        except OverflowError:
            print("OverflowError")  # the wording has changed within 3.13
        attempt(threading.Lock().release)
        """)


@is_313
def test_handles_of_joinable_threads(prints):
    lines = prints("""
        gate = threading.Event()
        attempt(_thread.start_joinable_thread, 1)
        attempt(_thread.start_joinable_thread, print, 1)
        attempt(_thread._ThreadHandle().join)
        handle = _thread._ThreadHandle()
        print(handle.ident, handle.is_done())
        same = _thread.start_joinable_thread(gate.wait, handle, daemon=False)
        print(same is handle, handle.ident != threading.get_ident(), handle.is_done())
        attempt(_thread.start_joinable_thread, print, handle)
        print(handle.join(0.001), handle.is_done())
        gate.set()
        print(handle.join(), handle.join(), handle.is_done())
        attempt(_thread.start_joinable_thread, print, handle)

        def join_itself():
            attempt(own.join)
        own = _thread._ThreadHandle()
        _thread.start_joinable_thread(join_itself, own)
        own.join()

        gate.clear()
        handle = _thread.start_joinable_thread(gate.wait)
        handle._set_done()
        print(handle.is_done(), handle.join())
        gate.set()
        """)

    assert "True True False" in lines


@is_313
def test_main_thread_keeps_its_identity_for_the_interpreter(prints):
    prints("""
        print(_thread._get_main_thread_ident() == threading.get_ident() == threading.main_thread().ident)
        started(lambda: print(_thread._get_main_thread_ident() == threading.main_thread().ident)).join()
        print(_thread._is_main_interpreter(), _thread.daemon_threads_allowed())
        """)


def test_main_thread_has_the_identity_of_its_os_thread(prints):
    assert ["True True", "True", "True", "True"] == prints("""
        import ctypes
        pthread_self = ctypes.CDLL(None).pthread_self
        pthread_self.restype = ctypes.c_ulong
        print(threading.get_ident() == pthread_self(), threading.get_native_id() == os.getpid())
        print(threading.current_thread() is threading.main_thread())
        atexit.register(lambda: print(threading.current_thread() is threading.main_thread()))
        print(time.pthread_getcpuclockid(threading.get_ident()) != time.CLOCK_THREAD_CPUTIME_ID)
        """)


def test_signal_for_a_thread_runs_its_handler_in_main(prints):
    assert ["main", "main", "True", "OSError"] == prints("""
        got = threading.Lock()
        got.acquire()
        def wait_for_handler():  # the main thread of `python` is not woken by a signal for another
            while not got.acquire(timeout=0.001):
                pass
        def handler(number, frame):
            print("main" if threading.current_thread() is threading.main_thread() else "another")
            got.release()
        signal.signal(signal.SIGUSR1, handler)
        gate = threading.Event()
        thread = started(gate.wait)
        signal.pthread_kill(thread.ident, signal.SIGUSR1)
        wait_for_handler()
        started(lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)).join()
        wait_for_handler()
        print(time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) > 0)
        gate.set()
        thread.join()
        try:
            signal.pthread_kill(threading.main_thread().ident, 10_000)
        except (OSError, ValueError):
            print("OSError")
        """)


def test_interrupt_main_from_a_thread_ends_mains_wait(prints):
    assert ["interrupted", "SIGUSR1"] == prints("""
        lock = threading.Lock()
        lock.acquire()
        try:
            started(_thread.interrupt_main)
            lock.acquire()
        except KeyboardInterrupt:
            print("interrupted")
        signal.signal(signal.SIGUSR1, lambda *_: (print("SIGUSR1"), lock.release()))
        started(_thread.interrupt_main, signal.SIGUSR1)
        lock.acquire()
        """)


def test_exceptions_that_threads_handle(prints):
    assert ["'handled'", "None", "True"] == prints("""
        def handle():
            try:
                raise KeyError("handled")
            except KeyError:
                is_up.set()
                gate.wait()
        is_up, gate = threading.Event(), threading.Event()
        thread = started(handle)
        is_up.wait()
        print(sys._current_exceptions()[thread.ident])
        print(sys._current_exceptions()[threading.get_ident()])
        print({thread.ident, threading.get_ident()} == sys._current_exceptions().keys())
        gate.set()
        """)


def test_end_of_a_program_joins_threads_and_then_runs_atexit_handlers(prints):
    assert ["main ends", "callback True", "thread ends", "second ends", "atexit False"] == prints("""
        def body(name):
            threading.main_thread().join()
            if name == "thread":
                go.set()
            else:
                go.wait()
                thread.join()
            print(name, "ends")
        go = threading.Event()
        atexit.register(lambda: print("atexit", thread.is_alive()))
        threading._register_atexit(lambda: print("callback", thread.is_alive()))
        second = threading.Thread(target=body, args=("second",))
        thread = started(body, "thread")
        second.start()
        started(threading.Event().wait, daemon=True)
        print("main ends")
        """)


def test_thread_local_subclasses_begin_anew_in_each_thread(prints):
    assert ["[1]", "[1]", "[1, 2]", "AttributeError"] == prints("""
        class Local(threading.local):
            def __init__(self, first):
                self.values = [first]
        local = Local(1)
        print(local.values)
        def body():
            print(local.values)
            local.values.append(2)
            local.more = True
            print(local.values)
        started(body).join()
        try:
            local.more
        except AttributeError:
            print("AttributeError")
        """)


def test_thread_objects_tell_of_their_state(prints):
    prints("""
        gate = threading.Event()
        thread = threading.Thread(target=gate.wait, daemon=True)
        states = lambda: (re.sub(r" \\d{4,}", "", repr(thread)), thread.is_alive(), thread.daemon, thread.ident is None)
        print(states())
        attempt(thread.join)
        thread.start()
        print(states())
        attempt(thread.start)
        try:
            thread.daemon = False
        except RuntimeError as error:
            print(error)
        print(thread in threading.enumerate(), threading.active_count())
        thread.join(0.001)
        gate.set()
        thread.join()
        print(states(), thread in threading.enumerate())
        """)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="from 3.14 on")
def test_name_of_a_virtual_thread_is_not_its_carriers(tmp_path):
    """The kernel's name of the carrier is the main thread's to set; the arguments are checked all the same."""
    _, virtual = run_both(
        tmp_path,
        """
        comm = lambda: open("/proc/self/comm").read().strip()
        before = comm()
        def body():
            threading.current_thread().name = "virtual"
            attempt(_thread.set_name, "virtual")
            print(comm() == before)
            attempt(_thread.set_name, 1)
            attempt(_thread.set_name)
            attempt(_thread.set_name, name="named")
        started(body).join()
        _thread.set_name("main one")
        print(comm())
        """,
    )

    assert [
        "None",
        "True",
        "TypeError set_name() argument 'name' must be str, not int",
        "TypeError set_name() missing required argument 'name' (pos 1)",
        "None",
        "main one",
    ] == virtual.stdout.splitlines()


def test_main_virtual_thread_of_another_os_thread_has_that_ones_identity():
    import threading

    seen = []
    thread = threading.Thread(target=lambda: seen.append(gs.run(threading.get_ident)))
    thread.start()
    thread.join()

    assert [thread.ident] == seen
