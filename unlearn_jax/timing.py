"""Seconds, with compilation told apart: the one place where time is measured.

JAX runs asynchronously and compiles at the first call, so a naive clock
around a call measures neither. `Stopwatch` waits for the result and takes off
the spans in which JAX reported that it was tracing, lowering or compiling.
"""

import threading
import time
from typing import Any

import jax

_EVENTS = (
  '/jax/core/compile/jaxpr_trace_duration',
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)
_spans: list[tuple[float, float]] = []
_compilations: list[float] = []
_lock = threading.Lock()


def _record(event: str, duration_secs: float, **_: str | int) -> None:
  if event in _EVENTS:
    now = time.perf_counter()
    with _lock:
      _spans.append((now - duration_secs, now))
      if event == _EVENTS[-1]:
        _compilations.append(now)


jax.monitoring.register_event_duration_secs_listener(_record)


class Stopwatch:
  """Measures what happens inside `with Stopwatch() as watch:`.

  Attributes:
    seconds: wall time without compilation, known after the block.
    compile_seconds: wall time spent tracing, lowering and compiling.
    compilations: programs that were compiled, or read from the cache.

  Example:
    >>> with Stopwatch() as watch:
    ...   result = watch.wait(jax.numpy.ones(3) + 1)
    >>> watch.seconds > 0
    True
  """

  def __enter__(self) -> 'Stopwatch':
    self.seconds = self.compile_seconds = 0.0
    self.compilations = 0
    self._first = len(_spans), len(_compilations)
    self._start = time.perf_counter()
    return self

  def __exit__(self, *_: Any) -> None:
    total = time.perf_counter() - self._start
    with _lock:
      spans = sorted(_spans[self._first[0] :])
      self.compilations = len(_compilations) - self._first[1]
    # Spans nest (a jitted function traced inside another): take their union.
    end = self._start
    for low, high in spans:
      self.compile_seconds += max(0.0, high - max(low, end))
      end = max(end, high)
    self.seconds = max(0.0, total - self.compile_seconds)

  def wait(self, tree: Any) -> Any:
    """Returns `tree` once its arrays are computed."""
    return jax.block_until_ready(tree)
