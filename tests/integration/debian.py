# SPDX-License-Identifier: MIT
"""A minimal Debian system, as an archive. Needs the network once for each list of packages."""

import subprocess
import zlib
from pathlib import Path

import pytest

SUITE = "bookworm"


def apt_options():
    """What this machine needs to reach its packages: proxies and the like, and its sources."""
    options = []
    for path in sorted(Path("/etc/apt/apt.conf.d").glob("*")):
        if "Acquire::" in path.read_text(errors="replace"):
            options.append(f"--aptopt={path}")
    sources = [
        str(path)
        for path in (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d/debian.sources"))
        if path.exists() and SUITE in path.read_text(errors="replace")
    ]
    return options, sources


def rootfs(directory, log, packages, more=()):
    """The archive in this directory, made when it is not there yet.

    These packages lie in its apt cache, ready to be installed. more: options for mmdebstrap.
    """
    key = zlib.crc32(" ".join([*packages, *more]).encode())
    archive = Path(directory) / f"{SUITE}-{key:08x}.tar"
    if not archive.exists():
        make_rootfs(archive, log, packages, more)
    return archive


def make_rootfs(archive, log, packages, more):
    options, sources = apt_options()
    fetch = "apt-get install -d -y -q --no-install-recommends " + " ".join(packages)
    part = archive.with_suffix(".part.tar")
    command = [
        "mmdebstrap",
        "--variant=minbase",
        "--skip=cleanup/apt",
        *options,
        *more,
        f'--customize-hook=chroot "$1" {fetch}',
        SUITE,
        part,
        *sources,
    ]
    with open(log, "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, timeout=400)
    if done.returncode:
        part.unlink(missing_ok=True)
        pytest.skip(f"no root file system: {Path(log).read_text(errors='replace')[-300:]}")
    part.rename(archive)
