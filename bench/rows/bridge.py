# SPDX-License-Identifier: Apache-2.0
"""The bridge: awaiting in a plain function against `await` and greenback, crossings there and back against asgiref."""

from collections.abc import Callable

from measure import Bench, Figures, ProgramFailed, Result, cpu_per_operation

AT_ONCE = "a coroutine that ends at once"
AFTER_A_TURN = "one that gives way once"


def measure(bench: Bench) -> list[Result]:
    """One result a figure; what a peer is missing for is a note."""
    results = [
        Result("bridge_added", f"gs.await_ minus await: {AT_ONCE}", "ns", 600),
        Result("bridge_turn_added", f"gs.await_ minus await: {AFTER_A_TURN}", "ns", 600),
        Result("bridge_greenback", f"gs.await_ / greenback's: {AT_ONCE}", "ratio", 0.25),
        Result("bridge_turn_greenback", f"gs.await_ / greenback's: {AFTER_A_TURN}", "ratio", 0.25),
    ]
    sides = {"ours": bench.ours("bridge.py", "awaits"), "greenback": bench.peer("greenback_await.py")}
    _fill(bench, results, sides, _awaits)
    crossings = [
        Result(f"bridge_{where}", f"def, async def, def, async def, in {what} / asgiref's", "ratio", limit)
        for where, what, limit in (
            ("task", "a task", 0.02),
            ("virtual", "a virtual thread", None),
            ("ordinary", "an ordinary thread", None),
        )
    ]
    for result in crossings:
        where = result.row.removeprefix("bridge_")
        sides = {
            "ours": bench.ours("bridge.py", "crossings", where),
            "asgiref": bench.peer("asgiref_crossings.py", where),
        }
        _fill(bench, [result], sides, _crossings)
    return [*results, *crossings]


def _awaits(figures: dict[str, Figures]) -> list[float]:
    ours, greenback = figures["ours"], figures["greenback"]
    return [
        ours["at_once_added_ns"],
        ours["after_a_turn_added_ns"],
        ours["at_once_ns"] / greenback["at_once_ns"],
        ours["after_a_turn_ns"] / greenback["after_a_turn_ns"],
    ]


def _crossings(figures: dict[str, Figures]) -> list[float]:
    return [cpu_per_operation(figures["ours"]) / cpu_per_operation(figures["asgiref"])]


def _fill(
    bench: Bench,
    results: list[Result],
    sides: dict[str, list[str]],
    values: Callable[[dict[str, Figures]], list[float]],
) -> None:
    """Fill several results from the same rounds."""
    try:
        for number in range(bench.rounds):
            names = list(sides) if number % 2 == 0 else list(reversed(sides))
            figures = {name: bench.figures(sides[name]) for name in names}
            for result, value in zip(results, values(figures), strict=True):
                result.figures.append(figures)
                result.rounds.append(value)
    except ProgramFailed as error:
        for result in results:
            result.note = str(error)
