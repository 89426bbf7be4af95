"""The runtime imports no framework, and importing it is nearly free."""

import pkgutil
import subprocess
import sys
import textwrap

import palmtop.runtime

FRAMEWORKS = ("torch", "transformers", "coremltools", "executorch")


def run(code: str) -> str:
    """Run code in a fresh interpreter and give what it prints."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_module_of_the_runtime_imports_a_framework():
    modules = sorted(m.name for m in pkgutil.walk_packages(palmtop.runtime.__path__, "palmtop.runtime."))
    assert "palmtop.runtime.pipelines.fill_mask" in modules
    found = run(f"""
        import importlib, sys
        for name in {modules!r}:
            importlib.import_module(name)
            loaded = [f for f in {FRAMEWORKS!r} if f in sys.modules]
            if loaded:
                sys.exit(f"{{name}} imports {{loaded}}")
        print("none")
    """)
    assert found.strip() == "none"


def test_importing_the_runtime_imports_nothing_heavy():
    loaded = run("""
        import sys
        before = set(sys.modules)
        import palmtop.runtime
        palmtop.runtime.load
        print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
    """)
    heavy = {"numpy", "onnxruntime", "tokenizers", "jsonschema", "rich", "google", *FRAMEWORKS}
    assert not heavy & set(eval(loaded))
