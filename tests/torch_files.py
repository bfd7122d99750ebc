"""Files of torch.save written without PyTorch, opcode by opcode."""

from __future__ import annotations

import pickle
import struct
import zipfile

STORAGES = {
    "<f8": "DoubleStorage",
    "<f4": "FloatStorage",
    "<f2": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "<i8": "LongStorage",
    "<i4": "IntStorage",
    "|u1": "ByteStorage",
    "|b1": "BoolStorage",
    "<c8": "ComplexFloatStorage",
}
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = b"\x80\x02"


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def pair(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def called(module, name, arguments):
    """A global that is called with arguments."""
    return f"c{module}\n{name}\n".encode() + arguments + b"R"


def storage(kind, key, n, old=False):
    """What a persistent id of a storage is."""
    view = b"N" if old else b""
    name = f"ctorch\n{kind}\n".encode()
    return b"(" + text("storage") + name + text(key) + text("cpu") + integer(n) + view + b"tQ"


def ordered(pairs=b""):
    return called("collections", "OrderedDict", b")") + b"(" + pairs + b"u"


def tensor(kind, key, n, *, offset=0, shape, strides, old=False, name="_rebuild_tensor_v2"):
    place = storage(kind, key, n, old) + integer(offset) + pair(shape) + pair(strides)
    return called("torch._utils", name, b"(" + place + b"\x89" + ordered() + b"t")


def kind_of(array):
    name = array.dtype.name
    return STORAGES["bfloat16" if name == "bfloat16" else array.dtype.str]


def of_array(array, key, old=False):
    strides = [step // array.itemsize for step in array.strides]
    return tensor(kind_of(array), key, array.size, shape=array.shape, strides=strides, old=old)


def mapping(items):
    return ordered(b"".join(text(name) + value for name, value in items.items()))


def write_archive(path, body, storages, folder="archive", more=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", PROTOCOL + body + b".")
        for key, data in storages.items():
            archive.writestr(f"{folder}/data/{key}", data)
        for name, data in (more or {}).items():
            archive.writestr(f"{folder}/{name}", data)


def save(path, arrays):
    """As PyTorch since 1.6: an archive."""
    keys = {name: str(number) for number, name in enumerate(arrays)}
    body = mapping({name: of_array(array, keys[name]) for name, array in arrays.items()})
    storages = {keys[name]: array.tobytes() for name, array in arrays.items()}
    write_archive(path, body, storages, more={"byteorder": b"little", "version": b"3\n"})


def save_old(path, arrays):
    """As PyTorch before: pickles, then the storages."""
    keys = {name: str(number) for number, name in enumerate(arrays)}
    body = mapping({name: of_array(array, keys[name], old=True) for name, array in arrays.items()})
    with open(path, "wb") as file:
        pickle.dump(MAGIC, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        pickle.dump({"little_endian": True, "protocol_version": 1001}, file, protocol=2)
        file.write(PROTOCOL + body + b".")
        pickle.dump(list(keys.values()), file, protocol=2)
        for array in arrays.values():
            file.write(struct.pack("<q", array.size) + array.tobytes())
