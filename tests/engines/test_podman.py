# SPDX-License-Identifier: MIT
"""podman on the mount program, as root and as ordinary users."""

import engines_testlib as lib
import pytest
from engines_world import SINGLE, SUBORDINATE
from podman_testlib import Engine

KINDS = {
    "root-runc": (None, "runc"),
    "root-crun": (None, "crun"),
    "sub-ids": (SUBORDINATE, "crun"),
    "single-id": (SINGLE, "runc"),
}


@pytest.fixture(scope="module", params=KINDS)
def engine(request, program, base_tar):
    user, runtime = KINDS[request.param]
    overlay = ['ignore_chown_errors = "true"'] if user == SINGLE else []
    made = Engine(lib.settings.scratch / request.param, user, program, runtime, overlay)
    try:
        made.import_base(base_tar)
        yield made
    finally:
        made.close()


def test_run_sees_its_own_writes(engine):
    script = "echo new > /etc/new; rm /etc/group; cat /etc/new; ls /etc/group || echo gone"
    assert engine.sh(lib.BASE, script).split() == ["new", "gone"]
    engine.assert_idle()
