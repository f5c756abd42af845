"""Plans in, trainings out: what is rehearsed beside a plan's documents, and along which directions its adapter reads."""

from __future__ import annotations

from collections.abc import Sequence

from selfedit.edits import TrainingPlan
from selfedit.lm.adapter import Adapter
from selfedit.lm.load import LanguageModel
from selfedit.lm.null_space import familiar_of, fixed_downs
from selfedit.lm.train_many import Job
from selfedit.tasks.general.rehearsal import asked_digest, rehearsals, rows_of


def jobs_of(lm: LanguageModel, plans: Sequence[TrainingPlan], earlier: Sequence[Adapter] = ()) -> list[Job]:
    """A training for each plan, on the model with whatever stands.

    Where ``settings.null_space`` is set, familiar is what the base is asked and says for rehearsal (``rehearsal.py``).

    Args:
        lm: the model.
        plans: documents, settings, seeds.
        earlier: adapters of earlier lessons that stand beside those installed as a stack; what they read counts as familiar too.
    """
    found = []
    for plan, rows in zip(plans, rows_of(lm, plans), strict=True):
        downs = None
        if plan.settings.null_space:
            familiar = familiar_of(lm, lambda: rehearsals(lm), asked_digest(lm))
            stand = [*lm.made.get("stack", ()), *earlier]
            downs = fixed_downs(lm, [row for row in rows if row.epoch is None], plan.settings, familiar, stand)
        found.append(Job(rows, plan.settings, plan.seed, downs))
    return found
