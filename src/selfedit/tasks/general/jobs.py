"""Plans in, trainings out: what is rehearsed beside a plan's documents, and along which directions its adapter reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfedit.config import Settings
from selfedit.edits import TrainingPlan
from selfedit.lm.adapter import Adapter, Directions, load_adapter
from selfedit.lm.load import LanguageModel
from selfedit.lm.null_space import Familiar, directions_of, familiar_of
from selfedit.lm.train_many import Job
from selfedit.tasks.general.rehearsal import asked_digest, familiar, rehearsals, rows_of


def known_to(lm: LanguageModel) -> Mapping[str, Familiar]:
    """What is familiar to the base, by module: of what it is asked and says; made once and kept in the cache."""
    return familiar_of(lm, lambda: familiar(lm), asked_digest(lm))


def prepare(lm: LanguageModel, ways: Sequence[Settings], rehearsed: bool = False) -> None:
    """A job: what trainings need of the base and keep in the cache is there afterwards, so that none of them waits for it.

    Args:
        ways: the trainings' settings.
        rehearsed: rehearsals are needed by whatever settings.
    """
    if rehearsed or any(way.rehearsal or way.null_space for way in ways):
        rehearsals(lm)
    if any(way.null_space for way in ways):
        known_to(lm)


def jobs_of(lm: LanguageModel, plans: Sequence[TrainingPlan], earlier: Sequence[Adapter] = ()) -> list[Job]:
    """A training for each plan, on the model with whatever stands.

    Where ``settings.null_space`` is set, familiar is what the base is asked and says (``rehearsal.py``), and what the adapters of a
    memory's stack read; the plan's own documents are its lesson, replayed ones among them.

    Args:
        lm: the model.
        plans: documents, settings, seeds.
        earlier: adapters of earlier lessons that stand beside the memory's; what they read counts as familiar too.
    """
    made: dict[Any, Directions] = {}
    stand: list[Adapter] | None = None
    found = []
    for plan, rows in zip(plans, rows_of(lm, plans), strict=True):
        settings = plan.settings
        if not settings.null_space or not rows:
            found.append(Job(rows, settings, plan.seed))
            continue
        if stand is None:
            stand = [*(load_adapter(Path(folder)) for folder in lm.stack), *earlier]
            known = known_to(lm)
        own = tuple(row for row in rows if row.epoch is None)
        # Repeats of a self-edit read alike.
        key = own, settings.targets, settings.layers, settings.rank, settings.null_space, settings.dead_zone
        if key not in made:
            made[key] = directions_of(lm, own, settings, known, stand)
        found.append(Job(rows, settings, plan.seed, made[key]))
    return found
