# SPDX-License-Identifier: Apache-2.0
"""Parts of the standard library that stand on what is interposed, many calls at a time on one OS thread."""


def test_subprocess_run_waits_for_20_children_at_once(run_program, tmp_path):
    """No child ends before all 20 have started."""
    facts = run_program(
        """
        import subprocess
        folder, count = sys.argv[1], int(sys.argv[2])
        script = f"touch {folder}/$0; while [ $(ls {folder} | wc -l) -lt {count} ]; do sleep 0.05; done; echo $0"
        def call(index):
            return subprocess.run(["sh", "-c", script, str(index)], capture_output=True, check=True, text=True).stdout
        report(right=at_once(count, call) == [f"{index}\\n" for index in range(count)])
        """,
        tmp_path,
        20,
    )

    assert {"right": True} == facts


def test_logging_writes_each_record_of_200_threads_once(run_program, tmp_path):
    path = tmp_path / "log"

    facts = run_program(
        """
        import logging, logging.handlers, queue
        logger = logging.getLogger("program")
        logger.setLevel(logging.INFO)
        file = logging.FileHandler(sys.argv[1])
        records = queue.Queue()
        listener = logging.handlers.QueueListener(records, file)
        listener.start()
        logger.addHandler(file)
        logger.addHandler(logging.handlers.QueueHandler(records))
        at_once(200, lambda index: [logger.info("%d %d", index, turn) for turn in range(10)])
        listener.stop()
        report()
        """,
        path,
    )

    assert {} == facts
    expected = [f"{index} {turn}" for index in range(200) for turn in range(10)]
    assert sorted(2 * expected) == sorted(path.read_text().splitlines())


def test_sqlite_takes_the_rows_of_200_connections(run_program, tmp_path):
    facts = run_program(
        """
        import contextlib, sqlite3
        def call(index):
            with contextlib.closing(sqlite3.connect(sys.argv[1])) as database, database:
                database.execute("insert into rows values (?)", (index,))
        with contextlib.closing(sqlite3.connect(sys.argv[1])) as database:
            database.execute("create table rows (value)")
            at_once(200, call)
            rows = [value for (value,) in database.execute("select value from rows order by value")]
        report(right=rows == list(range(200)))
        """,
        tmp_path / "rows",
    )

    assert {"right": True} == facts
