"""What the paper prints, as data: the numbers of its tables, its settings.

Zuo, Tang, Li and Datta, *Machine Unlearning Through Fine-Grained Model
Parameters Perturbation*, IEEE TKDE 2025 (arXiv 2401.04385), Section IV. Its
figures are pictures without numbers; of them only what the text says can be
compared (`judgements`).
"""

from typing import NamedTuple

# What can be asked for with --only, in the order of the page.
ARTEFACTS = {
  'table1': 'Table I: parameters perturbed',
  'table2': 'Table II: the strategies',
  'fig1': 'Figure 1: accuracy after Random-k',
  'fig4': 'Figure 4: images before and after SPD-GAN',
  'fig5': 'Figure 5: the choice of K',
  'fig6': 'Figure 6: accuracy by epoch, Top-K and Random-k',
  'fig7': 'Figure 7: acceleration',
  'fig8': 'Figure 8: accuracy on D_RE by epoch, with Random-TopK',
  'fig9': 'Figure 9: unlearning degree',
  'sweeps': 'What the paper leaves open: ε, λ, learning rate, sensitivity',
}

# Printed in Table I. Model: K, then Random-k, EU-5/CF-5 and EU-10/CF-10.
TABLE_1 = {
  'resnet18': (45, '0.558M', '2.37M', '4.73M'),
  'vgg19': (30, '1.002M', '6666', '4.73M'),
  'densenet121': (45, '0.348M', '49162', '0.178M'),
  'googlenet': (50, '0.308M', '10634', '0.265M'),
}


class Cells(NamedTuple):
  """A row of Table II.

  Attributes:
    forget_accuracy: Acc_UL, %.
    retain_accuracy: Acc_RE, %.
    similarity: to Retrain, %.
    seconds: unlearn time on an A100.
  """

  forget_accuracy: float
  retain_accuracy: float
  similarity: float
  seconds: float


# ResNet18, CIFAR-10. FR and MRR follow from the accuracies (the source has
# about 99.98 % of D_UL right), so they are no evidence of their own.
TABLE_2 = {
  0.05: {
    'top_k': Cells(80.01, 97.61, 88.37, 76.97),
    'random_k': Cells(76.56, 90.07, 78.77, 135.43),
    'eu_5': Cells(90.68, 98.44, 84.88, 534.76),
    'eu_10': Cells(88.88, 99.02, 69.42, 662.34),
    'cf_5': Cells(86.52, 99.16, 78.65, 586.6),
    'cf_10': Cells(86.64, 99.54, 99.98, 607.24),
    'retrain': Cells(84.84, 100, 100, 1190.15),
  },
  0.10: {
    'top_k': Cells(80.14, 97.19, 85.36, 192.86),
    'random_k': Cells(81.48, 96.52, 91.03, 249.11),
    'eu_5': Cells(88.7, 98.88, 82.25, 541.38),
    'eu_10': Cells(86.88, 98.12, 90.4, 417.87),
    'cf_5': Cells(85.52, 97.89, 70.27, 515.13),
    'cf_10': Cells(86.26, 98.91, 91.37, 664.39),
    'retrain': Cells(84.8, 100, 100, 1040.08),
  },
  0.15: {
    'top_k': Cells(75.48, 96.8, 89.88, 203.23),
    'random_k': Cells(79.85, 98.09, 83.59, 335.87),
    'eu_5': Cells(84.61, 97.46, 85.11, 494.6),
    'eu_10': Cells(83.52, 98.75, 91.38, 627.94),
    'cf_5': Cells(83.64, 95.46, 85.27, 558.31),
    'cf_10': Cells(82.05, 94.79, 91.75, 685.18),
    'retrain': Cells(84.85, 100, 100, 950.51),
  },
  0.20: {
    'top_k': Cells(75.46, 97.07, 86.37, 425.01),
    'random_k': Cells(77.83, 98.99, 94.51, 638.63),
    'eu_5': Cells(84.48, 97.91, 71.77, 636.77),
    'eu_10': Cells(83.19, 96.81, 83.92, 741.51),
    'cf_5': Cells(82.86, 93.14, 81.76, 778.28),
    'cf_10': Cells(81.69, 92.17, 91.9, 979.65),
    'retrain': Cells(85.24, 100, 100, 1400.9),
  },
}


def acceleration(fraction: float, row: str) -> float | None:
  """How many times as fast as Retrain, by Table II's own seconds.

  Example:
    >>> round(acceleration(0.05, 'top_k'), 2)
    15.46
  """
  cells = TABLE_2.get(fraction)
  if cells is None or row not in cells:
    return None
  return cells['retrain'].seconds / cells[row].seconds
