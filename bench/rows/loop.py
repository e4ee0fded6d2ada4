# SPDX-License-Identifier: Apache-2.0
"""The event loop: steps and timers against uvloop and asyncio, echo servers against uvloop and a C epoll server.

Echo servers of one round run at once, on the same CPU, driven by turns by one load generator on another CPU.
"""

import json
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from measure import Bench, Figures, ProgramFailed, Result, cpu_per_operation

CONNECTIONS = 200
TLS_CONNECTIONS = 50
NEW_CONNECTIONS = 50  # at a time
SLICES = 30
SLICE_MILLISECONDS = 50


def measure(bench: Bench) -> list[Result]:
    """One result a figure; what uvloop is missing for is a note."""
    return [
        _against_the_faster(bench),
        _timers(bench),
        *_protocol(bench, 64),
        *_protocol(bench, 16384),
        _echo(bench, "streams", 0.8),
        _echo(bench, "sock", 0.6),
        _echo(bench, "tls", 0.9),
        _by_load(
            bench, Result("loop_connections", "accept, echo 64 B, close / uvloop", "ratio", 1.05), "protocol", "anew"
        ),
        _by_load(
            bench, Result("loop_datagrams", "datagram echo, 64 B / uvloop", "ratio", 0.9), "datagrams", "datagrams"
        ),
        _handshakes(bench),
    ]


def _sides(bench: Bench, *words: str) -> dict[str, list[str]]:
    return {"ours": bench.ours("loop.py", *words), "uvloop": bench.peer("uvloop_loop.py", *words)}


def _guarded(result: Result, fill: Callable[[], None]) -> Result:
    try:
        fill()
    except ProgramFailed as error:
        result.note = str(error)
    return result


def _against_the_faster(bench: Bench) -> Result:
    result = Result("loop_steps", "await asyncio.sleep(0) / the faster of asyncio and uvloop", "ratio", 0.65)
    sides = {**_sides(bench, "steps"), "asyncio": bench.peer("asyncio_loop.py", "steps")}

    def ratio(figures: dict[str, Figures]) -> float:
        faster = min(cpu_per_operation(figures["asyncio"]), cpu_per_operation(figures["uvloop"]))
        return cpu_per_operation(figures["ours"]) / faster

    return _pair(bench, result, sides, ratio)


def _timers(bench: Bench) -> Result:
    result = Result("loop_timers", "a million timers set and cancelled / uvloop", "ratio", 0.5)
    return _pair(
        bench,
        result,
        _sides(bench, "timers"),
        lambda figures: cpu_per_operation(figures["ours"]) / cpu_per_operation(figures["uvloop"]),
    )


def _pair(
    bench: Bench, result: Result, sides: dict[str, list[str]], value: Callable[[dict[str, Figures]], float]
) -> Result:
    def fill() -> None:
        bench.pair(result, dict(sides), value)

    return _guarded(result, fill)


def _protocol(bench: Bench, size: int) -> list[Result]:
    """The limit is the larger of 0.9 of uvloop's time and 1.10 of the C server's; the two ratios are there to be read."""
    name = f"loop_protocol_{size}"
    results = [
        Result(name, f"Protocol echo, {size} B / the larger of 0.9 uvloop's, 1.10 C epoll's", "ratio", 1.0),
        Result(f"{name}_uvloop", f"Protocol echo, {size} B / uvloop", "ratio", None),
        Result(f"{name}_c", f"Protocol echo, {size} B / C epoll server", "ratio", None),
    ]

    def fill() -> None:
        sides = {**_sides(bench, "protocol"), "c": bench.compiled("echo_epoll")}
        for _ in range(bench.rounds):
            figures = _one_round(bench, sides, CONNECTIONS, size, bench.compiled("echo_load"))
            ours, uvloop, c = (cpu_per_operation(figures[side]) for side in ("ours", "uvloop", "c"))
            for result, value in zip(
                results, (ours / max(0.9 * uvloop, 1.10 * c), ours / uvloop, ours / c), strict=True
            ):
                result.figures.append(figures)
                result.rounds.append(value)

    _guarded(results[0], fill)
    return results


def _echo(bench: Bench, kind: str, limit: float) -> Result:
    result = Result(f"loop_{kind}", f"echo, 64 B, {kind} / uvloop", "ratio", limit)
    if kind == "tls":
        words = [kind, str(_certificate(bench.binaries))]
        return _against_uvloop(bench, result, words, bench.peer("tls_load.py"), TLS_CONNECTIONS, 64)
    return _against_uvloop(bench, result, [kind], bench.compiled("echo_load"), CONNECTIONS, 64)


def _handshakes(bench: Bench) -> Result:
    result = Result("loop_tls_handshakes", "a TLS connection: handshake, a byte each way, end / uvloop", "ratio", None)
    words = ["tls", str(_certificate(bench.binaries))]
    return _against_uvloop(bench, result, words, bench.peer("tls_load.py"), 0, 0)


def _against_uvloop(
    bench: Bench, result: Result, words: list[str], load: list[str], connections: int, size: int
) -> Result:
    def fill() -> None:
        for _ in range(bench.rounds):
            figures = _one_round(bench, _sides(bench, *words), connections, size, load)
            result.figures.append(figures)
            result.rounds.append(cpu_per_operation(figures["ours"]) / cpu_per_operation(figures["uvloop"]))

    return _guarded(result, fill)


def _by_load(bench: Bench, result: Result, server: str, load: str) -> Result:
    """What echo_load measures when a word tells it how to connect.

    Four fifths of what a connection costs is the kernel's, the same for every loop.
    """
    return _against_uvloop(bench, result, [server], [*bench.compiled("echo_load"), load], NEW_CONNECTIONS, 64)


def _certificate(folder: Path) -> Path:
    """Return a file with a key and a certificate for it, made once."""
    path = folder / "server.pem"
    if not path.exists():
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "3650",
            "-subj",
            "/CN=localhost",
            "-keyout",
            "-",
        ]
        made = subprocess.run([*command, "-out", str(folder / "certificate.pem")], capture_output=True, check=True)
        path.write_bytes(made.stdout + (folder / "certificate.pem").read_bytes())
    return path


def _one_round(
    bench: Bench, sides: dict[str, list[str]], connections: int, size: int, load: list[str]
) -> dict[str, Figures]:
    with ExitStack() as stack:
        servers = []
        for command in sides.values():
            server = stack.enter_context(bench.start(command))
            stack.callback(server.kill)
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            if not port:
                raise ProgramFailed(f"{' '.join(command)} did not start")
            servers.append(f"{port}:{server.pid}")
        numbers = map(str, (connections, size, SLICES, SLICE_MILLISECONDS))
        output = bench.run([*load, *numbers, *servers], cpu=0)
        return dict(zip(sides, json.loads(output), strict=True))
