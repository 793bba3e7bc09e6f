"""Unpickling of arrays and plain values, and of nothing else.

A pickle can name any importable object and call it. The CIFAR archives need only what rebuilds a NumPy array, so those
few names are let through and every other one is refused before it is imported.
"""

from __future__ import annotations

import pickle
from typing import Any, BinaryIO

import numpy as np

from harness.errors import HarnessError

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2


def load_arrays(file: BinaryIO, name: str) -> Any:
    """What a pickle of dicts, lists, numbers, strings, bytes and NumPy arrays holds; Python 2 strings become bytes.

    Raises:
        HarnessError: the pickle names anything else (it could run code) or is damaged; the text names `name`.
    """
    try:
        return _ArrayUnpickler(file, name).load()
    except HarnessError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything, as the pickle module's documentation says
        text = " ".join(str(error).split())
        raise HarnessError(
            f"{name}: is truncated or no pickle ({text or type(error).__name__}); fetch it again"
        ) from error


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(file, encoding="bytes")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise HarnessError(
                f"{self._name}: this pickle asks for {module}.{name}, which could run code; only NumPy arrays and plain"
                " values are read. Fetch the official file again"
            )
        return _ALLOWED[module, name]


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes at protocol 2; codecs.encode itself would reach every codec there is."""
    if encoding not in {"latin1", b"latin1"}:
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin-1")


_reconstruct: Any = np.empty(0).__reduce__()[0]  # NumPy's own, whatever its module is called in this version

_ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _reconstruct for module in _MODULES},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}
