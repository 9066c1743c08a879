"""A page on disk: Markdown, HTML and its pictures, each file whole or not."""

from collections.abc import Mapping, Sequence
import pathlib

from matplotlib.figure import Figure

from experiments import files
from experiments.report import figures, rendering
from experiments.report.sections import Section


def save(
  root: pathlib.Path,
  stem: str,
  title: str,
  intro: str,
  sections: Sequence[Section],
  drawn: Mapping[str, Figure],
  more: Mapping[str, bytes | str],
) -> pathlib.Path:
  """Writes `figures/*.png`, `more`, `STEM.md` and `STEM.html`; returns that."""
  pictures = {name: figures.png(figure) for name, figure in drawn.items()}
  contents: dict[str, bytes | str] = {
    **{f'figures/{name}.png': data for name, data in pictures.items()},
    **more,
    f'{stem}.md': rendering.markdown(title, intro, sections),
    f'{stem}.html': rendering.html(title, intro, sections, pictures),
  }
  for name, content in contents.items():
    if isinstance(content, str):
      content = content.encode('utf-8', 'backslashreplace')
    files.replace(root / name, content)
  return root / f'{stem}.html'
