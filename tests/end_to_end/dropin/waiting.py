"""`wait`, `as_completed`, callbacks, cancelling, errors and initializers, as the documentation has them."""

import os
import sys
import threading
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    InvalidStateError,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    TimeoutError,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool

greeting = ""


def greet_with(text):
    global greeting
    greeting = text


def greet(name):
    return f"{greeting} {name}"


def reciprocal(x):
    return 1 / x


def leave():
    os._exit(3)


def processes():
    with ProcessPoolExecutor(max_workers=2, initializer=greet_with, initargs=("hello",)) as executor:
        names = {executor.submit(greet, name): name for name in ("ada", "grace", "edsger")}
        print(sorted((names[future], future.result()) for future in as_completed(names)))
        done, not_done = wait(names, return_when=ALL_COMPLETED)
        print(len(done), len(not_done), all(isinstance(future, Future) for future in done))

        fine, wrong = executor.submit(reciprocal, 4), executor.submit(reciprocal, 0)
        done, _ = wait([wrong], return_when=FIRST_EXCEPTION)
        print(fine.result(timeout=60), [type(future.exception()).__name__ for future in done])
        print(list(executor.map(reciprocal, [1, 2, 4], chunksize=2)))
        try:
            list(executor.map(reciprocal, [1, 0]))
        except ZeroDivisionError as error:
            print("map:", error)
    try:
        executor.submit(greet, "late")
    except RuntimeError as error:
        print(str(error).partition(";")[0])

    with ProcessPoolExecutor(max_workers=1) as executor:
        try:
            executor.submit(leave).result()
        except BrokenProcessPool:
            print("the worker has left")


def threads():
    release = threading.Event()
    called = []
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as executor:
        running = executor.submit(release.wait)
        queued = executor.submit(print, "never")
        queued.add_done_callback(lambda future: called.append(future.cancelled()))
        while not running.running():
            threading.Event().wait(0.001)
        print(queued.cancel(), running.cancel(), queued.cancelled())
        try:
            queued.result()
        except CancelledError:
            print("cancelled")
        try:
            running.result(timeout=0)
        except TimeoutError:
            print("timed out")
        try:
            running.set_result(None) if running.done() else queued.set_result(None)
        except InvalidStateError:
            print("invalid state")
        release.set()
        done, not_done = wait([running], return_when=FIRST_COMPLETED)
        print(len(done), len(not_done), running.result())
        name = executor.submit(lambda: threading.current_thread().name).result()
        print(name.startswith("reader"), called)
        print(list(executor.map(pow, [1, 2, 3], [2, 2, 2])))


if __name__ == "__main__":
    processes()
    threads()
    sys.stdout.flush()
