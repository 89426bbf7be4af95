"""Export a checkpoint to ONNX, Core ML and ExecuTorch, verify each artifact, and pack a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import RequestError
from ...runtime.manifest import Artifact
from ...runtime.parity import Measure
from ...runtime.reports import ArtifactReport, Report
from ..collector import seldom
from ..targets import TARGETS
from .console import Console, print_json, size

if TYPE_CHECKING:
    from ..build import Result

HELP = "make a verified bundle of a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="BUNDLE", required=True, help="the bundle to make")
    add_subject(parser)
    add_precision(parser, "none")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")


def add_subject(parser: argparse.ArgumentParser) -> None:
    """What is exported, for which targets, in which shapes."""
    parser.add_argument("source", metavar="SOURCE", help="a Hugging Face folder, or a hub id")
    model = parser.add_argument_group("what to export")
    model.add_argument("--task", help="a Hugging Face pipeline name (default: inferred from the checkpoint)")
    model.add_argument("--to", metavar="TARGETS", default=",".join(TARGETS), help="default: %(default)s")
    model.add_argument("--revision", help="branch, tag or commit of a hub id")
    model.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    shapes = parser.add_argument_group("shapes")
    shapes.add_argument(
        "--max-length", type=int, metavar="N", help="longest input in tokens (default: the model's, to 512)"
    )
    shapes.add_argument("--lengths", type=_lengths, metavar="N,N", help="the only sequence lengths; one: fixed")
    dynamic = shapes.add_mutually_exclusive_group()
    dynamic.add_argument("--dynamic", action="store_true", default=True, help="axes vary where they can (default)")
    dynamic.add_argument("--static", dest="dynamic", action="store_false", help="every axis constant, batch 1")


def add_precision(parser: argparse.ArgumentParser, default: str) -> None:
    """The options of precision and quantization."""
    precision = parser.add_argument_group("precision")
    precision.add_argument(
        "--quantize",
        metavar="SCHEME",
        default=default,
        help="none, fp16, int8, int4, or auto: the smallest plan that keeps --min-agreement (default: %(default)s)",
    )
    precision.add_argument(
        "--min-agreement",
        type=float,
        metavar="X",
        help="what each quantized artifact must keep, 0..1 (default: int8 0.995, int4 0.98, auto 0.99)",
    )
    precision.add_argument(
        "--metric",
        default="cosine",
        help="of the agreement: cosine (mean, of output rows), top1 (equal decisions) or accuracy (share of the "
        "reference's score on --data) (default: %(default)s)",
    )
    precision.add_argument("--data", metavar="FILE", help="labelled examples for --metric accuracy; see palmtop bench")
    precision.add_argument(
        "--calibrate", metavar="FILE", help="texts like your users', a line or JSON line each (default: palmtop's own)"
    )
    precision.add_argument(
        "--activations",
        metavar="HOW",
        help="what quantized layers round of their inputs: none, dynamic or static (default: dynamic)",
    )
    precision.add_argument("--plan", metavar="FILE", help="a quantization plan, such as a bundle's plan.json")
    precision.add_argument("--prefer", default="size", help="of plans that hold, for auto: size or speed")
    precision.add_argument(
        "--keep-best", action="store_true", help="write the bundle that agrees best when none agrees enough (exit 1)"
    )
    precision.add_argument(
        "--keep-fp32", metavar="MODULE", action="append", default=[], help="keep a module in fp32; may be repeated"
    )
    precision.add_argument(
        "--fp16-io", action="store_true", help="fp16 inputs and outputs too, for --quantize fp16 in ONNX (others: fp32)"
    )
    precision.add_argument(
        "--image-input", action="store_true", help="Core ML takes pixels of a picture, and normalises them itself"
    )
    precision.add_argument(
        "--no-fallback",
        dest="fallback",
        action="store_false",
        help="fail where parity does not hold, instead of keeping as little as possible in higher precision",
    )


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas, got '{text}'") from None


def run(arguments: argparse.Namespace, console: Console) -> int:
    result = exported(arguments, console, arguments.output)
    return show(result, str(result.path), arguments, console)


@seldom()
def exported(arguments: argparse.Namespace, console: Console, destination: str | Path) -> Result:
    """Make the bundle that the arguments describe."""
    try:
        from ..api import export_checkpoint
        from ..aside import allowed
    except ImportError as error:
        raise RequestError(
            f"Exporting needs packages that are not installed ({error}). "
            "Install them with: pip install 'palmtop[export]'"
        ) from error
    with console.progress() as progress:
        return export_checkpoint(
            arguments.source,
            destination,
            task=arguments.task,
            to=[name.strip() for name in arguments.to.split(",") if name.strip()],
            quantize=arguments.quantize,
            max_length=arguments.max_length,
            lengths=arguments.lengths,
            dynamic=arguments.dynamic,
            keep_fp32=arguments.keep_fp32,
            half_io=arguments.fp16_io,
            image_input=arguments.image_input,
            fallback=arguments.fallback,
            min_agreement=arguments.min_agreement,
            metric=arguments.metric,
            data=arguments.data,
            calibration=arguments.calibrate,
            plan=arguments.plan,
            prefer=arguments.prefer,
            keep_best=arguments.keep_best,
            activations=arguments.activations,
            revision=arguments.revision,
            trust_remote_code=arguments.trust_remote_code,
            force=arguments.force,
            processes=allowed(),
            progress=progress,
        )


def show(result: Result, written: str, arguments: argparse.Namespace, console: Console) -> int:
    """Say what was made, and where it was written; gives the exit code."""
    sizes = artifact_sizes(result.manifest.files, result.manifest.artifacts)
    if arguments.json:
        print_json(
            {
                "plan" if written.endswith(".json") else "bundle": written,
                "task": result.manifest.task,
                "identity": result.manifest.identity,
                "sizes": sizes,
                "quantization": {entry.target: entry.quantization for entry in result.manifest.artifacts},
                "seconds": result.seconds,
                "notes": list(result.notes),
                "trials": result.trials,
                "parity": result.report.to_json(),
            }
        )
        return _code(result)
    show_trials(console, result.trials)
    console.say(f"{result.manifest.source.id}: {result.manifest.task}, {result.manifest.source.architecture}")
    show_report(console, result.report, sizes)
    for note in result.notes:
        console.warn(note)
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in result.seconds.items())
    total = size(sum(file.size for file in result.manifest.files))
    what = (
        f"{written} written (of a bundle of {total})" if written.endswith(".json") else f"{written} written ({total})"
    )
    console.say(f"{what}. Seconds: {seconds}.")
    return _code(result)


def _code(result: Result) -> int:
    """1 for a bundle that was only kept because it was the best (`--keep-best`)."""
    return int(bool(result.report.failed))


def show_trials(console: Console, trials: Sequence[dict[str, Any]]) -> None:
    """What a search for a plan tried, smallest first: those on the Pareto front, the chosen one marked."""
    if not trials:
        return
    rows = [
        (
            "chosen" if trial["chosen"] else "",
            size(trial["size"]),
            f"{trial['agreement']:.5f}",
            ", ".join(f"{target} {value:.1f}" for target, value in trial["milliseconds"].items()),
            "holds" if trial["passed"] else "fails",
            "" if trial["pareto"] else "beaten",
        )
        for trial in sorted(trials, key=lambda trial: trial["size"])
    ]
    console.table(("", "size", "agreement", "ms a case", "bound", ""), rows, right=("size", "agreement"))


def artifact_sizes(files: tuple, artifacts: tuple[Artifact, ...]) -> dict[str, int]:
    """Bytes of each artifact, by path (a package counts all of its files)."""
    return {
        artifact.path: sum(
            file.size
            for file in files
            if file.role == "artifact" and file.path.startswith(artifact.path.split("/")[0] + "/")
        )
        for artifact in artifacts
    }


def show_report(console: Console, report: Report, sizes: dict[str, int]) -> None:
    """The table of artifacts: what executed each, how far it is from the reference, and the verdict."""
    rows = [row for entry in report.artifacts for row in _rows(entry, sizes)]
    console.table(
        ("target", "size", "precision", "output", "error or agreement", "allowed", "worst cosine", "same", "verdict"),
        rows,
        right=("size", "error or agreement", "allowed", "worst cosine", "same"),
    )
    engines = {entry.target: entry.engine for entry in report.artifacts if entry.engine}
    console.say(
        f"Reference: {report.reference}. Executed by: " + "; ".join(f"{t}: {e}" for t, e in engines.items()) + "."
    )
    for entry in report.artifacts:
        if entry.status == "not executed":
            console.warn(f"{entry.path}: converted, not executed. {entry.reason}")
        if entry.agreement is not None and entry.agreement.excused and entry.agreement.least is None:
            console.say(
                f"{entry.path}: {entry.agreement.excused} of {entry.agreement.total} decisions differ, where the "
                "reference's own best two are closer than the error that is allowed."
            )


def _rows(entry: ArtifactReport, sizes: dict[str, int]) -> list[tuple[str, ...]]:
    head = (entry.target, size(sizes.get(entry.path, 0)), entry.precision)
    if not entry.measures:
        return [(*head, "", "", "", "", "", entry.status)]
    agreement = f"{entry.agreement.same}/{entry.agreement.total}" if entry.agreement else ""
    return [
        (*(head if index == 0 else ("", "", "")), *_numbers(measure), agreement if index == 0 else "", entry.status)
        for index, measure in enumerate(entry.measures)
    ]


def _numbers(measure: Measure) -> tuple[str, ...]:
    return measure.output, measure.found(), measure.asked(), f"{measure.cosine:.7f}"
