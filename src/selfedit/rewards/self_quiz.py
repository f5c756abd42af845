"""A quiz that the model makes about a passage by itself, so that nobody has to write questions (paper section 6).

Sentence by sentence the model, that sentence in view, names a detail and asks for it, held to a JSON schema. What passes is decided
by agreement only: the answer comes again when the question is asked with the passage in view, and not without it. The writer of
self-edits never sees the quiz; a question that a self-edit has anyway is dropped for all self-edits of the passage.

Departures from others' ways (SCoL, SOAR ask a large model and take what it writes): (1) the answer is one of the sentence's own
spans, a server's excepted; (2) a text that the model can't read, by the bits that a byte of it costs, gets no quiz; (3) while
fewer than wanted have passed more are asked for, a few times, each time of a warmer writer; (4) the writer sees the sentence that
it asks about, the reader the passage, or of a long one the part of ``QuizConfig.view`` tokens that the sentence stands in.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

from selfedit import seeds
from selfedit.config import EditConfig, QuizConfig, Sampling
from selfedit.contexts import Passage, Question
from selfedit.graders.text import RECALL_THRESHOLD, normalise, recall_score
from selfedit.lm.adapter import standing
from selfedit.lm.batch import Row, encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel
from selfedit.lm.score import token_log_probabilities
from selfedit.samplers.base import Sampler
from selfedit.samplers.local import LocalSampler
from selfedit.samplers.remote import RemoteSampler
from selfedit.tasks.base import Request, Task
from selfedit.tasks.knowledge.compile import split_passage
from selfedit.tasks.knowledge.documents import content_words, count_words, passage_pieces
from selfedit.tasks.knowledge.exam import LONGEST_ANSWER
from selfedit.tasks.knowledge.prompts import exam_prompt, quiz_prompt, quiz_schema, reading_prompt
from selfedit.tasks.knowledge.task import KnowledgeTask

# Tokens of a question with its answer.
LONGEST_ITEM = 80
LONGEST_SPAN = 6
# Spans that an answer is chosen from: of a sentence the first ones, of a whole text some of each sentence.
MOST_SPANS = 400
SHORTEST_QUESTION = 4
QUESTION_MARKS = ("?", "？", "؟", ";")
# Of a long text so many sentences, evenly spread, are asked about for each question wanted.
SENTENCES_AN_ITEM = 2
# By such a share of the temperature the writer is warmer each time that it is asked again.
WARMER, WARMEST = 0.6, 2.0
# Function words that may stand inside of an answer.
INNER = {"of", "the", "de", "von", "van", "la", "and"}
# In so many ways the worked examples ask about their sentences.
WORDINGS = 2


@dataclass(frozen=True, slots=True)
class Quiz:
    """What was made.

    Attributes:
        questions: those that passed, at most as many as were wanted.
        asked: how many were written.
        refused: reason -> how many.
        reason: why there is no quiz; empty if there is one.
        turned_down: the questions that were read with the passage in view and refused, with the reason.
    """

    questions: tuple[Question, ...]
    asked: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    turned_down: tuple[dict[str, str], ...] = ()

    @classmethod
    def of(cls, data: dict[str, Any]) -> Quiz:
        """From its JSON."""
        questions = tuple(Question(one["question"], one["answer"]) for one in data["questions"])
        return cls(**data | {"questions": questions, "turned_down": tuple(data.get("turned_down", ()))})


def write_quiz(lm: LanguageModel, passage: Passage, config: QuizConfig, seed: int) -> Quiz:
    """A job: the quiz of a passage.

    Writing and reading are the base's own, without a memory; what is known already is asked of the model as it stands.

    Raises:
        SamplerError: the server of ``config.url`` gave no text.
    """
    with standing(lm, [], alone=True):
        bits = bits_a_byte(lm, passage.text)
    if bits > config.most_bits:
        return Quiz((), reason=f"the model can't read it: {bits:.1f} bits a byte, more than quiz.most_bits={config.most_bits:g}")
    sampler = sampler_of(config, lm)
    sentences = sentences_of(lm, passage, config.view)
    spans = [answer_spans(passage.title, sentence) for _, sentence in sentences]
    passed: dict[int, list[tuple[int, Question]]] = defaultdict(list)
    refused: Counter[str] = Counter()
    turned_down: list[tuple[str, Question]] = []
    asked = 0
    # A sentence is asked about again until it has given its share.
    share = -(-config.items // max(1, sum(map(bool, spans))))
    for attempt in range(config.retries + 1):
        places = spread([at for at in range(len(sentences)) if spans[at] and len(passed[at]) < share], config.items)
        if not places or sum(map(len, passed.values())) >= config.items:
            break
        known = [one for ones in passed.values() for _, one in ones]
        warmer = config.model_copy(
            update={"temperature": max(config.temperature, min(WARMEST, config.temperature * (1 + WARMER * attempt)))}
        )
        written = list(write_items(lm, sampler, passage.title, sentences, spans, places, warmer, seeds.derive(seed, attempt)))
        asked += len(written)
        fresh: list[tuple[int, Question]] = []
        for at, one in written:
            if isinstance(one, str):
                refused[one] += 1
                continue
            # What was refused once is not read again.
            before = [*(other for _, other in turned_down if other.answer == one.answer), *(other for _, other in fresh)]
            if why := trivial(one, passage) or asked_twice(one, known, before):
                refused[why] += 1
            else:
                fresh.append((at, one))
        agreed = _agreement(
            lm, sampler, [(sentences[at][0], one) for at, one in fresh], config, seeds.derive(seed, attempt, "read")
        )
        enough = [at for at, agreeing in enumerate(agreed) if agreeing >= config.agreeing]
        already = dict(zip(enough, _known(lm, passage.title, [fresh[at][1] for at in enough]), strict=True))
        # Those with most agreement first, so that of several with one answer the best is taken.
        for index, ((at, one), agreeing) in sorted(enumerate(zip(fresh, agreed, strict=True)), key=lambda found: -found[1][1]):
            if agreeing < config.agreeing:
                why = "not the same answer again"
            elif already[index]:
                why = "known without the passage"
            else:
                why = asked_twice(one, [other for ones in passed.values() for _, other in ones])
            if why:
                refused[why] += 1
                turned_down.append((why, one))
            else:
                passed[at].append((agreeing, one))
    questions = tuple(chosen([passed[at] for at in sorted(passed)], config.items))
    reason = ""
    if not any(spans):
        reason = "no sentence of it has a name, a number or a detail to ask for"
    elif len(questions) < config.least:
        reason = f"{len(questions)} of {asked} questions passed, and {config.least} are needed"
    rest = tuple({"question": one.question, "answer": one.answer, "why": why} for why, one in turned_down)
    return Quiz(questions, asked, dict(refused), reason, rest)


def sampler_of(config: QuizConfig, lm: LanguageModel) -> Sampler:
    """Who makes exams: the server that is named, or the model itself."""
    return RemoteSampler(config.url, config.model, lm) if config.url else LocalSampler(lm)


def sentences_of(lm: LanguageModel, passage: Passage, view: int) -> list[tuple[Passage, str]]:
    """(part of the passage of at most so many tokens, sentence of it), in order."""
    return [(part, sentence) for part in split_passage(lm, passage, view) for sentence in passage_pieces(part.text)]


def spread(places: Sequence[int], items: int) -> list[int]:
    """Evenly spread places, at most ``SENTENCES_AN_ITEM`` for each item wanted."""
    return list(places[:: -(-len(places) // (SENTENCES_AN_ITEM * items)) or 1])


def bits_a_byte(lm: LanguageModel, text: str) -> float:
    """How hard a text is to the model: bits for each byte of its UTF-8 form, after its first token."""
    ids = tuple(lm.tokenizer(text)["input_ids"])[: lm.window]
    if len(ids) < 2:
        return math.inf
    (values,) = token_log_probabilities(lm, [Row(ids, 1)])
    return -sum(values) / math.log(2) / max(1, len(lm.tokenizer.decode(ids[1:]).encode()))


def answer_spans(title: str, sentence: str) -> list[str]:
    """What an answer may be: runs of at most 6 words and half a sentence, that neither begin nor end with a function word.

    Names and numbers, or two content words at least: with a digit, or a capital that doesn't open the sentence, or both. The title
    itself is none, nor is a part of a name, nor what has a function word inside but "of", "the" and "and".
    """
    words = [(match.start(), match.end()) for match in re.finditer(r"\w[^\s]*", sentence)]
    spans: dict[str, None] = {}
    for length in range(1, LONGEST_SPAN + 1):
        for at in range(len(words) - length + 1):
            span = sentence[words[at][0] : words[at + length - 1][1]].strip(" .,;:!?()\"'”’")
            ends = (span.split()[0], span.split()[-1]) if span else ()
            if not ends or not all(content_words(end) for end in ends) or 2 * length > len(words):
                continue
            if re.search(r"[,;:]\s", span) or content_words(span) <= content_words(title):
                continue
            inner = [word for word in span.split()[1:-1] if not content_words(word)]
            if any(word.lower() not in INNER for word in inner) or _part_of_a_name(sentence, words, at, length):
                continue
            named = any(letter.isdigit() for letter in span) or any(
                word[0].isupper() for index, word in enumerate(span.split()) if at + index
            )
            if named or len(content_words(span)) > 1:
                spans.setdefault(span)
    return list(spans)[:MOST_SPANS]


def _part_of_a_name(sentence: str, words: Sequence[tuple[int, int]], at: int, length: int) -> bool:
    """Whether a run of words cuts a name in two: a capital stands on both sides of where it begins, or of where it ends."""

    def capital(index: int) -> bool:
        return sentence[words[index][0]].isupper() and bool(content_words(sentence[slice(*words[index])]))

    def within(before: int) -> bool:
        return 0 <= before < len(words) - 1 and sentence[words[before][1] - 1].isalnum() and capital(before) and capital(before + 1)

    return within(at - 1) or within(at + length - 1)


def asked_twice(one: Question, passed: Sequence[Question], unread: Sequence[Question] = ()) -> str:
    """Why a question is none beside those that passed, or are yet to be read with the passage in view; or nothing.

    Of two with one answer it is not known before they are read which is the better: only equal questions are refused then.
    """
    twice = any(normalise(one.question) == normalise(other.question) for other in (*passed, *unread))
    return "asked twice" if twice or any(normalise(one.answer) == normalise(other.answer) for other in passed) else ""


def trivial(one: Question, passage: Passage) -> str:
    """Why a question is none, or nothing."""
    answer = content_words(one.answer)
    if not answer or answer <= content_words(passage.title) or answer <= content_words(one.question):
        return "trivial"
    if any(normalise(one.answer) == normalise(sentence) for sentence in passage_pieces(passage.text)):
        return "trivial"
    if count_words(one.question) < SHORTEST_QUESTION or not one.question.endswith(QUESTION_MARKS):
        return "no question"
    return ""


def copied(question: str, text: str, overlap: float) -> bool:
    """Whether a line of a text has so large a share of the question's word trigrams."""
    wanted = _trigrams(question)
    return any(len(wanted & _trigrams(line)) >= overlap * len(wanted) for line in text.split("\n"))


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2))}


def write_items(
    lm: LanguageModel,
    sampler: Sampler,
    title: str,
    sentences: Sequence[tuple[Passage, str]],
    spans: Sequence[list[str]],
    places: Sequence[int],
    config: QuizConfig,
    seed: int,
) -> Iterator[tuple[int, Question | str]]:
    """(sentence, question, or why it is none), ``config.passes`` for each place."""
    # A server's limits on schemas are not known; there the answer is any short text.
    schemas = {at: quiz_schema([] if config.url else spans[at]) for at in places}
    # Those that show the same worked examples in one batch: they are read once.
    for turn in range(min(WORDINGS, config.passes)):
        asked = [at for _ in range(turn, config.passes, WORDINGS) for at in places]
        requests = [
            Request(quiz_prompt(title, sentences[at][1], sampler.known.chat, turn), LONGEST_ITEM, schemas[at]) for at in asked
        ]
        row_seeds = [seeds.derive(seed, "quiz", turn, index) for index in range(len(asked))]
        with standing(lm, [], alone=True):
            texts = sampler.write(requests, Sampling(temperature=config.temperature), row_seeds)
        for at, text in zip(asked, texts, strict=True):
            question, answer = _field(text, "question"), _field(text, "answer")
            yield at, Question(question, answer) if question and answer else "cut off"


def _agreement(
    lm: LanguageModel, sampler: Sampler, asked: Sequence[tuple[Passage, Question]], config: QuizConfig, seed: int
) -> list[int]:
    """How many of the answers sampled with the passage in view are each question's own; those that can't reach enough end early."""
    agreeing = [0] * len(asked)
    # Before so many answers no question can have lost; they are sampled at once, so that each prompt is read once for them.
    first = config.resamples - config.agreeing + 1
    for turn in range(first, config.resamples + 1):
        needed = config.agreeing - (config.resamples - turn + 1)
        places = [at for at, count in enumerate(agreeing) if count >= needed]
        count = 1 if turn > first else first
        texts = iter(read_answers(lm, sampler, [asked[at] for at in places], config, count, seeds.derive(seed, turn)))
        for at in places:
            agreeing[at] += sum(_same(next(texts), asked[at][1]) for _ in range(count))
    return agreeing


def read_answers(
    lm: LanguageModel, sampler: Sampler, asked: Sequence[tuple[Passage, Question]], config: QuizConfig, count: int, seed: int
) -> list[str]:
    """``count`` sampled answers to each question, its part of the passage in view, by the base without a memory.

    An answer is one of the spans of that part's sentences (or of the questions' own answers); a server's is free.
    """
    if not asked:
        return []
    schemas = {}
    for part in dict.fromkeys(part for part, _ in asked):
        by_sentence = [answer_spans(part.title, sentence) for sentence in passage_pieces(part.text)]
        # Of each sentence in turn, so that a long text's later sentences are there too.
        spans = [span for turn in zip_longest(*by_sentence) for span in turn if span is not None]
        own = [one.answer for other, one in asked if other == part]
        schemas[part] = quiz_schema([] if config.url else list(dict.fromkeys([*own, *spans]))[:MOST_SPANS], question=False)
    sampling = Sampling(temperature=config.temperature)
    texts: dict[int, str] = {}
    # Part by part, so that each is read once; a server is asked everything at a time.
    for among in [set(schemas)] if config.url else [{part} for part in schemas]:
        places = [at * count + turn for at, (part, _) in enumerate(asked) if part in among for turn in range(count)]
        requests = []
        for part, one in (asked[at // count] for at in places):
            prompt = reading_prompt(part.title, part.text, one.question, sampler.known.chat)
            requests.append(Request(prompt, LONGEST_ITEM, schemas[part]))
        with standing(lm, [], alone=True):
            made = sampler.write(requests, sampling, [seeds.derive(seed, at) for at in places])
        texts |= zip(places, made, strict=True)
    return [_field(texts[at], "answer") for at in range(len(asked) * count)]


def _field(text: str, name: str) -> str:
    """A field of a JSON object, empty if it has none."""
    try:
        return str(json.loads(text)[name]).strip()
    except (ValueError, KeyError, TypeError):
        return ""


def _known(lm: LanguageModel, title: str, questions: Sequence[Question]) -> list[bool]:
    """Whether the model as it stands gives each answer without the passage, asked with the title or without."""
    prompts = [encode_prompt(lm, exam_prompt(one.question, topic, lm.chat)) for one in questions for topic in (title, None)]
    texts = generate(lm, prompts, LONGEST_ANSWER) if prompts else []
    return [any(_same(text, one) for text in texts[2 * index : 2 * index + 2]) for index, one in enumerate(questions)]


def _same(answer: str, one: Question) -> bool:
    return recall_score(answer.split("\n")[0], one.answer) >= RECALL_THRESHOLD


def chosen(passed: Sequence[Sequence[tuple[int, Question]]], items: int) -> list[Question]:
    """Of each sentence the question with most agreement, then of each the next; the last ones of sentences all over the text.

    Args:
        passed: by sentence, in the text's order: (agreement, question).
        items: how many at most.
    """
    piles = [sorted(pile, key=lambda pair: -pair[0]) for pile in passed]
    found: list[Question] = []
    for turn in range(max(map(len, piles), default=0)):
        own = [pile[turn][1] for pile in piles if turn < len(pile)]
        room = min(items - len(found), len(own))
        found += [own[(2 * at + 1) * len(own) // (2 * room)] for at in range(room)]
    return found


@dataclass(frozen=True)
class SelfQuiz:
    """The self-made quiz in the place of the passage's own questions."""

    config: QuizConfig
    edit: EditConfig

    @property
    def task(self) -> Task:
        """The exam's form and marks are those of labelled questions."""
        return KnowledgeTask(self.edit)

    def prepare(self, lm: LanguageModel, context: Passage, seed: int) -> dict[str, Any]:
        """The quiz."""
        return asdict(write_quiz(lm, context, self.config, seeds.derive(seed, context.id, "quiz")))

    def examined(self, context: Passage, material: dict[str, Any]) -> Passage:
        """The passage with that quiz alone."""
        return Passage(context.title, context.text, Quiz.of(material).questions)

    def kept(self, context: Passage, material: dict[str, Any], edits: Sequence[str]) -> list[int] | str:
        """The questions that no self-edit has."""
        quiz = Quiz.of(material)
        return quiz.reason or left_by(quiz, edits, self.config)


def left_by(quiz: Quiz, edits: Sequence[str], config: QuizConfig) -> list[int] | str:
    """Indices of the questions that no self-edit has, or why they are too few."""
    kept = [
        index for index, one in enumerate(quiz.questions) if not any(copied(one.question, text, config.overlap) for text in edits)
    ]
    if len(kept) < config.least:
        taken = len(quiz.questions) - len(kept)
        return (
            f"{taken} of the {len(quiz.questions)} questions stand in a self-edit; {len(kept)} are left, {config.least} are needed"
        )
    return kept
