"""What was made on devices from arrays of the host, kept for the next call."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastkl._gpu_spectrum import DeviceSpectrum

__all__ = ["COPIES", "with_memory"]

Array = NDArray[np.float64]

MOST_COPIES = 4  # of an array on one device, for as many streams
RESIDENT_SHARE = 2  # a spectrum that needs more than the free memory divided by this is copied piece by piece


@dataclass
class Kept:
    """What was made from some arrays on one device: for each stream the result and an event after its making."""

    refs: list[Any]
    made: OrderedDict[Any, tuple[Any, Any]] = field(default_factory=OrderedDict)  # the latest used last

    def of(self, arrays: list[Any]) -> bool:
        """Return whether these are the arrays: a number of id() may have been another's."""
        return all(ref() is array for ref, array in zip(self.refs, arrays, strict=True))


class Copies:
    """What was made on devices from read-only arrays of the host, kept as long as those arrays are.

    Each stream has its own: CuPy's pool gives memory back to the stream it came from, where it may be written to while
    another stream still reads it. The MOST_COPIES streams that used an array last have one.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Kept] = {}
        self._lock = threading.RLock()

    def drop(self) -> bool:
        """Forget everything; return whether there was anything."""
        with self._lock:
            found = bool(self._kept)
            self._kept.clear()
        return found

    def _find(self, key: tuple[Any, ...], arrays: list[Any], stream: Any) -> tuple[Any, Any] | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or not kept.of(arrays) or stream not in kept.made:
                return None
            kept.made.move_to_end(stream)
            return kept.made[stream]

    def _keep(self, key: tuple[Any, ...], arrays: list[Any], stream: Any, found: tuple[Any, Any]) -> None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or not kept.of(arrays):
                # the dictionary's own pop needs no lock, which a collection in any thread might have to wait for
                refs = [weakref.ref(array, lambda _: self._kept.pop(key, None)) for array in arrays]
                kept = self._kept[key] = Kept(refs)
            kept.made[stream] = found
            while len(kept.made) > MOST_COPIES:
                kept.made.popitem(last=False)

    def made(
        self,
        device: Any,
        given: list[NDArray[Any] | None],
        make: Callable[[], Any],
        worth: Callable[[Any], bool] = lambda _: True,
    ) -> Any:
        """Return make(), or what it returned for these arrays on this device before; kept if it is worth it."""
        key = (id(device), id(make.__code__), *(None if array is None else id(array) for array in given))
        arrays = [array for array in given if array is not None]
        stream = device.stream()
        found = self._find(key, arrays, stream)
        if found is not None:
            device.wait(found[1])
            return found[0]
        result = make()
        if worth(result) and not any(array.flags.writeable for array in arrays):
            self._keep(key, arrays, stream, (result, device.mark()))
        return result

    def uploaded(self, device: Any, array: NDArray[Any]) -> Any:
        """Return an array's copy on the device."""
        return self.made(device, [array], lambda: device.upload(array))

    def spectrum(
        self, device: Any, eigenvalues: Array, weights: Array | None, mean: Array | None = None
    ) -> DeviceSpectrum:
        """Return a spectrum on the device; one for which there is no room stays on the host and is not kept."""

        def resident() -> DeviceSpectrum:
            return DeviceSpectrum(
                device, device.upload(eigenvalues), None if weights is None else device.upload(weights)
            )

        def make() -> DeviceSpectrum:
            return self._if_room(device, [eigenvalues, weights], resident) or DeviceSpectrum(
                device, eigenvalues, weights
            )

        data: DeviceSpectrum = self.made(device, [eigenvalues, weights], make, lambda made: made.resident)
        if mean is None:
            return data
        if data.resident:
            there = self.made(
                device,
                [mean],
                lambda: self._if_room(device, [mean], lambda: device.upload(mean)),
                lambda made: made is not None,
            )
            if there is not None:
                return data.with_mean(there)
        return DeviceSpectrum(device, eigenvalues, weights).with_mean(mean)

    def _if_room(self, device: Any, arrays: list[Array | None], make: Callable[[], Any]) -> Any | None:
        """Return make(), or None where the free memory is too small for copies of these arrays."""
        needed = sum(array.nbytes for array in arrays if array is not None)
        if needed > device.free_bytes() // RESIDENT_SHARE:
            return None
        try:
            return with_memory(device, make)
        except device.OutOfMemory:
            return None


COPIES = Copies()


def with_memory(device: Any, call: Callable[[], Any]) -> Any:
    """Return call(); where memory runs out, try once more without what is kept on devices."""
    try:
        return call()
    except device.OutOfMemory:
        if not COPIES.drop():
            raise
    return call()  # here, where the error no longer holds what the first try had
