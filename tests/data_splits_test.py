"""Splits into forget and retain, and files of ids."""

import dataclasses
import os
import pathlib
import tempfile

import hypothesis
from hypothesis import strategies
import jax
import numpy as np
import pytest

from unlearn_jax import base, data


def make_dataset(ids=None, total=20) -> base.Dataset:
  """Labels 0, 1, 2, 3, 0, 1, ...; row numbers as ids where none are given."""
  ids = [str(row) for row in range(total)] if ids is None else list(ids)
  images = np.arange(len(ids), dtype=np.uint8).reshape(-1, 1, 1, 1)
  labels = (np.arange(len(ids)) % 4).astype(np.int32)
  train = base.Examples.of(images, labels)
  return base.Dataset(
    'made', train, train.take(np.arange(2)), ('a', 'b', 'c', 'd'),
    np.array(ids), '',
  )  # fmt: skip


NAMED = [f'train_{row:02d}' for row in range(20)]


def key(seed=0):
  return jax.random.key(seed)


@pytest.mark.parametrize(
  ('total', 'fraction', 'count'),
  [(20, 0.1, 2), (20, 0.5, 10), (7, 0.3, 2), (2, 0.4, 1), (1437, 0.1, 144)],
)
def test_fraction(total, fraction, count):
  dataset = make_dataset(total=total)
  splits = data.split_forget(key(), dataset, fraction)
  forget, retain = splits.forget.indices, splits.retain.indices
  assert forget.dtype == retain.dtype == np.int32
  assert splits.forget.size == count
  # Disjoint, complete and sorted.
  assert sorted([*forget, *retain]) == list(range(total))
  assert forget.tolist() == sorted(forget) and retain.tolist() == sorted(retain)
  assert splits.train.indices.tolist() == list(range(total))
  assert splits.test is dataset.test
  # No pixel is copied.
  assert splits.forget.images is dataset.train.images
  assert splits.retain.labels is dataset.train.labels


def test_the_key_decides():
  dataset = make_dataset(total=1000)
  draws = [
    tuple(data.split_forget(key(seed), dataset, 0.1).forget.indices.tolist())
    for seed in (0, 0, 1)
  ]
  assert draws[0] == draws[1] != draws[2]


def test_the_draw_is_uniform():
  dataset = make_dataset(total=10)
  counts = np.zeros(10)
  for seed in range(400):
    counts[data.split_forget(key(seed), dataset, 0.3).forget.indices] += 1
  assert np.abs(counts - 120).max() < 5 * np.sqrt(400 * 0.3 * 0.7)


def test_ids():
  dataset = make_dataset(NAMED)
  for ids in (
    ['train_07', 'train_03'],
    ['#7', '#3'],
    [7, 3],
    np.array([7, 3]),
    np.array(['train_07', '#3']),
    (np.int32(7), 'train_03'),
    ['#0007', '#03'],
    np.isin(np.arange(20), [3, 7]),
  ):
    splits = data.split_forget(None, dataset, ids=ids)
    assert splits.forget.indices.tolist() == [3, 7]
    assert splits.retain.size == 18
    assert splits.forget.indices.dtype == np.int32


def test_ids_that_are_numbers_are_no_rows():
  dataset = make_dataset(['5', '4', '3', '2', '1'])
  rows = data.split_forget(None, dataset, ids=['5', '2']).forget.indices
  assert rows.tolist() == [0, 3]
  # An integer is a row all the same.
  rows = data.split_forget(None, dataset, ids=[0, 3]).forget.indices
  assert rows.tolist() == [0, 3]
  with pytest.raises(base.InputError, match="'0' is no training.*such as '5'"):
    data.split_forget(None, dataset, ids=['0'])


def test_indices_of_a_subset_are_respected():
  whole = make_dataset(NAMED)
  train = whole.train.take(np.array([5, 9, 11], np.int32))
  dataset = base.Dataset(
    'part', train, whole.test, whole.class_names, whole.ids[[5, 9, 11]], ''
  )
  splits = data.split_forget(None, dataset, ids=['train_09'])
  assert splits.forget.indices.tolist() == [9]
  assert splits.retain.indices.tolist() == [5, 11]


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 1.5, float('nan')])
def test_fraction_out_of_range(fraction):
  with pytest.raises(ValueError, match=f'fraction: {fraction} of 20 .* is 0'):
    data.split_forget(key(), make_dataset(), fraction)


@pytest.mark.parametrize(('fraction', 'count'), [(0.01, 0), (0.99, 20)])
def test_fraction_that_leaves_nothing(fraction, count):
  with pytest.raises(ValueError, match=rf'is {count}; allowed.*1\.\.19'):
    data.split_forget(key(), make_dataset(), fraction)


@pytest.mark.parametrize(
  ('ids', 'words'),
  [
    ([], '0 of 20'),
    (list(range(20)), '20 of 20'),
    (['train_07', '#7'], r"ids\[1\]: '#7' repeats ids\[0\]"),
    (['7'], r"ids\[0\]: '7' is no training.*such as 'train_00' or #0\.\.#19"),
    ([3, 3], r'ids\[1\]: 3 repeats ids\[0\]'),
    (['train_20'], r"ids\[0\]: 'train_20' is no training.*or #0\.\.#19"),
    (['#20'], r"ids\[0\]: '#20' is no training example; allowed is an id"),
    (['#-1'], r"ids\[0\]: '#-1' is no training example; allowed is an id"),
    ([20], r'ids\[0\]: 20 is no training example; allowed is an id'),
    ([-1], r'ids\[0\]: -1 is no training example'),
    ([1.0], r'ids\[0\]: 1.0 is no training example'),
  ],
)
def test_ids_that_cannot_be(ids, words):
  with pytest.raises(ValueError, match=words):
    data.split_forget(None, make_dataset(NAMED), ids=ids)


def test_one_of_fraction_and_ids():
  for arguments in ({}, {'fraction': 0.1, 'ids': ['1']}):
    with pytest.raises(ValueError, match='either fraction or ids'):
      data.split_forget(key(), make_dataset(), **arguments)


def test_a_draw_needs_a_key():
  with pytest.raises(ValueError, match='typed PRNG key'):
    data.split_forget(None, make_dataset(), 0.1)


def test_classes_lost():
  dataset = make_dataset(total=6)  # Labels 0 1 2 3 0 1.
  splits = data.split_forget(None, dataset, ids=[2, 4])
  assert data.classes_lost(splits, 4) == [2]
  assert data.classes_lost(splits, 6) == [2]
  splits = data.split_forget(None, dataset, ids=[1, 2, 3, 5])
  assert data.classes_lost(splits, 4) == [1, 2, 3]
  splits = data.split_forget(None, dataset, ids=[0])
  assert data.classes_lost(splits, 4) == []


# Files of ids.


@pytest.fixture
def ids_file(tmp_path):
  def write(content: str | bytes) -> pathlib.Path:
    file = tmp_path / 'forget.txt'
    file.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )
    return file

  return write


@pytest.mark.parametrize(
  ('content', 'rows'),
  [
    ('#3\n#1\n', [1, 3]),
    ('#3\ntrain_01', [1, 3]),
    ('# why\n\n #3 \n\ttrain_01\t# also\n#\n# 2\n', [1, 3]),
    ('train_03\r\n#1\r\n', [1, 3]),
    (b'\xef\xbb\xbf#3\n', [3]),
    ('#0019\n#0\n', [0, 19]),
  ],
)
def test_read_ids(ids_file, content, rows):
  read = data.read_ids(ids_file(content), make_dataset(NAMED))
  assert read.dtype == np.int32 and read.tolist() == rows
  splits = data.split_forget(None, make_dataset(NAMED), ids=read)
  assert splits.forget.indices.tolist() == rows


def test_ids_of_files_may_have_spaces_and_hashes(ids_file):
  dataset = make_dataset(['c #1/a.png', '# b', ' c ', 'd'])
  content = 'c #1/a.png # the first\n# b\n c \n# no id\n'
  read = data.read_ids(ids_file('c #1/a.png\n# b\n c \n# no id\n'), dataset)
  assert read.tolist() == [0, 1, 2]
  with pytest.raises(base.InputError, match=":1: 'c' is no"):
    data.read_ids(ids_file(content), dataset)


def test_numbers_in_a_data_set_with_numbers_as_ids(ids_file):
  dataset = make_dataset(['12', '7', '3'])
  assert data.read_ids(ids_file('7\n3'), dataset).tolist() == [1, 2]
  with pytest.raises(base.InputError, match=r":1: '1' is no .* such as '12'"):
    data.read_ids(ids_file('1'), dataset)


@pytest.mark.parametrize(
  ('content', 'line', 'words'),
  [
    ('#1\n#20\n', 2, ["'#20' is no training", '#0..#19']),
    ('train_01\n2\n', 2, ["'2' is no training", "'train_00' or #0..#19"]),
    ('-1', 1, ["'-1' is no training", '#0..#19']),
    ('9' * 5000, 1, ['is no training example', '5002 characters', '#19']),
    ('#1\n\n#\n#01\n', 4, ["'#01' repeats line 1"]),
    ('train_03\n#3', 2, ["'#3' repeats line 1"]),
    ('1.5', 1, ["'1.5' is no training example", '#0..#19']),
    ('1 2', 1, ["'1 2' is no training"]),
    ('cat\x1b[31m', 1, [r"'cat\x1b[31m' is no training"]),
    ('\u0661', 1, [r"'\u0661' is no training"]),
    ('1\r2', 1, [r"'1\r2' is no training"]),
    ('#1\n\u2028x', 2, ["'x' is no training"]),
  ],
)
def test_read_ids_names_line_and_text(ids_file, content, line, words):
  file = ids_file(content)
  with pytest.raises(base.InputError) as caught:
    data.read_ids(file, make_dataset(NAMED))
  message = str(caught.value)
  assert message.startswith(f'{file}:{line}: ')
  assert len(message.splitlines()) == 1 and len(message) < 300
  for word in words:
    assert word in message


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ('', 'names no example; allowed is one a line: 0..19'),
    ('# only\n\n', 'names no example'),
    (b'\xff\xfe1\x00', 'not a text file (byte 0 is not UTF-8)'),
    (b'1\n\0\0', 'not a text file (it holds a NUL byte)'),
  ],
)
def test_read_ids_of_no_list(ids_file, content, words):
  file = ids_file(content)
  with pytest.raises(base.InputError) as caught:
    data.read_ids(file, make_dataset())
  assert str(caught.value).startswith(f'{file}: {words}')


def test_read_ids_of_no_file(tmp_path):
  for path, word in (
    (tmp_path / 'none.txt', 'no such file'),
    (tmp_path, 'Is a directory'),
    ('a\0b', 'null'),
  ):
    with pytest.raises(base.InputError, match=word):
      data.read_ids(path, make_dataset())


LINES = strategies.one_of(
  strategies.integers(-3, 25).map(str),
  strategies.sampled_from([*NAMED, '', '#', ' # 3', 'train_3', '1e1', '+1']),
  strategies.text(max_size=8),
)


@hypothesis.given(
  strategies.one_of(
    strategies.lists(LINES, max_size=6).map(
      lambda lines: '\n'.join(lines).encode('utf-8', 'surrogatepass')
    ),
    strategies.binary(max_size=40),
  ),
  strategies.booleans(),
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_read_ids_of_anything(content, named):
  dataset = make_dataset(NAMED if named else None)
  handle, path = tempfile.mkstemp()
  try:
    os.write(handle, content)
    os.close(handle)
    try:
      rows = data.read_ids(path, dataset)
    except base.InputError as error:
      assert len(str(error).splitlines()) == 1
      assert str(error).startswith(path)
    else:
      assert rows.dtype == np.int32 and 0 < len(rows) <= 20
      assert (np.diff(rows) > 0).all()
      assert rows[0] >= 0 and rows[-1] < 20
  finally:
    os.unlink(path)


# Arrays given in a program.

IMAGES = np.zeros((6, 2, 2, 1), np.uint8)
ALL = base.Examples.of(IMAGES, np.arange(6))


@pytest.mark.parametrize(
  'labels',
  [[0, 1, 2, 0, 1, 2], np.array([[0], [1], [2], [0], [1], [2]], np.uint8)],
)
def test_labels_are_taken_from_lists_and_columns(labels):
  got = base.Examples.of(IMAGES, labels)
  assert got.labels.tolist() == [0, 1, 2, 0, 1, 2]
  assert got.labels.dtype == np.int32


@pytest.mark.parametrize(
  'labels, words',
  [
    (np.zeros(4, int), r'int64\[4\], allowed: integers \[6\]'),
    (np.eye(6, 3), r'float64\[6, 3\], allowed: integers \[6\]'),
    (np.zeros(6), r'float64\[6\], allowed: integers'),
    (np.array([0, 1, -1, 0, 1, 0]), 'labels=-1, allowed: 0 to 2147483647'),
    (['cat'] * 6, r'<U3\[6\], allowed: integers'),
  ],
)
def test_labels_that_cannot_be(labels, words):
  with pytest.raises(ValueError, match=words):
    base.Examples.of(IMAGES, labels)


@pytest.mark.parametrize(
  'images, words',
  [
    (np.float32(3), r"images='float32\[\]', allowed: numbers \[N, ...\]"),
    (None, r"images='object\[\]', allowed"),
    (np.full((6, 2), 'a'), r"images='<U1\[6, 2\]', allowed"),
    (np.ones((6, 2), complex), r"images='complex128\[6, 2\]', allowed"),
    ([[1, 2], [3]], 'images are ragged, allowed: an array'),
  ],
)
def test_images_that_cannot_be(images, words):
  with pytest.raises(ValueError, match=words):
    base.Examples.of(images, np.arange(6))


def test_ragged_labels_and_rows():
  with pytest.raises(ValueError, match='labels are ragged, allowed: an array'):
    base.Examples.of(IMAGES, [[0, 1], [2]])
  with pytest.raises(ValueError, match='positions are ragged'):
    ALL.take([[0, 1], [2]])


def test_examples_are_one_or_more():
  with pytest.raises(ValueError, match=r'int64\[0\], .* integers \[N ≥ 1\]'):
    base.Examples.of(IMAGES[:0], np.zeros(0, int))


def test_a_forget_set_by_mask():
  mask = np.isin(np.arange(6), [1, 4])
  for forget in ([4, 1], mask, jax.numpy.asarray(mask)):
    splits = base.Splits.of(ALL, forget, ALL)
    assert sorted(splits.forget.indices.tolist()) == [1, 4]
    assert splits.retain.indices.tolist() == [0, 2, 3, 5]
  assert ALL.take(mask).indices.tolist() == [1, 4]


@pytest.mark.parametrize(
  'forget, words',
  [
    ([-1], r'forget=\[-1\], allowed: integers from 0 to 5'),
    ([6], r'forget=\[6\], allowed: integers from 0 to 5'),
    ([2, 3, 2], r'forget=\[2\], allowed: each example once'),
    ([1.0], r'forget are float64\[1\], allowed: integers'),
    (np.ones(5, bool), r'forget are bool\[5\], allowed: .* boolean mask \[6\]'),
    ([], 'forget=0, allowed: 1 to 5 of 6'),
    (np.ones(6, bool), 'forget=6, allowed: 1 to 5 of 6'),
  ],
)
def test_forget_sets_that_cannot_be(forget, words):
  with pytest.raises(ValueError, match=words):
    base.Splits.of(ALL, forget, ALL)


# Forget sets as text.


def rows(splits):
  return splits.forget.indices.tolist()


def test_a_class_or_a_share_of_it():
  dataset = make_dataset()
  assert rows(data.forget_set(key(), dataset, 'class(c)')) == [2, 6, 10, 14, 18]
  some = {
    tuple(rows(data.forget_set(key(s), dataset, 'class( c , .6)')))
    for s in range(9)
  }
  assert len(some) > 3 and all(len(own) == 3 for own in some)
  assert set(sum(some, ())) == {2, 6, 10, 14, 18}


def test_a_class_may_be_called_anything():
  dataset = make_dataset()
  odd = dataset.__class__(
    **{**vars(dataset), 'class_names': ('a, 0.5', 'b', '(c)', 'd')}
  )
  assert rows(data.forget_set(key(), odd, 'class(a, 0.5)')) == [0, 4, 8, 12, 16]
  assert len(rows(data.forget_set(key(), odd, 'class(a, 0.5, 0.4)'))) == 2
  assert rows(data.forget_set(key(), odd, 'class((c))')) == [2, 6, 10, 14, 18]


def test_a_share_is_as_split_forget_draws_it(tmp_path):
  dataset = make_dataset()
  want = data.split_forget(key(3), dataset, 0.3)
  assert rows(data.forget_set(key(3), dataset, 'random(0.3)')) == rows(want)
  file = tmp_path / 'my (ids), too'
  file.write_text('3\n1\n')
  assert rows(data.forget_set(key(), dataset, f'ids({file})')) == [1, 3]


def test_mislabelled_examples_have_wrong_labels_everywhere_but_in_the_truth():
  dataset = make_dataset(total=400)
  splits = data.forget_set(key(3), dataset, 'mislabelled(0.3)')
  plain = data.forget_set(key(3), dataset, 'random(0.3)')
  assert rows(splits) == rows(plain)
  truth, given = plain.forget.own_labels, splits.forget.own_labels
  np.testing.assert_array_equal(splits.truth, truth)
  shift = (given - truth) % 4
  assert np.bincount(shift, minlength=4)[0] == 0
  assert (np.bincount(shift, minlength=4)[1:] > 20).all()
  every = splits.train.own_labels
  np.testing.assert_array_equal(every[rows(splits)], given)
  np.testing.assert_array_equal(
    splits.retain.own_labels, plain.retain.own_labels
  )
  # Whoever else holds the data set sees it as it was.
  np.testing.assert_array_equal(dataset.train.own_labels, np.arange(400) % 4)
  assert plain.truth is None and splits.test is dataset.test


def test_attacks_compare_a_class_with_itself_and_wrong_labels_with_wrong_ones():
  dataset = make_dataset(total=400)
  drawn = data.forget_set(key(3), dataset, 'random(0.3)')
  assert drawn.unseen is None  # All of the test set is like it.
  unseen = data.forget_set(key(3), dataset, 'class(c, 0.5)').unseen
  test = dataset.test.own_labels
  np.testing.assert_array_equal(unseen.own_labels, test[test == 2])
  wrong = data.forget_set(key(3), dataset, 'mislabelled(0.3)')
  unseen = wrong.unseen
  np.testing.assert_array_equal(unseen.indices, dataset.test.indices)
  assert (unseen.own_labels != test).all()
  # They are wrong in the way that D_UL is.
  given = wrong.forget.own_labels
  only = data.relabelled(drawn, np.where(wrong.truth == 1, 3, given))
  assert set(only.unseen.own_labels[test == 1]) == {3}


def with_test_images(count):
  dataset = make_dataset(total=400)
  test = dataset.train.take(np.arange(400 - count, 400))
  return dataclasses.replace(dataset, test=test)


def test_what_is_set_aside_is_a_share_of_each_class_of_the_test_images():
  dataset = with_test_images(101)
  assert data.set_aside(dataset, 0.0) == (dataset, None)
  rest, heldout = data.set_aside(dataset, 0.3)
  assert rest.train is dataset.train and rest.fingerprint == dataset.fingerprint
  both = np.concatenate([rest.test.indices, heldout.indices])
  np.testing.assert_array_equal(np.sort(both), dataset.test.indices)
  counts = np.bincount(dataset.test.own_labels)
  taken = np.bincount(heldout.own_labels, minlength=len(counts))
  np.testing.assert_array_equal(taken, np.round(0.3 * counts))
  _, again = data.set_aside(dataset, 0.3)
  np.testing.assert_array_equal(again.indices, heldout.indices)
  _, fewer = data.set_aside(dataset, 0.1)
  assert {*fewer.indices.tolist()} < {*heldout.indices.tolist()}


@pytest.mark.parametrize('share, left', [(0.01, 2), (0.5, 2), (0.9, 2)])
def test_of_each_class_with_two_test_images_one_is_taken_and_one_left(
  share, left
):
  labels = np.array([0, 1, 1])
  test = base.Examples.of(np.zeros((3, 1, 1, 1), np.uint8), labels)
  dataset = dataclasses.replace(make_dataset(), test=test)
  rest, heldout = data.set_aside(dataset, share)
  assert rest.test.own_labels.tolist() == [0, 1] and rest.test.size == left
  assert heldout.own_labels.tolist() == [1]


@pytest.mark.parametrize('share', [-0.1, 0.91, float('nan'), float('inf')])
def test_another_share_to_set_aside_is_one_line(share):
  with pytest.raises(base.InputError, match=f'={share}, allowed: 0 to 0.9'):
    data.set_aside(make_dataset(), share)


@pytest.mark.parametrize(
  'text', ['random(0.3)', 'class(c)', 'mislabelled(0.3)', 'ids(IDS)']
)
def test_held_out_images_are_no_test_images_of_any_forget_set(text, tmp_path):
  (tmp_path / 'ids').write_text('3\n7\n')
  text = text.replace('IDS', str(tmp_path / 'ids'))
  dataset = with_test_images(100)
  rest, apart = data.set_aside(dataset, 0.4)
  splits = data.forget_set(key(3), rest, text, apart)
  assert splits.heldout.size and splits.test.size == rest.test.size
  judged = [splits.test, *([splits.unseen] if splits.unseen else [])]
  for part in judged:
    assert not np.isin(splits.heldout.indices, part.indices).any()
  plain = data.forget_set(key(3), dataset, text)
  assert rows(plain) == rows(splits) and plain.heldout is None
  wrong = splits.heldout.own_labels != apart.own_labels
  assert wrong.all() if splits.truth is not None else not wrong.any()


def test_class_matched_is_as_much_as_there_is_in_the_same_proportions():
  def of(*counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return base.Examples.of(np.zeros((len(labels), 1)), labels)

  def matched(own, others):
    found = data.class_matched(of(*own), of(*others))
    return np.bincount(found.own_labels, minlength=len(others)).tolist()

  assert matched([1, 2, 0], [10, 10, 10]) == [5, 10, 0]
  assert matched([3, 30], [7, 7]) == [0, 7]
  assert matched([2, 2], [5, 0]) == [0, 0]
  assert matched([5], [3]) == [3]


@pytest.mark.parametrize(
  'text, said',
  [
    ('', ', allowed: random.SHARE., class.NAME'),
    ('random', 'random, allowed: random.SHARE., '),
    ('random()', 'allowed: random'),
    ('random(0.1) ', 'allowed: random'),
    ('random(1)', '1 is no share, allowed: between 0 and 1'),
    ('random(nan)', 'nan is no share'),
    ('random(-.1)', '-.1 is no share'),
    ('mislabelled(a)', 'a is no share'),
    ('random(0.001)', '0.001 of 20 training examples is 0; allowed is'),
    ('class(e)', 'e is no class, allowed: one of a, b, c, d'),
    ('class(a, 1.5)', '1.5 is no share'),
    ('class(a, 0.01)', '0 of 20 training examples; allowed is'),
    ('ids(/no/such)', '/no/such: no such file'),
    ('ids(\0)', 'null'),
  ],
)
def test_another_text_is_one_line(text, said):
  with pytest.raises(base.InputError, match=said) as error:
    data.forget_set(key(), make_dataset(), text)
  assert '\n' not in str(error.value)
