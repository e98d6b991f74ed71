# SPDX-License-Identifier: MIT
"""Changes of what lies in a lower layer."""

from . import workload


@workload(
    "copyup",
    "changes of 3,000 lower files of 4 KiB, and of 8 of 64 MiB",
    {
        "chmod-R": "chmod -R of lower files",
        "chmod-R-again": "chmod -R of the same, now upper",
        "append": "open for appending, write of 4 KiB",
        "rename": "rename of lower files",
        "large": "append to files of 64 MiB",
    },
)
def copyup(s):
    many, n = s.trees.many, len(s.trees.many.files)
    files = s.trees.list("many-files", many.files)
    with s.union(many, changes=True):
        s.run("chmod-R", ["chmod", "-R", "g+w", "."], n)
        s.run("chmod-R-again", ["chmod", "-R", "o-r", "."], n)
        s.verify("chmod-R", entries=many.entries, size=n * many.size)
    with s.union(many, changes=True):
        s.ops("append", "append", files, "-s", 4096, count=n, total=n * 4096)
        s.verify("append", entries=many.entries, size=n * 2 * many.size)
    with s.union(many, changes=True):
        s.ops("rename", "rename", files, count=n)
        s.verify("rename", entries=many.entries, size=n * many.size)
    large = s.trees.large
    files = s.trees.list("large-files", large.files)
    with s.union(large, changes=True):
        s.ops("large", "append", files, "-s", 8, count=len(large.files))
        s.verify("large", entries=len(large.files), size=len(large.files) * (large.size + 8))


@workload(
    "metacopy",
    "changes of the metadata of 3,000 lower files, with metacopy=on",
    {"chmod-R": "chmod -R of lower files"},
)
def metacopy(s):
    many, n = s.trees.many, len(s.trees.many.files)
    if not s.system.metacopy:
        s.skip("chmod-R")
        return
    with s.union(many, changes=True, options=s.system.metacopy):
        s.run("chmod-R", ["chmod", "-R", "g+w", "."], n)
        s.verify("chmod-R", entries=many.entries, size=n * many.size)
