from . import attacks, strategies
from .base import (
  Batch,
  Context,
  Dataset,
  Examples,
  InputError,
  Model,
  ModelState,
  Splits,
  stateless,
)
from .calibration import Calibrated, calibrated_degree
from .data import split_forget
from .degree import pair_degree
from .divergences import js_divergence, similarity
from .evaluation import METRICS, Evidence, Metric, evaluate
from .finetuning import Budget, StopRule, minimize, monitor
from .masks import (
  count_scalars,
  last_k_mask,
  random_topk_mask,
  randomk_mask,
  topk_mask,
)
from .metrics import (
  acceleration,
  accuracy,
  forgetting_rate,
  gap,
  mean_interval,
  memory_retention_rate,
  paired_interval,
  pixel_change,
)
from .models import definition_order, from_linen
from .models.equinox import from_equinox
from .models.haiku import from_haiku
from .models.nnx import from_nnx
from .normalization import reestimate
from .objectives import Term
from .perturbation import donor_mix, perturb, reinitialize
from .prediction import predict
from .sensitivity import gradient_sensitivity, model_objective
from .spd_gan import (
  GeneratorSettings,
  fit_generator,
  perturb_images,
)
from .strategies import Edit, Strategy
from .training import train
from .unlearning import Unlearning, unlearn

__version__: str

__all__ = [
  'Batch',
  'Budget',
  'Calibrated',
  'Context',
  'Dataset',
  'Edit',
  'Evidence',
  'Examples',
  'GeneratorSettings',
  'InputError',
  'METRICS',
  'Metric',
  'Model',
  'ModelState',
  'Splits',
  'StopRule',
  'Strategy',
  'Term',
  'Unlearning',
  'acceleration',
  'accuracy',
  'attacks',
  'calibrated_degree',
  'count_scalars',
  'definition_order',
  'donor_mix',
  'evaluate',
  'fit_generator',
  'forgetting_rate',
  'from_equinox',
  'from_haiku',
  'from_linen',
  'from_nnx',
  'gap',
  'gradient_sensitivity',
  'js_divergence',
  'last_k_mask',
  'mean_interval',
  'memory_retention_rate',
  'minimize',
  'model_objective',
  'monitor',
  'pair_degree',
  'paired_interval',
  'perturb',
  'perturb_images',
  'pixel_change',
  'predict',
  'random_topk_mask',
  'randomk_mask',
  'reestimate',
  'reinitialize',
  'similarity',
  'split_forget',
  'stateless',
  'strategies',
  'topk_mask',
  'train',
  'unlearn',
]
