"""Run one device-side reader on a tokenizer folder, in a process of its own: some abort on what they cannot read.

`python reader_child.py READER FOLDER < texts.json` writes `{"version": ..., "ids": [[...] | null, ...]}` (null: an
error), or `{"version": ..., "refused": reason}`. Run by its path, so that nothing but the reader is imported.
"""

import importlib.metadata
import json
import os
import sys


def executorch(folder):
    from pytorch_tokenizers import CppHFTokenizer

    variant = os.path.join(folder, "executorch", "tokenizer.json")
    reader = CppHFTokenizer()
    reader.load(variant if os.path.isfile(variant) else os.path.join(folder, "tokenizer.json"))
    if not reader.is_loaded():
        raise ValueError("it does not load the file")
    return lambda text: list(reader.encode(text, 0, 0))


def extensions(folder):
    from onnxruntime_extensions.pp_api import Tokenizer

    reader = Tokenizer(folder)
    return lambda text: [int(token) for token in reader.tokenize(text)]


def sentencepiece(folder):
    from sentencepiece import SentencePieceProcessor

    names = [name for name in sorted(os.listdir(folder)) if name.endswith(".model")]
    reader = SentencePieceProcessor(model_file=os.path.join(folder, names[0]))
    return reader.encode


READERS = {
    "pytorch-tokenizers": executorch,
    "onnxruntime-extensions": extensions,
    "sentencepiece": sentencepiece,
}


def main(name, folder):
    texts = json.load(sys.stdin)
    # onnxruntime-extensions imports these when they are there, which takes seconds, and its tokenizer needs neither.
    sys.modules.update(dict.fromkeys(("torch", "transformers")))  # type: ignore[arg-type]
    # What the libraries print goes elsewhere: the answer has standard output to itself.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    found: dict[str, object] = {"version": importlib.metadata.version(name.replace("-", "_"))}
    try:
        encode = READERS[name](folder)
    except Exception as error:
        found["refused"] = f"{type(error).__name__}: {error}"
    else:
        found["ids"] = ids = []
        for text in texts:
            try:
                ids.append(encode(text))
            except Exception:
                ids.append(None)
    json.dump(found, answer)
    answer.flush()
    os._exit(0)  # destructors of half-loaded readers may abort


if __name__ == "__main__":
    main(*sys.argv[1:])
