"""Modules of others that a plain installation lacks."""

import importlib
from typing import Any

from unlearn_jax import base


def optional(module: str, what: str, extra: str = 'experiments') -> Any:
  """The module that `what` needs and an extra brings.

  Raises:
    InputError: it is not there.

  Example:
    >>> optional('no_such_module', 'digits')  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    unlearn_jax.base.InputError: digits: No module named 'no_such_module'; ...
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise base.InputError(
      f"{what}: {error}; allowed: after pip install 'unlearn_jax[{extra}]'"
    ) from None
