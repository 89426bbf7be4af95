"""Multiple choice scores each choice as the eager model does."""

import pytest
import torch
import transformers
from palmtop.runtime.errors import RequestError
from palmtop.runtime.manifest import Dim

from ...support.torch_session import load_model, torch_pipeline

TASK = "multiple-choice"
PROMPT = "Where does the river Seine flow?"
CHOICES = ["Through Paris, of course.", "On the table", "내일 아침", "a"]
KINDS = ("bert", "roberta", "deberta-v2")


def eager(folder, prompt, choices):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(
        [prompt] * len(choices), choices, padding=True, truncation=True, max_length=64, return_tensors="pt"
    )
    with torch.no_grad():
        logits = load_model(folder, TASK)(**{name: tensor[None] for name, tensor in encoded.items()}).logits
    return logits.softmax(-1)[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_the_eager_model(checkpoint, kind):
    folder = checkpoint(kind, TASK)
    for prompt, choices in ((PROMPT, CHOICES), (PROMPT * 5, CHOICES[:2]), ("", ["", "b"]), (PROMPT, ["only"])):
        result = torch_pipeline(folder, TASK)(prompt, choices)
        expected = eager(folder, prompt, choices)
        assert [item.index for item in result] == sorted(range(len(choices)), key=lambda i: -expected[i])
        for item in result:
            assert item.choice == choices[item.index]
            assert item.score == pytest.approx(expected[item.index], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_list_gives_a_list_in_its_order(checkpoint, batch_size):
    pipeline = torch_pipeline(checkpoint("bert", TASK), TASK)
    items = [{"prompt": PROMPT * n, "choices": CHOICES[: 1 + n % 3]} for n in (4, 1, 2, 3, 1, 5)]
    for item, result in zip(items, pipeline(items, batch_size=batch_size), strict=True):
        alone = pipeline(inputs=item["prompt"], choices=item["choices"])
        assert [c.choice for c in result] == [c.choice for c in alone]
        assert [c.score for c in result] == pytest.approx([c.score for c in alone], abs=1e-5)


@pytest.mark.parametrize("axes", [{"choices": Dim(size=4)}, {"batch": Dim(size=1)}, {"sequence": Dim(size=64)}])
def test_axes_of_the_artifact_are_filled(checkpoint, axes):
    folder = checkpoint("bert", TASK)
    free, bound = torch_pipeline(folder, TASK), torch_pipeline(folder, TASK, **axes)
    items = [{"prompt": PROMPT, "choices": CHOICES[:3]}, {"prompt": "a", "choices": CHOICES}]
    for one, other in zip(bound(items), free(items), strict=True):
        assert [c.choice for c in one] == [c.choice for c in other]
        assert [c.score for c in one] == pytest.approx([c.score for c in other], abs=1e-5)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ((PROMPT, []), "at least one choice"),
        ((PROMPT, "one"), "at least one choice"),
        ((PROMPT, [1]), "expected a choice"),
        ((PROMPT, [*CHOICES, "fifth"]), "more than this artifact takes"),
        ((3, ["a"]), "Expected a prompt"),
        (({"prompt": PROMPT},), "pair"),
        ((PROMPT,), "pair"),
    ],
)
def test_what_offers_no_choice_is_refused(checkpoint, call, reason):
    pipeline = torch_pipeline(checkpoint("bert", TASK), TASK, choices=Dim(size=4))
    with pytest.raises(RequestError, match=reason):
        pipeline(*call)
