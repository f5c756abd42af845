"""The knowledge domain as a ``Task``: passages in, notes and question-answer pairs out, a closed-book exam (paper section 4.1)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from selfedit import seeds
from selfedit.config import EditConfig, Settings
from selfedit.contexts import Passage
from selfedit.edits import TrainingPlan, in_view
from selfedit.errors import InvalidEditError
from selfedit.lm.load import Identity, LanguageModel
from selfedit.tasks.base import Asked, Request, Sitting
from selfedit.tasks.knowledge.compile import compile_edit, split_passage
from selfedit.tasks.knowledge.documents import passage_pieces
from selfedit.tasks.knowledge.exam import ExamForm, Paper, asked_about, asked_in, exam_questions, sit_exams
from selfedit.tasks.knowledge.prompts import EPOCHS, LEARNING_RATES, NOTES_SCHEMA, STYLES, about_sentences, edit_prompts, parts_of

# Longest answers where the sampling names no length.
SENTENCE_TOKENS, PASSAGE_TOKENS = 80, 512
# 12 notes of 160 characters, and the settings.
NOTES_TOKENS = 768
PLAN_BEGINS = '{"notes"'
GRIDS: Mapping[str, Sequence[float | int]] = {"learning_rate": LEARNING_RATES, "epochs": EPOCHS}


@dataclass(frozen=True)
class KnowledgeTask:
    """Passages with questions.

    Attributes:
        edit: styles and form of the self-edits; candidate i takes style i modulo the number of styles.
        form: how the exam's questions are put.
        margins: whether gold answers are weighed against each other.
    """

    edit: EditConfig = field(default_factory=EditConfig)
    form: ExamForm = "titled"
    margins: bool = False

    def style(self, candidate: int) -> str:
        """The style that a candidate is written in."""
        return self.edit.styles[candidate % len(self.edit.styles)]

    def requests(self, lm: Identity, context: Passage, candidate: int) -> list[Request]:
        """Each style of a combination in turn, about the whole passage or sentence by sentence, as often as ``passes`` says."""
        edit, found = self.edit, []
        for style in parts_of(self.style(candidate)):
            schema = json.dumps(NOTES_SCHEMA) if style in STYLES and STYLES[style].settings else None
            longest = NOTES_TOKENS if schema else PASSAGE_TOKENS
            short = edit.unit == "sentence" and about_sentences(style)
            for _ in range(edit.passes if short else 1):
                for part in split_passage(lm, context):
                    pieces = passage_pieces(part.text)
                    prompts = edit_prompts(style, part.title, pieces, part.text, lm.chat, edit.shots, edit.unit)
                    found += [Request(prompt, SENTENCE_TOKENS if short else longest, schema) for prompt in prompts]
        return found

    def joined(self, candidate: int, texts: Sequence[str]) -> str:
        """The answers one below the other, without the thoughts that a style asks for first; a plan with its settings or not."""
        mode = next((STYLES[style].settings for style in parts_of(self.style(candidate)) if style in STYLES), None)
        if mode is not None:
            return "\n".join(_with_settings(text, mode) for text in texts)
        cuts = {STYLES[style].cut for style in parts_of(self.style(candidate)) if style in STYLES} - {None}
        for cut in cuts:
            texts = [text.rsplit(str(cut), 1)[-1].strip() for text in texts]
        return "\n".join(texts)

    def compile(self, lm: Identity, context: Passage, text: str, settings: Settings, seed: int) -> TrainingPlan:
        """Documents by ``edit.form``, then the passage; the settings as given, but for those that the self-edit names.

        The whole passage is in view of each, also where it is split into parts for training.
        """
        notes, chosen = read_plan(text)
        documents = compile_edit(split_passage(lm, context), notes, self.edit, lm.chat)
        return TrainingPlan(in_view(documents, context.view), settings.model_copy(update=chosen), seed)

    def asked(self, context: Passage) -> tuple[Asked, ...]:
        """Every wording of the passage's questions."""
        return tuple(exam_questions(context.questions))

    def examine(self, lm: LanguageModel, seats: Sequence[tuple[int, Passage]], first: int) -> list[Sitting]:
        """The exam of each (slot, passage)."""
        return sit_exams(lm, [Paper(passage, self.asked(passage), self.form, slot, self.margins) for slot, passage in seats], first)


def read_plan(text: str) -> tuple[str, dict[str, float | int]]:
    """The notes of a self-edit, one a line, and the settings that it names; free text is its own notes and names none.

    A plan is a line of JSON; of several, about the parts of a long passage, the first one's settings count.

    Raises:
        InvalidEditError: it begins as a plan and isn't the object that was asked for, or a setting is out of its grid.
    """
    if not text.lstrip().startswith(PLAN_BEGINS):
        return text, {}
    notes: list[str] = []
    chosen: dict[str, float | int] = {}
    for number, line in enumerate(text.strip().split("\n")):
        try:
            plan = json.loads(line)
            notes += [str(note) for note in plan["notes"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidEditError(f"not a JSON object with notes ({error})") from error
        for name, grid in GRIDS.items():
            if name in plan and plan[name] not in grid:
                raise InvalidEditError(f"{name} {plan[name]!r} is none of {', '.join(map(str, grid))}")
            if name in plan and not number:
                chosen[name] = grid[grid.index(plan[name])]
    return "\n".join(notes), chosen


def _with_settings(text: str, mode: str) -> str:
    """A plan with its own settings, with none, or with settings drawn by a hash of its notes."""
    try:
        plan = json.loads(text)
        kept = {"notes": plan["notes"]}
    except (ValueError, KeyError, TypeError):
        return text
    if mode == "own":
        kept |= {name: plan[name] for name in GRIDS if name in plan}
    if mode == "random":
        kept |= {name: grid[seeds.derive(text, name) % len(grid)] for name, grid in GRIDS.items()}
    return json.dumps(kept, ensure_ascii=False)


@dataclass(frozen=True)
class Together(KnowledgeTask):
    """Several exams of a passage, and questions about others, as one exam: all in one batch.

    Attributes:
        forms: how the passage's own questions are put, one exam each.
        elsewhere: passage id -> exams about others, whatever the passage: what a training disturbed (locality).
    """

    forms: tuple[ExamForm, ...] = ("titled",)
    elsewhere: Mapping[str, tuple[Paper, ...]] = field(default_factory=dict)

    def asked(self, context: Passage) -> tuple[Asked, ...]:
        """The questions of all exams, each exam's groups counted by themselves."""
        own = exam_questions(context.questions)
        return (*(one for form in self.forms for one in asked_in(form, own)), *asked_about(self.elsewhere.get(context.id, ())))

    def examine(self, lm: LanguageModel, seats: Sequence[tuple[int, Passage]], first: int) -> list[Sitting]:
        """All exams of each (slot, passage), as one sitting."""
        papers = [self._papers(passage, slot) for slot, passage in seats]
        sat = iter(sit_exams(lm, [paper for own in papers for paper in own], first))
        return [_one(next(sat) for _ in own) for own in papers]

    def apart(self, context: Passage, sitting: Sitting) -> list[Sitting]:
        """A sitting's exams: one for each form, then the questions about others as one."""
        own = exam_questions(context.questions)
        sizes = [len(asked_in(form, own)) for form in self.forms]
        ends = list(itertools.accumulate(sizes))
        bounds = [*zip([0, *ends], ends, strict=False), *([(ends[-1], None)] if self.elsewhere.get(context.id) else [])]
        return [Sitting(sitting.answers[a:b], sitting.log_probabilities[a:b], sitting.margins[a:b]) for a, b in bounds]

    def _papers(self, context: Passage, slot: int) -> list[Paper]:
        asked = tuple(exam_questions(context.questions))
        papers = [Paper(context, asked, form, slot, self.margins) for form in self.forms]
        return papers + [replace(paper, slot=slot) for paper in self.elsewhere.get(context.id, ())]


def _one(sittings: Iterable[Sitting]) -> Sitting:
    parts = list(sittings)
    answers, values, margins = (
        tuple(entry for part in parts for entry in getattr(part, name)) for name in ("answers", "log_probabilities", "margins")
    )
    return Sitting(answers, values, margins)
