"""Recorded `answers.json`: what the question-answering pipeline of Transformers 4.57.6 says for made-up logits.

Transformers 5 has no such pipeline any more. To record again, in an environment with transformers 4.57:

    python record.py
"""

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TOKENS = {
    "wordpiece": {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"},
    "bpe": {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "unigram": {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
}
PASSAGE = (
    "Wolfgang Amadeus lives in Berlin and works for Hugging Face in New York City. "
    "Où se trouve la bibliothèque ? Près de l'école, à München. "
    "내일 아침 일곱 시에 깨워 주세요. 今天天气怎么样 🙂 The quick brown fox jumps over the lazy dog. "
)
CASES = [
    {"question": "Where does he live?", "context": PASSAGE},
    {"question": "Where does he live?", "context": PASSAGE * 6},
    {"question": "어디?", "context": "  Berlin,  Paris and   Berlin.\n\tBerlin again; berlin. "},
    {"question": "?", "context": "a"},
    {"question": "Who?", "context": "Paris"},
]
OPTIONS = [
    {},
    {"top_k": 5},
    {"top_k": 3, "align_to_words": False},
    {"align_to_words": False},
    {"max_answer_len": 2, "top_k": 4},
    {"max_seq_len": 40, "doc_stride": 10, "top_k": 3},
    {"handle_impossible_answer": True, "top_k": 4},
    {"handle_impossible_answer": True, "max_seq_len": 48, "doc_stride": 8},
]


def made_up_logits(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end logits (..., S) that depend on each id and its position, and so differ from window to window."""
    position = np.arange(ids.shape[-1])
    start, end = (6 * np.sin(0.7 * ids + 1.3 * position + phase) for phase in (0.0, 2.1))
    return start.astype(np.float32), end.astype(np.float32)


def main() -> None:
    import torch
    import transformers
    from transformers import BertConfig, BertPreTrainedModel, PreTrainedTokenizerFast, pipeline
    from transformers.modeling_outputs import QuestionAnsweringModelOutput

    class BertForQuestionAnswering(BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.unused = torch.nn.Linear(1, 1)

        def forward(self, input_ids, attention_mask=None, token_type_ids=None):
            start, end = made_up_logits(input_ids.numpy())
            return QuestionAnsweringModelOutput(start_logits=torch.from_numpy(start), end_logits=torch.from_numpy(end))

    records = []
    for kind, tokens in TOKENS.items():
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(HERE / f"{kind}.json"),
            model_max_length=128,
            model_input_names=["input_ids", "attention_mask"],
            **tokens,
        )
        answer = pipeline(
            "question-answering", model=BertForQuestionAnswering(BertConfig()), tokenizer=tokenizer, device="cpu"
        )
        for case, item in enumerate(CASES):
            for options in OPTIONS:
                found = answer(question=item["question"], context=item["context"], **options)
                records.append({"kind": kind, "case": case, "options": options, "answers": found})
    content = {"transformers": transformers.__version__, "records": records}
    (HERE / "answers.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
