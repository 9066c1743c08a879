"""The links between the processes of a run, as long as it lasts.

Process 0 is linked with every other one, and hands on what it hears. Each says
every few seconds that it lives; one that ends says so; one that is killed
cannot, but its link closes. Either way the others end too, with one line,
because a collective without one of its processes waits for ever. A signal that
one process gets is handed to all.

What they say is a line: `beat`, `signal NUMBER`, `end PROCESS STATUS`, and of a
process that was lost `killed PROCESS` or `silent PROCESS`. Anything else is not
understood and passed over.
"""

from collections.abc import Mapping
import contextlib
import os
import selectors
import threading
import time
from typing import NoReturn

from experiments import preemption
from experiments.rendezvous import Link, Place

# Seconds from one sign of life to the next, and after which one is missed.
_BEAT, _SILENCE = 5.0, 40.0
# Seconds that a process has to end by itself once another one has ended.
GRACE = 5.0
_AGAIN = 'the same command, given again in all processes, goes on'


class Watch:
  """A thread that listens to all links, and says what this process does."""

  def __init__(self, place: Place, links: Mapping[int, Link]):
    self.place, self._links = place, links
    self._ended: set[int] = set()  # They said so.
    self._gone: set[int] = set()
    self._leaving = False
    self._signum: int | None = None  # The first signal that went round.
    self._lock = threading.Lock()
    threading.Thread(target=self._run, daemon=True).start()

  def signalled(self, signum: int) -> None:
    """Hands a signal of this process to the others."""
    if self._is_first(signum):
      self._say(f'signal {signum}')

  def end(self, status: int) -> None:
    """Says that this process ends."""
    self._leaving = True
    self._say(f'end {self.place.index} {status}')

  def await_others(self, seconds: float) -> None:
    """Waits for the end of the others, but not longer than this."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(self._gone) < len(self._links):
      time.sleep(0.05)

  def _say(self, line: str, but: int | None = None) -> None:
    for index, link in self._links.items():
      if index != but:
        link.say(line)

  def _is_first(self, signum: int) -> bool:
    """Whether no signal has gone round yet; from now on this one has."""
    with self._lock:
      known, self._signum = self._signum, self._signum or signum
    return known is None

  def _run(self) -> None:
    # Counted in beats of its own: it may itself have been stopped meanwhile.
    missed = dict.fromkeys(self._links, 0)
    beat = time.monotonic() + _BEAT
    with selectors.DefaultSelector() as selector:
      for index, link in self._links.items():
        selector.register(link, selectors.EVENT_READ, index)
        self._take(index, link)  # What came with the greeting.
      while missed:
        for key, _ in selector.select(max(0.0, beat - time.monotonic())):
          index, link = key.data, self._links[key.data]
          missed[index] = 0
          if not self._receive(index, link):
            selector.unregister(link)
            del missed[index]
        if time.monotonic() < beat:
          continue
        beat = time.monotonic() + _BEAT
        self._say('beat')
        for index in missed:
          missed[index] += 1
          if missed[index] * _BEAT > _SILENCE:
            self._lost(index, 'silent')

  def _receive(self, index: int, link: Link) -> bool:
    """Hears what has come; whether more may come."""
    try:
      link.receive()
    except OSError:
      self._gone.add(index)
      if index not in self._ended:
        self._lost(index, 'killed')
      return False
    self._take(index, link)
    return True

  def _take(self, index: int, link: Link) -> None:
    while link.lines:
      word, *words = link.lines.popleft().split(' ')
      if all(text.isascii() and text.isdecimal() for text in words):
        self._heard(index, word, *(int(text[:9]) for text in words))

  def _heard(self, index: int, *line: str | int) -> None:
    match line:
      case 'signal', int(signum) if signum in preemption.SIGNALS:
        if self._is_first(signum):
          self._say(f'signal {signum}', but=index)
          preemption.relay(signum)
      case ('killed' | 'silent') as reason, int(process):
        self._lost(process, reason)
      case 'end', int(process), int(status):
        self._ended.add(process)
        if status:
          self._say(f'end {process} {status}', but=index)
          timer = threading.Timer(GRACE, self._follow, (process, status))
          timer.daemon = True
          timer.start()

  def _follow(self, process: int, status: int) -> None:
    """Ends this process as that one has; it had time to do so by itself."""
    if not self._leaving:
      self._die(
        f'process {process} of {self.place.count} has ended with status'
        f' {status}{" and said why" if status < 128 else ""}',
        status,
      )

  def _lost(self, process: int, reason: str) -> None:
    if self._leaving:
      return
    self._say(f'{reason} {process}', but=process)
    # The main thread, in a compiled program, may not know of it yet.
    signum = preemption.requested() or self._signum
    if signum is not None:  # By a second signal, say.
      self._die(f'process {process} has stopped at once', 128 + signum)
    said = {
      'killed': 'was killed, or its machine is gone',
      'silent': f'was not heard of for {_SILENCE:g} s',
    }
    self._die(f'process {process} of {self.place.count} {said[reason]}', 1)

  def _die(self, text: str, status: int) -> NoReturn:
    """Ends the process where it stands, its main thread inside a collective."""
    line = f'error: process {self.place.index}: {text}; {_AGAIN}\n'
    with contextlib.suppress(OSError):
      os.write(2, line.encode())
    os._exit(status)
