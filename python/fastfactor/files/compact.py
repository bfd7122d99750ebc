"""The compact form of a stored file: a deflated header and one checksum for everything.

Other readers see a safetensors file with one tensor of bytes, ``fastfactor``. Those bytes are:

    3 bytes   FFC
    4 bytes   CRC-32 of everything after it, little-endian
    1 byte    version of this form
    …         JSON, deflated (RFC 1951) with the dictionary of this version
    …         the tensors, in the order of the JSON and without holes

The JSON has two members: ``metadata``, which maps names to text, and ``entries``. A plain tensor's
entry is its dtype and shape, and then the dtype of its original if that is another. The entry of
factors is that of the ordinary index, with the dtype and shape of each tensor in place of the
checksums. An entry that is the same as another is that of the ordinary index.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from ..errors import CorruptDataError
from .container import (
    CHECKSUM,
    INDEX,
    Header,
    TensorInfo,
    check_no_holes,
    compact,
    parse,
    tensor_info,
)
from .index import FORMAT_VERSION, NEWER_VERSION, is_alias

NAME, MAGIC = INDEX, b"FFC"
VERSIONS = (FORMAT_VERSION, NEWER_VERSION)  # that of the index, which is the same in both forms
START = struct.Struct("<3sIB")
SUMMED_FROM = 7  # the checksum covers the version and everything after it
# Bytes of JSON, some 20,000 entries of usual length: a few deflated bytes must not fill the memory.
MAX_INFLATED = 1 << 22

# Text that headers are likely to hold, the likeliest last. It belongs to version 1 of the form and
# must never change, or files written so far could not be read; another text needs a new version.
DICTIONARY = "".join(
    (
        '"kind":"simhash","config":{"n_hashes":16,"axis":0,"length":24},',
        '"tensors":{"signs":["U8",[16,4]],"scale":["F32",[32]],"seed":["U64",[1]]}},',
        '"kind":"mixed_block","config":{},',
        '"tensors":{"mixture":["F32",[6,4,2]],"blocks":["F32",[2,4,8]]}},',
        '"kind":"block_diagonal","config":{"n_blocks":4,"permuted":1},',
        '"tensors":{"values":["F32",[192]],"row_labels":["U8",[24]],"column_labels":["U8",[32]]}},',
        '"kind":"random_projection","config":{"block_in":8,"reduced_in":4,"block_out":4,',
        '"reduced_out":2,"shared":1},"tensors":{"C":["F32",[12,16]],"seed":["U64",[1]]}},',
        '"kind":"block_projection","config":{},',
        '"tensors":{"B":["F32",[1,8,4]],"C":["F32",[12,16]],"D":["F32",[1,4,8]]}},',
        '"kind":"low_rank","config":{},"tensors":{"B":["F32",[24,8]],"C":["F32",[8,32]]}},',
        '"kind":"dictionary","config":{"piece":16,"count_bits":0,"count":2},',
        '"tensors":{"dictionary":["F32",[8,16]],"values":["F16",[96]],"indices":["U8",[36]],',
        '"counts":["U8",[96]]}},"columns":["I8",[24]],"column_steps":["U8",[24]],',
        '"rotation":["U8",[24,15]]}},',
        '"kind":"entropy_coded","config":{"out_features":64,"in_features":64,"block_rows":64,',
        '"classes":1,"class_shift":0,"rotation_bits":0,"uneven":0},',
        '"tensors":{"words":["U16",[174]],"lengths":["U16",[1]],"step":["F32",[1]],',
        '"table_lengths":["U8",[2]],"table_logs":["U8",[22]],"centers":["I8",[2,3]]}},',
        '"kind":"prune","config":{"gap_bits":0,"n_entries":0,"block_rows":1,"block_columns":1},',
        '"tensors":{"values":["F32",[384]],"positions":["U8",[96]]}},',
        '"kind":"prune_codebook","shape":[64,64],"dtype":"float32","config":{"n_bits":4,',
        '"gap_bits":5,"n_entries":192,"block_rows":1,"block_columns":1},',
        '"tensors":{"codes":["U8",[192]],"codebook":["F32",[16,1]],"positions":["U8",[96]]}},',
        '"kind":"codebook","shape":[64,64],"dtype":"float16","config":{"n_bits":4,',
        '"vector_dim":1,"n_codebooks":1,"group_size":0},',
        '"tensors":{"codes":["U8",[64,32]],"codebook":["F16",[16,1]]}},',
        '"embeddings.layer_norm.running_mean":["BF16",[256]],"num_batches_tracked":["I64",[]],',
        '"model.layers.0.self_attn.q_proj.weight":"mlp.down_proj.linear","conv1.features.1.',
        '{"entries":{"fc1.weight":{"kind":"deep_compression","shape":[128,784],"dtype":"float32",',
        '"config":{"gap_bits":5,"n_entries":1000,"n_weights":10000},"tensors":{"codes":["U8",[1000',
        ']],"codebook":["F32",[16,1]],"gaps":["U8",[1000]]}},"fc2.bias":["F32",[100]],',
        '"fc3.bias":["F32",[10]]},"metadata":{}}',
    )
).encode()


def is_compact(header: Header, data: memoryview) -> bool:
    """Return whether a header and its data are those of a compact file, perhaps a damaged one.

    Data that begin by chance as ours do make no compact file of another library's file: unless the
    tensor has our name, the checksum must be right as well.
    """
    if header.index is not None or len(header.tensors) != 1:
        return False
    if NAME in header.tensors:
        return True
    if len(data) < START.size:
        return False
    magic, crc32, _ = START.unpack(data[: START.size])
    return bool(magic == MAGIC and zlib.crc32(data[SUMMED_FROM:]) == crc32)


def expanded(header: Header, buffer: memoryview) -> Header:
    """Return the header that a compact file would have in the ordinary form.

    Offsets of tensors count from the byte at which the first tensor begins. The checksums of
    tensors are computed here, after the file's own checksum was verified.

    Raises
    ------
    CorruptDataError
        If the file was changed or contradicts itself.
    ValueError
        If a newer version of fastfactor wrote it.
    """
    data = buffer[header.size :]
    if bytes(buffer[: header.size]) != _outer_header(len(data)) or len(data) < START.size:
        raise CorruptDataError(f"a compact file must hold one tensor of bytes, {NAME!r}")
    magic, crc32, version = START.unpack(data[: START.size])
    if magic != MAGIC:
        raise CorruptDataError(f"a compact file must begin with {MAGIC!r}, got {magic!r}")
    computed = zlib.crc32(data[SUMMED_FROM:])
    if computed != crc32:
        raise CorruptDataError(
            f"checksum mismatch in a compact file: expected {crc32:08x}, got {computed:08x}"
        )
    if version not in VERSIONS:
        raise ValueError(
            f"version of a compact file must be at most {max(VERSIONS)} for this fastfactor, "
            f"got {version}: a newer fastfactor wrote it"
        )
    text, length = _inflated(data[START.size :])
    start = header.size + START.size + length
    content = parse(text, "the header")
    if not isinstance(content, dict) or content.keys() != {"entries", "metadata"}:
        raise CorruptDataError("the header must be a JSON object with entries and metadata only")
    metadata = content["metadata"]
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CorruptDataError("metadata must map names to text")
    for name in (INDEX, CHECKSUM):
        if name in metadata:
            raise CorruptDataError(f"metadata must not hold the reserved name {name!r}")
    infos, tensors_of = _layout(content["entries"])
    check_no_holes(infos, len(buffer) - start)
    sums = {
        name: zlib.crc32(buffer[start + info.begin : start + info.end])
        for name, info in infos.items()
    }
    entries = {}
    for name, value in content["entries"].items():
        if is_alias(value):
            entries[name] = value
        elif isinstance(value, dict):
            if "crc32" in value:
                raise CorruptDataError(f"entry {name!r} must not hold checksums of its tensors")
            fields = {key: item for key, item in value.items() if key != "tensors"}
            parts = {part: sums[long] for part, long in tensors_of[name].items()}
            entries[name] = {**fields, "crc32": parts}
        else:
            converted = {"dtype": value[2]} if len(value) > 2 else {}
            entries[name] = {**converted, "crc32": sums[name]}
    return Header(start, infos, metadata, {"version": version, "entries": entries})


def compact_head(
    infos: Mapping[str, TensorInfo], metadata: Mapping[str, str], index: Mapping[str, Any]
) -> bytes:
    """Return the bytes of a compact file between its checksum and its tensors.

    Parameters
    ----------
    infos : mapping of names to TensorInfo
        In the order of the index, which is their order in the file.
    metadata, index
        As for an ordinary header.
    """
    entries: dict[str, Any] = {}
    for name, entry in index["entries"].items():
        parts = entry.get("crc32")
        if parts is None:
            entries[name] = entry
        elif isinstance(parts, dict):
            fields = {key: item for key, item in entry.items() if key != "crc32"}
            tensors = {part: _type_of(infos[f"{name}.{part}"]) for part in parts}
            entries[name] = {**fields, "tensors": tensors}
        else:
            entries[name] = [
                *_type_of(infos[name]),
                *([entry["dtype"]] if "dtype" in entry else []),
            ]
    text = compact({"entries": entries, "metadata": metadata}).encode()
    if len(text) > MAX_INFLATED:
        raise ValueError(
            f"compact must be False for a header of more than {MAX_INFLATED} bytes, got {len(text)}"
        )
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zdict=DICTIONARY)
    return bytes([index["version"]]) + deflate.compress(text) + deflate.flush()


@contextmanager
def compact_file(file: IO[bytes], head: bytes, nbytes: int) -> Iterator[ChecksumWriter]:
    """Write the start of a compact file; give the writer for its ``nbytes`` bytes of tensors.

    The checksum stands before the tensors, so it is filled in when the block ends.
    """
    outer = _outer_header(SUMMED_FROM + len(head) + nbytes)
    file.write(outer + bytes(SUMMED_FROM))
    summed = ChecksumWriter(file)
    summed.write(head)
    yield summed
    file.seek(len(outer))
    file.write(MAGIC + struct.pack("<I", summed.crc32))
    file.seek(0, 2)


class ChecksumWriter:
    """A file to write to, with the CRC-32 of what was written through this object."""

    def __init__(self, file: IO[bytes]) -> None:
        self.crc32 = 0
        self._file = file

    def write(self, data: Any) -> int:
        """Write bytes and add them to the checksum."""
        self.crc32 = zlib.crc32(data, self.crc32)
        return self._file.write(data)


def _outer_header(n: int) -> bytes:
    """Return the only safetensors header that is accepted before ``n`` bytes of compact form."""
    text = compact({NAME: {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}}).encode()
    return struct.pack("<Q", len(text)) + text


def _inflated(data: memoryview) -> tuple[bytes, int]:
    """Inflate the JSON; return it and the number of deflated bytes."""
    # A text of MAX_INFLATED bytes never deflates to more than this.
    data = data[: MAX_INFLATED + (MAX_INFLATED >> 8) + 1024]
    inflate = zlib.decompressobj(-zlib.MAX_WBITS, zdict=DICTIONARY)
    try:
        text = inflate.decompress(data, MAX_INFLATED + 1)
    except zlib.error as error:
        raise CorruptDataError(f"the header must be deflated JSON, got {error}") from error
    if not inflate.eof or len(text) > MAX_INFLATED:
        raise CorruptDataError(
            f"the header must be complete and have at most {MAX_INFLATED} bytes when inflated"
        )
    return text, len(data) - len(inflate.unused_data)


def _layout(entries: Any) -> tuple[dict[str, TensorInfo], dict[str, dict[str, str]]]:
    """Return the infos of all tensors by name, and for each entry its tensors' names by part."""
    if not isinstance(entries, dict):
        raise CorruptDataError(f"entries must be a JSON object, got {type(entries).__name__}")
    infos: dict[str, TensorInfo] = {}
    found: dict[str, dict[str, str]] = {}
    at = 0
    for name, value in entries.items():
        listed = value.get("tensors") if isinstance(value, dict) else {"": value}
        if is_alias(value):
            listed = {}
        if not isinstance(listed, dict):
            raise CorruptDataError(
                f"tensors of entry {name!r} must be a JSON object, got {type(listed).__name__}"
            )
        found[name] = {part: f"{name}.{part}" if part else name for part in listed}
        for part, long in found[name].items():
            described = listed[part]
            lengths = (2,) if part else (2, 3)  # with the dtype of a converted tensor's original
            if not isinstance(described, list) or len(described) not in lengths:
                raise CorruptDataError(
                    f"tensor {long!r} must be a list of a dtype and a shape, got {described!r:.200}"
                )
            if long in infos:
                raise CorruptDataError(f"tensor {long!r} must belong to one entry, got two")
            infos[long] = tensor_info(at, long, *described[:2])
            at = infos[long].end
    return infos, found


def _type_of(info: TensorInfo) -> list[Any]:
    return [info.code, list(info.shape)]
