"""The unlearning degree on paper: a dictionary, sentences, tables, pictures."""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from experiments import degree_figures, figures, files, tables, verdicts
from experiments.degree_figures import Bar
from unlearn_jax import metrics
from unlearn_jax.base import require_file
from unlearn_jax.calibration import (
  RESOLUTION,
  Calibrated,
  calibrated_degree,
)
from unlearn_jax.pairs import Degree, Run, Standing
from unlearn_jax.spd_gan import GeneratorSettings

# The files of `write`, by what they are.
FILES = {
  'json': 'degree.json',
  'markdown': 'degree.md',
  'bars': 'degree_bars.png',
  'images': 'degree_images.png',
  'curves': 'degree_curves.png',
}
# Each pair, as a reader sees it.
LABELS = {
  'unlearned': 'M_UL, the unlearned model',
  'retrained': 'Retrain, the target',
  'null': 'null: M′, same data, another seed',
  'unseen': 'null: fitted on images no model saw',
  'identity': 'null: M against itself',
}
VERBS = {
  'separates': 'separates from the null',
  'does not separate': 'does not separate from the null',
  'cannot tell': 'cannot be told from the null, nor told to equal it',
}
SETS = ('held_out', 'fitted', 'retain', 'test')
ACCURACIES = [
  *('M, clean', 'M, perturbed', 'Other, clean', 'Other, perturbed'),
  *('L∞, /255', 'RMS, /255', 'PSNR, dB', 'SSIM'),
]

Dict = dict[str, Any]


def assemble(pairs: Dict, settings: GeneratorSettings) -> Dict:
  """What is measured of one unlearned model, from what `pair` makes.

  Args:
    pairs: by the keys of `LABELS`; 'retrained' may be missing.
    settings: of the generators.
  """

  def values(name: str) -> list[float]:
    return values_of({'pairs': pairs}, name)

  null = values('null')
  target = values('retrained') if 'retrained' in pairs else None
  found: Dict = {
    'schema': 1,
    'settings': dataclasses.asdict(settings),
    'pairs': pairs,
    'calibrated': calibrated(
      calibrated_degree(values('unlearned'), null, target)
    ),
    'calibrated_target': target and calibrated(calibrated_degree(target, null)),
  }
  return {**found, 'sentence': sentence(found), 'warnings': warnings(found)}


def pair(name: str, degree: Degree) -> Dict:
  """One pair of models, JSON-serialisable; `name` is a key of `LABELS`."""
  runs = [_run(run) for run in degree.runs]
  means = {
    metric: metrics.mean_interval([run['held_out'][metric] for run in runs])
    for metric in ('degree', 'gap', 'excess')
  }
  return {
    'label': LABELS[name],
    **{metric: interval._asdict() for metric, interval in means.items()},
    'took_off': degree.took_off,
    'runs': runs,
  }


def _run(run: Run) -> Dict:
  return {
    'seed': run.seed,
    **{name: _standing(getattr(run, name)) for name in SETS},
    'pixels': run.pixels._asdict(),
    'took_off': run.took_off,
    'curve': [
      {'epoch': epoch.epoch, 'loss': epoch.loss, **epoch.measured}
      for epoch in run.history
    ],
  }


def _standing(standing: Standing) -> Dict:
  own = {name: getattr(standing, name) for name in ('degree', 'gap', 'excess')}
  return {**standing._asdict(), **own}


def calibrated(found: Calibrated) -> Dict:
  """A `Calibrated`, JSON-serialisable."""
  return {**found._asdict(), 'difference': found.difference._asdict()}


def sentence(found: Dict) -> str:
  """Whether the degree separates from the null, in one sentence."""
  own, null = (found['pairs'][name] for name in ('unlearned', 'null'))
  against, count = found['calibrated'], len(own['runs'])
  verb = VERBS[against['verdict']]
  text = (
    f'The degree of the unlearned model, {_share(own["degree"])} on the'
    f' held-out half, {verb}: two models that differ in their seed alone score'
    f' {_share(null["degree"])}, a difference of'
    f' {_share(against["difference"])} (p = {against["p_value"]:.3f},'
    f' {count} generators a side); without any generator the accuracies are'
    f' {100 * own["gap"]["mean"]:.1f} points apart'
  )
  if target := found['calibrated_target']:
    retrained = found['pairs']['retrained']['degree']
    text += f', and Retrain scores {_share(retrained)}'
    if target['verdict'] != 'separates':
      text += ', which does not separate from the null either'
  return f'{text}.'


def _share(interval: Dict) -> str:
  """'61.2 ± 3.4 points'."""
  text = verdicts.number(100 * interval['mean'], 1)
  if interval['low'] is not None:
    text += f' ± {50 * (interval["high"] - interval["low"]):.1f}'
  return f'{text} points'


def warnings(found: Dict) -> list[str]:
  """What makes the degree worth less than it looks."""
  lines = []
  for name, pair in found['pairs'].items():
    if pair['took_off']:
      lines.append(
        f'{LABELS[name]}: in {pair["took_off"]} of {len(pair["runs"])}'
        ' generators the loss took off: for most images of the last epoch'
        ' M_UL’s cross-entropy was at the cap (without one: beyond 2·log C)'
      )
  if found['calibrated_target'] is None:
    lines.append('without a retrained model there is no target to compare with')
  unseen, own = (found['pairs'][n]['degree'] for n in ('unseen', 'unlearned'))
  if own['mean'] - unseen['mean'] < RESOLUTION:
    lines.append(
      'on images that no model saw the same two models score'
      f' {_share(unseen)}: so much is no sign of what was forgotten'
    )
  return lines


def markdown(found: Dict) -> str:
  """The report as GitHub Markdown; pictures are linked by their names."""
  text = tables.markdown_text
  parts = [
    '# Unlearning degree\n',
    f'**{text(found["sentence"])}**\n',
    tables.markdown_list(found['warnings']),
    '## Degree by pair of models\n',
    _degrees(found),
    '## Accuracy and pixels on the held-out half\n',
    _accuracies(found),
    f'![Degree by pair, a dot a generator]({FILES["bars"]})\n',
    f'![Original, perturbed, difference × 10]({FILES["images"]})\n',
    f'![Training curves of the generators]({FILES["curves"]})\n',
    '## How to read this\n',
    tables.markdown_list(_HOW_TO_READ),
    '## How it was run\n',
    '```json\n'
    + files.to_json({k: v for k, v in found.items() if k != 'pairs'})
    + '```\n',
  ]
  return '\n'.join(part for part in parts if part)


_HOW_TO_READ = (
  'The degree is P(M, D_p) − P(M_UL, D_p), D_p = images of the forget set plus'
  ' what a generator makes of them (Eq. 14). The generator is trained to tell'
  ' these two models apart, on one half of the forget set; the degree is that'
  ' of the other half, in points, mean and 95 % interval over generators.',
  'A generator can tell any two models apart to some degree. The null says to'
  ' which: M′ was trained on the same data as M and forgot nothing. The band in'
  ' the picture spans its generators.',
  'The gap is the difference of accuracies on the images as they are; the'
  ' excess is what the generator adds to it.',
  'The p-value is a permutation test over generators. It says how surely these'
  ' models differ in degree, not how another M′ would do: that takes more of'
  ' them. With 5 generators a side it cannot be below 1/252.',
  'A higher degree is not better: the target is Retrain’s.',
)


def _degrees(found: Dict) -> str:
  head = ['Pair', 'Degree, held-out', 'Each generator', 'Fitted half', 'Retain']
  head += ['Test', 'Gap', 'Excess', 'Took off']
  rows = []
  for name, pair in found['pairs'].items():
    runs = pair['runs']
    cells = [LABELS[name], points(pair['degree'])]
    cells.append(
      ', '.join(f'{100 * r["held_out"]["degree"]:.1f}' for r in runs)
    )
    for part in ('fitted', 'retain', 'test'):
      cells.append(points(_mean([run[part]['degree'] for run in runs])))
    cells += [points(pair['gap']), points(pair['excess'])]
    rows.append([*cells, f'{pair["took_off"]} of {len(runs)}'])
  return tables.markdown_rows(head, rows)


def _accuracies(found: Dict) -> str:
  rows = [
    [LABELS[name], *accuracies(pair['runs'])]
    for name, pair in found['pairs'].items()
  ]
  return tables.markdown_rows(['Pair', *ACCURACIES], rows)


def accuracies(runs: Sequence[Dict]) -> list[str]:
  """The cells under `ACCURACIES`: both models, and how far pixels moved."""
  cells = []
  for model in ('source', 'unlearned'):
    for images in ('clean', 'perturbed'):
      column = [run['held_out'][f'{model}_{images}'] for run in runs]
      cells.append(points(_mean(column)))
  pixels = {
    key: [run['pixels'][key] for run in runs] for key in runs[0]['pixels']
  }
  cells += [f'{255 * np.mean(pixels[key]):.1f}' for key in ('linf', 'rms')]
  known = [value for value in pixels['psnr'] if value is not None]
  cells.append(f'{np.mean(known):.1f}' if known else tables.MISSING)
  return [*cells, f'{np.mean(pixels["ssim"]):.3f}']


def _mean(values: Sequence[float]) -> Dict:
  return metrics.mean_interval(values)._asdict()


def points(interval: Dict) -> str:
  """'61.2 ± 3.4', of an interval of shares."""
  return _share(interval).removesuffix(' points')


def bars_of(found: Dict) -> list[Bar]:
  """The bars of one result: the unlearned model, its target, the unseen."""
  roles = {'unlearned': 'method', 'retrained': 'reference', 'unseen': 'source'}
  return [
    Bar(LABELS[name], values_of(found, name), role)
    for name, role in roles.items()
    if name in found['pairs']
  ]


def values_of(found: Dict, name: str) -> list[float]:
  """The held-out degrees of a pair, one a generator."""
  return [run['held_out']['degree'] for run in found['pairs'][name]['runs']]


def write(
  found: Dict, grid: Figure, num_classes: int, directory: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Writes all of `FILES`, each whole or not at all.

  Args:
    found: `assemble`, and what else belongs into degree.json.
    grid: images, `degree_figures.image_grid`.
    num_classes: C.
    directory: where to; made where missing.

  Returns:
    Paths by the keys of `FILES`.

  Raises:
    OSError: something cannot be written.
  """
  null = values_of(found, 'null')
  contents = {
    'bars': figures.png(degree_figures.bars(bars_of(found), null, num_classes)),
    'images': figures.png(grid),
    'curves': figures.png(degree_figures.curves(found)),
    'markdown': markdown(found).encode('utf-8', 'backslashreplace'),
    'json': files.to_json(found).encode(),
  }
  return {
    name: files.replace(directory / FILES[name], content)
    for name, content in contents.items()
  }


def read(path: pathlib.Path) -> Dict | None:
  """A degree.json; None where there is none or it is another program's."""
  try:
    require_file(path)
    found = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError):
    return None
  return found if isinstance(found, dict) and 'pairs' in found else None
