# SPDX-License-Identifier: Apache-2.0
"""Programs under ``gossamer run`` as child processes, the HTTP server and the Redis server that they talk to."""

from __future__ import annotations

import json
import os
import platform
import pwd
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LONGEST = 100  # seconds that a program may take
MOST_OS_THREADS = 12
REDIS_PACKAGES = [
    "redis-server",
    "redis-tools",
    "libjemalloc2",
    "liblzf1",
    "lua-bitop",
    "lua-cjson",
    "liblua5.1-0",
    "libatomic1",
    "libsystemd0",
]

POSTGRES_PACKAGES = [
    "postgresql-18|postgresql-17|postgresql-15",
    "libpq5",
    "libicu78|libicu76|libicu72",
    "libxml2-16|libxml2",
    "libldap2|libldap-2.5-0",
    "libsasl2-2",
    "libgssapi-krb5-2",
    "libkrb5-3",
    "libk5crypto3",
    "libkrb5support0",
    "libkeyutils1",
    "libcom-err2",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "libzstd1",
    "libpam0g",
    "libnuma1",
    "liburing2",
]

# What a program has at hand, and what it tells at its end.
PREAMBLE = """
import json, os, sys, threading

def os_threads():
    return len(os.listdir("/proc/self/task"))

most_os_threads = 0

def at_once(count, call):
    # `call(0)` to `call(count - 1)`, each in a thread of its own; their results.
    results, errors = [None] * count, []
    def body(index):
        global most_os_threads
        try:
            results[index] = call(index)
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            most_os_threads = max(most_os_threads, os_threads())
    threads = [threading.Thread(target=body, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results

def report(**facts):
    print(json.dumps(facts | {"os_threads": max(most_os_threads, os_threads())}))

"""


@pytest.fixture
def run_program() -> Callable[..., dict[str, Any]]:
    """A function that runs a program under ``gossamer run`` and returns what it reported; it must write no error."""

    def run(code: str, *arguments: object) -> dict[str, Any]:
        command = [sys.executable, "-m", "gossamer", "run", "-c", PREAMBLE + textwrap.dedent(code)]
        result = subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, text=True, timeout=LONGEST, check=False
        )
        assert (0, "") == (result.returncode, result.stderr)
        facts = json.loads(result.stdout)
        assert facts.pop("os_threads") <= MOST_OS_THREADS
        return facts

    return run


@contextmanager
def child(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def http_server() -> Iterator[str]:
    """The address of a server that holds requests back until a crowd of them is there."""
    with child([sys.executable, str(HERE / "server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"


@pytest.fixture(scope="session", autouse=True)
def many_descriptors() -> None:
    """As many as the system allows, for the servers too."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture(scope="session")
def redis_folder() -> Path:
    """The folder where Debian's packages of Redis are, the system's or unpacked for us."""
    return unpacked("usr/bin/redis-server", REDIS_PACKAGES)


@pytest.fixture(scope="session")
def redis_server(redis_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis server."""
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    environment = os.environ | {"LD_LIBRARY_PATH": str(redis_folder / "usr/lib/x86_64-linux-gnu")}
    command = [str(redis_folder / "usr/bin/redis-server"), "--port", str(port), "--save", "", "--maxclients", "4000"]
    command += ["--dir", str(tmp_path_factory.mktemp("redis"))]
    with child(command, env=environment, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            if "eady to accept connections" in line:
                break
        yield port


def unpacked(wanted: str, packages: list[str]) -> Path:
    """The folder that has ``wanted``: the system's root, or where this Debian's packages are unpacked for us."""
    if any(Path("/").glob(wanted)):
        return Path("/")
    # Each release has its own: the tests of one clone run in several.
    folder = ROOT / "build" / f"deb-{platform.freedesktop_os_release()['VERSION_CODENAME']}"
    # Always, since another run may be unpacking them; what is there already costs nothing.
    unpack = [sys.executable, str(ROOT / "tools" / "deb.py"), "unpack", str(folder), *packages]
    subprocess.run(unpack, check=True, capture_output=True)
    return folder


def no_root() -> None:
    """In a child: PostgreSQL refuses to run as root."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[int]:
    """The port of a PostgreSQL server with the user and database ``postgres``, who needs no password."""
    folder = unpacked("usr/lib/postgresql/*/bin/postgres", POSTGRES_PACKAGES)
    programs = sorted(folder.glob("usr/lib/postgresql/*/bin"))[-1]
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder / "usr/lib/x86_64-linux-gnu"), "LC_ALL": "C"}
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    with tempfile.TemporaryDirectory(dir="/tmp") as data:
        if os.geteuid() == 0:
            shutil.chown(data, "nobody")
        options: dict[str, Any] = {"env": environment, "cwd": "/", "preexec_fn": no_root}
        initialise = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*map(str, initialise)], check=True, capture_output=True, **options)
        serve = [programs / "postgres", "-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1"]
        settings = ["unix_socket_directories=", "fsync=off", "jit=off", "max_connections=300"]
        serve += [word for setting in settings for word in ("-c", setting)]
        with child([*map(str, serve)], stderr=subprocess.PIPE, **options) as process:
            for line in process.stderr:
                if "ready to accept connections" in line:
                    break
            yield port
