"""From finished stages to the dictionary that a report is written from."""

from collections.abc import Sequence
import datetime
import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from experiments import flags, machine, pipeline, problem
from experiments.stages import Stage
from unlearn_jax import metrics, parallel
from unlearn_jax.evaluation import Evaluation, compare
from unlearn_jax.finetuning import StopRule
from unlearn_jax.strategies import REFERENCE, STRATEGIES
from unlearn_jax.training import Epoch
from unlearn_jax.unlearning import NOTHING

_CONTROL = 'finetune'
_SELECTED = (
  '--train_mask=selected: each strategy moves the scalars that it perturbed'
  ' only; the K = 0 control perturbs none and moves all.'
)


def report(
  setup: problem.Setup, runs: Sequence[pipeline.Run], wall_seconds: float
) -> dict[str, Any]:
  """Everything that `report.json` holds, and all that the pages show.

  Args:
    setup: data and model.
    runs: one per seed, each with the same strategies.
    wall_seconds: of the whole command.

  Returns:
    A JSON-serialisable dictionary; NaN does not occur.
  """
  values = setup.values
  tried = {**runs[0].stages, **runs[0].failed}
  names = ['source', *(name for name in STRATEGIES if name in tried)]
  measured = {name: [_values(setup, r, name) for r in runs] for name in names}
  rows = [_row(setup, runs, name, measured) for name in names]
  splits = runs[0].splits
  rule = {
    'js_change': values.stop_js_change,
    'retain_share': values.stop_retain_share,
    'max_epochs': values.epochs,
  }
  return {
    'schema': 1,
    'command': 'python -m ' + ' '.join(['experiments.unlearn', *sys.argv[1:]]),
    'config': _config(values),
    'environment': {
      **environment(),
      'wall_seconds': round(wall_seconds, 1),
      'stage_seconds': round(_stage_seconds(runs), 1),
    },
    'dataset': {
      'name': setup.dataset.name,
      'train': splits.train.size,
      'test': splits.test.size,
      'forget': splits.forget.size,
      'retain': splits.retain.size,
      'classes': len(setup.dataset.class_names),
      'image_shape': list(setup.dataset.image_shape),
      'fingerprint': setup.dataset.fingerprint,
    },
    'model': {
      'name': setup.facts['model'],
      'width': setup.facts['width'],
      'dtype': setup.facts['dtype'],
      'parameters': setup.parameters,
      'tensors': len(setup.tensor_sizes),
    },
    'stop_rule': {**rule, 'text': _rule_text(rule)},
    'seeds': [run.seed for run in runs],
    'rows': rows,
    'warnings': [
      line.removeprefix('warning: ')
      for line in problem.describe(setup, [run.splits for run in runs])
      if line.startswith('warning: ')
    ],
    'notes': [_SELECTED] if values.train_mask == 'selected' else [],
  }


def _stage_seconds(runs: Sequence[pipeline.Run]) -> float:
  """Wall seconds behind all stages, those of earlier commands included."""
  return sum(
    stage.record.get('wall_seconds', 0.0)
    for run in runs
    for stage in run.stages.values()
  )


def _rule_text(rule: dict[str, Any]) -> str:
  return (
    'The clock stops after the first epoch in which the mean JS divergence to'
    f' the source on D_UL moved by at most {rule["js_change"]:g} bits and the'
    f" accuracy on D_RE was at least {rule['retain_share']:g} of the source's"
    ' (both on at most 2,048 evenly spaced examples). It ends every'
    f' fine-tuning, at most {rule["max_epochs"]} epochs; Retrain runs its'
    ' whole recipe, and the rule only says when its clock stops.'
  )


def _values(
  setup: problem.Setup, run: pipeline.Run, name: str
) -> dict[str, float | None]:
  """The numbers of one strategy in one run; none where it diverged."""
  if name in run.failed:
    return {}
  source = pipeline.source_predictions(run.stages['source'], run.splits)
  stage, retrained = run.stages[name], run.stages.get('retrain')
  own = source if name == 'source' else stage.predictions
  evaluation: Evaluation = compare(
    own, source, run.splits, retrained.predictions if retrained else None
  )
  values: dict[str, float | None] = dict(evaluation._asdict())
  if name == 'source' or not stage.record['history']:
    return values
  seconds = _clock(setup, stage)[1]
  values['seconds'] = seconds
  values['compile_seconds'] = stage.record['compile_seconds']
  if retrained and retrained.record['history']:
    values['acceleration'] = metrics.acceleration(
      _clock(setup, retrained)[1], seconds
    )
  if STRATEGIES[name].role != REFERENCE:
    counts = stage.record['by_tensor'].values()
    values['scalars_changed'] = sum(counts)
    values['tensors_changed'] = sum(count > 0 for count in counts)
    values['perturbation_js'] = stage.record['perturbation_js']
  return values


def _clock(setup: problem.Setup, stage: Stage) -> tuple[int | None, float]:
  """When the stop rule held first, and the seconds up to then.

  None, and all of the seconds, where it never did.
  """
  record, values = stage.record, setup.values
  history = [
    Epoch(row['epoch'], row['loss'], row['seconds'], row)
    for row in record['history']
  ]
  share = values.stop_retain_share
  rule = StopRule(
    values.stop_js_change, share * record['source_retain_accuracy']
  )
  stop = rule.epoch(history)
  return stop, record['selection_seconds'] + history[stop or -1].seconds


def _row(
  setup: problem.Setup,
  runs: Sequence[pipeline.Run],
  name: str,
  measured: dict[str, list[dict[str, float | None]]],
) -> dict[str, Any]:
  row = STRATEGIES.get(name)
  stages = [run.stages[name] for run in runs if name in run.stages]
  failed = [run.failed[name] for run in runs if name in run.failed]
  own = {
    metric: [values.get(metric) for values in measured[name]]
    for metric in max(measured[name], key=len)
  }
  paired = {}
  if name not in ('source', _CONTROL) and _CONTROL in measured:
    for metric in own:
      column, control = (
        _known(own[metric]),
        _known([values.get(metric) for values in measured[_CONTROL]]),
      )
      if column and control:
        paired[metric] = _interval(metrics.paired_interval(column, control))
  histories = [stage.record['history'] for stage in stages]
  curved = row is not None and all(histories) and not failed
  label = row.label if row else 'Source (untouched)'
  if failed:
    # Means over the seeds that came through would flatter it: there are none.
    label += f' (diverged: {len(failed)} of {len(runs)} seeds)'
  return {
    'strategy': name,
    'label': label,
    'role': row.role if row else 'source',
    'settings': stages[0].manifest.get('settings', {}) if stages else {},
    'values': own,
    'mean': {
      metric: _interval(metrics.mean_interval(known))
      for metric, column in own.items()
      if (known := _known(column))
    },
    'paired': paired,
    'curves': [_curve(history) for history in histories] if curved else [],
    'stop_epoch': [_clock(setup, s)[0] for s in stages] if curved else [],
    'selection': _selection(setup, stages) if curved else None,
    'warnings': _warnings(setup, row, stages) if curved else failed,
    'checkpoints': [str(stage.path) for stage in stages],
  }


def _known(column: Sequence[float | None]) -> list[float]:
  """The column if every run has a value, else nothing."""
  known = [value for value in column if value is not None]
  return known if len(known) == len(column) else []


def _interval(interval: metrics.Interval) -> dict[str, float | None]:
  return {
    'mean': interval.mean,
    'low': interval.low,
    'high': interval.high,
  }


def _curve(history: list[dict[str, Any]]) -> dict[str, list[Any]]:
  names = (
    'epoch',
    'forget_accuracy',
    'retain_accuracy',
    'js_to_source',
    'seconds',
  )
  return {name: [epoch[name] for epoch in history] for name in names}


def _selection(setup: problem.Setup, stages: Sequence[Stage]) -> dict[str, Any]:
  counts = [stage.record['by_tensor'] for stage in stages]
  return {
    'by_tensor': {
      path: float(np.mean([count[path] for count in counts]))
      for path in setup.tensor_sizes
    },
    'tensor_sizes': setup.tensor_sizes,
    'order': list(setup.tensor_sizes),
  }


def _warnings(
  setup: problem.Setup, row: Any, stages: Sequence[Stage]
) -> list[str]:
  found = []
  if row.change is not None and row.stops:
    bits = float(np.mean([s.record['perturbation_js'] for s in stages]))
    if bits < NOTHING:
      found.append(
        f'{row.label}: the perturbation moved held-out outputs by only'
        f' {bits:.2g} bits; what follows is plain fine-tuning'
      )
  missed = sum(_clock(setup, stage)[0] is None for stage in stages)
  if missed:
    found.append(
      f'{row.label}: the stop rule was not met in {missed} of'
      f' {len(stages)} run(s); the seconds are a lower bound'
    )
  return found


def _config(values: Any) -> dict[str, Any]:
  """Every flag of the binary, its defaults filled in."""
  own = flags.names()
  config = {name: getattr(values, name) for name in sorted(own)}
  return {**config, 'workdir': str(flags.workdir(values))}


def environment() -> dict[str, Any]:
  """Versions, device and commit: what another must know to get the same."""
  libraries = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  devices = parallel.devices()
  kind = devices[0].device_kind
  if devices[0].platform == 'cpu':
    kind = f'{machine.cpu_name()}, {machine.cores()} cores'
  return {
    **{name: _version(name) for name in ('unlearn_jax', *libraries)},
    'python': platform.python_version(),
    'platform': devices[0].platform,
    'device': f'{devices[0].platform}: {kind}',
    'devices': len(devices),
    'processes': jax.process_count(),
    'git_commit': _git_commit(),
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'not installed'  # It is run from a clone.


def _git_commit() -> str | None:
  """The commit of the checkout that runs, '+' where it was changed since."""
  here = pathlib.Path(__file__).parent

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', *arguments], cwd=here, capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    dirty = '+' if git('status', '--porcelain', '--', '*.py') else ''
    return git('rev-parse', 'HEAD') + dirty
  except (OSError, subprocess.CalledProcessError):
    return None
