"""The words of templates/words.toml, plain text for whoever renders it."""

import importlib.resources
import tomllib
from typing import Any

_FILES = importlib.resources.files('experiments.report') / 'templates'
WORDS: dict[str, Any] = tomllib.loads(
  (_FILES / 'words.toml').read_text('utf-8')
)


def say(group: str, name: str, **facts: Any) -> str:
  """A text on one line, with what stands in braces filled in."""
  return ' '.join(WORDS[group][name].split()).format(**facts)
