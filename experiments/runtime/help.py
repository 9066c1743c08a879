"""What --help prints: what matters, every flag in short, then long lists."""

from collections.abc import Iterator
import dataclasses
import inspect
import shutil
import textwrap
from typing import Any, get_type_hints

from .. import COMMAND, settings

# A group, its flags, and a line for them; where a binary has them all.
FIRST = (
  ('weights', '--weights --trained_on', 'from elsewhere, and what they know'),
  ('data', '--dataset', 'digits, a TFDS name, npz:FILE, folder:DIR'),
  ('model', '--model --width', 'cnn, resnet18, …, and its channels'),
  ('training', '--recipe --train_epochs', 'of the source and of Retrain'),
  ('forget', '--forget', 'random(0.1), class(dog), ids(FILE), …'),
  ('strategies', '--strategies', 'what is compared; the list is below'),
  ('budget', '--epochs --learning_rate', 'of each strategy that trains'),
  ('seeds', '--seeds', 'independent runs behind each number'),
  ('audit', '--references --degree', 'stronger attacks, more trainings'),
  ('attack', '--attack --shadows', 'which, and by how many models'),
  ('start', '--source_dir --tuned', 'a trained source, and tuned rates'),
  ('request', '--source --ids --strategy', 'which model forgets what, how'),
  ('record', '--record', 'what an experiments.forget wrote'),
  ('checkpoint', '--checkpoint', 'the model to evaluate'),
  ('search', '--knob --trials', 'what is tuned, by how many values'),
  ('paper', '--preset --only', 'how large, and which of its parts'),
  ('output', '--workdir', 'where results go'),
  ('output', '--out', 'where model and record go'),
  ('cluster', '--engine --scheduler', 'who carries the stages out'),
)


def text(about: str, kind: type) -> str:
  """All of it, as wide as the terminal, 80 where there is none."""
  width = max(60, min(shutil.get_terminal_size().columns, 100))
  about = inspect.cleandoc(about).replace('python -m experiments.', COMMAND)
  return '\n'.join([about, *_lines(kind, width)])


def _lines(kind: type, width: int) -> Iterator[str]:
  own, long = settings.names(kind), []
  if own:
    yield '\nWhat matters:\n'
  for group, flags, line in FIRST:
    if {flag[2:] for flag in flags.split()} <= {*own}:
      yield f'  {group:11}{flags:26}{line}'
  for title, members in _sections(kind):
    yield f'\n{title}:\n'
    for field in members:
      line, *more = field.metadata['help'].splitlines()
      yield _entry(field, line, width)
      long += [f'\n--{field.name}:\n'] * bool(more)
      long += [_filled(own, '  ', ' ' * 6, width) for own in more]
  yield from long
  yield '\n--helpfull lists the flags of absl too, such as --flagfile.'


def _sections(kind: Any) -> Iterator[tuple[str, list[dataclasses.Field]]]:
  hints, own = get_type_hints(kind), dataclasses.fields(kind)
  inner = [f for f in own if dataclasses.is_dataclass(hints[f.name])]
  if alone := [field for field in own if field not in inner]:
    yield 'This command', alone
  for field in inner:
    part: Any = hints[field.name]
    yield part.__doc__.splitlines()[0].rstrip('.'), [*dataclasses.fields(part)]


def _entry(field: dataclasses.Field, line: str, width: int) -> str:
  default, switch = field.default, field.type in (bool, bool | None)
  if default is not None and not (switch and default is False):
    line += f' (default: {str(default).lower() if switch else default})'
  name, indent = f'  --{"[no]" * switch}{field.name}', ' ' * 26
  return _filled(line, f'{name:25} ', indent, width)


def _filled(line: str, first: str, then: str, width: int) -> str:
  return textwrap.fill(
    line,
    width,
    initial_indent=first,
    subsequent_indent=then,
    break_long_words=False,
    break_on_hyphens=False,
  )
