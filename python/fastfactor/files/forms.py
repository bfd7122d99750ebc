"""The forms that a stored file may have, told apart by what is in them."""

from __future__ import annotations

from . import compact, legacy_network
from .container import Header, read_plain_header


def read_header(buffer: memoryview) -> Header:
    """Return the header of a whole file of any form, as an ordinary file would have it.

    Raises
    ------
    CorruptDataError
        Where it is none, or has been changed, or says what cannot be.
    ValueError
        Where a newer version wrote it.
    """
    header = read_plain_header(buffer)
    data = buffer[header.size :]
    if compact.is_compact(header, data):
        return compact.expanded(header, buffer)
    if legacy_network.is_network(header, data):
        return legacy_network.expanded(header, buffer)
    return header
