"""Named arrays and a JSON header in one file that a crash cannot spoil.

The truth is one safetensors file: the arrays, and the header as text in its metadata. Beside it stands the same header
with a table of the arrays as `<name>.json`, written for people and never read back. A save that fails, for a full disk,
a kill or a bad header, leaves the file of before as it was. Nothing here is pickled, so opening a file runs no code.

Format, version 1. The metadata entry "xbp" is the JSON object {"version": 1, "names": [...], "header": {...}}; `names`
keeps the order of the arrays, which the file itself sorts by item size so that each stays aligned. What JSON cannot
say is written as `xbp.exact_json` does, so floats come back bit for bit.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import CheckpointError
from .exact_json import JSON, decoded, encoded, pretty

__all__ = [
    "VERSION", "check_writable", "packed", "read", "read_header", "sidecar", "unpacked", "write", "write_bytes",
]  # fmt: skip

VERSION = 1

_KEY = "xbp"
_HEADER_LIMIT = 100_000_000  # bytes; readers of safetensors refuse more
_DTYPES = {
    "bool": "BOOL", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "uint8": "U8", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip


def sidecar(path: str | os.PathLike[str]) -> Path:
    """Where the readable copy of the header stands: the whole name and ".json", so no `model.json` is overwritten."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `CheckpointError` where `write` is bound to fail: worth a call before hours of training, not after."""
    _target(Path(path))
    _target(sidecar(path))


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], header: Mapping[str, JSON]) -> None:
    """Save `arrays` and `header` at `path`, whole or not at all.

    Both files are written and brought to the disk under other names before the first one is moved into place. Besides
    the arrays themselves, memory holds at most a copy of one, where its layout or byte order is not that of the file.
    The folder has to exist: a misspelt one shall be noticed, not created.
    """
    path = Path(path)
    tensors, plain, index, order = _prepared(f"save {str(path)!r}", arrays, header)
    table = {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in tensors.items()}
    people = pretty({"version": VERSION, "header": plain, "tensors": table}) + "\n"

    with _replacing(sidecar(path), path) as (readable, truth):
        readable.write(people.encode("utf-8", "backslashreplace"))
        truth.write(index)
        for name in order:
            truth.write(_raw(tensors[name]))


def packed(arrays: Mapping[str, np.ndarray], header: Mapping[str, JSON]) -> bytes:
    """What `write` would put into the file, for programs that keep objects in files of their own, as pickle does."""
    tensors, _, index, order = _prepared("pack the model", arrays, header)
    return b"".join([index, *(_raw(tensors[name]) for name in order)])


def unpacked(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the header in what `packed` made."""
    from safetensors.numpy import load  # as in `_opened`

    arrays = load(data)
    envelope = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"][_KEY])
    return {name: arrays[name] for name in envelope["names"]}, decoded(envelope["header"])


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Save a file of another format, made in memory, whole or not at all."""
    with _replacing(Path(path)) as (file,):
        file.write(data)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, in the order in which they were saved, and the header."""
    path = Path(path)
    with _opened(path) as file:
        names, header = _envelope(path, file)
        arrays = {name: file.get_tensor(name) for name in names}
        for name, a in arrays.items():
            if a.dtype.name not in _DTYPES:  # NumPy knows bfloat16 as soon as any library has registered it
                raise TypeError(f"array {name!r} has dtype {a.dtype}")
        return arrays, header


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header alone, without reading the arrays."""
    path = Path(path)
    with _opened(path) as file:
        return _envelope(path, file)[1]


# ---- writing


def _prepared(
    what: str, arrays: Mapping[str, np.ndarray], header: Mapping[str, JSON]
) -> tuple[dict[str, np.ndarray], JSON, bytes, list[str]]:
    """The arrays checked, the header in plain JSON, what stands in front of the arrays, and their order."""
    tensors = {name: _checked(what, name, array) for name, array in arrays.items()}
    try:
        plain = encoded(header, "header")
        text = json.dumps({"version": VERSION, "names": list(tensors), "header": plain}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot {what}: {error}. Nothing was written.") from error
    return tensors, plain, *_index(what, tensors, text)


def _raw(array: np.ndarray) -> Any:
    """The bytes of an array in the order of the file."""
    a = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return a.reshape(-1).view(np.uint8).data


def _checked(what: str, name: object, array: object) -> np.ndarray:
    """The array, if the format can hold it under this name."""
    where = f"Cannot {what}: array {name!r}"
    if not isinstance(name, str) or name == "__metadata__" or not _is_unicode(name):
        raise CheckpointError(f"{where} has a name that the format cannot hold. Use a plain string.")
    if not isinstance(array, np.ndarray | np.generic):
        raise CheckpointError(f"{where} is a {type(array).__name__}, not a NumPy array. Bring it to the host first.")
    if array.dtype.name not in _DTYPES:
        raise CheckpointError(
            f"{where} has dtype {array.dtype}, which the format cannot hold. It takes {', '.join(_DTYPES)}."
        )
    return np.asarray(array)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as in a file name of unknown encoding
        return False
    return True


def _index(what: str, tensors: Mapping[str, np.ndarray], text: str) -> tuple[bytes, list[str]]:
    """What stands in front of the arrays: its own length, and where each array lies; and their order in the file.

    The library's writer is not used: it reports a full disk without its error number, makes the file private to the
    owner, leaves a temporary file of its own behind, and reads past strides.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    index: dict[str, Any] = {"__metadata__": {_KEY: text}}
    end = 0
    for name in order:
        a = tensors[name]
        start, end = end, end + a.nbytes
        index[name] = {"dtype": _DTYPES[a.dtype.name], "shape": list(a.shape), "data_offsets": [start, end]}
    data = json.dumps(index, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    if len(data) > _HEADER_LIMIT:
        raise CheckpointError(
            f"Cannot {what}: names and header take {len(data):,} bytes, and the format allows "
            f"{_HEADER_LIMIT:,}. Put large lists of numbers into arrays. Nothing was written."
        )
    return struct.pack("<Q", len(data)) + data, order


@contextlib.contextmanager
def _replacing(*paths: Path) -> Iterator[list[BinaryIO]]:
    """Files that take the places of `paths`, in this order, when the block ends well, and vanish when it does not."""
    targets = [_target(path) for path in paths]
    temporaries = [t.with_name(f".{t.name[:40]}.{os.urandom(6).hex()}.tmp") for t in targets]
    replaced = False
    try:
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(_created(new, like=old)) for new, old in zip(temporaries, targets, strict=True)
            ]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for new, old in zip(temporaries, targets, strict=True):
            os.replace(new, old)
        replaced = True
        _sync_folder(targets[-1].parent)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        kept = "" if replaced or not targets[-1].exists() else " What was saved there before is unchanged."
        raise CheckpointError(f"Cannot write {str(paths[-1])!r}: {error.strerror or error}.{kept}") from error
    finally:  # after Ctrl-C too
        for new in temporaries:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)


def _created(new: Path, like: Path) -> BinaryIO:
    """A new file with the permissions of the one that it will replace, or else those that any new file gets."""
    try:
        mode = stat.S_IMODE(like.stat().st_mode) & 0o777
    except FileNotFoundError:
        mode = None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    fd = os.open(new, flags, 0o666 if mode is None else 0o600)
    if mode is not None:
        with contextlib.suppress(OSError):  # a file system without permissions
            os.chmod(new, mode)
    return os.fdopen(fd, "wb")


def _target(path: Path) -> Path:
    """The file behind links, if a new one may take its place. A link stays a link to what it pointed to."""
    target = Path(os.path.realpath(path))
    try:
        why = _why_not(target)
    except OSError as error:
        why = f"{error.strerror or error}"
    if why:
        raise CheckpointError(f"Cannot write {str(path)!r}: {why}.")
    return target


def _why_not(target: Path) -> str:
    folder = target.parent
    if not folder.is_dir():
        return f"folder {str(folder)!r} does not exist. Create it first, or correct the path"
    if target.is_symlink():
        return "it is a link that points to itself. Remove it, or correct the path"
    if target.is_dir():
        return "it is a folder. Add a file name, such as 'model.safetensors'"
    if target.exists() and not target.is_file():
        return "it is a device or a pipe. Name an ordinary file"
    if target.exists() and not os.access(target, os.W_OK):
        return "the file is read-only. Make it writable, or choose another name"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"folder {str(folder)!r} is read-only. Choose another"
    return ""


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk too, where the system lets a folder be synchronised."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
            raise
    finally:
        os.close(fd)


# ---- reading


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open  # here, because most programs that import xbp read no file

    try:
        if path.exists() and not path.is_file():
            kind = "a folder. Name the file inside it" if path.is_dir() else "a device or a pipe, not a file"
            raise CheckpointError(f"Cannot read {str(path)!r}: it is {kind}.")
        path.open("rb").close()  # for the true cause: the library calls every failure a missing file
        with safe_open(path, framework="np") as file:
            yield file
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        near = sorted(p.name for p in path.parent.glob("*.safetensors"))[:10]
        here = f" That folder has: {', '.join(near)}." if near else ""
        raise CheckpointError(f"Cannot read {str(path)!r}: there is no such file.{here}") from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {str(path)!r}: {error.strerror or error}.") from error
    except (SafetensorError, TypeError, ValueError, AttributeError) as error:  # the last three: dtypes NumPy lacks
        raise CheckpointError(f"Cannot read {str(path)!r}: {_why_broken(path, error)}") from error


def _why_broken(path: Path, error: Exception) -> str:
    """What is wrong with the file, in words; the library's own where nothing better is known."""
    from safetensors import SafetensorError  # as above

    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(9)
        length = int.from_bytes(first[:8], "little")
        if size < 8:
            return f"it has {size} bytes and is not a safetensors file. Was its copy or download interrupted?"
        if length > _HEADER_LIMIT or first[8:] not in (b"{", b""):
            return "it is not a safetensors file. Models of xbp are saved with Network.save or Trainer.save."
        if size < 8 + length:
            return _cut_off(8 + length, size)
        file.seek(8)
        text = file.read(length)
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, IndexError):
        tensors = [spec for name, spec in json.loads(text).items() if name != "__metadata__"]
        whole = 8 + length + max((spec["data_offsets"][1] for spec in tensors), default=0)
        if size < whole:
            return _cut_off(whole, size)
        if size > whole:
            return f"{size - whole:,} bytes follow behind its end. Something was appended to it; save it again."
    detail = error if isinstance(error, SafetensorError) else f"{type(error).__name__}: {error}"
    return f"it is damaged, or holds what NumPy cannot ({detail}). Take an undamaged copy."


def _cut_off(whole: int, size: int) -> str:
    return f"it is cut off: {whole:,} bytes are announced, {size:,} are there. Was its copy or download interrupted?"


def _envelope(path: Path, file: Any) -> tuple[list[str], dict[str, Any]]:
    text = (file.metadata() or {}).get(_KEY)
    if text is None:
        raise CheckpointError(
            f"Cannot read {str(path)!r}: it is a safetensors file, but not one of xbp (no {_KEY!r} in its metadata). "
            "Arrays of other programs go in with safetensors.numpy.load_file and Network.load_params."
        )
    try:
        envelope = json.loads(text)
        version = envelope["version"]
        if isinstance(version, int) and version > VERSION:
            raise CheckpointError(
                f"Cannot read {str(path)!r}: it has format version {version}, written by a newer xbp; this one reads "
                f"up to {VERSION}. Update xbp."
            )
        names, header = envelope["names"], decoded(envelope["header"])
        if sorted(names) != sorted(file.keys()) or not isinstance(header, dict):
            raise ValueError("the names in it are not those of the arrays")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise CheckpointError(
            f"Cannot read {str(path)!r}: its header is damaged ({type(error).__name__}: {error}). "
            "Take an undamaged copy."
        ) from error
    return names, header
