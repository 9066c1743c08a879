"""Attacks what strategies leave: U-LiRA by shadow models, or ensembles.

  python -m experiments.audit --strategies='retrain, finetune, salun'
  python -m experiments.audit --attack=ensemble --shadows=64

The first trains shadow models on random halves of the data, has each forget
several sets by every strategy, learns from them what forgotten and unseen
images look like, and attacks models that were held out. The second holds many
unlearned models against as many Retrains. The null, Retrain against Retrain,
stands in the same table. It writes audit.{json,md,html}.
"""

import dataclasses
import time

from . import config
from .runtime import binary
from .settings import SHARE, Range, flat, setting, taken


@dataclasses.dataclass(frozen=True)
class Audit(config.Problem):
  """One problem, several strategies, and many models of each."""

  methods: config.Methods = config.Methods()
  attack: str = setting(
    'ulira',
    'ulira: per example, by shadow models; ensemble: forgetting score and KLOM'
    ' of many models that forgot one set.',
    ('ulira', 'ensemble'),
  )
  shadows: int = setting(
    64, 'Shadow models; or those of each ensemble.', Range(3, 10_000)
  )
  targets: int = setting(
    4, 'Models that are attacked, held out from all fits.', Range(1, 1000)
  )
  requests: int = setting(
    4,
    'Disjoint sets that each model is made to forget, one by one. A set is the'
    ' share of what a model learned that --forget says.',
    Range(1, 1000),
  )
  slice: float = setting(
    0.05, 'Share of D, the most exposed images, attacked by themselves.', SHARE
  )


def main(asked: Audit) -> None:
  """From flags to a page."""
  from unlearn_jax import parallel
  from .report import audit as page
  from .report import rendering
  from .report.model import to_json
  from .runtime.progress import say
  from .study import auditing, engine, study
  from .workdir.directory import Workdir

  start, whole = time.monotonic(), taken(config.Study, asked, seeds=1)
  root = study.root_of(whole)
  plan = auditing.plan(whole, taken(auditing.Game, asked), root)
  workdir = Workdir(root, study.identity(plan.setup))
  parallel.by_first(workdir.claim)
  say(auditing.describe(plan))
  errors = engine.run(plan.stages, whole)
  found = auditing.report(plan, errors, flat(asked))
  found.environment['wall_seconds'] = round(time.monotonic() - start, 1)
  title, done = page.intro(found)
  contents = page.page(found), page.pictures(found)
  files = {'audit.json': to_json(found)}
  study.publish(
    root,
    lambda: rendering.save(root, 'audit', title, done, *contents, files),
    page.summary(found),
  )


if __name__ == '__main__':
  binary.run(main, Audit)
