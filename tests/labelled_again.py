"""More labelled functions, written in another way once the guard was tuned on the first.

They found one fault all the same, which was mended: functions of one decorator were taken for the same.
"""

from __future__ import annotations

import bisect
import collections
import contextvars
import datetime
import decimal
import enum
import functools
import heapq
import itertools
import operator
import os
import queue
import re
import string
import subprocess
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Arguments = Callable[[], tuple[Any, ...]]
CHANGE: list[tuple[Callable[..., Any], Arguments]] = []
KEEP: list[tuple[Callable[..., Any], Arguments]] = []


class Account:
    rate = 0.5

    def __init__(self, owner: str, balance: int = 0) -> None:
        self.owner, self._balance = owner, balance
        self.history: list[tuple[str, int]] = []

    @property
    def balance(self) -> int:
        return self._balance

    @balance.setter
    def balance(self, value: int) -> None:
        self._balance = value

    def deposit(self, amount: int) -> Account:
        self.balance += amount
        self.history += [("in", amount)]
        return self

    def statement(self) -> str:
        return ", ".join(f"{what} {amount}" for what, amount in self.history)

    def __iadd__(self, amount: int) -> Account:
        return self.deposit(amount)

    def __setitem__(self, key: str, value: Any) -> None:
        self.__dict__[key] = value


class Savings(Account):
    opened: list[str] = []  # noqa: RUF012

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        Savings.opened.append(owner)


class Node:
    def __init__(self, value: int) -> None:
        self.value = value
        self.parent: Node | None = None
        self.children: list[Node] = []

    def add(self, child: Node) -> Node:
        child.parent = self
        self.children.append(child)
        return child


class Bag(dict):  # type: ignore[type-arg]
    """A dictionary of one's own."""


class Move(NamedTuple):
    x: int
    y: int


class Kind(enum.Enum):
    SMALL = 1
    LARGE = 2


def memoise(fn: Callable[[int], int]) -> Callable[[int], int]:
    known: dict[int, int] = {}

    @functools.wraps(fn)
    def wrapper(n: int) -> int:
        if n not in known:
            known[n] = fn(n)
        return known[n]

    return wrapper


def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def tree() -> Node:
    root = Node(1)
    root.add(Node(2)).add(Node(3))
    return root


jobs: queue.Queue[int] = queue.Queue()
heap = [5, 7, 9]
ordered: collections.OrderedDict[str, int] = collections.OrderedDict(a=1, b=2)
space = types.SimpleNamespace(hits=0, inner=types.SimpleNamespace(depth=0))
bank = {"ann": Account("ann"), "bob": Account("bob")}
bag = Bag(a=1)
root = tree()
plugins: list[Callable[..., Any]] = []
handlers: dict[str, Callable[..., Any]] = {}
stack: list[list[int]] = [[]]
last_run: datetime.datetime | None = None
matrix = [list(range(100)) for _ in range(100)]
words = frozenset(string.ascii_lowercase)
setting: contextvars.ContextVar[int] = contextvars.ContextVar("setting", default=0)
alive: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
lines = "a b c\n" * 2000
context = decimal.Context(prec=10)


# What changes something ---------------------------------------------------------------------------


@memoise
def remembers(n: int) -> int:
    return n**2


def puts_into_a_queue(n: int) -> None:
    jobs.put(n)


def pushes_onto_a_heap(n: int) -> None:
    heapq.heappush(heap, n)


def keeps_sorted(n: int) -> None:
    bisect.insort(heap, n)


def moves_to_the_end(key: str) -> None:
    ordered.move_to_end(key)
    ordered[key] += 1


def counts_hits() -> None:
    space.hits += 1


def counts_deeper() -> None:
    space.inner.depth += 1


def pays_in(name: str, amount: int) -> int:
    return bank[name].deposit(amount).balance


def pays_by_operator(name: str, amount: int) -> None:
    bank[name] += amount


def sets_an_item_of_an_object(account: Account) -> None:
    account["colour"] = "red"


def fills_the_bag(n: int) -> None:
    bag.update({str(n): n})


def grows_the_tree(value: int) -> None:
    node = root
    while node.children:
        node = node.children[0]
    node.add(Node(value))


def reaches_up(node: Node) -> None:
    if node.parent is not None:
        node.parent.value = -1


def registers(name: str) -> None:
    handlers[name] = lambda: name


def stamps() -> None:
    global last_run
    last_run = datetime.datetime(2026, 1, 1)


def clears(items: set[int]) -> None:
    items.clear()


def deletes_a_slice(items: list[int]) -> None:
    del items[:2]


def setattr_by_name(account: Account, name: str) -> None:
    setattr(account, name, 5)


def walks_and_writes(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for key in row:
            row[key] = str(row[key]).upper()


@logged
def behind_a_decorator(n: int) -> None:
    stack[-1].append(n)


def by_operator_module(mapping: dict[str, int]) -> None:
    operator.setitem(mapping, "k", 1)


def adds_to_the_path(entry: str) -> None:
    sys.path.append(entry)


CHANGE += [
    (remembers, lambda: (4,)),
    (puts_into_a_queue, lambda: (1,)),
    (pushes_onto_a_heap, lambda: (6,)),
    (keeps_sorted, lambda: (8,)),
    (moves_to_the_end, lambda: ("a",)),
    (counts_hits, tuple),
    (counts_deeper, tuple),
    (pays_in, lambda: ("ann", 3)),
    (pays_by_operator, lambda: ("bob", 3)),
    (sets_an_item_of_an_object, lambda: (Account("eve"),)),
    (fills_the_bag, lambda: (3,)),
    (grows_the_tree, lambda: (4,)),
    (reaches_up, lambda: (tree().children[0],)),
    (registers, lambda: ("n",)),
    (stamps, tuple),
    (clears, lambda: ({1, 2},)),
    (deletes_a_slice, lambda: ([1, 2, 3],)),
    (setattr_by_name, lambda: (Account("eve"), "rate")),
    (walks_and_writes, lambda: ([{"a": "x"}],)),
    (behind_a_decorator, lambda: (1,)),
    (by_operator_module, lambda: ({},)),
    (adds_to_the_path, lambda: ("/nowhere",)),
    (Account("zoe").deposit, lambda: (2,)),
    (Savings, lambda: ("kim",)),
    (stack[0].append, lambda: (1,)),
]


# What changes nothing -----------------------------------------------------------------------------


def fills_a_queue_of_its_own(n: int) -> int:
    jobs: queue.Queue[int] = queue.Queue()
    for i in range(n):
        jobs.put(i)
    return jobs.qsize()


def heaps_a_copy(n: int) -> int:
    mine = heap[:]
    heapq.heappush(mine, n)
    return mine[0]


def merges(mapping: Mapping[str, int]) -> dict[str, int]:
    return {**mapping, **ordered, "z": 26}


def reads_the_bank(name: str) -> str:
    return bank[name].statement() + str(bank[name].balance * Account.rate)


def opens_an_account(name: str) -> int:
    return Account(name).deposit(5).balance


def visits_the_tree() -> int:
    def visit(node: Node) -> int:
        return node.value + sum(visit(child) for child in node.children)

    return visit(root)


def counts_lines(text: str) -> collections.Counter[str]:
    return collections.Counter(text.split() + lines.split())


def transposes(rows: list[list[int]]) -> list[list[int]]:
    return [list(column) for column in zip(*rows, strict=True)] + matrix


def chains(parts: list[Iterable[int]]) -> int:
    return sum(itertools.chain.from_iterable(parts))


def exhausts(pair: tuple[Iterator[int], list[int]]) -> list[int]:
    return list(pair[0]) + pair[1]


def formats(when: datetime.datetime, kind: Kind) -> str:
    return f"{when:%Y} {kind.name} {Kind(1).value}"


def calculates(text: str) -> decimal.Decimal:
    return context.sqrt(decimal.Decimal(text))


def steps(move: Move) -> Move:
    return move._replace(x=move.x + 1)


def substitutes(text: str) -> str:
    return re.sub(r"[a-c]+", lambda match: match.group().upper(), text)


def cleans_up_after_itself(key: str) -> int:
    ordered[key] = 1
    try:
        return len(ordered)
    finally:
        del ordered[key]


def runs_a_child(word: str) -> str:
    return subprocess.run(["echo", word], capture_output=True, text=True, check=True).stdout


def shadows(heap: list[int]) -> int:
    heap = [*heap, 1]
    heap.sort()
    return heap[0]


def raises_its_own(n: int) -> None:
    class Own(Exception):
        def __init__(self) -> None:
            super().__init__(n)
            self.n = n

    raise Own from KeyError(n)


def reads_the_environment(name: str) -> str:
    return os.environ.get(name, "") + os.getcwd()


@logged
def decorated(account: Account) -> int:
    return account.balance


def sends(n: int) -> int:
    def echo() -> Iterator[int]:
        value = 0
        while True:
            value += (yield value) or 0

    running = echo()
    next(running)
    return running.send(n)


def walrus(items: list[int]) -> int:
    return (m := max(items)) + len(items) + m


def uses_a_context_variable(n: int) -> int:
    return contextvars.copy_context().run(lambda: setting.get() + n)


KEEP += [
    (fills_a_queue_of_its_own, lambda: (3,)),
    (heaps_a_copy, lambda: (3,)),
    (merges, lambda: ({"q": 1},)),
    (reads_the_bank, lambda: ("ann",)),
    (opens_an_account, lambda: ("new",)),
    (visits_the_tree, tuple),
    (counts_lines, lambda: ("a b",)),
    (transposes, lambda: ([[1, 2], [3, 4]],)),
    (chains, lambda: ([[1], (2, 3), range(4)],)),
    (exhausts, lambda: ((iter([1, 2]), [3]),)),
    (formats, lambda: (datetime.datetime(2026, 1, 1), Kind.SMALL)),
    (calculates, lambda: ("2",)),
    (steps, lambda: (Move(1, 2),)),
    (substitutes, lambda: ("abcxyz",)),
    (cleans_up_after_itself, lambda: ("temporary",)),
    (runs_a_child, lambda: ("hello",)),
    (shadows, lambda: ([2, 3],)),
    (raises_its_own, lambda: (3,)),
    (reads_the_environment, lambda: ("HOME",)),
    (decorated, lambda: (Account("eve"),)),
    (sends, lambda: (4,)),
    (walrus, lambda: ([1, 2],)),
    (uses_a_context_variable, lambda: (3,)),
    (Account("zoe").statement, tuple),
    (operator.itemgetter(1), lambda: ([1, 2],)),
]
