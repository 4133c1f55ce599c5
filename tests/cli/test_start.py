"""What is imported when the command or the package is, and what is not."""

import pickle
import subprocess
import sys
from pathlib import Path

import mirnet_fast
from mirnet_fast import MIRNet
from mirnet_fast.cli import main

from .common import CONFIG


def in_command(tmp_path, *lines):
    """What a process prints that is called as the installed command is."""
    script = tmp_path / "mirnet-fast"
    root = Path(mirnet_fast.__file__).parents[1]
    script.write_text("\n".join(["import sys", f"sys.path.insert(0, {str(root)!r})", *lines]))
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_no_torch(tmp_path):
    printed = in_command(
        tmp_path,
        "from mirnet_fast.cli import main",
        "for name in ['', *main.commands]:",
        "    main([*name.split(), '--help'], standalone_mode=False)",
        "heavy = {'torch', 'numpy', 'scipy', 'skimage', 'cv2', 'PIL', 'pyvips', 'rich'}",
        "print(sorted(heavy & set(sys.modules)))",
    )
    assert printed.splitlines()[-1] == "[]"
    assert printed.count("Usage: ") == 1 + len(main.commands)


def test_package_is_whole_in_the_command_too(tmp_path):
    printed = in_command(
        tmp_path,
        "import mirnet_fast, pickle, mirnet_fast.kernels",
        "assert 'torch' not in sys.modules",
        "assert set(mirnet_fast.__all__) <= set(dir(mirnet_fast))",
        "from mirnet_fast import MIRNet",
        "import mirnet_fast.accelerate",
        "model = pickle.loads(pickle.dumps(MIRNet(n_feat=8, n_RRG=1, n_MSRB=1)))",
        "print(type(model) is MIRNet, callable(mirnet_fast.accelerate), callable(mirnet_fast.ops.blur_pool))",
        "print(hasattr(mirnet_fast, 'nothing'))",
    )
    assert printed.split() == ["True", "True", "True", "False"]


def test_every_room_can_be_the_first_that_the_command_imports(tmp_path):
    rooms = {path.stem for path in Path(mirnet_fast.__file__).parent.iterdir() if path.suffix in ("", ".py")}
    # The room `spandrel` needs the package of that name.
    rooms = sorted(room for room in rooms if not room.startswith((".", "_")) and room != "spandrel")
    printed = in_command(
        tmp_path,
        "import importlib, os, traceback, torch",
        f"for room in {rooms}:",
        "    if os.fork() == 0:",
        "        try:",
        "            importlib.import_module(f'mirnet_fast.{room}')",
        "        except ImportError:",
        "            print(room, traceback.format_exc(), flush=True)",
        "        os._exit(0)",
        "    os.wait()",
    )
    assert {"modules", "engine", "training"} <= {*rooms} and printed == ""


def test_package_exports_all_that_it_names():
    assert all(getattr(mirnet_fast, name) is not None for name in mirnet_fast.__all__)
    assert callable(mirnet_fast.accelerate) and set(mirnet_fast.__all__) <= set(dir(mirnet_fast))
    model = pickle.loads(pickle.dumps(MIRNet(**CONFIG)))
    assert type(model) is mirnet_fast.MIRNet
