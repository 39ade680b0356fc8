"""What happens around a fork of this process: imported by whatever has something that a fork must not share.

Without executors there may still be arrays in shared memory (`rightlane.empty`), which would be one for both.
"""

from __future__ import annotations

import posix

from rightlane import _native

posix.register_at_fork(
    before=_native.before_fork,
    after_in_parent=_native.after_fork_in_parent,
    after_in_child=_native.after_fork_in_child,
)
