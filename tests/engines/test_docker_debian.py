# SPDX-License-Identifier: MIT
"""apt-get install in a docker build on Debian, and the image that comes out of it."""

import engines_testlib as lib
import layers
import pytest
from docker_testlib import Docker
from test_debian import BASE, CONTAINERFILE, archive  # noqa: F401: a fixture


@pytest.fixture
def docker():
    d = Docker(lib.settings.scratch / "docker-debian").start()
    yield d
    d.close()


@pytest.mark.limit(200)
def test_apt_get_install(docker, archive, scratch):  # noqa: F811
    (scratch / "Containerfile").write_text(CONTAINERFILE)
    docker("import", archive, BASE)
    docker.build("installed", scratch)
    # the base was made without documentation, and the build takes away what apt keeps
    verify = "dpkg --verify | grep -vE ' /usr/share/| /var/(cache|lib)/apt/'"
    out = docker.sh("installed", f"set +e; dpkg --audit; {verify}; apt-get check -qq; ping -V")
    assert out.startswith("ping from iputils")
    image = docker.saved("installed")
    base, added = image[:2]
    assert "security.capability" in added["usr/bin/ping"].xattrs
    # what was not changed, and only copied up at most, is in no layer
    same = {path for path in added if base.get(path) == added[path] and added[path].type != "dir"}
    assert same == set()
    assert "var/lib/apt/lists" not in layers.final_tree(image)
