"""Small whole programs, as users write them."""

from __future__ import annotations

from support import Start


def test_the_standard_librarys_own_sources(start: Start) -> None:
    """The same answers from every lane as from a plain loop, for real files."""
    start("""
        import ast, hashlib, pathlib, sysconfig, zlib
        import rightlane as rl

        files = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]

        def nodes(path):
            try:
                return sum(1 for _ in ast.walk(ast.parse(path.read_bytes())))
            except SyntaxError as error:
                return repr(error)

        def digest(path):
            return hashlib.sha256(zlib.compress(path.read_bytes())).hexdigest()

        for job in (nodes, digest):
            expected = [job(path) for path in files]
            for lane in ("process", "thread", "auto", "inline"):
                with rl.Executor(2, lane=lane) as ex:
                    assert list(ex.map(job, files)) == expected
                    assert [f.result() for f in [ex.submit(job, path) for path in files]] == expected
    """).succeeds()


def test_an_executor_as_a_drop_in(start: Start) -> None:
    """Code written for `concurrent.futures` runs after changing one line."""
    start("""
        import concurrent.futures, urllib.parse
        import rightlane as rl

        URLS = [f"http://example.org/{i}?q={i}" for i in range(20)]
        def load_url(url, timeout):
            return urllib.parse.urlsplit(url).query

        with rl.Executor(max_workers=5) as executor:
            future_to_url = {executor.submit(load_url, url, 60): url for url in URLS}
            seen = {}
            for future in concurrent.futures.as_completed(future_to_url):
                seen[future_to_url[future]] = future.result()
        assert seen == {url: f"q={i}" for i, url in enumerate(URLS)}
    """).succeeds()
