"""Element types by their three names: Hugging Face's, safetensors' and numpy's."""

from __future__ import annotations

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["BY_CODE", "BY_NAME", "CODES", "STORED", "Array", "cast", "code_of"]

#: An array of any element type.
Array: TypeAlias = NDArray[Any]

#: Types that weights may have, by the name that config.json and the pipeline file use.
BY_NAME: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

#: Types that the rank files' tensors may have: those, and FP8 where the source has it.
STORED: dict[str, np.dtype[Any]] = {**BY_NAME, "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn)}

#: Every type of the safetensors format that numpy can hold, by the format's code.
BY_CODE: dict[str, np.dtype[Any]] = {
    "F32": BY_NAME["float32"],
    "F16": BY_NAME["float16"],
    "BF16": BY_NAME["bfloat16"],
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

#: The safetensors code of each weight type, by name.
CODES = {name: code_of for name, dtype in BY_NAME.items() for code_of, other in BY_CODE.items() if other == dtype}


def code_of(dtype: np.dtype[Any]) -> str:
    """Return the safetensors code of a numpy type. Raises KeyError when the format has none."""
    for code, known in BY_CODE.items():
        if known == dtype:
            return code
    raise KeyError(dtype)


def cast(block: Array, dtype: np.dtype[Any]) -> Array:
    """Return ``block`` in ``dtype``, rounded to nearest even; the block itself when it has that type already."""
    with np.errstate(over="ignore"):
        return block.astype(dtype, copy=False)
