# SPDX-License-Identifier: MIT
"""The layers, files and archives that workloads use: made once, at the first use.

A tree has lower layers and the same content as a plain directory ("merged") for native. What a
workload changes is never a tree itself: native works on a copy then.
"""

import functools
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import plyfs_testlib as lib

FILES_IN_DIRECTORY = 100


@dataclass
class Tree:
    lowers: list  # the topmost first
    merged: Path
    files: list = field(default_factory=list)  # relative paths
    links: list = field(default_factory=list)
    size: int = 0  # bytes of each file
    directories: int = 0

    @property
    def entries(self):
        return len(self.files) + len(self.links) + self.directories


class Trees:
    def __init__(self, base, ops, scale):
        """Trees are made in base/making, and given out as base/trees: the same, but read-only. So
        a system that writes to its lower layers spoils nobody else's.
        """
        self.ops, self.scale = ops, scale
        self.base, self.making = Path(base) / "trees", Path(base) / "making"
        self.lists = Path(base) / "lists"
        for path in (self.base, self.making, self.lists):
            path.mkdir()
        lib.sys_mount(self.making, self.base, "", lib.MS_BIND)
        lib.sys_mount("none", self.base, "", lib.MS_REMOUNT | lib.MS_BIND | lib.MS_RDONLY)

    def count(self, full, least=10):
        """So many of the full number as the scale of this run says."""
        return max(least, int(full * self.scale))

    def list(self, name, paths):
        """A file of paths for ops."""
        file = self.lists / name
        if not file.exists():
            file.write_text("".join(f"{p}\n" for p in paths))
        return file

    def call(self, *args):
        subprocess.run([self.ops, *map(str, args)], check=True, timeout=300, stdout=subprocess.DEVNULL)

    def place(self, name):
        place = self.making / name
        place.mkdir()
        return place

    def tree(self, lowers, merged, *rest):
        """A Tree of directories below "making", as it is given out."""
        return Tree([self.given(p) for p in lowers], self.given(merged), *rest)

    def given(self, path):
        return self.base / path.relative_to(self.making)

    def close(self):
        lib.sys_umount(self.base, lib.MNT_DETACH)

    def make_files(self, root, paths, size=0, operation="create"):
        paths = list(paths)
        for parent in sorted({os.path.dirname(p) for p in paths}):
            (root / parent).mkdir(parents=True, exist_ok=True)
        file = self.lists / "making"
        file.write_text("".join(f"{p}\n" for p in paths))
        self.call("-C", root, "-s", size, operation, file)

    # --- many files -------------------------------------------------------------------------------

    def layered(self, name, layers, files, size):
        """Every other directory is merged from all layers, the others lie in one layer each."""
        place = self.place(name)
        directories = max(2, files // FILES_IN_DIRECTORY)
        parts = [[] for _ in range(layers)]
        for d in range(directories):
            for f in range(FILES_IN_DIRECTORY):
                layer = f % layers if d % 2 == 0 else d // 2 % layers
                parts[layer].append(f"t{d % 10}/d{d}/f{f}")
        links = [f"links/l{i}" for i in range(directories * 10)]
        lowers = []
        for i, part in enumerate(parts):
            lowers.append(place / str(i))
            lowers[-1].mkdir()
            self.make_files(lowers[-1], part, size)
        merged = self.place(f"{name}-merged")
        everything = [p for part in parts for p in part]
        self.make_files(merged, everything, size)
        for root in (lowers[0], merged):
            self.make_files(root, links, operation="symlink")
        below = {os.path.dirname(p) for p in everything} | {"links"}
        below |= {os.path.dirname(p) for p in below} - {""}
        # in the order of a walk, as programs meet them
        ordered = [f"t{d % 10}/d{d}/f{f}" for d in range(directories) for f in range(FILES_IN_DIRECTORY)]
        return self.tree(lowers, merged, ordered, links, size, len(below))

    @functools.cached_property
    def ten(self):
        return self.layered("ten", 10, self.count(50000, 400), 1024)

    @functools.cached_property
    def hundred(self):
        return self.layered("hundred", 100, self.count(50000, 400), 0)

    @functools.cached_property
    def big(self):
        """One directory, half of it in each of two layers."""
        names = [f"big/n{i:06d}" for i in range(self.count(100000, 1000))]
        place = self.place("big")
        for i in range(2):
            (place / str(i)).mkdir()
            self.make_files(place / str(i), names[i::2])
        self.make_files(self.place("big-merged"), names)
        return self.tree([place / "0", place / "1"], self.making / "big-merged", names, [], 0, 1)

    def single(self, name, files, size, fanout=FILES_IN_DIRECTORY):
        """One lower layer, which is its own plain directory."""
        place = self.place(name)
        paths = [f"d{i // fanout}/f{i}" for i in range(files)]
        self.make_files(place, paths, size)
        return self.tree([place], place, paths, [], size, len({os.path.dirname(p) for p in paths}))

    @functools.cached_property
    def plain(self):
        """What is unpacked, copied and removed."""
        return self.single("plain", self.count(20000, 200), 2048)

    @functools.cached_property
    def mass(self):
        return self.single("mass", self.count(200000, 2000), 0, 500)

    @functools.cached_property
    def many(self):
        """What is copied up one by one."""
        return self.single("many", self.count(3000, 60), 4096)

    @functools.cached_property
    def large(self):
        place = self.place("large")
        size = max(1, int(64 * min(1, self.scale * 2))) * lib.MIB
        names = [f"large{i}" for i in range(self.count(8, 2))]
        for name in names:
            self.call("-s", size, "-b", lib.MIB, "write", place / name)
        return self.tree([place], place, names, [], size, 0)

    @functools.cached_property
    def empty(self):
        place = self.place("empty")
        (place / "below").mkdir()
        return self.tree([place], place, [], [], 0, 1)

    @functools.cached_property
    def tar(self):
        """An archive of what "plain" holds."""
        file = self.making / "plain.tar"
        command = ["tar", "-C", self.plain.merged, "-cf", file, "."]
        subprocess.run(command, check=True, timeout=300)
        return file

    # --- what programs work on ---------------------------------------------------------------------

    @functools.cached_property
    def repository(self):
        """A repository of two commits, "old" and "new", between which a quarter of the files differ."""
        place = self.place("repository")
        count = self.count(3000, 40)
        paths = [f"src/part{i // 50}/file{i}.c" for i in range(count)]

        def write(path, generation):
            text = "".join(f"int f{n}_{generation}(int x) {{ return x * {n}; }}\n" for n in range(60))
            lib.write(place / path, f"/* {path} */\n{text}")

        def git(*args):
            subprocess.run(["git", "-C", place, *args], check=True, timeout=120, capture_output=True)

        for path in paths:
            write(path, "old")
        git("init", "-q", "-b", "main")
        git("add", ".")
        git("commit", "-q", "-m", "old")
        git("tag", "old")
        for path in paths[::4]:
            write(path, "new")
        git("commit", "-q", "-a", "-m", "new")
        git("tag", "new")
        return self.given(place), paths

    @functools.cached_property
    def sources(self):
        """A program of a hundred source files and their Makefile."""
        place = self.place("sources")
        count = self.count(100, 6)
        lib.write(
            place / "common.h",
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <errno.h>\n"
            + "".join(f"int unit{i}(int x);\n" for i in range(count)),
        )
        for i in range(count):
            body = "".join(
                f"static int part{n}(int x)\n{{\n\tchar b[64];\n\tsnprintf(b, sizeof(b), \"%d\", x);\n"
                f"\treturn (int)strlen(b) + {n};\n}}\n"
                for n in range(20)
            )
            calls = " + ".join(f"part{n}(x)" for n in range(20))
            text = f'#include "common.h"\n{body}int unit{i}(int x)\n{{\n\treturn {calls};\n}}\n'
            lib.write(place / "src" / f"unit{i}.c", text)
        total = " + ".join(f"unit{i}({i})" for i in range(count))
        main = f'#include "common.h"\nint main(void)\n{{\n\tprintf("%d\\n", {total});\n}}\n'
        lib.write(place / "src" / "main.c", main)
        lib.write(
            place / "Makefile",
            "OBJS := $(patsubst src/%.c,obj/%.o,$(wildcard src/*.c))\n"
            "program: $(OBJS)\n\t$(CC) -o $@ $(OBJS)\n"
            "obj/%.o: src/%.c common.h\n\t@mkdir -p obj\n\t$(CC) -O1 -I. -c -o $@ $<\n",
        )
        return self.tree([place], place, [f"src/unit{i}.c" for i in range(count)])

    @functools.cached_property
    def package(self):
        """A Debian package of some thousand files, and the names of these."""
        place = self.place("package")
        paths = [f"usr/share/bench/d{i // 50}/f{i}" for i in range(self.count(3000, 30))]
        self.make_files(place, paths, 2048)
        lib.write(
            place / "DEBIAN" / "control",
            "Package: plyfs-bench\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n"
            "Description: files to unpack\n",
        )
        file = self.making / "package.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", place, file]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        return file, paths

    @functools.cached_property
    def system_root(self):
        """As much of a Debian system as dpkg --root needs."""
        place = self.place("root")
        for path in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "usr/share", "var/log"):
            (place / path).mkdir(parents=True, exist_ok=True)
        for name in ("status", "available"):
            lib.write(place / "var/lib/dpkg" / name)
        return self.tree([place], place)
