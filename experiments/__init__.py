"""The binaries: flags, paths, progress, tables, pictures; no formula."""

import importlib.util

# As it is called: in the repository, or installed as unlearn_jax.experiments.
COMMAND = (
  'python -m experiments.' if __name__ == 'experiments' else 'unlearn-jax '
)
# Of the extra, but for readers of data, which say themselves what they lack.
_NEEDED = (
  *('absl', 'filelock', 'jinja2', 'matplotlib', 'platformdirs', 'rich'),
  *('safetensors', 'sklearn'),
)

if _missing := [x for x in _NEEDED if importlib.util.find_spec(x) is None]:
  raise SystemExit(
    f'error: the binaries need {", ".join(_missing)}, allowed: after pip'
    " install 'unlearn_jax[experiments]'"
  )
