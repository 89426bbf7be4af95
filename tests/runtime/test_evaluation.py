"""A task's metric: data files are read or refused by line, and any predictor is scored on them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from palmtop.runtime.errors import RequestError
from palmtop.runtime.evaluation import agreement, evaluate, predictor, steps
from palmtop.runtime.labelled import Dataset, Example, read_data

from ..support.torch_session import torch_pipeline

SENTENCES = ("good morning", "the train is late again", "music please", "how far is it to the station", "no")
CLASSES = "text-classification"


@pytest.fixture
def write(tmp_path):
    """Write records to a file, one a line, as JSON unless they are text, and give its path."""

    def make(records, name="data.jsonl"):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path = tmp_path / name
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return make


def read(path, pipeline) -> Dataset:
    return read_data(path, pipeline.manifest, pipeline.tokenizer)


def scored(path, pipeline, **options):
    data = read(path, pipeline)
    return evaluate(predictor(pipeline, data, **options), data)


# --- predictions of pipelines ---------------------------------------------------------------------------------------


def test_a_classifier_is_right_as_often_as_its_labels_say(checkpoint, write):
    pipeline = torch_pipeline(checkpoint("bert", CLASSES), CLASSES)
    own = [labels[0].label for labels in pipeline(list(SENTENCES))]
    other = next(label for label in pipeline.id2label.values() if label != own[0])
    records = [{"text": text, "label": label} for text, label in zip(SENTENCES, [other, *own[1:]], strict=True)]
    result = scored(write(records), pipeline, batch_size=2)
    assert result.scores == {"accuracy": 0.8}
    assert result.main == 0.8
    assert result.decisions == own


def test_pairs_numbers_of_labels_and_tsv_are_read(checkpoint, write):
    pipeline = torch_pipeline(checkpoint("bert", CLASSES), CLASSES)
    numbers = {label: number for number, label in pipeline.id2label.items()}
    pair = {"text": "a", "text_pair": "b"}
    records = [{**pair, "label": numbers[pipeline(pair, top_k=1)[0].label], "language": "en"}]
    assert scored(write(records), pipeline).main == 1.0
    own = pipeline("no", top_k=1)[0].label
    for label in (own, numbers[own]):
        for name in ("data.tsv", "data.txt"):
            assert scored(write([f"no\t{label}\r", "", f"no\t{label}"], name), pipeline).main == 1.0


def test_a_multi_label_classifier_decides_by_one_half(checkpoint, write):
    folder = checkpoint("bert", CLASSES)
    pipeline = torch_pipeline(folder, CLASSES, postprocess={"activation": "sigmoid"})
    own = [[entry.label for entry in labels if entry.score >= 0.5] for labels in pipeline(list(SENTENCES))]
    assert 0 < sum(map(len, own)) < len(own) * len(pipeline.id2label)
    records = [{"text": text, "labels": labels} for text, labels in zip(SENTENCES, own, strict=True)]
    assert scored(write(records), pipeline).scores == {"accuracy": 1.0, "f1": 1.0}
    records[0]["labels"] = [label for label in pipeline.id2label.values() if label not in own[0]]
    worse = scored(write(records), pipeline).scores
    assert worse["accuracy"] == 0.8
    assert worse["f1"] < 1


def test_a_regression_is_scored_by_rank(checkpoint, write):
    folder = checkpoint("bert", CLASSES, labels=("likeness",))
    pipeline = torch_pipeline(folder, CLASSES)
    values = [labels[0].score for labels in pipeline(list(SENTENCES), function_to_apply="none")]
    records = [{"text": text, "label": 3 * value - 1} for text, value in zip(SENTENCES, values, strict=True)]
    assert scored(write(records), pipeline).scores["spearman"] == pytest.approx(1.0)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_a_word_has_the_tag_of_its_first_token(checkpoint, write, model_type):
    pipeline = torch_pipeline(checkpoint(model_type, "token-classification"), "token-classification")
    words = ["Angela", "met", "Emmanuel", "in", "Strasbourg-Neudorf", "."]
    tokens = pipeline(words, is_split_into_words=True, ignore_labels=())
    assert len(tokens) > len(words)
    data = read(write([{"tokens": words, "tags": ["O"] * len(words)}]), pipeline)

    def numbered(given, **options):
        """The pipeline, with the number of each token as its class."""
        return [[replace(t, entity=str(n)) for n, t in enumerate(found)] for found in pipeline(given, **options)]

    (tags,) = predictor(numbered, data)([words])
    text, start = " ".join(words), 0
    for word, tag in zip(words, tags, strict=True):
        token = tokens[int(tag)]
        assert word.startswith(text[token.start : token.end].strip())
        assert token.start <= start < token.end
        start += len(word) + 1


def test_tags_are_scored_by_token_and_by_entity(checkpoint, write):
    pipeline = torch_pipeline(checkpoint("bert", "token-classification"), "token-classification")
    words = ["Angela", "met", "Emmanuel", "in", "Strasbourg", "."]
    data = read(write([{"tokens": words, "tags": ["O"] * len(words)}]), pipeline)
    (tags,) = predictor(pipeline, data)([words])
    result = scored(write([{"tokens": words, "tags": tags}] * 2), pipeline)
    assert result.decisions == [tags] * 2
    assert result.scores == {"token_accuracy": 1.0, "entity_f1": 1.0}
    other = next(label for label in pipeline.id2label.values() if label[-3:] != tags[0][-3:])
    worse = scored(write([{"tokens": words, "tags": [other, *tags[1:]]}]), pipeline)
    assert worse.scores["token_accuracy"] == pytest.approx(5 / 6)
    assert worse.scores["entity_f1"] < 1


def test_words_beyond_the_longest_input_are_outside_of_entities(checkpoint, write):
    pipeline = torch_pipeline(checkpoint("bert", "token-classification"), "token-classification")
    words = ["word"] * 200
    (tags,) = scored(write([{"tokens": words, "tags": ["O"] * 200}]), pipeline).decisions
    assert len(tags) == 200
    assert set(tags[100:]) == {"O"}


def test_answers(checkpoint, write):
    pipeline = torch_pipeline(checkpoint("bert", "question-answering"), "question-answering")
    pair = {"question": "where was it signed?", "context": "The treaty was signed in the town hall of Münster."}
    answer = pipeline(pair).answer
    path = write([{**pair, "answers": ["x", answer]}, {**pair, "answer": answer}, {**pair, "answers": {"text": ["x"]}}])
    assert scored(path, pipeline).scores["exact_match"] == pytest.approx(2 / 3)
    # With a question that has no answer in the set, nothing is an answer too.
    nothing = pipeline(pair, handle_impossible_answer=True).answer
    result = scored(write([{**pair, "answers": []}, {**pair, "answers": [nothing]}]), pipeline)
    assert result.decisions == [nothing, nothing]


def test_the_token_of_a_mask(checkpoint, write):
    pipeline = torch_pipeline(checkpoint("bert", "fill-mask"), "fill-mask")
    text = f"the train is {pipeline.mask_token} again"
    own = pipeline(text, top_k=1)[0].token_str
    path = write([{"text": text, "label": own}, {"text": text, "label": "e" if own != "e" else "a"}])
    assert scored(path, pipeline).scores == {"top1": 0.5}


def test_a_token_may_be_known_with_the_space_before_it_only(checkpoint, write):
    pipeline = torch_pipeline(checkpoint("roberta", "fill-mask"), "fill-mask")
    assert pipeline.tokenizer.token_id("Ġthe") is not None
    data = read(write([{"text": f"so is {pipeline.mask_token} train", "label": "the"}]), pipeline)
    assert data.examples[0].expected == "the"


def test_choices(checkpoint, write):
    pipeline = torch_pipeline(checkpoint("bert", "multiple-choice"), "multiple-choice")
    question = {"prompt": "the dog ran because", "choices": ["it wanted to play", "the sky is blue", "no"]}
    own = pipeline(question["prompt"], question["choices"])[0].index
    path = write([{**question, "label": own}, {**question, "label": (own + 1) % 3}])
    assert scored(path, pipeline).scores == {"accuracy": 0.5}


def test_pairs_of_texts_are_ranked_by_their_cosine(checkpoint, write):
    pipeline = torch_pipeline(checkpoint("bert", "feature-extraction"), "feature-extraction")
    pairs = list(zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1], strict=True))
    vectors = {text: pipeline(text, pooling="mean") for text in SENTENCES}
    cosines = [
        float(vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])) for a, b in pairs
    ]
    records = [{"text": a, "text_pair": b, "score": 5 * c} for (a, b), c in zip(pairs, cosines, strict=True)]
    result = scored(write(records), pipeline)
    assert result.scores["spearman"] == pytest.approx(1.0)
    assert result.decisions == pytest.approx(cosines, abs=1e-5)


# --- any predictor --------------------------------------------------------------------------------------------------


def test_a_predictor_is_a_function_of_inputs_and_progress_is_told():
    data = Dataset(CLASSES, tuple(Example(f"text {n}", "even" if n % 2 == 0 else "odd", n) for n in range(150)), "x")
    calls = []
    result = evaluate(lambda given: ["even"] * len(given), data, lambda: calls.append(1))
    assert result.main == 0.5
    assert len(calls) == steps(data) == 3


def test_agreement_counts_equal_decisions_and_nearly_equal_scores():
    assert agreement(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == 0.75
    assert agreement([0.5, 0.9], [0.505, 0.8]) == 0.5


# --- what is no data ------------------------------------------------------------------------------------------------

GOOD = '{"text": "no", "label": 0}'


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "holds no example"),
        (["", "  "], "holds no example"),
        ([GOOD, "{"], "line 2: not JSON"),
        ([GOOD, "", "[1]"], "line 3: not an object"),
        ([GOOD, '{"label": 0}'], "line 2: there is no 'text'"),
        (['{"text": "no"}'], "line 1: there is no 'label'"),
        (['{"text": 3, "label": 0}'], "line 1: text must be a text"),
        ([GOOD, '{"text": "no", "label": "nonsense"}'], "line 2: the model has no label 'nonsense'"),
        (['{"text": "no", "label": 99}'], "line 1: the model has no label 99"),
        (['{"text": "no", "label": true}'], "line 1: the model has no label True"),
        (['{"tokens": ["no"], "tags": ["O"]}'], "line 1: there is no 'text'"),
        (["[" * 100_000], "line 1: not JSON"),
    ],
)
def test_a_wrong_line_is_named(checkpoint, write, lines, says):
    pipeline = torch_pipeline(checkpoint("bert", CLASSES), CLASSES)
    with pytest.raises(RequestError, match=says):
        read(write(lines), pipeline)


WRONG = [
    ("token-classification", {"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
    ("token-classification", {"tokens": [], "tags": []}, "no tokens"),
    ("token-classification", {"tokens": ["a"], "tags": ["B-NOTHING"]}, "no label 'B-NOTHING'"),
    ("question-answering", {"question": "a", "context": "", "answers": []}, "must not be empty"),
    ("question-answering", {"question": "a", "context": "b", "answers": 3}, "list of texts"),
    ("fill-mask", {"text": "no mask", "label": "a"}, "must have one [MASK], it has 0"),
    ("fill-mask", {"text": "[MASK] [MASK]", "label": "a"}, "it has 2"),
    ("fill-mask", {"text": "a [MASK]", "label": "Donaudampfschifffahrt"}, "not one token"),
    ("fill-mask", {"text": "a " * 300 + "[MASK]", "label": "a"}, "beyond the longest input"),
    ("multiple-choice", {"prompt": "a", "choices": ["b", "c"], "label": 2}, "0..1, not 2"),
    ("multiple-choice", {"prompt": "a", "choices": "bc", "label": 0}, "list of texts"),
    ("feature-extraction", {"text": "a", "text_pair": "b", "score": "high"}, "must be a number"),
    ("feature-extraction", {"text": "a", "text_pair": "b", "score": "nan"}, "must be a number"),
    ("feature-extraction", {"text": "a", "text_pair": "b", "score": 1}, "needs two or more"),
]


@pytest.mark.parametrize(("task", "record", "says"), WRONG)
def test_what_is_no_example_of_a_task_is_refused(checkpoint, write, task, record, says):
    pipeline = torch_pipeline(checkpoint("bert", task), task)
    with pytest.raises(RequestError) as refused:
        read(write([record]), pipeline)
    assert says in str(refused.value)


def test_files_that_are_no_data(checkpoint, write, tmp_path):
    pipeline = torch_pipeline(checkpoint("bert", CLASSES), CLASSES)
    with pytest.raises(RequestError, match="No such file"):
        read(tmp_path / "missing.jsonl", pipeline)
    with pytest.raises(RequestError, match="cannot be read"):
        read(tmp_path, pipeline)
    (tmp_path / "latin.tsv").write_bytes("é\t0".encode("latin-1"))
    with pytest.raises(RequestError, match="UTF-8"):
        read(tmp_path / "latin.tsv", pipeline)
    with pytest.raises(RequestError, match="line 1: a line of text has one tab"):
        read(write(["no tab"], "data.tsv"), pipeline)
    words = torch_pipeline(checkpoint("bert", "token-classification"), "token-classification")
    with pytest.raises(RequestError, match="do not fit text<TAB>label"):
        read(write(["a\tO"], "data.tsv"), words)
