"""Functions of the workloads that are of more than one kind."""

from __future__ import annotations

import hashlib
import time

from plain import sum_squares


def work(kind_and_amount: tuple[str, float]) -> int:
    """What it does depends on what it is given: a function that changes its nature in the middle of a row."""
    kind, amount = kind_and_amount
    if kind == "nap":
        time.sleep(amount)
        return 0
    if kind == "hash":
        return len(hashlib.pbkdf2_hmac("sha256", b"password", b"salt", int(amount)))
    return sum_squares(int(amount))
