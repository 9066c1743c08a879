"""One holder at a time, whatever becomes of it."""

import errno
import fcntl
import gc
import os
import re

import pytest

from experiments import locks, stages
from unlearn_jax.base import InputError

# JAX's threads are not needed in the children.
pytestmark = pytest.mark.filterwarnings('ignore:.*fork')


def in_child(function):
  """What a forked process, which holds none of our locks, returns as text."""
  reader, writer = os.pipe()
  if not (pid := os.fork()):
    try:
      os.write(writer, function().encode())
    finally:
      os._exit(0)
  os.close(writer)
  os.waitpid(pid, 0)
  with os.fdopen(reader) as file:
    return file.read()


def ask(root, shared=False):
  """What another process is told that wants the lock."""

  def take():
    try:
      lock = locks.take(root, shared)
    except InputError as error:
      return str(error)
    return 'taken' if lock else 'none'

  return in_child(take)


def test_another_process_is_told_who_has_it_until_it_is_let_go(tmp_path):
  lock = locks.take(tmp_path)
  assert f'in use by process {os.getpid()} on ' in ask(tmp_path)
  assert 'in use by process' in ask(tmp_path, shared=True)
  lock.close()
  assert ask(tmp_path) == 'taken'  # The file is still there, with a dead name.
  lock = locks.take(tmp_path)
  del lock
  gc.collect()
  assert ask(tmp_path) == 'taken'


def test_those_who_share_keep_out_only_those_who_do_not(tmp_path):
  lock = locks.take(tmp_path, shared=True)
  assert ask(tmp_path, shared=True) == 'taken'
  assert 'in use by process' in ask(tmp_path)
  assert lock.shared


def test_one_process_may_claim_a_directory_several_times(tmp_path):
  first, second = (stages.Workdir(tmp_path, {'a': 1}) for _ in range(2))
  first.claim()
  second.claim()
  second.claim(shared=True)
  del first
  gc.collect()
  assert 'in use' in ask(tmp_path)
  del second
  gc.collect()
  assert ask(tmp_path) == 'taken'


def test_a_forked_child_does_not_hold_what_its_parent_lets_go(tmp_path):
  lock = locks.take(tmp_path)
  reader, writer = os.pipe()
  if not (pid := os.fork()):
    os.close(writer)
    os.read(reader, 1)  # Until the parent has no more to write.
    os._exit(0)
  assert 'in use' in ask(tmp_path)
  lock.close()
  assert ask(tmp_path) == 'taken'
  os.close(writer)
  assert os.waitpid(pid, 0)[1] == 0


def test_a_file_system_without_locks_is_said_and_goes_on(
  tmp_path, monkeypatch, capsys
):
  def refuse(descriptor, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', refuse)
  stages.Workdir(tmp_path, {'a': 1}).claim()
  err = capsys.readouterr().err
  assert err.startswith(f'warning: --workdir={tmp_path}: its file system keeps')
  assert err.count('\n') == 1
  stages.Workdir(tmp_path, {'a': 1}).claim(shared=True)
  assert not capsys.readouterr().err


def test_what_a_killed_claim_leaves_makes_no_foreign_directory(tmp_path):
  (tmp_path / locks.NAME).write_text('')
  (tmp_path / '.workdir.json.0123456789ab.tmp').write_text('{')
  stages.Workdir(tmp_path, {'a': 1}).claim()
  (tmp_path / 'workdir.json').unlink()
  (tmp_path / 'mine.txt').write_text('')
  with pytest.raises(InputError, match='empty directory or one of this'):
    stages.Workdir(tmp_path, {'a': 1})


def test_a_directory_that_became_anothers_meanwhile_is_refused(tmp_path):
  slow = stages.Workdir(tmp_path, {'dataset': 'digits'})
  stages.Workdir(tmp_path, {'dataset': 'mnist'}).claim()
  gc.collect()
  with pytest.raises(InputError, match=re.escape('belongs to dataset=mnist')):
    slow.claim()
