"""The outer loop: ReST-EM (paper section 3.1, algorithm 1). One round, then rounds.

A round writes self-edits with the current policy, tries each (the inner loop), weighs it (the reward), selects, and trains the
policy on what was selected. On-policy by construction: every row carries the digest of the policy that wrote it, and one of another
policy is refused.

Departures from the paper: (1) the default rule takes the best self-edit of a passage only if it beats the baseline, where the
paper's takes it in any case; (2) ties go by the golds' likelihood, then by lower index, where the reference code takes the first;
(3) the reward's noise is estimated in each round; (4) the control ``random`` trains on self-edits drawn at random; (5) SFT is the
engine's own, in one slot, where the reference code takes TRL; (6) ``credit="lines"`` trains on rows put together of those lines
of the selected self-edits that taught a question's gold best; (7) a reward without labels takes its own exam in the place of the
context's questions, and a context of which none can be made is not decided on; (8) with ``screen`` only what looks best is tried.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfedit.config import OuterConfig
from selfedit.executors.local import LocalExecutor, most_workers
from selfedit.graders import Grader
from selfedit.lm.adapter import load_adapter, save_merged
from selfedit.lm.load import identify
from selfedit.lm.stack import slots_that_fit
from selfedit.outer.draw import draw
from selfedit.outer.round import Round, Told
from selfedit.rewards.exams import Exam, Labelled
from selfedit.runs import BASE, Log, Run, policy_at
from selfedit.tasks.base import Credit, Task


def train(
    config: OuterConfig,
    task: Task,
    contexts: Sequence[Sequence[Any]],
    grader: Grader,
    run: Run,
    executor: LocalExecutor,
    told: Told,
    credit: Credit | None = None,
    exam: Exam | None = None,
) -> dict[str, Any]:
    """All rounds; what is there already is not done again.

    Args:
        config: numbers, rule, reward, settings.
        task: the domain.
        contexts: what may be drawn, of each data set; each has an ``id``.
        grader: marks in this process.
        run: the run's folder.
        executor: where the jobs run; its model is the base.
        told: called with (event, details): ``round, examined, wrote, undecided, looked, screened, tried, reinforcing, reinforced``.
        credit: for ``credit="lines"``: puts the rows together.
        exam: what the reward is taken on; by default the contexts' own questions.

    Returns:
        ``{rounds: [metrics of each], policy: folder of the last policy}``.

    Raises:
        DataError: too few contexts for all rounds; rows of another policy; a control without the run it is to be held against.
    """
    known = identify(config.model)
    slots = config.slots or slots_that_fit(known, config.settings, config.device, most_workers(config.device))
    drawn = draw(config, contexts)
    metrics = Log(run.folder / "metrics.jsonl")
    policy = BASE
    for number, chosen in enumerate(drawn, start=1):
        folder = run.folder / f"round-{number:02d}"
        after = folder / "policy"
        if after.is_dir() and len(metrics.rows) >= number:
            policy = policy_at(after)
            continue
        # A round whose policy was taken away is played again; so is the first of more rounds than the run had.
        shutil.rmtree(run.folder / "merged", ignore_errors=True)
        metrics.keep(number - 1)
        folder.mkdir(exist_ok=True)
        told("round", {"number": number, "contexts": len(chosen), "policy": policy.digest})
        # A control at random weighs nothing, so it needs no exam of its own.
        sat = Labelled(task) if exam is None or config.rule == "random" else exam
        one = Round(config, task, sat, known, executor, grader, run, folder, number, policy, slots, told, credit)
        policy, row = one.play(chosen)
        metrics.append(row)
    merged = run.folder / "merged"
    if config.merge and policy.folder and not merged.is_dir():
        scratch = run.folder / ".merged.new"
        shutil.rmtree(scratch, ignore_errors=True)
        save_merged(known, [load_adapter(Path(policy.folder))], scratch)
        scratch.rename(merged)
    return {"rounds": metrics.rows, "policy": policy.folder}
