"""An audit: its stages, and its numbers."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from unlearn_jax import attacks, metrics
from unlearn_jax.attacks import Drawn, Status
from unlearn_jax.base import Splits
from unlearn_jax.strategies import REFERENCE, Chosen, Strategy, parse
from .. import config
from ..report.audit import Attack, Audit, Row
from ..report.model import SOURCE, Estimate
from ..report.wording import say
from ..settings import FlagError, key
from . import planning, provenance, results, shadows
from .planning import Planner
from .setup import Setup, titled
from .shadows import MEMBER, SHADOW, TARGET, Which
from .stages import Stage

_SHOWN = 10  # Examples of which φ is drawn.
_AGAIN = 'again'  # The second Retrain.
_RATES = np.geomspace(1e-4, 1, 81)  # False positive rates of a curve.


@dataclasses.dataclass(frozen=True)
class Game:
  """Which attack is played, with how many models."""

  attack: str  # 'ulira' or 'ensemble'
  shadows: int
  targets: int
  requests: int
  slice: float


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """All that an audit computes."""

  study: config.Study
  game: Game
  setup: Setup
  splits: Splits  # D, and how much of it is forgotten
  chosen: list[Chosen]  # Retrain first
  drawn: dict[Which, Drawn]  # what each model learns and forgets
  models: dict[Which, Stage]
  # What each is made to forget, by spelling; the second Retrain by `_AGAIN`.
  made: dict[str, dict[Which, Stage]]

  @property
  def stages(self) -> list[Stage]:
    """A model is made to forget right after it is trained."""
    return [
      stage
      for which, trained in self.models.items()
      for stage in (trained, *(own[which] for own in self.made.values()))
    ]

  def covered(self) -> list[int]:
    """Of the least covered example, by the shadows.

    How many forget it, how many never see it, and after how many requests it
    is retained.
    """
    counts = np.zeros((3, self.splits.train.size), np.int64)
    for which, own in self.drawn.items():
      if which.kind == SHADOW:
        counts[0, np.concatenate(own.requests)] += 1
        counts[1] += ~np.isin(np.arange(len(counts[1])), own.rows)
        counts[2, own.rows] += which.requests
    counts[2] -= counts[0]
    return counts.min(1).tolist()


def plan(study: config.Study, game: Game, root: pathlib.Path) -> Plan:
  """The stages of an audit; nothing is computed or written."""
  chosen = study.methods.chosen
  if all(own.strategy.role != REFERENCE for own in chosen):
    chosen = [*parse('retrain'), *chosen]
  chosen.sort(key=lambda own: own.strategy.role != REFERENCE)
  for own in chosen:
    if own.strategy.needs_retrained:
      raise FlagError('strategies', own.text, 'none that Retrain teaches')
    if own.strategy.needs_heldout:
      raise FlagError('strategies', own.text, 'none that needs held-out images')
  base = planning.plan(study, root, chosen)  # It refuses what does not fit.
  setup, splits = base.setup, base.runs[0].splits
  kinds, requests = {MEMBER: game.shadows}, 1
  if game.attack == 'ulira':
    kinds = {SHADOW: game.shadows, TARGET: game.targets}
    requests = game.requests
    _require_room(study, game, splits)
  every = [Which(k, n, requests) for k in kinds for n in range(kinds[k])]
  drawn = {which: shadows.drawn(study, splits, which) for which in every}
  size, first = study.recipe.batch_size, drawn[every[0]]
  if size > (least := len(first.rows) - len(first.requests[0])):
    allowed = f'at most the {least} images that a model retains'
    raise FlagError('batch_size', size, allowed)
  planner = Planner(study, setup, root)
  labels = key(splits.train.own_labels.tolist())
  models = {w: _trained(planner, w, own, labels) for w, own in drawn.items()}
  made = {own.text: _made(planner, drawn, models, own) for own in chosen}
  if game.attack == 'ensemble':
    made[_AGAIN] = _made(planner, drawn, models, chosen[0], 1)
  found = Plan(study, game, setup, splits, chosen, drawn, models, made)
  if game.attack == 'ulira' and min(fewest := found.covered()) < 2:
    allowed = 'more, or more --requests: the least covered image would be'
    allowed += f' forgotten by {fewest[0]} models and unseen by {fewest[1]}'
    allowed += f', and retained after {fewest[2]} requests'
    raise FlagError('shadows', game.shadows, allowed)
  return found


def _require_room(study: config.Study, game: Game, splits: Splits) -> None:
  """Refuses requests of which so many cannot be drawn."""
  if not study.forgotten.startswith(('random(', 'mislabelled(')):
    allowed = 'random(SHARE) or mislabelled(SHARE) with --attack=ulira'
    raise FlagError('forget', study.forgotten, allowed)
  half, size = splits.train.size // 2, splits.forget.size // 2
  if not 0 < game.requests * size < half:
    allowed = f'so many disjoint sets of {size} images as {half} have room for'
    raise FlagError('requests', game.requests, allowed)


def describe(plan: Plan) -> str:
  """What is going to be done."""
  own = next(iter(plan.drawn.values()))
  text = (
    f'{len(plan.models)} models learn {len(own.rows):,} images each and forget'
    f' {len(own.requests[0]):,} of them {len(own.requests)} times, in'
    f' {len(plan.made)} ways'
  )
  if plan.game.attack == 'ulira':
    inside, outside, _ = plan.covered()
    text += f'; each image is forgotten by {inside} shadow models or more, and'
    text += f' unseen by {outside} or more'
    text += ': few, the spread is pooled' * (inside < 8)
  return text


def _trained(planner: Planner, which: Which, own: Drawn, labels: str) -> Stage:
  """Trains one model; `labels`: a hash of those of D."""
  return planner.trained(
    f'{which.kind}{which.number}',
    f'{which.kind} {which.number}',
    functools.partial(shadows.train_model, which=which),
    kind=which.kind,
    number=which.number,
    rows=key(own.rows.tolist()),
    labels=labels,
    seed=planner.study.draws.of('source', 0),
  )


def _made(
  planner: Planner,
  drawn: Mapping[Which, Drawn],
  models: Mapping[Which, Stage],
  own: Chosen,
  copy: int = 0,
) -> dict[Which, Stage]:
  """Has each model forget its requests, each by itself."""
  found, work = {}, shadows.unlearn_requests
  for which, model in models.items():
    found[which] = planner.made(
      f'{which.kind}{which.number}',
      f'{which.kind} {which.number} · {own.text}' + ', again' * copy,
      own,
      functools.partial(work, which=which, copy=copy),
      {'source': model},
      which.requests,
      kind='requests',
      requests=key([rows.tolist() for rows in drawn[which].requests]),
      seed=planner.study.draws.of('unlearn', 0),
      copy=copy,
    )
  return found


def report(plan: Plan, errors: Mapping[str, str], asked: Any) -> Audit:
  """All that audit.json holds; a strategy that failed is left out, and named.

  `errors`: by key of a stage. `asked`: what the flags said.
  """
  failed = {
    text: next(errors[s.key] for s in own.values() if s.key in errors)
    for text, own in plan.made.items()
    if errors.keys() & {stage.key for stage in own.values()}
  }
  source = Chosen(SOURCE, {}, Strategy(say('audit', 'label'), SOURCE), {})
  kept = [source, *(c for c in plan.chosen if c.text not in failed)]
  game, truth = plan.game, plan.splits.truth
  own = next(iter(plan.drawn.values()))
  audit = Audit(
    command=results.command(),
    config=asked,
    environment=provenance.environment(),
    attack=game.attack,
    data=titled(plan.setup),
    model=plan.setup.facts.network,
    train=plan.splits.train.size,
    request=len(own.requests[0]),
    requests=len(own.requests),
    models=game.shadows,
    targets=game.targets,
    mislabelled=0 if truth is None else len(truth),
    rows=[],
    warnings=[f'{text} is left out: {why}' for text, why in failed.items()],
  )
  if game.attack == 'ensemble':
    return dataclasses.replace(audit, rows=_ensembles(plan, kept))
  before = _seen(plan, plan.models, SHADOW)
  learned = before.phi[:, : audit.train], before.status
  exposed = attacks.most_vulnerable(*learned, game.slice)
  _require_judged(plan, exposed)
  _, retrain, *others = kept
  null = _attacked(plan, retrain, exposed)
  more = [_attacked(plan, c, exposed, null) for c in (source, *others)]
  lost = shadows.forgotten(plan.splits)
  wrong = 0 if truth is None else int(np.isin(exposed, lost).sum())
  return dataclasses.replace(
    audit,
    rows=[more[0], null, *more[1:]],
    slice=len(exposed),
    mislabelled_slice=wrong,
  )


def _require_judged(plan: Plan, exposed: np.ndarray) -> None:
  """Refuses a slice of which no target forgot any, or none never saw any."""
  own = [own for which, own in plan.drawn.items() if which.kind == TARGET]
  lost = [np.isin(exposed, np.concatenate(each.requests)).sum() for each in own]
  never = [(~np.isin(exposed, each.rows)).sum() for each in own]
  if not (sum(lost) and sum(never)):
    allowed = f'more, or more --targets: of its {len(exposed)} images these'
    allowed += f' forgot {sum(lost)} and never saw {sum(never)}; what is'
    raise FlagError('slice', plan.game.slice, f'{allowed} trained is kept')


class _Seen(NamedTuple):
  """What is known of all models of a kind, one row a model or request."""

  phi: np.ndarray  # `[rows, N + T]`, of D and the test images
  right: np.ndarray  # `[rows, N + T]`
  status: np.ndarray  # `[rows, N]`


def _seen(plan: Plan, stages: Mapping[Which, Stage], kind: str) -> _Seen:
  """Of models as trained all that they learned is IN_FORGET: to be found."""
  total, found = plan.splits.train.size, []
  for which in (which for which in stages if which.kind == kind):
    own, (phi, right) = plan.drawn[which], shadows.read(stages[which])
    status = np.full((len(own.requests), total), Status.OUT, np.int8)
    status[:, own.rows] = Status.IN_RETAIN
    for row, forgotten in zip(status, own.requests):
      row[forgotten] = Status.IN_FORGET
    if phi.ndim == 1:
      phi, right = phi[None], right[None]
      status = np.where(status[:1], Status.IN_FORGET, Status.OUT)
    found.append(_Seen(phi, right, status))
  return _Seen(*map(np.concatenate, zip(*found)))


def _attacked(
  plan: Plan, chosen: Chosen, exposed: np.ndarray, null: Row | None = None
) -> Row:
  """What U-LiRA finds of one strategy; `null`: of Retrain."""
  stages = plan.made.get(chosen.text, plan.models)
  shadow, target = (_seen(plan, stages, kind) for kind in (SHADOW, TARGET))
  forgotten, total = Status.IN_FORGET, target.status.shape[1]
  retained = forgotten if chosen.strategy.role == SOURCE else Status.IN_RETAIN
  every = np.arange(total)
  groups = {
    'forget': (every, forgotten),
    'slice': (exposed, forgotten),
    'retain': (every, retained),
  }
  right = target.right[:, :total]
  accuracy = {
    'forget': right[target.status == forgotten],
    'retain': right[target.status == retained],
    'test': target.right[:, total:],
  }
  names, labels = plan.setup.dataset.class_names, plan.splits.train.own_labels
  ids = plan.setup.dataset.ids[np.asarray(plan.splits.train.indices)]
  its = null.attacks if null else {}
  return Row(
    chosen.text,
    chosen.label,
    chosen.strategy.role,
    {name: float(own.mean()) for name, own in accuracy.items()},
    {
      name: _attack(plan, shadow, target, *group, its.get(name))
      for name, group in groups.items()
    },
    {
      f'{ids[n]} · {names[labels[n]]}': {
        f'{kind}{side}': seen.phi[seen.status[:, n] == status, n].tolist()
        for kind, seen in (('', shadow), ('target_', target))
        for side, status in (('outside', Status.OUT), ('inside', forgotten))
      }
      for n in exposed[:_SHOWN]
    },
  )


def _attack(
  plan: Plan,
  shadow: _Seen,
  target: _Seen,
  columns: np.ndarray,
  members: Status,
  null: Attack | None,
) -> Attack:
  """U-LiRA of some examples; `null`: of the same by Retrain."""
  truth = target.status[:, columns]
  found = attacks.u_lira(
    *(shadow.phi[:, columns], shadow.status[:, columns]),
    *(target.phi[:, columns], truth),
    members=members,
  )
  scores, targets = found.log_ratio, []
  # Rows are requests; models are counted.
  each = shadow.status[:, columns].reshape(plan.game.shadows, -1, len(columns))
  fewest = [
    int((each == own).any(1).sum(0).min()) for own in (members, Status.OUT)
  ]
  inside, outside = scores[truth == members], scores[truth == Status.OUT]
  # All requests to one target model are one observation.
  ways = (np.split(array, plan.game.targets) for array in (scores, truth))
  for own, its in zip(*ways):
    both = own[its == members], own[its == Status.OUT]
    targets.append(attacks.auc(*both) if min(map(len, both)) else None)
  return Attack(
    auc=found.auc,
    targets=targets,
    interval=_interval(targets),
    minus_null=_interval(targets, null.targets) if null else None,
    balanced_accuracy=found.balanced_accuracy,
    tpr={f'{rate:g}': share for rate, share in found.tpr.items()},
    members=len(inside),
    others=len(outside),
    fewest_in=fewest[0],
    fewest_out=fewest[1],
    roc=[[f, attacks.tpr_at_fpr(inside, outside, f)] for f in _RATES.tolist()],
  )


def _interval(
  values: Sequence[float | None], others: Sequence[float | None] = ()
) -> Estimate | None:
  """Over target models; of paired differences, if there are `others`."""
  both = np.array([values, others or [0.0] * len(values)], float)
  if np.isnan(both).any():
    return None
  return Estimate.of(metrics.mean_interval((both[0] - both[1]).tolist()))


def _ensembles(plan: Plan, every: Sequence[Chosen]) -> list[Row]:
  """Each strategy against Retrain; Retrain's own row is of as many others."""
  total, forget = plan.splits.train.size, shadows.forgotten(plan.splits)
  parts = {
    'forget': forget,
    'retain': np.setdiff1d(np.arange(total), forget),
    'test': total + np.arange(plan.splits.test.size),
  }
  retrain = _seen(plan, plan.made[every[1].text], MEMBER)
  its = {name: retrain.right[:, part].mean() for name, part in parts.items()}
  rows = []
  for chosen in every:
    text = _AGAIN if chosen is every[1] else chosen.text
    own = _seen(plan, plan.made.get(text, plan.models), MEMBER)
    accuracy = {n: float(own.right[:, p].mean()) for n, p in parts.items()}
    pairs = {n: (own.phi[:, p], retrain.phi[:, p]) for n, p in parts.items()}
    score, _ = attacks.forgetting_score(*pairs['forget'])
    left = [accuracy[name] / its[name] for name in ('retain', 'test')]
    klom = {name: attacks.klom(*pair) for name, pair in pairs.items()}
    rows.append(
      Row(
        chosen.text,
        chosen.label,
        chosen.strategy.role,
        accuracy,
        forgetting_score=score,
        final_score=float(score * np.prod(left)),
        klom={
          name: [float(found.mean()), float(np.percentile(found, 95))]
          for name, found in klom.items()
        },
      )
    )
  return rows
