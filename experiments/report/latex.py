"""Outside text as LaTeX."""

import re
import unicodedata

from experiments.report.words import WORDS

_CHARACTERS: dict[str, str] = WORDS['latex']
_GREEK = {'EPSILON': 'varepsilon', 'PHI': 'varphi', 'LAMDA': 'lambda'}


def escape(text: str) -> str:
  r"""As LaTeX sets it literally, on one line: '5 \% of $\varepsilon$'."""
  return ''.join(map(_character, ' '.join(text.split())))


def _character(character: str) -> str:
  if character in _CHARACTERS:
    return _CHARACTERS[character]
  if ' ' <= character <= '~':
    return character
  name = unicodedata.name(character, '')
  greek = re.fullmatch(r'GREEK SMALL LETTER (\w+)', name)
  if greek and greek[1] not in ('OMICRON', 'FINAL'):
    return f'$\\{_GREEK.get(greek[1], greek[1].lower())}$'
  # The letters that fonts in the encoding T1 have.
  if 'À' <= character <= 'ſ' and character not in '÷ĿŀŉſĦħŦŧĸ':
    return character
  # What pdflatex cannot set, as [U+0416].
  return f'{{[}}U+{ord(character):04X}{{]}}'
