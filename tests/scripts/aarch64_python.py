"""Python for AArch64 with Numba on a machine that is none: `aarch64_python.py [--cpu CPU] FOLDER ARGUMENTS...`.

The first time, FOLDER is filled with Debian's packages of Python for arm64, as this system's apt finds them, and with
wheels of what the package needs; nothing is installed outside it, and nobody has to be root. QEMU runs it, on any CPU
that it knows (`max` has all features). FOLDER also keeps the kernels that are compiled there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("apt-get", "dpkg-deb", "qemu-aarch64-static")
PACKAGES = ("python3", "libgomp1", "libstdc++6")
LIBC = "manylinux_2_17", "manylinux_2_27", "manylinux_2_28", "manylinux2014"


def missing_tools():
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def apt_settings(folder):
    """apt on a system of another architecture, in which nothing is installed."""
    names = {"lists": "lists/partial", "archives": "archives/partial"}
    for name in names.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    settings = {
        "APT::Architecture": "arm64", "APT::Install-Recommends": "false", "Acquire::Languages": "none",
        "APT::Sandbox::User": "", "Dir::State": folder, "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status", "Dir::Cache": folder, "Dir::Cache::archives": folder / "archives",
    }  # fmt: skip
    lines = [f'{key} "{value}";' for key, value in settings.items()]
    # Hooks of this system are not for that one.
    lines += ['APT::Architectures { "arm64"; };', "#clear APT::Update::Post-Invoke;", "#clear DPkg::Post-Invoke;"]
    path = folder / "apt.conf"
    path.write_text("\n".join([*lines, "#clear APT::Update::Post-Invoke-Success;"]) + "\n")
    return os.environ | {"APT_CONFIG": str(path)}


def unpack_debian(system, scratch):
    environment = apt_settings(scratch)
    # Other sources of this system may have nothing for arm64; what is missing then, the next command says.
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False, capture_output=True)
    subprocess.run(["apt-get", "install", "-qq", "--download-only", *PACKAGES], env=environment, check=True)
    for package in sorted((scratch / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, system], check=True)


def python_of(system):
    """The interpreter, and its version as in 3.11."""
    (path,) = (p for p in (system / "usr/bin").glob("python3.*") if p.name.removeprefix("python3.").isdigit())
    return path, path.name.removeprefix("python")


def needed_wheels():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], "pytest", "hypothesis"]  # these two by the tests' helpers


def install_wheels(system):
    platforms = [f"--platform={libc}_aarch64" for libc in LIBC]
    python = ["--implementation=cp", f"--python-version={python_of(system)[1]}", "--only-binary=:all:"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(system / "site")]
    subprocess.run([*pip, *python, *platforms, *needed_wheels()], check=True)


def prepare(folder):
    """The system in a folder, made if it is not there, or only half, or for other requirements."""
    system, ready, wheels = folder / "system", folder / "ready", "\n".join(needed_wheels())
    if not ready.exists() or ready.read_text() != wheels:
        if folder.is_dir() and any(folder.iterdir()) and not system.is_dir():
            sys.exit(f"folder: expected an empty one, or one that this script has filled, got {folder}")
        shutil.rmtree(system, ignore_errors=True)
        system.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as scratch:
            unpack_debian(system, Path(scratch))
        install_wheels(system)
        ready.write_text(wheels)
    return system


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpu", default="max")
    parser.add_argument("folder", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if missing_tools():
        parser.error(f"expected {', '.join(TOOLS)}, got no {', '.join(missing_tools())}")
    folder = options.folder.resolve()
    system = prepare(folder)
    inside = {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", system / "site"))),
        "PYTHONHOME": str(system / "usr"),
        "LD_LIBRARY_PATH": str(system / "usr/lib/aarch64-linux-gnu"),
        "NUMBA_CACHE_DIR": str(folder / "kernels"),
    }
    settings = [word for key, value in inside.items() for word in ("-E", f"{key}={value}")]
    python = str(python_of(system)[0])
    command = ["qemu-aarch64-static", "-cpu", options.cpu, "-L", str(system), *settings, python, *options.arguments]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
