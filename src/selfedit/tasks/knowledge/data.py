"""Passages and quizzes in: own files, data sets in known forms, and almanac, the data set inside the package."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from selfedit.contexts import Passage, Question
from selfedit.errors import DataError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
QUIZ_FORMS = 'JSON, JSONL or YAML: [{question, answer}] or {"questions": [...]}; CSV: a header line question,answer'


def load_passage(file: Path, title: str | None = None) -> Passage:
    """A passage from a Markdown or text file; the title is given, the first heading, or the file's name.

    Raises:
        DataError: missing, empty, binary or not UTF-8.
    """
    text = _read_text(file, "a passage")
    heading = re.match(r"\s*#+[^\S\n]+(\S.*?)\s*#*\s*(?:\n|$)", text)
    if heading:
        text = text[heading.end() :]
    chosen = title or (heading.group(1) if heading else file.stem.replace("_", " ").replace("-", " ").strip())
    if not text.strip():
        raise DataError(f"{file}: empty; give a file with the text to learn")
    return Passage(chosen.strip(), text.strip())


def load_quiz(file: Path) -> tuple[Question, ...]:
    """A quiz; the form is told by the file's ending.

    Raises:
        DataError: names file, line and field.
    """
    ending = file.suffix.lower()
    text = _read_text(file, "a quiz")
    if ending == ".csv":
        rows, lines = _csv_rows(file, text)
    elif ending == ".jsonl":
        rows, lines = _jsonl_rows(file, text)
    elif ending in (".json", ".yaml", ".yml"):
        rows, lines = _document_rows(file, text, ending)
    else:
        raise DataError(f"{file}: unknown ending {ending or '(none)'} for a quiz; give {QUIZ_FORMS}")
    if not rows:
        raise DataError(f"{file}: no questions in it; give {QUIZ_FORMS}")
    return tuple(_question(row, f"{file}, line {line}") for row, line in zip(rows, lines, strict=True))


def load_dataset(name: str, split: str | None = None) -> list[Passage]:
    """A data set: ``almanac``, ``squad`` (through the library datasets), or a JSON file in the flat or the SQuAD form.

    Args:
        name: ``almanac`` and ``squad`` may name their own split: ``almanac:dev``.
        split: of those that name none.

    Raises:
        DataError: unknown, unreadable or malformed; names file and field.
    """
    known, _, own = name.partition(":")
    if known == "almanac":
        return almanac(own or split or "test")
    if known == "squad":
        return _squad_from_hub(own or split or "validation")
    file = Path(name)
    if not file.exists():
        raise DataError(f"{name}: no such data set; give almanac, squad, or a JSON file of {{title, context, questions}} items")
    text = _read_text(file, "a data set")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: not valid JSON ({error.msg})") from error
    return _merged(parse_dataset(data, str(file)))


def _merged(passages: list[Passage]) -> list[Passage]:
    """Each text once: items with the same title and text put their questions together."""
    merged: dict[str, Passage] = {}
    for passage in passages:
        known = merged.get(passage.id)
        questions = tuple(dict.fromkeys((known.questions if known else ()) + passage.questions))
        merged[passage.id] = replace(passage, questions=questions)
    return list(merged.values())


def parse_dataset(data: Any, where: str) -> list[Passage]:
    """Passages of a parsed data set, told by content: the flat list or SQuAD's official nesting (v1.1, v2.0).

    Raises:
        DataError: names the item and the field.
    """
    if isinstance(data, dict) and isinstance(data.get("data"), list):
        return _official_squad(data["data"], where)
    if not isinstance(data, list) or not data:
        raise DataError(f"{where}: neither a list of {{title, context, questions}} nor SQuAD's {{data: [...]}}")
    passages = []
    for index, item in enumerate(data):
        at = f"{where}, item {index + 1}"
        if not isinstance(item, dict):
            raise DataError(f"{at}: not an object; give {{title, context, questions}}")
        questions = item.get("questions", [])
        if not isinstance(questions, list):
            raise DataError(f"{at}: field questions must be a list")
        passages.append(
            Passage(
                _text_field(item, "title", at),
                _text_field(item, "context", at),
                tuple(_question(row, f"{at}, question {number + 1}") for number, row in enumerate(questions)),
            )
        )
    return passages


def flat_dataset(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """The flat form of a data set, as ``load_dataset`` reads it."""
    return [
        {
            "title": passage.title,
            "context": passage.text,
            "questions": [
                {"question": q.question, "answer": q.answer}
                | ({"aliases": list(q.aliases)} if q.aliases else {})
                | ({"paraphrases": list(q.paraphrases)} if q.paraphrases else {})
                for q in passage.questions
            ],
        }
        for passage in passages
    ]


def almanac(split: str) -> list[Passage]:
    """The data set inside the package: passages about invented things that no model can know (24 train, 16 dev, 40 test).

    Raises:
        DataError: an unknown split.
    """
    if split not in SPLITS:
        raise DataError(f"almanac has no split {split!r}; give one of {', '.join(SPLITS)}")
    file = resources.files("selfedit.tasks.knowledge") / "almanac" / f"{split}.json"
    return parse_dataset(json.loads(file.read_text(encoding="utf-8")), f"almanac {split}")


def almanac_passage(name: str) -> Passage | None:
    """The passage that ``almanac:SPLIT:NUMBER`` names (numbers from 1), None for any other name.

    Raises:
        DataError: the form is that of almanac, but there is no such passage.
    """
    if not name.startswith("almanac:"):
        return None
    split, _, number = name.removeprefix("almanac:").partition(":")
    passages = almanac(split)
    if not number.isdigit() or not 1 <= int(number) <= len(passages):
        raise DataError(f"{name}: almanac {split} has passages 1 to {len(passages)}; give almanac:{split}:NUMBER")
    return passages[int(number) - 1]


def _read_text(file: Path, what: str) -> str:
    try:
        raw = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; give {what}") from error
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror})") from error
    if b"\0" in raw:
        raise DataError(f"{file}: a binary file; give {what} as text (UTF-8)")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 (byte {error.start}); give {what} as UTF-8 text") from error
    if not text.strip():
        raise DataError(f"{file}: empty; give {what}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _question(row: Any, at: str) -> Question:
    if not isinstance(row, dict):
        raise DataError(f"{at}: not an object; give {{question, answer}}")
    paraphrases = row.get("paraphrases", [])
    aliases = row.get("aliases", [])
    for field, value in (("paraphrases", paraphrases), ("aliases", aliases)):
        if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
            raise DataError(f"{at}: field {field} must be a list of texts")
        for entry in value:
            _whole(entry, field, at)
    return Question(_text_field(row, "question", at), _text_field(row, "answer", at), tuple(aliases), tuple(paraphrases))


def _text_field(row: dict[str, Any], field: str, at: str) -> str:
    if field not in row:
        raise DataError(f"{at}: field {field} is missing; it has {', '.join(map(str, row)) or 'no fields'}")
    value = row[field]
    if not isinstance(value, str):
        kind = type(value).__name__
        raise DataError(f"{at}: field {field} must be text, but is {kind} ({value!r}); put it in quotes")
    if not value.strip():
        raise DataError(f"{at}: field {field} is empty")
    return _whole(value, field, at).strip()


def _whole(value: str, field: str, at: str) -> str:
    """A text as it is; what cuts an emoji in two leaves half a character, which no file can keep."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{at}: field {field} has half a character ({error.reason}); write it again as whole text") from error
    return value


def _csv_rows(file: Path, text: str) -> tuple[list[Any], list[int]]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = [name.strip() for name in reader.fieldnames or []]
    doubled = [name for name in ("question", "answer") if header.count(name) > 1]
    if doubled:
        raise DataError(f"{file}, line 1: column {doubled[0]} is there twice; other gold answers need JSON or YAML (aliases)")
    lists = [name for name in ("paraphrases", "aliases") if name in header]
    if lists:
        raise DataError(
            f"{file}, line 1: column {lists[0]} would be a list of texts, which CSV can't hold; give the quiz as JSON or YAML"
        )
    missing = [name for name in ("question", "answer") if name not in header]
    if missing:
        raise DataError(f"{file}, line 1: no column {' and no column '.join(missing)}; the header line must be question,answer")
    reader.fieldnames = header
    rows, lines = [], []
    try:
        for row in reader:
            if row.get(None):
                raise DataError(
                    f"{file}, line {reader.line_num}: more fields than the header has; put a text with a comma in it in quotes"
                )
            rows.append({key: row[key] for key in ("question", "answer") if row[key] is not None})
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: not valid CSV ({error})") from error
    return rows, lines


def _jsonl_rows(file: Path, text: str) -> tuple[list[Any], list[int]]:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{file}, line {number}: not valid JSON ({error.msg})") from error
            lines.append(number)
    return rows, lines


def _document_rows(file: Path, text: str, ending: str) -> tuple[list[Any], list[int]]:
    try:
        data = json.loads(text) if ending == ".json" else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: not valid JSON ({error.msg})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error).split("\n")[0]
        form = "JSON" if ending == ".json" else "YAML"
        hint = "" if form == "JSON" else "; a text with a colon or a quotation mark in it must stand in quotes"
        raise DataError(f"{file}, line {mark.line + 1 if mark else 1}: not valid {form} ({problem}){hint}") from error
    nested = isinstance(data, dict) and "questions" in data
    rows = data["questions"] if nested else data
    if not isinstance(rows, list):
        raise DataError(f"{file}, line 1: field questions must be a list; give {QUIZ_FORMS}")
    return rows, _lines_of_items(text, nested, len(rows))


def _lines_of_items(text: str, nested: bool, count: int) -> list[int]:
    """The line on which each item of a quiz begins; YAML's reader knows lines and reads JSON too."""
    try:
        node: Any = yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
        if nested:
            node = next(value for key, value in node.value if key.value == "questions")
        lines = [item.start_mark.line + 1 for item in node.value]
    except (yaml.YAMLError, AttributeError, StopIteration):
        lines = []
    return lines if len(lines) == count else [1] * count


def _official_squad(articles: list[Any], where: str) -> list[Passage]:
    passages = []
    for number, article in enumerate(articles):
        at = f"{where}, article {number + 1}"
        if not isinstance(article, dict) or not isinstance(article.get("paragraphs"), list):
            raise DataError(f"{at}: field paragraphs is missing or not a list")
        title = _text_field(article, "title", at).replace("_", " ")
        for index, paragraph in enumerate(article["paragraphs"]):
            place = f"{at}, paragraph {index + 1}"
            if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas", []), list):
                raise DataError(f"{place}: not an object with context and qas")
            questions = []
            for qa in paragraph.get("qas", []):
                if not isinstance(qa, dict):
                    raise DataError(f"{place}: an entry of qas is not an object")
                answers = qa.get("answers") or []
                if not isinstance(answers, list) or not all(isinstance(entry, dict) for entry in answers):
                    raise DataError(f"{place}: field answers must be a list of {{text, answer_start}}")
                if qa.get("is_impossible") or not answers:
                    continue
                golds = list(dict.fromkeys(_text_field(entry, "text", place) for entry in answers))
                questions.append(Question(_text_field(qa, "question", place), golds[0], tuple(golds[1:])))
            # A paragraph all of whose questions are impossible (SQuAD 2.0) has no exam.
            if questions or not paragraph.get("qas"):
                passages.append(Passage(title, _text_field(paragraph, "context", place), tuple(questions)))
    if not passages:
        raise DataError(f"{where}: no paragraph with a question that has an answer")
    return passages


def _squad_from_hub(split: str) -> list[Passage]:
    """SQuAD shows nobody its test split: every second title of ``validation`` is ``dev``, the others are ``test``."""
    known = (*SPLITS, "validation")
    if split not in known:
        raise DataError(f"squad has no split {split!r}; give one of {', '.join(known)}")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "squad needs the library datasets and a network: pip install datasets; or give a SQuAD JSON file"
        ) from error
    try:
        rows = datasets.load_dataset("rajpurkar/squad", split="train" if split == "train" else "validation")
    except Exception as error:
        raise DataError(f"squad: the hub could not be reached ({error}); give a SQuAD JSON file instead") from error
    questions: dict[tuple[str, str], list[Question]] = {}
    for row in rows:
        golds = list(dict.fromkeys(row["answers"]["text"]))
        key = (row["title"].replace("_", " ").strip(), row["context"].strip())
        questions.setdefault(key, []).append(Question(row["question"], golds[0], tuple(golds[1:])))
    titles = sorted({title for title, _ in questions})
    wanted = set(titles[split == "test" :: 2] if split in ("dev", "test") else titles)
    return [Passage(title, text, tuple(found)) for (title, text), found in questions.items() if title in wanted]


def load_edits(file: Path, questions: bool = False) -> tuple[list[tuple[Passage, list[str]]], bool]:
    """Passages with the self-edits written about them, in the reference code's forms, and the file's ``split_newlines``.

    A list of ``{title, context, completions}`` (or ``completion``), or a result of a run of trials, whose ``articles`` are one.

    Args:
        file: JSON.
        questions: whether the passages' questions are read too, where there are any.

    Raises:
        DataError: names the file, the item and the field.
    """
    what = "JSON: a list of {title, context, completions}, or a run's result file"
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; give {what}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: can't be read ({error}); give {what}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: not valid JSON ({error.msg}); give {what}") from error
    except RecursionError as error:
        raise DataError(f"{file}: nested too deeply; give {what}") from error
    items, newlines = (data.get("articles"), data.get("split_newlines", True)) if isinstance(data, dict) else (data, True)
    if not isinstance(items, list):
        raise DataError(f"{file}: neither a list of {{title, context, completions}} nor a result with articles")
    if not isinstance(newlines, bool):
        raise DataError(f"{file}: field split_newlines must be true or false")
    return [_edits_of(item, f"{file}, item {index + 1}", questions) for index, item in enumerate(items)], newlines


def _edits_of(item: Any, at: str, with_questions: bool) -> tuple[Passage, list[str]]:
    if not isinstance(item, dict):
        raise DataError(f"{at}: not an object")
    for field in ("title", "context"):
        if not isinstance(item.get(field), str):
            raise DataError(f"{at}: field {field} is missing or not text")
    completions = item.get("completions", [item["completion"]] if "completion" in item else None)
    if not isinstance(completions, list):
        raise DataError(f"{at}: field completions is missing or not a list")
    texts = []
    for number, completion in enumerate(completions):
        text = completion.get("text") if isinstance(completion, dict) else completion
        if not isinstance(text, str):
            raise DataError(f"{at}, completion {number + 1}: not text")
        texts.append(_whole(text, f"completion {number + 1}", at))
    questions = item.get("questions", []) if with_questions else []
    if not isinstance(questions, list):
        raise DataError(f"{at}: field questions must be a list")
    asked = tuple(_question(row, f"{at}, question {number + 1}") for number, row in enumerate(questions))
    return Passage(item["title"], item["context"], asked), texts
