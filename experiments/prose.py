"""The words around the numbers: what was done, and how to read it.

Written for two readers: a researcher, and a privacy engineer who meets
unlearning for the first time. All of it is plain text, escaped by whoever
renders it.
"""

from experiments import verdicts
from experiments.verdicts import CONTROL, GAP, Report, Row


def title(report: Report) -> str:
  """One line: what was forgotten, from which model."""
  data = report['dataset']
  return (
    f'Forgetting {data["forget"]:,} of {data["train"]:,} '
    f'{data["name"]} images with {report["model"]["name"]}'
  )


def what_was_done(report: Report) -> str:
  """Data set, forget set, model and seeds, in two sentences."""
  data, model, seeds = report['dataset'], report['model'], report['seeds']
  share = 100 * data['forget'] / max(1, data['train'])
  shape = ' × '.join(map(str, data['image_shape']))
  times = 'once' if len(seeds) == 1 else f'with {len(seeds)} seeds'
  reference = (
    f' and compared with Retrain, a model trained from scratch on the other '
    f'{data["retain"]:,}.'
    if verdicts.find(report, 'retrain')
    else '; no model was retrained without them to compare with.'
  )
  dtype = model.get('dtype', 'float32')
  computed = '' if dtype == 'float32' else f', activations in {dtype}'
  return (
    f'A {model["name"]} of width {model["width"]} ({model["parameters"]:,} '
    f'parameters in {model["tensors"]} tensors{computed}) was trained on '
    f'{data["train"]:,} images of {data["name"]} ({data["classes"]} classes, '
    f'{shape} pixels; {data["test"]:,} more for testing). '
    f'Then {data["forget"]:,} of the training images ({share:.1f} %) were to '
    f'be forgotten: each strategy below was run {times}{reference}'
  )


def question(report: Report) -> str:
  """What the verdicts answer."""
  judged = any(row['role'] in ('method', 'baseline') for row in report['rows'])
  if not judged or not verdicts.find(report, 'retrain'):
    return ''
  return (
    'Is the model after a strategy closer to Retrain than after plain '
    'fine-tuning (K = 0), which perturbs nothing? Closeness is the gap to '
    'Retrain: the mean difference in accuracy and attack AUC.'
  )


def how_to_read(report: Report) -> list[tuple[str, str]]:
  """Pairs of a claim in a few words and its explanation."""
  return [
    ('Lower forget accuracy is not better.', _forget_accuracy(report)),
    (
      'Gap to Retrain, smaller is better.',
      'The mean absolute difference from Retrain in forget, retain and test '
      'accuracy and in attack AUC, in percentage points. Zero would be '
      'Retrain’s own numbers; a second Retrain with another seed would not '
      'reach zero either.',
    ),
    ('The K = 0 row is the bar.', _control(report)),
    ('Attack AUC.', _attack(report)),
    ('Stop rule.', _stop_rule(report)),
    (
      'The paper’s own measures.',
      'FR (forgetting rate) is the drop in accuracy on the forget set, divided '
      'by the source’s accuracy on the forget set. MRR (memory retention rate) '
      'is the accuracy on the retained images, also divided by the source’s '
      'accuracy on the forget set, so that it can exceed 100 %. Similarity is '
      'one minus the Jensen–Shannon divergence, in bits, from Retrain’s '
      'outputs on the forget set; 100 % means equal outputs.',
    ),
    (
      'What was changed.',
      'Scalars and tensors that the strategy altered before fine-tuning. '
      'Effect left is how much that still changed the outputs on held-out '
      'images once BatchNorm’s statistics were estimated anew (Jensen–Shannon '
      'divergence, 0 to 1 bit): near 0, the perturbation did nothing and the '
      'row shows fine-tuning.',
    ),
    ('Intervals.', _intervals(report)),
  ]


def _percent(row: Row | None, metric: str) -> str | None:
  value = verdicts.estimate(row, metric) if row else None
  return f'{verdicts.number(100 * value.mean, 1)} %' if value else None


def _forget_accuracy(report: Report) -> str:
  score = _percent(verdicts.find(report, 'retrain'), 'forget_accuracy')
  here = f' (here {score})' if score else ''
  return (
    'A model that never saw the forget set still gets many of its images '
    f'right, because it generalises: that is Retrain’s forget accuracy{here}. '
    'A model that scores clearly less has not forgotten more; it was damaged '
    'on those images, and that can itself reveal which they were. The goal is '
    'to behave like Retrain.'
  )


def _control(report: Report) -> str:
  if not verdicts.find(report, CONTROL):
    return (
      'Plain fine-tuning with nothing perturbed was not run here, so what a '
      'strategy owes to its perturbation cannot be told from what the '
      'fine-tuning does alone.'
    )
  text = (
    'Plain fine-tuning: the same training with nothing perturbed. What it '
    'reaches alone cannot be credited to a perturbation, so every strategy is '
    'compared with it, seed by seed.'
  )
  drawn = verdicts.find(report, 'random_scalars')
  if drawn:
    text += (
      f' The row “{drawn["label"]}” perturbs as many scalars as Top-K, drawn '
      'by lot: choosing them well has to beat that.'
    )
  return text


def _attack(report: Report) -> str:
  scores = []
  for strategy, name in (('source', 'the source'), ('retrain', 'Retrain')):
    row = verdicts.find(report, strategy)
    value = verdicts.estimate(row, 'mia_auc') if row else None
    if value:
      scores.append(f'{name} {verdicts.number(value.mean, 3)}')
  here = f' Here: {", ".join(scores)}.' if scores else ''
  return (
    'A membership-inference attack guesses from an example’s loss whether it '
    'is from the forget set or from the test set. 0.5 is a coin toss; 1 tells '
    'them apart always, and far below 0.5 tells them apart too.'
    f'{here} It is a simple attack: a stronger one may see more, and no number '
    'in this report is a guarantee of privacy.'
  )


def _stop_rule(report: Report) -> str:
  text = str(report['stop_rule']['text']).strip().rstrip('.')
  return (
    f'{text}. The same for every strategy and for Retrain. Unlearn time runs '
    'to that epoch, compilation apart; speed-up is Retrain’s time divided by '
    'the strategy’s own.'
  )


def _intervals(report: Report) -> str:
  if len(report['seeds']) < 2:
    return (
      'One seed gives no interval: no difference in this report can be told '
      'from chance. Run at least three.'
    )
  return (
    f'All intervals are 95 % each over {len(report["seeds"])} seeds and not '
    'corrected for the number of comparisons. They cover what varies with the '
    'seed, on this data set and model, not what another would give.'
  )


def captions(report: Report) -> dict[str, str]:
  """What stands under each figure, by the figure's name."""
  seeds = len(report['seeds']) > 1
  drawn = any(
    verdicts.estimate(row, GAP)
    for row in report['rows']
    if row['role'] != 'reference'
  )
  gap = 'Distance from Retrain; shorter is closer. ' + (
    'Overlapping intervals do not settle whether two strategies differ, '
    'because seeds are paired: the sentences at the top do.'
    if seeds
    else 'One seed: the order of the bars may be chance.'
  )
  ran = (
    'lines are means and bands span the seeds, a thin line is a seed that ran '
    'on when another had stopped; '
  )
  goal = (
    'The forget curve should end on the dotted line, not below it. '
    if verdicts.find(report, 'retrain')
    else ''
  )
  return {
    'gap_to_retrain': gap if drawn else '',
    'accuracy_curves': (
      'Accuracy by epoch of unlearning. Epoch 0 is right after the '
      'perturbation, with BatchNorm’s statistics estimated anew; '
      f'{ran if seeds else ""}the shaded panel is the K = 0 control. Retrain '
      f'has a time axis of its own. {goal}The vertical axis starts below the '
      'lowest final value, not at 0; a deeper start is given in words.'
    ),
    'perturbed_by_layer': (
      'Where the perturbed parameters sit: one line a tensor, in the order in '
      'which the model defines them, mean over seeds. Numbers beside dots are '
      'counts of scalars.'
    ),
  }


def warnings(report: Report) -> list[str]:
  """The report's warnings and those of its rows, with the row's label."""
  found = list(report.get('warnings') or [])
  for row in report['rows']:
    for text in row.get('warnings') or []:
      named = str(text).startswith(row['label'])
      found.append(text if named else f'{row["label"]}: {text}')
  return found
