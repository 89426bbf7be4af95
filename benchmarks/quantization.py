"""Quantized models: size, agreement and speed, beside what optimum makes of the same checkpoint.

    python benchmarks/quantization.py [--quick] [--json]
    python benchmarks/quantization.py --large       the search for a plan at the size of BERT base: five minutes

MiniLM is calibrated on sentences of Python's documentation and, in a second set of rows, on nothing of the user's
(palmtop's own texts); evaluated are 500 other sentences of that documentation. Each artifact is compared with eager
PyTorch. The sample checkpoint is scored on its held-out set. Bounds are printed with whether they are met.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import figures as shared

shared.one_thread()  # before numpy is imported

import embedders  # noqa: E402
import numpy as np  # noqa: E402
import peers  # noqa: E402
import plots  # noqa: E402
import report  # noqa: E402
import sentences  # noqa: E402
from embedders import Agreement, Embedder, Feeds  # noqa: E402
from figures import INTENTS, Bound, Figures, Section, counter, exported, folder, publish  # noqa: E402
from palmtop.runtime.bundle import Bundle  # noqa: E402
from palmtop.runtime.verify import recorded_noise  # noqa: E402

TARGETS = ("onnx", "coreml", "executorch")
LENGTHS = (16, 128)
MIX = "sentences"


@dataclass(frozen=True)
class Settings:
    """evaluated: sentences. timed: of them, in the mix. rounds: of timing, at each length."""

    evaluated: int = sentences.EVALUATED
    timed: int = 50
    rounds: int = 15


QUICK = Settings(evaluated=40, timed=10, rounds=3)


def _file_name(kind: str) -> str:
    return kind.replace(",", "").replace(" ", "-")


# --- MiniLM ---------------------------------------------------------------------------------------------------------


def minilm(work: Path, settings: Settings, figures: Figures) -> None:
    """Size and agreement of every artifact; speed beside optimum's graphs; padding."""
    checkpoint = embedders.minilm()
    chosen, rest = sentences.split()
    chosen = chosen[: settings.evaluated]
    texts = work / "calibration.txt"
    texts.write_text("".join(f"{text}\n" for text in rest), encoding="utf-8")
    bundles = {"fp32": exported(checkpoint, work / "minilm-fp32.bundle")}
    given = ("--calibrate", str(texts))
    kinds: dict[str, tuple[str, ...]] = {
        "int8": ("--quantize", "int8", *given),
        "int8, own texts": ("--quantize", "int8"),
        "int4": ("--quantize", "int4", *given),
        "int4, own texts": ("--quantize", "int4"),
    }
    for kind, asked in kinds.items():
        bundles[kind] = exported(checkpoint, work / f"minilm-{_file_name(kind)}.bundle", *asked)
    peer = peers.run("optimum", "peer_optimum.py", [checkpoint, work / "optimum"])
    figures.raw["peers"] = peer["versions"]
    figures.versions += "; in optimum's environment: " + ", ".join(f"{k} {v}" for k, v in peer["versions"].items())

    eager = embedders.eager(checkpoint)
    calls = embedders.encode(checkpoint, chosen)
    expected = [eager.read(eager.run(feeds), feeds) for feeds in calls]
    ours = {
        (kind, t): embedders.artifact(bundle, t, f"{t} {kind}") for kind, bundle in bundles.items() for t in TARGETS
    }
    theirs = {name: embedders.graph(Path(path), f"optimum {name}") for name, path in peer["graphs"].items()}
    contenders = [*ours.values(), *theirs.values()]
    found: dict[str, Agreement] = {}
    for entry in contenders:
        found[entry.name] = embedders.agreement(
            entry, calls, expected, counter(f"Agreement of {entry.name}", len(calls))
        )
    _sizes(ours, theirs, found, figures)
    _apart(ours, calls, expected, figures)
    _speed(eager, ours, theirs, found, calls, settings, figures)
    _padding(bundles["fp32"], ours, calls, figures)


def _sizes(
    ours: dict[tuple[str, str], Embedder], theirs: dict[str, Embedder], found: dict[str, Agreement], figures: Figures
) -> None:
    rows, raw = [], []
    for name, entry, whole in [
        *((entry.name, entry, ours["fp32", target].size) for (_, target), entry in ours.items()),
        *((entry.name, entry, theirs["fp32"].size) for entry in theirs.values()),
    ]:
        got = found[name]
        ratio = entry.size / whole
        rows.append(
            [
                name,
                f"{entry.size / 1e6:.1f}",
                f"{ratio:.3f}",
                f"{got.pooled:.5f}",
                f"{got.token:.5f}",
                f"{got.worst:.4f}",
            ]
        )
        raw.append({"name": name, "bytes": entry.size, "ratio": ratio, **dataclasses.asdict(got)})
    figures.raw["agreement"] = raw
    head = ["MiniLM", "MB", "of fp32", "pooled cosine", "token cosine", "worst pooled"]
    figures.tables["Size and agreement"] = head, rows
    for (kind, target), entry in ours.items():
        got, ratio = found[entry.name], entry.size / ours["fp32", target].size
        if kind.startswith("int8"):
            figures.bounds += [
                Bound(f"{entry.name}: bytes of fp32", ratio, 0.27),
                Bound(f"{entry.name}: pooled cosine", got.pooled, 0.999, least=True),
                Bound(f"{entry.name}: token cosine", got.token, 0.995, least=True),
            ]
        elif kind.startswith("int4"):
            figures.bounds += [
                Bound(f"{entry.name}: bytes of fp32", ratio, 0.17),
                Bound(f"{entry.name}: pooled cosine", got.pooled, 0.99, least=True),
            ]


def _apart(
    ours: dict[tuple[str, str], Embedder],
    calls: Sequence[Feeds],
    expected: Sequence[tuple[np.ndarray, np.ndarray]],
    figures: Figures,
) -> None:
    """How far the artifacts of one plan are from each other, and from fp32: mean of 1 - cosine over tokens."""
    head = ["MiniLM, 10⁴ x (1 - token cosine)", *(f"{target} to fp32" for target in TARGETS)]
    pairs = list(itertools.combinations(TARGETS, 2))
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in ours if kind != "fp32"):
        sums: dict[tuple[str, str], float] = dict.fromkeys([*((t, "fp32") for t in TARGETS), *pairs], 0.0)
        for feeds, (whole, _) in zip(calls, expected, strict=True):
            states = {t: ours[kind, t].read(ours[kind, t].run(feeds), feeds)[0] for t in TARGETS} | {"fp32": whole}
            for one, other in sums:
                sums[one, other] += float((1 - embedders.cosines(states[one][0], states[other][0])).sum())
        tokens = sum(feeds["input_ids"].shape[1] for feeds in calls)
        means = {pair: 1e4 * value / tokens for pair, value in sums.items()}
        rows.append([kind, *(f"{value:.2f}" for value in means.values())])
        figures.raw.setdefault("apart", {})[kind] = {f"{one}, {other}": value for (one, other), value in means.items()}
        between = sum(means[pair] for pair in pairs) / len(pairs)
        from_fp32 = sum(means[target, "fp32"] for target in TARGETS) / len(TARGETS)
        figures.bounds.append(
            Bound(f"{kind}: artifacts from each other, of from fp32 (means)", between / from_fp32, 1.0)
        )
    figures.tables["Artifacts of one plan"] = [*head, *(f"{one} to {other}" for one, other in pairs)], rows


def _speed(
    eager: Embedder,
    ours: dict[tuple[str, str], Embedder],
    theirs: dict[str, Embedder],
    found: dict[str, Agreement],
    calls: Sequence[Feeds],
    settings: Settings,
    figures: Figures,
) -> None:
    """Everything but Core ML, whose interpreter's speed says nothing, in turns."""
    timed = [eager, *(e for (kind, t), e in ours.items() if t != "coreml" and "," not in kind), *theirs.values()]
    ids = max((feeds["input_ids"][0] for feeds in calls), key=len).tolist()
    while len(ids) < max(LENGTHS):
        ids = ids[:-1] + ids[1:]
    works = {f"{n} tokens": [embedders.feeds_of([[*ids[: n - 1], ids[-1]]])] for n in LENGTHS}
    works[MIX] = list(calls[: settings.timed])
    times: dict[str, dict[str, float]] = {}
    for what, feeds in works.items():
        advance = counter(f"Speed at {what}: {settings.rounds} rounds of {len(timed)}", 1)
        times[what] = _best(timed, feeds, settings.rounds if what == MIX else 4 * settings.rounds)
        advance()
    rows, raw = [], []
    for entry in timed:
        row, numbers = [entry.name], {}
        for what, took in times.items():
            mine, base = took[entry.name], _ratio(took, eager.name, entry.name)
            row += [f"{mine:.2f}", f"{base:.2f}"]
            numbers[what] = {"ms": mine, "x_eager": base}
        agreed = found.get(entry.name)
        row.append(f"{agreed.pooled:.4f} / {agreed.token:.4f}" if agreed else "1 / 1")
        rows.append(row)
        raw.append({"name": entry.name, **numbers})
    figures.raw["speed"] = raw
    head = ["ms a call, and times as fast as eager"]
    for what in times:
        head += [f"{what}, ms" if what != MIX else "sentence of the mix, ms", "x eager"]
    figures.tables["Speed, with the agreement of the same run"] = [*head, "pooled / token cosine"], rows
    title = "MiniLM, milliseconds a call"
    bars = {entry.name: [took[entry.name] for took in times.values()] for entry in timed}
    figures.plots[title] = plots.bars(title, list(times), bars)
    for what, took in times.items():
        peer = min((e.name for n, e in theirs.items() if n.startswith("int8")), key=took.__getitem__)
        avx2 = min((e.name for n, e in theirs.items() if n.startswith("int8 avx2")), key=took.__getitem__)
        if avx2 != peer:
            ratio = _ratio(took, avx2, "onnx int8")
            figures.bounds.append(Bound(f"onnx int8 as fast as {avx2} at {what}", ratio, 1.0, least=True))
        plain = min((e.name for n, e in theirs.items() if n.startswith("fp32")), key=took.__getitem__)
        figures.bounds.append(
            Bound(f"onnx int8 as fast as {peer} at {what}", _ratio(took, peer, "onnx int8"), 1.0, least=True)
        )
        figures.raw.setdefault("against", {})[what] = {
            "int8 peer": peer,
            "int8": _ratio(took, peer, "onnx int8"),
            "int8 against own fp32": _ratio(took, "onnx fp32", "onnx int8"),
            "fp32 peer": plain,
            "fp32": _ratio(took, plain, "onnx fp32"),
        }
        figures.bounds.append(
            Bound(
                f"executorch int8 against its fp32 at {what}",
                _ratio(took, "executorch fp32", "executorch int8"),
                2.0,
                least=True,
            )
        )


def _best(timed: Sequence[Embedder], feeds: Sequence[Feeds], rounds: int) -> dict[str, float]:
    """Milliseconds of a call: the mean over the inputs of the quickest quarter of all rounds, contenders in turns.

    A call takes less than what a busy machine gives to others at a time: medians then tell how busy it was, and the one
    best how lucky a call can be. Each timed call follows one of the same contender that is not: of those before it some
    leave its code and weights in the caches and others do not, which made differences of 15 %. Every call gives token
    states and the sentence's vector.
    """
    took = {entry.name: np.full((len(feeds), rounds), np.inf) for entry in timed}
    shuffle = np.random.default_rng(0).permutation
    for number in range(rounds):
        for place, one in enumerate(feeds):
            for turn in shuffle(len(timed)):
                entry = timed[turn]
                entry.read(entry.run(one), one)
                began = time.perf_counter()
                entry.read(entry.run(one), one)
                took[entry.name][place, number] = 1e3 * (time.perf_counter() - began)
    most = max(rounds // 4, 1)
    return {name: float(np.sort(values, 1)[:, :most].mean()) for name, values in took.items()}


def _ratio(took: dict[str, float], base: str, mine: str) -> float:
    """How many times as fast `mine` is."""
    return took[base] / took[mine]


def _padding(fp32: Bundle, ours: dict[tuple[str, str], Embedder], calls: Sequence[Feeds], figures: Figures) -> None:
    """Short sentences alone and beside the longest: the largest difference, relative to the output's scale."""
    rows = sorted((feeds["input_ids"][0].tolist() for feeds in calls), key=len)
    noise = recorded_noise(fp32)
    outputs = ("last_hidden_state", "sentence_embedding")
    floors = [noise[name].max_error for name in outputs]
    table = [["noise floor of the model: eager fp32 from fp64", *(f"{floor:.1e}" for floor in floors)]]
    for kind in ("fp32", "int8", "int4"):
        entry, worst = ours[kind, "onnx"], [0.0, 0.0]
        for row in rows[:20]:
            alone = entry.read(entry.run(one := embedders.feeds_of([row])), one)
            both = embedders.feeds_of([row, rows[-1]])
            beside = entry.read(entry.run(both), both)
            for place, (expected, actual) in enumerate(zip(alone, beside, strict=True)):
                actual = actual[:1, : len(row)] if actual.ndim == 3 else actual[:1]
                scale = float(np.sqrt((expected.astype(np.float64) ** 2).mean()))
                worst[place] = max(worst[place], float(np.abs(actual - expected).max()) / scale)
        table.append([entry.name, *(f"{value:.1e}" for value in worst)])
        figures.raw.setdefault("padding", {})[kind] = dict(zip(outputs, worst, strict=True))
        if kind == "int8":
            for name, value, floor in zip(outputs, worst, floors, strict=True):
                figures.bounds.append(Bound(f"padding, {entry.name}: {name}, in noise floors", value / floor, 10.0))
    head = [f"A short sentence alone and beside one of {len(rows[-1])} tokens", *outputs]
    figures.tables["Padding: largest difference, relative to the output's scale"] = head, table


# --- the sample checkpoint ------------------------------------------------------------------------------------------


def intents(work: Path, settings: Settings, figures: Figures) -> None:
    """Accuracy on the held-out set, of the eager model and of every artifact."""
    from palmtop.export.eager import eager_contender
    from palmtop.runtime.scores import score_bundle

    data = INTENTS / "evaluation.jsonl"
    kinds: dict[str, tuple[str, ...]] = {"fp32": ()}
    for kind in ("int8", "int4"):
        kinds[kind] = ("--quantize", kind)
    rows, raw = [], []
    whole: dict[str, int] = {}
    base = 0.0
    for kind, options in kinds.items():
        bundle = exported(INTENTS, work / f"intents-{kind}.bundle", *options)
        load = partial(eager_contender, bundle, str(INTENTS), None, False, 1)
        scores = score_bundle(bundle, data, threads=1, eager=load, start=counter)
        base = next(entry.scores["accuracy"] for entry in scores.entries if entry.name == "eager")
        for entry in scores.entries:
            if entry.name == "eager":
                continue
            if kind == "fp32":
                whole[entry.name] = entry.size
            lost = 100 * (base - entry.scores["accuracy"])
            name = f"{entry.name} {kind}"
            ratio = entry.size / whole[entry.name]
            same = entry.same if entry.same is not None else float("nan")
            row = [f"{entry.size / 1e6:.2f}", f"{ratio:.3f}", f"{100 * base - lost:.2f} %", f"{lost:+.2f}"]
            rows.append([name, *row, f"{100 * same:.2f} %"])
            raw.append({"name": name, "bytes": entry.size, "ratio": ratio, "lost_points": lost, "same_decisions": same})
            if kind != "fp32":
                most = 0.5 if kind == "int8" else 1.0
                figures.bounds.append(Bound(f"intents, {name}: points of accuracy lost", lost, most))
    figures.raw["intents"] = {"eager_accuracy": base, "artifacts": raw}
    head = [
        f"Intents, held out: eager {100 * base:.2f} %",
        "MB",
        "of fp32",
        "accuracy",
        "points lost",
        "decides as eager",
    ]
    figures.tables["Accuracy of the sample checkpoint (calibrated on palmtop's own texts)"] = head, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="few sentences and rounds, to see that it runs; writes no page"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; writes no page")
    parser.add_argument("--large", action="store_true", help="only the search at the size of BERT base")
    parser.add_argument("--to", default="onnx,coreml,executorch", metavar="TARGETS", help="of --large (default: all)")
    parser.add_argument("--only", choices=("minilm", "intents"), help="one part; writes no page")
    parser.add_argument("--rounds", type=int, help="of timing")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep bundles there, and take those that are there")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    settings = QUICK if options.quick else Settings()
    if options.rounds:
        settings = dataclasses.replace(settings, rounds=options.rounds)
    figures = Figures(versions=report.versions("torch", "transformers", "onnxruntime", "executorch", "coremltools"))
    with folder(options.work) as work:
        if options.large:
            import large

            large.measure(work, options.to, figures)
        else:
            if options.only != "intents":
                minilm(work, settings, figures)
            if options.only != "minilm":
                intents(work, settings, figures)
    name, title = (
        ("quantization-large", "A plan for 110 M parameters") if options.large else ("quantization", "Quantization")
    )
    command = "python benchmarks/quantization.py" + (f" --large --to {options.to}" if options.large else "")
    section = Section(name, title, command, _NOTES[title])
    publish(section, figures, as_json=options.json, write=not options.quick and not options.only)
    return 0


_NOTES = {
    "Quantization": "MiniLM is all-MiniLM-L6-v2 (22 M parameters). Calibrated on sentences of Python's documentation, "
    "of which every tenth is held back and judged on; `own texts`: calibrated and judged on palmtop's, in 30 "
    "languages, as without `--calibrate`. Evaluated on 500 other sentences of that documentation, mostly one at a "
    "time, some paragraphs. Cosines are with eager PyTorch in fp32: `pooled` the mean over texts, `token` over tokens. "
    "Core ML is executed by palmtop's interpreter, so it has no times. What is timed gives token states and the "
    "text's vector, which is pooled in palmtop's graphs, and by numpy behind the others. Times are means of the "
    "quickest quarter of the rounds, for each input, the contenders in random turns, each after a call that is "
    "not timed.",
    "A plan for 110 M parameters": "Minutes are those of the clock, and depend on what else the machine does; CPU "
    "minutes are the work that was done.",
}


if __name__ == "__main__":
    sys.exit(main())
