"""How kernels are compiled and kept on disk, and the machine instructions that Python has no operator for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import njit, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.runtime import rtsys
from numba.extending import intrinsic

__all__ = ["add_four", "as_bits", "entry_point", "fma", "from_bits", "kernel"]

# The short cut of KernelCache relies on Numba's insides; versions that it was not tried on go the long way.
SHORT_CUT_TRIED = (0, 61) <= tuple(numba.version_info[:2]) <= (0, 68)


def sources_stamp() -> str:
    """Return a digest of all kernel sources."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]


SOURCES = sources_stamp()


class KernelCache(FunctionCache):
    """Numba's cache on disk, with two changes.

    Compiled code belongs to one state of all kernel sources, which its files are named after. Numba looks only at the
    file of the function itself, not at those of the functions that it calls, and lets processes that run an older
    source write to the same files, so that old code can end up under a new stamp (seen).

    Code found on disk is used without loading what only a compilation needs, SciPy's linear algebra among it, which
    costs Numba 0.2 s in every process: the runtime for arrays is enough. A miss compiles, and that loads the rest.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        base = f"{self._impl.filename_base}-{SOURCES}"
        self._cache_file = IndexDataCacheFile(self.cache_path, base, SOURCES)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return compiled code for a signature, or None where there is none or the files are damaged."""
        try:
            if not SHORT_CUT_TRIED:
                return super().load_overload(sig, target_context)
            rtsys.initialize(target_context)
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except Exception:  # unpickling a damaged file can raise nearly anything; compiling again mends it
            self.flush()
            return None


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` on first call: single-threaded, without the GIL, IEEE arithmetic in the order written.

    Division follows IEEE (``error_model="numpy"``): the check for a zero divisor that Python wants keeps loops from
    being vectorised. No fastmath flag is on.

    What is compiled here is not kept on disk, only the entry points that contain it. Numba's cache numbers the variants
    of a function without a lock: two processes that compile the variants of one closure at the same time can leave each
    other's code under the wrong number (seen: wrong results). An entry point has one signature, so one number.
    """
    return njit(function, nogil=True, error_model="numpy")


def entry_point(function: Callable[..., Any]) -> Any:
    """Compile `function` as `kernel` does and keep the code on disk: for kernels that Python calls.

    The cache is beside this package or in the user's cache directory; where neither can be written the kernel is
    compiled afresh in each process.
    """
    dispatcher = kernel(function)
    try:
        dispatcher._cache = KernelCache(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
    return dispatcher


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


@intrinsic
def add_four(typing_context, array, at, factor, a, b, c, d):
    """Add factor * (a, b, c, d) to the elements from `at` on of a contiguous array, as one vector, unchecked.

    Numba does not let LLVM form vectors out of neighbouring statements.
    """

    def generate(context, builder, sig, args):
        vector = ir.VectorType(ir.DoubleType(), 4)
        lanes = [ir.Constant(ir.IntType(32), lane) for lane in range(4)]
        factors = terms = ir.Constant(vector, ir.Undefined)
        for lane, term in zip(lanes, args[3:], strict=True):
            factors = builder.insert_element(factors, args[2], lane)
            terms = builder.insert_element(terms, term, lane)
        values = context.make_array(sig.args[0])(context, builder, args[0])
        place = builder.bitcast(builder.gep(values.data, [args[1]]), vector.as_pointer())
        total = builder.fadd(builder.load(place, align=8), builder.fmul(factors, terms))
        builder.store(total, place, align=8)
        return context.get_dummy_value()

    return types.none(array, types.intp, *[types.float64] * 5), generate
