"""Runs coremltools' own test suites through the interpreter and writes what came of it.

    python tests/conformance/run.py                         the operator suites, all of them -> docs/conformance.md
    python tests/conformance/run.py --suite torch --per 4   4 parameter sets of each test that compares converted
                                                            PyTorch models with PyTorch
    python tests/conformance/run.py --only linear           tests whose name contains a word

Every failure is listed with its reason from `reasons.toml` (by the test's name and what it says), or as unexplained.
Exit code 1 when a failure, or a file that cannot be collected, is unexplained. The page holds no times and no paths of
the machine: two runs with the same versions write the same page.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SUITES = {
    "ops": ["converters/mil/mil/ops/tests"],
    "torch": [
        "converters/mil/frontend/torch/test/test_torch_ops.py",
        "converters/mil/frontend/torch/test/test_torch_quantization_ops.py",
        "converters/mil/frontend/torch/test/test_torch_stateful_model.py",
        "converters/mil/frontend/torch/test/test_torch_export_conversion_api.py",
        "converters/mil/frontend/torch/test/test_torch_conversion_api.py",
        "converters/mil/frontend/torch/test/test_custom_ops.py",
        "converters/mil/frontend/torch/test/test_examples.py",
        "converters/mil/frontend/torch/test/test_passes.py",
        "converters/mil/frontend/torch/test/test_torch_export_quantization.py",
    ],
    # Graph passes, the converter's interface, compression, multifunction packages.
    "rest": [
        "converters/mil/mil/passes/tests",
        "converters/mil/mil/tests",
        "converters/mil/backend/mil",
        "converters/mil/frontend/milproto",
        "converters/mil/test_inputs_outputs_shape.py",
        "test/ml_program/test_utils.py",
        "test/ml_program/test_compression.py",
        "test/optimize/coreml",
        "test/api/test_api_examples.py",
    ],
}

Outcomes = dict[str, dict[str, Any]]


def wheel() -> Path:
    """The folder of the installed coremltools, found without importing it (that takes seconds)."""
    spec = importlib.util.find_spec("coremltools")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("coremltools is not installed: pip install palmtop[export]")
    return Path(next(iter(spec.submodule_search_locations)))


def run(suite: str, **options: Any) -> Outcomes:
    """Outcome of every test of a suite, by its name relative to the wheel; options as for `execute`."""
    return execute(suite, **options)[0]


def execute(
    suite: str,
    per: int = 0,
    workers: int = 1,
    only: str | None = None,
    timeout: int = 120,
    total: int = 0,
    verbose: bool = False,
) -> tuple[Outcomes, int]:
    """What `run` gives, and the number of tests that the sample which `per` and `total` ask for was drawn from."""
    folder = wheel()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "outcomes.json"
        environment = os.environ | {
            "CONFORMANCE_OUT": str(out),
            "CONFORMANCE_PER": str(per),
            "OMP_NUM_THREADS": "1",
            "CONFORMANCE_TOTAL": str(total),
            "TMPDIR": scratch,  # coremltools leaves a package behind for every model that is not closed
            "PYTHONPATH": os.pathsep.join(p for p in (str(HERE), os.environ.get("PYTHONPATH")) if p),
        }
        command = [sys.executable, "-m", "pytest", "-p", "plugin", "-p", "no:cacheprovider", "-q", "-W", "ignore"]
        command += [
            "--tb=line",
            "--no-header",
            "--continue-on-collection-errors",
            f"--timeout={timeout}",
            "--rootdir",
            str(folder),
            "-c",
            os.devnull,
        ]
        command += ["-n", str(workers)] if workers > 1 else []
        command += ["-k", only] if only else []
        command += [str(folder / part) for part in SUITES[suite]]
        # Tests write files where they stand: let that be a folder that goes away.
        log = None if verbose else subprocess.DEVNULL
        finished = subprocess.run(command, env=environment, cwd=scratch, stdout=log, check=False)
        if not out.exists():
            sys.exit(f"pytest ended with code {finished.returncode} and no outcomes; by hand: {' '.join(command)}")
        if finished.returncode not in (0, 1):
            sys.exit(f"pytest was interrupted (code {finished.returncode}); by hand: {' '.join(command)}")
        collected = out.with_name(out.name + ".collected")
        return json.loads(out.read_text("utf-8")), int(collected.read_text("utf-8")) if collected.exists() else 0


def explain(outcomes: Outcomes) -> dict[str, str | None]:
    """Each failed test, or file that cannot be collected, with the reason that `reasons.toml` gives for its name."""
    reasons = tomllib.loads((HERE / "reasons.toml").read_text("utf-8")).get("reason", [])
    result: dict[str, str | None] = {}
    for test, entry in sorted(outcomes.items()):
        if entry["outcome"] in ("failed", "not collected"):
            named = [r for r in reasons if any(fnmatch.fnmatchcase(test, _literal(p)) for p in r["tests"])]
            fits = [r for r in named if any(words in entry["why"] for words in r["says"])]
            result[test] = fits[0]["why"] if fits else None
    return result


def _literal(pattern: str) -> str:
    """Brackets in test names are themselves; only `*` and `?` are wild."""
    return pattern.replace("[", "[[]")


def report(outcomes: Outcomes, suite: str, collected: int) -> str:
    """The page: totals, a line per file, every failure with its reason, and why tests are skipped.

    `collected` is the number of tests of the suite, of which `outcomes` may be a sample.
    """
    failures = explain(outcomes)
    ran = sum(1 for entry in outcomes.values() if entry["outcome"] != "not collected")
    what = "Every test" if ran >= collected else f"A sample of {ran} of the {collected} tests"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("coremltools", "torch", "numpy"))
    lines = [f"## Suite: {suite}", "", f"{what}, with {versions}.", ""]
    total = Counter(entry["outcome"] for entry in outcomes.values())
    executed = sum(1 for entry in outcomes.values() if entry["predictions"])
    lines += [
        f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped, {total['xfailed']} expected",
        f"by coremltools to fail, {total['xpassed']} expected to fail but passed. In {executed} tests the interpreter",
        f"made {sum(e['predictions'] for e in outcomes.values())} predictions; the others test conversion alone.",
        "",
        "| file | passed | failed | skipped | expected to fail |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    files: dict[str, Counter[str]] = defaultdict(Counter)
    for test, entry in outcomes.items():
        if entry["outcome"] == "not collected":
            continue
        files[test.split("::")[0]][entry["outcome"]] += 1
    for file, counts in sorted(files.items()):
        short = file.removeprefix("converters/mil/mil/ops/tests/").removeprefix("converters/mil/frontend/torch/test/")
        expected = counts["xfailed"] + counts["xpassed"]
        lines.append(f"| {short} | {counts['passed']} | {counts['failed']} | {counts['skipped']} | {expected} |")
    lines += ["", "### Failures", ""]
    by_reason: dict[str | None, list[str]] = defaultdict(list)
    for test, why in failures.items():
        by_reason[why].append(test)
    if not failures:
        lines += ["None.", ""]
    for why, tests in sorted(by_reason.items(), key=lambda item: (item[0] is not None, item[0] or "")):
        lines += [f"**{why or 'Unexplained'}** ({len(tests)})", ""]
        for test in tests:
            kind = "not collected, " if outcomes[test]["outcome"] == "not collected" else ""
            message = "" if why else ": " + _first_line(outcomes[test]["why"]).replace("`", "'")
            lines.append(f"- {kind}`{test.rsplit('/', 1)[-1]}`{message}")
        lines.append("")
    lines += ["### Skipped, and why", "", "| tests | reason given by coremltools' tests |", "| ---: | --- |"]
    skipped = [e["why"] for e in outcomes.values() if e["outcome"] == "skipped"]
    skips = Counter(_first_line(why).replace("|", "/") for why in skipped)
    lines += [f"| {count} | {why} |" for why, count in sorted(skips.items(), key=lambda item: (-item[1], item[0]))]
    return "\n".join([*lines, ""])


def _first_line(message: str) -> str:
    """The first line of a message, without what differs between machines."""
    return message.split("\n")[0].replace(str(wheel()), "coremltools").replace(str(ROOT), ".")[:150]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="ops")
    parser.add_argument("--per", type=int, default=0, help="parameter sets of each test function; 0: all")
    parser.add_argument("--total", type=int, default=0, help="at most this many tests, drawn at random; 0: all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", help="tests whose name contains this (pytest -k)")
    parser.add_argument("--timeout", type=int, default=120, help="seconds a test may take")
    parser.add_argument("--no-write", action="store_true", help="do not write docs/conformance*.md")
    options = parser.parse_args()
    start = time.monotonic()
    outcomes, collected = execute(
        options.suite, options.per, options.workers, options.only, options.timeout, options.total, verbose=True
    )
    text = report(outcomes, options.suite, collected)
    if not options.no_write and not options.only:
        name = "conformance.md" if options.suite == "ops" else f"conformance-{options.suite}.md"
        (ROOT / "docs").mkdir(exist_ok=True)
        (ROOT / "docs" / name).write_text(HEADER + text, encoding="utf-8")
    failures = explain(outcomes)
    for test, why in failures.items():
        print(f"FAILED {test}\n    {why or 'UNEXPLAINED: ' + outcomes[test]['why'].splitlines()[0][:200]}")
    total = Counter(entry["outcome"] for entry in outcomes.values())
    print(", ".join(f"{total[k]} {k}" for k in ("passed", "failed", "skipped", "xfailed", "xpassed")))
    print(f"{sum(e['predictions'] for e in outcomes.values())} predictions, {time.monotonic() - start:.0f} s")
    return 1 if None in failures.values() or not outcomes else 0


HEADER = """# Conformance of the Core ML interpreter

coremltools ships its own tests in its wheel. Off a Mac they convert models and cannot execute them; here every
prediction they ask for is executed by palmtop's interpreter (declared semantics: fp32 arithmetic, one rounding to the
declared type per operation), and compared with the values their authors expect, with their tolerances. Written by
`tests/conformance/run.py`; the reasons are in `tests/conformance/reasons.toml`. Pages: the
[operator tests](conformance.md), and a sample of the tests that compare
[converted PyTorch models](conformance-torch.md) with PyTorch.

"""


if __name__ == "__main__":
    sys.exit(main())
