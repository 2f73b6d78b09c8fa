"""One permitted task, with all that the work on it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

from not_fed.envelope.receipt import Receipt
from not_fed.envelope.task import Task
from not_fed.errors import FitError, TrustError
from not_fed.home import Home
from not_fed.keys import Opener, Signer
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.progress import Progress
from not_fed.resources.bases import find_base
from not_fed.site.policy import SitePolicy
from not_fed.site.state import SiteState
from not_fed.trust.roster import TrustedRoster


class BaseChanged(FitError):
    """This site's base model is not the one that its policy names."""

    code = "base-changed"


@dataclass(kw_only=True)
class Job:
    """A task that signature, policy and memory have let through. Keys and base are loaded when first needed.

    Attributes:
        receipt: this site's own for an earlier task, which the coordinator kept.
    """

    task: Task
    policy: SitePolicy
    home: Home
    roster: TrustedRoster
    state: SiteState
    now: datetime
    progress: Progress
    receipt: Receipt | None = None
    left_out: list[str] = field(default_factory=list)
    opened: list[Mapping[str, object]] = field(default_factory=list)

    @property
    def span(self) -> Span:
        """The layers that this run trains."""
        return Span(*self.task.span)

    @property
    def log_is_kept(self) -> bool:
        """Whether the roster says that the coordinator keeps a log: then every organ comes with its proof."""
        return self.roster.member(self.task.coordinator, now=self.now).log is not None

    @cached_property
    def opener(self) -> Opener:
        """The key that opens what was sealed to this site."""
        return self.home.opener()

    @cached_property
    def signer(self) -> Signer:
        """The keys that sign for this site."""
        return self.home.signer()

    @cached_property
    def organs(self) -> Path:
        """Where this run's organs are kept, in the clear, for the site itself."""
        self.home.private_folder("organs")
        return self.home.private_folder(f"organs/{self.task.run}")

    @cached_property
    def base(self) -> Base:
        """The site's base model; raises BaseChanged when it is not the one its policy names."""
        inside = self.home.inside(self.policy.base)
        base = find_base(str(inside) if inside.is_dir() else self.policy.base, progress=self.progress)
        if base.sha256 != self.policy.base_sha256:
            raise BaseChanged(
                where="site.toml, field base_sha256",
                expected=f"digest {self.policy.base_sha256[:12]}",
                got=base.sha256[:12],
                hint="restore the base model's folder, or agree on the new one",
            )
        return base

    def recipients(self) -> Sequence[str]:
        """To whom this site seals its organ: those whom the task names and the roster has now, itself left out."""
        return [name for name in self.task.recipients if name != self.policy.name and self._is_member(name)]

    def _is_member(self, name: str) -> bool:
        try:
            self.roster.member(name, now=self.now)
        except TrustError:
            return False
        return True
