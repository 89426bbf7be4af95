"""How much memory an export will need at its most, before it begins, and how much there is.

The factors are estimates from single runs: fp32 from a Llama of 1 B parameters in ONNX (1.24 of its weights) and of
219 M in Core ML, quantized from a BERT of 110 M; `benchmarks/growth.py` measures. In fp32 an export needs the weights
once: the model's are mapped from their files, written one by one, and given back before what was written is verified.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import DamagedError, RequestError

# What palmtop may use, in place of what the system says is free: bytes, or `8G`, `500M`.
VARIABLE = "PALMTOP_MEMORY"

# Bytes of libraries and programs, whatever the model.
_LIBRARIES = {"onnx": 800e6, "coreml": 800e6, "executorch": 900e6}
_LEAST = 600e6
# Parts of the fp32 weights that are in memory at once, by precision. Quantizing works on several copies of them: BERT
# base with `auto`, 0.44 GB, took 3.6 GB (docs/benchmarks.md).
_FACTORS = {"fp32": 1.1, "fp16": 1.6}
_QUANTIZED = 6.5
# ONNX models of fewer bytes are one file, which ONNX Runtime reads as one message.
_SINGLE_FILE = 1e9
_IN_MESSAGES = 2.0
# The process beside the export's own (`aside.py`): objects that it or the other changes, and the reference in fp64.
_BESIDE, _BESIDE_COPIES = 300e6, 2.0
# A target that is not known here.
_UNKNOWN = 3.0
# The largest weight is in memory two more times while it is read, changed and written.
_LARGEST = 2.0
# An export that needs less than this begins whatever is free: figures that small are the libraries' own.
_NEVER_REFUSED = 2e9

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "BOOL": 1, "U8": 1, "I8": 1}


@dataclass(frozen=True)
class Weights:
    """What a checkpoint's weights take in fp32: all of them, and the largest, in bytes."""

    total: int
    largest: int


def weights_of(files: Iterable[Path]) -> Weights:
    """Read from the headers of safetensors files; floats count as fp32. Raises DamagedError when one has none."""
    sizes = [0]
    for path in files:
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > path.stat().st_size:
                    raise ValueError("its header is longer than the file")
                header = json.loads(file.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    count = 1
                    for axis in entry["shape"]:
                        count *= int(axis)
                    sizes.append(count * _WIDTHS.get(entry["dtype"], 4))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(
                f"The weights cannot be loaded: {path.name} is not a safetensors file ({error})."
            ) from error
    return Weights(sum(sizes), max(sizes))


def predicted(weights: Weights, target: str, precision: str, quantized: bool = False) -> int:
    """The most bytes that the export of one target will hold.

    Args:
        precision: `fp32` or `fp16`.
        quantized: whether a plan is made or followed.
    """
    if quantized:
        factor = _QUANTIZED
    elif target not in _LIBRARIES:
        factor = _UNKNOWN
    elif target == "onnx" and weights.total * (0.5 if precision == "fp16" else 1) <= _SINGLE_FILE:
        factor = _IN_MESSAGES
    else:
        factor = _FACTORS[precision]
    return int(_LIBRARIES.get(target, _LEAST) + factor * weights.total + _LARGEST * weights.largest)


def beside(weights: int) -> int:
    """The most bytes that a process beside the export's own adds, for so many bytes of weights in fp32.

    Nothing is refused for want of them: without them everything happens in one process.
    """
    return int(_BESIDE + _BESIDE_COPIES * weights)


def check_memory(weights: Weights, targets: Sequence[str], precision: str, quantized: bool = False) -> int:
    """Refuse an export that will not fit, before anything is loaded; gives the prediction in bytes.

    Targets are counted one after the other, but what one of them leaves behind is not always given back. Another
    process is started only where there is room for it too (`beside`).

    Raises:
        RequestError: says what is needed, what there is, and what would fit.
    """
    each = {target: predicted(weights, target, precision, quantized) for target in targets}
    needed = max(each.values()) + int(sum(_LIBRARIES.get(target, _LEAST) - _LEAST for target in targets))
    free = available()
    if free is None or needed <= max(free, 0 if os.environ.get(VARIABLE) else _NEVER_REFUSED):
        return needed
    remedies = []
    fitting = [target for target, size in each.items() if size <= free]
    if len(targets) > 1 and fitting:
        remedies.append(f"export one target at a time (--to {fitting[0]} needs {_gb(each[fitting[0]])})")
    if quantized:
        plain = max(predicted(weights, target, "fp16") for target in targets)
        if plain <= free:
            remedies.append(f"export with --quantize fp16, which needs {_gb(plain)}")
    remedies.append("end other programs, or export on a machine with more memory")
    remedies.append(f"or set {VARIABLE} (such as {VARIABLE}={_gb(needed).replace(' GB', 'G')}) if you know better")
    raise RequestError(
        f"This export will need about {_gb(needed)} of memory at its most ({_gb(weights.total)} of weights in fp32), "
        f"and {_gb(free)} are free. Nothing was loaded.\nRemedy: {'; '.join(remedies)}."
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


# --- what there is --------------------------------------------------------------------------------------------------


def available() -> int | None:
    """Bytes that this process can still take: the least of what the machine, its control groups and its own limits
    leave; None where the system does not say."""
    said = os.environ.get(VARIABLE)
    if said:
        return _said(said)
    known = [size for size in (_machine(), _limit(), *_groups()) if size is not None]
    return min(known, default=None)


def _said(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise RequestError(f"{VARIABLE}={text} is not a size. Give bytes, or a number with K, M, G or T.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _machine(path: Path = Path("/proc/meminfo")) -> int | None:
    """Free memory, with what the system would give back when asked (file cache)."""
    try:
        fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024 + int(fields.get("SwapFree", "0").split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _limit() -> int | None:
    """What `ulimit -v` leaves of the address space."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return soft
    return max(soft - pages * resource.getpagesize(), 0)


def _groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What the control groups of this process leave, from its own up to the root (versions 2 and 1)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        cache = "total_inactive_file" if controllers else "inactive_file"
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            left = _left(base.joinpath(*parts[:depth]), *names, cache)
            if left is not None:
                found.append(left)
    return found


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most = int((group / limit).read_text())  # `max` is no number, and no limit
        used = int((group / usage).read_text())
        stat = dict(line.split(" ", 1) for line in (group / "memory.stat").read_text().splitlines())
        return max(most - used + int(stat.get(cache, 0)), 0)
    except (OSError, ValueError):
        return None
