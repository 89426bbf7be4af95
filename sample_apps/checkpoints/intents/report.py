"""Measure a checkpoint on hand-written sentences, print the figures, and fill them into the model card."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentences import HERE, LANGUAGES


@dataclass(frozen=True)
class Row:
    """One labelled sentence."""

    text: str
    label: str
    language: str


@dataclass(frozen=True)
class Answer:
    """What the model said about one sentence."""

    row: Row
    predicted: str
    score: float

    @property
    def right(self) -> bool:
        return self.predicted == self.row.label


def read_split(name: str) -> list[Row]:
    """The rows of ``evaluation.jsonl`` or ``development.jsonl``."""
    lines = (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Row(**json.loads(line)) for line in lines]


def evaluate(model: Any, tokenizer: Any, split: str) -> list[Answer]:
    """Answers of a transformers model and tokenizer to every sentence of a split."""
    rows = read_split(split)
    answers = []
    with torch.inference_mode():
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            batch = tokenizer([row.text for row in part], padding=True, truncation=True, return_tensors="pt")
            scores, best = model(**batch).logits.softmax(-1).max(-1)
            answers += [
                Answer(row, model.config.id2label[int(label)], float(score))
                for row, label, score in zip(part, best, scores, strict=True)
            ]
    return answers


def accuracy(answers: list[Answer]) -> float:
    """Share of right answers."""
    return sum(answer.right for answer in answers) / len(answers)


def by(answers: list[Answer], key: str) -> dict[str, list[Answer]]:
    """Answers grouped by ``label`` or ``language`` of their row."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(getattr(answer.row, key), []).append(answer)
    return groups


def print_report(answers: list[Answer]) -> None:
    """Accuracy overall, by language and intent, and the confusion table, on standard output."""
    print(f"accuracy {accuracy(answers):.3f} on {len(answers)} sentences")
    for language, part in by(answers, "language").items():
        print(f"  {language} {accuracy(part):.3f}")
    labels = list(by(answers, "label"))
    counts = Counter((answer.row.label, answer.predicted) for answer in answers)
    width = max(map(len, labels))
    print("\nrows: meant, columns: answered, both in this order")
    for label in labels:
        cells = " ".join(f"{counts[label, other] or '.':>3}" for other in labels)
        print(f"  {label:{width}} {cells}   {accuracy(by(answers, 'label')[label]):.2f}")


def figures(answers: list[Answer]) -> dict[str, str]:
    """The tables of the card, as Markdown."""
    intents = by(answers, "label")
    lines = [
        "| intent | sentences | " + " | ".join(LANGUAGES) + " | all |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for intent, part in intents.items():
        languages = by(part, "language")
        cells = " | ".join(f"{accuracy(languages[language]):.2f}" for language in LANGUAGES)
        lines.append(f"| {intent} | {len(part)} | {cells} | {accuracy(part):.2f} |")
    languages = by(answers, "language")
    cells = " | ".join(f"**{accuracy(languages[language]):.3f}**" for language in LANGUAGES)
    lines.append(f"| **all** | {len(answers)} | {cells} | **{accuracy(answers):.3f}** |")
    confused = Counter((answer.row.label, answer.predicted) for answer in answers if not answer.right)
    worst = [f"`{meant}` taken for `{said}` ({count})" for (meant, said), count in confused.most_common(6)]
    # A rejected sentence costs a question, an accepted wrong one an action: both sides of a threshold.
    kept = [answer for answer in answers if answer.score >= 0.5]
    return {
        "table": "\n".join(lines),
        "confusions": "; ".join(worst) or "none",
        "accuracy": f"{100 * accuracy(answers):.1f}",
        "kept": f"{100 * len(kept) / len(answers):.1f}",
        "kept_accuracy": f"{100 * accuracy(kept):.1f}",
    }


def write_card(answers: list[Answer], folder: Path, **settings: str) -> None:
    """Fill the measured figures and the settings into ``data/card.md`` and write it as the folder's README.md."""
    card = (HERE / "data" / "card.md").read_text(encoding="utf-8")
    for name, value in {**figures(answers), **settings}.items():
        card = card.replace("{{" + name + "}}", value)
    (folder / "README.md").write_text(card, encoding="utf-8")
