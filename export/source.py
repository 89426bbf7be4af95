"""Where a model comes from: a Hugging Face folder or hub id, opened without running anything that came with it.

Weights are read from safetensors alone. Code in the checkpoint runs only when `trust_remote_code` says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from ..runtime.errors import DamagedError, PalmtopError, RequestError, UnsupportedError
from .card import ModelCard, read_card
from .inputs import kinds, parameters
from .memory import Weights, weights_of
from .refusals import refuse_folder, refuse_pickles, refuse_quantized
from .sentence import SentenceModules, lower_casing, read_sentence_modules
from .tasks import Task, fitting, get_task, infer_task
from .tokenization.rebuild import rebuilt
from .widened import loaded_files, mappable

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("palmtop")

# What an image processor or a feature extractor is read from.
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
# What a checkpoint consists of; a hub repository may hold gigabytes of other formats beside it.
_WANTED = ("*.json", "*.txt", "*.model", "*.safetensors", "*.md", "*.jinja", "*.tiktoken")


@dataclass(frozen=True)
class Source:
    """An opened checkpoint: everything about it but the weights, which `load_model` reads.

    `text`, `image_processor` and `feature_extractor` are there for models that take that kind of input, and the last
    two only where the checkpoint has their settings.
    """

    id: str
    folder: Path
    revision: str | None
    config: PretrainedConfig
    text: PreTrainedTokenizerBase | None
    task: Task
    sentence: SentenceModules | None
    card: ModelCard
    trust_remote_code: bool = False
    slow_tokenizer: PreTrainedTokenizerBase | None = None  # the Python tokenizer that `tokenizer` was rebuilt from
    image_processor: Any = None
    feature_extractor: Any = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of a model that takes text, or gives it. Raises RequestError for any other."""
        if self.text is None:
            raise RequestError(f"{self.id} has no tokenizer: its model takes no text.")
        return self.text

    @property
    def architecture(self) -> str:
        return (self.config.architectures or [type(self.config).__name__])[0]

    def weights_sha256(self) -> str:
        """SHA-256 of the weights: of the one `.safetensors` file, or of the list of all of them with theirs."""
        files = sorted(self._weight_files())
        digests = [(path.relative_to(self.folder).as_posix(), _sha256(path)) for path in files]
        if len(digests) == 1:
            return digests[0][1]
        return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in digests).encode()).hexdigest()

    def weights(self) -> Weights:
        """What the weights take in fp32. Raises DamagedError when a file is no safetensors file."""
        files = set(loaded_files(self.folder)) | {path for path in self._weight_files() if path.parent != self.folder}
        return weights_of(sorted(files))

    def weight_names(self) -> set[str]:
        """The names of the tensors in the checkpoint."""
        names: set[str] = set()
        for path in self._weight_files():
            with safe_open(path, framework="numpy") as file:
                names |= set(file.keys())
        return names

    def _weight_files(self) -> set[Path]:
        """What is loaded, and nothing else that lies in the folder: a training run keeps its checkpoints there."""
        files = set(self.folder.glob("*.safetensors"))
        if self.sentence is not None:
            files |= {place / "model.safetensors" for place in self.sentence.folders}
        return {path for path in files if path.is_file()}

    def load_model(self) -> torch.nn.Module:
        """The reference: the model as its authors wrote it, fp32, in eval mode, without gradients.

        For a sentence-transformers folder a module with `encoder` and `head`.

        Raises:
            DamagedError: the weights are damaged.
            RequestError: the checkpoint has no weights for this task's head.
        """
        loader = getattr(transformers, self.task.auto_class)
        with quiet_transformers(), mappable(self.folder) as folder:
            try:
                model, loading = loader.from_pretrained(
                    folder,
                    config=self.config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # they are named below; transformers only says that there are some
                    output_loading_info=True,
                    trust_remote_code=self.trust_remote_code,
                    local_files_only=True,
                )
            except PalmtopError:
                raise
            except ValueError as error:
                if "Unrecognized configuration class" in str(error):
                    raise RequestError(
                        f"transformers has no {self.task.name} model for '{self.config.model_type}' checkpoints. "
                        "Choose another --task."
                    ) from error
                raise DamagedError(f"The weights of {self.id} cannot be loaded: {_first_line(error)}") from error
            except ImportError as error:
                raise RequestError(
                    f"The model of {self.id} needs a package that is not here: {_first_line(error)}"
                ) from error
            except Exception as error:  # safetensors, json and torch each have their own errors for a damaged file
                raise DamagedError(f"The weights of {self.id} cannot be loaded: {_first_line(error)}") from error
        mismatched = [entry[0] for entry in loading["mismatched_keys"]]
        if mismatched:
            raise DamagedError(f"Weights of the wrong shape in {self.id}: {', '.join(sorted(mismatched)[:5])}.")
        model.config.name_or_path = str(self.folder)
        model.eval().requires_grad_(False)
        self._check_head(model, set(loading["missing_keys"]))
        if self.sentence is None:
            return model
        return SentenceModel(model, self.sentence.head).eval()

    def _check_head(self, model: PreTrainedModel, missing: set[str]) -> None:
        """Weights that transformers had to make up are fine only where the task does not read them (a pooler)."""
        if self.task.name == "feature-extraction":
            missing = {name for name in missing if "pooler" not in name}
        if missing:
            some = ", ".join(sorted(missing)[:4]) + (", ..." if len(missing) > 4 else "")
            raise RequestError(
                f"The checkpoint {self.id} cannot do {self.task.name}: it has no weights for {some}. "
                f"It was saved as {self.architecture}; choose another --task, or fine-tune it for this one."
            )


class SentenceModel(torch.nn.Module):
    """An encoder and the sentence-transformers modules after it."""

    def __init__(self, encoder: PreTrainedModel, head: torch.nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head
        self.config = encoder.config


def open_source(
    source: str | Path, *, task: str | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> Source:
    """Open a Hugging Face folder, or download one by hub id.

    Args:
        source: a folder, or `owner/name` on the hub.
        task: a task name; None infers it from the checkpoint.
        revision: branch, tag or commit of a hub id.

    Raises:
        RequestError: nothing is there, it has no weights, or it cannot do the task.
        DamagedError: its files are damaged, or it holds code or pickles that are not trusted.
        UnsupportedError: its tokenizer or sentence-transformers modules cannot be expressed.
    """
    wanted = get_task(task) if task is not None else None
    folder, name, found_revision = _locate(source, revision, trust_remote_code)
    refuse_folder(folder, name)
    config = _load_config(folder, name, trust_remote_code)
    refuse_quantized(config, folder, name)
    run_anywhere(config)
    embeds = wanted is None or wanted.name == "feature-extraction"
    sentence = read_sentence_modules(folder) if embeds else None
    chosen = fitting(wanted or infer_task(config, sentence is not None), config)
    found = input_kinds(config, chosen)
    tokenizer, slow = None, None
    if "text" in found or chosen.generates:
        tokenizer = _load_tokenizer(folder, name, trust_remote_code)
        slow = None if tokenizer.is_fast else tokenizer
        if slow is not None:
            with quiet_transformers():
                tokenizer = rebuilt(slow, name)
    if sentence is not None and sentence.lowercase and tokenizer is not None:
        backend = tokenizer.backend_tokenizer
        backend.normalizer = lower_casing(backend.normalizer)
    return Source(
        id=name,
        folder=folder,
        revision=found_revision,
        config=config,
        text=tokenizer,
        task=chosen,
        sentence=sentence,
        card=read_card(folder),
        trust_remote_code=trust_remote_code,
        slow_tokenizer=slow,
        image_processor=_load_processor(folder, name, "AutoImageProcessor", trust_remote_code)
        if "image" in found
        else None,
        feature_extractor=_load_processor(folder, name, "AutoFeatureExtractor", trust_remote_code)
        if "audio" in found
        else None,
    )


def input_kinds(config: PretrainedConfig, task: Task) -> frozenset[str]:
    """The kinds of input that a checkpoint's model takes for a task; text alone when its class is not known here."""
    mapping = getattr(getattr(transformers, task.auto_class), "_model_mapping", {})
    try:
        found = mapping[type(config)]
    except KeyError:
        return task.kinds & frozenset({"text"})
    model = found[0] if isinstance(found, tuple) else found
    return kinds(parameters(model), task.kinds)


def _load_processor(folder: Path, name: str, auto_class: str, trust_remote_code: bool) -> Any:
    """An image processor or a feature extractor; None when the checkpoint has no settings of one."""
    if not any((folder / file).is_file() for file in _PROCESSORS):
        return None
    try:
        with quiet_transformers():
            return getattr(transformers, auto_class).from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except ImportError as error:
        raise RequestError(f"The processor of {name} needs a package that is not here: {_first_line(error)}") from error
    except Exception as error:
        raise DamagedError(f"The processor of {name} cannot be loaded: {_first_line(error)}") from error


class quiet_transformers:
    """Silence transformers' own notices and progress bars inside a block."""

    def __enter__(self) -> None:
        self._verbosity = transformers_logging.get_verbosity()
        self._bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self._verbosity)
        if self._bars:
            transformers_logging.enable_progress_bar()


def _locate(source: str | Path, revision: str | None, trust_remote_code: bool) -> tuple[Path, str, str | None]:
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise RequestError("--revision is for hub ids; this source is a folder.")
        return path, path.resolve().name, None
    text = str(source)
    if path.exists():
        raise RequestError(f"{text} is a file; a checkpoint is a folder with config.json and model.safetensors.")
    if text.count("/") > 1 or text.startswith((".", "/", "~")) or not text.strip():
        raise RequestError(f"No such folder: {text}.")
    return _download(text, revision, trust_remote_code)


def _download(repo_id: str, revision: str | None, trust_remote_code: bool) -> tuple[Path, str, str | None]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        wanted = [*_WANTED, "*.py"] if trust_remote_code else list(_WANTED)
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=wanted))
        if not list(folder.glob("*.safetensors")):
            refuse_pickles(repo_id, HfApi().list_repo_files(repo_id, revision=folder.name))
    except PalmtopError:
        raise
    except HFValidationError as error:
        raise RequestError(f"No such folder, and not a hub id: {repo_id}.") from error
    except Exception as error:  # the hub client has some twenty errors; all of them mean that it is not to be had
        at = f" at revision {revision}" if revision else ""
        raise RequestError(
            f"No folder '{repo_id}' here, and it cannot be had from the hub{at}: {_first_line(error)}\n"
            "Remedy: check the name, the network, and HF_TOKEN if it is private."
        ) from error
    # The cache lays a snapshot in a folder named by its commit.
    return folder, repo_id, folder.name


def _load_config(folder: Path, name: str, trust_remote_code: bool) -> PretrainedConfig:
    path = folder / "config.json"
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DamagedError(f"config.json of {name} cannot be read: {_first_line(error)}") from error
    if not isinstance(data, dict):
        raise DamagedError(f"config.json of {name} is not a JSON object.")
    names = data.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(entry, str) for entry in names):
        raise DamagedError(f"config.json of {name} is not valid: its architectures are no list of names.")
    model_type = data.get("model_type")
    known = isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING
    own = data.get("auto_map")
    if own and not known and not trust_remote_code:
        names = sorted(map(str, own.values())) if isinstance(own, dict) else [str(own)]
        raise DamagedError(
            f"{name} brings its own code ({', '.join(names)}), which is not run without --trust-remote-code. "
            "Read the code first."
        )
    if not known and not trust_remote_code:
        said = f"model_type '{model_type}'" if model_type else "no model_type"
        raise RequestError(
            f"transformers {transformers.__version__} does not know this checkpoint: its config has {said}."
        )
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(
                folder, trust_remote_code=trust_remote_code and not known, local_files_only=True
            )
    except Exception as error:
        raise DamagedError(f"config.json of {name} is not valid: {_first_line(error)}") from error
    return config


def run_anywhere(config: PretrainedConfig) -> None:
    """Leave it to Transformers how attention is computed, where a config names kernels of the GPU it was trained on."""
    for part in [config, *(getattr(config, name, None) for name in config.sub_configs)]:
        if getattr(part, "_attn_implementation", None) not in (None, "eager", "sdpa"):
            part._attn_implementation = None


def _load_tokenizer(folder: Path, name: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except ImportError as error:
        raise RequestError(f"The tokenizer of {name} needs a package that is not here: {_first_line(error)}") from error
    except Exception as error:
        raise DamagedError(f"The tokenizer of {name} cannot be loaded: {_first_line(error)}") from error
    if tokenizer.pad_token is None:  # what is masked may be anything
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    files = {"tokenizer.json", "*.model", "*.tiktoken", *tokenizer.vocab_files_names.values()}
    if tokenizer.is_fast and not any(any(folder.glob(file)) for file in files):
        # transformers makes a tokenizer that knows the special tokens alone, and says nothing.
        raise RequestError(
            f"{name} has no tokenizer: none of {', '.join(sorted(files))}. "
            "Remedy: copy the tokenizer files of the checkpoint that it was fine-tuned from."
        )
    try:
        with quiet_transformers():
            tokenizer("one text")
    except Exception as error:  # each class says in its own way what it wants: boxes of words, tables, pages
        raise UnsupportedError(
            f"The tokenizer of {name} ({type(tokenizer).__name__}) takes more than plain text: {_first_line(error)}\n"
            "Remedy: export the module with inputs of your own (palmtop.export.export_module)."
        ) from error
    return tokenizer


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
