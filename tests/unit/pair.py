"""A parent and a worker without the engine: pickled frames over pipes, and a stand-in for `Definition`.

Scripts of the unit tests import this from their own `__main__`.
"""

from __future__ import annotations

import _pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "python"

if "rightlane" not in sys.modules:
    # The modules under test alone: the package's own __init__ and the compiled core play no part here.
    package = types.ModuleType("rightlane")
    package.__path__ = [str(SOURCE / "rightlane")]
    sys.modules["rightlane"] = package


class Definition:
    """Stands in for the compiled class."""

    made = 0

    def __init__(self, blob: bytes, deps: Any) -> None:
        type(self).made += 1
        self.id = self.made
        self.blob = blob
        self.deps = list(deps)


native: Any = types.ModuleType("rightlane._native")
native.Definition = Definition
sys.modules["rightlane._native"] = native
sys.modules["rightlane"]._native = native  # type: ignore[attr-defined]

from rightlane import _byvalue, _remote, _world  # noqa: E402

BOOT = """
import sys, types, _pickle
package = types.ModuleType("rightlane")
package.__path__ = [sys.argv[1]]
sys.modules["rightlane"] = package
from rightlane import _byvalue, _definitions, _remote, _world
source, sink = sys.stdin.buffer, sys.stdout.buffer
sys.stdout = sys.stderr

def serve():
    while True:
        try:
            kind, *rest = _pickle.load(source)
        except EOFError:
            return
        reply = True
        if kind == "world":
            _world.apply(rest[0])
            _definitions.start_worker(*_world.main_module(rest[0]))
        elif kind == "define":
            _definitions.define(*rest)
        elif kind == "forget":
            _definitions.forget(*rest)
        elif kind == "modules":
            reply = sorted(sys.modules)
        else:
            try:
                fn = _definitions.resolve(rest[0])
                args, kwargs = _pickle.loads(rest[1])
                result = fn(*args, **kwargs)
                try:
                    data = _pickle.dumps(result, 5)
                except Exception:
                    data = b"__main__"
                if b"__main__" in data:
                    data = _byvalue.dumps_result(result)
                reply = True, data
            except BaseException as error:
                reply = False, _remote.pack(error)
        _pickle.dump(reply, sink, 5)
        sink.flush()

serve()
"""


class Worker:
    """A fresh interpreter that runs what it is told to."""

    def __init__(self) -> None:
        argv, environment = _world.template_command()
        self.process = subprocess.Popen(
            [*argv, "-c", BOOT, str(SOURCE / "rightlane")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.sent: list[int] = []
        self.ask("world", _world.capture())

    def ask(self, *message: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        _pickle.dump(message, self.process.stdin, 5)
        self.process.stdin.flush()
        return _pickle.load(self.process.stdout)

    def send(self, definition: Any) -> None:
        for dep in definition.deps:
            self.send(dep)
        if definition.id not in self.sent:
            self.sent.append(definition.id)
            self.ask("define", definition.id, definition.blob)

    def __call__(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        definition = _byvalue.record(fn)
        deps: list[Any] = []
        try:
            data = _pickle.dumps((args, kwargs), 5)
        except Exception:
            data = b"__main__"
        if not _byvalue.plain_pickles_suffice(data):
            data, deps = _byvalue.dumps((args, kwargs))
        for each in [definition, *deps]:
            self.send(each)
        good, answer = self.ask("call", definition.id, data)
        if good:
            return _pickle.loads(answer)
        raise _remote.unpack(answer)

    def modules(self) -> list[str]:
        found: list[str] = self.ask("modules")
        return found

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
