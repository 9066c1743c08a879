"""Folders of images, and of what is none."""

import io
import os
import shutil

import fuzzing
from hypothesis import example, given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from unlearn_jax import data


def picture(mode='L', size=(4, 4), kind='PNG'):
  buffer = io.BytesIO()
  Image.new(mode, size).save(buffer, kind)
  return buffer.getvalue()


def bomb():
  """A PNG of hundreds of millions of pixels, in a few bytes."""
  content = bytearray(picture())
  content[16:24] = (20000).to_bytes(4, 'big') * 2
  import zlib

  content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, 'big')
  return bytes(content)


KINDS = {
  'gray': picture(),
  'colour': picture('RGB'),
  'alpha': picture('RGBA'),
  'palette': picture('P'),
  'bits': picture('1'),
  'deep': picture('I;16'),
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
OTHERS = ('folder', 'loop', 'up', 'pipe', 'device', 'dangling')
NAMES = st.one_of(
  st.sampled_from(
    [
      *('a.png', 'b', '.hidden', ' ', '#c', '-d', '~', '\x1b[31m', 'é', '$x$'),
      *(
        'new\nline',
        'car\rriage',
        '\u2028',
        '<b>',
        '\udcff',
        'x' * 250,
        '\ufeff',
      ),
    ]
  ),
  st.text(st.characters(exclude_characters='/\0', codec='utf-8'), max_size=6),
).filter(lambda name: name.strip('.') and len(os.fsencode(name)) < 256)
ENTRIES = st.lists(
  st.tuples(
    st.sampled_from(['train', 'train', 'test']),
    st.one_of(st.sampled_from(['cat', 'dog', '']), NAMES),
    NAMES,
    st.one_of(
      st.just('gray'), st.sampled_from(sorted(KINDS)), st.sampled_from(OTHERS)
    ),
  ),
  max_size=4,
)
WHOLE = [
  ('train', 'cat', '1.png', 'gray'),
  ('train', 'dog', '1.png', 'gray'),
  ('test', 'cat', '1.png', 'gray'),
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
        path.symlink_to(to.get(kind, 'nowhere'))
    except OSError:  # Two entries that cannot both be.
      continue


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('folders')


@given(ENTRIES, st.booleans())
@example([('train', 'cat', 'pipe', 'pipe')], True)
@example([('train', 'cat', 'new\nline', 'gray')], True)
@example([('train', 'cat', '\udcff', 'gray')], True)
@example([('train', '\udcff', 'a.png', 'gray')], True)
@example([('train', 'cat', 'bomb.png', 'bomb')], True)
@example([('train', 'cat', 'zero.png', 'device')], True)
@example([('train', 'loop', '', 'loop')], False)
@fuzzing.profile('folders')
def test_any_folder(folder, entries, whole):
  root = folder / 'images'
  shutil.rmtree(root, ignore_errors=True)
  root.mkdir()
  make(root, [*(WHOLE if whole else []), *entries])
  found = None

  def read():
    nonlocal found
    found = data.load(f'folder:{root}')

  with fuzzing.case('folders', root):
    why = fuzzing.refused(read)
  if why is not None:
    # The binaries escape what is in a name; see `binary._exit`.
    assert str(root) in why and '\n' not in why
    return
  assert found.train.images.dtype == np.uint8
  assert len(set(found.ids.tolist())) == found.train.size
  # What is forgotten is written down by its id, and read again.
  path = folder / 'forget.txt'
  path.write_text('\n'.join(found.ids.tolist()) + '\n', encoding='utf-8')
  rows = data.read_ids(path, found)
  assert rows.tolist() == list(range(found.train.size))


def test_one_class_is_refused_where_a_model_is_built(folder, finished):
  root = folder / 'single'
  make(root, [WHOLE[0], WHOLE[2]])
  base = fuzzing.quick(finished)[2:]
  with fuzzing.case('folders', root):
    status, text = fuzzing.check_binary(
      'unlearn', [*base, f'--dataset=folder:{root}', '--workdir=single']
    )
  assert status == 1 and 'num_classes=1, allowed: 2 or more' in text
