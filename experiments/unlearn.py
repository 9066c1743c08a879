"""Makes a trained model forget, in as many ways as asked, and reports on it.

  python -m experiments.unlearn

trains a source on scikit-learn's digits, a tenth of them mislabelled, and a
reference without these, makes the source forget them in ten ways, and writes a
report: minutes on 2 CPU cores, that end with what results/cpu/digits/report.md
begins with. With --references it trains more references, by which an attack
judges all of them; with --degree, where labels are as they are, it measures the
SPD-GAN unlearning degree of each strategy as well.
"""

from . import config
from .runtime import binary


def main(asked: config.Study) -> None:
  """From a configuration to a report."""
  from .study import study  # Once the flags are known to be good.

  study.run(asked)


if __name__ == '__main__':
  binary.run(main, config.Study)
