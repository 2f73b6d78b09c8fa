"""A federation whose only network is somebody with a stick: every site has its own, and carries nothing of others."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from not_fed.coordinator.drop import Exported, Imported, export_orders, import_answers
from not_fed.errors import NotFedError
from not_fed.simulation import Prepared
from not_fed.site.drop import Done, export_answer, import_order
from not_fed.transfer import stick


def now() -> datetime:
    """The time at which everything is typed."""
    return datetime.now(UTC)


@dataclass
class Post:
    """The sticks of one federation, in `folder`."""

    prepared: Prepared
    folder: Path
    codes: dict[str, str] = field(default_factory=dict)

    def stick(self, site: str) -> Path:
        """The stick that goes to and fro between the coordinator and one site."""
        path = self.folder / site
        path.mkdir(parents=True, exist_ok=True)
        return path

    def hand_out(self) -> Exported:
        """Export once, and copy onto each site's stick what is for it."""
        table = self.stick("table")
        done = export_orders(self.prepared.coordinator, table, now=now())
        for site in done.orders:
            for names in ((stick.ORDERS, site), (stick.ROSTER,), (stick.LOG,)):
                source, target = table.joinpath(*names), self.stick(site).joinpath(*names)
                if source.is_dir():
                    shutil.rmtree(target, ignore_errors=True)
                    shutil.copytree(source, target)
        return done

    def work(self, site: str) -> Done:
        """Import and export at one site."""
        home = self.prepared.sites[site]
        import_order(home, self.stick(site), now=now())
        return export_answer(home, self.stick(site))

    def take_in(self, site: str, *, close: bool = False) -> Imported:
        """Import one site's stick at the coordinator."""
        return import_answers(self.prepared.coordinator, self.stick(site), close=close, now=now())

    def step(self, *sites: str) -> Imported:
        """Hand out, let the named sites (everybody if none is named) work, take in; the last import."""
        self.hand_out()
        done: Imported | None = None
        for site in sites or self.prepared.sites:
            try:
                self.work(site)
            except NotFedError as error:
                self.codes[site] = error.code
                continue
            done = self.take_in(site)
        assert done is not None
        return done

    def finish(self) -> Imported:
        """Every step that is left."""
        while not (done := self.step()).complete:
            assert done.closed
        return done
