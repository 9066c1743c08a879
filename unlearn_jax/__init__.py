"""Make a trained JAX model forget, and measure honestly how much it forgot.

Every name below is made from names above it:

    splits      = split_forget(key, dataset, fraction=0.1)
    source      = train(key, model, splits.train, epochs=20).state
    sensitivity = gradient_sensitivity(objective, source.params, batch)
    mask        = topk_mask(source.params, sensitivity, k=45)
    perturbed   = perturb(source.params, mask, epsilon=-1.0)
    unlearned   = finetune(key, model, perturbed, splits, teacher=source).state
    evaluation  = evaluate(model, unlearned, source, splits, retrained)

`unlearn` does the middle four in one call, for every strategy of the paper.
"""

from unlearn_jax.attacks import loss_threshold_auc
from unlearn_jax.base import (
  Batch,
  Dataset,
  Examples,
  InputError,
  Model,
  ModelState,
  Splits,
  stateless,
)
from unlearn_jax.calibration import Calibrated, calibrated_degree
from unlearn_jax.data import split_forget
from unlearn_jax.degree import UnlearningDegree, unlearning_degree
from unlearn_jax.divergences import js_divergence, kl_divergence, similarity
from unlearn_jax.evaluation import Evaluation, evaluate
from unlearn_jax.finetuning import StopRule, finetune, monitor
from unlearn_jax.masks import (
  count_scalars,
  count_tensors,
  last_k_mask,
  random_topk_mask,
  randomk_mask,
  topk_mask,
)
from unlearn_jax.metrics import (
  acceleration,
  accuracy,
  forgetting_rate,
  gap,
  mean_interval,
  memory_retention_rate,
  paired_interval,
  selection_stability,
)
from unlearn_jax.models import definition_order, from_linen
from unlearn_jax.normalization import reestimate
from unlearn_jax.perturbation import donor_mix, perturb, reinitialize
from unlearn_jax.prediction import predict
from unlearn_jax.sensitivity import gradient_sensitivity, model_objective
from unlearn_jax.spd_gan import (
  GeneratorSettings,
  fit_generator,
  perturb_images,
  pixel_change,
)
from unlearn_jax.strategies import STRATEGIES, Settings
from unlearn_jax.training import train
from unlearn_jax.unlearning import Unlearning, unlearn

__version__ = '0.1.0'

__all__ = [
  'Batch',
  'Calibrated',
  'Dataset',
  'Evaluation',
  'Examples',
  'GeneratorSettings',
  'InputError',
  'Model',
  'ModelState',
  'STRATEGIES',
  'Settings',
  'Splits',
  'StopRule',
  'Unlearning',
  'UnlearningDegree',
  'acceleration',
  'accuracy',
  'calibrated_degree',
  'count_scalars',
  'count_tensors',
  'definition_order',
  'donor_mix',
  'evaluate',
  'finetune',
  'fit_generator',
  'forgetting_rate',
  'from_linen',
  'gap',
  'gradient_sensitivity',
  'js_divergence',
  'kl_divergence',
  'last_k_mask',
  'loss_threshold_auc',
  'mean_interval',
  'memory_retention_rate',
  'model_objective',
  'monitor',
  'paired_interval',
  'perturb',
  'perturb_images',
  'pixel_change',
  'predict',
  'random_topk_mask',
  'randomk_mask',
  'reestimate',
  'reinitialize',
  'selection_stability',
  'similarity',
  'split_forget',
  'stateless',
  'topk_mask',
  'train',
  'unlearn',
  'unlearning_degree',
]
