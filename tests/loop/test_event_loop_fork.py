# SPDX-License-Identifier: Apache-2.0
"""A program forks while its loop runs."""

import asyncio
import os
import warnings

from loops import on_loop, run_on_thread, socket_pair


def exit_code_of(child: int) -> int:
    """Wait for a child."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@on_loop
async def test_a_child_can_take_the_loops_connections_apart_and_run_a_loop_of_its_own():
    loop = asyncio.get_running_loop()
    with socket_pair() as (left, right), socket_pair() as (third, _fourth):
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=left)
        receiving = loop.create_task(loop.sock_recv(third, 1))
        await asyncio.sleep(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn when there are OS threads
            child = os.fork()
        if child == 0:
            code = 1
            try:
                transport.abort()
                receiving.cancel()
                asyncio._set_running_loop(None)
                assert "ran" == run_on_thread(asyncio.sleep(0, "ran"))
                code = 0
            finally:
                os._exit(code)

        assert 0 == exit_code_of(child)
        right.send(b"the parent's go on")
        await asyncio.sleep(0)
        receiving.cancel()
        transport.abort()
        await asyncio.sleep(0)
