"""Text in, answer out: palmtop's pipelines beside those that a user would pick instead.

    python benchmarks/pipelines.py [--quick] [--json] [--only minilm|intents]      about eight minutes

2,000 sentences of Python's documentation go through every pipeline, one request at a time and in batches, block by
block in turns. Each pipeline's answers are compared with those of transformers.pipeline in eager PyTorch, one request
at a time. Bounds are printed with whether they are met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures as shared

shared.one_thread()  # before numpy is imported

import embedders  # noqa: E402
import numpy as np  # noqa: E402
import peers  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
import sentences  # noqa: E402
from figures import INTENTS, Bound, Figures  # noqa: E402
from turns import Contenders, Group, Text, in_turns  # noqa: E402

EAGER = "transformers.pipeline"
COMPILED = "transformers.pipeline, torch.compile"
MODES = ("one at a time", "batches")
# Each contender takes batches of the size that is best for it.
SIZES = (1, 4, 8, 32)
# Of optimum's graphs, so many of each precision answer all texts in a mode: those that are best at a few texts.
SHORTLIST = 2
SAME = 0.999  # the least mean cosine with which answers count as the same


@dataclass(frozen=True)
class Settings:
    """texts: all that are answered. blocks: of them, in requests of their own. tried: texts that decide on a size,
    and on which of optimum's graphs answer all of them.
    """

    texts: int = 2000
    blocks: int = 20
    tried: int = 64
    compiled: bool = True


QUICK = Settings(texts=80, blocks=2, tried=16, compiled=False)


@dataclass(frozen=True)
class Measured:
    """A contender in a mode: sentences in a second, the block's seconds, and the cosines with eager of its rows."""

    rate: float
    seconds: np.ndarray
    mean: float
    worst: float
    batch: int | None

    def to_json(self) -> dict[str, Any]:
        return {"per_second": self.rate, "cosine": self.mean, "worst_cosine": self.worst, "batch": self.batch}


def texts_of(count: int, checkpoint: Path) -> list[Text]:
    """So many texts with their lengths in tokens, as the checkpoint's tokenizer makes them."""
    found = sentences.natural(count)
    sizes = [feeds["input_ids"].shape[1] for feeds in embedders.encode(checkpoint, found)]
    return [Text(text, size) for text, size in zip(found, sizes, strict=True)]


def bundles_of(name: str, checkpoint: Path, work: Path) -> dict[str, Path]:
    """Bundles of a checkpoint by precision, each with what runs at speed here; those that are there are taken."""
    bundles = {}
    for kind, asked in {"fp32": (), "int8": ("--quantize", "int8")}.items():
        bundles[kind] = work / f"{name}-{kind}-pipelines.bundle"
        shared.exported(checkpoint, bundles[kind], "--to", "onnx,executorch", *asked)
    return bundles


def groups(
    checkpoint: Path, task: str, bundles: dict[str, Path], work: Path, compiled: bool
) -> tuple[list[Group], str]:
    """All contenders of a checkpoint, and the versions of those in environments of their own."""
    source = {"checkpoint": str(checkpoint), "task": task}
    ours = Path(sys.executable)
    made = [Group(ours, {EAGER: {"kind": "transformers", **source}})]
    if compiled:
        made.append(Group(ours, {COMPILED: {"kind": "transformers", **source, "compiled": True}}))
    peer = peers.run("optimum", "peer_optimum.py", [checkpoint, work / f"optimum-{task}", task])
    theirs = {f"optimum {name}": {"kind": "optimum", "graph": path, **source} for name, path in peer["graphs"].items()}
    made.append(Group(peers.python("optimum"), theirs))
    for target in ("onnx", "executorch"):
        specifications = {
            f"palmtop {target} {kind}": {"kind": "palmtop", "bundle": str(place), "target": target}
            for kind, place in bundles.items()
        }
        made.append(Group(ours, specifications))
    return made, ", ".join(f"{name} {version}" for name, version in peer["versions"].items())


def measure(made: Sequence[Group], texts: Sequence[Text], settings: Settings) -> dict[str, dict[str, Measured]]:
    """Every contender in every mode."""
    found: dict[str, dict[str, Measured]] = {}
    with Contenders.start(made) as contenders:
        longest = sorted(texts, key=lambda text: text.tokens)
        some = [*longest[:: max(1, len(longest) // 16)], longest[-1]]
        expected = np.zeros(0)
        for mode in MODES:
            for name in contenders.names:  # what compiles, or plans memory, does it now
                contenders.ask(name, some, None if mode == MODES[0] else SIZES[-1])
            trial = texts[: settings.tried]
            sizes = (None,) if mode == MODES[0] else SIZES
            tried = {name: _best_size(contenders, name, trial, sizes) for name in contenders.names}
            batches = {name: tried[name][1] for name in _shortlisted({name: took for name, (took, _) in tried.items()})}
            advance = shared.counter(f"{mode}: blocks of {len(batches)} contenders", settings.blocks)
            block = -(-len(texts) // settings.blocks)
            seconds, rows = in_turns(contenders, texts, block, batches, advance)
            expected = rows[EAGER] if mode == MODES[0] else expected
            found[mode] = {}
            for name, took in seconds.items():
                cosines = embedders.cosines(rows[name], expected)
                found[mode][name] = Measured(
                    len(texts) / sum(took), np.array(took), float(cosines.mean()), float(cosines.min()), batches[name]
                )
    return found


def _best_size(
    contenders: Contenders, name: str, texts: Sequence[Text], sizes: Sequence[int | None]
) -> tuple[float, int | None]:
    """Seconds, and the size of batch that takes the fewest; each size twice."""
    took = {size: min(contenders.ask(name, texts, size)[0] for _ in range(2)) for size in sizes}
    best = min(sizes, key=lambda size: took[size])
    return took[best], best


def _shortlisted(took: dict[str, float]) -> list[str]:
    """All contenders but optimum's slower graphs, in their order."""
    kept = [name for name in took if not name.startswith("optimum")]
    for kind in ("optimum fp32", "optimum int8"):
        kept += sorted((name for name in took if name.startswith(kind)), key=lambda name: took[name])[:SHORTLIST]
    return [name for name in took if name in kept]


def ratio(base: Measured, mine: Measured) -> float:
    """How many times as fast as another: the median over the blocks, which both had in turns."""
    return float(np.median(base.seconds / mine.seconds))


def show(title: str, found: dict[str, dict[str, Measured]], figures: Figures) -> None:
    """A table a mode: rates, ratios and agreement."""
    for mode, entries in found.items():
        fp32, best = _best(entries, "optimum fp32"), _best(entries, "optimum")
        rows = []
        for name, entry in entries.items():
            cells = [name, f"{entry.rate:.0f}", *([] if entry.batch is None else [str(entry.batch)])]
            cells += [f"{ratio(entries[base], entry):.2f}" for base in (EAGER, fp32, best)]
            rows.append([*cells, f"{entry.mean:.5f}", f"{entry.worst:.4f}"])
        head = ["pipeline", "sentences/s", *([] if mode == MODES[0] else ["batch"])]
        head += ["x eager", f"x {fp32}", f"x {best}", "cosine", "worst cosine"]
        figures.tables[f"{title}, {mode}"] = head, rows
    figures.raw[title] = {m: {n: e.to_json() for n, e in entries.items()} for m, entries in found.items()}


def _best(entries: dict[str, Measured], start: str, least: float = -1.0) -> str:
    """The fastest contender whose name starts so, of those that agree at least so."""
    names = [name for name, entry in entries.items() if name.startswith(start) and entry.mean >= least]
    return max(names, key=lambda name: entries[name].rate)


def judge(title: str, found: dict[str, dict[str, Measured]], figures: Figures) -> None:
    """The bounds: palmtop's fastest pipeline that gives the same answers, against eager and optimum's fastest."""
    for mode, entries in found.items():
        mine = _best(entries, "palmtop", SAME)
        peer, same = _best(entries, "optimum"), _best(entries, "optimum", SAME)
        plain = _best(entries, "palmtop", 1 - 1e-6)
        where = f"{title}, {mode}"
        figures.bounds.append(Bound(f"{where}: {mine}, cosine", entries[mine].mean, SAME, least=True))
        for one, other, least in [
            (EAGER, mine, 4.0),
            (peer, mine, 1.3),
            *([(same, mine, 1.3)] if same != peer else []),
            (same, plain, 1.3),
        ]:
            cosine = f" (cosine {entries[one].mean:.3f})" if one != EAGER else ""
            what = f"{where}: {other} as fast as {one}{cosine}"
            figures.bounds.append(Bound(what, ratio(entries[one], entries[other]), least, least=True))


def draw(found: dict[str, dict[str, Measured]], figures: Figures) -> None:
    """A bar for each contender and mode."""
    bars = {name: [found[mode][name].rate for mode in MODES] for name in (EAGER, COMPILED) if name in found[MODES[0]]}
    for kind in ("optimum fp32", "optimum int8"):  # which of its graphs is best depends on the mode
        bars[f"{kind}, its best"] = [found[mode][_best(found[mode], kind)].rate for mode in MODES]
    for name in found[MODES[0]]:
        if name.startswith("palmtop"):
            bars[name] = [found[mode][name].rate for mode in MODES]
    title = "MiniLM: sentences a second, text in, answer out"
    figures.plots[title] = plots.bars(title, MODES, bars)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few texts, nothing compiled; writes no page")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; writes no page")
    parser.add_argument("--only", choices=("minilm", "intents"), help="one checkpoint; writes no page")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep bundles there, and take those that are there")
    options = parser.parse_args()
    settings = QUICK if options.quick else Settings()
    figures = Figures(versions=report.versions("torch", "transformers", "onnxruntime", "executorch"))
    minilm = embedders.minilm()
    texts = texts_of(settings.texts, minilm)
    checkpoints = {
        "minilm": ("MiniLM", minilm, "feature-extraction"),
        "intents": ("Intents", INTENTS, "text-classification"),
    }
    with shared.folder(options.work) as work:
        for name, (title, checkpoint, task) in checkpoints.items():
            if options.only not in (None, name):
                continue
            bundles = bundles_of(name, checkpoint, work)
            made, versions = groups(checkpoint, task, bundles, work, settings.compiled and name == "minilm")
            found = measure(made, texts, settings)
            show(title, found, figures)
            if name == "minilm":
                figures.versions += f"; in optimum's environment: {versions}"
                judge(title, found, figures)
                draw(found, figures)
    section = shared.Section("pipelines", "Text in, answer out", "python benchmarks/pipelines.py", _note(texts))
    shared.publish(section, figures, as_json=options.json, write=not options.quick and not options.only)
    return 0


def _note(texts: Sequence[Text]) -> str:
    lengths = np.array([text.tokens for text in texts])
    short = 100 * float((lengths < 30).mean())
    return (
        f"{len(texts)} sentences and paragraphs of Python's documentation, {short:.0f} % of them below 30 tokens, the "
        f"longest {lengths.max()}, in an order that knows nothing of lengths. The answer is the sentence's vector "
        "(MiniLM: all-MiniLM-L6-v2; where a pipeline gives the states of tokens, their mean, taken by numpy or torch) "
        "or the scores of all classes (intents). Cosines are with transformers.pipeline in PyTorch eager, "
        "one text at a time. In batches, each pipeline has the size of batch that is best for it, of "
        f"{', '.join(map(str, SIZES))} (1: of a list, too, each text runs by itself); lists come as they are, and "
        f"palmtop's sorts them by length itself. Of optimum's graphs the {SHORTLIST} of each precision that are best "
        "at some of the texts answer all of them. int8 is "
        "`palmtop export --quantize int8` with nothing else given: calibrated on palmtop's own texts. Ratios are "
        "medians over blocks that all contenders had in turns."
    )


if __name__ == "__main__":
    sys.exit(main())
