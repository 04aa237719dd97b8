"""How kernels are compiled: one decorator, and the two machine instructions that Python has no operator for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.extending import intrinsic

__all__ = ["as_bits", "fma", "from_bits", "kernel"]


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` on first call: single-threaded, without the GIL, IEEE arithmetic in the order written.

    Division follows IEEE (``error_model="numpy"``): the check for a zero divisor that Python wants keeps loops from
    being vectorised. No fastmath flag is on. The compiled code is cached on disk beside this package or in the
    user's cache directory; where neither can be written the kernel is compiled afresh in each process.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return njit(function, **options)


@intrinsic
def fma(typing_context, x, y, z):
    """Return x*y + z with one rounding."""
    signature = types.float64(types.float64, types.float64, types.float64)
    return signature, lambda context, builder, sig, args: builder.fma(*args)


@intrinsic
def as_bits(typing_context, x):
    """Return the 64 bits of a float as an integer."""
    signature = types.int64(types.float64)
    return signature, lambda context, builder, sig, args: builder.bitcast(
        args[0], context.get_value_type(types.int64)
    )


@intrinsic
def from_bits(typing_context, bits):
    """Return the float that has these 64 bits."""
    signature = types.float64(types.int64)
    return signature, lambda context, builder, sig, args: builder.bitcast(
        args[0], context.get_value_type(types.float64)
    )
