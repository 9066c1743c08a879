"""The arrays of an npz file: read into memory, or left where they lie."""

import contextlib
import math
import os
import struct
from typing import IO, Any
import zipfile

import numpy as np

# What a process reads at a time of an array that it only verifies.
_PIECE = 2**20


def read(
  archive: zipfile.ZipFile, name: str, map_beyond: float = math.inf
) -> np.ndarray:
  """An array, refused before memory is taken for what is not there.

  Only what is larger than asked for is mapped: small arrays gain nothing, and
  a process that reads a map dies (SIGBUS) if the file is cut short meanwhile.

  Args:
    archive: of a file on disk.
    name: of the array, without `.npy`.
    map_beyond: an array of more bytes than this stays in the file, as an
      `np.memmap` that is not writable, if it lies there uncompressed and by
      the row, on a file system that can map. It outlives the archive.

  Returns:
    The array.

  Raises:
    KeyError: there is no such array.
    ValueError: the size that its header declares is not that of the rest of
      the member, or does not fit this machine's memory; or Python objects are
      in it. Broken files raise a dozen other types.
  """
  full = f'{name}.npy'
  file: Any = archive.fp
  member = archive.getinfo(full if full in archive.namelist() else name)
  with archive.open(member) as stream:
    version = np.lib.format.read_magic(stream)
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:  # 3.0 is for field names, which no image has.
      raise ValueError(f'npy version {version}, allowed are 1.0 and 2.0')
    shape, by_column, dtype = read_header(stream)
    header = stream.tell()
    held = member.file_size - header
    if any(side < 0 for side in shape):
      raise ValueError(f'shape {shape}')
    declared = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and declared != held:
      raise ValueError(f'{declared} bytes by its header, {held} in the file')
    plain = (
      member.compress_type == zipfile.ZIP_STORED
      and member.compress_size == member.file_size
      and not by_column
      and not dtype.hasobject
    )
    if plain and declared > map_beyond:
      # zipfile compares the checksum where the member ends.
      while stream.read(_PIECE):
        pass
      start = _start(file, member) + header
      with contextlib.suppress(OSError):  # Not all file systems can map.
        # The open file: another may have its name by now.
        return np.memmap(file, dtype, 'r', start, shape)
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if declared > memory:
    raise ValueError(f'{declared} bytes, this machine has {memory}')
  with archive.open(member) as stream:
    return np.lib.format.read_array(stream, allow_pickle=False)


def _start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
  """Where in the file the bytes of an uncompressed member begin."""
  # The local header, whose extra field may be longer than the directory's.
  file.seek(member.header_offset + 26)
  name, extra = struct.unpack('<HH', file.read(4))
  return member.header_offset + 30 + name + extra
