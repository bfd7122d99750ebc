"""The forms that a stored file may have, told apart by their contents."""

from __future__ import annotations

from . import compact, legacy_network
from .container import Header, read_plain_header


def read_header(buffer: memoryview) -> Header:
    """Read the header of a file of any form, given as a whole, in the terms of the ordinary form.

    Raises
    ------
    CorruptDataError
        If it is not a header, was changed, or contradicts itself or the size of the file.
    ValueError
        If a newer version of fastfactor wrote it.
    """
    header = read_plain_header(buffer)
    data = buffer[header.size :]
    if compact.is_compact(header, data):
        return compact.expanded(header, buffer)
    if legacy_network.is_network(header, data):
        return legacy_network.expanded(header, buffer)
    return header
