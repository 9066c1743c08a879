"""Folders of images, and of what is none."""

import io
import os
import zlib

import fuzzing
from hypothesis import example, given
from hypothesis import strategies as st
import numpy as np
from PIL import Image

from unlearn_jax import data


def picture(mode='L', size=(4, 4), kind='PNG'):
  buffer = io.BytesIO()
  Image.new(mode, size).save(buffer, kind)
  return buffer.getvalue()


def bomb():
  """A PNG of hundreds of millions of pixels, in a few bytes."""
  content = bytearray(picture())
  content[16:24] = (20000).to_bytes(4, 'big') * 2
  content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, 'big')
  return bytes(content)


KINDS = {
  **{mode: picture(mode) for mode in ('L', 'RGB', 'RGBA', 'P', '1', 'I;16')},
  'large': picture(size=(5, 4)),
  'gif': picture('P', kind='GIF'),
  'jpeg': picture('RGB', kind='JPEG'),
  'tiff': picture('F', kind='TIFF'),
  'cut': picture()[:40],
  'cut_jpeg': picture('RGB', kind='JPEG')[:-20],
  'bomb': bomb(),
  'text': b'no image',
  'empty': b'',
  'eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n',
}
OTHERS = ('folder', 'loop', 'up', 'pipe', 'device')
ODD = (
  *('a.png', 'b', '.hidden', ' ', '#c', '-d', '~', '\x1b[31m', 'é', '$x$'),
  *('new\nline', 'car\rriage', '\u2028', '<b>', '\udcff', 'x' * 250, '\ufeff'),
)
NAMES = st.one_of(
  st.sampled_from(ODD),
  st.text(st.characters(exclude_characters='/\0', codec='utf-8'), max_size=6),
).filter(lambda name: name.strip('.') and len(os.fsencode(name)) < 256)
ENTRY = st.tuples(
  st.sampled_from(['train', 'train', 'test']),
  st.one_of(st.sampled_from(['cat', 'dog', '']), NAMES),
  NAMES,
  st.one_of(st.just('L'), st.sampled_from([*KINDS, *OTHERS])),
)
WHOLE = [
  ('train', 'cat', '1.png', 'L'),
  ('train', 'dog', '1.png', 'L'),
  ('test', 'cat', '1.png', 'L'),
]


def make(root, entries):
  for split, name, file, kind in entries:
    path = root / split / name / file
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      if kind in KINDS:
        path.write_bytes(KINDS[kind])
      elif kind == 'folder':
        path.mkdir()
      elif kind == 'pipe':
        os.mkfifo(path)
      else:
        to = {'loop': path.name, 'up': '..', 'device': '/dev/zero'}
        path.symlink_to(to[kind])
    except OSError:  # Two entries that cannot both be.
      continue


@given(st.lists(ENTRY, max_size=4))
@example([('train', 'cat', 'pipe', 'pipe')])
@example([('train', 'cat', 'new\nline', 'L')])
@example([('train', 'cat', '\udcff', 'L')])
@example([('train', '\udcff', 'a.png', 'L')])
@example([('train', 'cat', 'bomb.png', 'bomb')])
@example([('train', 'cat', 'zero.png', 'device')])
@example([('train', 'loop', '', 'loop')])
@fuzzing.cases(60)
def test_any_folder(folders, entries):
  folder, found = next(folders), []
  root = folder / 'images'
  make(root, [*WHOLE, *entries])
  with fuzzing.case(root):
    why = fuzzing.refused(lambda: found.append(data.load(f'folder:{root}')))
  if why is not None:
    # The binaries escape what is in a name; see `binary._exit`.
    assert str(root) in why and '\n' not in why
    return
  (images,) = found
  assert images.train.images.dtype == np.uint8
  assert len(set(images.ids.tolist())) == images.train.size
  # What is forgotten is written down by its id, and read again.
  path = folder / 'forget.txt'
  path.write_text('\n'.join(images.ids.tolist()) + '\n', encoding='utf-8')
  rows = data.read_ids(path, images)
  assert rows.tolist() == list(range(images.train.size))
