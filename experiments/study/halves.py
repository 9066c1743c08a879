"""What models say of images that they never saw, kept beside a source.

Nobody knows beforehand which images a request will name. So models learn halves
of D that are drawn by lot, two of them one D: of each pair one never saw a
given image, and what it says of it is kept. The models, who know others, go.
"""

import dataclasses
import hashlib
import pathlib

import jax
import numpy as np

from unlearn_jax import checkpoints
from unlearn_jax.snapshots import Epoch
from ..runtime.progress import Progress
from ..workdir import finished
from ..workdir.finished import Manifest, Recipe
from ..workdir.partials import Partial
from . import setup as setups
from . import shadows, stages, training
from .stages import Output, Stage

_UNSEEN, _COUNT = 'unseen', 4


def stage_of(source: Stage) -> Stage:
  """The stage beside that of a source."""
  return dataclasses.replace(
    source,
    name=source.name.replace('source', _UNSEEN),
    title=f'{_COUNT} models of halves',
    depends={**source.depends, 'kind': _UNSEEN, 'count': _COUNT},
    work=_train,
    epochs=_COUNT * source.epochs,
  )


def _train(stage: Stage, partial: Partial, progress: Progress) -> Output:
  study, setup, splits = stages.problem(stage, 0)
  seed, total = study.draws.of('source', 0), splits.train.size
  epochs, said, knows = stage.epochs // _COUNT, [], []
  for number in range(_COUNT):
    pair, own = divmod(number, 2)
    key = jax.random.fold_in(setups.key_of('halves', seed), pair)
    drawn, *keys = jax.random.split(key, 3)
    order = np.asarray(jax.random.permutation(drawn, total))
    rows = np.sort(order[own::2][: total // 2])

    def tell(row: Epoch, before: int = number * epochs) -> None:
      progress.epoch(row._replace(epoch=before + row.epoch))

    how = study, tell, partial.part(number, epochs, progress.goes_on)
    fit = shadows.trained(keys[own], setup.model, splits.train.take(rows), *how)
    said.append(shadows.look(setup.model, fit.state, splits)[0])
    # Test images are shared, too: as many models tell of one as of one of D.
    shared = np.arange(splits.test.size) % 2 == own
    knows.append(np.concatenate([np.isin(np.arange(total), rows), shared]))
  phi = np.where(knows[::2], said[1::2], said[::2]).astype(np.float32)
  facts, recipe = dataclasses.asdict(setup.facts), Recipe.of(study.recipe)
  manifest = Manifest(**facts, strategy=_UNSEEN, recipe=recipe)
  tree = {'phi': phi, 'learned': np.stack(knows)[:, :total]}
  output = Output(tree, manifest, {}, 'done')
  ids = setups.ids_of(setup, splits.train)
  return training.with_ids(output, finished.TRAINED, ids)


def read(
  source: str, said: Manifest
) -> tuple[dict[str, np.ndarray], np.ndarray, str] | None:
  """φ `[R]` of each id, `[R, T]` of the test images, and a SHA-256.

  It is that of their manifest, which has those of arrays and ids. They lie
  beside the source, which may be gone; `said`: of a model like it.
  """
  for folder in sorted(pathlib.Path(source).parent.glob(f'seed*-{_UNSEEN}-*')):
    own, names = finished.manifest(folder), (*setups.COMMON, 'recipe')
    if all(getattr(own, name) == getattr(said, name) for name in names):
      phi = checkpoints.restore_tree(folder)[0]['phi'].astype(float)
      sha256 = hashlib.sha256((folder / 'manifest.json').read_bytes())
      ids = (folder / finished.TRAINED).read_bytes().decode().split('\n')[:-1]
      return dict(zip(ids, phi.T)), phi[:, len(ids) :], sha256.hexdigest()
  return None
