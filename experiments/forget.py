r"""Carries out a request: a model forgets images, and a record is written.

  python -m experiments.forget --source=prod/ --dataset=folder:photos \
      --ids=requests.csv --id_column=file --out=2026-12/

writes OUT/model (as every binary reads it), OUT/model.safetensors, and
OUT/record.json with OUT/record.html, and ends with what the evidence says. The
next request has --source=OUT: what was forgotten once is never learned again.
How, and what it cannot say: docs/deletion.md.
"""

import dataclasses

from . import config
from .runtime import binary
from .settings import WHOLE, setting


@dataclasses.dataclass(frozen=True)
class Forget:
  """One request, one model, one method."""

  source: str | None = setting(
    None, 'What experiments.train wrote, or the --out of an earlier request.'
  )
  dataset: str | None = setting(
    None, 'Its data, if they have moved; what was forgotten may be gone.'
  )
  model: str | None = setting(None, config.CODE)
  ids: str | None = setting(
    None,
    'File of what is to be forgotten: an id, a name of a file, a path or #ROW'
    ' (from 0) a line.',
  )
  id_column: str | None = setting(
    None, 'Column of a CSV with a head, if --ids is one.'
  )
  strategy: str = setting(
    'retrain',
    'One of experiments.unlearn --strategies. The default is exact, and as slow'
    ' as training.',
  )
  retrain_every: int = setting(
    0,
    'The request that would be the Nth since the last exact model is carried'
    ' out by retrain in place of --strategy; 0: none is.',
    WHOLE,
  )
  retrain_if: str | None = setting(
    None,
    'Bounds such as "attack>0.6, test_drop>2": where the model breaks one (of'
    ' attack, test_drop, returned, drift, canaries), retrain takes its place.',
  )
  out: str | None = setting(None, 'Where model and record go; one a request.')
  key_file: str | None = setting(
    None,
    'Secret of 16 bytes or more by which ids are hashed; without it anyone'
    ' can check a guess of an id against the record.',
  )
  decision: str | None = setting(
    None,
    'For the record: retrain, unlearn, suppress or accept_risk; default: what'
    ' --strategy does.',
    ('retrain', 'unlearn', 'suppress', 'accept_risk'),
  )
  received: str | None = setting(
    None, 'For the record: when the request came, such as 2026-11-30.'
  )
  retrain: bool = setting(
    False, 'Train Retrain too, and hold the model against it.'
  )
  seed: int = setting(0, 'From which all is drawn.', WHOLE)
  archives: config.Archives = config.Archives()


def main(asked: Forget) -> None:
  """From a file of ids to a record."""
  from .deletion import making, request  # Once flags are known.

  making.carry_out(request.plan(asked))


if __name__ == '__main__':
  binary.run(main, Forget)
