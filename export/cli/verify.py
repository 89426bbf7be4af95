"""Verify a bundle: files, tokenizer, and every artifact against the golden vectors or the eager model itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...runtime.bundle import Bundle
from ...runtime.errors import RequestError
from ...runtime.explain import Explanation
from ...runtime.parity import Noise
from ...runtime.reports import Report
from ...runtime.textfile import read_texts
from ...runtime.verify import Case, golden_cases, verify_bundle
from .console import Console, print_json
from .explain import Explain, alone, explain_alone, explain_report, explanations_json, show_explanations
from .export import artifact_sizes, show_report
from .options import add_threads

HELP = "check that a bundle still is the model (exit code 1 when it is not)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("--target", metavar="TARGETS", help="only these artifacts (default: all)")
    parser.add_argument(
        "--reference",
        metavar="SOURCE",
        help="compare with this checkpoint, run eagerly (needs torch; default: the bundle's golden vectors)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id given as --reference")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the reference")
    parser.add_argument(
        "--inputs",
        metavar="FILE",
        help="compare on these inputs too: a text a line, or JSON lines with text and text_pair (needs --reference)",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="show, layer by layer, where artifact and reference part ways (best with --reference)",
    )
    add_threads(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.inputs and not arguments.reference:
        raise RequestError("--inputs needs --reference: without the model there is nothing to compare new inputs with.")
    texts = read_texts(Path(arguments.inputs)) if arguments.inputs else []
    bundle = Bundle.open(arguments.bundle)
    bundle.check_files()
    targets = [name.strip() for name in arguments.target.split(",")] if arguments.target else None
    given, noise, reference = None, None, "golden vectors"
    explained, explain = None, None
    if arguments.explain and not arguments.reference:
        explained = [artifact.target for artifact in alone(bundle, targets)]
        explain = explain_alone(bundle)
    with console.progress() as progress:
        if arguments.reference:
            advance = progress("Running the reference", 1)
            given, noise, explain = _reference_cases(arguments, bundle, texts)
            advance()
            reference = f"eager PyTorch of {arguments.reference}, fp32, unpatched"
        report = verify_bundle(
            bundle,
            targets=targets,
            cases=given,
            noise=noise,
            reference=reference,
            threads=arguments.threads,
            start=lambda path, steps: progress(f"Verifying {path}", steps),
        )
        found = []
        if arguments.explain and explain is not None:
            advance = progress("Looking inside", len(explained or report.artifacts))
            cases = golden_cases(bundle.golden()) if given is None else given
            found = explain_report(bundle, report, cases, explain, advance, explained)
    _show(arguments, console, bundle, report, found)
    unexecuted = [entry for entry in report.artifacts if entry.status == "not executed"]
    if unexecuted and (targets or len(unexecuted) == len(report.artifacts)) and not report.failed:
        return RequestError.exit_code  # what was asked for could not be done here; the report says why
    return 0 if report.passed else 1


def _reference_cases(
    arguments: argparse.Namespace, bundle: Bundle, lines: list[str | tuple[str, str]]
) -> tuple[list[Case], dict[str, Noise], Explain]:
    try:
        from ..explain import explain
        from ..source import open_source
        from ..subject import checkpoint_subject
    except ImportError as error:
        raise RequestError(
            f"--reference runs the eager model, and that needs a package that is not installed ({error}). "
            "Install it with: pip install 'palmtop[export]', or verify against the golden vectors."
        ) from error
    manifest = bundle.manifest
    if manifest.task == "module":
        raise RequestError(
            "This bundle was made from a module, not a checkpoint: verify it against its golden vectors."
        )
    source = open_source(
        arguments.reference,
        task=manifest.task,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
    )
    subject = checkpoint_subject(source, manifest.tokenizer.max_length if manifest.tokenizer is not None else None)
    cases = subject.cases()
    noise = subject.reference.noise(cases)
    if lines and subject.lines is not None:
        cases = cases + subject.lines(lines)
    return (
        cases,
        noise,
        lambda session, case: explain(subject.reference, session, case, lambda: subject, "the eager model"),
    )


def _show(
    arguments: argparse.Namespace,
    console: Console,
    bundle: Bundle,
    report: Report,
    found: list[Explanation | tuple[str, str]],
) -> None:
    if arguments.json:
        more = {"explanations": explanations_json(found)} if arguments.explain else {}
        print_json({"bundle": str(arguments.bundle), **report.to_json(), **more})
        return
    show_report(console, report, artifact_sizes(bundle.manifest.files, bundle.manifest.artifacts))
    if report.tokenizer is not None:
        different = report.tokenizer["different"]
        if different:
            console.error(f"The tokenizer gives other ids or offsets in: {', '.join(different[:6])}.")
        else:
            console.say(f"Tokenizer: {report.tokenizer['cases']} golden vectors, ids, masks and offsets equal.")
    for entry in report.failed:
        for problem in entry.problems:
            console.error(f"{entry.path}: {problem}")
        if entry.cause is not None:
            console.error(f"{entry.path}: {entry.cause.describe()}")
    show_explanations(console, found)
