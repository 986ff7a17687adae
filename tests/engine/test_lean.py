"""mlx_lm without transformers: in processes of their own, since the test's has long imported both."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HEAVY = "{'transformers', 'huggingface_hub', 'tokenizers', 'jinja2'}"


def run(code: str, *arguments: str) -> str:
    """What such a process prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_loading_a_stage_imports_no_transformers(tiny: Callable[..., Path]) -> None:
    code = f"""
import sys
from exo_cli.engine.stage import load
core, ready = load(sys.argv[1], layers=(0, 2), layers_in_model=4, memory_bytes=1 << 30,
                   progress=lambda *_: None)
print(ready["weights_bytes"] > 0, sorted({HEAVY} & set(sys.modules)))
"""
    assert run(code, str(tiny("llama", bits=4))) == "True []"


def test_every_family_is_imported_as_without_it() -> None:
    code = """
import importlib, sys
if sys.argv[1] == "lean":
    import exo_cli.engine
import mlx_lm.models, pkgutil
for name in sorted(module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)):
    try:
        module = importlib.import_module(f"mlx_lm.models.{name}")
        print(name, hasattr(module, "Model"), hasattr(module, "ModelArgs"))
    except (Exception, SystemExit) as error:
        print(name, type(error).__name__)
"""
    lean = run(code, "lean")
    assert lean.count("True True") > 100
    assert lean == run(code, "whole")


def test_what_the_package_itself_gives_is_there_when_it_is_asked_for(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys
from exo_cli.engine.lean import utilities
utils = utilities()
print(sorted({HEAVY} & set(sys.modules)))
try:
    utils.load_tokenizer(pathlib.Path(sys.argv[1]))
except Exception as error:
    print("mlx_lm.tokenizer_utils" in sys.modules, "transformers" in sys.modules)
import mlx_lm
from mlx_lm import generate, load
print(generate.__module__, load is utils.load, mlx_lm.utils is utils, mlx_lm.__version__ > "")
print(hasattr(mlx_lm, "nothing_of_that_name"))
"""
    said = run(code, str(tmp_path)).splitlines()
    assert said == ["[]", "True True", "mlx_lm.generate True True True", "False"]


def test_a_utils_that_wants_more_is_imported_whole(tmp_path: Path) -> None:
    package = tmp_path / "mlx_lm"
    package.mkdir()
    (package / "__init__.py").write_text("from .utils import load_model\n")
    (package / "utils.py").write_text("from .tokenizer_utils import Another\ndef load_model(): ...\n")
    (package / "tokenizer_utils.py").write_text("class Another: ...\n")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from exo_cli.engine.lean import utilities
print(utilities().Another.__module__, sys.modules["mlx_lm"].load_model.__module__)
"""
    assert run(code, str(tmp_path)) == "mlx_lm.tokenizer_utils mlx_lm.utils"
