"""Makes a trained model forget, in every way of the paper, and reports on it.

  python -m experiments.unlearn

trains a source and a retrained reference on scikit-learn's digits, unlearns a
tenth of the training images with each strategy and writes a report: about a
minute on 2 CPU cores. It ends with `Report: runs/digits-cnn/report.html` and
the sentences that results/cpu/digits/report.md begins with. With --degree it
measures the SPD-GAN unlearning degree of each strategy as well.
"""

from experiments import config
from experiments.runtime import binary


def main(asked: config.Study) -> None:
  """From a configuration to a report."""
  # Loaded once the flags are known to be good.
  from experiments.report import pages, rendering
  from experiments.study import study
  from unlearn_jax import parallel

  report, grids = study.run(asked)
  root = study.root_of(asked)
  parallel.by_first(lambda: str(pages.write(report, root, grids)))
  rendering.show(pages.summary(report))
  print(f'Report: {root / "report.html"}')


if __name__ == '__main__':
  binary.run(main, config.Study)
