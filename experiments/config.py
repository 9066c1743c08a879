"""What a command can be told, as frozen dataclasses; `settings` makes flags.

A field says its default, its help, and what it may be.
"""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal, get_args

import msgspec

from unlearn_jax import models
from unlearn_jax.base import InputError, require_file
from unlearn_jax.finetuning import Budget, Optimizer, Schedule
from unlearn_jax.recipes import RECIPES, Recipe
from unlearn_jax.spd_gan import MIN_SEEDS, GeneratorSettings
from unlearn_jax.strategies import FACTORIES, Chosen, parse, signature
from .settings import (
  COUNT,
  RATE,
  SHARE,
  WHOLE,
  FlagError,
  Range,
  key,
  number,
  require_word,
  setting,
)

_BUDGET, _GENERATOR = Budget(), GeneratorSettings()
CODE = 'The code of a model of your own, FILE.py:Net(…), which it was made by.'


def _by(field: str) -> str:
  return 'default ' + ', '.join(
    f'{getattr(recipe, field)} ({name})' for name, recipe in RECIPES.items()
  )


@dataclasses.dataclass(frozen=True)
class Archives:
  """Where data lie on this machine; no result depends on it."""

  data_dir: str | None = setting(None, "TFDS directory; default is TFDS's.")
  raw_dir: str | None = setting(
    None, 'Folder with archives downloaded by hand, to read a data set from.'
  )
  device_data_mb: int | None = setting(
    None,
    'Images of more megabytes (10⁶ bytes) come from the host in blocks;'
    " default: half of a GPU's or TPU's memory, no limit on a CPU.",
    WHOLE,
  )


@dataclasses.dataclass(frozen=True)
class Data:
  """Which examples."""

  dataset: str = setting(
    'digits', 'digits, a TFDS name such as cifar10, npz:FILE or folder:DIR.'
  )
  train_subset: int | None = setting(None, 'Use so many images only.', COUNT)
  test_fraction: float | None = setting(
    None, 'Share to hold out of TFDS data without a test split.', SHARE
  )
  image_size: str | None = setting(
    None, 'H,W: folder:DIR of any sizes, resized to cover it, then cropped.'
  )
  canaries: int | None = setting(None, 'Images that may get noise.', WHOLE)


@dataclasses.dataclass(frozen=True)
class Network:
  """Which model."""

  model: str = setting(
    'cnn',
    f'One of {", ".join(models.FAMILIES)}, or one of your own:'
    ' FILE.py:Net(width=32) or module:factory(…), its parameters as literals.',
  )
  width: int | None = setting(
    None, "Channels of the first layer; 64 is the paper's ResNet18.", COUNT
  )
  patch_size: int | None = setting(None, "A ViT's, in pixels; or 16.", COUNT)
  dtype: str = setting(
    'float32', 'Of activations: float32 or bfloat16.', tuple(models.DTYPES)
  )

  @property
  def channels(self) -> int:
    """The width, the family's own where none is given; 0 of one's own."""
    if ':' in self.model:
      for name in ('width', 'patch_size', 'dtype'):
        if getattr(self, name) not in (None, 'float32'):
          allowed = f'none beside {self.model}, whose parameters say it'
          raise FlagError(name, getattr(self, name), allowed)
      return 0
    own = ', or FILE.py:Net(…) of your own'
    require_word('model', self.model, sorted(models.FAMILIES), own)
    return self.width or models.FAMILIES[self.model].width


@dataclasses.dataclass(frozen=True)
class Training:
  """How source and Retrain are trained."""

  recipe: str | None = setting(
    None,
    'How source and Retrain are trained: paper (Adam, nothing augmented, the'
    ' training set remembered; the default), standard (SGD with momentum,'
    ' cosine, flips and crops) or digits (as paper, but wrong labels of digits'
    ' remembered as well; the default where these are so). It sets the'
    ' four flags that follow where they are not given.',
    tuple(RECIPES),
  )
  train_epochs: int | None = setting(
    None, f'Epochs of source and Retrain; {_by("epochs")}.', COUNT
  )
  train_learning_rate: float | None = setting(
    None, f'Theirs; {_by("learning_rate")}.', RATE
  )
  augment: bool | None = setting(
    None, f'Flips and crops in training; {_by("augment")}.'
  )
  batch_size: int | None = setting(
    None, f'Examples a step, all devices; {_by("batch_size")}.', COUNT
  )

  @property
  def resolved(self) -> Recipe:
    """The recipe with what was given in place of its own numbers."""
    own = {n.removeprefix('train_'): value for n, value in vars(self).items()}
    name = own.pop('recipe') or 'paper'
    given = {n: value for n, value in own.items() if value is not None}
    return RECIPES[name]._replace(**given)


@dataclasses.dataclass(frozen=True)
class Forget:
  """What is to be forgotten."""

  forget: str | None = setting(
    None,
    'random(SHARE of D), class(NAME), class(NAME, SHARE), ids(FILE with an id a'
    ' line), or mislabelled(SHARE), whose labels are wrong from the beginning;'
    ' default: random(0.1), but in experiments.unlearn, tune and audit of'
    ' digits mislabelled(0.1), unless --source_dir is given.',
  )


@dataclasses.dataclass(frozen=True)
class Seeds:
  """From which numbers all that is drawn is drawn."""

  seed: int = setting(0, 'First seed; run i adds i to each seed.', WHOLE)
  split_seed: int | None = setting(None, 'Of the split; default --seed.', WHOLE)
  source_seed: int | None = setting(None, 'Of sources; default --seed.', WHOLE)
  unlearn_seed: int | None = setting(
    None, 'Of the unlearning; default --seed.', WHOLE
  )

  def of(self, what: Literal['split', 'source', 'unlearn'], run: int) -> int:
    """The seed of one purpose in run number `run`."""
    own = getattr(self, f'{what}_seed')
    return (self.seed if own is None else own) + run


def _factories() -> str:
  lines = ['Separated by commas, each a name or name(parameter=literal, …):']
  for name, factory in FACTORIES.items():
    lines.append(f'{signature(name, factory)}:')
    lines.append(f'    {(factory.__doc__ or "").splitlines()[0]}')
  lines.append('or module:factory(…) of one of your own, on the Python path.')
  return '\n'.join(lines)


@dataclasses.dataclass(frozen=True)
class Trial:
  """A strategy with a value of its knob, and its mean gap to Retrain."""

  strategy: str
  gap: float
  damaged: bool = False  # It lost retain accuracy, which no gap makes good.


@dataclasses.dataclass(frozen=True)
class Tuned:
  """What `experiments.tune` has found."""

  knob: str  # the parameter
  seeds: list[int]  # of the forget sets
  # By strategy, the best first; and on which problem, by name of flags.
  tried: dict[str, Annotated[list[Trial], msgspec.Meta(min_length=1)]]
  problem: dict[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def read(cls, path: str) -> 'Tuned':
    """The content of a file."""
    try:
      require_file(path)
      return msgspec.json.decode(pathlib.Path(path).read_bytes(), type=cls)
    except (InputError, msgspec.MsgspecError, OSError) as error:
      allowed = 'allowed: a file of experiments.tune'
      raise InputError(f'--tuned={path}: {error}; {allowed}') from error

  def __str__(self) -> str:
    own = ', '.join(trials[0].strategy for trials in self.tried.values())
    most = max(map(len, self.tried.values()))
    seeds = ', '.join(map(str, self.seeds))
    return f'{own}: at most {most} values each, forget sets of seeds {seeds}'


@dataclasses.dataclass(frozen=True)
class Methods:
  """What is compared, and what each of it may cost."""

  strategies: str = setting(
    'retrain, finetune, scratch, top_k, random_k, eu_k, cf_k, neggrad_plus,'
    ' salun, scrub, msg',
    _factories(),
  )
  epochs: int = setting(
    _BUDGET.epochs, 'The most epochs of fine-tuning.', WHOLE
  )
  learning_rate: float = setting(
    _BUDGET.learning_rate, 'Of every fine-tuning.', RATE
  )
  optimizer: Optimizer = setting(
    _BUDGET.optimizer,
    'Of every fine-tuning: adam, or sgd with momentum and weight decay.',
    get_args(Optimizer),
  )
  schedule: Schedule = setting(
    _BUDGET.schedule,
    'Of its rate: constant, or a cosine that ends at 0.',
    get_args(Schedule),
  )
  stop_js_change: float = setting(
    _BUDGET.stop_js_change,
    'Stop rule: bits an epoch by which JS may still move.',
    Range(0),
  )
  stop_retain_share: float = setting(
    _BUDGET.stop_retain_share,
    "Stop rule: share of the source's retain accuracy; above 1: no rule.",
    Range(0, 2),
  )
  tuned: str | None = setting(
    None, 'File of experiments.tune: what was tuned is run as it says.'
  )

  @property
  def found(self) -> Tuned | None:
    """What the file says."""
    return None if self.tuned is None else Tuned.read(self.tuned)

  @property
  def chosen(self) -> list[Chosen]:
    """The strategies, parsed, with the values that were tuned."""
    tried = self.found.tried if self.found else {}
    try:
      texts = [own.text for own in parse(self.strategies)]
      best = [tried[t][0].strategy if t in tried else t for t in texts]
      return parse(', '.join(best))
    except InputError as error:
      raise InputError(f'--strategies: {error}') from error

  @property
  def ruled(self) -> bool:
    """Whether there is a stop rule; without one all epochs are run."""
    return self.stop_retain_share <= 1

  def budget(self, batch_size: int) -> Budget:
    """What a fine-tuning may cost."""
    rule = self.stop_js_change, self.stop_retain_share
    how = self.optimizer, self.schedule
    return Budget(self.epochs, self.learning_rate, batch_size, *rule, *how)


@dataclasses.dataclass(frozen=True)
class Generators:
  """SPD-GAN's generators, which measure the unlearning degree."""

  max_perturbation: str = setting(
    '8/255',
    "L∞ bound in the pixel range's unit: above 0 and at most 1, or none, or"
    ' several of them, separated by commas.',
  )
  cap: str = setting(
    'default', 'Nats up to which M_UL’s loss counts; default: 2·log C; or none.'
  )
  eta: float = setting(_GENERATOR.eta, 'η of Eq. 13.', Range(0))
  degree_learning_rate: float = setting(
    _GENERATOR.learning_rate, "Adam's, of generators.", RATE
  )
  degree_epochs: int = setting(
    _GENERATOR.epochs, 'Passes over half of the forget set.', COUNT
  )
  degree_batch_size: int = setting(
    _GENERATOR.batch_size, 'Images a step, all devices.', COUNT
  )
  degree_width: int = setting(
    _GENERATOR.width, "Channels of G's first layer.", COUNT
  )
  degree_seeds: int = setting(
    MIN_SEEDS, 'Generators a pair of models.', Range(MIN_SEEDS, 1000)
  )
  degree_limit: int = setting(
    2048, 'At most so many retained and test images are scored.', COUNT
  )
  degree_unseen: bool = setting(
    True, 'Also fit and score generators on images that no model saw.'
  )

  @property
  def settings(self) -> list[GeneratorSettings]:
    """One a bound."""
    bounds = dict.fromkeys(self.max_perturbation.split(','))
    return [
      GeneratorSettings(
        eta=self.eta,
        cap=number('cap', self.cap, 1e6, 'default', 'none'),
        max_perturbation=number('max_perturbation', bound.strip(), 1, 'none'),
        epochs=self.degree_epochs,
        batch_size=self.degree_batch_size,
        learning_rate=self.degree_learning_rate,
        width=self.degree_width,
      )
      for bound in bounds
    ]


@dataclasses.dataclass(frozen=True)
class Engine:
  """Who carries the stages out."""

  engine: str = setting(
    'local',
    'local: in this process; dask: by the workers of a Dask cluster.',
    ('local', 'dask'),
  )
  scheduler: str | None = setting(
    None,
    "Dask's address or scheduler file; default: a cluster on this machine.",
  )
  workers: int | None = setting(
    None, 'Of a cluster on this machine; default: one a device.', Range(1, 4096)
  )
  save_seconds: float = setting(
    30.0,
    'Seconds from one save of a running training to the next; 0: every epoch.',
    Range(0),
  )


@dataclasses.dataclass(frozen=True)
class Processes:
  """One training over several processes."""

  coordinator: str | None = setting(
    None,
    'host:port of process 0, for a run of several processes. Under srun, mpirun'
    ' and Kubernetes it is found, as are the two flags that follow.',
  )
  num_processes: int | None = setting(
    None, 'How many processes there are.', Range(1, 65535)
  )
  process_id: int | None = setting(
    None, 'Which one this is, from 0.', Range(0, 65534)
  )
  join_seconds: float = setting(
    300.0,
    'How long processes wait for each other to start.',
    Range(0, 86400, ends=False),
  )


@dataclasses.dataclass(frozen=True)
class Problem:
  """What all that train are told: data, model, and where and by whom."""

  data: Data = Data()
  network: Network = Network()
  training: Training = Training()
  forget: Forget = Forget()
  draws: Seeds = Seeds()
  archives: Archives = Archives()
  workdir: str | None = setting(
    None, 'Where results go; default runs/DATASET-MODEL.'
  )
  execution: Engine = Engine()
  processes: Processes = Processes()


@dataclasses.dataclass(frozen=True)
class Study(Problem):
  """One problem, several strategies, several seeds: `experiments.unlearn`."""

  methods: Methods = Methods()
  seeds: int = setting(
    3, 'Independent runs behind each number.', Range(1, 1000)
  )
  references: int = setting(
    0,
    'More Retrains a seed, by which a stronger attack judges the strategies and'
    ' Retrain itself; 0: Retrain alone judges the others.',
    Range(0, 1000),
  )
  heldout: float = setting(
    0.0, 'Share of the test images that methods alone see.', Range(0, 0.9)
  )
  source_dir: str | None = setting(None, 'Checkpoint of the source model.')
  retrained_dir: str | None = setting(None, 'Checkpoint of the reference.')
  degree: bool = setting(
    False, 'Measure the SPD-GAN unlearning degree of each strategy.'
  )
  generators: Generators = Generators()
  verbose: bool = setting(
    False, 'Print all tables, and a sentence for each strategy.'
  )

  @property
  def bundled(self) -> bool:
    """Whether this is the problem that is there without any flags."""
    alone = self.forget.forget is None and self.source_dir is None
    return self.data.dataset == 'digits' and alone

  @property
  def forgotten(self) -> str:
    """The forget set, as `data.forget_set` takes it."""
    # Of digits a model that never saw them gets random ones right as well.
    default = 'mislabelled(0.1)' if self.bundled else 'random(0.1)'
    return self.forget.forget or default

  @property
  def recipe(self) -> Recipe:
    """How source and Retrain are trained."""
    own = self.training
    if self.bundled and own.recipe is None:
      own = dataclasses.replace(own, recipe='digits')
    return own.resolved


def agreed(config: Any) -> str:
  """What has to be alike in all processes of a run, as a short text."""
  # Of these no result depends, and places in them differ by machine.
  own = Archives, Engine, Processes
  return key({n: v for n, v in vars(config).items() if not isinstance(v, own)})
