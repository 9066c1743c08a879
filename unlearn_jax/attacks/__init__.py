"""Attacks on a model, and scores of ensembles: arrays in, numbers out.

float64 on the host, for anyone's logits. Shapes that do not fit, NaN and what
is out of range are a ValueError of one line. docs/auditing.md says what each
attack sees and what its numbers mean.

| file | what it holds |
|---|---|
| `scores` | margin, log p_y, AUC, TPR at an FPR, intervals, loss threshold |
| `likelihood` | LiRA offline, U-LiRA, RMIA: against reference models |
| `audit` | U-LiRA on targets with known answers; whom to attack first |
| `designs` | what shadow models learn and forget |
| `svc` | the "MIA efficacy" of unlearning papers |
| `ensembles` | KLOM and the forgetting score: many models against many |
| `comparison` | one model against Retrain |
| `canaries` | noise planted before training; bounds of ε |
"""
# ruff: noqa: F401, I001

from unlearn_jax.attacks.audit import Audit, lira_leave_one_out
from unlearn_jax.attacks.audit import most_vulnerable, u_lira
from unlearn_jax.attacks.canaries import CanaryTest, Planted, canary_ranks
from unlearn_jax.attacks.canaries import canary_statistic
from unlearn_jax.attacks.canaries import canary_test, epsilon_clopper_pearson
from unlearn_jax.attacks.canaries import epsilon_one_run, plant
from unlearn_jax.attacks.comparison import Residual, activation_distance
from unlearn_jax.attacks.comparison import js_to_retrained, relearn_epochs
from unlearn_jax.attacks.comparison import residual_knowledge, tug_of_war
from unlearn_jax.attacks.designs import Drawn, shadow_draws
from unlearn_jax.attacks.ensembles import forgetting_score, halves, klom
from unlearn_jax.attacks.likelihood import Status, lira, lira_offline, rmia
from unlearn_jax.attacks.scores import auc, auc_interval, loss_threshold
from unlearn_jax.attacks.scores import tpr_at_fpr, tpr_interval
from unlearn_jax.attacks.scores import true_class_log_probability
from unlearn_jax.attacks.scores import true_class_margin
from unlearn_jax.attacks.svc import modified_entropy, svc_efficacy
