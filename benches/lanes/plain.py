"""Functions of the workloads in pure Python. Modules of their own, because that is where most users'
functions live: workers import them by name, and only what they need with them."""

from __future__ import annotations


def sum_squares(steps: int) -> int:
    total = 0
    for step in range(steps):
        total += step * step
    return total


def fibonacci(n: int) -> int:
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def count_words(text: str) -> int:
    counts: dict[str, int] = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return max(counts.values())


def longest_collatz(limit: int) -> int:
    """Uneven: an item takes as long as its limit is high."""
    most = 0
    for start in range(1, limit):
        length, value = 1, start
        while value != 1:
            value = value // 2 if value % 2 == 0 else 3 * value + 1
            length += 1
        most = max(most, length)
    return most


class Point:
    def __init__(self, x: float, y: float) -> None:
        self.x = x
        self.y = y

    def moved(self, dx: float, dy: float) -> Point:
        return Point(self.x + dx, self.y + dy)


def walk(steps: int) -> float:
    """Objects and method calls."""
    point = Point(0.0, 0.0)
    for step in range(steps):
        point = point.moved(step % 3 - 1, step % 5 - 2)
    return point.x + point.y


def tiny(number: int) -> bool:
    return number % 7 == 0
