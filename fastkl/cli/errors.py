"""What the commands raise about their input."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Something in the arguments or files is wrong; the message says what, in one line."""
