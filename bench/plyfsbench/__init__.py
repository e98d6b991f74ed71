# SPDX-License-Identifier: MIT
"""plyfs measured beside the kernel's overlayfs and its peers; docs/performance.md tells the method.

  machine    the scratch directory and all that must be undone at the end; what machine this is
  systems    how each union filesystem is mounted, and ended when it hangs
  trees      the layers and files that the workloads use
  sample     one workload on one system, once: steps that are timed, bounded and checked
  workloads  what is measured
  rounds     which system's turn it is, and how long the whole may take
  report     tables and JSON; chart: the picture
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integration"))  # mounts, namespaces and processes are there
