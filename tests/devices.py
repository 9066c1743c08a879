"""Fake CPU devices, for which XLA compiles fast rather than well.

A test's programs run for milliseconds and compile for seconds: XLA's older
emitters without optimisation take a third of the time. (For AVX2 they are wrong
without it: a training ends in NaN.) README's first command, .ci/run's smoke
reproduction and its run on the lowest versions compile as users do;
UNLEARN_JAX_TESTS_XLA_FLAGS gives the tests other flags, or none.
"""

import os

_FAST = (
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false '
  '--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_max_isa=AVX'
)


def flags(count):
  """XLA_FLAGS of a process with `count` CPU devices."""
  more = os.environ.get('UNLEARN_JAX_TESTS_XLA_FLAGS', _FAST)
  return f'--xla_force_host_platform_device_count={count} {more}'
