"""Train the sample checkpoint from the templates, and write everything that is in this folder but the data.

    python train.py              about three minutes on one core; writes the model, the tokenizer and the card
    python train.py --evaluate   accuracy of the checkpoint that is there, by language and intent, and what is confused

The same machine gives the same weights each time: one thread, seeded, no clock and no environment in the result.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from noise import disturb, loosen
from report import Row, evaluate, print_report, write_card
from sentences import HERE, LANGUAGES, load, sample
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification
from wordpiece import SPECIALS, RandomSplitter, train_tokenizer

SEED = 20
VOCABULARY = 8000
MAX_LENGTH = 64
PER_CELL = 4800  # sentences of one intent in one language
OUTSIDE = 1.5  # out_of_scope is many things: this many times as many
EPOCHS = 1
BATCH = 64
RATE = 1.5e-3
LABEL_SMOOTHING = 0.05
SIDE_WEIGHT = 0.5  # of the losses of the two side heads, see SideHeads
PIECE_DROP = 0.15  # probability that a piece is refused, for half of the sentences
LOOSE = 0.2  # probability that a sentence is rearranged or shortened by a word, and again
UNHEARD = 0.1  # probability that a name or thing is a word that does not exist
ASIDE = 0.04  # probability that a request comes with an unrelated statement
TOKEN_DROP = 0.08  # probability that a token is hidden behind [MASK] or [UNK]

INTENTS = [*load("en").intents]


def training_rows(seed: int = SEED, per_cell: int = PER_CELL) -> list[Row]:
    """The training text: ``per_cell`` sentences of each intent in each language, noise included."""
    rng = random.Random(seed)
    rows = []
    for language in LANGUAGES:
        grammar = load(language)
        for intent in INTENTS:
            templates = grammar.intents[intent]
            wanted = int(per_cell * OUTSIDE) if intent == "out_of_scope" else per_cell
            for number in range(wanted):
                # Templates in turn, so that none is rare.
                text = sample(grammar, templates[number % len(templates)], rng, UNHEARD)
                while rng.random() < LOOSE:
                    text = loosen(text, rng)
                if intent != "out_of_scope" and rng.random() < ASIDE:
                    # Something said on the side must not change what is asked for.
                    aside = sample(grammar, rng.choice(grammar.slots["statement"]), rng)
                    text = f"{aside}, {text}" if rng.random() < 0.7 else f"{text}, {aside}"
                if rng.random() < 0.1:
                    text = f"{rng.choice(grammar.before)} {text}"
                elif rng.random() < 0.12:
                    text = f"{text} {rng.choice(grammar.after)}"
                rows.append(Row(disturb(text, language, rng), intent, language))
    return rows


def batches(rows: Sequence[Row], tokenizer: Tokenizer, rng: random.Random) -> Iterator[tuple[torch.Tensor, ...]]:
    """One epoch of (ids, mask, labels); sentences of like length share a batch, the order is shuffled."""
    splitter = RandomSplitter(tokenizer, PIECE_DROP, rng)
    unknown, mask, specials = SPECIALS.index("[UNK]"), SPECIALS.index("[MASK]"), len(SPECIALS)
    encoded = []
    for row in rows:
        ids = splitter.encode(row.text) if rng.random() < 0.5 else tokenizer.encode(row.text).ids
        if rng.random() < 0.7:
            ids = [rng.choice((unknown, mask)) if one >= specials and rng.random() < TOKEN_DROP else one for one in ids]
        encoded.append((ids[:MAX_LENGTH], INTENTS.index(row.label)))
    rng.shuffle(encoded)
    chunk = BATCH * 50
    groups = []
    for start in range(0, len(encoded), chunk):
        near = sorted(encoded[start : start + chunk], key=lambda pair: len(pair[0]))
        groups += [near[at : at + BATCH] for at in range(0, len(near), BATCH)]
    rng.shuffle(groups)
    for group in groups:
        width = max(len(ids) for ids, _ in group)
        padded = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group])
        yield padded, (padded != 0).long(), torch.tensor([label for _, label in group])


def new_model(vocabulary: int) -> BertForSequenceClassification:
    """A BERT of two narrow layers: most of its weights are the embeddings of three languages."""
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=384,
            max_position_embeddings=MAX_LENGTH,
            type_vocab_size=2,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            classifier_dropout=0.2,
            id2label=dict(enumerate(INTENTS)),
            label2id={intent: number for number, intent in enumerate(INTENTS)},
        )
    )
    # Words start out larger than positions (0.02), with which they are summed.
    torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight, std=0.05)
    return model


class SideHeads(torch.nn.Module):
    """Two classifiers on averaged token vectors, before and after the layers; they help training and are then dropped.

    A narrow BERT started from nothing is slow to find that single words already say a lot. These heads tell each
    token's vector so directly.
    """

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, labels) for _ in range(2))

    def forward(self, hidden: Sequence[torch.Tensor], mask: torch.Tensor) -> list[torch.Tensor]:
        """Logits of both heads from the hidden states of all layers."""
        weights = mask.unsqueeze(-1).float()
        ends = (hidden[0], hidden[-1])
        return [head((end * weights).sum(1) / weights.sum(1)) for head, end in zip(self.heads, ends, strict=True)]


def fit(model: BertForSequenceClassification, tokenizer: Tokenizer, rows: Sequence[Row]) -> None:
    """AdamW with a warm-up and a linear descent; label smoothing keeps the scores from saturating."""
    rng = random.Random(SEED + 1)
    steps = EPOCHS * math.ceil(len(rows) / BATCH)
    side = SideHeads(model.config.hidden_size, len(INTENTS))
    parameters = [*model.parameters(), *side.parameters()]
    plain = [parameter for parameter in parameters if parameter.ndim > 1]
    exempt = [parameter for parameter in parameters if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.01}, {"params": exempt, "weight_decay": 0.0}], lr=RATE, foreach=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), max(0.0, (steps - step) / (0.9 * steps)))
    )
    loss_function = torch.nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    model.train()
    step, running = 0, 0.0
    for _ in range(EPOCHS):
        for ids, mask, labels in batches(rows, tokenizer, rng):
            output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            loss = loss_function(output.logits, labels)
            others = sum(loss_function(logits, labels) for logits in side(output.hidden_states, mask))
            optimizer.zero_grad()
            (loss + SIDE_WEIGHT * others).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            running += (loss.item() - running) * 0.02
            step += 1
            if step % 250 == 0:
                print(f"step {step}/{steps} loss {running:.3f} cpu {time.process_time():.0f}", file=sys.stderr)
    model.eval()


def save(model: BertForSequenceClassification, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the Hugging Face folder: weights, configuration, tokenizer with a concrete class."""
    model.config.architectures = ["BertForSequenceClassification"]
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": False,
        "tokenize_chinese_chars": True,
        "model_max_length": MAX_LENGTH,
        "padding_side": "right",
        "truncation_side": "right",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train and write the folder, or evaluate what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", action="store_true", help="evaluate the checkpoint that is in the folder")
    parser.add_argument("--split", default="evaluation", choices=["evaluation", "development"])
    parser.add_argument("--output", type=Path, default=HERE, help="where to write the checkpoint (default: here)")
    arguments = parser.parse_args()
    if arguments.evaluate:
        checkpoint = AutoModelForSequenceClassification.from_pretrained(arguments.output)
        print_report(evaluate(checkpoint, AutoTokenizer.from_pretrained(arguments.output), arguments.split))
        return

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    start = time.monotonic()
    rows = training_rows()
    print(f"{len(rows)} sentences after {time.monotonic() - start:.0f} s", file=sys.stderr)
    tokenizer = train_tokenizer((row.text for row in rows), VOCABULARY)
    print(f"{tokenizer.get_vocab_size()} pieces after {time.monotonic() - start:.0f} s", file=sys.stderr)
    model = new_model(tokenizer.get_vocab_size())
    fit(model, tokenizer, rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, arguments.output)
    print(f"trained after {time.monotonic() - start:.0f} s", file=sys.stderr)
    checkpoint = AutoModelForSequenceClassification.from_pretrained(arguments.output)
    answers = evaluate(checkpoint, AutoTokenizer.from_pretrained(arguments.output), "evaluation")
    print_report(answers)
    templates = sum(len(found) for language in LANGUAGES for found in load(language).intents.values())
    write_card(
        answers,
        arguments.output,
        templates=f"{templates:,}",
        sentences=f"{len(rows):,}",
        epochs=str(EPOCHS),
        smoothing=str(LABEL_SMOOTHING),
    )


if __name__ == "__main__":
    main()
