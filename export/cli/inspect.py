"""Show what is in a bundle: artifacts, sizes, signatures, operations, and what share of them each delegate takes."""

from __future__ import annotations

import argparse
from typing import Any

from ...runtime.bundle import Bundle
from ...runtime.inspect import inspect_bundle
from .console import Console, print_json, size

HELP = "show what is in a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")


def run(arguments: argparse.Namespace, console: Console) -> int:
    found = inspect_bundle(Bundle.open(arguments.bundle))
    if arguments.json:
        print_json(found)
        return 0
    source = found["source"]
    revision = f" at {source['revision']}" if source["revision"] else ""
    console.say(
        f"{arguments.bundle}: {found['task']}, {source['id']}{revision} ({source['architecture']}), "
        f"{size(found['size'])}"
    )
    console.say(f"license {source['license'] or 'not stated'}, identity {found['identity'][:16]}")
    made_by = ", ".join(f"{tool} {version}" for tool, version in found["producer"].items())
    console.say(f"made by {made_by}")
    if found["tokenizer"]:
        spec = found["tokenizer"]
        console.say(f"tokenizer {spec['tokenizer_class']} ({spec['kind']}), up to {spec['max_length']} tokens")
    for reader in found["readers"]:
        console.say(f"  {_reader(reader)}")
    console.say()
    console.table(
        ("artifact", "size", "precision", "oldest system", "operations", "delegated"),
        [
            (
                entry["path"],
                size(entry["size"]),
                entry["precision"],
                ", ".join(f"{system} {version}" for system, version in entry["minimum_os"].items()) or "any",
                _count(entry),
                _delegated(entry),
            )
            for entry in found["artifacts"]
        ],
        right=("size", "operations"),
    )
    for entry in found["artifacts"]:
        console.say()
        console.say(entry["path"])
        for kind in ("inputs", "outputs"):
            for signature in entry[kind]:
                console.say(f"  {kind[:-1]:6} {signature}")
        if entry["quantization"]:
            console.say(f"  quantized: {entry['quantization']}")
        if entry["operations"]:
            console.say(f"  operations: {_listed(entry['operations'])}")
        for delegate in entry["delegates"]:
            console.say(f"  {delegate['name']}: {_listed(delegate['operations'])}")
        status = found["parity"].get("artifacts", {}).get(entry["target"], {})
        if status:
            console.say(
                f"  parity at export: {status['status']}, cosine {status['cosine']}, executed by {status['engine']}"
            )
    return 0


def _reader(reader: dict[str, Any]) -> str:
    """One line of the compatibility table."""
    line = f"{reader['reader']} {reader['version'] or ''}".rstrip() + f": {reader['result']}"
    if reader["vectors"]:
        line += f", {reader['passed']} of {reader['vectors']} vectors"
    if reader["special_tokens"] is False:
        line += ", without special tokens"
    return f"{line} ({reader['why']})" if reader["why"] else line


def _count(entry: dict[str, Any]) -> int:
    inside = sum(sum(delegate["operations"].values()) for delegate in entry["delegates"])
    return inside + sum(entry["operations"].values())


def _delegated(entry: dict[str, Any]) -> str:
    if entry["delegated"] is None:
        return "-"
    return f"{entry['delegated']:.0%} in {len(entry['delegates'])}"


def _listed(operations: dict[str, int]) -> str:
    return ", ".join(
        f"{name} {count}" for name, count in sorted(operations.items(), key=lambda item: (-item[1], item[0]))
    )
