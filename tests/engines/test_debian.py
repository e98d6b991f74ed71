# SPDX-License-Identifier: MIT
"""apt-get install in a build on Debian, and the image that comes out of it.

The package's scripts change users, links and alternatives, and give a program capabilities.
"""

import fnmatch
from pathlib import Path

import debian
import engines_testlib as lib
import layers
import pytest
from engines_world import SUBORDINATE
from podman_testlib import Engine, saved_image

BASE = "localhost/debian:1"
CACHE = Path("/var/cache/plyfs-tests")
PACKAGES = ["iputils-ping"]
SMALL = [
    f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man", "zoneinfo")
]
CONTAINERFILE = f"""\
FROM {BASE}
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get install -y -q --no-download --no-install-recommends {" ".join(PACKAGES)}
RUN rm -rf /var/cache/apt /var/lib/apt/lists && apt-mark auto {" ".join(PACKAGES)}
"""

# What two runs of the same on one and the same file system do not make equal.
DIFFERS = {
    "var/log/*": "times",
    "var/cache/ldconfig/aux-cache": "inode numbers and times of libraries",
    "var/cache/apt/*pkgcache.bin": "a dump of memory, with times of files",
}


@pytest.fixture(scope="module")
def archive():
    CACHE.mkdir(exist_ok=True)
    return debian.rootfs(CACHE, lib.settings.scratch / "mmdebstrap.log", PACKAGES, SMALL)


def installed(archive, name, user=None, program=None):
    """What the build adds to the base, layer by layer, and what the program says of itself."""
    context = lib.settings.scratch / f"context-{name}"
    context.mkdir(exist_ok=True)
    (context / "Containerfile").write_text(CONTAINERFILE)
    with Engine(lib.settings.scratch / name, user, program, "crun") as engine:
        if not program:
            engine.assert_kernels_driver()
        engine.import_base(archive, BASE)
        build = ["build", "-q", "--layers", "--pull=never", "--network=none"]
        engine.podman(*build, "-t", "localhost/installed:1", context, timeout=150)
        engine.assert_idle()
        out = engine.sh("localhost/installed:1", "dpkg --audit; apt-get check -qq; ping -V")
        return saved_image(engine, "localhost/installed:1"), out


@pytest.fixture(scope="module")
def by_kernel(archive):
    return installed(archive, "debian-kernel")[0]


def comparable(layer):
    out = {}
    for path, entry in layer.items():
        if any(fnmatch.fnmatch(path, pattern) for pattern in DIFFERS):
            entry = entry._replace(size=0, digest=None)
        out[path] = entry
    return out


@pytest.mark.limit(400)
@pytest.mark.parametrize("user", [None, SUBORDINATE], ids=["root", "sub-ids"])
def test_apt_get_install(program, archive, by_kernel, user):
    image, out = installed(archive, "debian", user, program)
    assert out.startswith("ping from iputils")
    assert "security.capability" in layers.final_tree(image)["usr/bin/ping"].xattrs
    lines = layers.image_differences(*([comparable(la) for la in i] for i in (by_kernel, image)))
    assert not lines, "\n".join(lines)
