"""Functions typed at a prompt or in the cells of a notebook."""

from __future__ import annotations

from support import Start


def test_a_prompt(start: Start) -> None:
    """rule 5: definitions, redefinitions and changed globals of `python -i`."""
    script = start(
        """
        import rightlane as rl
        ex = rl.Executor(2, lane="process")
        k = 5
        def f(x):
            return x + k

        print("A", ex.submit(f, 1).result())
        k = 10
        print("B", ex.submit(f, 1).result(), list(ex.map(f, [1, 2])))
        def f(x):
            return -x

        print("C", ex.submit(f, 1).result())
        class P:
            def __init__(self, x):
                self.x = x

        p = ex.submit(P, 3).result()
        print("D", type(p) is P, p.x)
        class P:
            y = 8

        p = ex.submit(P).result()
        print("E", type(p) is P, p.y)
        print("F", ex.submit(lambda: [f(i) for i in range(3)]).result())
        ex.submit(lambda: 1 / 0).exception()
        ex.shutdown()
        """,
        interactive=True,
    )
    out = script.succeeds()
    for line in (
        "A 6",
        "B 11 [11, 12]",
        "C -1",
        "D True 3",
        "E True 8",
        "F [0, -1, -2]",
        "ZeroDivisionError",
    ):
        assert line in out, (line, out, script.err)


def test_work_left_at_the_prompts_end_is_finished(start: Start, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """rule 2: also when the interpreter ends by end of input."""
    log = tmp_path / "log"
    start(
        f"""
        import rightlane as rl, tasks
        ex = rl.Executor(1, lane="process")
        fs = [ex.submit(tasks.append_slowly, {str(log)!r}, i) for i in range(50)]
        """,
        interactive=True,
    ).succeeds()
    assert len(log.read_text().splitlines()) == 50


def test_notebook_cells(start: Start) -> None:
    """rule 5, rule 6, rule 7: cells compiled one by one into a `__main__` that is no file."""
    start("""
        import sys, textwrap, types, linecache
        import rightlane as rl

        # What IPython does: a fresh module as `__main__`, cells executed in it from sources without a file.
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        number = 0

        def cell(source):
            global number
            number += 1
            name = f"<cell-{number}>"
            text = textwrap.dedent(source).strip("\\n")
            linecache.cache[name] = (len(text), None, text.splitlines(True), name)
            exec(compile(text, name, "exec"), main.__dict__)

        main.rl = rl
        cell("ex = rl.Executor(2, lane='process')")
        cell('''
        k = 5
        seen = {}
        def f(x):
            return x + k
        class Model:
            scale = 2
            def __init__(self, w): self.w = w
            def predict(self, x): return self.w * x * self.scale
        ''')
        cell("assert list(ex.map(f, range(5))) == [5, 6, 7, 8, 9]")
        cell("k = 10")
        cell("assert list(ex.map(f, range(5))) == [10, 11, 12, 13, 14]")
        cell("m = ex.submit(Model, 3).result()")
        cell("assert type(m) is Model and ex.submit(m.predict, 2).result() == 12")
        cell("Model.scale = 5")
        cell("assert ex.submit(m.predict, 2).result() == 30 and Model.scale == 5")
        cell('''
        class Model:
            def __init__(self, w): self.w = w
            def predict(self, x): return "new"
        ''')
        cell("old, m = m, ex.submit(Model, 1).result(); assert type(m) is Model and type(old) is not Model")
        cell("assert ex.submit(m.predict, 0).result() == 'new' and ex.submit(old.predict, 2).result() == 30")
        cell("back = ex.submit(lambda o: o, old).result(); assert type(back) is type(old)")
        cell('''
        def f(x):
            return g(x)
        def g(x):
            raise LookupError("in a cell")
        ''')
        cell('''
        import traceback
        error = ex.submit(f, 1).exception()
        text = "".join(traceback.format_exception(error))
        assert type(error) is LookupError and "in g" in text and "in f" in text, text
        ''')
        cell("assert ex.submit(lambda: sorted([3, 1, 2], key=lambda v: -v)).result() == [3, 2, 1]")
        cell("ex.shutdown()")
    """).succeeds()


def test_an_interactive_console(start: Start) -> None:
    """`code.InteractiveConsole` with a namespace of its own, which is no module's."""
    start("""
        import code
        import rightlane as rl
        namespace = {"__name__": "__console__", "rl": rl}
        console = code.InteractiveConsole(namespace)
        for line in (
            "ex = rl.Executor(1, lane='process')",
            "k = 3",
            "def f(x):",
            "    return x * k",
            "",
            "first = ex.submit(f, 2).result()",
            "k = 4",
            "second = ex.submit(f, 2).result()",
            "third = ex.submit(lambda: f(5)).result()",
            "ex.shutdown()",
        ):
            console.push(line)
        assert (namespace["first"], namespace["second"], namespace["third"]) == (6, 8, 20)
    """).succeeds()


def test_cells_that_await(start: Start) -> None:
    """Notebooks run a loop: a future can be awaited in it while others block on it."""
    start("""
        import asyncio
        import rightlane as rl
        k = 2
        def f(x): return x * k
        async def notebook():
            global k
            ex = rl.Executor(2)
            assert await ex.submit(f, 4) == 8
            k = 3
            assert await asyncio.gather(*(ex.submit(f, i) for i in range(20))) == [3 * i for i in range(20)]
            await asyncio.to_thread(ex.shutdown)
        asyncio.run(notebook())
    """).succeeds()
