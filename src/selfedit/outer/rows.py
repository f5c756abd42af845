"""What the policy is trained on: rows put together from the self-edits that were selected.

A row is ``{messages, completion, item, ...}``: a prompt, and what was written to it; ``item`` is the self-edit's place among the
selected, with ``credit="lines"`` the context's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfedit.lm.load import Identity
from selfedit.selection import Scored
from selfedit.tasks.base import Asked, Candidate, Credit, Task, answered

# A round's rows: what was written, by context; what was tried, by (context, candidate, repeat).
Lessons = dict[str, dict[str, Any]]
Trials = dict[tuple[str, int, int], dict[str, Any]]


@dataclass(frozen=True)
class RowMaker:
    """Makes a round's rows.

    Attributes:
        task: its prompts.
        known: the policy's base.
        contexts: by id.
        written: what was written about each.
        theirs: of a control, the rows of the run that it is held against: it gets as many of each item, so that there are as many
            steps of SFT; None: no control.
    """

    task: Task
    known: Identity
    contexts: Mapping[str, Any]
    written: Lessons
    theirs: Sequence[dict[str, Any]] | None = None

    def of_edits(self, chosen: Sequence[tuple[str, int]], places: Sequence[int]) -> list[dict[str, Any]]:
        """The prompts of each selected self-edit and what was written to them.

        Args:
            chosen: (context, candidate).
            places: of a control, for each the item of the other run that it stands for.
        """
        rows: list[dict[str, Any]] = []
        for item, (context, candidate) in enumerate(chosen):
            own = self.answers(context, candidate)
            if self.theirs is not None:
                count = sum(row["item"] == places[item] for row in self.theirs)
                own = [own[at % len(own)] for at in range(count)] if own else []
            rows += [row | {"item": item} for row in own]
        return rows

    def of_lines(
        self,
        chosen: Sequence[tuple[str, int]],
        scored: Sequence[Scored],
        credit: Credit,
        asked: Mapping[str, Sequence[Asked]],
        seeded: Mapping[str, int],
    ) -> list[dict[str, Any]]:
        """Of each context: lines of the selected that taught; of a control as many of any, to the other run's prompts.

        Args:
            chosen: (context, candidate).
            scored: all self-edits of the round.
            credit: puts the rows together.
            asked: each context's questions that count.
            seeded: of a control's draws, a seed for each context.
        """
        picked: dict[str, list[Candidate]] = defaultdict(list)
        sources = set(chosen) if self.theirs is None else {(one.context, one.candidate) for one in scored if one.usable}
        for one in scored:
            if (one.context, one.candidate) in sources:
                texts = self.written[one.context]["edits"][one.candidate]["texts"]
                picked[one.context].append(Candidate(one.candidate, texts, one.gains))
        rows: list[dict[str, Any]] = []
        for item, (context, candidates) in enumerate(picked.items()):
            if self.theirs is None:
                own = credit.rows(self.known, self.contexts[context], asked[context], candidates)
            else:
                wanted = [row for row in self.theirs if row["context"] == context]
                own = credit.random_rows(self.known, self.contexts[context], candidates, wanted, seeded[context])
            rows += [row | {"item": item} for row in own]
        return rows

    def of_preferences(self, preferred: Sequence[tuple[str, int, int]]) -> list[dict[str, Any]]:
        """For DPO: the answers of each context's best self-edit over those of its worst, where both answer the same prompt.

        Args:
            preferred: (context, best, worst).
        """
        rows = []
        for item, (context, best, worst) in enumerate(preferred):
            refused = {json.dumps(row["messages"]): row["completion"] for row in self.answers(context, worst)}
            for row in self.answers(context, best):
                worse = refused.get(json.dumps(row["messages"]))
                if worse is not None and worse != row["completion"]:
                    rows.append(row | {"item": item, "refused": worse, "refused_candidate": worst})
        return rows

    def answers(self, context: str, candidate: int) -> list[dict[str, Any]]:
        """A self-edit's prompts with what was written to each."""
        texts = self.written[context]["edits"][candidate]["texts"]
        return answered(self.task, self.known, self.contexts[context], candidate, texts)
