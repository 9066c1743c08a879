"""Makes a trained model forget, in every way of the paper, and reports on it.

  python -m experiments.unlearn

trains a source and a retrained reference on scikit-learn's digits, unlearns a
tenth of the training images with each strategy and writes a report: minutes on
2 CPU cores, that end with what results/cpu/digits/report.md begins with. With
--degree it measures the SPD-GAN unlearning degree of each strategy as well.
"""

from experiments import config
from experiments.runtime import binary


def main(asked: config.Study) -> None:
  """From a configuration to a report."""
  from experiments.study import study  # Once the flags are known to be good.

  study.run(asked)


if __name__ == '__main__':
  binary.run(main, config.Study)
